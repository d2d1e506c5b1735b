"""The time that an encoder takes from a window in main memory to its embedding there.

It can run eagerly, compiled, as TorchScript, or as one CUDA graph (`VARIANTS`). As a stream, a
causal encoder takes the window's last state alone, since it has kept what it needs of the others.
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
from lob.model.embedding import WindowEncoder, window_encoder
from lob.model.encoder import BookEncoder, EncoderConfig
from lob.model.streaming import BookStream, GraphedStream, is_streamable
from lob.results import make_row
from lob.windows.splits import gather_times, gather_windows, window_ends

# Options of torch.compile that search for the fastest kernels. They are timed by the profiler: on a
# host that launches slowly a plain timing sees only the launches.
SEARCH = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "profile_bandwidth_with_do_bench_using_profiling": True,
}
BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 16, 256)}  # device -> batch sizes that are timed
Windows = tuple[Tensor, ...]  # price ticks and sizes, (B, T, L), and for some encoders times (B, T)
Encode = Callable[..., Tensor]  # windows -> embeddings (B, D)


def example_windows(book: Book, config: EncoderConfig, count: int) -> Windows:
    """Return `count` windows of a book, evenly spaced; they repeat if it has fewer."""
    states = config.temporal_dim
    ends = evenly_spaced(window_ends(book.segment_starts, book.rows, states), count)
    some = book, np.resize(ends, count), states
    times = [gather_times(*some)] if config.reads_times else []
    return tuple(torch.from_numpy(x) for x in (*gather_windows(*some), *times))


@torch.inference_mode()
def time_encoder(
    case: str,
    encode: Encode,
    windows: Windows,
    runs: int,
    note: str = "",
    batches: tuple[int, ...] = (),
) -> list[dict[str, Any]]:
    """Return report rows: latency over `runs` single windows, and the rate of the best batch size.

    encode: takes and returns tensors in main memory, so that copies to and from a device count.
    batches: sizes to try; empty: all of `windows` at a time.
    """

    def seconds(count: int) -> float:
        began = time.perf_counter()
        encode(*(x[:count] for x in windows))
        return time.perf_counter() - began

    for _ in range(3):  # warm-up
        seconds(1)
    milliseconds = np.array([seconds(1) for _ in range(runs)]) * 1e3
    rates = {}
    for count in batches or (len(windows[0]),):
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
    model: BookEncoder, windows: Windows, runs: int, devices: list[str]
) -> Iterator[list[dict[str, Any]]]:
    """Time the encoder in each way in which it can run, and yield the rows of each.

    A CPU computes in float32. On a GPU the layers are in bfloat16 and the windows in pinned memory.
    windows: as many as the largest batch of `BATCHES`. A variant that fails is named and left out.
    """
    for name in devices:
        for variant in VARIANTS:
            if variant == "graphed" and name == "cpu":
                continue
            if variant == "stream" and not is_streamable(model.config):
                continue
            try:
                yield time_variant(model, windows, runs, name, variant)
            except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
                print(f"latency/{name}/{variant} left out: {str(error).splitlines()[0]}")


def time_variant(
    model: BookEncoder,
    windows: Windows,
    runs: int,
    name: str,
    variant: str,
    batches: tuple[int, ...] = (),
) -> list[dict[str, Any]]:
    """Return the rows of one of `VARIANTS` on the device `name`.

    batches: sizes to try, of no more than `windows`; empty: those of `BATCHES`.
    """
    batches = batches or BATCHES[name]
    encode, windows = prepare(model, windows, name, variant)
    note = "bfloat16" if name == "cuda" else "float32"
    some = tuple(x[: batches[-1]] for x in windows)
    return time_encoder(f"latency/{name}/{variant}", encode, some, runs, note, batches)


def prepare(
    model: BookEncoder, windows: Windows, name: str, variant: str, search: bool = True
) -> tuple[Encode, Windows]:
    """Return one of `VARIANTS` on the device `name`, and the windows that it is to be given.

    search: whether a graph looks for the fastest kernels (a minute).
    """
    device = torch.device(name)
    windows = tuple(x.pin_memory() if name == "cuda" else x for x in windows)
    module = window_encoder(copy.deepcopy(model), "last").to(device).eval()
    if name == "cuda":
        cos, sin = module.encoder.cos, module.encoder.sin
        module.bfloat16()
        module.encoder.cos, module.encoder.sin = cos, sin  # angles keep their precision
    choices = {"search": search} if variant == "graphed" else {}
    return VARIANTS[variant](module, *(x[:1].to(device) for x in windows), **choices), windows


def through(device: torch.device, encode: Encode) -> Encode:
    """Return `encode` with a copy of the windows to a device and of the embeddings back."""
    return lambda *windows: encode(*(x.to(device) for x in windows)).cpu()


def compile_parts(
    module: WindowEncoder, *windows: Tensor, options: dict | None = None
) -> WindowEncoder:
    """Compile the inputs and, with options of torch.compile, stem and layers; return the module."""
    module.tokens.compile()
    if module.encoder.stem is not None:
        module.encoder.stem.compile(options=options)
    for layer in module.encoder.layers:  # each by itself: layers are alike and share one kernel
        layer.compile(options=options)
    with torch.inference_mode():
        module(*windows)
    return module


class Graph:
    """A CUDA graph that encodes a fixed number of windows, with embeddings in pinned memory."""

    def __init__(self, encode: Encode, *windows: Tensor):
        self.encode = encode  # kept alive: a replay reads its weights
        self.windows = [x.clone() for x in windows]
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

    def __call__(self, *windows: Tensor) -> Tensor:
        for x, given in zip(self.windows, windows, strict=True):
            x.copy_(given, non_blocking=True)
        self.graph.replay()
        torch.cuda.current_stream().synchronize()
        return self.output.clone()

    def seconds(self, runs: int = 50) -> float:
        """Return the least time of a replay with its copies."""
        windows = [x.cpu().pin_memory() for x in self.windows]
        return min(timeit.repeat(lambda: self(*windows), number=1, repeat=runs))


@torch.inference_mode()
def make_graphed(module: WindowEncoder, *windows: Tensor, search: bool = True) -> Encode:
    """Return an encoder with one CUDA graph for each batch size.

    For single windows there are two graphs, of plainly compiled layers and, if `search`, of layers
    whose kernels were searched for (a minute). The faster one is used.
    """
    # The search would log a line for each kernel that doesn't fit the GPU.
    logging.getLogger("torch._inductor").setLevel(logging.CRITICAL)
    searched = [compile_parts(copy.deepcopy(module), *windows, options=SEARCH)] if search else []
    plain = compile_parts(module, *windows)
    single = [Graph(encode, *windows) for encode in (*searched, plain)]
    graphs = {1: min(single, key=Graph.seconds)}

    def replay(*windows: Tensor) -> Tensor:
        count = len(windows[0])
        if count not in graphs:
            graphs[count] = Graph(plain, *(x.cuda() for x in windows))
        return graphs[count](*windows)

    return replay


def make_eager(module: WindowEncoder, *windows: Tensor) -> Encode:
    return through(windows[0].device, module)


def make_compiled(module: WindowEncoder, *windows: Tensor) -> Encode:
    return through(windows[0].device, compile_parts(module, *windows))


def make_torchscript(module: WindowEncoder, *windows: Tensor) -> Encode:
    return through(windows[0].device, torch.jit.trace(module, windows, check_trace=False))


def make_stream(module: WindowEncoder, price: Tensor, sizes: Tensor) -> Encode:
    """Return an encoder that takes the last state of each window as the next state of a stream.

    On a GPU it is one CUDA graph for each number of streams.
    """
    streams: dict[int, Callable[[Tensor, Tensor], Tensor]] = {}

    def open_stream(count: int) -> Any:
        if price.device.type == "cpu":
            return BookStream(module.encoder, count)
        with torch.inference_mode(False), torch.no_grad():  # pragma: cuda
            return GraphedStream(BookStream(module.encoder, count), count)

    def update(price: Tensor, sizes: Tensor) -> Tensor:
        count = len(price)
        if count not in streams:
            streams[count] = open_stream(count)
        return streams[count](price[:, -1], sizes[:, -1])

    return update


VARIANTS: dict[str, Callable[..., Encode]] = {  # of a WindowEncoder and example windows
    "eager": make_eager,
    "compiled": make_compiled,
    "torchscript": make_torchscript,
    "graphed": make_graphed,
    "stream": make_stream,
}
