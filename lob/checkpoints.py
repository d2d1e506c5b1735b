"""Checkpoints: one safetensors file each, written whole or not at all, loaded without executing anything.

    runs/<name>/checkpoints/best.safetensors             the weights with the least validation loss
    runs/<name>/checkpoints/step_00001200.safetensors    weights and all a resumed run needs

Tensors are named `model.<plain name>` (fp32), and in step files `optimizer.<n>.<key>`, `random.<name>`, `fp8.<name>`.
The file's metadata holds one JSON text, `checkpoint`: format_version, encoder (the EncoderConfig), training config,
step, epoch, losses and the identity of the data.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lob.config import InputError
from lob.encoder import BookEncoder, EncoderConfig
from lob.files import FORMAT_VERSION, new_file
from lob.te_encoder import fp8_state, from_plain, load_plain_state, plain_name, plain_state, to_plain


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
    """Build the plain encoder of a checkpoint, in evaluation mode, and return it with the checkpoint's metadata."""
    tensors, meta = load_checkpoint(file, "model.")
    model = BookEncoder(EncoderConfig(**meta["encoder"]))
    wrong = {name: tuple(t.shape) for name, t in model.state_dict().items()
             if name not in tensors or tensors[name].shape != t.shape}  # fmt: skip
    if wrong or len(tensors) != len(model.state_dict()):
        raise InputError(
            f"{file} does not hold the encoder that its metadata names ({next(iter(wrong), 'extra keys')})"
        )
    model.load_state_dict(tensors)
    return model.to(device).eval(), meta


def training_state(
    model: BookEncoder, optimizer: torch.optim.Optimizer, full: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint and what of the state is no tensor.

    The weights alone, or with `full` also the optimizer's moments (under the plain names and in the plain layout), the
    random state of this process and FP8's scales.
    """
    tensors = {f"model.{name}": tensor for name, tensor in plain_state(model).items()}
    if not full:
        return tensors, {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{plain_name(name)}.{key}"] = to_plain(name, value, model.config)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    tensors |= {f"fp8.{name}": tensor for name, tensor in fp8_state(model).items()}
    return tensors, {"lr": [group["lr"] for group in optimizer.param_groups]}


def load_training_state(
    model: BookEncoder, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> dict[str, Tensor]:
    """Put back what `training_state` with `full` returned, save for FP8's scales, which are returned."""
    part = {
        prefix: {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for prefix in ("model.", "optimizer.", "fp8.")
    }
    load_plain_state(model, part["model."])
    for name, parameter in model.named_parameters():
        prefix = f"{plain_name(name)}."
        state = {key.removeprefix(prefix): value for key, value in part["optimizer."].items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {key: from_plain(name, value.to(parameter.device), model.config)
                                          for key, value in state.items()}  # fmt: skip
    for group, lr in zip(optimizer.param_groups, meta["lr"], strict=True):
        group["lr"] = lr
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return part["fp8."]
