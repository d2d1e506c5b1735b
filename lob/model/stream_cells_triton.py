"""A new state of a stream as Triton kernels: from prices and sizes to the network's first vector.

lob/model/stream_triton.py launches them and says how they follow each other; lob/model/streaming.py
defines what they compute. Axes and names are those of both.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lob.model.inputs_triton import log1p, signed_log

NEVER = tl.constexpr(2**30)  # stands for a price that no kept state shows


@triton.jit
def let_next_start(OVERLAPS: tl.constexpr):
    if OVERLAPS:
        gdc_launch_dependents()


@triton.jit
def await_previous(OVERLAPS: tl.constexpr):
    """Wait until the kernel before has ended; all programs of all kernels but the first must."""
    if OVERLAPS:
        gdc_wait()


@triton.jit
def tile(base, row, rows, column, columns, stride):
    """Load a matrix's rows and columns, with zeros behind its ends."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(base + row[:, None] * stride + column[None, :], inside, other=0.0)


@triton.jit
def up_to(SIZE: tl.constexpr):
    """Return 0, 1, ... as many as the power of two that holds SIZE."""
    return tl.arange(0, triton.next_power_of_2(SIZE))


@triton.jit
def times(matrix, x):
    return tl.sum(matrix.to(tl.float32) * x[None, :], 1)


@triton.jit
def vector(base, at, size):
    return tl.load(base + at, at < size, other=0.0).to(tl.float32)


@triton.jit
def gelu(x):
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def next_angle(angle, step, full_turn, pair, PAIRS: tl.constexpr):
    turned = tl.load(angle + pair, pair < PAIRS) + tl.load(step + pair, pair < PAIRS)
    turn = tl.load(full_turn)  # no constant, which would be rounded to float32
    return tl.where(turned >= turn, turned - turn, turned)


@triton.jit
def write_rotation(angle, step, full_turn, rotation, PAIRS: tl.constexpr):
    """Write cosine and sine of the new state's rotation, float32 (2, D/H/2)."""
    pair = up_to(PAIRS)
    turned = next_angle(angle, step, full_turn, pair, PAIRS)
    tl.store(rotation + pair, tl.cos(turned).to(tl.float32), pair < PAIRS)
    tl.store(rotation + PAIRS + pair, tl.sin(turned).to(tl.float32), pair < PAIRS)


@triton.jit
def read_clock(count, seen, stream, T: tl.constexpr):
    """Return the new state's place in rings of T, and how many states its window holds so far."""
    place = (tl.load(count) + 1) % T
    return place, tl.minimum(tl.load(seen + stream) + 1, T)


@triton.jit
def log_size(sizes, at, inside):
    return tl.log(tl.maximum(tl.load(sizes + at, inside, other=1.0), 1e-30))


@triton.jit
def mean_log_size(
    sizes,
    size_sums,
    stream,
    place,
    held,
    T: tl.constexpr,
    L: tl.constexpr,
):
    """Return the sum of the new state's log sizes, and the mean of all in its window."""
    level, state = up_to(L), up_to(T)
    own = tl.sum(log_size(sizes + stream * L, level, level < L), 0)
    age = (place + T - state) % T
    earlier = (state < T) & (age > 0) & (age < held)
    before = tl.sum(tl.load(size_sums + stream * T + state, earlier, other=0.0), 0)
    return own, (own + before) / (held * L).to(tl.float32)


