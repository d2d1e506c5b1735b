"""What the network takes (lob/model/inputs.py) as Triton kernels; that module defines it.

They serve the normalisation 'book' with the ladder's fill, for networks that look both ways and
take no context. Numbers equal torch's up to the rounding of float32: sums over a window are added
up in another order. Axes and names are those of lob/model/ladder_triton.py.

In order, with the two searches of the ladder between the last ones:

    read_states    a row -> whole ticks above the anchor, and what a window's sums are made of
    read_windows   a window -> mids of its states and its mean log size
    normalise      a row -> normalised values, and what stands for them across the levels
    interpolate    all states of some levels -> linear in time, and the level's mean size
    write_cells    a row -> the network's inputs and the fill
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lob.model.ladder import Ladder
from lob.model.ladder_triton import (
    NEVER,
    anchors_of,
    columns_a_program,
    complete,
    power_of_two,
    search,
    surround,
)

# What `read_states` writes for each row: mid of the best prices and of the innermost visible ones,
# NaN where there is none; sums and counts of visible prices and of logs of visible sizes.
BEST, INNER, PRICE_SUM, PRICE_COUNT, SIZE_SUM, SIZE_COUNT, FACTS = (
    tl.constexpr(number) for number in range(7)
)
# Planes of what is interpolated in time: ticks from the mid, normalised prices and sizes.
TICKS, PRICES, SIZES, PLANES = (tl.constexpr(number) for number in range(4))


@triton.jit
def log1p(x):
    """Return log(1 + x) of x >= 0; the division takes back what 1 + x was rounded by."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit
def signed_log(x):
    size = log1p(tl.abs(x))
    return tl.where(x < 0, -size, size)


@triton.jit
def normalise_size(size, centre):
    return (tl.log(tl.maximum(size.to(tl.float32), 1e-30)) - centre) / 2.0


@triton.jit
def read_states(
    price,
    sizes,
    mask,
    anchors,
    offsets,
    facts,
    rows,
    T: tl.constexpr,
    L: tl.constexpr,
    LP: tl.constexpr,
):
    """Write int32 ticks above the anchor, NEVER where hidden, and the facts of a row."""
    row = tl.program_id(0).to(tl.int64)
    window = row // T
    level = tl.arange(0, LP)
    inside = level < L
    at = row * L + level
    hidden = mask + 2 * at
    shows_price = inside & (tl.load(hidden, inside, other=1) == 0)
    shows_size = inside & (tl.load(hidden + 1, inside, other=1) == 0)
    ticks = tl.load(price + at, inside, other=0).to(tl.int64) - tl.load(anchors + window)
    clamped = tl.minimum(tl.maximum(ticks, -NEVER), NEVER).to(tl.int32)
    tl.store(offsets + at, tl.where(shows_price, clamped, NEVER), inside)
    offset = ticks.to(tl.float32)
    half: tl.constexpr = L // 2
    is_best = (level == half - 1) | (level == half)
    best = tl.sum(tl.where(is_best, offset, 0.0), 0) * 0.5
    has_best = tl.sum((is_best & shows_price).to(tl.int32), 0) == 2
    bids, asks = shows_price & (level < half), shows_price & (level >= half)
    bid = tl.max(tl.where(bids, offset, float("-inf")), 0)
    ask = tl.min(tl.where(asks, offset, float("inf")), 0)
    has_inner = (tl.max(bids.to(tl.int32), 0) > 0) & (tl.max(asks.to(tl.int32), 0) > 0)
    log_sizes = tl.log(tl.maximum(tl.load(sizes + at, inside, other=1.0).to(tl.float32), 1e-30))
    nothing = float("nan")
    tl.store(facts + BEST * rows + row, tl.where(has_best, best, nothing))
    tl.store(facts + INNER * rows + row, tl.where(has_inner, (bid + ask) * 0.5, nothing))
    tl.store(facts + PRICE_SUM * rows + row, tl.sum(tl.where(shows_price, offset, 0.0), 0))
    tl.store(facts + PRICE_COUNT * rows + row, tl.sum(shows_price.to(tl.float32), 0))
    tl.store(facts + SIZE_SUM * rows + row, tl.sum(tl.where(shows_size, log_sizes, 0.0), 0))
    tl.store(facts + SIZE_COUNT * rows + row, tl.sum(shows_size.to(tl.float32), 0))


@triton.jit
def in_time(values, state, inside, T: tl.constexpr):
    """Fill values of states, NaN for none, linearly in time; return also if there is any."""
    x = tl.load(values + state, inside, other=float("nan"))
    left, right, share, has_any = surround(x == x, state, T)
    begin = tl.load(values + left, inside & has_any, other=0.0)
    end = tl.load(values + right, inside & has_any, other=0.0)
    return begin + (end - begin) * share, tl.max((x == x).to(tl.int32), 0) > 0


