"""What the trained recipe is worth, over seeds, on dates and instruments that no run saw.

    python -m benchmarks.prove --pairs="['USDM_BTC', 'USDM_ETH']" --unseen="['CM_BTC']" \
      --split_ratios="['2024-07-18T23:58', '2024-08-01']"

Needs parsed books and a balanced sample made with these `split_ratios`.

- The recipe is the trainer's defaults changed by `recipe`. It is trained with several seeds, and
  inference_testing.py scores each run. With `write` the medians over seeds, the minutes of data of
  each pair and those that it cost are kept in benchmarks/results/<name>.json.
- If a GPU has FP8, some seeds are trained in bf16 as well, and the losses are compared in pairs.

All GPUs work at the same time. The output of a run is in `runs_dir`/<name>.log, with a name such as
fp8_0 or bf16_0. Runs that are already trained or scored there are not done again, and an
interrupted one goes on. Of a run that is done, its small files are enough (all but checkpoints and
events): with them the seeds can be split over several machines, or over several hours.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/ and balanced_samples/
    "pairs": None,  # list[str] | None: pairs to train on; None: all sampled
    "scored": None,  # list[str] | None: trained pairs to score; None: all; []: none
    "unseen": None,  # list[str] | None: pairs that are only scored; None: none
    "split_ratios": [0.7, 0.25, 0.05],  # list[float | str]: as for the sample
    "recipe": {},  # dict: keys of fp8_ddp_trainer.py that differ from its defaults
    "scoring": {},  # dict: keys of inference_testing.py that differ from its defaults
    "seeds": 5,  # int >= 1: training runs
    "bf16_seeds": 3,  # int >= 0: number of these seeds that are trained in bf16 as well
    "runs_a_gpu": 2,  # int >= 1: runs at a time on a GPU: one compiles or is scored while the other
    #   computes
    "checksums": True,  # bool: replay the recordings that hold checksums, for the summary line
    "headline": None,  # str | None: pair of the summary line; None: the first one that is scored
    "runs_dir": "runs/prove",  # str: folder of the runs
    "name": "representation",  # str: name of the result
    "write": False,  # bool: keep the result in benchmarks/results/<name>.json
}

from lob.config import InputError, counted, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import itertools
import json
import os
import queue
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import ROOT, report
from lob.book.states import Book, open_book
from lob.process import count_cores
from lob.results import make_row, read_rows
from lob.training.precision import fp8_obstacle
from lob.training.run_folder import read_metrics, runs_named
from lob.training.samples import open_dataset

METRICS = (
    "error",
    "best_untrained_error",
    "ridge_error",
    "linear_time_error",
    "ladder_error",
    "skill_untrained",
    "skill_ridge",
    "difference_untrained_low",
    "difference_untrained_high",
    "difference_ridge_low",
    "difference_ridge_high",
    "windows",
    "blocks",
)
COST = "cost.json"  # of a run: the minutes of its training and of its scoring
Cells = dict[tuple[str, str], float]  # by case and metric


def main(config: dict) -> int:
    states = config["recipe"].get("temporal_dim", 256)
    data = open_dataset(config["data_dir"], config["pairs"], states, config["split_ratios"])
    trained = [book.pair for book in data.books]
    known = trained if config["scored"] is None else config["scored"]
    scored = [*known, *(config["unseen"] or [])]
    if not scored:
        raise InputError("scored = [] and unseen = None: name at least one pair to score")
    precision = pick_precision(config)
    runs = {}
    for seed in range(config["seeds"]):
        runs[f"{precision}_{seed}"] = {"seed": seed, "precision": precision}
    paired = range(min(config["seeds"], config["bf16_seeds"])) if precision == "fp8" else ()
    for_loss = {f"bf16_{seed}": {"seed": seed, "precision": "bf16"} for seed in paired}
    folders = train_all(config, runs, for_loss, trained, scored)

    device = read_device(next(iter(folders.values())))
    reports = [read_report(folders[f"{precision}_{seed}"]) for seed in range(config["seeds"])]
    rows = median_rows(reports, trained)
    for pair in dict.fromkeys([*trained, *scored]):
        book = open_book(Path(config["data_dir"]) / "book_states" / pair)
        note = f"recorded, without gaps; {counted(book.rows, 'state')}"
        rows.append(make_row(pair, "minutes", count_minutes(book), "min", note))
    rows += cost_rows(list(folders.values()), config["runs_a_gpu"])
    losses = []
    for seed in paired:
        pair = folders[f"fp8_{seed}"], folders[f"bf16_{seed}"]
        losses.append((read_test_loss(pair[0]), read_test_loss(pair[1])))
    rows += loss_rows(losses)
    result = report(config["name"], rows, config["write"], device)
    cells = {(row["case"], row["metric"]): row["value"] for row in result["rows"]}
    headline = config["headline"] or scored[0]
    checksums = replay_checksums() if config["checksums"] else "not replayed"
    print(summarise(headline, cells, checksums, data.shared_states, *compare_losses(losses)))
    return 0


def pick_precision(config: dict) -> str:
    """Return the recipe's precision; else fp8 if the GPU has it, or if the runs were trained in it
    elsewhere; else auto.
    """
    if "precision" in config["recipe"]:
        return config["recipe"]["precision"]
    if (Path(config["runs_dir"]) / "fp8_0").exists():
        return "fp8"
    if not torch.cuda.is_available():
        return "auto"
    obstacle = fp8_obstacle("delayed", torch.cuda.get_device_capability())
    return "auto" if obstacle else "fp8"


def median_rows(reports: list[list[dict]], trained: list[str]) -> list[dict[str, Any]]:
    """Return medians over seeds, and also the least and the most of the encoder's own scores."""
    rows = []
    for (case, metric), values in collect(reports).items():
        known = "trained on earlier dates" if case.split("/")[0] in trained else "never trained on"
        note = f"median of {counted(len(values), 'seed')} of training; {known}"
        rows.append(make_row(case, metric, np.median(values), note=note))
        if metric == "error" and len(values) > 1:
            rows.append(make_row(case, f"{metric}_least", min(values), note=note))
            rows.append(make_row(case, f"{metric}_most", max(values), note=note))
    return rows


