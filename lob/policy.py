"""The networks that are exported: a window's embedding, its reconstruction, and a policy on top of the encoder.

Axes: B window, T state, L level, D width, S features of the agent's own state. All but the hidden layers of an
`ActorCritic` is fixed by the checkpoint. Windows are price_ticks int (B, T, L) and sizes float (B, T, L) and end now.
"""

import copy
import itertools

import torch
from torch import Tensor, nn

from lob.encoder import BookEncoder, EncoderConfig, build_inputs
from lob.normalisation import invert

ACTIONS = ("sell", "hold", "buy")


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


class ActorCritic(nn.Module):
    """Windows and the agent's own state -> logits of sell, hold and buy, (B, 3), and value, (B,).

    The state passes a head of its own, beside the embedding; policy and value heads take both. Without `trainable`
    the encoder's parameters want no gradient and its dropout is off in training mode too.
    """

    def __init__(self, encoder: BookEncoder, config: dict):
        super().__init__()
        torch.manual_seed(config["seed"])
        self.trainable: bool = config["trainable"]
        self.state_features: int = config["state_features"]
        self.window = WindowEncoder(encoder, config["pooling"]).requires_grad_(self.trainable)
        if not self.trainable:
            for layer in encoder.layers:
                setattr(layer, "dropout", 0.0)  # noqa: B010 - of any layer, TransformerLayer or plain
        widths = [self.state_features, *config["state_widths"]]
        joint = encoder.config.width + widths[-1]
        self.state_head = dense(widths).append(nn.Tanh())
        self.policy_head = dense([joint, *config["policy_widths"], len(ACTIONS)], gain=0.01)  # near uniform at first
        self.value_head = dense([joint, *config["value_widths"], 1], gain=1.0)

    def forward(self, price_ticks: Tensor, sizes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.embed(price_ticks, sizes), state)

    @torch.jit.export
    def embed(self, price_ticks: Tensor, sizes: Tensor) -> Tensor:
        embedding = self.window(price_ticks, sizes)
        return embedding if self.trainable else embedding.detach()

    @torch.jit.export
    def heads(self, embedding: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """For embeddings that were written once: what is left to compute of a policy with a frozen encoder."""
        both = torch.cat([embedding, self.state_head(state)], dim=1)
        return self.policy_head(both), self.value_head(both).squeeze(1)


def dense(widths: list[int], gain: float = 2**0.5) -> nn.Sequential:
    """Linear layers with tanh between them and PPO's orthogonal weights, of `gain` in the last layer."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=2):
        linear = nn.Linear(before, after)
        nn.init.orthogonal_(linear.weight, gain if number == len(widths) else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def in_bf16(encoder: BookEncoder) -> BookEncoder:
    """Return a copy whose layers multiply in bf16."""
    encoder = copy.deepcopy(encoder)
    for module in encoder.layers.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16).__class__ = Bf16Linear
    return encoder
