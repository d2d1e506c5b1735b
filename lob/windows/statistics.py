"""Statistics of every window of a book, in one pass over its states, whatever their number."""

from pathlib import Path

import numpy as np
from numba import njit, prange
from tqdm import tqdm

from lob.book.states import Book, identity
from lob.config import InputError
from lob.storage import new_table
from lob.windows.splits import segment_ranges

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
CHUNK_ROWS = 1 << 17  # memory holds one chunk of states and its windows: about 30 MB


def write_statistics(book: Book, temporal_dim: int, file: Path) -> int:
    """Stream a book's window statistics to `file`; return the number of windows."""
    ranges = [(a, b) for a, b in segment_ranges(book.segment_starts, book.rows) if b - a >= temporal_dim]
    if not ranges:
        raise InputError(f"{book.path} has no run of {temporal_dim} states without a gap: lower --temporal_dim, or "
                         "run data_parser.py with a larger --max_gap_seconds")  # fmt: skip
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
        top = np.asarray(book.top_of_book[first:last])
    else:
        top = np.ascontiguousarray(book.price_ticks[first:last, book.depth // 2 - 1 : book.depth // 2 + 1])
    traded = np.asarray(book.traded[first:last]) if book.traded is not None else np.empty(0, np.float32)
    series = state_series(top, np.asarray(book.sizes[first:last]), traded)
    rows = np.empty(last - first - temporal_dim + 1, dtype=STATISTICS)
    roll_windows(series, top, np.asarray(book.timestamps[first:last]), book.tick_size, temporal_dim, rows)
    rows["end_row"] += first
    return rows


@njit(cache=True, parallel=True, nogil=True)
def state_series(top_ticks, sizes, traded):
    """What the statistics sum, float64 (N, 6): return, spread (bps), imbalance at best and in depth, traded, its size.

    top_ticks: int32 (N, 2); sizes: float32 (N, L); traded: float32 (N,) or empty. The first return is 0.
    """
    rows, half = sizes.shape[0], sizes.shape[1] // 2
    series = np.zeros((rows, 6))
    for i in prange(rows):
        bid, ask = np.float64(top_ticks[i, 0]), np.float64(top_ticks[i, 1])
        mid = (bid + ask) / 2
        if i > 0:
            before = (np.float64(top_ticks[i - 1, 0]) + np.float64(top_ticks[i - 1, 1])) / 2
            series[i, 0] = (mid - before) / before * 1e4
        series[i, 1] = (ask - bid) / mid * 1e4
        best_bid, best_ask = np.float64(sizes[i, half - 1]), np.float64(sizes[i, half])
        series[i, 2] = (best_bid - best_ask) / (best_bid + best_ask)
        bids, asks = 0.0, 0.0
        for level in range(half):
            bids += sizes[i, level]
            asks += sizes[i, half + level]
        series[i, 3] = (bids - asks) / (bids + asks)
        if len(traded) > 0:
            series[i, 4], series[i, 5] = traded[i], abs(traded[i])
    return series


@njit(cache=True, parallel=True, nogil=True)
def roll_windows(series, top_ticks, timestamps, tick_size, length, rows):
    """Statistics of every window of `length` states into `rows`; `end_row` counts from the first state given.

    The states are cut into blocks of `length`: a window is the tail of one block and the head of the next (van Herk
    1992), so that its sums are joined of two that only ever grew, at a cost that does not depend on `length`, and
    nothing is subtracted. Returns keep their mean and squared deviations about it (Welford 1962), joined as Chan et
    al. (1979): no large sums cancel, and equal returns give exactly 0.
    """
    reciprocal = np.ones(length + 1)
    for i in range(1, length + 1):
        reciprocal[i] = 1.0 / i
    returns = length - 1
    for block in prange((len(rows) + length - 1) // length):
        begin = block * length
        tails = np.zeros((length + 1, 7))  # [i]: mean return and its squared deviations, five sums from state i on
        for i in range(length - 1, -1, -1):
            state = series[begin + i]
            for k in range(5):
                tails[i, 2 + k] = tails[i + 1, 2 + k] + state[1 + k]
            if i < returns:  # a window has no return into its first state
                step = series[begin + i + 1, 0] - tails[i + 1, 0]
                tails[i, 0] = tails[i + 1, 0] + step * reciprocal[returns - i]
                tails[i, 1] = tails[i + 1, 1] + step * (series[begin + i + 1, 0] - tails[i, 0])
        mean, deviations, spread, best, depth, signed, traded = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(min(length, len(rows) - begin)):
            first, last = begin + i, begin + i + length - 1
            if i > 0:
                state = series[last]
                step = state[0] - mean
                mean += step * reciprocal[i]
                deviations += step * (state[0] - mean)
                spread, best, depth = spread + state[1], best + state[2], depth + state[3]
                signed, traded = signed + state[4], traded + state[5]
            gap = mean - tails[i, 0]
            mean_return = tails[i, 0] + gap * (i / returns)
            squares = tails[i, 1] + deviations + gap * gap * (i * (returns - i) / returns)
            mid = (np.float64(top_ticks[first, 0]) + np.float64(top_ticks[first, 1])) / 2
            mid_last = (np.float64(top_ticks[last, 0]) + np.float64(top_ticks[last, 1])) / 2
            duration = (timestamps[last] - timestamps[first]) * 1e-9
            row = rows[first]
            row["mid_price_change_bps"] = (mid_last - mid) / mid * 1e4
            row["average_spread_bps"] = (tails[i, 2] + spread) / length
            row["std_tick_returns_bps"] = np.sqrt(squares / returns)
            row["mean_tick_returns_bps"] = mean_return
            row["start_mid"] = mid * tick_size
            row["end_row"] = last + 1
            row["realised_volatility_bps"] = np.sqrt(squares + returns * mean_return * mean_return)
            row["imbalance_best"] = (tails[i, 3] + best) / length
            row["imbalance_depth"] = (tails[i, 4] + depth) / length
            row["update_rate_hz"] = returns / max(duration, 1e-3)
            row["duration_s"] = duration
            all_traded = tails[i, 6] + traded
            row["traded_direction"] = (tails[i, 5] + signed) / all_traded if all_traded > 0 else np.nan
