"""Databento's market by order (schema mbo): DBN files, by its own package, and their CSV form."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from lob.config import InputError
from lob.feeds.batch import (
    ADD,
    MATCH,
    NO_ORDER,
    SET,
    SNAPSHOT,
    SUB,
    Batch,
    feed,
    find_delimiter,
    first_row,
    map_words,
    to_float,
    to_ns,
)
from lob.feeds.recordings import open_decompressed, read_csv, read_head
from lob.feeds.text_times import texts_to_ns

NO_PRICE = 2**63 - 1
MBO, CHUNK_BYTES = 160, 1 << 22  # type of a record
LAST, IN_SNAPSHOT, MAYBE_BAD_BOOK = 128, 32, 4  # flags
ADDS, CANCELS, MODIFIES, CLEARS, TRADES, FILLS, NOTHING = ACTIONS = b"ACMRTFN"
BUY, SELL, NO_SIDE = SIDES = b"BAN"
KINDS = np.zeros(256, np.uint8)
KINDS[[ADDS, CANCELS, MODIFIES, CLEARS, TRADES]] = ADD, SUB, SET, SNAPSHOT, MATCH
RECORD = np.dtype(
    [
        ("time_ns", "i8"),
        ("order_id", "u8"),
        ("price", "f8"),
        ("size", "i8"),
        ("flags", "u1"),
        ("action", "u1"),
        ("side", "u1"),
        ("publisher", "i8"),
        ("instrument", "i8"),
        ("row", "i8"),  # in the file
    ]
)
CSV_TYPES = {
    "order_id": pa.uint64(),
    "size": pa.int64(),
    "flags": pa.int64(),
    "publisher_id": pa.int64(),
    "instrument_id": pa.int64(),
    "action": pa.dictionary(pa.int32(), pa.string()),
    "side": pa.dictionary(pa.int32(), pa.string()),
}


def is_csv(head: bytes) -> bool:
    return {"ts_event", "price", *CSV_TYPES} <= set(re.split("[;,]", first_row(head)[0]))


@feed(lambda head: head.startswith(b"DBN") or is_csv(head), by_symbol=True)
def read_databento(files: list[Path], symbol: str | None = None) -> Iterator[Batch]:
    """Read Databento's records of schema mbo, order by order, of one instrument.

    `symbol` is a raw symbol or an instrument id. A record with the flag F_LAST ends a message. A
    snapshot is a message too, unless it has the time of the message before it: a day's file begins
    with the book that the last one left, which is no new state. Cancels and changes tell what fills
    do to the book, the trades' own records what was traded. A message's time is `ts_event`. Records
    with F_MAYBE_BAD_BOOK are counted.
    """
    reader = MboReader(symbol)
    for file in files:
        read = read_csv_records if is_csv(read_head(file)) else read_dbn_records
        for records, names, file_bytes in read(file):
            yield from reader.make_batches(file, records, names, file_bytes)
        yield from reader.make_batches(file, reader.rest[:0], {}, file_bytes, at_end=True)
    if not reader.seen or (symbol is not None and symbol not in reader.seen):
        there = ", ".join(sorted(reader.seen)) or "no records of schema mbo"
        raise InputError(
            f"{files[0].parent} holds {there}, not {symbol}: set --symbol to one of it"
        )
    if not reader.any_end:
        raise InputError(
            f"{files[0].parent} holds no record with the flag F_LAST (128), which ends a message: "
            "keep the column flags as Databento wrote it"
        )


class MboReader:
    """Turns records into batches. A message that is not complete waits for the next records."""

    def __init__(self, symbol: str | None):
        self.symbol = symbol
        self.seen: set[str] = set()  # symbols and ids
        self.message, self.last_time = 0, -1
        self.rest = np.empty(0, RECORD)
        self.passed_by = 0  # records of other instruments, since the last batch
        self.publishers: set[int] = set()  # of the chosen instrument's records
        self.any_end = False  # whether a record had F_LAST

    def make_batches(
        self,
        file: Path,
        records: np.ndarray,
        names: dict[int, str],
        file_bytes: int,
        at_end: bool = False,
    ) -> Iterator[Batch]:
        """Yield the batch of these records. Raises InputError if they are of several books."""
        check_records(file, records)
        records = np.concatenate([self.rest, self.choose(file, records, names)])
        flags, action = records["flags"], records["action"]
        self.any_end = self.any_end or bool((flags & LAST > 0).any())
        # A snapshot waits for the record after it.
        ends = np.flatnonzero((flags & LAST > 0) & (flags & IN_SNAPSHOT == 0))
        stop = len(records) if at_end else int(ends[-1]) + 1 if len(ends) else 0
        records, self.rest = records[:stop], records[stop:]
        if len(records) == 0:
            return
        flags, action = flags[:stop], action[:stop]
        messages, time_ns = self.number_messages(records)
        kinds = np.where(flags & IN_SNAPSHOT > 0, SNAPSHOT, KINDS[action]).astype(np.uint8)
        trades = action == TRADES
        kept = ~np.isin(action, (FILLS, NOTHING)) & ~(trades & (records["side"] == NO_SIDE))
        # A trade's side is that of the order that came last: the other one rested.
        is_buy = (records["side"] == BUY) ^ trades
        order_id = np.where(trades, NO_ORDER, records["order_id"].view(np.int64))
        cleared = action[kept] == CLEARS
        doubtful = int((flags & MAYBE_BAD_BOOK > 0).sum())
        passed_by, self.passed_by = self.passed_by + int(np.count_nonzero(~kept)), 0
        yield Batch(
            time_ns=time_ns[kept],
            message=messages[kept],
            update_type=kinds[kept],
            is_buy=is_buy[kept],
            price=np.where(cleared, 0.0, records["price"][kept]),
            size=np.where(cleared, 0.0, records["size"][kept]),
            order_id=order_id[kept],
            file=str(file),
            first_row=int(records["row"][0]),
            file_bytes=file_bytes,
            lines=records["row"][kept],
            unit="row",
            skipped={"records_of_doubtful_books": doubtful, "rows_passed_by": passed_by},
        )

    def number_messages(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each record's message number and time.

        A snapshot that has the time of the message before it belongs to the one after it.
        """
        time_ns, flags = records["time_ns"], records["flags"]
        in_snapshot = flags & IN_SNAPSHOT > 0
        was_in_snapshot = np.append(False, in_snapshot[:-1])
        opens = in_snapshot & ~was_in_snapshot
        begins = np.append(True, flags[:-1] & LAST > 0) | (in_snapshot != was_in_snapshot)
        begins |= records["action"] == CLEARS
        known = opens & (time_ns == np.append(self.last_time, time_ns[:-1]))
        of_known = in_snapshot & np.append(False, known[np.flatnonzero(opens)])[np.cumsum(opens)]
        begins &= ~np.append(False, of_known[:-1]) | in_snapshot
        messages = self.message + np.cumsum(begins)
        last_rows = np.searchsorted(messages, messages, side="right") - 1
        self.message, self.last_time = int(messages[-1]), int(time_ns[-1])
        return messages, np.where(of_known, time_ns[last_rows], time_ns)

    def choose(self, file: Path, records: np.ndarray, names: dict[int, str]) -> np.ndarray:
        """Return the records of the chosen instrument, or all if there is only one."""
        ids = np.unique(records["instrument"]).tolist()
        known = {number: names.get(number, str(number)) for number in ids}
        self.seen.update(known.values())
        if self.symbol is not None:
            chosen = [id_ for id_, name in known.items() if self.symbol in (name, str(id_))]
            self.seen.update(str(id_) for id_ in chosen)
            count = len(records)
            records = records[np.isin(records["instrument"], chosen)]
            self.passed_by += count - len(records)
        elif len(self.seen) > 1:
            raise InputError(
                f"{file} holds {', '.join(sorted(self.seen))}: take one of them, such as "
                f"--symbol={min(self.seen)}"
            )
        self.publishers.update(np.unique(records["publisher"]).tolist())
        if len(self.publishers) > 1:
            numbers = ", ".join(map(str, sorted(self.publishers)))
            raise InputError(
                f"{file} and the files before it hold books of the publishers {numbers}: ask "
                "Databento for one venue's dataset"
            )
        return records


