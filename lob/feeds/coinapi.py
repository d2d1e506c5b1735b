"""CoinAPI's flat files `limitbook_full`."""

import contextlib
import io
import re
from collections.abc import Iterator
from csv import DictReader
from csv import Error as DictError
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from lob.config import InputError
from lob.feeds.batch import (
    ADD,
    DELETE,
    MATCH,
    SET,
    SNAPSHOT,
    SUB,
    Batch,
    check_one_symbol,
    feed,
    find_changes,
    find_delimiter,
    first_row,
    map_words,
    to_float,
    to_ns,
)
from lob.feeds.path_dates import DAY_NS, DayClock
from lob.feeds.recordings import open_decompressed, read_csv, read_head
from lob.feeds.snapshots import number_books
from lob.feeds.text_times import parse_time, texts_to_ns

COINAPI_COLUMNS = ("time_exchange", "update_type", "is_buy", "entry_px", "entry_sx")
COINAPI_TYPES = {
    "ADD": ADD,
    "SUB": SUB,
    "MATCH": MATCH,
    "SET": SET,
    "DELETE": DELETE,
    "SNAPSHOT": SNAPSHOT,
}
BOOLEANS = {"1": 1, "0": 0, "true": 1, "false": 0, "True": 1, "False": 0, "TRUE": 1, "FALSE": 0}
# The forms of time_exchange that pyarrow reads at once, if all rows are as the first one is.
FAST_TIMES = {
    r"\d+": pa.int64(),
    r"\d\d:.*": pa.time64("ns"),
    r"\d{4}-.*(Z|[T ].*[+-]\d\d(:?\d\d)?)": pa.timestamp("ns", "UTC"),
    r"\d{4}-.*": pa.timestamp("ns"),
}
SYMBOL = re.compile(r"(?:^|\+)SC-([^+.]+)")  # in the names of CoinAPI's files
WHOLE_NUMBER = r"^-?\d+(\.0*)?$"


def is_coinapi(head: bytes) -> bool:
    return (
        head.startswith((b"time_exchange", b'"time_exchange'))
        or b"update_type" in head.split(b"\n", 1)[0]
    )


def opens_with_snapshot(head: bytes) -> bool:
    _, row = first_row(head)
    return row.get("update_type") == "SNAPSHOT"


@feed(is_coinapi, opens_with_snapshot)
def read_coinapi(files: list[Path]) -> Iterator[Batch]:
    """Read CoinAPI's flat files `limitbook_full`: CSV with `;` or `,` between the columns.

    The header names the columns, which come in any order. With order ids the feed is order by
    order. Without a column order_id, or if it is empty in a file's first row, the feed is by level;
    one pair's files are of one kind. `time_exchange` is a full date-time (UTC, or with an offset
    such as +08:00), a number (s, ms, us or ns since the epoch), or a time of day if the file's path
    holds the date (`find_date` and `DayClock` say how it is dated). All consecutive rows of one
    time_exchange are one message, but for SNAPSHOT rows (see `number_books`).
    """
    return number_books(read_times(files))


def read_times(files: list[Path]) -> Iterator[Batch]:
    """Yield the rows of CoinAPI's files, with one message for each time."""
    message, last_time = 0, None
    symbols = {symbol for file in files for symbol in SYMBOL.findall(file.name)}
    check_one_symbol(files[0].parent, symbols)
    layouts = [coinapi_layout(file) for file in files]
    by_order = [layout.by_order for layout in layouts]
    if len(set(by_order)) > 1:
        having, lacking = files[by_order.index(True)], files[by_order.index(False)]
        raise InputError(
            f"{having} has order ids, {lacking} has none: a pair's files are of one kind"
        )
    for file, layout in zip(files, layouts, strict=True):
        blocks = read_csv(file, layout.delimiter, layout.options, layout.as_text)
        for row, column, file_bytes in blocks:
            kinds = map_words(column["update_type"], COINAPI_TYPES, "update_type", file, row)
            time_ns = to_times(column["time_exchange"], kinds, layout.clock, file, row)
            messages = message + np.cumsum(find_changes(time_ns, last_time))
            message, last_time = int(messages[-1]), time_ns[-1]
            ids = column.get("order_id")
            if ids is not None and not layout.by_order:
                check_no_id(ids, file, row)
                ids = None
            yield Batch(
                time_ns=time_ns,
                message=messages,
                update_type=kinds,
                is_buy=map_words(column["is_buy"], BOOLEANS, "is_buy", file, row) == 1,
                price=to_float(column["entry_px"]),
                size=to_float(column["entry_sx"]),
                order_id=None if ids is None else to_order_ids(ids, file, row),
                file=str(file),
                first_row=row,
                file_bytes=file_bytes,
            )


