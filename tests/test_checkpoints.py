"""Every script refuses in one line a checkpoint with wrong metadata or other tensors."""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fp8_ddp_trainer
import inference_testing
import model_exporter
from lob.config import run
from lob.model.checkpoint import load_checkpoint, save_checkpoint

SMALL = {
    "model_size": "tiny_transformer",
    "depth_dim": 16,
    "temporal_dim": 32,
    "batch_size": 64,
    "epochs": 1,
    "fill": "linear",
    "outlook": 0.0,
}


@pytest.fixture(scope="module")
def runs(sampled, tmp_path_factory) -> Path:
    """A runs_dir with one short run."""
    folder = tmp_path_factory.mktemp("runs")
    folders = {"data_dir": str(sampled), "runs_dir": str(folder)}
    before = signal.getsignal(signal.SIGTERM)  # which the trainer takes
    assert fp8_ddp_trainer.main(fp8_ddp_trainer.config | SMALL | folders) == 0
    signal.signal(signal.SIGTERM, before)
    return folder


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def refused(
    script: Any, data: Path, runs: Path, capsys: pytest.CaptureFixture, **changes: Any
) -> str:
    """Run a script on the checkpoint under `runs`, the trainer by resuming; return its one line."""
    own = SMALL | {"resume": True} if script is fp8_ddp_trainer else {}
    folders = {"data_dir": str(data), "runs_dir": str(runs)}
    with pytest.raises(SystemExit) as stopped:
        run(script.main, script.config | own | folders | changes)
    error = capsys.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (2, 1), error
    return error


def checkpoint_of(script: Any, runs: Path) -> Path:
    name = "step_*.safetensors" if script is fp8_ddp_trainer else "best.safetensors"
    return max(runs.glob(f"*/checkpoints/{name}"))


def put(meta: dict[str, Any], name: str, value: Any) -> None:
    """Set an entry of metadata by its dotted name, or remove it if the value is None."""
    *folders, last = name.split(".")
    for folder in folders:
        meta = meta[folder]
    meta.pop(last, None)
    if value is not None:
        meta[last] = value


@pytest.mark.parametrize("script", [fp8_ddp_trainer, inference_testing, model_exporter])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("progress", None),
        ("progress", [1]),
        ("progress.step", None),
        ("progress.step", "7"),
        ("progress.epoch", -1),
        ("progress.step", 2**63),
        ("progress.best_loss", "low"),
        ("data", None),
        ("data.cuts_ns", [1]),
        ("data.cuts_ns", ["a", "b"]),
        ("data.books", [{}]),
        ("config", "none"),
        ("config.mask_mode", None),
        ("lr", "high"),
        ("lr", -1.0),
        ("plateau", None),
        ("plateau.best", "low"),
        ("windows_a_step", 0),
        ("windows_a_step", True),
        ("metrics_bytes", -1),
        ("encoder", None),
        ("encoder.width", 64.0),
        ("encoder.width", -64),
        ("encoder.heads", 0),
        ("encoder.dropout", "much"),
        ("encoder.causal", 1),
        ("encoder.fill", 3),
    ],
)
def test_metadata_of_another_kind_is_named(sampled, copied, capsys, script, name, value):
    file = checkpoint_of(script, copied)
    tensors, meta = load_checkpoint(file)
    put(meta, name, value)
    save_checkpoint(file, tensors, meta)
    error = refused(script, sampled, copied, capsys)
    assert str(file) in error and f"metadata '{name}" in error and "--model_path" in error


@pytest.mark.parametrize("script", [inference_testing, model_exporter])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heads", 5),
        ("heads", 64),
        ("width", 10**12),
        ("layers", 10**12),
        ("temporal_dim", 10**18),
        ("depth", 20),
        ("cell_width", 64),
        ("dropout", 1.0),
        ("fill", "cubic"),
        ("normalization", "z"),
        ("rope", 2),
    ],
)
def test_an_encoder_that_cannot_be_run_is_refused(sampled, copied, capsys, script, name, value):
    file = checkpoint_of(script, copied)
    tensors, meta = load_checkpoint(file)
    save_checkpoint(file, tensors, meta | {"encoder": meta["encoder"] | {name: value}})
    error = refused(script, sampled, copied, capsys)
    assert str(file) in error and "--model_path" in error


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.norm.weight", None),
        ("model.norm.weight", torch.ones(3)),
        ("model.more", torch.ones(1)),
        ("optimizer.norm.weight.exp_avg", torch.ones(1)),
        ("optimizer.norm.weight.step", torch.ones(2)),
        ("optimizer.norm.weight.exp_avg_sq", None),
        ("epoch_sums", torch.ones(3)),
    ],
)
def test_a_run_is_not_resumed_with_tensors_of_another(sampled, copied, capsys, name, tensor):
    file = checkpoint_of(fp8_ddp_trainer, copied)
    tensors, meta = load_checkpoint(file)
    changed = {key: x for key, x in (tensors | {name: tensor}).items() if x is not None}
    save_checkpoint(file, changed, meta)
    assert f"{file} does not hold" in refused(fp8_ddp_trainer, sampled, copied, capsys, epochs=2)


def test_the_best_weights_are_not_tested_where_they_are_of_another_network(sampled, copied, capsys):
    file = checkpoint_of(model_exporter, copied)
    tensors, meta = load_checkpoint(file)
    save_checkpoint(file, tensors | {"model.norm.weight": torch.ones(3)}, meta)
    assert f"{file} does not hold" in refused(fp8_ddp_trainer, sampled, copied, capsys)


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "9" * (sys.get_int_max_str_digits() + 1), "{", json.dumps([])]
)
def test_metadata_that_cannot_be_read_is_refused(sampled, copied, capsys, text):
    file = checkpoint_of(model_exporter, copied)
    save_file(load_checkpoint(file)[0], file, metadata={"checkpoint": text})
    assert str(file) in refused(model_exporter, sampled, copied, capsys)
