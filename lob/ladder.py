"""Ladder carry: what a lookup knows of hidden values, since an order book moves by price and not by level.

Axes: B window, T state, L level, F field; `mask` is bool (B, T, L, F), True where hidden. No hidden value is read.

- A hidden price: where two known prices of a state enclose exactly as many prices of a *ladder* as levels are hidden
  between them, those are the levels' prices. The ladders, each tried for what those before it left: the prices of the
  states next to it; of the two states on either side; of each level's nearest known ones in time; and with what was
  found so far, once more of the states next to it and of each level. Else: linear in time of the distance from the
  mid, held between the nearest known prices of the state.
- A hidden size at a known or found price: linear in time between the nearest states before and after that show a size
  at this price; one side alone is carried. Else: linear in time at the same level.

All windows at once and in fixed shapes (sorts and scans, whole ticks): it runs on a GPU inside a CUDA graph, can be
traced, and finds the same on every device.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.normalisation import first_known_price, interpolate_time, state_mids

NEVER = 2**30  # ticks; stands for a price that is not known


@dataclass
class Ladder:
    """What was found in windows, with every hidden price filled."""

    price: Tensor  # float32 (B, T, L), ticks above the window's anchor (as lob.normalisation's)
    price_known: Tensor  # bool (B, T, L): visible or found
    size_known: Tensor  # bool (B, T, L): visible or found
    before: Tensor  # int64 (B, T, L): place t * L + l of the size at this price before; after, where there is none
    after: Tensor  # int64 (B, T, L)
    share: Tensor  # float32 (B, T, L): of the time from `before` to `after`

    def fill_sizes(self, values: Tensor, otherwise: Tensor) -> Tensor:
        """Sizes in any form, (B, T, L), with the hidden ones filled; `otherwise`: `linear_time` of them."""
        flat = values.flatten(1)
        left, right = (flat.gather(1, at.flatten(1)).view_as(values) for at in (self.before, self.after))
        carried = left + (right - left) * self.share
        return torch.where(self.size_known, carried, otherwise)


def find_ladder(price_ticks: Tensor, mask: Tensor) -> Ladder:
    """Look up what is hidden in windows, price_ticks int (B, T, L)."""
    visible_price, visible_size = ~mask[..., 0], ~mask[..., 1]
    anchor = first_known_price(price_ticks.to(torch.int64), visible_price)
    offset = price_ticks - anchor[:, :, anchor.shape[2] // 2].unsqueeze(2)
    offset = torch.where(visible_price, offset, 0).clamp(-NEVER, NEVER)  # clamped: room for int32
    price = torch.where(visible_price, offset, NEVER).to(torch.int32)
    for reach in (1, 2, None, 1, None):
        price = enclosed_prices(price, next_states(price, reach) if reach else next_known(price))
    known = price < NEVER
    before, after, share, found = same_price(price, known & visible_size)
    mid = state_mids(offset.float(), visible_price)
    fallback = linear_time(offset.float() - mid, visible_price) + mid
    filled = torch.where(known, price.float(), hold_between(fallback, price))
    return Ladder(filled, known, found & known, before, after, share)


def linear_time(values: Tensor, known: Tensor) -> Tensor:
    """Fill (B, T, L, ...) linearly in time; a level that is never known linearly across the levels of each state."""
    never = ~known.any(dim=1, keepdim=True)
    across = interpolate_time(torch.where(known, values, 0).transpose(1, 2), known.transpose(1, 2)).transpose(1, 2)
    reached = known.any(dim=2, keepdim=True)
    return interpolate_time(torch.where(known, values, across), known | (never & reached))


def next_states(price: Tensor, reach: int) -> Tensor:
    """The prices of `reach` states before and after each, (B, T, 2 * reach * L)."""
    shifts = range(1, reach + 1)
    before = [F.pad(price[:, :-d], (0, 0, d, 0), value=NEVER) for d in shifts]
    return torch.cat(before + [F.pad(price[:, d:], (0, 0, 0, d), value=NEVER) for d in shifts], dim=2)


def next_known(price: Tensor) -> Tensor:
    """Each level's known prices at or before and at or after each state, (B, T, 2 L)."""
    steps, known = price.shape[1], price < NEVER
    time = torch.arange(steps, device=price.device).view(1, steps, 1)
    last = torch.cummax(torch.where(known, time, -1), dim=1)[0].clamp(min=0)
    first = torch.cummin(torch.where(known, time, steps).flip([1]), dim=1)[0].flip([1]).clamp(max=steps - 1)
    return torch.cat([price.gather(1, last), price.gather(1, first)], dim=2)


