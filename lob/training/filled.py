"""A window of validation with its hidden values filled, in prices and sizes, for a picture.

Axes: B window, T state, L level, F field (0 price, 1 size).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lob.model.encoder import EncoderConfig
from lob.model.masking import MASKS, name_masks
from lob.model.normalisation import fit, invert
from lob.training.scores import Predicted, Windows, untrained_answers

# A mask that hides whole areas shows more than single values; the first one that is found is drawn.
PREFERRED = ("patch", "span64", "span", "tail", "level", "entry")


@dataclass(frozen=True)
class Filled:
    """A window and its fills: prices in ticks and sizes, float64 (T, L).

    hidden: bool (T, L, F). fills: name -> prices, sizes.
    """

    prices: np.ndarray
    sizes: np.ndarray
    hidden: np.ndarray
    fills: dict[str, tuple[np.ndarray, np.ndarray]]

    def size_errors(self, name: str) -> np.ndarray:
        """Return a fill's errors of the logarithm of size, (T, L); NaN where it was visible."""
        here = self.hidden[..., 1]
        error = np.log(self.fills[name][1] / self.sizes)
        return np.where(here, error, np.nan)

    def errors(self, name: str) -> tuple[float, float]:
        """Return a fill's squared error of log size and its |error| of price in ticks, means."""
        square = np.nansum(self.size_errors(name) ** 2)
        off = np.abs(self.fills[name][0] - self.prices)[self.hidden[..., 0]].sum()
        prices, sizes = self.hidden.sum(axis=(0, 1))
        return float(square / max(sizes, 1)), float(off / max(prices, 1))


def pick_window(mask: Tensor, keys: Tensor, share: float, mode: str) -> int:
    """Return the first window with the mask that shows most, by PREFERRED.

    mask: bool (B, T, L, F), made with `keys`; share, mode: how values were hidden.
    """
    order = [PREFERRED.index(name) for name in MASKS] + [len(PREFERRED)]
    found = torch.tensor(order, device=mask.device)[name_masks(mask, keys, share, mode)]
    return int(found.argmin())


def fill_window(
    windows: Windows, predicted: Predicted, encoder: EncoderConfig, share: float, mode: str
) -> tuple[int, Filled]:
    """Choose a window of a batch; return its number and how ladder and encoder fill it.

    share, mode: how values were hidden.
    """
    price_ticks, sizes, _, keys = windows
    prediction, _, mask, _ = predicted
    ladder, _ = untrained_answers(windows, predicted, encoder)
    number = pick_window(mask, keys, share, mode)
    only = slice(number, number + 1)
    price_ticks, sizes, mask = price_ticks[only], sizes[only], mask[only]
    parameters = fit(price_ticks, sizes, mask, encoder.normalization, encoder.causal)
    truth = price_ticks.double(), sizes.double()
    fills = {}
    for name, answer in (("ladder", ladder), ("encoder", prediction)):
        found = invert(answer[only].float(), parameters, encoder.normalization)
        prices, filled_sizes = (
            torch.where(mask[..., field], found[field].double(), truth[field])[0].cpu().numpy()
            for field in range(2)
        )
        fills[name] = prices, np.maximum(filled_sizes, 1e-30)
    true_prices, true_sizes = (x[0].cpu().numpy() for x in truth)
    return number, Filled(true_prices, true_sizes, mask[0].cpu().numpy(), fills)
