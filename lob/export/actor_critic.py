"""A policy and a value on top of the encoder."""

import itertools

import torch
from torch import Tensor, nn

from lob.model.embedding import WindowEncoder
from lob.model.encoder import BookEncoder

ACTIONS = ("sell", "hold", "buy")


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
