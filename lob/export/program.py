"""A network as a file: TorchScript or ONNX, as the ending of its name says."""

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

    `inputs` are an example of at least two windows, any other number can be given to the program.
    `facts` name its inputs and outputs (see `to_onnx`).
    """
    device = next(module.parameters()).device
    example = tuple(x[:2].to(device) for x in inputs)
    text = json.dumps(facts, indent=1)
    with warnings.catch_warnings():
        # torch advises against TorchScript, but it is what LibTorch loads.
        warnings.simplefilter("ignore")
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
    """Trace a module; of an `ActorCritic` trace the normalisation and script the rest.

    A trace would fix its dropout, which train() and eval() must be able to switch.
    """
    if not isinstance(module, ActorCritic):
        with torch.no_grad():
            return torch.jit.trace(module, example, check_trace=False)
    module.window.tokens = torch.jit.trace(module.window.tokens, example[:2], check_trace=False)
    return torch.jit.script(module)
