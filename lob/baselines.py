"""What can be said of hidden values without a network: untrained fills and ridge regression, batched torch.

Axes: B window, T state, L level, K column. A *column* is one of COLUMNS, the four forms in which a value is filled and
scored: a price as ticks from the window's anchor and min-max scaled, a size as logarithm and min-max scaled. Methods
work on `values`, float32 (B, T, L, K), and `known`, bool of that shape; they read no hidden value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lob.ladder import Ladder, find_ladder, linear_time
from lob.normalisation import fit, interpolate_time, transform

COLUMNS = ("price_ticks", "log_size", "minmax_price", "minmax_size")
UNTRAINED = ("level_mean", "last_observation", "linear_time", "linear_levels", "ladder")


@dataclass
class Hidden:
    """A batch of windows with hidden values, in the forms that methods and scores use."""

    price_ticks: Tensor  # int64 (B, T, L)
    sizes: Tensor  # float32 (B, T, L)
    mask: Tensor  # bool (B, T, L, F), True where hidden
    anchor_ticks: Tensor  # int64 (B, 1, 1), a visible price of the window
    minmax: dict[str, Tensor]  # parameters of the scheme 'minmax'
    values: Tensor  # float32 (B, T, L, K), the truth
    known: Tensor  # bool (B, T, L, K)


def hide(price_ticks: Tensor, sizes: Tensor, mask: Tensor) -> Hidden:
    """Put windows, int (B, T, L) and float (B, T, L), and their mask, bool (B, T, L, F), into columns."""
    price_ticks, sizes = price_ticks.to(torch.int64), sizes.float()
    anchor = fit(price_ticks, sizes, mask, "book")["anchor_ticks"]
    minmax = fit(price_ticks, sizes, mask, "minmax")
    values = to_columns(price_ticks, sizes, anchor, minmax)
    return Hidden(price_ticks, sizes, mask, anchor, minmax, values, ~mask.repeat(1, 1, 1, 2))


def to_columns(price_ticks: Tensor, sizes: Tensor, anchor_ticks: Tensor, minmax: dict[str, Tensor]) -> Tensor:
    """Return float32 (B, T, L, K) of prices in ticks (fractions allowed) and sizes (clamped to 1e-30 for the log)."""
    offset = (price_ticks - anchor_ticks).float()
    log_size = torch.log(sizes.clamp(min=1e-30))
    return torch.cat([torch.stack([offset, log_size], dim=3), transform(price_ticks, sizes, minmax, "minmax")], dim=3)


def fill_untrained(hidden: Hidden) -> dict[str, Tensor]:
    """Return each method of UNTRAINED as float32 (B, T, L, K); only what is hidden differs from the truth.

    A level that is never visible is filled linearly across levels first, a state without a visible level linearly in
    time, so that no method is left without an answer. `ladder`: see lob/ladder.py.
    """
    known = hidden.known
    values = torch.where(known, hidden.values, 0)
    across, reached = across_levels(values, known)
    in_time = linear_time(values, known)
    seen = known | never_known(known)
    columns = torch.where(known, values, in_time)
    mean = torch.where(seen, columns, torch.zeros_like(values)).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    filled = {
        "level_mean": torch.where(never_known(known), in_time, mean.expand_as(values)),
        "last_observation": carry_last(columns, seen),
        "linear_time": in_time,
        "linear_levels": torch.where(reached, across, in_time),
        "ladder": fill_ladder(hidden, find_ladder(hidden.price_ticks, hidden.mask)),
    }
    return {name: torch.where(known, values, method) for name, method in filled.items()}


def fill_ladder(hidden: Hidden, ladder: Ladder) -> Tensor:
    """What the ladder fills, in columns (B, T, L, K)."""
    sizes = torch.where(hidden.mask[..., 1], 1.0, hidden.sizes)
    columns = to_columns(ladder.price.double() + hidden.anchor_ticks, sizes, hidden.anchor_ticks, hidden.minmax)
    prices, known = columns[..., 0::2], torch.where(hidden.known, columns, 0)
    log_size, minmax_size = (ladder.fill_sizes(known[..., column]) for column in (1, 3))
    return torch.stack([prices[..., 0], log_size, prices[..., 1], minmax_size], dim=3)


def across_levels(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Fill linearly across the levels of each state (nearest beyond the ends); and where a state has any known."""
    filled = interpolate_time(values.transpose(1, 2), known.transpose(1, 2)).transpose(1, 2)
    return filled, known.any(dim=2, keepdim=True).expand_as(known)


def never_known(known: Tensor) -> Tensor:
    """Whether a level is hidden in all states, expanded to (B, T, L, K)."""
    return ~known.any(dim=1, keepdim=True).expand_as(known)


def carry_last(values: Tensor, known: Tensor) -> Tensor:
    """The last known value at or before each state; before the first one, the first one."""
    steps = values.shape[1]
    time = torch.arange(steps, device=values.device).view(1, steps, 1, 1).expand_as(values)
    before = torch.cummax(torch.where(known, time, torch.full_like(time, -1)), dim=1)[0]
    first = known.to(torch.int8).argmax(dim=1, keepdim=True)
    return torch.gather(values, 1, torch.where(before >= 0, before, first))
