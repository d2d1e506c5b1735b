"""hftbacktest's event arrays: `.npz` (or `.npy`) files, as its converters write them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lob.config import InputError
from lob.feeds.batch import SET, SNAPSHOT, Batch, count_only, feed, find_changes, to_ns
from lob.feeds.recordings import read_npy_chunks

FIELDS = ("ev", "exch_ts", "local_ts", "px", "qty")
EXCHANGE, BUY, SELL = 1 << 31, 1 << 29, 1 << 28  # flags of `ev`, whose lowest byte is the kind
DEPTH, CLEAR, IN_SNAPSHOT = 1, 3, 4  # kinds
ORDERS = range(10, 14)  # kinds of order by order events


@feed(lambda head: head.startswith(b"\x93NUMPY") and b"'exch_ts'" in head[:1024])
def read_hftbacktest(files: list[Path]) -> Iterator[Batch]:
    """Read hftbacktest's events as its simulated exchange sees them, in the exchange's time.

    Depth events of one exchange time and one local time are one message. The first clear begins a
    book, which the snapshot's levels fill. A later one removes its side's levels up to its price
    (without a price: all, without a side: both sides'), and no deeper ones. A snapshot makes no
    state of its own: it belongs to the message after it, since a snapshot that was fetched is not
    part of the stream. If the message before it has its exchange time, it belongs to that one,
    which may be later by less than a millisecond. Trades and best prices are not used.
    """
    stream = EventStream()
    for file in files:
        row = 0
        for events, file_bytes in read_npy_chunks(file, fields=FIELDS):
            yield from stream.make_batches(file, row, events, file_bytes)
            row += len(events)
    yield from stream.make_batches(files[-1], row, events[:0], file_bytes, at_end=True)


class EventStream:
    """Numbers the messages. Those that may belong to a snapshot that is to come wait for it."""

    def __init__(self) -> None:
        self.number = 0
        self.events: np.ndarray | None = None  # that wait, and their rows in the file
        self.rows = np.empty(0, np.int64)
        self.passed_by = 0  # events that change no book, since the last batch
        self.known = False  # whether a snapshot has come
        self.prices = {True: np.empty(0), False: np.empty(0)}  # of the book's bids and asks

    def make_batches(
        self, file: Path, row: int, events: np.ndarray, file_bytes: int, at_end: bool = False
    ) -> Iterator[Batch]:
        kind = events["ev"] & 0xFF
        if np.isin(kind, ORDERS).any():
            raise InputError(
                f"{file} holds order by order events: parse the recording that it was made from"
            )
        if (bad := to_ns(events["exch_ts"]) < 0).any():
            raise InputError(
                f"{file}, row {row + int(np.argmax(bad))}: its exch_ts does not lie between the "
                "years 1970 and 2262: mend or drop the row"
            )
        used = (events["ev"] & EXCHANGE > 0) & np.isin(kind, (DEPTH, CLEAR, IN_SNAPSHOT))
        bad = used & (kind != CLEAR) & (events["ev"] & (BUY | SELL) == 0)
        if bad.any():
            raise InputError(
                f"{file}, row {row + int(np.argmax(bad))}: a level that is neither bid nor ask: "
                "parse the recording that it was made from"
            )
        self.passed_by += int(np.count_nonzero(~used))
        rows = np.append(self.rows, row + np.flatnonzero(used))
        events = events[used] if self.events is None else np.append(self.events, events[used])
        starts = find_blocks(events)
        whole = is_whole(events[starts])
        last = len(starts) if at_end else len(starts) - 1
        while 0 < last < len(starts) and (whole[last] or whole[last - 1]):
            last -= 1
        stop = len(events) if at_end else int(starts[last]) if last > 0 else 0
        self.events, self.rows = events[stop:], rows[stop:]
        if stop == 0:
            return
        order = put_snapshots_first(events[:stop], starts[:last], whole[:last])
        yield self.make_batch(file, events[order], rows[order], file_bytes)

    def make_batch(
        self, file: Path, events: np.ndarray, rows: np.ndarray, file_bytes: int
    ) -> Batch:
        """Return the batch of whole messages; `rows` are the events' in the file."""
        starts = find_blocks(events)
        whole = is_whole(events)
        begins = np.zeros(len(events), bool)
        begins[starts] = ~(np.append(False, whole[:-1]) & ~whole)[starts]
        numbers = self.number + np.cumsum(begins)
        self.number = int(numbers[-1])
        # A message has the time of its last row, not of the snapshot before it.
        last_rows = np.searchsorted(numbers, numbers, side="right") - 1
        time_ns = to_ns(events["exch_ts"][last_rows])
        skipped = {"rows_passed_by": self.passed_by, "snapshots": int(whole[starts].sum())}
        self.passed_by = 0
        kinds, opening = np.full(len(events), SET, np.uint8), slice(0, 0)
        if not self.known and whole.any():
            block = int(np.argmax(whole[starts]))
            opening = slice(*np.append(starts, len(events))[block : block + 2].tolist())
            kinds[opening] = SNAPSHOT
            skipped["snapshots"] -= 1  # which the book counts
        places, is_buy, price, size = self.apply_clears(events, opening)
        if len(places) == 0:
            return count_only(file, file_bytes, skipped)
        return Batch(
            time_ns=time_ns[places],
            message=numbers[places],
            update_type=kinds[places],
            is_buy=is_buy,
            price=price,
            size=size,
            order_id=None,
            file=str(file),
            first_row=int(rows[0]),
            file_bytes=file_bytes,
            lines=rows[places],
            unit="row",
            skipped=skipped,
        )

    def apply_clears(
        self, events: np.ndarray, opening: slice
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return update rows: places among the events, is_buy, price and size.

        In place of a clear come the levels that it removes. In `opening`, the first snapshot, it
        stays: a whole book may be without levels.
        """
        clears = events["ev"] & 0xFF == CLEAR
        clears[opening] = False
        is_buy = events["ev"] & BUY > 0
        price, size = events["px"].astype(np.float64), events["qty"].astype(np.float64)
        kept = (events["ev"] & 0xFF == CLEAR) & ~clears
        price[kept], size[kept] = np.nan_to_num(price[kept], posinf=0, neginf=0), 0
        self.known = self.known or opening.stop > 0
        parts = []
        begin = 0
        for place in [*np.flatnonzero(clears).tolist(), len(events)]:
            rows = slice(begin, place)
            parts.append((np.arange(begin, place), is_buy[rows], price[rows], size[rows]))
            if self.known:  # before the first snapshot there is no book
                rows = slice(max(begin, opening.start), place)
                self.note_levels(is_buy[rows], price[rows], size[rows])
            for side in (True, False) if place < len(events) else ():
                removed = self.remove_levels(side, int(events["ev"][place]), float(price[place]))
                count = len(removed)
                parts.append(
                    (np.full(count, place), np.full(count, side), removed, np.zeros(count))
                )
            begin = place + 1
        places, is_buy, price, size = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        return places, is_buy, price, size

    def note_levels(self, is_buy: np.ndarray, price: np.ndarray, size: np.ndarray) -> None:
        """Note which levels are there after these rows."""
        for side, before in self.prices.items():
            chosen = is_buy == side
            prices = np.append(before, price[chosen])[::-1]
            there = np.append(np.ones(len(before), bool), size[chosen] > 0)[::-1]
            distinct, last = np.unique(prices, return_index=True)
            self.prices[side] = distinct[there[last]]

    def remove_levels(self, side: bool, event: int, price: float) -> np.ndarray:
        """Return the prices of the levels of a side that a clear removes, and forget them."""
        if event & (BUY | SELL) and side != bool(event & BUY):
            return np.empty(0)
        prices = self.prices[side]
        removed = prices >= price if side else prices <= price
        removed |= not (event & (BUY | SELL) and np.isfinite(price))
        self.prices[side] = prices[~removed]
        return prices[removed]


def is_whole(events: np.ndarray) -> np.ndarray:
    return events["ev"] & 0xFF != DEPTH


def find_blocks(events: np.ndarray) -> np.ndarray:
    """Return where the blocks begin: messages, and snapshots."""
    if len(events) == 0:
        return np.empty(0, np.int64)
    begins = find_changes(events["exch_ts"], None) | find_changes(events["local_ts"], None)
    return np.flatnonzero(begins | find_changes(is_whole(events), None))


def put_snapshots_first(events: np.ndarray, starts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return an order in which a snapshot precedes the message before it if it has its time."""
    order = np.arange(len(events))
    times = events["exch_ts"][starts]
    ends = np.append(starts[1:], len(events))
    for block in np.flatnonzero(whole):
        if block > 0 and not whole[block - 1] and times[block] == times[block - 1]:
            begin, middle, end = starts[block - 1], starts[block], ends[block]
            order[begin:end] = np.append(np.arange(middle, end), np.arange(begin, middle))
    return order
