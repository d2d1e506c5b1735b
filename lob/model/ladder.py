"""The ladder: hidden values looked up in other states, where the same price is at another level.

When the mid moves, resting orders stay at their prices and change their levels. So what is hidden
in one state is often visible in its neighbours. A *ladder* is the set of prices of some states near
the one that lacks prices. No hidden value is read.

A hidden price. If two known prices of a state enclose exactly as many prices of a ladder as levels
are hidden between them, those are the levels' prices. The following ladders are tried in turn, each
for the prices that are still missing; prices found count as known for the next:

1. the prices of the state before and the state after;
2. the prices of the two states before and the two after;
3. at each level, the nearest known price at or before the state and at or after it;
4. and 5. the first and the third once more.

A price that none of them finds has the distance from the mid that is linear in time at its level,
held between the nearest known prices of its state.

A hidden size at a known or found price. It is linear in time between the nearest states before and
after that show a size at this price; if only one side has such a state, its size is taken. If there
is none, the size is linear in time at its level.

All windows are treated at once and in fixed shapes, by sorts and scans of whole ticks. So the
search can be part of a CUDA graph, can be traced, and finds the same on every device. On NVIDIA
GPUs lob/model/ladder_triton.py finds the same faster.

Axes: B window, T state, L level, F field (0 price, 1 size); `mask` is bool (B, T, L, F), True where
hidden. A *place* is the index t * L + l of an entry within its window.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.model.kernels import kernels_for
from lob.model.normalisation import first_known_price, interpolate_time, nearest_known, state_mids

NEVER = 2**30  # ticks; stands for a price that is not known


@dataclass
class Ladder:
    """What was found in windows, with every hidden price filled; each field is (B, T, L)."""

    price: Tensor  # float32, in ticks above the window's anchor (lob/model/normalisation.py)
    price_known: Tensor  # bool: visible or found
    size_visible: Tensor  # bool
    carried: Tensor  # bool: another state shows a size at this price
    before: Tensor  # int64: place of the last size at this price, or of the next if there is none
    after: Tensor  # int64: place of the next size at this price, or of the last if there is none
    share: Tensor  # float32: how far the entry is on the way in time from `before` to `after`

    @property
    def size_known(self) -> Tensor:
        """Where a size is visible or found, bool (B, T, L)."""
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

        otherwise: `linear_time` of the values, for prices at which no other state shows a size.
        """
        left, right = self.neighbours(values)
        filled = torch.where(self.carried, left + (right - left) * self.share, otherwise)
        return torch.where(self.size_visible, values, filled)


