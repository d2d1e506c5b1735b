"""A first hour on a CPU: an encoder of one's own, the one that ships, and that one tuned.

    python -m benchmarks.bench_first_hour
    python -m benchmarks.bench_first_hour --write=True

Runs the scripts of `make pipeline` on the shipped half hour in a folder of its own, then trains the
encoder that ships for a short while on the same sample. All three are scored on the same test
windows. Then the trainer's speed is measured four times: alone and beside one busy process, with
torch's threads waiting passively, as the scripts set it, and actively. Takes half an hour on 2
cores; what is already in `work_dir` is not done again.
"""

config = {
    "work_dir": "bench/first_hour",  # str: folder for the states, samples and runs
    "windows": 2_400,  # int >= 1: windows of the sample that the encoder of one's own is trained on
    "tuned_windows": 1_200,  # int >= 1: windows of the sample that the shipped encoder is tuned on
    "tuned_lr": 2e-4,  # > 0 and < inf: largest learning rate in tuning
    "speed_windows": 100,  # int >= 1: windows of the sample whose training is timed
    "trainer": {},  # dict: keys of the trainer that differ from the pipeline's
    "tester": {},  # dict: keys of the tester that differ from the pipeline's
    "write": False,  # bool: keep the result in benchmarks/results/first_hour.json
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, report
from lob.results import make_row, read_rows
from lob.training.run_folder import read_metrics

PAIR = "BTC_USD"
SPLIT_RATIOS = [0.6, 0.2, 0.2]
MASKS = ("patch", "span", "tail", "entry")
TRAINER = {
    "split_ratios": SPLIT_RATIOS,
    "model_size": "small_cell_transformer",
    "epochs": 1,
    "batch_size": 4,
    "max_lr": 3e-3,
    "outlook": 0,
    "dropout": 0.0,
    "validation_windows": 128,
}
WEIGHTS = "pretrained/small_cell"
METRICS = (
    "error",
    "ladder_error",
    "ridge_error",
    "difference_ladder_low",
    "difference_ladder_high",
    "difference_ridge_low",
    "difference_ridge_high",
)


def main(config: dict) -> None:
    folder = Path(config["work_dir"])
    minutes: dict[str, float] = {}
    samples = {"own": config["windows"], "tuned": config["tuned_windows"]}
    for name, windows in {**samples, "speed": config["speed_windows"]}.items():
        make_sample(folder, name, windows, minutes)
    own = TRAINER | config["trainer"]
    tuned = own | {
        "load_model": True,
        "model_path": WEIGHTS,
        "max_lr": config["tuned_lr"],
    }
    train(folder, "own", own, minutes)
    train(folder, "tuned", tuned, minutes)
    rows = []
    for name in ("own", "shipped", "tuned"):
        rows += score(folder, name, config["tester"], minutes)
    rows += [make_row(name, "minutes", value, unit="min") for name, value in minutes.items()]
    rows += measure_speed(folder, own)
    report("first_hour", rows, config["write"])


def call(script: str, keys: dict[str, Any], **environment: str) -> None:
    """Run a script of the repository. Raises CalledProcessError if it fails."""
    words = [sys.executable, script, *(f"--{key}={value}" for key, value in keys.items())]
    subprocess.run(words, cwd=ROOT, env=os.environ | environment, check=True)


@contextmanager
def timed(minutes: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    minutes[name] = (time.perf_counter() - began) / 60


def make_sample(folder: Path, name: str, windows: int, minutes: dict[str, float]) -> None:
    """Parse the recording and measure its windows once, and draw a sample of it as `name`."""
    first, data = folder.resolve() / "own_data", folder.resolve() / f"{name}_data"
    if not (first / "window_statistics").exists():
        (first / "raw").mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / "training_data" / "raw" / PAIR, first / "raw" / PAIR)
        with timed(minutes, "states and statistics"):
            call("data_parser.py", {"data_dir": first})
            call("exploration_main.py", {"data_dir": first, "plots": False})
    data.mkdir(exist_ok=True)
    for part in ("book_states", "window_statistics"):
        if not (data / part).exists():
            (data / part).symlink_to(first / part)
    if not (data / "balanced_samples").exists():
        keys = {
            "data_dir": data,
            "windows": windows,
            "split_ratios": SPLIT_RATIOS,
            "plots": False,
        }
        call("create_balanced_dataset.py", keys)


def train(folder: Path, name: str, keys: dict[str, Any], minutes: dict[str, float]) -> None:
    """Train a run unless its folder is there, and note the minutes that its steps took."""
    where = {"data_dir": folder.resolve() / f"{name}_data", "runs_dir": folder.resolve() / "runs"}
    if not (folder / "runs" / name).exists():
        call("fp8_ddp_trainer.py", {**keys, **where, "model_name": name})
    minutes[f"training, {name}"] = float(read_metrics(folder / "runs" / name)["seconds"].max() / 60)


def score(
    folder: Path, name: str, keys: dict[str, Any], minutes: dict[str, float]
) -> list[dict[str, Any]]:
    """Score a run, or the encoder that ships, on the test windows; return its rows."""
    runs = folder.resolve() / "runs"
    model = ROOT / WEIGHTS if name == "shipped" else runs / name
    report_file = runs / ("small_cell" if name == "shipped" else name) / "report.json"
    if not report_file.exists():
        scored = {
            "data_dir": folder.resolve() / "own_data",
            "runs_dir": runs,
            "model_path": model,
            "masks": list(MASKS),
            "probe_windows": 0,
            "pictures": False,
            **keys,
        }
        if name == "shipped":  # runs keep the split that they were trained with
            scored["split_ratios"] = SPLIT_RATIOS
        with timed(minutes, f"scoring, {name}"):
            call("inference_testing.py", scored)
    cells = {(row["case"], row["metric"]): row["value"] for row in read_rows(report_file)}
    rows = []
    for mask in MASKS:
        for quantity in ("log_size", "offset"):
            case = f"{PAIR}/{mask}/{quantity}"
            for metric in METRICS:
                if (case, metric) in cells:
                    row = make_row(f"{name}/{mask}/{quantity}", metric, cells[case, metric])
                    rows.append(row)
    return rows


def measure_speed(folder: Path, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """Return windows/s of the trainer, alone and beside a process that computes without end."""
    rows = []
    for policy in ("PASSIVE", "ACTIVE"):
        for busy in (False, True):
            name = f"{policy.lower()}_{'busy' if busy else 'alone'}"
            other = None
            if busy:
                other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                speed = time_training(folder, name, keys, policy)
            finally:
                if other:
                    other.kill()
            case = f"training, {'beside a busy process' if busy else 'alone'}"
            note = f"OMP_WAIT_POLICY={policy}"
            metric = f"windows_per_second_{policy.lower()}"
            rows.append(make_row(case, metric, speed, unit="1/s", note=note))
    return rows


def time_training(folder: Path, name: str, keys: dict[str, Any], policy: str) -> float:
    where = {"data_dir": folder.resolve() / "speed_data", "runs_dir": folder.resolve() / "speed"}
    target = folder / "speed" / name
    if not target.exists():
        keys = {**keys, **where, "model_name": name, "validation_windows": 4}
        call("fp8_ddp_trainer.py", keys, OMP_WAIT_POLICY=policy)
    metrics = read_metrics(target)
    return float(metrics.loc[metrics["kind"] == "epoch", "windows_per_second"].iloc[-1])


if __name__ == "__main__":
    run(main, config)
