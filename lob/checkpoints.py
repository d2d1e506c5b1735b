"""Checkpoints: one safetensors file each, written whole or not at all, loaded without executing anything.

    runs/<name>/checkpoints/best.safetensors             the weights with the least validation loss
    runs/<name>/checkpoints/step_00001200.safetensors    weights and all a resumed run needs

Tensors are named `model.<plain name>` (fp32), and in step files `optimizer.<plain name>.<key>`, `fp8.<name>` and
`epoch_sums`. The file's metadata holds one JSON text, `checkpoint`: format_version, encoder (the EncoderConfig),
training config, progress, the learning rate and the identity of the data. There is no random state: order, masks and
dropout follow from seed, epoch and step.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lob.config import InputError
from lob.encoder import BookEncoder, EncoderConfig
from lob.files import FORMAT_VERSION, new_file
from lob.te_encoder import fp8_state, load_plain_state, plain_name, plain_state


def save_checkpoint(file: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and metadata; the old file stays until the new one is complete."""
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, **meta})
    with new_file(file) as handle:
        handle.write(save(flat, metadata={"checkpoint": text}))


def load_checkpoint(file: str | Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors whose names begin with `prefix` (stripped) and the metadata; InputError where it is not one."""
    file = Path(file)
    if not file.is_file():
        raise InputError(f"there is no checkpoint {file}: train one with fp8_ddp_trainer.py or set --model_path")
    try:
        with safe_open(file, framework="pt") as handle:
            meta = json.loads((handle.metadata() or {}).get("checkpoint", "null"))
            names = [name for name in handle.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
            tensors = {name.removeprefix(prefix): handle.get_tensor(name) for name in names}
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"{file} is not a safetensors checkpoint ({error}); other files are not opened") from None
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION:
        found = meta.get("format_version") if isinstance(meta, dict) else None
        raise InputError(f"{file} has checkpoint version {found!r}, this program reads {FORMAT_VERSION}: train again")
    return tensors, meta


def find_checkpoint(runs_dir: str | Path, model_path: str | None) -> Path:
    """Return `model_path`, or if None the best checkpoint of the newest run; InputError where there is none."""
    if model_path is not None:
        return Path(model_path)
    found = sorted(Path(runs_dir).glob("*/checkpoints/best.safetensors"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise InputError(f"no run under {runs_dir} has a best checkpoint: run fp8_ddp_trainer.py or set --model_path")
    return found[-1]


def load_model(file: str | Path, device: str | torch.device = "cpu") -> tuple[BookEncoder, dict[str, Any]]:
    """Build the plain encoder of a checkpoint, in evaluation mode, and return it with the checkpoint's metadata.

    The outlook's head served training alone and is left out.
    """
    tensors, meta = load_checkpoint(file, "model.")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("outlook.")}
    try:
        model = BookEncoder(replace(EncoderConfig(**meta["encoder"]), outlook=False))
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} names no encoder of this version ({error}): train again") from None
    check_weights(file, tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.to(device).eval(), meta


def check_weights(file: str | Path, tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """InputError unless a checkpoint's tensors have the names and shapes of the encoder's that it is said to hold."""
    wrong = [name for name, t in wanted.items() if name not in tensors or tensors[name].shape != t.shape]
    if wrong or len(tensors) != len(wanted):
        first = next(iter(wrong), "extra keys")
        raise InputError(f"{file} does not hold the encoder that its metadata names ({first})")


def describe_step(meta: dict[str, Any]) -> str:
    """Say which step's weights a checkpoint holds, and what that means where it is none."""
    step = meta["progress"]["step"]
    return f"step {step:,}" if step else "step 0, the weights before training: no later ones did better in validation"


def load_weights(file: str | Path, model: BookEncoder) -> None:
    """Put a checkpoint's weights into a model; InputError where it holds another network."""
    tensors, meta = load_checkpoint(file, "model.")
    free = {"dropout", "temporal_dim"}  # neither has weights
    found = meta.get("encoder")
    if not isinstance(found, dict):
        raise InputError(f"{file} names no encoder of this version: train again")
    differing = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in asdict(model.config).items()
                 if key not in free and found.get(key) != value]  # fmt: skip
    if differing:
        raise InputError(f"{file} holds an encoder of {', '.join(differing)}: set these keys, or another model_path")
    check_weights(file, tensors, plain_state(model))
    load_plain_state(model, tensors)


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
    model: BookEncoder, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], lr: float
) -> dict[str, Tensor]:
    """Put back what `training_state` returned, but FP8's scales: these are returned for load_fp8_state."""
    part: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "fp8": {}}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        part.setdefault(prefix, {})[rest] = tensor
    load_plain_state(model, part["model"])
    for name, parameter in model.named_parameters():
        prefix = f"{plain_name(name)}."
        state = {key.removeprefix(prefix): value for key, value in part["optimizer"].items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    for group in optimizer.param_groups:
        group["lr"] = lr
    return part["fp8"]
