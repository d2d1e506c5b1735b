"""The encoder in plain PyTorch: the mathematics that training, testing and export agree on.

Axes: B window, T state, L level, F field, C inputs a state, D width, H heads. One token a book state; rotary positions
on queries and keys, pre-norm layers, tanh GELU, a linear head back to L*F. `lob/te_encoder.py` holds the same network
of Transformer Engine layers; checkpoints hold the names used here.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lob.cells import CellDecoder, CellStem
from lob.config import InputError, nearest
from lob.ladder import Ladder, find_ladder, linear_time
from lob.normalisation import fit, interpolate_time, signed_log, transform

FILLS = ("none", "linear", "ladder")
OUTLOOK_TARGETS = 26  # numbers that the outlook's head tells (lob/outlook.py)
INPUT_MULTIPLE = 16  # FP8 matrix products want every dimension to be a multiple of 16


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes the network and what it is fed; it travels in every checkpoint."""

    depth: int = 96  # L
    temporal_dim: int = 256  # T
    width: int = 64  # D
    layers: int = 2
    heads: int = 4
    ffn_width: int = 128
    cell_width: int = 0  # C of a convolutional stem and decoder (lob/cells.py); 0: linear ones
    dropout: float = 0.0
    normalization: str = "book"
    fill: str = "linear"  # what stands in for hidden values, and what the head's output is added to
    causal: bool = False
    outlook: bool = False  # a head on the last state's vector (lob/outlook.py), for training alone

    @property
    def input_width(self) -> int:
        """C: values and mask bits, the fill where there is one and the mid's path, padded to a multiple of 16."""
        channels = self.depth * 2 * (2 if self.fill == "none" else 3) + (self.normalization == "book")
        return -(-channels // INPUT_MULTIPLE) * INPUT_MULTIPLE


PRESETS: dict[str, dict[str, Any]] = {
    "tiny_transformer": {"width": 64, "layers": 2, "heads": 4, "ffn_width": 256},
    "medium_transformer": {"width": 768, "layers": 12, "heads": 12, "ffn_width": 3072},
    "deep_narrow_transformer": {"width": 192, "layers": 40, "heads": 8, "ffn_width": 1536},
    "cell_transformer": {"width": 384, "layers": 4, "heads": 6, "ffn_width": 1536, "cell_width": 64, "fill": "ladder"},
    "wide_transformer": {"width": 2048, "layers": 12, "heads": 16, "ffn_width": 8192},
}


def encoder_config(model_size: str, **choices: Any) -> EncoderConfig:
    """Return the preset `model_size` with `choices` put in; InputError for an unknown one or an impossible choice."""
    if model_size not in PRESETS:
        raise InputError(
            f"unknown model_size {model_size!r}{nearest(model_size, PRESETS)}; known: {', '.join(PRESETS)}"
        )
    config = replace(EncoderConfig(**PRESETS[model_size]), **choices)
    if config.cell_width and config.fill != "ladder":
        raise InputError(f"fill = {config.fill!r}: {model_size} corrects the ladder's values, set fill to 'ladder'")
    return config


def rotary_angles(states: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 (T, head_width), in the half-rotation form (Su et al. 2021, arXiv:2104.09864)."""
    frequency = 10000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angle = torch.outer(torch.arange(states, dtype=torch.float32), frequency)
    angle = torch.cat([angle, angle], dim=1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last axis of x (B, T, H, D/H) by each state's angles, in float32."""
    y = x.float()
    first, second = y.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (y * cos[:, None, :] + turned * sin[:, None, :]).to(x.dtype)


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, causal: bool, dropout: float) -> Tensor:
    """Attention of all queries, all keys, all values (B, T, 3D) with rotary positions, (B, T, D)."""
    batch, states, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(batch, states, 3, heads, width // heads).unbind(2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=dropout, is_causal=causal
    )
    return attended.transpose(1, 2).reshape(batch, states, width)


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with tanh GELU and biases."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.heads = config.heads
        self.causal = config.causal
        self.dropout = config.dropout
        self.norm1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)  # rows: all queries, all keys, all values
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        attended = self.proj(attend(self.qkv(self.norm1(x)), cos, sin, self.heads, self.causal, dropout))
        x = x + F.dropout(attended, self.dropout, self.training)
        hidden = self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return x + F.dropout(hidden, self.dropout, self.training)