def count_minutes(book: Book) -> float:
    """Return the minutes between the first and the last state of each segment, summed up."""
    ends = [*book.segment_starts[1:], book.rows]
    spans = [
        int(book.timestamps[end - 1] - book.timestamps[start])
        for start, end in zip(book.segment_starts, ends, strict=True)
    ]
    return sum(spans) / 60e9


def cost_rows(folders: list[Path], runs_a_gpu: int) -> list[dict[str, Any]]:
    """Return rows of the minutes that a run took: medians, and the sum over all runs."""
    costs = [read_cost(folder) for folder in folders]
    note = f"{counted(len(folders), 'run')}, {runs_a_gpu} at a time on a GPU"
    rows = []
    for part in ("training", "scoring"):
        minutes = [cost[part] for cost in costs]
        rows.append(make_row("cost of a run", f"{part}_minutes", np.median(minutes), "min", note))
    total = sum(cost["training"] + cost["scoring"] for cost in costs)
    return [*rows, make_row("cost of all runs", "minutes", total, "min", note)]


def keep_cost(folder: Path, part: str, minutes: float) -> None:
    """Add minutes to those that a part of a run's work took before."""
    cost = read_cost(folder)
    (folder / COST).write_text(json.dumps(cost | {part: cost[part] + minutes}) + "\n")


def read_cost(folder: Path) -> dict[str, float]:
    none = {"training": 0.0, "scoring": 0.0}
    return none | json.loads((folder / COST).read_text()) if (folder / COST).exists() else none


