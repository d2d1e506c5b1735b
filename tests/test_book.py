"""The kernel against the reference book, and its rules one by one."""

import itertools

import numpy as np
import pytest
from conftest import ROOT
from reference_book import ReferenceBook

from lob.book.order_book import CLOCK_BACK, COUNTERS, NOT_INT32, OrderBook
from lob.book.price_levels import ASK, BID
from lob.feeds.batch import ADD, DELETE, GAP, MATCH, SET, SNAPSHOT, SUB
from lob.feeds.coinapi import read_coinapi

SAMPLE = ROOT / "training_data" / "raw" / "BTC_USD" / "20260502.csv.gz"
MS = 10**6


class Run:
    """A kernel with its written rows."""

    def __init__(self, depth=2, **settings):
        self.rows: list[list[np.ndarray]] = []
        self.book = OrderBook(
            depth, 1.0, lambda out: self.rows.append([a.copy() for a in out]), **settings
        )

    def feed(self, *rows, by_order=False):
        """Apply rows (message, time in ms, type, side, price, size[, order id])."""
        columns = list(zip(*(row if len(row) == 7 else (*row, 0) for row in rows), strict=True))
        message, time, kind, side, price, size, order = (
            np.array(column, dtype=np.int64) for column in columns
        )
        self.book.apply(
            time * MS,
            message,
            kind.astype(np.uint8),
            side == BID,
            price,
            size,
            order if by_order else None,
        )
        return self

    def end(self):
        self.book.finish()
        return (
            [np.concatenate(parts) for parts in zip(*self.rows, strict=True)] if self.rows else None
        )

    def counter(self, name):
        return int(self.book.counters[COUNTERS.index(name)])


def opening(message=1, time=0):
    return [(message, time, SNAPSHOT, BID, 99, 5), (message, time, SNAPSHOT, ASK, 101, 6)]


def test_the_whole_sample_state_by_state():
    batches = list(read_coinapi([SAMPLE]))
    columns = [
        np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("time_ns", "message", "update_type", "is_buy", "price", "size", "order_id")
    ]
    time, message, kind, is_buy, price, size, order_id = columns
    price, size = np.rint(price).astype(np.int64), np.rint(size * 1e8).astype(np.int64)
    written: list[list[np.ndarray]] = []
    kernel = OrderBook(96, 1e-8, lambda out: written.append([a.copy() for a in out]))
    kernel.apply(time, message, kind, is_buy, price, size, order_id)
    kernel.finish()
    price_ticks, sizes, timestamps, _, starts = (
        np.concatenate(parts) for parts in zip(*written, strict=True)
    )
    reference = ReferenceBook(96, by_order=True)
    rows = zip(
        kind.tolist(),
        is_buy.astype(int).tolist(),
        price.tolist(),
        size.tolist(),
        order_id.tolist(),
        strict=True,
    )
    row = 0
    for _, group in itertools.groupby(
        zip(message.tolist(), time.tolist(), rows, strict=True), key=lambda item: item[0]
    ):
        items = list(group)
        if reference.take_message(items[0][1], [item[2] for item in items]):
            ticks, lots, time_ns, *_ = reference.states.pop()
            assert price_ticks[row].tolist() == ticks, row
            assert np.array_equal(sizes[row], (np.array(lots) * 1e-8).astype(np.float32)), row
            assert timestamps[row] == time_ns
            row += 1
    assert row == len(price_ticks) == 168_119
    counters = dict(zip(COUNTERS, kernel.counters.tolist(), strict=True))
    assert counters["messages"] == 168_656
    assert counters["crossed_states"] == 537
    assert counters["ghosts_evicted"] == reference.counters["ghosts_evicted"] == 2
    assert counters["unknown"] == reference.counters["unknown"] == 13
    assert starts.sum() == 1
    spread_usd = (price_ticks[:, 48] - price_ticks[:, 47]).mean()
    assert spread_usd == pytest.approx(1.12, abs=0.005)


def test_a_state_is_the_book_after_the_whole_message():
    run = Run().feed(
        *opening(), (2, 5, DELETE, BID, 99, 0), (2, 5, ADD, BID, 98, 1), (3, 9, SET, ASK, 101, 2)
    )
    price_ticks, sizes, timestamps, _, starts = run.end()
    assert price_ticks.tolist() == [[99, 101], [98, 101], [98, 101]]
    assert sizes.tolist() == [[5, 6], [1, 6], [1, 2]]
    assert timestamps.tolist() == [0, 5 * MS, 9 * MS]
    assert starts.tolist() == [1, 0, 0]


