"""The market as environments: one for gymnasium, many side by side for stable-baselines3.

Both act through `Replay.step` of market.py, so an agent earns the same in either.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.vec_env import VecEnv

from examples.agent.market import TARGETS, Accounts, Market, Replay


def spaces(market: Market) -> tuple[Box, Discrete]:
    """Return what is seen, float32 (P + 1,): inputs and position; and what can be done."""
    low = np.append(market.inputs.min(axis=0), np.float32(-1))
    high = np.append(market.inputs.max(axis=0), np.float32(1))
    return Box(low, high, dtype=np.float32), Discrete(len(TARGETS))


class TradingEnv(gymnasium.Env):
    """One trader. Actions 0, 1, 2: be short, flat, long; the reward is the profit in bps.

    The info of a step holds the parts of the profit: `inventory`, `spread` and `fee`; and `traded`,
    the value that was traded, all in bps of the recording's first mid.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as gymnasium declares it

    def __init__(self, market: Market, episode_steps: int = 128):
        self.replay = Replay(market, 1, episode_steps)
        self.observation_space, self.action_space = spaces(market)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Begin at a random decision."""
        super().reset(seed=seed)
        self.replay.restart(np.zeros(1, dtype=np.int64), self.np_random)
        return self.replay.observe()[0], {}

    def step(self, action: int) -> tuple:
        rewards, terminated, truncated, accounts = self.replay.step(np.array([action]))
        info = {name: float(x[0]) for name, x in zip(Accounts._fields, accounts, strict=True)}
        ends = bool(terminated[0]), bool(truncated[0])
        return self.replay.observe()[0], float(rewards[0]), *ends, info


class TradingVecEnv(VecEnv):
    """Many traders at once, in arrays: 100,000 decisions take some seconds, PPO's work included.

    A trader whose episode is over begins another one. Rewards are profits in bps, times `scale`.
    """

    def __init__(self, market: Market, traders: int, episode_steps: int, scale: float, seed: int):
        self.replay = Replay(market, traders, episode_steps, scale)
        self.rng = np.random.default_rng(seed)
        self.render_mode = None
        super().__init__(traders, *spaces(market))

    def reset(self) -> np.ndarray:
        self.replay.restart(np.arange(self.num_envs), self.rng)
        return self.replay.observe()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple:
        rewards, terminated, truncated, _ = self.replay.step(self.actions)
        seen = self.replay.observe()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        over = np.flatnonzero(terminated | truncated)
        for who in over:
            infos[who] = {
                "terminal_observation": seen[who],
                "TimeLimit.truncated": bool(truncated[who]),
            }
        if len(over):
            self.replay.restart(over, self.rng)
            seen = self.replay.observe()
        return seen, rewards, terminated | truncated, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list:
        return [getattr(self, attr_name)] * len([*self._get_indices(indices)])

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *words: Any, indices: Any = None, **named: Any) -> list:
        raise NotImplementedError("the traders are rows of one array, without methods of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len([*self._get_indices(indices)])
