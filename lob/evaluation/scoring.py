"""Scores of filled windows: errors by quantity, the best naive method, and what a difference is worth."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book
from lob.evaluation.fills import UNTRAINED, Hidden, fill_untrained, hide, to_columns
from lob.evaluation.intervals import bootstrap, verdict
from lob.evaluation.ridge import Fitted
from lob.model.encoder import BookEncoder
from lob.model.inputs import build_inputs
from lob.model.masking import make_mask, window_keys
from lob.model.normalisation import invert, nearest_known
from lob.windows.splits import gather_windows

MASK_SEEDS = {"entry": 101, "level": 102, "span": 103, "span64": 104, "patch": 105, "tail": 106}
OURS, RIDGE = "encoder", "ridge_ladder"
QUANTITIES = {  # name -> for the terminal; for the report
    "mid": ("mid (ticks)", "|error| of the mid in ticks, in states where a best price is hidden; near a martingale: "
                           "expect skill near 0"),
    "offset": ("price's distance from mid (ticks)", "|error| of a hidden price's distance from the mid, in ticks"),
    "log_size": ("log of size (squared error)", "squared error of the natural logarithm of a hidden size"),
}  # fmt: skip
METHODS = {
    "level_mean": "mean of the level", "last_observation": "last value", "linear_time": "linear in time",
    "linear_levels": "linear over levels", "ladder": "ladder carry", "plain_ridge": "ridge regression",
    RIDGE: "ridge regression with ladder", OURS: "encoder",
}  # fmt: skip
NOT_TRAINED = "not trained on this mask"
SAME = 1e-4  # of a method's mean error: less between it and the encoder's is rounding, such as of the ladder's prices
Errors = dict[str, dict[str, np.ndarray]]  # quantity -> method -> float64 (W,)


@dataclass(frozen=True)
class Task:
    """How windows are masked: mask and seed by name, share, states a window, and where and how many at a time."""

    mask: str
    share: float
    states: int
    batch_size: int
    device: torch.device

    def hide(self, windows: list[tuple[Book, np.ndarray]]) -> Iterator[Hidden]:
        """Yield the windows of `windows`, (book, end rows), with masks that depend on seed and end row alone."""
        for book, ends in windows:
            for begin in range(0, len(ends), self.batch_size):
                mine = ends[begin : begin + self.batch_size]
                price, sizes = (torch.from_numpy(x).to(self.device) for x in gather_windows(book, mine, self.states))
                keys = window_keys(MASK_SEEDS[self.mask], 0, torch.from_numpy(mine).to(self.device))
                yield hide(price, sizes, make_mask(keys, self.states, book.depth, self.share, self.mask))


@torch.inference_mode()
def score(task: Task, windows: list[tuple[Book, np.ndarray]], fitted: Fitted | None,
          model: BookEncoder | None) -> Errors:  # fmt: skip
    """Return errors[quantity][method] of every method (the fitted ones and the model, where given) on windows."""
    found: dict[str, dict[str, list[np.ndarray]]] = {quantity: {} for quantity in QUANTITIES}
    for hidden in task.hide(windows):
        for method, columns in fill(hidden, fitted, model).items():
            for quantity, error in window_errors(columns, hidden).items():
                found[quantity].setdefault(method, []).append(error.double().cpu().numpy())
    return {q: {method: np.concatenate(parts) for method, parts in found[q].items()} for q in QUANTITIES}


def fill(hidden: Hidden, fitted: Fitted | None, model: BookEncoder | None) -> dict[str, Tensor]:
    """Every method's columns, float32 (B, T, L, K)."""
    filled, found = fill_untrained(hidden)
    if fitted is not None:
        filled |= fitted.fill(hidden, filled, found)
    if model is not None:
        filled[OURS] = predict(model, hidden)
    return filled


def predict(model: BookEncoder, hidden: Hidden) -> Tensor:
    """The encoder's answer in columns, float32 (B, T, L, K)."""
    tokens, base, _, parameters = build_inputs(hidden.price_ticks, hidden.sizes, hidden.mask, model.config)
    price, sizes = invert(model(tokens, base), parameters, model.config.normalization)
    return to_columns(price, sizes, hidden.anchor_ticks)


