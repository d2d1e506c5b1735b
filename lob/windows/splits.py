"""What a window is, and which windows belong to training, validation and test.

A window of `temporal_dim` = T states is named by `end_row`, one past its last state: it covers the
states [end_row - T, end_row). It lies in one split, and in one segment of its book (a run of states
without a gap).
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


def too_short(book: Book, temporal_dim: int, otherwise: str) -> InputError:
    """Return the error of a book without a window; `otherwise` is what else the user can do."""
    if book.rows < temporal_dim:
        return InputError(
            f"{book.path} has {book.rows:,} states, fewer than a window of {temporal_dim}: take a "
            f"longer recording, parse one of thin books with a smaller --depth, or {otherwise}"
        )
    return InputError(
        f"{book.path} has no run of {temporal_dim} states without a gap: {otherwise}, "
        "or run data_parser.py with a larger --max_gap_seconds"
    )


def window_ends(segment_starts: np.ndarray, rows: int, temporal_dim: int) -> np.ndarray:
    """Return int64 (W,): `end_row` of every window that lies within a segment, ascending."""
    segments = segment_ranges(segment_starts, rows)
    ends = [np.arange(first + temporal_dim, end + 1) for first, end in segments]
    return np.concatenate([np.empty(0, dtype=np.int64), *ends])


def strided_ends(
    segment_starts: np.ndarray, rows: int, temporal_dim: int, stride: int
) -> list[range]:
    """Return `end_row` of every `stride`-th window of each segment, a range for each segment.

    Segments that are shorter than a window are left out.
    """
    return [
        range(first + temporal_dim, end + 1, stride)
        for first, end in segment_ranges(segment_starts, rows).tolist()
        if end - first >= temporal_dim
    ]


def calendar_cuts(books: Sequence[Book], split_ratios: Sequence[float | str]) -> np.ndarray:
    """Return int64 (2,): the instants (ns) at which validation and test begin, for all books.

    `split_ratios` is either three shares (train, validation, test) or the two cuts themselves as
    ISO dates (UTC). Shares divide the time that is covered by a segment of at least one book; time
    without a recording does not count. Raises InputError if `split_ratios` is neither.
    """
    if len(split_ratios) == 2 and all(isinstance(date, str) for date in split_ratios):
        return parse_dates(split_ratios)
    shares = [s for s in split_ratios if isinstance(s, int | float) and 0 <= s < np.inf]
    if len(split_ratios) != 3 or len(shares) != 3:
        raise InputError(
            f"split_ratios = {split_ratios!r} are neither three shares (train, validation, test) "
            "nor two ISO dates (validation begins, test begins)"
        )
    if abs(sum(shares) - 1) > 1e-6:
        raise InputError(
            f"split_ratios = {split_ratios!r} add up to {sum(shares):g}: make them add up to 1"
        )
    begins, ends = covered_spans(books)
    covered_before = np.append(0, np.cumsum(ends - begins))  # ns before each span, and in all
    cuts = []
    for share in np.cumsum(np.asarray(shares, dtype=np.float64))[:2] / float(sum(shares)):
        target = round(float(share) * int(covered_before[-1]))
        span = int(np.searchsorted(covered_before, target, side="right")) - 1
        span = min(span, len(begins) - 1)
        cuts.append(int(begins[span]) + target - int(covered_before[span]))
    return np.array(cuts, dtype=np.int64)


def covered_spans(books: Sequence[Book]) -> tuple[np.ndarray, np.ndarray]:
    """Return begins and ends, int64 (S,) in ns, of the spans of time that any segment covers.

    Spans that overlap are joined into one. Raises InputError if the books hold no states.
    """
    parts = []
    for book in books:
        first_and_last = segment_ranges(book.segment_starts, book.rows) - [0, 1]  # rows (S, 2)
        parts.append(book.timestamps[first_and_last])
    spans = np.concatenate(parts)
    if not len(spans):
        raise InputError("the books hold no states to split: run data_parser.py again")
    begins, ends = spans[np.argsort(spans[:, 0])].T
    latest_end = np.maximum.accumulate(ends)
    is_new = np.append(True, begins[1:] > latest_end[:-1])
    is_last = np.append(is_new[1:], True)  # of the spans that are joined
    return begins[is_new], latest_end[is_last]


def parse_dates(dates: Sequence[float | str], key: str = "split_ratios") -> np.ndarray:
    """Return int64 (2,): two ISO dates in ns since the epoch.

    A date without an offset is in UTC. Raises InputError if they are not two dates, if the first is
    the later one, or if int64 can't hold them; the message names the `key` that holds them.
    """
    if len(dates) != 2:
        example = "such as ['2024-08-01', '2024-09-01']"
        raise InputError(f"{key} = {dates!r} must be two ISO dates, {example}")
    try:
        moments = [datetime.fromisoformat(str(date)) for date in dates]
    except ValueError as error:
        raise InputError(
            f"{key} = {dates!r}: {error}: write a date such as '2026-05-02T12:30'"
        ) from None
    with_offset = [m if m.tzinfo else m.replace(tzinfo=UTC) for m in moments]
    seconds = [moment.timestamp() for moment in with_offset]
    if seconds[0] > seconds[1]:
        raise InputError(f"{key} = {dates!r}: the first date is later than the second: swap them")
    nanoseconds = [round(second * 1e6) * 1000 for second in seconds]
    if max(abs(moment) for moment in nanoseconds) >= 2**63:
        raise InputError(f"{key} = {dates!r}: dates must lie between the years 1678 and 2262")
    return np.array(nanoseconds, dtype=np.int64)


def to_iso(time_ns: int) -> str:
    """Return ns since the epoch as an ISO date and time in UTC, cut off after the second."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).isoformat().removesuffix("+00:00")


