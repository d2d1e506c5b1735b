"""How long an encoder takes from a window in main memory to its embedding there.

It can run eagerly, compiled, as TorchScript, or as one CUDA graph.
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

# Kernels are timed by the profiler: if a host launches slowly, a plain timing sees only launches.
SEARCH = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "profile_bandwidth_with_do_bench_using_profiling": True,
}
BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 16, 256)}
# windows to embeddings; what is timed takes and returns main memory
Encode = Callable[[Tensor, Tensor], Tensor]


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
    """Time `runs` single windows, and the best size of `batches`, or all of `windows` at a time.

    Copies to and from the device are included. Return rows of a report.
    """
    price, sizes = windows

    def once(count: int) -> float:
        began = time.perf_counter()
        encode(price[:count], sizes[:count])
        return time.perf_counter() - began

    for _ in range(3):
        once(1)
    milliseconds = np.array([once(1) for _ in range(runs)]) * 1e3
    rates = {}
    for count in batches or (len(price),):
        once(count)
        rates[count] = count / float(np.median([once(count) for _ in range(5)]))
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

    The CPU computes in float32; a GPU has bfloat16 layers, and windows in pinned memory. windows:
    BATCHES["cuda"][-1] of them.
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
    model: BookEncoder, windows: tuple[Tensor, Tensor], runs: int, name: str, variant: str
) -> list[dict[str, Any]]:
    device, batches = torch.device(name), BATCHES[name]
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
    """Return an encoder on a device with the copies there and back."""
    return lambda price, sizes: encode(price.to(device), sizes.to(device)).cpu()


def compile_parts(
    module: WindowEncoder, price: Tensor, sizes: Tensor, options: dict | None = None
) -> WindowEncoder:
    """Compile the inputs and, with torch.compile's `options`, the layers."""
    module.tokens.compile()
    for layer in module.encoder.layers:  # one layer's code serves all
        layer.compile(options=options)
    with torch.inference_mode():
        module(price, sizes)
    return module


class Graph:
    """A CUDA graph that encodes a fixed number of windows; embeddings end in pinned memory."""

    def __init__(self, encode: Encode, price: Tensor, sizes: Tensor):
        self.encode = encode  # kept alive: a replay reads its weights
        self.windows = [price.clone(), sizes.clone()]
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

    For single windows kernels are also searched for, which takes a minute; the faster graph is
    used.
    """
    # else a line for each kernel that doesn't fit
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
