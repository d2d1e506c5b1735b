"""Scores of filled windows: errors by quantity, the best naive method, how sure a difference is.

A fill is a method's answer for the hidden values of a window (lob/evaluation/fills.py). The naive
methods are all but the encoder: the untrained ones and the ridge regressions. Axes: B window of a
batch, W window, T state, L level, K column.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lob.book.states import Book
from lob.evaluation.fills import UNTRAINED, Hidden, fill_untrained, hide, to_columns
from lob.evaluation.intervals import bootstrap, verdict
from lob.evaluation.ridge import Ridges
from lob.model.encoder import BookEncoder
from lob.model.inputs import build_inputs
from lob.model.masking import make_mask, window_keys
from lob.model.normalisation import invert, states_to_known
from lob.windows.splits import gather_times, gather_windows

MASK_SEEDS = {"entry": 101, "level": 102, "span": 103, "span64": 104, "patch": 105, "tail": 106}
OURS = "encoder"
LADDER = "ladder"
RIDGE = "ridge_ladder"
QUANTITIES = ("mid", "offset", "log_size")  # as `window_errors` measures them
SAME = 1e-3  # share of a method's mean error: a smaller difference is taken for rounding
Errors = dict[str, dict[str, np.ndarray]]  # quantity -> method -> errors of windows, float64 (W,)


@dataclass(frozen=True)
class Masking:
    """How windows are masked, and in which batches."""

    mask: str  # one of lob.model.masking.MASKS
    share: float  # of the values that are hidden
    states: int  # of a window
    batch_size: int
    device: torch.device

    def hide(self, windows: list[tuple[Book, np.ndarray]]) -> Iterator[Hidden]:
        """Yield batches of windows, given as (book, end rows), with hidden values.

        A window's mask depends on the mask's name and the window's end row alone.
        """
        seed = MASK_SEEDS[self.mask]
        for book, ends in windows:
            for begin in range(0, len(ends), self.batch_size):
                mine = ends[begin : begin + self.batch_size]
                times = gather_times(book, mine, self.states)
                arrays = (*gather_windows(book, mine, self.states), mine, times)
                price, sizes, rows, times_ns = (torch.from_numpy(x).to(self.device) for x in arrays)
                keys = window_keys(seed, 0, rows)
                mask = make_mask(keys, self.states, book.depth, self.share, self.mask)
                yield hide(price, sizes, mask, times_ns)

    def hide_all(self, windows: list[tuple[Book, np.ndarray]], name: str) -> Iterable[Hidden]:
        """Return the batches of `hide` with a progress bar, which only a terminal shows."""
        batches = sum(-(-len(ends) // self.batch_size) for _, ends in windows)
        title = f"{name}, mask {self.mask}"
        return tqdm(self.hide(windows), title, batches, leave=False, disable=None, unit="batch")


@dataclass(frozen=True)
class Rival:
    """A naive method beside the encoder, on the same windows.

    error: the method's mean error. skill: 1 - the encoder's mean error / the method's; NaN if that
    is 0. win_rate: the share of windows on which the encoder is better; a tie counts half. low,
    high: the 95 % interval of the encoder's error less the method's. verdict: of the encoder.
    """

    method: str
    error: float
    skill: float
    win_rate: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """The encoder beside four naive methods in one quantity, over `blocks` of time.

    errors: the mean error of every method. untrained: the untrained method that is best on the
    validation windows. naive: the best one there of all naive methods. ladder: the ladder. ridge:
    the ridge regression with the ladder; None if it was not fitted.
    """

    errors: dict[str, float]
    median_error: float
    blocks: int
    untrained: Rival
    naive: Rival
    ladder: Rival
    ridge: Rival | None

    @property
    def error(self) -> float:
        return self.errors[OURS]


@dataclass(frozen=True)
class MaskScores:
    """How the windows of a pair were filled under one mask.

    trained_on: whether the encoder was trained with this mask. windows: their number. comparisons:
    by quantity, without those of which nothing was hidden.
    """

    pair: str
    mask: str
    trained_on: bool
    windows: int
    comparisons: dict[str, Comparison]


@torch.inference_mode()
def score(
    masking: Masking,
    windows: list[tuple[Book, np.ndarray]],
    fitted: Ridges | None,
    model: BookEncoder | None,
) -> Errors:
    """Return the errors of all methods: the untrained ones and, if given, `fitted` and `model`."""
    found: dict[str, dict[str, list[np.ndarray]]] = {quantity: {} for quantity in QUANTITIES}
    for hidden in masking.hide_all(windows, "scoring"):
        for method, columns in fill(hidden, fitted, model).items():
            for quantity, error in window_errors(columns, hidden).items():
                found[quantity].setdefault(method, []).append(error.double().cpu().numpy())
    return {
        quantity: {method: np.concatenate(parts) for method, parts in methods.items()}
        for quantity, methods in found.items()
    }


def fill(hidden: Hidden, fitted: Ridges | None, model: BookEncoder | None) -> dict[str, Tensor]:
    """Return every method's columns, float32 (B, T, L, K)."""
    filled, found = fill_untrained(hidden)
    if fitted is not None:
        filled |= fitted.fill(hidden, filled, found)
    if model is not None:
        filled[OURS] = predict(model, hidden)
    return filled


