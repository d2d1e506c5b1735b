"""examples/ppo_agent.py: accounts against exact ledgers, no look ahead, and no shared states."""

import json
import subprocess
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import gymnasium.utils.env_checker
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch
from conftest import metadata, refusal, shell, write_book

from examples.ppo_agent import (
    BookReplay,
    EncoderConfig,
    Replay,
    config,
    embed,
    make_replay,
    play,
    train,
)
from lob.book.states import Book, open_book
from lob.config import InputError
from lob.model.checkpoint import Progress, save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config
from lob.model.inputs import build_inputs
from lob.windows.splits import calendar_cuts, count_shared_states, split_rows

STATES = 32
SMALL = config | {
    "decision_stride": 7,
    "latency_states": 1,
    "episode_steps": 9,
    "fee_bps": 1.7,
    "position_limit": 2,
}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """2500 states of depth 16; a segment begins in the training and one in the test period."""
    return open_book(
        write_book(
            tmp_path_factory.mktemp("agent"), rows=2500, depth=16, segment_starts=(0, 700, 2200)
        )
    )


def cuts_of(book: Book) -> np.ndarray:
    return calendar_cuts([book.timestamps], [book.segment_starts], [0.6, 0.1, 0.3])


def network() -> BookEncoder:
    torch.manual_seed(0)
    return BookEncoder(encoder_config("tiny_transformer", depth=16, temporal_dim=STATES)).eval()


def by_hand(touch: list, fill: list, **choices) -> BookReplay:
    """A market of one episode with the given best bids and asks."""
    count = len(touch)
    replay = Replay(
        np.arange(count) + STATES,
        np.array(touch),
        np.array(fill),
        np.zeros(count),
        {"test": np.array([[0, count - 1]])},
    )
    return BookReplay(replay, "test", config | choices)


def test_a_round_trip_costs_spread_and_fees_as_computed_by_hand():
    # The mids are 100, 101 and 103. One unit is bought at 101 and sold at the last state's bid,
    # 102. The fee of each is 10 bps of its price.
    market = by_hand(
        [[99, 101], [100, 102], [102, 104]], [[99, 101], [100, 102], [102, 104]], fee_bps=10.0
    )
    market.reset(options={"episode": 0})
    _, reward, done, _, facts = market.step(2)
    assert not done and facts["trades"] == 1
    # One unit is worth 101, the mid. It cost 101 and the fee.
    assert reward == pytest.approx((101 - 101 - 0.101) / 100 * 1e4)
    assert (facts["gross_bps"], facts["spread_bps"]) == pytest.approx((100.0, 100.0))
    # Nothing more is bought beyond the limit of one unit.
    observation, reward, done, _, facts = market.step(2)
    assert done and facts["trades"] == 1
    assert reward == pytest.approx((102 - 101 - 0.102) / 100 * 1e4)
    np.testing.assert_array_equal(observation["account"], [1, 0])


def test_a_late_order_pays_for_the_move_it_missed():
    market = by_hand([[99, 101], [99, 101]], [[104, 106], [99, 101]], fee_bps=0.0)
    market.reset(options={"episode": 0})
    _, reward, _, _, facts = market.step(2)
    # Bought at 106, sold at 99; the mid at both decisions is 100.
    assert facts["spread_bps"] == pytest.approx((6 + 1) / 100 * 1e4)
    assert reward == pytest.approx(-facts["spread_bps"])
    market.reset(options={"episode": 0})
    # Sold at 104, bought back at 101.
    assert market.step(0)[1] == pytest.approx((104 - 101) / 100 * 1e4)
    market.reset(options={"episode": 0})
    assert market.step(1)[1] == 0


