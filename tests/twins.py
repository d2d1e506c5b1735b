"""Slow twin readings of the formats that users hold: what a file says, in exact numbers.

They are written from the descriptions of the formats alone, and take nothing from lob/feeds but the
numbers of the update types. tests/fuzz.py compares the parser with what they tell.
"""

import functools
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from lob.feeds.batch import ADD, DELETE, MATCH, SET, SNAPSHOT, SUB

SECOND = 10**9
NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
LAST_YEAR_NS = 2**63 - 1


class Fault(Exception):
    """The recording can't be read: the parser has to refuse it."""


class Unsure(Exception):
    """The twin doesn't judge this recording: only crashes, hangs and half-written output count."""


class Row(NamedTuple):
    kind: int
    is_buy: bool
    price: Decimal
    size: Decimal
    order_id: int | str = 0


class Message(NamedTuple):
    time_ns: int
    rows: list[Row]


class Told(NamedTuple):
    """What the files of a pair say."""

    parts: list[list[Message]]  # a part for each file that opens with a whole book
    skipped: Counter[str]
    by_order: bool = False
    needs_snapshot: bool = False


File = tuple[str, bytes]  # name, and content unpacked


@functools.lru_cache(maxsize=1 << 16)
def number(text: str) -> Decimal:
    """Return the number of a text. Raises Fault if it is none, Unsure if it has too many digits."""
    text = text.strip(" \t")
    if not NUMBER.fullmatch(text):
        raise Fault(f"{text!r} is no number")
    value = Decimal(text)
    _, digits, exponent = value.as_tuple()
    if len(str(int("".join(map(str, digits)))).rstrip("0")) > 15 or abs(int(exponent)) > 30:
        raise Unsure("more digits than float64 holds")
    return value


def size_of(text: str) -> Decimal:
    value = number(text)
    if value < 0:
        raise Fault("a negative size")
    return value


def whole(text: str, bits: int = 63) -> int:
    text = text.strip(" \t")
    if not re.fullmatch(r"-?\d+", text) or (bits == 64 and text[0] == "-"):
        raise Fault(f"{text!r} is no whole number")
    if abs(int(text)) >= 2**bits:
        raise Fault("too large a number")
    return int(text)


def since_epoch(value: Decimal | int) -> int:
    """Return a time in ns. Its magnitude tells its unit: s, ms, us or ns."""
    unit = next((10**u for u, most in ((9, 1e11), (6, 1e14), (3, 1e17)) if abs(value) < most), 1)
    return check_time(round(Decimal(value) * unit))


def check_time(time_ns: int) -> int:
    if not 0 <= time_ns <= LAST_YEAR_NS:
        raise Fault("a time before 1970 or after 2262")
    return time_ns


ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)? ?"
    r"(?:Z|([+-])(\d\d):?(\d\d)?)?"
)


