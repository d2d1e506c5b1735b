"""Train PPO agents on recorded book states: the pre-trained encoder frozen, and the same network from scratch.

    pip install -r examples/requirements.txt
    python examples/ppo_agent.py                     the best checkpoint of the newest run, 3 seeds
    python examples/ppo_agent.py --seeds=1 --model_path=runs/sample/checkpoints/best.safetensors

Replays a recording of `data_dir/book_states/` cut in time as the checkpoint's training was: agents learn on windows
that lie in the training period and are judged on windows that lie in the test period, no state being in both. Prints
every policy's result over the same test episodes and writes it as `ppo_agent.json` and `ppo_agent.md` into the
checkpoint's run. Nothing is selected on the test period; the agent of the last training step is judged.

The market of an episode, in states t of the recording:

- Every `decision_stride` states the agent sees the embedding of the window that ends with state t (no later state), its
  position and the share of the episode that is left, and sells one unit (0), holds (1) or buys one (2), as far as
  `position_limit` allows.
- A buy is filled at the best ask of state t + `latency_states`, a sale at its best bid; both pay `fee_bps` of it.
- The reward is the change of cash + position x mid until the next decision, in bps of `position_limit` x mid at the
  episode's begin. The last state closes what is open at its best price, fee paid; rewards sum to the cash that is left.
- Orders are assumed smaller than the best level and without effect on the book, and no order rests in the queue.
"""

config = {
    "data_dir": "training_data",  # folder that holds book_states/
    "runs_dir": "runs",  # folder of the training runs
    "model_path": None,  # checkpoint file; None: the best one of the newest run
    "pair": None,  # recording to replay; None: the first under book_states/
    "split": "test",  # period that judges: test, or validation (the checkpoint was selected on it)
    "variants": ["frozen", "scratch"],  # frozen: pre-trained embeddings; scratch: the encoder learns from rewards alone
    "seeds": 3,  # trainings of each variant, and runs of the random policy
    "decision_stride": 32,  # states from one decision to the next
    "latency_states": 1,  # states from a decision to its fill, less than decision_stride
    "episode_steps": 64,  # decisions an episode
    "fee_bps": 1.0,  # fee of a fill; spot takers pay more, the largest futures takers about this
    "position_limit": 1,  # units, long or short
    "imbalance_thresholds": [0.25, 0.5, 0.75, 0.95],  # of the imbalance rule, the best on training episodes is taken
    "train_steps": 4096,  # decisions that a training sees, rounded up to whole rollouts
    "environments": 8,  # episodes played side by side
    "rollout_steps": 64,  # decisions of each before an update
    "batch_size": 128,  # decisions a gradient step
    "update_epochs": 4,  # passes over a rollout
    "learning_rate": 1e-3,  # of Adam
    "gamma": 0.99,  # discount a decision
}

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from the repository, which is not installed

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"model_path": str, "pair": str}, choices={"split": ("test", "validation")},
        bounds={"seeds": ">= 1", "decision_stride": ">= 1", "latency_states": ">= 0", "episode_steps": ">= 1",
                "position_limit": ">= 1", "train_steps": ">= 1", "environments": ">= 1", "rollout_steps": ">= 1",
                "batch_size": ">= 2", "update_epochs": ">= 1"},  # PPO standardises advantages over a batch
    )  # fmt: skip

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from lob.book.states import Book, open_book
from lob.model.checkpoint import find_checkpoint, load_model
from lob.model.encoder import BookEncoder, EncoderConfig
from lob.model.inputs import build_inputs
from lob.results import describe_environment
from lob.storage import find_pairs, new_file
from lob.windows.splits import SPLITS, gather_windows, split_of_windows, split_rows, window_ends

HOLD = 1  # 0 sells, 2 buys
ACCOUNTS = ("net_bps", "gross_bps", "spread_bps", "fee_bps", "trades")  # net = gross - spread - fee
LIMITS = (
    "Policies: hold never trades; imbalance x follows the best sizes where their imbalance exceeds x; random acts by",
    "chance; PPO frozen learns on the pre-trained encoder's embeddings, PPO scratch trains the same network anew.",
    "Net of fees and spread, in bps of the position limit's value, summed over the test episodes; gross: before both;",
    "spread: the fills' distances from the decision's mid, moves during latency included; +-: deviation over seeds.",
    "That deviation is not the uncertainty of the market: all policies met the same short period of one recording.",
    "Not shown: queues, an own order's effect on the book, limit orders, other days, other fees, longer trainings.",
)
Policy = Callable[[dict[str, np.ndarray], dict[str, Any]], int]