def find_ladder(price_ticks: Tensor, mask: Tensor | None) -> Ladder:
    """Look up what is hidden in windows, price_ticks int (B, T, L); without a mask nothing is."""
    if mask is None:
        price = (price_ticks - price_ticks[:, :1, :1]).to(torch.int32)
        visible = torch.ones_like(price, dtype=torch.bool)
        return Ladder(price.float(), visible, visible, *same_price(price, visible))
    if kernels := kernels_for(price_ticks):
        return kernels.find_ladder(price_ticks, mask)
    visible_price, visible_size = ~mask[..., 0], ~mask[..., 1]
    anchor = first_known_price(price_ticks.to(torch.int64), visible_price)
    offset = price_ticks - anchor[:, :, anchor.shape[2] // 2].unsqueeze(2)
    offset = torch.where(visible_price, offset, 0).clamp(-NEVER, NEVER)  # clamped: room for int32
    price = torch.where(visible_price, offset, NEVER).to(torch.int32)
    for reach in (1, 2, None, 1, None):  # states on either side; None: each level's nearest known
        price = enclosed_prices(price, next_states(price, reach) if reach else next_known(price))
    known = price < NEVER
    carried, before, after, share = same_price(price, known & visible_size)
    mid = state_mids(offset.float(), visible_price)
    fallback = linear_time(offset.float() - mid, visible_price) + mid
    filled = torch.where(known, price.float(), hold_between(fallback, price))
    return Ladder(filled, known, visible_size, carried, before, after, share)


def linear_time(values: Tensor, known: Tensor) -> Tensor:
    """Fill `values` (B, T, L, ...) where not `known`, linearly in time at each level.

    A level that is known in no state is filled linearly across the levels of each state instead.
    """
    never = ~known.any(dim=1, keepdim=True)
    by_level = torch.where(known, values, 0).transpose(1, 2)
    across = interpolate_time(by_level, known.transpose(1, 2)).transpose(1, 2)
    reached = known.any(dim=2, keepdim=True)
    return interpolate_time(torch.where(known, values, across), known | (never & reached))


def next_states(price: Tensor, reach: int) -> Tensor:
    """Return the prices of the `reach` states before and after each, (B, T, 2 * reach * L)."""
    shifts = range(1, reach + 1)
    before = [F.pad(price[:, :-d], (0, 0, d, 0), value=NEVER) for d in shifts]
    after = [F.pad(price[:, d:], (0, 0, 0, d), value=NEVER) for d in shifts]
    return torch.cat(before + after, dim=2)


def next_known(price: Tensor) -> Tensor:
    """Return the nearest known prices of a level up to each state and from it on, (B, T, 2 L).

    Where there is none this gives the price of the first or last state, which is then NEVER.
    """
    before, after = nearest_known(price < NEVER)
    last = torch.arange(price.shape[1], device=price.device)[-1]  # a tensor, so that tracing works
    rows = before.clamp(min=0), torch.minimum(after, last)
    return torch.cat([price.gather(1, row) for row in rows], dim=2)


def enclosed_prices(price: Tensor, ladder: Tensor) -> Tensor:
    """Find missing prices of `price` (B, T, L) in `ladder` (B, T, M); both hold NEVER for none.

    Two known prices with only missing ones between them enclose some prices of the ladder. If these
    are as many as are missing, they are put in.
    """
    levels = price.shape[2]
    known = price < NEVER
    # All prices of a state and its ladder, each once and in order; NEVER fills up the rest.
    steps = torch.sort(torch.cat([price, ladder], dim=2), dim=2)[0]
    rank = torch.cumsum(F.pad(steps[..., 1:] != steps[..., :-1], (1, 0)).to(torch.int64), dim=2)
    distinct = torch.full_like(steps, NEVER).scatter(2, rank, steps)
    # Ranks of two known prices differ by their levels' difference if as many prices lie between.
    own_rank = torch.searchsorted(distinct, price)
    level = torch.arange(levels, device=price.device)
    below, above = nearest_known(known, 2)
    rank_below = own_rank.gather(2, below.clamp(min=0))
    rank_above = own_rank.gather(2, torch.where(above < levels, above, 0))
    fits = ~known & (below >= 0) & (above < levels) & (rank_above - rank_below == above - below)
    wanted = (rank_below + level - below).clamp(0, steps.shape[2] - 1)
    return torch.where(fits, distinct.gather(2, wanted), price)


def hold_between(x: Tensor, price: Tensor) -> Tensor:
    """Keep `x` (B, T, L) at least a tick away from the nearest known prices at both sides."""
    count = price.shape[2]
    below, above = nearest_known(price < NEVER, 2)
    low = torch.where(below >= 0, price.gather(2, below.clamp(min=0)), -NEVER).float() + 1
    high = torch.where(above < count, price.gather(2, torch.where(above < count, above, 0)), NEVER)
    high = high.float() - 1
    return torch.minimum(torch.maximum(x, low), high)


def same_price(price: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find for each entry the nearest states before and after it that show something at its price.

    price: int (B, T, L); source: bool (B, T, L), the entries that show something. Return the fields
    carried, before, after and share of `Ladder`. If only one such state exists, `before` and
    `after` are both its place; if none does, they are the entry's own.
    """
    batch, steps, levels = price.shape
    count = steps * levels
    # Sorting brings entries of one price together; the sort is stable, so they stay in time order.
    ordered, place = torch.sort(price.flatten(1), dim=1, stable=True)
    before, after = nearest_known(source.flatten(1).gather(1, place))
    # Shifted by one, so that an entry is not its own neighbour.
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
