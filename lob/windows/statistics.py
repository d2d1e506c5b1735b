"""Statistics of every window of a book, in one pass over its states, in little memory.

A window of `temporal_dim` = T states is named by `end_row`, one past its last state.
"""

from pathlib import Path

import numpy as np
from numba import prange
from tqdm import tqdm

from lob.book.states import Book, identity
from lob.config import InputError
from lob.jit import parallel
from lob.storage import new_table
from lob.windows.splits import segment_ranges, too_short

# A return is the relative change of the mid from one state to the next: a window has T - 1.
# An imbalance is (bid size - ask size) / (bid size + ask size).
STATISTICS = np.dtype(
    [
        ("mid_price_change_bps", np.float64),  # (last mid / first mid - 1) x 10^4
        ("average_spread_bps", np.float64),  # mean of (ask - bid) / mid x 10^4
        ("std_tick_returns_bps", np.float64),  # population standard deviation of the returns
        ("mean_tick_returns_bps", np.float64),  # mean of the returns
        ("start_mid", np.float64),  # first mid, in the quote currency
        ("end_row", np.int64),
        ("realised_volatility_bps", np.float64),  # root of the sum of squared returns
        ("imbalance_best", np.float64),  # mean imbalance of the sizes at the best prices
        ("imbalance_depth", np.float64),  # mean imbalance of the sizes of all levels
        ("update_rate_hz", np.float64),  # (T - 1) / max(duration, 1 ms)
        ("duration_s", np.float64),
        ("traded_direction", np.float64),  # (bought - sold) / (bought + sold); NaN without trades
    ]
)
CHUNK_ROWS = 1 << 17  # memory holds one chunk of states and its windows: about 30 MB


def write_statistics(book: Book, temporal_dim: int, file: Path) -> int:
    """Write the statistics of all windows of a book to `file`; return the number of windows.

    `file` becomes a structured array of STATISTICS, ascending in `end_row`, with a `.json` beside
    it. Raises InputError if no segment of the book is `temporal_dim` states long.
    """
    segments = segment_ranges(book.segment_starts, book.rows)
    ranges = [(begin, end) for begin, end in segments if end - begin >= temporal_dim]
    if not ranges:
        raise too_short(book, temporal_dim, "lower --temporal_dim")
    total = int(sum(end - begin - temporal_dim + 1 for begin, end in ranges))
    with (
        new_table(file, STATISTICS, {"temporal_dim": temporal_dim}, identity(book)) as table,
        tqdm(total=total, unit="window", unit_scale=True, desc=book.pair, disable=None) as progress,
    ):
        for begin, end in ranges:
            for first in range(begin, end - temporal_dim + 1, CHUNK_ROWS):
                last = min(first + CHUNK_ROWS + temporal_dim - 1, end)
                rows = chunk_statistics(book, first, last, temporal_dim)
                table.append(rows)
                progress.update(len(rows))
    return total


def chunk_statistics(book: Book, first: int, last: int, temporal_dim: int) -> np.ndarray:
    """Return the statistics of all windows inside the states [first, last).

    STATISTICS (last - first - T + 1,); `end_row` counts from the book's first state.
    """
    if book.top_of_book is not None:
        top = np.asarray(book.top_of_book[first:last])
    else:
        best_bid = book.depth // 2 - 1
        top = np.ascontiguousarray(book.price_ticks[first:last, best_bid : best_bid + 2])
    if np.add(top[:, 0], top[:, 1], dtype=np.int64).min() <= 0:
        raise InputError(
            f"{book.path} has a mid-price of 0 or less, of which no basis points can be taken: run "
            "data_parser.py again with a larger --price_offset, which is added to every price"
        )
    sizes = np.asarray(book.sizes[first:last])
    times = np.asarray(book.timestamps[first:last])
    traded = np.empty(0, np.float32) if book.traded is None else np.asarray(book.traded[first:last])
    series = state_series(top, sizes, traded)
    rows = np.empty(last - first - temporal_dim + 1, dtype=STATISTICS)
    roll_windows(series, top, times, book.tick_size, temporal_dim, rows)
    rows["end_row"] += first
    return rows


@parallel
def state_series(top_ticks, sizes, traded):
    """Return the quantities of each state that the statistics average or add up, float64 (N, 6).

    Columns: return from the state before (bps), spread (bps), imbalance at the best prices,
    imbalance of all levels, signed traded size, traded size. The first return is 0; without trades
    the last two columns are 0.

    top_ticks: int32 (N, 2), best bid and ask; sizes: float32 (N, L); traded: float32 (N,) or empty.
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
            series[i, 4] = traded[i]
            series[i, 5] = abs(traded[i])
    return series


@parallel
def roll_windows(series, top_ticks, timestamps, tick_size, length, rows):
    """Write the statistics of every window of `length` states into `rows`.

    rows: STATISTICS (N - length + 1,), whose `end_row` counts from the first state given; series:
    see `state_series`; top_ticks: int32 (N, 2); timestamps: int64 (N,), ns.

    The states are cut into blocks of `length`. So a window is the tail of one block and the head of
    the next (van Herk 1992), and each of its sums is the sum of a tail plus that of a head. Tails
    and heads grow by one state at a time: the cost per window does not depend on `length`, and
    nothing is ever subtracted, which would leave rounding errors behind. Of the returns, tails and
    heads keep the mean and the squared deviations from it (Welford 1962), joined as by Chan et al.
    (1979): no large sums cancel, and equal returns give a deviation of exactly 0.
    """
    reciprocal = np.ones(length + 1)
    for i in range(1, length + 1):
        reciprocal[i] = 1.0 / i
    returns = length - 1
    for block in prange((len(rows) + length - 1) // length):
        begin = block * length
        # tails[i] describes the states from i to the end of the block: the mean return, the squared
        # deviations of the returns, and the sums of the other five columns of `series`.
        tails = np.zeros((length + 1, 7))
        for i in range(length - 1, -1, -1):
            state = series[begin + i]
            for k in range(5):
                tails[i, 2 + k] = tails[i + 1, 2 + k] + state[1 + k]
            if i < returns:  # the return into a window's first state is not the window's
                step = series[begin + i + 1, 0] - tails[i + 1, 0]
                tails[i, 0] = tails[i + 1, 0] + step * reciprocal[returns - i]
                tails[i, 1] = tails[i + 1, 1] + step * (series[begin + i + 1, 0] - tails[i, 0])
        # The same of the head of the next block, which grows by one state with each window.
        mean, deviations = 0.0, 0.0
        spread, best, depth = 0.0, 0.0, 0.0
        signed, traded = 0.0, 0.0
        for i in range(min(length, len(rows) - begin)):
            first, last = begin + i, begin + i + length - 1
            if i > 0:
                state = series[last]
                step = state[0] - mean
                mean += step * reciprocal[i]
                deviations += step * (state[0] - mean)
                spread += state[1]
                best += state[2]
                depth += state[3]
                signed += state[4]
                traded += state[5]
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
            direction = (tails[i, 5] + signed) / all_traded if all_traded > 0 else np.nan
            row["traded_direction"] = direction
