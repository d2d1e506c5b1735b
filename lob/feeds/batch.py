"""What a reader of recorded exchange files yields, and how it becomes known.

Adding an exchange takes one file with one function in it, decorated with `@feed(recognise)`. The
function is called with a pair's files in path order, and yields `Batch`es in file order. Everything
after it (ticks, lots, book, states) is the same for all feeds.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lob.config import InputError
from lob.feeds.recordings import read_head

# Update types: `lob/book/order_book.py` says what each does to the book.
ADD, SUB, MATCH, SET, DELETE, SNAPSHOT, GAP = range(7)
# Order id of a MATCH row that tells a trade and changes no order; no exchange counts this far.
NO_ORDER = -0x5555555555555555

# A number below the first limit is a time in seconds, one below the second in ms, and so on.
UNIT_LIMITS = np.array([1e11, 1e14, 1e17])
UNIT_NS = (10**9, 10**6, 10**3, 1)
NO_TIME = np.iinfo(np.int64).min
ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?")


# How files begin that are not read, though a recording may be in them.
UNREAD = {
    b"\xfd7zXZ\0": "packed as xz",
    b"BZh": "packed as bzip2",
    b"\x04\x22\x4d\x18": "packed as lz4",
    b"7z\xbc\xaf\x27\x1c": "packed as 7z",
    b"Rar!": "packed as rar",
    b"PK\x05\x06": "a zip archive without members",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xfe": "a text in UTF-16",
    b"\xfe\xff": "a text in UTF-16",
    b"\x1f\x8b": "packed twice",
    b"\x28\xb5\x2f\xfd": "packed twice",
    b"PK\x03\x04": "packed twice",
}
TAR = slice(257, 262), b"ustar"


class Batch(NamedTuple):
    """Consecutive update rows, as arrays of one length. There may be none.

    A *message* is a run of rows with one `message` number: after its last row the book is a state.
    A message may go on in the next batch.

    A SNAPSHOT row begins a new whole book if it follows a row of another type or of another
    message. So two snapshots in a row are two states, each with a number of its own, and a snapshot
    whose rows carry a time each is one book if its rows share a number. A whole book without levels
    is a SNAPSHOT row of size 0. Where a recording does not say what belongs to one snapshot,
    `lob.feeds.snapshots.number_books` tells it from the rows.

    A GAP row, a message of its own, says that updates are missing: it empties the book and ends the
    segment (a run of states without a gap). The rows between it and the next SNAPSHOT row are no
    book: they are skipped, and counted in rows_before_snapshot.

    Whatever a reader passes by, it counts in `skipped`: messages delivered twice, lines that are no
    updates of the book, checksums that differ. A name says what was counted ("messages_repeated").
    The sums stand in meta.json's counters, and are printed if they are not 0. What was passed by
    after the last row of a file comes in a batch without rows (`count_only`).
    """

    time_ns: np.ndarray  # int64, ns since the epoch, exchange time where the feed has it
    message: np.ndarray  # int64, non-decreasing
    update_type: np.ndarray  # uint8
    is_buy: np.ndarray  # bool
    price: np.ndarray  # float64, in the quote currency, correctly rounded from the text
    size: np.ndarray  # float64, in the base currency; SET, SNAPSHOT: the new size, else the change
    order_id: np.ndarray | None  # int64 where the feed is order by order, else None
    file: str  # for error messages
    first_row: int  # number of the batch's first row in the file, for error messages
    file_bytes: int  # how much of the (compressed) file has been read, for progress and forecast
    lines: np.ndarray | None = None  # int64, each row's line in the file, if a line is not one row
    unit: str = "line"  # what `lines` counts
    skipped: dict[str, int] | None = None  # what was passed by since the batch before, by name

    def locate(self, row: int) -> str:
        """Return the file and the row or line in it of a row of the batch, for error messages."""
        if self.lines is not None:
            return f"{self.file}, {self.unit} {self.lines[row]}"
        return f"{self.file}, row {self.first_row + row}"


def count_only(file: Path, file_bytes: int, skipped: dict[str, int]) -> Batch:
    """Return a batch without rows, which tells what was passed by."""
    whole = np.empty(0, np.int64)
    number = np.empty(0, np.float64)
    return Batch(
        time_ns=whole,
        message=whole,
        update_type=np.empty(0, np.uint8),
        is_buy=np.empty(0, bool),
        price=number,
        size=number,
        order_id=None,
        file=str(file),
        first_row=0,
        file_bytes=file_bytes,
        lines=whole,
        skipped=skipped,
    )


Reader = Callable[..., Iterator[Batch]]  # of a pair's files, and of a symbol if it takes one


class Feed(NamedTuple):
    """How to read the files of a feed, and what can be seen from a file's first bytes."""

    recognise: Callable[[bytes], bool]  # whether a file is of this feed
    read: Reader
    opens_whole: Callable[[bytes], bool]  # whether a file opens with a whole book
    needs_snapshot: bool  # whether there is no book before the first snapshot
    find_symbol: Callable[[bytes], str]  # the instrument, "" if the file's head does not tell


