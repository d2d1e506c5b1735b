"""Which values of a window are hidden: six masks, each a pure function of one key per window.

Axes: B window, T state, L level, F field (0 price, 1 size); a mask is bool (B, T, L, F), True where
hidden. `share` is the hidden share of all values, met in expectation.

- entry:  each value by itself, with probability `share`.
- level:  `share` of the levels, in all states, prices and sizes.
- span:   `share` of the time, in *spans* of 16 states that begin at multiples of 16 (at T = 256 and
  a share of 0.25 four of 16), all levels.
- span64: one span of `share` of the time that begins anywhere (64 states at T = 256 and 0.25), all
  levels.
- patch:  `share` of the *patches*, a grid of 16 states x 8 levels, prices and sizes.
- tail:   the last `share` of the states, all levels: nothing after them is visible.
- mix:    one of the above for each window: 7 of 16 windows get patch, 5 span, 3 tail, 1 entry.

What is hidden as a whole (a level, a span, a patch) is called a cell in this module. If `share`
does not give a whole number of them, it is rounded up or down at random.

Keys come from `window_keys(seed, epoch, samples)`, so a window's mask depends on nothing else: not
on the rank, the batch or the device. The random bits are splitmix64 (Steele, Lea, Flood, 2014) of
the key and the number of a cell.
"""

import torch
from torch import Tensor

MASKS = ("entry", "level", "span", "span64", "patch", "tail")
MODES = (*MASKS, "mix")
# Under 'mix', the share of windows that get this mask or one further right; the rest get entry.
MIX = {"tail": 0.9375, "span": 0.75, "patch": 0.4375}
SPAN_STATES, PATCH_STATES, PATCH_LEVELS = 16, 16, 8


def scramble(x: Tensor) -> Tensor:
    """Return splitmix64's output function of each int64, with arithmetic that wraps around.

    The constants are the published ones as signed numbers; a mask after >> clears the sign's bits.
    """
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def window_keys(seed: int, epoch: int, samples: Tensor) -> Tensor:
    """Return a key for each sample number, int64 (B,), different for every seed and epoch."""
    base = scramble(scramble(torch.tensor(seed, dtype=torch.int64, device=samples.device)) ^ epoch)
    return scramble(base ^ scramble(samples.to(torch.int64)))


def uniform(keys: Tensor, count: int) -> Tensor:
    """Return random numbers in [0, 1) for cells 0 to count - 1 of each key, float32 (B, count)."""
    cells = torch.arange(count, device=keys.device, dtype=torch.int64)
    return draw(keys[:, None], cells[None, :])


def draw(keys: Tensor, cells: Tensor) -> Tensor:
    """Return random numbers in [0, 1), float32, that are fixed by key and cell.

    keys and cells: int64, of shapes that broadcast.
    """
    bits = scramble(keys ^ scramble(cells))
    return ((bits >> 40) & 0xFFFFFF).float() * (1.0 / 16777216.0)  # 24 bits, all that float32 holds


def choose_cells(keys: Tensor, count: int, share: float) -> Tensor:
    """Choose `share * count` cells of each window, rounded at random; return bool (B, count)."""
    draws = uniform(keys, count + 1)
    wanted = torch.floor(share * count + draws[:, count:])
    rank = draws[:, :count].argsort(dim=1).argsort(dim=1)
    return rank < wanted


def trained_on(mode: str) -> set[str]:
    """Return the masks that windows get in training with `mode`."""
    return {"entry", *MIX} if mode == "mix" else {mode}


def make_mask(keys: Tensor, states: int, levels: int, share: float, mode: str) -> Tensor:
    """Return the mask bool (B, states, levels, 2) of `mode` for each key, int64 (B,)."""
    batch = keys.shape[0]
    shape = (batch, states, levels, 2)
    if mode == "entry":
        return (uniform(keys, states * levels * 2) < share).view(shape)
    if mode == "level":
        return choose_cells(keys, levels, share)[:, None, :, None].expand(shape)
    if mode == "patch":
        rows, columns = -(-states // PATCH_STATES), -(-levels // PATCH_LEVELS)
        cells = choose_cells(keys, rows * columns, share).view(batch, rows, columns)
        cells = cells.repeat_interleave(PATCH_STATES, 1).repeat_interleave(PATCH_LEVELS, 2)
        return cells[:, :states, :levels, None].expand(shape)
    if mode == "mix":
        choice = uniform(scramble(keys), 1).view(batch, 1, 1, 1)
        mask = make_mask(keys, states, levels, share, "entry")
        for other, upper in MIX.items():
            mask = torch.where(choice < upper, make_mask(keys, states, levels, share, other), mask)
        return mask
    time = torch.arange(states, device=keys.device)[None, :]
    if mode == "span":
        spans = choose_cells(keys, -(-states // SPAN_STATES), share)
        hidden = spans.repeat_interleave(SPAN_STATES, 1)[:, :states]
    else:
        draws = uniform(keys, 2)
        length = torch.floor(share * states + draws[:, :1])
        begin = states - length
        if mode == "span64":
            begin = torch.floor(draws[:, 1:] * (begin + 1))
        hidden = (time >= begin) & (time < begin + length)
    return hidden[:, :, None, None].expand(shape)


def name_masks(mask: Tensor, keys: Tensor, share: float, mode: str) -> Tensor:
    """Return which of MASKS each window got with `mode`, int64 (B,); len(MASKS) for none of them.

    mask: bool (B, T, L, F), made with `keys`. It is compared with what `make_mask` makes, because
    `mix` draws a mask for each window, and a user's own function may hide anything. If two masks
    hide the same values, as a span at the end of a short window and a tail do, the window gets the
    name that comes later in MASKS.
    """
    _, states, levels, _ = mask.shape
    found = torch.full_like(keys, len(MASKS))
    for name in sorted(trained_on(mode), key=MASKS.index):
        is_this = (make_mask(keys, states, levels, share, name) == mask).flatten(1).all(1)
        found = torch.where(is_this, MASKS.index(name), found)
    return found
