"""Untrained methods for hidden values, in the columns in which all methods are scored."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lob.model.ladder import find_ladder
from lob.model.normalisation import fit, interpolate_time, nearest_known, transform

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


def fill_untrained(hidden: Hidden) -> tuple[dict[str, Tensor], Tensor]:
    """Return each method of UNTRAINED as float32 (B, T, L, K), and where the ladder found values, bool (B, T, L, K).

    A level that is never visible is filled linearly across levels first, a state without a visible level linearly in
    time, so that no method is left without an answer. `ladder`: see lob/model/ladder.py.
    """
    known = hidden.known
    values = torch.where(known, hidden.values, 0)
    across = interpolate_time(values.transpose(1, 2), known.transpose(1, 2)).transpose(1, 2)
    never, reached = ~known.any(dim=1, keepdim=True), known.any(dim=2, keepdim=True)  # of a level; of a state
    in_time = interpolate_time(torch.where(known, values, across), known | (reached & never))
    seen = known | never
    columns = torch.where(known, values, in_time)
    mean = torch.where(seen, columns, 0).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    last = nearest_known(seen[..., :2])[0].clamp(min=0).repeat(1, 1, 1, 2)  # before the first one stands its value
    ladder = find_ladder(hidden.price_ticks, hidden.mask)
    log_size, minmax_size = (ladder.fill_sizes(hidden.values[..., k], in_time[..., k]) for k in (1, 3))
    filled = {
        "level_mean": torch.where(never, in_time, mean),
        "last_observation": torch.gather(columns, 1, last),
        "linear_time": in_time,
        "linear_levels": torch.where(reached, across, in_time),
        "ladder": torch.stack([ladder.price, log_size, ladder.price, minmax_size], dim=3),
    }
    found = torch.stack([ladder.price_known, ladder.size_known] * 2, dim=3)
    return {name: torch.where(known, values, rescale_price(method, hidden)) for name, method in filled.items()}, found


def rescale_price(columns: Tensor, hidden: Hidden) -> Tensor:
    """Put prices in ticks into the min-max column too: that scale is a level's own, so levels are joined in ticks."""
    price_ticks, sizes = columns[..., 0].double() + hidden.anchor_ticks, torch.ones_like(columns[..., 0])
    price = transform(price_ticks, sizes, hidden.minmax, "minmax")[..., :1]
    return torch.cat([columns[..., :2], price, columns[..., 3:]], dim=3)