class Layout(NamedTuple):
    """How a file is read."""

    delimiter: str
    options: csv.ConvertOptions  # times and order ids as in the first row
    as_text: csv.ConvertOptions  # times and order ids as texts, if some are of another form
    clock: DayClock | None  # if the times are times of day
    by_order: bool  # whether the rows have order ids


def coinapi_layout(file: Path) -> Layout:
    """Return how a file is read.

    Raises InputError if a column is missing, or if the times are times of day and the path holds no
    date.
    """
    head = read_head(file)
    if b"\n" not in head:
        raise InputError(f"{file} holds no rows: remove it or fetch it again")
    header, first = first_row(head)
    delimiter = find_delimiter(header)
    names = header.split(delimiter)
    missing = [name for name in COINAPI_COLUMNS if name not in names]
    if missing:
        raise InputError(
            f"{file}: the header lacks {', '.join(missing)}; it is {header!r}: "
            "name the columns so, with ; or , between them"
        )
    text, number = pa.string(), pa.float64()
    words = pa.dictionary(pa.int32(), text)
    types = {"update_type": words, "is_buy": words, "entry_px": number, "entry_sx": number}
    time = first.get("time_exchange", "").strip()
    time_type = next((kind for form, kind in FAST_TIMES.items() if re.fullmatch(form, time)), text)
    typed, as_text = types | {"time_exchange": time_type}, types | {"time_exchange": text}
    order_id = first.get("order_id", "")
    if "order_id" in names:
        typed["order_id"] = pa.uint64() if order_id.isdecimal() else text
        as_text["order_id"] = text
    options, general = (
        csv.ConvertOptions(column_types=chosen, include_columns=list(chosen), null_values=[])
        for chosen in (typed, as_text)
    )
    clock = make_clock(file, delimiter) if time_type == pa.time64("ns") else None
    return Layout(delimiter, options, general, clock, order_id != "")


def make_clock(file: Path, delimiter: str) -> DayClock:
    """Return a file's clock, set by the first row that is no opening SNAPSHOT."""
    first: dict[str, str] = {}
    # A fault in the file is told by whoever reads it whole.
    with contextlib.suppress(OSError, EOFError, DictError), open_decompressed(file) as (handle, _):
        lines = io.TextIOWrapper(handle, "utf-8-sig", errors="replace")
        rows = DictReader(lines, delimiter=delimiter)
        first = next((row for row in rows if row["update_type"] != "SNAPSHOT"), {})
    return DayClock(file, *(to_clock(first.get(f"time_{by}")) for by in ("exchange", "coinapi")))


def to_clock(text: str | None) -> int | None:
    """Return the time of day of a text, in ns; None if it holds none."""
    try:
        return parse_time(text or "")[0] % DAY_NS
    except ValueError:
        return None


def to_times(
    column: pa.Array, kinds: np.ndarray, clock: DayClock | None, file: Path, row: int
) -> np.ndarray:
    """Return a column of times as int64 ns (n,).

    kinds: the rows' update types; row: number of the first row. Raises InputError, with file and
    row, if a text is no time.
    """
    if column.type == pa.int64():
        return to_ns(column.to_numpy())
    if column.type != pa.string():
        times = column.cast(pa.int64()).to_numpy()
        return times if clock is None else clock.date(times, kinds, row)
    times, is_clock = texts_to_ns(column, "time_exchange", clock is not None, file, row)
    if clock is not None:
        times[is_clock] = clock.date(times[is_clock], kinds[is_clock], row)
    return times


def check_no_id(column: pa.Array, file: Path, row: int) -> None:
    """Raise InputError, with the row, if there is an order id though the first row has none."""
    there = pc.not_equal(column, "").to_numpy(zero_copy_only=False)
    if there.any():
        raise InputError(
            f"{file}, row {row + int(np.argmax(there))}: it has an order_id, the first row has "
            "none: give each row one, or empty the column"
        )


def to_order_ids(column: pa.Array, file: Path, row: int) -> np.ndarray:
    """Return order ids as int64 (n,), each the same in whatever column it stands.

    A whole number below 2^64 is itself (from 2^63 on less 2^64), whether or not other ids of the
    column are numbers. Of another text, such as a UUID, it is a 64-bit hash. `row` is the number of
    the first row. Raises InputError, with file and row, if an id is missing.
    """
    if column.type == pa.uint64():
        return column.to_numpy().view(np.int64)
    texts = pc.utf8_trim_whitespace(column)
    words = texts.to_numpy(zero_copy_only=False)
    ids = pd.util.hash_array(words)
    if (missing := words == "").any():
        raise InputError(
            f"{file}, row {row + int(np.argmax(missing))}: the order_id is missing, other rows "
            "have one: mend or drop the row"
        )
    is_number = pc.match_substring_regex(texts, WHOLE_NUMBER).to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(is_number).tolist():
        number = int(words[place].partition(".")[0])
        if abs(number) < 2**64:
            ids[place] = number % 2**64
    return ids.view(np.int64)
