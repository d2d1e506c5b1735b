"""What can be said of hidden values without a network: untrained fills, ridge regression and gradient boosting.

Axes: B window, T state, L level, K column. A *column* is one of COLUMNS, the four forms in which a value is filled and
scored: a price as ticks from the window's anchor and min-max scaled, a size as logarithm and min-max scaled. Methods
work on `values`, float32 (B, T, L, K), and `known`, bool of that shape; they read no hidden value.
"""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.model.ladder import find_ladder
from lob.model.normalisation import fit, interpolate_time, nearest_known, transform

COLUMNS = ("price_ticks", "log_size", "minmax_price", "minmax_size")
BOOSTING_ENTRIES = 50_000  # hidden values that gradient boosting is fitted on, of each column
FIT_STRIDE = 4  # ridge regression takes every so many hidden values: neighbours tell the same
PENALTIES = np.logspace(-7, 1, 17)  # of ridge regression on standardised features, a value
UNTRAINED = ("level_mean", "last_observation", "linear_time", "linear_levels", "ladder")


@dataclass
class Hidden:
    """A batch of windows with hidden values, in the forms that methods and scores use."""

    price_ticks: Tensor  # int64 (B, T, L)
    sizes: Tensor  # float32 (B, T, L)
    mask: Tensor  # bool (B, T, L, F), True where hidden
    anchor_ticks: Tensor  # int64 (B, 1, 1), a visible price of the window
    minmax: dict[str, Tensor]  # parameters of the scheme 'minmax'
    values: Tensor  # float32 (B, T, L, K), the truth
    known: Tensor  # bool (B, T, L, K)


def hide(price_ticks: Tensor, sizes: Tensor, mask: Tensor) -> Hidden:
    """Put windows, int (B, T, L) and float (B, T, L), and their mask, bool (B, T, L, F), into columns."""
    price_ticks, sizes = price_ticks.to(torch.int64), sizes.float()
    anchor = fit(price_ticks, sizes, mask, "book")["anchor_ticks"]
    minmax = fit(price_ticks, sizes, mask, "minmax")
    values = to_columns(price_ticks, sizes, anchor, minmax)
    return Hidden(price_ticks, sizes, mask, anchor, minmax, values, ~mask.repeat(1, 1, 1, 2))


def to_columns(price_ticks: Tensor, sizes: Tensor, anchor_ticks: Tensor, minmax: dict[str, Tensor]) -> Tensor:
    """Return float32 (B, T, L, K) of prices in ticks (fractions allowed) and sizes (clamped to 1e-30 for the log)."""
    offset = (price_ticks - anchor_ticks).float()
    log_size = torch.log(sizes.clamp(min=1e-30))
    return torch.cat([torch.stack([offset, log_size], dim=3), transform(price_ticks, sizes, minmax, "minmax")], dim=3)


def fill_untrained(hidden: Hidden) -> tuple[dict[str, Tensor], Tensor]:
    """Return each method of UNTRAINED as float32 (B, T, L, K), and where the ladder found values, bool (B, T, L, K).

    A level that is never visible is filled linearly across levels first, a state without a visible level linearly in
    time, so that no method is left without an answer. `ladder`: see lob/model/ladder.py.
    """
    known = hidden.known
    values = torch.where(known, hidden.values, 0)
    across = interpolate_time(values.transpose(1, 2), known.transpose(1, 2)).transpose(1, 2)
    never, reached = ~known.any(dim=1, keepdim=True), known.any(dim=2, keepdim=True)  # of a level; of a state
    in_time = interpolate_time(torch.where(known, values, across), known | (reached & never))
    seen = known | never
    columns = torch.where(known, values, in_time)
    mean = torch.where(seen, columns, 0).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    last = nearest_known(seen[..., :2])[0].clamp(min=0).repeat(1, 1, 1, 2)  # before the first one stands its value
    ladder = find_ladder(hidden.price_ticks, hidden.mask)
    log_size, minmax_size = (ladder.fill_sizes(hidden.values[..., k], in_time[..., k]) for k in (1, 3))
    filled = {
        "level_mean": torch.where(never, in_time, mean),
        "last_observation": torch.gather(columns, 1, last),
        "linear_time": in_time,
        "linear_levels": torch.where(reached, across, in_time),
        "ladder": torch.stack([ladder.price, log_size, ladder.price, minmax_size], dim=3),
    }
    found = torch.stack([ladder.price_known, ladder.size_known] * 2, dim=3)
    return {name: torch.where(known, values, rescale_price(method, hidden)) for name, method in filled.items()}, found


