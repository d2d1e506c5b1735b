"""Who trades: PPO on given inputs or on a network of its own, and rules that learn nothing.

A policy becomes a table, int64 (3, n): the position that it wants at each decision if it holds -1,
0 or 1. So a whole recording is played without asking a network decision by decision.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Space
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from examples.agent.environments import TradingVecEnv
from examples.agent.market import TARGETS, Market, play
from lob.book.states import Book
from lob.model.embedding import WindowEncoder
from lob.model.encoder import BookEncoder, EncoderConfig
from lob.windows.splits import gather_windows

# The same for every agent: a policy and a value of two layers of 64, as is usual.
PPO_SETTINGS: dict[str, Any] = {
    "n_steps": 16,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": 1e-3,
    "gamma": 0.9,  # looks about ten decisions ahead
    "ent_coef": 0.01,
}
TRADERS = 32
EPISODE_STEPS = 128
THRESHOLDS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)


class WindowReader(BaseFeaturesExtractor):
    """An encoder with random weights as a part of the policy: numbers of decisions -> vectors.

    Observations are float32 (B, 2): the number of a decision, and the position. The features are
    the vector of the decision's window and the position, float32 (B, D + 1).
    """

    def __init__(
        self, observation_space: Space, encoder: EncoderConfig, book: Book, ends: np.ndarray
    ):
        super().__init__(observation_space, encoder.width + 1)
        self.states, self.book, self.ends = encoder.temporal_dim, book, ends
        self.module = WindowEncoder(BookEncoder(encoder), "last")

    def encode(self, book: Book, ends: np.ndarray) -> Tensor:
        price_ticks, sizes = gather_windows(book, ends, self.states)
        device = self.module.encoder.norm.weight.device
        return self.module(*(torch.from_numpy(x).to(device) for x in (price_ticks, sizes)))

    def forward(self, observations: Tensor) -> Tensor:
        numbers = observations[:, 0].long().cpu().numpy()
        return torch.cat([self.encode(self.book, self.ends[numbers]), observations[:, 1:]], dim=1)


class Watch(BaseCallback):
    """Keeps what `look` says of the policy before training and after some steps."""

    def __init__(self, steps: Sequence[int], look: Callable[[Any], dict]):
        super().__init__()
        self.steps, self.look = steps, look
        self.seen: dict[int, dict] = {}

    def _on_rollout_start(self) -> None:
        if self.num_timesteps in self.steps:
            self.seen[self.num_timesteps] = self.look(self.model.policy)

    def _on_step(self) -> bool:
        return True


def rollout_steps() -> int:
    return TRADERS * PPO_SETTINGS["n_steps"]


def list_checkpoints(steps: int) -> list[int]:
    """Return after how many steps agents are judged: 0, a rollout, and each double of it."""
    found = [0, rollout_steps()]
    while 2 * found[-1] <= steps:
        found.append(2 * found[-1])
    return found


def train(
    market: Market,
    seed: int,
    steps: int,
    look: Callable[[Any], dict],
    reader: dict | None = None,
    device: str = "cpu",
) -> dict[int, dict]:
    """Train PPO in a market, with rewards scaled so that the mid moves by about 1 a decision."""
    scale = 1 / max(market.move_bps(), 1e-9)
    traders = TradingVecEnv(market, TRADERS, EPISODE_STEPS, scale, seed)
    return learn(traders, seed, steps, look, reader, device)


def learn(
    traders: VecEnv,
    seed: int,
    steps: int,
    look: Callable[[Any], dict],
    reader: dict | None = None,
    device: str = "cpu",
) -> dict[int, dict]:
    """Train PPO; return what `look` said of its policy after each of `list_checkpoints`.

    traders: TRADERS environments. reader: arguments of WindowReader, for an encoder that is trained
    with the policy; None: the inputs are used as they are.
    """
    more: dict = {}
    if reader:
        more = {"features_extractor_class": WindowReader, "features_extractor_kwargs": reader}
    agent = PPO("MlpPolicy", traders, seed=seed, device=device, policy_kwargs=more, **PPO_SETTINGS)
    if isinstance(agent.policy.features_extractor, WindowReader):
        # PPO has given it orthogonal weights, but a transformer starts with its own ones.
        agent.policy.features_extractor.module.encoder.initialise()
    checkpoints = list_checkpoints(steps)
    watch = Watch(checkpoints, look)
    agent.learn(checkpoints[-1], callback=watch)
    return watch.seen | {checkpoints[-1]: look(agent.policy)}


def table_of(policy: ActorCriticPolicy, inputs: np.ndarray | Tensor) -> np.ndarray:
    """Return the table of a trained policy, which takes the action that it thinks best.

    inputs: float32 (n, P), or the vectors of its own encoder.
    """
    return TARGETS[best_actions(policy, inputs, TARGETS[:, None])]


@torch.no_grad()
def best_actions(
    policy: ActorCriticPolicy, inputs: np.ndarray | Tensor, own: np.ndarray
) -> np.ndarray:
    """Return the action that a policy thinks best, int64 (S, n): of n inputs by S own states.

    own: (S, K), what an agent sees of itself in each of them, beside the inputs.
    """
    features = torch.as_tensor(inputs, device=policy.device)
    rows = []
    for state in torch.as_tensor(own, dtype=features.dtype, device=policy.device):
        seen = torch.cat([features, state.expand(len(features), -1)], dim=1)
        hidden = policy.mlp_extractor.forward_actor(seen)
        rows.append(policy.action_net(hidden).argmax(dim=1).cpu().numpy())
    return np.stack(rows)


@torch.no_grad()
def encode_all(policy: ActorCriticPolicy, book: Book, ends: np.ndarray) -> Tensor:
    """Return the vectors of the policy's own encoder, float32 (n, D)."""
    reader: Any = policy.features_extractor
    parts = [reader.encode(book, ends[i : i + 64]) for i in range(0, len(ends), 64)]
    return torch.cat(parts)


def hold(market: Market) -> np.ndarray:
    """Never trade."""
    return np.zeros((3, len(market.mid)), dtype=np.int64)


def at_random(market: Market, seed: int) -> np.ndarray:
    """Want any position by chance, whatever is held."""
    chosen = np.random.default_rng(seed).choice(TARGETS, len(market.mid))
    return np.broadcast_to(chosen, (3, len(chosen)))


def follow_imbalance(market: Market, threshold: float) -> np.ndarray:
    """Be long if the best bid is much larger than the best ask, short if smaller; else stay."""
    wanted = np.where(
        market.imbalance > threshold, 1, np.where(market.imbalance < -threshold, -1, 0)
    )
    return np.where(wanted == 0, TARGETS[:, None], wanted)


def fit_threshold(market: Market) -> float:
    """Return the imbalance rule's threshold that earns most on this market."""
    return max(
        THRESHOLDS,
        key=lambda threshold: play(market, follow_imbalance(market, threshold)).profit.sum(),
    )