def window_errors(columns: Tensor, hidden: Hidden) -> dict[str, Tensor]:
    """Return each quantity's error of each window, (B,); NaN where nothing of it is hidden."""
    truth = hidden.values
    columns = torch.where(hidden.known, truth, columns)
    half = truth.shape[2] // 2
    hidden_price, hidden_size = hidden.mask[..., 0], hidden.mask[..., 1]
    mid, true_mid = (x[:, :, half - 1 : half + 1, 0].mean(dim=2, keepdim=True) for x in (columns, truth))
    offset, true_offset = columns[..., 0] - mid, truth[..., 0] - true_mid
    return {
        "mid": mean_where((mid - true_mid).abs(), hidden_price[:, :, half - 1 : half + 1].any(dim=2, keepdim=True)),
        "offset": mean_where((offset - true_offset).abs(), hidden_price),
        "log_size": mean_where((columns[..., 1] - truth[..., 1]) ** 2, hidden_size),
    }


def mean_where(x: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, x, torch.zeros_like(x)).flatten(1).sum(1) / where.flatten(1).sum(1)


def pick_best(chosen: dict[str, np.ndarray], names: list[str]) -> str | None:
    """The method of the least mean error on the validation windows."""
    scores = {name: np.nanmean(chosen[name]) for name in names if name in chosen and np.isfinite(chosen[name]).any()}
    return min(scores, key=lambda name: scores[name]) if scores else None


def compare(errors: Errors, chosen: Errors, block: np.ndarray, seed: int) -> dict[str, dict]:
    """Set the encoder against the untrained method that was best on the validation windows, the ridge regression with
    the ladder, and the best of all naive methods; a dict of facts a quantity."""
    found = {}
    for quantity, methods in errors.items():
        ours = methods[OURS]
        naive = [name for name in methods if name != OURS]
        untrained, best = (pick_best(chosen[quantity], names) for names in (list(UNTRAINED), naive))
        if untrained is None or best is None or not np.isfinite(ours).any():
            continue
        seen = np.isfinite(ours)
        facts: dict = {"error": ours[seen].mean(), "median_error": np.median(ours[seen])}
        for kind, name, error in (("untrained", untrained, "best_untrained_error"), ("ridge", RIDGE, "ridge_error"),
                                  ("naive", best, "best_naive_error")):  # fmt: skip
            if name not in methods:
                continue
            mean, difference = methods[name][seen].mean(), ours[seen] - methods[name][seen]
            difference[np.abs(difference) < SAME * mean] = 0.0
            low, high, blocks = bootstrap(difference, block[seen], seed)
            facts |= {
                error: mean,
                f"skill_{kind}": 1 - facts["error"] / mean if mean > 0 else np.nan,
                f"win_rate_{kind}": ((difference < 0) + 0.5 * (difference == 0)).mean(),
                f"difference_{kind}_low": low, f"difference_{kind}_high": high,
                f"verdict_{kind}": verdict(low, high), "blocks": blocks,
            }  # fmt: skip
        each = {f"{name}_error": methods[name][seen].mean() for name in naive}
        note = f"best untrained: {untrained}; best naive: {best}, {facts['verdict_naive']}"
        found[quantity] = {**each, **facts, "untrained": untrained, "naive": best, "note": note}
    return found


@torch.inference_mode()
def profile_errors(task: Task, windows: list[tuple[Book, np.ndarray]], fitted: Fitted | None, model: BookEncoder,
                   labels: dict[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Mean squared error of log size by level, (L,), and by states to the nearest one that shows the level, (T,).

    Methods and results are named by `labels`, method -> label; a method that fills nothing is left out.
    """
    sums: dict[str, list[Any]] = {}
    for hidden in task.hide(windows):
        here = hidden.mask[..., 1]
        levels = here.shape[2]
        time = torch.arange(task.states, device=here.device).view(1, -1, 1)
        before, after = nearest_known(~here)
        nearer = torch.minimum(torch.where(before < 0, task.states, time - before),
                               torch.where(after == task.states, task.states, after - time))  # fmt: skip
        far = nearer.clamp(max=task.states - 1)[here]
        level = torch.arange(levels, device=here.device).expand_as(here)[here]
        filled = fill(hidden, fitted, model)
        for method in labels.keys() & filled.keys():
            square = ((filled[method] - hidden.values)[..., 1][here] ** 2).double()
            parts = [torch.bincount(at, weights, size).cpu().numpy()
                     for at, size in ((level, levels), (far, task.states)) for weights in (square, None)]  # fmt: skip
            sums[method] = [a + b for a, b in zip(sums.get(method, [0.0] * 4), parts, strict=True)]
    with np.errstate(invalid="ignore"):
        return {label: (sums[m][0] / sums[m][1], sums[m][2] / sums[m][3]) for m, label in labels.items() if m in sums}