@dataclass(frozen=True)
class Replay:
    """What an environment needs of a book: one entry a decision, of all periods.

    ends: int64 (n,), the windows' end rows; touch_ticks: int64 (n, 2), best bid and ask that the decision sees;
    fill_ticks: int64 (n, 2), those that its order meets; imbalance: float64 (n,), (bid size - ask size) / (their sum)
    at the touch; episodes: period -> int64 (k, 2), first entry and last one, which closes and decides nothing.
    """

    ends: np.ndarray
    touch_ticks: np.ndarray
    fill_ticks: np.ndarray
    imbalance: np.ndarray
    episodes: dict[str, np.ndarray]


def make_replay(book: Book, temporal_dim: int, cuts_ns: np.ndarray, config: dict) -> Replay:
    """Place decisions and episodes in the training period (overlapping) and in the one that judges (end to end).

    All windows of an episode lie in one segment and one period. InputError where a period has no room for one.
    """
    every_end = window_ends(book.segment_starts, book.rows, temporal_dim)
    split = split_of_windows(every_end, temporal_dim, split_rows(book.timestamps, cuts_ns, temporal_dim))
    ends: list[np.ndarray] = []
    episodes: dict[str, np.ndarray] = {}
    for period, apart in (("train", 1), (config["split"], config["episode_steps"])):
        mine = every_end[split == SPLITS.index(period)]
        found = [np.empty((0, 2), dtype=np.int64)]
        for unbroken in np.split(mine, np.flatnonzero(np.diff(mine) != 1) + 1):
            begin, run_ends = sum(map(len, ends)), unbroken[:: config["decision_stride"]]
            first = np.arange(begin, begin + len(run_ends) - 1, apart)
            last = np.minimum(first + config["episode_steps"], begin + len(run_ends) - 1)
            found.append(np.stack([first, last], axis=1))
            ends.append(run_ends)
        episodes[period] = np.concatenate(found)
        if len(episodes[period]) == 0:
            raise InputError(f"{book.pair} has no two decisions in the {period} period of this checkpoint: set --pair, "
                             f"or a lower decision_stride than {config['decision_stride']}")  # fmt: skip
    rows = np.concatenate(ends)
    if len(rows) > 1 << 24:  # a decision's number must be exact in float32
        raise InputError(f"decision_stride = {config['decision_stride']} gives {len(rows):,} decisions: raise it")
    half, seen = book.depth // 2, rows - 1
    met = np.minimum(seen + config["latency_states"], book.rows - 1)
    bid_size, ask_size = (book.sizes[seen, level].astype(np.float64) for level in (half - 1, half))
    touch, fill = (book.price_ticks[at, half - 1 : half + 1].astype(np.int64) for at in (seen, met))
    return Replay(rows, touch, fill, (bid_size - ask_size) / (bid_size + ask_size), episodes)


class BookReplay(gymnasium.Env):
    """The market of the module's docstring over the episodes of one period.

    observation: `window` float32, an embedding (D,) where `source` holds them, else the decision's number (1,), by
    which a network that learns to encode finds the window; `account` float32 (2,): position / limit and share of the
    episode left, for nothing else that the agent did bears on the rewards ahead.
    """

    def __init__(self, replay: Replay, period: str, config: dict, source: np.ndarray | EncoderConfig | None = None):
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
        number = int(self.np_random.integers(len(self.episodes))) if number is None else number
        self.first, self.last = map(int, self.episodes[number])
        self.now, self.position = self.first, 0
        self.bps = 1e4 / float(self.limit * self.mid[self.first])  # of a half tick
        return self.observe(), self.describe()

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        here = self.now
        position = min(max(self.position + int(action) - HOLD, -self.limit), self.limit)
        orders = [(position - self.position, self.replay.fill_ticks[here], self.mid[here])]
        self.now, self.position = here + 1, position
        done = self.now == self.last
        if done:  # known from the begin, so without latency
            orders.append((-position, self.replay.touch_ticks[self.now], self.mid[self.now]))
        gross = position * float(self.mid[self.now] - self.mid[here]) * self.bps
        spread = fee = 0.0
        for quantity, (bid, ask), mid in orders:
            paid = 2 * int(ask if quantity > 0 else bid)
            spread += quantity * float(paid - mid) * self.bps
            fee += abs(quantity) * paid * self.fee_bps / 1e4 * self.bps
        accounts = (gross - spread - fee, gross, spread, fee, sum(abs(order[0]) for order in orders))
        return self.observe(), accounts[0], done, False, self.describe() | dict(zip(ACCOUNTS, accounts, strict=True))

    def observe(self) -> dict[str, np.ndarray]:
        left = (self.last - self.now) / (self.last - self.first)
        account = np.array([self.position / self.limit, left], dtype=np.float32)
        return {"window": self.windows[self.now].copy(), "account": account}

    def describe(self) -> dict[str, Any]:
        return {"end_row": int(self.replay.ends[self.now]), "imbalance": float(self.replay.imbalance[self.now])}


