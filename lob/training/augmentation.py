"""Training windows that were never recorded, but could have been; each a pure function of the
window and its key.

Axes: B window, T state, L level. Windows are price_ticks int (B, T, L) and sizes float (B, T, L),
keys int64 (B,).
"""

import torch
from torch import Tensor

from lob.model.masking import draw, scramble, uniform

SLOWEST = 4  # times; COIN-M BTC sends 69 states/s where USD-M BTC sends 19 to 31


def exchange_sides(price_ticks: Tensor, sizes: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the windows of `where`, bool (B, 1), about the middle of their first state: bids become
    asks.
    """
    turned = (price_ticks[:, :1, :1] + price_ticks[:, :1, -1:] - price_ticks).flip(2)
    where = where.unsqueeze(2)
    return torch.where(where, turned, price_ticks), torch.where(where, sizes.flip(2), sizes)


def slow_down(
    price_ticks: Tensor, sizes: Tensor, keys: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Replay a share of the windows 2, 3 or 4 times slower, as of a feed with more states a second;
    all end as before.

    From one recorded state to the next, sizes at unchanged prices change one by one at random
    moments, and the levels whose price changes move together, so that every state is one that the
    book could have had.
    """
    _, states, levels = price_ticks.shape
    speed_draw, moments = uniform(keys, states * (levels + 1) + 1).split(
        [1, states * (levels + 1)], dim=1
    )
    speed = torch.floor(1 + SLOWEST - (1 - speed_draw) / share * (SLOWEST - 1)).clamp(1, SLOWEST)
    last = states - 1
    # (B, T), in recorded states
    place = last - torch.arange(last, -1, -1, device=keys.device) / speed
    earlier = place.floor()
    passed = (place - earlier).unsqueeze(2)
    rows = earlier.long().unsqueeze(2).expand(-1, -1, levels)
    price, size = price_ticks.gather(1, rows), sizes.gather(1, rows)
    rows = (rows + 1).clamp(max=last)
    next_price, next_size = price_ticks.gather(1, rows), sizes.gather(1, rows)
    moments = moments.view(-1, states, levels + 1).gather(
        1, earlier.long().unsqueeze(2).expand(-1, -1, levels + 1)
    )
    changed = torch.where(price == next_price, moments[..., :-1], moments[..., -1:]) < passed
    return torch.where(changed, next_price, price), torch.where(changed, next_size, size)


def vary_sizes(price_ticks: Tensor, sizes: Tensor, keys: Tensor, noise: float) -> Tensor:
    """Multiply the sizes of half the windows by exp(uniform in +-noise), one factor a price for all
    of a window.

    What rests at a price stays as steady as it was, but no window can be recognised by its sizes.
    """
    chosen = uniform(scramble(keys + 2), 1).unsqueeze(2) < 0.5
    power = 2 * draw(scramble(keys + 3)[:, None, None], price_ticks.long()) - 1
    return torch.where(chosen, sizes * torch.exp(noise * power), sizes)


def augment(
    price_ticks: Tensor, sizes: Tensor, keys: Tensor, mirror: bool, slow: float, noise: float
) -> tuple[Tensor, Tensor]:
    """Exchange bids and asks in half the windows where `mirror`, slow down a share of them, and
    vary sizes.
    """
    if noise:
        sizes = vary_sizes(price_ticks, sizes, keys, noise)
    if slow:
        price_ticks, sizes = slow_down(price_ticks, sizes, scramble(keys + 1), slow)
    if mirror:
        price_ticks, sizes = exchange_sides(price_ticks, sizes, uniform(scramble(~keys), 1) < 0.5)
    return price_ticks, sizes
