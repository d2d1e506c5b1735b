"""Training speed of the trainer's own loop on real windows, beside the chip's limits.

    python -m benchmarks.bench_training --write=True    one GPU; with two also their ratio (minutes)
    python -m benchmarks.bench_training --quick=True    any machine: a tiny model, a few steps

Needs the books and samples of the first three scripts. A case builds a Trainer and takes its steps:
windows are gathered, hidden and normalised, the optimizer included, no validation. Prints a table
and one JSON line.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/ and balanced_samples/
    "cases": None,  # list[str] | None: names of the cases to run; None: all that this machine can
    "seconds": 6.0,  # >= 0: time for which a case is measured, at least
    "quick": False,  # bool: a tiny model on whatever machine this is
    "write": False,  # bool: keep the result in benchmarks/results/training.json
}

from lob.config import InputError, check_rules, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import gc
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor

import fp8_ddp_trainer
import lob.model.window_store
from benchmarks.reference import REFERENCE
from benchmarks.report import report
from lob.model.encoder import flops_per_window
from lob.training.distributed import free_port, join_team, wait_for_ranks

# The published reference's settings, with our inputs: the book's normalisation, and the line in
# time as first guess.
DEEP = {**REFERENCE, "normalization": "book", "fill": "linear"}
WIDE = {**DEEP, "model_size": "wide_transformer"}
LARGE = {"batch_size": 512, "accumulation_steps": 1}
WIDE_LARGE = {"batch_size": 192, "accumulation_steps": 1}
QUICK = {**DEEP, "model_size": "tiny_transformer", "batch_size": 8, "accumulation_steps": 2}
# Case -> what differs from the trainer's defaults; `streaming`: windows come from files, not the
# GPU.
CASES: dict[str, dict[str, Any]] = {
    "deep_narrow_as_configured": {**DEEP, "precision": "fp8"},
    "deep_narrow_best": {**DEEP, **LARGE, "precision": "bf16"},
    "deep_narrow_fp8_large": {**DEEP, **LARGE, "precision": "fp8"},
    "deep_narrow_streaming": {**DEEP, "precision": "bf16", "streaming": True},
    "deep_narrow_eager": {**DEEP, "precision": "fp8", "compile": False},
    "wide_fp8": {**WIDE, **WIDE_LARGE, "precision": "fp8"},
    "wide_bf16": {**WIDE, **WIDE_LARGE, "precision": "bf16"},
    "default_recipe": {"precision": "fp8"},
}
SCALED = ("deep_narrow_best", "wide_fp8")  # measured on two GPUs as well


def main(config: dict) -> None:
    gpus = torch.cuda.device_count()
    cases = {"quick": QUICK} if config["quick"] or not gpus else CASES
    for name in config["cases"] or ():
        if name not in CASES:
            raise InputError(f"cases: {name!r} is none of {', '.join(CASES)}")
    if "quick" in cases and (config["write"] or config["cases"] is not None):
        raise InputError(
            "there is nothing to keep or choose of the quick case: leave out --write and --cases"
        )
    chosen = [name for name in cases if config["cases"] is None or name in config["cases"]]
    rows, rates = measure_limits() if gpus else [], {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            found = measure_case(0, 1, None, config, cases[name], Path(folder) / "result.json")
        rates[name] = found["windows_per_second"]
        rows += to_rows(name, found, rows)
        print(
            f"{name}: {found['windows_per_second']:,.0f} windows/s, {found['model_tflops']:,.0f} "
            "TFLOP/s",
            flush=True,
        )
    for name in SCALED if gpus > 1 else ():
        if name in chosen:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "result.json"
                arguments = 2, free_port(), config, cases[name], file
                wait_for_ranks(mp.spawn(measure_case, arguments, nprocs=2, join=False))
                ratio = json.loads(file.read_text())["windows_per_second"] / rates[name]
            rows.append(
                {
                    "case": "two_gpu_scaling",
                    "metric": name,
                    "value": ratio,
                    "unit": "",
                    "note": "two over one",
                }
            )
    report("training", rows, config["write"])


def trainer_config(config: dict, case: dict[str, Any]) -> dict[str, Any]:
    """The trainer's config of a case: its defaults, with a learning rate cycle so long that it
    hardly moves.
    """
    changes = {key: value for key, value in case.items() if key != "streaming"}
    changes |= {"data_dir": config["data_dir"], "epochs": 1000}
    return check_rules(fp8_ddp_trainer.config | changes, fp8_ddp_trainer.__file__)


def endless(trainer: fp8_ddp_trainer.Trainer) -> Iterator[tuple[Tensor, ...]]:
    """The trainer's windows, epoch after epoch."""
    sampler, team = trainer.sampler, trainer.team
    epochs = (
        sampler.training(epoch, 0, team.rank, team.world, trainer.passes_a_step)
        for epoch in itertools.count()
    )
    return trainer.passes.windows(itertools.chain.from_iterable(epochs))


