"""How long an encoder takes from a window in main memory to its embedding there: eager, compiled, traced, graphed."""

import copy
import logging
import time
import timeit
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lob.model.embedding import WindowEncoder
from lob.model.encoder import BookEncoder
from lob.results import make_row

SEARCH = {  # kernels timed by themselves: where a host launches slowly, launches would be all that is seen
    "max_autotune": True, "coordinate_descent_tuning": True, "profile_bandwidth_with_do_bench_using_profiling": True,
}  # fmt: skip
BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 16, 256)}
Encode = Callable[[Tensor, Tensor], Tensor]  # windows -> their embeddings; what is timed takes both in main memory


@torch.inference_mode()
def time_encoder(case: str, encode: Encode, windows: tuple[Tensor, Tensor], runs: int, note: str = "",
                 batches: tuple[int, ...] = ()) -> list[dict]:  # fmt: skip
    """Time single windows and batches (all given, or the best of `batches`), copies to and from the device included."""
    price, sizes = windows

    def once(count: int) -> float:
        began = time.perf_counter()
        encode(price[:count], sizes[:count])
        return time.perf_counter() - began

    for _ in range(3):
        once(1)
    single = np.array([once(1) for _ in range(runs)]) * 1e3
    rates = {}
    for count in batches or (len(price),):
        once(count)
        rates[count] = count / float(np.median([once(count) for _ in range(5)]))
    best = max(rates, key=lambda count: rates[count])
    values = {"p50": (np.median(single), "ms"), "p99": (np.quantile(single, 0.99), "ms"),
              "windows_per_second": (rates[best], "1/s"), "best_batch": (best, "windows")}  # fmt: skip
    return [make_row(case, metric, value, unit, note) for metric, (value, unit) in values.items()]


def benchmark(model: BookEncoder, windows: tuple[Tensor, Tensor], runs: int, devices: list[str]) -> list[dict]:
    """Time the encoder as it can be run: float32 on the CPU; on a GPU bfloat16 layers, and windows in pinned memory.

    windows: BATCHES["cuda"][-1] of them.
    """
    rows = []
    for name in devices:
        device, batches = torch.device(name), BATCHES[name]
        price, sizes = (x.pin_memory() if name == "cuda" else x for x in windows)
        for variant, make in VARIANTS.items():
            if variant == "graphed" and name == "cpu":
                continue
            module = WindowEncoder(copy.deepcopy(model), "last").to(device).eval()
            if name == "cuda":
                cos, sin = module.encoder.cos, module.encoder.sin
                module.bfloat16()
                module.encoder.cos, module.encoder.sin = cos, sin  # angles keep their precision
            try:
                encode = make(module, price[:1].to(device), sizes[:1].to(device))
                found = time_encoder(f"latency/{name}/{variant}", encode, (price[: batches[-1]], sizes), runs,
                                     "bfloat16" if name == "cuda" else "float32", batches)  # fmt: skip
            except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
                print(f"latency/{name}/{variant} left out: {str(error).splitlines()[0]}")
                continue
            rows += found
            print(f"{found[0]['case']:<24}" + "".join(f"{r['metric']:>20} {r['value']:.4g} {r['unit']}" for r in found))
    return rows


def through(device: torch.device, encode: Encode) -> Encode:
    """An encoder of windows on a device, with the copies there and back."""
    return lambda price, sizes: encode(price.to(device), sizes.to(device)).cpu()


def compile_parts(module: WindowEncoder, price: Tensor, sizes: Tensor, options: dict | None = None) -> WindowEncoder:
    """Compile the inputs and, with torch.compile's `options`, the layers."""
    module.tokens.compile()
    for layer in module.encoder.layers:  # one layer's code serves all
        layer.compile(options=options)
    with torch.inference_mode():
        module(price, sizes)
    return module


class Graph:
    """Windows of one number on a GPU as one CUDA graph, whose embeddings end in pinned memory."""

    def __init__(self, encode: Encode, price: Tensor, sizes: Tensor):
        self.encode = encode  # a replay reads its weights
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
        windows = [x.cpu().pin_memory() for x in self.windows]
        return min(timeit.repeat(lambda: self(*windows), number=1, repeat=runs))


@torch.inference_mode()
def make_graphed(module: WindowEncoder, price: Tensor, sizes: Tensor) -> Encode:
    """One CUDA graph a batch size; of single windows with searched kernels (a minute), where these are faster."""
    logging.getLogger("torch._inductor").setLevel(logging.CRITICAL)  # it tells of each candidate that does not fit
    searched = compile_parts(copy.deepcopy(module), price, sizes, SEARCH)
    plain = compile_parts(module, price, sizes)
    graphs = {1: min((Graph(encode, price, sizes) for encode in (searched, plain)), key=Graph.seconds)}

    def replay(price: Tensor, sizes: Tensor) -> Tensor:
        if len(price) not in graphs:
            graphs[len(price)] = Graph(plain, price.cuda(), sizes.cuda())
        return graphs[len(price)](price, sizes)

    return replay


VARIANTS: dict[str, Callable[[WindowEncoder, Tensor, Tensor], Encode]] = {
    "eager": lambda module, price, sizes: through(price.device, module),
    "compiled": lambda module, price, sizes: through(price.device, compile_parts(module, price, sizes)),
    "torchscript": lambda module, price, sizes: through(
        price.device, torch.jit.trace(module, (price, sizes), check_trace=False)
    ),
    "graphed": make_graphed,
}
