"""Readers of recorded exchange files: each turns one feed's files into batches of update rows.

Adding an exchange takes one function here: decorate it with `@feed(recognise)`, where `recognise(head)` tells from the
first 64 KiB (decompressed) whether a file is of this feed; it is called with the pair's files in name order and yields
`Batch`es in file order. Everything after it (ticks, lots, book, states) is the same for all feeds.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from lob.config import InputError

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


Reader = Callable[[list[Path]], Iterator[Batch]]
FEEDS: dict[str, tuple[Callable[[bytes], bool], Reader]] = {}  # name -> recognise(head), reader


def feed(recognise: Callable[[bytes], bool]) -> Callable[[Reader], Reader]:
    """Make `read_<name>` known as feed <name>."""

    def register(reader: Reader) -> Reader:
        FEEDS[reader.__name__.removeprefix("read_")] = (recognise, reader)
        return reader

    return register


def find_feed(file: Path) -> str:
    """Name the feed of a file by its first 64 KiB; InputError where no reader knows it."""
    with open_decompressed(file) as (handle, _):
        head = read_head(handle, file)
    if not head:
        raise InputError(f"{file} is empty: remove it or fetch it again")
    for name, (recognise, _) in FEEDS.items():
        if recognise(head):
            return name
    first = head.split(b"\n", 1)[0][:120].decode(errors="replace")
    raise InputError(f"{file} is of no known feed ({', '.join(FEEDS)}); it begins with {first!r}: see "
                     "training_data/README.md for the formats, or force one with --feed")  # fmt: skip


@contextlib.contextmanager
def open_decompressed(file: Path) -> Iterator[tuple[pa.NativeFile, pa.NativeFile]]:
    """Open a gzip, zstd or plain file by its first bytes: the decompressed stream and the file below it."""
    with pa.OSFile(str(file)) as raw:
        magic = raw.read(4)
        raw.seek(0)
        codec = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(magic[:2])
        if codec is None:
            yield raw, raw
        else:
            with pa.CompressedInputStream(raw, codec) as stream:
                yield stream, raw


def read_head(handle: pa.NativeFile, file: Path, size: int = 1 << 16) -> bytes:
    try:
        return handle.read(size)
    except OSError as error:
        raise InputError(f"{file} cannot be decompressed ({error}): fetch it again") from None


# ---------------------------------------------------------------------------------------------- CoinAPI limitbook_full

COINAPI_COLUMNS = ("time_exchange", "update_type", "is_buy", "entry_px", "entry_sx")
COINAPI_TYPES = {"ADD": ADD, "SUB": SUB, "MATCH": MATCH, "SET": SET, "DELETE": DELETE, "SNAPSHOT": SNAPSHOT}
DAY_NS = 86_400 * 10**9


def is_coinapi(head: bytes) -> bool:
    return head.startswith((b"time_exchange", b'"time_exchange')) or b"update_type" in head.split(b"\n", 1)[0]


@feed(is_coinapi)
def read_coinapi(files: list[Path]) -> Iterator[Batch]:
    """CoinAPI flat files `limitbook_full`: `;` or `,` between columns named in the header, in any order.

    With a column order_id the feed is order by order, without it by level. `time_exchange` is a full date-time or a
    time of day with the date (YYYYMMDD or YYYY-MM-DD) in the file's path; an opening snapshot stamped later in the day
    than the row after it belongs to the day before. All consecutive rows of one time_exchange are one message.
    """
    message, last_time = 0, None
    for file in files:
        for batch in read_coinapi_file(file):
            new = np.empty(len(batch.time_ns), dtype=bool)
            new[0] = last_time is None or batch.time_ns[0] != last_time
            np.not_equal(batch.time_ns[1:], batch.time_ns[:-1], out=new[1:])
            messages = message + np.cumsum(new)
            message, last_time = int(messages[-1]), batch.time_ns[-1]
            yield batch._replace(message=messages)


def read_coinapi_file(file: Path) -> Iterator[Batch]:
    """Yield one file's rows, message numbers left zero."""
    with open_decompressed(file) as (handle, _):
        head = read_head(handle, file)
    if b"\n" not in head:
        raise InputError(f"{file} holds no rows: remove it or fetch it again")
    header = head.split(b"\n", 1)[0].strip().decode(errors="replace").replace('"', "")
    delimiter = ";" if ";" in header else ","
    names = header.split(delimiter)
    missing = [name for name in COINAPI_COLUMNS if name not in names]
    if missing:
        raise InputError(f"{file}: the header lacks {', '.join(missing)}; it is {header!r}")
    first = dict(zip(names, head.split(b"\n")[1].decode(errors="replace").strip().split(delimiter), strict=False))
    by_time = ":" in first.get("time_exchange", "")[:3]
    types: dict[str, pa.DataType] = {"entry_px": pa.float64(), "entry_sx": pa.float64(), "is_buy": pa.string()}
    types["time_exchange"] = pa.time64("ns") if by_time else pa.timestamp("ns")
    if first.get("time_exchange", "").endswith("Z"):
        types["time_exchange"] = pa.timestamp("ns", "UTC")
    types["update_type"] = types["is_buy"] = pa.dictionary(pa.int32(), pa.string())
    wanted = list(COINAPI_COLUMNS)
    if "order_id" in names:
        types["order_id"] = pa.int64() if first.get("order_id", "").strip('"').isdigit() else pa.string()
        wanted.append("order_id")
    options = csv.ConvertOptions(column_types=types, include_columns=wanted, strings_can_be_null=False)
    yield from coinapi_batches(file, delimiter, options, path_date_ns(file) if by_time else 0)


