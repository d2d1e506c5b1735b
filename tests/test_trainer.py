"""fp8_ddp_trainer.py from the shell: what a run leaves, how it resumes, stops and refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, shell

from lob.model.checkpoint import load_checkpoint, load_model

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = (
    "--model_size=tiny_transformer",
    "--depth_dim=16",
    "--temporal_dim=32",
    "--batch_size=32",
    "--accumulation_steps=2",
    "--epochs=3",
    "--log_steps=1",
    "--max_lr=3e-3",
    "--dropout=0.0",
    "--slow=0",
    "--size_noise=0",
    "--outlook=0",
)


def command(data: Path, runs: Path, *words: str) -> list[str]:
    """Return the command line of a small run."""
    folders = f"--data_dir={data}", f"--runs_dir={runs}"
    return [sys.executable, "fp8_ddp_trainer.py", *folders, *SMALL, *words]


def train(data: Path, runs: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess:
    """Run the trainer to its end in this process; it has the expected exit status."""
    done = shell(*command(data, runs, *words)[1:])
    assert done.returncode == status, done.stderr
    return done


def train_apart(data: Path, runs: Path, *words: str) -> str:
    """Run the trainer in a process of its own; return what it printed.

    Only processes that begin alike give the same bits: the last ones of a sum depend on where in
    memory arrays begin.
    """
    call = command(data, runs, *words)
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def metrics(run: Path, kind: str) -> list[dict[str, str]]:
    with open(run / "metrics.csv") as handle:
        return [row for row in csv.DictReader(handle) if row["kind"] == kind]


def losses(run: Path) -> list[float]:
    return [float(row["train_loss"]) for row in metrics(run, "step")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step_*.safetensors"))[-1]
    return load_checkpoint(newest)[0]


def wait_for(process: subprocess.Popen, ready) -> None:
    deadline = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before the moment waited for"


@pytest.fixture(scope="module")
def whole(sampled, tmp_path_factory) -> Path:
    """An uninterrupted run, with dropout so that the random state matters."""
    runs = tmp_path_factory.mktemp("runs")
    printed = train_apart(sampled, runs, "--model_name=whole", "--dropout=0.1")
    (runs / "whole" / "printed").write_text(printed)
    return runs / "whole"


def test_a_run_learns_and_leaves_what_it_says(whole):
    printed = (whole / "printed").read_text()
    assert "states shared by two splits: 0" in printed
    assert "precision  fp32 (no NVIDIA GPU on this machine)" in printed or torch.cuda.is_available()
    found = losses(whole)
    assert np.mean(found[-5:]) < np.mean(found[:5])
    before, *after = (float(row["validation_loss"]) for row in metrics(whole, "validation"))
    assert min(after) < before
    assert len(metrics(whole, "epoch")) == 3
    assert len(metrics(whole, "test")) == 1
    assert json.loads((whole / "config.json").read_text())["max_lr"] == 3e-3
    env = json.loads((whole / "env.json").read_text())
    assert "torch" in env["versions"]
    assert f"precision  {env['precision']} (" in printed  # what "auto" came to
    assert env["pairs"] == ["BTC_USD"]  # what None came to
    assert list(whole.glob("events.out.tfevents*"))
    model, meta = load_model(whole / "checkpoints" / "best.safetensors")
    assert model.config.depth == 16
    assert meta["progress"]["best_loss"] == min([before, *after])
    step, epoch = (meta["progress"][key] for key in ("step", "best_epoch"))
    assert f"best.safetensors: epoch {epoch}, step {step}\n" in printed and step > 0


def test_onecycle_is_stepped_once_an_optimizer_step_over_its_whole_cycle(whole):
    rates = [float(row["learning_rate"]) for row in metrics(whole, "step")]
    assert max(rates) == pytest.approx(3e-3, rel=0.02)
    assert np.argmax(rates) == pytest.approx(0.3 * len(rates), abs=2)
    assert rates[-1] < 1e-6


@pytest.mark.parametrize("moment", ["in the first epoch", "in the second epoch"])
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(sampled, tmp_path, whole, moment):
    words = ("--model_name=killed", "--dropout=0.1")
    call = command(sampled, tmp_path, *words, "--checkpoint_minutes=1e-9")  # saves after each step
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.DEVNULL)
    run = tmp_path / "killed"
    epochs = 0 if moment == "in the first epoch" else 1
    steps = 3 + epochs * len(losses(whole)) // 3

    def is_there() -> bool:
        is_logged = (run / "metrics.csv").exists()
        return is_logged and len(metrics(run, "epoch")) == epochs and len(losses(run)) >= steps

    wait_for(process, is_there)
    process.send_signal(signal.SIGSTOP)
    said = train(sampled, tmp_path, *words, "--resume=True", status=2).stderr
    reason = "is still running: wait for its end, or stop it, to resume it"
    assert said == f"fp8_ddp_trainer.py: {run} {reason}\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    train_apart(sampled, tmp_path, *words, "--resume=True")
    assert losses(run) == losses(whole)
    expected = weights(whole)
    found = weights(run)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_sigterm_saves_at_the_end_of_the_step_and_says_so_by_its_status(sampled, tmp_path, whole):
    call = command(sampled, tmp_path, "--model_name=stopped", "--dropout=0.1")
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    run = tmp_path / "stopped"
    wait_for(process, lambda: (run / "metrics.csv").exists() and len(losses(run)) >= 2)
    process.terminate()
    printed, _ = process.communicate()
    assert process.returncode == 143
    assert "stopped by SIGTERM" in printed
    train_apart(sampled, tmp_path, "--model_name=stopped", "--dropout=0.1", "--resume=True")
    assert losses(run) == losses(whole)


def test_resume_shows_what_changed_and_stops(sampled, tmp_path):
    train(sampled, tmp_path, "--epochs=1")
    said = train(sampled, tmp_path, "--epochs=1", "--resume=True", "--lr=0.5", status=2).stderr
    assert "lr was 0.0001, is 0.5" in said
    printed = train(sampled, tmp_path, "--epochs=1", "--resume=True").stdout
    assert "resumed    after step " in printed and "nothing is left to train" in printed
    assert "time  " not in printed and "test loss" in printed
    said = train(sampled, tmp_path, "--model_name=other", "--resume=True", status=2).stderr
    assert "no run 'other'" in said


def test_a_name_in_use_gets_a_number(sampled, tmp_path):
    for _ in range(2):
        train(sampled, tmp_path, "--epochs=1", "--model_name=twice")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["twice", "twice-2"]
    assert losses(tmp_path / "twice") == losses(tmp_path / "twice-2")


def test_early_stopping_and_plateau_decay(sampled, tmp_path):
    """Steps this short change nothing, so no validation loss is better than the first."""
    words = ["--use_scheduler=False", "--max_grad_norm=1e-9", "--optimizer=sgd", "--epochs=8"]
    words += ["--early_stopping_patience=3", "--lr_decay_patience=0", "--lr_decay_factor=0.1"]
    printed = train(sampled, tmp_path, *words).stdout
    assert "stopped early" in printed
    said = "best.safetensors: epoch 0, step 0, the weights before training: no later ones"
    assert said in printed
    epochs = metrics(tmp_path / "pretrained_ddp", "epoch")
    assert 3 <= len(epochs) < 8
    rates = [float(row["learning_rate"]) for row in epochs]
    assert rates[-1] < rates[0]


def test_checkpoints_are_pruned_and_can_be_begun_from(sampled, tmp_path, whole):
    best = whole / "checkpoints" / "best.safetensors"
    train(sampled, tmp_path, "--keep_checkpoints=2", "--load_model=True", f"--model_path={best}")
    run = tmp_path / "pretrained_ddp"
    assert len(list((run / "checkpoints").glob("step_*"))) == 2
    first = float(metrics(run, "validation")[0]["validation_loss"])
    least = min(float(row["validation_loss"]) for row in metrics(whole, "validation"))
    assert first == pytest.approx(least, rel=1e-5)


def test_a_non_finite_loss_ends_the_run_before_the_update(sampled, tmp_path):
    words = ["--max_lr=1e30", "--optimizer=sgd", "--max_grad_norm=1e30"]
    said = train(sampled, tmp_path, *words, status=1).stderr
    assert "were not updated" in said
    assert "step" in said
    assert "Traceback" not in said
    kept = list((tmp_path / "pretrained_ddp" / "checkpoints").glob("nonfinite_*"))
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mask_perc=1.5",), "mask_perc"),
        (("--model_size=tiny_transfomer",), "did you mean 'tiny_transformer'"),
        (("--precision=fp8",), "precision"),
        (("--depth_dim=96",), "--depth_dim=16"),
        (("--temporal_dim=64",), "temporal_dim = 32, not 64"),
        (("--split_ratios=[0.5,0.25,0.25]",), "split_ratios"),
        (("--load_model=True",), "model_path"),
        (("--batch_size=100000",), "lower batch_size"),
        (("--model_size=cell_transformer", "--fill=linear"), "set fill to 'ladder'"),
        (("--azure=True", "--azure_data_root=/nonexistent"), "mount the data disk"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="some of these are possible on a GPU")
def test_impossible_settings_get_one_line(sampled, tmp_path, words, said):
    error = train(sampled, tmp_path, *words, status=2).stderr
    assert said in error
    assert error.count("\n") == 1


def test_a_checkpoint_with_a_pickle_is_refused_and_not_run(sampled, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save(Hostile(), tmp_path / "hostile.safetensors")
    words = ("--load_model=True", f"--model_path={tmp_path / 'hostile.safetensors'}")
    assert "is not a safetensors checkpoint" in train(sampled, tmp_path, *words, status=2).stderr
    assert not (tmp_path / "harm").exists()
