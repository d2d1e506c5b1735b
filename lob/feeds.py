"""Readers of recorded exchange files: each turns one feed's files into batches of update rows.

Adding an exchange takes one function here: decorate it with `@feed(recognise)`, where `recognise(head)` tells from the
first 64 KiB (decompressed) whether a file is of this feed; it is called with the pair's files in path order and yields
`Batch`es in file order. Everything after it (ticks, lots, book, states) is the same for all feeds.
"""

import functools
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from lob.binance import NO_SYMBOL, Depths, LineScanner, join_depths, make_depth, parse_depth, parse_json
from lob.config import InputError
from lob.recordings import read_csv, read_head, read_line_blocks, read_npy_chunks

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


# ---------------------------------------------------------------------------------------------- CoinAPI limitbook_full

COINAPI_COLUMNS = ("time_exchange", "update_type", "is_buy", "entry_px", "entry_sx")
COINAPI_TYPES = {"ADD": ADD, "SUB": SUB, "MATCH": MATCH, "SET": SET, "DELETE": DELETE, "SNAPSHOT": SNAPSHOT}
DAY_NS = 86_400 * 10**9


def is_coinapi(head: bytes) -> bool:
    return head.startswith((b"time_exchange", b'"time_exchange')) or b"update_type" in head.split(b"\n", 1)[0]


def coinapi_opening(head: bytes) -> str | None:
    header, row = first_row(head)
    return header if row.get("update_type") == "SNAPSHOT" else None


@feed(is_coinapi, coinapi_opening)
def read_coinapi(files: list[Path]) -> Iterator[Batch]:
    """CoinAPI flat files `limitbook_full`: `;` or `,` between columns named in the header, in any order.

    With order ids the feed is order by order; without a column order_id, or where a file's first one is empty, by
    level; files of both kinds are refused. `time_exchange` is a full date-time or a time of day with the date (YYYYMMDD
    or YYYY-MM-DD) in the file's path; an opening snapshot stamped later in the day than the row after it belongs to the
    day before. All consecutive rows of one time_exchange are one message.
    """
    message, last_time = 0, None
    layouts = [coinapi_layout(file) for file in files]
    by_order = ["order_id" in options.column_types for _, options, _ in layouts]
    if len(set(by_order)) > 1:
        raise InputError(f"{files[by_order.index(True)]} has order ids, {files[by_order.index(False)]} has none: "
                         "a pair's files are of one kind")  # fmt: skip
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
                time_ns, messages, kinds, map_words(column["is_buy"], BOOLEANS, "is_buy", file, row) == 1,
                to_float(column["entry_px"]), to_float(column["entry_sx"]),
                None if ids is None else to_order_ids(ids), str(file), row, file_bytes,
            )  # fmt: skip


def coinapi_layout(file: Path) -> tuple[str, csv.ConvertOptions, int]:
    """Return a file's delimiter, how its columns are converted, and the date (ns) that its times lack, or 0."""
    head = read_head(file)
    if b"\n" not in head:
        raise InputError(f"{file} holds no rows: remove it or fetch it again")
    header, first = first_row(head)
    delimiter = ";" if ";" in header else ","
    names = header.split(delimiter)
    missing = [name for name in COINAPI_COLUMNS if name not in names]
    if missing:
        raise InputError(f"{file}: the header lacks {', '.join(missing)}; it is {header!r}: name the columns so, with "
                         "; or , between them")  # fmt: skip
    by_time = ":" in first.get("time_exchange", "")[:3]
    types: dict[str, pa.DataType] = {"entry_px": pa.float64(), "entry_sx": pa.float64()}
    types["time_exchange"] = pa.time64("ns") if by_time else pa.timestamp("ns")
    if first.get("time_exchange", "").endswith("Z"):
        types["time_exchange"] = pa.timestamp("ns", "UTC")
    types["update_type"] = types["is_buy"] = pa.dictionary(pa.int32(), pa.string())
    if first.get("order_id"):
        types["order_id"] = pa.int64() if first["order_id"].isdigit() else pa.string()
    options = csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[])
    return delimiter, options, path_date_ns(file) if by_time else 0


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


