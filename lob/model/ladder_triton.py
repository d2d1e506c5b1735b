"""The ladder (lob/model/ladder.py) as Triton kernels, for NVIDIA GPUs; that module defines it.

In torch the search is some 200 small kernels, among them sorts of whole windows. Here a program
takes one state, one window or a few levels of a window, and the same is found in two dozen
launches. Nothing waits for the host and no shape depends on data, so all of it can be part of a
CUDA graph. Known prices of a state ascend with the level, as in every order book; of others this
finds something else than lob/model/ladder.py.

Axes: B window, T state, L level; LP and TP are the powers of two that hold L and T. A *row* is one
state of one window, and a *place* is the index t * L + l of an entry within its window. A mask is
read as bytes, (B, T, L, 2): of price and size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lob.model.ladder import Ladder

NEVER = tl.constexpr(2**30)  # of lob/model/ladder.py
EMPTY = tl.constexpr(-(2**31))  # of a table of prices: nothing stands here yet
NO_PRICE = tl.constexpr(-(2**31) + 1)  # equals no entry of a table
ENTRIES = 1024  # that a program takes which looks at each of them alone


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def nearest(known, at, size: tl.constexpr):
    """Return the nearest known places up to `at` and from it on, along the first axis."""
    before = tl.associative_scan(tl.where(known, at, -1), 0, larger)
    after = tl.associative_scan(tl.where(known, at, size), 0, smaller, reverse=True)
    return before, after


@triton.jit
def surround(known, at, size: tl.constexpr):
    """Return the places to interpolate between, how far `at` is on the way, and if any is known."""
    before, after = nearest(known, at, size)
    has_before, has_after = before >= 0, after < size
    left = tl.where(has_before, before, tl.where(has_after, after, 0))
    right = tl.where(has_after, after, left)
    share = (at - left).to(tl.float32) / tl.maximum(right - left, 1).to(tl.float32)
    return left, right, share, has_before | has_after


@triton.jit
def find_anchors(
    price,
    mask,
    anchors,
    T: tl.constexpr,
    L: tl.constexpr,
    TP: tl.constexpr,
    LP: tl.constexpr,
):
    """Find each window's anchor: the first visible price of its middle level, else of any."""
    window = tl.program_id(0).to(tl.int64)
    state, level = tl.arange(0, TP), tl.arange(0, LP)
    middle: tl.constexpr = L // 2
    hidden = tl.load(mask + window * T * L * 2 + (state * L + middle) * 2, state < T, other=1)
    place = tl.min(tl.where(hidden == 0, state * L + middle, T * L), 0)
    if place == T * L:
        for t in range(T):
            row = tl.load(mask + window * T * L * 2 + (t * L + level) * 2, level < L, other=1)
            place = tl.minimum(place, tl.min(tl.where(row == 0, t * L + level, T * L), 0))
    place = tl.where(place == T * L, 0, place)
    tl.store(anchors + window, tl.load(price + window * T * L + place).to(tl.int64))


@triton.jit
def find_enclosed(
    price,
    near,
    found,
    scratch,
    plane,
    T: tl.constexpr,
    L: tl.constexpr,
    LP: tl.constexpr,
    M: tl.constexpr,
    STEPS: tl.constexpr,
    REACH: tl.constexpr,
):
    """Do `enclosed_prices` for a row.

    The ladder is the REACH states before and after, or without them the two planes of `near`. M is
    its number of levels, 2^STEPS; scratch holds M prices for each row.
    """
    row = tl.program_id(0).to(tl.int64)
    t = (row % T).to(tl.int32)
    level = tl.arange(0, LP)
    inside = level < L
    prices = tl.load(price + row * L + level, inside, other=NEVER)
    below, above = nearest(prices < NEVER, level, L)
    wanted = inside & (prices == NEVER) & (below >= 0) & (above < L)
    if tl.max(wanted.to(tl.int32), 0) > 0:
        slot = tl.arange(0, M)
        which, of = slot // LP, slot % LP
        if REACH > 0:
            away = tl.where(which < REACH, -1 - which, which - REACH + 1)
            exists = (t + away >= 0) & (t + away < T) & (of < L)
            steps = tl.load(price + (row + away) * L + of, exists, other=NEVER)
        else:
            steps = tl.load(near + which * plane + row * L + of, of < L, other=NEVER)
        # The ladder's prices, each once and in order.
        steps = tl.sort(steps)
        own = scratch + row * M
        tl.store(own + slot, steps)
        tl.debug_barrier()
        previous = tl.load(own + slot - 1, slot > 0, other=NEVER)
        tl.debug_barrier()
        is_new = (steps < NEVER) & ((slot == 0) | (steps != previous))
        rank = tl.cumsum(is_new.to(tl.int32), 0) - 1
        count = tl.sum(is_new.to(tl.int32), 0)
        tl.store(own + rank, steps, is_new)
        tl.debug_barrier()
        # How many of them are at most the price below, and how many are less than the price above.
        lowest = tl.load(price + row * L + below, wanted, other=0)
        highest = tl.load(price + row * L + above, wanted, other=0)
        first, first_end = tl.zeros_like(level), tl.zeros_like(level) + count
        last, last_end = first, first_end
        for _ in tl.static_range(STEPS + 1):
            middle = (first + first_end) // 2
            step = tl.load(own + middle, wanted & (first < first_end), other=NEVER)
            is_less = step <= lowest
            first = tl.where(is_less, middle + 1, first)
            first_end = tl.where(is_less, first_end, tl.minimum(middle, first_end))
            middle = (last + last_end) // 2
            step = tl.load(own + middle, wanted & (last < last_end), other=NEVER)
            is_less = step < highest
            last = tl.where(is_less, middle + 1, last)
            last_end = tl.where(is_less, last_end, tl.minimum(middle, last_end))
        fits = wanted & (last - first == above - below - 1)
        prices = tl.where(fits, tl.load(own + first + level - below - 1, fits, other=0), prices)
    tl.store(found + row * L + level, prices, inside)