@triton.jit
def read_windows(
    facts,
    mids,
    centres,
    rows,
    T: tl.constexpr,
    TP: tl.constexpr,
):
    """Write the mids of a window's states, and the mean of its visible log sizes."""
    window = tl.program_id(0).to(tl.int64)
    state = tl.arange(0, TP)
    inside = state < T
    facts += window * T
    best, has_best = in_time(facts + BEST * rows, state, inside, T)
    inner, has_inner = in_time(facts + INNER * rows, state, inside, T)
    prices = tl.sum(tl.load(facts + PRICE_SUM * rows + state, inside, other=0.0), 0)
    count = tl.sum(tl.load(facts + PRICE_COUNT * rows + state, inside, other=0.0), 0)
    mean = prices / tl.maximum(count, 1.0)
    mid = tl.where(has_best, best, tl.where(has_inner, inner, mean))
    tl.store(mids + window * T + state, mid, inside)
    sizes = tl.load(facts + SIZE_SUM * rows + state, inside, other=0.0)
    counts = tl.load(facts + SIZE_COUNT * rows + state, inside, other=0.0)
    tl.store(centres + window, tl.sum(sizes, 0) / tl.maximum(tl.sum(counts, 0), 1.0))


@triton.jit
def normalise(
    price,
    sizes,
    mask,
    anchors,
    mids,
    centres,
    values,
    across,
    plane,
    T: tl.constexpr,
    L: tl.constexpr,
    LP: tl.constexpr,
):
    """Write a row's values, (B, T, L, 2), and the planes of `across`: linear between levels."""
    row = tl.program_id(0).to(tl.int64)
    window = row // T
    level = tl.arange(0, LP)
    inside = level < L
    at = row * L + level
    hidden = mask + 2 * at
    shows_price = inside & (tl.load(hidden, inside, other=1) == 0)
    shows_size = inside & (tl.load(hidden + 1, inside, other=1) == 0)
    anchor, mid = tl.load(anchors + window), tl.load(mids + row)
    centre = tl.load(centres + window)
    ticks = (tl.load(price + at, inside, other=0).to(tl.int64) - anchor).to(tl.float32) - mid
    value = signed_log(ticks) / 4.0
    size_value = normalise_size(tl.load(sizes + at, inside, other=1.0), centre)
    tl.store(values + 2 * at, value, inside)
    tl.store(values + 2 * at + 1, size_value, inside)

    left, right, share, has_any = surround(shows_price, level, L)
    reads = inside & has_any
    begin = tl.load(price + row * L + left, reads, other=0).to(tl.int64) - anchor
    end = tl.load(price + row * L + right, reads, other=0).to(tl.int64) - anchor
    begin_ticks, end_ticks = begin.to(tl.float32) - mid, end.to(tl.float32) - mid
    line = tl.where(has_any, begin_ticks + (end_ticks - begin_ticks) * share, 0.0)
    tl.store(across + TICKS * plane + at, tl.where(shows_price, ticks, line), inside)
    begin_value, end_value = signed_log(begin_ticks) / 4.0, signed_log(end_ticks) / 4.0
    line = tl.where(has_any, begin_value + (end_value - begin_value) * share, 0.0)
    tl.store(across + PRICES * plane + at, tl.where(shows_price, value, line), inside)

    left, right, share, has_any = surround(shows_size, level, L)
    reads = inside & has_any
    begin_value = normalise_size(tl.load(sizes + row * L + left, reads, other=1.0), centre)
    end_value = normalise_size(tl.load(sizes + row * L + right, reads, other=1.0), centre)
    line = tl.where(has_any, begin_value + (end_value - begin_value) * share, 0.0)
    tl.store(across + SIZES * plane + at, tl.where(shows_size, size_value, line), inside)


@triton.jit
def surround_in_time(hidden, counts, state, inside, T: tl.constexpr):
    """Return what `surround` does for columns of states, and which entries are visible.

    A level that no state shows takes the states that show any level, counts > 0.
    """
    shown = inside & (tl.load(hidden, inside, other=1) == 0)
    never = tl.max(shown.to(tl.int32), 0) == 0
    reached = tl.load(counts + state, state < T, other=0.0) > 0
    known = shown | (never[None, :] & reached & inside)
    left, right, share, has_any = surround(known, tl.broadcast_to(state, known.shape), T)
    return left, right, share, has_any & inside, shown


