"""The encoder of Transformer Engine layers, and the exact way of its weights to and from the plain names.

The only module that imports transformer_engine, and only once CUDA was found. Each `te.TransformerLayer` keeps its
queries, keys and values in one weight, interleaved by head; the plain layer has all queries, all keys, all values.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lob.encoder import BookEncoder, EncoderConfig
from lob.precision import Precision

# Plain name inside a layer -> Transformer Engine's.
NAMES = {
    "norm1.weight": "self_attention.layernorm_qkv.layer_norm_weight",
    "norm1.bias": "self_attention.layernorm_qkv.layer_norm_bias",
    "qkv.weight": "self_attention.layernorm_qkv.weight",
    "qkv.bias": "self_attention.layernorm_qkv.bias",
    "proj.weight": "self_attention.proj.weight",
    "proj.bias": "self_attention.proj.bias",
    "norm2.weight": "layernorm_mlp.layer_norm_weight",
    "norm2.bias": "layernorm_mlp.layer_norm_bias",
    "fc1.weight": "layernorm_mlp.fc1_weight",
    "fc1.bias": "layernorm_mlp.fc1_bias",
    "fc2.weight": "layernorm_mlp.fc2_weight",
    "fc2.bias": "layernorm_mlp.fc2_bias",
}
FP8_TENSORS = ("scale", "amax_history")


@functools.cache
def te_obstacle() -> str:
    """Why Transformer Engine can't be used here, or nothing."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU"
    if importlib.util.find_spec("transformer_engine") is None:
        return "Transformer Engine is not installed (pip install -r requirements-fp8.txt)"
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        return f"Transformer Engine does not load ({str(error).splitlines()[0]})"
    return ""


@contextlib.contextmanager
def fp8_autocast(recipe: str) -> Iterator[None]:
    import transformer_engine.pytorch as te

    with te.autocast(enabled=True, recipe=make_recipe(recipe)):
        yield


@functools.cache
def make_recipe(name: str) -> Any:
    from transformer_engine.common import recipe

    makers = {
        "delayed": lambda: recipe.DelayedScaling(
            fp8_format=recipe.Format.HYBRID, amax_history_len=16, amax_compute_algo="max"
        ),
        "current": recipe.Float8CurrentScaling,
        "block": recipe.Float8BlockScaling,
    }
    return makers[name]()


class TELayer(nn.Module):
    """`te.TransformerLayer` behind the plain layer's call."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        import transformer_engine.pytorch as te

        self.layer = te.TransformerLayer(
            config.width, config.ffn_width, config.heads, hidden_dropout=config.dropout,
            attention_dropout=config.dropout, self_attn_mask_type="causal" if config.causal else "no_mask",
            fuse_qkv_params=True, attn_input_format="bshd", activation="gelu", layernorm_epsilon=1e-5,
        )  # fmt: skip

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.layer(x, rotary_pos_emb=self.angles(x.shape[1], cos))

    def angles(self, states: int, cos: Tensor) -> Tensor:
        """Rotary angles (T, 1, 1, D/H) as Transformer Engine takes them."""
        head_width = cos.shape[1]
        frequency = 10000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float32, device=cos.device) / head_width)
        angle = torch.outer(torch.arange(states, dtype=torch.float32, device=cos.device), frequency)
        return torch.cat([angle, angle], dim=1)[:, None, None, :]


def build_encoder(
    config: EncoderConfig, precision: Precision, device: torch.device, compiled: bool = False
) -> BookEncoder:
    """Return the encoder on `device`: of Transformer Engine layers under FP8, of plain ones otherwise.

    Both start from the same weights for the same torch seed. `compiled`: torch.compile the plain layers on a GPU.
    """
    plain = BookEncoder(config)
    if precision.name != "fp8":
        if compiled and device.type == "cuda":
            for layer in plain.layers:
                layer.compile()  # one layer's code serves all
        return plain.to(device)
    model = BookEncoder(config, TELayer).to(device)
    load_plain_state(model, plain.state_dict())
    return model


def interleave(tensor: Tensor, heads: int) -> Tensor:
    """Rows of all queries, all keys, all values -> query, key and value of each head in turn."""
    return tensor.reshape(3, heads, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def separate(tensor: Tensor, heads: int) -> Tensor:
    """Undo `interleave`."""
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def plain_name(name: str) -> str | None:
    """The plain name of a parameter of either encoder; None for what has none (`_extra_state`)."""
    if name.endswith("_extra_state"):
        return None
    prefix, found, inner = name.partition(".layer.")
    if not found:
        return name
    return f"{prefix}." + next(plain for plain, te in NAMES.items() if te == inner)


def to_plain(name: str, tensor: Tensor, config: EncoderConfig) -> Tensor:
    """Turn a tensor shaped as parameter `name` of a model (its value, gradient or moment) into the plain layout."""
    return separate(tensor, config.heads) if ".layer.self_attention.layernorm_qkv." in name and tensor.dim() and (
        not name.endswith(("layer_norm_weight", "layer_norm_bias"))) else tensor  # fmt: skip


def from_plain(name: str, tensor: Tensor, config: EncoderConfig) -> Tensor:
    """Undo `to_plain`."""
    return interleave(tensor, config.heads) if ".layer.self_attention.layernorm_qkv." in name and tensor.dim() and (
        not name.endswith(("layer_norm_weight", "layer_norm_bias"))) else tensor  # fmt: skip


def plain_state(model: BookEncoder) -> dict[str, Tensor]:
    """The weights of either encoder under the plain names, float32."""
    return {str(plain_name(name)): to_plain(name, parameter.detach().float(), model.config)
            for name, parameter in model.named_parameters()}  # fmt: skip


def load_plain_state(model: BookEncoder, state: dict[str, Tensor]) -> None:
    """Copy weights with plain names into either encoder; KeyError where one is missing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(from_plain(name, state[str(plain_name(name))].to(parameter.device), model.config))


def fp8_state(model: nn.Module) -> dict[str, Tensor]:
    """Scales and amax histories of delayed scaling, as plain tensors; empty for other recipes and plain layers."""
    found = {}
    for name, module in model.named_modules():
        for direction, meta in getattr(module, "fp8_meta", {}).items():
            for tensor in FP8_TENSORS:
                if direction.startswith("scaling_") and hasattr(meta, tensor):
                    found[f"{name}.{direction}.{tensor}"] = getattr(meta, tensor).detach().clone()
    return found


def load_fp8_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put `fp8_state` back. The modules make these tensors at their first pass, so run one under autocast before."""
    with torch.no_grad():
        for name, module in model.named_modules():
            for direction, meta in getattr(module, "fp8_meta", {}).items():
                for tensor in FP8_TENSORS:
                    saved = state.get(f"{name}.{direction}.{tensor}")
                    if saved is not None and hasattr(meta, tensor):
                        getattr(meta, tensor).copy_(saved)
