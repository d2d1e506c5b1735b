"""Fills, errors, features and probes against slow readings of what they say they are."""

import numpy as np
import pytest
import torch
from conftest import write_book
from test_ladder import moving_book
from test_tester import lively_encoder

from lob.book.states import open_book
from lob.evaluation import intervals, probe_tasks, probes, scoring
from lob.evaluation.fills import fill_untrained, hide
from lob.evaluation.ridge import PENALTIES, Moments, choose_weights, features
from lob.model.masking import make_mask, window_keys


def hidden_windows(mode):
    """Windows of 20 states and 6 levels, of which some levels and some states show nothing."""
    price_ticks, sizes = moving_book(6, states=20, levels=6)
    mask = make_mask(window_keys(0, 0, torch.arange(6)), 20, 6, 0.4, mode).clone()
    mask[0, :, 1] = mask[1, :, 4] = mask[1, 7] = mask[2, :3, 2] = True
    return hide(price_ticks, sizes, mask)


@pytest.mark.parametrize("mode", ["entry", "span"])
def test_untrained_fills_are_those_of_numpy(mode):
    hidden = hidden_windows(mode)
    filled, _ = fill_untrained(hidden)
    time = np.arange(20)
    for b in range(6):
        for column in (0, 1):
            truth = hidden.values[b, ..., column].numpy()
            known = hidden.known[b, ..., column].numpy()
            shown = [t for t in time if known[t].any()]
            across = {
                t: np.interp(range(6), np.flatnonzero(known[t]), truth[t, known[t]]) for t in shown
            }
            for level in range(6):
                at = np.flatnonzero(known[:, level])
                points = at if len(at) else shown
                line = np.interp(
                    time, points, [truth[t, level] if len(at) else across[t][level] for t in points]
                )
                mean = truth[at, level].mean() if len(at) else line
                last = (
                    [truth[max([s for s in at if s <= t], default=at[0]), level] for t in time]
                    if len(at)
                    else line
                )
                expected = {
                    "linear_time": line,
                    "level_mean": np.where(known[:, level], truth[:, level], mean),
                    "last_observation": last,
                    "linear_levels": [across[t][level] if t in across else line[t] for t in time],
                }
                for method, values in expected.items():
                    found = filled[method][b, :, level, column]
                    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-4, err_msg=method)


@pytest.mark.parametrize("mode", ["entry", "span"])
def test_errors_are_means_over_hidden_values(mode):
    hidden = hidden_windows(mode)
    answer = hidden.values + torch.randn(
        hidden.values.shape, generator=torch.Generator().manual_seed(0)
    )
    errors = scoring.window_errors(answer, hidden)
    for b in range(6):
        price, size = (hidden.mask[b, ..., field].numpy() for field in (0, 1))
        truth = hidden.values[b].double().numpy()
        ours = np.where(hidden.known[b], truth, answer[b].double())
        mid, true_mid = (x[:, 2:4, 0].mean(1) for x in (ours, truth))
        states = price[:, 2] | price[:, 3]
        far = (ours[..., 0] - mid[:, None]) - (truth[..., 0] - true_mid[:, None])
        square = (ours - truth) ** 2
        expected = {
            "mid": np.abs(mid - true_mid)[states].mean(),
            "offset": np.abs(far)[price].mean(),
            "log_size": square[..., 1][size].mean(),
        }
        for quantity, value in expected.items():
            assert float(errors[quantity][b]) == pytest.approx(value, rel=1e-4), quantity


def test_features_tell_how_far_known_values_are_and_what_the_ladder_found():
    hidden = hidden_windows("entry")
    filled, found = fill_untrained(hidden)
    table = features(hidden, filled, found)[1].numpy()
    known = hidden.known[..., 1].numpy()
    for row, (b, t, level) in zip(table, np.argwhere(~known), strict=True):
        in_time = np.flatnonzero(known[b, :, level]) - t
        in_state = np.flatnonzero(known[b, t]) - level
        far = [
            min([abs(d) for d in x if d * sign > 0], default=none)
            for x, none in ((in_time, 20), (in_state, 6))
            for sign in (-1, 1)
        ]
        np.testing.assert_allclose(row[6:10], np.log1p(far), rtol=1e-6)
        ladder = float(filled["ladder"][b, t, level, 1] - filled["linear_time"][b, t, level, 1])
        assert row[22:].tolist() == pytest.approx(
            [ladder, 0] if found[b, t, level, 1] else [0, ladder]
        )