def check_records(file: Path, records: np.ndarray) -> None:
    """Raise InputError, with the row, if a record's time, action or side can't be."""
    whole = np.isin(records["action"], list(ACTIONS)) & np.isin(records["side"], list(SIDES))
    whole &= records["time_ns"] >= 0
    if not whole.all():
        bad = records[int(np.argmin(whole))]
        raise InputError(
            f"{file}, row {bad['row']}: time {bad['time_ns']}, action {chr(bad['action'])!r} and "
            f"side {chr(bad['side'])!r} are none of Databento's: fetch the file again"
        )


def import_dbn() -> Any:
    try:
        return importlib.import_module("databento_dbn")
    except ImportError:
        raise InputError(
            "DBN files need Databento's reader: pip install databento-dbn, or ask Databento for CSV"
        ) from None


def read_dbn_records(file: Path) -> Iterator[tuple[np.ndarray, dict[int, str], int]]:
    """Yield records, the names of instruments by their ids, and the file bytes read."""
    dbn = import_dbn()
    layout = np.dtype(dbn.MBOMsg._dtypes)
    row = 1
    try:
        with open_decompressed(file) as (handle, raw):
            head = handle.read(8)
            head += handle.read(int.from_bytes(head[4:8], "little"))
            names = name_instruments(dbn.Metadata.decode(head))
            rest = b""
            while data := handle.read(CHUNK_BYTES):
                found, rest = split_records(rest + data, layout)
                yield from_dbn(found, row), names, raw.tell()
                row += len(found)
            if rest:
                raise ValueError(f"it ends within record {row}")
    except (OSError, ValueError, dbn.DBNError) as error:
        raise InputError(f"{file} is no whole DBN file ({error}): fetch it again") from None


def name_instruments(metadata: Any) -> dict[int, str]:
    return {
        int(interval["symbol"]): name
        for name, intervals in metadata.mappings.items()
        for interval in intervals
        if interval["symbol"].isdigit()
    }