def test_matches_are_summed_with_the_sign_of_the_taker():
    run = Run().feed(
        *opening(), (2, 1, MATCH, ASK, 101, 2), (2, 1, MATCH, BID, 99, 1), (3, 2, SUB, ASK, 101, 1)
    )
    *_, traded, _ = run.end()
    assert traded.tolist() == [0, 1, 0]


def test_interval_keeps_the_last_state_of_each_interval():
    rows = [(i, 10 * i, SET, BID, 99, i) for i in range(1, 31)]
    _, sizes, timestamps, *_ = Run(state_interval_ms=100).feed(*opening(0), *rows).end()
    assert timestamps.tolist() == [90 * MS, 190 * MS, 290 * MS, 300 * MS]
    assert sizes[:, 0].tolist() == [9, 19, 29, 30]


def test_subsample_keeps_every_nth_state_of_a_segment():
    rows = [(i, i, SET, BID, 99, i) for i in range(1, 8)]
    _, sizes, *_ = Run(subsample=3).feed(*opening(0), *rows).end()
    assert sizes[:, 0].tolist() == [5, 3, 6]


def test_segments_end_at_gaps_and_silence_and_snapshots_that_differ_are_counted():
    same, other = opening(3, 20), [(4, 30, SNAPSHOT, BID, 98, 5), (4, 30, SNAPSHOT, ASK, 101, 6)]
    unchanged = [(2, 10, ADD, BID, 99, 1), (2, 10, SUB, BID, 99, 1)]
    gap = [(5, 40, GAP, BID, 0, 0), (5, 40, SNAPSHOT, BID, 98, 5), (5, 40, SNAPSHOT, ASK, 101, 6)]
    run = Run(max_gap_seconds=1).feed(
        *opening(), *unchanged, *same, *other, *gap, (6, 2000, SET, ASK, 101, 1)
    )
    *_, starts = run.end()
    assert starts.tolist() == [1, 0, 0, 0, 1, 1]
    assert (run.counter("gaps"), run.counter("snapshots"), run.counter("snapshots_differ")) == (
        1,
        4,
        1,
    )


def test_a_snapshot_after_a_book_of_fewer_levels_differs_and_ends_no_segment():
    thin = [(2, 10, DELETE, ASK, 101, 0)]
    run = Run(max_gap_seconds=1).feed(*opening(), *thin, *opening(3, 20), *opening(4, 2000))
    *_, starts = run.end()
    assert starts.tolist() == [1, 0, 1]
    assert (run.counter("snapshots"), run.counter("snapshots_differ")) == (3, 1)


def test_a_ghost_is_evicted_after_the_limit_and_not_before():
    ghost = (2, 100, ADD, BID, 103, 1)
    run = Run(max_crossed_ms=500).feed(
        *opening(), ghost, (3, 400, SET, ASK, 101, 1), (4, 601, SET, ASK, 101, 2)
    )
    price_ticks, *_ = run.end()
    assert price_ticks.tolist() == [[99, 101], [99, 101]]
    assert (run.counter("ghosts_evicted"), run.counter("crossed_states")) == (1, 2)


def test_the_clock_is_clamped_or_refused():
    run = Run(max_clock_step_ms=5).feed(*opening(1, 100), (2, 96, SET, BID, 99, 1))
    _, _, timestamps, *_ = run.end()
    assert timestamps.tolist() == [100 * MS, 100 * MS]
    assert run.counter("clock_steps_back") == 1
    with pytest.raises(ValueError, match=str(CLOCK_BACK)) as error:
        Run(max_clock_step_ms=5).feed(
            *opening(1, 100), (2, 101, SET, BID, 99, 1), (3, 90, SET, BID, 99, 1)
        )
    assert error.value.args[0] == 3


def test_far_prices_are_kept_and_only_a_visible_one_must_fit_int32():
    far = [(1, 0, SNAPSHOT, BID, -(2**40), 1), (1, 0, SNAPSHOT, ASK, 2**40, 1)]
    run = Run().feed(*opening(), *far)
    assert run.end()[0].tolist() == [[99, 101]]
    assert run.book.levels(ASK, 9)[0].tolist() == [101, 2**40]
    with pytest.raises(ValueError, match=str(NOT_INT32)):
        Run().feed(*opening(), *far, (2, 1, DELETE, ASK, 101, 0)).end()


def test_many_levels_and_orders_grow_the_arrays():
    prices = np.arange(1, 30_001)
    rows = [(1, 0, SNAPSHOT, BID, -p, p, p) for p in prices] + [
        (1, 0, SNAPSHOT, ASK, p, p, 30_000 + p) for p in prices
    ]
    run = Run().feed(*rows, by_order=True)
    run.end()
    assert run.book.levels(ASK, 30_001)[0].tolist() == prices.tolist()
    run.feed(*[(2, 1, DELETE, BID, 0, 0, int(p)) for p in prices[:-1]], by_order=True)
    assert run.book.levels(BID, 10)[0].tolist() == [-30_000]
    assert run.counter("unknown") == 0


