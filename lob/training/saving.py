"""What a training run saves and goes on from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lob.config import InputError
from lob.model.checkpoint import check_weights, load_checkpoint
from lob.model.encoder import BookEncoder
from lob.training.te_layer import fp8_state, load_plain_state, plain_name, plain_state


def load_weights(file: str | Path, model: BookEncoder) -> dict[str, Any]:
    """Put a checkpoint's weights into a model and return its metadata; InputError where it holds another network."""
    tensors, meta = load_checkpoint(file, "model.")
    free = {"dropout", "temporal_dim"}  # neither has weights
    found = meta["encoder"]
    differing = [f"{key} {found[key]!r}, not {value!r}" for key, value in asdict(model.config).items()
                 if key not in free and found[key] != value]  # fmt: skip
    if differing:
        raise InputError(f"{file} holds an encoder of {', '.join(differing)}: set these keys, or another model_path")
    check_weights(file, tensors, plain_state(model))
    load_plain_state(model, tensors)
    return meta


def training_state(model: BookEncoder, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: the weights, and with an optimizer its moments and FP8's scales.

    The moments have the plain names too, so a run can go on with either encoder.
    """
    tensors = {f"model.{name}": tensor for name, tensor in plain_state(model).items()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{plain_name(name)}.{key}"] = value
        tensors |= {f"fp8.{name}": tensor for name, tensor in fp8_state(model).items()}
    return tensors


def load_training_state(
    file: str | Path, model: BookEncoder, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], lr: float
) -> dict[str, Tensor]:
    """Put back what `training_state` returned, but FP8's scales: these are returned for load_fp8_state.

    InputError where the weights and moments that were read of `file` are another network's or optimizer's.
    """
    part: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "fp8": {}}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        part.setdefault(prefix, {})[rest] = tensor
    check_weights(file, part["model"], plain_state(model))
    load_plain_state(model, part["model"])
    sgd, count = isinstance(optimizer, torch.optim.SGD), torch.zeros(())
    for name, parameter in model.named_parameters():
        prefix = f"{plain_name(name)}."
        state = {key.removeprefix(prefix): value for key, value in part["optimizer"].items() if key.startswith(prefix)}
        if state:
            like = parameter.detach()
            wanted = {"momentum_buffer": like} if sgd else {"step": count, "exp_avg": like, "exp_avg_sq": like}
            check_weights(file, state, wanted)
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    for group in optimizer.param_groups:
        group["lr"] = lr
    return part["fp8"]
