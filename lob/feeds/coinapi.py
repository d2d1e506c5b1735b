"""CoinAPI's flat files `limitbook_full`."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
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
    feed,
    find_changes,
    first_row,
    map_words,
    to_float,
)
from lob.feeds.recordings import read_csv, read_head
from lob.feeds.snapshots import number_books

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
DAY_NS = 86_400 * 10**9


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
    one pair's files are of one kind. `time_exchange` is a full date-time, or a time of day if the
    file's path holds the date (YYYYMMDD or YYYY-MM-DD). An opening snapshot that is stamped later
    in the day than the row after it belongs to the day before. All consecutive rows of one
    time_exchange are one message, but for SNAPSHOT rows (see `number_books`).
    """
    return number_books(read_times(files))


def read_times(files: list[Path]) -> Iterator[Batch]:
    """Yield the rows of CoinAPI's files, with one message for each time."""
    message, last_time = 0, None
    layouts = [coinapi_layout(file) for file in files]
    by_order = ["order_id" in options.column_types for _, options, _ in layouts]
    if len(set(by_order)) > 1:
        having, lacking = files[by_order.index(True)], files[by_order.index(False)]
        raise InputError(
            f"{having} has order ids, {lacking} has none: a pair's files are of one kind"
        )
    for file, (delimiter, options, date_ns) in zip(files, layouts, strict=True):
        for row, column, file_bytes in read_csv(file, delimiter, options):
            kinds = map_words(column["update_type"], COINAPI_TYPES, "update_type", file, row)
            time_ns = column["time_exchange"].cast(pa.int64()).to_numpy() + date_ns
            if date_ns and row == 1:
                time_ns = stamp_opening(time_ns, kinds)
            messages = message + np.cumsum(find_changes(time_ns, last_time))
            message, last_time = int(messages[-1]), time_ns[-1]
            ids = column.get("order_id")
            yield Batch(
                time_ns=time_ns,
                message=messages,
                update_type=kinds,
                is_buy=map_words(column["is_buy"], BOOLEANS, "is_buy", file, row) == 1,
                price=to_float(column["entry_px"]),
                size=to_float(column["entry_sx"]),
                order_id=None if ids is None else to_order_ids(ids),
                file=str(file),
                first_row=row,
                file_bytes=file_bytes,
            )


def coinapi_layout(file: Path) -> tuple[str, csv.ConvertOptions, int]:
    """Return a file's delimiter, how its columns are converted, and the date (ns) of its times.

    The date is 0 if the times are full date-times. Raises InputError if a column is missing.
    """
    head = read_head(file)
    if b"\n" not in head:
        raise InputError(f"{file} holds no rows: remove it or fetch it again")
    header, first = first_row(head)
    delimiter = ";" if ";" in header else ","
    names = header.split(delimiter)
    missing = [name for name in COINAPI_COLUMNS if name not in names]
    if missing:
        raise InputError(
            f"{file}: the header lacks {', '.join(missing)}; it is {header!r}: "
            "name the columns so, with ; or , between them"
        )
    time_of_day = ":" in first.get("time_exchange", "")[:3]
    types: dict[str, pa.DataType] = {"entry_px": pa.float64(), "entry_sx": pa.float64()}
    types["time_exchange"] = pa.time64("ns") if time_of_day else pa.timestamp("ns")
    if first.get("time_exchange", "").endswith("Z"):
        types["time_exchange"] = pa.timestamp("ns", "UTC")
    types["update_type"] = types["is_buy"] = pa.dictionary(pa.int32(), pa.string())
    if first.get("order_id"):
        types["order_id"] = pa.int64() if first["order_id"].isdigit() else pa.string()
    options = csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[])
    return delimiter, options, path_date_ns(file) if time_of_day else 0


def to_order_ids(column: pa.Array) -> np.ndarray:
    """Return order ids as int64: numbers as they are, of texts (UUIDs) a 64-bit hash."""
    if column.type == pa.int64():
        return column.to_numpy(zero_copy_only=False)
    return pd.util.hash_array(column.to_numpy(zero_copy_only=False)).view(np.int64)


def stamp_opening(time_ns: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return the times with an opening snapshot moved to the day before, if it is of that day.

    It is if it is stamped later in the day than the row after it.
    """
    others = np.flatnonzero(kinds != SNAPSHOT)
    opening = int(others[0]) if len(others) else len(kinds)
    if 0 < opening < len(kinds) and time_ns[opening - 1] > time_ns[opening]:
        time_ns = time_ns.copy()
        time_ns[:opening] -= DAY_NS
    return time_ns


def path_date_ns(file: Path) -> int:
    """Return the date in a file's path, in ns since the epoch. Raises InputError without one."""
    for part in reversed(file.parts):
        found = re.search(r"(?<!\d)(20\d\d)-?(\d\d)-?(\d\d)(?!\d)", part)
        if found:
            return int(np.datetime64("-".join(found.groups()), "ns").astype(np.int64))
    raise InputError(
        f"{file}: time_exchange is a time of day and the path holds no date: "
        "put YYYYMMDD in its name"
    )
