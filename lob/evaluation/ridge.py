"""Ridge regressions that predict hidden values from what is visible around them.

Axes: B window, T state, L level, K column of `COLUMNS` (lob/evaluation/fills.py), M hidden value, P
feature. A regression predicts by how much a hidden value differs from the line through its level's
known values in time (`linear_time`). No hidden value is read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.evaluation.fills import COLUMNS, Hidden, fill_untrained
from lob.model.normalisation import nearest_known

FIT_STRIDE = 4  # every so many hidden values are fitted on: neighbours say the same
# of features scaled to a root mean square of one, of the mean squared error
PENALTIES = np.logspace(-7, 1, 17)
PLAIN_FEATURES = 11  # the first of `features`: those without the ladder
FITTED = {"plain_ridge": PLAIN_FEATURES, "ridge_ladder": 24}  # method -> how many features it takes


def features(hidden: Hidden, filled: dict[str, Tensor], found: Tensor) -> list[Tensor]:
    """Return for each column what is known about its hidden values, float32 (M, P), P = 24.

    filled, found: what `fill_untrained` returns. The first 11 features are those of
    `plain_features`. Then follow the same where the ladder found the value, zero elsewhere; then
    the ladder's difference from the line where it found the value, zero elsewhere, and where it did
    not.
    """
    plain = plain_features(hidden, filled)
    ladder_change = filled["ladder"] - filled["linear_time"]
    tables = []
    for column in range(len(COLUMNS)):
        here = ~hidden.known[..., column]
        table = torch.stack([x[..., column][here] for x in plain], dim=1)
        ladder = ladder_change[..., column][here][:, None]
        was_found = found[..., column][here][:, None].float()
        parts = [table, table * was_found, ladder * was_found, ladder * (1 - was_found)]
        tables.append(torch.cat(parts, dim=1))
    return tables


def plain_features(hidden: Hidden, filled: dict[str, Tensor]) -> list[Tensor]:
    """Return 11 features of every value, float32 (B, T, L, K) each.

    Six differences from `linear_time`: of the previous and next known value in time, of the same
    across levels, of the line across levels and of the level's mean. The logs of how far those four
    known values are. One.
    """
    line = filled["linear_time"]
    values = torch.where(hidden.known, hidden.values, 0)
    near_in_time, far_in_time = neighbours(values, hidden.known, line)
    # across levels: the axes of states and levels change places
    turned = [x.transpose(1, 2) for x in (values, hidden.known, line)]
    near_across, far_across = neighbours(*turned)
    near = [*near_in_time, *(x.transpose(1, 2) for x in near_across)]
    near += [filled["linear_levels"], filled["level_mean"]]
    far = [*far_in_time, *(x.transpose(1, 2) for x in far_across)]
    return [*(x - line for x in near), *far, torch.ones_like(line)]


def neighbours(
    values: Tensor, known: Tensor, otherwise: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the nearest known values before and after along axis 1, and log(1 + distance) of both.

    Where there is none the value is `otherwise` and the distance the length of the axis.
    """
    steps = values.shape[1]
    at = torch.arange(steps, device=values.device).view(1, steps, 1, 1)
    found, far = [], []
    for place in nearest_known(known):
        there = (place >= 0) & (place < steps)
        value = values.gather(1, place.clamp(0, steps - 1))
        found.append(torch.where(there, value, otherwise))
        far.append(torch.where(there, (place - at).abs(), steps).float().log1p())
    return found, far


@dataclass
class Moments:
    """Sums over the hidden values of a regression, in float64.

    gram: features times features, (P, P); cross: features times target, (P,); square: target
    squared; count: values.
    """

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
        """Return the sums of the first features alone."""
        if not self.count:
            return self
        return Moments(
            self.gram[:features, :features], self.cross[:features], self.square, self.count
        )

    def solve(self, penalty: float) -> np.ndarray:
        """Return the weights, (P,); the penalty is of features with a root mean square of one."""
        scale = np.sqrt(np.diag(self.gram) / self.count)
        scale[scale == 0] = 1.0
        gram = self.gram / np.outer(scale, scale) / self.count + penalty * np.eye(len(scale))
        return np.linalg.solve(gram, self.cross / scale / self.count) / scale

    def error(self, weights: np.ndarray) -> float:
        """Return the mean squared error of weights, (P,)."""
        total = self.square - 2 * weights @ self.cross + weights @ self.gram @ weights
        return total / max(self.count, 1)


@dataclass
class Ridges:
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


def fit_ridges(training: Iterable[Hidden], validation: Iterable[Hidden]) -> Ridges | None:
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
    return Ridges(weights)


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
    """Return the weights of the penalty that is best on validation, or on training without it."""
    solutions = [training.solve(penalty) for penalty in PENALTIES]
    judge = validation if validation.count else training
    return torch.from_numpy(min(solutions, key=judge.error)).float()