FEEDS: dict[str, Feed] = {}


def feed(
    recognise: Callable[[bytes], bool],
    opens_whole: Callable[[bytes], bool] = lambda head: False,
    needs_snapshot: bool = False,
    by_symbol: bool = False,
    find_symbol: Callable[[bytes], str] = lambda head: "",
) -> Callable[[Reader], Reader]:
    """Make the function `read_<name>` known as the reader of feed <name>.

    The first two arguments are called with a file's head: its first 64 KiB, decompressed. A file
    that opens with a whole book (a snapshot) may be parsed apart from the files before it; a feed
    that sends GAP rows has no such files.

    Rows before the first snapshot are skipped and counted (rows_before_snapshot). Without any
    snapshot the book begins empty, as at the opening of a market, if `needs_snapshot` is False. If
    it is True, as of a feed that always sends a snapshot first, the recording is refused.

    A reader of files that may hold several instruments takes, `by_symbol`, the one to read as its
    second argument (None: the only one). `find_symbol` tells a file's instrument from its head.

    The reader then checks each batch: it raises InputError, with file and row, if a price or size
    is missing or not finite, if a size is negative, or if a time lies before 1970.
    """

    def register(reader: Reader) -> Reader:
        @functools.wraps(reader)
        def read(files: list[Path], symbol: str | None = None) -> Iterator[Batch]:
            if symbol is not None and not by_symbol:
                raise InputError(
                    f"symbol = {symbol!r}: files of feed {name} name no instruments, leave it out"
                )
            for batch in reader(files, symbol) if by_symbol else reader(files):
                check_numbers(batch)
                check_times(batch)
                yield batch

        name = reader.__name__.removeprefix("read_")
        FEEDS[name] = Feed(recognise, read, opens_whole, needs_snapshot, find_symbol)
        return read

    return register


def check_times(batch: Batch) -> None:
    """Raise InputError, with the row, if a time lies before 1970, as NO_TIME does."""
    if len(batch.time_ns) and batch.time_ns.min() < 0:
        row = int(np.argmax(batch.time_ns < 0))
        raise InputError(
            f"{batch.locate(row)}: its time does not lie between the years 1970 and 2262: mend or "
            "drop the row"
        )


