"""Describe the market conditions of every window of order book states, and draw them.

    python exploration_main.py                     every pair under training_data/book_states/
    python exploration_main.py --temporal_dim=512 --plots=False

Reads `training_data/book_states/<PAIR>/` and writes `training_data/window_statistics/<PAIR>.npy`, a structured array
with one row a window of `temporal_dim` states (all of them, one state apart, none across a segment border), 96 bytes
each, its `.json`, and PNG pictures under `training_data/plots/`. The sample gives 167,864 windows.
"""

config = {
    "data_dir": "training_data",  # folder that holds book_states/ and the rest
    "pairs": None,  # list of pairs; None: all under book_states/
    "temporal_dim": 256,  # states a window
    "plots": True,  # draw the pictures
}

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__, optional={"pairs": list})

import time
from pathlib import Path

import numpy as np
from numba import njit, prange
from tqdm import tqdm

from lob.files import Book, find_pairs, identity, new_table, open_book
from lob.windows import segment_ranges

STATISTICS = np.dtype(
    [
        ("mid_price_change_bps", np.float64),  # (last mid / first mid - 1) x 10^4
        ("average_spread_bps", np.float64),  # mean of (ask - bid) / mid x 10^4
        ("std_tick_returns_bps", np.float64),  # population deviation of the T - 1 relative changes of the mid
        ("mean_tick_returns_bps", np.float64),
        ("start_mid", np.float64),  # first mid, in the quote currency
        ("end_row", np.int64),  # one past the window's last state
        ("realised_volatility_bps", np.float64),  # root of the sum of squared returns
        ("imbalance_best", np.float64),  # mean of (bid size - ask size) / (bid size + ask size) at the best prices
        ("imbalance_depth", np.float64),  # the same over all levels
        ("update_rate_hz", np.float64),  # (T - 1) / max(duration, 1 ms)
        ("duration_s", np.float64),
        ("traded_direction", np.float64),  # signed traded size / traded size, in [-1, 1]; NaN without trades
    ]
)
MAIN = ("mid_price_change_bps", "average_spread_bps", "std_tick_returns_bps", "imbalance_best", "update_rate_hz")
CHUNK_ROWS = 1 << 18
STATE_SERIES = ("return_bps", "spread_bps", "imbalance_best", "imbalance_depth", "traded", "traded_size")


def main(config: dict) -> int:
    if config["temporal_dim"] < 2:
        raise InputError(f"temporal_dim = {config['temporal_dim']} must be at least 2")
    pairs = find_pairs(config["data_dir"], "book_states", config["pairs"], "data_parser.py")
    folder = Path(config["data_dir"])
    for pair in pairs:
        began = time.perf_counter()
        book = open_book(folder / "book_states" / pair)
        file = folder / "window_statistics" / f"{pair}.npy"
        windows = write_statistics(book, config["temporal_dim"], file)
        seconds = time.perf_counter() - began
        print(f"{pair}: {windows:,} windows of {config['temporal_dim']} states in {seconds:.1f} s -> {file}")
        print(summarise(np.load(file, mmap_mode="r")))
        if config["plots"]:
            import matplotlib

            matplotlib.use("Agg")
            from lob import plots

            for picture in plots.draw_pair(book, np.load(file, mmap_mode="r"), MAIN, folder / "plots"):
                print(f"  {picture}")
    return 0


def write_statistics(book: Book, temporal_dim: int, file: Path) -> int:
    """Stream a book's window statistics to `file`; return the number of windows."""
    ranges = [(a, b) for a, b in segment_ranges(book.segment_starts, book.rows) if b - a >= temporal_dim]
    if not ranges:
        raise InputError(f"{book.path} has no run of {temporal_dim} states without a gap: lower --temporal_dim")
    total = sum(b - a - temporal_dim + 1 for a, b in ranges)
    with (
        new_table(file, STATISTICS, {"temporal_dim": temporal_dim}, identity(book)) as table,
        tqdm(total=total, unit="window", unit_scale=True, desc=book.pair, disable=None) as progress,
    ):
        for begin, end in ranges:
            for first in range(begin, end - temporal_dim + 1, CHUNK_ROWS):
                last = min(first + CHUNK_ROWS + temporal_dim - 1, end)
                table.append(chunk_statistics(book, first, last, temporal_dim))
                progress.update(last - first - temporal_dim + 1)
    return int(total)


