"""The order book: update rows in, a state after each message out. One numba kernel for all feeds.

Prices are ticks and sizes are lots, both int64 and exact. The two sides are sorted arrays
(`lob/book/price_levels.py`). Order-by-order feeds also have a table of their orders
(`lob/book/order_table.py`). The whole book is kept, however far from the mid an order rests.

What each update does, with the counter of each exception in brackets (see `COUNTERS`):

| type | by level (no order id) | order by order |
|---|---|---|
| SNAPSHOT | the first of a run empties the book; each sets a level | likewise; each adds an order |
| ADD | the level grows by this size | a new order; a known id is replaced (duplicate_orders) |
| SET | the level has this size; 0 removes it | the order has this price and size |
| SUB, MATCH | the level shrinks; below 0 it is removed (overdrawn) | the order shrinks, likewise |
| DELETE | the level is removed | the order is removed |
| GAP | the book is emptied, and the segment ends | the same |

After a GAP there is no book until the next SNAPSHOT: the rows between are skipped
(rows_before_snapshot).

SUB, MATCH and DELETE of what is not there are ignored, as is a SET of a level to 0 (unknown). A SET
of an order that is not there adds it (unknown). A MATCH of NO_ORDER only tells a trade.
`lob/book/ghosts.py` says when a level goes without an update.

A segment is a run of states without a gap. A GAP ends it, or too long a time without a state; a
snapshot does not. A snapshot that differs from the book before it is counted (snapshots_differ).
"""

import numpy as np

from lob.book.ghosts import cut_sides, evict_ghost, note_match
from lob.book.memory import (
    AFTER,
    BEFORE,
    BOOK_LOST,
    CLOCK,
    CLOCK_BACK,
    COMPARE,
    COUNTERS,
    CROSSED,
    CROSSED_NS,
    CROSSED_SINCE,
    DONE,
    DUPLICATES,
    FIRST_VALID,
    GAPS,
    GROW_LEVELS,
    GROW_ORDERS,
    IN_SNAPSHOT,
    INTERVAL,
    LAST_VALID,
    LEVELS,
    MESSAGE,
    MESSAGES,
    NEVER,
    NEW_SEGMENT,
    NO_BOOK,
    NOT_INT32,
    OPEN,
    OPENING,
    ORDERS,
    OUTPUT_FULL,
    OVERDRAWN,
    PASSED_ASK,
    PASSED_BID,
    PENDING,
    ROWS,
    SEEN,
    SNAPSHOTS,
    SNAPSHOTS_DIFFER,
    STATES,
    THIN,
    TIME,
    TRADED,
    TRADED_WRITTEN,
    UNKNOWN,
)
from lob.book.order_table import (
    LOTS,
    PRICE,
    SIDE_PLUS_ONE,
    empty_table,
    find_order,
    grown_table,
    remove_order,
)
from lob.book.price_levels import (
    ASK,
    BID,
    change_level,
    empty_sides,
    grown_sides,
    keep_best,
    level_lots,
    write_state,
)
from lob.feeds.batch import ADD, DELETE, GAP, MATCH, NO_ORDER, SET, SNAPSHOT
from lob.jit import borrow, compiled, inlined


@compiled
def apply_order(row, lot_size, orders, memory, counters, levels):
    """Apply one row of an order-by-order feed to the table of orders and to the levels."""
    kind, side, price, size, order_id, time = row
    slot = find_order(orders, order_id)
    known = orders[slot, SIDE_PLUS_ONE] != 0
    old_side = orders[slot, SIDE_PLUS_ONE] - 1
    old_price = orders[slot, PRICE]
    old_lots = orders[slot, LOTS]
    if kind in (ADD, SET, SNAPSHOT):
        if known:
            if kind != SET:
                counters[DUPLICATES] += 1
            change_level(old_side, old_price, -old_lots, False, time, lot_size, levels)
        else:
            if kind == SET:
                counters[UNKNOWN] += 1
            memory[ORDERS] += 1
        orders[slot] = order_id, price, size, side + 1
        change_level(side, price, size, False, time, lot_size, levels)
    elif not known:
        counters[UNKNOWN] += order_id != NO_ORDER
    else:
        left = old_lots - size if kind != DELETE else 0
        if left < 0:
            counters[OVERDRAWN] += 1
            left = 0
        change_level(old_side, old_price, left - old_lots, False, time, lot_size, levels)
        orders[slot, LOTS] = left
        if left == 0:
            remove_order(orders, slot)
            memory[ORDERS] -= 1


