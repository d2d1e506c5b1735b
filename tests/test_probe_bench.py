"""Probes where the right answer is known: floors, planted signals, parts without leaks, power."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import write_book

from lob.book.states import open_book
from lob.config import InputError
from lob.evaluation import intervals, probe_fits, probe_tasks, probes
from lob.evaluation.selection import BLOCK_SECONDS, in_parts, states_after, time_blocks

STATES = 40


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(probes, "RESAMPLES", 60)
    monkeypatch.setattr(probe_fits, "TREES", 20)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book of three segments, the last of which begins after a night."""
    folder = tmp_path_factory.mktemp("data")
    found = open_book(write_book(folder, rows=9000, depth=8, segment_starts=(0, 2000, 6000)))
    times = found.timestamps + np.where(np.arange(9000) < 6000, 0, 10**14)
    return replace(found, timestamps=times)


def make_market(rng, count, signal=0.0, wide=32):
    """Windows whose volatility is persistence and noise, and `signal` times a part of the vector.

    The part lies in a mixture of the vector's columns. Hand-made features hold persistence too.
    """
    level = rng.normal(size=count)
    seen, hidden = rng.normal(size=(2, count))
    vector = rng.normal(size=(count, wide))
    vector += hidden[:, None] * np.linspace(-1, 1, wide)
    labels = {
        "volatility_50": level + 0.5 * rng.normal(size=count) + signal * hidden,
        "direction": (seen + signal * hidden + rng.normal(size=count) > 0).astype(float),
    }
    known = rng.normal(size=(count, 8))
    known[:, 0], known[:, 1] = level, seen
    floors = {"volatility_50": level[:, None], "direction": seen[:, None]}
    features = {"hand_made": known, "ours": vector}
    return probes.ProbeSet(features, floors, labels, np.arange(count) // 10)


@pytest.mark.parametrize("task", ["volatility_50", "direction"])
def test_nothing_beats_a_floor_that_holds_all_there_is(task):
    rng = np.random.default_rng(0)
    sets = [make_market(rng, count) for count in (400, 200, 400)]
    found = probes.probe_task(task, sets, 0)
    best = found.scores["persistence" if task == "volatility_50" else "floor"]
    assert all(found.scores[name] <= best + 0.005 for name in ("ours", "both", "boosted"))
    assert found.leads["over_simple"].verdict in ("worse", "undecided", "level")
    assert found.leads["adds"].verdict != "better" and found.scores["both"] > best - 0.02
    if task == "volatility_50":  # fitted to the residual, noise costs nothing
        assert found.scores["ours"] > best - 0.02
        assert found.scores["ours_level"] < 0.2
        assert found.leads["over_persistence"].verdict == "level"


@pytest.mark.parametrize("task", ["volatility_50", "direction"])
def test_a_signal_planted_in_the_vector_is_found(task):
    rng = np.random.default_rng(1)
    sets = [make_market(rng, count, signal=1.0) for count in (400, 200, 400)]
    found = probes.probe_task(task, sets, 0)
    assert found.leads["adds"].verdict == "better"
    assert found.scores["both"] > found.scores["hand_made"] + 0.1
    if task == "volatility_50":
        assert found.leads["over_simple"].verdict == "better"
        assert found.leads["over_simple"].value > 0.1


def test_a_wide_vector_of_noise_does_not_drown_known_features():
    rng = np.random.default_rng(2)
    sets = [make_market(rng, count, wide=300) for count in (400, 200, 1000)]
    found = probes.probe_task("direction", sets, 0)
    assert abs(found.scores["both"] - found.scores["hand_made"]) < 0.01

    def concatenated(split):
        return np.hstack([split.features["hand_made"], split.features["ours"]])

    fitted, judged = ((concatenated(x), x.labels["direction"]) for x in sets[:2])
    drowned = probe_fits.choose_linear(fitted, judged, True)(concatenated(sets[2]))
    area = probe_fits.area_under_curve(drowned, sets[2].labels["direction"])
    assert area < found.scores["both"] - 0.03


def test_known_features_of_noise_do_not_drown_a_vector():
    rng = np.random.default_rng(4)
    hidden, noise = rng.normal(size=(2, 1400))
    labels = (hidden + 0.5 * noise > 0).astype(float)
    vector = np.outer(hidden, np.ones(4)) + 0.1 * rng.normal(size=(1400, 4))
    joined = np.hstack([rng.normal(size=(1400, 60)), vector])
    parts = (slice(0, 200), slice(200, 400), slice(400, 1400))
    train, judge, test = ((joined[part], labels[part]) for part in parts)
    found = probe_fits.choose_linear(train, judge, True, 60, may_leave_out=True)
    alone = probe_fits.choose_linear(
        (train[0][:, 60:], train[1]), (judge[0][:, 60:], judge[1]), True
    )
    areas = [
        probe_fits.area_under_curve(answer, test[1])
        for answer in (found(test[0]), alone(test[0][:, 60:]))
    ]
    assert areas[0] > areas[1] - 0.01


def test_what_was_chosen_is_fitted_on_training_and_validation_windows():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 6))
    y = x @ rng.normal(size=6) + rng.normal(size=300)
    answer = probe_fits.choose_linear((x[:200], y[:200]), (x[200:], y[200:]), False)(x)
    scaled = StandardScaler().fit_transform(x)
    fits = [Ridge(penalty * 300).fit(scaled, y).predict(scaled) for penalty in probe_fits.PENALTIES]
    assert min(np.abs(answer - fit).max() for fit in fits) < 1e-10
    trees = probe_fits.choose_boosted((x[:200], y[:200]), (x[200:], y[200:]), False, 0)
    last = trees(x[200:])
    assert np.mean((last - y[200:]) ** 2) < 0.8 * np.var(y[200:])  # it has seen these labels


