"""Which kernels make the network's inputs: on an NVIDIA GPU Triton's, elsewhere torch's.

Torch's (lob/model/ladder.py, lob/model/inputs.py) define what is computed, and they alone can be
traced and exported. Triton's find the same in a tenth of the launches.
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


@functools.cache
def load_kernels(device: int) -> Any:
    """Return the module of Triton kernels if a first one runs on this GPU, else None."""
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"Triton does not run here, torch makes the inputs: {reason}", stacklevel=2)
        return None
    return inputs_triton
