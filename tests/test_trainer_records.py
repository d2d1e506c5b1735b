"""What fp8_ddp_trainer.py leaves and finds, in this process: TensorBoard, checkpoints, folders."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, metadata
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import metrics
from test_trainer_settings import settings, train, trainer

import fp8_ddp_trainer
from benchmarks.prove import read_test_loss
from fp8_ddp_trainer import main
from lob.config import InputError
from lob.model.checkpoint import load_checkpoint, save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config
from lob.training.run_folder import new_run, runs_named
from lob.training.saving import load_weights, training_state

pytestmark = pytest.mark.usefixtures("kept_signals")


@pytest.fixture(scope="module")
def logged(sampled, tmp_path_factory) -> tuple[Path, EventAccumulator]:
    """A run of two epochs, and its TensorBoard events."""
    intervals = {"validate_steps": 9, "histogram_steps": 10, "log_steps": 4}
    run = train(sampled, tmp_path_factory.mktemp("logged"), epochs=2, **intervals)
    board = EventAccumulator(str(run), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    board.Reload()
    return run, board


def test_tensorboard_holds_what_metrics_csv_holds(logged):
    run, board = logged
    for tag in (
        "step/train_loss",
        "step/learning_rate",
        "step/gradient_norm",
        "step/windows_per_second",
        "step/data_wait_share",
        "epoch/train_loss",
        "epoch/validation_loss",
        "epoch/learning_rate",
        "epoch/windows_per_second",
        "validation/validation_loss",
        "test/validation_loss",
    ):
        kind, column = tag.split("/")
        rows = [(int(row["step"]), float(row[column])) for row in metrics(run, kind)]
        found = [(event.step, event.value) for event in board.Scalars(tag)]
        assert len(found) > 0 and [step for step, _ in found] == [step for step, _ in rows], tag
        np.testing.assert_allclose(found, rows, rtol=1e-6)


def test_intervals_are_kept(logged):
    run, board = logged
    last = int(metrics(run, "epoch")[-1]["step"])
    steps = [int(row["step"]) for row in metrics(run, "step")]
    assert steps == list(range(4, last + 1, 4))
    validated = {int(row["step"]) for row in metrics(run, "validation")}
    assert validated == {0, last // 2, last} | set(range(9, last, 9))
    gradients = [tag for tag in board.Tags()["histograms"] if tag.startswith("gradients/")]
    assert len(gradients) == len(list(BookEncoder(encoder_config("tiny_transformer")).parameters()))
    for tag in gradients:
        assert [event.step for event in board.Histograms(tag)] == list(range(10, last + 1, 10))


def test_tensorboard_shows_pictures_config_and_hparams(logged):
    run, board = logged
    epochs = [int(row["step"]) for row in metrics(run, "epoch")]
    pictures = board.Images("reconstruction")
    assert [event.step for event in pictures] == epochs and pictures[0].width > 600
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string
    text = board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "mask_perc = 0.25" in text and "model_size = 'tiny_transformer'" in text
    plugins = board.summary_metadata["_hparams_/session_start_info"].plugin_data
    assert plugins.plugin_name == "hparams" and b"mask_perc" in plugins.content


def test_the_best_weights_are_tested_and_not_the_last(sampled, tmp_path):
    """Steps that are far too long: no weights are better than those before training."""
    changes = {"optimizer": "sgd", "use_scheduler": False, "lr": 5.0, "batch_size": 300}
    run, begin = train(sampled, tmp_path, **changes), trainer(sampled, tmp_path, **changes)
    before, after = (float(row["validation_loss"]) for row in metrics(run, "validation"))
    assert after > 1.1 * before == pytest.approx(1.1 * begin.evaluate(1)[0], rel=1e-5)
    tested = float(metrics(run, "test")[0]["validation_loss"])
    assert tested == pytest.approx(begin.evaluate(2)[0], rel=1e-5)


def test_the_last_epochs_weights_are_kept_where_the_step_before_was_just_saved(
    sampled, tmp_path, monkeypatch
):
    monkeypatch.setattr("lob.training.saving.SAVE_SPACING", 1e9)  # as if a save took long
    run = train(sampled, tmp_path, checkpoint_minutes=0.0)
    before, after = (float(row["validation_loss"]) for row in metrics(run, "validation"))
    progress = load_checkpoint(run / "checkpoints" / "best.safetensors")[1]["progress"]
    newest = load_checkpoint(max((run / "checkpoints").glob("step_*")))[1]["progress"]
    assert after < before and progress["best_loss"] == after
    assert (newest["epoch"], newest["step_in_epoch"]) == (1, 0)


def test_what_a_killed_save_left_is_removed(sampled, tmp_path):
    run = train(sampled, tmp_path)
    left = run / "checkpoints" / ".step_00000005.safetensors.partial"
    left.write_bytes(b"half")
    assert main(settings(sampled, tmp_path, resume=True, epochs=2)) == 0
    assert not left.exists()


def test_a_folder_that_another_run_took_meanwhile_is_left_alone(sampled, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    monkeypatch.setattr(fp8_ddp_trainer, "new_run", lambda *_: tmp_path / "taken")
    with pytest.raises(InputError, match="another run has just begun in "):
        main(settings(sampled, tmp_path))
    assert not list((tmp_path / "taken").iterdir())


def test_a_run_with_a_number_in_its_own_name_is_no_other_names_run(tmp_path):
    names = {"btc": "btc", "btc-2": "btc", "btc-3": "btc-3", "btc-2024": "btc-2024"}
    for folder, name in names.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({"model_name": name}))
    assert [run.name for run in runs_named(tmp_path, "btc")] == ["btc", "btc-2"]
    assert new_run(tmp_path, "btc").name == "btc-4"
    assert new_run(tmp_path, "btc-2024").name == "btc-2024-2"
    assert new_run(tmp_path, "b*").name == "b*"


def test_a_run_without_test_windows_says_that_it_has_ended(sampled, tmp_path):
    shutil.copytree(sampled, tmp_path / "data")
    words = [f"--data_dir={tmp_path / 'data'}", "--temporal_dim=32"]
    words += ["--split_ratios=[0.75,0.25,0.0]"]
    words += ["--cells=[1,1,1]", "--min_stride=1", "--windows=200"]
    command = [sys.executable, "create_balanced_dataset.py", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    run = train(tmp_path / "data", tmp_path, split_ratios=[0.75, 0.25, 0.0])
    assert [row["validation_loss"] for row in metrics(run, "test")] == [""]
    assert read_test_loss(run) == float(metrics(run, "validation")[-1]["validation_loss"])


@pytest.mark.parametrize(
    ("change", "meta", "said"),
    [
        ({"model.norm.weight": None}, True, "does not hold the encoder"),
        ({}, False, "'encoder.depth' is missing"),
        ({"model.norm.weight": torch.ones(3)}, True, "does not hold the encoder"),
    ],
)
def test_weights_of_a_broken_checkpoint_are_refused(tmp_path, change, meta, said):
    encoder = encoder_config("tiny_transformer", depth=16, temporal_dim=32)
    changed = training_state(BookEncoder(encoder)) | change
    tensors = {name: tensor for name, tensor in changed.items() if tensor is not None}
    about = metadata(encoder) if meta else {"encoder": {}}
    save_checkpoint(tmp_path / "broken.safetensors", tensors, about)
    with pytest.raises(InputError, match=said):
        load_weights(tmp_path / "broken.safetensors", BookEncoder(encoder))


def test_a_resumed_run_has_its_scales_before_it_is_scored(sampled, tmp_path, monkeypatch):
    """A CPU has no FP8: weights of the head stand for the scales, which a first pass makes."""
    made = trainer(sampled, tmp_path, fill="none")
    parameters = made.model.head.named_parameters()
    made.passes.fp8_state = {name: torch.ones_like(x) for name, x in parameters}
    passes: list = []
    made.model.register_forward_hook(lambda *_: passes.append(0))

    def load(model, state):
        assert len(passes) == 1
        model.head.load_state_dict(state)

    monkeypatch.setattr("lob.training.passes.load_fp8_state", load)
    found = made.evaluate(1)
    made.passes.fp8_state = {}
    assert found == made.evaluate(1) and (made.model.head.weight == 1).all()


def test_azure_moves_data_and_runs_to_the_data_disk(sampled, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "training_data").symlink_to(sampled)
    config = settings(sampled, tmp_path, azure=True, azure_data_root=str(tmp_path / "disk"))
    config |= {"data_dir": "training_data", "runs_dir": "runs", "model_name": "there"}
    assert main(config) == 0
    assert (tmp_path / "disk" / "runs" / "there" / "checkpoints" / "best.safetensors").is_file()


@pytest.mark.parametrize("runs", ["file", "file/deeper"])
def test_a_runs_dir_that_cannot_be_written_is_refused_before_work(sampled, tmp_path, runs):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="runs_dir = "):
        main(settings(sampled, tmp_path / runs))
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["a/b", "/a", "a/", ".", "..", ""])
def test_a_name_that_is_a_path_is_refused(sampled, tmp_path, name):
    with pytest.raises(InputError, match=f"model_name = '{name}' must be the name of one folder"):
        main(settings(sampled, tmp_path / "runs", model_name=name))
    assert not (tmp_path / "runs").exists()
