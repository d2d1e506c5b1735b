"""A recorded stream applied to a book, and the parts of a stream joined into one.

A file that opens with a whole book (a snapshot) needs nothing of the files before it. It begins a
*part* of the stream. Each part is parsed from an empty book, so several can be parsed at the same
time. What happens where two parts join depends on these two alone: the joined files are the same,
however many processes have parsed the parts. The rules of a join:

- The segment (a run of states without a gap) goes on if the first state of the later part comes at
  most `max_gap_seconds` after the last state of the former part.
- If the book that the later part opens with differs from the book that the former part left, in the
  best depth / 2 levels of a side, the difference is counted (snapshots_differ).
- Time never goes back: states that are stamped before the last message of the former part get that
  message's time. If the first row after the opening snapshot is stamped before it too, that is
  counted (clock_steps_back), once per join. If it is so by more than `max_clock_step_ms`, it is an
  error. The later rows of a part are compared with rows of that part only.
- If both parts have states of the same state interval (`state_interval_ms`) and segment, only the
  last of these states is kept.
- What was traded after the last state of the former part counts for the next state.
- A book that was crossed at the end of the former part was crossed until its last message.
  `max_crossed_ms` and `subsample` count anew in each part.
- Before the first snapshot there is no book. Parts before it are dropped, and their rows counted
  (rows_before_snapshot). Without any snapshot the book begins empty.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lob.book import order_book as kernel
from lob.book.order_book import COUNTERS, OrderBook
from lob.book.states import StateWriter
from lob.book.units import MAX_TICKS, price_remedy, to_lots, to_ticks
from lob.config import InputError
from lob.feeds.batch import GAP, SNAPSHOT, Batch
from lob.storage import load_array

BLOCK_ROWS = 1 << 14  # rows that are joined at once
USUAL = 0.9  # share of a recording's books that have at least `Part.usual_depth` levels


def apply_batch(book: OrderBook, batch: Batch, tick_size: float, row: int = 0) -> None:
    """Turn a batch's prices into ticks and its sizes into lots, exactly, and apply it to the book.

    The rows before `row` are left out.

    Raises InputError, with file and row, if a value is no multiple of its unit, if time goes back
    too far, or if a price is too large.
    """
    ticks, lots = to_ticks(batch, tick_size), to_lots(batch, book.lot_size)
    columns = batch.time_ns, batch.message, batch.update_type, batch.is_buy, ticks, lots
    try:
        book.apply(*columns, batch.order_id, row)
    except ValueError as error:
        row, reason = error.args
        place = batch.locate(row)
        if reason == kernel.CLOCK_BACK:
            before_ns = int(book.memory[kernel.TIME])
            before = find_place(batch, before_ns, row) or book.last_place
            raise clock_error(place, int(batch.time_ns[row]), before, before_ns) from None
        raise too_large_error(place, book, tick_size) from None
    rows = len(batch.time_ns)
    book.last_place = find_place(batch, int(book.memory[kernel.TIME]), rows) or book.last_place


def finish_book(book: OrderBook, tick_size: float) -> None:
    """End a book's last message. Raises InputError if a price is too large."""
    try:
        book.finish()
    except ValueError as error:
        if error.args[1:] != (kernel.NOT_INT32,):
            raise
        raise too_large_error(book.last_place, book, tick_size) from None


def too_large_error(place: str, book: OrderBook, tick_size: float) -> InputError:
    """Return the error of a book with a visible price of too many ticks.

    `place` stands behind its message.
    """
    ticks = np.abs(book.closing()[0])
    fitting = int((ticks <= MAX_TICKS).sum(axis=1).min())
    price = f"{float(ticks.max() * tick_size):g}"
    if fitting:
        remedy = f"set --depth={2 * fitting}, or drop the rows of such prices"
    else:
        remedy = price_remedy((ticks * tick_size).ravel().tolist())
    return InputError(
        f"{place}: before it a visible price, {price}, is more than {MAX_TICKS:,} ticks of "
        f"{tick_size:g}, the most that int32 holds: {remedy}"
    )


def find_place(batch: Batch, time_ns: int, end: int) -> str | None:
    """Return the place of the last row before `end` that has this time, or None."""
    rows = np.flatnonzero(batch.time_ns[:end] == time_ns)
    return batch.locate(int(rows[-1])) if len(rows) else None


