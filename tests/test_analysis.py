"""The analyser on runs that the tests write: its table, warnings, damaged runs and pictures."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, shell

import training_results_analysis as analysis
from lob.config import InputError, read_comments
from lob.evaluation import runs as runs_room
from lob.results import make_row

SCRIPT = ROOT / "training_results_analysis.py"
CONFIG = {
    "model_name": "x",
    "model_size": "tiny_transformer",
    "epochs": 4,
    "max_lr": 1e-3,
    "precision": "bf16",
    "fp8_recipe": "delayed",
    "seed": 0,
    "mask_perc": 0.25,
    "pairs": None,
    "optimizer": "adamw",
}
HEADER = (
    "kind,epoch,step,windows_seen,seconds,train_loss,validation_loss,ladder_loss,linear_loss,"
    "learning_rate,gradient_norm,windows_per_second,data_wait_share\n"
)


LADDER = 0.7  # its validation loss in every run


def write_run(
    folder: Path, validation: list[float], steps: list[float] | None = None, **config: Any
) -> Path:
    """Write a run with a validation before training and after each epoch; return its folder.

    An epoch has 100 steps of 8 windows, takes 2 s and logs ten train losses, `steps`.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_name": folder.name} | config))
    (folder / "env.json").write_text(json.dumps({"commit": "abc1234", "gpu": None}))
    epochs = len(validation) - 1
    losses = steps if steps is not None else [1.0] * (10 * epochs)
    lines = [f"validation,0,0,0,0.0,,{validation[0]},{LADDER},0.9,,,,\n"]
    for epoch in range(1, epochs + 1):
        for entry in range(10 * (epoch - 1), 10 * epoch):
            step = 10 * (entry + 1)
            at = f"{epoch - 1},{step},{8 * step},0.0"
            lines.append(f"step,{at},{losses[entry]},,,,1e-4,0.5,400.0,0.25\n")
        at = f"{epoch},{100 * epoch},{800 * epoch},{2.0 * epoch}"
        loss = validation[epoch]
        lines.append(f"validation_price,{at},,{loss},{LADDER},0.9,,,,\n")
        lines.append(f"validation,{at},,{loss},{LADDER},0.9,,,,\n")
        lines.append(f"epoch,{at},{0.9 * loss},{loss},,,1e-4,,{400 + epoch},\n")
    (folder / "metrics.csv").write_text(HEADER + "".join(lines))
    return folder


