"""The numba kernel against the book of dictionaries, on random updates with every exception."""

import itertools

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference_book import ReferenceBook, thin_states

from lob.book.order_book import COUNTERS, OrderBook
from lob.book.price_levels import ASK, BID
from lob.feeds.batch import ADD, DELETE, GAP, MATCH, SET, SNAPSHOT, SUB

LOT = 0.5  # a power of two, so that lots times LOT are exact in float32


def make_updates(rng, rows, by_order, price_range, message_rows, step_ms, ids, wide_ids, crossing):
    """Return random rows of several messages: bids around price 0, asks above.

    A share `crossing` of them lies on the wrong side.
    """
    message = np.cumsum(rng.random(rows) < 1 / message_rows)
    first = np.flatnonzero(np.diff(message, prepend=-1))
    times = (
        10**18
        + np.cumsum(rng.integers(-step_ms // 10 - 1, step_ms + 2, size=message[-1] + 1)) * 10**6
    )
    kinds = rng.choice([ADD, SUB, MATCH, SET, DELETE], p=[0.35, 0.1, 0.1, 0.35, 0.1], size=rows)
    for begin in rng.choice(first, size=max(1, len(first) // 400)):
        kinds[begin : begin + 4 * message_rows + 8] = SNAPSHOT
    is_buy = rng.random(rows) < 0.5
    distance = rng.integers(1, price_range + 1, size=rows)
    distance[rng.random(rows) < crossing] *= -1
    prices = np.where(is_buy, -distance, distance)
    sizes = rng.integers(0, 12, size=rows)
    order_ids = rng.integers(0, ids, size=rows) * (0x9E3779B97F4A7C15 - 2**64 if wide_ids else 1)
    for begin in rng.choice(first, size=len(first) // 2000):  # a GAP row is a message of its own
        message[begin:] += 1
        message[begin + 1 :] += 1
        kinds[begin] = GAP
    times = times[np.searchsorted(first, np.arange(rows), "right") - 1]
    return (
        times,
        message,
        kinds.astype(np.uint8),
        is_buy,
        prices,
        sizes,
        order_ids if by_order else None,
    )


def run_kernel(rng, updates, depth, subsample, interval_ms, max_crossed_ms, book_depth):
    """Feed rows in batches cut anywhere; return the rows written, the counters and the book.

    The output has room for few rows, so that it is often full.
    """
    out = []
    book = OrderBook(
        depth,
        LOT,
        lambda arrays: out.append([array.copy() for array in arrays]),
        subsample,
        interval_ms,
        max_crossed_ms,
        max_gap_seconds=1,
        max_clock_step_ms=10**6,
        book_depth=book_depth,
        capacity=64,
    )
    cuts = np.unique(rng.integers(0, len(updates[0]), size=7))
    for begin, end in zip([0, *cuts], [*cuts, len(updates[0])], strict=True):
        book.apply(*(None if column is None else column[begin:end] for column in updates))
    book.finish()
    arrays = [np.concatenate(column) for column in zip(*out, strict=True)] if out else None
    return arrays, dict(zip(COUNTERS, book.counters.tolist(), strict=True)), book


def run_reference(updates, depth, max_crossed_ms, book_depth):
    reference = ReferenceBook(
        depth, updates[6] is not None, int(max_crossed_ms * 10**6), 10**9, book_depth
    )
    times, message = updates[0].tolist(), updates[1]
    ids = [0] * len(times) if updates[6] is None else updates[6].tolist()
    rows = list(zip(*(column.tolist() for column in updates[2:6]), ids, strict=True))
    bounds = [*np.flatnonzero(np.diff(message, prepend=-1)).tolist(), len(times)]
    for begin, end in itertools.pairwise(bounds):
        reference.take_message(times[begin], rows[begin:end])
    return reference


def compare(seed, rows, by_order, depth, thinning, book_depth=None, **market):
    """Run both on the same updates; compare all rows written, the counters and the final book."""
    subsample, interval_ms = thinning
    max_crossed_ms = market["step_ms"] * 5
    updates = make_updates(np.random.default_rng(seed), rows, by_order, **market)
    reference = run_reference(updates, depth, max_crossed_ms, book_depth)
    arrays, counters, book = run_kernel(
        np.random.default_rng(seed),
        updates,
        depth,
        subsample,
        interval_ms,
        max_crossed_ms,
        book_depth,
    )
    assert {name: reference.counters[name] for name in COUNTERS} == counters
    expected = thin_states(reference.states, subsample, interval_ms * 10**6)
    if arrays is None:
        assert not expected
    else:
        ticks, lots, times, starts, traded = (
            np.array(column) for column in zip(*expected, strict=True)
        )
        np.testing.assert_array_equal(arrays[0], ticks)
        np.testing.assert_array_equal(arrays[1], lots * LOT)
        np.testing.assert_array_equal(arrays[2], times)
        np.testing.assert_array_equal(arrays[3], traded * LOT)
        np.testing.assert_array_equal(arrays[4], starts)
    for side in (BID, ASK):
        left = dict(zip(*(array.tolist() for array in book.levels(side, 10**6)), strict=True))
        assert left == reference.levels[side]
    return counters


def test_random_updates_leave_the_book_of_the_dictionary_reference() -> None:
    """At least 10^6 updates in all, and every kind of exception among them."""
    seen: dict[str, int] = dict.fromkeys(COUNTERS, 0)
    updates = 0

    @settings(
        max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
    )
    @given(
        seed=st.integers(0, 2**32),
        by_order=st.booleans(),
        depth=st.sampled_from([2, 4, 10]),
        thinning=st.sampled_from([(1, 0), (1, 0), (3, 0), (1, 7)]),
        price_range=st.sampled_from([6, 15, 40]),
        message_rows=st.integers(1, 6),
        step_ms=st.sampled_from([2, 20, 600]),
        ids=st.sampled_from([30, 200, 20_000]),
        wide_ids=st.booleans(),
        crossing=st.sampled_from([0.0, 0.001, 0.05]),
        book_depth=st.sampled_from([None, None, 5, 12]),
    )
    def check(seed, by_order, depth, thinning, **market) -> None:
        nonlocal updates
        counters = compare(seed, 20_000, by_order, depth, thinning, **market)
        updates += 20_000
        for name, count in counters.items():
            seen[name] += count

    check()
    assert updates >= 10**6
    assert all(seen.values()), (
        f"nothing exercised {[name for name, count in seen.items() if not count]}"
    )


@pytest.mark.parametrize("by_order", [False, True])
def test_book_of_many_levels_grows(by_order: bool) -> None:
    """Thousands of levels and orders: the arrays of the kernel grow in mid-message."""
    market = {
        "price_range": 20_000,
        "message_rows": 900,
        "step_ms": 20,
        "ids": 10**6,
        "wide_ids": True,
    }
    compare(1, 60_000, by_order, 10, (1, 0), crossing=0.0, **market)