@inlined
def apply_level(row, lot_size, counters, levels):
    """Apply one row of a by-level feed to the levels."""
    kind, side, price, size, time = row
    if kind == ADD:
        change_level(side, price, size, False, time, lot_size, levels)
    elif kind in (SET, SNAPSHOT, DELETE):
        new = 0 if kind == DELETE else size
        if not change_level(side, price, new, True, time, lot_size, levels) and kind != SNAPSHOT:
            counters[UNKNOWN] += 1
    else:
        there = level_lots(side, price, levels)
        if there == 0:
            counters[UNKNOWN] += 1
            return
        if size > there:
            counters[OVERDRAWN] += 1
        change_level(side, price, -size, False, time, lot_size, levels)


@compiled
def clear_book(bounds, ticks, orders, memory):
    for side in range(2):
        bounds[side, 0] = bounds[side, 1] = ticks.shape[1] // 2
    if memory[ORDERS] > 0:
        orders[:, SIDE_PLUS_ONE] = 0
        memory[ORDERS] = 0


@inlined
def end_message(limits, orders, memory, counters, levels, kept, out):
    """Judge the book after a whole message, and write it if it is a state that was asked for.

    Return False if a visible price does not fit int32. With a state interval each of its states is
    written to the same row, over the one before it. A state of another interval or segment finishes
    that row (`ROWS` counts the finished ones).
    """
    half, subsample, interval_ns, max_crossed_ns, max_gap_ns, _, lot_size, book_depth = limits
    bounds = levels[0]
    out_ticks, out_sizes, out_times, out_traded, out_starts = out
    counters[MESSAGES] += 1
    if book_depth > 0:
        cut_sides(book_depth, orders, memory, counters, levels)
    if counters[MESSAGES] == 1:
        keep_best(half, levels, kept[OPENING])
    if memory[COMPARE] == 1:
        memory[COMPARE] = 0
        keep_best(half, levels, kept[AFTER])
        counters[SNAPSHOTS_DIFFER] += (kept[BEFORE] != kept[AFTER]).any()

    # Is the book a state?
    evict_ghost(memory, counters, orders, max_crossed_ns, levels)
    if bounds[BID, 1] - bounds[BID, 0] < half or bounds[ASK, 1] - bounds[ASK, 0] < half:
        counters[THIN] += 1
        if memory[CROSSED_SINCE] == NEVER:
            levels_there = min(bounds[BID, 1] - bounds[BID, 0], bounds[ASK, 1] - bounds[ASK, 0])
            memory[LEVELS + levels_there] += 1
        return True
    if memory[CROSSED_SINCE] != NEVER:
        counters[CROSSED] += 1
        return True
    counters[STATES] += 1

    # Does it begin a segment?
    time = memory[TIME]
    if memory[LAST_VALID] == NEVER:
        memory[FIRST_VALID] = time
    elif time - memory[LAST_VALID] > max_gap_ns:
        memory[NEW_SEGMENT] = 1
    memory[LAST_VALID] = time
    if memory[NEW_SEGMENT] == 1:
        memory[SEEN] = 0

    # Does it follow the pending row, or replace it?
    interval = time // interval_ns if interval_ns > 0 else 0
    if memory[PENDING] == 1 and (memory[NEW_SEGMENT] == 1 or interval != memory[INTERVAL]):
        finish_pending(memory)

    memory[SEEN] += 1
    if subsample > 1 and (memory[SEEN] - 1) % subsample != 0:
        return True
    row = memory[ROWS]
    if not write_state(row, half, levels, out_ticks, out_sizes):
        return False
    if memory[PENDING] == 0:
        out_starts[row] = memory[NEW_SEGMENT]
    memory[NEW_SEGMENT] = 0
    out_times[row] = time
    out_traded[row] = memory[TRADED] * lot_size
    memory[TRADED_WRITTEN] = memory[TRADED]
    memory[INTERVAL] = interval
    memory[PENDING] = 1
    if interval_ns == 0:
        finish_pending(memory)
    return True


@inlined
def finish_pending(memory):
    memory[PENDING] = 0
    memory[TRADED] -= memory[TRADED_WRITTEN]
    memory[ROWS] += 1


@inlined
def begin_message(time, message, kind, by_order, max_clock_step_ns, memory, counters):
    """Open a message at its time, which never goes back; return False if it would by too much.

    A snapshot may be older than the updates received before it, but not than all states, nor, by
    level, than a snapshot right before it.
    """
    if time < memory[TIME]:
        if kind != SNAPSHOT or (memory[IN_SNAPSHOT] == 1 and not by_order):
            if memory[TIME] - time > max_clock_step_ns:
                return False
            counters[CLOCK] += 1
        elif memory[FIRST_VALID] != NEVER and memory[FIRST_VALID] - time > max_clock_step_ns:
            return False
        time = memory[TIME]
    if memory[CROSSED_SINCE] != NEVER:
        memory[CROSSED_NS] += time - memory[TIME]
    memory[TIME] = time
    memory[MESSAGE] = message
    memory[OPEN] = 1
    memory[IN_SNAPSHOT] = 0
    return True


