"""A slow order book of dictionaries and sorted lists, written from the rules alone, to hold the kernel against."""

from bisect import bisect_left, insort

ADD, SUB, MATCH, SET, DELETE, SNAPSHOT, GAP = range(7)


class ReferenceBook:
    """One message at a time: `apply` its rows, then `state` is the best levels or None where it is no valid state."""

    def __init__(self, half: int, by_order: bool, max_crossed_ns: int = 10**9):
        self.half, self.by_order, self.max_crossed_ns = half, by_order, max_crossed_ns
        self.clear()
        self.crossed_since = None
        self.evicted = self.unknown = self.duplicates = self.overdrawn = 0

    def clear(self) -> None:
        self.lots: tuple[dict[int, int], dict[int, int]] = ({}, {})  # price -> lots, of asks and of bids
        self.changed: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.prices: tuple[list[int], list[int]] = ([], [])
        self.orders: dict[int, tuple[int, int, int]] = {}

    def put(self, side: int, price: int, lots: int, time: int) -> None:
        """Make the level's size `lots`; 0 removes it."""
        there = price in self.lots[side]
        if lots > 0:
            if not there:
                insort(self.prices[side], price)
            self.lots[side][price] = lots
            self.changed[side][price] = time
        elif there:
            del self.lots[side][price], self.changed[side][price]
            self.prices[side].pop(bisect_left(self.prices[side], price))

    def add(self, side: int, price: int, lots: int, time: int) -> None:
        there = self.lots[side].get(price, 0)
        if lots > 0 or there:
            self.put(side, price, there + lots, time)

    def apply(self, time: int, rows: list[tuple[int, int, int, int, int]]) -> None:
        """Apply a message's rows: (update type, is_buy, price, size, order id)."""
        in_snapshot = False
        for kind, side, price, size, order_id in rows:
            if kind == SNAPSHOT and not in_snapshot:
                self.clear()
            in_snapshot = kind == SNAPSHOT
            if self.by_order:
                self.apply_order(kind, side, price, size, order_id, time)
            else:
                self.apply_level(kind, side, price, size, time)
        self.evict(time)

    def apply_order(self, kind: int, side: int, price: int, size: int, order_id: int, time: int) -> None:
        known = self.orders.get(order_id)
        if kind in (ADD, SET, SNAPSHOT):
            if known:
                self.duplicates += kind != SET
                self.add(known[0], known[1], -known[2], time)
            else:
                self.unknown += kind == SET
            self.orders[order_id] = (side, price, size)
            self.add(side, price, size, time)
        elif not known:
            self.unknown += 1
        else:
            left = 0 if kind == DELETE else known[2] - size
            self.overdrawn += left < 0
            left = max(left, 0)
            self.add(known[0], known[1], left - known[2], time)
            self.orders[order_id] = (known[0], known[1], left)
            if left == 0:
                del self.orders[order_id]

    def apply_level(self, kind: int, side: int, price: int, size: int, time: int) -> None:
        there = self.lots[side].get(price, 0)
        if kind == ADD:
            self.put(side, price, there + size, time)
        elif kind in (SET, SNAPSHOT, DELETE):
            new = 0 if kind == DELETE else size
            self.unknown += new == 0 and there == 0
            self.put(side, price, new, time)
        elif there == 0:
            self.unknown += 1
        else:
            self.overdrawn += size > there
            self.put(side, price, max(there - size, 0), time)

    def crossed(self) -> bool:
        return bool(self.prices[0] and self.prices[1] and self.prices[1][-1] >= self.prices[0][0])

    def evict(self, time: int) -> None:
        if not self.crossed():
            self.crossed_since = None
        elif self.crossed_since is None:
            self.crossed_since = time
        elif time - self.crossed_since > self.max_crossed_ns:
            ask, bid = self.prices[0][0], self.prices[1][-1]
            side, price = (1, bid) if self.changed[1][bid] < self.changed[0][ask] else (0, ask)
            self.put(side, price, 0, time)
            self.orders = {i: order for i, order in self.orders.items() if order[:2] != (side, price)}
            self.evicted += 1
            self.crossed_since = time if self.crossed() else None

    @property
    def state(self) -> tuple[list[int], list[int]] | None:
        """Prices and lots of the best levels, ascending; None for a thin or crossed book."""
        asks, bids = self.prices
        if len(asks) < self.half or len(bids) < self.half or self.crossed_since is not None:
            return None
        prices = bids[-self.half :] + asks[: self.half]
        lots = [self.lots[1][p] for p in prices[: self.half]] + [self.lots[0][p] for p in prices[self.half :]]
        return prices, lots
