"""A trainer that is asked to stop, at any moment, and one that a launcher starts by halves."""

import os
import signal

import pytest
import torch
from test_trainer import metrics
from test_trainer_settings import settings, train

from fp8_ddp_trainer import Trainer, main
from lob.config import InputError
from lob.training.distributed import find_launcher

CHOICES = {"epochs": 2, "validate_steps": 9, "checkpoint_minutes": 1e9}
LOSSES = ("kind", "epoch", "step", "train_loss", "validation_loss", "learning_rate")


def logged(run):
    kinds = ("step", "validation", "epoch", "test")
    rows = [row for kind in kinds for row in metrics(run, kind)]
    return [[row[name] for name in LOSSES] for row in rows]


@pytest.fixture(scope="module")
def whole(sampled, tmp_path_factory):
    """What a run that nobody stops has logged."""
    return logged(train(sampled, tmp_path_factory.mktemp("runs"), **CHOICES))


@pytest.mark.parametrize(
    ("number", "by", "place", "said"),
    [
        (signal.SIGTERM, "SIGTERM", (0, 0), "before the first step"),
        (signal.SIGINT, "Ctrl-C", (0, 9), "at step 9"),  # validating within an epoch
        (signal.SIGHUP, "SIGHUP", (1, 0), "at step "),  # validating after the first one
    ],
)
def test_a_request_within_a_validation_is_heard_and_nothing_is_lost(
    number, by, place, said, sampled, tmp_path, whole, monkeypatch, capsys
):
    predict, asked = Trainer.predict, []

    def predict_and_ask(self, *windows):
        progress = self.progress
        if (progress.epoch, progress.step_in_epoch) == place and not self.model.training:
            asked.append(os.kill(os.getpid(), number))
        return predict(self, *windows)

    config = settings(sampled, tmp_path, **CHOICES)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "predict", predict_and_ask)
        assert main(config) == 128 + number
    assert len(asked) == 1  # the batches that were left were not scored
    printed = capsys.readouterr().out
    assert f"stopped by {by} {said}" in printed and "go on with --resume=True" in printed
    assert main({**config, "resume": True}) == 0
    assert logged(tmp_path / "pretrained_ddp") == whole


def test_a_second_ctrl_c_ends_at_once(sampled, tmp_path, monkeypatch):
    def press_twice(self, *_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "predict", press_twice)
    with pytest.raises(KeyboardInterrupt):
        main(settings(sampled, tmp_path))


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables of a launcher, and unsets those that are None."""

    def launch(**changes):
        for name in (*WHOLE, "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in changes.items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return launch


def test_a_launchers_environment_is_read(launched):
    launched()
    assert find_launcher() is None
    launched(MASTER_ADDR="somewhere", MASTER_PORT="x")  # left by another program
    assert find_launcher() is None
    launched(**WHOLE)
    if not torch.cuda.is_available():
        assert find_launcher() == (1, 2)
    launched(RANK="0", WORLD_SIZE="1")  # alone, it meets nobody
    assert find_launcher() == (0, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"WORLD_SIZE": None, "MASTER_ADDR": None, "MASTER_PORT": None}, "WORLD_SIZE is missing"),
        ({"RANK": None}, "RANK is missing beside WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": ""}, "RANK = '' must be a whole number from 0 to 1"),
        ({"RANK": "2"}, "RANK = '2' must be a whole number from 0 to 1"),
        ({"RANK": "-1"}, "RANK = '-1' must be"),
        ({"RANK": "one"}, "RANK = 'one' must be"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE = '' must be a whole number from 1 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0' must be"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK = '' must be"),
        ({"LOCAL_RANK": "7"}, "LOCAL_RANK = '7' must be"),
        ({"MASTER_PORT": None}, "MASTER_PORT is missing"),
        ({"MASTER_PORT": ""}, "MASTER_PORT = '' must be a whole number from 1 to 65535"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT = '99999' must be"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT = 'http' must be"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is missing or empty"),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR is missing or empty"),
    ],
)
def test_half_a_launchers_environment_is_one_line(launched, change, said):
    launched(**(WHOLE | change))
    if torch.cuda.is_available():
        pytest.skip("LOCAL_RANK is then checked against the GPUs")
    with pytest.raises(InputError, match="not as torchrun makes it: ") as refused:
        find_launcher()
    assert said in str(refused.value) and "`unset RANK WORLD_SIZE" in str(refused.value)