def test_r2_bias_and_correlation_tell_a_shift_of_level():
    """The test's labels lie 5 above the training's: who extrapolates is paid by one R2 only."""
    rng = np.random.default_rng(3)
    train, judge = make_market(rng, 400), make_market(rng, 200)
    test = make_market(rng, 400)
    test.labels["volatility_50"] += 5
    scores = probes.probe_task("volatility_50", [train, judge, test], 0).scores
    labels, answer = test.labels["volatility_50"], test.floors["volatility_50"][:, 0]
    square = np.sum((labels - answer) ** 2)
    centres = train.labels["volatility_50"].mean(), labels.mean()
    expected = [1 - square / np.sum((labels - centre) ** 2) for centre in centres]
    found = [scores[f"persistence{name}"] for name in ("", "_r2_test", "_bias", "_correlation")]
    correlation = np.corrcoef(answer, labels)[0, 1]
    np.testing.assert_allclose(found, [*expected, np.mean(answer - labels), correlation])


def test_floors_are_the_numbers_that_were_declared(book):
    ends = np.array([200, 777, 1400])
    known = probe_tasks.hand_made(book, ends, STATES)
    assert known.shape[1] == len(probe_tasks.HAND_MADE) == 27
    floors = {task: probe_tasks.find_floor(task, known, STATES) for task in probe_tasks.TASKS}
    half = book.depth // 2
    for row, end in enumerate(ends):
        window = slice(end - STATES, end)
        bid_size, ask_size = (float(x) for x in book.sizes[end - 1, half - 1 : half + 1])
        mid = book.price_ticks[window, half - 1 : half + 1].mean(1)
        returns = 1e4 * np.diff(np.log(mid))
        moved = np.flatnonzero(returns)
        moves = [np.log1p(np.count_nonzero(returns[-reach:])) for reach in (20, 39, 39)]
        since = np.log1p(38 - moved[-1] if len(moved) else STATES)
        trailing = [np.log1p(np.sqrt((returns[-reach:] ** 2).sum())) for reach in (20, 39, 39)]
        imbalance = (bid_size - ask_size) / (bid_size + ask_size)
        for task in ("direction", "depletion"):
            np.testing.assert_allclose(floors[task][row], [imbalance], rtol=1e-6)
        for task in ("move_10", "move_50"):
            np.testing.assert_allclose(floors[task][row], [*moves, since])
        np.testing.assert_allclose(floors["widening"][row], [*trailing, since], rtol=1e-9)
        for horizon in (50, 500):
            past = np.sqrt((returns**2).sum())
            expected = np.log1p(past * np.sqrt(horizon / 39))
            np.testing.assert_allclose(floors[f"volatility_{horizon}"][row], [expected])


