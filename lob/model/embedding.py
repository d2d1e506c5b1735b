"""The networks that are exported: a window's embedding, its reconstruction, and a policy on top of the encoder.

Axes: B window, T state, L level, D width, S features of the agent's own state. All but the hidden layers of an
`ActorCritic` is fixed by the checkpoint. Windows are price_ticks int (B, T, L) and sizes float (B, T, L) and end now.
"""

import copy

import torch
from torch import Tensor, nn

from lob.model.encoder import BookEncoder, EncoderConfig
from lob.model.inputs import build_inputs
from lob.model.normalisation import invert


class Bf16Linear(nn.Linear):
    """A product in bf16 that is added to float32: the sum over many layers would lose what single ones keep."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Tokens(nn.Module):
    """What the encoder is fed for windows with nothing hidden: the normalisation inside a graph."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config

    def forward(self, price_ticks: Tensor, sizes: Tensor) -> Tensor:
        return build_inputs(price_ticks, sizes, None, self.config)[0]


class WindowEncoder(nn.Module):
    """Windows that end now -> one embedding each, float32; with pooling 'all' one of every state, (B, T, D).

    Otherwise it is taken at the window's end alone: in a bidirectional encoder those of earlier states hold their
    future.
    """

    def __init__(self, encoder: BookEncoder, pooling: str):
        super().__init__()
        self.tokens, self.encoder, self.pooling = Tokens(encoder.config), encoder, pooling

    def forward(self, price_ticks: Tensor, sizes: Tensor) -> Tensor:
        hidden = self.encoder.encode(self.tokens(price_ticks, sizes).to(self.encoder.norm.weight.dtype)).float()
        if self.pooling == "last":
            return hidden[:, -1]
        return hidden.mean(dim=1) if self.pooling == "mean" else hidden


class Reconstruction(nn.Module):
    """Windows and a mask -> the predicted price in ticks and size of every entry.

    A window that shows no price has none to count from: its prices are ticks from zero.
    """

    def __init__(self, encoder: BookEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, price_ticks: Tensor, sizes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens, base, _, parameters = build_inputs(price_ticks, sizes, mask, self.encoder.config)
        shown = (~mask[..., 0]).flatten(1).any(dim=1).view(-1, 1, 1)
        parameters["anchor_ticks"] = parameters["anchor_ticks"] * shown  # else a hidden price's
        return invert(self.encoder(tokens, base), parameters, self.encoder.config.normalization)


def in_bf16(encoder: BookEncoder) -> BookEncoder:
    """Return a copy whose layers multiply in bf16."""
    encoder = copy.deepcopy(encoder)
    for module in encoder.layers.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16).__class__ = Bf16Linear
    return encoder
