"""The orders of an order-by-order feed, as numba functions on one array that the book holds.

`orders` is a hash table, int64 (slots, 4): order id, price in ticks, size in lots, and side + 1,
which is 0 in a free slot. An order stands in the slot that its id hashes to (its home), or in the
next free one after it. The number of slots is a power of two, so that `& last_slot` is a remainder,
and at least twice the number of orders.
"""

import numpy as np

from lob.jit import compiled, inlined

ID, PRICE, LOTS, SIDE_PLUS_ONE = range(4)


def empty_table(slots):
    return np.zeros((slots, 4), dtype=np.int64)


def grown_table(orders):
    """Return a table with the same orders and twice the slots."""
    larger = empty_table(2 * len(orders))
    rehash_orders(orders, larger)
    return larger


@inlined
def home_slot(order_id, last_slot):
    return (order_id ^ (order_id >> 32)) * 0x9E3779B97F4A7C1 >> 20 & last_slot


@compiled
def find_order(orders, order_id):
    """Return the slot that an order stands in, or the free slot where it would go."""
    last_slot = orders.shape[0] - 1
    slot = home_slot(order_id, last_slot)
    while orders[slot, SIDE_PLUS_ONE] != 0 and orders[slot, ID] != order_id:
        slot = (slot + 1) & last_slot
    return slot


@compiled
def remove_order(orders, slot):
    """Free a slot, without leaving a mark that would slow down later searches.

    A search ends at a free slot. So an order behind the hole that could no longer be found moves
    into it. That leaves another hole, and so on.
    """
    last_slot = orders.shape[0] - 1
    hole = slot
    orders[hole, SIDE_PLUS_ONE] = 0
    probe = (hole + 1) & last_slot
    while orders[probe, SIDE_PLUS_ONE] != 0:
        home = home_slot(orders[probe, ID], last_slot)
        # The hole lies on the way from the order's home to its slot.
        if ((probe - home) & last_slot) >= ((probe - hole) & last_slot):
            orders[hole] = orders[probe]
            orders[probe, SIDE_PLUS_ONE] = 0
            hole = probe
        probe = (probe + 1) & last_slot


@compiled
def remove_orders_in(orders, side, low, high):
    """Remove every order of a side from price `low` to `high`; return how many there were."""
    slot = removed = 0
    while slot < orders.shape[0]:
        if orders[slot, SIDE_PLUS_ONE] == side + 1 and low <= orders[slot, PRICE] <= high:
            remove_order(orders, slot)  # another order may have moved into this slot
            removed += 1
        else:
            slot += 1
    return removed


@compiled
def rehash_orders(old, new):
    for slot in range(old.shape[0]):
        if old[slot, SIDE_PLUS_ONE] != 0:
            new[find_order(new, old[slot, ID])] = old[slot]