def iso_time(text: str) -> int:
    """Return an ISO time in ns. Raises Fault if it is none, or Unsure if it is of a rare form."""
    found = ISO.fullmatch(text.strip())
    if not found:
        if re.match(r"\s*\d{4}-\d\d", text):
            raise Unsure("a rare form of a time")
        raise Fault(f"{text!r} is no time")
    *date, fraction, sign, hours, minutes = found.groups()
    try:
        moment = datetime(*(int(part or 0) for part in date), tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError:
        raise Fault(f"{text!r} is no time") from None
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    ahead = 60 * (60 * int(hours or 0) + int(minutes or 0)) * (-1 if sign == "-" else 1)
    seconds = since.days * 86400 + since.seconds - ahead
    return check_time(seconds * SECOND + int((fraction or "").ljust(9, "0")))


def csv_rows(data: bytes) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and the cells of each row."""
    text = data.removeprefix(b"\xef\xbb\xbf")
    if b'"' in text or not text.isascii() or re.search(rb"\r(?!\n)", text):
        raise Unsure("quotes, or letters that are not ASCII")
    if not text.strip():
        raise Fault("an empty file")
    lines = text.decode().replace("\r\n", "\n").split("\n")
    delimiter = ";" if ";" in lines[0] else ","
    header = lines[0].strip().split(delimiter)
    if header != lines[0].split(delimiter) or lines[0] == "":
        raise Unsure("spaces around the header")
    rows = [line.split(delimiter) for line in lines[1:] if line]
    if any(len(row) != len(header) for row in rows):
        raise Fault("a row of too few or too many columns")
    if not rows:
        raise Fault("no rows")
    return header, rows


def columns(header: list[str], rows: list[list[str]], names: Iterable[str]) -> Iterator[list[str]]:
    """Yield each row's cells of these columns."""
    if any(header.count(name) != 1 for name in names):
        raise Fault("a column is missing, or comes twice")
    places = [header.index(name) for name in names]
    for row in rows:
        yield [row[place] for place in places]


# CoinAPI, and arrays of our own: rows with a time each

KINDS = {"ADD": ADD, "SUB": SUB, "MATCH": MATCH, "SET": SET, "DELETE": DELETE, "SNAPSHOT": SNAPSHOT}
TRUTHS = {"1": True, "0": False} | {
    text: value for word, value in (("true", True), ("false", False))
    for text in (word, word.title(), word.upper())
}  # fmt: skip
Timed = tuple[int, Row]


def tell_coinapi(files: list[File]) -> Told:
    of_files, orders = [], set()
    for _, data in files:
        header, rows = csv_rows(data)
        names = ["time_exchange", "update_type", "is_buy", "entry_px", "entry_sx"]
        has_ids = "order_id" in header and rows[0][header.index("order_id")] != ""
        orders.add(has_ids)
        if "order_id" in header and not has_ids:
            place = header.index("order_id")
            if any(cells[place] for cells in rows):
                raise Fault("only some rows have an order id")
        names += ["order_id"] * has_ids
        timed = []
        for time, kind, is_buy, price, size, *order in columns(header, rows, names):
            if kind not in KINDS or is_buy not in TRUTHS:
                raise Fault("an unknown word")
            time_ns = coinapi_time(time)
            ids = order_key(order[0]) if has_ids else 0
            row = Row(KINDS[kind], TRUTHS[is_buy], number(price), size_of(size), ids)
            timed.append((time_ns, row))
        of_files.append(timed)
    if len(orders) > 1:
        raise Fault("files with and without order ids")
    return Told(gather(of_files, True in orders), Counter(), True in orders)


def coinapi_time(text: str) -> int:
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d*)?([eE][+-]?\d+)?", text):
        return since_epoch(Decimal(text))
    if re.match(r"\d\d:", text):
        raise Unsure("a time of day")
    return iso_time(text)


def order_key(text: str) -> int | str:
    text = text.strip()
    if text == "":
        raise Fault("the order id is missing")
    if re.fullmatch(r"-?\d+(\.0*)?", text) and abs(int(text.partition(".")[0])) < 2**64:
        return int(text.partition(".")[0]) % 2**64
    return text


def tell_npy(files: list[File]) -> Told:
    of_files = []
    for _, data in files:
        array = read_array(data)
        if array.ndim != 2 or array.shape[1] != 5 or not len(array):
            raise Fault("not an array (N, 5)")
        if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and array.itemsize < 8):
            raise Fault("an array of another type")
        timed = []
        for time, kind, is_buy, price, size in array.tolist():
            if kind not in range(6) or is_buy not in (0, 1):
                raise Fault("an unknown update type or side")
            cells = [number(repr(value)) for value in (time, price)]
            time_ns = since_epoch(cells[0])
            # A float64 holds no more of a present-day time than microseconds.
            time_ns = round(Decimal(time_ns) / 1000) * 1000 if array.dtype.kind == "f" else time_ns
            row = Row(int(kind), is_buy == 1, cells[1], size_of(repr(size)))
            timed.append((time_ns, row))
        of_files.append(timed)
    return Told(gather(of_files, False, parts=False), Counter())


def read_array(data: bytes) -> np.ndarray:
    """Return the array of a `.npy` file; bytes beyond it are no part of it."""
    if b"\x93NUMPY" in data[6:]:
        raise Unsure("several arrays, if the file is packed")
    try:
        return np.load(io.BytesIO(data))
    except Exception:
        raise Fault("no whole array") from None


def gather(of_files: list[list[Timed]], by_order: bool, parts: bool = True) -> list[list[Message]]:
    """Return the messages of rows with a time each: those of one time, and whole books."""
    told: list[list[Message]] = [[]]
    last_time = None
    for index, timed in enumerate(of_files):
        if index and parts and timed[0][1].kind == SNAPSHOT:
            told.append([])
            last_time = None
        begins = find_books(timed, by_order)
        latest = latest_times(timed, begins)
        was_snapshot = False
        for place, (time, row) in enumerate(timed):
            snapshot = row.kind == SNAPSHOT
            begins_message = time != last_time and not (snapshot and was_snapshot)
            if begins_message or place in begins:
                told[-1].append(Message(latest.get(place, time), []))
            told[-1][-1].rows.append(row)
            last_time, was_snapshot = time, snapshot
    return told