def measure_case(
    rank: int, world: int, port: int | None, config: dict, case: dict[str, Any], file: Path
) -> dict:
    """Time a case's steps on this rank; the first one writes what it found to `file` and returns
    it.
    """
    share = lob.model.window_store.RESIDENT_SHARE
    lob.model.window_store.RESIDENT_SHARE = 0.0 if case.get("streaming") else share
    with join_team(rank, world, "nccl", port) as team:
        if team.device.type == "cuda":
            # the memory of a CUDA graph is taken at its capture
            torch.cuda.reset_peak_memory_stats()
        trainer = fp8_ddp_trainer.Trainer(trainer_config(config, case), team, file.parent)
        windows, store, on_gpu = endless(trainer), trainer.passes.store, team.device.type == "cuda"
        for _ in range(3):
            trainer.step(windows)
        if on_gpu:
            torch.cuda.synchronize()
        steps, began, waited = 0, time.perf_counter(), store.wait_seconds
        while True:  # the ranks must take the same number of steps
            for _ in range(4):
                trainer.prepare_step()
                loss, *_ = trainer.step(windows)
                steps += 1
            if on_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            if team.agree(seconds) >= config["seconds"]:
                break
        rate = steps * trainer.sampler.windows_a_step / seconds
        found = {
            "windows_per_second": rate,
            "model_tflops": rate * flops_per_window(trainer.encoder) / 1e12,
            "data_wait_share": (store.wait_seconds - waited) / seconds,
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
            "train_loss": float(loss),
        }
        note = (
            f"{trainer.sampler.windows_a_step} windows a step in {trainer.passes_a_step} pass(es) "
            f"on {world} rank(s)"
        )
        if rank == 0:
            file.write_text(
                json.dumps({**found, "note": f"{note}, {trainer.precision.name}, {steps} steps"})
            )
    del trainer, windows, store
    gc.collect()
    torch.compiler.reset()
    if on_gpu:
        torch.cuda.empty_cache()
    lob.model.window_store.RESIDENT_SHARE = share
    return json.loads(file.read_text()) if rank == 0 else {}


def to_rows(name: str, found: dict[str, Any], limits: list[dict]) -> list[dict]:
    """Rows of a case; the matrix rate measured in the same run gives its utilisation."""
    units = {"windows_per_second": "1/s", "model_tflops": "TFLOP/s", "peak_memory_gb": "GB"}
    rows = [
        {
            "case": name,
            "metric": key,
            "value": value,
            "unit": units.get(key, ""),
            "note": found["note"],
        }
        for key, value in found.items()
        if key != "note"
    ]
    rate = next((row["value"] for row in limits if row["metric"] == "bf16_tflops"), None)
    if rate:
        share = found["model_tflops"] / rate
        note = "model FLOPs, no recomputation counted"
        rows.append(
            {
                "case": name,
                "metric": "share_of_bf16_matrix_rate",
                "value": share,
                "unit": "",
                "note": note,
            }
        )
    return rows


def measure_limits() -> list[dict]:
    """The GPU's matrix rates (8192 cubed) and the rate of a device copy, read and written bytes
    counted.
    """
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    half = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    into, one = torch.empty_like(half), torch.ones((), device="cuda")
    work = {
        "bf16_tflops": (lambda: a @ a, 2 * 8192**3 / 1e12, "TFLOP/s"),
        "copy_gb_per_second": (lambda: into.copy_(half), 4 * 2**30 / 1e9, "GB/s"),
    }
    if torch.cuda.get_device_capability() >= (8, 9):
        b = a.to(torch.float8_e4m3fn)
        scaled = {
            "scale_a": one,
            "scale_b": one,
            "out_dtype": torch.bfloat16,
            "use_fast_accum": True,
        }
        work["fp8_tflops"] = (
            lambda: torch._scaled_mm(b, b.T, **scaled),
            2 * 8192**3 / 1e12,
            "TFLOP/s",
        )
    rows = []
    for metric, (call, amount, unit) in work.items():
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        rows.append(
            {
                "case": "limits",
                "metric": metric,
                "value": amount / float(np.median(times)),
                "unit": unit,
            }
        )
    return rows


if __name__ == "__main__":
    run(main, config)