def test_parts_are_those_of_a_slow_reading(book):
    ends = np.arange(STATES, 9001)
    found = in_parts(book, ends, STATES, 500, probes.WITHIN)
    borders, segments = (0, 4500, 6000, 9000), (0, 2000, 6000, 9000)
    for end, part in zip(ends, found, strict=True):
        first, last = end - STATES, end + 500  # of the rows that the window and its labels need
        whole = any(a <= first and last <= b for a, b in itertools.pairwise(segments))
        expected = -1
        for number in range(3):
            begin = borders[number] + (STATES if number else 0)
            if whole and begin <= first and last <= borders[number + 1]:
                expected = number
        assert part == expected, end
    used = [
        {row for end in ends[found == part][[0, -1]] for row in range(end - STATES, end + 500)}
        for part in range(3)
    ]
    assert not used[0] & used[1] and not used[1] & used[2] and not used[0] & used[2]


def test_a_window_has_the_labels_for_which_its_part_has_states(book):
    ends = np.arange(STATES, 9001, 17)
    part = in_parts(book, ends, STATES, 50, probes.WITHIN)
    ends, part = ends[part >= 0], part[part >= 0]
    windows = probes.describe_windows(book, ends, STATES, {})
    sets = probes.split_within(windows, part, states_after(book, ends, probes.WITHIN))
    last = np.array([4500, 6000, 9000])[part]  # row after the part's last one
    segment_end = np.array([2000, 6000, 9000])[np.searchsorted([2000, 6000], ends, side="left")]
    room = np.minimum(last, segment_end) - ends
    np.testing.assert_array_equal(states_after(book, ends, probes.WITHIN), room)
    whole = probe_tasks.label_windows(book, ends[segment_end - ends >= 500])
    for task, needed in probe_tasks.HORIZONS.items():
        found = np.concatenate([split.labels[task] for split in sets])
        assert np.isnan(found[room < needed]).all()
        if needed == 50 or task == "volatility_500":  # other tasks lack labels of their own
            assert np.isfinite(found[room >= needed]).all()
        everywhere = windows.labels[task][segment_end - ends >= 500]
        np.testing.assert_array_equal(everywhere, whole[task])


def test_what_follows_a_part_changes_nothing_that_is_fitted(book):
    """All states after the training part are changed; features and labels of it stay bit-equal."""
    ends = np.arange(STATES, 9001, 25)
    part = in_parts(book, ends, STATES, 500, probes.WITHIN)
    arrays = {"price_ticks": np.array(book.price_ticks), "sizes": np.array(book.sizes)}
    arrays["price_ticks"][4500:] += 777
    arrays["sizes"][4500:] *= 3
    mine = ends[part == 0]
    found, expected = (
        probes.describe_windows(x, mine, STATES, {}) for x in (replace(book, **arrays), book)
    )
    for name in ("features", "floors", "labels"):
        for key, values in getattr(expected, name).items():
            np.testing.assert_array_equal(getattr(found, name)[key], values)