def find_books(timed: list[Timed], by_order: bool) -> set[int]:
    """Return the rows that begin a whole book, but for those that follow another type of row."""
    begins: set[int] = set()
    for start, stop in snapshot_runs(timed):
        books = cut_books(timed, start, stop, by_order)
        for before, book, after in zip(books, books[1:], [*books[2:], stop], strict=False):
            same = timed[before:book] and sorted_rows(timed[before:book]) == sorted_rows(
                timed[book:after]
            )
            times = {time for time, _ in timed[before:after]}
            if not (same and len(times) == 1):
                begins.add(book)
        if start == 0:
            begins.add(0)
    return begins


def sorted_rows(timed: list[Timed]) -> list:
    return sorted(tuple(row) for _, row in timed)


def snapshot_runs(timed: list[Timed]) -> Iterator[tuple[int, int]]:
    place = 0
    for snapshot, run in itertools.groupby(timed, lambda item: item[1].kind == SNAPSHOT):
        length = len(list(run))
        if snapshot:
            yield place, place + length
        place += length


def cut_books(timed: list[Timed], start: int, stop: int, by_order: bool) -> list[int]:
    """Return where the books of a run of SNAPSHOT rows begin."""
    books, keys = [start], {}
    group = start  # first row of the present time
    for place in range(start, stop):
        time, row = timed[place]
        if place > start and time != timed[place - 1][0]:
            group = place
        group = max(group, books[-1])
        key = row.order_id if by_order else (row.is_buy, row.price)
        earlier = [timed[i][1] for i in range(books[-1], group)]
        twice = key in keys
        if twice or (not by_order and crosses(earlier, row)):
            book = group if keys.get(key, -1) < group and group > books[-1] else place
            books.append(book)
            keys = {k: at for k, at in keys.items() if at >= book}
        keys[key] = place
    return books


def crosses(rows: list[Row], row: Row) -> bool:
    """Return whether a row would cross the book of rows before it, if that has two sides."""
    bid = max((each.price for each in rows if each.is_buy), default=None)
    ask = min((each.price for each in rows if not each.is_buy), default=None)
    if bid is None or ask is None or bid >= ask:
        return False
    return row.price >= ask if row.is_buy else row.price <= bid


def latest_times(timed: list[Timed], begins: set[int]) -> dict[int, int]:
    """Return the latest time of each whole book's rows, by its first row."""
    latest: dict[int, int] = {}
    for start, stop in snapshot_runs(timed):
        starts = sorted({start, *(place for place in begins if start < place < stop)})
        for first, end in zip(starts, [*starts[1:], stop], strict=True):
            latest[first] = max(time for time, _ in timed[first:end])
    return latest


# Tardis


def local_key(text: str) -> int:
    """Return a time of receipt, of which only its changes count."""
    try:
        return coinapi_time(text)
    except Fault:
        if re.fullmatch(r"-?\d+", text.strip()):
            raise Unsure("a time of receipt that cannot be") from None
        raise


def tell_tardis(files: list[File]) -> Told:
    exchanges: set[str] = set()
    names = ["symbol", "timestamp", "local_timestamp", "is_snapshot", "side", "price", "amount"]
    parts: list[list[Message]] = [[]]
    symbols, last_local = set(), None
    for index, (_, data) in enumerate(files):
        header, rows = csv_rows(data)
        if "exchange" in header:
            exchanges.update(cells for (cells,) in columns(header, rows, ["exchange"]))
        was_snapshot = False
        for place, cells in enumerate(columns(header, rows, names)):
            symbol, time, local, snapshot, side, price, size = cells
            symbols.add(symbol)
            if side not in ("bid", "ask") or snapshot.strip() not in TRUTHS:
                raise Fault("an unknown word")
            is_snapshot, local_time = TRUTHS[snapshot.strip()], local_key(local)
            if index and place == 0 and is_snapshot:
                parts.append([])
                last_local = None
            if local_time != last_local or (is_snapshot and not was_snapshot):
                parts[-1].append(Message(coinapi_time(time), []))
            check_time(coinapi_time(time))
            kind = SNAPSHOT if is_snapshot else SET
            parts[-1][-1].rows.append(Row(kind, side == "bid", number(price), size_of(size)))
            last_local, was_snapshot = local_time, is_snapshot
    if len(symbols) > 1 or len(exchanges) > 1:
        raise Fault("several symbols or exchanges")
    return Told(parts, Counter(), needs_snapshot=True)
