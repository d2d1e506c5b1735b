"""How sure a difference is: confidence intervals over blocks of time, power, many comparisons."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
POWER = 0.8  # how often the smallest visible difference would be found
FALSE_SHARE = 0.05  # of the differences that are called found among many comparisons
BETTER, WORSE, LEVEL, UNDECIDED = "better", "worse", "level", "undecided"


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
    if low == high == 0:  # as where the encoder leaves the ladder's prices as they are
        return "equal"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "undecided"


def smallest_visible(low: float, high: float, blocks: int) -> float:
    """Return the smallest true difference that would be found in 80 % of such recordings.

    low, high: a 95 % interval over `blocks` of time. Found means that the interval leaves out 0.
    The result is NaN if there is one block.
    """
    from scipy import stats

    if blocks < 2:
        return float("nan")
    sure, likely = stats.t.ppf([0.975, POWER], blocks - 1)
    return float((high - low) / 2 * (1 + likely / sure))


def judge_lead(low: float, high: float, blocks: int, care: float) -> str:
    """Return what the 95 % interval of a lead says: better, worse, level or undecided.

    care: the smallest lead that anyone would care for. If the interval holds 0, the two are level
    if such a lead would have been seen, and undecided if not.
    """
    if low > 0 or high < 0:
        return BETTER if low > 0 else WORSE
    return LEVEL if smallest_visible(low, high, blocks) <= care else UNDECIDED


def find_discoveries(
    values: np.ndarray, lows: np.ndarray, highs: np.ndarray, blocks: np.ndarray
) -> np.ndarray:
    """Return which of many differences are found if all are looked at together, bool (N,).

    values, lows, highs: differences and their 95 % intervals over `blocks` of time, (N,). Of those
    that are found, 5 % are expected to be false (Benjamini and Hochberg, 1995).
    """
    from scipy import stats

    if not len(values):
        return np.zeros(0, dtype=bool)
    freedom = np.maximum(np.asarray(blocks) - 1, 1)
    half = (np.asarray(highs) - np.asarray(lows)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(values) * stats.t.ppf(0.975, freedom) / half
    chance = np.where(np.isfinite(t), 2 * stats.t.sf(t, freedom), 1.0)  # one block: no evidence
    return stats.false_discovery_control(chance) <= FALSE_SHARE