def split_records(data: bytes, layout: np.dtype) -> tuple[np.ndarray, bytes]:
    """Return the whole records of type mbo, and the bytes of the record that is cut off.

    Live recordings hold records of other types and lengths, and joined files further heads.
    """
    count = len(data) // layout.itemsize
    records = np.frombuffer(data, layout, count)
    if (records["rtype"] == MBO).all() and (records["length"] * 4 == layout.itemsize).all():
        return records, data[count * layout.itemsize :]
    begins, place = [], 0
    while place + 8 <= len(data):
        size = 4 * data[place]
        if data[place : place + 3] == b"DBN":
            size = 8 + int.from_bytes(data[place + 4 : place + 8], "little")
        if size < 16:
            raise ValueError(f"a record of {size} bytes")
        if place + size > len(data):
            break
        if data[place + 1] == MBO:
            begins.append(place)
        place += size
    parts = [data[begin : begin + layout.itemsize] for begin in begins]
    return np.frombuffer(b"".join(parts), layout), data[place:]


def from_dbn(found: np.ndarray, row: int) -> np.ndarray:
    """Return DBN's records as RECORD. Its prices count 1e-9 of the currency."""
    records = np.empty(len(found), RECORD)
    for name in ("order_id", "size", "flags"):
        records[name] = found[name]
    records["time_ns"] = found["ts_event"]
    records["price"] = np.where(found["price"] == NO_PRICE, np.nan, found["price"] / 1e9)
    records["action"], records["side"] = found["action"].view("u1"), found["side"].view("u1")
    records["publisher"], records["instrument"] = found["publisher_id"], found["instrument_id"]
    records["row"] = np.arange(row, row + len(found))
    return records


def counts_1e9(head: bytes, delimiter: str, place: int) -> bool:
    """Return whether the prices of a CSV file, in this column, count 1e-9 of the currency.

    Else they are written out, and at least one of them with its dot. A clear has none.
    """
    lines = head.decode(errors="replace").replace('"', "").split("\n")[1:-1]
    cells = [cell for line in lines for cell in line.split(delimiter)[place : place + 1] if cell]
    return bool(cells) and all(re.fullmatch(r"-?\d+", cell.strip()) for cell in cells)


def to_times(column: pa.Array, file: Path, row: int) -> np.ndarray:
    """Return times as int64 ns (n,). Raises InputError, with file and row, if a text is no time."""
    if column.type == pa.string():
        return texts_to_ns(column, "ts_event", False, file, row)[0]
    times = column.cast(pa.int64()).to_numpy()
    return to_ns(times) if column.type == pa.int64() else times


def read_csv_records(file: Path) -> Iterator[tuple[np.ndarray, dict[int, str], int]]:
    """Yield the same of a CSV file, whose prices and times are plain numbers or written out."""
    head = read_head(file)
    header, first = first_row(head)
    delimiter = find_delimiter(header)
    names = header.split(delimiter)
    written_out = not first.get("ts_event", "").isdigit()
    in_1e9 = counts_1e9(head, delimiter, names.index("price"))
    types = CSV_TYPES | {
        "ts_event": pa.timestamp("ns", "UTC") if written_out else pa.int64(),
        "price": pa.float64(),
    }
    if "symbol" in names:
        types["symbol"] = pa.dictionary(pa.int32(), pa.string())
    options, general = (
        csv.ConvertOptions(column_types=each, include_columns=list(types), null_values=[""])
        for each in (types, types | {"ts_event": pa.string()})
    )
    for row, column, file_bytes in read_csv(file, delimiter, options, general):
        for name in types.keys() - {"price"}:
            if column[name].null_count:
                missing = row + int(np.argmax(to_float(column[name].is_null())))
                raise InputError(f"{file}, row {missing}: {name} is missing: mend or drop the row")
        records = np.empty(len(column["size"]), RECORD)
        for name in ("order_id", "size", "flags"):
            records[name] = column[name].to_numpy()
        records["time_ns"] = to_times(column["ts_event"], file, row)
        price = to_float(column["price"])
        if in_1e9 and (price % 1 > 0).any():
            bad = int(np.argmax(price % 1 > 0))
            raise InputError(
                f"{file}, row {row + bad}: price {price[bad]} is written out, those before it "
                "count 1e-9: write all prices in one way"
            )
        records["price"] = price / 1e9 if in_1e9 else price
        records["price"][price >= NO_PRICE] = np.nan
        for name, words in (("action", "ACMRTFN"), ("side", "BAN")):
            codes = {word: ord(word) for word in words}
            records[name] = map_words(column[name], codes, name, file, row)
        records["publisher"] = column["publisher_id"].to_numpy()
        records["instrument"] = column["instrument_id"].to_numpy()
        records["row"] = np.arange(row, row + len(records))
        symbols = {}
        if "symbol" in column:
            ids, places = np.unique(records["instrument"], return_index=True)
            texts = column["symbol"].take(pa.array(places)).to_pylist()
            symbols = dict(zip(ids.tolist(), texts, strict=True))
        yield records, symbols, file_bytes