def test_blocks_of_time_last_a_minute_or_a_thousand_states(book):
    ends = np.arange(STATES, 9001, 100)
    step = np.int64(10**9)
    slow = replace(book, timestamps=np.arange(9000) * step, segment_starts=np.array([0]))
    np.testing.assert_array_equal(np.unique(time_blocks(slow, ends)), np.arange(9))  # of 1,024 s
    fast = replace(slow, timestamps=np.arange(9000) * step // 50)
    blocks = (ends - 1) // (50 * BLOCK_SECONDS)
    np.testing.assert_array_equal(time_blocks(fast, ends), blocks)
    # The night between two segments is no time of the recording: blocks stay as long as they were.
    assert len(np.unique(time_blocks(book, ends))) <= 4


def test_anybodys_vectors_are_probed(book):
    ends = np.arange(STATES, 8400, 9)
    usable = in_parts(book, ends, STATES, 500, (1.0,)) == 0
    truth = np.zeros(len(ends))
    truth[usable] = probe_tasks.label_windows(book, ends[usable])["move_10"]
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(ends), 6))
    vectors[:, 2] += 3 * truth
    noise = rng.normal(size=(len(ends), 5))
    single = replace(book, timestamps=np.arange(9000) * 10**9 // 10)
    found = probes.probe(vectors, ends, single, STATES, {"theirs": noise})
    assert set(found) == set(probe_tasks.TASKS)
    result = found["move_10"]
    assert result.scores["ours"] > 0.9 and result.scores["theirs"] < 0.65
    assert result.leads["over_theirs"].verdict == result.leads["adds"].verdict == "better"
    for wrong in (vectors[1:], vectors[:, 0], np.full_like(vectors, np.nan)):
        with pytest.raises(InputError, match="give a row of finite numbers"):
            probes.probe(wrong, ends, book, STATES)
    with pytest.raises(InputError, match="give end rows from 40 to 9000"):
        probes.probe(vectors, ends + 5000, book, STATES)


def test_the_smallest_visible_lead_is_found_in_80_percent_of_recordings():
    rng = np.random.default_rng(4)
    block = np.arange(30)
    low, high, _ = intervals.bootstrap(rng.normal(size=30), block, 0)
    widths = []
    for seed in range(100):
        low, high, _ = intervals.bootstrap(rng.normal(size=30), block, seed)
        widths.append(intervals.smallest_visible(low, high, 30))
    smallest = np.mean(widths)
    found = 0
    for seed in range(300):
        low, high, _ = intervals.bootstrap(smallest + rng.normal(size=30), block, seed)
        found += low > 0
    assert 0.74 < found / 300 < 0.87
    assert np.isnan(intervals.smallest_visible(np.nan, np.nan, 1))


def test_a_verdict_says_whether_a_lead_would_have_been_seen():
    assert intervals.judge_lead(0.01, 0.05, 20, 0.02) == "better"
    assert intervals.judge_lead(-0.05, -0.01, 20, 0.02) == "worse"
    assert intervals.judge_lead(-0.01, 0.01, 20, 0.02) == "level"
    assert intervals.judge_lead(-0.05, 0.05, 20, 0.02) == "undecided"
    assert intervals.judge_lead(np.nan, np.nan, 1, 0.02) == "undecided"


def test_few_of_many_null_differences_are_found():
    """Of 200 differences 20 are true, at 6 standard errors; those at 1.96 no longer count."""
    rng = np.random.default_rng(5)
    true = np.arange(200) < 20
    values = np.where(true, 6.0, 0.0) + rng.normal(size=200)
    blocks = np.full(200, 1000)
    found = intervals.find_discoveries(values, values - 1.962, values + 1.962, blocks)
    assert found[true].all() and found[~true].sum() <= 4
    assert (np.abs(values[~true]) > 1.962).sum() > 4
    one = np.array([1.0])
    assert not intervals.find_discoveries(one, one * np.nan, one * np.nan, np.array([1])).any()
    assert len(intervals.find_discoveries(*np.zeros((4, 0)))) == 0


def test_an_added_vector_is_reduced_as_scikit_learn_reduces_it():
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(count, 12)) @ rng.normal(size=(12, 12)) for count in (90, 30))
    scaler = StandardScaler().fit(train[:, 3:])
    axes = PCA(4, svd_solver="full").fit(scaler.transform(train[:, 3:]))
    found = probe_fits.reduce_vector(train, 3, 4)(test)
    assert found.shape == (30, 7) and (found[:, :3] == test[:, :3]).all()
    expected = axes.transform(scaler.transform(test[:, 3:]))
    np.testing.assert_allclose(np.abs(found[:, 3:]), np.abs(expected), rtol=1e-8, atol=1e-10)
    assert probe_fits.reduce_vector(train, 3, None)(test) is test


def test_levels_that_lie_in_the_scale_block_are_found_by_vector_and_scale_block():
    rng = np.random.default_rng(1)
    sets = [make_market(rng, count, signal=0.5) for count in (400, 200, 400)]
    for split in sets:
        block = rng.normal(size=(len(split.block), 3))
        split.labels["volatility_50"] = split.labels["volatility_50"] + block[:, 0]
        split.features["scale"] = block
    found = probes.probe_task("volatility_50", sets, 0)
    assert found.scores["scaled"] > found.scores["scale"] + 0.03 > found.scores["ours"] + 0.1
    assert found.leads["scaled_over_simple"].verdict == found.leads["all_adds"].verdict == "better"
    assert found.scores["all"] >= found.scores["scaled"] - 0.02
