"""The order book: update rows in, one complete state a message out. Exact integers, one numba kernel for all feeds.

Prices are ticks and sizes lots, int64. The sides are sorted arrays (`lob/book/price_levels.py`); order-by-order feeds
keep their orders in a hash table beside them. The whole book is kept, however far from the mid an order rests.

What each update means (every exception is counted, see `COUNTERS`):

| type | by level (no order id) | order by order |
|---|---|---|
| SNAPSHOT | first row of a run replaces the book, the others add to it | the same |
| ADD | the level grows | a new order; a known id is replaced (duplicate_orders) |
| SET | the level has this size, 0 removes it | the order has this price and size; an unknown one is added (unknown) |
| SUB, MATCH | the level or order shrinks, below zero it is removed (overdrawn); unknown: ignored (unknown) |
| DELETE | removed; unknown: ignored (unknown) | the same |
| GAP | the book is emptied, the segment ends | the same |
"""

import numpy as np

from lob.book.price_levels import (
    ASK,
    BID,
    change_level,
    empty_sides,
    grown_sides,
    keep_depth,
    level_lots,
    remove_level,
    write_state,
)
from lob.feeds.batch import ADD, DELETE, GAP, MATCH, SET, SNAPSHOT
from lob.jit import MAX_EXACT, borrow, compiled, inlined

COUNTERS = (
    "messages",  # completed messages; each leaves the book in a state
    "states",  # of these, complete and uncrossed: candidates for a row
    "crossed_states",
    "thin_states",  # fewer than depth / 2 levels on a side
    "ghosts_evicted",
    "unknown",  # SUB, MATCH, DELETE or zero SET of a level or order that is not there; SET of an unknown order
    "duplicate_orders",
    "overdrawn",
    "snapshots",
    "gaps",
    "clock_steps_back",  # clamped to the time before
)
MESSAGES, STATES, CROSSED, THIN, GHOSTS, UNKNOWN, DUPLICATES, OVERDRAWN, SNAPSHOTS, GAPS, CLOCK = range(len(COUNTERS))

# What the kernel carries from call to call, in `OrderBook.memory`.
(MESSAGE, TIME, CROSSED_SINCE, LAST_VALID, IN_SNAPSHOT, NEW_SEGMENT, COMPARE, PENDING, INTERVAL, SEEN, ORDERS, OPEN,
 CROSSED_NS, TRADED, TRADED_WRITTEN, ROWS) = range(16)  # fmt: skip
NEVER = np.iinfo(np.int64).min
# What a call ends with: all rows used, output full, an array must grow, or a row that cannot be.
DONE, OUTPUT_FULL, GROW_LEVELS, GROW_ORDERS, CLOCK_BACK, NOT_INT32 = range(6)


@inlined
def is_whole(scaled):
    """Whether a float64 (or each of an array) is an integer but for rounding: 1e-9 of it, at most 1e-4, or an ulp."""
    size = np.abs(scaled)
    return np.abs(scaled - np.rint(scaled)) <= np.maximum(np.minimum(size * 1e-9, 1e-4), size * 1e-15)


@compiled
def count_units(values, per_one, unit):
    """Return int64 (n,), values in units (`per_one` to 1; 0: not a whole number), and the first row that is none."""
    units, bad = np.empty(len(values), np.int64), -1
    for row in range(len(values)):
        scaled = values[row] * per_one if per_one else values[row] / unit
        whole = np.rint(scaled)
        if not (is_whole(scaled) and abs(whole) <= MAX_EXACT) and bad < 0:
            bad = row
        units[row] = np.int64(whole)
    return units, bad


@compiled
def order_slot(orders, order_id):
    """Where an order is in the table (open addressing, linear probing), or the free slot where it would go."""
    cut = orders.shape[0] - 1
    slot = (order_id ^ (order_id >> 32)) * 0x9E3779B97F4A7C1 >> 20 & cut
    while orders[slot, 3] != 0 and orders[slot, 0] != order_id:
        slot = (slot + 1) & cut
    return slot


