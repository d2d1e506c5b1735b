"""Slow twin readings of LOBSTER's, Databento's and hftbacktest's files (see tests/twins.py)."""

import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

import numpy as np
from twins import (
    SECOND,
    Fault,
    File,
    Message,
    Row,
    Told,
    Unsure,
    check_time,
    columns,
    csv_rows,
    iso_time,
    number,
    read_array,
    since_epoch,
    size_of,
    whole,
)

from lob.feeds.batch import ADD, MATCH, NO_ORDER, SET, SNAPSHOT, SUB

# LOBSTER


def tell_lobster(files: list[File]) -> Told:
    days: dict[str, dict[str, list[list[str]]]] = {}
    for name, data in files:
        if not data.isascii() or b'"' in data or re.search(rb"\r(?!\n)", data):
            raise Unsure("letters that are not ASCII")
        kind = "message" if "_message_" in name else "orderbook"
        rows = [line.split(",") for line in data.decode().replace("\r\n", "\n").split("\n") if line]
        days.setdefault(name.replace(f"_{kind}_", "_"), {})[kind] = rows
    messages = []
    for name, day in days.items():
        if len(day) < 2 or len(day["message"]) != len(day["orderbook"]) or not day["message"]:
            raise Fault("a file of a day is missing or shorter")
        date = re.search(r"(\d{4})-(\d\d)-(\d\d)", name)
        assert date
        # New York is 4 hours behind in summer, and all our days are summer's.
        midnight = iso_time(f"{date[0]}T04:00:00")
        widths = {len(row) for row in day["orderbook"]} | {len(row) for row in day["message"]}
        if len(widths) > 2 or len({len(row) for row in day["orderbook"]}) > 1:
            raise Fault("rows of several lengths")
        for cells, levels in zip(day["message"], day["orderbook"], strict=True):
            rows = lobster_rows(cells, levels, first=not messages)
            seconds = number(cells[0])
            if not 0 <= seconds <= 86_400:
                raise Fault("no time of day")
            if seconds * SECOND % 1:
                raise Unsure("a part of a nanosecond")
            messages.append(Message(midnight + int(seconds * SECOND), rows))
    return Told([messages], Counter())


def lobster_rows(cells: list[str], levels: list[str], first: bool) -> list[Row]:
    _, kind, _, size, price, direction = (number(cell) for cell in cells[:6])
    rows = []
    if kind == 4 and not first:  # before the first row there is no book that a trade could change
        rows.append(Row(MATCH, direction > 0, price / 10_000, size))
    if len(levels) % 4:
        raise Fault("not four numbers a level")
    if any("." in cell for cell in levels):
        raise Unsure("a book of other numbers than LOBSTER's, which may not be recognised")
    numbers = [number(cell) for cell in levels]
    if min(numbers[1::2]) < 0 or (rows and size < 0):
        raise Fault("a negative size")
    for place in range(0, len(levels), 2):
        if numbers[place + 1] > 0:
            is_bid = place % 4 == 2
            rows.append(Row(SNAPSHOT, is_bid, numbers[place] / 10_000, numbers[place + 1]))
    if not any(row.kind == SNAPSHOT for row in rows):
        rows.append(Row(SNAPSHOT, False, Decimal(0), Decimal(0)))
    return rows


# Databento

DBN_KINDS = {"A": ADD, "C": SUB, "M": SET, "R": SNAPSHOT}


class Record(NamedTuple):
    time_ns: int
    action: str
    side: str
    price: Decimal | None
    size: Decimal
    order_id: int
    flags: int


