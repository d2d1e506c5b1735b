"""The encoder of Transformer Engine layers; its weights are the plain ones under other names.

A *plain name* is that of a parameter of the encoder in lob/model/encoder.py, which checkpoints use.

This is the only module that imports transformer_engine, and it does so only once CUDA was found.
The layer is built of Transformer Engine's fused modules (norm and linear, norm and MLP) around the
plain layer's attention. `te.TransformerLayer` would interleave queries, keys and values by head and
then copy them apart, which takes 12 % of a step at width 192.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lob.model.encoder import BookEncoder, EncoderConfig, attend

# Transformer Engine's name inside a layer -> the plain one, for the names that differ.
PLAIN_NAMES = {
    "qkv.layer_norm_weight": "norm1.weight",
    "qkv.layer_norm_bias": "norm1.bias",
    "mlp.layer_norm_weight": "norm2.weight",
    "mlp.layer_norm_bias": "norm2.bias",
    "mlp.fc1_weight": "fc1.weight",
    "mlp.fc1_bias": "fc1.bias",
    "mlp.fc2_weight": "fc2.weight",
    "mlp.fc2_bias": "fc2.bias",
}
FP8_TENSORS = ("scale", "amax_history")
# Recipe -> its class in Transformer Engine. Each rank of 'delayed' has scales of its own: to share
# them the ranks would have to talk within a pass.
RECIPE_CLASSES = {
    "delayed": "DelayedScaling",
    "current": "Float8CurrentScaling",
    "block": "Float8BlockScaling",
    "mxfp8": "MXFP8BlockScaling",
    "nvfp4": "NVFP4BlockScaling",
}


@functools.cache
def te_obstacle() -> str:
    """Return why Transformer Engine can't be used here, or an empty text."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU"
    if importlib.util.find_spec("transformer_engine") is None:
        return "Transformer Engine is not installed (pip install -r requirements-fp8.txt)"
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        return f"Transformer Engine does not load ({str(error).splitlines()[0]})"
    return ""


def recipe_obstacle(name: str) -> str:
    """Return why the installed Transformer Engine lacks a recipe, or an empty text."""
    if name in ("delayed", "current"):  # as old as the interface that is used here
        return ""
    import transformer_engine
    from transformer_engine.common import recipe

    if hasattr(recipe, RECIPE_CLASSES[name]):
        return ""
    return f"Transformer Engine {transformer_engine.__version__} has no {name} recipe, 2.20 has"


@contextlib.contextmanager
def fp8_autocast(recipe: str) -> Iterator[None]:
    import transformer_engine.pytorch as te

    with te.autocast(enabled=True, recipe=make_recipe(recipe)):
        yield


@functools.cache
def make_recipe(name: str) -> Any:
    from transformer_engine.common import recipe

    options = {}
    if name == "delayed":
        options = {
            "fp8_format": recipe.Format.HYBRID,
            "amax_history_len": 16,
            "amax_compute_algo": "max",
            "reduce_amax": False,
        }
    return getattr(recipe, RECIPE_CLASSES[name])(**options)


class TELayer(nn.Module):
    """The plain layer's mathematics in Transformer Engine modules.

    Under `fp8_autocast` their matrix products are in FP8. Attention never is.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        import transformer_engine.pytorch as te

        self.heads = config.heads
        self.causal = config.causal
        self.dropout = config.dropout
        self.attend = attend
        self.qkv = te.LayerNormLinear(config.width, 3 * config.width, eps=1e-5)
        self.proj = te.Linear(config.width, config.width)
        self.mlp = te.LayerNormMLP(config.width, config.ffn_width, eps=1e-5, activation="gelu")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        attended = self.proj(self.attend(self.qkv(x), cos, sin, self.heads, self.causal, dropout))
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.mlp(x), self.dropout, self.training)


def plain_name(name: str) -> str:
    """Return the plain name of a parameter of either encoder."""
    if not name.startswith("layers."):
        return name
    _, number, inner = name.split(".", 2)
    return f"layers.{number}.{PLAIN_NAMES.get(inner, inner)}"


def plain_state(model: BookEncoder) -> dict[str, Tensor]:
    """Return the weights of either encoder under the plain names, float32."""
    named = model.named_parameters()
    return {plain_name(name): parameter.detach().float() for name, parameter in named}


def load_plain_state(model: BookEncoder, state: dict[str, Tensor]) -> None:
    """Copy weights with plain names into either encoder. Raises KeyError if one is missing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[plain_name(name)])


def fp8_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield delayed scaling's scales and histories of largest values, by name.

    Other recipes and plain layers have none.
    """
    for name, module in model.named_modules():
        for direction, meta in getattr(module, "fp8_meta", {}).items():
            for tensor in FP8_TENSORS:
                if direction.startswith("scaling_") and hasattr(meta, tensor):
                    yield f"{name}.{direction}.{tensor}", getattr(meta, tensor)


def fp8_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of `fp8_tensors`."""
    return {name: tensor.detach().clone() for name, tensor in fp8_tensors(model)}


def load_fp8_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put `fp8_state` back. Run a pass under autocast before: it makes the tensors to be filled."""
    with torch.no_grad():
        for name, tensor in fp8_tensors(model):
            if name in state:
                tensor.copy_(state[name])
