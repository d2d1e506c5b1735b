"""What training minimises: the loss over hidden values, and a second task, the outlook.

The loss over hidden values asks nothing of the vector of a visible state, and it is this vector, of
the last state, that a policy takes. The *outlook* does: from the vector of a state shortly before
the window's end, a linear head predicts numbers of the book there, of the moves up to it and of the
few states that follow. It does not ask for more distant states, since the network learns those by
heart: its forecasts of the volatility over 128 states correlated with the truth by 0.50 in training
windows and by 0.23 in validation windows.

Axes: B window, T state, L level, F field (0 price, 1 size). Prices are in ticks.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.model.encoder import OUTLOOK_TARGETS, BookEncoder
from lob.model.inputs import build_inputs
from lob.model.normalisation import signed_log
from lob.windows.reaches import DEPTHS, REACHES

if TYPE_CHECKING:
    from lob.training.precision import Precision

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
    "smoothl1": F.smooth_l1_loss,
}
OUTLOOK_EVERY = 4  # one window in so many is asked for its outlook
AHEAD = 32  # how many states the outlook looks ahead, at most

# What outlook_targets multiplies its columns by, in their order: 1 / standard deviation in windows
# of USD-M BTC, but at most 4, since the spread hardly ever changes.
SCALES = (
    # imbalances over DEPTHS and all levels
    *(1.6, 1.6, 1.8, 3.0),
    # log spread; logs of best bid and ask size, of mean bid and ask size, less the mean log size
    *(4.0, 0.6, 0.6, 2.0, 2.0),
    # states since the last move; mean log spread
    *(0.75, 4.0),
    # return, volatility and number of moves: over each of REACHES, then over the whole past
    *(1.0, 1.0, 3.5),
    *(0.55, 0.65, 1.8),
    *(0.35, 0.5, 1.15),
    *(0.32, 0.52, 1.0),
    # ahead: direction of the first move, which best queue is gone first, widening of the spread
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
    model: BookEncoder,
    precision: "Precision",
    price_ticks: Tensor,
    sizes: Tensor,
    times_ns: Tensor,
) -> tuple[Tensor, int]:
    """Return the outlook's squared error, summed over the windows that are asked, and their number.

    The network sees the states up to the one that it is asked about. They are moved to the window's
    end, behind copies of the first state, since a shorter window would not be what the vector is
    made of in use.
    """
    asked = (price_ticks[::OUTLOOK_EVERY], sizes[::OUTLOOK_EVERY], times_ns[::OUTLOOK_EVERY])
    price_ticks, sizes, times_ns = asked
    states = price_ticks.shape[1]
    seen = (torch.arange(states, device=price_ticks.device) - states_ahead(states)).clamp(min=0)
    past = price_ticks[:, seen], sizes[:, seen], None, model.config, times_ns[:, seen]
    tokens, *_ = build_inputs(*past)
    with precision.autocast():
        answer = model.outlook(model.encode(tokens)[:, -1])
    error = F.mse_loss(answer.float(), outlook_targets(price_ticks, sizes), reduction="none")
    return error.mean(1).sum(), len(price_ticks)


def states_ahead(states: int) -> int:
    """Return how many of a window's last states the outlook is about: at most half of them."""
    return min(AHEAD, states // 2)


def outlook_targets(price_ticks: Tensor, sizes: Tensor) -> Tensor:
    """Return what the outlook's head should predict, float32 (B, OUTLOOK_TARGETS).

    price_ticks: int (B, T, L), of at least 4 states; sizes: float (B, T, L). *Now* is the state
    `states_ahead` before the last one, a *move* is a change of the mid. The columns are, each times
    its entry of SCALES,

    - the book now: imbalances over DEPTHS and all levels, log spread, logs of the best sizes and of
      each side's mean size, less the mean log size;
    - the past: log1p of the number of states since the last move, mean log spread, and over REACHES
      and the whole past the return, the realised volatility and log1p of the number of moves;
    - ahead: the direction of the first move, which best queue is gone first (1 the ask's, -1 the
      bid's), whether the spread widens.
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
    scaled = [column.float() * scale for column, scale in zip(columns, SCALES, strict=True)]
    return torch.stack(scaled, dim=1)


def volatility(moves: Tensor) -> Tensor:
    """Return the realised volatility of moves in ticks, as its log1p: (B, N) to (B,)."""
    return torch.log1p(moves.square().sum(1).sqrt())


def first(happens: Tensor) -> Tensor:
    """Return where in bool (B, N) something happens first, int64 (B,); N if it never does."""
    return torch.where(happens.any(1), happens.int().argmax(1), happens.shape[1])
