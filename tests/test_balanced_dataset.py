"""create_balanced_dataset.py: purity, overlap, equal strata, nothing fitted on what is judged."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import numba
import numpy as np
import pytest
from conftest import refusal, shell, write_book

import create_balanced_dataset
import exploration_main
from create_balanced_dataset import main
from lob.book.states import open_book
from lob.config import InputError
from lob.storage import open_table, save_table
from lob.windows.balancing import (
    SAMPLE,
    SCORED,
    choose_stride,
    choose_windows,
    draw_split,
    measure_overlap,
    normalised_entropy,
)
from lob.windows.splits import calendar_cuts, split_rows

T = 32
CONFIG = {
    **create_balanced_dataset.config,
    "temporal_dim": T,
    "plots": False,
    "windows": 300,
    "min_stride": 4,
}
STATISTICS = {**exploration_main.config, "temporal_dim": T, "plots": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two pairs: one has segments that are short or end near a cut, one ends before the test."""
    path = tmp_path_factory.mktemp("data")
    write_book(
        path,
        "AAA",
        rows=6000,
        depth=8,
        seed=1,
        segment_starts=(0, 20, 60, 1500, 4190, 4205, 4300, 5690, 5710, 5900),
    )
    write_book(path, "BBB", rows=4000, depth=8, seed=2, start_ns=1_777_689_393_201_000_000)
    exploration_main.main({**STATISTICS, "data_dir": str(path)})
    return path


def draw(folder: Path, **changes) -> dict[str, tuple[np.ndarray, dict]]:
    config = {**CONFIG, "data_dir": str(folder), **changes}
    assert main(config) == 0
    names = config["pairs"] or ["AAA", "BBB"]
    return {
        n: open_table(folder / "balanced_samples" / f"{n}.npy", "", None, temporal_dim=T)
        for n in names
    }


def limits_of(folder: Path, pair: str, ratios=(0.7, 0.25, 0.05)) -> np.ndarray:
    books = [open_book(folder / "book_states" / name) for name in ("AAA", "BBB")]
    cuts = calendar_cuts(books, ratios)
    return split_rows(books[pair == "BBB"].timestamps, cuts, T)


@pytest.mark.parametrize("cells", [[8, 8, 9], [2, 1, 3]])
@pytest.mark.parametrize("min_stride", [1, 4, 40])
@pytest.mark.parametrize("windows", [None, 60])
def test_samples_are_pure_apart_and_of_the_size_asked_for(folder, cells, min_stride, windows):
    total = 0
    for pair, (sample, meta) in draw(
        folder, cells=cells, min_stride=min_stride, windows=windows
    ).items():
        book, ends = open_book(folder / "book_states" / pair), sample["end_row"]
        assert sample.dtype == SAMPLE and (sample["weight"] == 1).all()
        assert (np.diff(ends) >= min_stride).all()
        segment = np.searchsorted(book.segment_starts, ends - T, side="right")
        assert (segment == np.searchsorted(book.segment_starts, ends - 1, side="right")).all()
        # Row by row, without the functions under test: no state is in two splits, and T states lie
        # between two splits.
        owner = np.full(book.rows, -1)
        for index, (first, end) in enumerate(limits_of(folder, pair)):
            mine = ends[(ends - T >= first) & (ends <= end)]
            assert len(mine) == list(meta["splits"].values())[index]["windows"]
            assert len(mine) > 0 or (pair, index) == ("BBB", 2)
            for stop in mine:
                assert set(owner[stop - T : stop]) <= {-1, index}
                owner[stop - T : stop] = index
        assert np.isin(ends, np.flatnonzero(owner >= 0) + 1).all()
        changes = np.flatnonzero(np.diff(owner[owner >= 0]))
        used = np.flatnonzero(owner >= 0)
        assert (
            len(changes) == (2 if pair == "AAA" else 1)
            and (used[changes + 1] - used[changes] > T).all()
        )
        assert meta["shared_states"] == 0
        total += len(sample)
    if windows is not None:
        assert total == windows


def test_strata_that_gave_all_they_had_are_among_those_counted(folder):
    sample, meta = draw(folder, windows=None, min_stride=64)["AAA"]
    split = meta["splits"]["train"]
    drawn = len(np.unique(sample["stratum"][: split["windows"]]))
    assert drawn <= split["exhausted_strata"] <= split["strata"]


