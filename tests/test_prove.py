"""What benchmarks/prove.py makes of scored runs: medians, paired losses and the summary."""

import numpy as np
import pytest

from benchmarks import prove
from lob.results import make_row


def test_fp8_is_equivalent_only_where_the_whole_interval_lies_within_one_percent():
    """Five pairs, mean ratio 0.4 %, standard error 0.1 %: t(4) at 95 % is 2.132 (Student)."""
    ratios = 0.004 + 0.001 * np.sqrt(5) * np.array([-1, -1, 0, 1, 1])
    pairs = [(1 + ratio, 1.0) for ratio in ratios]
    cells = {("A/patch/log_size", "error"): 3.0, ("A/patch/log_size", "blocks"): 7.0}
    line = prove.summarise("A", cells, "2 passed", 0, *prove.compare_losses(pairs))
    assert "+0.40% of the loss, 90 % interval +-0.21%: equivalent" in line and "\n" not in line
    assert "ours 3 (7 blocks of time)" in line and "shared by train and test 0" in line
    wide = prove.compare_losses([(1 + 10 * ratio, 1.0) for ratio in ratios])
    assert "not shown to be equivalent" in prove.summarise("A", cells, "2 passed", 0, *wide)
    none = prove.compare_losses([(1.0, None)])
    assert "not measured" in prove.summarise("A", cells, "2 passed", 0, *none)


def test_the_deviation_over_seeds_stands_beside_the_difference_of_fp8():
    rows = prove.loss_rows([(1.1, 1.0), (3.0, 3.0)])
    found = {(row["case"], row["metric"]): row["value"] for row in rows}
    assert found["FP8 over bf16", "difference"] == pytest.approx(0.05)
    assert found["bf16 over seeds", "relative_deviation"] == pytest.approx(np.sqrt(2) / 2)
    assert prove.loss_rows([(1.0, None)]) == []


def test_medians_are_taken_over_the_cases_that_are_tabled():
    values = {
        ("A/patch/mid", "error"): 1.0,
        ("A/patch/mid/balanced", "error"): 2.0,
        ("latency/cpu", "p50"): 3.0,
        ("A/patch/mid", "win_rate_naive"): 0.5,
        ("A/probe/direction", "ours"): 0.6,
    }
    rows = [make_row(case, metric, value) for (case, metric), value in values.items()]
    wanted = [("A/patch/mid", "error"), ("A/probe/direction", "ours")]
    assert prove.collect([rows, rows]) == {key: [values[key]] * 2 for key in wanted}
