"""The Triton kernels of the network's inputs beside torch's, and where a training step goes.

    python -m benchmarks.bench_inputs --write=True                  one GPU, some two minutes
    python -m benchmarks.bench_inputs --kernels_file=kernels.json   the time of each kernel as well

Needs the books and samples of the first three scripts and an NVIDIA GPU. On windows of the sample
it compares the inputs for every mask, then times the parts of a pass, each as one CUDA graph, and
the steps of the default recipe with and without the kernels, by groups of kernels. A part that
fails is named, and the others go on. Prints a table and one JSON line.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/ and balanced_samples/
    "precisions": ["auto", "bf16"],  # list[auto | fp8 | bf16]: of the steps
    "seconds": 3.0,  # >= 0: least time for which steps are measured
    "kernels_file": None,  # str | None: JSON file for the time of each kernel
    "write": False,  # bool: keep the result in benchmarks/results/inputs.json
}

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import gc
import json
import re
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import lob.model.kernels
from benchmarks import bench_training
from benchmarks.report import report
from lob.model.encoder import doubt, flops_per_window
from lob.model.inputs import build_inputs
from lob.model.ladder import find_ladder
from lob.model.masking import MASKS, make_mask
from lob.results import make_row
from lob.training.augmentation import augment
from lob.training.distributed import Team
from lob.training.objective import OUTLOOK_EVERY, outlook_targets

# Group -> what the names of its kernels hold; a kernel belongs to the first that fits.
OURS = "find_|number_prices|write_ladder|read_states|read_windows|normalise|interpolate|write_cells"
GROUPS = {
    "compiled by torch": r"^triton_",
    "convolution": r"conv|wgrad|dgrad|fprop|implicit",
    "attention": r"fmha|flash|sdpa|attention",
    "matrix products": r"gemm|nvjet|cublas|cutlass|splitk",
    "ladder and inputs, Triton": rf"^({OURS})",
    "sort, scan, gather": r"sort|radix|scan|cumsum|cummax|cummin|gather|scatter|search|index",
    "norm and FP8 casts": r"norm|quantize|transpose|amax|_ln_",
    "copies and casts": r"copy|memcpy|memset|fill|cat|cast|nchw|nhwc",
    "optimizer": r"multi_tensor|adam|foreach",
    "other elementwise and sums": r".",
}


def main(config: dict) -> None:
    if not torch.cuda.is_available():
        raise InputError("bench_inputs measures an NVIDIA GPU, this machine shows none")
    failed: list[str] = []
    rows: list[dict] = []
    kernels: dict[str, Any] = {}

    def attempt(name: str, work: Callable[[], list[dict]]) -> None:
        try:
            rows.extend(work())
        except Exception as error:
            failed.append(f"{name}: {(str(error).splitlines() or [repr(error)])[0]}")
            print(f"FAILED {name}", traceback.format_exc(limit=-6), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, "bf16", Path(folder))
        batch = next(iter(trainer.sampler.training(0, 0)))
        windows = next(trainer.passes.load([batch]))
        encoder = trainer.encoder
        for mode in (*MASKS, "mix", None):
            attempt(f"parity {mode}", lambda mode=mode: compare(*windows, mode, encoder))
        for name, work in parts(*windows, encoder).items():
            attempt(name, lambda name=name, work=work: time_part(name, work))
        attempt("kernels of the inputs", lambda: list_inputs(*windows, encoder, kernels))
        del trainer
        for precision in config["precisions"]:
            for enabled in (True, False):
                if enabled or precision == config["precisions"][0]:
                    case = config, precision, enabled, Path(folder), kernels
                    attempt(f"steps {precision}", lambda case=case: time_steps(*case))
                    gc.collect()  # the next case needs this one's memory, and compiles anew
                    torch.compiler.reset()
                    torch.cuda.empty_cache()
    lob.model.kernels.ENABLED = True
    if config["kernels_file"]:
        Path(config["kernels_file"]).write_text(json.dumps(kernels, indent=1))
    report("inputs", rows, config["write"])
    print("failed:", "; ".join(failed) or "nothing")


def make_trainer(config: dict, precision: str, folder: Path) -> Any:
    """Return a trainer of the default recipe on this GPU."""
    folder_of_data = {"data_dir": config["data_dir"]}
    case = bench_training.trainer_config(folder_of_data, {"precision": precision})
    trainer = bench_training.fp8_ddp_trainer.Trainer
    return trainer(case, Team(0, 1, torch.device("cuda", 0)), folder)


def with_kernels(enabled: bool, work: Callable[[], Any]) -> Any:
    """Return what `work` does with Triton's kernels, or with torch's."""
    lob.model.kernels.ENABLED = enabled
    try:
        return work()
    finally:
        lob.model.kernels.ENABLED = True


def mask_of(keys: Tensor, shape: torch.Size, mode: str | None) -> Tensor | None:
    return make_mask(keys, shape[1], shape[2], 0.25, mode) if mode else None


def compare(
    price_ticks: Tensor,
    sizes: Tensor,
    times_ns: Tensor,
    keys: Tensor,
    mode: str | None,
    encoder: Any,
) -> list[dict]:
    """Return the largest differences of the inputs, and how many entries of a ladder differ."""
    mask = mask_of(keys, price_ticks.shape, mode)
    ours, torchs = (
        with_kernels(enabled, lambda: build_inputs(price_ticks, sizes, mask, encoder)[:3])
        for enabled in (True, False)
    )
    case = f"parity, {mode or 'nothing hidden'}"
    rows = []
    for name, mine, other in zip(("cells", "base", "values"), ours, torchs, strict=True):
        rows.append(make_row(case, f"{name}_difference", float((mine - other).abs().max())))
    if mask is not None:
        ours, torchs = (
            with_kernels(enabled, lambda: find_ladder(price_ticks, mask))
            for enabled in (True, False)
        )
        differs = torch.zeros_like(mask[..., 0])
        for name in ("price_known", "carried", "before", "after"):
            differs |= getattr(ours, name) != getattr(torchs, name)
        rows.append(make_row(case, "entries_that_differ", float(differs.sum())))
    return rows


def parts(
    price_ticks: Tensor, sizes: Tensor, times_ns: Tensor, keys: Tensor, encoder: Any
) -> dict[str, Callable[[], Any]]:
    """Return the parts of a pass outside the network, by name."""
    shape = price_ticks.shape
    mask = make_mask(keys, shape[1], shape[2], 0.25, "mix")
    some = price_ticks[::OUTLOOK_EVERY].contiguous(), sizes[::OUTLOOK_EVERY].contiguous()
    cells = build_inputs(price_ticks, sizes, mask, encoder)[0]
    return {
        "augment": lambda: augment(price_ticks, sizes, times_ns, keys, True, 0.8, 1.0),
        "make_mask": lambda: make_mask(keys, shape[1], shape[2], 0.25, "mix"),
        "find_ladder": lambda: find_ladder(price_ticks, mask),
        "build_inputs": lambda: build_inputs(price_ticks, sizes, mask, encoder),
        "build_inputs_outlook": lambda: build_inputs(*some, None, encoder),
        "outlook_targets": lambda: outlook_targets(*some),
        "doubt": lambda: doubt(cells),
    }


def time_part(name: str, work: Callable[[], Any]) -> list[dict]:
    """Return the milliseconds of a part as one CUDA graph: of torch's kernels, and of faster ones.

    These are Triton's of lob/model/inputs_triton.py, where they can do the part, or else those that
    torch.compile makes of it.
    """
    rows = [make_row(name, "torch_ms", 1e3 * with_kernels(False, lambda: time_graph(work)), "ms")]
    if name.startswith(("find_", "build_")):
        label, faster = "triton_ms", work
    else:
        label, faster = "compiled_ms", torch.compile(work, dynamic=False)
    return [*rows, make_row(name, label, 1e3 * time_graph(faster), "ms")]


def time_graph(work: Callable[[], Any], calls: int = 20) -> float:
    """Return the seconds of a call within a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls


