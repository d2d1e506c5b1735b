"""The encoder in plain PyTorch: the mathematics that training, testing and export agree on.

One token a book state; rotary positions on queries and keys, pre-norm layers, tanh GELU. The tokens
come from a linear layer or from a convolutional stem, the values from a linear head or a
convolutional decoder. A *cell* is a level of a state: what happens to a resting size shows in its
neighbours in time and price, so the stem compares cells before they become a token, and the decoder
has the cells beside the encoder's answer. Convolutions run over (B, C, T, L) in channels-last
memory, where C is the contiguous axis.

`lob/training/te_layer.py` holds the same layers by Transformer Engine; checkpoints hold the names
used here.

Axes: B window, T state, L level, F field, C inputs a state or channels a cell, D width, H heads.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lob.config import InputError, nearest

FILLS = ("none", "linear", "ladder")
OUTLOOK_TARGETS = 26  # numbers that the outlook's head predicts (lob/training/objective.py)
INPUT_MULTIPLE = 16  # FP8 matrix products need every dimension to be a multiple of 16
CHANNELS = 16  # inputs of a cell, as lob.model.inputs.cell_channels makes them
TOKEN_CHANNELS = 16  # of each cell in what goes to a state's token and comes back from it
# states between a convolution's taps, by block
STEM_DILATIONS, DECODER_DILATIONS = ((1, 2, 4), (1, 2, 4, 8, 1))


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes the network and what it is fed; it travels in every checkpoint."""

    depth: int = 96  # L
    temporal_dim: int = 256  # T
    width: int = 64  # D
    layers: int = 2
    heads: int = 4
    ffn_width: int = 128
    cell_width: int = 0  # C of a convolutional stem and decoder (CellStem); 0: linear ones
    dropout: float = 0.0
    normalization: str = "book"
    fill: str = "linear"  # what stands in for hidden values, and what the head's output is added to
    causal: bool = False
    outlook: bool = (
        False  # a head on the last state's vector (lob/training/objective.py), for training alone
    )

    @property
    def input_width(self) -> int:
        """C: values, mask bits, the fill (if there is one) and the mid's path, padded to a multiple
        of 16.
        """
        channels = self.depth * 2 * (2 if self.fill == "none" else 3) + (
            self.normalization == "book"
        )
        return -(-channels // INPUT_MULTIPLE) * INPUT_MULTIPLE


PRESETS: dict[str, dict[str, Any]] = {
    "tiny_transformer": {"width": 64, "layers": 2, "heads": 4, "ffn_width": 256},
    "medium_transformer": {"width": 768, "layers": 12, "heads": 12, "ffn_width": 3072},
    "deep_narrow_transformer": {"width": 192, "layers": 40, "heads": 8, "ffn_width": 1536},
    "cell_transformer": {
        "width": 384,
        "layers": 4,
        "heads": 6,
        "ffn_width": 1536,
        "cell_width": 64,
        "fill": "ladder",
    },
    "wide_transformer": {"width": 2048, "layers": 12, "heads": 16, "ffn_width": 8192},
}


def encoder_config(model_size: str, **choices: Any) -> EncoderConfig:
    """Return the preset `model_size` with `choices` put in.

    Raises InputError if the preset is unknown or a choice is impossible for it.
    """
    if model_size not in PRESETS:
        raise InputError(
            f"unknown model_size {model_size!r}{nearest(model_size, PRESETS)}; known: "
            f"{', '.join(PRESETS)}"
        )
    config = replace(EncoderConfig(**PRESETS[model_size]), **choices)
    if config.cell_width and config.fill != "ladder":
        raise InputError(
            f"fill = {config.fill!r}: {model_size} corrects the ladder's values, set fill to "
            "'ladder'"
        )
    return config


def rotary_angles(states: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 (T, head_width), in the half-rotation form (Su et al. 2021,
    arXiv:2104.09864).
    """
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


def attend(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, causal: bool, dropout: float
) -> Tensor:
    """Attention of all queries, all keys, all values (B, T, 3D) with rotary positions, (B, T,
    D).
    """
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
        # rows: all queries, all keys, all values
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        attended = self.proj(
            attend(self.qkv(self.norm1(x)), cos, sin, self.heads, self.causal, dropout)
        )
        x = x + F.dropout(attended, self.dropout, self.training)
        hidden = self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return x + F.dropout(hidden, self.dropout, self.training)


class CellBlock(nn.Module):
    """x + conv(gelu(conv(x))) of cells (B, T, L, C), 3 x 3 over state x level; it starts as the
    identity.
    """

    def __init__(self, width: int, dilation: int, causal: bool):
        super().__init__()
        padding = ((2 if causal else 1) * dilation, 1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=padding, dilation=(dilation, 1))
        self.conv2 = nn.Conv2d(width, width, 3, padding=padding, dilation=(dilation, 1))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        states = x.shape[1]
        y = F.gelu(self.conv1(x.permute(0, 3, 1, 2))[:, :, :states], approximate="tanh")
        return x + self.conv2(y)[:, :, :states].permute(0, 2, 3, 1)


class CellStem(nn.Module):
    """Inputs (B, T, L, CHANNELS) -> cells (B, T, L, C) and tokens (B, T, D)."""

    def __init__(self, levels: int, cell_width: int, width: int, causal: bool):
        super().__init__()
        self.mix = nn.Linear(CHANNELS, cell_width)
        self.level = nn.Parameter(torch.zeros(levels, cell_width))
        self.blocks = nn.Sequential(
            *(CellBlock(cell_width, dilation, causal) for dilation in STEM_DILATIONS)
        )
        self.pool = nn.Linear(cell_width, TOKEN_CHANNELS)
        self.token = nn.Linear(levels * TOKEN_CHANNELS, width)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.blocks(self.mix(inputs) + self.level)
        return cells, self.token(self.pool(cells).flatten(2))


class CellDecoder(nn.Module):
    """Inputs, cells and hidden states (B, T, D) -> what is added to the fill, float32 (B, T, L, F):
    zero for prices.

    The ladder's prices stay: those it found are exact, and learned changes of the others made them
    worse under every mask (NOTES.md).
    """

    def __init__(self, levels: int, cell_width: int, width: int, causal: bool):
        super().__init__()
        self.levels = levels
        self.spread = nn.Linear(width, levels * TOKEN_CHANNELS)
        self.join = nn.Linear(cell_width + TOKEN_CHANNELS, cell_width)
        self.blocks = nn.Sequential(
            *(CellBlock(cell_width, dilation, causal) for dilation in DECODER_DILATIONS)
        )
        self.norm = nn.LayerNorm(cell_width)
        self.head = nn.Linear(cell_width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, cells: Tensor, hidden: Tensor) -> Tensor:
        states = self.spread(hidden).unflatten(2, (self.levels, -1))
        cells = cells + self.join(torch.cat([cells, states.to(cells.dtype)], dim=3))
        return F.pad(self.head(self.norm(self.blocks(cells))).float(), (1, 0))


class BookEncoder(nn.Module):
    """Tokens (B, T, C) to hidden states (B, T, D) and, through the head, to predicted values (B, T,
    L, F).
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, config: EncoderConfig, make_layer: Callable[[EncoderConfig], nn.Module] = EncoderLayer
    ):
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
        """Hidden states (B, T, D) of tokens (B, T, C). Unless causal, a state's hidden vector holds
        its future.
        """
        if self.stem is not None:
            _, x = self.stem(tokens)
        else:
            x = self.embed(tokens)
        return self.attend(x)

    def forward(self, tokens: Tensor, base: Tensor) -> Tensor:
        """Predicted values, float32 (B, T, L, F): what head or decoder add to `base` (B, T,
        L, F).
        """
        if self.stem is not None:
            cells, x = self.stem(tokens)
            return base + self.decoder(cells, self.attend(x))
        return base + self.head(self.encode(tokens)).float().view(base.shape)


def count_parameters(config: EncoderConfig) -> int:
    """Parameters of the network."""
    return sum(parameter.numel() for parameter in unbuilt(config).parameters())


@functools.cache
def unbuilt(config: EncoderConfig) -> BookEncoder:
    """The network without memory for its parameters."""
    with torch.device("meta"):
        return BookEncoder(config)


def flops_per_window(config: EncoderConfig) -> float:
    """Model FLOPs of a training step a window: 6 parameters T + 12 layers T^2 D, no recomputation
    counted.

    A parameter of a cell counts once a level.
    """
    states = config.temporal_dim
    cells = (
        "stem.mix",
        "stem.blocks",
        "stem.pool",
        "decoder.join",
        "decoder.blocks",
        "decoder.norm",
        "decoder.head",
    )
    parameters = 0
    for name, parameter in unbuilt(config).named_parameters():
        parameters += parameter.numel() * (config.depth if name.startswith(cells) else 1)
    return 6.0 * parameters * states + 12.0 * config.layers * states * states * config.width
