"""The fast path trains as the slow one does: compiled steps in a CUDA graph beside eager steps."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_book

from lob.training.run_folder import read_metrics
from lob.training.te_layer import te_obstacle

STEPS = 60
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
needs_fp8 = pytest.mark.skipif(
    bool(te_obstacle()), reason=f"needs Transformer Engine: {te_obstacle()}"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A book and a sample of it that trains for more than STEPS steps."""
    folder = tmp_path_factory.mktemp("data")
    write_book(folder, rows=20_000)
    for script in ("exploration_main.py", "create_balanced_dataset.py"):
        command = [sys.executable, script, f"--data_dir={folder}", "--plots=False"]
        subprocess.run(command, cwd=ROOT, check=True)
    return folder


def last_loss(data: Path, precision: str, compiled: bool) -> float:
    """Train by the script; return the mean train loss of the last tenth of STEPS steps."""
    name = f"{precision}_{'fast' if compiled else 'eager'}"
    keys = {
        "data_dir": data,
        "runs_dir": data / "runs",
        "model_name": name,
        "model_size": "tiny_transformer",
        "precision": precision,
        "compile": compiled,
        "batch_size": 16,
        "accumulation_steps": 1,
        "epochs": 8,
        "log_steps": 1,
        "use_scheduler": False,
        "lr": 2.5e-4,
        "dropout": 0.0,
        "max_gpus": 1,
    }
    words = [f"--{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "fp8_ddp_trainer.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(data / "runs" / name).query("kind == 'step'")
    losses = rows["train_loss"].to_numpy()[:STEPS]
    assert len(losses) == STEPS
    return float(losses[-STEPS // 10 :].mean())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "precision",
    [pytest.param("bf16", marks=needs_gpu), pytest.param("fp8", marks=needs_fp8)],
)
def test_compiled_steps_in_a_graph_end_at_the_loss_of_eager_steps(data, precision):
    """Both start from equal weights and see equal windows and masks: the seed decides on them."""
    fast, eager = (last_loss(data, precision, compiled) for compiled in (True, False))
    assert fast == pytest.approx(eager, rel=5e-3)
