"""An update of a stream (lob/model/streaming.py) as Triton kernels; that module defines it.

One state is so little work that a GPU spends its time between kernels. So there are few of them:

    search            some kept states -> how long ago each of the new state's prices was last shown
    make_cells        the new state -> its cells, which the first convolution keeps
    convolve          a convolution of the stem, with GELU or the sum with the cells before it
    make_token        cells -> token; or `embed_state`, without a stem: the new state -> token
    attend_head       a head of a layer, from the norm to its share of the projection
    feed_forward      some hidden units of a layer, from the norm to their share of the sum
    finish            the last norm, and the clock

Each layer is two kernels. A program writes its share of a layer's sum, and whoever reads the sum
adds the shares up, in their order: results don't depend on which program was first.

On GPUs of compute capability 9 a kernel may start before the one before it has ended
(`await_previous`). Until then it loads what no kernel of this update writes: weights, what was kept
of earlier states, and the clock, which `finish` alone moves.

All that is kept is in the buffers of `BookStream`, so its own `forward` can go on from there.
Weights may be in any type; products are summed in float32.

Axes: B stream, T state that is kept, L level, C channels per cell, D width, H heads.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lob.model.encoder import MOVES, STEM_DILATIONS
from lob.model.kernels import DEEPEST, LONGEST
from lob.model.ladder_triton import power_of_two
from lob.model.stream_cells_triton import (
    await_previous,
    convolve,
    embed_state,
    gelu,
    let_next_start,
    make_cells,
    make_token,
    next_angle,
    read_clock,
    search,
    tile,
    times,
    up_to,
    vector,
)

assert MOVES == (1, 8, 64)  # as `make_cells` and `embed_state` have them
OVERLAP = True  # False: no kernel starts before the one before it has ended, to compare with
# What there is room for; RING: bytes of a head's keys, or of its values.
WIDTH, HEAD_WIDTH, RING = 1024, 64, 2**17
STREAMS = 32  # beside each other: each reads all weights anew
EARLY = 2**17  # bytes of weights, keys and values that a program can hold before it needs them


@triton.jit
def add_up(x, shares, bias, stream, column, D: tl.constexpr, SHARES: tl.constexpr):
    """Return a state's vector x plus the shares and the bias of the part of a layer behind it."""
    total = vector(x + stream * D, column, D) + bias
    for share in tl.static_range(SHARES):
        total += vector(shares + (stream * SHARES + share) * D, column, D)
    return total


@triton.jit
def normalise(x, weight, bias, column, D: tl.constexpr, EPS: tl.constexpr):
    centred = tl.where(column < D, x - tl.sum(x, 0) / D, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / D + EPS)
    return centred * scale * weight + bias


