"""Scores of filled windows: errors by quantity, the best naive method, how sure a difference is."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book
from lob.evaluation.fills import UNTRAINED, Hidden, fill_untrained, hide, to_columns
from lob.evaluation.intervals import bootstrap, verdict
from lob.evaluation.ridge import Ridges
from lob.model.encoder import BookEncoder
from lob.model.inputs import build_inputs
from lob.model.masking import make_mask, window_keys
from lob.model.normalisation import invert, nearest_known
from lob.windows.splits import gather_windows

MASK_SEEDS = {"entry": 101, "level": 102, "span": 103, "span64": 104, "patch": 105, "tail": 106}
OURS, RIDGE = "encoder", "ridge_ladder"
QUANTITIES = ("mid", "offset", "log_size")
SAME = 1e-4  # share of a method's mean error; a smaller difference is rounding, as of prices
# quantity -> method -> error of each window, float64 (W,)
Errors = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Masking:
    """How windows are masked: name and share of hidden values; and where, how many at a time."""

    mask: str
    share: float
    states: int
    batch_size: int
    device: torch.device

    def hide(self, windows: list[tuple[Book, np.ndarray]]) -> Iterator[Hidden]:
        """Yield windows, given as (book, end rows). A mask depends on name and end row alone."""
        for book, ends in windows:
            for begin in range(0, len(ends), self.batch_size):
                mine = ends[begin : begin + self.batch_size]
                windows_of_book = gather_windows(book, mine, self.states)
                price, sizes = (torch.from_numpy(x).to(self.device) for x in windows_of_book)
                keys = window_keys(MASK_SEEDS[self.mask], 0, torch.from_numpy(mine).to(self.device))
                yield hide(
                    price, sizes, make_mask(keys, self.states, book.depth, self.share, self.mask)
                )


@dataclass(frozen=True)
class Rival:
    """A naive method beside the encoder, on the same windows.

    error: its mean. skill: 1 - the encoder's mean error / its own; NaN if that is 0. win_rate:
    share of windows on which the encoder is better, a tie counts half. low, high: 95 % interval of
    the encoder's error less its own.
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
    """The encoder beside three naive methods in one quantity, over `blocks` of time.

    errors: the mean error of every method. untrained, naive: the untrained method, and the naive
    one of all, that was best on the validation windows. ridge: the ridge regression with the
    ladder; None if it was not fitted.
    """

    errors: dict[str, float]
    median_error: float
    blocks: int
    untrained: Rival
    naive: Rival
    ridge: Rival | None

    @property
    def error(self) -> float:
        return self.errors[OURS]


@dataclass(frozen=True)
class MaskScores:
    """How the windows of a pair were filled under one mask.

    balanced: whether they are of the balanced sample, else evenly spaced. trained_on: whether the
    encoder's training had this mask. windows: their number. comparisons: by quantity; those of
    which nothing was hidden are missing.
    """

    pair: str
    mask: str
    balanced: bool
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
    """Return the errors of all methods, the fitted ones and the model if they are given."""
    found: dict[str, dict[str, list[np.ndarray]]] = {quantity: {} for quantity in QUANTITIES}
    for hidden in masking.hide(windows):
        for method, columns in fill(hidden, fitted, model).items():
            for quantity, error in window_errors(columns, hidden).items():
                found[quantity].setdefault(method, []).append(error.double().cpu().numpy())
    return {
        quantity: {method: np.concatenate(parts) for method, parts in methods.items()}
        for quantity, methods in found.items()
    }


def take_windows(errors: Errors, places: np.ndarray) -> Errors:
    return {
        quantity: {method: values[places] for method, values in methods.items()}
        for quantity, methods in errors.items()
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
    tokens, base, _, parameters = build_inputs(
        hidden.price_ticks, hidden.sizes, hidden.mask, model.config
    )
    price, sizes = invert(model(tokens, base), parameters, model.config.normalization)
    return to_columns(price, sizes, hidden.anchor_ticks)


def window_errors(columns: Tensor, hidden: Hidden) -> dict[str, Tensor]:
    """Return the error of each quantity, (B,); NaN for a window in which nothing of it is hidden.

    mid: |error| in ticks, in states in which a best price is hidden. offset: |error| of a hidden
    price's distance from the mid, in ticks. log_size: squared error of the logarithm of a hidden
    size.
    """
    truth = hidden.values
    columns = torch.where(hidden.known, truth, columns)
    hidden_price, hidden_size = hidden.mask[..., 0], hidden.mask[..., 1]
    best = slice(truth.shape[2] // 2 - 1, truth.shape[2] // 2 + 1)  # the best bid and the best ask
    mid, true_mid = (x[:, :, best, 0].mean(dim=2, keepdim=True) for x in (columns, truth))
    offset, true_offset = columns[..., 0] - mid, truth[..., 0] - true_mid
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
    """Set the encoder beside naive methods, by quantity.

    errors: of the tested windows; judged: of those that the best naive methods are chosen on;
    block: the block of time of each tested window, int64 (W,).
    """
    found = {}
    for quantity, methods in errors.items():
        naive = [name for name in methods if name != OURS]
        untrained = pick_best(judged[quantity], list(UNTRAINED))
        best = pick_best(judged[quantity], naive)
        seen = np.isfinite(methods[OURS])
        if untrained is None or best is None or not seen.any():
            continue
        here = {name: values[seen] for name, values in methods.items()}
        rivals = {
            name: set_beside(here, name, block[seen], seed)
            for name in (untrained, best, RIDGE)
            if name in here
        }
        found[quantity] = Comparison(
            errors={name: float(values.mean()) for name, values in here.items()},
            median_error=float(np.median(here[OURS])),
            blocks=len(np.unique(block[seen])),
            untrained=rivals[untrained],
            naive=rivals[best],
            ridge=rivals.get(RIDGE),
        )
    return found


def pick_best(errors: dict[str, np.ndarray], names: list[str]) -> str | None:
    """Return the method of the least mean error; None if there is no finite error."""
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
    """Return each method's mean squared error of log size in two curves.

    The first is by level, (L,); the second by the number of states to the nearest one that shows
    the level, (T,). NaN where nothing was hidden. A method that fills nothing is left out.
    """
    sums: dict[str, list[np.ndarray]] = {}
    for hidden in masking.hide(windows):
        here = hidden.mask[..., 1]
        levels = here.shape[2]
        level = torch.arange(levels, device=here.device).expand_as(here)[here]
        distance = states_to_visible(here)[here]
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
    with np.errstate(invalid="ignore"):
        return {name: (x[0] / x[1], x[2] / x[3]) for name, x in sums.items()}


def states_to_visible(hidden_size: Tensor) -> Tensor:
    """Return how far the nearest state is that shows an entry's level, int64 (B, T, L).

    hidden_size: bool (B, T, L). A level that no state shows is T - 1 states away.
    """
    states = hidden_size.shape[1]
    time = torch.arange(states, device=hidden_size.device).view(1, -1, 1)
    before, after = nearest_known(~hidden_size)
    since = torch.where(before < 0, states, time - before)
    until = torch.where(after == states, states, after - time)
    return torch.minimum(since, until).clamp(max=states - 1)
