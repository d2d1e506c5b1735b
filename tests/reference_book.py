"""A slow order book of dictionaries, against which the kernel is tested.

It is written from the documented meaning of each update alone.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice

from lob.feeds.batch import ADD, DELETE, GAP, MATCH, SET, SNAPSHOT, SUB

BID, ASK = 0, 1


def count_in_order(places: Mapping[tuple, list[int]], wanted: Iterable[tuple]) -> tuple[int, int]:
    """Return how many of the wanted states come one after the other, and how many are wanted.

    places: state -> the ascending numbers of the messages that leave it. A state may be found again
    at the number at which the one before it was found.
    """
    right = compared = at = 0
    for state in wanted:
        numbers = places.get(state, [])
        later = bisect_left(numbers, at)
        compared += 1
        if later < len(numbers):
            right += 1
            at = numbers[later]
    return right, compared


class ReferenceBook:
    """Takes whole messages and lists the states that they leave.

    `levels[side]` maps ticks to lots, `prices[side]` holds the ticks in order, `orders` maps ids to
    orders.
    """

    def __init__(
        self,
        depth,
        by_order=False,
        max_crossed_ns=10**9,
        max_gap_ns=60 * 10**9,
        book_depth=None,
    ):
        self.half, self.by_order, self.book_depth = depth // 2, by_order, book_depth
        self.max_crossed_ns, self.max_gap_ns = max_crossed_ns, max_gap_ns
        self.levels, self.prices = ({}, {}), ([], [])
        self.touched = ({}, {})  # time of each level's last update
        self.orders = {}  # id -> (side, price, lots)
        self.time = self.last_valid = self.crossed_since = None
        self.passed_by = {}  # side -> time and level that a MATCH at a worse price passed by
        self.counters = Counter()
        self.traded = 0
        self.new_segment = True
        self.kind_before = None  # of the last row
        self.lost = False  # after a GAP, until the next SNAPSHOT
        # (ticks, lots, time, whether a segment begins, lots traded since the beginning)
        self.states = []

    def best(self, side):
        """Return the best half-depth levels of a side, best first."""
        best_first = reversed(self.prices[BID]) if side == BID else self.prices[ASK]
        prices = islice(best_first, self.half)
        return [(price, self.levels[side][price]) for price in prices]

    def change(self, side, price, lots):
        """Set a level's lots; remove it if they are 0 or less."""
        if lots > 0:
            if price not in self.levels[side]:
                insort(self.prices[side], price)
            self.levels[side][price] = lots
            self.touched[side][price] = self.time
        elif self.levels[side].pop(price, None):
            self.prices[side].pop(bisect_left(self.prices[side], price))

    def take_message(self, time, rows):
        """Apply one message's rows (type, is_buy, price, size, order id).

        Return whether it leaves a state.
        """
        if self.lost:
            kinds = [row[0] for row in rows]
            there = [kinds.index(kind) for kind in (SNAPSHOT, GAP) if kind in kinds]
            skipped = min(there, default=len(rows))
            self.counters["rows_before_snapshot"] += skipped
            self.lost = not there
            rows = rows[skipped:]
            if not rows:
                return False
        if self.time is not None and time < self.time:
            follows_book = self.kind_before == SNAPSHOT and not self.by_order
            self.counters["clock_steps_back"] += rows[0][0] != SNAPSHOT or follows_book
            time = self.time
        self.time = time
        before, kind_before = None, None
        for kind, is_buy, price, size, order_id in rows:
            side = BID if is_buy else ASK
            if kind == GAP:
                self.kind_before = GAP
                self.counters["gaps"] += 1
                self.clear()
                self.new_segment, self.crossed_since, self.lost = True, None, True
                self.passed_by.clear()
                return False
            if kind == SNAPSHOT and kind_before != SNAPSHOT:
                self.counters["snapshots"] += 1
                if self.levels[BID] or self.levels[ASK]:
                    before = [self.best(BID), self.best(ASK)]
                self.clear()
            kind_before = self.kind_before = kind
            if kind == MATCH:
                self.traded += -size if is_buy else size
            if self.by_order:
                self.take_order(kind, side, price, size, order_id)
            else:
                self.take_level(kind, side, price, size)
        states = len(self.states)
        self.end_message(before)
        return len(self.states) > states

    def clear(self):
        for side in (BID, ASK):
            self.levels[side].clear()
            self.prices[side].clear()
        self.orders.clear()

    def take_level(self, kind, side, price, size):
        there = self.levels[side].get(price, 0)
        if kind == ADD:
            self.change(side, price, there + size)
        elif kind in (SET, SNAPSHOT):
            self.counters["unknown"] += kind == SET and size == 0 and there == 0
            self.change(side, price, size)
        elif there == 0:
            self.counters["unknown"] += 1
        elif kind == DELETE:
            self.change(side, price, 0)
        else:
            assert kind in (SUB, MATCH)
            self.counters["overdrawn"] += size > there
            self.change(side, price, there - size)

    def take_order(self, kind, side, price, size, order_id):
        known = order_id in self.orders
        if kind in (ADD, SET, SNAPSHOT):
            if known:
                self.counters["duplicate_orders"] += kind != SET
                self.shrink(order_id, self.orders[order_id][2])
            elif kind == SET:
                self.counters["unknown"] += 1
            self.orders[order_id] = (side, price, size)
            self.change(side, price, self.levels[side].get(price, 0) + size)
        elif not known:
            self.counters["unknown"] += 1
        elif kind == DELETE:
            self.shrink(order_id, self.orders[order_id][2])
        else:
            left = self.orders[order_id][2]
            if kind == MATCH:
                self.note_passed_by(*self.orders[order_id][:2])
            self.counters["overdrawn"] += size > left
            self.shrink(order_id, min(size, left))

    def shrink(self, order_id, lots):
        side, price, left = self.orders[order_id]
        self.change(side, price, self.levels[side].get(price, 0) - lots)
        self.orders[order_id] = (side, price, left - lots)
        if left == lots:
            del self.orders[order_id]

    def is_crossed(self):
        return (
            bool(self.prices[BID] and self.prices[ASK])
            and self.prices[BID][-1] >= self.prices[ASK][0]
        )

    def note_passed_by(self, side, price):
        """A crossed level at a better price than that of an order which is matched is no order."""
        if self.crossed_since is None or not self.prices[side]:
            return
        best = self.prices[BID][-1] if side == BID else self.prices[ASK][0]
        is_worse = price < best if side == BID else price > best
        if is_worse and self.passed_by.get(side, (None, None))[1] != best:
            self.passed_by[side] = (self.time, best)

    def find_ghost(self):
        """Return which of the best two levels of a book crossed for too long is a ghost, or None.

        By level it is the one that was updated longer ago, or the ask if both were at the same
        time. Order by order it takes a trace of what was lost.
        """
        best = {BID: self.prices[BID][-1], ASK: self.prices[ASK][0]}
        bid_is_older = self.touched[BID][best[BID]] < self.touched[ASK][best[ASK]]
        older = (BID, best[BID]) if bid_is_older else (ASK, best[ASK])
        if not self.by_order:
            return older
        for side in (BID, ASK):
            time, price = self.passed_by.get(side, (None, None))
            if price == best[side] and self.time - time > self.max_crossed_ns:
                self.counters["ghosts_traded_through"] += 1
                return side, price
        if not self.counters["unknown"]:
            return None
        self.counters["ghosts_after_losses"] += 1
        return older

    def evict_ghost(self):
        """Remove a ghost if the book has been crossed for too long."""
        if not self.is_crossed():
            self.crossed_since = None
            self.passed_by.clear()
        elif self.crossed_since is None:
            self.crossed_since = self.time
        elif self.time - self.crossed_since > self.max_crossed_ns and (ghost := self.find_ghost()):
            self.remove_level(*ghost)
            self.counters["ghosts_evicted"] += 1
            self.crossed_since = self.time if self.is_crossed() else None
            self.passed_by.clear()

    def remove_level(self, side, price):
        self.change(side, price, 0)
        for id_, order in list(self.orders.items()):
            if order[:2] == (side, price):
                del self.orders[id_]

    def cut_sides(self):
        for side in (BID, ASK) if self.book_depth else ():
            prices = self.prices[side][::-1] if side == BID else self.prices[side][:]
            for price in prices[self.book_depth :]:
                self.change(side, price, 0)
                self.counters["levels_cut"] += 1
            if prices[self.book_depth :]:
                worst = prices[self.book_depth - 1]
                for id_, order in list(self.orders.items()):
                    if order[0] == side and (order[1] - worst) * (-1 if side == BID else 1) > 0:
                        del self.orders[id_]

    def end_message(self, before):
        self.counters["messages"] += 1
        self.cut_sides()
        if before is not None and before != [self.best(BID), self.best(ASK)]:
            self.counters["snapshots_differ"] += 1
        self.evict_ghost()
        bids, asks = self.best(BID), self.best(ASK)
        if min(len(bids), len(asks)) < self.half:
            self.counters["thin_states"] += 1
        elif self.is_crossed():
            self.counters["crossed_states"] += 1
        else:
            self.counters["states"] += 1
            if self.last_valid is not None and self.time - self.last_valid > self.max_gap_ns:
                self.new_segment = True
            self.last_valid = self.time
            levels = bids[::-1] + asks
            ticks, lots = [price for price, _ in levels], [size for _, size in levels]
            self.states.append((ticks, lots, self.time, self.new_segment, self.traded))
            self.new_segment = False


def thin_states(states, subsample=1, interval_ns=0):
    """Keep every n-th state of a segment, or the last of each interval in it.

    What was traded is counted from the row before.
    """
    segments = []
    for state in states:
        if state[3]:
            segments.append([])
        segments[-1].append(state)
    kept = []
    for segment in segments:
        if interval_ns:
            last = {state[2] // interval_ns: state for state in segment}
            chosen = list(last.values())
        else:
            chosen = segment[::subsample]
        kept += [(*state[:3], index == 0, state[4]) for index, state in enumerate(chosen)]
    before = 0
    rows = []
    for ticks, lots, time, starts, traded in kept:
        rows.append((ticks, lots, time, starts, traded - before))
        before = traded
    return rows
