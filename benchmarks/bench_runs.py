"""Training losses: FP8 beside bf16 over whole runs, one GPU beside all of this machine.

    python -m benchmarks.bench_runs --write=True                      the default model, 10 epochs (minutes)
    python -m benchmarks.bench_runs --model_size=tiny_transformer --epochs=1 --precisions="['fp32']"

Needs the books and samples of the first three scripts. Runs share the GPUs at the same time: it is their losses that
count, bench_training.py measures speed. Prints a table and one JSON line. Each run keeps its config, versions and
metrics under `runs_dir`; runs that are complete there are not run again.
"""

config = {
    "data_dir": "training_data",  # folder that holds book_states/ and balanced_samples/
    "runs_dir": "runs/precisions",  # folder of the runs
    "precisions": ["fp8", "bf16"],  # the first is compared with the others
    "seeds": 3,  # runs of each precision on one GPU
    "epochs": 10,  # of each run
    "model_size": "deep_narrow_transformer",  # as for the trainer
    "batch_size": 48,  # windows a GPU and micro-step, of four
    "compile": True,  # as for the trainer
    "write": False,  # keep the result in benchmarks/results/runs.json
}

from lob.config import CheckFailed, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_training import REFERENCE
from benchmarks.report import ROOT, report


def main(config: dict) -> None:
    gpus, folder = torch.cuda.device_count(), Path(config["runs_dir"])
    singles = [(precision, seed) for seed in range(config["seeds"]) for precision in config["precisions"]]
    names = [f"{precision}_seed_{seed}" for precision, seed in singles]
    started = [start(config, name, precision, seed, [i % gpus] if gpus else [])
               for i, (name, (precision, seed)) in enumerate(zip(names, singles, strict=True))]  # fmt: skip
    finish(names, started)
    together = [f"{precision}_{gpus}_gpus" for precision in config["precisions"] if gpus > 1]
    finish(together, [start(config, name, precision, 0, list(range(gpus)))
                      for name, precision in zip(together, config["precisions"], strict=False)])  # fmt: skip
    runs = {name: read_run(folder / name) for name in [*names, *together]}
    rows = [row for name, found in runs.items() for row in to_rows(name, found)]
    report("runs", rows + compare(config, runs), config["write"], describe_device(gpus))


def start(config: dict, name: str, precision: str, seed: int, gpus: list[int]) -> subprocess.Popen | None:
    """Start the trainer on the given GPUs; None where the run is complete."""
    folder = Path(config["runs_dir"]) / name
    if folder.exists():
        if read_run(folder)["test"]:
            return None
        shutil.rmtree(folder)
    words = {key: config[key] for key in ("data_dir", "runs_dir", "epochs", "model_size", "batch_size", "compile")}
    words = REFERENCE | words | {"model_name": name, "precision": precision, "seed": seed, "log_steps": 1}
    command = [sys.executable, "fp8_ddp_trainer.py", *(f"--{key}={value}" for key, value in words.items())]
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | visible, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def finish(names: list[str], started: list[subprocess.Popen | None]) -> None:
    """Wait for trainers; CheckFailed with the end of the output of one that failed."""
    for name, process in zip(names, started, strict=True):
        if process is None:
            continue
        output, _ = process.communicate()
        if process.returncode:
            raise CheckFailed(f"{name} ended with status {process.returncode}: {output[-2000:]}")
        print(f"{name}: {output.splitlines()[-3]}", flush=True)


def read_run(folder: Path) -> dict[str, Any]:
    """A run's config and its losses by epoch."""
    with open(folder / "metrics.csv") as handle:
        rows = list(csv.DictReader(handle))
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("epoch", "test")}
    return {
        "config": json.loads((folder / "config.json").read_text()),
        "train": [float(row["train_loss"]) for row in kinds["epoch"]],
        "validation": [float(row["validation_loss"]) for row in kinds["epoch"]],
        "test": [float(row["validation_loss"] or "nan") for row in kinds["test"]],
    }


def to_rows(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    config = found["config"]
    note = (f"{config['model_size']}, {config['batch_size']} x {config['accumulation_steps']} windows a step and GPU, "
            f"{len(found['train'])} epochs")  # fmt: skip
    values = {"train_loss": found["train"][-1], "validation_loss": found["validation"][-1]}
    values["test_loss"] = found["test"][0]
    return [{"case": name, "metric": metric, "value": value, "unit": "", "note": note}
            for metric, value in values.items() if np.isfinite(value)]  # fmt: skip


def compare(config: dict, runs: dict[str, dict]) -> list[dict[str, Any]]:
    """Validation losses by epoch, means over the seeds, and the first precision's final loss over the others'."""
    curves = {precision: np.array([runs[f"{precision}_seed_{seed}"]["validation"] for seed in range(config["seeds"])])
              for precision in config["precisions"]}  # fmt: skip
    rows = [{"case": f"epoch {epoch + 1}", "metric": f"validation_loss_{precision}", "value": curve[:, epoch].mean(),
             "unit": "", "note": f"epochs: mean of {config['seeds']} seeds"}
            for precision, curve in curves.items() for epoch in range(curve.shape[1])]  # fmt: skip
    first, *others = config["precisions"]
    for other in others:
        ratios = curves[first][:, -1] / curves[other][:, -1]
        spread = curves[other][:, -1].std(ddof=1) / curves[other][:, -1].mean() if config["seeds"] > 1 else 0.0
        values = {"mean_ratio": ratios.mean(), "least_ratio": ratios.min(), "most_ratio": ratios.max(),
                  "spread_of_seeds": spread}  # fmt: skip
        note = f"final validation losses, paired by seed; spread: standard deviation of {other}'s over its mean"
        rows += [{"case": f"{first}_over_{other}", "metric": metric, "value": float(value), "unit": "", "note": note}
                 for metric, value in values.items()]  # fmt: skip
    return rows


def describe_device(gpus: int) -> str | None:
    return f"{gpus} x {torch.cuda.get_device_name()}" if gpus else None


if __name__ == "__main__":
    run(main, config)
