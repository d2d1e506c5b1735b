"""Linear probes: labels and features against slow readings, fits against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_book
from sklearn import metrics
from test_tester import lively_encoder

from lob.book.states import open_book
from lob.evaluation import probe_fits, probe_tasks, probes


def test_labels_are_those_of_a_slow_reading(data_dir):
    book = open_book(data_dir / "book_states" / "BTC_USD")
    ends = np.arange(300, 2400, 37)
    labels = probe_tasks.label_windows(book, ends)
    bid, ask = book.price_ticks[:, 47].astype(int), book.price_ticks[:, 48].astype(int)
    mids = (bid + ask) / 2
    for i, end in enumerate(ends):
        now = end - 1
        moves = [k for k in range(1, 501) if mids[now + k] != mids[now]]
        up = float(mids[now + moves[0]] > mids[now]) if moves else np.nan
        np.testing.assert_equal(labels["direction"][i], up)
        for reach in (10, 50):
            assert labels[f"move_{reach}"][i] == any(k <= reach for k in moves)
        bid_gone = next((k for k in range(1, 501) if bid[now + k] < bid[now]), 501)
        ask_gone = next((k for k in range(1, 501) if ask[now + k] > ask[now]), 501)
        ask_first = np.nan if bid_gone == ask_gone else float(ask_gone < bid_gone)
        np.testing.assert_equal(labels["depletion"][i], ask_first)
        spread = (ask - bid)[now : now + 51]
        assert labels["widening"][i] == (spread[1:] > spread[0]).any()
        returns = np.diff(np.log(mids[now : now + 51])) * 1e4
        assert labels["volatility_50"][i] == pytest.approx(np.log1p(np.sqrt((returns**2).sum())))


def test_hand_made_features_are_those_of_a_slow_reading(data_dir):
    book = open_book(data_dir / "book_states" / "BTC_USD")
    ends = np.array([100, 777, 2500])
    for end, found in zip(ends, probe_tasks.hand_made(book, ends, 100), strict=True):
        price, size = (x[end - 100 : end].astype(float) for x in (book.price_ticks, book.sizes))
        bids, asks = size[-1, :48][::-1], size[-1, 48:]
        spread = price[:, 48] - price[:, 47]
        mid = (price[:, 47] + price[:, 48]) / 2
        expected = []
        for levels in (1, 3, 10, 48):
            bid, ask = sum(bids[:levels]), sum(asks[:levels])
            expected.append((bid - ask) / (bid + ask))
        expected += np.log([spread[-1], bids[0], asks[0], sum(bids), sum(asks)]).tolist()
        for reach in (5, 20, 80, 99):
            steps = [1e4 * np.log(mid[i] / mid[i - 1]) for i in range(100 - reach, 100)]
            moves = sum(mid[i] != mid[i - 1] for i in range(100 - reach, 100))
            passed = (int(book.timestamps[end - 1]) - int(book.timestamps[end - 1 - reach])) / 1e6
            volatility = sum(step**2 for step in steps) ** 0.5
            expected += [sum(steps), np.log1p(volatility), np.log1p(moves), np.log(passed + 1)]
        since = next((k for k in range(99) if mid[99 - k] != mid[98 - k]), 100)
        expected += [np.log1p(since), np.log(spread).mean()]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def with_constant(x):
    return np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])


def penalties_of(columns, penalty, count):
    """Return the diagonal matrix of the penalties; the last weight, the constant, is free."""
    return np.diag([penalty * count] * columns + [0.0])


@pytest.mark.parametrize("penalty", probe_fits.PENALTIES)
def test_ridge_probe_is_the_closed_form(penalty):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) * [1, 10, 0.1, 3, 1, 1] + 5
    y = x @ rng.normal(size=6) + rng.normal(size=500)
    full = with_constant(x)
    weights = np.linalg.solve(full.T @ full + penalties_of(6, penalty, 500), full.T @ y)
    probe = probe_fits.fit_probe(x, y, penalty, classify=False)
    np.testing.assert_allclose(probe(x), full @ weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", probe_fits.PENALTIES)
@pytest.mark.parametrize("noise", [1.0, 0.0])  # without noise the classes can be separated
def test_logistic_probe_is_the_minimum_of_the_penalised_likelihood(penalty, noise):
    """The reference takes 300 damped Newton steps with a gradient that is written out."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 5)) * [1, 10, 0.1, 3, 1]
    y = (x @ [1, 0.1, 0, 0.3, -1] + noise * rng.normal(size=400) > 0.5).astype(float)
    full, ridge = with_constant(x), penalties_of(5, penalty, 400)
    weights = np.zeros(6)
    for _ in range(300):
        probability = 1 / (1 + np.exp(-full @ weights))
        gradient = full.T @ (probability - y) + ridge @ weights
        curvature = full.T @ (full * (probability * (1 - probability))[:, None]) + ridge
        weights -= 0.3 * np.linalg.solve(curvature, gradient)
    assert np.abs(gradient).max() < 1e-9
    probe = probe_fits.fit_probe(x, y, penalty, classify=True)
    np.testing.assert_allclose(probe(x), full @ weights, rtol=1e-6, atol=1e-6)


def test_area_under_curve_counts_pairs_and_log_loss_is_of_logits():
    rng = np.random.default_rng(1)
    score, y = rng.normal(size=200).round(1), (rng.random(200) > 0.6).astype(float)
    ones, zeros = score[y == 1], score[y == 0]
    pairs = [(one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros]
    area = probe_fits.area_under_curve(score, y)
    assert area == pytest.approx(np.mean(pairs), abs=1e-12)
    assert area == pytest.approx(metrics.roc_auc_score(y, score), abs=1e-12)
    likelihood = np.where(y == 1, 1 / (1 + np.exp(-score)), 1 / (1 + np.exp(score)))
    loss = probe_fits.log_loss(score, y)
    assert loss == pytest.approx(-np.log(likelihood).mean())
    assert loss == pytest.approx(metrics.log_loss(y, 1 / (1 + np.exp(-score))))
    assert np.isnan(probe_fits.area_under_curve(score, np.ones(200)))


def test_probe_sets_keep_pairs_apart_and_take_their_axes_from_training(tmp_path):
    folders = [
        write_book(tmp_path, pair, rows=1500, depth=8, seed=seed) for seed, pair in enumerate("AB")
    ]
    seconds = np.arange(1500) * 10**9  # a state a second: a block of time is 1,024 states
    books = [replace(open_book(folder), timestamps=seconds) for folder in folders]
    splits = [[(book, np.arange(100, 900, 20) + shift) for book in books] for shift in (0, 7, 13)]
    model, device = lively_encoder(8, 32), torch.device("cpu")
    sets = probes.make_sets(model, splits, 16, device, 0)
    assert len(np.unique(sets[0].block)) == 2 and len(sets[0].block) == 80

    def inputs_of(split):
        encoded = [
            probes.encode_windows({"ours": model}, *windows, 16, device) for windows in split
        ]
        return np.concatenate([features["pca"] for features in encoded])

    training, test = inputs_of(splits[0]), inputs_of(splits[2])
    values, vectors = np.linalg.eigh(np.cov(training.T))
    axes = vectors[:, np.argsort(-values)[:3]]
    expected = np.abs((test - training.mean(0)) @ axes)
    found = np.abs(sets[2].features["pca"][:, :3])  # the sign of an axis is arbitrary
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
