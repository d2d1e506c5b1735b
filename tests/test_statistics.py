"""Window statistics against two-pass float64 values, and fractions, of each window on its own."""

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numba
import numpy as np
import pytest
from conftest import refusal, shell, write_book
from numpy.lib.stride_tricks import sliding_window_view

import exploration_main
from exploration_main import main
from lob import plotting
from lob.book.states import Book, identity, open_book
from lob.config import InputError
from lob.evaluation.pictures import cover
from lob.storage import open_table
from lob.windows import statistics
from lob.windows.pictures import EXTREMES, find_extremes
from lob.windows.splits import window_ends
from lob.windows.statistics import STATISTICS, chunk_statistics, write_statistics

CONFIG = {**exploration_main.config, "plots": False}


def make_book(
    mids, spreads=None, tick_size=0.01, levels=4, traded=None, step_ns=10_000_000
) -> Book:
    """A book in memory whose mid moves by whole ticks (`mids`, in ticks; `spreads` even)."""
    rng = np.random.default_rng(0)
    rows, half = len(mids), levels // 2
    spreads = np.full(rows, 2) if spreads is None else np.asarray(spreads)
    bid, ask = np.asarray(mids) - spreads // 2, np.asarray(mids) + spreads // 2
    offsets = np.arange(half)
    price = np.concatenate(
        [(bid[:, None] - offsets)[:, ::-1], ask[:, None] + offsets], axis=1
    ).astype(np.int32)
    sizes = rng.lognormal(-2, 1, (rows, levels)).astype(np.float32)
    times = 1_777_689_383_201_000_000 + np.cumsum(rng.integers(0, 2 * step_ns, rows))
    meta = {"depth": levels, "tick_size": tick_size, "rows": rows}
    return Book(Path("SYN"), meta, price, sizes, times, np.array([0]), None, traded)


def two_pass(book: Book, temporal_dim: int) -> dict[str, np.ndarray]:
    """Return each statistic of each window of a one-segment book, by its definition."""
    half = book.depth // 2
    bid, ask = book.price_ticks[:, half - 1].astype(float), book.price_ticks[:, half].astype(float)
    sizes = book.sizes.astype(float)
    best = (sizes[:, half - 1] - sizes[:, half]) / (sizes[:, half - 1] + sizes[:, half])
    depth = (sizes[:, :half].sum(1) - sizes[:, half:].sum(1)) / sizes.sum(1)
    mid, spread, best, depth, time = (
        sliding_window_view(series, temporal_dim)
        for series in (
            (bid + ask) / 2,
            (ask - bid) / ((bid + ask) / 2),
            best,
            depth,
            book.timestamps,
        )
    )
    returns = np.diff(mid, axis=1) / mid[:, :-1] * 1e4
    duration = (time[:, -1] - time[:, 0]) / 1e9
    expected = {
        "mid_price_change_bps": (mid[:, -1] - mid[:, 0]) / mid[:, 0] * 1e4,
        "average_spread_bps": spread.mean(1) * 1e4,
        "std_tick_returns_bps": np.sqrt(((returns - returns.mean(1, keepdims=True)) ** 2).mean(1)),
        "mean_tick_returns_bps": returns.mean(1),
        "start_mid": mid[:, 0] * book.tick_size,
        "end_row": np.arange(temporal_dim, book.rows + 1),
        "realised_volatility_bps": np.sqrt((returns**2).sum(1)),
        "imbalance_best": best.mean(1),
        "imbalance_depth": depth.mean(1),
        "update_rate_hz": (temporal_dim - 1) / np.maximum(duration, 1e-3),
        "duration_s": duration,
        "traded_direction": np.full(len(duration), np.nan),
    }
    if book.traded is not None:
        traded = sliding_window_view(book.traded.astype(float), temporal_dim)
        with np.errstate(invalid="ignore"):
            expected["traded_direction"] = traded.sum(1) / np.abs(traded).sum(1)
    return expected


def random_walk(rows: int) -> np.ndarray:
    """Price 10^5 at a tick of 10^-2."""
    return 10_000_000 + np.cumsum(
        np.random.default_rng(0).choice([-1, 0, 1], rows, p=[0.1, 0.8, 0.1])
    )