def test_strata_are_those_of_a_plain_calculation(folder):
    """Cells of equal width lie between limits from the training windows."""
    sample, meta = draw(folder)["AAA"]
    rows = np.load(folder / "window_statistics" / "AAA.npy")
    limits = limits_of(folder, "AAA")
    train = rows[rows["end_row"] <= limits[0, 1]]
    mean = {n: train[n].mean() for n in SCORED}
    deviation = {n: train[n].std() for n in SCORED}
    np.testing.assert_allclose(meta["scale"][0], list(mean.values()), rtol=1e-10)
    np.testing.assert_allclose(meta["scale"][1], list(deviation.values()), rtol=1e-10)
    chosen = rows[np.searchsorted(rows["end_row"], sample["end_row"])]
    outlier = {
        name: np.any([abs(part[n] - mean[n]) > 3 * deviation[n] for n in SCORED], axis=0)
        for name, part in (("chosen", chosen), ("train", train))
    }
    trained = chosen["end_row"] <= limits[0, 1]
    assert not outlier["chosen"][trained].any()
    assert outlier["train"].sum() == meta["splits"]["train"]["outliers"] > 0
    expected = np.zeros(len(chosen), int)
    for name, cells in zip(
        ("std_tick_returns_bps", "average_spread_bps", "mid_price_change_bps"),
        (8, 8, 9),
        strict=True,
    ):
        low = max(train[name].min(), mean[name] - 3 * deviation[name])
        high = min(train[name].max(), mean[name] + 3 * deviation[name])
        place = np.clip(np.floor(cells * (chosen[name] - low) / (high - low)), 0, cells - 1).astype(
            int
        )
        expected = expected * cells + place
    np.testing.assert_array_equal(sample["stratum"], expected)


def test_joint_cells_even_out_the_conditions(folder):
    """A single stratum is a uniform sample and leaves the distribution as it was."""
    _, meta = draw(folder, pairs=["AAA"], windows=2000, min_stride=1)["AAA"]
    assert meta["entropy_after"] - meta["entropy_before"] > 0.03
    _, meta = draw(folder, pairs=["AAA"], windows=2000, min_stride=1, cells=[1, 1, 1])["AAA"]
    assert (
        meta["splits"]["train"]["strata"] == 1
        and meta["entropy_after"] == meta["entropy_before"] == 0
    )


def water_level(counts: np.ndarray, wanted: int) -> np.ndarray:
    """Take one window of each stratum that has any left, in turn, until there are enough."""
    taken = np.zeros_like(counts)
    while taken.sum() < wanted:
        open_ones = np.flatnonzero(taken < counts)
        taken[open_ones[np.argmin(taken[open_ones])]] += 1
    return taken


@pytest.mark.parametrize("wanted", [0, 1, 5, 37, 100, 333, 1000])
def test_strata_fill_like_water(wanted):
    stratum = (
        np.random.default_rng(0)
        .choice(6, 1000, p=[0.6, 0.3, 0.05, 0.03, 0.015, 0.005])
        .astype(np.int16)
    )
    ends = np.arange(100, 1100)
    rng = np.random.default_rng(0)
    places, weights, exhausted = draw_split(ends, stratum, wanted, 1, False, rng)
    assert (
        len(places) == len(set(places)) == wanted
        and (np.diff(places) > 0).all()
        and (weights == 1).all()
    )
    counts = np.bincount(stratum, minlength=6)
    expected = water_level(counts, wanted)
    got = np.bincount(stratum[places], minlength=6)
    assert abs(got - expected).max() <= 1 and (got[counts == got] == expected[counts == got]).all()
    assert exhausted == (got == counts).sum()


