"""What belongs to one snapshot, in recordings that don't say so."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from lob.feeds.batch import SNAPSHOT, Batch, check_times, find_changes
from lob.jit import compiled

ARRAYS = ("time_ns", "message", "update_type", "is_buy", "price", "size", "order_id", "lines")


def number_books(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield batches with a message for each snapshot, of batches with one for each time.

    Consecutive SNAPSHOT rows are one book, though each order may have the time at which it was
    placed, until an order id (by level: a side's price) comes twice. By level, a later time whose
    prices would cross the book begins another one too. A book begins with the first row of its
    time, or with the row that comes twice if both have that time. A file begins a book. A book's
    time is the latest of its rows. The same rows once more at the same time were delivered twice.

    The rows of a book that may go on are held back until the file's next batch.
    """
    number, before = 0, None
    for _, batches_of_file in itertools.groupby(batches, lambda batch: batch.file):
        held, begins_book = None, True
        for batch in batches_of_file:
            check_times(batch)  # a book's time is the latest, which would hide one that is none
            whole = batch if held is None else join(held, batch)
            if not len(whole.message):
                yield whole
                continue
            if held is None and not (whole.update_type == SNAPSHOT).any():
                # Its messages are numbered one by one already.
                first = int(whole.message[0])
                shift = number + (before is None or first != before) - first
                yield whole._replace(message=whole.message + shift) if shift else whole
                before = int(whole.message[-1])
                number, begins_book = before + shift, False
                continue
            begins = find_messages(whole, before, begins_book)
            end = find_open_book(whole, begins)
            if end:
                yield renumber(take_rows(whole, 0, end), begins[:end], number)
                number += int(begins[:end].sum())
                before = whole.message[end - 1]
                begins_book = end < len(begins) and bool(begins[end])
            held = take_rows(whole, end, len(begins)) if end < len(begins) else None
        if held is not None:
            begins = find_messages(held, before, begins_book)
            yield renumber(held, begins, number)
            number, before = number + int(begins.sum()), held.message[-1]


def find_messages(batch: Batch, before: int | None, begins_book: bool) -> np.ndarray:
    """Return bool (n,): whether each row begins a message.

    before: message number of the row before the batch; begins_book: whether a SNAPSHOT row at the
    batch's start begins a book.
    """
    begins = find_changes(batch.message, before)
    snapshot = batch.update_type == SNAPSHOT
    if not snapshot.any():
        return begins
    twins = find_twins(batch, snapshot)
    later_times = begins & snapshot
    begins[1:] &= ~(snapshot[1:] & snapshot[:-1])
    begins[0] |= snapshot[0] and begins_book
    by_level = batch.order_id is None
    if by_level or twins.max() >= 0:
        split_snapshots(snapshot, later_times, batch.is_buy, batch.price, twins, by_level, begins)
        join_repeats(batch, snapshot, twins, begins)
    return begins


def join_repeats(batch: Batch, snapshot: np.ndarray, twins: np.ndarray, begins: np.ndarray) -> None:
    """Clear `begins` where a book has the same rows and time as the one before it."""
    rows = np.flatnonzero(snapshot)
    begins_run = np.diff(rows, prepend=-2) > 1
    starts = np.flatnonzero(begins[rows] | begins_run)
    ends = np.append(starts[1:], len(rows))
    same_time = batch.message[rows[starts]] == batch.message[rows[starts] - 1]
    for index in np.flatnonzero(same_time & ~begins_run[starts]).tolist():
        before, book = rows[starts[index - 1] : ends[index - 1]], rows[starts[index] : ends[index]]
        pairs = twins[book]
        is_repeat = len(before) == len(book) and pairs.min() >= before[0]
        times = (batch.message[before[0]], batch.message[book[-1]])
        columns = (batch.is_buy, batch.price, batch.size)
        if is_repeat and times[0] == times[1]:
            begins[book[0]] = any((column[book] != column[pairs]).any() for column in columns)


