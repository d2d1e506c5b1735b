"""Which windows are tested, and which the naive methods and the probes are fitted on.

Splits begin and end at the calendar cuts of the checkpoint's training, also for pairs that it has
never seen. A window is named by its end row: the row after its last state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lob.book.states import Book, identity
from lob.config import InputError
from lob.windows.splits import (
    SPLITS,
    segment_ranges,
    split_of_windows,
    split_rows,
    to_iso,
    window_ends,
)

BLOCK_SECONDS = 60  # of a block of time in the intervals of probes
BLOCK_STATES = 1024
Windows = list[tuple[Book, np.ndarray]]  # books, and the end rows of windows of each, int64 (W,)


@dataclass(frozen=True)
class Selection:
    """How windows are chosen."""

    states: int  # of a window
    cuts_ns: np.ndarray  # int64 (2,), when validation and test begin
    split: str  # the tested one; 'all': the whole recording
    dates: np.ndarray | None  # int64 (2,), ns: only windows between them are tested
    fit_books: list[Book]  # what may be fitted on

    def ends(self, book: Book, split: str, after: int = 0) -> np.ndarray:
        """Return end rows, int64 (W,), of a split's windows.

        A window counts only if at least `after` more states of its split and segment follow it.
        """
        ends = window_ends(book.segment_starts, book.rows, self.states)
        last = book.rows
        if split != "all":
            number = SPLITS.index(split)
            rows = split_rows(book.timestamps, self.cuts_ns, self.states)
            ends = ends[split_of_windows(ends, self.states, rows) == number]
            last = rows[number, 1]
        if self.dates is not None and split == self.split:
            begin, end = self.dates
            first_time = book.timestamps[ends - self.states]
            last_time = book.timestamps[ends - 1]
            ends = ends[(first_time >= begin) & (last_time < end)]
        return ends[ends + after <= np.minimum(segment_of_windows(book, ends)[:, 1], last)]

    def tested(self, book: Book, after: int = 0) -> np.ndarray:
        return self.ends(book, self.split, after)

    def to_fit(self, book: Book, split: str, count: int, after: int = 0) -> Windows:
        """Return about `count` windows of 'train' or 'validation' for what is tested on `book`.

        They are of the same pair if it has training windows, else of all pairs. No training window
        is tested. A validation window is tested only if the tested split is 'validation'.
        """
        others = self.fit_books
        if self.split == "all":
            others = [other for other in others if identity(other) != identity(book)]
        sources = [other for other in others if len(self.ends(other, "train", after))]
        same_pair = [other for other in sources if other.pair == book.pair]
        found = [(other, self.ends(other, split, after)) for other in same_pair or sources]
        found = [(other, ends) for other, ends in found if len(ends)]
        each = -(-count // max(len(found), 1))
        return [(other, evenly_spaced(ends, each)) for other, ends in found]

    def check(self, book: Book) -> None:
        """Raise InputError if a book has no window to test."""
        if not len(self.tested(book)):
            raise InputError(
                f"{book.pair} has no window in the split {self.split!r} of this checkpoint: "
                "set --pairs, or for a recording that was not trained on --split=all or "
                '--split_ratios="[0.7,0.25,0.05]"'
            )

    def refuse_trained(self, book: Book, trained_books: list[dict]) -> None:
        """Raise InputError if a book is one of those whose identities are given.

        A checkpoint's own books are split by its own calendar alone.
        """
        if identity(book) in trained_books:
            raise InputError(
                f"{book.pair} was trained on, and the tested windows might be those: set "
                "--split=test and leave out --split_ratios"
            )

    def refuse_earlier(self, book: Book, until_ns: int) -> None:
        """Raise InputError if a tested window is not later than `until_ns`, ns since the epoch.

        An encoder that was trained on later data knows what came after such a window.
        """
        begins = book.timestamps[self.tested(book) - self.states]
        early = int((begins <= until_ns).sum())
        if not early:
            return
        later = ""
        next_second = (until_ns // 10**9 + 1) * 10**9
        if (begins >= next_second).any():
            dates = [to_iso(next_second), to_iso(int(book.timestamps[-1]) + 10**9)]
            later = f'--dates="{dates}" to leave them out, or '
        raise InputError(
            f"{early:,} of {len(begins):,} windows of {book.pair} begin before {to_iso(until_ns)}, "
            f"the last date of the encoder's training data: set {later}--allow_earlier=True"
        )


def evenly_spaced(ends: np.ndarray, count: int) -> np.ndarray:
    """Return up to `count` of the window ends, evenly spaced."""
    places = np.linspace(0, len(ends) - 1, min(count, len(ends)))
    return ends[places.round().astype(np.int64)]


def segment_of_windows(book: Book, ends: np.ndarray) -> np.ndarray:
    """Return the rows [first, end) of the segment that holds each window's last state, (W, 2)."""
    segments = segment_ranges(book.segment_starts, book.rows)
    return segments[np.searchsorted(book.segment_starts, ends - 1, side="right") - 1]


def in_parts(
    book: Book, ends: np.ndarray, states: int, after: int, shares: Sequence[float]
) -> np.ndarray:
    """Return int8 (W,): the part of a recording in which a window lies, 0, 1, ...; -1 if in none.

    ends: int64 (W,), in any order. A part is a share of the book's rows. A window lies in it if its
    states and `after` more of the same segment do. The first `states` rows of a part but the first
    belong to none, so that windows on both sides of a border are not neighbours. Raises InputError
    if a window lies outside of the book.
    """
    if len(ends) and (ends.min() < states or ends.max() > book.rows):
        raise InputError(
            f"windows of {states} states end at rows {ends.min()} to {ends.max()} of {book.pair}, "
            f"which has {book.rows}: give end rows from {states} to {book.rows}"
        )
    borders = np.round(np.cumsum([0, *shares]) * book.rows).astype(np.int64)
    begins = borders[:-1] + np.where(borders[:-1] > 0, states, 0)
    rows = np.stack([begins, borders[1:]], axis=1)
    part = split_of_windows(ends + after, states + after, rows)
    first, end = segment_of_windows(book, ends).T
    whole = (ends - states >= first) & (ends + after <= end)
    return np.where(whole, part, -1).astype(np.int8)


def states_after(book: Book, ends: np.ndarray, shares: Sequence[float] = (1.0,)) -> np.ndarray:
    """Return how many states of its segment and part follow each window, int64 (W,).

    ends, shares: as for `in_parts`.
    """
    borders = np.round(np.cumsum([0, *shares]) * book.rows).astype(np.int64)
    part_end = borders[np.searchsorted(borders, ends, side="left")]
    return np.minimum(segment_of_windows(book, ends)[:, 1], part_end) - ends


def time_blocks(book: Book, ends: np.ndarray) -> np.ndarray:
    """Return the number of the block of time in which each window ends, int64 (W,).

    A block lasts BLOCK_SECONDS, or where states are rare as long as BLOCK_STATES of them take on
    average. Time without a segment does not count for that.
    """
    segments = segment_ranges(book.segment_starts, book.rows) - [0, 1]  # first and last rows
    recorded_ns = int(np.diff(book.timestamps[segments], axis=1).sum())
    length_ns = max(BLOCK_SECONDS * 10**9, BLOCK_STATES * recorded_ns // book.rows)
    return (book.timestamps[ends - 1] - book.timestamps[0]) // length_ns
