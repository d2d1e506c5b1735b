"""Optimizers and learning rates, and the check that keeps NaN and infinity from the weights."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lob.config import CheckFailed

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def make_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW, Adam or SGD with momentum 0.9, fused on a GPU; only AdamW decays weights."""
    parameters = list(model.parameters())
    own = {"sgd": {"momentum": 0.9}, "adamw": {"weight_decay": weight_decay}}.get(name, {})
    return OPTIMIZERS[name](parameters, lr=lr, fused=parameters[0].is_cuda, **own)


def describe_unused(
    use_scheduler: bool, optimizer: str, load_model: bool, resume: bool, model_path: str | None
) -> str:
    """Return a line on the trainer's keys that have no effect beside these ones, and why."""
    decay = "lr, lr_decay_factor, lr_decay_patience"
    cases = (
        (use_scheduler, f"{decay} (use_scheduler = True)"),
        (not use_scheduler, "max_lr (use_scheduler = False)"),
        (optimizer != "adamw", f"weight_decay (optimizer = {optimizer!r})"),
        (model_path is not None and not load_model, "model_path (load_model = False)"),
        (load_model and resume, "load_model, model_path (resume = True)"),
    )
    return f"no effect  {'; '.join(text for holds, text in cases if holds)}"


def scale_gradients(
    optimizer: torch.optim.Optimizer, gradients: list[Tensor], factor: Tensor
) -> None:
    """Multiply gradients by `factor`, float32 on their device.

    A fused optimizer does so within its step, which saves a pass over the gradients.
    """
    if optimizer.defaults["fused"]:
        # The way torch.amp.GradScaler takes; the optimizer divides by grad_scale.
        optimizer.grad_scale = 1 / factor  # type: ignore[attr-defined]
    else:
        torch._foreach_mul_(gradients, factor)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step, from 0, of a cycle of `steps` steps.

    It follows a cosine up from peak / 25 in the first 30 % of the steps, then one down to
    peak / 250,000. These are the rates of torch.optim.lr_scheduler.OneCycleLR (Smith and Topin
    2017, arXiv:1708.07120), but without a state: a run can go on from any step, and with another
    number of steps.
    """
    top, low = 0.3 * steps - 1, peak / 25
    if step <= top:
        begin, end, share = low, peak, step / top
    else:
        begin, end, share = peak, low / 1e4, (step - top) / (steps - 1 - top)
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def seed_step(seed: int, rank: int, step: int) -> None:
    """Set torch's random state, which dropout draws from, by the number of a step."""
    entropy = np.random.SeedSequence([seed, rank, step])
    torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


class FiniteCheck:
    """Keeps a loss or gradient that is not finite from the weights, and ends the run.

    On a CPU it looks at each step at once. On a GPU it makes the fused optimizer skip the update,
    and the host learns of that one step later, so that it never waits for the step under way.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer, self.on_gpu = optimizer, device.type == "cuda"
        # Of the step watched last: loss, gradient norm, number of ranks that were asked to stop.
        self.numbers = torch.zeros(3, dtype=torch.float64, pin_memory=self.on_gpu)
        self.place: tuple[int, int, int] | None = None
        if self.on_gpu:
            self.copied = torch.cuda.Event()

    def watch(
        self, loss: Tensor, norm: Tensor, stopping: Tensor, place: tuple[int, int, int]
    ) -> bool:
        """Look at a step before its update; return whether a rank was asked to stop.

        place: epochs done, steps done in this epoch, number of the step from 1. Raises NonFinite if
        the loss or the gradient's norm of this step is not finite. On a GPU both what is returned
        and what is raised are of the step before.
        """
        numbers = torch.stack([loss.double(), norm.double(), stopping.double()])
        if not self.on_gpu:
            self.numbers, self.place = numbers, place
            return self.check()
        asked = self.check()
        self.numbers.copy_(numbers, non_blocking=True)
        self.copied.record()
        self.place = place
        found_inf = (~numbers.isfinite().all()).float()
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined] # see scale_gradients
        return asked

    def check(self) -> bool:
        """Look at the step watched last; return and raise as `watch` does."""
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
            f"loss {loss} and gradient norm {norm} at step {step} (epoch {epoch + 1}, "
            f"batch {batch + 1} of it): the weights were not updated"
        )
