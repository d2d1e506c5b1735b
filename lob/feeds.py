"""Readers of recorded exchange files: each turns one feed's files into batches of update rows.

Adding an exchange takes one function here: decorate it with `@feed(recognise)`, where `recognise(head)` tells from the
first 64 KiB (decompressed) whether a file is of this feed; it is called with the pair's files in name order and yields
`Batch`es in file order. Everything after it (ticks, lots, book, states) is the same for all feeds.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ADD, SUB, MATCH, SET, DELETE, SNAPSHOT, GAP = range(7)  # update types; GAP (a row of its own): continuity was lost


class Batch(NamedTuple):
    """Consecutive update rows, as arrays of one length.

    A *message* is a run of rows with one `message` number: after its last row the book is a state. A message may go on
    in the next batch. A SNAPSHOT row that follows a row of another type or another message's row replaces the book.
    Rows of type GAP end the segment and empty the book.
    """

    time_ns: np.ndarray  # int64, ns since the epoch, exchange time where the feed has it
    message: np.ndarray  # int64, non-decreasing
    update_type: np.ndarray  # uint8
    is_buy: np.ndarray  # bool
    price: np.ndarray  # float64, in the quote currency, correctly rounded from the text
    size: np.ndarray  # float64, in the base currency; of a SET or SNAPSHOT the new size, else the change
    order_id: np.ndarray | None  # int64 where the feed is order by order, else None
    file: str  # the file and the number of its first row in this batch, for error messages
    first_row: int


Reader = Callable[[list[Path]], Iterator[Batch]]
FEEDS: dict[str, tuple[Callable[[bytes], bool], Reader]] = {}  # name -> recognise(head), reader


def feed(recognise: Callable[[bytes], bool]) -> Callable[[Reader], Reader]:
    """Make `read_<name>` known as feed <name>."""

    def register(reader: Reader) -> Reader:
        FEEDS[reader.__name__.removeprefix("read_")] = (recognise, reader)
        return reader

    return register
