"""What the vector of a window's last state is asked to tell, beside what is hidden: the market until then, and after.

Masked values alone ask nothing of the vector of a state that is visible, and it is this vector that a policy gets. So
a linear head on it predicts numbers of the book, of the moves up to now and of the few states that follow. What comes
later is learned by heart: forecasts of 128 states' volatility correlated 0.50 with it in training windows, 0.23 in
validation. Axes: B window, T state, L level. Prices are in ticks, as the encoder sees them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.model.encoder import OUTLOOK_TARGETS
from lob.model.normalisation import signed_log
from lob.windows.reaches import DEPTHS, REACHES

AHEAD = 32  # states at most
# One over each target's standard deviation in windows of USD-M BTC (at most 4: the spread hardly ever changes).
SCALES = (
    1.6, 1.6, 1.8, 3.0, 4.0, 0.6, 0.6, 2.0, 2.0, 0.75, 4.0,
    1.0, 1.0, 3.5, 0.55, 0.65, 1.8, 0.35, 0.5, 1.15, 0.32, 0.52, 1.0,
    1.2, 1.2, 2.8,
)  # fmt: skip
assert len(SCALES) == OUTLOOK_TARGETS


def states_ahead(states: int) -> int:
    """How many of a window's last states are to be foretold from those before: at most half of them."""
    return min(AHEAD, states // 2)


def describe(price_ticks: Tensor, sizes: Tensor) -> Tensor:
    """Return the targets, float32 (B, OUTLOOK_TARGETS), of price_ticks int (B, T, L) and sizes (B, T, L), T at least 4.

    Told is what is known `states_ahead` states before the last one. Of the state there: imbalances over `DEPTHS`, log
    spread, logs of the best sizes and of each side's depth less the mean log size; states since the last move; mean log
    spread; over `REACHES`: return, realised volatility, number of moves. Ahead: direction of the first move, which best
    queue is gone first (1 the ask, -1 the bid), widening of the spread. Each is multiplied by its one of `SCALES`.
    """
    half, coming = price_ticks.shape[2] // 2, states_ahead(price_ticks.shape[1])
    now = price_ticks.shape[1] - coming - 1
    bid, ask = price_ticks[:, :, half - 1].double(), price_ticks[:, :, half].double()
    spread, moves = ask - bid, ((bid + ask) / 2).diff(dim=1)
    bids, asks = sizes[:, now, :half].flip(1), sizes[:, now, half:]
    mean = torch.log(sizes[:, : now + 1].clamp(min=1e-30)).mean(dim=(1, 2))
    columns = []
    for levels in (*DEPTHS, half):
        total_bid, total_ask = bids[:, :levels].sum(1), asks[:, :levels].sum(1)
        columns.append((total_bid - total_ask) / (total_bid + total_ask))
    columns.append(torch.log(spread[:, now]))
    columns += [torch.log(x) - mean for x in (bids[:, 0], asks[:, 0], bids.mean(1), asks.mean(1))]
    past, ahead = moves[:, :now], moves[:, now:]
    moved = past.flip(1) != 0
    columns.append(torch.log1p(first(moved)))
    columns.append(torch.log(spread[:, : now + 1]).mean(1))
    for reach in (*REACHES, now):
        last = past[:, -reach:]
        columns += [signed_log(last.sum(1)), volatility(last), torch.log1p((last != 0).sum(1))]
    gone_bid, gone_ask = bid[:, now + 1 :] < bid[:, now, None], ask[:, now + 1 :] > ask[:, now, None]
    direction = ahead.gather(1, first(ahead != 0).clamp(max=coming - 1)[:, None])[:, 0].sign()
    columns += [direction, torch.sign(first(gone_bid) - first(gone_ask))]
    columns.append((spread[:, now + 1 :] > spread[:, now, None]).any(1))
    return torch.stack([column.float() * scale for column, scale in zip(columns, SCALES, strict=True)], dim=1)


def volatility(moves: Tensor) -> Tensor:
    """log(1 + root of the sum of squares) of moves in ticks, (B, N) to (B,)."""
    return torch.log1p(moves.square().sum(1).sqrt())


def first(happens: Tensor) -> Tensor:
    """Where along the second axis something happens first, int64 (B,); its length where it never does."""
    return torch.where(happens.any(1), happens.int().argmax(1), happens.shape[1])


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
    "smoothl1": F.smooth_l1_loss,
}


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Sum of the loss over hidden values, in float32, and their count."""
    each = LOSSES[loss](prediction.float(), target, reduction="none")
    return torch.where(mask, each, 0.0).sum(), mask.sum()
