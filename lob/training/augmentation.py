"""Variations of training windows: books that were never recorded but could have been.

Each is a pure function of a window and its key (lob/model/masking.py).

Axes: B window, T state, L level. Windows are price_ticks int (B, T, L), sizes float (B, T, L) and
times_ns int64 (B, T), keys int64 (B,).
"""

import torch
from torch import Tensor

from lob.model.masking import draw, scramble, uniform

SLOWEST = 4  # times slower; feeds differ as much: 69 states/s of COIN-M BTC, 19 to 31 of USD-M BTC


def exchange_sides(price_ticks: Tensor, sizes: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror the windows of `where`, bool (B, 1), so that bids become asks and asks bids.

    Prices are mirrored at the middle between the first state's lowest bid and highest ask.
    """
    turned = (price_ticks[:, :1, :1] + price_ticks[:, :1, -1:] - price_ticks).flip(2)
    where = where.unsqueeze(2)
    return torch.where(where, turned, price_ticks), torch.where(where, sizes.flip(2), sizes)


def slow_down(
    price_ticks: Tensor, sizes: Tensor, times_ns: Tensor, keys: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Replay a share of the windows 2, 3 or 4 times slower, as a feed of more states per second.

    A slowed window ends at the same state and begins later. Between two recorded states, sizes at
    unchanged prices change one by one at random moments, and all levels whose price changes do so
    together, so that every state is one that the book could have had. Time passes evenly from one
    recorded state to the next.
    """
    _, states, levels = price_ticks.shape
    speed_draw, moments = uniform(keys, states * (levels + 1) + 1).split(
        [1, states * (levels + 1)], dim=1
    )
    speed = torch.floor(1 + SLOWEST - (1 - speed_draw) / share * (SLOWEST - 1)).clamp(1, SLOWEST)
    last = states - 1
    # Of each new state, (B, T): where between the recorded states it lies.
    place = last - torch.arange(last, -1, -1, device=keys.device) / speed
    earlier = place.floor()
    passed = (place - earlier).unsqueeze(2)  # share of the time from this state to the next
    rows = earlier.long().unsqueeze(2).expand(-1, -1, levels)
    price, size = price_ticks.gather(1, rows), sizes.gather(1, rows)
    rows = (rows + 1).clamp(max=last)
    next_price, next_size = price_ticks.gather(1, rows), sizes.gather(1, rows)
    # Each recorded state has a moment of change for each level, and one for all changes of price.
    rows = earlier.long().unsqueeze(2).expand(-1, -1, levels + 1)
    moments = moments.view(-1, states, levels + 1).gather(1, rows)
    changed = torch.where(price == next_price, moments[..., :-1], moments[..., -1:]) < passed
    begin = times_ns.gather(1, earlier.long())
    end = times_ns.gather(1, (earlier.long() + 1).clamp(max=last))
    times_ns = begin + ((end - begin) * passed.squeeze(2)).long()
    return torch.where(changed, next_price, price), torch.where(changed, next_size, size), times_ns


def vary_sizes(price_ticks: Tensor, sizes: Tensor, keys: Tensor, noise: float) -> Tensor:
    """Multiply the sizes of half the windows by exp(uniform in +-noise), one factor for each price.

    A price keeps its factor through the window, so what rests there stays as steady as it was. But
    no window can be recognised by its sizes.
    """
    chosen = uniform(scramble(keys + 2), 1).unsqueeze(2) < 0.5
    power = 2 * draw(scramble(keys + 3)[:, None, None], price_ticks.long()) - 1
    return torch.where(chosen, sizes * torch.exp(noise * power), sizes)


def augment(
    price_ticks: Tensor,
    sizes: Tensor,
    times_ns: Tensor,
    keys: Tensor,
    mirror: bool,
    slow: float,
    noise: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Vary sizes, slow down the share `slow` of the windows and, if `mirror`, mirror half of them.

    Each has a key of its own, so that one variation says nothing about another.
    """
    if noise:
        sizes = vary_sizes(price_ticks, sizes, keys, noise)
    if slow:
        windows = price_ticks, sizes, times_ns
        price_ticks, sizes, times_ns = slow_down(*windows, scramble(keys + 1), slow)
    if mirror:
        price_ticks, sizes = exchange_sides(price_ticks, sizes, uniform(scramble(~keys), 1) < 0.5)
    return price_ticks, sizes, times_ns