def find_twins(batch: Batch, snapshot: np.ndarray) -> np.ndarray:
    """Return int64 (n,): for each SNAPSHOT row the one before it of the same order or level, or -1.

    A level is a side's price.
    """
    if batch.order_id is None:
        groups = [(snapshot & side, batch.price) for side in (batch.is_buy, ~batch.is_buy)]
    else:
        groups = [(snapshot, batch.order_id)]
    twins = np.full(len(snapshot), -1)
    for chosen, keys in groups:
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(keys[rows], kind="stable")]
        same = keys[rows[1:]] == keys[rows[:-1]]
        twins[rows[1:][same]] = rows[:-1][same]
    return twins


@compiled
def split_snapshots(snapshot, later_times, is_buy, prices, twins, by_level, begins):
    """Set `begins` where another book begins within a run of SNAPSHOT rows (see `number_books`)."""
    book = -1  # first row of the book
    bid, ask = -np.inf, np.inf  # the best of its rows before this time
    bid_now, ask_now = -np.inf, np.inf  # the best of its rows of this time
    for i in range(len(snapshot)):
        if not snapshot[i]:
            book = -1
            continue
        if book < 0:
            book = time = i
            bid, ask = bid_now, ask_now = -np.inf, np.inf
        elif later_times[i]:
            time = i
            bid, ask = max(bid, bid_now), min(ask, ask_now)
            bid_now, ask_now = -np.inf, np.inf
        crosses = by_level and -np.inf < bid < ask < np.inf
        if crosses:
            crosses = prices[i] >= ask if is_buy[i] else prices[i] <= bid
        if twins[i] >= book or crosses:
            book = time if twins[i] < time and time > book else i
            begins[book] = True
            bid, ask = -np.inf, np.inf
            if book == i:
                time = i
                bid_now, ask_now = -np.inf, np.inf
        if is_buy[i]:
            bid_now = max(bid_now, prices[i])
        else:
            ask_now = min(ask_now, prices[i])


def find_open_book(batch: Batch, begins: np.ndarray) -> int:
    """Return the first row of the snapshot that a batch ends with; its length if there is none."""
    kinds = batch.update_type
    if kinds[-1] != SNAPSHOT:
        return len(kinds)
    begins_run = np.append(True, kinds[:-1] != SNAPSHOT)
    return int(np.flatnonzero((kinds == SNAPSHOT) & (begins | begins_run))[-1])


def renumber(batch: Batch, begins: np.ndarray, number: int) -> Batch:
    """Return a batch with new message numbers, which go on from `number`, and its books' times."""
    times = batch.time_ns.copy()
    put_latest_times(batch.update_type == SNAPSHOT, begins, times)
    return batch._replace(message=number + np.cumsum(begins), time_ns=times)


@compiled
def put_latest_times(snapshot, begins, times):
    """Give the SNAPSHOT rows of a book the latest of their times."""
    i = 0
    while i < len(snapshot):
        first = i
        i += 1
        if not snapshot[first]:
            continue
        latest = times[first]
        while i < len(snapshot) and snapshot[i] and not begins[i]:
            latest = max(latest, times[i])
            i += 1
        times[first:i] = latest


def join(first: Batch, second: Batch) -> Batch:
    """Return two batches of a file, of which the second follows the first, as one."""
    arrays: dict[str, Any] = {}
    for name in ARRAYS:
        parts = [getattr(batch, name) for batch in (first, second)]
        arrays[name] = None if parts[0] is None else np.concatenate(parts)
    skipped = Counter(first.skipped or {}) + Counter(second.skipped or {})
    return first._replace(file_bytes=second.file_bytes, skipped=dict(skipped), **arrays)


def take_rows(batch: Batch, begin: int, end: int) -> Batch:
    """Return some rows of a batch; what the reader passed by is told with the first ones."""
    arrays: dict[str, Any] = {}
    for name in ARRAYS:
        array = getattr(batch, name)
        arrays[name] = None if array is None else array[begin:end]
    skipped = None if begin else batch.skipped
    return batch._replace(first_row=batch.first_row + begin, skipped=skipped, **arrays)
