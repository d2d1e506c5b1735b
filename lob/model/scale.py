"""The scale block: how fast, how deep and how fine a market is, in numbers that have a unit.

What the network sees of a window is relative: prices count from its mid, sizes from their mean. So
its vector can't say whether a market moves by one basis point a minute or by fifty. These numbers
can. A linear model on vector and scale block can go beyond the levels that it was fitted on.

Axes: B window, T state, L level. The last state of a window is the present one; nothing but the
window is read.
"""

import torch
from torch import Tensor

from lob.windows.reaches import REACHES

NAMES = (  # of the columns of `measure_scale`
    *(f"volatility_{reach}" for reach in (*REACHES, "all")),
    *(f"duration_{reach}" for reach in (*REACHES, "all")),
    "has_times",
    "depth",
    "has_tick_size",
    "tick_bps",
    "since_move",
)


def measure_scale(
    price_ticks: Tensor,
    sizes: Tensor,
    times_ns: Tensor | None = None,
    tick_size: float | None = None,
    reaches: tuple[int, int, int] = REACHES,
) -> Tensor:
    """Return the scale block of windows, float32 (B, 13), in the order of NAMES.

    price_ticks: int (B, T, L); sizes: float (B, T, L), > 0; times_ns: int64 (B, T) or None;
    tick_size: of the prices in quote currency, or None. The columns are

    - log1p of the realised volatility of the mid in bps over the last 5, 20, 80 and all states;
    - log1p of the time in ms that these states took, and 1; without times zeros and 0;
    - log of the last state's depth, the sum of price times size in quote currency, and 1; without a
      tick size zeros;
    - log of a tick in bps of the last mid;
    - log1p of the number of states since the mid's last move, T if it did not move.

    All are finite: a price that is not above 0 counts as half a tick. The function can be scripted.
    """
    _, states, levels = price_ticks.shape
    half = levels // 2
    doubled = price_ticks[:, :, half - 1].long() + price_ticks[:, :, half].long()  # twice the mid
    log_mid = torch.log(doubled.double().clamp(min=1.0) / 2)
    # Of the first state nothing is known: 0 stands for it, so that a window may be one state.
    squares = torch.nn.functional.pad((1e4 * log_mid.diff(dim=1)).square(), [1, 0])
    nothing = torch.zeros_like(log_mid[:, 0])
    spans = [min(reach, states - 1) for reach in [*reaches, states]]
    columns = [torch.log1p(squares[:, states - span :].sum(1).sqrt()) for span in spans]
    if times_ns is None:
        columns += [nothing, nothing, nothing, nothing, nothing]
    else:
        for span in spans:
            passed_ms = (times_ns[:, -1] - times_ns[:, states - 1 - span]).double() / 1e6
            columns.append(torch.log1p(passed_ms.clamp(min=0.0)))
        columns.append(torch.ones_like(nothing))
    if tick_size is None:
        columns += [nothing, nothing]
    else:
        worth = (price_ticks[:, -1].double() * sizes[:, -1].double()).sum(1) * tick_size
        columns += [torch.log(worth.clamp(min=1e-30)), torch.ones_like(nothing)]
    columns.append(torch.log(torch.full_like(nothing, 1e4)) - log_mid[:, -1])
    moved = torch.nn.functional.pad((doubled.diff(dim=1) != 0).long(), [1, 0])
    last_move = (moved * torch.arange(states, device=moved.device)).amax(1)
    since = torch.where(last_move > 0, states - 1 - last_move, states)
    columns.append(torch.log1p(since.double()))
    return torch.stack(columns, dim=1).float()
