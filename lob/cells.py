"""Convolutions over state x level around the encoder: from cells to one token a state, and back to cells.

Axes: B window, T state, L level, C channels of a cell, D the encoder's width. What happens to a resting size is told
by its neighbours in time and price, so cells are compared before they become a token, and the decoder has them beside
the encoder's answer. Convolutions run over (B, C, T, L) in channels-last memory, where C is the contiguous axis.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 16  # inputs of a cell, as lob.encoder.cell_channels makes them
TOKEN_CHANNELS = 16  # of each cell in what goes to a state's token and comes back from it
STEM_DILATIONS, DECODER_DILATIONS = (1, 2, 4), (1, 2, 4, 8, 1)  # states between a convolution's taps, by block


class CellBlock(nn.Module):
    """x + conv(gelu(conv(x))) of cells (B, T, L, C), 3 x 3; it starts as the identity."""

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
        self.blocks = nn.Sequential(*(CellBlock(cell_width, dilation, causal) for dilation in STEM_DILATIONS))
        self.pool = nn.Linear(cell_width, TOKEN_CHANNELS)
        self.token = nn.Linear(levels * TOKEN_CHANNELS, width)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.blocks(self.mix(inputs) + self.level)
        return cells, self.token(self.pool(cells).flatten(2))


class CellDecoder(nn.Module):
    """Inputs, cells and hidden states (B, T, D) -> what is added to the fill, float32 (B, T, L, F): zero for prices.

    The ladder's prices stay: those it found are exact, and learned changes of the others made them worse under every
    mask (NOTES.md).
    """

    def __init__(self, levels: int, cell_width: int, width: int, causal: bool):
        super().__init__()
        self.levels = levels
        self.spread = nn.Linear(width, levels * TOKEN_CHANNELS)
        self.join = nn.Linear(cell_width + TOKEN_CHANNELS, cell_width)
        self.blocks = nn.Sequential(*(CellBlock(cell_width, dilation, causal) for dilation in DECODER_DILATIONS))
        self.norm = nn.LayerNorm(cell_width)
        self.head = nn.Linear(cell_width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, cells: Tensor, hidden: Tensor) -> Tensor:
        states = self.spread(hidden).unflatten(2, (self.levels, -1))
        cells = cells + self.join(torch.cat([cells, states.to(cells.dtype)], dim=3))
        return F.pad(self.head(self.norm(self.blocks(cells))).float(), (1, 0))
