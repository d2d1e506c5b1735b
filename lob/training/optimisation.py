"""Optimizers and learning rates by the names of the trainer's config."""

import math

import torch
from torch import Tensor, nn

from lob.config import CheckFailed


def make_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW (the only one that decays weights), Adam or SGD (momentum 0.9), fused on a
    GPU.
    """
    makers = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    parameters = list(model.parameters())
    own = {"sgd": {"momentum": 0.9}, "adamw": {"weight_decay": weight_decay}}.get(name, {})
    return makers[name](parameters, lr=lr, fused=parameters[0].is_cuda, **own)


def make_plateau(
    optimizer: torch.optim.Optimizer, factor: float, patience: int
) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Return the decay of the learning rate by `factor` after `patience` bad epochs."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=0
    )


def scale_gradients(
    optimizer: torch.optim.Optimizer, gradients: list[Tensor], factor: Tensor
) -> None:
    """Multiply gradients by `factor`; a fused optimizer does so within its step, without another
    pass over them.
    """
    if optimizer.defaults["fused"]:
        optimizer.grad_scale = 1 / factor  # type: ignore[attr-defined] # as GradScaler does
    else:
        torch._foreach_mul_(gradients, factor)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: cosine up from peak / 25 in the first 30 % of the steps, then down
    to peak / 250,000.

    The same as torch.optim.lr_scheduler.OneCycleLR (Smith and Topin 2017, arXiv:1708.07120), but
    without a state, so that a run goes on from any step, also towards another last one.
    """
    top, low = 0.3 * steps - 1, peak / 25
    if step <= top:
        begin, end, share = low, peak, step / top
    else:
        begin, end, share = peak, low / 1e4, (step - top) / (steps - 1 - top)
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))


class FiniteCheck:
    """Keeps a non-finite loss or gradient from the weights, and ends the run with its place.

    On a CPU it looks at each step at once. On a GPU it tells the fused optimizer to skip the
    update, and the host learns of that one step later, so that it never waits for the step under
    way.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer, self.on_gpu = optimizer, device.type == "cuda"
        # loss, norm, ranks asked to stop
        self.numbers = torch.zeros(3, dtype=torch.float64, pin_memory=self.on_gpu)
        self.place: tuple[int, int, int] | None = None
        if self.on_gpu:
            self.copied = torch.cuda.Event()

    def watch(
        self, loss: Tensor, norm: Tensor, stopping: Tensor, place: tuple[int, int, int]
    ) -> bool:
        """Look at a step before its update; return whether a rank was asked to stop.

        place: epochs done, steps done in this one, number of the step. Raises NonFinite if the loss
        or the gradient's norm of this step (on a GPU: of the step before) is not finite.
        """
        numbers = torch.stack([loss.double(), norm.double(), stopping.double()])
        if not self.on_gpu:
            self.numbers, self.place = numbers, place
            return self.check()
        asked = self.check()
        self.numbers.copy_(numbers, non_blocking=True)
        self.copied.record()
        self.place = place
        self.optimizer.found_inf = (~numbers.isfinite().all()).float()  # type: ignore[attr-defined] # as GradScaler does
        return asked

    def check(self) -> bool:
        """Look at the step watched last."""
        if self.place is None:
            return False
        if self.on_gpu:
            self.copied.synchronize()
        loss, norm, stopping = self.numbers.tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFinite(loss, norm, self.place)
        return stopping > 0


class NonFinite(CheckFailed):
    """A loss or gradient that is not finite, and its place (see FiniteCheck.watch)."""

    def __init__(self, loss: float, norm: float, place: tuple[int, int, int]):
        epoch, batch, step = place
        self.place = place
        super().__init__(
            f"loss {loss} and gradient norm {norm} at step {step} (epoch {epoch + 1}, batch "
            f"{batch + 1} of it): "
            "the weights were not updated"
        )
