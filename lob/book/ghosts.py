"""Levels that no update has removed, but that are there no more, as numba functions.

A level that should be gone, but whose delete was lost (a ghost), sooner or later crosses the book.
So does an auction, whose orders are true. By level, a book crossed for longer than
`max_crossed_ms` has a ghost: of the two levels that cross, the one whose last change is older.
Order by order every order's life is told, and a loss leaves a trace. There a level is evicted only

- if, while it crossed the book, an order of its side with a worse price was matched, and
  `max_crossed_ms` later it still does (ghosts_traded_through), or
- if rows came of orders that are not there, which shows that rows were lost (ghosts_after_losses).
"""

from lob.book.memory import (
    AFTER_LOSSES,
    CROSSED_SINCE,
    CUT,
    GHOSTS,
    NEVER,
    ORDERS,
    PASSED_ASK,
    PASSED_BID,
    PASSED_BID_PRICE,
    TIME,
    TRADED_THROUGH,
    UNKNOWN,
)
from lob.book.order_table import PRICE, SIDE_PLUS_ONE, find_order, remove_orders_in
from lob.book.price_levels import ASK, BID, remove_level
from lob.jit import compiled, inlined


@inlined
def is_crossed(levels):
    """Return whether the best bid is at or above the best ask."""
    bounds, ticks = levels[:2]
    if bounds[BID, 0] == bounds[BID, 1] or bounds[ASK, 0] == bounds[ASK, 1]:
        return False
    return ticks[BID, bounds[BID, 1] - 1] >= ticks[ASK, bounds[ASK, 0]]


@compiled
def note_match(order_id, orders, memory, levels):
    """Remember the best level of a crossed book's side if an order at a worse price is matched."""
    bounds, ticks = levels[:2]
    slot = find_order(orders, order_id)
    side, price = orders[slot, SIDE_PLUS_ONE] - 1, orders[slot, PRICE]
    if side < 0:
        return
    if bounds[side, 0] == bounds[side, 1]:
        return
    best = ticks[BID, bounds[BID, 1] - 1] if side == BID else ticks[ASK, bounds[ASK, 0]]
    if price == best or (price > best) == (side == BID):
        return
    if memory[PASSED_BID + side] == NEVER or memory[PASSED_BID_PRICE + side] != best:
        memory[PASSED_BID + side] = memory[TIME]
        memory[PASSED_BID_PRICE + side] = best


@inlined
def evict_ghost(memory, counters, orders, max_crossed_ns, levels):
    """Track how long the book has been crossed; after `max_crossed_ns` evict a ghost, if one is."""
    if not is_crossed(levels):
        if memory[CROSSED_SINCE] != NEVER:
            memory[CROSSED_SINCE] = memory[PASSED_BID] = memory[PASSED_ASK] = NEVER
    elif memory[CROSSED_SINCE] == NEVER:
        memory[CROSSED_SINCE] = memory[TIME]
    elif memory[TIME] - memory[CROSSED_SINCE] > max_crossed_ns:
        side = find_ghost(memory, counters, max_crossed_ns, levels)
        if side < 0:
            return
        bounds, ticks = levels[:2]
        index = bounds[BID, 1] - 1 if side == BID else bounds[ASK, 0]
        price = ticks[side, index]
        memory[ORDERS] -= remove_orders_in(orders, side, price, price)
        remove_level(side, index, levels)
        counters[GHOSTS] += 1
        # If the next level crosses too, it has the whole limit again.
        memory[CROSSED_SINCE] = memory[TIME] if is_crossed(levels) else NEVER
        memory[PASSED_BID] = memory[PASSED_ASK] = NEVER


@compiled
def find_ghost(memory, counters, max_crossed_ns, levels):
    """Return the side whose best level is a ghost, in a book crossed for too long; -1 if none."""
    bounds, ticks, _, changed = levels[:4]
    bid, ask = bounds[BID, 1] - 1, bounds[ASK, 0]
    older = BID if changed[BID, bid] < changed[ASK, ask] else ASK
    if memory[ORDERS] == 0:
        return older
    for side, index in ((BID, bid), (ASK, ask)):
        passed, price = memory[PASSED_BID + side], memory[PASSED_BID_PRICE + side]
        if passed == NEVER or price != ticks[side, index]:
            continue
        if memory[TIME] - passed > max_crossed_ns:
            counters[TRADED_THROUGH] += 1
            return side
    if counters[UNKNOWN] == 0:
        return -1
    counters[AFTER_LOSSES] += 1
    return older


@compiled
def cut_sides(book_depth, orders, memory, counters, levels):
    """Remove the levels past the best `book_depth` of each side."""
    bounds, ticks = levels[:2]
    for side in range(2):
        begin, end = bounds[side]
        beyond = end - begin - book_depth
        if beyond <= 0:
            continue
        if side == BID:
            low, high = NEVER, ticks[BID, begin + beyond] - 1
            bounds[BID, 0] += beyond
        else:
            low, high = ticks[ASK, end - 1 - beyond] + 1, -(NEVER + 1)
            bounds[ASK, 1] -= beyond
        if memory[ORDERS] > 0:
            memory[ORDERS] -= remove_orders_in(orders, side, low, high)
        counters[CUT] += beyond
