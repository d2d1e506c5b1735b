"""What training minimises: the loss over hidden values, and the outlook, an auxiliary task of the
window's vector.

The *outlook*: masked values alone ask nothing of the vector of a state that is visible, and it is
this vector that a policy takes. So a linear head on the vector of a state shortly before the
window's end predicts numbers of the book there, of the moves up to it and of the few states that
follow. More distant states are not asked for, since the network learns them by heart: its forecasts
of the volatility of 128 states correlated 0.50 with it in training windows and 0.23 in validation
windows.

Axes: B window, T state, L level, F field. Prices are in ticks, as the encoder takes them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.model.encoder import OUTLOOK_TARGETS, BookEncoder
from lob.model.inputs import build_inputs
from lob.model.normalisation import signed_log
from lob.training.precision import Precision
from lob.windows.reaches import DEPTHS, REACHES

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
    "smoothl1": F.smooth_l1_loss,
}
OUTLOOK_EVERY = 4  # windows, of which one is asked for its outlook
AHEAD = 32  # states at most that the outlook looks ahead

# One over each target's standard deviation in windows of USD-M BTC (at most 4: the spread hardly
# ever changes).
SCALES = (
    # imbalances over DEPTHS and all levels
    *(1.6, 1.6, 1.8, 3.0),
    # log spread; logs of best bid and ask size, of mean bid and ask size, less the mean log size
    *(4.0, 0.6, 0.6, 2.0, 2.0),
    # states since the last move; mean log spread
    *(0.75, 4.0),
    # return, volatility, number of moves over REACHES and the whole window
    *(1.0, 1.0, 3.5),
    *(0.55, 0.65, 1.8),
    *(0.35, 0.5, 1.15),
    *(0.32, 0.52, 1.0),
    # ahead: direction, which queue is gone first, widening
    *(1.2, 1.2, 2.8),
)
assert len(SCALES) == OUTLOOK_TARGETS


def masked_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, loss: str
) -> tuple[Tensor, Tensor]:
    """Return the sum of the loss over hidden values, in float32, and their count."""
    each = LOSSES[loss](prediction.float(), target, reduction="none")
    return torch.where(mask, each, 0.0).sum(), mask.sum()


def outlook_loss(
    model: BookEncoder, precision: Precision, price_ticks: Tensor, sizes: Tensor
) -> tuple[Tensor, int]:
    """Return the squared error of the outlook, summed over one window in OUTLOOK_EVERY, and how
    many these are.

    The network sees the states up to the one it is asked about, moved to the window's end behind
    copies of the first state: a window of another length would be another task than what the vector
    is for.
    """
    price_ticks, sizes = price_ticks[::OUTLOOK_EVERY], sizes[::OUTLOOK_EVERY]
    states = price_ticks.shape[1]
    seen = (torch.arange(states, device=price_ticks.device) - states_ahead(states)).clamp(min=0)
    tokens, *_ = build_inputs(price_ticks[:, seen], sizes[:, seen], None, model.config)
    with precision.autocast():
        answer = model.outlook(model.encode(tokens)[:, -1])
    error = F.mse_loss(answer.float(), outlook_targets(price_ticks, sizes), reduction="none")
    return error.mean(1).sum(), len(price_ticks)


def states_ahead(states: int) -> int:
    """Return how many of a window's last states the outlook foretells: at most half of them."""
    return min(AHEAD, states // 2)


def outlook_targets(price_ticks: Tensor, sizes: Tensor) -> Tensor:
    """Return what the outlook asks for, float32 (B, OUTLOOK_TARGETS), of windows of at least 4
    states.

    price_ticks: int (B, T, L); sizes: float (B, T, L). *Now* is the state `states_ahead` before the
    last one. The columns are, each times its entry of SCALES:

    - the book now: imbalances over DEPTHS and all levels, log spread, logs of the best sizes and of
      each side's mean size less the mean log size;
    - the past: log1p of the states since the last move, mean log spread, and over REACHES and the
      whole past the return, the realised volatility and log1p of the number of moves;
    - ahead: direction of the first move of the mid, which best queue is gone first (1 the ask, -1
      the bid), whether the spread widens.
    """
    half, coming = price_ticks.shape[2] // 2, states_ahead(price_ticks.shape[1])
    now = price_ticks.shape[1] - coming - 1
    bid, ask = price_ticks[:, :, half - 1].double(), price_ticks[:, :, half].double()
    spread = ask - bid
    moves = ((bid + ask) / 2).diff(dim=1)
    bids, asks = sizes[:, now, :half].flip(1), sizes[:, now, half:]
    mean = torch.log(sizes[:, : now + 1].clamp(min=1e-30)).mean(dim=(1, 2))

    columns = []
    for levels in (*DEPTHS, half):
        total_bid, total_ask = bids[:, :levels].sum(1), asks[:, :levels].sum(1)
        columns.append((total_bid - total_ask) / (total_bid + total_ask))
    columns.append(torch.log(spread[:, now]))
    columns += [torch.log(x) - mean for x in (bids[:, 0], asks[:, 0], bids.mean(1), asks.mean(1))]

    past, ahead = moves[:, :now], moves[:, now:]
    columns.append(torch.log1p(first(past.flip(1) != 0)))
    columns.append(torch.log(spread[:, : now + 1]).mean(1))
    for reach in (*REACHES, now):
        last = past[:, -reach:]
        columns += [signed_log(last.sum(1)), volatility(last), torch.log1p((last != 0).sum(1))]

    gone_bid = bid[:, now + 1 :] < bid[:, now, None]
    gone_ask = ask[:, now + 1 :] > ask[:, now, None]
    first_move = first(ahead != 0).clamp(max=coming - 1)
    columns.append(ahead.gather(1, first_move[:, None])[:, 0].sign())
    columns.append(torch.sign(first(gone_bid) - first(gone_ask)))
    columns.append((spread[:, now + 1 :] > spread[:, now, None]).any(1))
    return torch.stack(
        [column.float() * scale for column, scale in zip(columns, SCALES, strict=True)], dim=1
    )


def volatility(moves: Tensor) -> Tensor:
    """log(1 + root of the sum of squares) of moves in ticks, (B, N) to (B,)."""
    return torch.log1p(moves.square().sum(1).sqrt())


def first(happens: Tensor) -> Tensor:
    """Return where along the second axis something happens first, int64 (B,); the axis' length if
    it never does.
    """
    return torch.where(happens.any(1), happens.int().argmax(1), happens.shape[1])
