"""Does an encoder's vector help a trading agent? PPO on it, on features, and rules beside it.

    pip install -c constraints.txt -r examples/requirements.txt
    python data_parser.py
    python examples/ppo_agent.py          quick form: the shipped half hour alone, about a minute
    make agent                            markets recorded days apart, five seeds: docs/agent.md

The quick form trains on the first 70 % of the first recording under `data_dir` and tests on the
rest. With `train_pairs` and `test_pairs` agents learn on one recording and are tested on another.
Every agent is judged as it is after its last decision of training; nothing is chosen on the test.

examples/agent/market.py says what an agent can do and what that earns. Rewards are before fees
(`fee_bps`). From them follows the break-even fee: what a fill may cost until nothing is earned.

Agents, of one policy network, at equal steps:

- vector: the frozen vector of the window that ends now;
- features: the 27 hand-made features of lob/evaluation/probe_tasks.py; both: vector and features;
- random_weights: the vector of the same network, frozen with random weights;
- scratch: the same network, trained with the policy; this needs a GPU.

Beside them: hold, which never trades; random; and imbalance, a rule whose threshold is fitted on
the training recording. Finished cases and vectors are kept under `runs_dir`/agent, so that a run
that was stopped goes on where it was.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/
    "runs_dir": "runs",  # str: folder of the training runs, and of agent/
    "model_path": "pretrained/small_cell",  # str | None: pretrained weights, run or checkpoint
    "train_pairs": None,  # list[str] | None: recordings to learn on; None: one recording, cut
    "test_pairs": None,  # list[str] | None: as many recordings to test on; None: the same, cut
    "train_share": 0.7,  # > 0 and < 1: share of its time to learn on, if a recording is cut
    "agents": ["vector", "features", "both"],  # list[vector | features | both | random_weights |
    #   scratch]: what agents see
    "fills": ["take", "mid"],  # list[take | mid]: at the best price; at the mid, a bound
    "seeds": 1,  # int >= 1: trainings of each agent
    "steps": 16_384,  # int >= 512: decisions of a training
    "scratch_steps": None,  # int >= 512 | None: the same of scratch; None: as many as `steps`
    "decisions": 800,  # int >= 20: of the training recording; this sets the states between two
    "latency_states": 1,  # int >= 0: states from a decision to its fill
    "fee_bps": 0.0,  # float: fee of a fill that agents are trained with
    "device": "auto",  # auto | cpu | cuda: of the encoder
    "result": "agent",  # str: name of the result's file
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
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

try:
    from examples.agent import policies
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name not in ("gymnasium", "stable_baselines3"):
        raise
    remedy = "pip install -c constraints.txt -r examples/requirements.txt"
    fail(__file__, InputError(f"the agents need the package {error.name}: {remedy}"))

from examples.agent import inputs, report
from examples.agent.market import BLOCKS, Market, make_market, play, sum_blocks
from lob import load
from lob.book.states import Book, identity, open_books
from lob.evaluation.probes import make_untrained
from lob.model.checkpoint import find_checkpoint
from lob.model.pretrained import Encoder
from lob.results import ROOT, make_report, write_report
from lob.storage import find_pairs, new_file

RULES = ("hold", "random", "imbalance")
# A change of one of these makes the cases that were kept worthless.
SOURCES = [ROOT / "examples/agent" / f"{name}.py" for name in ("environments", "inputs", "market")]
SOURCES.append(Path(policies.__file__))


@dataclass
class Setting:
    """A market's books and ends of windows, for training and test, and the inputs by agent."""

    books: list[Book]
    ends: list[np.ndarray]
    inputs: dict[str, list[np.ndarray]]
    encoder: Encoder
    weights: str

    @property
    def name(self) -> str:
        return self.books[-1].pair

    def markets(self, agent: str, config: dict, fill: str) -> list[Market]:
        """Return what an agent meets in training and in the test."""
        fee_bps, latency = config["fee_bps"], config["latency_states"]
        made = zip(self.books, self.ends, self.inputs[agent], strict=True)
        return [make_market(book, ends, x, fill, fee_bps, latency) for book, ends, x in made]


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    checkpoint = find_checkpoint(config["runs_dir"], config["model_path"])
    encoder = load(config["model_path"], config["device"], config["runs_dir"])
    pairs = list_pairs(config)
    say_what_runs(config, pairs)
    weights = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
    rows: list[dict[str, Any]] = []
    settings = [prepare(config, encoder, weights, together) for together in pairs]
    torch.set_num_threads(1)  # more threads slow down policies of this size
    for setting in settings:
        rows += judge_market(config, setting)
    print("\n".join(["", *report.tabulate(rows)]))
    result = make_report(config["result"], rows)
    for row in result["rows"]:
        row["value"] = float(f"{row['value']:.6g}")
    kept = ROOT / "benchmarks" / "results" if config["write"] else Path(config["runs_dir"])
    file = kept / f"{config['result']}.json"
    write_report(file, result)
    print(f"\nwritten    {file}")
    return 0


