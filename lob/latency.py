"""How long an encoder takes from a window in main memory to its embedding there: eager, compiled, traced, graphed."""

import copy
import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lob.encoder import BookEncoder
from lob.policy import WindowEncoder

BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 16, 256)}
Encode = Callable[[Tensor, Tensor], Tensor]


@torch.inference_mode()
def time_encoder(case: str, encode: Encode, windows: tuple[Tensor, Tensor], runs: int, device: torch.device,
                 note: str = "", batches: tuple[int, ...] = ()) -> list[dict]:  # fmt: skip
    """Time single windows and batches (all given, or the best of `batches`), copies to and from the device included."""
    price, sizes = windows

    def once(count: int) -> float:
        began = time.perf_counter()
        encode(price[:count].to(device), sizes[:count].to(device)).cpu()
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
    return [{"case": case, "metric": metric, "value": float(value), "unit": unit, "note": note}
            for metric, (value, unit) in values.items()]  # fmt: skip


def benchmark(model: BookEncoder, windows: tuple[Tensor, Tensor], runs: int, devices: list[str]) -> list[dict]:
    """Time the encoder as it can be run: float32 on the CPU, bfloat16 layers on a GPU; windows: BATCHES["cuda"][-1]."""
    rows, (price, sizes) = [], windows
    for name in devices:
        device, batches = torch.device(name), BATCHES[name]
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
                found = time_encoder(f"latency/{name}/{variant}", encode, (price[: batches[-1]], sizes), runs, device,
                                     "bfloat16" if name == "cuda" else "float32", batches)  # fmt: skip
            except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
                print(f"latency/{name}/{variant} left out: {str(error).splitlines()[0]}")
                continue
            rows += found
            print(f"{found[0]['case']:<24}" + "".join(f"{r['metric']:>20} {r['value']:.4g} {r['unit']}" for r in found))
    return rows


def make_compiled(module: WindowEncoder, price: Tensor, sizes: Tensor, mode: str | None = None) -> Encode:
    """Compile the inputs and, by torch.compile's `mode`, the layers."""
    module.tokens.compile()
    for layer in module.encoder.layers:  # one layer's code serves all
        layer.compile(mode=mode)
    with torch.inference_mode():
        module(price, sizes)
    return module


def make_graphed(module: WindowEncoder, price: Tensor, sizes: Tensor) -> Encode:
    """One CUDA graph a batch size; for single windows of layers whose kernels were searched for (most of a minute)."""
    logging.getLogger("torch._inductor").setLevel(logging.CRITICAL)  # it tells of each candidate that does not fit
    single = make_compiled(copy.deepcopy(module), price, sizes, "max-autotune-no-cudagraphs")
    many = make_compiled(module, price, sizes)
    graphs: dict[int, tuple] = {}

    def replay(price: Tensor, sizes: Tensor) -> Tensor:
        if len(price) not in graphs:
            encode, static = single if len(price) == 1 else many, (price.clone(), sizes.clone())
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    encode(*static)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = encode(*static)
            graphs[len(price)] = (graph, *static, output)
        graph, static_price, static_sizes, output = graphs[len(price)]
        static_price.copy_(price)
        static_sizes.copy_(sizes)
        graph.replay()
        return output

    return replay


VARIANTS: dict[str, Callable[[WindowEncoder, Tensor, Tensor], Encode]] = {
    "eager": lambda module, price, sizes: module,
    "compiled": make_compiled,
    "torchscript": lambda module, price, sizes: torch.jit.trace(module, (price, sizes), check_trace=False),
    "graphed": make_graphed,
}
