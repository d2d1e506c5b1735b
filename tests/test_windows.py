"""Windows and splits against plain sets of rows, built one row at a time."""

from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_book
from hypothesis import given, settings
from hypothesis import strategies as st

from lob.book.states import open_book
from lob.config import InputError
from lob.windows.splits import (
    calendar_cuts,
    count_shared_states,
    gather_windows,
    segment_ranges,
    split_of_windows,
    split_rows,
    window_ends,
)

SECOND = 1_000_000_000


def times_of(timestamps, segment_starts):
    """Return what splits read of a book."""
    rows = len(timestamps)
    return SimpleNamespace(timestamps=timestamps, segment_starts=segment_starts, rows=rows)


def states_of(ends, temporal_dim):
    return {row for end in ends for row in range(end - temporal_dim, end)}


@st.composite
def books(draw):
    """Return timestamps and segment_starts of a short book.

    It has bursts of equal stamps, long gaps and segments of any length.
    """
    rows = draw(st.integers(1, 120))
    steps = draw(
        st.lists(st.sampled_from([0, 0, 1, 3, SECOND, 90 * SECOND]), min_size=rows, max_size=rows)
    )
    inner = draw(st.sets(st.integers(1, max(1, rows - 1)), max_size=6))
    starts = sorted({0} | {s for s in inner if s < rows})
    return np.cumsum(steps, dtype=np.int64) + draw(st.integers(0, 50)) * SECOND, np.array(
        starts, dtype=np.int64
    )


