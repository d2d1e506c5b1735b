"""Training speed of the trainer's own steps on real windows, beside the GPU's limits.

    python -m benchmarks.bench_training --write=True    one GPU; with two also their ratio (minutes)
    python -m benchmarks.bench_training --quick=True    any machine: a tiny model, a few steps

Needs the books and samples of the first three scripts. Each case builds a Trainer and takes its
steps: windows are gathered, masked and normalised, and the optimizer steps. Validation is left out.
Prints a table and one JSON line. On more than one GPU the result is named training_<GPUs>.

With `--reference=<folder>` the trainer of benchmarks/reference.py is timed as well, on windows that
lie on the GPU, and ours with its settings.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/ and balanced_samples/
    "cases": None,  # list[str] | None: names of the cases to run; None: all that this machine can
    "seconds": 6.0,  # >= 0: least time for which a case is measured
    "reference": None,  # str | None: folder of a clone of the published reference, to be timed too
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
from benchmarks.reference import REFERENCE, time_reference
from benchmarks.report import report
from lob.model.encoder import flops_per_window
from lob.model.inputs import build_inputs
from lob.results import make_row
from lob.training.distributed import Team, free_port, join_team, wait_for_ranks

# The published reference's settings with our inputs: the book's normalisation, and a line in time
# as the first guess of hidden values.
DEEP = {**REFERENCE, "normalization": "book", "fill": "linear"}
WIDE = {**DEEP, "model_size": "wide_transformer"}
LARGE = {"batch_size": 512, "accumulation_steps": 1}
WIDE_LARGE = {"batch_size": 192, "accumulation_steps": 1}
QUICK = {**DEEP, "model_size": "tiny_transformer", "batch_size": 8, "accumulation_steps": 2}
# Case -> keys that differ from the trainer's defaults. With `streaming` windows come from files,
# not from the GPU's memory.
CASES: dict[str, dict[str, Any]] = {
    "deep_narrow_as_configured": {**DEEP, "precision": "fp8"},
    "deep_narrow_best": {**DEEP, **LARGE, "precision": "bf16"},
    "deep_narrow_fp8_large": {**DEEP, **LARGE, "precision": "fp8"},
    "deep_narrow_streaming": {**DEEP, "precision": "bf16", "streaming": True},
    "deep_narrow_eager": {**DEEP, "precision": "fp8", "compile": False},
    "wide_fp8": {**WIDE, **WIDE_LARGE, "precision": "fp8"},
    "wide_bf16": {**WIDE, **WIDE_LARGE, "precision": "bf16"},
    "default_recipe": {"precision": "fp8"},
    "default_recipe_bf16": {"precision": "bf16"},
    "reference_settings": {**REFERENCE, "precision": "fp8"},
}
BATCHES_OF_REFERENCE = 8  # passes of different windows
SCALED = ("deep_narrow_best", "wide_fp8")  # measured on two GPUs as well


def main(config: dict) -> None:
    gpus = torch.cuda.device_count()
    cases = {"quick": QUICK} if config["quick"] or not gpus else CASES
    for name in config["cases"] or ():
        if name not in CASES:
            raise InputError(f"cases: {name!r} is none of {', '.join(CASES)}")
    if "quick" in cases and (config["write"] or config["cases"] is not None):
        raise InputError(
            "the quick case is the only one, and its result is not kept: "
            "leave out --write and --cases"
        )
    chosen = [name for name in cases if config["cases"] is None or name in config["cases"]]
    rows = measure_limits() if gpus else []
    rates = {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            found = measure_case(0, 1, None, config, cases[name], Path(folder) / "result.json")
        rates[name] = found["windows_per_second"]
        rows += to_rows(name, found, rows)
        flops = f"{found['model_tflops']:,.0f} TFLOP/s"
        print(f"{name}: {rates[name]:,.0f} windows/s, {flops}", flush=True)
    if gpus > 1:
        for name in [name for name in SCALED if name in chosen]:
            ratio = measure_on_two(config, cases[name]) / rates[name]
            rows.append(make_row("two_gpu_scaling", name, ratio, note="two over one"))
    if gpus and config["reference"]:
        rows += measure_reference(config)
    report("training" if gpus < 2 else f"training_{gpus}", rows, config["write"])


def measure_reference(config: dict) -> list[dict]:
    """Return the rows of the published reference, on windows of our sample."""
    one_pass = {"accumulation_steps": 1, "compile": False}
    settings = trainer_config(config, CASES["reference_settings"] | one_pass)
    with tempfile.TemporaryDirectory() as folder:
        team = Team(0, 1, torch.device("cuda", 0))
        trainer = fp8_ddp_trainer.Trainer(settings, team, Path(folder))
        passes = itertools.islice(trainer.sampler.training(0, 0), BATCHES_OF_REFERENCE)
        batches = [
            build_inputs(price_ticks, sizes, None, trainer.encoder)[2]
            for price_ticks, sizes, *_ in trainer.passes.load(passes)
        ]
        del trainer
    found = time_reference(config["reference"], batches)
    note = f"{len(batches[0])} windows per pass, on the GPU"
    units = {"windows_per_second": "1/s"}
    return [make_row("reference", key, x, units.get(key, ""), note) for key, x in found.items()]


def measure_on_two(config: dict, case: dict[str, Any]) -> float:
    """Return the windows per second of a case on two GPUs."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        arguments = 2, free_port(), config, case, file
        wait_for_ranks(mp.spawn(measure_case, arguments, nprocs=2, join=False))
        return json.loads(file.read_text())["windows_per_second"]