@pytest.mark.parametrize(("latency", "limit"), [(0, 1), (1, 2), (6, 3)])
def test_rewards_are_those_of_a_ledger_in_exact_fractions(book, latency, limit):
    choices = SMALL | {"latency_states": latency, "position_limit": limit}
    market = BookReplay(make_replay(book, STATES, cuts_of(book), choices), "test", choices)
    fee_rate = Fraction(17, 100_000)
    rng = np.random.default_rng(1)
    closed = 0
    for episode in range(len(market.episodes)):
        _, facts = market.reset(options={"episode": episode})
        row, cash, held, done, rewards = facts["end_row"] - 1, Fraction(0), 0, False, []
        bid, ask = (int(book.price_ticks[row, level]) for level in (7, 8))
        unit = limit * Fraction(bid + ask, 2) / 10_000
        worth = [Fraction(0)]
        while not done:
            action = int(rng.integers(3))
            wanted = max(-limit, min(limit, held + action - 1))
            price = int(book.price_ticks[row + latency, 8 if wanted > held else 7])
            cash -= (wanted - held) * price + abs(wanted - held) * price * fee_rate
            held = wanted
            _, reward, done, _, facts = market.step(action)
            rewards.append(reward)
            assert facts["end_row"] - 1 == row + choices["decision_stride"]
            row = facts["end_row"] - 1
            bid, ask = (int(book.price_ticks[row, level]) for level in (7, 8))
            if done and held:
                price = bid if held > 0 else ask
                cash += held * price - abs(held) * price * fee_rate
                held, closed = 0, closed + 1
            worth.append(cash + held * Fraction(bid + ask, 2))
        expected = [float((after - before) / unit) for before, after in pairwise(worth)]
        np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-10)
        assert sum(rewards) == pytest.approx(float(cash / unit), abs=1e-9)
    assert closed > 2


@pytest.mark.parametrize(("latency", "later"), [(0, 0), (1, 0), (1, 1)])
def test_a_changed_future_changes_neither_what_is_seen_nor_the_fill(book, latency, later):
    """All states after the decision's are changed; if later = latency, all after the order's."""
    choices = SMALL | {"latency_states": latency}
    replay = make_replay(book, STATES, cuts_of(book), choices)
    encoder = network()
    first, last = replay.episodes["test"][0]
    number = (first + last) // 2
    after = replay.ends[number] + later
    price, sizes = np.array(book.price_ticks), np.array(book.sizes)
    price[after:] += 1000
    sizes[after:] = sizes[after:, ::-1] * 3
    changed = replace(book, price_ticks=price, sizes=sizes)
    played = []
    for each in (book, changed):
        again = make_replay(each, STATES, cuts_of(book), choices)
        with torch.no_grad():
            table = embed(encoder, each, again.ends).numpy()
        market = BookReplay(again, "test", choices, table)
        seen, facts = market.reset(options={"episode": 0})
        steps = [(seen["window"], seen["account"], facts["imbalance"])]
        costs = []
        for _ in range(first, last):
            seen, _, _, _, facts = market.step(2)
            steps.append((seen["window"], seen["account"], facts["imbalance"]))
            costs.append([facts["spread_bps"], facts["fee_bps"]])
        played.append((steps, costs, again.fill_ticks))
    now = number - first
    for (one, other, one_imbalance), (same, alike, same_imbalance) in zip(
        played[0][0][: now + 1], played[1][0][: now + 1], strict=True
    ):
        np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal(other, alike)
        assert one_imbalance == same_imbalance
    filled = now + (later == latency)  # orders up to this one met states that are the same
    assert played[0][1][:filled] == played[1][1][:filled]
    np.testing.assert_array_equal(*(fills[first : first + filled] for _, _, fills in played))
    assert not np.allclose(played[0][0][now + 1][0], played[1][0][now + 1][0])
    assert not np.array_equal(*(fills[first + filled] for _, _, fills in played))


