"""What fp8_ddp_trainer.py leaves and finds, in this process: TensorBoard, checkpoints, folders."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, metadata, shell
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from test_trainer import metrics
from test_trainer_settings import settings, train, trainer

import fp8_ddp_trainer
from benchmarks.prove import read_test_loss
from fp8_ddp_trainer import main
from lob.config import InputError, read_comments
from lob.model.checkpoint import load_checkpoint, save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config
from lob.model.masking import trained_on
from lob.training.board import LEARNING_KEYS, METRICS, SKILL
from lob.training.run_folder import new_run, runs_named
from lob.training.run_log import RunLog
from lob.training.saving import load_weights, training_state
from lob.training.scores import ANSWERS, FIELDS

pytestmark = pytest.mark.usefixtures("undrawn")


def read_board(run: Path) -> EventAccumulator:
    board = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    return board


@pytest.fixture(scope="module")
def logged(sampled, tmp_path_factory) -> tuple[Path, EventAccumulator]:
    """A run of two epochs, and its TensorBoard events."""
    intervals = {"validate_steps": 9, "log_steps": 4}
    run = train(sampled, tmp_path_factory.mktemp("logged"), epochs=2, **intervals)
    return run, read_board(run)


COLUMNS_OF_TAGS = {
    "loss/train": ("step", "train_loss"),
    "optimizer/learning_rate": ("step", "learning_rate"),
    "optimizer/gradient_norm": ("step", "gradient_norm"),
    "speed/windows_per_second": ("step", "windows_per_second"),
    "speed/data_wait_share": ("step", "data_wait_share"),
    **{f"loss/{name}": ("validation", f"{name}_loss") for name in ANSWERS},
    **{
        f"{group}/{part}_{name}": (f"validation_{part}", f"{name}_loss")
        for group, parts in (("losses_by_field", FIELDS), ("losses_by_mask", trained_on("mix")))
        for part in parts
        for name in ANSWERS
    },
}


def test_tensorboard_holds_what_metrics_csv_holds(logged):
    run, board = logged
    for tag, (kind, column) in COLUMNS_OF_TAGS.items():
        rows = [(int(row["step"]), float(row[column])) for row in metrics(run, kind)]
        found = [(event.step, event.value) for event in board.Scalars(tag)]
        assert len(found) > 1 and [step for step, _ in found] == [step for step, _ in rows], tag
        np.testing.assert_allclose(found, rows, rtol=1e-6)
    assert set(board.Tags()["scalars"]) == {*COLUMNS_OF_TAGS, *SKILL.values()}
    in_order_of_the_page = sorted(COLUMNS_OF_TAGS, key=lambda tag: re.sub("[/_]", "\0", tag))
    assert in_order_of_the_page[0].startswith("loss/")
    ladder, loss = (
        np.array([event.value for event in board.Scalars(tag)])
        for tag in ("loss/ladder", "loss/validation")
    )
    skill = [event.value for event in board.Scalars("skill/over_ladder")]
    np.testing.assert_allclose(skill, 1 - loss / ladder, atol=1e-6)
    assert skill[0] == pytest.approx(0, abs=1e-6) and len(set(ladder)) == 1


def test_every_loss_stands_in_one_chart_beside_the_ladder(logged):
    _, board = logged
    losses = {tag for tag in board.Tags()["scalars"] if tag.startswith("loss")}
    event = board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    charts = [chart for group in Layout.FromString(event).category for chart in group.chart]
    charted = [tag for chart in charts for tag in chart.multiline.tag]
    assert sorted(charted) == sorted({*losses, *SKILL.values()})
    assert [*charts[0].multiline.tag] == [f"loss/{name}" for name in ("train", *ANSWERS)]


def test_events_are_on_disk_when_an_entry_was_logged(sampled, tmp_path, monkeypatch):
    seen = []

    def look(log, progress, loss, *rest):
        kept(log, progress, loss, *rest)
        events = read_board(log.folder).Scalars("loss/train")
        seen.append((events[-1].step, events[-1].value) == (progress.step, np.float32(loss)))

    kept = RunLog.step
    monkeypatch.setattr(RunLog, "step", look)
    train(sampled, tmp_path, log_steps=20)
    assert seen and all(seen)


def test_intervals_are_kept(logged):
    run, _ = logged
    last = int(metrics(run, "epoch")[-1]["step"])
    steps = [int(row["step"]) for row in metrics(run, "step")]
    assert steps == list(range(4, last + 1, 4))
    validated = {int(row["step"]) for row in metrics(run, "validation")}
    assert validated == {0, last // 2, last} | set(range(9, last, 9))


def test_tensorboard_shows_a_picture_an_epoch(logged):
    run, board = logged
    epochs = [int(row["step"]) for row in metrics(run, "epoch")]
    pictures = board.Images("fills")
    assert [event.step for event in pictures] == epochs and pictures[0].width > 600
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def test_tensorboard_tells_what_the_run_is_and_how_it_learns(logged):
    run, board = logged

    def text(name: str) -> str:
        return board.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()

    assert "mask_perc = 0.25" in text("config") and "log_steps = 4" in text("config")
    env = json.loads((run / "env.json").read_text())
    for name in ("command", "date", "commit", "data"):
        assert f"- **{name}**: {env[name]}" in text("run")
    assert re.search(r"; train from 2026-05-02 02:36:\d\d, validation from ", text("run"))
    assert "torch 2." in text("run") and "test loss" in text("result")
    plugins = board.summary_metadata["_hparams_/session_start_info"].plugin_data
    content = HParamsPluginData.FromString(plugins.content)
    assert set(content.session_start_info.hparams) == set(LEARNING_KEYS)
    experiment = board.summary_metadata["_hparams_/experiment"].plugin_data.content
    named = HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert {info.name.tag for info in named} == set(METRICS)
    assert "_hparams_/session_end_info" in board.summary_metadata


def test_a_run_that_has_not_ended_has_its_settings_and_scores(sampled, tmp_path, monkeypatch):
    monkeypatch.setattr(fp8_ddp_trainer.Trainer, "test", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(sampled, tmp_path)
    board = read_board(tmp_path / "pretrained_ddp")
    assert "_hparams_/session_start_info" in board.summary_metadata
    assert "_hparams_/session_end_info" not in board.summary_metadata
    assert len(board.Scalars("skill/over_ladder")) == 2


def test_the_page_hparams_offers_the_values_that_the_trainer_takes():
    comments = read_comments(ROOT / "fp8_ddp_trainer.py")
    for key, names in LEARNING_KEYS.items():
        rule = "False | True" if comments[key].rule == "bool" else comments[key].rule
        rule = rule.removesuffix(" | None")  # config.json holds what was chosen instead
        assert bool(names) == (" | " in rule) and (not names or set(names) == {*rule.split(" | ")})


@pytest.mark.parametrize(
    ("fill", "begins", "other"),
    [
        ("ladder", "the ladder, at which training began, ", "linear interpolation in time "),
        ("linear", "linear interpolation in time, at which training began, ", "the ladder "),
        ("none", "the ladder ", "linear interpolation in time "),
    ],
)
def test_the_last_lines_name_the_fill_that_training_began_at(
    sampled, tmp_path, capsys, fill, begins, other
):
    run = train(sampled, tmp_path, fill=fill)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("test loss  ")]
    mine, first, second = line.removeprefix("test loss  ").split("; ")
    assert first.startswith(begins) and second.startswith(other)
    row = metrics(run, "test")[0]
    shown = {float(mine), *(float(part.rsplit(" ", 1)[1]) for part in (first, second))}
    columns = ("validation_loss", "ladder_loss", "linear_loss")
    assert shown == {round(float(row[column]), 6) for column in columns}


def test_a_run_of_another_version_is_not_gone_on_with(sampled, tmp_path):
    run = train(sampled, tmp_path)
    rest = (run / "metrics.csv").read_text().split("\n", 1)[1]
    (run / "metrics.csv").write_text("kind,epoch,step\n" + rest)
    with pytest.raises(InputError, match="was begun by another version"):
        main(settings(sampled, tmp_path, resume=True, epochs=2))


def test_the_best_weights_are_tested_and_not_the_last(sampled, tmp_path):
    """Steps that are far too long: no weights are better than those before training."""
    changes = {"optimizer": "sgd", "use_scheduler": False, "lr": 5.0, "batch_size": 300}
    run, begin = train(sampled, tmp_path, **changes), trainer(sampled, tmp_path, **changes)
    before, after = (float(row["validation_loss"]) for row in metrics(run, "validation"))
    assert after > 1.1 * before == pytest.approx(1.1 * begin.evaluate(1).loss(), rel=1e-5)
    tested = float(metrics(run, "test")[0]["validation_loss"])
    assert tested == pytest.approx(begin.evaluate(2).loss(), rel=1e-5)


def test_the_last_epochs_weights_are_kept_where_the_step_before_was_just_saved(
    sampled, tmp_path, monkeypatch
):
    monkeypatch.setattr("lob.training.saving.SAVE_SPACING", 1e9)  # as if a save took long
    run = train(sampled, tmp_path, checkpoint_minutes=0.0, batch_size=8)
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
    monkeypatch.setattr(fp8_ddp_trainer, "choose_folder", lambda *_: tmp_path / "taken")
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
    assert shell("create_balanced_dataset.py", *words).returncode == 0
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
    found = made.evaluate(1).loss()
    made.passes.fp8_state = {}
    assert found == made.evaluate(1).loss() and (made.model.head.weight == 1).all()


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
