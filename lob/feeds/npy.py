"""Updates in NumPy arrays (N, 5), a row for each update."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lob.config import InputError
from lob.feeds.batch import GAP, Batch, feed, find_changes, to_ns
from lob.feeds.recordings import read_npy_chunks
from lob.feeds.snapshots import number_books


@feed(lambda head: head.startswith(b"\x93NUMPY") and b"'exch_ts'" not in head[:1024])
def read_npy(files: list[Path]) -> Iterator[Batch]:
    """Read NumPy arrays (N, 5): time (s, ms, us or ns), update type, is_buy, price, size.

    The magnitude of each time tells its unit. The types are ADD 0, SUB 1, MATCH 2, SET 3, DELETE 4
    and SNAPSHOT 5. All consecutive rows of one time are one message, but for SNAPSHOT rows (see
    `number_books`). Error messages count rows from 0.
    """
    return number_books(read_times(files))


def read_times(files: list[Path]) -> Iterator[Batch]:
    """Yield the rows of the arrays, with one message for each time."""
    message, last_time = 0, None
    for file in files:
        row = 0
        for rows, file_bytes in read_npy_chunks(file):
            time, kinds, is_buy, price, size = rows.T
            bad = ~(np.isfinite(time) & np.isin(kinds, range(GAP)) & np.isin(is_buy, (0, 1)))
            if bad.any():
                first = int(np.argmax(bad))
                raise InputError(
                    f"{file}, row {row + first}: {rows[first].tolist()} is no time, update type "
                    "(0 to 5), is_buy (0 or 1), price and size: mend or drop the row"
                )
            time_ns = to_ns(time)
            messages = message + np.cumsum(find_changes(time_ns, last_time))
            message, last_time = int(messages[-1]), time_ns[-1]
            yield Batch(
                time_ns=time_ns,
                message=messages,
                update_type=kinds.astype(np.uint8),
                is_buy=is_buy == 1,
                price=price.astype(np.float64),
                size=size.astype(np.float64),
                order_id=None,
                file=str(file),
                first_row=row,
                file_bytes=file_bytes,
            )
            row += len(rows)
