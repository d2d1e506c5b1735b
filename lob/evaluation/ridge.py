"""Ridge regressions that predict hidden values from what is visible.

Axes: B window, T state, L level, K column. A *column* is one of COLUMNS, the four forms in which a value is filled and
scored: a price as ticks from the window's anchor and min-max scaled, a size as logarithm and min-max scaled. Methods
work on `values`, float32 (B, T, L, K), and `known`, bool of that shape; they read no hidden value.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.evaluation.fills import COLUMNS, Hidden, fill_untrained
from lob.model.normalisation import nearest_known

FIT_STRIDE = 4  # ridge regression takes every so many hidden values: neighbours tell the same
PENALTIES = np.logspace(-7, 1, 17)  # of ridge regression on standardised features, a value


def neighbours(values: Tensor, known: Tensor, otherwise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The nearest known values before and after along axis 1, `otherwise` where there is none, and log1p of how far."""
    steps = values.shape[1]
    at = torch.arange(steps, device=values.device).view(1, steps, 1, 1)
    found, far = [], []
    for place in nearest_known(known):
        there = (place >= 0) & (place < steps)
        found.append(torch.where(there, values.gather(1, place.clamp(0, steps - 1)), otherwise))
        far.append(torch.where(there, (place - at).abs(), steps).float().log1p())
    return found, far


def features(hidden: Hidden, filled: dict[str, Tensor], found: Tensor) -> list[Tensor]:
    """What is known about each hidden value of each column: float32 (M, P) a column, P = 24.

    Differences from linear interpolation in time (of the previous and next known value in time and across levels, the
    line across levels and the level's mean), log distances to the known ones, one; then the same where the ladder
    found the value and zero elsewhere; then the ladder's difference where it found it, and where it did not.
    """
    base, values = filled["linear_time"], torch.where(hidden.known, hidden.values, 0)
    in_time, far_in_time = neighbours(values, hidden.known, base)
    across, far_across = neighbours(values.transpose(1, 2), hidden.known.transpose(1, 2), base.transpose(1, 2))
    near = [*in_time, *(x.transpose(1, 2) for x in across), filled["linear_levels"], filled["level_mean"]]
    plain = [x - base for x in near] + far_in_time + [x.transpose(1, 2) for x in far_across] + [torch.ones_like(base)]
    tables = []
    for column in range(len(COLUMNS)):
        here = ~hidden.known[..., column]
        table = torch.stack([x[..., column][here] for x in plain], dim=1)
        ladder = (filled["ladder"] - base)[..., column][here][:, None]
        was_found = found[..., column][here][:, None].float()
        tables.append(torch.cat([table, table * was_found, ladder * was_found, ladder * (1 - was_found)], dim=1))
    return tables


@dataclass
class Moments:
    """Sums of a regression over hidden values, float64: features x features, features x target, target^2, count."""

    gram: Any = 0.0
    cross: Any = 0.0
    square: float = 0.0
    count: int = 0

    def add(self, table: Tensor, target: Tensor) -> None:
        table, target = table.double(), target.double()
        self.gram = self.gram + (table.T @ table).cpu().numpy()
        self.cross = self.cross + (table.T @ target).cpu().numpy()
        self.square += float(target @ target)
        self.count += len(target)

    def first(self, features: int) -> "Moments":
        """The sums without the last features."""
        if not self.count:
            return self
        return Moments(self.gram[:features, :features], self.cross[:features], self.square, self.count)

    def solve(self, penalty: float) -> np.ndarray:
        """Ridge regression's weights, features scaled to a root mean square of one."""
        scale = np.sqrt(np.diag(self.gram) / self.count)
        scale[scale == 0] = 1.0
        gram = self.gram / np.outer(scale, scale) / self.count + penalty * np.eye(len(scale))
        return np.linalg.solve(gram, self.cross / scale / self.count) / scale

    def error(self, weights: np.ndarray) -> float:
        return (self.square - 2 * weights @ self.cross + weights @ self.gram @ weights) / max(self.count, 1)


PLAIN_FEATURES = 11  # the first of `features`: those of the ridge regression without the ladder
FITTED = {"plain_ridge": PLAIN_FEATURES, "ridge_ladder": 24}  # method -> how many features it takes


@dataclass
class Fitted:
    """The ridge regressions that were fitted for one mask."""

    weights: dict[str, list[Tensor]]  # method -> its weights, (P,), for each column

    def fill(self, hidden: Hidden, filled: dict[str, Tensor], found: Tensor) -> dict[str, Tensor]:
        """Return each fitted method's columns, float32 (B, T, L, K)."""
        results = {name: filled["linear_time"].clone() for name in self.weights}
        for column, table in enumerate(features(hidden, filled, found)):
            here = ~hidden.known[..., column]
            for name, weights in self.weights.items():
                change = table[:, : FITTED[name]] @ weights[column].to(table.device)
                results[name][..., column][here] += change
        return results


def fit_baselines(training: Iterable[Hidden], validation: Iterable[Hidden]) -> Fitted | None:
    """Fit on training windows and choose the penalties on validation windows.

    Return None if there is nothing to fit on.
    """
    fitted_on, chosen_on = sum_moments(training), sum_moments(validation)
    if not all(moments.count for moments in fitted_on):
        return None
    weights: dict[str, list[Tensor]] = {name: [] for name in FITTED}
    for name, count in FITTED.items():
        for train, judge in zip(fitted_on, chosen_on, strict=True):
            weights[name].append(choose_weights(train.first(count), judge.first(count)))
    return Fitted(weights)


def sum_moments(batches: Iterable[Hidden]) -> list[Moments]:
    """Return the sums of the regression of each column over every `FIT_STRIDE`-th hidden value."""
    sums = [Moments() for _ in COLUMNS]
    for hidden in batches:
        filled, found = fill_untrained(hidden)
        change = hidden.values - filled["linear_time"]
        for column, table in enumerate(features(hidden, filled, found)):
            target = change[..., column][~hidden.known[..., column]]
            sums[column].add(table[::FIT_STRIDE], target[::FIT_STRIDE])
    return sums


def choose_weights(training: Moments, validation: Moments) -> Tensor:
    """Return the weights of the penalty with the least error on validation, or on training if that has no values."""
    solutions = [training.solve(penalty) for penalty in PENALTIES]
    judge = validation if validation.count else training
    return torch.from_numpy(min(solutions, key=judge.error)).float()
