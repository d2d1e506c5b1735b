"""LOBSTER's files: for each day a message file and an orderbook file, without headers."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from lob.config import InputError
from lob.feeds.batch import MATCH, SNAPSHOT, Batch, check_one_symbol, feed
from lob.feeds.recordings import read_line_blocks

MESSAGE = re.compile(rb"\d+(\.\d+)?,[1-7],\d+,\d+,-?\d+,-?[01][,\r\n]")
DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(\d\d)-?(\d\d)(?!\d)")
TIME, TYPE, _, SIZE, PRICE, DIRECTION = range(6)  # columns of a message
MESSAGE_COLUMNS = 6  # a participant's name may follow
EXECUTION = 4  # type of a message: a visible order was filled
PRICES_PER_UNIT, DAY_S = 10_000, 86_400


def is_lobster(head: bytes) -> bool:
    if MESSAGE.match(head):
        return True
    cells = head.split(b"\n", 1)[0].strip().split(b",")
    whole = all(re.fullmatch(rb"-?\d+", cell) for cell in cells)
    return whole and len(cells) % 4 == 0 and int(cells[0]) > int(cells[2])


@feed(is_lobster)
def read_lobster(files: list[Path]) -> Iterator[Batch]:
    """Read LOBSTER's days of one share: `..._message_N.csv` and `..._orderbook_N.csv` of each.

    Row i of the orderbook is the whole book of N levels after message i: a state each. Executions
    of visible orders are trades. Times are those of New York; the date stands in the name.
    """
    number = 0
    for message_file, book_file in pair_files(files):
        midnight_ns = find_midnight_ns(message_file)
        row = 1
        for messages, books, file_bytes in read_side_by_side(message_file, book_file):
            yield make_batch(book_file, row, messages, books, number, midnight_ns, file_bytes)
            row += len(books)
            number += len(books)


def pair_files(files: list[Path]) -> list[tuple[Path, Path]]:
    """Return message file and orderbook file of each day.

    Raises InputError if one is missing or there twice, or if they are of several shares.
    """
    by_name: dict[str, Path] = {}
    for file in files:
        name = unpacked_name(file)
        if name in by_name:
            raise InputError(
                f"{file} and {by_name[name]} are files of one name: remove one of them"
            )
        by_name[name] = file
    pairs = []
    for name, file in by_name.items():
        other = name.replace("_orderbook_", "_message_")
        if other == name:
            other = name.replace("_message_", "_orderbook_")
        if other == name or other not in by_name:
            raise InputError(
                f"{file}: a day takes both of LOBSTER's files, under the names that they have "
                "there, ..._message_10.csv and ..._orderbook_10.csv: put the other one beside it, "
                "or unpack the archive that holds both"
            )
        if "_message_" in name:
            pairs.append((file, by_name[other]))
    shares = {find_share(message_file) for message_file, _ in pairs} - {""}
    check_one_symbol(files[0].parent, shares)
    return pairs


def unpacked_name(file: Path) -> str:
    """Return a file's name without what its packing has added, such as .gz behind .csv."""
    name, dot, _ = file.name.partition(".csv")
    return name + dot


def find_share(file: Path) -> str:
    """Return the ticker, which stands before the date of a name; "" if there is none."""
    found = DATE.search(file.name)
    before = file.name[: found.start()] if found else ""
    ticker = before.rstrip("_- ").rpartition("_")[2]
    return "" if ticker.isdigit() else ticker


def find_midnight_ns(file: Path) -> int:
    found = DATE.search(file.name)
    if found is None:
        raise InputError(
            f"{file}: its name holds no date: put YYYY-MM-DD in it, as LOBSTER does"
        ) from None
    midnight = pd.Timestamp("-".join(found.groups()), tz="America/New_York")
    return midnight.as_unit("ns").value


