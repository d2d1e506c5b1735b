"""Messages of sampler, trainer and exporter: what each says to do leads on.

As tests/test_remedies_of_files.py, for the stages after the parser.
"""

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_book
from test_balanced_dataset import rewrite_statistics

import create_balanced_dataset
import exploration_main
import fp8_ddp_trainer
import model_exporter
from lob.config import InputError
from lob.model.encoder import encoder_config
from lob.training.samples import Sampler

STATES = 32
STATISTICS = {**exploration_main.config, "temporal_dim": STATES, "plots": False}
SAMPLES = {**create_balanced_dataset.config, "temporal_dim": STATES, "plots": False, "windows": 150}
TRAINING = {**fp8_ddp_trainer.config, "temporal_dim": STATES, "depth_dim": 8}


def write_pairs(folder: Path) -> None:
    for seed, pair in enumerate(("AAA", "BBB")):
        write_book(folder, pair, rows=2000, depth=8, seed=seed)


def replace_book(folder: Path, pair: str, rows: int = 2000, depth: int = 8) -> Path:
    shutil.rmtree(folder / "book_states" / pair)
    return write_book(folder, pair, rows=rows, depth=depth)


def measure(folder: Path, **changes) -> None:
    exploration_main.main({**STATISTICS, "data_dir": str(folder), **changes})


def draw(folder: Path, **changes) -> None:
    create_balanced_dataset.main({**SAMPLES, "data_dir": str(folder), **changes})


def refuse(work: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    write_pairs(folder)
    measure(folder)
    return folder


@pytest.fixture
def folder(measured, tmp_path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "data"))


# The sampler