def chunk_statistics(book: Book, first: int, last: int, temporal_dim: int) -> np.ndarray:
    """Statistics of all windows inside the rows [first, last), STATISTICS (last - first - T + 1,)."""
    if book.top_of_book is not None:
        top = book.top_of_book[first:last]
    else:
        top = book.price_ticks[first:last, book.depth // 2 - 1 : book.depth // 2 + 1]
    traded = book.traded[first:last] if book.traded is not None else np.empty(0, np.float32)
    series = state_series(np.ascontiguousarray(top), book.sizes[first:last], np.asarray(traded))
    mid_ticks = top.astype(np.float64).sum(axis=1) / 2
    return window_statistics(series, mid_ticks, np.asarray(book.timestamps[first:last]), first, temporal_dim,
                             book.tick_size)  # fmt: skip


def window_statistics(
    series: np.ndarray, mid_ticks: np.ndarray, timestamps: np.ndarray, first_row: int, temporal_dim: int, tick: float
) -> np.ndarray:
    """Statistics of all windows of a run of states, from `state_series`, mids and times of each state."""
    count = len(mid_ticks) - temporal_dim + 1
    rows = np.empty(count, dtype=STATISTICS)
    means = np.empty((len(series), count))
    deviation, squares = np.empty(count), np.empty(count)
    roll_moments(series[0, 1:], temporal_dim - 1, means[0], deviation, squares)
    roll_means(series[1:], temporal_dim, means[1:])
    begin, end = mid_ticks[:count], mid_ticks[temporal_dim - 1 :]
    rows["mid_price_change_bps"] = (end - begin) / begin * 1e4
    rows["average_spread_bps"] = means[1]
    rows["std_tick_returns_bps"] = deviation
    rows["mean_tick_returns_bps"] = means[0]
    rows["start_mid"] = begin * tick
    rows["end_row"] = np.arange(first_row + temporal_dim, first_row + temporal_dim + count)
    rows["realised_volatility_bps"] = np.sqrt(squares)
    rows["imbalance_best"], rows["imbalance_depth"] = means[2], means[3]
    duration_s = (timestamps[temporal_dim - 1 :] - timestamps[:count]) * 1e-9
    rows["update_rate_hz"] = (temporal_dim - 1) / np.maximum(duration_s, 1e-3)
    rows["duration_s"] = duration_s
    rows["traded_direction"] = np.nan
    np.divide(means[4], means[5], out=rows["traded_direction"], where=means[5] > 0)
    return rows


@njit(cache=True, parallel=True, nogil=True)
def state_series(top_ticks, sizes, traded):
    """What the statistics need of each state, float64 (6, N), in the order of STATE_SERIES.

    top_ticks: int32 (N, 2); sizes: float32 (N, L); traded: float32 (N,) or empty. The first return is 0.
    """
    rows, half = sizes.shape[0], sizes.shape[1] // 2
    series = np.zeros((6, rows))
    for i in prange(rows):
        bid, ask = np.float64(top_ticks[i, 0]), np.float64(top_ticks[i, 1])
        mid = (bid + ask) / 2
        if i > 0:
            before = (np.float64(top_ticks[i - 1, 0]) + np.float64(top_ticks[i - 1, 1])) / 2
            series[0, i] = (mid - before) / before * 1e4
        series[1, i] = (ask - bid) / mid * 1e4
        best_bid, best_ask = np.float64(sizes[i, half - 1]), np.float64(sizes[i, half])
        series[2, i] = (best_bid - best_ask) / (best_bid + best_ask)
        bids, asks = 0.0, 0.0
        for level in range(half):
            bids += sizes[i, level]
            asks += sizes[i, half + level]
        series[3, i] = (bids - asks) / (bids + asks)
        if len(traded) > 0:
            series[4, i], series[5, i] = traded[i], abs(traded[i])
    return series


@njit(cache=True, parallel=True, nogil=True)
def roll_means(series, length, means):
    """Mean of every run of `length` values of each row of `series` (K, N) into `means` (K, N - length + 1).

    The values are cut into blocks of `length`: a run is the tail of one block and the head of the next (van Herk 1992),
    so its sum is one addition of sums that only ever grow, and nothing is subtracted.
    """
    count = means.shape[1]
    blocks = (count + length - 1) // length
    for job in prange(len(series) * blocks):
        row, block = job // blocks, job % blocks
        values, begin = series[row], block * length
        tails = np.empty(length)
        total = 0.0
        for i in range(length - 1, -1, -1):
            total += values[begin + i]
            tails[i] = total
        head = 0.0
        for i in range(min(length, count - begin)):
            means[row, begin + i] = (tails[i] + head) / length
            if begin + length + i < len(values):
                head += values[begin + length + i]


@njit(cache=True, parallel=True, nogil=True)
def roll_moments(values, length, means, deviations, squares):
    """Mean, population deviation and sum of squares of every run of `length` of `values`, in blocks as `roll_means`.

    Deviations of tail and head are kept about their own means (Welford 1962) and joined (Chan et al. 1979), so that
    no large sums are subtracted; a run of equal values gives exactly 0.
    """
    count = len(means)
    blocks = (count + length - 1) // length
    for block in prange(blocks):
        begin = block * length
        tail_mean, tail_m2, tail_squares = np.empty(length), np.empty(length), np.empty(length)
        mean, m2, total = 0.0, 0.0, 0.0
        for i in range(length - 1, -1, -1):
            value = values[begin + i]
            step = value - mean
            mean += step / (length - i)
            m2 += step * (value - mean)
            total += value * value
            tail_mean[i], tail_m2[i], tail_squares[i] = mean, m2, total
        mean, m2, total = 0.0, 0.0, 0.0
        for i in range(min(length, count - begin)):
            gap = mean - tail_mean[i]
            joined = tail_m2[i] + m2 + gap * gap * (i * (length - i) / length)
            means[begin + i] = tail_mean[i] + gap * (i / length)
            deviations[begin + i] = np.sqrt(joined / length)
            squares[begin + i] = tail_squares[i] + total
            if begin + length + i < len(values):
                value = values[begin + length + i]
                step = value - mean
                mean += step / (i + 1)
                m2 += step * (value - mean)
                total += value * value


def summarise(rows: np.ndarray) -> str:
    """A table of each statistic's mean, deviation and quantiles, over at most a million rows evenly taken."""
    rows = rows[:: max(1, len(rows) // 1_000_000)]
    lines = [f"  {'':<24}{'mean':>12}{'deviation':>12}{'1 %':>12}{'median':>12}{'99 %':>12}"]
    for name in STATISTICS.names or ():
        values = rows[name]
        if name != "end_row" and not np.isnan(values).all():
            low, median, high = np.nanquantile(values, [0.01, 0.5, 0.99])
            numbers = (np.nanmean(values), np.nanstd(values), low, median, high)
            lines.append(f"  {name:<24}" + "".join(f"{number:>12.5g}" for number in numbers))
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, config)