def list_pairs(config: dict) -> list[list[str]]:
    """Return for each market its recordings: one that is cut in time, or training and test."""
    train, test = config["train_pairs"], config["test_pairs"]
    if train is None and test is None:
        return [find_pairs(config["data_dir"], "book_states", None, "data_parser.py")[:1]]
    if train is None or test is None or len(train) != len(test) or not train:
        raise InputError(
            f"train_pairs = {train} and test_pairs = {test} must name equally many recordings"
        )
    for learned, judged in zip(train, test, strict=True):
        if learned == judged:
            raise InputError(f"{learned} is both in train_pairs and in test_pairs: name another")
    return [[*both] for both in zip(train, test, strict=True)]


def say_what_runs(config: dict, pairs: list[list[str]]) -> None:
    agents = ", ".join(config["agents"])
    if config["train_pairs"] is None:
        share = config["train_share"]
        print(
            f"quick form: {pairs[0][0]} alone, its first {share:.0%} to learn on, the rest to test"
        )
    else:
        print("\n".join(f"learn on {train}, test on {test}" for train, test in pairs))
    trainings = counted(config["seeds"], "training")
    print(f"{agents}: {trainings} of {config['steps']:,} decisions each", flush=True)


def prepare(config: dict, encoder: Encoder, weights: str, pairs: list[str]) -> Setting:
    """Open a market's books, and make what agents see of them."""
    books = open_books(config["data_dir"], pairs, encoder.levels)
    books.sort(key=lambda book: pairs.index(book.pair))
    stride, ends = inputs.pick_ends(encoder, books, config["decisions"], config["train_share"])
    if config["latency_states"] > stride:
        raise InputError(
            f"latency_states = {config['latency_states']} is more than the {stride} states between "
            "two decisions: lower it, or set a smaller --decisions"
        )
    books = [books[0], books[-1]]
    for book, mine, period in zip(books, ends, ("learn on", "test"), strict=True):
        if len(mine) < 2 * BLOCKS:
            raise InputError(
                f"{book.pair} has {len(mine)} decisions to {period}, less than "
                f"{2 * BLOCKS}: set a larger --decisions"
            )
    inputs.check_unseen(encoder, books[1], int(ends[1][0]) - encoder.states)
    networks = {}
    if {"vector", "both"} & {*config["agents"]}:
        networks["vector"] = (encoder, weights)
    if "random_weights" in config["agents"]:
        blank = Encoder(make_untrained(encoder.module.encoder, 0), encoder.card)
        networks["random_weights"] = (blank, f"random weights in the shape of {weights}")
    folder = Path(config["runs_dir"]) / "agent"
    periods = [*zip(books, ends, strict=True)]
    found = {
        name: [inputs.find_vectors(network, told, *period, folder) for period in periods]
        for name, (network, told) in networks.items()
    }
    found["features"] = [inputs.describe(*period, encoder.states) for period in periods]
    if "both" in config["agents"]:
        both = zip(found["features"], found["vector"], strict=True)
        found["both"] = [np.hstack(two) for two in both]
    scaled = {name: inputs.scale(*two) for name, two in found.items()}
    scaled["scratch"] = [np.arange(len(x), dtype=np.float32)[:, None] for x in ends]
    return Setting(books, ends, scaled, encoder, weights)