@triton.jit
def double_mid_of(prices, L: tl.constexpr):
    return tl.load(prices + L // 2 - 1) + tl.load(prices + L // 2)


@triton.jit
def move(double_mids, place, held, double_mid, REACH: tl.constexpr, T: tl.constexpr):
    """Return the mid's move from REACH states before, at most from the window's first."""
    back = tl.minimum(held - 1, REACH)
    before = tl.load(double_mids + (place + T - back) % T)
    before = tl.where(back == 0, double_mid, before)
    return signed_log((double_mid - before).to(tl.float32) * 0.5) / 4.0


@triton.jit
def price_value(price, double_mid):
    return signed_log((2 * price - double_mid).to(tl.float32) * 0.5) / 4.0


@triton.jit
def search(
    prices,
    count,
    seen,
    kept_prices,
    angle,
    step,
    full_turn,
    rotation,
    nearest,
    T: tl.constexpr,
    L: tl.constexpr,
    STATES: tl.constexpr,
    PAIRS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write age * L + level of the latest of STATES kept states that shows each price, or NEVER.

    nearest: int32 (B, programs, L).
    """
    let_next_start(OVERLAPS)
    block, stream = tl.program_id(0), tl.program_id(1)
    slots: tl.constexpr = triton.next_power_of_2(L)
    level, slot = up_to(L), tl.arange(0, STATES * slots)
    state, of = block * STATES + slot // slots, slot % slots
    place, held = read_clock(count, seen, stream, T)
    age = (place + T - state) % T
    usable = (state < T) & (of < L) & (age > 0) & (age < held)
    shown = tl.load(kept_prices + (stream * T + state) * L + of, usable, other=0)
    own = tl.load(prices + stream * L + level, level < L, other=0)
    # One number for both, so that a program compares each price once.
    entry = tl.where(usable, (age * L).to(tl.int32) + of, NEVER)
    found = tl.where(own[:, None] == shown[None, :], entry[None, :], NEVER)
    out = nearest + (stream * tl.num_programs(0) + block) * L + level
    tl.store(out, tl.min(found, 1), level < L)
    if block + stream == 0:
        write_rotation(angle, step, full_turn, rotation, PAIRS)


@triton.jit
def make_cells(
    prices,
    sizes,
    count,
    seen,
    kept_prices,
    kept_logs,
    size_sums,
    double_mids,
    nearest,
    mix,
    mix_bias,
    level_bias,
    ring,
    T: tl.constexpr,
    L: tl.constexpr,
    C: tl.constexpr,
    KEPT: tl.constexpr,
    SEARCHES: tl.constexpr,
    LEVELS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write LEVELS levels of the new state: their cells into `ring`, themselves into the rings."""
    let_next_start(OVERLAPS)
    block, stream = tl.program_id(0), tl.program_id(1)
    level = block * LEVELS + tl.arange(0, LEVELS)
    inside = level < L
    prices += stream * L
    place, held = read_clock(count, seen, stream, T)
    now = tl.load(count) + 1
    own, centre = mean_log_size(sizes, size_sums, stream, place, held, T, L)
    double_mid = double_mid_of(prices, L)
    double_mids += stream * T
    last_move = move(double_mids, place, held, double_mid, 1, T)
    short_move = move(double_mids, place, held, double_mid, 8, T)
    long_move = move(double_mids, place, held, double_mid, 64, T)
    price = tl.load(prices + level, inside, other=0)
    log = log_size(sizes + stream * L, level, inside)
    # What a cell's channels are multiplied by, in the order of `cell_channels`; some are the same
    # as nothing is hidden.
    channel = up_to(C)
    within = channel < C
    mix += channel * 16
    of_price = tl.load(mix, within).to(tl.float32) + tl.load(mix + 4, within).to(tl.float32)
    of_size = tl.load(mix + 1, within).to(tl.float32) + tl.load(mix + 5, within).to(tl.float32)
    constant = tl.load(mix + 6, within).to(tl.float32) + tl.load(mix + 7, within).to(tl.float32)
    of_left = tl.load(mix + 8, within).to(tl.float32)
    of_far = tl.load(mix + 10, within).to(tl.float32)
    constant += tl.load(mix + 12, within).to(tl.float32) * short_move
    constant += tl.load(mix + 13, within).to(tl.float32) * long_move
    constant += tl.load(mix + 14, within).to(tl.float32) * last_move
    constant += vector(mix_bias, channel, C)
    cells = tile(level_bias, level, L, channel, C, C).to(tl.float32) + constant[None, :]
    cells += price_value(price, double_mid)[:, None] * of_price[None, :]
    cells += ((log - centre) / 2.0)[:, None] * of_size[None, :]

    await_previous(OVERLAPS)
    part = up_to(SEARCHES)
    is_part = (part < SEARCHES)[:, None] & inside[None, :]
    at = (stream * SEARCHES + part)[:, None] * L + level[None, :]
    entry = tl.min(tl.load(nearest + at, is_part, other=NEVER), 0)
    found = entry < NEVER
    age = tl.where(found, entry // L, 0)
    state = (place + T - age) % T
    last = tl.load(kept_logs + (stream * T + state) * L + entry % L, found & inside, other=0.0)
    left = tl.where(found, (last - log) / 2.0, 0.0)
    far = tl.where(found, log1p(age.to(tl.float32)) / 4.0, 0.0)
    cells += left[:, None] * of_left[None, :] + far[:, None] * of_far[None, :]
    ring += (stream * KEPT + now % KEPT) * (L + 2) * C
    here = (level + 1)[:, None] * C + channel[None, :]
    tl.store(ring + here, cells.to(ring.dtype.element_ty), inside[:, None] & within[None, :])
    row = (stream * T + place) * L + level
    tl.store(kept_prices + row, price, inside)
    tl.store(kept_logs + row, log, inside)
    if block == 0:
        tl.store(size_sums + stream * T + place, own)
        tl.store(double_mids + place, double_mid)


@triton.jit(do_not_specialize=["dilation"])  # else each block would compile its own
def convolve(
    ring,
    weight,
    bias,
    base,
    out,
    count,
    dilation,
    L: tl.constexpr,
    C: tl.constexpr,
    KEPT: tl.constexpr,
    ADDS: tl.constexpr,
    LEVELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write LEVELS x COLUMNS outputs of a `StreamConv` into `out`, a ring too.

    ADDS: the cells at the new state's place in `base` are added, else GELU follows. A level's three
    taps stand side by side in a ring: they are one row of 3 C numbers.
    """
    let_next_start(OVERLAPS)
    level = tl.program_id(0) * LEVELS + tl.arange(0, LEVELS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    stream = tl.program_id(2)
    k = up_to(3 * C)
    now = tl.load(count) + 1
    is_weight = (k < 3 * C)[:, None] & (channel < C)[None, :]
    total = tl.zeros((LEVELS, COLUMNS), tl.float32) + vector(bias, channel, C)[None, :]
    for tap in tl.static_range(3):
        at = channel[None, :] * (9 * C) + tap * 3 * C + k[:, None]
        taps = tl.load(weight + at, is_weight, other=0.0)
        if tap == 2:
            await_previous(OVERLAPS)
        place = (now + KEPT - (2 - tap) * dilation) % KEPT
        seen = tile(ring + (stream * KEPT + place) * (L + 2) * C, level, L, k, 3 * C, C)
        total = tl.dot(seen, taps, total, input_precision="ieee")
    here = (level + 1)[:, None] * C + channel[None, :]
    inside = (level < L)[:, None] & (channel < C)[None, :]
    if ADDS:
        base += (stream * KEPT + now % KEPT) * (L + 2) * C
        total += tl.load(base + here, inside, other=0.0).to(tl.float32)
    else:
        total = gelu(total)
    out += (stream * KEPT + now % KEPT) * (L + 2) * C
    tl.store(out + here, total.to(out.dtype.element_ty), inside)


@triton.jit
def make_token(
    ring,
    count,
    pool,
    pool_bias,
    weight,
    bias,
    x,
    L: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    EACH: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write ROWS numbers of the token; EACH: how many of its inputs a level gives."""
    let_next_start(OVERLAPS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stream = tl.program_id(1)
    level, each, channel = up_to(L), up_to(EACH), up_to(C)
    at = row[:, None, None] * (L * EACH) + level[None, :, None] * EACH + each[None, None, :]
    inside = (row < D)[:, None, None] & (level < L)[None, :, None] & (each < EACH)[None, None, :]
    weights = tl.load(weight + at, inside, other=0.0)
    place = stream * KEPT + (tl.load(count) + 1) % KEPT
    pools = tl.load(
        pool + each[None, :] * C + channel[:, None],
        (each < EACH)[None, :] & (channel < C)[:, None],
        other=0.0,
    )
    pool_bias, bias = vector(pool_bias, each, EACH), vector(bias, row, D)
    await_previous(OVERLAPS)
    seen = tile(ring + (place * (L + 2) + 1) * C, level, L, channel, C, C)
    pooled = tl.dot(seen, pools, input_precision="ieee") + pool_bias[None, :]
    total = tl.sum(tl.sum(weights.to(tl.float32) * pooled[None, :, :], 2), 1)
    tl.store(x + stream * D + row, total + bias, row < D)


@triton.jit
def embed_state(
    prices,
    sizes,
    count,
    seen,
    size_sums,
    double_mids,
    angle,
    step,
    full_turn,
    rotation,
    weight,
    bias,
    x,
    T: tl.constexpr,
    L: tl.constexpr,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    INPUTS: tl.constexpr,
    HAS_FILL: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write ROWS numbers of the token of an encoder without a stem, and keep the new state."""
    let_next_start(OVERLAPS)
    block, stream = tl.program_id(0), tl.program_id(1)
    row = block * ROWS + tl.arange(0, ROWS)
    level = up_to(L)
    prices += stream * L
    place, held = read_clock(count, seen, stream, T)
    own, centre = mean_log_size(sizes, size_sums, stream, place, held, T, L)
    double_mid = double_mid_of(prices, L)
    double_mids += stream * T
    # Prices and sizes stand in turn; then come zeros for the mask, the fill, and the mid's moves.
    of_price = tile(weight, row, D, 2 * level, 2 * L, INPUTS).to(tl.float32)
    of_size = tile(weight + 1, row, D, 2 * level, 2 * L, INPUTS).to(tl.float32)
    moves: tl.constexpr = 6 * L if HAS_FILL else 4 * L
    if HAS_FILL:
        of_price += tile(weight + 4 * L, row, D, 2 * level, 2 * L, INPUTS).to(tl.float32)
        of_size += tile(weight + 4 * L + 1, row, D, 2 * level, 2 * L, INPUTS).to(tl.float32)
    price = price_value(tl.load(prices + level, level < L, other=0), double_mid)
    size = (log_size(sizes + stream * L, level, level < L) - centre) / 2.0
    total = vector(bias, row, D) + times(of_price, price) + times(of_size, size)
    weight += moves + row * INPUTS
    last_move = move(double_mids, place, held, double_mid, 1, T)
    short_move = move(double_mids, place, held, double_mid, 8, T)
    long_move = move(double_mids, place, held, double_mid, 64, T)
    total += tl.load(weight, row < D, other=0.0).to(tl.float32) * last_move
    total += tl.load(weight + 1, row < D, other=0.0).to(tl.float32) * short_move
    total += tl.load(weight + 2, row < D, other=0.0).to(tl.float32) * long_move
    tl.store(x + stream * D + row, total, row < D)
    if block == 0:
        tl.store(size_sums + stream * T + place, own)
        tl.store(double_mids + place, double_mid)
    if block + stream == 0:
        write_rotation(angle, step, full_turn, rotation, PAIRS)
