"""Train PPO agents on recorded book states: on a frozen pre-trained encoder, and from scratch.

    pip install -r examples/requirements.txt
    python examples/ppo_agent.py                     the best checkpoint of the newest run, 3 seeds
    python examples/ppo_agent.py --seeds=1 --model_path=sample

Replays a recording of `data_dir/book_states/`, cut in time as for the training of the checkpoint:
agents learn on windows of the training period and are judged on windows of the test period. No
state is in both. The results of all policies over the same test episodes are printed, and written
as `ppo_agent.json` and `ppo_agent.md` into the folder of the checkpoint's run. Nothing is chosen on
the test period: the agent is judged as it is after its last training step.

The market of an episode, in states t of the recording:

- Every `decision_stride` states the agent makes a decision. It sees the embedding (a vector) of the
  window that ends with state t, its position, and the share of the episode that is left. It sells
  one unit (0), holds (1) or buys one unit (2), as far as `position_limit` allows.
- A buy is filled at the best ask of state t + `latency_states`, a sale at its best bid. Both pay a
  fee of `fee_bps` of the price.
- The reward is the change of cash + position x mid until the next decision, in bps of
  `position_limit` x mid at the first state of the episode. At the last state an open position is
  closed at the best price, with its fee. So the rewards sum to the cash that is left.
- Each order is filled in full at the best price and doesn't change the book; none waits in a queue.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/
    "runs_dir": "runs",  # str: folder of the training runs
    "model_path": None,  # str | None: checkpoint, run or pretrained weights; None: the newest run
    "split_ratios": None,  # list[float | str] | None: how this recording is split, as for training;
    #   None: by the checkpoint's calendar
    "pair": None,  # str | None: recording to replay; None: the first under book_states/
    "split": "test",  # test | validation: period that judges (validation chose the checkpoint)
    "variants": ["frozen", "scratch"],  # list[frozen | scratch]: pre-trained embeddings,
    #   or an encoder that learns from rewards alone
    "seeds": 3,  # int >= 1: trainings of each variant, and runs of the random policy
    "decision_stride": 32,  # int >= 1: states from one decision to the next
    "latency_states": 1,  # int >= 0: states from a decision to its fill, below decision_stride
    "episode_steps": 64,  # int >= 1: decisions of an episode
    "fee_bps": 1.0,  # float: fee of a fill; spot takers pay more, large futures takers about this
    "position_limit": 1,  # int >= 1: units, long or short
    "imbalance_thresholds": [0.25, 0.5, 0.75, 0.95],  # list[float]: of the imbalance rule;
    #   the best one on training episodes is taken
    "train_steps": 4096,  # int >= 1: decisions of a training, rounded up to whole rollouts
    "environments": 8,  # int >= 1: episodes played side by side
    "rollout_steps": 64,  # int >= 1: decisions of each episode before an update
    "batch_size": 128,  # int >= 2: decisions of a gradient step; their advantages are standardised
    "update_epochs": 4,  # int >= 1: passes over a rollout
    "learning_rate": 1e-3,  # > 0 and < inf: of Adam
    "gamma": 0.99,  # >= 0 and <= 1: discount of a reward one decision later
}

import sys
from pathlib import Path

# The repository is not installed as a package, so `lob` is found by its path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lob.config import InputError, check_rules, counted, fail, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import gymnasium
    from gymnasium.spaces import Box, Dict, Discrete
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    remedy = "pip install -c constraints.txt -r examples/requirements.txt"
    fail(__file__, InputError(f"the agents need the package {error.name}: {remedy}"))

from lob.book.states import Book, open_book
from lob.model.checkpoint import find_checkpoint, load_model, run_folder
from lob.model.encoder import BookEncoder, EncoderConfig
from lob.model.inputs import build_inputs
from lob.results import describe_environment
from lob.storage import find_pairs, new_file
from lob.windows.splits import (
    SPLITS,
    calendar_cuts,
    gather_windows,
    split_of_windows,
    split_rows,
    window_ends,
)

HOLD = 1  # 0 sells, 2 buys
ACCOUNTS = ("net_bps", "gross_bps", "spread_bps", "fee_bps", "trades")  # net: gross - spread - fee
LIMITS = (
    "Policies: hold never trades; imbalance x buys (sells) if the imbalance of the best sizes is",
    "above x (below -x); random acts by chance; PPO frozen learns on the pre-trained encoder's",
    "embeddings; PPO scratch trains the same network from random weights.",
    "Results are in bps of the value of the position limit, summed over the test episodes.",
    "gross: before fees and spread; net: after both; spread: distance of the fills from the mid at",
    "the decision, including the moves during latency; +-: standard deviation over seeds.",
    "That deviation is not the uncertainty of the market: all policies met the same short period",
    "of one recording.",
    "Not shown: queues, the effect of an order on the book, limit orders, other days, other fees,",
    "longer trainings.",
)
Policy = Callable[[dict[str, np.ndarray], dict[str, Any]], int]


@dataclass(frozen=True)
class Replay:
    """What an environment needs of a book: one entry for each decision, of all periods.

    ends: int64 (n,), end rows of the windows; touch_ticks: int64 (n, 2), best bid and ask at the
    decision; fill_ticks: int64 (n, 2), best bid and ask that its order meets; imbalance: float64
    (n,), (bid size - ask size) / (their sum) at the best prices; episodes: for each period int64
    (k, 2), the first and the last entry of each episode. At the last one the position is closed and
    nothing is decided.
    """

    ends: np.ndarray
    touch_ticks: np.ndarray
    fill_ticks: np.ndarray
    imbalance: np.ndarray
    episodes: dict[str, np.ndarray]


def make_replay(book: Book, temporal_dim: int, cuts_ns: np.ndarray, config: dict) -> Replay:
    """Place decisions and episodes in the training period and in the period that judges.

    Episodes of training overlap, those of the other period don't. All windows of an episode lie in
    one segment and one period. Raises InputError if a period has no room for an episode.
    """
    every_end = window_ends(book.segment_starts, book.rows, temporal_dim)
    rows_of_splits = split_rows(book.timestamps, cuts_ns, temporal_dim)
    split = split_of_windows(every_end, temporal_dim, rows_of_splits)
    stride, steps = config["decision_stride"], config["episode_steps"]
    ends: list[np.ndarray] = []
    decisions = 0  # of all runs of consecutive windows so far
    episodes: dict[str, np.ndarray] = {}
    for period, apart in (("train", 1), (config["split"], steps)):
        mine = every_end[split == SPLITS.index(period)]
        breaks = np.flatnonzero(np.diff(mine) != 1) + 1
        found = [np.empty((0, 2), dtype=np.int64)]
        for unbroken in np.split(mine, breaks):
            run_ends = unbroken[::stride]
            last_of_run = decisions + len(run_ends) - 1
            first = np.arange(decisions, last_of_run, apart)
            last = np.minimum(first + steps, last_of_run)
            found.append(np.stack([first, last], axis=1))
            ends.append(run_ends)
            decisions += len(run_ends)
        episodes[period] = np.concatenate(found)
        if len(episodes[period]) == 0:
            raise InputError(
                f"{book.pair} has no two decisions in the {period} period of this checkpoint: "
                f"set --pair, --split_ratios, or a --decision_stride below {stride}"
            )
    if decisions > 1 << 24:  # the number of a decision must be exact in float32
        raise InputError(f"decision_stride = {stride} gives {decisions:,} decisions: raise it")
    rows = np.concatenate(ends)
    best_bid, best_ask = book.depth // 2 - 1, book.depth // 2
    seen = rows - 1
    met = np.minimum(seen + config["latency_states"], book.rows - 1)
    touch_ticks = book.price_ticks[seen, best_bid : best_ask + 1].astype(np.int64)
    fill_ticks = book.price_ticks[met, best_bid : best_ask + 1].astype(np.int64)
    bid_size = book.sizes[seen, best_bid].astype(np.float64)
    ask_size = book.sizes[seen, best_ask].astype(np.float64)
    imbalance = (bid_size - ask_size) / (bid_size + ask_size)
    return Replay(rows, touch_ticks, fill_ticks, imbalance, episodes)


class BookReplay(gymnasium.Env):
    """The market of the module's docstring over the episodes of one period.

    Observations: `window`, float32, is an embedding (D,) if `source` holds embeddings; else the
    number of the decision (1,), by which a network that learns to encode finds its window.
    `account`, float32 (2,), is position / limit, and the share of the episode that is left. Nothing
    else that the agent has done affects its later rewards.
    """

    def __init__(
        self,
        replay: Replay,
        period: str,
        config: dict,
        source: np.ndarray | EncoderConfig | None = None,
    ):
        self.replay, self.episodes = replay, replay.episodes[period]
        self.limit, self.fee_bps = config["position_limit"], config["fee_bps"]
        numbers = np.arange(len(replay.ends), dtype=np.float32)[:, None]
        self.windows = source if isinstance(source, np.ndarray) else numbers
        self.mid = replay.touch_ticks.sum(axis=1)  # in half ticks, to stay whole
        window = Box(self.windows.min(), self.windows.max(), self.windows.shape[1:], np.float32)
        account = Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32))
        self.observation_space = Dict({"window": window, "account": account})
        self.action_space = Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begin the episode `options["episode"]`, or a random one."""
        super().reset(seed=seed)
        number = (options or {}).get("episode")
        if number is None:
            number = int(self.np_random.integers(len(self.episodes)))
        self.first, self.last = map(int, self.episodes[number])
        self.now, self.position = self.first, 0
        self.bps = 1e4 / float(self.limit * self.mid[self.first])  # half a tick of one unit in bps
        return self.observe(), self.describe()

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        here = self.now
        position = min(max(self.position + int(action) - HOLD, -self.limit), self.limit)
        orders = [(position - self.position, self.replay.fill_ticks[here], self.mid[here])]
        self.now, self.position = here + 1, position
        done = self.now == self.last
        if done:  # known from the start, so that closing has no latency
            orders.append((-position, self.replay.touch_ticks[self.now], self.mid[self.now]))
        gross = position * float(self.mid[self.now] - self.mid[here]) * self.bps
        spread = fee = 0.0
        for quantity, (bid, ask), mid in orders:
            paid = 2 * int(ask if quantity > 0 else bid)
            spread += quantity * float(paid - mid) * self.bps
            fee += abs(quantity) * paid * self.fee_bps / 1e4 * self.bps
        net = gross - spread - fee
        trades = sum(abs(quantity) for quantity, _, _ in orders)
        accounts = dict(zip(ACCOUNTS, (net, gross, spread, fee, trades), strict=True))
        return self.observe(), net, done, False, self.describe() | accounts

    def observe(self) -> dict[str, np.ndarray]:
        left = (self.last - self.now) / (self.last - self.first)
        account = np.array([self.position / self.limit, left], dtype=np.float32)
        return {"window": self.windows[self.now].copy(), "account": account}

    def describe(self) -> dict[str, Any]:
        return {
            "end_row": int(self.replay.ends[self.now]),
            "imbalance": float(self.replay.imbalance[self.now]),
        }