class BookEncoder(nn.Module):
    """Tokens (B, T, C) to hidden states (B, T, D) and, through the head, to predicted values (B, T, L, F)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: EncoderConfig, make_layer: Callable[[EncoderConfig], nn.Module] = EncoderLayer):
        super().__init__()
        self.config = config
        self.embed: Any = None
        self.head: Any = None
        self.stem: Any = None
        self.decoder: Any = None
        if config.cell_width:
            shape = (config.depth, config.cell_width, config.width, config.causal)
            self.stem, self.decoder = CellStem(*shape), CellDecoder(*shape)
        else:
            self.embed = nn.Linear(config.input_width, config.width)
        self.layers = nn.ModuleList([make_layer(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        if not config.cell_width:
            self.head = nn.Linear(config.width, config.depth * 2)
        self.outlook: Any = nn.Linear(config.width, OUTLOOK_TARGETS) if config.outlook else None
        cos, sin = rotary_angles(config.temporal_dim, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), residual projections by 1 / sqrt(2 layers) less.

        Where a fill exists the head starts at zero, so that training starts at the fill's error.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith(("stem", "decoder")):
                scale = math.sqrt(2 * self.config.layers) if name.endswith(("proj", "fc2")) else 1.0
                nn.init.normal_(module.weight, std=0.02 / scale)
                nn.init.zeros_(module.bias)
        if self.head is not None and self.config.fill != "none":
            nn.init.zeros_(self.head.weight)

    def attend(self, x: Tensor) -> Tensor:
        """The layers, (B, T, D) to (B, T, D)."""
        states = x.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:states], self.sin[:states])
        return self.norm(x)

    def encode(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T, C). Unless causal, a state's hidden vector holds its future."""
        if self.stem is not None:
            _, x = self.stem(tokens)
        else:
            x = self.embed(tokens)
        return self.attend(x)

    def forward(self, tokens: Tensor, base: Tensor) -> Tensor:
        """Predicted values, float32 (B, T, L, F): what head or decoder add to `base` (B, T, L, F)."""
        if self.stem is not None:
            cells, x = self.stem(tokens)
            return base + self.decoder(cells, self.attend(x))
        return base + self.head(self.encode(tokens)).float().view(base.shape)