@compiled
def apply_rows(
    times,
    messages,
    kinds,
    is_buy,
    prices,
    sizes,
    order_ids,
    start,
    limits,
    orders,
    memory,
    counters,
    levels,
    kept,
    out,
):
    """Apply rows to the book from `start` on; return the row that it stopped before, and why.

    times, messages, prices (ticks), sizes (lots), order_ids: int64 (n,), order_ids empty for a
    by-level feed; kinds: uint8 (n,); is_buy: bool (n,). A message ends when a row of the next one
    comes, or by `OrderBook.finish`. If an array is full, the kernel stops before the row that needs
    room; the caller makes room and calls again from that row. After a GAP row it stops too: the
    caller skips the rows before the next snapshot.
    """
    orders, memory, counters, levels, kept, out = borrow(
        (orders, memory, counters, levels, kept, out)
    )  # type: ignore[call-arg]
    half, max_clock_step_ns, lot_size = limits[0], limits[5], limits[6]
    bounds, ticks = levels[:2]
    capacity = ticks.shape[1]
    by_order = len(order_ids) > 0
    for i in range(start, len(times)):
        kind = kinds[i]
        if messages[i] != memory[MESSAGE] or memory[OPEN] == 0:
            if memory[OPEN] == 1:
                if memory[ROWS] + 2 > len(out[2]):  # the pending row and one more
                    return i, OUTPUT_FULL
                if not end_message(limits, orders, memory, counters, levels, kept, out):
                    return i, NOT_INT32
                memory[OPEN] = 0
            opening = times[i], messages[i], kind, by_order, max_clock_step_ns
            if not begin_message(*opening, memory, counters):
                return i, CLOCK_BACK
        if kind == SNAPSHOT:
            if memory[IN_SNAPSHOT] == 0:
                counters[SNAPSHOTS] += 1
                if bounds[BID, 0] < bounds[BID, 1] or bounds[ASK, 0] < bounds[ASK, 1]:
                    memory[COMPARE] = 1
                    keep_best(half, levels, kept[BEFORE])
                clear_book(bounds, ticks, orders, memory)
                memory[IN_SNAPSHOT] = 1
        elif kind == GAP:
            counters[GAPS] += 1
            clear_book(bounds, ticks, orders, memory)
            memory[NEW_SEGMENT] = 1
            memory[COMPARE] = 0
            memory[OPEN] = 0  # the book after a gap is no state
            memory[CROSSED_SINCE] = memory[PASSED_BID] = memory[PASSED_ASK] = NEVER
            return i + 1, BOOK_LOST
        else:
            memory[IN_SNAPSHOT] = 0
        side = BID if is_buy[i] else ASK
        if bounds[side, 0] == 0 or bounds[side, 1] == capacity:
            return i, GROW_LEVELS
        if by_order:
            if 2 * memory[ORDERS] >= orders.shape[0]:
                return i, GROW_ORDERS
            if kind == MATCH and memory[CROSSED_SINCE] != NEVER:
                note_match(order_ids[i], orders, memory, levels)
            order_row = kind, side, prices[i], sizes[i], order_ids[i], memory[TIME]
            apply_order(order_row, lot_size, orders, memory, counters, levels)
        else:
            level_row = kind, side, prices[i], sizes[i], memory[TIME]
            apply_level(level_row, lot_size, counters, levels)
        if kind == MATCH:  # of a resting bid: somebody sold
            memory[TRADED] += -sizes[i] if is_buy[i] else sizes[i]
    return len(times), DONE