def stamp_opening(time_ns: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Move an opening snapshot that is stamped later in the day than the row after it to the day before."""
    opening = int(np.argmax(kinds != SNAPSHOT)) if (kinds != SNAPSHOT).any() else len(kinds)
    if 0 < opening < len(kinds) and time_ns[opening - 1] > time_ns[opening]:
        time_ns = time_ns.copy()
        time_ns[:opening] -= DAY_NS
    return time_ns


def path_date_ns(file: Path) -> int:
    """The date in a file's path, in ns since the epoch; InputError where there is none."""
    for part in reversed(file.parts):
        found = re.search(r"(?<!\d)(20\d\d)-?(\d\d)-?(\d\d)(?!\d)", part)
        if found:
            return int(np.datetime64("-".join(found.groups()), "ns").astype(np.int64))
    raise InputError(f"{file}: time_exchange is a time of day and the path holds no date: put YYYYMMDD in its name")


# ------------------------------------------------------------------------------------------ Tardis incremental_book_L2

TARDIS_TYPES = {
    "symbol": pa.dictionary(pa.int32(), pa.string()), "timestamp": pa.int64(), "local_timestamp": pa.int64(),
    "is_snapshot": pa.bool_(), "side": pa.dictionary(pa.int32(), pa.string()), "price": pa.float64(),
    "amount": pa.float64(),
}  # fmt: skip


def is_tardis(head: bytes) -> bool:
    names = head.split(b"\n", 1)[0].strip().split(b",")
    return {b"local_timestamp", b"is_snapshot", b"side", b"price", b"amount"} <= set(names)


def tardis_opening(head: bytes) -> str | None:
    _, row = first_row(head)
    return row.get("symbol") if row.get("is_snapshot") == "true" else None


@feed(is_tardis, tardis_opening)
def read_tardis(files: list[Path]) -> Iterator[Batch]:
    """Tardis.dev CSV files `incremental_book_L2` of one symbol (https://docs.tardis.dev, "CSV data types").

    Rows of one `local_timestamp` are one message; `timestamp`, microseconds, is the exchange's time. Amounts are
    absolute, 0 removes the level. A run of is_snapshot rows, whatever their times, replaces the book at once and begins
    a message: so it is where a file begins, and files may be parsed side by side.
    """
    options = csv.ConvertOptions(column_types=TARDIS_TYPES, include_columns=list(TARDIS_TYPES), null_values=[])
    message, last_time, last_snapshot, symbols = 0, None, False, set[str]()
    for file in files:
        for row, column, file_bytes in read_csv(file, ",", options):
            symbols.update(column["symbol"].unique().to_pylist())
            if len(symbols) > 1:
                raise InputError(f"{file} and the files before it hold {', '.join(sorted(symbols))}: a pair's folder "
                                 "takes one symbol")  # fmt: skip
            snapshot = column["is_snapshot"].to_numpy(zero_copy_only=False)
            local = column["local_timestamp"].to_numpy()
            begins = snapshot > np.append(last_snapshot, snapshot[:-1])
            messages = message + np.cumsum(np.where(snapshot, begins, find_changes(local, last_time)))
            message, last_time, last_snapshot = int(messages[-1]), local[-1], bool(snapshot[-1])
            is_buy = map_words(column["side"], {"bid": 1, "ask": 0}, "side", file, row) == 1
            yield Batch(
                column["timestamp"].to_numpy() * 1000, messages, np.where(snapshot, SNAPSHOT, SET).astype(np.uint8),
                is_buy, to_float(column["price"]), to_float(column["amount"]), None, str(file), row, file_bytes,
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------- NumPy array (N, 5)


@feed(lambda head: head.startswith(b"\x93NUMPY"))
def read_npy(files: list[Path]) -> Iterator[Batch]:
    """NumPy arrays (N, 5) of numbers: time (s, ms, us or ns), update type, is_buy, price, size; rows count from 0.

    Types: ADD 0, SUB 1, MATCH 2, SET 3, DELETE 4, SNAPSHOT 5. All consecutive rows of one time are one message.
    """
    message, last_time = 0, None
    for file in files:
        row = 0
        for rows, file_bytes in read_npy_chunks(file):
            time, kinds, is_buy, price, size = rows.T
            bad = ~(np.isfinite(time) & np.isin(kinds, range(GAP)) & np.isin(is_buy, (0, 1)))
            if bad.any():
                first = int(np.argmax(bad))
                raise InputError(f"{file}, row {row + first}: {rows[first].tolist()} is no time, update type (0 to 5), "
                                 "is_buy (0 or 1), price and size")  # fmt: skip
            time_ns = to_ns(time)
            messages = message + np.cumsum(find_changes(time_ns, last_time))
            message, last_time = int(messages[-1]), time_ns[-1]
            yield Batch(
                time_ns, messages, kinds.astype(np.uint8), is_buy == 1, price.astype(np.float64),
                size.astype(np.float64), None, str(file), row, file_bytes,
            )  # fmt: skip
            row += len(rows)


# --------------------------------------------------------------------------------------------- Binance raw recordings

MOST_RECENT = 1000  # messages kept for a snapshot to come


@feed(lambda head: re.match(rb'\d{10,19} \{"(stream|e|u|lastUpdateId)"', head) is not None)
def read_binance(files: list[Path]) -> Iterator[Batch]:
    """Binance's messages as received, spot, USD-M or COIN-M: lines of local time, space, JSON; one symbol.

    Used are `depthUpdate` messages (bare or in a combined stream) and REST depth snapshots, stamped with the
    transaction time T or, on spot, the event time E; sizes are absolute, 0 removes the level. A snapshot is no state:
    its rows belong to the message that bridges it. The files are one stream.
    """
    stream, scanner = BinanceStream(), LineScanner()
    for file in files:
        scanner.line = 0
        try:
            for block, file_bytes in read_line_blocks(file):
                for found in scanner.scan(block):
                    if isinstance(found, Depths):
                        stream.take_depths(found)
                    elif b'"depthUpdate"' in found:
                        stream.take_depth(parse_json(found), scanner)
                    elif b'"lastUpdateId"' in found:
                        stream.snapshot = parse_json(found)
                        stream.take_snapshot(scanner.line)
                if any(part.levels.size for part, *_ in stream.rows):
                    yield stream.make_batch(file, file_bytes)
        except OSError as error:
            raise InputError(
                f"{file}, after line {scanner.line}: cannot be decompressed ({error}): fetch it again"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{file}, line {scanner.line}: no whole Binance message ({error!r}): drop the line"
            ) from None
    if not stream.begun:
        raise InputError(f"{files[0].parent} holds no REST depth snapshot that its depthUpdate messages continue, so "
                         "the book is never known: record one (GET depth?limit=1000) after the stream")  # fmt: skip


class BinanceStream:
    """Follows one symbol's depth messages by Binance's rules ("How to manage a local order book correctly").

    A message follows another where, on futures, its `pu` is the other's `u`, on spot its `U` is the other's u + 1. A
    snapshot of update L is bridged by the first message with u >= L (spot: u > L) if that follows L or holds it.
    """

    def __init__(self) -> None:
        self.message = 0
        self.last: int | None = None  # u of the last message
        self.spot = False
        self.begun, self.known, self.counted = False, False, False  # was the book known; is it; was its loss told
        self.snapshot: dict[str, Any] | None = None  # waits for the message that bridges it
        # A snapshot stands in the file up to some seconds after its time: the lines since then are needed once more.
        self.recent: deque[Depths] = deque()
        self.kept = 0  # messages in them
        self.rows: list[tuple[Depths, np.ndarray, int]] = []  # of the next batch: with number of each, type

    def take_depth(self, depth: dict[str, Any], scanner: LineScanner) -> None:
        """Take a message that the kernel left; the first one tells the kernel which it may take."""
        symbol = depth["s"].encode()
        if scanner.symbol == NO_SYMBOL:
            self.spot = "pu" not in depth
            scanner.symbol, scanner.spot = symbol, self.spot
        if symbol != scanner.symbol:
            raise ValueError(f"of {depth['s']} among those of {scanner.symbol.decode()}")
        self.take_depths(parse_depth(depth, scanner.line, self.spot))

    def take_depths(self, depths: Depths) -> None:
        """Take messages at once where each follows the one before it and no snapshot waits, else one by one."""
        heads = depths.heads
        several = len(heads) > 1 and self.known and self.snapshot is None
        if several and np.array_equal(heads["previous"], np.append(self.last, heads["last"][:-1])):  # type: ignore[arg-type]
            self.keep(depths)
            self.put_rows(SET, depths, self.message + 1 + np.arange(len(heads)))
        else:
            for row in range(len(heads)):
                self.take_message(depths.part(row, row + 1))

    def take_message(self, depth: Depths) -> None:
        line, _, last, previous, *_ = depth.heads[0].tolist()
        if self.last is not None and previous != self.last:
            if last <= self.last:
                return  # delivered twice: the book holds it
            self.recent.clear()
            self.kept = 0
            self.lose_book(depth)
        elif self.kept >= MOST_RECENT and not self.known:
            self.lose_book(depth)
        self.keep(depth)
        if self.known:
            self.put_rows(SET, depth, np.array([self.message + 1]))
        self.take_snapshot(line)

    def keep(self, depths: Depths) -> None:
        self.last = int(depths.heads["last"][-1])
        self.recent.append(depths)
        self.kept += len(depths.heads)
        while self.kept - len(self.recent[0].heads) >= MOST_RECENT:
            self.kept -= len(self.recent.popleft().heads)

    def take_snapshot(self, line: int) -> None:
        """Where the stream has reached the waiting snapshot, put its rows and those of the messages after it.

        Where the book was known they end the last message, whose state stays as it was but for levels that the first
        snapshot was too short to hold.
        """
        if self.snapshot is None or self.last is None or self.last < self.snapshot["lastUpdateId"] + self.spot:
            return
        snapshot, self.snapshot = self.snapshot, None
        update = snapshot["lastUpdateId"]
        later = join_depths(list(self.recent)).part(-MOST_RECENT)
        later = later.part(int(np.searchsorted(later.heads["last"], update + self.spot)))
        if later.heads["previous"][0] > update:
            return  # older than the lines kept
        heads = later.heads.copy()
        heads["line"] = line
        numbers = self.message + 1 + np.arange(len(heads))
        if self.known:
            heads["time"], numbers = heads["time"][-1], np.full(len(heads), self.message)
        whole = make_depth(line, int(heads["time"][0]), update, update, snapshot["bids"], snapshot["asks"])
        self.put_rows(SNAPSHOT, whole, numbers[:1])
        self.put_rows(SET, later._replace(heads=heads), numbers)
        self.begun, self.known, self.counted = True, True, False

    def lose_book(self, depth: Depths) -> None:
        """Tell once, by a GAP row, that messages are missing until the next snapshot."""
        if not self.counted:
            line, time, *_ = depth.heads[0].tolist()
            self.put_rows(GAP, make_depth(line, time, 0, 0, [[0, 0]], []), np.array([self.message + 1]))
        self.known, self.counted = False, True

    def put_rows(self, kind: int, depths: Depths, messages: np.ndarray) -> None:
        self.rows.append((depths, messages, kind))
        self.message = int(messages[-1])

    def make_batch(self, file: Path, file_bytes: int) -> Batch:
        """Turn the messages gathered into a batch."""
        parts, numbers, kinds = zip(*self.rows, strict=True)
        self.rows = []
        heads, (price, size) = join_depths(list(parts))
        sides = np.stack([heads["bids"], heads["asks"]], axis=1)
        columns = to_ns(heads["time"]), np.concatenate(numbers), heads["line"]
        time_ns, message, lines = (np.repeat(column, sides.sum(axis=1)) for column in columns)
        return Batch(
            time_ns, message, np.repeat(np.array(kinds, np.uint8), [part.levels.shape[1] for part in parts]),
            np.repeat(np.tile([True, False], len(heads)), sides.ravel()), price, size, None, str(file),
            int(heads["line"][0]), file_bytes, lines,
        )  # fmt: skip
