"""What a window is, and which windows belong to training, validation and test.

A window of `temporal_dim` = T states is named by `end_row`, one past its last state: it covers [end_row - T, end_row).
It never crosses a segment border, nor a border between two splits.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from lob.book.states import Book
from lob.config import InputError

SPLITS = ("train", "validation", "test")


def segment_ranges(segment_starts: np.ndarray, rows: int) -> np.ndarray:
    """Return int64 (S, 2): first row and one past the last row of each segment."""
    starts = np.asarray(segment_starts, dtype=np.int64)
    return np.stack([starts, np.append(starts, np.int64(rows))[1:]], axis=1)


def window_ends(segment_starts: np.ndarray, rows: int, temporal_dim: int) -> np.ndarray:
    """Return int64 (W,): `end_row` of every window of `temporal_dim` states that lies in one segment, ascending."""
    ends = [np.arange(a + temporal_dim, b + 1) for a, b in segment_ranges(segment_starts, rows)]
    return np.concatenate([np.empty(0, dtype=np.int64), *ends])


def calendar_cuts(
    timestamps: Sequence[np.ndarray], segment_starts: Sequence[np.ndarray], split_ratios: Sequence[float | str]
) -> np.ndarray:
    """Return int64 (2,): the instants (ns) at which validation and test begin, the same for every pair.

    `timestamps` and `segment_starts` are one array a pair. `split_ratios` is either three shares (train, validation,
    test), and the cuts divide the time that at least one pair's segments cover in these proportions, time without a
    recording not counted; or the two cuts themselves as ISO dates (UTC). InputError where it is neither.
    """
    if len(split_ratios) == 2 and all(isinstance(date, str) for date in split_ratios):
        return parse_dates(split_ratios)
    shares = [share for share in split_ratios if isinstance(share, int | float) and 0 <= share < np.inf]
    if len(split_ratios) != 3 or len(shares) != 3:
        raise InputError(f"split_ratios = {split_ratios!r} are neither three shares (train, validation, test) "
                         "nor two ISO dates (validation begins, test begins)")  # fmt: skip
    if abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"split_ratios = {split_ratios!r} add up to {sum(shares):g}: make them add up to 1")
    ranges = [segment_ranges(starts, len(times)) for times, starts in zip(timestamps, segment_starts, strict=True)]
    spans = np.concatenate([times[rows - [0, 1]] for times, rows in zip(timestamps, ranges, strict=True)])
    if not len(spans):
        raise InputError("the books hold no states to split: run data_parser.py again")
    begins, ends = spans[np.argsort(spans[:, 0])].T
    ends = np.maximum.accumulate(ends)
    new = np.append(True, begins[1:] > ends[:-1])  # where no span before it reaches
    begins, ends = begins[new], ends[np.append(new[1:], True)]
    before = np.append(0, np.cumsum(ends - begins))  # covered ns before each span
    cuts = []
    for share in np.cumsum(np.asarray(shares, dtype=np.float64))[:2] / float(sum(shares)):
        target = round(float(share) * int(before[-1]))
        span = min(int(np.searchsorted(before, target, side="right")) - 1, len(begins) - 1)
        cuts.append(int(begins[span]) + target - int(before[span]))
    return np.array(cuts, dtype=np.int64)


def parse_dates(dates: Sequence[float | str], key: str = "split_ratios") -> np.ndarray:
    """Return int64 (2,): a key's two ascending ISO dates (UTC where they name no offset) in ns since the epoch."""
    try:
        moments = [datetime.fromisoformat(str(date)) for date in dates]
    except ValueError as error:
        raise InputError(f"{key} = {dates!r}: {error}: write a date such as '2026-05-02T12:30'") from None
    seconds = [(m if m.tzinfo else m.replace(tzinfo=UTC)).timestamp() for m in moments]
    if seconds[0] > seconds[1]:
        raise InputError(f"{key} = {dates!r}: the first date is later than the second: give the earlier one first")
    nanoseconds = [round(s * 1e6) * 1000 for s in seconds]
    if max(map(abs, nanoseconds)) >= 2**63:
        raise InputError(f"{key} = {dates!r}: dates must lie between the years 1678 and 2262")
    return np.array(nanoseconds, dtype=np.int64)


def split_rows(timestamps: np.ndarray, cuts: np.ndarray, embargo: int) -> np.ndarray:
    """Return int64 (3, 2): the rows [first, end) of one pair that train, validation and test may use.

    A split begins at its cut; the first `embargo` states after a cut belong to no split.
    """
    first = np.searchsorted(timestamps, cuts, side="left").astype(np.int64)
    rows = len(timestamps)
    begins = np.minimum(first + embargo, rows)
    return np.array([[0, first[0]], [min(begins[0], first[1]), first[1]], [begins[1], rows]], dtype=np.int64)


def split_of_windows(end_rows: np.ndarray, temporal_dim: int, rows_of_splits: np.ndarray) -> np.ndarray:
    """Return int8 (W,): 0, 1 or 2, the split that holds all states of a window, or -1 where none does (purged)."""
    split = np.full(len(end_rows), -1, dtype=np.int8)
    for index, (first, end) in enumerate(rows_of_splits):
        split[(end_rows - temporal_dim >= first) & (end_rows <= end)] = index
    return split


def count_shared_states(end_rows: Sequence[np.ndarray], temporal_dim: int, rows: int) -> int:
    """Count the states of one pair that windows of two or more of the given sets cover (0 where a split is pure).

    Memory grows with the windows given, not with `rows`. InputError where a window lies outside of [0, rows).
    """
    edges, steps = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for given in end_rows:
        ends = np.unique(np.asarray(given, dtype=np.int64))
        if len(ends) == 0:
            continue
        if ends[0] < temporal_dim or ends[-1] > rows:
            raise InputError(f"a window of {temporal_dim} states ends outside of a book of {rows} "
                             "states: run create_balanced_dataset.py again")  # fmt: skip
        apart = np.diff(ends) > temporal_dim  # between two runs of windows that touch, the set covers nothing
        first = ends[np.append(True, apart)] - temporal_dim
        last = ends[np.append(apart, True)]
        edges += [first, last]
        steps += [np.ones_like(first), -np.ones_like(last)]
    edge, step = np.concatenate(edges), np.concatenate(steps)
    order = np.argsort(edge, kind="stable")
    sets_from = np.cumsum(step[order])  # how many sets cover the states from this edge to the next
    return int(np.diff(edge[order])[sets_from[:-1] > 1].sum())


def gather_windows(book: Book, end_rows: np.ndarray, temporal_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Copy windows out of a book: price_ticks int32 (B, T, L) and sizes float32 (B, T, L)."""
    price_ticks = np.stack([book.price_ticks[end - temporal_dim : end] for end in end_rows])
    sizes = np.stack([book.sizes[end - temporal_dim : end] for end in end_rows])
    return price_ticks, sizes
