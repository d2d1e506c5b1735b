"""Does the fast path change the result? Compiled and graphed steps beside eager ones, from equal weights and windows.

    python -m benchmarks.bench_eager --write=True                                                   a GPU, four minutes
    python -m benchmarks.bench_eager --precisions="['auto']" --model_size=tiny_transformer --steps=10       any machine

Needs the books and samples of the first three scripts. Seeds run at the same time: eager steps wait for launches, and
only the losses count. Prints a table and one JSON line.
"""

config = {
    "data_dir": "training_data",  # folder that holds book_states/ and balanced_samples/
    "model_size": "deep_narrow_transformer",  # as for the trainer
    "precisions": ["bf16", "fp8"],  # each as for the trainer
    "batch_size": 48,  # windows a step
    "steps": 200,  # optimizer steps, at the reference's peak learning rate
    "seeds": 3,  # of weights, order and masks
    "write": False,  # keep the result in benchmarks/results/eager.json
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__, bounds={"steps": ">= 1", "seeds": ">= 1", "batch_size": ">= 1"})

import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import fp8_ddp_trainer
from benchmarks.bench_training import REFERENCE, endless, trainer_config
from benchmarks.report import report
from lob.training.distributed import join_team


def main(config: dict) -> None:
    cases = list(itertools.product(config["precisions"], range(config["seeds"])))
    with ProcessPoolExecutor(config["seeds"], get_context("spawn")) as pool:
        rows = list(pool.map(compare, [config] * len(cases), *zip(*cases, strict=True)))
    report("eager", rows, config["write"], torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def compare(config: dict, precision: str, seed: int) -> dict[str, Any]:
    """A row of the last tenth's mean train loss on the fast path over that on the eager path."""
    os.environ["LOCAL_RANK"] = str(seed % max(torch.cuda.device_count(), 1))
    fast, eager = (mean_loss(config, precision, seed, compiled) for compiled in (True, False))
    note = f"{config['model_size']}, the last of {config['steps']} steps, eager {eager:.6f}"
    return {"case": f"{precision} seed {seed}", "metric": "fast_over_eager_loss", "value": fast / eager, "unit": "",
            "note": note}  # fmt: skip


def mean_loss(config: dict, precision: str, seed: int, compiled: bool) -> float:
    """The mean train loss of the last tenth of the steps."""
    case = REFERENCE | {"accumulation_steps": 1, "use_scheduler": False, "lr": REFERENCE["max_lr"]}
    case |= {"model_size": config["model_size"], "batch_size": config["batch_size"]}
    case |= {"precision": precision, "compile": compiled, "seed": seed}
    losses = []
    with join_team(0, 1, "nccl", None) as team:
        trainer = fp8_ddp_trainer.Trainer(trainer_config(config, case), team, Path("."))
        windows = endless(trainer)
        for _ in range(config["steps"]):
            trainer.set_rate()
            losses.append(trainer.step(windows)[0])
    return float(torch.stack(losses)[-max(1, len(losses) // 10) :].mean())


if __name__ == "__main__":
    run(main, config)