@compiled
def forget_order(orders, memory, slot):
    """Free a slot and close the hole behind it, so that no tombstones gather."""
    memory[ORDERS] -= 1
    cut = orders.shape[0] - 1
    hole = slot
    orders[hole, 3] = 0
    probe = (hole + 1) & cut
    while orders[probe, 3] != 0:
        order_id = orders[probe, 0]
        home = (order_id ^ (order_id >> 32)) * 0x9E3779B97F4A7C1 >> 20 & cut
        if ((probe - home) & cut) >= ((probe - hole) & cut):
            orders[hole] = orders[probe]
            orders[probe, 3] = 0
            hole = probe
        probe = (probe + 1) & cut


@compiled
def rehash_orders(old, new):
    for i in range(old.shape[0]):
        if old[i, 3] != 0:
            new[order_slot(new, old[i, 0])] = old[i]


@compiled
def forget_orders_at(orders, memory, side, price):
    """Forget every order that rests at an evicted level."""
    slot = 0
    while slot < orders.shape[0]:
        if orders[slot, 3] == side + 1 and orders[slot, 1] == price:
            forget_order(orders, memory, slot)
        else:
            slot += 1


@compiled
def apply_order(kind, side, price, size, order_id, time, lot_size, orders, memory, counters, levels):
    """Apply one row of an order-by-order feed to the table of orders and to the levels."""
    slot = order_slot(orders, order_id)
    known = orders[slot, 3] != 0
    if kind in (ADD, SET, SNAPSHOT):
        if known:
            if kind != SET:
                counters[DUPLICATES] += 1
            change_level(orders[slot, 3] - 1, orders[slot, 1], -orders[slot, 2], False, time, lot_size, levels)
        else:
            if kind == SET:
                counters[UNKNOWN] += 1
            memory[ORDERS] += 1
        orders[slot, 0], orders[slot, 1], orders[slot, 2], orders[slot, 3] = order_id, price, size, side + 1
        change_level(side, price, size, False, time, lot_size, levels)
    elif not known:
        counters[UNKNOWN] += 1
    else:
        left = orders[slot, 2] - size if kind != DELETE else 0
        if left < 0:
            counters[OVERDRAWN] += 1
            left = 0
        change_level(orders[slot, 3] - 1, orders[slot, 1], left - orders[slot, 2], False, time, lot_size, levels)
        orders[slot, 2] = left
        if left == 0:
            forget_order(orders, memory, slot)


@inlined
def apply_level(kind, side, price, size, time, lot_size, counters, levels):
    """Apply one row of a by-level feed."""
    if kind == ADD:
        change_level(side, price, size, False, time, lot_size, levels)
    elif kind in (SET, SNAPSHOT, DELETE):
        new = 0 if kind == DELETE else size
        if not change_level(side, price, new, True, time, lot_size, levels):
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
        orders[:, 3] = 0
        memory[ORDERS] = 0


@inlined
def evict_ghost(memory, counters, orders, max_crossed_ns, levels):
    """Track how long the book has been crossed; past the limit remove, of the two best levels, the longer unchanged."""
    bounds, ticks, _, changed = levels[:4]
    if bounds[BID, 0] == bounds[BID, 1] or bounds[ASK, 0] == bounds[ASK, 1]:
        memory[CROSSED_SINCE] = NEVER
        return
    bid, ask = bounds[BID, 1] - 1, bounds[ASK, 0]
    if ticks[BID, bid] < ticks[ASK, ask]:
        memory[CROSSED_SINCE] = NEVER
    elif memory[CROSSED_SINCE] == NEVER:
        memory[CROSSED_SINCE] = memory[TIME]
    elif memory[TIME] - memory[CROSSED_SINCE] > max_crossed_ns:
        side, index = (BID, bid) if changed[BID, bid] < changed[ASK, ask] else (ASK, ask)
        forget_orders_at(orders, memory, side, ticks[side, index])
        remove_level(side, index, levels)
        counters[GHOSTS] += 1
        crossed = bounds[BID, 0] < bounds[BID, 1] and bounds[ASK, 0] < bounds[ASK, 1]
        crossed = crossed and ticks[BID, bounds[BID, 1] - 1] >= ticks[ASK, bounds[ASK, 0]]
        memory[CROSSED_SINCE] = memory[TIME] if crossed else NEVER