def test_every_window_of_a_stratum_is_as_likely():
    """2,000 draws of 10 out of 40: each window 500 times, give or take 5 deviations."""
    stratum, ends = np.zeros(40, np.int16), np.arange(40)
    rng, drawn = np.random.default_rng(0), np.zeros(40)
    for _ in range(2000):
        places, _, _ = draw_split(ends, stratum, 10, 1, False, rng)
        drawn[places] += 1
    assert abs(drawn - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_oversampling_evens_the_strata_by_weight():
    stratum = np.repeat(np.arange(4, dtype=np.int16), [3, 30, 300, 3000])
    ends = np.arange(len(stratum))
    places, weights, exhausted = draw_split(ends, stratum, 401, 1, True, np.random.default_rng(0))
    drawn = np.bincount(stratum[places], weights)
    assert weights.sum() == pytest.approx(401) and abs(drawn - 100.25).max() <= 1
    assert np.bincount(stratum[places]).tolist()[:2] == [3, 30] and exhausted == 2
    assert len(set(places)) == len(places) and (weights[stratum[places] >= 2] == 1).all()


def test_the_stride_holds_across_strata_and_segments():
    """Rows far apart in the table can be near in the book, and the other way round."""
    ends = np.concatenate([np.arange(50, 150), np.arange(155, 255), np.arange(400, 500)])
    stratum = (np.arange(300) % 7).astype(np.int16)
    stratum[::5] = -1
    places, _, _ = draw_split(ends, stratum, 300, 10, False, np.random.default_rng(0))
    assert (np.diff(ends[places]) >= 10).all() and (stratum[places] >= 0).all()
    # Nothing more would fit: the sample is as dense as its stride allows.
    free = [
        e
        for e, s in zip(ends, stratum, strict=True)
        if s >= 0 and abs(ends[places] - e).min() >= 10
    ]
    assert free == []


def rewrite_statistics(folder: Path, pair: str, change) -> None:
    file = folder / "window_statistics" / f"{pair}.npy"
    rows, meta = open_table(file, "", None)
    rows = np.array(rows)
    change(rows)
    save_table(file, rows, meta["parameters"], meta["made_from"])


def copy_of(folder: Path, tmp_path: Path) -> Path:
    for part in ("book_states", "window_statistics"):
        subprocess.run(["cp", "-r", folder / part, tmp_path / part], check=True)
    return tmp_path


def test_nothing_is_fitted_on_validation_or_test(folder, tmp_path):
    """Other conditions after the cut change nothing of the training share."""
    copy = copy_of(folder, tmp_path)
    border = limits_of(folder, "AAA")[0, 1]

    def change(rows):
        late = rows["end_row"] > border
        for name in SCORED:
            rows[name][late] = rows[name][late] * 1.5 + rows[name].std()

    before, meta_before = draw(folder, windows=None)["AAA"]
    rewrite_statistics(copy, "AAA", change)
    after, meta_after = draw(copy, windows=None)["AAA"]
    assert meta_before["scale"] == meta_after["scale"]
    np.testing.assert_array_equal(
        before[before["end_row"] <= border], after[after["end_row"] <= border]
    )
    assert not np.array_equal(before["stratum"], after["stratum"])


def test_a_market_that_moves_on_is_still_judged_by_all_of_it(folder, tmp_path):
    """A spread of one tick changes in bps if the price moves: that makes no later outliers."""
    copy = copy_of(folder, tmp_path)
    border = limits_of(folder, "AAA")[0, 1]

    def change(rows):
        spread = 2 + 1e-4 * np.random.default_rng(0).normal(size=len(rows))
        rows["average_spread_bps"] = np.where(rows["end_row"] > border, 1.99, spread)

    rewrite_statistics(copy, "AAA", change)
    sample, meta = draw(copy, windows=None, pairs=["AAA"])["AAA"]
    splits = meta["splits"]
    assert splits["train"]["outliers"] > 0
    assert splits["validation"]["outliers"] == splits["test"]["outliers"] == 0
    shares = np.array([split["windows"] for split in splits.values()]) / len(sample)
    np.testing.assert_allclose(shares, CONFIG["split_ratios"], atol=0.02)


def test_it_warns_where_many_training_windows_are_set_aside(folder, capsys):
    draw(folder)
    assert "warning" not in capsys.readouterr().out
    draw(folder, outlier_std=1.0, windows=None)
    assert re.search(
        r"warning: \d\d % of the training windows .* raise --outlier_std=1\n",
        capsys.readouterr().out,
    )


def test_the_sample_depends_on_seed_and_pair_alone(folder):
    first = {pair: sample.tobytes() for pair, (sample, _) in draw(folder).items()}
    numba.set_num_threads(1)
    try:
        again = {
            pair: sample.tobytes()
            for pair, (sample, _) in draw(folder, pairs=["BBB", "AAA"]).items()
        }
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert first == again
    assert {pair: sample.tobytes() for pair, (sample, _) in draw(folder, seed=1).items()} != first


def test_the_draw_is_the_same_on_every_machine():
    """The picks of a fixed table are written down: another generator would change all samples."""
    stratum = ((np.arange(5000) * 7919) % 4999 % 11 - 1).astype(np.int16)
    rng = np.random.Generator(np.random.PCG64([0, 1, 2]))
    places, _, _ = draw_split(np.arange(64, 5064), stratum, 200, 8, False, rng)
    assert places[:5].tolist() == [32, 45, 55, 64, 72]
    assert hashlib.sha256(places.astype("<i8").tobytes()).hexdigest()[:16] == "bc9193522182a001"


def test_pairs_get_their_shares(folder):
    """BBB has no state in the test share: AAA gives all of its windows."""

    def counts(**changes):
        samples = draw(folder, **changes)
        return {
            pair: [s["windows"] for s in meta["splits"].values()]
            for pair, (_, meta) in samples.items()
        }

    assert counts(pair_weights={"AAA": 1, "BBB": 2.0}) == {"AAA": [70, 25, 15], "BBB": [140, 50, 0]}
    assert counts() == {"AAA": [126, 45, 15], "BBB": [84, 30, 0]}  # by states, 6,000 and 4,000
    assert sum(sum(c) for c in counts(windows=None, min_stride=None).values()) == 10_000 // 8


@pytest.mark.parametrize(
    ("states", "windows", "stride"),
    [
        (5, 1, 1),
        (10_000, 1_250, 2),
        (168_119, 21_014, 2),
        (10**6, 24_000, 13),
        (10**9, 15_625_000, 16),
    ],
)
def test_windows_and_their_distance_follow_from_the_number_of_states(states, windows, stride):
    assert choose_windows(states) == windows
    assert choose_stride(states, windows) == stride


def test_two_dates_may_cut_the_calendar(folder):
    book = open_book(folder / "book_states" / "AAA")
    dates = [str(book.timestamps[row].astype("datetime64[ns]")) for row in (3000, 5000)]
    sample, meta = draw(folder, split_ratios=[d[:26] for d in dates], windows=100)["AAA"]
    ends = sample["end_row"]
    assert abs(np.array(meta["cuts_ns"]) - book.timestamps[[3000, 5000]]).max() < 2000
    assert (
        not ((ends > 3000) & (ends < 3000 + T)).any()
        and (ends < 3000).any()
        and (ends > 5000 + 2 * T).any()
    )


def test_measures_by_hand():
    assert measure_overlap(np.array([100, 132, 140, 300]), 32) == pytest.approx(
        (24 / 32 / 3, 104 / 32)
    )
    assert measure_overlap(np.array([100]), 32) == (0, 1)
    assert measure_overlap(np.array([], dtype=np.int64), 32) == (0, 0)
    natural = np.array([97, 1, 0, 1, 1])
    assert normalised_entropy(np.array([1, 1, 0, 1, 1]), natural) == pytest.approx(1)
    assert normalised_entropy(np.array([1, 1, 0, 0, 0]), natural) == pytest.approx(0.5)
    assert normalised_entropy(np.array([5, 0, 0, 0, 0]), natural) == 0


def test_a_split_with_fewer_windows_than_its_share_gives_what_it_has(folder, tmp_path, capsys):
    copy = copy_of(folder, tmp_path)
    tables = draw(copy, windows=3000, min_stride=16)
    printed = capsys.readouterr().out
    said = re.findall(r"  ([\d,]+) (\w+) windows, not its share of [\d,]+: it has", printed)
    given = [
        (f"{split['windows']:,}", name)
        for _, about in tables.values()
        for name, split in about["splits"].items()
    ]
    assert len(said) >= 4 and set(said) <= set(given)
    assert all(len(rows) > 100 for rows, _ in tables.values())


def test_a_split_without_windows_leaves_the_others_their_shares(folder, tmp_path, capsys):
    copy = copy_of(folder, tmp_path)
    tables = draw(copy, windows=200, split_ratios=[0.5, 0.4999, 0.0001])
    said = capsys.readouterr().out
    assert "no window of 32 states is sampled for test" in said
    first = min(open_book(book).timestamps[0] for book in (copy / "book_states").iterdir())
    assert f"train from {str(np.datetime64(int(first) // 10**9, 's')).replace('T', ' ')}" in said
    counts = [
        sum(about["splits"][name]["windows"] for _, about in tables.values())
        for name in ("train", "validation", "test")
    ]
    assert counts == [100, 100, 0]


def test_a_pair_without_a_training_window_is_left_out_and_named(folder, tmp_path, capsys):
    copy = copy_of(folder, tmp_path)
    late = copy / "book_states" / "BBB" / "timestamps.npy"
    np.save(late, np.load(late) + 3600 * 10**9)
    cuts = ["2026-05-02T02:37:00", "2026-05-02T02:37:10"]
    changes = {"pair_weights": {"AAA": 1, "BBB": 2}, "split_ratios": cuts, "pairs": ["AAA", "BBB"]}
    assert main({**CONFIG, "data_dir": str(copy), **changes}) == 0
    assert "left out, BBB: no window of 32 states lies in the training" in capsys.readouterr().out
    written = [path.name for path in (copy / "balanced_samples").iterdir()]
    assert sorted(written) == ["AAA.json", "AAA.npy"]
    with pytest.raises(InputError, match=r"BBB: no window of 32 states lies in the training share"):
        main({**CONFIG, "data_dir": str(copy), "split_ratios": cuts, "pairs": ["BBB"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"temporal_dim": 64},
            "temporal_dim = 32, not 64: run exploration_main.py again, or set --temporal_dim",
        ),
        ({"cells": [3, 3]}, "cells = .* must be 3 numbers"),
        ({"cells": [3, 0, 3]}, "cells"),
        ({"cells": [100, 100, 100]}, "cells"),
        ({"split_ratios": [0.7, 0.3]}, "split_ratios"),
        (
            {"split_ratios": [0.7, 0.2, 0.2]},
            r"split_ratios = \[0.7, 0.2, 0.2\] add up to 1.1: make them add up to 1",
        ),
        (
            {"split_ratios": [0.0, 0.5, 0.5]},
            "lies in the training share, which ends at 2026-05-02T02:36:[23]3; the pair",
        ),
        ({"pair_weights": {"AAA": 1}}, "pair_weights = .* to each of AAA, BBB"),
        ({"pair_weights": {"AAA": 1, "BBB": -1}}, "pair_weights"),
        ({"pair_weights": {"AAA": 1, "BBB": np.inf}}, "pair_weights"),
        (
            {"pair_weights": {"AAA": 1e6, "BBB": 1}},
            "BBB: none of the windows falls to it: raise --windows",
        ),
        (
            {"outlier_std": 0.001, "cells": [1, 1, 1]},
            "training windows are outliers: raise --outlier_std=0.001",
        ),
        (
            {"outlier_std": 0.001, "windows": None},
            "training windows are outliers: raise --outlier_std=0.001",
        ),
        ({"split_ratios": ["2026-05-02", "9999-12-31"]}, "between the years 1678 and 2262"),
        ({"pairs": ["CCC"]}, "no pair 'CCC'"),
    ],
)
def test_bad_configurations_are_refused_and_nothing_is_written(folder, tmp_path, changes, message):
    copy = copy_of(folder, tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        main({**CONFIG, "data_dir": str(copy), **changes})
    assert "\n" not in str(refused.value)
    assert sorted(p.name for p in copy.iterdir()) == ["book_states", "window_statistics"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--windows=0", "windows = 0 must be >= 1 and <= 1e12 or None"),
        ("--outlier_std=0.0", "outlier_std = 0.0 must be > 0"),
        ("--min_stride=0", "min_stride = 0"),
        ("--min_stride=99999999999999999999", "min_stride = "),
        ("--windows=99999999999999999999", "windows = "),
    ],
)
def test_numbers_out_of_bounds_are_refused(word, message):
    assert message in refusal("create_balanced_dataset.py", word)


