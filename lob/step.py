"""A micro-step of training: gather windows, hide values, predict them, and add to the gradients.

On a GPU that holds the states the whole micro-step is one CUDA graph: forty narrow layers are some thousand kernels,
and launching them one by one takes several times as long as running them.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lob.config import CheckFailed
from lob.encoder import EncoderConfig, build_inputs
from lob.masking import make_mask
from lob.precision import Precision

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
    "smoothl1": F.smooth_l1_loss,
}
WARM_UP_PASSES = 3


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Sum of the loss over hidden values, in float32, and their count."""
    each = LOSSES[loss](prediction.float(), target, reduction="none")
    return torch.where(mask, each, 0.0).sum(), mask.sum()


class MicroStep:
    """`step(windows, keys, nominal)` adds the gradient of (summed loss / nominal) and returns the sum and the count.

    model: the encoder, or DDP around it; windows: price_ticks and sizes (B, T, L); keys: int64 (B,) (lob/masking.py).
    """

    def __init__(self, model: nn.Module, config: EncoderConfig, precision: Precision, loss: str, mask_mode: str,
                 mask_perc: float):  # fmt: skip
        self.model, self.config, self.precision = model, config, precision
        self.loss, self.mask_mode, self.mask_perc = loss, mask_mode, mask_perc

    def predict(self, price_ticks: Tensor, sizes: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction, targets and mask (B, T, L, F) of windows."""
        _, states, levels = price_ticks.shape
        mask = make_mask(keys, states, levels, self.mask_perc, self.mask_mode)
        tokens, base, values, _ = build_inputs(price_ticks, sizes, mask, self.config)
        with self.precision.autocast():
            prediction = self.model(tokens, base)
        return prediction, values, mask

    def __call__(self, price_ticks: Tensor, sizes: Tensor, keys: Tensor, nominal: float) -> tuple[Tensor, Tensor]:
        prediction, values, mask = self.predict(price_ticks, sizes, keys)
        loss, count = masked_loss(prediction, values, mask, self.loss)
        (loss / nominal).backward()
        return loss.detach(), count


class GraphedStep:
    """A MicroStep on a resident store, captured as one CUDA graph for a fixed batch and nominal count.

    The parameters' gradients live in place: zero them, never drop them. The passes before the capture also give FP8's
    delayed scaling its first scales: without them the first steps' gradients underflow (their norm is 1.7, not 4.0).
    """

    def __init__(self, step: MicroStep, gather: Callable[[Tensor], tuple[Tensor, Tensor]], batch_size: int,
                 nominal: float, parameters: list[nn.Parameter]):  # fmt: skip
        device = parameters[0].device
        self.start_rows = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.keys = torch.zeros(batch_size, dtype=torch.int64, device=device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_PASSES):
                step(*gather(self.start_rows), self.keys, nominal)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss, self.count = step(*gather(self.start_rows), self.keys, nominal)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.zero_()

    def __call__(self, start_rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        self.start_rows.copy_(start_rows, non_blocking=True)
        self.keys.copy_(keys, non_blocking=True)
        self.graph.replay()
        return self.loss, self.count


class FiniteCheck:
    """Keeps a non-finite loss or gradient from the weights, and ends the run with its place.

    On a CPU at once. On a GPU the fused optimizer is told to skip the update and the host learns of it one step later,
    so that it never waits for the step under way.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer, self.on_gpu, self.where = optimizer, device.type == "cuda", ""
        if self.on_gpu:
            self.numbers = torch.zeros(2, dtype=torch.float64, pin_memory=True)
            self.copied = torch.cuda.Event()

    def watch(self, loss: Tensor, norm: Tensor, where: str) -> None:
        """Look at a step before its update; CheckFailed where it (on a GPU: the step before) is not finite."""
        both = torch.stack([loss.double(), norm.double()])
        if self.on_gpu:
            self.check()
            self.where = where
            self.numbers.copy_(both, non_blocking=True)
            self.copied.record()
            self.optimizer.grad_scale = None  # type: ignore[attr-defined] # as GradScaler tells fused optimizers
            self.optimizer.found_inf = (~both.isfinite().all()).float()  # type: ignore[attr-defined]
        else:
            self.numbers, self.where = both, where
            self.check()

    def check(self) -> None:
        if self.where:
            if self.on_gpu:
                self.copied.synchronize()
            loss, norm = self.numbers.tolist()
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise NonFinite(f"loss {loss} and gradient norm {norm} at {self.where}: the weights were not updated")


class NonFinite(CheckFailed):
    """A loss or gradient that is not finite."""


def merge_factor(config: EncoderConfig, batch_size: int, accumulation_steps: int, device: torch.device) -> int:
    """How many micro-steps of an optimizer step run as one pass: as many as 60 % of the GPU's free memory takes.

    The sums stay the same. A layer keeps about ten vectors of the width and two of the feed-forward's a state, in two
    bytes (109 MB a window for 40 layers of width 192, as measured), the inputs some 60 bytes a value.
    """
    if device.type != "cuda":
        return 1
    a_state = config.layers * 2 * (10 * config.width + 2 * config.ffn_width) + 60 * 2 * config.depth
    budget = 0.6 * torch.cuda.mem_get_info(device)[0] / (a_state * config.temporal_dim)
    return max(m for m in range(1, accumulation_steps + 1)
               if accumulation_steps % m == 0 and (m == 1 or m * batch_size <= budget))  # fmt: skip