def test_penalties_are_chosen_on_validation_windows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 30)), rng.normal(size=(2, 40))
    training, validation = Moments(), Moments()
    training.add(torch.from_numpy(x[0]), torch.from_numpy(y[0]))
    validation.add(torch.from_numpy(x[1]), torch.from_numpy(y[1]))
    best = min(
        (training.solve(penalty) for penalty in PENALTIES),
        key=lambda w: np.mean((y[1] - x[1] @ w) ** 2),
    )
    np.testing.assert_allclose(choose_weights(training, validation), best, rtol=1e-6)
    sets = [
        probes.ProbeSet(
            dict.fromkeys(probes.FEATURES, rng.normal(size=(60, 50))),
            {"volatility_50": rng.normal(size=60)},
            np.arange(60),
        )
        for _ in range(3)
    ]
    # noise: only the largest penalty does no harm
    assert probes.probe_task("volatility_50", sets, 0).scores["ours"] > -0.2


def test_a_block_of_many_windows_counts_as_many():
    block = np.append(np.arange(20), np.repeat(np.arange(20, 40), 9))
    low, high, _ = intervals.bootstrap(np.where(block < 20, 1.0, 0.0), block, 0)
    assert 0.03 < low < 0.1 < high < 0.2


def test_hand_made_features_are_those_of_a_slow_reading(data_dir):
    book = open_book(data_dir / "book_states" / "BTC_USD")
    ends = np.array([100, 777, 2500])
    for end, found in zip(ends, probe_tasks.hand_made(book, ends, 100), strict=True):
        price, size = (x[end - 100 : end].astype(float) for x in (book.price_ticks, book.sizes))
        bids, asks, spread = size[-1, :48][::-1], size[-1, 48:], price[:, 48] - price[:, 47]
        mid = (price[:, 47] + price[:, 48]) / 2
        expected = [
            (sum(bids[:n]) - sum(asks[:n])) / (sum(bids[:n]) + sum(asks[:n]))
            for n in (1, 3, 10, 48)
        ]
        expected += np.log([spread[-1], bids[0], asks[0], sum(bids), sum(asks)]).tolist()
        for reach in (5, 20, 80, 99):
            steps = [1e4 * np.log(mid[i] / mid[i - 1]) for i in range(100 - reach, 100)]
            moves = sum(mid[i] != mid[i - 1] for i in range(100 - reach, 100))
            passed = (int(book.timestamps[end - 1]) - int(book.timestamps[end - 1 - reach])) / 1e6
            expected += [
                sum(steps),
                np.log1p(sum(s**2 for s in steps) ** 0.5),
                np.log1p(moves),
                np.log(passed + 1),
            ]
        since = next((k for k in range(99) if mid[99 - k] != mid[98 - k]), 100)
        np.testing.assert_allclose(
            found, [*expected, np.log1p(since), np.log(spread).mean()], rtol=1e-6, atol=1e-6
        )


def test_probe_sets_keep_pairs_apart_and_take_their_axes_from_training(tmp_path):
    books = [
        open_book(write_book(tmp_path, pair, rows=1500, depth=8, seed=seed))
        for seed, pair in enumerate("AB")
    ]
    windows = [[(book, np.arange(100, 900, 20) + shift) for book in books] for shift in (0, 7, 13)]
    sets = probes.make_sets(lively_encoder(8, 32), windows, 16, 100, torch.device("cpu"), 0)
    assert len(np.unique(sets[0].block)) == 16 and len(sets[0].block) == 80  # 8 blocks of each pair
    model = lively_encoder(8, 32)
    x = [
        np.concatenate(
            [
                probes.encode_windows({"ours": model}, book, ends, 16, torch.device("cpu"))["pca"]
                for book, ends in split
            ]
        )
        for split in windows
    ]
    values, vectors = np.linalg.eigh(np.cov(x[0].T))
    expected = np.abs((x[2] - x[0].mean(0)) @ vectors[:, np.argsort(-values)[:3]])
    np.testing.assert_allclose(
        np.abs(sets[2].features["pca"][:, :3]), expected, rtol=1e-3, atol=1e-4
    )