def crash(rows: int) -> np.ndarray:
    """Return a calm walk with a fall of 40 % and back in its middle.

    Such returns leave an error in plain running sums that never goes away.
    """
    mids = random_walk(rows)
    mids[rows // 2] = 6_000_000
    return mids


SERIES = {
    "walk": random_walk(6000),
    "crash": crash(6000),
    "one move": 10_000_000 + (np.arange(6000) >= 3000),
    "steady rise": 10_000_000 + np.arange(6000),
    "zigzag": 10_000_000 + np.arange(6000) % 2,
}


@pytest.mark.parametrize("temporal_dim", [2, 3, 256, 1024])
@pytest.mark.parametrize("series", SERIES)
def test_statistics_agree_with_two_passes_over_each_window(series, temporal_dim):
    rng = np.random.default_rng(1)
    traded = np.where(rng.random(6000) < 0.01, rng.normal(size=6000), 0).astype(np.float32)
    book = make_book(SERIES[series], spreads=2 * rng.integers(1, 9, 6000), traded=traded)
    rows = chunk_statistics(book, 0, book.rows, temporal_dim)
    for name, expected in two_pass(book, temporal_dim).items():
        np.testing.assert_allclose(rows[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("series", ["walk", "crash", "steady rise"])
def test_statistics_agree_with_exact_fractions(series):
    """Two-pass float64 values round, too: here is what they should be, in rational arithmetic."""
    temporal_dim, mids = 256, SERIES[series]
    rows = chunk_statistics(make_book(mids), 0, len(mids), temporal_dim)
    for first in (0, 1, 255, 2744, 2745, 2999, 3000, 3001, len(mids) - temporal_dim):
        window = [Fraction(int(m)) for m in mids[first : first + temporal_dim]]
        returns = [(b - a) / a * 10_000 for a, b in pairwise(window)]
        mean = sum(returns) / len(returns)
        variance = sum((r - mean) ** 2 for r in returns) / len(returns)
        row = rows[first]
        assert row["mean_tick_returns_bps"] == pytest.approx(float(mean), rel=1e-9, abs=1e-12)
        assert row["std_tick_returns_bps"] == pytest.approx(
            float(variance) ** 0.5, rel=1e-9, abs=1e-12
        )
        assert row["realised_volatility_bps"] == pytest.approx(
            float(sum(r * r for r in returns)) ** 0.5, rel=1e-9
        )


def test_a_window_worked_by_hand():
    """Four states in 0.25 s; a tick is 0.5, the mids are 100, 101, 101, 99 ticks."""
    traded = np.array([3.0, 0, -1.0, 0], np.float32)
    book = make_book(
        np.array([100, 101, 101, 99]), spreads=[2, 2, 4, 2], tick_size=0.5, traded=traded
    )
    sizes = np.array([[1, 3, 1, 1], [1, 1, 3, 1], [2, 1, 1, 2], [5, 2, 2, 1]], np.float32)
    times = np.array([0, 100_000_000, 200_000_000, 250_000_000])
    (row,) = chunk_statistics(replace(book, sizes=sizes, timestamps=times), 0, 4, 4)
    returns = np.array([100, 0, -2 / 101 * 1e4])
    assert row["mid_price_change_bps"] == pytest.approx(-100)
    assert row["average_spread_bps"] == pytest.approx(
        (2 / 100 + 2 / 101 + 4 / 101 + 2 / 99) / 4 * 1e4
    )
    assert row["mean_tick_returns_bps"] == pytest.approx(returns.mean())
    assert row["std_tick_returns_bps"] == pytest.approx(returns.std())
    assert row["realised_volatility_bps"] == pytest.approx(np.sqrt((returns**2).sum()))
    assert row["imbalance_best"] == pytest.approx((0.5 - 0.5 + 0 + 0) / 4)
    assert row["imbalance_depth"] == pytest.approx((2 / 6 - 2 / 6 + 0 + 4 / 10) / 4)
    assert row["start_mid"] == 50 and row["end_row"] == 4
    assert row["duration_s"] == 0.25 and row["update_rate_hz"] == pytest.approx(12)
    assert row["traded_direction"] == 0.5


def test_a_constant_window_gives_exactly_zero_after_any_history():
    mids = np.concatenate([crash(2000), np.full(1500, 10_000_007)])
    rows = chunk_statistics(make_book(mids, step_ns=1), 0, len(mids), 256)
    constant = rows[rows["end_row"] >= 2000 + 256]
    assert len(constant) == 1245
    for name in (
        "mid_price_change_bps",
        "std_tick_returns_bps",
        "mean_tick_returns_bps",
        "realised_volatility_bps",
    ):
        assert (constant[name] == 0).all(), name
    assert constant["update_rate_hz"].max() == 255 / 1e-3  # a duration below 1 ms counts as 1 ms


def test_equal_returns_deviate_by_exactly_nothing():
    mids = 2 ** np.arange(2, 26)  # every return is 1
    rows = chunk_statistics(make_book(mids), 0, 24, 8)
    assert (rows["std_tick_returns_bps"] == 0).all() and (
        rows["mean_tick_returns_bps"] == 10_000
    ).all()


def test_windows_stay_inside_segments_and_match_windows_of_the_segment_alone(tmp_path):
    starts = (0, 10, 11, 300, 555, 556, 900)
    book = open_book(write_book(tmp_path, rows=1300, depth=8, segment_starts=starts))
    file = tmp_path / "out.npy"
    assert write_statistics(book, 256, file) == len(
        window_ends(book.segment_starts, book.rows, 256)
    )
    rows, meta = open_table(file, "exploration_main.py", identity(book), temporal_dim=256)
    np.testing.assert_array_equal(rows["end_row"], window_ends(book.segment_starts, book.rows, 256))
    assert rows.dtype == STATISTICS and meta["parameters"] == {"temporal_dim": 256}
    part = replace(
        book,
        price_ticks=book.price_ticks[556:900],
        sizes=book.sizes[556:900],
        timestamps=book.timestamps[556:900],
        top_of_book=None,
        meta={**book.meta, "rows": 344},
    )
    mine = rows[(rows["end_row"] > 556) & (rows["end_row"] <= 900)]
    for name, expected in two_pass(part, 256).items():
        shift = 556 if name == "end_row" else 0
        np.testing.assert_allclose(
            mine[name], expected + shift, rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_the_file_does_not_depend_on_chunks_threads_or_top_of_book(tmp_path, monkeypatch):
    book = open_book(write_book(tmp_path, rows=2500, depth=8, segment_starts=(0, 700)))
    write_statistics(book, 64, tmp_path / "a.npy")
    numba.set_num_threads(1)
    try:
        write_statistics(replace(book, top_of_book=None), 64, tmp_path / "b.npy")
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    monkeypatch.setattr(statistics, "CHUNK_ROWS", 101)
    write_statistics(book, 64, tmp_path / "c.npy")
    a, c = np.load(tmp_path / "a.npy"), np.load(tmp_path / "c.npy")
    for name in STATISTICS.names:
        np.testing.assert_allclose(a[name], c[name], rtol=1e-12, atol=1e-13, err_msg=name)


def test_the_script_refuses_what_it_cannot_do_and_writes_nothing(data_dir):
    line = refusal("exploration_main.py", f"--data_dir={data_dir}", "--temporal_dim=1")
    assert "temporal_dim = 1 must be >= 2" in line
    with pytest.raises(InputError, match="there is no folder"):
        main({**CONFIG, "data_dir": str(data_dir / "nowhere")})
    with pytest.raises(InputError, match="did you mean 'BTC_USD'"):
        main({**CONFIG, "data_dir": str(data_dir), "pairs": ["BTC_USDT"]})
    write_book(data_dir, "GAP", depth=8, segment_starts=(0, 1500))
    for pair, states, message in (
        ("BTC_USD", 4000, r"has 3,000 states, fewer than a window of 4000: .* smaller --depth"),
        ("GAP", 2000, r"no run of 2000 states .* lower .* larger --max_gap_seconds"),
    ):
        book = open_book(data_dir / "book_states" / pair)
        with pytest.raises(InputError, match=message):
            write_statistics(book, states, data_dir / "x" / "it.npy")
    assert sorted(p.name for p in data_dir.iterdir()) == ["book_states"]


def test_a_bad_pair_does_not_keep_the_others_from_being_done(data_dir):
    (write_book(data_dir, "AAA", rows=300, depth=8) / "sizes.npy").unlink()
    done = shell("exploration_main.py", f"--data_dir={data_dir}", "--plots=False")
    first, last = done.stderr.splitlines()
    assert (
        done.returncode == 2
        and "AAA" in first
        and "sizes.npy" in first
        and "1 of 2 pairs failed" in last
    )
    assert sorted(p.name for p in (data_dir / "window_statistics").iterdir()) == [
        "BTC_USD.json",
        "BTC_USD.npy",
    ]
    meta = json.loads((data_dir / "window_statistics" / "BTC_USD.json").read_text())
    assert meta["rows"] == 3000 - 255


def test_extreme_windows_are_those_of_the_largest_values_far_apart():
    """Moments at which several statistics are large at once: each is drawn once."""
    rows = np.zeros(9000, STATISTICS)
    rows["end_row"] = np.arange(9000) + 256
    moments = [5000, 5003, 700, 2500, 8990, 4900, 100, 6400]
    sizes = np.array([80.0, 79.0, 70.0, 60.0, 50.0, 45.0, 40.0, 30.0])
    for name, sign in EXTREMES.values():
        rows[name] = np.random.default_rng(len(name)).normal(size=9000)
        rows[name][moments] = -sizes if sign <= 0 else sizes
    rows["mid_price_change_bps"][4000] = -90  # the largest fall, by far
    rows["mid_price_change_bps"][moments[2:]] = sizes[2:]
    found = find_extremes(rows)
    assert found["largest rise"] == 700 and found["largest fall"] == 4000
    assert [found[title] for title in list(EXTREMES)[2:]] == [5000, 2500, 8990, 100]
    assert find_extremes(rows[:1]) == dict.fromkeys(EXTREMES, 0)


def test_the_pictures_of_a_single_window_are_drawn(tmp_path):
    write_book(tmp_path, rows=64, depth=12)
    assert main({**CONFIG, "data_dir": str(tmp_path), "plots": True, "temporal_dim": 64}) == 0
    assert len(list((tmp_path / "plots").iterdir())) == 5


def test_the_pictures_are_drawn_for_books_of_any_kind(tmp_path):
    """One book has two days, two segments and trades; the price of the other never moves."""
    import matplotlib.image

    folder = write_book(
        tmp_path, "A", rows=900, depth=12, segment_starts=(0, 400), step_ns=200_000_000_000
    )
    np.save(folder / "traded.npy", np.random.default_rng(0).normal(size=900).astype(np.float32))
    still = write_book(tmp_path, "B", rows=300, depth=12)
    prices = np.load(still / "price_ticks.npy")
    np.save(still / "price_ticks.npy", np.repeat(prices[:1], 300, axis=0))
    (still / "top_of_book.npy").unlink()
    assert main({**CONFIG, "data_dir": str(tmp_path), "plots": True, "temporal_dim": 64}) == 0
    for pair in "AB":
        pictures = sorted((tmp_path / "plots").glob(f"{pair}_*.png"))
        assert [p.stem[2:] for p in pictures] == [
            "book",
            "day",
            "distributions",
            "extremes",
            "joint",
        ]
        for picture in pictures:
            image = matplotlib.image.imread(picture)
            assert image.shape[0] > 300 and image.shape[1] > 300 and image[..., :3].std() > 0.01


@pytest.mark.parametrize("reach", [10, 1000])
def test_a_depth_map_shows_each_level_around_its_price_and_covers_it_alone(reach):
    """Rows of one tick, and of several: the mid between two of them is drawn between them."""
    ticks = np.repeat([[1000.0 - reach, 1000, 1001, 1001 + reach]], 8, axis=0)
    figure, axis = plotting.plt.subplots()
    mesh = plotting.show_depth(axis, ticks, np.ones_like(ticks), 0.5, 0, 8)
    low, high = mesh.get_extent()[2:]
    rows = mesh.get_size()[0]
    height = round((high - low) / rows / 0.5)
    image = np.asarray(mesh.get_array())[:, 0]
    centres = low / 0.5 + (np.arange(rows) + 0.5) * height
    for tick in (1000, 1001):
        shown = image[np.abs(centres - tick) <= height / 2]
        assert len(shown) == 1 and shown[0] > 0.5
    hidden = np.zeros(ticks.shape, dtype=bool)
    hidden[:, 1] = True
    cover(axis, mesh, ticks * 0.5, hidden)
    covered = np.flatnonzero(~np.ma.getmaskarray(axis.images[-1].get_array())[:, 0])
    assert (
        np.abs(centres[covered] - 1000).max() <= reach / 2
        and np.abs(centres[covered] - 1000).min() <= height / 2
    )
    plotting.plt.close(figure)


def test_the_bar_of_a_depth_map_has_plain_numbers():
    figure, axis = plotting.plt.subplots()
    ticks = np.repeat([np.arange(8.0)], 9, axis=0)
    plotting.add_size_bar(
        plotting.show_depth(axis, ticks, np.geomspace(0.6, 7, 72).reshape(9, 8), 1, 0, 9),
        axis,
        "size",
    )
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels(which="both")]
    assert {"1", "2", "5"} <= set(labels) and not any("10^" in label for label in labels)
    plotting.plt.close(figure)