def test_periods_share_no_state_and_episodes_cross_no_border(book):
    replay = make_replay(book, STATES, cuts_of(book), SMALL)
    reach = {}
    for period, (begin, end) in zip(
        ("train", "test"), split_rows(book.timestamps, cuts_of(book), STATES)[[0, 2]], strict=True
    ):
        assert len(replay.episodes[period]) > 5
        for first, last in replay.episodes[period]:
            ends = replay.ends[first : last + 1]
            assert 1 <= last - first <= SMALL["episode_steps"] and set(np.diff(ends)) == {
                SMALL["decision_stride"]
            }
            assert begin <= ends[0] - STATES and ends[-1] <= end
            assert not any(ends[0] - STATES < border < ends[-1] for border in book.segment_starts)
        reach[period] = np.concatenate([replay.ends[a : b + 1] for a, b in replay.episodes[period]])
    assert count_shared_states(list(reach.values()), STATES, book.rows) == 0
    decided = np.concatenate([np.arange(a, b) for a, b in replay.episodes["test"]])
    assert len(decided) == len(set(decided))  # the test episodes lie end to end


def test_the_checkers_of_gymnasium_and_stable_baselines_pass(book):
    replay = make_replay(book, STATES, cuts_of(book), SMALL)
    with torch.no_grad():
        table = embed(network(), book, replay.ends).numpy()
    for embeddings in (table, None):
        market = BookReplay(replay, "train", SMALL, embeddings)
        gymnasium.utils.env_checker.check_env(market, skip_render_check=True)
        stable_baselines3.common.env_checker.check_env(market)


def test_the_embedding_is_the_last_state_of_the_window_that_ends_now(book):
    encoder = network()
    ends = np.array([40, 900, 2499])
    for end, found in zip(ends, embed(encoder, book, ends), strict=True):
        price, sizes = (
            torch.from_numpy(np.array(x[end - STATES : end]))[None]
            for x in (book.price_ticks, book.sizes)
        )
        tokens, *_ = build_inputs(
            price, sizes, torch.zeros(*price.shape, 2, dtype=torch.bool), encoder.config
        )
        torch.testing.assert_close(found, encoder.encode(tokens)[0, -1], rtol=1e-5, atol=1e-5)


def test_an_agent_learns_to_follow_an_embedding_that_knows_the_next_move(book):
    choices = config | {
        "fee_bps": 0.1,
        "train_steps": 3072,
        "learning_rate": 3e-3,
        "episode_steps": 16,
    }
    rng = np.random.default_rng(0)
    moves = rng.choice([-50, 50], size=400)
    mids = 100_000 + np.concatenate([[0], np.cumsum(moves)])[:400]
    touch = np.stack([mids - 1, mids + 1], axis=1)
    replay = Replay(
        np.arange(400),
        touch,
        touch,
        np.zeros(400),
        {"train": np.array([[i, i + 16] for i in range(383)])},
    )
    embeddings = (moves[:, None] / 50).astype(np.float32)
    agent = train(replay, book, choices, 0, embeddings)
    market = BookReplay(replay, "train", choices, embeddings)
    episodes = range(0, 383, 16)
    learned = play(
        market, lambda seen, _: int(agent.predict(seen, deterministic=True)[0]), episodes
    )
    known = play(market, lambda seen, _: 2 if seen["window"][0] > 0 else 0, episodes)
    assert known["net_bps"] > 0 and learned["net_bps"] > 0.8 * known["net_bps"]


def test_from_scratch_the_encoder_is_trained_and_reads_the_window_it_is_given(book):
    choices = SMALL | {
        "train_steps": 32,
        "rollout_steps": 16,
        "environments": 2,
        "batch_size": 16,
        "update_epochs": 1,
    }
    replay = make_replay(book, STATES, cuts_of(book), choices)
    shape: EncoderConfig = network().config
    agent = train(replay, book, choices | {"learning_rate": 0.0}, 0, shape)
    reader = agent.policy.features_extractor
    weight = reader.encoder.layers[0].fc1.weight
    assert 0.01 < float(weight.detach().std()) < 0.03  # the encoder's own initialisation, not PPO's
    market = BookReplay(replay, "test", choices)
    seen, facts = market.reset(options={"episode": 3})
    features = reader({key: torch.from_numpy(value)[None] for key, value in seen.items()})
    torch.testing.assert_close(
        features[:, :-2], embed(reader.encoder, book, np.array([facts["end_row"]]))
    )
    trained = train(replay, book, choices, 0, shape).policy.features_extractor.encoder
    assert not torch.equal(trained.layers[0].fc1.weight, weight)
    torch.testing.assert_close(trained.layers[0].fc1.weight, weight, atol=0.1, rtol=0)


