"""Latency and throughput of exported encoders, for each format, precision and device.

    python -m benchmarks.bench_export --write=True
    python -m benchmarks.bench_export --write=True --devices="['cuda']" \
      --presets="['cell_transformer','deep_narrow_transformer']" \
      --formats="['torchscript','eager','graphed']"
    python -m benchmarks.bench_export --write=True --formats="['eager','stream']" \
      --presets="['small_cell_transformer','tiny_transformer','deep_narrow_transformer']"
    python -m benchmarks.bench_export --write=True --devices="['cuda']" --kernels=True \
      --presets="['cell_transformer','deep_narrow_transformer']" --formats="['graphed','stream']"

Weights and windows are random, since their values do not change the time. On a CPU a single window
is encoded by one thread, as in a program that trades, and a batch of a file by all cores. Files for
a GPU are TorchScript. Beside files a network can be timed in this process: by its eager layers on
one thread, or on a GPU as one CUDA graph; in bf16 on a GPU, from pinned memory and back
(lob/evaluation/latency.py). As a stream the network is causal and takes one state instead of a
window; its vectors per second are those of a batch of books side by side, a state of each.
"""

config = {
    "presets": ["tiny_transformer", "deep_narrow_transformer"],  # list[str]: model sizes
    "formats": ["torchscript", "onnx"],  # list[torchscript | onnx | eager | graphed | stream]:
    #   files, or the network in this process
    "devices": ["cpu"],  # list[cpu | cuda]: where they run (ONNX files on the CPU, graphs on a GPU)
    "depth": 96,  # int >= 2: levels of a state
    "temporal_dim": 256,  # int >= 4: states of a window
    "runs": 200,  # int >= 1: single windows that are timed
    "batch_size": 256,  # int >= 1: windows of a batch whose throughput is measured
    "batches": 1,  # int >= 1: number of these batches, after a small one that warms up
    "search": False,  # bool: whether a graph looks for the fastest kernels too (a minute a network)
    "kernels": False,  # bool: print what a GPU does for a window or an update, kernel by kernel
    "write": False,  # bool: keep the result in benchmarks/results/export.json, or with a stream
    #   among the formats in stream.json; with _cuda behind the name if devices is ["cuda"]
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import report
from lob.evaluation import latency
from lob.export.program import ENDINGS, write_program
from lob.model.embedding import WindowEncoder, in_bf16
from lob.model.encoder import BookEncoder, encoder_config
from lob.process import count_cores
from lob.results import make_row

CORES = count_cores()
WARM_UP = 10  # single windows before those that are timed


def main(config: dict) -> None:
    rows = []
    windows = random_windows(config["batch_size"], config["temporal_dim"], config["depth"])
    for preset in config["presets"]:
        torch.manual_seed(0)
        shape = {"depth": config["depth"], "temporal_dim": config["temporal_dim"]}
        of_windows = BookEncoder(encoder_config(preset, **shape)).eval()
        causal = BookEncoder(encoder_config(preset, **shape, causal=True)).eval()
        for format_, precision, device in variants(config):
            case = f"{preset}/{format_}_{precision}_{device}"
            encoder = causal if format_ == "stream" else of_windows
            if format_ not in ENDINGS:
                rows += measure_in_process(case, encoder, windows, format_, device, config)
                continue
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"encoder{ENDINGS[format_]}"
                write_encoder(file, encoder, windows, precision, device)
                rows += measure(case, file, windows, device, config)
    name = "stream" if "stream" in config["formats"] else "export"
    name += "_cuda" if config["devices"] == ["cuda"] else ""
    report(name, rows, write=config["write"])


def variants(config: dict) -> Iterator[tuple[str, str, str]]:
    """Yield format, precision and device of what can be run."""
    in_process = {"cpu": "fp32", "cuda": "bf16"}  # the precisions that latency.py takes
    runs_on = {"onnx": ("cpu",), "graphed": ("cuda",)}
    for format_ in config["formats"]:
        for precision in ("fp32", "bf16"):
            for device in config["devices"]:
                fits = format_ in ENDINGS or precision == in_process[device]
                if fits and device in runs_on.get(format_, ("cpu", "cuda")):
                    yield format_, precision, device


def write_encoder(
    file: Path, encoder: BookEncoder, windows: tuple[Tensor, Tensor], precision: str, device: str
) -> None:
    encoder = copy.deepcopy(encoder) if precision == "fp32" else in_bf16(encoder)
    module = WindowEncoder(encoder.requires_grad_(False), "last").eval().to(device)
    names = {"inputs": ["price_ticks", "sizes"], "outputs": ["embedding"]}
    facts = {**names, "precision": precision}
    write_program(file, module, windows, facts)


def random_windows(count: int, states: int, depth: int) -> tuple[Tensor, Tensor]:
    """Return random-walk price_ticks int64 and sizes float32, (count, states, depth) each."""
    rng = np.random.default_rng(0)
    path = 7_800_000 + rng.integers(-1, 2, (count, states, 1)).cumsum(1)
    price_ticks = path + rng.integers(1, 40, (count, 1, depth)).cumsum(2)
    sizes = rng.lognormal(-2, 1, price_ticks.shape).astype(np.float32)
    return torch.from_numpy(price_ticks), torch.from_numpy(sizes)


def load(file: Path, device: str, threads: int) -> Callable[[tuple[Tensor, Tensor]], object]:
    """Return the file as a function of windows in main memory that returns embeddings there."""
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(file, options, providers=providers)

        def call_session(given: tuple[Tensor, Tensor]) -> object:
            price_ticks, sizes = given
            return session.run(None, {"price_ticks": price_ticks.numpy(), "sizes": sizes.numpy()})

        return call_session
    torch.set_num_threads(threads)
    module = torch.jit.load(str(file), map_location=device)
    return lambda given: module(*(x.to(device) for x in given)).cpu()


@torch.inference_mode()
def measure(
    case: str, file: Path, windows: tuple[Tensor, Tensor], device: str, config: dict
) -> list[dict[str, Any]]:
    """Return the rows of one file: times of single windows and the rate of batches."""
    call = load(file, device, threads=1)
    times = []
    for number in range(WARM_UP + config["runs"]):
        index = number % len(windows[0])
        window = windows[0][index : index + 1], windows[1][index : index + 1]
        began = time.perf_counter()
        call(window)
        times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(times[WARM_UP:], [50, 99]) * 1e3
    call = load(file, device, threads=CORES)
    two = windows[0][:2], windows[1][:2]
    for _ in range(3):
        call(two)
    if device == "cuda":  # a first batch takes the GPU's memory
        call(windows)
    began = time.perf_counter()
    for _ in range(config["batches"]):
        call(windows)
    rate = config["batches"] * len(windows[0]) / (time.perf_counter() - began)
    for_one = ", copied to the GPU and back" if device == "cuda" else " on one thread"
    for_batches = "" if device == "cuda" else f" on {CORES} cores"
    note = (
        f"random weights, {config['depth']} levels, {config['temporal_dim']} states; "
        f"p50 and p99 of one window{for_one}; "
        f"windows per second in batches of {config['batch_size']}{for_batches}"
    )
    return [
        make_row(case, "p50_ms", p50, "ms", note),
        make_row(case, "p99_ms", p99, "ms", note),
        make_row(case, "windows_per_second", rate, "1/s", note),
    ]


def measure_in_process(
    case: str,
    encoder: BookEncoder,
    windows: tuple[Tensor, Tensor],
    variant: str,
    device: str,
    config: dict,
) -> list[dict[str, Any]]:
    """Return the rows of a network that runs in this process, as those of a file."""
    torch.set_num_threads(1)
    count = config["batch_size"]
    encode, windows = latency.prepare(encoder, windows, device, variant, config["search"])
    if config["kernels"] and device == "cuda":
        print_kernels(case, encode, windows)
    found = latency.time_encoder(case, encode, windows, config["runs"], batches=(count,))
    names = {"p50": "p50_ms", "p99": "p99_ms", "windows_per_second": "windows_per_second"}
    note = (
        f"random weights, {config['depth']} levels, {config['temporal_dim']} states; in this "
        f"process, {'on one thread' if device == 'cpu' else 'copies included'}; "
    )
    if variant == "stream":
        note += f"a state in, its vector out; vectors per second of {count} books side by side"
    else:
        note += f"windows per second in batches of {count}"
    return [
        make_row(case, names[row["metric"]], row["value"], row["unit"], note)
        for row in found
        if row["metric"] in names
    ]


@torch.inference_mode()
def print_kernels(case: str, encode: latency.Encode, windows: tuple[Tensor, Tensor]) -> None:
    """Print how often each kernel runs for one window, and its share of the time.

    A kernel's time is counted from the end of the one before it, so gaps are in it.
    """
    one = [x[:1] for x in windows]
    for _ in range(WARM_UP):
        encode(*one)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(WARM_UP):
            encode(*one)
    spans = [
        (event.time_range.end, event.time_range.start, event.name)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    for line in kernel_table(spans, WARM_UP):
        print(f"{case}  {line}", flush=True)


def kernel_table(spans: list[tuple[float, float, str]], calls: int) -> list[str]:
    """Return lines: kernels a call, microseconds a call, name; the sum is the first one.

    spans: end, start and name of each kernel of `calls` alike calls, in microseconds.
    """
    spans = sorted(spans)
    each = len(spans) // calls
    counts: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    for number, (end, start, name) in enumerate(spans):
        begin = spans[number - 1][0] if number % each else start  # of a call's first: its own
        counts[name] = counts.get(name, 0) + 1
        times.setdefault(name, []).append(end - begin)
    totals = {name: sum(found) / calls for name, found in times.items()}
    lines = [f"{each:6d} {sum(totals.values()):9.2f} us in all"]
    for name in sorted(totals, key=lambda name: -totals[name]):
        lines.append(f"{counts[name] / calls:6g} {totals[name]:9.2f} us {name[:70]}")
    return lines


if __name__ == "__main__":
    run(main, config)
