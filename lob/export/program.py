"""Writing a network to a file: TorchScript or ONNX, as the ending of the file's name says."""

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lob.export.actor_critic import ActorCritic
from lob.export.onnx_program import to_onnx
from lob.model.embedding import WindowEncoder
from lob.model.streaming import BookStream
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
    its normalisation and tokens (`window.tokens`) are traced. The program raises an error for
    inputs of other shapes than the example's, apart from the number of windows.
    """
    if isinstance(module, BookStream):  # it checks shapes itself
        return torch.jit.script(module)
    if isinstance(module, WindowEncoder):  # its parameters keep their names
        bare = module.tokens
        setattr(module, "tokens", Checked(bare, example))  # noqa: B010 - of another class
        try:
            return trace(module, example)
        finally:
            module.tokens = bare
    if not isinstance(module, ActorCritic):
        return trace(Checked(module, example), example)
    tokens = trace(Checked(module.window.tokens, example[:2]), example[:2])
    setattr(module.window, "tokens", tokens)  # noqa: B010 - of another class
    return torch.jit.script(module)


def trace(module: nn.Module, example: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    with torch.no_grad():
        return torch.jit.trace(module, example, check_trace=False)


@torch.jit.script
def check_shape(found: Tensor, first: Tensor, wanted: list[int], name: str) -> Tensor:
    """Return `found`. Raises RuntimeError unless it is of a wanted shape, a row for each window.

    A trace keeps a call of a script, and so the check, where it would drop one in Python.
    """
    shape = [first.size(0)] + wanted  # noqa: RUF005 - TorchScript unpacks no lists
    if found.size() != shape:
        raise RuntimeError(f"{name} must be of shape {shape}, not {found.size()}")
    return found


class Checked(nn.Module):
    """A module that takes inputs of the shapes of an example alone, but any number of windows.

    A trace of the bare module takes windows of other lengths and depths and makes numbers of them.
    """

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...]):
        super().__init__()
        self.module = module
        self.names = list(inspect.signature(module.forward).parameters)
        self.shapes = [list(x.shape[1:]) for x in example]

    def forward(self, *inputs: Tensor) -> Any:
        first, checked = inputs[0], []
        for name, x, shape in zip(self.names, inputs, self.shapes, strict=False):
            checked.append(check_shape(x, first, shape, name))
        return self.module(*checked)