def embed(encoder: BookEncoder, book: Book, ends: np.ndarray) -> Tensor:
    """Return the embeddings, float32 (B, D), of the windows that end at `ends`.

    An embedding is the encoder's output at the last state of its window, which sees nothing later.
    """
    price_ticks, sizes = gather_windows(book, ends, encoder.config.temporal_dim)
    # The inputs of 8 windows stay in the cache, which takes a third of the time.
    price_parts = torch.from_numpy(price_ticks).split(8)
    size_parts = torch.from_numpy(sizes).split(8)
    parts = []
    with torch.no_grad():  # the inputs hold nothing to learn
        for price, size in zip(price_parts, size_parts, strict=True):
            nothing_hidden = torch.zeros(*price.shape, 2, dtype=torch.bool)
            parts.append(build_inputs(price, size, nothing_hidden, encoder.config)[0])
    return encoder.encode(torch.cat(parts))[:, -1]


class WindowEncoder(BaseFeaturesExtractor):
    """The encoder as a part of the policy: decision numbers, accounts -> float32 (B, D + 2)."""

    def __init__(
        self, observation_space: Dict, encoder: EncoderConfig, book: Book, ends: np.ndarray
    ):
        super().__init__(observation_space, encoder.width + 2)
        self.encoder, self.book, self.ends = BookEncoder(encoder), book, ends

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        numbers = observations["window"][:, 0].long().cpu().numpy()
        embeddings = embed(self.encoder, self.book, self.ends[numbers])
        return torch.cat([embeddings, observations["account"]], dim=1)