def trainer_config(config: dict, case: dict[str, Any]) -> dict[str, Any]:
    """Return the trainer's config of a case: 1000 epochs, so the learning rate hardly moves."""
    changes = {key: value for key, value in case.items() if key != "streaming"}
    changes |= {"data_dir": config["data_dir"], "epochs": 1000}
    return check_rules(fp8_ddp_trainer.config | changes, fp8_ddp_trainer.__file__)


def endless(trainer: fp8_ddp_trainer.Trainer) -> Iterator[tuple[Tensor, ...]]:
    """Return the trainer's batches of windows, epoch after epoch."""
    sampler, team = trainer.sampler, trainer.team
    epochs = (
        sampler.training(epoch, 0, team.rank, team.world, trainer.passes_a_step)
        for epoch in itertools.count()
    )
    return trainer.passes.windows(itertools.chain.from_iterable(epochs))


def measure_case(
    rank: int, world: int, port: int | None, config: dict, case: dict[str, Any], file: Path
) -> dict:
    """Time a case's steps on this rank. Rank 0 writes what it found to `file` and returns it."""
    share = lob.model.window_store.RESIDENT_SHARE
    lob.model.window_store.RESIDENT_SHARE = 0.0 if case.get("streaming") else share
    with join_team(rank, world, "nccl", port) as team:
        on_gpu = team.device.type == "cuda"
        if on_gpu:  # before the trainer is made: a CUDA graph takes its memory at its capture
            torch.cuda.reset_peak_memory_stats()
        trainer = fp8_ddp_trainer.Trainer(trainer_config(config, case), team, file.parent)
        windows = endless(trainer)
        store = trainer.passes.store
        for _ in range(3):  # warm-up
            trainer.step(windows)
        if on_gpu:
            torch.cuda.synchronize()
        steps = 0
        waited = store.wait_seconds
        began = time.perf_counter()
        while True:  # the ranks agree on when to end, since they must take equally many steps
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
            f"{trainer.sampler.windows_a_step} windows per step in {trainer.passes_a_step} "
            f"pass(es) on {world} rank(s), {trainer.precision.name}, {steps} steps"
        )
        if rank == 0:
            file.write_text(json.dumps({**found, "note": note}))
    # The next case needs this one's memory, and compiles anew.
    del trainer, windows, store
    gc.collect()
    torch.compiler.reset()
    if on_gpu:
        torch.cuda.empty_cache()
    lob.model.window_store.RESIDENT_SHARE = share
    return json.loads(file.read_text()) if rank == 0 else {}


def to_rows(name: str, found: dict[str, Any], limits: list[dict]) -> list[dict]:
    """Return the rows of a case; with `limits` also the share of the GPU's bf16 matrix rate."""
    units = {"windows_per_second": "1/s", "model_tflops": "TFLOP/s", "peak_memory_gb": "GB"}
    values = {key: value for key, value in found.items() if key != "note"}
    rows = [
        make_row(name, key, value, units.get(key, ""), found["note"])
        for key, value in values.items()
    ]
    rate = next((row["value"] for row in limits if row["metric"] == "bf16_tflops"), None)
    if rate:
        share = found["model_tflops"] / rate
        note = "model FLOPs, no recomputation counted"
        rows.append(make_row(name, "share_of_bf16_matrix_rate", share, note=note))
    return rows


def measure_limits() -> list[dict]:
    """Return the GPU's matrix rates (8192 cubed) and its copying rate, read and written bytes."""
    flops = 2 * 8192**3 / 1e12
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    half = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    into = torch.empty_like(half)
    work = {
        "bf16_tflops": (lambda: a @ a, flops, "TFLOP/s"),
        "copy_gb_per_second": (lambda: into.copy_(half), 4 * 2**30 / 1e9, "GB/s"),
    }
    if torch.cuda.get_device_capability() >= (8, 9):  # the first GPUs with FP8
        b = a.to(torch.float8_e4m3fn)
        one = torch.ones((), device="cuda")
        options = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16}
        options["use_fast_accum"] = True
        work["fp8_tflops"] = (lambda: torch._scaled_mm(b, b.T, **options), flops, "TFLOP/s")
    rows = []
    for metric, (call, amount, unit) in work.items():
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        rows.append(make_row("limits", metric, amount / float(np.median(times)), unit))
    return rows


if __name__ == "__main__":
    run(main, config)