def read_side_by_side(
    message_file: Path, book_file: Path
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield equal numbers of rows of both files, float64, and the bytes read of both."""
    messages = read_rows(message_file, MESSAGE_COLUMNS)
    waiting, message_bytes = np.empty((0, MESSAGE_COLUMNS)), 0
    row = 1
    for books, book_bytes in read_rows(book_file):
        if books.shape[1] % 4:
            raise InputError(
                f"{book_file} has {books.shape[1]} columns, not four a level: fetch it again"
            )
        while len(waiting) < len(books):
            block, message_bytes = next(messages, (None, 0))
            if block is None:
                raise unequal(message_file, row + len(waiting), book_file)
            if block.shape[1] < MESSAGE_COLUMNS:
                raise InputError(
                    f"{message_file} has {block.shape[1]} columns, not six or more: fetch it again"
                )
            waiting = np.concatenate([waiting, block])
        yield waiting[: len(books)], books, book_bytes + message_bytes
        waiting = waiting[len(books) :]
        row += len(books)
    if len(waiting) or next(messages, None) is not None:
        raise unequal(book_file, row, message_file)


def unequal(shorter: Path, row: int, longer: Path) -> InputError:
    return InputError(f"{shorter} ends before row {row}, {longer.name} goes on: fetch both again")


def read_rows(file: Path, most: int | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the rows of a file of numbers as float64 arrays, with the file bytes read.

    most: the first columns that are read, if others of any text may follow.
    """
    line = 0
    columns = 0
    try:
        for block, file_bytes in read_line_blocks(file):
            options = csv.ReadOptions(autogenerate_column_names=True, block_size=len(block) + 1)
            table = csv.read_csv(io.BytesIO(block), options)
            used = table.columns[:most]
            rows = np.column_stack([column.cast(pa.float64()).to_numpy() for column in used])
            if columns not in (0, rows.shape[1]):
                raise ValueError(f"{rows.shape[1]} columns, those before have {columns}")
            columns = rows.shape[1]
            yield rows, file_bytes
            line += len(rows)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{file}, after row {line}: no whole LOBSTER file ({reason}): fetch it again"
        ) from None


def make_batch(
    file: Path,
    row: int,
    messages: np.ndarray,
    books: np.ndarray,
    number: int,
    midnight_ns: int,
    file_bytes: int,
) -> Batch:
    """Return the rows of whole books (n, 4 per level), each after the trade that led to it."""
    # Of each level: ask price, ask size, bid price, bid size. The trade stands before the levels.
    sizes = books[:, 1::2]
    whole = np.isfinite(books).all(axis=1) & np.isfinite(messages).all(axis=1)
    whole &= (sizes >= 0).all(axis=1) & (messages[:, TIME] >= 0) & (messages[:, TIME] <= DAY_S)
    if not whole.all():
        bad = row + int(np.argmin(whole))
        raise InputError(
            f"{file}, row {bad}: it or the message beside it holds no time of day, or a size that "
            "is no number or negative: mend or drop both rows"
        )
    there = sizes > 0
    prices = np.where(there, books[:, 0::2], 0)
    there[~there.any(axis=1), 0] = True  # a whole book without levels is one row of size 0
    is_bid = np.tile([False, True], (len(books), books.shape[1] // 4))
    traded = messages[:, TYPE] == EXECUTION
    traded[0] &= number > 0  # there is no book before the first one
    kept = np.column_stack([traded, there])
    kinds = np.full(kept.shape, SNAPSHOT, np.uint8)
    kinds[:, 0] = MATCH
    rows = np.repeat(np.arange(len(books)), kept.sum(axis=1))
    time_ns = midnight_ns + np.rint(messages[:, TIME] * 1e9).astype(np.int64)
    return Batch(
        time_ns=time_ns[rows],
        message=number + 1 + rows,
        update_type=kinds[kept],
        is_buy=np.column_stack([messages[:, DIRECTION] > 0, is_bid])[kept],
        price=np.column_stack([messages[:, PRICE], prices])[kept] / PRICES_PER_UNIT,
        size=np.column_stack([messages[:, SIZE], sizes])[kept],
        order_id=None,
        file=str(file),
        first_row=row,
        file_bytes=file_bytes,
        lines=row + rows,
    )