def check_numbers(batch: Batch) -> None:
    bad = ~(np.isfinite(batch.price) & np.isfinite(batch.size) & (batch.size >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{batch.locate(row)}: price {batch.price[row]} and size {batch.size[row]} must be "
            "numbers, the size not negative: mend or drop the row"
        )


def find_parts(feed_name: str, files: list[Path], symbol: str | None = None) -> list[list[Path]]:
    """Divide a pair's files into parts: each file that opens with a whole book begins a new one.

    Raises InputError if a file is empty, or if no symbol is chosen and the files are of several
    instruments.
    """
    feed = FEEDS[feed_name]
    heads = [read_whole_head(file) for file in files]
    symbols = {feed.find_symbol(head) for head in heads} - {""}
    if symbol is None:
        check_one_symbol(files[0].parent, symbols)
    parts = [files[:1]]
    for file, head in zip(files[1:], heads[1:], strict=True):
        # A file of several instruments may open with the book of another one.
        if feed.opens_whole(head) and symbol in (None, feed.find_symbol(head)):
            parts.append([file])
        else:
            parts[-1].append(file)
    return parts


def check_one_symbol(folder: Path, symbols: set[str]) -> None:
    """Raise InputError if the files of a pair's folder are of several instruments."""
    if len(symbols) > 1:
        raise InputError(
            f"{folder} holds files of {', '.join(sorted(symbols))}: a pair's folder takes one "
            "symbol"
        )


def find_delimiter(header: str) -> str:
    """Return what stands between the columns of a CSV file."""
    return ";" if ";" in header else ","


def first_row(head: bytes) -> tuple[str, dict[str, str]]:
    """Return the header line of a CSV file, and its first row as a dict of texts by column."""
    lines = f"{head.decode(errors='replace')}\n\n".split("\n")
    header, row = (line.strip().replace('"', "") for line in lines[:2])
    delimiter = find_delimiter(header)
    return header, dict(zip(header.split(delimiter), row.split(delimiter), strict=False))


def find_feed(file: Path) -> str:
    """Return the name of a file's feed. Raises InputError if no reader recognises the file."""
    head = read_whole_head(file)
    for name, known in FEEDS.items():
        if known.recognise(head):
            return name
    first = head.split(b"\n", 1)[0][:120].decode(errors="replace")
    raise InputError(
        f"{file} is of no known feed ({', '.join(FEEDS)}); it begins with {first!r}: see "
        "training_data/README.md for the formats, or force one with --feed"
    )


def read_whole_head(file: Path) -> bytes:
    """Return a file's head. Raises InputError if the file is empty, or of a kind in UNREAD."""
    head = read_head(file)
    if not head:
        raise InputError(f"{file} is empty: remove it or fetch it again")
    place, magic = TAR
    kinds = [kind for magic, kind in UNREAD.items() if head.startswith(magic)]
    if kinds or head[place] == magic:
        raise InputError(
            f"{file} is {[*kinds, 'a tar archive'][0]}: unpack it, or write it again, as gzip, "
            "zstd, zip or plain UTF-8"
        )
    return head


def find_changes(keys: np.ndarray, before: Any) -> np.ndarray:
    """Return bool (n,): whether each key differs from the one before it.

    `before` is the key before the first one. If there is none (None), the first one differs.
    """
    return np.append(before is None or keys[0] != before, keys[1:] != keys[:-1])


def iso_to_ns(text: str) -> int:
    """Return an ISO date or time without an offset as ns since the epoch.

    Raises ValueError if it is none, or if it lies beyond the year 2261: numpy would turn it into a
    time of another century.
    """
    if not ISO.fullmatch(text):
        raise ValueError(f"{text!r} is no date, and no time without an offset")
    if not 1678 <= int(text[:4]) <= 2261:
        raise ValueError(f"{text!r} does not lie between the years 1678 and 2261")
    return int(np.datetime64(text, "ns").astype(np.int64))


def to_ns(times: np.ndarray) -> np.ndarray:
    """Return times since the epoch as int64 ns.

    Each may be in s, ms, us or ns: its magnitude tells. Fractions are rounded to a microsecond,
    because float64 holds no more of a present-day time. A time beyond the year 2262 becomes
    NO_TIME.
    """
    if len(times) == 0:
        return np.empty(0, np.int64)
    size = np.abs(times)
    if size.dtype.kind == "i":  # -2^63 has no absolute value of its own type
        size = size.view(f"u{size.itemsize}")
    first_unit, last_unit = np.searchsorted(UNIT_LIMITS, [size.min(), size.max()], side="right")
    if first_unit == last_unit:  # nearly always
        return in_unit_to_ns(times, size, first_unit)
    units = np.searchsorted(UNIT_LIMITS, size, side="right")
    result = np.empty(len(times), np.int64)
    for unit in range(first_unit, last_unit + 1):
        chosen = units == unit
        result[chosen] = in_unit_to_ns(times[chosen], size[chosen], unit)
    return result


def in_unit_to_ns(times: np.ndarray, size: np.ndarray, unit: int) -> np.ndarray:
    """Return times of one unit (a place in UNIT_NS), whose absolute values are `size`, as ns."""
    unit_ns = UNIT_NS[unit]
    too_large = size > np.iinfo(np.int64).max // unit_ns
    if too_large.any():
        times = np.where(too_large, 0, times)
    if times.dtype.kind == "f":
        whole_us = np.rint(times * (unit_ns / 1000)) if unit_ns >= 1000 else times
        result = whole_us.astype(np.int64) * min(unit_ns, 1000)
    else:
        result = times.astype(np.int64) * unit_ns
    if too_large.any():
        result[too_large] = NO_TIME
    return result


def map_words(
    column: pa.DictionaryArray, words: dict[str, int], name: str, file: Path, first_row: int
) -> np.ndarray:
    """Return uint8 (n,): the number that `words` gives for each text of a dictionary column.

    Raises InputError, with file and row, if a text is not in `words`.
    """
    texts = column.dictionary.to_pylist()
    codes = column.indices.to_numpy(zero_copy_only=False)
    numbers = np.array([words.get(text.strip(), 255) for text in texts], dtype=np.uint8)
    result = numbers[codes]
    if 255 in numbers:
        bad = int(np.argmax(result == 255))
        raise InputError(
            f"{file}, row {first_row + bad}: unknown {name} {texts[codes[bad]]!r}; known: "
            f"{', '.join(words)}"
        )
    return result


def to_float(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)
