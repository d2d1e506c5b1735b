"""Readers of recorded exchange files: each turns one feed's files into batches of update rows.

Adding an exchange takes one function here: decorate it with `@feed(recognise)`, where `recognise(head)` tells from the
first 64 KiB (decompressed) whether a file is of this feed; it is called with the pair's files in path order and yields
`Batch`es in file order. Everything after it (ticks, lots, book, states) is the same for all feeds.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lob.config import InputError
from lob.feeds.recordings import read_head

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
    file_bytes: int  # how much of the (compressed) file has been read, for progress and forecast
    lines: np.ndarray | None = None  # int64, the file's line of each row, where that is not its row

    def locate(self, row: int) -> str:
        """Where in which file a row of the batch stands, for error messages."""
        if self.lines is not None:
            return f"{self.file}, line {self.lines[row]}"
        return f"{self.file}, row {self.first_row + row}"


Reader = Callable[[list[Path]], Iterator[Batch]]


class Feed(NamedTuple):
    recognise: Callable[[bytes], bool]  # whether a file is of this feed, by its head: the first 64 KiB, decompressed
    read: Reader
    opening: Callable[[bytes], str | None] | None  # the kind of snapshot that a file opens with; None: with none


FEEDS: dict[str, Feed] = {}


def feed(
    recognise: Callable[[bytes], bool], opening: Callable[[bytes], str | None] | None = None
) -> Callable[[Reader], Reader]:
    """Make `read_<name>` known as feed <name>; files whose `opening` is alike may be parsed side by side.

    InputError naming file and row where a price or size is missing or not finite, or a size negative.
    """

    def register(reader: Reader) -> Reader:
        @functools.wraps(reader)
        def read(files: list[Path]) -> Iterator[Batch]:
            for batch in reader(files):
                bad = ~(np.isfinite(batch.price) & np.isfinite(batch.size) & (batch.size >= 0))
                if bad.any():
                    row = int(np.argmax(bad))
                    raise InputError(f"{batch.locate(row)}: price {batch.price[row]} and size {batch.size[row]} must "
                                     "be numbers, the size not negative: mend or drop the row")  # fmt: skip
                yield batch

        FEEDS[reader.__name__.removeprefix("read_")] = Feed(recognise, read, opening)
        return read

    return register


def first_row(head: bytes) -> tuple[str, dict[str, str]]:
    """Return the header and the first row by column of a CSV file's head."""
    header, row, *_ = (line.strip().replace('"', "") for line in f"{head.decode(errors='replace')}\n\n".split("\n"))
    delimiter = ";" if ";" in header else ","
    return header, dict(zip(header.split(delimiter), row.split(delimiter), strict=False))


def find_feed(file: Path) -> str:
    """Name the feed of a file by its first 64 KiB; InputError where no reader knows it."""
    head = read_head(file)
    if not head:
        raise InputError(f"{file} is empty: remove it or fetch it again")
    for name, known in FEEDS.items():
        if known.recognise(head):
            return name
    first = head.split(b"\n", 1)[0][:120].decode(errors="replace")
    raise InputError(f"{file} is of no known feed ({', '.join(FEEDS)}); it begins with {first!r}: see "
                     "training_data/README.md for the formats, or force one with --feed")  # fmt: skip


def find_changes(keys: np.ndarray, before: Any) -> np.ndarray:
    """Return bool (n,): where a key differs from the one before it, the first from `before` (None: from nothing)."""
    return np.append(before is None or keys[0] != before, keys[1:] != keys[:-1])


def to_ns(times: np.ndarray) -> np.ndarray:
    """Return int64 ns of times in s, ms, us or ns since the epoch, told by the first one's magnitude.

    Fractions are rounded to a microsecond: float64 holds no more of a present-day time.
    """
    per_us = next((unit for limit, unit in ((1e11, 10**6), (1e14, 10**3), (1e17, 1)) if abs(times[0]) < limit), None)
    return times.astype(np.int64) if per_us is None else np.rint(times * per_us).astype(np.int64) * 1000


def map_words(column: pa.DictionaryArray, words: dict[str, int], name: str, file: Path, first_row: int) -> np.ndarray:
    """Return uint8 (n,): the numbers that `words` gives a dictionary column's texts; InputError for another text."""
    texts = column.dictionary.to_pylist()
    codes = column.indices.to_numpy(zero_copy_only=False)
    numbers = np.array([words.get(text, 255) for text in texts], dtype=np.uint8)
    result = numbers[codes]
    if 255 in numbers:
        bad = int(np.argmax(result == 255))
        raise InputError(f"{file}, row {first_row + bad}: unknown {name} {texts[codes[bad]]!r}; known: "
                         f"{', '.join(words)}")  # fmt: skip
    return result


def to_float(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)
