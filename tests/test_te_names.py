"""Weights go to Transformer Engine's names and back, on any machine.

Its names and shapes are written down here; tests/test_gpu.py compares them with the library's own.
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import metadata
from torch import Tensor, nn

from lob.model.checkpoint import load_checkpoint, save_checkpoint
from lob.model.encoder import BookEncoder, EncoderConfig, rotary_angles
from lob.training.saving import load_training_state, training_state
from lob.training.te_layer import load_plain_state, plain_name, plain_state

CONFIG = EncoderConfig(depth=16, temporal_dim=8, width=48, layers=2, heads=3, ffn_width=80)


def engine_shapes(h: int, f: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes in the state dict of one layer of Transformer Engine 2.20.

    h: width; f: width of the feed-forward layer. The modules are LayerNormLinear, Linear and
    LayerNormMLP with GELU.
    """
    return {
        "qkv.layer_norm_weight": (h,),
        "qkv.layer_norm_bias": (h,),
        "qkv.weight": (3 * h, h),
        "qkv.bias": (3 * h,),
        "qkv._extra_state": (0,),
        "proj.weight": (h, h),
        "proj.bias": (h,),
        "proj._extra_state": (0,),
        "mlp.layer_norm_weight": (h,),
        "mlp.layer_norm_bias": (h,),
        "mlp.fc1_weight": (f, h),
        "mlp.fc1_bias": (f,),
        "mlp.fc2_weight": (h, f),
        "mlp.fc2_bias": (h,),
        "mlp._extra_state": (0,),
    }


class EngineLayer(nn.Module):
    """A layer with Transformer Engine's parameters, and nothing that could be run."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        for key, shape in engine_shapes(config.width, config.ffn_width).items():
            module, leaf = key.split(".")
            if not hasattr(self, module):
                self.add_module(module, nn.Module())
            if leaf != "_extra_state":  # not a parameter, and never read from a file
                getattr(self, module).register_parameter(leaf, nn.Parameter(torch.randn(shape)))


def engine_forward(state: dict[str, Tensor], x: Tensor, config: EncoderConfig) -> Tensor:
    """Return what Transformer Engine's modules compute of x (B, T, D), in float64."""
    state = {key: tensor.double() for key, tensor in state.items()}
    states, h, n = *x.shape[1:], config.heads
    d = h // n
    y = F.layer_norm(x, (h,), *(state[f"qkv.layer_norm_{p}"] for p in ("weight", "bias")))
    # Each in three parts: queries, keys, values.
    weight, bias = state["qkv.weight"].split(h), state["qkv.bias"].split(h)
    angle = torch.arange(states)[:, None] * 10000.0 ** (-torch.arange(0, d, 2).double() / d)
    # The rotation as a complex number: the halves of a head are real and imaginary parts.
    turn = torch.polar(torch.ones_like(angle), angle)
    heads = []
    for head in range(n):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = (
            y @ part[rows].T + offset[rows] for part, offset in zip(weight, bias, strict=True)
        )
        q, k = (torch.complex(*z.chunk(2, dim=-1)) * turn for z in (q, k))
        score = (q @ k.conj().transpose(1, 2)).real / d**0.5
        heads.append(score.softmax(-1) @ v)
    x = x + torch.cat(heads, -1) @ state["proj.weight"].T + state["proj.bias"]
    y = F.layer_norm(x, (h,), state["mlp.layer_norm_weight"], state["mlp.layer_norm_bias"])
    y = F.gelu(y @ state["mlp.fc1_weight"].T + state["mlp.fc1_bias"], approximate="tanh")
    return x + y @ state["mlp.fc2_weight"].T + state["mlp.fc2_bias"]


def shaken(model: BookEncoder, seed: int) -> BookEncoder:
    """Give each parameter random values; return the model."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def layer_state(model: BookEncoder, index: int) -> dict[str, Tensor]:
    """Return the tensors of one layer under their names within it."""
    prefix = f"layers.{index}."
    named = model.state_dict().items()
    return {key.removeprefix(prefix): t for key, t in named if key.startswith(prefix)}


def test_every_key_has_its_plain_name_and_shape():
    plain, engine = BookEncoder(CONFIG), BookEncoder(CONFIG, EngineLayer)
    assert {plain_name(name) for name, _ in engine.named_parameters()} == set(plain.state_dict())
    assert {k: tuple(t.shape) for k, t in plain_state(engine).items()} == {
        k: tuple(t.shape) for k, t in plain.state_dict().items()
    }


def test_weights_go_there_and_back_exactly():
    plain = shaken(BookEncoder(CONFIG), 0)
    engine = BookEncoder(CONFIG, EngineLayer)
    again = BookEncoder(CONFIG)
    load_plain_state(engine, plain.state_dict())
    load_plain_state(again, plain_state(engine))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    incomplete = plain.state_dict()
    del incomplete["layers.1.fc2.bias"]
    with pytest.raises(KeyError):
        load_plain_state(engine, incomplete)


@pytest.mark.parametrize("direction", ["to Transformer Engine", "to plain"])
def test_converted_weights_compute_the_same(direction):
    plain, engine = BookEncoder(CONFIG), BookEncoder(CONFIG, EngineLayer)
    if direction == "to plain":
        load_plain_state(plain, plain_state(shaken(engine, 1)))
    else:
        load_plain_state(engine, shaken(plain, 1).state_dict())
    x = torch.randn(2, CONFIG.temporal_dim, CONFIG.width)
    for index, layer in enumerate(plain.requires_grad_(False).layers):
        expected = engine_forward(layer_state(engine, index), x.double(), CONFIG)
        found = layer(x, *rotary_angles(CONFIG.temporal_dim, CONFIG.width // CONFIG.heads))
        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_run_goes_on_with_the_other_encoder(tmp_path):
    """AdamW's moments follow the weights: a step after the change equals the step without it."""
    plain, engine = shaken(BookEncoder(CONFIG), 2), BookEncoder(CONFIG, EngineLayer)
    gradients = {name: torch.randn_like(p) for name, p in plain.named_parameters()}

    def step(model: BookEncoder, optimizer: torch.optim.Optimizer) -> None:
        shaped = BookEncoder(CONFIG, EngineLayer if model is engine else type(plain.layers[0]))
        load_plain_state(shaped, gradients)
        for parameter, gradient in zip(model.parameters(), shaped.parameters(), strict=True):
            parameter.grad = gradient.detach()
        optimizer.step()

    old = torch.optim.AdamW(plain.parameters(), lr=0.01)
    step(plain, old)
    new = torch.optim.AdamW(engine.parameters(), lr=1.0)
    save_checkpoint(tmp_path / "a.safetensors", training_state(plain, old), metadata(CONFIG))
    tensors, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert load_training_state("a.safetensors", engine, new, tensors, lr=0.01) == {}
    step(plain, old)
    step(engine, new)
    for name, tensor in plain_state(engine).items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
