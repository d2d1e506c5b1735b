"""A micro-step of training: gather windows, hide values, predict them, and add to the gradients.

On a GPU that holds the states the whole micro-step is one CUDA graph: forty narrow layers are some thousand kernels,
and launching them one by one takes several times as long as running them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lob.encoder import BookEncoder, build_inputs
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

    def __init__(self, model: nn.Module, encoder: BookEncoder, precision: Precision, loss: str, mask_mode: str,
                 mask_perc: float):  # fmt: skip
        self.model, self.config, self.precision = model, encoder.config, precision
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

    The parameters' gradients live in place: zero them, never drop them.
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