@inlined
def end_message(limits, orders, memory, counters, levels, kept, out):
    """Judge the book after a whole message and write it where it is a state that was asked for; False: not int32."""
    half, subsample, interval_ns, max_crossed_ns, max_gap_ns, _, lot_size = limits
    bounds = levels[0]
    out_ticks, out_sizes, out_times, out_traded, out_starts = out
    counters[MESSAGES] += 1
    if memory[COMPARE] == 1:
        memory[COMPARE] = 0
        if not keep_depth(half, levels, kept[1]) or (kept[0] != kept[1]).any():
            memory[NEW_SEGMENT] = 1
    evict_ghost(memory, counters, orders, max_crossed_ns, levels)
    if bounds[BID, 1] - bounds[BID, 0] < half or bounds[ASK, 1] - bounds[ASK, 0] < half:
        counters[THIN] += 1
        return True
    if memory[CROSSED_SINCE] != NEVER:
        counters[CROSSED] += 1
        return True
    counters[STATES] += 1
    time = memory[TIME]
    if memory[LAST_VALID] != NEVER and time - memory[LAST_VALID] > max_gap_ns:
        memory[NEW_SEGMENT] = 1
    memory[LAST_VALID] = time
    if memory[NEW_SEGMENT] == 1:
        memory[SEEN] = 0
    interval = time // interval_ns if interval_ns > 0 else 0
    if memory[PENDING] == 1 and (memory[NEW_SEGMENT] == 1 or interval != memory[INTERVAL]):
        memory[PENDING] = 0
        memory[TRADED] -= memory[TRADED_WRITTEN]
        memory[ROWS] += 1
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
    if interval_ns > 0:
        memory[PENDING] = 1
    else:
        memory[TRADED] = 0
        memory[ROWS] += 1
    return True


@compiled
def apply_rows(times, messages, kinds, is_buy, prices, sizes, order_ids, start, limits, orders, memory, counters,
               levels, kept, out):  # fmt: skip
    """Apply rows `start`... to the book; return the row it stopped before and why (DONE: all are applied).

    times, messages, prices (ticks), sizes (lots), order_ids: int64 (n,), order_ids empty for a by-level feed; kinds:
    uint8 (n,); is_buy: bool (n,). A message ends when a row of the next one, or `flush_message`, comes.
    """
    orders, memory, counters, levels, kept, out = borrow((orders, memory, counters, levels, kept, out))  # type: ignore[call-arg]
    half, max_clock_step_ns, lot_size = limits[0], limits[5], limits[6]
    bounds, ticks = levels[:2]
    capacity = ticks.shape[1]
    by_order = len(order_ids) > 0
    for i in range(start, len(times)):
        kind = kinds[i]
        if messages[i] != memory[MESSAGE] or memory[OPEN] == 0:
            if memory[OPEN] == 1:
                if memory[ROWS] + 2 > len(out[2]):
                    return i, OUTPUT_FULL
                if not end_message(limits, orders, memory, counters, levels, kept, out):
                    return i, NOT_INT32
                memory[OPEN] = 0
            time = times[i]
            if time < memory[TIME]:
                if kind != SNAPSHOT:
                    if memory[TIME] - time > max_clock_step_ns:
                        return i, CLOCK_BACK
                    counters[CLOCK] += 1
                time = memory[TIME]
            if memory[CROSSED_SINCE] != NEVER:
                memory[CROSSED_NS] += time - memory[TIME]
            memory[TIME] = time
            memory[MESSAGE] = messages[i]
            memory[OPEN] = 1
            memory[IN_SNAPSHOT] = 0
        if kind == SNAPSHOT:
            if memory[IN_SNAPSHOT] == 0:
                counters[SNAPSHOTS] += 1
                if bounds[BID, 0] < bounds[BID, 1] or bounds[ASK, 0] < bounds[ASK, 1]:
                    memory[COMPARE] = 1
                    if not keep_depth(half, levels, kept[0]):
                        memory[NEW_SEGMENT] = 1
                clear_book(bounds, ticks, orders, memory)
                memory[IN_SNAPSHOT] = 1
        elif kind == GAP:
            counters[GAPS] += 1
            clear_book(bounds, ticks, orders, memory)
            memory[NEW_SEGMENT] = 1
            memory[COMPARE] = 0
            memory[OPEN] = 0  # a gap is no state
            memory[CROSSED_SINCE] = NEVER
            continue
        else:
            memory[IN_SNAPSHOT] = 0
        side = BID if is_buy[i] else ASK
        if bounds[side, 0] == 0 or bounds[side, 1] == capacity:
            return i, GROW_LEVELS
        if by_order:
            if 2 * memory[ORDERS] >= orders.shape[0]:
                return i, GROW_ORDERS
            apply_order(kind, side, prices[i], sizes[i], order_ids[i], memory[TIME], lot_size, orders, memory,
                        counters, levels)  # fmt: skip
        else:
            apply_level(kind, side, prices[i], sizes[i], memory[TIME], lot_size, counters, levels)
        if kind == MATCH:
            memory[TRADED] += -sizes[i] if is_buy[i] else sizes[i]
    return len(times), DONE