def clock_error(place: str, time_ns: int, before: str, before_ns: int) -> InputError:
    """Return the error of a message at `place` that is earlier than the one at `before`."""
    time, time_before = np.datetime64(time_ns, "ns"), np.datetime64(before_ns, "ns")
    one_file = place.rpartition(", ")[0] == before.rpartition(", ")[0]
    remedy = "sort the rows"
    if not one_file:
        remedy = "name the files so that they sort by time, and drop what two of them hold"
    return InputError(
        f"{place}: time goes back to {time} from {time_before} at {before}, by more than "
        f"max_clock_step_ms: {remedy}, or raise --max_clock_step_ms"
    )


class Part(NamedTuple):
    """What is known of a stream, or of a part of one, besides its states. Times are int, in ns."""

    rows: int  # states written
    updates: int  # update rows read
    counters: dict[str, int]  # those of the book (COUNTERS), and what the reader passed by
    levels: np.ndarray  # messages that left 0, 1, ... levels on both sides, too few for a state
    crossed_ns: int  # how long the book was crossed, in all
    any_trade: bool  # whether the feed has trades
    tick_size: float
    lot_size: float
    first_state: int  # time of the first state, written or not
    last_state: int  # time of the last state, written or not
    last_message: int  # time of the last message
    last_place: str  # file and row of the last row
    after_opening: tuple[int, str] | None  # time and place of the first row that is no SNAPSHOT
    traded_since: int  # lots bought minus lots sold after the last state that was written
    opening: np.ndarray  # best levels after the first message (see `OrderBook.opening`)
    closing: np.ndarray  # best levels after the last message

    def usual_depth(self) -> int:
        """Return the most levels, bids and asks together, that USUAL of the uncrossed books had.

        It is at most the depth that was asked for. If fewer than USUAL had levels on both sides, it
        is the most that any book had; 0 if none had any.
        """
        at_least = np.append(self.levels, self.counters["states"])[::-1].cumsum()[::-1]
        if not at_least[0]:
            return 0
        usual = np.flatnonzero(at_least >= USUAL * at_least[0])[-1]
        return 2 * int(usual or np.flatnonzero(at_least)[-1])


def describe_part(
    book: OrderBook,
    states: StateWriter,
    tick_size: float,
    updates: int,
    after_opening: tuple[int, str] | None,
) -> Part:
    """Describe what a finished book has read and `states` has written."""
    memory = book.memory.tolist()
    return Part(
        rows=states.rows,
        updates=updates,
        counters=dict(zip(COUNTERS, book.counters.tolist(), strict=True)),
        levels=book.memory[kernel.LEVELS :].copy(),
        crossed_ns=memory[kernel.CROSSED_NS],
        any_trade=states.any_trade,
        tick_size=tick_size,
        lot_size=book.lot_size,
        first_state=memory[kernel.FIRST_VALID],
        last_state=memory[kernel.LAST_VALID],
        last_message=memory[kernel.TIME],
        last_place=book.last_place,
        after_opening=after_opening,
        traded_since=memory[kernel.TRADED],
        opening=book.opening(),
        closing=book.closing(),
    )


def find_after_opening(batch: Batch) -> tuple[int, str] | None:
    """Return time and place of a batch's first row that is no SNAPSHOT, or None."""
    rows = np.flatnonzero(batch.update_type != SNAPSHOT)
    return (int(batch.time_ns[rows[0]]), batch.locate(rows[0])) if len(rows) else None


