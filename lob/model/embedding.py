"""What the encoder makes of windows: an embedding of each, or a reconstruction of its values.

Axes: B window, T state, L level, D width. Windows are price_ticks int (B, T, L) and sizes float
(B, T, L); in use, the last state of a window is the present one.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lob.book.states import Book
from lob.model.encoder import BookEncoder, EncoderConfig
from lob.model.inputs import build_inputs
from lob.model.normalisation import invert
from lob.model.scale import measure_scale
from lob.model.window_store import WindowStore


class Bf16Linear(nn.Linear):
    """A linear layer that multiplies in bf16, whatever the type of its input.

    Adding its output to a float32 tensor gives float32, so the sum over many layers keeps its
    digits; in bf16 it would lose what a single layer adds.
    """

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Tokens(nn.Module):
    """Windows with nothing hidden -> the encoder's tokens; a module, so that it can be traced."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config

    def forward(self, price_ticks: Tensor, sizes: Tensor, times_ns: Tensor | None = None) -> Tensor:
        return build_inputs(price_ticks, sizes, None, self.config, times_ns)[0]


class WindowEncoder(nn.Module):
    """Windows -> an embedding of each, float32 (B, D).

    `pooling` says what becomes of the encoder's outputs at the T states: 'last' takes the last one,
    'mean' their mean, and 'all' returns all of them, (B, T, D). Unless the encoder is causal, the
    outputs at earlier states contain their future.
    """

    def __init__(self, encoder: BookEncoder, pooling: str):
        super().__init__()
        self.tokens, self.encoder, self.pooling = Tokens(encoder.config), encoder, pooling

    def forward(self, price_ticks: Tensor, sizes: Tensor) -> Tensor:
        return self.encode(self.tokens(price_ticks, sizes))

    def encode(self, tokens: Tensor) -> Tensor:
        hidden = self.encoder.encode(tokens.to(self.encoder.norm.weight.dtype)).float()
        if self.pooling == "last":
            return hidden[:, -1]
        return hidden.mean(dim=1) if self.pooling == "mean" else hidden


class TimedWindowEncoder(WindowEncoder):
    """The same for an encoder that reads the times of the states, times_ns int64 (B, T)."""

    def forward(self, price_ticks: Tensor, sizes: Tensor, times_ns: Tensor) -> Tensor:  # type: ignore[override]
        return self.encode(self.tokens(price_ticks, sizes, times_ns))


def window_encoder(encoder: BookEncoder, pooling: str) -> WindowEncoder:
    """Return the module around an encoder; it takes times if the encoder reads them."""
    kind = TimedWindowEncoder if encoder.config.reads_times else WindowEncoder
    return kind(encoder, pooling)


@torch.inference_mode()
def embed_windows(
    module: WindowEncoder,
    book: Book,
    ends: Sequence[range],
    batch_size: int | None,
    scale: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the embeddings of a book's windows in batches, float32 (B, D) each.

    ends: end rows of the windows, as `lob.windows.splits.strided_ends` returns them; batch_size
    None: 16 on a CPU, so that they fit into its cache, and 256 on a GPU; scale: append the scale
    block (lob/model/scale.py).
    """
    states = module.encoder.config.temporal_dim
    device = module.encoder.norm.weight.device
    size = batch_size or (256 if device.type == "cuda" else 16)
    starts = (
        np.asarray(some[first : first + size]) - states
        for some in ends
        for first in range(0, len(some), size)
    )
    for windows in WindowStore([book], states, device).batches(starts):
        vectors = module(*windows[: 3 if module.encoder.config.reads_times else 2])
        if scale:
            vectors = torch.cat([vectors, measure_scale(*windows, book.tick_size)], dim=1)
        yield vectors.cpu().numpy()


class Reconstruction(nn.Module):
    """Windows and a mask -> the predicted price in ticks and size of every entry, (B, T, L) each.

    mask: bool (B, T, L, 2), True where price (0) or size (1) is hidden. The prices predicted for a
    window count from its anchor (lob/model/normalisation.py). If all its prices are hidden there
    is no anchor to tell, and they count from zero.
    """

    def __init__(self, encoder: BookEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, price_ticks: Tensor, sizes: Tensor, mask: Tensor, times_ns: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        config = self.encoder.config
        tokens, base, _, parameters = build_inputs(price_ticks, sizes, mask, config, times_ns)
        shown = (~mask[..., 0]).flatten(1).any(dim=1).view(-1, 1, 1)
        # Without a visible price the anchor is a hidden one, which must not reach the output.
        parameters["anchor_ticks"] = parameters["anchor_ticks"] * shown
        predicted = self.encoder(tokens, base)
        return invert(predicted, parameters, self.encoder.config.normalization)


def in_bf16(encoder: BookEncoder) -> BookEncoder:
    """Return a copy of an encoder whose transformer layers multiply in bf16."""
    encoder = copy.deepcopy(encoder)
    for module in encoder.layers.modules():
        if isinstance(module, nn.Linear):
            # A change of class keeps the parameters and their names.
            module.to(torch.bfloat16).__class__ = Bf16Linear
    return encoder