class OrderBook:
    """One pair's book and the output rows that its messages fill.

    depth: levels of a written state, both sides together; lot_size: size of a lot. See `data_parser.py` for the rest.
    `apply` takes rows and calls `flush(states)` whenever the output of `capacity` rows is full; `finish` closes the
    last message. `levels` looks at the book itself.
    """

    def __init__(self, depth, lot_size, flush, subsample=1, state_interval_ms=0, max_crossed_ms=1000,
                 max_gap_seconds=60.0, max_clock_step_ms=1000, capacity=8192):  # fmt: skip
        self.half = depth // 2
        self.lot_size = float(lot_size)
        self.flush = flush
        self.limits = (self.half, subsample, int(state_interval_ms * 10**6), int(max_crossed_ms * 10**6),
                       int(max_gap_seconds * 10**9), int(max_clock_step_ms * 10**6), self.lot_size)  # fmt: skip
        self.memory = np.zeros(16, dtype=np.int64)
        self.memory[[TIME, CROSSED_SINCE, LAST_VALID]] = NEVER
        self.memory[NEW_SEGMENT] = 1
        self.counters = np.zeros(len(COUNTERS), dtype=np.int64)
        self.orders = np.zeros((1 << 12, 4), dtype=np.int64)  # id, price, lots, side + 1 (0: free)
        self.side_arrays = empty_sides(1 << 12)
        self.kept = np.zeros((2, 2, 2, self.half), dtype=np.int64)  # before a snapshot, after it: ticks, lots by side
        ticks, sizes = (np.empty((capacity, depth), dtype) for dtype in (np.int32, np.float32))
        self.out = (ticks, sizes, *(np.empty(capacity, dtype) for dtype in (np.int64, np.float32, np.uint8)))

    def arrays(self):
        """What the kernel works on besides the rows."""
        return self.orders, self.memory, self.counters, self.side_arrays, self.kept, self.out

    def apply(self, times, messages, kinds, is_buy, prices, sizes, order_ids=None):
        """Apply rows; ValueError(row, reason) for one that cannot be: CLOCK_BACK, or NOT_INT32 (the state before)."""
        columns = times, messages, kinds, is_buy, prices, sizes
        ids, row, status = np.empty(0, np.int64) if order_ids is None else order_ids, 0, None
        while status != DONE:
            row, status = apply_rows(*columns, ids, row, self.limits, *self.arrays())
            if status == OUTPUT_FULL:
                self.write_out()
            elif status == GROW_LEVELS:
                self.side_arrays = grown_sides(self.side_arrays)
            elif status == GROW_ORDERS:
                old, self.orders = self.orders, np.zeros((2 * len(self.orders), 4), dtype=np.int64)
                rehash_orders(old, self.orders)
            elif status != DONE:
                raise ValueError(row, status)

    def finish(self):
        """End the last message and hand out the rows that remain."""
        if self.memory[ROWS] + 2 > len(self.out[2]):
            self.write_out()
        if self.memory[OPEN] == 1:
            if not end_message(self.limits, *self.arrays()):
                raise ValueError(0, NOT_INT32)
            self.memory[OPEN] = 0
        self.memory[ROWS] += self.memory[PENDING]
        self.memory[PENDING] = 0
        self.write_out()

    def write_out(self):
        """Hand the finished rows to `flush` and keep the pending one."""
        rows = int(self.memory[ROWS])
        if rows:
            self.flush([array[:rows] for array in self.out])
            if self.memory[PENDING]:
                for array in self.out:
                    array[0] = array[rows]
            self.memory[ROWS] = 0

    def levels(self, side, count):
        """Best `count` levels (or fewer) of BID or ASK, best first: int64 price in ticks and size in lots."""
        bounds, *arrays = self.side_arrays[:3]
        begin, end = bounds[side]
        return tuple(array[side, begin:end][:: -1 if side == BID else 1][:count].copy() for array in arrays)
