"""Losses of a split: of the network, of the ladder and of the line in time, whole and in parts.

The ladder looks hidden values up at the same price in other states (lob/model/ladder.py); the line
is drawn in time between a level's visible values. Neither is trained, so they say how hard the
hidden values of these windows are.

Axes: B window, T state, L level, F field (0 price, 1 size).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lob.model.encoder import EncoderConfig
from lob.model.inputs import build_inputs
from lob.model.masking import MASKS, name_masks
from lob.model.normalisation import interpolate_time
from lob.training.objective import LOSSES

# Price_ticks and sizes, (B, T, L), times_ns, (B, T), and keys, (B,).
Windows = tuple[Tensor, Tensor, Tensor, Tensor]
# Prediction, targets, mask and fill of windows, (B, T, L, F) each.
Predicted = tuple[Tensor, Tensor, Tensor, Tensor]
ANSWERS = ("validation", "ladder", "linear")  # the network's, and the two untrained ones
FIELDS = ("price", "size")
# Sums by answer (the last one counts hidden values), by mask (the last one: none of MASKS), field.
SHAPE = (len(ANSWERS) + 1, len(MASKS) + 1, len(FIELDS))


@dataclass(frozen=True)
class Scores:
    """Losses over the hidden values of a split. sums: float64 of SHAPE, over all ranks."""

    sums: np.ndarray

    def loss(self, answer: str = "validation", part: str = "all") -> float:
        """Return the mean loss of one of ANSWERS; 0 if nothing of the part was hidden.

        part: 'all', a field of FIELDS, or a mask of MASKS.
        """
        sums = self.sums[ANSWERS.index(answer)]
        counts = self.sums[-1]
        if part in FIELDS:
            sums, counts = (x[:, FIELDS.index(part)] for x in (sums, counts))
        elif part in MASKS:
            sums, counts = (x[MASKS.index(part)] for x in (sums, counts))
        return float(sums.sum() / max(counts.sum(), 1))

    def parts(self) -> list[str]:
        """Return the fields that were hidden and, if windows got several masks, these."""
        counts = self.sums[-1]
        fields = [field for field, count in zip(FIELDS, counts.sum(0), strict=True) if count]
        masks = [mask for mask, count in zip(MASKS, counts.sum(1), strict=False) if count]
        return [*fields, *(masks if len(masks) > 1 else [])]


class Judge:
    """Adds up the losses of batches.

    encoder: the network's; share, mode: how values are hidden; loss: a name of LOSSES.
    """

    def __init__(
        self, encoder: EncoderConfig, share: float, mode: str, loss: str, device: torch.device
    ):
        self.encoder, self.share, self.mode, self.loss = encoder, share, mode, loss
        self.sums = torch.zeros(SHAPE, dtype=torch.float64, device=device)

    def add(self, windows: Windows, predicted: Predicted) -> None:
        """Add the losses of a batch. predicted: what the network made of the windows."""
        prediction, values, mask, _ = predicted
        answers = [prediction, *untrained_answers(windows, predicted, self.encoder)]
        each = [LOSSES[self.loss](x.float(), values, reduction="none") for x in answers]
        hidden = [torch.where(mask, x, 0.0).sum(dim=(1, 2)) for x in each]
        by_window = torch.stack([*hidden, mask.sum(dim=(1, 2))]).double()
        names = name_masks(mask, windows[3], self.share, self.mode)
        self.sums.index_add_(1, names, by_window)

    def scores(self, total: Callable[..., Tensor]) -> Scores:
        """Return the scores of all ranks. total: sums each of its values over them."""
        return Scores(total(*self.sums.flatten()).view(SHAPE).cpu().numpy())


def untrained_answers(
    windows: Windows, predicted: Predicted, encoder: EncoderConfig
) -> tuple[Tensor, Tensor]:
    """Return the ladder's and the line's answers, (B, T, L, F) each. encoder: the network's."""
    price_ticks, sizes, *_ = windows
    _, values, mask, ladder = predicted
    if encoder.fill != "ladder":
        ladder = build_inputs(price_ticks, sizes, mask, replace(encoder, fill="ladder"))[1]
    return ladder, interpolate_time(values, ~mask)
