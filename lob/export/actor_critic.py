"""A policy and a value on top of the encoder."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lob.model.embedding import WindowEncoder
from lob.model.encoder import BookEncoder

ACTIONS = ("sell", "hold", "buy")


class ActorCritic(nn.Module):
    """Windows and the agent's own state -> logits of sell, hold and buy, (B, 3), and value, (B,).

    price_ticks: int64 (B, T, L); sizes: float32 (B, T, L); state: float32 (B, S). The state goes
    through a head of its own. The policy head and the value head take its output together with the
    embedding. If not `trainable`, the encoder's parameters need no gradient, and its dropout stays
    off in training mode too.
    """

    def __init__(
        self,
        encoder: BookEncoder,
        pooling: str,
        *,
        trainable: bool,
        state_features: int,
        state_widths: Sequence[int],
        policy_widths: Sequence[int],
        value_widths: Sequence[int],
        seed: int,
    ):
        super().__init__()
        self.trainable: bool = trainable
        self.state_features: int = state_features
        self.window = WindowEncoder(encoder, pooling).requires_grad_(trainable)
        if not trainable:
            for layer in encoder.layers:
                setattr(layer, "dropout", 0.0)  # noqa: B010 - no common class that has it, for mypy
        widths = [state_features, *state_widths]
        joint = encoder.config.width + widths[-1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.state_head = dense(widths).append(nn.Tanh())
            # A small gain makes the first policy nearly uniform.
            self.policy_head = dense([joint, *policy_widths, len(ACTIONS)], gain=0.01)
            self.value_head = dense([joint, *value_widths, 1], gain=1.0)

    def forward(self, price_ticks: Tensor, sizes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.embed(price_ticks, sizes), state)

    @torch.jit.export
    def embed(self, price_ticks: Tensor, sizes: Tensor) -> Tensor:
        embedding = self.window(price_ticks, sizes)
        return embedding if self.trainable else embedding.detach()

    @torch.jit.export
    def heads(self, embedding: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and value for embeddings that were computed before, (B, D)."""
        both = torch.cat([embedding, self.state_head(state)], dim=1)
        return self.policy_head(both), self.value_head(both).squeeze(1)


def dense(widths: Sequence[int], gain: float = 2**0.5) -> nn.Sequential:
    """Return linear layers of these widths with tanh between them.

    The first weights are orthogonal, as is usual in PPO. gain: of the last layer.
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=2):
        linear = nn.Linear(before, after)
        is_last = number == len(widths)
        nn.init.orthogonal_(linear.weight, gain if is_last else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])