def test_after_a_gap_rows_are_skipped_until_the_next_snapshot():
    lost = [(2, 10, GAP, BID, 0, 0), (3, 20, SET, BID, 98, 5), (3, 20, SET, ASK, 102, 5)]
    again = [(4, 30, SET, BID, 97, 1), *opening(4, 30), (5, 40, SET, BID, 100, 1)]
    run = Run().feed(*opening(), *lost, (4, 25, GAP, BID, 0, 0), *again)
    price_ticks, _, timestamps, _, starts = run.end()
    assert price_ticks.tolist() == [[99, 101], [99, 101], [100, 101]]
    assert (timestamps // MS).tolist() == [0, 30, 40]
    assert starts.tolist() == [1, 1, 0]
    assert (run.counter("gaps"), run.counter("rows_before_snapshot")) == (2, 3)


def test_a_whole_book_may_be_empty():
    run = Run().feed(*opening(), (2, 10, SNAPSHOT, BID, 0, 0), *opening(3, 20))
    assert run.end()[2].tolist() == [0, 20 * MS]
    assert (run.counter("thin_states"), run.counter("unknown")) == (1, 0)


ORDERS = [
    (1, 0, SNAPSHOT, BID, 99, 5, 1),
    (1, 0, SNAPSHOT, BID, 98, 5, 2),
    (1, 0, SNAPSHOT, ASK, 101, 6, 3),
    (1, 0, SNAPSHOT, ASK, 103, 6, 4),
]
CROSSING = [
    (2, 10, ADD, BID, 102, 1, 5),
    (3, 600, ADD, BID, 97, 1, 6),
    (4, 1700, ADD, BID, 96, 1, 7),
]


def run_orders(*rows):
    run = Run(max_crossed_ms=500).feed(*ORDERS, *rows, by_order=True)
    run.end()
    evicted = [
        run.counter(f"ghosts_{name}") for name in ("evicted", "traded_through", "after_losses")
    ]
    return run.book.levels(BID, 1)[0].tolist() + run.book.levels(ASK, 1)[0].tolist(), evicted


def test_order_by_order_an_auction_is_not_taken_for_a_lost_delete():
    assert run_orders(*CROSSING) == ([102, 101], [0, 0, 0])


def test_order_by_order_rows_of_unknown_orders_show_that_a_delete_may_be_lost():
    loss = (2, 5, DELETE, BID, 90, 1, 77)
    assert run_orders(loss, *CROSSING) == ([102, 103], [1, 0, 1])


@pytest.mark.parametrize(
    ("match", "best"),
    [
        ((3, 20, MATCH, ASK, 103, 1, 4), [102, 103]),  # the ask at 101 was passed by
        ((3, 20, MATCH, BID, 99, 1, 1), [99, 101]),  # the bid at 102 was passed by
    ],
)
def test_order_by_order_a_level_that_trades_pass_by_is_evicted(match, best):
    assert run_orders(CROSSING[0], match, *CROSSING[1:]) == (best, [1, 1, 0])
    before = run_orders((2, 5, *match[2:]), *CROSSING)  # before the book was crossed
    assert before == ([102, 101], [0, 0, 0])


def test_order_by_order_trades_at_the_best_price_are_no_evidence():
    fills = [(3, 20, MATCH, ASK, 101, 1, 3), (3, 20, MATCH, BID, 102, 0, 5)]
    assert run_orders(CROSSING[0], *fills, *CROSSING[1:]) == ([102, 101], [0, 0, 0])


@pytest.mark.parametrize("by_order", [False, True])
def test_what_falls_out_of_the_levels_of_a_subscription_is_gone(by_order):
    rows = [row if by_order else row[:6] for row in ORDERS]
    rows.append((2, 10, ADD, ASK, 100, 1, *[9] * by_order))  # 103 falls out
    rows.append((3, 20, DELETE, ASK, 100, 1, *[9] * by_order))
    rows.append((4, 30, ADD, ASK, 104, 7, *[10] * by_order))
    rows.append((5, 40, DELETE, ASK, 103, 6, *[4] * by_order))
    run = Run(depth=4, book_depth=2).feed(*rows, by_order=by_order)
    price_ticks, *_ = run.end()
    assert price_ticks.tolist() == [
        [98, 99, 101, 103],
        [98, 99, 100, 101],
        [98, 99, 101, 104],
        [98, 99, 101, 104],
    ]
    names = ("levels_cut", "thin_states", "unknown")
    assert [run.counter(name) for name in names] == [1, 1, 1]
