"""Ladder carry: what a lookup knows of hidden values, since an order book moves by price and not by
level.

Axes: B window, T state, L level, F field; `mask` is bool (B, T, L, F), True where hidden. No hidden
value is read.

- A hidden price: where two known prices of a state enclose exactly as many prices of a *ladder* as
  levels are hidden between them, those are the levels' prices. The ladders, each tried for what
  those before it left: the prices of the states next to it; of the two states on either side; of
  each level's nearest known ones in time; and with what was found so far, once more of the states
  next to it and of each level. Else: linear in time of the distance from the mid, held between the
  nearest known prices of the state.
- A hidden size at a known or found price: linear in time between the nearest states before and
  after that show a size at this price; one side alone is carried. Else: linear in time at the same
  level.

All windows at once and in fixed shapes (sorts and scans, whole ticks): it runs on a GPU inside a
CUDA graph, can be traced, and finds the same on every device.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.model.normalisation import first_known_price, interpolate_time, nearest_known, state_mids

NEVER = 2**30  # ticks; stands for a price that is not known


@dataclass
class Ladder:
    """What was found in windows, with every hidden price filled."""

    price: (
        Tensor  # float32 (B, T, L), ticks above the window's anchor (as lob.model.normalisation's)
    )
    price_known: Tensor  # bool (B, T, L): visible or found
    size_visible: Tensor  # bool (B, T, L)
    carried: Tensor  # bool (B, T, L): this price shows a size in another state
    # int64 (B, T, L): place t * L + l of the last size at this price, or of the next if there is
    # none
    before: Tensor
    after: Tensor  # int64 (B, T, L): place of the next one, or of the last if there is none
    share: Tensor  # float32 (B, T, L): of the time from `before` to `after`

    @property
    def size_known(self) -> Tensor:
        """bool (B, T, L): visible or found."""
        return self.size_visible | self.carried

    def neighbours(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return `values` (B, T, L), sizes or a function of them, at `before` and at `after`."""
        flat = values.flatten(1)
        left, right = (
            flat.gather(1, at.flatten(1)).view_as(values) for at in (self.before, self.after)
        )
        return left, right

    def fill_sizes(self, values: Tensor, otherwise: Tensor) -> Tensor:
        """Return `values` (B, T, L), sizes or a function of them, with the hidden ones filled.

        otherwise: `linear_time` of the values, for sizes at prices that no other state shows.
        """
        left, right = self.neighbours(values)
        filled = torch.where(self.carried, left + (right - left) * self.share, otherwise)
        return torch.where(self.size_visible, values, filled)


