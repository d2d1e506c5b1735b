"""The time that an encoder takes from a window in main memory to its embedding there.

It can run eagerly, compiled, as TorchScript, or as one CUDA graph (`VARIANTS`).
"""

import copy
import logging
import time
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book
from lob.evaluation.selection import evenly_spaced
from lob.model.embedding import WindowEncoder
from lob.model.encoder import BookEncoder
from lob.results import make_row
from lob.windows.splits import gather_windows, window_ends

# Options of torch.compile that search for the fastest kernels. They are timed by the profiler: on a
# host that launches slowly a plain timing sees only the launches.
SEARCH = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "profile_bandwidth_with_do_bench_using_profiling": True,
}
BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 16, 256)}  # device -> batch sizes that are timed
Encode = Callable[[Tensor, Tensor], Tensor]  # price ticks and sizes, (B, T, L) -> embeddings (B, D)


def example_windows(book: Book, states: int, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` windows of a book, evenly spaced; they repeat if it has fewer."""
    ends = evenly_spaced(window_ends(book.segment_starts, book.rows, states), count)
    price, sizes = gather_windows(book, np.resize(ends, count), states)
    return torch.from_numpy(price), torch.from_numpy(sizes)


@torch.inference_mode()
def time_encoder(
    case: str,
    encode: Encode,
    windows: tuple[Tensor, Tensor],
    runs: int,
    note: str = "",
    batches: tuple[int, ...] = (),
) -> list[dict[str, Any]]:
    """Return report rows: latency over `runs` single windows, and the rate of the best batch size.

    encode: takes and returns tensors in main memory, so that copies to and from a device count.
    batches: sizes to try; empty: all of `windows` at a time.
    """
    price, sizes = windows

    def seconds(count: int) -> float:
        began = time.perf_counter()
        encode(price[:count], sizes[:count])
        return time.perf_counter() - began

    for _ in range(3):  # warm-up
        seconds(1)
    milliseconds = np.array([seconds(1) for _ in range(runs)]) * 1e3
    rates = {}
    for count in batches or (len(price),):
        seconds(count)  # warm-up
        rates[count] = count / float(np.median([seconds(count) for _ in range(5)]))
    best = max(rates, key=lambda count: rates[count])
    return [
        make_row(case, "p50", np.median(milliseconds), "ms", note),
        make_row(case, "p99", np.quantile(milliseconds, 0.99), "ms", note),
        make_row(case, "windows_per_second", rates[best], "1/s", note),
        make_row(case, "best_batch", best, "windows", note),
    ]


def benchmark(
    model: BookEncoder, windows: tuple[Tensor, Tensor], runs: int, devices: list[str]
) -> Iterator[list[dict[str, Any]]]:
    """Time the encoder in each way in which it can run, and yield the rows of each.

    A CPU computes in float32. On a GPU the layers are in bfloat16 and the windows in pinned memory.
    windows: as many as the largest batch of `BATCHES`. A variant that fails is named and left out.
    """
    for name in devices:
        for variant in VARIANTS:
            if variant == "graphed" and name == "cpu":
                continue
            try:
                yield time_variant(model, windows, runs, name, variant)
            except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
                print(f"latency/{name}/{variant} left out: {str(error).splitlines()[0]}")


def time_variant(
    model: BookEncoder,
    windows: tuple[Tensor, Tensor],
    runs: int,
    name: str,
    variant: str,
    batches: tuple[int, ...] = (),
) -> list[dict[str, Any]]:
    """Return the rows of one of `VARIANTS` on the device `name`.

    batches: sizes to try, of no more than `windows`; empty: those of `BATCHES`.
    """
    device = torch.device(name)
    batches = batches or BATCHES[name]
    price, sizes = (x.pin_memory() if name == "cuda" else x for x in windows)
    module = WindowEncoder(copy.deepcopy(model), "last").to(device).eval()
    if name == "cuda":
        cos, sin = module.encoder.cos, module.encoder.sin
        module.bfloat16()
        module.encoder.cos, module.encoder.sin = cos, sin  # angles keep their precision
    encode = VARIANTS[variant](module, price[:1].to(device), sizes[:1].to(device))
    note = "bfloat16" if name == "cuda" else "float32"
    some = price[: batches[-1]], sizes[: batches[-1]]
    return time_encoder(f"latency/{name}/{variant}", encode, some, runs, note, batches)


def through(device: torch.device, encode: Encode) -> Encode:
    """Return `encode` with a copy of the windows to a device and of the embeddings back."""
    return lambda price, sizes: encode(price.to(device), sizes.to(device)).cpu()


def compile_parts(
    module: WindowEncoder, price: Tensor, sizes: Tensor, options: dict | None = None
) -> WindowEncoder:
    """Compile the inputs and, with options of torch.compile, stem and layers; return the module."""
    module.tokens.compile()
    if module.encoder.stem is not None:
        module.encoder.stem.compile(options=options)
    for layer in module.encoder.layers:  # each by itself: layers are alike and share one kernel
        layer.compile(options=options)
    with torch.inference_mode():
        module(price, sizes)
    return module


class Graph:
    """A CUDA graph that encodes a fixed number of windows, with embeddings in pinned memory."""

    def __init__(self, encode: Encode, price: Tensor, sizes: Tensor):
        self.encode = encode  # kept alive: a replay reads its weights
        self.windows = [price.clone(), sizes.clone()]
        # A capture must not compile or allocate for the first time: a side stream warms up for it.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                output = encode(*self.windows)
        torch.cuda.synchronize()
        self.output = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output.copy_(encode(*self.windows), non_blocking=True)

    def __call__(self, price: Tensor, sizes: Tensor) -> Tensor:
        for x, given in zip(self.windows, (price, sizes), strict=True):
            x.copy_(given, non_blocking=True)
        self.graph.replay()
        torch.cuda.current_stream().synchronize()
        return self.output.clone()

    def seconds(self, runs: int = 50) -> float:
        """Return the least time of a replay with its copies."""
        windows = [x.cpu().pin_memory() for x in self.windows]
        return min(timeit.repeat(lambda: self(*windows), number=1, repeat=runs))


@torch.inference_mode()
def make_graphed(module: WindowEncoder, price: Tensor, sizes: Tensor) -> Encode:
    """Return an encoder with one CUDA graph for each batch size.

    For single windows there are two graphs, of plainly compiled layers and of layers whose kernels
    were searched for (a minute). The faster one is used.
    """
    # The search would log a line for each kernel that doesn't fit the GPU.
    logging.getLogger("torch._inductor").setLevel(logging.CRITICAL)
    searched = compile_parts(copy.deepcopy(module), price, sizes, SEARCH)
    plain = compile_parts(module, price, sizes)
    single = [Graph(encode, price, sizes) for encode in (searched, plain)]
    graphs = {1: min(single, key=Graph.seconds)}

    def replay(price: Tensor, sizes: Tensor) -> Tensor:
        if len(price) not in graphs:
            graphs[len(price)] = Graph(plain, price.cuda(), sizes.cuda())
        return graphs[len(price)](price, sizes)

    return replay


def make_eager(module: WindowEncoder, price: Tensor, sizes: Tensor) -> Encode:
    return through(price.device, module)


def make_compiled(module: WindowEncoder, price: Tensor, sizes: Tensor) -> Encode:
    return through(price.device, compile_parts(module, price, sizes))


def make_torchscript(module: WindowEncoder, price: Tensor, sizes: Tensor) -> Encode:
    return through(price.device, torch.jit.trace(module, (price, sizes), check_trace=False))


VARIANTS: dict[str, Callable[[WindowEncoder, Tensor, Tensor], Encode]] = {
    "eager": make_eager,
    "compiled": make_compiled,
    "torchscript": make_torchscript,
    "graphed": make_graphed,
}