class OrderBook:
    """One pair's book and the output rows that its messages fill.

    depth: levels of a written state, both sides together; lot_size: size of a lot. The other
    settings are those of `data_parser.py`.

    `apply` takes rows, and calls `flush(states)` whenever the output of `capacity` rows is full.
    `finish` ends the last message. `states` is a list of arrays of n rows: price_ticks int32
    (n, depth), sizes float32 (n, depth), timestamps int64 (n,), traded float32 (n,), and starts
    uint8 (n,), which is 1 if the row begins a segment.
    """

    def __init__(
        self,
        depth,
        lot_size,
        flush,
        subsample=1,
        state_interval_ms=0,
        max_crossed_ms=1000,
        max_gap_seconds=60.0,
        max_clock_step_ms=1000,
        book_depth=None,
        capacity=8192,
    ):
        self.half = depth // 2
        self.lot_size = float(lot_size)
        self.flush = flush
        self.limits = (
            self.half,
            subsample,
            int(state_interval_ms * 10**6),
            int(max_crossed_ms * 10**6),
            int(max_gap_seconds * 10**9),
            int(max_clock_step_ms * 10**6),
            self.lot_size,
            book_depth or 0,
        )
        self.memory = np.zeros(LEVELS + depth // 2, dtype=np.int64)
        for place in (TIME, CROSSED_SINCE, PASSED_BID, PASSED_ASK, FIRST_VALID, LAST_VALID):
            self.memory[place] = NEVER
        self.memory[NEW_SEGMENT] = 1
        self.last_place = ""  # file and row that brought its time, for error messages
        self.lost = False  # whether rows are skipped until the next snapshot
        self.counters = np.zeros(len(COUNTERS), dtype=np.int64)
        self.orders = empty_table(1 << 12)
        self.side_arrays = empty_sides(1 << 12)
        self.kept = np.zeros((3, 2, 2, self.half), dtype=np.int64)
        self.out = (
            np.empty((capacity, depth), np.int32),
            np.empty((capacity, depth), np.float32),
            np.empty(capacity, np.int64),
            np.empty(capacity, np.float32),
            np.empty(capacity, np.uint8),
        )

    def arrays(self):
        """Return the arrays that the kernel changes, in the order of its arguments."""
        return self.orders, self.memory, self.counters, self.side_arrays, self.kept, self.out

    def apply(self, times, messages, kinds, is_buy, prices, sizes, order_ids=None, row=0):
        """Apply rows from `row` on, arrays as in `apply_rows`.

        Raises ValueError(row, reason) at a row that can't be applied. The reason is CLOCK_BACK, or
        NOT_INT32 if a price of the state before that row is too large.
        """
        columns = times, messages, kinds, is_buy, prices, sizes
        ids = np.empty(0, np.int64) if order_ids is None else order_ids
        status = None
        while status != DONE:
            if self.lost:
                row = self.skip_to_snapshot(kinds, row)
            row, status = apply_rows(*columns, ids, row, self.limits, *self.arrays())
            if status == OUTPUT_FULL:
                self.write_out()
            elif status == GROW_LEVELS:
                self.side_arrays = grown_sides(self.side_arrays)
            elif status == GROW_ORDERS:
                self.orders = grown_table(self.orders)
            elif status == BOOK_LOST:
                self.lost = True
            elif status != DONE:
                raise ValueError(row, status)

    def skip_to_snapshot(self, kinds, row):
        """Return the next row from `row` on that is a SNAPSHOT or another GAP; count the others."""
        found = np.flatnonzero((kinds[row:] == SNAPSHOT) | (kinds[row:] == GAP))
        skipped = int(found[0]) if len(found) else len(kinds) - row
        self.counters[NO_BOOK] += skipped
        self.lost = not len(found)
        return row + skipped

    def finish(self):
        """End the last message and hand out the rows that remain."""
        if self.memory[ROWS] + 2 > len(self.out[2]):
            self.write_out()
        if self.memory[OPEN] == 1:
            if not end_message(self.limits, *self.arrays()):
                raise ValueError(0, NOT_INT32)
            self.memory[OPEN] = 0
        if self.memory[PENDING] == 1:
            finish_pending(self.memory)
        self.write_out()

    def write_out(self):
        """Hand the finished rows to `flush`; the pending row becomes the first of the output."""
        rows = int(self.memory[ROWS])
        if rows:
            self.flush([array[:rows] for array in self.out])
            if self.memory[PENDING]:
                for array in self.out:
                    array[0] = array[rows]
            self.memory[ROWS] = 0

    def levels(self, side, count):
        """Return int64 ticks and lots of a side's best `count` levels (or fewer), best first."""
        bounds, ticks, lots = self.side_arrays[:3]
        begin, end = bounds[side]
        best_first = slice(None, None, -1) if side == BID else slice(None)
        return tuple(array[side, begin:end][best_first][:count].copy() for array in (ticks, lots))

    def opening(self):
        """Return the best depth / 2 levels of each side after the first message.

        int64 (2, 2, depth / 2): ticks and lots, BID and ASK, level.
        """
        return self.kept[OPENING].copy()

    def closing(self):
        """Return the same levels of the book as it is now."""
        best = np.empty_like(self.kept[OPENING])
        keep_best(self.half, self.side_arrays, best)
        return best
