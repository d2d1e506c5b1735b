"""The lines of `make reproduce` and `make pretrained`: their keys, values and markets."""

import ast
import shlex
import subprocess

import pytest
from conftest import ROOT

from benchmarks import prove
from benchmarks.markets import MARKETS
from benchmarks.originals import RECORDINGS
from lob.config import load_config, read_comments

ROLES = {market.pair: market.role for market in MARKETS}


def read_lines(target: str, *variables: str) -> list[tuple[str, dict]]:
    """Scripts that a target runs, each with its config as the script itself reads it."""
    command = ["make", "-n", "-o", ".venv/installed", *variables, target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    card = ROOT / "benchmarks" / "small_cell_card.txt"
    text = done.stdout.replace("\\\n", " ").replace(";", "\n")
    lines = text.replace(f"$(cat {card.relative_to(ROOT)})", card.read_text().strip()).splitlines()
    found = []
    for line in lines:
        if not line.strip().startswith(".venv/bin/python"):
            continue
        words = shlex.split(line)[1:]
        if words[:2] == ["-m", "pip"]:
            continue
        module = words[0] == "-m"
        script = f"{words[1].replace('.', '/')}.py" if module else words[0]
        if script == "benchmarks/pages.py":
            continue
        tree = {key: ast.literal_eval(value) for key, (value, *_) in comments(script).items()}
        found.append((script, load_config(tree, ROOT / script, words[1 + module :])))
    return found


def comments(script: str) -> dict:
    return read_comments(ROOT / script)


@pytest.fixture(scope="module")
def lines() -> dict[str, dict]:
    """As on a machine where nothing was done yet."""
    return dict(read_lines("reproduce", "-B"))


def test_all_keys_are_known_and_the_seeds_are_those_of_the_recipe(lines) -> None:
    config = lines["benchmarks/prove.py"]
    assert config["seeds"] == 5 and config["name"] == "shipped" and config["write"]
    for key, script in (("recipe", "fp8_ddp_trainer.py"), ("scoring", "inference_testing.py")):
        assert config[key].keys() <= comments(script).keys()
        load_config(
            {name: ast.literal_eval(value) for name, (value, *_) in comments(script).items()},
            ROOT / script,
            [f"--{name}={value}" for name, value in config[key].items()],
        )
    assert prove.pick_precision(config) == "bf16"
    assert config["split_ratios"] == lines["create_balanced_dataset.py"]["split_ratios"]


def test_markets_are_trained_and_tested_by_their_roles_and_can_be_fetched(lines) -> None:
    config = lines["benchmarks/prove.py"]
    assert {ROLES[pair] for pair in config["pairs"]} == {"train"} and config["scored"] == []
    assert {ROLES[pair] for pair in config["unseen"]} == {"test"} and len(config["unseen"]) == 8
    pairs = [*config["pairs"], *config["unseen"]]
    for script in ("training_data/download_recordings.py", "benchmarks/lay_recordings.py"):
        assert lines[script]["markets"] == pairs
    for market in MARKETS:
        if market.pair in pairs:
            assert RECORDINGS.keys() >= {*market.files}
    for script in ("exploration_main.py", "create_balanced_dataset.py"):
        assert lines[script]["pairs"] == config["pairs"]
        assert lines[script]["data_dir"] == config["data_dir"] == "bench/depth_96"
    assert config["scoring"]["fit_data_dir"] == "bench/fit"


def test_variables_change_what_is_fetched_and_how_many_seeds_run() -> None:
    words = ("-B", "RECORDINGS=my folder", "SEEDS=3", "RUNS_A_GPU=4")
    lines = dict(read_lines("reproduce", *words))
    assert "training_data/download_recordings.py" not in lines
    assert lines["benchmarks/lay_recordings.py"]["recordings"] == "my folder"
    config = lines["benchmarks/prove.py"]
    assert config["seeds"] == 3 and config["runs_a_gpu"] == 4


def test_the_weights_are_the_first_seed(lines) -> None:
    made = dict(read_lines("pretrained", "-B"))
    config = made["benchmarks/prove.py"]
    shared = {"seeds": 1, "write": False}
    assert config == lines["benchmarks/prove.py"] | shared
    first = f"{config['runs_dir']}/{prove.pick_precision(config)}_0"
    assert made["model_exporter.py"]["model_path"] == first