def predict(model: BookEncoder, hidden: Hidden) -> Tensor:
    """Return the encoder's answer in columns, float32 (B, T, L, K)."""
    config = model.config
    windows = hidden.price_ticks, hidden.sizes, hidden.mask
    tokens, base, _, parameters = build_inputs(*windows, config, hidden.times_ns)
    price, sizes = invert(model(tokens, base), parameters, config.normalization)
    return to_columns(price, sizes, hidden.anchor_ticks)


def window_errors(columns: Tensor, hidden: Hidden) -> dict[str, Tensor]:
    """Return the error of each quantity, (B,); NaN for a window in which nothing of it is hidden.

    - mid: |error| in ticks, over states in which a best price is hidden;
    - offset: |error| of a hidden price's distance from the mid, in ticks;
    - log_size: squared error of the logarithm of a hidden size.
    """
    truth = hidden.values
    columns = torch.where(hidden.known, truth, columns)
    hidden_price, hidden_size = hidden.mask[..., 0], hidden.mask[..., 1]
    best = slice(truth.shape[2] // 2 - 1, truth.shape[2] // 2 + 1)  # the best bid and the best ask
    mid, true_mid = (x[:, :, best, 0].mean(dim=2, keepdim=True) for x in (columns, truth))
    offset = columns[..., 0] - mid
    true_offset = truth[..., 0] - true_mid
    best_hidden = hidden_price[:, :, best].any(dim=2, keepdim=True)
    return {
        "mid": mean_where((mid - true_mid).abs(), best_hidden),
        "offset": mean_where((offset - true_offset).abs(), hidden_price),
        "log_size": mean_where((columns[..., 1] - truth[..., 1]) ** 2, hidden_size),
    }


def mean_where(x: Tensor, where: Tensor) -> Tensor:
    """Return the mean of each window's values at `where`, (B,); NaN if there are none."""
    total = torch.where(where, x, torch.zeros_like(x)).flatten(1).sum(1)
    return total / where.flatten(1).sum(1)


def compare(errors: Errors, judged: Errors, block: np.ndarray, seed: int) -> dict[str, Comparison]:
    """Compare the encoder with naive methods, by quantity.

    errors: of the tested windows. judged: of the windows that the best naive methods are chosen on.
    block: the block of time of each tested window, int64 (W,).
    """
    found = {}
    for quantity, methods in errors.items():
        naive = [name for name in methods if name != OURS]
        untrained = pick_best(judged[quantity], list(UNTRAINED))
        best = pick_best(judged[quantity], naive)
        seen = np.isfinite(methods[OURS])  # windows in which something of the quantity is hidden
        if untrained is None or best is None or not seen.any():
            continue
        here = {name: values[seen] for name, values in methods.items()}
        names = [name for name in (untrained, best, LADDER, RIDGE) if name in here]
        rivals = {name: set_beside(here, name, block[seen], seed) for name in names}
        found[quantity] = Comparison(
            errors={name: float(values.mean()) for name, values in here.items()},
            median_error=float(np.median(here[OURS])),
            blocks=len(np.unique(block[seen])),
            untrained=rivals[untrained],
            naive=rivals[best],
            ladder=rivals[LADDER],
            ridge=rivals.get(RIDGE),
        )
    return found


def pick_best(errors: dict[str, np.ndarray], names: list[str]) -> str | None:
    """Return the one of `names` with the least mean error; None if there is no finite error."""
    finite = [name for name in names if name in errors and np.isfinite(errors[name]).any()]
    return min(finite, key=lambda name: np.nanmean(errors[name]), default=None)


def set_beside(errors: dict[str, np.ndarray], name: str, block: np.ndarray, seed: int) -> Rival:
    """Compare the encoder's errors, float64 (W,), with those of one method."""
    mean = errors[name].mean()
    difference = errors[OURS] - errors[name]
    difference[np.abs(difference) < SAME * mean] = 0.0
    wins = (difference < 0) + 0.5 * (difference == 0)
    low, high, _ = bootstrap(difference, block, seed)
    return Rival(
        method=name,
        error=float(mean),
        skill=float(1 - errors[OURS].mean() / mean) if mean > 0 else float("nan"),
        win_rate=float(wins.mean()),
        low=low,
        high=high,
        verdict=verdict(low, high),
    )


@torch.inference_mode()
def profile_errors(
    masking: Masking,
    windows: list[tuple[Book, np.ndarray]],
    fitted: Ridges | None,
    model: BookEncoder,
    methods: list[str],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return two curves for each method: its mean squared error of log size, by what is hidden.

    The first is by level, (L,), the second by the number of states to the nearest one that shows
    the level, (T,). They are NaN where nothing was hidden. Methods without an answer are left out.
    """
    sums: dict[str, list[np.ndarray]] = {}
    for hidden in masking.hide_all(windows, "errors by level"):
        here = hidden.mask[..., 1]
        levels = here.shape[2]
        level = torch.arange(levels, device=here.device).expand_as(here)[here]
        distance = states_to_known(~here).clamp(max=masking.states - 1)[here]
        filled = fill(hidden, fitted, model)
        for method in [name for name in methods if name in filled]:
            square = ((filled[method] - hidden.values)[..., 1][here] ** 2).double()
            parts = [
                torch.bincount(level, square, levels),
                torch.bincount(level, None, levels),
                torch.bincount(distance, square, masking.states),
                torch.bincount(distance, None, masking.states),
            ]
            before = sums.get(method, [np.zeros(1)] * 4)
            sums[method] = [a + b.cpu().numpy() for a, b in zip(before, parts, strict=True)]
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing was hidden
        return {name: (x[0] / x[1], x[2] / x[3]) for name, x in sums.items()}