class PartParser:
    """Applies a part's batches to a book, and appends its states to the arrays in `folder`.

    units: tick size and lot size; needs_snapshot: as in `lob.feeds.batch.feed`; settings: those of
    `OrderBook`. Rows before the first snapshot are left out and counted. If the feed need not send
    one, they make states until it comes: then these states are forgotten.
    """

    def __init__(
        self, folder: Path, depth: int, units: tuple[float, float], needs_snapshot: bool, **settings
    ):
        self.states = StateWriter(folder, depth)
        self.tick_size, self.lot_size = units
        self.needs_snapshot, self.depth, self.settings = needs_snapshot, depth, settings
        self.known = False  # whether a snapshot has come
        self.updates = 0
        self.passed_by: Counter[str] = Counter()
        self.after_opening: tuple[int, str] | None = None
        self.open_book()

    def open_book(self) -> None:
        self.book = OrderBook(self.depth, self.lot_size, self.write, **self.settings)

    def write(self, states: list[np.ndarray]) -> None:
        """Append states. Raises InputError if a mid-price is not above 0."""
        check_mids(states[0], states[2], self.tick_size)
        self.states.append(states)

    def take(self, batch: Batch) -> None:
        """Apply a batch. Raises InputError as `apply_batch` does."""
        row = 0 if self.known else self.find_snapshot(batch)
        apply_batch(self.book, batch, self.tick_size, row)
        self.after_opening = self.after_opening or find_after_opening(batch)
        self.updates += len(batch.time_ns)
        self.passed_by.update(batch.skipped or {})

    def find_snapshot(self, batch: Batch) -> int:
        """Return the row from which on to apply a batch, before which no snapshot has come."""
        found = np.flatnonzero(batch.update_type == SNAPSHOT)
        row = int(found[0]) if len(found) else len(batch.time_ns)
        self.known = len(found) > 0
        if self.needs_snapshot:
            self.passed_by["rows_before_snapshot"] += row
            return row
        gaps = int(self.book.counters[kernel.GAPS]) + (batch.update_type[:row] == GAP).sum()
        if not self.known or self.updates + row == gaps:
            return 0
        self.passed_by["rows_before_snapshot"] += self.updates + row
        self.states.restart()
        self.open_book()
        return row

    def finish(self) -> Part:
        finish_book(self.book, self.tick_size)
        self.states.close()
        part = describe_part(
            self.book, self.states, self.tick_size, self.updates, self.after_opening
        )
        return part._replace(counters=add_counters(part.counters, self.passed_by))


def check_mids(price_ticks: np.ndarray, timestamps: np.ndarray, tick_size: float) -> None:
    """Raise InputError if a state's mid-price is not above 0, of which basis points are taken.

    price_ticks: int32 (n, depth); timestamps: int64 (n,).
    """
    half = price_ticks.shape[1] // 2
    twice_mid = np.add(price_ticks[:, half - 1], price_ticks[:, half], dtype=np.int64)
    if len(twice_mid) and twice_mid.min() <= 0:
        state = int(twice_mid.argmin())
        mid = twice_mid[state] / 2 * tick_size
        more = 10.0 ** np.ceil(np.log10(max(10 * abs(mid), 100 * tick_size)))
        time = np.datetime64(int(timestamps[state]), "ns")
        raise InputError(
            f"the mid-price is {mid:g} at {time}, and what is "
            "measured in basis points of it needs it above 0: run data_parser.py with "
            f"--price_offset, which is added to every price, raised by {more:g}"
        )


