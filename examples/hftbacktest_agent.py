"""Does an encoder's vector help a market maker? PPO in hftbacktest, and rules beside it.

    pip install -c constraints.txt -r examples/requirements.txt
    python -m benchmarks.lay_recordings --depths="[96]"
    python examples/hftbacktest_agent.py --seeds=1 --steps=4096     quick form, some minutes
    python examples/hftbacktest_agent.py --write=True               the result of docs/agent.md

hftbacktest plays the exchange's own messages and trades: orders rest in a queue, requests and
answers take time, and each fill has a fee or a rebate. examples/agent/quoting.py says what an agent
can do; it decides every `interval_ms`. It sees states that its recorder had received by then, as
the frozen vector of the window, as the 27 hand-made features, or as both.

Agents are trained and judged at each of `maker_fees_bps`. From what they earn follows the
break-even maker fee: what a maker's fill may cost until nothing is earned. If it is negative, it is
the rebate that would be needed. Beside PPO there are rules: none never quotes; symmetric always
quotes one unit at both best prices; imbalance leans to the side of the larger best size, and
doesn't quote if neither is much larger (its threshold is fitted on the training recording); random.
Vectors and converted recordings are kept under `runs_dir`/agent.
"""

config = {
    "data_dir": "bench/depth_96",  # str: folder that holds raw/ and book_states/
    "runs_dir": "runs",  # str: folder of the training runs, and of agent/
    "model_path": "pretrained/small_cell",  # str | None: pretrained weights, run or checkpoint
    "train_pair": "BTCUSDT_USDM",  # str: recording to learn on
    "train_files": ["btcusdt_20240718.gz", "btcusdt_20240719.gz"],  # list[str] | None: which files
    #   of raw/<pair>/ are played, without a gap between them; None: all
    "test_pair": "BTCUSDT_USDM_202408",  # str: recording to test on
    "test_files": None,  # list[str] | None: the same of the test
    "agents": ["vector", "features", "both"],  # list[vector | features | both]: what agents see
    "seeds": 5,  # int >= 1: trainings of each agent
    "steps": 65_536,  # int >= 512: decisions of a training
    "interval_ms": 100,  # int >= 1: from a decision to the next
    "feed_latency_ms": 2.0,  # float >= 0: of the fastest message; the recorder's clock is not known
    #   well enough to tell
    "order_latency_ms": 5.0,  # float >= 0: of a request to the exchange, and again of its answer
    "queue_power": 3.0,  # float > 0: of PowerProbQueueModel: how cancels are spread over the queue
    "lot_size": 0.001,  # float > 0: of the exchange
    "unit_lots": 10,  # int >= 1: lots of an order
    "limit": 3,  # int >= 1: units that are held at most, long or short
    "wide_ticks": 100,  # int >= 1: from the best price to an order that is away from it
    "maker_fees_bps": [0.0, -1.0],  # list[float]: fees of a resting order's fill; below 0: rebates
    "taker_fee_bps": 1.7,  # float: the same of orders that take
    "device": "auto",  # auto | cpu | cuda: of the encoder
    "write": False,  # bool: keep the result in benchmarks/results/, not in `runs_dir`
}

import sys
from pathlib import Path

# The repository need not be installed as a package, so `lob` is found by its path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lob.config import InputError, check_rules, counted, fail, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import hashlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

try:
    from stable_baselines3.common.vec_env import DummyVecEnv

    from examples.agent import policies, quoting, recording
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name not in (
        "gymnasium",
        "stable_baselines3",
        "hftbacktest",
    ):
        raise
    remedy = "pip install -c constraints.txt -r examples/requirements.txt"
    fail(__file__, InputError(f"the agents need the package {error.name}: {remedy}"))

from examples.agent import inputs, report
from examples.agent.market import BLOCKS
from examples.agent.quoting import Session
from lob import load
from lob.book.states import open_books
from lob.model.checkpoint import find_checkpoint
from lob.results import ROOT, make_report, make_row, write_report