def find_ladder(price_ticks: Tensor, mask: Tensor | None) -> Ladder:
    """Look up what is hidden in windows, price_ticks int (B, T, L); nothing is where `mask` is
    None.
    """
    if mask is None:
        price = (price_ticks - price_ticks[:, :1, :1]).to(torch.int32)
        visible = torch.ones_like(price, dtype=torch.bool)
        return Ladder(price.float(), visible, visible, *same_price(price, visible))
    visible_price, visible_size = ~mask[..., 0], ~mask[..., 1]
    anchor = first_known_price(price_ticks.to(torch.int64), visible_price)
    offset = price_ticks - anchor[:, :, anchor.shape[2] // 2].unsqueeze(2)
    offset = torch.where(visible_price, offset, 0).clamp(-NEVER, NEVER)  # clamped: room for int32
    price = torch.where(visible_price, offset, NEVER).to(torch.int32)
    for reach in (1, 2, None, 1, None):
        price = enclosed_prices(price, next_states(price, reach) if reach else next_known(price))
    known = price < NEVER
    carried, before, after, share = same_price(price, known & visible_size)
    mid = state_mids(offset.float(), visible_price)
    fallback = linear_time(offset.float() - mid, visible_price) + mid
    filled = torch.where(known, price.float(), hold_between(fallback, price))
    return Ladder(filled, known, visible_size, carried, before, after, share)


def linear_time(values: Tensor, known: Tensor) -> Tensor:
    """Fill (B, T, L, ...) linearly in time; a level that is never known linearly across the levels
    of each state.
    """
    never = ~known.any(dim=1, keepdim=True)
    across = interpolate_time(
        torch.where(known, values, 0).transpose(1, 2), known.transpose(1, 2)
    ).transpose(1, 2)
    reached = known.any(dim=2, keepdim=True)
    return interpolate_time(torch.where(known, values, across), known | (never & reached))


def next_states(price: Tensor, reach: int) -> Tensor:
    """The prices of `reach` states before and after each, (B, T, 2 * reach * L)."""
    shifts = range(1, reach + 1)
    before = [F.pad(price[:, :-d], (0, 0, d, 0), value=NEVER) for d in shifts]
    return torch.cat(
        before + [F.pad(price[:, d:], (0, 0, 0, d), value=NEVER) for d in shifts], dim=2
    )


def next_known(price: Tensor) -> Tensor:
    """Each level's known prices at or before and at or after each state, (B, T, 2 L)."""
    before, after = nearest_known(price < NEVER)
    last = torch.arange(price.shape[1], device=price.device)[-1]  # NEVER, where none is at or after
    return torch.cat(
        [price.gather(1, place) for place in (before.clamp(min=0), torch.minimum(after, last))],
        dim=2,
    )


def enclosed_prices(price: Tensor, ladder: Tensor) -> Tensor:
    """Fill NEVER in `price` (B, T, L) where known prices enclose exactly as many of `ladder` (B, T,
    M) as it lacks.
    """
    levels = price.shape[2]
    known = price < NEVER
    steps = torch.sort(torch.cat([price, ladder], dim=2), dim=2)[0]
    rank = torch.cumsum(F.pad(steps[..., 1:] != steps[..., :-1], (1, 0)).to(torch.int64), dim=2)
    distinct = torch.full_like(steps, NEVER).scatter(2, rank, steps)
    own_rank = torch.searchsorted(distinct, price)
    level = torch.arange(levels, device=price.device)
    below, above = nearest_known(known, 2)
    rank_below = own_rank.gather(2, below.clamp(min=0))
    rank_above = own_rank.gather(2, torch.where(above < levels, above, 0))
    fits = ~known & (below >= 0) & (above < levels) & (rank_above - rank_below == above - below)
    wanted = (rank_below + level - below).clamp(0, steps.shape[2] - 1)
    return torch.where(fits, distinct.gather(2, wanted), price)


def hold_between(x: Tensor, price: Tensor) -> Tensor:
    """Keep `x` (B, T, L) a tick above the next known price of a lower level and a tick below that
    of a higher one.
    """
    levels = price.shape[2]
    below, above = nearest_known(price < NEVER, 2)
    low = torch.where(below >= 0, price.gather(2, below.clamp(min=0)), -NEVER).float() + 1
    high = (
        torch.where(
            above < levels, price.gather(2, torch.where(above < levels, above, 0)), NEVER
        ).float()
        - 1
    )
    return torch.minimum(torch.maximum(x, low), high)


def same_price(price: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the nearest entries of `source`, bool (B, T, L), at each entry's price in the states
    before and after it.

    Return whether there is any; their places t * L + l (if one is missing, that of the other; if
    both are, the entry's own); and the share of the time between them that lies before the entry.
    """
    batch, steps, levels = price.shape
    count = steps * levels
    # by price; those of one price by time
    ordered, place = torch.sort(price.flatten(1), dim=1, stable=True)
    before, after = nearest_known(source.flatten(1).gather(1, place))
    before = F.pad(before[:, :-1], (1, 0), value=-1)
    after = F.pad(after[:, 1:], (0, 1), value=count)
    own = torch.arange(count, device=price.device).expand_as(place)
    has_before, has_after = before >= 0, after < count
    before, after = torch.where(has_before, before, own), torch.where(has_after, after, own)
    has_before = has_before & (ordered.gather(1, before) == ordered)
    has_after = has_after & (ordered.gather(1, after) == ordered)
    left = place.gather(1, torch.where(has_before, before, torch.where(has_after, after, own)))
    right = place.gather(1, torch.where(has_after, after, torch.where(has_before, before, own)))
    time, begin, end = (torch.div(x, levels, rounding_mode="floor") for x in (place, left, right))
    share = (time - begin).float() / (end - begin).clamp(min=1).float()

    def in_place(x: Tensor) -> Tensor:
        return torch.empty_like(x).scatter(1, place, x).view(batch, steps, levels)

    return in_place(has_before | has_after), in_place(left), in_place(right), in_place(share)