def enclosed_prices(price: Tensor, ladder: Tensor) -> Tensor:
    """Fill NEVER in `price` (B, T, L) where known prices enclose exactly as many of `ladder` (B, T, M) as it lacks."""
    levels = price.shape[2]
    known = price < NEVER
    steps = torch.sort(torch.cat([price, ladder], dim=2), dim=2)[0]
    rank = torch.cumsum(F.pad(steps[..., 1:] != steps[..., :-1], (1, 0)).to(torch.int64), dim=2)
    distinct = torch.full_like(steps, NEVER).scatter(2, rank, steps)
    own_rank = torch.searchsorted(distinct, price)
    level = torch.arange(levels, device=price.device).view(1, 1, levels).expand_as(price)
    below = torch.cummax(torch.where(known, level, -1), dim=2)[0]
    above = torch.cummin(torch.where(known, level, levels).flip([2]), dim=2)[0].flip([2])
    rank_below = own_rank.gather(2, below.clamp(min=0))
    rank_above = own_rank.gather(2, above.clamp(max=levels - 1))
    fits = ~known & (below >= 0) & (above < levels) & (rank_above - rank_below == above - below)
    wanted = (rank_below + level - below).clamp(0, steps.shape[2] - 1)
    return torch.where(fits, distinct.gather(2, wanted), price)


def hold_between(x: Tensor, price: Tensor) -> Tensor:
    """Keep `x` (B, T, L) a tick above the next known price of a lower level and a tick below that of a higher one."""
    known, levels = price < NEVER, price.shape[2]
    level = torch.arange(levels, device=price.device).view(1, 1, levels).expand_as(price)
    below = torch.cummax(torch.where(known, level, -1), dim=2)[0]
    above = torch.cummin(torch.where(known, level, levels).flip([2]), dim=2)[0].flip([2])
    low = torch.where(below >= 0, price.gather(2, below.clamp(min=0)), -NEVER).float() + 1
    high = torch.where(above < levels, price.gather(2, above.clamp(max=levels - 1)), NEVER).float() - 1
    return torch.minimum(torch.maximum(x, low), high)


def same_price(price: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the nearest entries of `source`, bool (B, T, L), at each entry's price, at or before and at or after it.

    Return their places, t * L + l (the other one's where there is none), the share of the time between them that lies
    before the entry, and whether there is any.
    """
    batch, steps, levels = price.shape
    count = steps * levels
    ordered, place = torch.sort(price.flatten(1), dim=1, stable=True)  # by price; those of one price by time
    at = torch.arange(count, device=price.device).view(1, count)
    usable = source.flatten(1).gather(1, place)
    before = torch.cummax(torch.where(usable, at, -1), dim=1)[0]
    after = torch.cummin(torch.where(usable, at, count).flip([1]), dim=1)[0].flip([1])
    has_before = (before >= 0) & (ordered.gather(1, before.clamp(min=0)) == ordered)
    has_after = (after < count) & (ordered.gather(1, after.clamp(max=count - 1)) == ordered)
    before, after = torch.where(has_before, before, after), torch.where(has_after, after, before)
    left, right = (place.gather(1, x.clamp(0, count - 1)) for x in (before, after))
    time, begin, end = (torch.div(x, levels, rounding_mode="floor") for x in (place, left, right))
    share = (time - begin).float() / (end - begin).clamp(min=1).float()
    found = [torch.empty_like(x).scatter(1, place, x).view(batch, steps, levels)
             for x in (left, right, share, has_before | has_after)]  # fmt: skip
    return found[0], found[1], found[2], found[3]