def describe_dates(books: Sequence[Book], cuts: np.ndarray) -> str:
    """Return when the recordings begin, and when each next split does, by `cuts` (ns, UTC)."""
    begin = min(int(book.timestamps[0]) for book in books)
    end = max(int(book.timestamps[-1]) for book in books)
    texts = [to_iso(int(time)).replace("T", " ") for time in (begin, *cuts, end)]
    named = ", ".join(f"{name} from {text}" for name, text in zip(SPLITS, texts, strict=False))
    return f"{named} to {texts[-1]} UTC"


def split_rows(timestamps: np.ndarray, cuts: np.ndarray, embargo: int) -> np.ndarray:
    """Return int64 (3, 2): the rows [first, end) of a pair that train, validation and test may use.

    timestamps: int64 (N,), ns; cuts: int64 (2,), ns. The first `embargo` states after a cut belong
    to no split, so that windows on both sides of it are not neighbours.
    """
    rows = len(timestamps)
    validation, test = np.searchsorted(timestamps, cuts, side="left").tolist()
    splits = [
        [0, validation],
        [min(validation + embargo, test), test],
        [min(test + embargo, rows), rows],
    ]
    return np.array(splits, dtype=np.int64)


def split_of_windows(
    end_rows: np.ndarray, temporal_dim: int, rows_of_splits: np.ndarray
) -> np.ndarray:
    """Return int8 (W,): the split that holds all states of a window, 0, 1 or 2; -1 if none does."""
    split = np.full(len(end_rows), -1, dtype=np.int8)
    for index, (first, end) in enumerate(rows_of_splits):
        split[(end_rows - temporal_dim >= first) & (end_rows <= end)] = index
    return split


def count_shared_states(end_rows: Sequence[np.ndarray], temporal_dim: int, rows: int) -> int:
    """Return how many states of a pair lie in windows of two or more of the given sets.

    end_rows: for each set of windows (a split) their end rows, int64 (n,); rows: number of the
    pair's states. Memory grows with the windows, not with `rows`. Raises InputError if a window
    lies outside of [0, rows).
    """
    # Each set covers runs of states: +1 where a run begins, -1 where it ends.
    edges, steps = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for given in end_rows:
        ends = np.sort(np.asarray(given, dtype=np.int64))  # np.unique takes 50 times as long
        if len(ends) == 0:
            continue
        if ends[0] < temporal_dim or ends[-1] > rows:
            raise InputError(
                f"a window of {temporal_dim} states ends outside of a book of {rows} states: "
                "run create_balanced_dataset.py again"
            )
        apart = np.diff(ends) > temporal_dim
        first = ends[np.append(True, apart)] - temporal_dim
        last = ends[np.append(apart, True)]
        edges += [first, last]
        steps += [np.ones_like(first), -np.ones_like(last)]
    edge, step = np.concatenate(edges), np.concatenate(steps)
    order = np.argsort(edge, kind="stable")
    sets_from_edge = np.cumsum(step[order])  # how many sets cover the states up to the next edge
    states_from_edge = np.diff(edge[order])
    return int(states_from_edge[sets_from_edge[:-1] > 1].sum())


def gather_windows(
    book: Book, end_rows: np.ndarray, temporal_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Copy windows out of a book: price_ticks int32 (B, T, L) and sizes float32 (B, T, L)."""
    price_ticks = np.stack([book.price_ticks[end - temporal_dim : end] for end in end_rows])
    sizes = np.stack([book.sizes[end - temporal_dim : end] for end in end_rows])
    return price_ticks, sizes


def gather_times(book: Book, end_rows: np.ndarray, temporal_dim: int) -> np.ndarray:
    """Return the times of the states of windows in ns, int64 (B, T)."""
    return book.timestamps[end_rows[:, None] - temporal_dim + np.arange(temporal_dim)]
