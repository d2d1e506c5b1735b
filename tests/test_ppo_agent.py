"""examples/ppo_agent.py: accounts against exact ledgers, no look ahead, and equal environments."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import gymnasium.utils.env_checker
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch
from conftest import metadata, refusal, shell, write_book

from examples.agent import inputs, policies, report
from examples.agent.environments import TradingEnv, TradingVecEnv
from examples.agent.market import (
    BLOCKS,
    FILLS,
    TARGETS,
    Accounts,
    Market,
    Replay,
    make_market,
    play,
    settle,
    sum_blocks,
)
from examples.ppo_agent import config, list_pairs
from lob.book.states import Book, open_book
from lob.config import InputError
from lob.evaluation.intervals import RESAMPLES
from lob.model.checkpoint import save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config
from lob.model.pretrained import Encoder
from lob.windows.splits import count_shared_states

STATES, STRIDE = 32, 7


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """2500 states of depth 16 in three segments."""
    folder = tmp_path_factory.mktemp("agent")
    return open_book(write_book(folder, rows=2500, depth=16, segment_starts=(0, 700, 2200)))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    model = BookEncoder(encoder_config("tiny_transformer", depth=16, temporal_dim=STATES))
    dates = {"last_date": "2026-05-02T02:36:30", "chosen_until": "2026-05-02T02:36:31"}
    return Encoder(model, {"name": "tiny", "pairs": ["BTC_USD"], **dates})


def market_of(book: Book, encoder: Encoder, fill: str = "take", **choices) -> Market:
    ends = encoder.end_rows(book, STRIDE)
    seen = np.random.default_rng(0).normal(size=(len(ends), 3)).astype(np.float32)
    return make_market(book, ends, seen, fill, **choices)


def random_table(market: Market, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(TARGETS, (3, len(market.mid)))


def keep_ledger(book: Book, ends: np.ndarray, market: Market, table: np.ndarray, fill: str):
    """Return cash + position x mid at each decision, in fractions of a tick, and of cash alone."""
    latency, fee = 2, Fraction(17, 100_000)
    cash, held, worth = Fraction(0), 0, []

    def trade(row: int, units: int) -> None:
        nonlocal cash
        bid, ask = (int(book.price_ticks[row, level]) for level in (7, 8))
        price = Fraction(bid + ask, 2) if fill == "mid" else Fraction(ask if units > 0 else bid)
        cash -= units * price + abs(units) * price * fee

    for number, end in enumerate(ends.tolist()):
        row = end - 1
        if market.is_last[number] and held:
            trade(row, -held)
            held = 0
        worth.append(cash + held * Fraction(int(book.price_ticks[row, 7:9].sum()), 2))
        if not market.is_last[number]:
            wanted = int(table[held + 1, number])
            if wanted != held:
                trade(row + latency, wanted - held)
            held = wanted
    return worth, cash


@pytest.mark.parametrize("fill", FILLS)
def test_each_profit_is_that_of_a_ledger_in_exact_fractions(book, encoder, fill):
    market = market_of(book, encoder, fill, fee_bps=1.7, latency_states=2)
    table = random_table(market, 1)
    worth, cash = keep_ledger(book, encoder.end_rows(book, STRIDE), market, table, fill)
    accounts = play(market, table)
    tick_bps = 2 * market.bps
    expected = [float(worth[i + 1] - worth[i]) * tick_bps for i in market.decisions]
    np.testing.assert_allclose(accounts.profit, expected, rtol=0, atol=1e-9)
    assert accounts.profit.sum() == pytest.approx(float(cash) * tick_bps, abs=1e-9)
    parts = accounts.inventory - accounts.spread - accounts.fee
    np.testing.assert_allclose(accounts.profit, parts, rtol=0, atol=1e-12)
    assert accounts.trades.sum() > 100 and (accounts.spread > 0).any() == (fill == "take")


def test_a_round_trip_costs_spread_and_fees_as_computed_by_hand():
    # Mids 100, 101, 103; half the spread is 1 tick. Bought at 101 and closed at 102; fee 10 bps.
    mid, spread = np.array([200, 202, 206]), np.array([2, 2, 2])
    last, nothing = np.array([False, False, True]), np.zeros(3)
    market = Market(
        np.zeros((3, 1), np.float32), mid, spread, mid, spread, last, nothing, nothing, 10.0, 50.0
    )
    accounts = play(market, np.ones((3, 3), dtype=np.int64))
    np.testing.assert_allclose(accounts.inventory, [100, 200])
    np.testing.assert_allclose(accounts.spread, [100, 100])
    np.testing.assert_allclose(accounts.fee, [10.1, 10.2])
    np.testing.assert_allclose(accounts.trades, [1, 1])


@pytest.mark.parametrize("fill", FILLS)
def test_never_trading_earns_exactly_nothing(book, encoder, fill):
    market = market_of(book, encoder, fill, fee_bps=3.0)
    accounts = play(market, policies.hold(market))
    assert all((values == 0).all() for values in accounts)


def test_trading_at_random_loses_half_the_spread_and_the_fee_of_each_fill():
    rng = np.random.default_rng(3)
    count, half_spread, fee_bps = 40_000, 3, 2.0
    mid = 2_000_000 + 2 * np.cumsum(rng.choice([-5, 5], count))
    spread = np.full(count, half_spread)
    last = np.arange(count) == count - 1
    nothing = np.zeros(count)
    inputs_ = np.zeros((count, 1), np.float32)
    market = Market(inputs_, mid, spread, mid, spread, last, nothing, nothing, fee_bps, 1e4 / 2e6)
    accounts = play(market, policies.at_random(market, 0))
    fills = accounts.trades.sum()
    lost = half_spread * market.bps + fee_bps * mid.mean() / 2e6
    assert -accounts.profit.sum() / fills == pytest.approx(lost, abs=4 * error_of(accounts, fills))
    paid = (accounts.spread + accounts.fee).sum() / fills
    assert paid == pytest.approx(lost, rel=1e-2)


def error_of(accounts: Accounts, fills: float) -> float:
    return accounts.inventory.std() * len(accounts.inventory) ** 0.5 / fills


@pytest.mark.parametrize("fill", FILLS)
def test_one_trader_and_many_earn_the_same(book, encoder, fill):
    """The environment of gymnasium, the vectorised one and `play` agree on every decision."""
    market = market_of(book, encoder, fill, fee_bps=0.4)
    many = TradingVecEnv(market, 5, episode_steps=11, scale=1.0, seed=2)
    one = TradingEnv(market, episode_steps=11)
    seen = many.reset()
    one.reset(seed=0)
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(60):
        before = [x.copy() for x in (many.replay.now, many.replay.held, many.replay.steps)]
        actions = rng.integers(0, 3, 5)
        seen, rewards, done, infos = many.step(actions)
        for who in range(5):
            one.replay.now, one.replay.held, one.replay.steps = (x[who : who + 1] for x in before)
            own, reward, terminated, truncated, parts = one.step(int(actions[who]))
            assert reward == rewards[who] and done[who] == (terminated or truncated)
            assert reward == pytest.approx(
                parts["inventory"] - parts["spread"] - parts["fee"], rel=1e-5, abs=1e-5
            )
            shown = infos[who]["terminal_observation"] if done[who] else seen[who]
            np.testing.assert_array_equal(own, shown)
            ended += done[who]
            if done[who]:
                assert infos[who]["TimeLimit.truncated"] == truncated and seen[who][-1] == 0
    assert ended > 20
    table = random_table(market, 4)
    replay = Replay(market, 1, episode_steps=10**9)
    rewards_of_play = play(market, table).profit
    for number, entry in enumerate(market.decisions):
        replay.now[0] = entry
        actions = table[replay.held + 1, entry] + 1
        reward, *_ = replay.step(actions)
        assert reward[0] == np.float32(rewards_of_play[number])


def test_the_checkers_of_gymnasium_and_stable_baselines_pass(book, encoder):
    market = TradingEnv(market_of(book, encoder))
    gymnasium.utils.env_checker.check_env(market, skip_render_check=True)
    stable_baselines3.common.env_checker.check_env(market)


@pytest.mark.parametrize("latency", [0, 2])
def test_a_changed_future_changes_neither_what_is_seen_nor_the_fill(
    book, encoder, latency, tmp_path
):
    """All states after those that an order meets are changed."""
    ends = encoder.end_rows(book, STRIDE)
    number = len(ends) // 3
    after = ends[number] + latency
    price, sizes = np.array(book.price_ticks), np.array(book.sizes)
    price[after:] += 1000
    sizes[after:] = sizes[after:, ::-1] * 3
    changed = replace(book, price_ticks=price, sizes=sizes)
    found = []
    for name, each in (("a", book), ("b", changed)):
        vectors = inputs.find_vectors(encoder, "", each, ends, tmp_path / name)
        seen = np.hstack([vectors, inputs.describe(each, ends, STATES)])
        market = make_market(each, ends, seen, "take", latency_states=latency)
        found.append((seen, market))
    (seen, market), (other_seen, other) = found
    np.testing.assert_array_equal(seen[: number + 1], other_seen[: number + 1])
    for name in ("fill_mid", "fill_half_spread", "mid", "half_spread", "imbalance"):
        one, same = getattr(market, name), getattr(other, name)
        np.testing.assert_array_equal(one[: number + 1], same[: number + 1])
    assert not np.array_equal(seen[number + 1], other_seen[number + 1])
    assert market.fill_mid[number + 1] != other.fill_mid[number + 1]


def test_learning_and_testing_share_no_state_and_no_position_crosses_a_gap(book, encoder):
    stride, (train, test) = inputs.pick_ends(encoder, [book], 200, 0.6)
    assert len(train) > 100 and len(test) > 50
    assert count_shared_states([train, test], STATES, book.rows) == 0
    ends = np.concatenate([train, test])
    for border in book.segment_starts:
        assert not ((ends - STATES < border) & (border < ends)).any()
    market = market_of(book, encoder)
    rows = encoder.end_rows(book, STRIDE) - 1
    segment = np.searchsorted(book.segment_starts, rows, side="right")
    np.testing.assert_array_equal(
        np.flatnonzero(market.is_last), np.flatnonzero(np.append(np.diff(segment), 1))
    )
    wide = encoder.end_rows(book, 300)  # a stride that is longer than a window
    assert make_market(book, wide, np.zeros((len(wide), 1)), "mid").is_last.sum() == 3
    assert stride == 7


def test_an_encoder_that_saw_the_test_is_refused(book, encoder):
    inputs.check_unseen(encoder, book, 2400)
    with pytest.raises(InputError, match="the encoder saw BTC_USD until"):
        inputs.check_unseen(encoder, book, 0)


def test_inputs_are_scaled_by_training_alone():
    train, test = inputs.scale(np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[1.0, 6.0], [99, 5]]))
    np.testing.assert_array_equal(train, [[-1, 0], [1, 0]])
    np.testing.assert_array_equal(test, [[0, 1], [5, 0]])


def test_a_table_holds_what_the_policy_does_decision_by_decision(book, encoder):
    market = market_of(book, encoder)
    found = []

    def look(policy) -> dict:
        table = policies.table_of(policy, market.inputs)
        for number in range(0, len(market.mid), 40):
            for held in TARGETS:
                seen = np.append(market.inputs[number], np.float32(held))
                action = policy.predict(seen, deterministic=True)[0]
                assert table[held + 1, number] == action - 1
        found.append(table)
        return {}

    seen = policies.train(market, 0, 512, look)
    assert [*seen] == [0, 512] and not np.array_equal(*found)


def test_an_agent_learns_to_follow_an_input_that_knows_the_next_move():
    rng = np.random.default_rng(0)
    moves = rng.choice([-50, 50], size=400)
    mid = 2 * (100_000 + np.concatenate([[0], np.cumsum(moves)])[:400])
    spread, nothing = np.full(400, 2), np.zeros(400)
    known = (moves[:, None] / 50).astype(np.float32)
    last = np.arange(400) == 399
    market = Market(known, mid, spread, mid, spread, last, nothing, nothing, 0.1, 1e4 / mid[0])
    ideal = play(market, np.broadcast_to(np.sign(moves), (3, 400))).profit.sum()
    judged = policies.train(
        market,
        0,
        8192,
        lambda policy: {"profit": play(market, policies.table_of(policy, known)).profit.sum()},
    )
    assert [*judged] == [0, *(512 << np.arange(5))]
    assert judged[8192]["profit"] > 0.9 * ideal > 0 and judged[0]["profit"] < 0.5 * ideal


def test_from_scratch_the_encoder_is_trained_and_reads_the_window_it_is_given(
    book, encoder, monkeypatch
):
    monkeypatch.setattr(policies, "TRADERS", 2)
    monkeypatch.setitem(policies.PPO_SETTINGS, "batch_size", 16)
    ends = encoder.end_rows(book, STRIDE)
    numbers = np.arange(len(ends), dtype=np.float32)[:, None]
    market = make_market(book, ends, numbers, "take")
    reader = {"encoder": encoder.module.encoder.config, "book": book, "ends": ends}
    weights = []

    def look(policy) -> dict:
        weight = policy.features_extractor.module.encoder.layers[0].fc1.weight
        weights.append(weight.detach().clone())
        own = policies.encode_all(policy, book, ends[:9])
        seen = torch.tensor([[3.0, -1.0], [8.0, 1.0]])
        features = policy.features_extractor(seen)
        torch.testing.assert_close(features[:, :-1], own[[3, 8]])
        table = policies.table_of(policy, own)
        action = policy.predict(np.array([3.0, -1.0], np.float32), deterministic=True)[0]
        assert table[0, 3] == action - 1
        return {}

    policies.train(market, 0, 64, look, reader)
    assert 0.01 < float(weights[0].std()) < 0.03  # the encoder's own initialisation, not PPO's
    assert not torch.equal(weights[0], weights[-1])


def test_the_imbalance_rule_keeps_its_position_between_thresholds(book, encoder):
    market = replace(market_of(book, encoder), imbalance=np.array([0.9, 0.1, -0.7, -0.2]))
    table = policies.follow_imbalance(market, 0.5)
    np.testing.assert_array_equal(table, [[1, -1, -1, -1], [1, 0, -1, 0], [1, 1, -1, 1]])


def test_the_break_even_fee_is_the_fee_at_which_the_profit_is_zero(book, encoder):
    market = market_of(book, encoder)
    table = random_table(market, 2)
    sums = sum_blocks(market, table)[None, None]
    result = report.Result([0], sums, np.zeros(1))
    fee, low, high = report.estimate([result], report.break_even)
    assert low < fee < high
    charged = replace(market, fee_bps=fee)
    assert play(charged, table).profit.sum() == pytest.approx(0, abs=1e-9)
    now = market.decisions
    again = settle(market, now[:1], np.zeros(1, np.int64), np.ones(1, np.int64))
    assert again.trades[0] == 1
    idle = report.Result([0], sum_blocks(market, policies.hold(market))[None, None], np.zeros(1))
    assert np.isnan(report.estimate([idle], report.break_even)).all()
    metrics = {row["metric"] for row in report.rows_of_agent("x", idle, 1.0, 1.0)}
    assert "break_even_bps" not in metrics and "profit_bps_hour" in metrics


def test_intervals_hold_the_truth_and_equal_agents_are_level():
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        gross = rng.normal(2, 4, (1, 1, 1, BLOCKS)) + rng.normal(0, 0.5, (5, 1, 1, 1))
        ones = np.ones_like(gross) * 1e4
        blocks = np.concatenate([gross, ones, ones], axis=2)
        fee, low, high = report.estimate(
            [report.Result([0], blocks, np.zeros(5))], report.break_even
        )
        held += low <= 2 <= high
        assert fee == pytest.approx(gross.mean())
    assert held >= 51  # 95 % of 60 are 57; fewer than 51 are as good as impossible
    two = report.Result([0, 1], np.repeat(blocks, 2, axis=1), np.zeros(5))
    rows = report.rows_of_leads("m", {"vector": two, "features": two}, 1.0)
    values = {row["metric"]: row["value"] for row in rows}
    assert values["break_even_bps"] == 0 and values["break_even_bps_low"] < 0
    assert RESAMPLES >= 1000


def save_run(folder: Path, cut_ns: int) -> None:
    torch.manual_seed(0)
    model = BookEncoder(encoder_config("tiny_transformer", depth=16, temporal_dim=STATES))
    seen = {"books": [{"pair": "BTC_USD"}], "cuts_ns": [cut_ns, cut_ns]}
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    file = folder / "a_run" / "checkpoints" / "best.safetensors"
    save_checkpoint(file, weights, metadata(model.config, data=seen))


def test_the_script_judges_every_policy_and_goes_on_where_it_was(book, tmp_path):
    words = [f"--data_dir={book.path.parent.parent}", f"--runs_dir={tmp_path}", "--seeds=2"]
    words += ["--model_path=a_run", "--steps=1024", "--decisions=200", "--train_share=0.6"]
    words += ["--agents=['vector', 'random_weights']", "--fills=['take']", "--device=cpu"]
    save_run(tmp_path, 0)
    done = shell("examples/ppo_agent.py", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("quick form: BTC_USD alone, its first 60% to learn on")
    found = json.loads((tmp_path / "agent.json").read_text())
    cells = {(row["case"], row["metric"]): row["value"] for row in found["rows"]}
    assert cells["BTC_USD/take/hold", "profit_bps_hour"] == 0
    assert cells["BTC_USD/take/random", "trades_hour"] > 0
    assert cells["BTC_USD/take/vector", "seeds"] == 2
    assert {"curve_0", "curve_512_least"} <= {metric for _, metric in cells}
    assert ("BTC_USD/take/vector_over_random_weights", "curve_bps_hour") in cells
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "agent").iterdir()}
    assert len(kept) == 4 + 4  # vectors of two networks and periods; trainings of two agents
    again = shell("examples/ppo_agent.py", *words)
    assert again.returncode == 0
    assert kept == {file: file.stat().st_mtime_ns for file in (tmp_path / "agent").iterdir()}
    assert json.loads((tmp_path / "agent.json").read_text())["rows"] == found["rows"]


def test_users_mistakes_get_one_line(book, tmp_path):
    words = [f"--data_dir={book.path.parent.parent}", f"--runs_dir={tmp_path}", "--device=cpu"]
    save_run(tmp_path, 0)
    for wrong, said in (
        (["--seeds=0"], "seeds = 0 must be >= 1"),
        (["--agents=['thawed']"], "agents"),
        (["--latency_states=-1"], "latency_states = -1 must be >= 0"),
        (["--latency_states=99", "--decisions=200"], "is more than the 8 states between two"),
        (["--decisions=20"], "less than 40: set a larger --decisions"),
        (["--train_pairs=['BTC_USD']"], "must name equally many recordings"),
        (["--train_pairs=['A']", "--test_pairs=['A']"], "A is both in train_pairs and"),
        (["--train_pairs=['A']", "--test_pairs=['B']"], "'A'"),
    ):
        assert said in refusal("examples/ppo_agent.py", *words, "--model_path=a_run", *wrong), said
    with pytest.raises(InputError):
        list_pairs(config | {"train_pairs": ["A", "B"], "test_pairs": ["C"]})