@triton.jit
def find_nearest_in_time(
    price,
    near,
    plane,
    T: tl.constexpr,
    L: tl.constexpr,
    TP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write the nearest known prices of WIDE levels up to each state and from it on, two planes."""
    window = tl.program_id(0).to(tl.int64)
    level = (tl.program_id(1) * WIDE + tl.arange(0, WIDE))[None, :]
    state = tl.arange(0, TP)[:, None]
    inside = (state < T) & (level < L)
    at = window * T * L + state * L + level
    known = tl.load(price + at, inside, other=NEVER) < NEVER
    before, after = nearest(known, tl.broadcast_to(state, known.shape), T)
    column = price + window * T * L + level
    left = tl.load(column + before * L, inside & (before >= 0), other=NEVER)
    right = tl.load(column + after * L, inside & (after < T), other=NEVER)
    tl.store(near + at, left, inside)
    tl.store(near + plane + at, right, inside)


@triton.jit
def number_prices(
    price,
    slots,
    keys,
    last,
    windows,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Give each known entry the slot of its price in its window's table of SIZE slots; else -1.

    keys: int32 (B, SIZE), EMPTY; last: int32 (2, B, SIZE), made -1 where a slot is taken. Which
    slot a price gets may change from run to run. A price in ticks is its own first slot, so books
    whose range in ticks is below SIZE never collide.
    """
    window = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < COUNT
    prices = tl.load(price + window * COUNT + place, inside, other=NEVER)
    known = prices < NEVER
    looking = known
    # Entries that look for nothing stand at slots apart from one another, and change none.
    slot = tl.where(known, prices, place) & (SIZE - 1)
    mixed = prices * -1640531535
    stride = ((mixed >> 15) ^ mixed) | 1
    while tl.max(looking.to(tl.int32), 0) > 0:
        at = window * SIZE + slot
        expected = tl.where(looking, EMPTY, NO_PRICE)
        there = tl.atomic_cas(keys + at, expected, prices, sem="relaxed")
        taken = looking & (there == EMPTY)
        tl.store(last + at, -1, taken)
        tl.store(last + windows * SIZE + at, -1, taken)
        looking = looking & (there != EMPTY) & (there != prices)
        slot = tl.where(looking, (slot + stride) & (SIZE - 1), slot)
    tl.store(slots + window * COUNT + place, tl.where(known, slot, -1), inside)


@triton.jit
def find_same_price(
    slots,
    mask,
    last,
    places,
    windows,
    plane,
    T: tl.constexpr,
    L: tl.constexpr,
    SIZE: tl.constexpr,
    LP: tl.constexpr,
):
    """Write the place of the last visible size at each entry's price, and of the next; else -1.

    last: of `number_prices`; places: int32, two planes. A program walks through the
    states of a window, forwards or backwards, and keeps in `last` where it saw each price.
    """
    window, backwards = tl.program_id(0).to(tl.int64), tl.program_id(1)
    level = tl.arange(0, LP)
    inside = level < L
    table = last + (backwards * windows + window) * SIZE
    out = places + backwards * plane
    first = tl.where(backwards == 0, 0, T - 1)
    forward = tl.where(backwards == 0, 1, -1)
    slot = tl.load(slots + (window * T + first) * L + level, inside, other=-1)
    hidden = tl.load(mask + ((window * T + first) * L + level) * 2 + 1, inside, other=1)
    for i in range(T):
        t = first + forward * i
        # The next state's are asked for now, so that they are there when their turn comes.
        following = tl.where(i + 1 < T, t + forward, t)
        next_at = (window * T + following) * L + level
        next_slot = tl.load(slots + next_at, inside, other=-1)
        next_hidden = tl.load(mask + next_at * 2 + 1, inside, other=1)
        known = slot >= 0
        seen = tl.load(table + slot, known, other=-1)
        tl.store(out + (window * T + t) * L + level, seen, inside)
        tl.store(table + slot, t * L + level, known & (hidden == 0))
        tl.debug_barrier()
        slot, hidden = next_slot, next_hidden


@triton.jit
def write_ladder(
    price,
    lines,
    places,
    plane,
    filled,
    price_known,
    carried,
    before,
    after,
    share,
    T: tl.constexpr,
    L: tl.constexpr,
    LP: tl.constexpr,
):
    """Write the fields of `Ladder` for a row; lines: what a price is that was not found."""
    row = tl.program_id(0).to(tl.int64)
    t = (row % T).to(tl.int32)
    level = tl.arange(0, LP)
    inside = level < L
    at = row * L + level
    prices = tl.load(price + at, inside, other=NEVER)
    known = prices < NEVER
    below, above = nearest(known, level, L)
    low = tl.load(price + row * L + below, inside & (below >= 0), other=-NEVER).to(tl.float32) + 1
    high = tl.load(price + row * L + above, inside & (above < L), other=NEVER).to(tl.float32) - 1
    line = tl.minimum(tl.maximum(tl.load(lines + at, inside, other=0.0), low), high)
    tl.store(filled + at, tl.where(known, prices.to(tl.float32), line), inside)
    tl.store(price_known + at, known, inside)
    left, right = tl.load(places + at, inside), tl.load(places + plane + at, inside)
    has_left, has_right = left >= 0, right >= 0
    own = t * L + level
    begin = tl.where(has_left, left, tl.where(has_right, right, own))
    end = tl.where(has_right, right, tl.where(has_left, left, own))
    begin_state, end_state = begin // L, end // L
    way = tl.maximum(end_state - begin_state, 1).to(tl.float32)
    tl.store(carried + at, has_left | has_right, inside)
    tl.store(before + at, begin.to(tl.int64), inside)
    tl.store(after + at, end.to(tl.int64), inside)
    tl.store(share + at, (t - begin_state).to(tl.float32) / way, inside)


def power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def columns_a_program(states: int) -> int:
    """Return how many levels a program takes that holds all states of a window."""
    return min(max(2048 // power_of_two(states), 1), 8)


def anchors_of(price_ticks: Tensor, hidden: Tensor) -> Tensor:
    """Return each window's anchor, int64 (B, 1, 1), as `fit` of lob/model/normalisation.py.

    hidden: uint8 (B, T, L, 2).
    """
    batch, states, levels = price_ticks.shape
    anchors = torch.empty(batch, 1, 1, dtype=torch.int64, device=price_ticks.device)
    padded = power_of_two(states), power_of_two(levels)
    find_anchors[(batch,)](price_ticks, hidden, anchors, states, levels, *padded)
    return anchors


def search(price: Tensor) -> Tensor:
    """Return int32 `price` (B, T, L), NEVER where hidden, with what five ladders find put in."""
    batch, states, levels = price.shape
    padded, rows, plane = power_of_two(levels), batch * states, price.numel()
    near, scratch = price.new_empty(2, plane), price.new_empty(rows * 4 * padded)
    for reach in (1, 2, 0, 1, 0):
        if not reach:
            wide = columns_a_program(states)
            grid = batch, triton.cdiv(levels, wide)
            column_shape = states, levels, power_of_two(states), wide
            find_nearest_in_time[grid](price, near, plane, *column_shape)
        found = torch.empty_like(price)
        width = padded * 2 * max(reach, 1)
        shape = states, levels, padded, width, width.bit_length() - 1, reach
        warps = 1 if width <= 512 else 4
        find_enclosed[(rows,)](price, near, found, scratch, plane, *shape, num_warps=warps)
        price = found
    return price


def places_of_same_price(price: Tensor, hidden: Tensor) -> Tensor:
    """Return where the last and the next visible size at each entry's price are, int32 (2, B, T L).

    price: int32 (B, T, L), NEVER where unknown; hidden: uint8 (B, T, L, 2). -1 stands for none.
    """
    batch, states, levels = price.shape
    count, size = states * levels, 2 * power_of_two(states * levels)
    slots, places = torch.empty_like(price), price.new_empty(2, batch, count)
    keys = price.new_full((batch, size), EMPTY.value)
    last = price.new_empty(2, batch, size)
    grid = batch, triton.cdiv(count, ENTRIES)
    number_prices[grid](price, slots, keys, last, batch, count, size, ENTRIES)
    padded = power_of_two(levels)
    shape = states, levels, size, padded
    given = slots, hidden, last, places, batch, price.numel()
    find_same_price[(batch, 2)](*given, *shape, num_warps=min(max(padded // 32, 1), 8))
    return places


def complete(price: Tensor, lines: Tensor, hidden: Tensor) -> Ladder:
    """Return the ladder of prices that were found, int32 (B, T, L) and NEVER where they were not.

    lines: float32 (B, T, L), what stands for a price that was not found; hidden: uint8
    (B, T, L, 2).
    """
    batch, states, levels = price.shape
    places = places_of_same_price(price, hidden)
    kinds = torch.float32, torch.bool, torch.bool, torch.int64, torch.int64, torch.float32
    made = [torch.empty(price.shape, dtype=kind, device=price.device) for kind in kinds]
    filled, known, carried, before, after, share = made
    shape = states, levels, power_of_two(levels)
    write_ladder[(batch * states,)](price, lines, places, price.numel(), *made, *shape)
    return Ladder(filled, known, hidden[..., 1] == 0, carried, before, after, share)