def rescale_price(columns: Tensor, hidden: Hidden) -> Tensor:
    """Put prices in ticks into the min-max column too: that scale is a level's own, so levels are joined in ticks."""
    price_ticks, sizes = columns[..., 0].double() + hidden.anchor_ticks, torch.ones_like(columns[..., 0])
    price = transform(price_ticks, sizes, hidden.minmax, "minmax")[..., :1]
    return torch.cat([columns[..., :2], price, columns[..., 3:]], dim=3)


def neighbours(values: Tensor, known: Tensor, otherwise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The nearest known values before and after along axis 1, `otherwise` where there is none, and log1p of how far."""
    steps = values.shape[1]
    at = torch.arange(steps, device=values.device).view(1, steps, 1, 1)
    found, far = [], []
    for place in (x.repeat(1, 1, 1, 2) for x in nearest_known(known[..., :2])):  # the other columns: the same fields
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
    """Ridge regressions (and gradient boosting, where wanted and scikit-learn is there), a mask's."""

    weights: dict[str, list[Tensor]]  # method -> of each column
    boosters: list[Any] = field(default_factory=list)

    def fill(self, hidden: Hidden, filled: dict[str, Tensor], found: Tensor) -> dict[str, Tensor]:
        """Return each fitted method's columns, float32 (B, T, L, K)."""
        tables = features(hidden, filled, found)
        results = {name: filled["linear_time"].clone() for name in [*self.weights, *["boosting"] * bool(self.boosters)]}
        for column, table in enumerate(tables):
            here = ~hidden.known[..., column]
            for name, weights in self.weights.items():
                results[name][..., column][here] += table[:, : FITTED[name]] @ weights[column].to(table.device)
            if self.boosters:
                added = torch.from_numpy(self.boosters[column].predict(table.cpu().numpy()).astype(np.float32))
                results["boosting"][..., column][here] += added.to(table.device)
        return results


def fit_baselines(training: Iterable[Hidden], validation: Iterable[Hidden], boosting: bool, seed: int) -> Fitted | None:
    """Fit on training windows and choose the penalty on validation windows; None where there is nothing to fit on."""
    sums = [[Moments() for _ in COLUMNS] for _ in range(2)]
    kept: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in COLUMNS]
    rng = np.random.default_rng(seed)
    for number, batches in enumerate((training, validation)):
        for hidden in batches:
            filled, found = fill_untrained(hidden)
            for column, table in enumerate(features(hidden, filled, found)):
                target = (hidden.values - filled["linear_time"])[..., column][~hidden.known[..., column]]
                sums[number][column].add(table[::FIT_STRIDE], target[::FIT_STRIDE])
                if boosting and number == 0 and len(table):
                    some = rng.choice(len(table), min(len(table), BOOSTING_ENTRIES // 8), replace=False)
                    kept[column].append((table.cpu().numpy()[some], target.cpu().numpy()[some]))
    if not all(column.count for column in sums[0]):
        return None
    weights = {name: [choose_weights(*(part.first(count) for part in parts)) for parts in zip(*sums, strict=True)]
               for name, count in FITTED.items()}  # fmt: skip
    boosters = []
    if boosting and importlib.util.find_spec("sklearn"):
        from sklearn.ensemble import HistGradientBoostingRegressor

        for parts in kept:
            inputs, wanted = (np.concatenate(x) for x in zip(*parts, strict=True))
            some = rng.choice(len(inputs), min(len(inputs), BOOSTING_ENTRIES), replace=False)
            boosters.append(HistGradientBoostingRegressor(random_state=seed).fit(inputs[some], wanted[some]))
    return Fitted(weights, boosters)


def choose_weights(training: Moments, validation: Moments) -> Tensor:
    """The weights of the penalty with the least error on validation (on training where that has no values)."""
    solutions = [training.solve(penalty) for penalty in PENALTIES]
    judge = validation if validation.count else training
    return torch.from_numpy(min(solutions, key=judge.error)).float()