@triton.jit
def interpolate(
    across,
    mask,
    facts,
    mids,
    lines,
    level_means,
    plane,
    rows,
    T: tl.constexpr,
    L: tl.constexpr,
    TP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write the planes of `lines` for WIDE levels of a window, linear in time where hidden.

    Ticks are written from the anchor. level_means: of the visible sizes, (B, L).
    """
    window = tl.program_id(0).to(tl.int64)
    level = (tl.program_id(1) * WIDE + tl.arange(0, WIDE))[None, :]
    state = tl.arange(0, TP)[:, None]
    inside = (state < T) & (level < L)
    column = window * T * L + level
    at = column + state * L
    hidden = mask + 2 * at
    counts = facts + PRICE_COUNT * rows + window * T
    left, right, share, has_any, _ = surround_in_time(hidden, counts, state, inside, T)
    for plane_number in tl.static_range(2):
        values = across + plane_number * plane + column
        begin = tl.load(values + left * L, has_any, other=0.0)
        end = tl.load(values + right * L, has_any, other=0.0)
        line = begin + (end - begin) * share
        if plane_number == 0:
            line += tl.load(mids + window * T + state, state < T, other=0.0)
        tl.store(lines + plane_number * plane + at, line, inside)
    counts = facts + SIZE_COUNT * rows + window * T
    left, right, share, has_any, shown = surround_in_time(hidden + 1, counts, state, inside, T)
    values = across + SIZES * plane + column
    begin = tl.load(values + left * L, has_any, other=0.0)
    end = tl.load(values + right * L, has_any, other=0.0)
    tl.store(lines + SIZES * plane + at, begin + (end - begin) * share, inside)
    visible = tl.load(across + SIZES * plane + at, shown, other=0.0)
    mean = tl.sum(visible, 0) / tl.maximum(tl.sum(shown.to(tl.float32), 0), 1.0)
    number = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    tl.store(level_means + window * L + number, mean, number < L)


@triton.jit
def write_cells(
    values,
    mask,
    lines,
    mids,
    level_means,
    ladder_price,
    price_known,
    carried,
    before,
    after,
    share,
    cells,
    base,
    plane,
    T: tl.constexpr,
    L: tl.constexpr,
    LP: tl.constexpr,
):
    """Write a row of the network's inputs, as `cell_channels` orders them, and of the fill."""
    row = tl.program_id(0).to(tl.int64)
    window, t = row // T, row % T
    level = tl.arange(0, LP)
    inside = level < L
    at = row * L + level
    hidden = mask + 2 * at
    price_hidden = tl.load(hidden, inside, other=1) != 0
    size_hidden = tl.load(hidden + 1, inside, other=1) != 0
    price = tl.where(price_hidden, 0.0, tl.load(values + 2 * at, inside, other=0.0))
    size = tl.where(size_hidden, 0.0, tl.load(values + 2 * at + 1, inside, other=0.0))
    mid = tl.load(mids + row)
    price_fill = signed_log(tl.load(ladder_price + at, inside, other=0.0) - mid) / 4.0
    is_carried = tl.load(carried + at, inside, other=0) != 0
    left_at = tl.load(before + at, inside, other=0)
    right_at = tl.load(after + at, inside, other=0)
    sizes_of = values + 2 * window * T * L + 1
    left = tl.load(sizes_of + 2 * left_at, inside & is_carried, other=0.0)
    right = tl.load(sizes_of + 2 * right_at, inside & is_carried, other=0.0)
    way = tl.load(share + at, inside, other=0.0)
    size_line = tl.load(lines + SIZES * plane + at, inside, other=0.0)
    size_fill = tl.where(is_carried, left + (right - left) * way, size_line)
    size_fill = tl.where(size_hidden, size_fill, size)
    tl.store(base + 2 * at, price_fill, inside)
    tl.store(base + 2 * at + 1, size_fill, inside)

    left = tl.where(is_carried, left - size_fill, 0.0)
    right = tl.where(is_carried, right - size_fill, 0.0)
    away = log1p(tl.abs(t - left_at // L).to(tl.float32)) / 4.0
    away_after = log1p(tl.abs(t - right_at // L).to(tl.float32)) / 4.0
    price_change = tl.load(lines + PRICES * plane + at, inside, other=0.0) - price_fill
    size_change = size_line - size_fill
    mean = tl.load(level_means + window * L + level, inside, other=0.0) - size_fill
    last = tl.load(mids + window * T + T - 1)
    path = tl.zeros_like(size) + signed_log(mid - last) / 4.0
    price_found = (tl.load(price_known + at, inside, other=0) != 0).to(tl.float32)
    size_found = (is_carried | (size_hidden == 0)).to(tl.float32)
    # A channel's number in binary, from the last join to the first: 16 numbers of a cell, in order.
    first = tl.join(tl.join(price, left), tl.join(price_fill, price_change))
    third = tl.join(tl.join(price_hidden.to(tl.float32), away), tl.join(price_found, path))
    second = tl.join(tl.join(size, right), tl.join(size_fill, size_change))
    fourth = tl.join(tl.join(size_hidden.to(tl.float32), away_after), tl.join(size_found, mean))
    table = tl.join(tl.join(first, third), tl.join(second, fourth))
    channel = tl.arange(0, 16)
    out = cells + at[:, None] * 16 + channel[None, :]
    tl.store(out, tl.reshape(table, (LP, 16)), inside[:, None])


class Windows:
    """Windows on their way to the network: each method launches one of the kernels above."""

    def __init__(self, price_ticks: Tensor, sizes: Tensor, mask: Tensor):
        self.price_ticks, self.sizes = price_ticks.contiguous(), sizes.contiguous()
        # One byte each, and whole: masks are often expanded.
        self.hidden = mask.contiguous().view(torch.uint8)
        self.batch, self.states, self.levels = price_ticks.shape
        self.rows, self.plane = self.batch * self.states, price_ticks.numel()
        self.device = price_ticks.device
        self.row_shape = self.states, self.levels, power_of_two(self.levels)
        self.anchors = anchors_of(self.price_ticks, self.hidden)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=self.device)

    def prepare(self) -> None:
        """Make offsets, mids, centres, values, lines and level_means."""
        window = self.batch, self.states, self.levels
        self.offsets = self.empty(*window, dtype=torch.int32)
        facts = self.empty(FACTS.value, self.rows)
        seen = self.price_ticks, self.sizes, self.hidden, self.anchors
        read_states[(self.rows,)](*seen, self.offsets, facts, self.rows, *self.row_shape)
        self.mids = self.empty(self.batch, self.states, 1)
        self.centres = self.empty(self.batch, 1, 1)
        fitted = self.mids, self.centres
        padded = power_of_two(self.states)
        read_windows[(self.batch,)](facts, *fitted, self.rows, self.states, padded)
        self.values = self.empty(*window, 2)
        across, self.lines = (self.empty(PLANES.value, *window) for _ in range(2))
        normalise[(self.rows,)](*seen, *fitted, self.values, across, self.plane, *self.row_shape)
        self.level_means = self.empty(self.batch, self.levels)
        given = across, self.hidden, facts, self.mids
        wide = columns_a_program(self.states)
        interpolate[(self.batch, triton.cdiv(self.levels, wide))](
            *given,
            self.lines,
            self.level_means,
            self.plane,
            self.rows,
            self.states,
            self.levels,
            padded,
            wide,
            num_warps=8,
        )

    def ladder(self, searches: bool) -> Ladder:
        """Return the ladder; searches: look for hidden prices."""
        price = search(self.offsets) if searches else self.offsets
        return complete(price, self.lines[TICKS.value], self.hidden)

    def cells(self, ladder: Ladder) -> tuple[Tensor, Tensor]:
        """Return what `cell_channels` does, and the fill."""
        window = self.batch, self.states, self.levels
        cells, base = self.empty(*window, 16), self.empty(*window, 2)
        found = ladder.price, ladder.price_known, ladder.carried, ladder.before, ladder.after
        given = self.values, self.hidden, self.lines, self.mids, self.level_means, *found
        write_cells[(self.rows,)](*given, ladder.share, cells, base, self.plane, *self.row_shape)
        return cells, base

    def parameters(self) -> dict[str, Tensor]:
        """Return what `fit` of lob/model/normalisation.py does."""
        return {"anchor_ticks": self.anchors, "mid": self.mids, "size_centre": self.centres}


def find_ladder(price_ticks: Tensor, mask: Tensor) -> Ladder:
    """Do what `find_ladder` of lob/model/ladder.py does for windows with a mask."""
    sizes = torch.ones(price_ticks.shape, device=price_ticks.device)
    windows = Windows(price_ticks, sizes, mask)
    windows.prepare()
    return windows.ladder(True)


def build_cells(
    price_ticks: Tensor, sizes: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Do what `build_inputs` does for a convolutional stem under the normalisation 'book'."""
    hidden = mask
    if hidden is None:
        nothing = torch.zeros(1, dtype=torch.bool, device=sizes.device)
        hidden = nothing.expand(*sizes.shape, 2)
    windows = Windows(price_ticks, sizes, hidden)
    windows.prepare()
    cells, base = windows.cells(windows.ladder(mask is not None))
    return cells, base, windows.values, windows.parameters()
