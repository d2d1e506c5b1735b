"""Tardis.dev's CSV files `incremental_book_L2`."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from lob.config import InputError
from lob.feeds.batch import (
    SET,
    SNAPSHOT,
    Batch,
    count_only,
    feed,
    find_changes,
    find_delimiter,
    first_row,
    map_words,
    to_float,
    to_ns,
)
from lob.feeds.recordings import read_csv, read_head
from lob.feeds.text_times import texts_to_ns

TARDIS_TYPES = {
    "symbol": pa.dictionary(pa.int32(), pa.string()),
    "timestamp": pa.int64(),
    "local_timestamp": pa.int64(),
    "is_snapshot": pa.bool_(),
    "side": pa.dictionary(pa.int32(), pa.string()),
    "price": pa.float64(),
    "amount": pa.float64(),
}
TIMES_AS_TEXT = {"timestamp": pa.string(), "local_timestamp": pa.string()}
SIDES = {"bid": 1, "ask": 0}


def is_tardis(head: bytes) -> bool:
    names = re.split("[;,]", first_row(head)[0])
    return {"local_timestamp", "is_snapshot", "side", "price", "amount"} <= set(names)


def to_times(column: pa.Array, name: str, file: Path, row: int) -> np.ndarray:
    """Return times as int64 ns (n,). Raises InputError, with file and row, if a text is no time."""
    if column.type == pa.int64():
        return to_ns(column.to_numpy())
    return texts_to_ns(column, name, False, file, row)[0]


def read_columns(file: Path) -> Iterator[tuple[int, dict[str, pa.Array], int]]:
    """Yield a file in blocks: number of the first row, columns by name, file bytes read."""
    header, _ = first_row(read_head(file))
    delimiter = find_delimiter(header)
    types = TARDIS_TYPES
    if "exchange" in header.split(delimiter):
        types = types | {"exchange": pa.dictionary(pa.int32(), pa.string())}
    options, general = (
        csv.ConvertOptions(column_types=each, include_columns=list(types), null_values=[])
        for each in (types, types | TIMES_AS_TEXT)
    )
    return read_csv(file, delimiter, options, general)


def opens_with_snapshot(head: bytes) -> bool:
    _, row = first_row(head)
    return row.get("is_snapshot") in ("true", "True", "TRUE", "1")


def find_symbol(head: bytes) -> str:
    _, row = first_row(head)
    return row.get("symbol", "")


@feed(is_tardis, opens_with_snapshot, needs_snapshot=True, by_symbol=True, find_symbol=find_symbol)
def read_tardis(files: list[Path], symbol: str | None = None) -> Iterator[Batch]:
    """Read Tardis.dev's CSV files `incremental_book_L2` of one symbol (None: the only one).

    The columns are described at https://docs.tardis.dev, "CSV data types"; between them is `,` or
    `;`. Rows of one `local_timestamp` are one message; `timestamp` is the exchange's time, in any
    unit or ISO. Amounts are absolute, and 0 removes the level. A message of is_snapshot rows is a
    new whole book, and so is the first one of a file: some exchanges send nothing else.
    """
    message, last_time = 0, None
    passed_by = 0  # rows of other symbols, since the last batch
    firsts = [first_row(read_head(file))[1] for file in files]
    symbols = {first.get("symbol", "") for first in firsts} - {""}
    exchanges = {first.get("exchange", "") for first in firsts} - {""}
    for file in files:
        last_snapshot = False
        for row, column, file_bytes in read_columns(file):
            symbols.update(column["symbol"].unique().to_pylist())
            exchanges.update(
                column["exchange"].unique().to_pylist() if "exchange" in column else ()
            )
            if symbol is None and len(symbols) > 1:
                raise InputError(
                    f"{file} and the files beside it hold {', '.join(sorted(symbols))}: a pair's "
                    f"folder takes one symbol, such as --symbol={min(symbols)}"
                )
            if len(exchanges) > 1:
                raise InputError(
                    f"{file} and the files beside it are of {', '.join(sorted(exchanges))}: keep "
                    "each exchange in a folder of its own"
                )
            is_buy = map_words(column["side"], SIDES, "side", file, row) == 1
            rows = np.arange(row, row + len(is_buy))
            if symbol is not None:
                chosen = pc.equal(column["symbol"], symbol)
                column = {name: values.filter(chosen) for name, values in column.items()}
                kept = chosen.to_numpy(zero_copy_only=False)
                rows, is_buy = rows[kept], is_buy[kept]
                passed_by += int(np.count_nonzero(~kept))
                if len(rows) == 0:
                    continue
            snapshot = column["is_snapshot"].to_numpy(zero_copy_only=False)
            time_ns, local = (to_times(column[name], name, file, row) for name in TIMES_AS_TEXT)
            opens_snapshot = snapshot > np.append(last_snapshot, snapshot[:-1])
            begins = opens_snapshot | find_changes(local, last_time)
            messages = message + np.cumsum(begins)
            message, last_time, last_snapshot = int(messages[-1]), local[-1], bool(snapshot[-1])
            yield Batch(
                time_ns=time_ns,
                message=messages,
                update_type=np.where(snapshot, SNAPSHOT, SET).astype(np.uint8),
                is_buy=is_buy,
                price=to_float(column["price"]),
                size=to_float(column["amount"]),
                order_id=None,
                file=str(file),
                first_row=row,
                file_bytes=file_bytes,
                lines=None if symbol is None else rows + 1,  # the header is line 1
                skipped={"rows_passed_by": passed_by},
            )
            passed_by = 0
    if passed_by:
        yield count_only(file, file_bytes, {"rows_passed_by": passed_by})
    if symbol is not None and symbol not in symbols:
        raise InputError(
            f"{files[0].parent} holds no {symbol}: set --symbol to one of "
            f"{', '.join(sorted(symbols))}"
        )
