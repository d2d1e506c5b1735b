"""Fills, ridge regressions, errors and comparisons, against slow readings of their definitions."""

import numpy as np
import pytest
import torch
from sklearn import linear_model
from test_ladder import moving_book

from lob.evaluation import fills, probes, report, scoring
from lob.evaluation.fills import COLUMNS, fill_untrained, hide
from lob.evaluation.ridge import FITTED, PENALTIES, Moments, choose_weights, features, fit_ridges
from lob.model.masking import make_mask, window_keys


def hidden_windows(mode):
    """Return windows of 20 states and 6 levels; some levels and some states show nothing."""
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
                if len(at):
                    line = np.interp(time, at, truth[at, level])
                    mean = truth[at, level].mean()
                    latest = [max([s for s in at if s <= t], default=at[0]) for t in time]
                    last = truth[latest, level]
                else:  # never visible: first across levels, then in time
                    line = np.interp(time, shown, [across[t][level] for t in shown])
                    mean = last = line
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
    generator = torch.Generator().manual_seed(0)
    answer = hidden.values + torch.randn(hidden.values.shape, generator=generator)
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
        expected = [ladder, 0] if found[b, t, level, 1] else [0, ladder]
        assert row[22:].tolist() == pytest.approx(expected)


def test_ridge_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(500, 6)) * [1, 10, 0.1, 3, 1, 1], rng.normal(size=500)
    y = x @ rng.normal(size=6) + noise
    moments = Moments()
    for part in np.split(np.arange(500), 5):
        moments.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    scale = np.sqrt((x**2).mean(0))
    ridge = linear_model.Ridge(alpha=0.3 * 500, fit_intercept=False).fit(x / scale, y)
    theirs = ridge.coef_ / scale
    np.testing.assert_allclose(moments.solve(0.3), theirs, rtol=1e-6)
    assert moments.error(theirs) == pytest.approx(np.mean((y - x @ theirs) ** 2))


def test_penalties_are_chosen_on_validation_windows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 30)), rng.normal(size=(2, 40))
    training, validation = Moments(), Moments()
    training.add(torch.from_numpy(x[0]), torch.from_numpy(y[0]))
    validation.add(torch.from_numpy(x[1]), torch.from_numpy(y[1]))
    solutions = [training.solve(penalty) for penalty in PENALTIES]
    best = min(solutions, key=lambda weights: np.mean((y[1] - x[1] @ weights) ** 2))
    np.testing.assert_allclose(choose_weights(training, validation), best, rtol=1e-6)
    sets = []
    for _ in range(3):
        vectors = {name: rng.normal(size=(60, 50)) for name in ("ours", "hand_made")}
        floors = {"volatility_50": np.zeros((60, 1))}
        labels = {"volatility_50": rng.normal(size=60)}
        sets.append(probes.ProbeSet(vectors, floors, labels, np.arange(60)))
    # The labels are noise, so only the largest penalty does no harm.
    assert probes.probe_task("volatility_50", sets, 0).scores["ours"] > -0.2


def test_ridge_with_the_ladder_beats_both_of_its_parts():
    mask = make_mask(window_keys(0, 0, torch.arange(24)), 40, 24, 0.25, "patch")
    training, test = (hide(*moving_book(24, seed=seed), mask) for seed in (1, 2))
    fitted = fit_ridges([training], [test])
    filled, found = fill_untrained(test)
    widths = [table.shape[1] for table in features(test, filled, found)]
    assert widths == [FITTED["ridge_ladder"]] * len(COLUMNS)
    errors = {}
    for name, columns in (filled | fitted.fill(test, filled, found)).items():
        errors[name] = float(((columns - test.values)[..., 1][test.mask[..., 1]] ** 2).mean())
    others = ("ladder", "plain_ridge", "linear_time")
    assert errors["ridge_ladder"] < min(errors[name] for name in others)


def test_best_naive_is_chosen_on_validation_not_on_the_test_windows():
    one = np.ones(4)
    tested = {"linear_time": 2 * one, "ladder": 1.5 * one, "ridge_ladder": 3 * one}
    judged = {"linear_time": one, "ladder": 5 * one, "ridge_ladder": 2 * one}
    errors = {"log_size": {**tested, scoring.OURS: one}}
    found = scoring.compare(errors, {"log_size": judged}, np.arange(4), 0)["log_size"]
    assert found.untrained.method == found.naive.method == "linear_time"
    assert found.untrained.error == 2 and found.untrained.skill == 0.5
    assert found.naive.win_rate == 1 and found.naive.verdict == "better"
    assert found.ridge.error == 3 and found.ridge.skill == pytest.approx(2 / 3)


def test_every_naive_methods_error_is_reported_under_its_own_name():
    names = [*fills.UNTRAINED, *FITTED, scoring.OURS]
    errors = {"log_size": {name: np.full(4, 1.0 + number) for number, name in enumerate(names)}}
    found = scoring.compare(errors, errors, np.arange(4), 0)
    scores = scoring.MaskScores("BTC", "patch", True, 4, found)
    facts = {row["metric"]: row["value"] for row in report.rows_of_scores(scores)}
    for number, name in enumerate(names[:-1]):
        assert facts[f"{name}_error"] == 1.0 + number
    assert facts["ridge_error"] == facts["ridge_ladder_error"]


def test_prices_that_differ_by_rounding_alone_are_ties():
    ladder = np.array([0.25, 0.5, 0.0, 0.125])
    errors = {"offset": {"ladder": ladder, scoring.OURS: ladder + 7e-6}}
    untrained = scoring.compare(errors, errors, np.arange(4), 0)["offset"].untrained
    assert untrained.verdict == "equal" and untrained.win_rate == 0.5
    worse = {"offset": {"ladder": ladder, scoring.OURS: ladder + 1e-3}}
    assert scoring.compare(worse, worse, np.arange(4), 0)["offset"].untrained.verdict == "worse"