def loss_rows(losses: list[tuple[float | None, float | None]]) -> list[dict[str, Any]]:
    """Return rows that compare paired test losses (FP8, bf16), and the spread of bf16 by seed."""
    difference, half = compare_losses(losses)
    if not np.isfinite(half):
        return []
    bf16 = np.array([loss for _, loss in losses if loss])
    deviation = bf16.std(ddof=1) / bf16.mean()
    note = f"test losses of {len(losses)} paired seeds; half of the 90 % interval"
    note_of_seeds = "standard deviation of the test loss over its mean"
    return [
        make_row("FP8 over bf16", "difference", difference, note=note),
        make_row("FP8 over bf16", "interval", half, note=note),
        make_row("bf16 over seeds", "relative_deviation", deviation, note=note_of_seeds),
    ]


def share_gpus(runs_a_gpu: int) -> queue.Queue[str]:
    """Return a place for each run at a time, as values of CUDA_VISIBLE_DEVICES; one without a GPU.

    The cores are shared among them, unless the user set OMP_NUM_THREADS. With a thread for every
    core in each, runs would wait for one another: scoring took minutes instead of 40 s.
    """
    free: queue.Queue[str] = queue.Queue()
    gpus = [str(gpu) for gpu in range(torch.cuda.device_count())] * runs_a_gpu
    for gpu in gpus or [""]:
        free.put(gpu)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // free.qsize())))
    return free


def train_all(
    config: dict,
    runs: dict[str, dict],
    for_loss: dict[str, dict],
    trained: list[str],
    scored: list[str],
) -> dict[str, Path]:
    """Train and score `runs`, and train those `for_loss`; return the folders by name.

    Both hold the keys of the trainer by the run's name.
    """
    Path(config["runs_dir"]).mkdir(parents=True, exist_ok=True)
    free = share_gpus(config["runs_a_gpu"])
    every_run = runs | for_loss

    def work(name: str) -> Path:
        gpu = free.get()
        try:
            folder = train(config, name, every_run[name], trained, gpu)
            if name in runs:
                score(config, folder, scored, gpu)
            print(f"{name}: test loss {read_test_loss(folder)}", flush=True)
            return folder
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(free.qsize()) as pool:
        return dict(zip(every_run, pool.map(work, every_run), strict=True))


def call(script: str, keys: dict, log: Path, gpu: str) -> None:
    """Run a script on a GPU and append what it prints to `log`. Raises InputError if it fails."""
    words = [sys.executable, script, *(f"--{key}={value}" for key, value in keys.items())]
    visible = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    with open(log, "a") as file:
        status = subprocess.call(words, cwd=ROOT, env=visible, stdout=file, stderr=file)
    if status:
        last = log.read_text().strip().splitlines()[-1:]
        raise InputError(f"{script} stopped with status {status}, see {log}: {' '.join(last)}")


def read_device(folder: Path) -> str:
    """Return the device that a run was trained on, with its commit and versions."""
    there = json.loads((folder / "env.json").read_text())
    names = [name for name in ("torch", "transformer-engine") if name in there["versions"]]
    versions = ", ".join(f"{name} {there['versions'][name]}" for name in names)
    made = f"training and scoring at commit {there['commit']}, with {versions}"
    return f"{there.get('gpu') or 'CPU'} ({made})"


def train(config: dict, name: str, keys: dict, pairs: list[str], gpu: str) -> Path:
    """Train or resume a run that has not ended; return its folder.

    Raises InputError if the run has ended with other keys.
    """
    folder = Path(config["runs_dir"]) / name
    keys = {"pairs": pairs, "split_ratios": config["split_ratios"], **config["recipe"], **keys}
    if (folder / "metrics.csv").exists() and read_test_loss(folder) is not None:
        trained = json.loads((folder / "config.json").read_text())
        differing = [key for key, value in keys.items() if trained.get(key) != value]
        if differing:
            raise InputError(
                f"{folder} was trained with other {', '.join(differing)}: move it away, or set "
                "--runs_dir"
            )
        return folder
    keys |= {"model_name": name, "data_dir": config["data_dir"], "runs_dir": config["runs_dir"]}
    keys["resume"] = folder.exists()
    began = time.monotonic()
    call("fp8_ddp_trainer.py", keys, folder.with_suffix(".log"), gpu)
    folder = runs_named(config["runs_dir"], name)[-1]
    keep_cost(folder, "training", (time.monotonic() - began) / 60)
    return folder