def set_column(name, value, where=slice(None)):
    def change(rows):
        rows[name][where] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_column("average_spread_bps", 1.25),
            "average_spread_bps is 1.25 in all .* training windows",
        ),
        (set_column("mid_price_change_bps", 0.0), "mid_price_change_bps is 0 in all"),
        (
            set_column("std_tick_returns_bps", np.nan, 100),
            "std_tick_returns_bps is NaN or infinite",
        ),
        (
            set_column("mean_tick_returns_bps", np.inf, 100),
            "mean_tick_returns_bps is NaN or infinite",
        ),
        (set_column("mean_tick_returns_bps", np.nan, -1), "a statistic is NaN or infinite"),
        (set_column("average_spread_bps", -np.inf, -1), "a statistic is NaN or infinite"),
    ],
)
def test_bad_statistics_are_refused_and_nothing_is_written(folder, tmp_path, change, message):
    copy = copy_of(folder, tmp_path)
    rewrite_statistics(copy, "BBB", change)
    with pytest.raises(InputError, match=message):
        main({**CONFIG, "data_dir": str(copy)})
    assert not (copy / "balanced_samples").exists()


def test_statistics_of_another_book_are_refused(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    meta = copy / "book_states" / "AAA" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "tick_size": 0.5}))
    done = shell("create_balanced_dataset.py", f"--data_dir={copy}", f"--temporal_dim={T}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "AAA.npy was made from another book" in done.stderr
        and "run exploration_main.py again" in done.stderr
    )
    assert not (copy / "balanced_samples").exists()


def test_the_script_prints_and_draws_before_and_after(folder, capsys):
    draw(folder, plots=True)
    printed = capsys.readouterr().out
    for words in (
        "states shared by two splits: 0",
        "states shared",
        "evenness of conditions",
        *SCORED,
        "AAA_balanced.png",
    ):
        assert words in printed
    assert (folder / "plots" / "AAA_balanced.png").stat().st_size > 20_000