def list_inputs(
    price_ticks: Tensor,
    sizes: Tensor,
    times_ns: Tensor,
    keys: Tensor,
    encoder: Any,
    kernels: dict[str, Any],
) -> list[dict]:
    """Return the microseconds of each of our kernels in one call of `build_inputs`."""
    mask = mask_of(keys, price_ticks.shape, "mix")

    def work() -> None:
        build_inputs(price_ticks, sizes, mask, encoder)

    work()
    found = kernels["build_inputs"] = list_kernels(work, 5)
    return [
        make_row("kernel of the inputs", name[:60], time_us, "us", f"{count:g} times")
        for name, (time_us, count) in found.items()
        if time_us >= 1
    ]


def list_kernels(work: Callable[[], Any], calls: int) -> dict[str, tuple[float, float]]:
    """Return each kernel's microseconds and launches in a call of `work`, the longest first."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
    times = {
        event.key: (event.self_device_time_total / calls, event.count / calls)
        for event in profiled.key_averages()
        if event.self_device_time_total > 0
    }
    return dict(sorted(times.items(), key=lambda item: -item[1][0]))


def group_of(kernel: str) -> str:
    return next(group for group, names in GROUPS.items() if re.search(names, kernel.lower()))


def time_steps(
    config: dict, precision: str, enabled: bool, folder: Path, kernels: dict[str, Any]
) -> list[dict]:
    """Return windows/s of the default recipe, and the milliseconds of a step by kernel group."""
    began = time.perf_counter()
    trainer = make_trainer(config, precision, folder)
    windows = bench_training.endless(trainer)
    case = f"default recipe, {trainer.precision.name}, {'Triton' if enabled else 'torch'}"

    def step() -> Tensor:
        trainer.prepare_step()
        return trainer.step(windows)[0]

    def warm_up() -> None:
        for _ in range(4):
            step()
        torch.cuda.synchronize()

    with_kernels(enabled, warm_up)  # captures the pass
    ready = time.perf_counter() - began
    began, steps = time.perf_counter(), 0
    while steps < 8 or time.perf_counter() - began < config["seconds"]:
        loss = step()
        steps += 1
        if steps % 4 == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / steps
    rate = trainer.sampler.windows_a_step / seconds
    note = f"{trainer.passes_a_step} pass(es) a step, ready after {ready:.0f} s"
    rows = [
        make_row(case, "windows_per_second", rate, "1/s", note),
        make_row(case, "step_ms", 1e3 * seconds, "ms"),
        make_row(case, "model_tflops", rate * flops_per_window(trainer.encoder) / 1e12, "TFLOP/s"),
        make_row(case, "train_loss", float(loss), note=f"after {steps + 4} steps"),
    ]
    found = kernels[case] = list_kernels(step, 3)
    sums: dict[str, list[float]] = {}
    for kernel, (time_us, count) in found.items():
        total = sums.setdefault(group_of(kernel), [0.0, 0.0])
        total[0] += time_us / 1e3
        total[1] += count
    for group, (time_ms, count) in sorted(sums.items(), key=lambda item: -item[1][0]):
        rows.append(make_row(case, group, time_ms, "ms", f"{count:.0f} kernels"))
    print(f"\n{case}: kernels of a step")
    for kernel, (time_us, count) in list(found.items())[:12]:
        print(f"  {time_us:9.0f} us {count:6.1f} x  {group_of(kernel)[:12]:12}  {kernel[:80]}")
    return rows


if __name__ == "__main__":
    run(main, config)