def train(
    replay: Replay, book: Book, config: dict, seed: int, source: np.ndarray | EncoderConfig
) -> PPO:
    """Train PPO on embeddings (n, D), or with a new encoder of this config that reads windows."""
    market = {"replay": replay, "period": "train", "config": config, "source": source}
    markets = make_vec_env(BookReplay, n_envs=config["environments"], seed=seed, env_kwargs=market)
    policy: dict[str, Any] = {}
    if isinstance(source, EncoderConfig):
        reader = {"encoder": source, "book": book, "ends": replay.ends}
        policy = {"features_extractor_class": WindowEncoder, "features_extractor_kwargs": reader}
    agent = PPO(
        "MultiInputPolicy",
        markets,
        seed=seed,
        policy_kwargs=policy,
        device="cpu",
        n_steps=config["rollout_steps"],
        batch_size=config["batch_size"],
        n_epochs=config["update_epochs"],
        learning_rate=config["learning_rate"],
        gamma=config["gamma"],
    )
    if isinstance(agent.policy.features_extractor, WindowEncoder):
        # PPO has given it orthogonal weights, but a transformer starts with its own ones.
        agent.policy.features_extractor.encoder.initialise()
    return agent.learn(config["train_steps"])


def play(market: BookReplay, policy: Policy, episodes: range) -> dict[str, float]:
    """Play whole episodes; return the sums of ACCOUNTS."""
    totals = dict.fromkeys(ACCOUNTS, 0.0)
    for number in episodes:
        observation, facts = market.reset(options={"episode": number})
        done = False
        while not done:
            observation, _, done, _, facts = market.step(policy(observation, facts))
            for key in ACCOUNTS:
                totals[key] += facts[key]
    return totals