def judge_market(config: dict, setting: Setting) -> list[dict[str, Any]]:
    """Return the rows of a market: what it is like, its agents, and their leads."""
    saw = setting.books[0].pair in setting.encoder.card["pairs"]
    note = f"learned on {setting.books[0].pair}; the encoder {'saw' if saw else 'never saw'} it"
    train, test = setting.markets("features", config, "take")
    rows = report.rows_of_market(setting.name, train, test, note)
    for fill in config["fills"]:
        results: dict[str, report.Result] = {}
        for agent in (*RULES, *config["agents"]):
            began = time.perf_counter()
            results[agent] = collect(config, setting, fill, agent)
            seconds = time.perf_counter() - began
            case = f"{setting.name}/{fill}/{agent}"
            rows += report.rows_of_agent(case, results[agent], test.hours, train.hours)
            print(f"{case:<50}{seconds:7.1f} s", flush=True)
        rows += report.rows_of_leads(f"{setting.name}/{fill}", results, test.hours)
    return rows


def collect(config: dict, setting: Setting, fill: str, agent: str) -> report.Result:
    """Run an agent with each seed, or read what was found before; rules are run each time."""
    if agent in RULES:
        found = [*run_rules(config, setting, fill, agent)]
    else:
        found = [run_case(config, setting, fill, agent, seed) for seed in range(config["seeds"])]
    return report.Result(
        found[0]["steps"],
        np.array([case["blocks"] for case in found]),
        np.array([case["train_gross"] for case in found]),
    )


def run_rules(config: dict, setting: Setting, fill: str, agent: str) -> Iterator[dict]:
    train, test = setting.markets("features", config, fill)
    for seed in range(config["seeds"] if agent == "random" else 1):
        if agent == "hold":
            tables = [policies.hold(train), policies.hold(test)]
        elif agent == "random":
            tables = [policies.at_random(train, seed), policies.at_random(test, seed)]
        else:
            threshold = policies.fit_threshold(train)
            tables = [policies.follow_imbalance(market, threshold) for market in (train, test)]
        yield {
            "steps": [0],
            "blocks": [sum_blocks(test, tables[1])],
            "train_gross": play(train, tables[0]).gross.sum(),
        }


def run_case(config: dict, setting: Setting, fill: str, agent: str, seed: int) -> dict:
    """Train an agent with a seed and judge it; or read the file of a case that is done."""
    steps = config["steps"]
    if agent == "scratch":
        steps = config["scratch_steps"] or steps
    books = [identity(book) for book in setting.books]
    ends = [hashlib.sha256(x.tobytes()).hexdigest() for x in setting.ends]
    code = hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest()
    settings = [config["fee_bps"], config["latency_states"], setting.weights, code]
    told = json.dumps([books, ends, settings, fill, agent, seed, steps])
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    file = Path(config["runs_dir"]) / "agent" / f"{setting.name}_{fill}_{agent}_{seed}_{key}.json"
    if file.exists():
        return json.loads(file.read_text())
    train, test = setting.markets(agent, config, fill)

    def look(policy: Any) -> dict:
        seen: list[Any] = [train.inputs, test.inputs]
        if agent == "scratch":
            both = zip(setting.books, setting.ends, strict=True)
            seen = [policies.encode_all(policy, book, mine) for book, mine in both]
        tables = [policies.table_of(policy, x) for x in seen]
        return {
            "blocks": sum_blocks(test, tables[1]).tolist(),
            "train_gross": float(play(train, tables[0]).gross.sum()),
        }

    reader, device = None, "cpu"
    if agent == "scratch":
        shape = setting.encoder.module.encoder.config
        reader = {"encoder": shape, "book": setting.books[0], "ends": setting.ends[0]}
        device = str(setting.encoder.device)
    began = time.perf_counter()
    judged = policies.train(train, seed, steps, look, reader, device)
    case = {
        "steps": [*judged],
        "blocks": [found["blocks"] for found in judged.values()],
        "train_gross": [*judged.values()][-1]["train_gross"],
        "seconds": time.perf_counter() - began,
    }
    with new_file(file) as handle:
        handle.write(json.dumps(case).encode())
    return case


if __name__ == "__main__":
    run(main, config)