def read_test_loss(folder: Path) -> float | None:
    """Return an ended run's test loss, or None if it has not ended.

    If the test split is empty, it is the last validation loss.
    """
    try:
        rows = read_metrics(folder)
    except ValueError:  # interrupted before its first entry
        return None
    last = rows.drop_duplicates("kind", keep="last").set_index("kind")["validation_loss"]
    if "test" not in last:
        return None
    return float(last["validation" if np.isnan(last["test"]) else "test"])


def score(config: dict, folder: Path, pairs: list[str], gpu: str) -> None:
    """Score a run's best checkpoint, unless it has a report."""
    if (folder / "report.json").exists():
        return
    keys = {
        "model_path": folder / "checkpoints" / "best.safetensors",
        "pairs": pairs,
        "data_dir": config["data_dir"],
        "fit_data_dir": config["data_dir"],
        "probe_windows": 400,  # by default the tester does not probe a short market
        **config["scoring"],
    }
    began = time.monotonic()
    call("inference_testing.py", keys, folder.with_suffix(".log"), gpu)
    keep_cost(folder, "scoring", (time.monotonic() - began) / 60)


def read_report(folder: Path) -> list[dict]:
    if not (folder / "report.json").exists():
        raise InputError(f"{folder} has no report.json: run inference_testing.py on it first")
    return read_rows(folder / "report.json")


def collect(reports: list[list[dict]]) -> dict[tuple[str, str], list[float]]:
    """Return the values over seeds, by case and metric, of those that are shown in tables."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in itertools.chain.from_iterable(reports):
        case = row["case"].split("/")
        if len(case) == 3 and case[1] != "probe" and row["metric"] in METRICS:
            found.setdefault((row["case"], row["metric"]), []).append(row["value"])
    return found


def replay_checksums() -> str:
    """Replay the recordings that have a checksum in every message; return pytest's last line."""
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    command = [*pytest, "tests/test_exchange_oracles.py", "-k", "checksums"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def compare_losses(losses: list[tuple[float | None, float | None]]) -> tuple[float, float]:
    """Return the mean relative difference of paired losses and half of its 90 % interval.

    losses: pairs (FP8, bf16). The interval is that of two one-sided tests at 5 %. Both numbers are
    NaN if there are fewer than two pairs.
    """
    from scipy import stats

    ratio = np.array([fp8 / bf16 - 1 for fp8, bf16 in losses if fp8 and bf16])
    if len(ratio) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.95, len(ratio) - 1) * ratio.std(ddof=1) / np.sqrt(len(ratio))
    return float(ratio.mean()), float(half)


def summarise(
    pair: str, cells: Cells, checksums: str, shared_states: int, difference: float, half: float
) -> str:
    """Return the one line: checksums, shared states, errors of log size, FP8 against bf16."""
    case = f"{pair}/patch/log_size"
    names = {"linear_time_error": "linear", "ladder_error": "ladder"}
    names |= {"ridge_error": "ridge", "error": "ours"}
    there = [metric for metric in names if (case, metric) in cells]
    errors = [f"{names[metric]} {cells[case, metric]:.4g}" for metric in there]
    blocks = cells.get((case, "blocks"), 0)
    parts = [
        f"exchange checksums {checksums}",
        f"states shared by train and test {shared_states}",
        f"{pair} log-size error in patches: {', '.join(errors)} ({blocks:.0f} blocks of time)",
        f"FP8 against bf16: {describe_difference(difference, half)}",
    ]
    return "; ".join(parts)


def describe_difference(difference: float, half: float) -> str:
    if not np.isfinite(half):
        return "not measured"
    within = "equivalent" if abs(difference) + half < 0.01 else "not shown to be equivalent"
    return f"{difference:+.2%} of the loss, 90 % interval +-{half:.2%}: {within} within 1 %"


if __name__ == "__main__":
    run(main, config)