@triton.jit
def halves(base, HEAD: tl.constexpr):
    pair, half = up_to(HEAD // 2), HEAD // 2
    return vector(base, pair, half), vector(base + half, pair, half)


@triton.jit
def halves_of_rows(base, D: tl.constexpr, HEAD: tl.constexpr):
    pair, half, column = up_to(HEAD // 2), HEAD // 2, up_to(D)
    second = tile(base + half * D, pair, half, column, D, D)
    return tile(base, pair, half, column, D, D), second


@triton.jit
def load_kept(keys, values, T: tl.constexpr, HEAD: tl.constexpr):
    """Load both halves of a head's keys, (T, HEAD / 2), and its values, (T, HEAD)."""
    state, pair, half = up_to(T), up_to(HEAD // 2), HEAD // 2
    first_keys = tile(keys, state, T, pair, half, HEAD)
    second_keys = tile(keys + half, state, T, pair, half, HEAD)
    return first_keys, second_keys, tile(values, state, T, up_to(HEAD), HEAD, HEAD)


@triton.jit
def turn(first, second, cos, sin):
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def attend(score, kept, own, value):
    """Return the mean of the kept values by their scores, and of the new state's by its own.

    At the new state's place the rings still hold the state that leaves.
    """
    largest = tl.maximum(tl.max(score, 0), own)
    weight, of_own = tl.exp(score - largest), tl.exp(own - largest)
    attended = tl.sum(kept.to(tl.float32) * weight[:, None], 0) + of_own * value
    return attended / (tl.sum(weight, 0) + of_own)


@triton.jit
def attend_head(
    x,
    shares,
    shares_bias,
    norm,
    norm_bias,
    qkv,
    qkv_bias,
    proj,
    keys,
    values,
    rotation,
    count,
    seen,
    summed,
    out,
    T: tl.constexpr,
    D: tl.constexpr,
    HEAD: tl.constexpr,
    SHARES: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,
    IS_EARLY: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write a head's share of the projection, and the vector that the layer began with.

    A head's queries and keys come in halves, which are rotated against each other. IS_EARLY: all
    that is read is loaded first, if it fits into the program's registers.
    """
    let_next_start(OVERLAPS)
    head, stream = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(0)
    half: tl.constexpr = HEAD // 2
    column, state = up_to(D), up_to(T)
    pair, number = up_to(half), up_to(HEAD)
    query, query_bias = qkv + head * HEAD * D, qkv_bias + head * HEAD
    keys += (stream * heads + head) * T * HEAD
    values += (stream * heads + head) * T * HEAD
    place, held = read_clock(count, seen, stream, T)
    age = (place + T - state) % T
    if IS_EARLY:
        of_value = tile(query + 2 * D * D, number, HEAD, column, D, D)
        first_keys, second_keys, kept = load_kept(keys, values, T, HEAD)
        projection = tile(proj + head * HEAD, column, D, number, HEAD, D)
    shares_bias = vector(shares_bias, column, D)
    norm, norm_bias = vector(norm, column, D), vector(norm_bias, column, D)
    first, second = halves(query_bias, HEAD)
    first_key, second_key = halves(query_bias + D, HEAD)
    value = vector(query_bias + 2 * D, number, HEAD)
    of_first_query, of_second_query = halves_of_rows(query, D, HEAD)
    of_first_key, of_second_key = halves_of_rows(query + D * D, D, HEAD)
    await_previous(OVERLAPS)
    total = add_up(x, shares, shares_bias, stream, column, D, SHARES)
    cos, sin = halves(rotation, HEAD)
    if head == 0:
        tl.store(summed + stream * D + column, total, column < D)
    y = normalise(total, norm, norm_bias, column, D, EPS)
    first += times(of_first_query, y)
    second += times(of_second_query, y)
    first_key += times(of_first_key, y)
    second_key += times(of_second_key, y)
    if not IS_EARLY:
        of_value = tile(query + 2 * D * D, number, HEAD, column, D, D)
    value += times(of_value, y)
    first, second = turn(first, second, cos, sin)
    first_key, second_key = turn(first_key, second_key, cos, sin)
    if not IS_EARLY:
        first_keys, second_keys, kept = load_kept(keys, values, T, HEAD)
        projection = tile(proj + head * HEAD, column, D, number, HEAD, D)
    score = (times(first_keys, first) + times(second_keys, second)) * SCALE
    own = tl.sum(first * first_key + second * second_key, 0) * SCALE
    earlier = (state < T) & (age > 0) & (age < held)
    attended = attend(tl.where(earlier, score, float("-inf")), kept, own, value)
    share = times(projection, attended)
    tl.store(out + (stream * heads + head) * D + column, share, column < D)
    key_type = keys.dtype.element_ty
    tl.store(keys + place * HEAD + pair, first_key.to(key_type), pair < half)
    tl.store(keys + place * HEAD + half + pair, second_key.to(key_type), pair < half)
    tl.store(values + place * HEAD + number, value.to(key_type), number < HEAD)


@triton.jit
def feed_forward(
    x,
    shares,
    shares_bias,
    norm,
    norm_bias,
    fc1,
    fc1_bias,
    fc2,
    summed,
    out,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    UNITS: tl.constexpr,
    SHARES: tl.constexpr,
    EPS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write the share of UNITS hidden units, and the vector that they began with."""
    let_next_start(OVERLAPS)
    block, stream = tl.program_id(0), tl.program_id(1)
    column, unit = up_to(D), block * UNITS + tl.arange(0, UNITS)
    into = tile(fc1, unit, HIDDEN, column, D, D)
    back = tile(fc2, column, D, unit, HIDDEN, HIDDEN)
    shares_bias = vector(shares_bias, column, D)
    norm, norm_bias = vector(norm, column, D), vector(norm_bias, column, D)
    hidden = vector(fc1_bias, unit, HIDDEN)
    await_previous(OVERLAPS)
    total = add_up(x, shares, shares_bias, stream, column, D, SHARES)
    if block == 0:
        tl.store(summed + stream * D + column, total, column < D)
    y = normalise(total, norm, norm_bias, column, D, EPS)
    # Units behind the last one have no weights: theirs is 0, and so is GELU of it.
    share = times(back, gelu(hidden + times(into, y)))
    tl.store(out + (stream * tl.num_programs(0) + block) * D + column, share, column < D)


@triton.jit
def finish(
    x,
    shares,
    shares_bias,
    norm,
    norm_bias,
    vectors,
    count,
    seen,
    angle,
    step,
    full_turn,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    SHARES: tl.constexpr,
    EPS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write a stream's vector, and move the clock to the state that is done."""
    stream = tl.program_id(0)
    column, pair = up_to(D), up_to(PAIRS)
    shares_bias = vector(shares_bias, column, D)
    norm, norm_bias = vector(norm, column, D), vector(norm_bias, column, D)
    await_previous(OVERLAPS)
    total = add_up(x, shares, shares_bias, stream, column, D, SHARES)
    y = normalise(total, norm, norm_bias, column, D, EPS)
    tl.store(vectors + stream * D + column, y, column < D)
    tl.store(seen + stream, tl.load(seen + stream) + 1)
    if stream == 0:
        tl.store(count, tl.load(count) + 1)
        turned = next_angle(angle, step, full_turn, pair, PAIRS)
        tl.store(angle + pair, turned, pair < PAIRS)


def serves(module: Any) -> bool:
    """Return whether the kernels have room for a `BookStream` and as many streams as it has now."""
    layer = module.layers[0]
    _, heads, states, head = layer.keys.shape
    if hasattr(module.first, "blocks"):
        _, _, _, channels = module.first.blocks[0].conv1.ring.shape
        if not 16 <= channels <= 128 or power_of_two(module.depth) < 16:  # as `tl.dot` takes them
            return False
    if len(module.clock.seen) > STREAMS or heads * head > WIDTH or head > HEAD_WIDTH:
        return False
    if power_of_two(states) * power_of_two(head) * layer.keys.element_size() > RING:
        return False
    return power_of_two(states) <= LONGEST and module.depth <= DEEPEST


class Update:
    """Updates of a `BookStream` by the kernels above, for as many streams as it has now.

    It reads prices, int64 (B, L), and sizes, float32 (B, L), and writes vectors, float32 (B, D).
    All three may lie in pinned main memory, which spares the copies. It can be captured by a CUDA
    graph, which needs it as long as it replays: it owns what lies between the kernels.
    """

    def __init__(self, module: Any):
        self.module, self.kept = module, module.inputs
        self.stem: Any = module.first if hasattr(module.first, "blocks") else None
        clock, layer = module.clock, module.layers[0]
        self.clock, self.angles = (clock.count, clock.seen), (clock.angle, clock.step)
        self.streams, self.pairs = len(clock.seen), len(clock.angle)
        self.states, self.levels = clock.states, module.depth
        self.width, self.hidden = layer.fc1.in_features, layer.fc1.out_features
        self.heads, self.head = layer.heads, self.width // layer.heads
        self.device = clock.count.device
        self.overlaps = OVERLAP and self.device.type == "cuda"
        self.overlaps = self.overlaps and torch.cuda.get_device_capability(self.device)[0] >= 9
        self.full_turn = torch.full_like(clock.angle[:1], clock.full_turn)
        self.rotation = self.empty(2, self.pairs)
        self.x = [self.empty(self.streams, self.width) for _ in range(2)]
        self.of_heads = self.empty(self.streams, self.heads, self.width)
        # With fewer units a program has less to do, but each behind it has more shares to add up.
        self.units = 64 if self.width <= 512 else 32
        self.blocks = triton.cdiv(self.hidden, self.units)
        self.of_units = self.empty(self.streams, self.blocks, self.width)
        # What the first layer adds up: a kernel of its own would take seconds to compile.
        self.nothing = torch.zeros_like(self.of_units)
        self.nothing_too = torch.zeros_like(layer.fc2.bias)
        self.warps = 8 if self.width <= 256 else 16
        if self.stem is not None:
            ring = self.stem.blocks[0].conv1.ring
            self.cells = torch.empty_like(ring)
            self.channels, self.ring_states = ring.shape[3], ring.shape[1]
            self.searched = max(512 // power_of_two(self.levels), 1)
            self.searches = triton.cdiv(self.states, self.searched)
            shape = self.streams, self.searches, self.levels
            self.nearest = torch.empty(shape, dtype=torch.int32, device=self.device)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self.device)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *given: Any, warps: int = 4, early: bool = True
    ) -> None:
        """Launch a kernel; early: it may start before the one before it has ended."""
        how = {"launch_pdl": True} if early and self.overlaps else {}
        kernel[(*grid, self.streams)](*given, self.overlaps, num_warps=warps, **how)

    def __call__(self, price_ticks: Tensor, sizes: Tensor, vectors: Tensor) -> None:
        read = self.read_row if self.stem is None else self.read_cells
        read(price_ticks, sizes)
        norm, shares, bias = self.module.norm, self.nothing, self.nothing_too
        for layer in self.module.layers:
            self.run_layer(layer, shares, bias)
            shares, bias = self.of_units, layer.fc2.bias
        self.launch(
            finish,
            (),
            *(self.x[0], self.of_units, bias, norm.weight, norm.bias, vectors),
            *(*self.clock, *self.angles, self.full_turn),
            *(self.width, self.pairs, self.blocks, norm.eps),
        )

    def run_layer(self, layer: Any, shares: Tensor, bias: Tensor) -> None:
        """Launch a layer's kernels. shares, bias: what is to be added to the vector first."""
        first, second = layer.norm1, layer.norm2
        x, between = self.x
        self.launch(
            attend_head,
            (self.heads,),
            *(x, shares, bias, first.weight, first.bias),
            *(layer.qkv.weight, layer.qkv.bias, layer.proj.weight, layer.keys, layer.values),
            *(self.rotation, *self.clock, between, self.of_heads),
            *(self.states, self.width, self.head, self.blocks, first.eps, self.head**-0.5),
            self.has_room(layer.keys.element_size()),
            warps=self.warps,
        )
        self.launch(
            feed_forward,
            (self.blocks,),
            *(between, self.of_heads, layer.proj.bias, second.weight, second.bias),
            *(layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, x, self.of_units),
            *(self.width, self.hidden, self.units, self.heads, second.eps),
            warps=self.warps,
        )

    def has_room(self, bytes_each: int) -> bool:
        """Return whether a program of `attend_head` can hold all that it reads at once."""
        rows = 4 * power_of_two(self.width) + 2 * power_of_two(self.states)
        return rows * power_of_two(self.head) * bytes_each <= EARLY

    def read_cells(self, price_ticks: Tensor, sizes: Tensor) -> None:
        """Launch what leads from a state to its token through the stem."""
        stem, kept, ring = self.stem, self.kept, self.stem.blocks[0].conv1.ring
        # What comes before it is `finish`, or another's work, which doesn't let it start early.
        self.launch(
            search,
            (self.searches,),
            *(price_ticks, *self.clock, kept.price_ticks),
            *(*self.angles, self.full_turn, self.rotation, self.nearest),
            *(self.states, self.levels, self.searched, self.pairs),
            warps=8,
            early=False,
        )
        self.launch(
            make_cells,
            (triton.cdiv(self.levels, 4),),
            *(price_ticks, sizes, *self.clock, kept.price_ticks, kept.log_sizes, kept.size_sums),
            *(kept.double_mids, self.nearest, stem.mix.weight, stem.mix.bias, stem.level, ring),
            *(self.states, self.levels, self.channels, self.ring_states, self.searches, 4),
        )
        convs = [conv for block in stem.blocks for conv in (block.conv1, block.conv2)]
        outs = [*(conv.ring for conv in convs[1:]), self.cells]
        columns = min(power_of_two(self.channels), 64 // ring.element_size())
        for number, (conv, out) in enumerate(zip(convs, outs, strict=True)):
            block, adds = number // 2, number % 2 == 1
            self.launch(
                convolve,
                (triton.cdiv(self.levels, 16), triton.cdiv(self.channels, columns)),
                *(conv.ring, conv.taps.weight, conv.taps.bias, convs[2 * block].ring, out),
                *(self.clock[0], STEM_DILATIONS[block], self.levels, self.channels),
                *(self.ring_states, adds, 16, columns),
            )
        self.launch(
            make_token,
            (triton.cdiv(self.width, 8),),
            *(self.cells, self.clock[0], stem.pool.weight, stem.pool.bias),
            *(stem.token.weight, stem.token.bias, self.x[0]),
            *(self.levels, self.channels, self.width, stem.pool.out_features),
            *(self.ring_states, 8),
            warps=8,
        )

    def read_row(self, price_ticks: Tensor, sizes: Tensor) -> None:
        """Launch what leads from a state to its token without a stem."""
        kept, embed = self.kept, self.module.first.embed
        self.launch(
            embed_state,
            (triton.cdiv(self.width, 8),),
            *(price_ticks, sizes, *self.clock, kept.size_sums, kept.double_mids),
            *(*self.angles, self.full_turn, self.rotation, embed.weight, embed.bias, self.x[0]),
            *(self.states, self.levels, self.width, self.pairs),
            *(embed.in_features, kept.has_fill, 8),
            early=False,
        )