RULES = ("none", "symmetric", "imbalance", "random")


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    train, test = prepare(config)
    trainings = counted(config["seeds"], "training")
    print(f"{', '.join(config['agents'])}: {trainings} of {config['steps']:,} decisions each")
    torch.set_num_threads(1)  # more threads slow down policies of this size
    name = config["test_pair"]
    rows = describe_market(config, name, train["features"], test["features"])
    for fee_bps in config["maker_fees_bps"]:
        results: dict[str, report.Result] = {}
        for agent in (*RULES, *config["agents"]):
            began = time.perf_counter()
            both = train, test
            shown = [x["features" if agent in RULES else agent].at_fee(fee_bps) for x in both]
            case = f"{name}/fee_{fee_bps:g}/{agent}"
            results[agent], found = judge(case, [*play_agent(config, agent, *shown)], *shown)
            rows += found
            print(f"{case:<50}{time.perf_counter() - began:7.1f} s", flush=True)
        rows += report.rows_of_leads(f"{name}/fee_{fee_bps:g}", results, test["features"].hours)
    print("\n".join(["", *report.tabulate(rows)]))
    result = make_report("agent_hft", rows)
    for row in result["rows"]:
        row["value"] = float(f"{row['value']:.6g}")
    kept = ROOT / "benchmarks" / "results" if config["write"] else Path(config["runs_dir"])
    write_report(kept / "agent_hft.json", result)
    print(f"\nwritten    {kept / 'agent_hft.json'}")
    return 0