def coinapi_batches(file: Path, delimiter: str, options: csv.ConvertOptions, date_ns: int) -> Iterator[Batch]:
    row, opening = 1, True  # the header is row 0
    try:
        with open_decompressed(file) as (handle, raw):
            reader = csv.open_csv(
                handle, csv.ReadOptions(block_size=1 << 23), csv.ParseOptions(delimiter=delimiter), options
            )
            for table in reader:
                if len(table) == 0:
                    continue
                column = {name: table.column(name) for name in table.schema.names}
                kinds = map_words(column["update_type"], COINAPI_TYPES, "update_type", file, row)
                time_ns = column["time_exchange"].cast(pa.int64()).to_numpy() + date_ns
                if date_ns and opening:
                    time_ns = stamp_opening(time_ns, kinds)
                opening = False
                ids = column.get("order_id")
                batch = Batch(
                    time_ns, np.zeros(len(table), np.int64), kinds,
                    map_words(column["is_buy"], BOOLEANS, "is_buy", file, row) == 1,
                    to_float(column["entry_px"]), to_float(column["entry_sx"]),
                    None if ids is None else to_order_ids(ids), str(file), row, raw.tell(),
                )  # fmt: skip
                check_sizes(batch)
                yield batch
                row += len(table)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: {find_bad_row(file, delimiter, row, str(error))}") from None
    except OSError as error:
        raise InputError(f"{file}, after row {row - 1}: cannot be decompressed ({error}): fetch it again") from None
    if row == 1:
        raise InputError(f"{file} holds no rows: remove it or fetch it again")


BOOLEANS = {"1": 1, "0": 0, "true": 1, "false": 0, "True": 1, "False": 0, "TRUE": 1, "FALSE": 0}


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


def to_order_ids(column: pa.Array) -> np.ndarray:
    """Order ids as int64: numbers as they are, texts (UUIDs) by a 64-bit hash."""
    if column.type == pa.int64():
        return column.to_numpy(zero_copy_only=False)
    return pd.util.hash_array(column.to_numpy(zero_copy_only=False)).view(np.int64)


def check_sizes(batch: Batch) -> None:
    """InputError naming file and row where a price or size is missing or not finite, or a size negative."""
    bad = ~(np.isfinite(batch.price) & np.isfinite(batch.size) & (batch.size >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{batch.file}, row {batch.first_row + row}: price {batch.price[row]} and size "
                         f"{batch.size[row]} must be numbers, the size not negative: mend or drop the row")  # fmt: skip


def stamp_opening(time_ns: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Move an opening snapshot that is stamped later in the day than the row after it to the day before."""
    opening = int(np.argmax(kinds != SNAPSHOT)) if (kinds != SNAPSHOT).any() else len(kinds)
    if 0 < opening < len(kinds) and time_ns[opening - 1] > time_ns[opening]:
        time_ns = time_ns.copy()
        time_ns[:opening] -= DAY_NS
    return time_ns


def path_date_ns(file: Path) -> int:
    """The date in a file's path, in ns since the epoch; InputError where there is none."""
    for part in (file.name, *(parent.name for parent in file.parents)):
        found = re.search(r"(?<!\d)(20\d\d)-?(\d\d)-?(\d\d)(?!\d)", part)
        if found:
            return int(np.datetime64("-".join(found.groups()), "ns").astype(np.int64))
    raise InputError(f"{file}: time_exchange is a time of day and the path holds no date: put YYYYMMDD in its name")


def find_bad_row(file: Path, delimiter: str, first_row: int, error: str) -> str:
    """Name the first row from `first_row` on whose price or size is no number, or repeat pyarrow's error."""
    with contextlib.suppress(OSError, EOFError), open_decompressed(file) as (handle, _):
        lines = io.TextIOWrapper(handle, errors="replace")
        names = next(lines).strip().replace('"', "").split(delimiter)
        for number, line in enumerate(lines, 1):
            cells = line.rstrip("\n").replace('"', "").split(delimiter)
            if number >= first_row and len(cells) != len(names):
                return f"row {number} has {len(cells)} columns, the header {len(names)}: {line.strip()[:100]!r}"
            if number < first_row:
                continue
            row = dict(zip(names, cells, strict=True))
            for name in ("entry_px", "entry_sx"):
                try:
                    float(row[name])
                except ValueError:
                    return f"row {number}: {name} {row[name]!r} is not a number: mend or drop the row"
    return f"after row {first_row - 1}: {error.splitlines()[0]}"