def settings(tmp_path: Path, **changed: Any) -> dict[str, Any]:
    folders = {"runs_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}
    return {**analysis.config, **folders, **changed}


def analyse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], **changed: Any
) -> tuple[str, pd.DataFrame]:
    """Run main; return what it printed and the table it wrote."""
    analysis.main(settings(tmp_path, **changed))
    return capsys.readouterr().out, pd.read_csv(tmp_path / "runs" / "analysis" / "runs.csv")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the table and the warnings: drawing takes most of the time."""
    monkeypatch.setattr(analysis, "draw_curves", lambda *_: None)


def test_table_holds_the_runs_numbers(tmp_path, capsys):
    write_run(tmp_path / "runs" / "good", [1.0, 0.8, 0.5, 0.6, 0.4])
    write_run(tmp_path / "runs" / "better", [1.0, 0.3, 0.2, 0.35, 0.3])
    with open(tmp_path / "runs" / "better" / "metrics.csv", "a") as handle:
        handle.write("test,4,400,3200,8.0,,0.25,,,,,,\n")
    _, table = analyse(tmp_path, capsys)
    assert list(table["run"]) == ["better", "good"]
    better = table.iloc[0]
    counts = better[["epochs", "steps", "windows_seen", "best_epoch"]]
    assert counts.tolist() == ["4/4", 400, 3200, 2]
    losses = better[["before_training", "best_validation", "test"]]
    assert losses.tolist() == [1.0, 0.2, 0.25]
    assert better["train_loss"] == pytest.approx(0.27)
    assert better["minutes"] == pytest.approx(8 / 60)
    assert better["windows_per_second"] == 402.5 and better["data_wait_share"] == 0.25
    assert np.isnan(table.iloc[1]["test"])
    assert (tmp_path / "runs" / "analysis" / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("sort_by", "order"),
    [
        ("best_validation", "bac"),
        ("-best_validation", "cab"),
        ("max_lr", "cab"),
        ("-run", "cba"),
        ("optimizer", "bca"),
    ],
)
def test_sort_by_takes_columns_and_config_keys(tmp_path, capsys, no_pictures, sort_by, order):
    write_run(tmp_path / "runs" / "a", [1.0, 0.5], max_lr=2e-3, optimizer="sgd")
    write_run(tmp_path / "runs" / "b", [1.0, 0.4], max_lr=1e-2, optimizer="adam")
    write_run(tmp_path / "runs" / "c", [1.0, 0.6], max_lr=5e-4)
    _, table = analyse(tmp_path, capsys, sort_by=sort_by)
    assert "".join(table["run"]) == order


def test_sort_by_nothing_known_is_refused_with_the_nearest_name(tmp_path):
    write_run(tmp_path / "runs" / "a", [1.0, 0.5])
    with pytest.raises(InputError, match=r"sort_by = 'best_valid'.*did you mean 'best_validation'"):
        analysis.main(settings(tmp_path, sort_by="best_valid"))


def test_differing_keys_are_printed_and_losses_that_do_not_compare_pointed_out(
    tmp_path, capsys, no_pictures
):
    for number in range(6):
        write_run(tmp_path / "runs" / f"r{number}", [1.0, 0.5], max_lr=1e-3 if number else 1e-2)
    printed, _ = analyse(tmp_path, capsys)
    line = next(line for line in printed.splitlines() if line.startswith("  max_lr"))
    assert "0.01 (r0)" in line and "0.001 (r1, r2, r3, r4 and 1 more)" in line
    assert "optimizer" not in printed.split("the runs differ in:")[1]
    assert "do not compare" not in printed
    write_run(tmp_path / "runs" / "other_mask", [1.0, 0.1], mask_perc=0.5)
    printed, _ = analyse(tmp_path, capsys)
    assert "losses of runs that differ in mask_perc are taken over different values" in printed


def test_smoothing_is_the_unbiased_exponential_average():
    values = np.random.default_rng(0).normal(size=50)
    alpha, total, weight, expected = 2 / (5 + 1), 0.0, 0.0, []
    for value in values:
        total, weight = (1 - alpha) * total + value, (1 - alpha) * weight + 1
        expected.append(total / weight)
    np.testing.assert_allclose(runs_room.smooth(pd.Series(values), 5), expected, rtol=1e-12)


def test_divergence_is_dated(tmp_path, capsys, no_pictures):
    rng = np.random.default_rng(1)
    falling = np.geomspace(1, 0.2, 40) * rng.lognormal(0, 0.15, 40)
    diverging = np.concatenate([falling[:20], np.full(20, 3.0)])
    write_run(tmp_path / "runs" / "falling", [1, 0.8, 0.6, 0.4, 0.2], list(falling))
    write_run(tmp_path / "runs" / "diverging", [1, 0.8, 0.6, 2.5, 2.9], list(diverging))
    recovered = [*diverging[:30], *np.full(10, 0.001)]
    write_run(tmp_path / "runs" / "recovered", [1, 0.8, 0.6, 2.5, 0.1], recovered)
    # A first entry that was low by luck is no level that later ones diverge from.
    write_run(tmp_path / "runs" / "unfalling", [1, 0.8, 0.6, 0.4, 0.2], [0.01, *np.full(39, 1.0)])
    broken = [*falling[:15], float("nan"), *falling[16:]]
    write_run(tmp_path / "runs" / "broken", [1, 0.8, 0.6, 0.5, 0.4], broken)
    printed, _ = analyse(tmp_path, capsys, smoothing=5)
    warnings = [line for line in printed.splitlines() if line.startswith("warning: ")]
    of_falling = [line for line in warnings if "falling: " in line]  # unfalling's too
    assert not [line for line in of_falling if "diverged" in line or "train loss" in line]
    dated = "warning: diverging: diverged in epoch 3, step 2"
    assert [line for line in warnings if line.startswith(dated)]
    (line,) = (line for line in warnings if line.startswith("warning: recovered: diverged"))
    assert float(line.rsplit(" ", 1)[1]) == pytest.approx(np.mean(falling[15:20]), rel=0.2)
    assert "warning: broken: train loss nan at step 160, epoch 2" in warnings
    assert "diverged" not in analyse(tmp_path, capsys, smoothing=5, divergence_factor=50.0)[0]


def test_plateau_is_dated_from_the_last_gain(tmp_path, capsys, no_pictures):
    write_run(tmp_path / "runs" / "flat", [1.0, 0.5, 0.3, 0.299, 0.31, 0.2985, 0.299], epochs=6)
    write_run(tmp_path / "runs" / "falling", [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], epochs=6)
    printed, _ = analyse(tmp_path, capsys)
    wanted = "plateau from epoch 2: 4 more epochs lowered the best validation loss by 0.50%"
    assert f"warning: flat: {wanted}" in printed
    assert "falling: plateau" not in printed
    assert "flat: plateau" in analyse(tmp_path, capsys, plateau_epochs=4)[0]
    printed, _ = analyse(tmp_path, capsys, plateau_epochs=5)
    assert ": plateau" not in printed


def test_a_run_that_training_made_no_better_is_pointed_out(tmp_path, capsys, no_pictures):
    write_run(tmp_path / "runs" / "worse", [0.5, 0.6, 0.7], epochs=2)
    write_run(tmp_path / "runs" / "better", [0.5, 0.6, 0.4], epochs=2)
    printed, _ = analyse(tmp_path, capsys)
    assert "warning: worse: no validation was better than before training, 0.500000" in printed
    assert "better: no" not in printed
    assert max(map(len, printed.splitlines()[:5])) <= 120


def test_damaged_runs_are_named_in_one_line_and_the_others_analysed(tmp_path, capsys, no_pictures):
    runs = tmp_path / "runs"
    write_run(runs / "whole", [1.0, 0.5])
    names = "no_config cut_config wrong_header text too_wide empty no_rows binary kind"
    for name in (*names.split(), "list_env", "list_report", "odd_report"):
        write_run(runs / name, [1.0, 0.5])
    (runs / "no_config" / "config.json").unlink()
    (runs / "cut_config" / "config.json").write_text('{"epochs": 4, "max')
    metrics = {name: runs / name / "metrics.csv" for name in os.listdir(runs)}
    metrics["wrong_header"].write_text("step,loss\n1,0.5\n")
    metrics["text"].write_text(HEADER + "step,0,10,80,0.0,abc,,,,,,,\n")
    metrics["too_wide"].write_text(HEADER + "step,0,10,80,0.0,1,,,,,,,,7,8\n" * 3)
    metrics["empty"].write_text("")
    metrics["no_rows"].write_text(HEADER)
    metrics["binary"].write_bytes(bytes(range(256)) * 10)
    metrics["kind"].write_text(HEADER + "stop,0,10,80,0.0,1.0,,,,,,,\n")
    (runs / "list_env" / "env.json").write_text("[]")
    (runs / "list_report" / "report.json").write_text("[1]")
    (runs / "odd_report" / "report.json").write_text('{"rows": [{"case": "BTC/patch/log_size"}]}')
    (runs / "notes").mkdir()  # it is no run, so it is not named
    printed, table = analyse(tmp_path, capsys)
    assert list(table["run"]) == ["whole"]
    (line,) = [line for line in printed.splitlines() if line.startswith("left out, damaged: ")]
    for name in set(metrics) - {"whole"}:
        assert f"{name} (" in line
    assert "notes" not in printed


def test_a_killed_run_keeps_all_but_its_half_line(tmp_path, capsys, no_pictures):
    folder = write_run(tmp_path / "runs" / "killed", [1.0, 0.5, 0.25])
    with open(folder / "metrics.csv", "a") as handle:
        handle.write("step,2,210,1680,0.0,0.1")
    printed, table = analyse(tmp_path, capsys)
    assert table.loc[0, "steps"] == 200 and "killed: unfinished: 2 of 4 epochs" in printed


def test_effects_join_runs_that_differ_in_one_key_alone(tmp_path, capsys, no_pictures):
    for lr, seed, loss in ((1e-3, 0, 0.5), (1e-3, 1, 0.6), (1e-2, 0, 0.4)):
        write_run(tmp_path / "runs" / f"lr{lr}_{seed}", [1.0, loss], max_lr=lr, seed=seed)
    write_run(tmp_path / "runs" / "other", [1.0, 0.3], max_lr=1e-1, optimizer="sgd")
    write_run(tmp_path / "runs" / "other_loss", [1.0, 0.3], max_lr=1e-3, mask_perc=0.5)
    runs = [analysis.read_run(folder) for folder in analysis.find_runs(str(tmp_path / "runs"), [])]
    figure = analysis.draw_effects(runs, analysis.find_different_keys(runs))
    assert figure is not None
    (axis,) = [axis for axis in figure.axes if axis.axison]
    assert axis.get_xlabel() == "max_lr"
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [0.55, 0.4])
    analyse(tmp_path, capsys)
    assert (tmp_path / "runs" / "analysis" / "effects.png").exists()


def test_fp8_is_drawn_against_bf16_and_the_picture_goes_with_the_runs(
    tmp_path, capsys, no_pictures
):
    runs, picture = tmp_path / "runs", tmp_path / "runs" / "analysis" / "precision.png"
    write_run(runs / "bf16", [1.0, 0.5, 0.4])
    analyse(tmp_path, capsys)
    assert not picture.exists()
    folder = write_run(runs / "fp8", [1.0, 0.51, 0.41], precision="auto")
    (folder / "env.json").write_text(json.dumps({"precision": "fp8"}))
    _, table = analyse(tmp_path, capsys)
    assert picture.exists() and sorted(table["precision"]) == ["bf16", "fp8"]
    (folder / "metrics.csv").rename(folder / "gone")
    (folder / "config.json").unlink()
    analyse(tmp_path, capsys)
    assert not picture.exists()


def test_the_difference_of_fp8_is_in_percent_of_bf16(tmp_path):
    losses = {"fp8": [1.0, 0.6, 0.44], "bf16": [1.0, 0.5, 0.4]}
    folders = [write_run(tmp_path / name, x, precision=name) for name, x in losses.items()]
    figure = analysis.draw_precision([analysis.read_run(folder) for folder in folders])
    assert figure is not None
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx([0.0, 20.0, 10.0])


def test_curves_of_runs_that_do_not_compare_stand_apart_beside_the_ladder(tmp_path, capsys):
    runs = tmp_path / "runs"
    for name, mask in (("a", "patch"), ("b", "tail"), ("c", "patch")):
        write_run(runs / name, [1.0, 0.5], mask_mode=mask)
    found = [analysis.read_run(folder) for folder in analysis.find_runs(str(runs), [])]
    groups = runs_room.group_comparable(found)
    assert [[run.name for run in group] for group in groups] == [["a", "c"], ["b"]]
    figure = analysis.draw_group(groups, 0, 20)
    assert figure is not None
    (loss, *_) = figure.axes
    assert "2 runs with mask_mode = 'patch'" in loss.get_title()
    labels = {line.get_label() for line in loss.lines}
    assert {"a", "c", "ladder, not trained"} < labels
    dotted = [list(line.get_ydata()) for line in loss.lines if line.get_linestyle() == ":"]
    assert dotted == [[], [LADDER, LADDER]]
    found[2].metrics["validation"]["ladder_loss"] *= 1.1  # another seed hid other values
    figure = analysis.draw_group(groups, 0, 20)
    assert figure is not None
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"][1:]
    assert [line.get_ydata()[0] for line in dotted] == pytest.approx([LADDER, 1.1 * LADDER])
    analyse(tmp_path, capsys)
    pictures = runs / "analysis"
    assert {file.name for file in pictures.glob("curves*")} == {"curves.png", "curves_2.png"}
    (runs / "b" / "config.json").unlink()
    (runs / "b" / "metrics.csv").unlink()
    _, table = analyse(tmp_path, capsys)
    assert {file.name for file in pictures.glob("curves*")} == {"curves.png"}
    assert table["ladder"].tolist() == [LADDER, LADDER]


def test_accuracy_reports_are_tabled(tmp_path, capsys, no_pictures):
    folder = write_run(tmp_path / "runs" / "a", [1.0, 0.5])
    values = {
        ("entry/log_size", "skill_untrained"): 0.1,
        ("entry/log_size", "trained_on"): 1,
        ("tail/log_size", "ours"): 3.0,
        ("tail/log_size", "trained_on"): 0,
        ("tail/log_size", "skill_untrained"): -0.25,
        ("tail/mid", "skill_untrained"): 0.5,
    }
    rows = [make_row(f"BTC_USD/{case}", metric, value) for (case, metric), value in values.items()]
    (folder / "report.json").write_text(json.dumps({"benchmark": "representation", "rows": rows}))
    printed, _ = analyse(tmp_path, capsys)
    (line,) = [line for line in printed.splitlines() if "BTC_USD" in line]
    assert line.split() == ["a", "BTC_USD", "+0.100", "-0.250*"]
    written = pd.read_csv(tmp_path / "runs" / "analysis" / "accuracy.csv")
    assert written["value"].tolist() == list(values.values())


def test_more_runs_and_pairs_choose_runs(tmp_path, capsys, no_pictures):
    write_run(tmp_path / "runs" / "all", [1.0, 0.5])
    write_run(tmp_path / "elsewhere" / "eth", [1.0, 0.4], pairs=["ETH_USD"])
    single = write_run(tmp_path / "one" / "btc", [1.0, 0.3], pairs=["BTC_USD"])
    folder = str(tmp_path / "elsewhere")
    _, table = analyse(tmp_path, capsys, more_runs=[folder, str(single)], output_dir=None)
    assert list(table["run"]) == ["btc", "eth", "all"]
    _, table = analyse(tmp_path, capsys, more_runs=[folder], pairs=["ETH_USD"])
    assert list(table["run"]) == ["eth"]
    # The config has pairs = None; env.json says which pairs that were.
    (tmp_path / "runs" / "all" / "env.json").write_text(json.dumps({"pairs": ["BTC_USD"]}))
    _, table = analyse(tmp_path, capsys, more_runs=[str(single)], pairs=["BTC_USD"])
    assert list(table["run"]) == ["btc", "all"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys, no_pictures):
    for folder, loss in (("runs", 0.5), ("old", 0.4)):
        run = write_run(tmp_path / folder / "a", [1.0, loss])
        row = make_row("BTC/patch/log_size", "skill_untrained", loss)
        (run / "report.json").write_text(json.dumps({"rows": [row]}))
    printed, table = analyse(tmp_path, capsys, more_runs=[str(tmp_path / "old")])
    assert list(table["run"]) == [str(tmp_path / "old" / "a"), str(tmp_path / "runs" / "a")]
    assert "+0.400" in printed and "+0.500" in printed


def test_samples_made_after_a_run_are_pointed_out(tmp_path, capsys, no_pictures):
    folder = write_run(tmp_path / "runs" / "old", [1.0, 0.5])
    sample = tmp_path / "data" / "balanced_samples" / "BTC_USD.json"
    sample.parent.mkdir(parents=True)
    sample.write_text("{}")
    os.utime(folder / "config.json", ns=(0, sample.stat().st_mtime_ns - 10**9))
    assert "old: trained before" in analyse(tmp_path, capsys)[0]
    (folder / "env.json").write_text(json.dumps({"pairs": ["ETH_USD"]}))
    os.utime(folder / "config.json", ns=(0, sample.stat().st_mtime_ns - 10**9))
    assert "trained before" not in analyse(tmp_path, capsys)[0]
    (folder / "env.json").unlink()
    os.utime(folder / "config.json", ns=(0, sample.stat().st_mtime_ns + 10**9))
    assert "trained before" not in analyse(tmp_path, capsys)[0]


def test_the_columns_are_the_trainers():
    from lob.training.run_folder import COLUMNS

    assert ",".join(COLUMNS) + "\n" == HEADER


def test_every_loss_key_is_one_of_the_trainer():
    keys = read_comments(ROOT / "fp8_ddp_trainer.py")
    assert set(runs_room.LOSS_KEYS) | runs_room.NAMES <= set(keys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs_dir={}/none"], "there is no folder"),
        (["--runs_dir={}"], "no run "),
        (["--smoothing=0"], "smoothing = 0 must be >= 1"),
        (["--sort_bye=x"], "did you mean 'sort_by'"),
        (["--runs_dir={}", "--output_dir=README.md/x"], "output_dir = "),
        (["--plateau_gain=2"], "plateau_gain = 2"),
    ],
)
def test_user_mistakes_get_one_line_and_status_2(tmp_path, words, message):
    done = shell(SCRIPT, *(word.format(tmp_path) for word in words))
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "analysis").exists()
