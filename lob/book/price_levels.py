"""The two sorted sides of an order book, as numba functions on arrays that the book holds.

`levels` is a tuple of arrays. The first one is bounds, int64 (2, 2): where each side's levels begin
and end in the other arrays. These are (2, capacity): a row for BID and a row for ASK, both
ascending in price:

- ticks and lots, int64: price and size of the level
- changed, int64: time of the level's last change, in ns
- ticks32, int32 (clamped), and sizes32, float32: price and size as they are written

The levels of a side lie somewhere inside their row, with free places before and after them. So a
new level near the best price moves few others, and a state is written by four plain copies.
"""

import numpy as np

from lob.jit import compiled, inlined

BID, ASK = 0, 1
NEAR = 64  # this many best levels of a side are searched first: nearly all updates are there


def empty_sides(capacity):
    bounds = np.full((2, 2), capacity // 2, dtype=np.int64)
    dtypes = (np.int64, np.int64, np.int64, np.int32, np.float32)
    return bounds, *(np.zeros((2, capacity), dtype=dtype) for dtype in dtypes)


def grown_sides(levels):
    """Return the sides in the middle of larger arrays: room for four times the levels or more."""
    bounds, *arrays = levels
    capacity = arrays[0].shape[1]
    while capacity < 4 * int((bounds[:, 1] - bounds[:, 0]).max()):
        capacity *= 2
    new_bounds, *grown = empty_sides(capacity)
    for side, (begin, end) in enumerate(bounds):
        new_begin = (capacity - (end - begin)) // 2
        new_bounds[side] = new_begin, new_begin + end - begin
        for old, new in zip(arrays, grown, strict=True):
            new[side, new_begin : new_begin + end - begin] = old[side, begin:end]
    return new_bounds, *grown


@inlined
def find_level(ticks, begin, end, price, side):
    """Return the index of the first of the ascending ticks[begin:end] that is >= price."""
    low = max(end - NEAR, begin) if side == BID else begin
    high = end if side == BID else min(begin + NEAR, end)
    if low > begin and ticks[low] >= price:
        low, high = begin, low
    elif high < end and ticks[high - 1] < price:
        low, high = high, end
    count = high - low
    while count > 1:  # bisection without a branch, of which half would be mispredicted
        half = count >> 1
        low += half * (ticks[low + half - 1] < price)
        count -= half
    return low + (count == 1 and ticks[low] < price)


@inlined
def shift_row(row, begin, end, up):
    """Move row[begin:end] by one place, up or down.

    A signed index may be negative, which numba checks each time. An unsigned one can't be, so that
    the loop becomes a plain copy.
    """
    one = np.uint64(1)
    if up:
        for i in range(np.uint64(end), np.uint64(begin), -1):
            row[i] = row[i - one]
    else:
        for i in range(np.uint64(begin), np.uint64(end)):
            row[i - one] = row[i]


@inlined
def shift_levels(side, begin, end, up, levels):
    _, ticks, lots, changed, ticks32, sizes32 = levels
    shift_row(ticks[side], begin, end, up)
    shift_row(lots[side], begin, end, up)
    shift_row(changed[side], begin, end, up)
    shift_row(ticks32[side], begin, end, up)
    shift_row(sizes32[side], begin, end, up)


@inlined
def remove_level(side, index, levels):
    bounds = levels[0]
    begin, end = bounds[side, 0], bounds[side, 1]
    if index - begin < end - 1 - index:
        shift_levels(side, begin, index, True, levels)
        bounds[side, 0] = begin + 1
    else:
        shift_levels(side, index + 1, end, False, levels)
        bounds[side, 1] = end - 1


@inlined
def insert_level(side, index, levels):
    """Make room for a level before `index`; return the index of the free place."""
    bounds = levels[0]
    begin, end = bounds[side, 0], bounds[side, 1]
    if (index - begin < end - index and begin > 0) or end == levels[1].shape[1]:
        shift_levels(side, begin, index, False, levels)
        bounds[side, 0] = begin - 1
        return index - 1
    shift_levels(side, index, end, True, levels)
    bounds[side, 1] = end + 1
    return index


@inlined
def change_level(side, price, size, absolute, time, lot_size, levels):
    """Set a level's size to `size` lots if `absolute`, else add `size` lots, which may be negative.

    A level without lots is removed. Return False if a level that should shrink or go is not there.
    """
    bounds, ticks, lots, changed, ticks32, sizes32 = levels
    index = find_level(ticks[side], bounds[side, 0], bounds[side, 1], price, side)
    found = index < bounds[side, 1] and ticks[side, index] == price
    total = size if absolute or not found else lots[side, index] + size
    if total <= 0:
        if not found:
            return size == 0 and not absolute
        remove_level(side, index, levels)
        return True
    if not found:
        index = insert_level(side, index, levels)
        ticks[side, index] = price
        ticks32[side, index] = min(max(price, -2147483648), 2147483647)
    lots[side, index] = total
    sizes32[side, index] = total * lot_size
    changed[side, index] = time
    return True


@compiled
def level_lots(side, price, levels):
    bounds, ticks, lots = levels[:3]
    index = find_level(ticks[side], bounds[side, 0], bounds[side, 1], price, side)
    return lots[side, index] if index < bounds[side, 1] and ticks[side, index] == price else 0


@compiled
def keep_best(half, levels, kept):
    """Copy ticks and lots of the best `half` levels of each side into `kept`, int64 (2, 2, half).

    If a side has fewer levels, zeros follow them.
    """
    bounds, ticks, lots = levels[:3]
    kept[:] = 0
    for side in range(2):
        count = min(half, bounds[side, 1] - bounds[side, 0])
        first = bounds[BID, 1] - count if side == BID else bounds[ASK, 0]
        kept[0, side, :count] = ticks[side, first : first + count]
        kept[1, side, :count] = lots[side, first : first + count]


@inlined
def copy_run(target, at, source, begin, count):
    for i in range(np.uint64(count)):
        target[np.uint64(at) + i] = source[np.uint64(begin) + i]


@inlined
def write_state(row, half, levels, out_ticks, out_sizes):
    """Copy the best `half` levels of each side into an output row.

    Return False if a price does not fit int32.
    """
    bounds, ticks, _, _, ticks32, sizes32 = levels
    low, best_ask = bounds[BID, 1] - half, bounds[ASK, 0]
    if ticks[BID, low] < -2147483648 or ticks[ASK, best_ask + half - 1] > 2147483647:
        return False
    copy_run(out_ticks[row], 0, ticks32[BID], low, half)
    copy_run(out_ticks[row], half, ticks32[ASK], best_ask, half)
    copy_run(out_sizes[row], 0, sizes32[BID], low, half)
    copy_run(out_sizes[row], half, sizes32[ASK], best_ask, half)
    return True
