"""Optimizers and learning rates by the names of the trainer's config."""

import math

import torch
from torch import Tensor, nn


def make_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW (the only one that decays weights), Adam or SGD (momentum 0.9), fused on a GPU."""
    makers = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    parameters = list(model.parameters())
    own = {"sgd": {"momentum": 0.9}, "adamw": {"weight_decay": weight_decay}}.get(name, {})
    return makers[name](parameters, lr=lr, fused=parameters[0].is_cuda, **own)


def scale_gradients(optimizer: torch.optim.Optimizer, gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply gradients by `factor`; a fused optimizer does so within its step, without another pass over them."""
    if optimizer.defaults["fused"]:
        optimizer.grad_scale = 1 / factor  # type: ignore[attr-defined] # as GradScaler tells fused optimizers
    else:
        torch._foreach_mul_(gradients, factor)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: cosine up from peak / 25 in the first 30 % of the steps, then down to peak / 250,000.

    The same as torch.optim.lr_scheduler.OneCycleLR (Smith and Topin 2017, arXiv:1708.07120), but without a state, so
    that a run goes on from any step, also towards another last one.
    """
    top, low = 0.3 * steps - 1, peak / 25
    if step <= top:
        begin, end, share = low, peak, step / top
    else:
        begin, end, share = peak, low / 1e4, (step - top) / (steps - 1 - top)
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))
