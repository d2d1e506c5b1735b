"""Latency and throughput of exported encoders, each format, precision and device by itself.

    python -m benchmarks.bench_export --write=True

Weights and windows are random: time does not depend on their values. On the CPU a single window has one thread, as in
a program that trades, and a batch has all cores; TorchScript also runs on the GPU where there is one.
"""

config = {
    "presets": ["tiny_transformer", "deep_narrow_transformer"],  # model sizes of lob/model/encoder.py
    "devices": ["cpu"],  # cpu, cuda or both (ONNX files run on the CPU)
    "depth": 96,  # levels of a state
    "temporal_dim": 256,  # states of a window
    "runs": 200,  # single windows that are timed
    "batch_size": 256,  # windows of the throughput's batch
    "batches": 1,  # of these batches, after a small one
    "write": False,  # keep the result in benchmarks/results/export.json, export_cuda.json where devices is ["cuda"]
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import model_exporter
from benchmarks.report import ROW, report
from lob.model.encoder import BookEncoder, encoder_config

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(config: dict) -> None:
    rows, settings = [], {**model_exporter.config, "precisions": ["fp32", "bf16"], "devices": config["devices"]}
    windows = random_windows(config["batch_size"], config["temporal_dim"], config["depth"])
    for preset in config["presets"]:
        torch.manual_seed(0)
        encoder = BookEncoder(encoder_config(preset, depth=config["depth"], temporal_dim=config["temporal_dim"])).eval()
        for format_, precision, device in model_exporter.variants(settings):
            if device not in config["devices"]:
                continue
            module = model_exporter.make_part("encoder", encoder, settings, precision, device)
            facts = model_exporter.describe("encoder", encoder.config, settings, precision, device)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"encoder{model_exporter.FORMATS[format_]}"
                model_exporter.write(file, module, windows, facts)
                rows += measure(f"{preset}/{format_}_{precision}_{device}", file, windows, device, config)
    name = "export_cuda" if config["devices"] == ["cuda"] else "export"
    report(name, [dict(zip(ROW, row, strict=True)) for row in rows], write=config["write"])


def random_windows(count: int, states: int, depth: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    path = 7_800_000 + rng.integers(-1, 2, (count, states, 1)).cumsum(1)
    price_ticks = path + rng.integers(1, 40, (count, 1, depth)).cumsum(2)
    return torch.from_numpy(price_ticks), torch.from_numpy(rng.lognormal(-2, 1, price_ticks.shape).astype(np.float32))


def load(file: Path, device: str, threads: int) -> Callable[[tuple[Tensor, Tensor]], object]:
    """Return a call of the file on windows in main memory that ends with its embeddings there."""
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda given: session.run(None, {"price_ticks": given[0].numpy(), "sizes": given[1].numpy()})
    torch.set_num_threads(threads)
    module = torch.jit.load(str(file), map_location=device)
    return lambda given: module(*(x.to(device) for x in given)).cpu()


@torch.inference_mode()
def measure(case: str, file: Path, windows: tuple[Tensor, Tensor], device: str, config: dict) -> list[tuple]:
    call, times = load(file, device, 1), []
    for number in range(config["runs"] + 10):
        window = tuple(x[number % len(x)][None] for x in windows)
        began = time.perf_counter()
        call(window)
        times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(times[10:], [50, 99]) * 1e3
    call = load(file, device, CORES)
    for _ in range(3):
        call(tuple(x[:2] for x in windows))
    if device == "cuda":
        call(windows)
    began = time.perf_counter()
    for _ in range(config["batches"]):
        call(windows)
    rate = config["batches"] * len(windows[0]) / (time.perf_counter() - began)
    one, all_ = (", copied to the GPU and back", "") if device == "cuda" else (" on one thread", f" on {CORES} cores")
    note = (f"random weights, {config['depth']} levels, {config['temporal_dim']} states; p50 and p99 of one window{one}"
            f"; windows per second in batches of {config['batch_size']}{all_}")  # fmt: skip
    return [(case, "p50_ms", p50, "ms", note), (case, "p99_ms", p99, "ms", note),
            (case, "windows_per_second", rate, "1/s", note)]  # fmt: skip


if __name__ == "__main__":
    run(main, config)
