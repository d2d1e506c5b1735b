"""How sure a difference is: confidence intervals over blocks of time."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def bootstrap(difference: np.ndarray, block: np.ndarray, seed: int) -> tuple[float, float, int]:
    """Return the 95 % interval of the mean of `difference`, (W,), and the number of blocks.

    difference: a number for each window. block: the block of time in which it lies, int64 (W,).
    Windows that overlap or lie near each other are one observation, not many. So whole blocks are
    drawn with replacement (Kuensch, 1989; here blocks don't overlap).
    """
    names, block = np.unique(block, return_inverse=True)
    sums = np.bincount(block, difference)
    counts = np.bincount(block)
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return *interval(means, difference.mean(), len(names)), len(names)


def interval(drawn: Sequence[float] | np.ndarray, value: float, blocks: int) -> tuple[float, float]:
    """Return the 95 % interval of `value`, given the values `drawn` of resampled blocks.

    It consists of the quantiles of `drawn`, widened about `value`. The quantiles alone are too
    narrow if there are few blocks: resampling n blocks understates the variance by (n - 1) / n, and
    the tails are Student's, not normal. With six blocks they hold the truth in 86 % of cases. Both
    ends are NaN if there is one block, which shows nothing of the variance.
    """
    from scipy import stats

    freedom = blocks - 1
    if freedom == 0 or not np.isfinite(drawn).any():
        return float("nan"), float("nan")
    widening = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975) * np.sqrt(blocks / freedom)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(value + widening * (low - value)), float(value + widening * (high - value))


def verdict(low: float, high: float) -> str:
    """Return what an interval of the encoder's error less another method's says of the encoder."""
    if high < 0:
        return "better"
    return "worse" if low > 0 else "undecided"
