"""More inputs of a cell, each by its name in EncoderConfig.context: clock, sizes, tick, order flow.

What the network sees is relative, and these are too: each is measured from its own slow mean or
from the state before. None of them depends on a hidden value.

- clock: log1p of the ms since the state before, less its mean over the states up to this one. Times
  are never hidden;
- shuffled_clock: the clock of another window of the batch. It is a control: a gain that it has
  too does not come from the clock;
- size: the mean over the state's visible levels of log size, less the level's mean over its visible
  sizes up to this state;
- tick: log of a tick in bps of a visible price;
- flow: what was added at the level since the state before, less what went, as a share of the mean
  size. If the level's price is the same, it is the change of its size. If the new price is better,
  it is the new size, and if it is worse, the size before, negative (the multi-level order flow
  imbalance of Xu, Gould and Howison 2018, without its sign for asks). It is 0 unless the level is
  visible in both states.

Axes: B window, T state, L level, F field (0 price, 1 size); `mask` is True where hidden.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.model.normalisation import signed_log

HALF = 2.0  # what logs are divided by, so that they are about as large as the other inputs
LARGEST = 30.0  # log of a size over the mean size, at most


def context_channels(
    names: Sequence[str],
    price_ticks: Tensor,
    sizes: Tensor,
    mask: Tensor,
    parameters: dict[str, Tensor],
    times_ns: Tensor | None,
) -> list[Tensor]:
    """Return the inputs with these names, float32 (B, T, L) each.

    price_ticks: int (B, T, L); sizes: float (B, T, L); mask: bool (B, T, L, F); parameters: those
    of the normalisation 'book'; times_ns: int64 (B, T). Raises ValueError if they are needed and
    None.
    """
    channels = []
    for name in names:
        if name in ("clock", "shuffled_clock"):
            if times_ns is None:
                raise ValueError(f"the encoder's context {name!r} needs the times of the states")
            of_other = name == "shuffled_clock"
            times = times_ns.roll(max(1, len(times_ns) // 2), 0) if of_other else times_ns
            channel = relative_clock(times).unsqueeze(2)
        elif name == "size":
            channel = relative_sizes(sizes, ~mask[..., 1])
        elif name == "tick":
            channel = log_tick(parameters["anchor_ticks"], ~mask[..., 0])
        else:
            visible = ~(mask[..., 0] | mask[..., 1])
            channel = order_flow(price_ticks, sizes, visible, parameters["size_centre"])
        channels.append(channel.expand(sizes.shape))
    return channels


def relative_clock(times_ns: Tensor) -> Tensor:
    """Return the clock, float32 (B, T); 0 at the first state, before which nothing is known."""
    waits = torch.log1p(times_ns.diff(dim=1).clamp(min=0).float() / 1e6)
    count = torch.arange(1, times_ns.shape[1], device=waits.device)
    return F.pad(waits - waits.cumsum(1) / count, (1, 0)) / HALF


def relative_sizes(sizes: Tensor, known: Tensor) -> Tensor:
    """Return the mean visible log size of each state against those before it, float32 (B, T, 1).

    Each level is compared with itself, so that it does not matter which levels are hidden.
    """
    logs = torch.where(known, torch.log(sizes.float().clamp(min=1e-30)), 0.0)
    above = logs - logs.cumsum(1) / known.cumsum(1).clamp(min=1)
    total = torch.where(known, above, 0.0).sum(2, keepdim=True)
    return total / known.sum(2, keepdim=True).clamp(min=1) / HALF


def log_tick(anchor_ticks: Tensor, known: Tensor) -> Tensor:
    """Return log of a tick in bps of the anchor, float32 (B, 1, 1); 0 if no price is visible."""
    shown = known.flatten(1).any(1).view(-1, 1, 1)
    log_bps = math.log(1e4) - torch.log(anchor_ticks.clamp(min=1).float())
    return torch.where(shown, log_bps, 0.0) / HALF / 2


def order_flow(price_ticks: Tensor, sizes: Tensor, visible: Tensor, centre: Tensor) -> Tensor:
    """Return the flow, float32 (B, T, L): signed log of its share of the mean size, halved.

    visible: bool (B, T, L), price and size; centre: mean log size, (B, 1, 1) or (B, T, 1).
    """
    half = price_ticks.shape[2] // 2
    logs = torch.log(torch.where(visible, sizes.float(), 1.0).clamp(min=1e-30))
    now = centre.expand(-1, price_ticks.shape[1], -1)[:, 1:]
    after, before = (torch.exp((x - now).clamp(max=LARGEST)) for x in (logs[:, 1:], logs[:, :-1]))
    rise = price_ticks.diff(dim=1)
    better = torch.cat([rise[..., :half], -rise[..., half:]], dim=2)  # higher bids, lower asks
    come = torch.where(better >= 0, after, 0.0)
    gone = torch.where(better <= 0, before, 0.0)
    both = visible[:, 1:] & visible[:, :-1]
    return F.pad(torch.where(both, signed_log(come - gone), 0.0), (0, 0, 1, 0)) / HALF