def tell_databento(files: list[File]) -> Told:
    messages: list[Message] = []
    skipped: Counter[str] = Counter()
    rest: list[Record] = []
    last_time = None
    venues, instruments = set(), set()
    ended = False
    for _, data in files:
        records = []
        for record, venue, instrument in read_records(data):
            venues.add(venue)
            instruments.add(instrument)
            records.append(record)
            ended |= bool(record.flags & 128)
            if len(instruments) > 1 and data[:3] != b"DBN":
                raise Unsure("several ids, which may be of one symbol")
        if not records:
            raise Unsure("no records")
        records, rest = rest + records, []
        skipped["records_of_doubtful_books"] += sum(record.flags & 4 > 0 for record in records)
        for group, in_snapshot in group_records(records, last_time):
            rows = [row for record in group for row in databento_row(record)]
            skipped["rows_passed_by"] += len(group) - len(rows)
            if rows:
                # A snapshot of the time before belongs to the message after it, and has its time.
                time = group[-1].time_ns if in_snapshot else group[0].time_ns
                messages.append(Message(time, rows))
        last_time = records[-1].time_ns
    if len(venues) > 1 or len(instruments) > 1:
        raise Fault("several books")
    if not ended:
        raise Fault("no message ends")
    return Told([messages], skipped, by_order=True)


def group_records(
    records: list[Record], last_time: int | None
) -> Iterator[tuple[list[Record], bool]]:
    """Yield the messages: up to a record with F_LAST; a snapshot; from a clear on.

    With each comes whether it opens with a snapshot of the time of the message before it.
    """
    group: list[Record] = []
    known = False  # whether the snapshot in the group has the time of the message before it
    for place, record in enumerate(records):
        before = records[place - 1] if place else None
        in_snapshot, was = bool(record.flags & 32), bool(before and before.flags & 32)
        opens = in_snapshot and not was
        begins = before is None or before.flags & 128 or in_snapshot != was or record.action == "R"
        if begins and not (was and known and not in_snapshot):
            if group:
                yield group, known
            group, known = [], False
        if opens:
            known = record.time_ns == (before.time_ns if before else last_time)
        group.append(record)
    if group:
        yield group, known


def databento_row(record: Record) -> list[Row]:
    if record.action in "FN" or (record.action == "T" and record.side == "N"):
        return []
    if record.action == "R":
        return [Row(SNAPSHOT, record.side == "B", Decimal(0), Decimal(0), record.order_id)]
    if record.price is None or record.size < 0:
        raise Fault("no price, or a negative size")
    if record.action == "T":
        return [Row(MATCH, record.side != "B", record.price, record.size, NO_ORDER)]
    kind = SNAPSHOT if record.flags & 32 else DBN_KINDS[record.action]
    return [Row(kind, record.side == "B", record.price, record.size, record.order_id)]


def read_records(data: bytes) -> Iterator[tuple[Record, int, int]]:
    """Yield records of schema mbo, their venue and their instrument."""
    if data[:3] == b"DBN":
        size = 8 + int.from_bytes(data[4:8], "little")
        if size > len(data):
            raise Fault("it ends in its head")
        if data[3] not in (1, 2, 3):
            raise Unsure("a version of the format")
        body = data[size:]
        if len(body) % 56 or any(
            body[at] != 14 or body[at + 1] != 160 for at in range(0, len(body), 56)
        ):
            raise Unsure("records of other lengths")
        fields = "<u1,u1,<u2,<u4,<u8,<u8,<i8,<u4,u1,u1,S1,S1,<u8,<i4,<u4".replace("<u1", "u1")
        for cells in np.frombuffer(body, fields).tolist():
            _, _, venue, instrument, time, order, price, quantity, flags, _, action, side = cells[
                :12
            ]
            if action not in (b"A", b"C", b"M", b"R", b"T", b"F", b"N") or side not in (
                b"B",
                b"A",
                b"N",
            ):
                raise Fault("an unknown word")
            exact = (
                None if price == 2**63 - 1 else number(str(Decimal(price).scaleb(-9).normalize()))
            )
            yield (
                Record(check_time(time), action.decode(), side.decode(), exact, Decimal(quantity),
                       order, flags), venue, instrument,
            )  # fmt: skip
        return
    header, rows = csv_rows(data)
    names = ["ts_event", "action", "side", "price", "size", "order_id", "flags", "publisher_id",
             "instrument_id"]  # fmt: skip
    for cells in columns(header, rows, names):
        time, action, side, price, quantity, order, flags, venue, instrument = cells
        if action not in (*"ACMRTFN",) or side not in (*"BAN",):
            raise Fault("an unknown word")
        if not 0 <= whole(flags) < 256:
            raise Unsure("flags of more than a byte")
        exact = number(price) if price else None
        yield (
            Record(iso_time(time), action, side, exact, Decimal(whole(quantity)), whole(order, 64),
                   whole(flags)), whole(venue), whole(instrument),
        )  # fmt: skip