def prepare(config: dict) -> list[dict[str, Session]]:
    """Return what agents meet in training and in the test, by what they see."""
    if config["train_pair"] == config["test_pair"]:
        raise InputError(f"{config['test_pair']} is both train_pair and test_pair: name another")
    checkpoint = find_checkpoint(config["runs_dir"], config["model_path"])
    encoder = load(config["model_path"], config["device"], config["runs_dir"])
    weights = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
    folder = Path(config["runs_dir"]) / "agent"
    feed_ns, order_ns = (
        round(ms * 1e6) for ms in (config["feed_latency_ms"], config["order_latency_ms"])
    )
    venue = quoting.Venue(order_ns, config["queue_power"], 0.0, config["taker_fee_bps"])
    sessions, seen = [], []
    for period, pair, names in (
        ("train", config["train_pair"], config["train_files"]),
        ("test", config["test_pair"], config["test_files"]),
    ):
        (book,) = open_books(config["data_dir"], [pair], encoder.levels)
        raw = Path(config["data_dir"]) / "raw" / pair
        files = sorted(raw.glob("*")) if names is None else [raw / name for name in names]
        events = recording.find_events(files, folder, feed_ns)
        interval_ns = config["interval_ms"] * 1_000_000
        times, ends = recording.pick_decisions(events, book, encoder.states, interval_ns)
        if len(ends) < 2 * BLOCKS:
            raise InputError(
                f"{pair} has {len(ends)} decisions to {period}, less than {2 * BLOCKS}: set a "
                "smaller --interval_ms, or take a longer recording"
            )
        if period == "test":
            inputs.check_unseen(encoder, book, int(ends[0]) - encoder.states)
        best = slice(book.depth // 2 - 1, book.depth // 2 + 1)
        mid = book.price_ticks[ends - 1, best].sum(axis=1, dtype=np.int64)
        bid_size, ask_size = book.sizes[ends - 1, best].astype(float).T
        market = mid, (bid_size - ask_size) / (bid_size + ask_size)
        lots = config["lot_size"], config["unit_lots"], config["limit"], config["wide_ticks"]
        rules = quoting.Rules(book.tick_size, *lots)
        sessions.append(Session(events, times, np.zeros((len(ends), 0)), *market, rules, venue))
        vectors = inputs.find_vectors(encoder, weights, book, ends, folder)
        features = inputs.describe(book, ends, encoder.states)
        both = np.hstack([features, vectors])
        seen.append({"vector": vectors, "features": features, "both": both})
    scaled = {name: inputs.scale(seen[0][name], seen[1][name]) for name in seen[0]}
    return [
        {name: replace(session, inputs=two[period]) for name, two in scaled.items()}
        for period, session in enumerate(sessions)
    ]


def play_agent(config: dict, agent: str, train: Session, test: Session) -> Any:
    """Yield for each seed, by steps of training, the accounts in training and test."""
    own = quoting.list_own_states(config["limit"])
    scale = 1 / max(train.move_bps(), 1e-9)  # the mid moves by about 1 a decision

    def look(policy: Any) -> dict:
        tables = [policies.best_actions(policy, x.inputs, own) for x in (train, test)]
        return {"train": train.play(tables[0]), "test": test.play(tables[1])}

    threshold = fit_threshold(train, own) if agent == "imbalance" else 0.0
    for seed in range(1 if agent in RULES[:-1] else config["seeds"]):
        if agent in RULES:
            tables = [make_table(agent, x, own, threshold, seed) for x in (train, test)]
            yield {0: {"train": train.play(tables[0]), "test": test.play(tables[1])}}
            continue
        makers: Any = [lambda: quoting.QuotingEnv(train, scale=scale)] * policies.TRADERS
        yield policies.learn(DummyVecEnv(makers), seed, config["steps"], look)


def make_table(
    rule: str, session: Session, own: np.ndarray, threshold: float, seed: int
) -> np.ndarray:
    """Return the action of a rule at each decision, whatever the own state, int64 (S, n)."""
    n = len(session.inputs)
    chosen = np.full(n, quoting.SYMMETRIC if rule == "symmetric" else quoting.NONE)
    if rule == "imbalance":
        chosen[session.imbalance > threshold] = quoting.LEAN_TO_BUY
        chosen[session.imbalance < -threshold] = quoting.LEAN_TO_SELL
    elif rule == "random":
        chosen = np.random.default_rng(seed).integers(0, len(quoting.ACTIONS), n)
    return np.tile(chosen, (len(own), 1))


def fit_threshold(train: Session, own: np.ndarray) -> float:
    """Return the imbalance rule's threshold that earns most in training."""

    def earn(threshold: float) -> float:
        table = make_table("imbalance", train, own, threshold, 0)
        return train.profit_bps(train.play(table)).sum()

    return max(policies.THRESHOLDS, key=earn)


def judge(
    case: str, runs: list[dict[int, dict]], train: Session, test: Session
) -> tuple[report.Result, list[dict[str, Any]]]:
    """Return what the runs of an agent found, and its rows; rates are means over seeds.

    Profits are after the fees that it was trained with. The break-even fee is in place of that.
    """
    blocks = np.array([[sum_blocks(test, x["test"]) for x in run.values()] for run in runs])
    last = [[*run.values()][-1] for run in runs]
    train_profit = np.array([train.profit_bps(x["train"]).sum() for x in last])
    result = report.Result([*runs[0]], blocks, train_profit)
    rows = report.rows_of_agent(case, result, test.hours, train.hours)
    for row in rows:
        if row["metric"].startswith("break_even"):
            row["value"] += test.venue.maker_fee_bps
    sums = np.mean([x["test"].sum(axis=0) for x in last], axis=0)
    parts = {
        "spread": sums[quoting.SPREAD],
        "inventory": sums[quoting.INVENTORY],
        "taker_fee": -sums[quoting.TAKEN] * test.venue.taker_fee_bps / 1e4,
        "maker_fee": -sums[quoting.MADE] * test.venue.maker_fee_bps / 1e4,
    }
    for name, value in parts.items():
        rows.append(make_row(case, f"{name}_bps_hour", value * test.bps / test.hours, "bps/h"))
    for name in ("maker_fills", "taker_fills"):
        value = sums[quoting.ACCOUNTS.index(name)] / test.hours
        rows.append(make_row(case, f"{name}_hour", value, "1/h"))
    return result, rows


def sum_blocks(session: Session, accounts: np.ndarray) -> np.ndarray:
    """Return profit and value of makers' fills in bps, and fills, float64 (3, BLOCKS)."""
    block = np.arange(len(accounts)) * BLOCKS // len(accounts)
    fills = accounts[:, quoting.MAKER_FILLS] + accounts[:, quoting.TAKER_FILLS]
    numbers = session.profit_bps(accounts), accounts[:, quoting.MADE] * session.bps, fills
    return np.stack([np.bincount(block, x, BLOCKS) for x in numbers])


def describe_market(config: dict, case: str, train: Session, test: Session) -> list[dict[str, Any]]:
    numbers = {
        "train_hours": (train.hours, "h"),
        "test_hours": (test.hours, "h"),
        "train_decisions": (len(train.inputs), ""),
        "test_decisions": (len(test.inputs), ""),
        "move_bps": (test.move_bps(), "bps"),
    }
    note = f"learned on {config['train_pair']}"
    return [make_row(case, name, value, unit, note) for name, (value, unit) in numbers.items()]


if __name__ == "__main__":
    run(main, config)
