"""Which kernels make inputs and update streams: on an NVIDIA GPU Triton's, elsewhere torch's.

Torch's (lob/model/ladder.py, lob/model/inputs.py, lob/model/streaming.py) define what is computed,
and they alone can be traced, scripted and exported. Triton's find the same in a tenth of the
launches.
"""

import functools
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

ENABLED = True  # False: torch's kernels everywhere, to compare with
OLDEST = (8, 0)  # compute capability that they were written for
LONGEST, DEEPEST = 1024, 256  # states and levels of a window that fit into a program's registers


def kernels_for(price_ticks: Tensor, sizes: Tensor | None = None) -> Any:
    """Return lob/model/inputs_triton.py if it can serve these windows, (B, T, L), else None."""
    _, states, levels = price_ticks.shape
    if not ENABLED or not price_ticks.is_cuda or type(price_ticks) is not Tensor:
        return None
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    if not 16 <= states <= LONGEST or not 2 <= levels <= DEEPEST or not len(price_ticks):
        return None
    if price_ticks.is_floating_point() or (sizes is not None and sizes.requires_grad):
        return None
    if price_ticks.device.index != torch.cuda.current_device():
        return None
    return load_kernels(price_ticks.device.index)


def update_for(module: Any) -> Any:
    """Return updates of a `BookStream` by Triton's kernels if they can serve it, else None.

    This runs one update, so reset the stream afterwards.
    """
    device = module.clock.count.device
    if not ENABLED or device.type != "cuda" or device.index != torch.cuda.current_device():
        return None
    return load_update(module) if load_kernels(device.index) else None  # pragma: cuda


def load_update(module: Any) -> Any:
    """Return `update_for` of a stream on a GPU where Triton runs."""
    try:
        from lob.model import stream_triton

        if not stream_triton.serves(module):
            return None
        update = stream_triton.Update(module)
        shape = len(module.clock.seen), module.depth
        price_ticks = torch.zeros(shape, dtype=torch.int64, pin_memory=True)
        sizes = torch.ones(shape, pin_memory=True)
        vectors = torch.empty(shape[0], len(module.norm.bias), pin_memory=True)
        update(price_ticks, sizes, vectors)
        torch.cuda.synchronize()
    except Exception as error:  # a GPU with less room in a program than those it was tried on
        warn(f"a stream's kernels do not run here, torch takes their place: {first_line(error)}")
        return None
    return update


@functools.cache
def load_kernels(device: int) -> Any:
    """Return the inputs' module of Triton kernels if a first one runs on this GPU, else None."""
    if importlib.util.find_spec("triton") is None:
        return None
    if torch.cuda.get_device_capability(device) < OLDEST:
        return None
    from lob.model import inputs_triton

    try:
        price_ticks = torch.zeros(1, 16, 2, dtype=torch.int32, device=f"cuda:{device}")
        hidden = torch.zeros(1, 16, 2, 2, dtype=torch.uint8, device=price_ticks.device)
        inputs_triton.anchors_of(price_ticks, hidden)
    except Exception as error:  # no C compiler, an old driver: whatever keeps Triton from its work
        warn(f"Triton does not run here, torch takes its place: {first_line(error)}")
        return None
    return inputs_triton


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