# hftbacktest

EXCHANGE, BUY, SELL = 1 << 31, 1 << 29, 1 << 28


def tell_hftbacktest(files: list[File]) -> Told:
    """Blocks of one exchange time and local time; a snapshot belongs to the message after it.

    If the message before it has its exchange time, it belongs to that one.
    """
    blocks: list[tuple[tuple, list]] = []
    skipped: Counter[str] = Counter()
    for _, data in files:
        array = read_array(data) if data[:6] == b"\x93NUMPY" else None
        if array is None or array.ndim != 1 or not len(array):
            raise Fault("no array of events")
        if (array.dtype.names or ())[:5] != ("ev", "exch_ts", "local_ts", "px", "qty"):
            raise Fault("the fields are others")
        for event, exchange, local, price, size, *_ in array.tolist():
            kind = event & 0xFF
            since_epoch(exchange)
            if 10 <= kind <= 13:
                raise Fault("events of single orders")
            if not event & EXCHANGE or kind not in (1, 3, 4):
                skipped["rows_passed_by"] += 1
                continue
            key = (kind != 1, exchange, local)
            if not blocks or blocks[-1][0] != key:
                blocks.append((key, []))
            if kind == 3:
                size = 0.0
                price = price if np.isfinite(price) else None
            elif not event & (BUY | SELL):
                raise Fault("a level without a side")
            cells = None if price is None else number(repr(price)), size_of(repr(size))
            blocks[-1][1].append((event, *cells))
    ordered = order_blocks(blocks)
    books = sum(key[0] for key, _ in ordered)
    skipped["snapshots"] += max(books - 1, 0)
    return Told([join_blocks(tell_events(ordered))], skipped)


def tell_events(blocks: list[tuple[tuple, list]]) -> Iterator[tuple[tuple, list[Row]]]:
    """Yield the blocks with rows in place of events, of a book that their clears change.

    The first snapshot is a whole book.
    """
    book: dict[bool, set[Decimal]] = {True: set(), False: set()}
    known = False
    for key, events in blocks:
        kind = SNAPSHOT if key[0] and not known else SET
        known |= key[0]
        rows = []
        for event, price, size in events:
            is_buy, side = bool(event & BUY), bool(event & (BUY | SELL))
            if event & 0xFF != 3:
                rows.append(Row(kind, is_buy, price, size))
                if known:
                    (book[is_buy].add if size else book[is_buy].discard)(price)
            elif kind == SNAPSHOT:
                rows.append(Row(SNAPSHOT, is_buy, price or Decimal(0), Decimal(0)))
            else:
                for each in (True, False):
                    if side and each != is_buy:
                        continue
                    gone = {
                        level
                        for level in book[each]
                        if not side or price is None or (level >= price if each else level <= price)
                    }
                    book[each] -= gone
                    rows += [Row(SET, each, level, Decimal(0)) for level in gone]
        yield key, rows


def order_blocks(blocks: list[tuple[tuple, list]]) -> list[tuple[tuple, list]]:
    ordered = list(blocks)
    for place in range(1, len(ordered)):
        (book, time, _), (book_before, time_before, _) = blocks[place][0], blocks[place - 1][0]
        if book and not book_before and time == time_before:
            ordered[place - 1 : place + 1] = [blocks[place], blocks[place - 1]]
    merged: list[tuple[tuple, list]] = []
    for key, events in ordered:
        if merged and merged[-1][0] == key:
            merged[-1][1].extend(events)
        else:
            merged.append((key, list(events)))
    return merged


def join_blocks(ordered: Iterator[tuple[tuple, list[Row]]]) -> list[Message]:
    messages: list[Message] = []
    was_book = False
    last_key = None
    for key, rows in ordered:
        if was_book and not key[0]:
            messages[-1] = Message(since_epoch(key[1]), messages[-1].rows + rows)
        elif key == last_key:
            messages[-1].rows.extend(rows)
        else:
            messages.append(Message(since_epoch(key[1]), list(rows)))
        was_book, last_key = key[0], key
    return [message for message in messages if message.rows]