def save_run(folder: Path, cuts_ns: np.ndarray) -> Path:
    model = network()
    file = folder / "a_run" / "checkpoints" / "best.safetensors"
    save_checkpoint(
        file,
        {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        metadata(
            model.config,
            progress=asdict(Progress(step=7)),
            data={"books": [{"pair": "BTC_USD"}], "cuts_ns": cuts_ns.tolist()},
        ),
    )
    return file


def run_script(book: Book, runs: Path, *words: str) -> subprocess.CompletedProcess:
    folders = f"--data_dir={book.path.parent.parent}", f"--runs_dir={runs}"
    return shell("examples/ppo_agent.py", *folders, *words)


def test_the_script_judges_every_policy_on_the_same_episodes(book, tmp_path):
    save_run(tmp_path, cuts_of(book))
    done = run_script(
        book,
        tmp_path,
        "--seeds=2",
        "--train_steps=16",
        "--rollout_steps=16",
        "--environments=1",
        "--batch_size=8",
        "--update_epochs=1",
        "--decision_stride=7",
        "--episode_steps=9",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a_run" / "ppo_agent.json").read_text())
    rows = found["rows"]
    names = [row["policy"] for row in rows]
    assert [name.split()[0] for name in names[:2]] == ["hold", "imbalance"]
    assert names[2:] == ["random"] * 2 + ["PPO frozen"] * 2 + ["PPO scratch"] * 2
    assert (rows[0]["net_bps"], rows[0]["trades"]) == (0, 0) and rows[2]["trades"] > 10
    for row in rows:
        assert row["net_bps"] == pytest.approx(
            row["gross_bps"] - row["spread_bps"] - row["fee_bps"], abs=1e-9
        )
        # Each fill costs 1 bps.
        assert row["fee_bps"] == pytest.approx(row["trades"] * 1.0, rel=1e-2, abs=1e-9)
    table = [
        line
        for line in (tmp_path / "a_run" / "ppo_agent.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    random = [
        f"{np.mean([rows[2]['net_bps'], rows[3]['net_bps']]):.2f}",
        f"{abs(rows[2]['net_bps'] - rows[3]['net_bps']) / 2**0.5:.2f}",
    ]
    assert [cell.strip() for cell in table[3].split("|")[1:5]] == ["random", "2", *random]
    assert set(table) <= set(done.stdout.splitlines())


def test_users_mistakes_get_one_line(book, tmp_path):
    from examples.ppo_agent import main

    ours = {"data_dir": str(book.path.parent.parent), "runs_dir": str(tmp_path)}
    file = save_run(tmp_path, cuts_of(book))
    save_run(tmp_path / "late", cuts_of(book) + 10**12)
    for wrong, said in [
        ({"variants": ["thawed"]}, "variants"),
        ({"latency_states": 32}, "latency_states = 32"),
        ({"imbalance_thresholds": []}, "imbalance_thresholds"),
        ({"pair": "ETH_USD"}, "no pair 'ETH_USD'"),
        ({"runs_dir": str(tmp_path / "late")}, "no two decisions in the test period"),
    ]:
        with pytest.raises(InputError, match=said):
            main(config | ours | wrong)
    for word, said in (
        ("--seeds=0", "seeds = 0 must be >= 1"),
        ("--batch_size=1", "batch_size = 1 must be >= 2"),
        ("--latency_states=-1", "latency_states = -1 must be >= 0"),
    ):
        assert said in refusal("examples/ppo_agent.py", word)
    done = run_script(book, tmp_path, f"--model_path={file}", "--split=train")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "split" in done.stderr
    assert not list(tmp_path.glob("**/ppo_agent.*"))
