"""Ridge regressions that predict hidden values from what is visible around them.

A regression predicts by how much a hidden value differs from the line through its level's known
values in time (`linear_time`). There is one for each column of `COLUMNS`, price and size
(lob/evaluation/fills.py). No hidden value is read.

Axes: B window, T state, L level, K column, M hidden value, P feature.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.evaluation.fills import COLUMNS, Hidden, fill_untrained
from lob.model.normalisation import nearest_known

FIT_STRIDE = 4  # one in so many hidden values is fitted on: neighbours say the same
PENALTIES = np.logspace(-7, 1, 17)  # added to a mean squared error, for features of unit scale
PLAIN_FEATURES = 11  # the first ones of `features`, without the ladder
FITTED = {"plain_ridge": PLAIN_FEATURES, "ridge_ladder": 24}  # method -> number of its features


def features(hidden: Hidden, filled: dict[str, Tensor], found: Tensor) -> list[Tensor]:
    """Return for each column the 24 features of its hidden values, float32 (M, P).

    filled, found: what `fill_untrained` returns. The features are

    - the 11 of `plain_features`;
    - the same 11 again, zero unless the ladder found the value;
    - the ladder's difference from the line, zero unless the ladder found the value;
    - the same difference, zero if the ladder found the value.
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

    They are six differences from `linear_time` (of the previous and the next known value in time,
    of the same two across levels, of the line across levels and of the level's mean), the logs of
    the distances of those four known values, and the constant 1.
    """
    line = filled["linear_time"]
    values = torch.where(hidden.known, hidden.values, 0)
    near_in_time, far_in_time = neighbours(values, hidden.known, line)
    # Across levels it is the same with the axes of states and levels exchanged.
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

    If there is none, the value is `otherwise` and the distance is the length of the axis.
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
    """Sums over hidden values, float64, from which a regression is solved and judged."""

    gram: Any = 0.0  # features times features, (P, P)
    cross: Any = 0.0  # features times target, (P,)
    square: float = 0.0  # target squared
    count: int = 0  # hidden values

    def add(self, table: Tensor, target: Tensor) -> None:
        """Add hidden values: their features, (M, P), and what is to be predicted, (M,)."""
        table, target = table.double(), target.double()
        self.gram = self.gram + (table.T @ table).cpu().numpy()
        self.cross = self.cross + (table.T @ target).cpu().numpy()
        self.square += float(target @ target)
        self.count += len(target)

    def first(self, features: int) -> "Moments":
        """Return the sums of the first features alone."""
        if not self.count:
            return self
        gram = self.gram[:features, :features]
        return Moments(gram, self.cross[:features], self.square, self.count)

    def solve(self, penalty: float) -> np.ndarray:
        """Return the weights, (P,), of features as they are.

        The penalty applies to the weights of features that are scaled to a root mean square of one.
        """
        scale = np.sqrt(np.diag(self.gram) / self.count)
        scale[scale == 0] = 1.0  # a feature that is always zero, as the ladder's may be
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

    Return None if no value is hidden in the training windows, or if there are no such windows.
    """
    fitted_on = sum_moments(training)
    chosen_on = sum_moments(validation)
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
    """Return the weights whose penalty is best on validation, or on training if that is empty."""
    solutions = [training.solve(penalty) for penalty in PENALTIES]
    judge = validation if validation.count else training
    return torch.from_numpy(min(solutions, key=judge.error)).float()