@given(books(), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_windows_are_all_runs_inside_one_segment(book, temporal_dim):
    timestamps, starts = book
    rows = len(timestamps)
    segment_of = np.searchsorted(starts, np.arange(rows), side="right")
    expected = [
        e for e in range(temporal_dim, rows + 1) if len(set(segment_of[e - temporal_dim : e])) == 1
    ]
    assert window_ends(starts, rows, temporal_dim).tolist() == expected


def test_segment_ranges_cover_every_row_once():
    assert segment_ranges(np.array([0, 4, 5]), 9).tolist() == [[0, 4], [4, 5], [5, 9]]
    assert segment_ranges(np.array([], dtype=np.int64), 0).shape == (0, 2)
    assert len(window_ends(np.array([], dtype=np.int64), 0, 4)) == 0


@given(
    st.lists(books(), min_size=1, max_size=3),
    st.integers(1, 20),
    st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_no_state_and_no_instant_is_shared_by_two_splits(pairs, temporal_dim, ratios):
    if sum(ratios) == 0:
        return
    shares = [ratio / sum(ratios) for ratio in ratios]
    cuts = calendar_cuts([times_of(*pair) for pair in pairs], shares)
    assert cuts[0] <= cuts[1]
    latest = [-1, -1, -1]
    earliest = [2**62] * 3
    for timestamps, starts in pairs:
        ranges = split_rows(timestamps, cuts, temporal_dim)
        ends = window_ends(starts, len(timestamps), temporal_dim)
        split = split_of_windows(ends, temporal_dim, ranges)
        chosen = [ends[split == index] for index in range(3)]
        sets = [states_of(c, temporal_dim) for c in chosen]
        assert not (sets[0] & sets[1] or sets[1] & sets[2] or sets[0] & sets[2])
        assert count_shared_states(chosen, temporal_dim, len(timestamps)) == 0
        for before, after in pairwise([s for s in sets if s]):
            assert min(after) - max(before) > temporal_dim  # the embargo: T states between them
        for index, states in enumerate(sets):
            if states:
                latest[index] = max(latest[index], timestamps[max(states)])
                earliest[index] = min(earliest[index], timestamps[min(states)])
    # One calendar for all pairs: validation begins at the first cut, test at the second.
    assert latest[0] < cuts[0] <= earliest[1]
    assert latest[1] < cuts[1] <= earliest[2]


@given(st.lists(st.lists(st.integers(5, 60), max_size=15), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_shared_states_are_those_of_two_sets(end_rows):
    sets = [states_of(ends, 5) for ends in end_rows]
    expected = sum(sum(row in s for s in sets) > 1 for row in range(60))
    assert count_shared_states([np.array(e, dtype=np.int64) for e in end_rows], 5, 60) == expected


def test_a_leak_is_counted():
    """Without purge and embargo, windows on both sides of a border share T - 1 states."""
    ends = np.arange(256, 1001)
    assert count_shared_states([ends[ends <= 700], ends[ends > 700]], 256, 1000) == 255


def test_a_window_outside_of_the_book_is_refused():
    for ends in ([4], [101]):
        with pytest.raises(InputError, match="a book of 100 states"):
            count_shared_states([np.array(ends)], 5, 100)


def test_cuts_divide_covered_time_and_skip_gaps():
    """100 s of recording, a night of nothing, 100 s more: 70 % is 40 s into the second part."""
    night = 8 * 3600 * SECOND
    times = np.concatenate([np.arange(101), np.arange(101)]) * SECOND
    times[101:] += night
    book = times_of(times, np.array([0, 101]))
    cuts = calendar_cuts([book], [0.7, 0.25, 0.05])
    assert cuts.tolist() == [night + 40 * SECOND, night + 90 * SECOND]
    # A second pair that was recorded in the first half of the same time moves nothing.
    second = times_of(times[:50], np.array([0]))
    assert calendar_cuts([book, second], [0.7, 0.25, 0.05]).tolist() == cuts.tolist()


def test_cuts_may_be_dates():
    book = times_of(np.arange(10) * SECOND, np.array([0]))
    cuts = calendar_cuts([book], ["2026-05-02T10:00", "2026-05-02 12:30:00.25+00:00"])
    first = datetime(2026, 5, 2, 10, tzinfo=UTC)
    second = datetime(2026, 5, 2, 12, 30, 0, 250_000, tzinfo=UTC)
    assert cuts.tolist() == [
        int(first.timestamp()) * SECOND,
        int(second.timestamp() * 4) * SECOND // 4,
    ]


@pytest.mark.parametrize(
    "ratios",
    [
        [0.7, 0.3],
        [0.5, 0.5, -0.1],
        [0, 0, 0],
        [0.7, "x", 0.1],
        ["2026-05-02", "soon"],
        ["2026-05-03", "2026-05-02"],
        [0.7, float("nan"), 0.1],
        [True, "a", None],
        [],
        [0.7, 0.2, 0.2],
        [70, 25, 5],
    ],
)
def test_impossible_splits_are_refused_with_their_value(ratios):
    with pytest.raises(InputError, match="split_ratios"):
        calendar_cuts([times_of(np.arange(10), np.array([0]))], ratios)


def test_a_book_without_states_is_refused():
    with pytest.raises(InputError, match="no states"):
        nothing = np.empty(0, np.int64)
        calendar_cuts([times_of(nothing, nothing)], [0.7, 0.25, 0.05])


def test_a_window_needs_all_its_states_in_one_split():
    ranges = np.array([[0, 10], [14, 20], [24, 30]])
    ends = np.array([4, 10, 11, 17, 18, 20, 21, 27, 28, 30, 31])
    assert split_of_windows(ends, 4, ranges).tolist() == [0, 0, -1, -1, 1, 1, -1, -1, 2, 2, -1]


def test_gathered_windows_end_before_their_end_row(tmp_path):
    book = open_book(write_book(tmp_path, rows=60, depth=8))
    price_ticks, sizes = gather_windows(book, np.array([16, 60]), 16)
    assert price_ticks.shape == sizes.shape == (2, 16, 8)
    assert price_ticks.dtype == np.int32 and sizes.dtype == np.float32
    np.testing.assert_array_equal(price_ticks[0], book.price_ticks[:16])
    np.testing.assert_array_equal(sizes[1], book.sizes[44:])
