"""The encoder in plain PyTorch: the mathematics that training, testing and export agree on.

A token stands for one state of the order book. The layers are pre-norm, with rotary positions on
queries and keys and a tanh GELU. Tokens come from a linear layer or from a convolutional stem,
predicted values from a linear head or a convolutional decoder. Both predict a correction of the
*fill*, the first guess of a hidden value (lob/model/inputs.py).

A *cell* is one level of one state. What happens to a resting size shows in its neighbours in time
and price, so the stem compares cells before those of a state become its token, and the decoder
sees the cells beside the encoder's output. Convolutions run over (B, C, T, L) in channels-last
memory, where C is the contiguous axis.

`lob/training/te_layer.py` holds the same layers of Transformer Engine modules. Checkpoints hold
the names of parameters used here.

Axes: B window, T state, L level, F field (0 price, 1 size), C inputs per state or channels per
cell, D width, H heads.
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
from lob.model.normalisation import states_to_known

FILLS = ("none", "linear", "ladder")
OUTLOOK_TARGETS = 26  # numbers that the outlook's head predicts (lob/training/objective.py)
INPUT_MULTIPLE = 16  # FP8 matrix products need every dimension to be a multiple of 16
CHANNELS = 16  # inputs of a cell, as lob.model.inputs.cell_channels makes them, without context
TIMED = ("clock", "shuffled_clock")
CONTEXT = (*TIMED, "size", "tick", "flow")  # as lob/model/context.py makes them
STEM_DILATIONS = (1, 2, 4)  # of each block: states from one tap of a convolution to the next
DECODER_DILATIONS = (1, 2, 4, 8, 1)
MOVES = (1, 8, 64)  # states over which a causal encoder is told how far the mid has moved


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes the network and what it is fed; it travels in every checkpoint."""

    depth: int = 96  # L
    temporal_dim: int = 256  # T
    width: int = 64  # D
    layers: int = 2
    heads: int = 4
    ffn_width: int = 128
    cell_width: int = 0  # C of a convolutional stem and decoder; 0: a linear layer and head
    token_channels: int = 16  # numbers that a cell gives to its state's token and gets back
    dropout: float = 0.0
    normalization: str = "book"
    fill: str = "linear"  # the first guess of hidden values, to which the head's output is added
    causal: bool = False  # attend to earlier states only
    outlook: bool = False  # a second head, for training alone (lob/training/objective.py)
    context: tuple[str, ...] = ()  # more inputs of a cell, names of CONTEXT
    doubt: str = "change"  # the rule of `doubt`, below; other versions had another one

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", tuple(self.context))  # a checkpoint holds a list

    @property
    def reads_times(self) -> bool:
        """Whether windows need the times of their states."""
        return any(name in TIMED for name in self.context)

    @property
    def input_width(self) -> int:
        """C for a linear layer: values, mask bits, fill, the mid's path and zeros as padding."""
        blocks = 2 if self.fill == "none" else 3  # values, mask bits, fill
        paths = len(MOVES) if self.causal else 1
        channels = self.depth * 2 * blocks + paths * (self.normalization == "book")
        return -(-channels // INPUT_MULTIPLE) * INPUT_MULTIPLE


PRESETS: dict[str, dict[str, Any]] = {
    "tiny_transformer": {"width": 64, "layers": 2, "heads": 4, "ffn_width": 256},
    "small_cell_transformer": {
        "width": 64,
        "layers": 2,
        "heads": 4,
        "ffn_width": 128,
        "cell_width": 16,
        "token_channels": 8,
        "fill": "ladder",
    },
    "medium_cell_transformer": {
        "width": 128,
        "layers": 2,
        "heads": 4,
        "ffn_width": 256,
        "cell_width": 32,
        "token_channels": 16,
        "fill": "ladder",
    },
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
    """Return the preset `model_size` with the fields of EncoderConfig in `choices` changed.

    Raises InputError if the preset is unknown or a choice is impossible for it.
    """
    if model_size not in PRESETS:
        raise InputError(
            f"unknown model_size {model_size!r}{nearest(model_size, PRESETS)}; "
            f"known: {', '.join(PRESETS)}"
        )
    config = replace(EncoderConfig(**PRESETS[model_size]), **choices)
    if config.cell_width and config.fill != "ladder":
        raise InputError(
            f"fill = {config.fill!r}: {model_size} corrects the ladder's values, "
            "set fill to 'ladder'"
        )
    if config.context and not (config.cell_width and config.normalization == "book"):
        raise InputError(
            f"context = {list(config.context)} needs a cell transformer and normalization 'book': "
            "set model_size to one, or context to []"
        )
    return config


def rotary_angles(states: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each state's rotation, float32 (T, head_width) each.

    Rotary positions (Su et al. 2021, arXiv:2104.09864), in the form that rotates the first half of
    a head against its second.
    """
    angle = torch.outer(torch.arange(states, dtype=torch.float32), rotary_frequency(head_width))
    angle = torch.cat([angle, angle], dim=1)
    return angle.cos(), angle.sin()


def rotary_frequency(head_width: int) -> Tensor:
    """Return how far a head's pairs of numbers turn from state to state, float32 (head_width/2)."""
    return 10000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last axis of x (B, T, H, D/H) by each state's angles, in float32."""
    y = x.float()
    first, second = y.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (y * cos[:, None, :] + turned * sin[:, None, :]).to(x.dtype)


def attend(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, causal: bool, dropout: float
) -> Tensor:
    """Return attention with rotary positions, (B, T, D).

    qkv: (B, T, 3D), all heads' queries, then all keys, then all values.
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
        self.qkv = nn.Linear(config.width, 3 * config.width)  # queries, then keys, then values
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        attended = attend(self.qkv(self.norm1(x)), cos, sin, self.heads, self.causal, dropout)
        x = x + F.dropout(self.proj(attended), self.dropout, self.training)
        hidden = self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return x + F.dropout(hidden, self.dropout, self.training)


class CellBlock(nn.Module):
    """x + conv(gelu(conv(x))) of cells (B, T, L, C), 3 x 3 over state and level; at first x alone.

    If `causal`, a convolution is padded on both sides and its last outputs are cut off, so that
    none sees a later state.
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


def doubt(inputs: Tensor) -> Tensor:
    """Return how far the fill of each cell may be corrected, between 0 and 1, (B, T, L, 1).

    inputs: those of a stem, (B, T, L, CHANNELS and context). It is e / (e + 1/2), where e is the
    squared error of the fill that the window itself lets one expect: the distance in states to the
    nearest size that is known, times how much sizes change in a state. The less there is to
    correct, the more the noise of a learned correction would outweigh it: a book whose sizes hardly
    change is left as the ladder fills it. Distance and change are taken at the cell's price if
    another state shows a size at that price, and else at its level. If no state shows the level the
    result is 1.
    """
    values = inputs[..., 1].float()
    shown = inputs[..., 3] == 0
    change = inputs[..., 8].float()  # from the size at the last state that shows the price
    last, following = torch.expm1(4.0 * inputs[..., 10:12].float()).unbind(3)  # states to them
    carried = shown & (last > 0)
    at_price = torch.where(carried, change**2, 0.0).sum((1, 2), keepdim=True)
    passed = torch.where(carried, last, 0.0).sum((1, 2), keepdim=True)
    steps = torch.where(last > 0, last, float("inf"))
    steps = torch.minimum(steps, torch.where(following > 0, following, float("inf")))
    both = shown[:, 1:] & shown[:, :-1]
    at_level = torch.where(both, (values[:, 1:] - values[:, :-1]) ** 2, 0.0).sum(
        (1, 2), keepdim=True
    )
    pairs = both.sum((1, 2), keepdim=True)
    level_steps = states_to_known(shown)
    never = level_steps >= shown.shape[1]
    expected = torch.where(
        steps.isfinite(),
        at_price / passed.clamp(min=1) * steps,
        at_level / pairs.clamp(min=1) * level_steps,
    )
    return torch.where(never, 1.0, expected / (expected + 0.5)).unsqueeze(3)


class CellStem(nn.Module):
    """Inputs (B, T, L, CHANNELS and context) -> cells (B, T, L, C) and tokens (B, T, D)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width = config.cell_width
        self.mix = nn.Linear(CHANNELS + len(config.context), width)
        self.level = nn.Parameter(torch.zeros(config.depth, width))
        self.blocks = nn.Sequential(
            *(CellBlock(width, dilation, config.causal) for dilation in STEM_DILATIONS)
        )
        self.pool = nn.Linear(width, config.token_channels)
        self.token = nn.Linear(config.depth * config.token_channels, config.width)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.blocks(self.mix(inputs) + self.level)
        return cells, self.token(self.pool(cells).flatten(2))


class CellDecoder(nn.Module):
    """Inputs, cells and hidden states (B, T, D) -> what is added to the fill, float32 (B, T, L, F).

    It is a correction times the inputs' `doubt`. Zero is added to prices. Those that the ladder
    found (lob/model/ladder.py) are exact, and learned changes of the others made them worse under
    every mask (NOTES.md).
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width = config.cell_width
        self.levels = config.depth
        self.spread = nn.Linear(config.width, config.depth * config.token_channels)
        self.join = nn.Linear(width + config.token_channels, width)
        self.blocks = nn.Sequential(
            *(CellBlock(width, dilation, config.causal) for dilation in DECODER_DILATIONS)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, cells: Tensor, hidden: Tensor) -> Tensor:
        states = self.spread(hidden).unflatten(2, (self.levels, -1))
        cells = cells + self.join(torch.cat([cells, states.to(cells.dtype)], dim=3))
        correction = F.pad(self.head(self.norm(self.blocks(cells))).float(), (1, 0))
        return doubt(inputs) * correction


class BookEncoder(nn.Module):
    """Tokens -> hidden states (B, T, D) and, by head or decoder, predicted values (B, T, L, F).

    Tokens are (B, T, input_width), or with a stem (B, T, L, CHANNELS and context).
    """

    # Registered as buffers, which mypy can't see.
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
            self.stem, self.decoder = CellStem(config), CellDecoder(config)
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
        """Draw weights as GPT-2 does: N(0, 0.02), residual projections divided by sqrt(2 layers).

        If there is a fill the head starts at zero, so that training starts at the fill's error.
        Stem and decoder keep torch's own initialisation.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith(("stem", "decoder")):
                scale = math.sqrt(2 * self.config.layers) if name.endswith(("proj", "fc2")) else 1.0
                nn.init.normal_(module.weight, std=0.02 / scale)
                nn.init.zeros_(module.bias)
        if self.head is not None and self.config.fill != "none":
            nn.init.zeros_(self.head.weight)

    def attend(self, x: Tensor) -> Tensor:
        """Return hidden states of the states' vectors, (B, T, D) each: the layers and a norm."""
        states = x.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:states], self.sin[:states])
        return self.norm(x)

    def encode(self, tokens: Tensor) -> Tensor:
        """Return the hidden states (B, T, D) of tokens; unless causal, each contains its future."""
        if self.stem is not None:
            _, x = self.stem(tokens)
        else:
            x = self.embed(tokens)
        return self.attend(x)

    def forward(self, tokens: Tensor, base: Tensor) -> Tensor:
        """Return predicted values, float32 (B, T, L, F): `base`, the fill, and its correction."""
        if self.stem is not None:
            cells, x = self.stem(tokens)
            return base + self.decoder(tokens, cells, self.attend(x))
        return base + self.head(self.encode(tokens)).float().view(base.shape)


def count_parameters(config: EncoderConfig) -> int:
    """Return the number of parameters of an encoder."""
    return sum(parameter.numel() for parameter in unbuilt(config).parameters())


@functools.cache
def unbuilt(config: EncoderConfig) -> BookEncoder:
    """Return an encoder without memory for its parameters, to read names and shapes from."""
    with torch.device("meta"):
        return BookEncoder(config)


def flops_per_window(config: EncoderConfig) -> float:
    """Return the FLOPs of training on one window: 6 parameters T + 12 layers T^2 D.

    This counts forward and backward pass and no recomputation. A parameter that is applied to each
    cell counts once for each level.
    """
    states = config.temporal_dim
    of_stem = ("stem.mix", "stem.blocks", "stem.pool")
    of_decoder = ("decoder.join", "decoder.blocks", "decoder.norm", "decoder.head")
    parameters = 0
    for name, parameter in unbuilt(config).named_parameters():
        is_of_cells = name.startswith(of_stem + of_decoder)
        parameters += parameter.numel() * (config.depth if is_of_cells else 1)
    return 6.0 * parameters * states + 12.0 * config.layers * states * states * config.width