def imbalance_rule(threshold: float) -> Policy:
    """Buy if the best bid is much larger than the best ask, sell if it is much smaller."""

    def act(_: dict[str, np.ndarray], facts: dict[str, Any]) -> int:
        imbalance = facts["imbalance"]
        return HOLD + (imbalance > threshold) - (imbalance < -threshold)

    return act


def random_policy(seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return lambda *_: int(rng.integers(3))


def learned_policy(agent: PPO) -> Policy:
    return lambda observation, _: int(agent.predict(observation, deterministic=True)[0])


def judge(replay: Replay, book: Book, config: dict, encoder: BookEncoder) -> list[dict]:
    """Train and play every policy; return a row for each policy and seed."""
    market = BookReplay(replay, config["split"], config)
    episodes = range(len(market.episodes))
    rows = []

    def add(name: str, seed: int, market: BookReplay, policy: Policy, seconds: float = 0.0) -> None:
        result = play(market, policy, episodes)
        rows.append({"policy": name, "seed": seed, "train_seconds": seconds, **result})
        print(
            f"{name:<16}seed {seed}  net {result['net_bps']:9.2f} bps, trained in {seconds:.0f} s",
            flush=True,
        )

    threshold = choose_threshold(replay, config)
    add("hold", 0, market, lambda *_: HOLD)
    add(f"imbalance {threshold:g}", 0, market, imbalance_rule(threshold))
    for seed in range(config["seeds"]):
        add("random", seed, market, random_policy(seed))
    for name in config["variants"]:
        source: np.ndarray | EncoderConfig = encoder.config
        if name == "frozen":
            source = embed_all(replay, book, encoder)
        judged = BookReplay(replay, config["split"], config, source)
        for seed in range(config["seeds"]):
            began = time.perf_counter()
            agent = train(replay, book, config, seed, source)
            seconds = time.perf_counter() - began
            add(f"PPO {name}", seed, judged, learned_policy(agent), seconds)
    return rows


def choose_threshold(replay: Replay, config: dict) -> float:
    """Return the imbalance rule's threshold with the best net result over training episodes."""
    practice = BookReplay(replay, "train", config)
    without_overlap = range(0, len(practice.episodes), config["episode_steps"])

    def net_bps(threshold: float) -> float:
        return play(practice, imbalance_rule(threshold), without_overlap)["net_bps"]

    return max(config["imbalance_thresholds"], key=net_bps)


def embed_all(replay: Replay, book: Book, encoder: BookEncoder) -> np.ndarray:
    """Return the embedding of every decision's window, float32 (n, D)."""
    began = time.perf_counter()
    parts = []
    with torch.inference_mode():
        for first in range(0, len(replay.ends), 32):
            parts.append(embed(encoder, book, replay.ends[first : first + 32]).numpy())
    embeddings = np.concatenate(parts)
    print(f"{len(embeddings):,} embeddings in {time.perf_counter() - began:.0f} s", flush=True)
    return embeddings


def describe_test(replay: Replay, book: Book, config: dict) -> str:
    """Return in words how long the test episodes are, and what a trade must earn."""
    episodes = replay.episodes[config["split"]]
    duration_s = np.diff(book.timestamps[replay.ends[episodes] - 1]).sum() / 1e9
    decisions = np.concatenate([np.arange(first, last) for first, last in episodes])
    mid = replay.touch_ticks.sum(axis=1) / 2
    spread_ticks = np.diff(replay.touch_ticks[decisions], axis=1)[:, 0]
    spread_bps = spread_ticks / mid[decisions] * 1e4

    def mean_move_bps(begin: np.ndarray, end: np.ndarray) -> float:
        return (np.abs(mid[end] / mid[begin] - 1) * 1e4).mean()

    first, last = episodes.T
    round_trip_bps = spread_bps.mean() + 2 * config["fee_bps"]
    return (
        f"{book.pair}, {config['split']} period: {len(decisions):,} decisions in "
        f"{counted(len(episodes), 'episode')}, {duration_s:.0f} s in all. "
        f"A round trip costs {round_trip_bps:.2f} bps; the mid moves "
        f"{mean_move_bps(decisions, decisions + 1):.2f} bps from one decision to the next and "
        f"{mean_move_bps(first, last):.2f} bps per episode (means of absolute values)."
    )


def tabulate(rows: list[dict]) -> list[str]:
    """Return a Markdown table: means over the seeds, and the deviation of the net result."""
    columns = ("policy", "seeds", "net bps", "+-", "gross bps", "spread bps", "fee bps", "trades")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in dict.fromkeys(row["policy"] for row in rows):
        mine = np.array([[row[key] for key in ACCOUNTS] for row in rows if row["policy"] == name])
        net, gross, spread, fee, trades = mine.mean(axis=0)
        deviation = f"{mine[:, 0].std(ddof=1):.2f}" if len(mine) > 1 else ""
        lines.append(
            f"| {name} | {len(mine)} | {net:.2f} | {deviation} | {gross:.2f} | {spread:.2f} "
            f"| {fee:.2f} | {trades:.1f} |"
        )
    return lines


def check_config(config: dict) -> None:
    """Raise InputError if the settings are wrong, whatever the recording."""
    latency, stride = config["latency_states"], config["decision_stride"]
    if not config["imbalance_thresholds"]:
        raise InputError("imbalance_thresholds = [] names none: give at least one, such as [0.5]")
    if latency >= stride:
        raise InputError(f"latency_states = {latency} must be less than decision_stride = {stride}")


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    check_config(config)
    checkpoint = find_checkpoint(config["runs_dir"], config["model_path"])
    encoder, meta = load_model(checkpoint)
    folder = Path(config["data_dir"])
    pairs = [config["pair"]] if config["pair"] else None
    pair, *_ = find_pairs(folder, "book_states", pairs, "data_parser.py")
    book = open_book(folder / "book_states" / pair)
    if book.depth != encoder.config.depth:
        raise InputError(
            f"{book.path} has depth {book.depth}, the checkpoint wants {encoder.config.depth}: "
            f"run data_parser.py --depth={encoder.config.depth}"
        )
    cuts_ns = np.array(meta["data"]["cuts_ns"], dtype=np.int64)
    if config["split_ratios"] is not None:
        cuts_ns = calendar_cuts([book.timestamps], [book.segment_starts], config["split_ratios"])
    replay = make_replay(book, encoder.config.temporal_dim, cuts_ns, config)
    rows = judge(replay, book, config, encoder)
    test = describe_test(replay, book, config)
    text = ["", *tabulate(rows), "", test, "", *LIMITS]
    print("\n".join(text))
    facts = {
        "checkpoint": checkpoint.name,
        "step": meta["progress"]["step"],
        "test": test,
        "limits": " ".join(LIMITS),
        "config": config,
        "rows": rows,
        "environment": describe_environment(),
    }
    page = "\n".join([f"# PPO with {checkpoint.name} on {book.pair}", *text, ""])
    folder = run_folder(checkpoint, config["runs_dir"])
    with new_file(folder / "ppo_agent.json") as handle:
        handle.write(json.dumps(facts, indent=1).encode())
    with new_file(folder / "ppo_agent.md") as handle:
        handle.write(page.encode())
    print(f"\nwritten    {folder / 'ppo_agent.md'}")
    return 0


if __name__ == "__main__":
    run(main, config)