def fill_hidden(
    ladder: Ladder | None,
    in_time: Tensor,
    sizes: Tensor,
    values: Tensor,
    mask: Tensor,
    parameters: dict[str, Tensor],
    config: EncoderConfig,
) -> Tensor:
    """Return what stands in for hidden values before any learning, float32 (B, T, L, F), zero for fill 'none'."""
    if config.fill == "linear":
        return interpolate_time(values, ~mask)
    if ladder is not None:
        anchor = parameters["anchor_ticks"]
        if config.normalization == "minmax":  # one anchor a level
            anchor = anchor[:, :, anchor.shape[2] // 2].unsqueeze(2)
        price = transform(ladder.price.double() + anchor, sizes, parameters, config.normalization)[..., 0]
        return torch.stack([price, ladder.fill_sizes(values[..., 1], in_time[..., 1])], dim=3)
    return torch.zeros_like(values)


def build_inputs(
    price_ticks: Tensor, sizes: Tensor, mask: Tensor | None, config: EncoderConfig
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Turn windows into what the encoder takes: tokens (B, T, C), base (B, T, L, F), values, parameters.

    For a convolutional stem the tokens are cells, (B, T, L, CHANNELS).
    price_ticks: int (B, T, L); sizes: float (B, T, L); mask: bool (B, T, L, F), True where hidden, or None: nothing is,
    and the fill, which then equals the values, is not computed. `values` are the targets, normalised by `parameters`. A
    hidden value is zero in the tokens and its mask bit one, so that it differs from a true zero; nothing in tokens or
    base depends on a hidden value. With `causal`, "book" and nothing hidden, no token depends on a later state.
    """
    filled = mask is not None or config.fill == "none"
    ladder = None
    if config.cell_width or (filled and config.fill == "ladder"):
        ladder = find_ladder(price_ticks, mask)
    if mask is None:
        mask = torch.zeros(sizes.shape, dtype=torch.bool, device=sizes.device).unsqueeze(3).expand(-1, -1, -1, 2)
    parameters = fit(price_ticks, sizes, mask, config.normalization, config.causal)
    values = transform(price_ticks, sizes, parameters, config.normalization)
    in_time = linear_time(values, ~mask) if filled and ladder is not None else values
    base = fill_hidden(ladder, in_time, sizes, values, mask, parameters, config) if filled else values
    batch, states = values.shape[:2]
    visible = values.masked_fill(mask, 0.0)
    path = values.new_zeros(batch, states, 1)
    if config.normalization == "book":
        mid = parameters["mid"]
        path = signed_log(mid - (mid[:, :1] if config.causal else mid[:, -1:])) / 4.0
    if ladder is not None and config.cell_width:
        return cell_channels(visible, mask, base, in_time, ladder, path, config.causal), base, values, parameters
    channels = [visible.flatten(2), mask.flatten(2).to(values.dtype)]
    if config.fill != "none":
        channels.append(base.flatten(2))
    if config.normalization == "book":
        channels.append(path)
    used = sum(channel.shape[2] for channel in channels)
    channels.append(values.new_zeros(batch, states, config.input_width - used))
    return torch.cat(channels, dim=2), base, values, parameters


def cell_channels(
    visible: Tensor, mask: Tensor, base: Tensor, in_time: Tensor, ladder: Ladder, path: Tensor, causal: bool
) -> Tensor:
    """Return what a convolutional stem is told of each cell, float32 (B, T, L, CHANNELS).

    Visible values, mask bits, the fill; whether price and size are known or found; the sizes last and next seen at the
    same price less the fill, and log1p of how many states away; linear interpolation in time and the level's mean size
    less the fill; the mid's path (B, T, 1). With `causal` nothing of later states and no mean.
    """
    size = base[..., 1]
    levels, own = size.shape[2], torch.arange(size[0].numel(), device=size.device).view(size.shape[1:])
    left, right = ladder.neighbours(visible[..., 1])
    far = [torch.log1p(((own - at).abs() // levels).to(size.dtype)) / 4.0 for at in (ladder.before, ladder.after)]
    nothing = torch.zeros_like(size)
    left, right = (torch.where(ladder.carried, x - size, nothing) for x in (left, right))
    mean = visible[..., 1].sum(1, keepdim=True) / (~mask[..., 1]).sum(1, keepdim=True).clamp(min=1) - size
    in_time = in_time - base
    if causal:
        earlier = ladder.before < own
        left, far = torch.where(earlier, left, nothing), [torch.where(earlier, far[0], nothing), nothing]
        right, mean, in_time = nothing, nothing, torch.zeros_like(in_time)
    return torch.stack(
        [
            *visible.unbind(3), *mask.to(size.dtype).unbind(3), *base.unbind(3), ladder.price_known.to(size.dtype),
            ladder.size_known.to(size.dtype), left, right, *far, *in_time.unbind(3), path.expand_as(size), mean,
        ],
        dim=3,
    )  # fmt: skip


def count_parameters(config: EncoderConfig) -> int:
    """Parameters of the network."""
    return sum(parameter.numel() for parameter in unbuilt(config).parameters())


@functools.cache
def unbuilt(config: EncoderConfig) -> BookEncoder:
    """The network without memory for its parameters."""
    with torch.device("meta"):
        return BookEncoder(config)


def flops_per_window(config: EncoderConfig) -> float:
    """Model FLOPs of a training step a window: 6 parameters T + 12 layers T^2 D, no recomputation counted.

    A parameter of a cell counts once a level.
    """
    states = config.temporal_dim
    cells = ("stem.mix", "stem.blocks", "stem.pool", "decoder.join", "decoder.blocks", "decoder.norm", "decoder.head")
    parameters = sum(parameter.numel() * (config.depth if name.startswith(cells) else 1)
                     for name, parameter in unbuilt(config).named_parameters())  # fmt: skip
    return 6.0 * parameters * states + 12.0 * config.layers * states * states * config.width
