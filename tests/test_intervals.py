"""Confidence intervals over blocks of time, against theory and by counting how often they hold."""

import numpy as np
import pytest

from lob.evaluation import intervals, probe_fits, probes, scoring


def test_bootstrap_has_the_width_of_the_theory_and_counts_blocks():
    rng = np.random.default_rng(2)
    block = np.repeat(np.arange(100), 5)
    difference = np.repeat(rng.normal(1.0, 2.0, 100), 5)  # the windows of a block are all alike
    low, high, blocks = intervals.bootstrap(difference, block, 0)
    assert blocks == 100
    assert (high - low) / 2 == pytest.approx(1.96 * difference.std() / 10, rel=0.1)
    assert low < difference.mean() < high
    assert intervals.verdict(low, high) == "worse" and scoring.verdict(-1, 1) == "undecided"


def test_a_block_of_many_windows_counts_as_many():
    block = np.append(np.arange(20), np.repeat(np.arange(20, 40), 9))
    low, high, _ = intervals.bootstrap(np.where(block < 20, 1.0, 0.0), block, 0)
    assert 0.03 < low < 0.1 < high < 0.2


@pytest.mark.parametrize("count", [6, 7, 44])
def test_intervals_hold_the_truth_in_95_percent_of_cases(count):
    rng = np.random.default_rng(3)
    block = np.repeat(np.arange(count), 16)
    held = 0
    for seed in range(400):
        of_block = rng.normal(size=count)[block]
        difference = of_block + rng.normal(size=len(block))
        low, high, _ = intervals.bootstrap(difference, block, seed)
        held += low < 0 < high
    assert 0.92 < held / 400 < 0.98


def test_one_block_of_time_decides_nothing():
    low, high, blocks = intervals.bootstrap(np.array([-0.1, -0.3, -0.2]), np.zeros(3), 0)
    assert blocks == 1
    assert np.isnan([low, high]).all()
    assert intervals.verdict(low, high) == "undecided"
    labels = np.array([0.0, 1.0, 0.0, 1.0])
    measure = probe_fits.area_under_curve
    right, wrong = (
        probes.resample(measure, score, labels, np.zeros(4), 0) for score in (labels, 1 - labels)
    )
    assert np.isnan(intervals.interval(right - wrong, 1.0, 1)).all()
