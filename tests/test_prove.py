"""What benchmarks/prove.py makes of scored runs: medians, paired losses, the summary, tables."""

import json
import shutil
import types

import numpy as np
import pandas as pd
import pytest
from conftest import write_book

from benchmarks import prove, report, tables, worth
from lob.config import InputError
from lob.results import make_row
from lob.training.run_folder import COLUMNS


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
        ("latency/cpu", "p50"): 3.0,
        ("A/patch/mid", "win_rate_naive"): 0.5,
        ("A/probe/direction", "ours"): 0.6,
    }
    rows = [make_row(case, metric, value) for (case, metric), value in values.items()]
    assert prove.collect([rows, rows]) == {("A/patch/mid", "error"): [1.0, 1.0]}


@pytest.fixture
def called(monkeypatch):
    """Scripts that leave what the real ones leave, in no time; returns the calls."""
    calls = []

    def call(script, keys, log, gpu):
        calls.append((script, keys))
        if script == "fp8_ddp_trainer.py":
            folder = log.with_suffix("")
            (folder / "checkpoints").mkdir(parents=True)
            settings = {name: value for name, value in keys.items() if name != "resume"}
            (folder / "config.json").write_text(json.dumps(settings))
            environment = {"versions": {"torch": "2"}, "commit": "c0ffee", "gpu": "a GPU"}
            (folder / "env.json").write_text(json.dumps(environment))
            row = dict.fromkeys(COLUMNS, 0) | {"kind": "test", "validation_loss": 0.5}
            pd.DataFrame([row]).to_csv(folder / "metrics.csv", index=False)
            return
        folder = keys["model_path"].parents[1]
        seed = json.loads((folder / "config.json").read_text())["seed"]
        values = {"error": 1.0 + seed, "ridge_error": 4.0, "best_untrained_error": 5.0}
        values["ladder_error"] = 6.0
        values |= {"difference_ridge_low": -3.0, "difference_ridge_high": -1.0 + seed}
        values |= {"windows": 96, "blocks": 7}
        cases = [
            f"{pair}/{mask}/log_size" for pair in keys["pairs"] for mask in worth.TRAINED_MASKS
        ]
        rows = [make_row(case, *value) for case in cases for value in values.items()]
        (folder / "report.json").write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(prove, "call", call)
    return calls


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Keys of prove.py for two books, one of which is only scored."""
    write_book(tmp_path, "TRAINED", rows=2000)
    spans = {"rows": 1500, "segment_starts": (0, 500), "step_ns": 1_000_000_000}
    write_book(tmp_path, "BTCUSDT_SPOT", seed=1, **spans)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    dataset = types.SimpleNamespace(books=[types.SimpleNamespace(pair="TRAINED")], shared_states=0)
    monkeypatch.setattr(prove, "open_dataset", lambda *_: dataset)
    keys = {"data_dir": str(tmp_path), "scored": [], "unseen": ["BTCUSDT_SPOT"], "seeds": 3}
    keys |= {"recipe": {"precision": "fp32"}, "scoring": {"split": "all"}, "checksums": False}
    keys |= {"runs_dir": str(tmp_path / "runs"), "name": "shipped", "write": True}
    return prove.config | keys


def minutes_of(folder):
    """Of the scored book, without the gap between its two segments."""
    stamps = np.load(folder / "book_states" / "BTCUSDT_SPOT" / "timestamps.npy")
    return ((stamps[499] - stamps[0]) + (stamps[-1] - stamps[500])) / 60e9


def test_seeds_are_trained_once_and_summed_up_under_a_name(small, called, tmp_path, capsys):
    prove.main(small | {"seeds": 2, "write": False})
    assert not (tmp_path / "results").exists()
    assert [script for script, _ in called].count("fp8_ddp_trainer.py") == 2 == len(called) / 2
    # Of what is done its small files are enough, on another machine too.
    for folder in (tmp_path / "runs").iterdir():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    before = len(called)
    cost = prove.read_cost(tmp_path / "runs" / "fp32_0")
    assert 0 < cost["training"] < 1 and 0 < cost["scoring"] < 1
    prove.main(small)
    assert prove.read_cost(tmp_path / "runs" / "fp32_0") == cost
    new = called[before:]
    assert [keys.get("seed") for _, keys in new] == [2, None]
    assert new[0][1]["precision"] == "fp32" and new[0][1]["model_name"] == "fp32_2"
    assert new[1][1]["pairs"] == ["BTCUSDT_SPOT"] and new[1][1]["split"] == "all"
    result = json.loads((tmp_path / "results" / "shipped.json").read_text())
    values = {(row["case"], row["metric"]): row["value"] for row in result["rows"]}
    case = "BTCUSDT_SPOT/patch/log_size"
    found = [values[case, name] for name in ("error", "error_least", "error_most", "windows")]
    assert found == [2.0, 1.0, 3.0, 96]
    assert "commit c0ffee" in result["device"]
    costs = [prove.read_cost(tmp_path / "runs" / f"fp32_{seed}") for seed in range(3)]
    total = sum(cost["training"] + cost["scoring"] for cost in costs)
    assert values["cost of all runs", "minutes"] == pytest.approx(total, rel=1e-5)
    assert values["BTCUSDT_SPOT", "minutes"] == pytest.approx(minutes_of(tmp_path), rel=1e-5)
    assert "not replayed" in capsys.readouterr().out


def test_the_tables_of_the_shipped_encoder_are_medians_over_seeds(small, called, tmp_path):
    prove.main(small)
    head, _, row = worth.make_shipped_table()
    assert head == (
        "| market, never trained on | minutes (blocks) | patches | spans | tail | single values |"
    )
    # Median error 2 of ridge's 4; the medians' interval is -3 to 0, which is not less by it.
    minutes = round(minutes_of(tmp_path))
    assert row.startswith(f"| Binance BTC/USDT spot, August 2024 | {minutes} (7) | -50 % |")
    # The method that was best on validation windows has less error than the ladder.
    assert "| 2 | 1 to 3 | 4 | 5 † | -3 to 0 |" in worth.make_seeds_table()[2]


@pytest.mark.parametrize(("error", "mark"), [(1e-14, ""), (0.003, ""), (0.005, " †")])
def test_an_exact_ladder_is_no_better_than_what_rounding_leaves(error, mark):
    """Ridge's error is 4: a thousandth of it is taken for rounding."""
    values = {"error": error, "ridge_error": 4.0, "ladder_error": 0.0}
    values |= {"difference_ridge_low": -5.0, "difference_ridge_high": -3.0}
    cells = {("A/patch/log_size", name): {"value": value} for name, value in values.items()}
    assert worth.show_change(cells, "A/patch") == f"**-100 %**{mark}"
    assert worth.show_error(1e-14) == "0" and worth.show_error(-1e-14) != "0"


def test_a_run_with_other_keys_and_nothing_to_score_are_refused(small, called, tmp_path):
    prove.main(small | {"seeds": 1, "write": False})
    with pytest.raises(InputError, match="was trained with other max_lr"):
        prove.main(small | {"seeds": 1, "recipe": {"precision": "fp32", "max_lr": 0.1}})
    with pytest.raises(InputError, match="name at least one pair to score"):
        prove.main(small | {"unseen": None})