def embed(encoder: BookEncoder, book: Book, ends: np.ndarray) -> Tensor:
    """Embeddings, float32 (B, D), of the windows that end at `ends`: their last states, which see nothing later."""
    price, sizes = (torch.from_numpy(x) for x in gather_windows(book, ends, encoder.config.temporal_dim))
    few = zip(price.split(8), sizes.split(8), strict=True)  # inputs of 8 windows stay in the cache: a third of the time
    with torch.no_grad():  # they hold nothing to learn
        tokens = [build_inputs(p, s, torch.zeros(*p.shape, 2, dtype=torch.bool), encoder.config)[0] for p, s in few]
    return encoder.encode(torch.cat(tokens))[:, -1]


class WindowEncoder(BaseFeaturesExtractor):
    """The encoder inside the policy, trained with it: decision's number and account -> float32 (B, D + 2)."""

    def __init__(self, observation_space: Dict, encoder: EncoderConfig, book: Book, ends: np.ndarray):
        super().__init__(observation_space, encoder.width + 2)
        self.encoder, self.book, self.ends = BookEncoder(encoder), book, ends

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        numbers = observations["window"][:, 0].long().cpu().numpy()
        return torch.cat([embed(self.encoder, self.book, self.ends[numbers]), observations["account"]], dim=1)


def train(replay: Replay, book: Book, config: dict, seed: int, source: np.ndarray | EncoderConfig) -> PPO:
    """Train PPO on embeddings (n, D), or on windows that an encoder of the given config learns to read."""
    market = {"replay": replay, "period": "train", "config": config, "source": source}
    markets = make_vec_env(BookReplay, n_envs=config["environments"], seed=seed, env_kwargs=market)
    policy: dict[str, Any] = {}
    if isinstance(source, EncoderConfig):
        reader = {"encoder": source, "book": book, "ends": replay.ends}
        policy = {"features_extractor_class": WindowEncoder, "features_extractor_kwargs": reader}
    agent = PPO(
        "MultiInputPolicy", markets, seed=seed, policy_kwargs=policy, device="cpu", n_steps=config["rollout_steps"],
        batch_size=config["batch_size"], n_epochs=config["update_epochs"], learning_rate=config["learning_rate"],
        gamma=config["gamma"],
    )  # fmt: skip
    if isinstance(agent.policy.features_extractor, WindowEncoder):
        agent.policy.features_extractor.encoder.initialise()  # PPO's orthogonal weights are not a transformer's
    return agent.learn(config["train_steps"])


def play(market: BookReplay, policy: Policy, episodes: range) -> dict[str, float]:
    """Sums of ACCOUNTS over whole episodes."""
    totals = dict.fromkeys(ACCOUNTS, 0.0)
    for number in episodes:
        observation, facts = market.reset(options={"episode": number})
        done = False
        while not done:
            observation, _, done, _, facts = market.step(policy(observation, facts))
            totals = {key: totals[key] + facts[key] for key in ACCOUNTS}
    return totals


def imbalance_rule(threshold: float) -> Policy:
    """Buy where the best bid is much larger than the best ask, sell where it is much smaller."""
    return lambda _, facts: HOLD + (facts["imbalance"] > threshold) - (facts["imbalance"] < -threshold)


