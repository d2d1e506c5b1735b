"""Untrained methods that fill hidden values, and the form in which every method's answer is scored.

A fill is a method's answer: a number for each hidden value of a window. It has the columns
`COLUMNS`: a price as ticks from a visible price of its window (the anchor), and a size as its
natural logarithm. No method reads a hidden value.

Axes: B window, T state, L level, F field (price, size), K column (one for each field).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lob.model.ladder import find_ladder, linear_time
from lob.model.normalisation import fit, interpolate_time, nearest_known

COLUMNS = ("price_ticks", "log_size")
UNTRAINED = ("level_mean", "last_observation", "linear_time", "linear_levels", "ladder")


@dataclass
class Hidden:
    """A batch of windows with hidden values, as methods and scores need them."""

    price_ticks: Tensor  # int64 (B, T, L)
    sizes: Tensor  # float32 (B, T, L)
    mask: Tensor  # bool (B, T, L, F), True where hidden
    anchor_ticks: Tensor  # int64 (B, 1, 1), a visible price of the window
    values: Tensor  # float32 (B, T, L, K), the true columns
    known: Tensor  # bool (B, T, L, K), True where visible
    times_ns: Tensor | None  # int64 (B, T), of the states, which are never hidden


def hide(
    price_ticks: Tensor, sizes: Tensor, mask: Tensor, times_ns: Tensor | None = None
) -> Hidden:
    """Return windows, int and float (B, T, L), and their mask, bool (B, T, L, F), as `Hidden`."""
    price_ticks, sizes = price_ticks.to(torch.int64), sizes.float()
    anchor = fit(price_ticks, sizes, mask, "book")["anchor_ticks"]
    columns = to_columns(price_ticks, sizes, anchor)
    return Hidden(price_ticks, sizes, mask, anchor, columns, ~mask, times_ns)


def to_columns(price_ticks: Tensor, sizes: Tensor, anchor_ticks: Tensor) -> Tensor:
    """Return columns, float32 (B, T, L, K), of prices in ticks, whole or not, and of sizes."""
    # Subtracted before the cast: float32 holds no large tick count exactly.
    offset = (price_ticks - anchor_ticks).float()
    return torch.stack([offset, torch.log(sizes.clamp(min=1e-30))], dim=3)


def fill_untrained(hidden: Hidden) -> tuple[dict[str, Tensor], Tensor]:
    """Return each method's columns, float32 (B, T, L, K), and where the ladder found values, bool.

    A ladder is a column of prices with their sizes that another state shows; the method `ladder`
    looks hidden values up in it by price (lob/model/ladder.py). So that every method has an answer,
    a level that no state shows is first filled linearly across levels, and a state that shows no
    level linearly in time.
    """
    known = hidden.known
    values = torch.where(known, hidden.values, 0)
    across = interpolate_time(values.transpose(1, 2), known.transpose(1, 2)).transpose(1, 2)
    never = ~known.any(dim=1, keepdim=True)  # levels that no state of the window shows
    reached = known.any(dim=2, keepdim=True)  # states that show a level
    in_time = linear_time(values, known)
    seen = known | never
    columns = torch.where(known, values, in_time)
    mean = torch.where(seen, columns, 0).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    # Before the first visible value there is no last one. There the line in time is that value.
    last = nearest_known(seen)[0].clamp(min=0)
    ladder = find_ladder(hidden.price_ticks, hidden.mask)
    size = ladder.fill_sizes(hidden.values[..., 1], in_time[..., 1])
    filled = {
        "level_mean": torch.where(never, in_time, mean),
        "last_observation": torch.gather(columns, 1, last),
        "linear_time": in_time,
        "linear_levels": torch.where(reached, across, in_time),
        "ladder": torch.stack([ladder.price, size], dim=3),
    }
    found = torch.stack([ladder.price_known, ladder.size_known], dim=3)
    return {name: torch.where(known, values, method) for name, method in filled.items()}, found