def add_counters(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """Return the sums by name."""
    names = dict.fromkeys([*first, *second])
    return {name: first.get(name, 0) + second.get(name, 0) for name in names}


class PartJoiner:
    """Appends the states of part after part to the arrays in `folder`, by the rules above."""

    def __init__(
        self,
        folder: Path,
        depth: int,
        state_interval_ms: float,
        max_gap_seconds: float,
        max_clock_step_ms: float,
    ):
        self.states = StateWriter(folder, depth)
        self.interval_ns = int(state_interval_ms * 10**6)
        self.max_gap_ns = int(max_gap_seconds * 10**9)
        self.max_clock_step_ns = int(max_clock_step_ms * 10**6)
        self.joined: Part | None = None  # of all that has been joined so far
        self.last_row: list[np.ndarray] | None = None  # not yet written: the next may replace it

    def append(self, part: Part, folder: Path) -> None:
        """Append a part and delete its folder.

        Raises InputError, with file and row, if its clock is too far behind the part before it.
        """
        if self.joined and part.counters["snapshots"] and not self.joined.counters["snapshots"]:
            part = self.drop_joined(part)
        before = self.joined
        if before is None:
            self.joined = part
            if part.rows:
                self.append_states(part, folder, kernel.NEVER, 0.0, True)
        else:
            counters = add_counters(before.counters, part.counters)
            counters["snapshots_differ"] += self.differs(before, part)
            counters["clock_steps_back"] += self.steps_back(before, part)
            clock = before.last_message
            if part.rows:
                silence = max(part.first_state, clock) - before.last_state
                begins = self.last_row is None or silence > self.max_gap_ns
                traded = before.traded_since * before.lot_size
                self.append_states(part, folder, clock, traded, begins)
            self.joined = part._replace(
                updates=before.updates + part.updates,
                counters=counters,
                levels=before.levels + part.levels,
                crossed_ns=before.crossed_ns + part.crossed_ns,
                last_state=max(part.last_state, clock) if part.rows else before.last_state,
                last_message=max(part.last_message, clock),
                traded_since=part.traded_since + (0 if part.rows else before.traded_since),
            )
        shutil.rmtree(folder)

    def drop_joined(self, part: Part) -> Part:
        """Forget what was joined before the first snapshot; return its part with their rows."""
        assert self.joined is not None
        before, self.joined, self.last_row = self.joined, None, None
        self.states.restart()
        passed_by = {name: count for name, count in before.counters.items() if name not in COUNTERS}
        passed_by["rows_before_snapshot"] = before.updates
        return part._replace(
            updates=before.updates + part.updates,
            counters=add_counters(part.counters, passed_by),
        )

    def differs(self, before: Part, part: Part) -> bool:
        """Return whether a part opens with another book than the one that was left before it.

        After a GAP no book is left to compare with.
        """
        return bool(before.closing.any() and (before.closing != part.opening).any())

    def steps_back(self, before: Part, part: Part) -> bool:
        """Return whether time goes back at a join. Raises InputError if it does by too much."""
        if part.after_opening is None:
            # A snapshot may be older than the updates before it, but not than all of them.
            if kernel.NEVER < part.last_message < before.first_state - self.max_clock_step_ns:
                time, place = part.last_message, part.last_place
                raise clock_error(place, time, before.last_place, before.last_message)
            return False
        time, place = part.after_opening
        step = before.last_message - time
        if step > self.max_clock_step_ns:
            raise clock_error(place, time, before.last_place, before.last_message)
        return step > 0

    def append_states(
        self, part: Part, folder: Path, clock: int, traded: float, begins: bool
    ) -> None:
        """Append a part's rows.

        clock: time of the last message so far, before which no row may be stamped; traded: size
        traded (bought minus sold) since the last row; begins: whether the part's first row begins a
        segment.
        """
        names = ("price_ticks", "sizes", "timestamps", "traded")
        starts = np.zeros(part.rows, np.uint8)
        starts[load_array(folder / "segment_starts.npy")] = 1
        starts[0] = begins
        arrays = [*(load_array(folder / f"{name}.npy") for name in names), starts]

        head = self.count_shared(arrays[2], clock)
        if head:
            rows = self.thin_head(arrays, head)
            if self.last_row is not None and not begins:
                _, _, last_time, last_traded, last_begins = self.last_row
                if last_time[0] // self.interval_ns == clock // self.interval_ns:
                    self.last_row = None
                    traded += last_traded[0]
                    rows[4][0] = last_begins[0]
            self.put(rows, clock, traded)
            traded = 0.0
        for row in range(head, part.rows, BLOCK_ROWS):
            self.put([array[row : row + BLOCK_ROWS] for array in arrays], clock, traded)
            traded = 0.0

    def count_shared(self, timestamps: np.ndarray, clock: int) -> int:
        """Return how many of a part's rows lie in the state interval of `clock`, or before it."""
        if not self.interval_ns or clock == kernel.NEVER:
            return 0
        end = (clock // self.interval_ns + 1) * self.interval_ns
        return int(np.searchsorted(timestamps, end))

    def thin_head(self, arrays: list[np.ndarray], rows: int) -> list[np.ndarray]:
        """Return the last row of each segment among the first rows, which share an interval.

        It stands for all rows of its segment: it has the sum of what they traded.
        """
        *states, traded, starts = (array[:rows] for array in arrays)
        firsts = np.flatnonzero(np.append(True, starts[1:]))
        lasts = np.append(firsts[1:], rows) - 1
        return [
            *(array[lasts] for array in states),
            np.add.reduceat(traded, firsts),
            starts[firsts],
        ]

    def put(self, rows: list[np.ndarray], clock: int, traded: float) -> None:
        """Write rows, but keep the last one back, since the next part may replace it.

        `traded` is added to what the first of them traded.
        """
        rows = list(rows)
        rows[2] = np.maximum(rows[2], clock)
        if traded:
            rows[3] = np.array(rows[3])
            rows[3][0] += traded
        if self.last_row is not None:
            self.states.append(self.last_row)
        self.states.append([array[:-1] for array in rows])
        self.last_row = [np.array(array[-1:]) for array in rows]

    def close(self) -> Part:
        """Write the last row; return the description of the whole stream."""
        if self.last_row is not None:
            self.states.append(self.last_row)
        self.states.close()
        assert self.joined is not None
        return self.joined._replace(rows=self.states.rows, any_trade=self.states.any_trade)