def random_policy(seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return lambda *_: int(rng.integers(3))


def learned_policy(agent: PPO) -> Policy:
    return lambda observation, _: int(agent.predict(observation, deterministic=True)[0])


def judge(replay: Replay, book: Book, config: dict, encoder: BookEncoder) -> list[dict]:
    """Train and play every policy; return a row a policy and seed."""
    market = BookReplay(replay, config["split"], config)
    episodes = range(len(market.episodes))
    rows = []

    def add(name: str, seed: int, market: BookReplay, policy: Policy, seconds: float = 0.0) -> None:
        rows.append({"policy": name, "seed": seed, "train_seconds": seconds, **play(market, policy, episodes)})
        print(f"{name:<16}seed {seed}  net {rows[-1]['net_bps']:9.2f} bps, trained in {seconds:.0f} s", flush=True)

    practice = BookReplay(replay, "train", config)
    apart = range(0, len(practice.episodes), config["episode_steps"])
    threshold = max(config["imbalance_thresholds"], key=lambda x: play(practice, imbalance_rule(x), apart)["net_bps"])
    add("hold", 0, market, lambda *_: HOLD)
    add(f"imbalance {threshold:g}", 0, market, imbalance_rule(threshold))
    for seed in range(config["seeds"]):
        add("random", seed, market, random_policy(seed))
    for name in config["variants"]:
        source: np.ndarray | EncoderConfig = encoder.config
        if name == "frozen":
            began = time.perf_counter()
            batches = (replay.ends[i : i + 32] for i in range(0, len(replay.ends), 32))
            with torch.inference_mode():
                source = np.concatenate([embed(encoder, book, ends).numpy() for ends in batches])
            print(f"{len(source):,} embeddings in {time.perf_counter() - began:.0f} s", flush=True)
        judged = BookReplay(replay, config["split"], config, source)
        for seed in range(config["seeds"]):
            began = time.perf_counter()
            agent = train(replay, book, config, seed, source)
            add(f"PPO {name}", seed, judged, learned_policy(agent), time.perf_counter() - began)
    return rows


def describe_test(replay: Replay, book: Book, config: dict) -> str:
    """How long the test episodes are, and what a trade must earn."""
    spans = replay.episodes[config["split"]]
    duration_s = np.diff(book.timestamps[replay.ends[spans] - 1]).sum() / 1e9
    entry = np.concatenate([np.arange(first, last) for first, last in spans])
    mid = replay.touch_ticks.sum(axis=1) / 2
    spread = np.diff(replay.touch_ticks[entry], axis=1)[:, 0] / mid[entry] * 1e4
    moves, whole = (np.abs(mid[b] / mid[a] - 1) * 1e4 for a, b in ((entry, entry + 1), spans.T))
    return (
        f"{book.pair}, {config['split']} period: {len(entry):,} decisions in {len(spans)} episode"
        f"{'s' * (len(spans) != 1)}, {duration_s:.0f} s in all. A round trip costs "
        f"{spread.mean() + 2 * config['fee_bps']:.2f} bps; the mid moves {moves.mean():.2f} bps from one decision to "
        f"the next and {whole.mean():.2f} bps an episode (means of sizes)."
    )


def tabulate(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table: mean over the seeds, and the net result's deviation over them."""
    lines = ["| policy | seeds | net bps | +- | gross bps | spread bps | fee bps | trades |", "|---" * 8 + "|"]
    for name in dict.fromkeys(row["policy"] for row in rows):
        mine = np.array([[row[key] for key in ACCOUNTS] for row in rows if row["policy"] == name])
        net, gross, spread, fee, trades = mine.mean(axis=0)
        deviation = f"{mine[:, 0].std(ddof=1):.2f}" if len(mine) > 1 else ""
        lines.append(f"| {name} | {len(mine)} | {net:.2f} | {deviation} | {gross:.2f} | {spread:.2f} | {fee:.2f} | "
                     f"{trades:.1f} |")  # fmt: skip
    return lines


def check_config(config: dict) -> None:
    if not config["variants"] or not set(config["variants"]) <= {"frozen", "scratch"}:
        raise InputError(f"variants = {config['variants']} must be some of 'frozen', 'scratch'")
    if not config["imbalance_thresholds"]:
        raise InputError("imbalance_thresholds = [] names none: give at least one, such as [0.5]")
    if config["latency_states"] >= config["decision_stride"]:
        raise InputError(f"latency_states = {config['latency_states']} must be less than "
                         f"decision_stride = {config['decision_stride']}")  # fmt: skip


def main(config: dict) -> int:
    check_config(config)
    checkpoint = find_checkpoint(config["runs_dir"], config["model_path"])
    encoder, meta = load_model(checkpoint)
    folder = Path(config["data_dir"])
    pair, *_ = find_pairs(folder, "book_states", config["pair"] and [config["pair"]], "data_parser.py")
    book = open_book(folder / "book_states" / pair)
    if book.depth != encoder.config.depth:
        raise InputError(f"{book.path} has depth {book.depth}, the checkpoint wants {encoder.config.depth}: "
                         f"run data_parser.py --depth={encoder.config.depth}")  # fmt: skip
    replay = make_replay(book, encoder.config.temporal_dim, np.array(meta["data"]["cuts_ns"], dtype=np.int64), config)
    rows, test = judge(replay, book, config, encoder), describe_test(replay, book, config)
    text = ["", *tabulate(rows), "", test, "", *LIMITS]
    print("\n".join(text))
    home = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    facts = {"checkpoint": checkpoint.name, "step": meta["progress"]["step"], "test": test, "limits": " ".join(LIMITS),
             "config": config, "rows": rows, "environment": describe_environment()}  # fmt: skip
    page = "\n".join([f"# PPO with {checkpoint.name} on {book.pair}", *text, ""])
    for name, content in (("ppo_agent.json", json.dumps(facts, indent=1)), ("ppo_agent.md", page)):
        with new_file(home / name) as handle:
            handle.write(content.encode())
    print(f"\nwritten    {home / 'ppo_agent.md'}")
    return 0


if __name__ == "__main__":
    run(main, config)
