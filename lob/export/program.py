"""Writing a network to a file: TorchScript or ONNX, as the ending of the file's name says."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lob.export.actor_critic import ActorCritic
from lob.export.onnx_program import to_onnx
from lob.storage import new_file

ENDINGS = {"torchscript": ".pt", "onnx": ".onnx"}


def write_program(
    file: Path, module: nn.Module, inputs: tuple[Tensor, ...], facts: dict[str, Any]
) -> None:
    """Write a module to `file` (.pt or .onnx), and `facts` into it and into the `.json` beside it.

    inputs: an example of at least two windows; the program takes any number of them. facts: among
    them what `to_onnx` needs.
    """
    device = next(module.parameters()).device
    example = tuple(x[:2].to(device) for x in inputs)
    text = json.dumps(facts, indent=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript, but LibTorch loads it
        if file.suffix == ENDINGS["torchscript"]:
            program = to_torchscript(module, example)
            with new_file(file) as handle:
                torch.jit.save(program, handle, _extra_files={"metadata.json": text})
        else:
            model = to_onnx(module.float().eval(), example, facts)
            with new_file(file) as handle:
                handle.write(model.SerializeToString())
    with new_file(about(file)) as handle:
        handle.write(text.encode())


def about(file: Path) -> Path:
    """Return the `.json` that describes an exported file."""
    return file.with_suffix(file.suffix + ".json")


def to_torchscript(module: nn.Module, example: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    """Return a module as TorchScript: traced, or an `ActorCritic` scripted but for its inputs.

    A trace would fix the dropout of an `ActorCritic`, which train() and eval() must switch. Only
    its normalisation and tokens (`window.tokens`) are traced.
    """
    if not isinstance(module, ActorCritic):
        with torch.no_grad():
            return torch.jit.trace(module, example, check_trace=False)
    module.window.tokens = torch.jit.trace(module.window.tokens, example[:2], check_trace=False)
    return torch.jit.script(module)
