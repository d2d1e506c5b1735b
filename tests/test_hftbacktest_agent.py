"""examples/hftbacktest_agent.py: money against hftbacktest's own, queues, and no look ahead."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import metadata, refusal, shell

pytest.importorskip("hftbacktest")

import gymnasium.utils.env_checker
import stable_baselines3.common.env_checker

from examples.agent import inputs, policies, quoting, recording
from examples.agent.quoting import ACTIONS, FLATTEN, QuotingEnv, Rules, Session, Venue
from examples.hftbacktest_agent import make_table
from lob.book.states import Book, open_book
from lob.config import InputError
from lob.model.checkpoint import save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config

STATES, TICK, LOT, MS = 32, 0.1, 0.001, 1_000_000
START_MS = 1_723_161_256_000
RULES = Rules(TICK, LOT, unit_lots=10, limit=2, wide_ticks=2)
FEED_LATENCY_NS = 2 * MS
VENUE = Venue(5 * MS, queue_power=3.0, maker_fee_bps=-0.3, taker_fee_bps=1.7)


def price(ticks: int) -> str:
    return f"{ticks // 10}.{ticks % 10}"


def levels(sizes: dict[int, int]) -> list[list[str]]:
    return [[price(ticks), f"{lots / 1000:.3f}"] for ticks, lots in sizes.items()]


class Recorder:
    """Writes a recording as hftbacktest's collector does: a local time and a message a line."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.update = 1000

    def add(self, message: dict, time_ms: int, latency_ns: int) -> None:
        self.lines.append((time_ms * MS + latency_ns, json.dumps(message, separators=(",", ":"))))

    def snapshot(self, time_ms: int, bids: dict, asks: dict, latency_ns: int = MS) -> None:
        best = {"bids": levels(bids), "asks": levels(asks)}
        self.add(
            {"lastUpdateId": self.update, "E": time_ms, "T": time_ms, **best}, time_ms, latency_ns
        )

    def depth(self, time_ms: int, bids: dict, asks: dict, latency_ns: int = MS) -> None:
        times = {"e": "depthUpdate", "E": time_ms, "T": time_ms, "s": "BTCUSDT"}
        ids = {"U": self.update, "u": self.update + 1, "pu": self.update}
        self.update += 1
        data = {**times, **ids, "b": levels(bids), "a": levels(asks)}
        self.add({"stream": "btcusdt@depth@0ms", "data": data}, time_ms, latency_ns)

    def trade(self, time_ms: int, ticks: int, lots: int, sells: bool, latency_ns: int = MS) -> None:
        data = {"e": "trade", "E": time_ms, "T": time_ms, "s": "BTCUSDT", "t": 1, "X": "MARKET"}
        data |= {"p": price(ticks), "q": f"{lots / 1000:.3f}", "m": sells}
        self.add({"stream": "btcusdt@trade", "data": data}, time_ms, latency_ns)

    def write(self, file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{local} {message}\n" for local, message in sorted(self.lines))
        file.write_bytes(gzip.compress(text.encode() + b"\n"))
        return file


def record_walk(file: Path, seed: int, messages: int = 500) -> Path:
    """A random walk of best prices, a depth message some 50 ms after the other, and trades."""
    rng = np.random.default_rng(seed)
    recorder, bid, latency_ns, shown = Recorder(), 600_000, 0, ({}, {})
    for number in range(messages):
        time_ms = START_MS + 50 * number + int(rng.integers(0, 20))
        bid += int(rng.choice([-2, -1, 0, 1, 2]))
        # Messages come one after the other, but some much later than others.
        latency_ns = max(latency_ns - 20 * MS, int(rng.choice([3, 4, 90]) * MS + rng.integers(MS)))
        sizes = rng.integers(1, 40, (2, 10)).tolist()
        now = (
            {bid - level: sizes[0][level] for level in range(10)},
            {bid + 1 + level: sizes[1][level] for level in range(10)},
        )
        if number == 0:
            recorder.snapshot(time_ms, *now, latency_ns)
            recorder.depth(time_ms + 1, *now, latency_ns)
        else:
            gone = [
                dict.fromkeys(old.keys() - new.keys(), 0)
                for old, new in zip(shown, now, strict=True)
            ]
            recorder.depth(
                time_ms, *(old | new for old, new in zip(gone, now, strict=True)), latency_ns
            )
        shown = now
        for _ in range(int(rng.integers(0, 3))):
            sells = bool(rng.integers(2))
            lots, ticks = int(rng.integers(1, 30)), bid if sells else bid + 1
            recorder.trade(time_ms + int(rng.integers(1, 25)), ticks, lots, sells, latency_ns)
    return recorder.write(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of some 25 s, and their states of depth 16."""
    place = tmp_path_factory.mktemp("hft")
    for seed, pair in enumerate(("LEARN", "JUDGE")):
        record_walk(place / "raw" / pair / "a.gz", seed)
    done = shell("data_parser.py", f"--data_dir={place}", "--depth=16", "--workers=1")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def book(folder: Path) -> Book:
    return open_book(folder / "book_states" / "LEARN")


@pytest.fixture(scope="module")
def events(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    kept = tmp_path_factory.mktemp("kept")
    file = folder / "raw" / "LEARN" / "a.gz"
    first = recording.find_events([file], kept, FEED_LATENCY_NS)
    (written,) = kept.iterdir()
    assert written.suffix == ".npz" and len(np.load(written)["data"]) == len(first)
    return recording.find_events([file], kept, FEED_LATENCY_NS)


def make_session(events: np.ndarray, book: Book, interval_ms: int) -> tuple[Session, np.ndarray]:
    times, ends = recording.pick_decisions(events, book, STATES, interval_ms * MS)
    mid = book.price_ticks[ends - 1, 7:9].sum(axis=1, dtype=np.int64)
    seen = np.random.default_rng(0).normal(size=(len(ends), 3)).astype(np.float32)
    return Session(events, times, seen, mid, np.zeros(len(mid)), RULES, VENUE), ends


@pytest.fixture(scope="module")
def session(events: np.ndarray, book: Book) -> Session:
    return make_session(events, book, 100)[0]


def random_table(session: Session, seed: int) -> np.ndarray:
    shape = len(quoting.list_own_states(RULES.limit)), len(session.inputs)
    return np.random.default_rng(seed).integers(0, len(ACTIONS), shape)


def test_a_decision_sees_all_states_received_by_then_and_none_later(folder, events, book):
    """The receipts are read from the recording itself; hftbacktest's own book agrees."""
    session, ends = make_session(events, book, 30)
    receipts = []
    for line in gzip.decompress((folder / "raw" / "LEARN" / "a.gz").read_bytes()).splitlines():
        if b"depthUpdate" in line:
            receipts.append(int(line.split()[0]) + FEED_LATENCY_NS)
    assert len(receipts) == book.rows and len(ends) > 500
    hbt = session.begin()
    for time_ns, end, mid in zip(session.times_ns[:-1], ends, session.mid, strict=True):
        assert end == np.searchsorted(receipts, time_ns, side="right") >= STATES
        if time_ns > hbt.current_timestamp:
            hbt.elapse(int(time_ns) - hbt.current_timestamp)
        assert hbt.current_timestamp == time_ns and quoting.find_mid(hbt) == mid
    hbt.close()
    waits = session.times_ns[:-1] - book.timestamps[ends - 1]
    assert waits.max() > 90 * MS  # some states are old, since their messages came late


def test_a_recording_that_ends_now_gives_the_same_inputs(folder, events, book, tmp_path):
    """What comes later changes nothing of what an agent sees."""
    session, ends = make_session(events, book, 100)
    now = len(ends) // 2
    recorder = Recorder()
    for line in gzip.decompress((folder / "raw" / "LEARN" / "a.gz").read_bytes()).splitlines():
        local, _, message = line.decode().partition(" ")
        if local and int(local) + FEED_LATENCY_NS <= session.times_ns[now]:
            recorder.lines.append((int(local), message))
    file = recorder.write(tmp_path / "raw" / "LEARN" / "a.gz")
    done = shell("data_parser.py", f"--data_dir={tmp_path}", "--depth=16", "--workers=1")
    assert done.returncode == 0, done.stderr
    shorter = open_book(tmp_path / "book_states" / "LEARN")
    events = recording.find_events([file], tmp_path, FEED_LATENCY_NS)
    times, again = recording.pick_decisions(events, shorter, STATES, 100 * MS)
    assert len(again) > now - 3  # the last message that was received came before the decision
    np.testing.assert_array_equal(times, session.times_ns[: len(times)])
    np.testing.assert_array_equal(again, ends[: len(again)])
    np.testing.assert_array_equal(
        inputs.describe(shorter, again, STATES), inputs.describe(book, again, STATES)
    )


@pytest.mark.parametrize("limit", [1, 3])
def test_money_is_hftbacktests_own_at_each_step(events, book, limit):
    """Steps of 10 ms, in which rarely more than one order is filled."""
    session, _ = make_session(events, book, 10)
    session = replace(session, rules=RULES._replace(limit=limit))
    rng, ids, hbt = np.random.default_rng(limit), np.zeros(1, np.int64), session.begin()
    sums, cents, filled, positions = np.zeros(6, np.int64), TICK / 2 * LOT, 0, set()
    fees = np.array([VENUE.maker_fee_bps, VENUE.taker_fee_bps]) / 1e4
    for number, until in enumerate(session.times_ns[1:].tolist()):
        if number % 10 == 0:
            action = int(rng.integers(0, FLATTEN + 1))
        before = sums.copy()
        quoting.decide(hbt, session.rules, action, until, ids, sums)
        values = hbt.state_values(0)
        mid = quoting.find_mid(hbt) * TICK / 2
        equity = values.balance + values.position * mid
        assert (sums[0] + sums[1]) * cents == pytest.approx(equity, abs=1e-6)
        assert sums[2:4] @ fees * cents == pytest.approx(values.fee, abs=1e-9)
        assert sums[2:4].sum() * cents == pytest.approx(values.trading_value, abs=1e-6)
        assert sums[4:].sum() == values.num_trades
        assert abs(values.position) <= limit * 10 * LOT + 1e-12
        step = (sums - before)[None]
        equity_bps = session.profit_bps(step)[0] * session.mid[0] * TICK / 2 * 10 * LOT / 1e4
        parts = (step[0, 0] + step[0, 1]) * cents - step[0, 2:4] @ fees * cents
        assert equity_bps == pytest.approx(parts, abs=1e-9)
        filled += step[0, 4:].sum() == 1
        positions.add(round(values.position / LOT))
    hbt.close()
    assert filled > 40 and sums[4] > 30 and sums[5] > 5
    assert {-10 * limit, 0, 10 * limit} <= positions


def test_playing_changes_nothing_that_is_played(session):
    before, table = session.events.copy(), random_table(session, 1)
    accounts = session.play(table)
    np.testing.assert_array_equal(session.events, before)
    np.testing.assert_array_equal(session.play(table), accounts)


def test_never_quoting_earns_exactly_nothing(session):
    accounts = session.play(np.zeros_like(random_table(session, 0)))
    assert ACTIONS[0] == "none" and (accounts == 0).all()
    assert (session.profit_bps(accounts) == 0).all()


def make_still(tmp_path: Path, trades: list[tuple[int, int, int, bool]]) -> Session:
    """A book that stands still with 20 lots at each price, and trades (ms, ticks, lots, sells)."""
    recorder = Recorder()
    bids = {600_000 - level: 20 for level in range(10)}
    asks = {600_001 + level: 20 for level in range(10)}
    recorder.snapshot(START_MS, bids, asks)
    for ms in range(1, 2000, 50):
        recorder.depth(START_MS + ms, {599_900: 5 + ms % 2}, {})
    for ms, ticks, lots, sells in trades:
        recorder.trade(START_MS + ms, ticks, lots, sells)
    events = recording.convert([recorder.write(tmp_path / "still.gz")])
    times = (START_MS + np.arange(100, 1900, 100)) * MS
    mid = np.full(len(times) - 1, 1_200_001)
    seen = np.zeros((len(mid), 1), np.float32)
    return Session(events, times, seen, mid, np.zeros(len(mid)), RULES, VENUE)


def test_an_order_waits_for_its_turn_and_earns_half_the_spread_and_the_rebate(tmp_path):
    # 20 lots stand before the order. 15 are sold into them, then 10: the second trade reaches it.
    session = make_still(tmp_path, [(450, 600_000, 15, True), (850, 600_000, 10, True)])
    accounts = session.play(np.full_like(random_table(session, 0), ACTIONS.index("symmetric")))
    filled = np.flatnonzero(accounts[:, 4])
    np.testing.assert_array_equal(filled, [7])  # from 800 to 900 ms
    np.testing.assert_array_equal(accounts[7], [0, 10, 10 * 1_200_000, 0, 1, 0])
    assert accounts[-1].tolist() == [0, -10, 0, 10 * 1_200_000, 0, 1]  # the end: sold at the bid
    profit = session.profit_bps(accounts)
    assert profit[7] == pytest.approx(1e4 / 1_200_001 + 0.3 * 1_200_000 / 1_200_001)
    assert profit[-1] == pytest.approx(-1e4 / 1_200_001 - 1.7 * 1_200_000 / 1_200_001)
    # Who leaves the queue for a moment stands at its end again.
    leaves = np.full_like(random_table(session, 0), ACTIONS.index("symmetric"))
    leaves[:, 5] = ACTIONS.index("none")
    assert session.play(leaves)[:, 4].sum() == 0


@pytest.mark.parametrize(("ms", "fills"), [(104, 0), (106, 1)])
def test_an_order_is_at_the_exchange_after_its_latency(tmp_path, ms, fills):
    """The order is sent at 100 ms, and its way takes 5 ms. A trade below its price fills it."""
    session = make_still(tmp_path, [(ms, 599_999, 1, True)])
    accounts = session.play(np.full_like(random_table(session, 0), ACTIONS.index("symmetric")))
    assert accounts[:, 4].sum() == fills


def test_an_order_that_is_being_cancelled_counts_towards_the_limit(tmp_path):
    """The best bid rises, so the order is cancelled at 200 ms; a trade fills it at 202 ms."""
    recorder = Recorder()
    bids = {600_000 - level: 20 for level in range(10)}
    asks = {600_002 + level: 20 for level in range(10)}
    recorder.snapshot(START_MS, bids, asks)
    recorder.depth(START_MS + 1, {599_900: 5}, {})
    recorder.depth(START_MS + 150, {600_001: 20}, {})
    recorder.trade(START_MS + 202, 599_999, 1, True)
    recorder.trade(START_MS + 290, 599_998, 1, True)
    recorder.depth(START_MS + 800, {599_900: 6}, {})
    events = recording.convert([recorder.write(tmp_path / "rises.gz")])
    times = (START_MS + np.arange(100, 800, 100)) * MS
    mid, rules = np.full(len(times) - 1, 1_200_002), RULES._replace(limit=1)
    seen = np.zeros((len(mid), 1), np.float32)
    rises = Session(events, times, seen, mid, np.zeros(len(mid)), rules, VENUE)
    quotes = np.full((len(quoting.list_own_states(1)), len(mid)), ACTIONS.index("lean to buy"))
    fills = rises.play(quotes)[:, 4:]
    np.testing.assert_array_equal(fills[1], [1, 0])  # not the order that would stand at the new bid
    assert fills[:-1, 0].sum() == 1


def test_the_environment_earns_what_play_earns(session):
    table = random_table(session, 3)
    env = QuotingEnv(session, episode_steps=10**9)
    seen, _ = env.reset(seed=4)
    begin, own = env.now, quoting.list_own_states(RULES.limit)
    rest = replace(
        session, times_ns=session.times_ns[begin:], inputs=session.inputs[begin:], mid=session.mid
    )
    accounts = rest.play(table[:, begin:])
    for number, account in enumerate(accounts):
        np.testing.assert_array_equal(seen[:3], session.inputs[begin + number])
        state = int(np.flatnonzero((own == seen[3:]).all(axis=1))[0])
        action = table[state, begin + number]
        seen, reward, terminated, truncated, info = env.step(action)
        assert [*info.values()] == account.tolist()
        assert reward == session.profit_bps(account) and not truncated
        assert terminated == (number == len(accounts) - 1)
    assert seen[3] == 0 and accounts[:, 4].sum() > 5
    env.close()


def test_the_checkers_of_gymnasium_and_stable_baselines_pass(session):
    env = QuotingEnv(session)
    gymnasium.utils.env_checker.check_env(env, skip_render_check=True)
    stable_baselines3.common.env_checker.check_env(env)
    env.close()


def test_a_table_holds_what_the_policy_does(session):
    env = QuotingEnv(session)
    agent = policies.PPO("MlpPolicy", env, seed=0, device="cpu")
    own = quoting.list_own_states(RULES.limit)
    table = policies.best_actions(agent.policy, session.inputs, own)
    assert table.shape == (len(own), len(session.inputs))
    for state in range(0, len(own), 3):
        for number in range(0, len(session.inputs), 50):
            seen = np.concatenate([session.inputs[number], own[state]])
            assert table[state, number] == agent.predict(seen, deterministic=True)[0]
    env.close()


def test_recordings_that_cannot_be_played_are_refused(folder, events, book, tmp_path):
    with pytest.raises(InputError, match="the states of LEARN are not those of the recording"):
        recording.find_received(events, replace(book, timestamps=book.timestamps + 1))
    with pytest.raises(InputError, match="the recording of LEARN has a gap"):
        recording.find_received(events, replace(book, segment_starts=np.array([0, 100])))
    with pytest.raises(InputError, match="must lie beside its states"):
        recording.find_events([tmp_path / "b.gz"], tmp_path, 0)
    lines = gzip.decompress((folder / "raw" / "LEARN" / "a.gz").read_bytes()).splitlines()
    wrong = {
        "microseconds": gzip.compress(b"\n".join(line[:16] + line[19:] for line in lines)),
        "trades alone": gzip.compress(b"\n".join(line for line in lines if b"trade" in line)),
        "cut off": gzip.compress(b"\n".join(lines))[:-100],
        "not packed": b"\n".join(lines),
    }
    for name, content in wrong.items():
        (tmp_path / f"{name}.gz").write_bytes(content)
        with pytest.raises(InputError, match=f"can't read {name}.gz"):
            recording.find_events([tmp_path / f"{name}.gz"], tmp_path, 0)


def test_the_imbalance_rule_leans_to_the_larger_side(session):
    own = quoting.list_own_states(RULES.limit)
    leaning = replace(session, inputs=session.inputs[:4], imbalance=np.array([0.9, -0.7, 0.4, 0]))
    table = make_table("imbalance", leaning, own, 0.5, 0)
    wanted = [quoting.LEAN_TO_BUY, quoting.LEAN_TO_SELL, quoting.NONE, quoting.NONE]
    assert (table == wanted).all() and table.shape == (len(own), 4)


def save_run(folder: Path) -> None:
    torch.manual_seed(0)
    model = BookEncoder(encoder_config("tiny_transformer", depth=16, temporal_dim=STATES))
    seen = {"books": [{"pair": "LEARN"}], "cuts_ns": [START_MS * MS] * 2}
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    file = folder / "a_run" / "checkpoints" / "best.safetensors"
    save_checkpoint(file, weights, metadata(model.config, data=seen))


def run_script(folder: Path, runs: Path, *words: str) -> list[Any]:
    save_run(runs)
    usual = [f"--data_dir={folder}", f"--runs_dir={runs}", "--model_path=a_run", "--device=cpu"]
    usual += ["--train_pair=LEARN", "--train_files=None", "--test_pair=JUDGE", "--seeds=1"]
    return ["examples/hftbacktest_agent.py", *usual, "--steps=512", *words]


def test_the_script_judges_every_policy(folder, tmp_path):
    done = shell(*run_script(folder, tmp_path, "--agents=['vector', 'features']"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "agent_hft.json").read_text())
    cells = {(row["case"], row["metric"]): row["value"] for row in found["rows"]}
    for fee_bps in (0, -1):
        case = f"JUDGE/fee_{fee_bps}"
        assert cells[f"{case}/none", "profit_bps_hour"] == 0
        assert (f"{case}/none", "break_even_bps") not in cells
        for agent in ("symmetric", "random", "imbalance", "vector", "features"):
            mine = {
                metric: value
                for (name, metric), value in cells.items()
                if name == f"{case}/{agent}"
            }
            parts = [
                mine[f"{x}_bps_hour"] for x in ("spread", "inventory", "taker_fee", "maker_fee")
            ]
            assert sum(parts) == pytest.approx(mine["profit_bps_hour"], rel=1e-3, abs=0.1)
        assert (f"{case}/vector_over_features", "curve_bps_hour") in cells
    # What a rule does, and so its break-even fee, is the same whatever the fee is.
    fees = [cells[f"JUDGE/fee_{fee}/symmetric", "break_even_bps"] for fee in (0, -1)]
    assert fees[0] == pytest.approx(fees[1], rel=1e-5) and fees[0] != 0
    assert cells["JUDGE/fee_-1/symmetric", "maker_fee_bps_hour"] > 0
    assert {"curve_0", "curve_512_least"} <= {metric for _, metric in cells}
    kept = sorted(file.suffix for file in (tmp_path / "agent").iterdir())
    assert kept == [".npy", ".npy", ".npz", ".npz"]


def test_users_mistakes_get_one_line(folder, tmp_path):
    for wrong, said in (
        (["--interval_ms=0"], "interval_ms = 0 must be >= 1"),
        (["--agents=['scratch']"], "agents"),
        (["--train_pair=JUDGE"], "JUDGE is both train_pair and test_pair"),
        (["--train_files=['b.gz']"], "the raw recording must lie beside its states"),
        (["--interval_ms=2000"], "less than 40: set a smaller --interval_ms"),
    ):
        assert said in refusal(*run_script(folder, tmp_path, *wrong)), said
