"""The parser's kernel and the window statistics beside packages that do a part of the same.

    python -m benchmarks.bench_peers
    python -m benchmarks.bench_peers --write=True

All get the same input:

- order-book (a C extension): Python code changes its sorted sides; a state is its `to_dict` of the
  best levels.
- hftbacktest: its backtest, called from numba, drives its two market depths in Rust (a hash map,
  and an array of the prices of a region, "ROI vector"); a state is read tick by tick.
- pandas: rolling means and deviations of five statistics.

Packages that are not installed are named and skipped. Prints a table and one JSON line.
"""

config = {
    "updates": 500_000,  # int >= 1: of the synthetic stream of bench_parser.py
    "rows": 1_000_000,  # int >= 1: states whose windows are described
    "temporal_dim": 256,  # int >= 2: states of a window
    "write": False,  # bool: keep the result in benchmarks/results/peers.json
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from numba import njit

from benchmarks.bench_parser import DEPTH, LEVELS, Columns, best_of, make_updates
from benchmarks.report import ROW, report
from lob.book.order_book import OrderBook
from lob.book.price_levels import ASK, BID
from lob.book.states import Book
from lob.windows.statistics import CHUNK_ROWS, chunk_statistics

HALF = DEPTH // 2


def main(config: dict) -> None:
    columns = make_updates(config["updates"])
    rows, best = measure_ours(columns)
    for name, measure in (("order_book", measure_order_book), ("hftbacktest", measure_hftbacktest)):
        try:
            package = importlib.import_module(name)
        except ImportError:
            remedy = "pip install -r requirements-dev.txt"
            print(f"{name} is not installed, its cases are skipped: {remedy}")
            continue
        rows += measure(package, columns, best)
    rows += measure_pandas(config["rows"], config["temporal_dim"])
    report("peers", [dict(zip(ROW, row, strict=True)) for row in rows], write=config["write"])


def rate_rows(
    case: str, columns: Columns, seconds: list[float], notes: tuple[str, str]
) -> list[tuple]:
    """Return the rates of a book: with what a cheap read gives, and with a whole state each.

    seconds, notes: of the two, in this order.
    """
    metrics = ("updates_per_second", "updates_with_state_per_second")
    updates = len(columns[0])
    return [
        (case, metric, updates / taken, "1/s", note)
        for metric, taken, note in zip(metrics, seconds, notes, strict=True)
    ]


def measure_ours(columns: Columns) -> tuple[list[tuple], tuple[int, int]]:
    """Time the kernel with states of 2 and of 96 levels; also return the last best prices.

    Every peer must end with the same prices.
    """

    def apply_all(depth: int) -> OrderBook:
        book = OrderBook(depth, 1e-5, lambda out: None)
        book.apply(*columns)
        return book

    book = apply_all(2)
    seconds = best_of(3, lambda: apply_all(2), lambda: apply_all(DEPTH))
    best = int(book.levels(BID, 1)[0][0]), int(book.levels(ASK, 1)[0][0])
    notes = ("best levels after each", f"{DEPTH} levels after each")
    return rate_rows("ours", columns, seconds, notes), best


def measure_order_book(package: ModuleType, columns: Columns, best: tuple[int, int]) -> list[tuple]:
    """Time order-book; its states are timed on a twentieth of the updates."""
    rows = list(zip(*(column.tolist() for column in columns[3:]), strict=True))
    books: list = []

    def apply_rows(count: int, with_states: bool) -> None:
        books[:] = [package.OrderBook(max_depth=HALF)]
        sides = books[0].asks, books[0].bids
        for row, (is_buy, price, size) in enumerate(rows[:count]):
            side = sides[is_buy]
            if size:
                side[price] = size
            elif price in side:
                del side[price]
            if with_states and row >= 2 * LEVELS:
                books[0].to_dict()

    few = len(rows) // 20  # a state takes it so long that more would take minutes
    state_seconds = best_of(2, lambda: apply_rows(few, True))[0] * len(rows) / few
    seconds = best_of(2, lambda: apply_rows(len(rows), False))[0]
    found = books[0].bids.index(0)[0], books[0].asks.index(0)[0]
    assert found == best, f"order-book ends with {found}, ours with {best}"
    notes = ("nothing read", f"to_dict of {DEPTH} levels after each")
    return rate_rows("order_book", columns, [seconds, state_seconds], notes)


def measure_hftbacktest(
    package: ModuleType, columns: Columns, best: tuple[int, int]
) -> list[tuple]:
    """Time hftbacktest's two market depths, each in a backtest without orders."""
    time_ns, _, _, is_buy, price, size = columns
    events = np.zeros(len(price), package.types.event_dtype)
    side = np.where(is_buy, package.BUY_EVENT, package.SELL_EVENT)
    events["ev"] = side | package.LOCAL_EVENT | package.DEPTH_EVENT
    events["exch_ts"] = events["local_ts"] = time_ns
    events["px"], events["qty"] = price / 100, size / 10**5
    low, high = float(price.min() - 100) / 100, float(price.max() + 100) / 100
    rows = []
    for name in ("HashMapMarketDepth", "ROIVectorMarketDepth"):
        taken = []
        for levels in (1, HALF):
            found = np.zeros(2, np.int64)

            def replay(name: str = name, levels: int = levels, found: np.ndarray = found) -> None:
                asset = package.BacktestAsset().data(events).tick_size(0.01).lot_size(1e-5)
                # What concerns orders has no effect, but it must be set.
                asset = asset.linear_asset(1.0).constant_order_latency(0, 0)
                asset = asset.risk_adverse_queue_model().no_partial_fill_exchange()
                asset = asset.trading_value_fee_model(0.0, 0.0)
                if name.startswith("ROI"):
                    asset = asset.roi_lb(low).roi_ub(high)
                backtest = getattr(package, f"{name}Backtest")([asset])
                follow(backtest, levels, np.zeros((2, levels)), found)
                backtest.close()

            replay()
            taken += best_of(2, replay)
            assert tuple(found) == best, f"hftbacktest ends with {found}, ours with {best}"
        notes = ("best levels after each", f"{DEPTH} levels after each, tick by tick")
        rows += rate_rows(f"hftbacktest_{name}", columns, taken, notes)
    return rows


@njit
def follow(backtest, levels, sizes, found):
    """Step through the feed and read the best `levels` of each side after each event.

    They go into `sizes`, float64 (2, levels), and the best prices in ticks into `found`, (2,).
    """
    while backtest.wait_next_feed(False, 10**15) == 2:  # 2: an event of the feed came
        depth = backtest.depth(0)
        found[0], found[1] = depth.best_bid_tick, depth.best_ask_tick
        for side in range(2):
            tick, count, step = found[side], 0, -1 if side == 0 else 1
            for _ in range(100_000):  # ticks to look at: a side may have fewer levels
                size = depth.bid_qty_at_tick(tick) if side == 0 else depth.ask_qty_at_tick(tick)
                if size > 0:
                    sizes[side, count] = size
                    count += 1
                    if count == levels:
                        break
                tick += step
    found[0], found[1] = backtest.depth(0).best_bid_tick, backtest.depth(0).best_ask_tick


def measure_pandas(rows: int, length: int) -> list[tuple]:
    """Time five statistics by pandas.rolling, and all eleven of ours from the same arrays."""
    rng = np.random.default_rng(0)
    bid = 7_800_000 + np.cumsum(rng.integers(-1, 2, rows))
    top = np.stack([bid, bid + rng.integers(1, 4, rows)], axis=1).astype(np.int32)
    sizes = rng.random((rows, 2), dtype=np.float32) + 1
    book = Book(
        path=Path("memory"),
        meta={"depth": 2, "tick_size": 0.01},
        price_ticks=top,
        sizes=sizes,
        timestamps=np.arange(rows) * 10**7,
        segment_starts=np.zeros(1, np.int64),
        top_of_book=top,
        traded=sizes[:, 0].copy(),
    )
    ours: list[np.ndarray] = []
    theirs: list[pd.Series] = []

    def describe() -> None:
        ours.clear()
        for first in range(0, rows - length + 1, CHUNK_ROWS):
            last = min(first + CHUNK_ROWS + length - 1, rows)
            ours.append(chunk_statistics(book, first, last, length))

    def roll() -> None:
        mid = pd.Series(top.sum(axis=1) / 2.0)
        spread = pd.Series(top[:, 1] - top[:, 0]) / mid
        imbalance = pd.Series((sizes[:, 0] - sizes[:, 1]) / sizes.sum(axis=1))
        returns = mid.pct_change().rolling(length - 1)
        theirs[:] = [
            mid.pct_change(length - 1),
            spread.rolling(length).mean(),
            returns.std(ddof=0),
            returns.mean(),
            imbalance.rolling(length).mean(),
        ]

    describe()
    seconds, pandas_seconds = best_of(3, describe, roll)
    deviation = np.concatenate([part["std_tick_returns_bps"] for part in ours]) / 1e4
    difference = float(np.abs(theirs[2].to_numpy()[length - 1 :] / deviation - 1).max())
    windows, note = rows - length + 1, f"temporal_dim {length}, {rows:,} states"
    metric = "windows_per_second"
    compared = "of the deviation of tick returns from ours"
    return [
        ("ours", metric, windows / seconds, "1/s", f"11 statistics, {note}"),
        ("pandas", metric, windows / pandas_seconds, "1/s", f"5 statistics by rolling, {note}"),
        ("pandas", "largest_relative_difference", difference, "", compared),
    ]


if __name__ == "__main__":
    run(main, config)
