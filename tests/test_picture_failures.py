"""A picture that fails is said in one line and ends no script: the numbers are worth more."""

import os
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from conftest import ROOT
from test_analysis import settings as analyser_settings
from test_analysis import write_run
from test_trainer import metrics
from test_trainer_settings import train

import create_balanced_dataset
import exploration_main
import inference_testing
import training_results_analysis


@pytest.fixture
def broken(monkeypatch):
    """No figure can be made, as without fonts, without memory or with a broken matplotlibrc."""

    def fail(*_, **__):
        raise OSError("no fonts\nat all")

    for name in ("subplots", "figure", "subplot_mosaic"):
        monkeypatch.setattr(plt, name, fail)


def check_said(err: str, what: str) -> None:
    assert err.count("\n") == 1 and f"{what} not drawn (OSError: no fonts); the rest goes on" in err


def test_windows_are_described_and_sampled_without_pictures(sampled, tmp_path, broken, capsys):
    shutil.copytree(sampled / "book_states", tmp_path / "book_states")
    here = {"data_dir": str(tmp_path), "temporal_dim": 32}
    assert exploration_main.main({**exploration_main.config, **here}) == 0
    check_said(capsys.readouterr().err, "BTC_USD: pictures")
    choices = {"cells": [1, 1, 1], "min_stride": 1, "windows": 100}
    config = {**create_balanced_dataset.config, **here, **choices}
    assert create_balanced_dataset.main(config) == 0
    check_said(capsys.readouterr().err, "BTC_USD: picture")
    assert (tmp_path / "balanced_samples" / "BTC_USD.json").exists()
    assert not (tmp_path / "plots").exists()


def test_a_run_is_trained_saved_and_tested_without_pictures(sampled, tmp_path, broken, capsys):
    run = train(sampled, tmp_path)
    check_said(capsys.readouterr().err, "picture of a window")
    assert len(metrics(run, "epoch")) == len(metrics(run, "test")) == 1
    changes = {"data_dir": str(sampled), "runs_dir": str(tmp_path), "masks": ["tail"], "windows": 2}
    changes |= {"fit_windows": 2, "probe_windows": 0, "latency_runs": 1}
    assert inference_testing.main({**inference_testing.config, **changes}) == 0
    check_said(capsys.readouterr().err, "BTC_USD: pictures")
    assert (run / "report.json").exists() and not list(run.glob("*.png"))


def test_runs_are_compared_without_pictures(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs" / "one", [1.0, 0.8])
    old = tmp_path / "runs" / "analysis" / "curves.png"
    old.parent.mkdir()
    old.write_bytes(b"of an older analysis")

    def fail(*_):
        raise ValueError

    monkeypatch.setattr(training_results_analysis, "draw_curves", fail)
    training_results_analysis.main(analyser_settings(tmp_path))
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "curves.png not drawn (ValueError: no reason given)" in err
    assert (old.parent / "runs.csv").exists() and not old.exists()


def test_the_backend_of_a_notebook_is_not_taken(tmp_path):
    """Jupyter puts it into the environment of all that is started from a cell."""
    write_run(tmp_path / "runs" / "one", [1.0, 0.8])
    own = os.environ | {"MPLBACKEND": "module://no_such_package.backend_inline"}
    command = [sys.executable, "training_results_analysis.py", f"--runs_dir={tmp_path / 'runs'}"]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "runs" / "analysis" / "curves.png").exists()