SETTINGS: dict[str, tuple[dict, str, dict]] = {  # settings, message, settings as it says
    "two cells": ({"cells": [3, 3]}, "must be 3 numbers", {"cells": [3, 3, 3]}),
    "shares": (
        {"split_ratios": [0.7, 0.2, 0.2]},
        "make them add up to 1",
        {"split_ratios": [0.7, 0.2, 0.1]},
    ),
    "one share": (
        {"split_ratios": [0.7]},
        "two ISO dates (validation begins, test begins)",
        {"split_ratios": ["2026-05-02T02:36:40", "2026-05-02T02:36:45"]},
    ),
    "no training share": (
        {"split_ratios": [0.0, 0.5, 0.5]},
        "change split_ratios",
        {"split_ratios": [0.5, 0.25, 0.25]},
    ),
    "dates turned round": (
        {"split_ratios": ["2026-05-02T02:36:45", "2026-05-02T02:36:40"]},
        "swap them",
        {"split_ratios": ["2026-05-02T02:36:40", "2026-05-02T02:36:45"]},
    ),
    "no date": (
        {"split_ratios": ["2026-05-02T02:36:40", "noon"]},
        "such as '2026-05-02T12:30'",
        {"split_ratios": ["2026-05-02T02:36:40", "2026-05-02T12:30"]},
    ),
    "weights": (
        {"pair_weights": {"AAA": 1}},
        "to each of AAA, BBB",
        {"pair_weights": {"AAA": 1, "BBB": 1}},
    ),
    "few windows": (
        {"pair_weights": {"AAA": 1000, "BBB": 1}},
        "raise --windows",
        {"windows": 1500},
    ),
    "a small share": (
        {"pair_weights": {"AAA": 1000, "BBB": 1}},
        "or its share in --pair_weights",
        {"pair_weights": {"AAA": 10, "BBB": 1}},
    ),
    "a pair to leave out": (
        {"pair_weights": {"AAA": 1000, "BBB": 1}},
        "or leave the pair out",
        {"pair_weights": {"AAA": 1000}, "pairs": ["AAA"]},
    ),
    "outliers": (
        {"outlier_std": 0.001, "cells": [1, 1, 1]},
        "raise --outlier_std=0.001",
        {"outlier_std": 3.0},
    ),
    "a misspelt pair": ({"pairs": ["AAB"]}, "did you mean 'AAA'", {"pairs": ["AAA"]}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_sampler_lead_to_a_sample(folder, name) -> None:
    settings, said, mended = SETTINGS[name]
    assert said in refuse(lambda: draw(folder, **settings))
    assert not (folder / "balanced_samples").exists()
    draw(folder, **settings | mended)
    assert (folder / "balanced_samples" / "AAA.npy").exists()


def set_nan(folder: Path) -> None:
    def change(rows: np.ndarray) -> None:
        rows["average_spread_bps"] = np.nan

    rewrite_statistics(folder, "AAA", change)


STALE: dict[str, tuple[Callable[[Path], object], str]] = {
    "parsed again": (lambda folder: replace_book(folder, "AAA", rows=1900), "another book"),
    "not JSON": (
        lambda folder: (folder / "window_statistics" / "AAA.json").write_text("x"),
        "JSON",
    ),
    "cut": (lambda folder: (folder / "window_statistics" / "AAA.npy").write_bytes(b"x"), "damaged"),
    "lost": (lambda folder: (folder / "window_statistics" / "AAA.json").unlink(), "there is no"),
    "not a number": (set_nan, "is NaN or infinite"),
    "other windows": (lambda folder: measure(folder, temporal_dim=64), "not 32"),
}


@pytest.mark.parametrize("name", STALE)
def test_statistics_that_are_stale_are_made_again(folder, name) -> None:
    spoil, said = STALE[name]
    spoil(folder)
    line = refuse(lambda: draw(folder))
    assert said in line and re.search(r"run (exploration_main.py|the script that makes it)", line)
    measure(folder)
    draw(folder)


def test_a_pair_that_never_moves_is_left_out(folder) -> None:
    still = replace_book(folder, "BBB")
    for name in ("price_ticks", "sizes", "top_of_book"):
        if (still / f"{name}.npy").exists():
            array = np.load(still / f"{name}.npy")
            np.save(still / f"{name}.npy", np.repeat(array[:1], len(array), axis=0))
    measure(folder)
    assert "BBB" in (line := refuse(lambda: draw(folder))) and "or leave the pair out" in line
    draw(folder, pairs=["AAA"])


# The trainer


def open_data(folder: Path, **changes):
    config = {**TRAINING, "data_dir": str(folder), **changes}
    data = fp8_ddp_trainer.open_data(config)
    data.check(config["depth_dim"])
    return data


def test_the_trainers_messages_about_samples_lead_to_data(folder) -> None:
    draw(folder)
    line = refuse(lambda: open_data(folder, depth_dim=96))
    depth = int(re.search(r"set --depth_dim=(\d+)", line)[1])  # type: ignore[index]
    data = open_data(folder, depth_dim=depth)
    assert "lower batch_size" in refuse(lambda: Sampler(data, 0, 4096))
    assert Sampler(data, 0, 64).steps_an_epoch > 0
    line = refuse(lambda: open_data(folder, split_ratios=[0.5, 0.25, 0.25]))
    assert "run create_balanced_dataset.py again, or set --split_ratios" in line
    draw(folder, split_ratios=[0.5, 0.25, 0.25])
    open_data(folder, split_ratios=[0.5, 0.25, 0.25])
    replace_book(folder, "AAA", depth=6)
    assert "or name --pairs" in refuse(lambda: open_data(folder))
    alone = {"pairs": ["AAA"], "depth_dim": 6}
    assert "made from another book" in refuse(lambda: open_data(folder, **alone))
    measure(folder)
    draw(folder)
    assert [book.pair for book in open_data(folder, **alone).books] == ["AAA"]


# The exporter


def settings_named(message: str) -> list[dict]:
    """Return what a message says to set, of which each is enough."""
    words = message[message.rindex("set --") :]
    found = []
    for part in re.split(r",? or ", words):
        keys = re.findall(r"--(\w+)=(\"[^\"]*\"|\w+)", part)
        if keys:
            found.append({key: read(text.strip('"')) for key, text in keys})
    return found


def read(text: str):
    return ast.literal_eval(text) if text[:1] == "[" or text in ("True", "False") else text


EXPORTS = [
    {"devices": ["cuda"]},
    {"pooling": "all", "embeddings": True},
    {"parts": ["stream"], "formats": ["onnx"]},
]


@pytest.mark.parametrize("settings", EXPORTS)
def test_what_the_exporter_says_to_set_is_possible(settings) -> None:
    config = {**model_exporter.config, **settings}
    line = refuse(lambda: model_exporter.check_config(config))
    ways = settings_named(line)
    assert ways
    for way in ways:
        model_exporter.check_config({**config, **way})


@pytest.mark.parametrize(
    ("settings", "encoder"),
    [
        ({"pooling": "all"}, {"causal": False}),
        ({"parts": ["actor_critic"]}, {"context": ["clock"]}),
    ],
)
def test_what_the_exporter_says_of_an_encoder_is_possible(settings, encoder) -> None:
    size = "cell_transformer" if "context" in encoder else "tiny_transformer"
    chosen = encoder_config(size, **encoder)
    config = {**model_exporter.config, **settings}
    ways = settings_named(refuse(lambda: model_exporter.check_encoder(config, chosen)))
    assert ways
    for way in ways:
        model_exporter.check_encoder({**config, **way}, chosen)
