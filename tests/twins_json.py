"""Slow twin readings of the exchanges' JSON messages, one a line (see tests/twins.py)."""

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from twins import (
    ISO,
    Fault,
    File,
    Message,
    Row,
    Told,
    Unsure,
    check_time,
    iso_time,
    number,
    since_epoch,
    size_of,
)

from lob.feeds.batch import GAP, SET, SNAPSHOT

WRAPPINGS = ("data", "msg", "message", "raw", "payload")
CONTROL = re.compile(rb"[\x00-\x1f]")
NOT_WHOLE = (ValueError, KeyError, TypeError, AttributeError, IndexError)
Levels = list[tuple[str, str]]  # price and size as they were sent


class Change(NamedTuple):
    symbol: str
    channel: str
    whole: bool
    time_ns: int | None
    bids: Levels
    asks: Levels
    last: int | None = None
    previous: int | None = None
    depth: int | None = None
    checksum: int | None = None


def load(text: bytes, as_sent: bool) -> Any:
    """Read JSON; numbers become texts as they were sent, or ints and floats."""

    def refuse(constant: str) -> Any:
        raise Unsure(f"{constant} is no JSON, but read by many")

    if not text.isascii() or b"\\u" in text or CONTROL.search(text.strip()):
        raise Unsure("letters that are not ASCII")
    readers = {"parse_float": str, "parse_int": str} if as_sent else {}
    return json.loads(text.decode(), parse_constant=refuse, **readers)  # type: ignore[arg-type]


def read_messages(data: bytes, as_sent: bool) -> Iterator[Any]:
    """Yield each line's message, or None if the line is empty."""
    for line in data.removesuffix(b"\n").split(b"\n"):
        if not line.strip():
            yield None
            continue
        begin = re.search(rb"\{|\[\s*(\d+\s*,|[\[{\"\]])", line)
        if re.fullmatch(rb"(\d+ )?p[io]ng", line):
            yield None
            continue
        if not begin:
            raise Fault("a line without JSON")
        try:
            message = load(line[begin.start() :], as_sent)
            for name in WRAPPINGS if isinstance(message, dict) else ():
                inner = message.get(name)
                if isinstance(inner, str) and inner[:1] in ("{", "["):
                    message = load(inner.encode(), as_sent)
                    break
                names = {"arg", "channel", "e", "stream", "topic", "type"}
                of_exchange = name == "data" and names.intersection(message)
                if isinstance(inner, dict | list) and not of_exchange:
                    message = inner
                    break
        except ValueError as error:
            raise Fault(str(error)) from None
        yield message


def told_time(value: Any) -> int:
    text = str(value)
    if re.fullmatch(r"\d+(\.\d*)?", text):
        if text[0] == "0":
            raise Unsure("a time that begins with zeros")
        return since_epoch(Decimal(text))
    if not ISO.fullmatch(text):
        raise Unsure("a rare form of a time")
    return check_time(iso_time(text))


def pairs(levels: Any) -> Levels:
    """Return price and size of levels. Raises Fault if one is no pair of them."""
    if not isinstance(levels, list):
        raise Unsure("levels that are no list")
    told = []
    for level in levels:
        if not isinstance(level, list | tuple) or len(level) < 2:
            raise Fault("a level is no pair")
        if not all(isinstance(part, str | int | float) for part in level[:2]):
            raise Unsure("a level of other things")
        told.append((str(level[0]), str(level[1])))
    return told


# What each exchange's messages say


def okx(message: Any) -> Iterator[Change]:
    if isinstance(message, dict) and "action" in message and "arg" in message:
        for book in message["data"]:
            yield Change(
                symbol=message["arg"]["instId"],
                channel=message["arg"]["channel"],
                whole=message["action"] == "snapshot",
                time_ns=told_time(book["ts"]),
                bids=pairs(book["bids"]),
                asks=pairs(book["asks"]),
                last=book.get("seqId"),
                previous=book.get("prevSeqId"),
                checksum=book.get("checksum") or None,
            )


def bybit(message: Any) -> Iterator[Change]:
    if isinstance(message, dict) and str(message.get("topic")).startswith("orderbook."):
        book = message["data"]
        yield Change(
            symbol=book["s"],
            channel=message["topic"],
            whole=message["type"] == "snapshot" or book["u"] == 1,
            time_ns=told_time(message["ts"]),
            bids=pairs(book["b"]),
            asks=pairs(book["a"]),
            last=book["u"],
            previous=book["u"] - 1,
        )


class Coinbase:
    """Advanced Trade numbers the messages of a connection: one that is missing breaks the chain."""

    def __init__(self) -> None:
        self.number, self.time, self.breaks = None, 0, 0

    def __call__(self, message: Any) -> Iterator[Change]:
        if not isinstance(message, dict):
            return
        chain = None
        if "sequence_num" in message:
            place, time = message["sequence_num"], told_time(message["timestamp"])
            if self.number is not None and place <= self.number and time <= self.time:
                chain = -1
            else:
                self.breaks += self.number is not None and place != self.number + 1
                self.number, self.time, chain = place, time, self.breaks
        if message.get("channel") == "l2_data":
            for event in message["events"]:
                changes = [
                    (each["side"], each["price_level"], each["new_quantity"])
                    for each in event["updates"]
                ]
                time = told_time(message["timestamp"])
                yield self.tell(event, event["type"], changes, time, self.breaks, chain)
        elif message.get("type") in ("snapshot", "l2update"):
            changes = [
                ("buy" if side == "bids" else "sell", *level)
                for side in ("bids", "asks")
                for level in message.get(side, [])
            ]
            if message["type"] == "snapshot":
                message["bids"], message["asks"]
            else:
                changes = message["changes"]
            told = message.get("time")
            unknown = not told or str(told)[:10] in ("0001-01-01", "1970-01-01")
            time = None if unknown else told_time(told)
            yield self.tell(message, message["type"], changes, time, None, None)

    def tell(self, told, kind, changes, time, last, previous) -> Change:
        sides: dict[str, list] = {"buy": [], "sell": []}
        names = {"bid": "buy", "offer": "sell", "ask": "sell"}
        for side, *level in changes:
            sides[names.get(side, side)].append(level)
        bids, asks = pairs(sides["buy"]), pairs(sides["sell"])
        whole = kind == "snapshot"
        return Change(told["product_id"], "", whole, time, bids, asks, last, previous)


class Kraken:
    """Versions 1 and 2. The numbers are texts, as they were sent."""

    def __init__(self) -> None:
        self.depths: dict[str, int] = {}
        self.digits: dict[str, tuple[int, int]] = {}

    def __call__(self, message: Any) -> Iterator[Change]:
        if isinstance(message, list):
            if len(message) >= 4 and str(message[-2]).startswith("book-"):
                yield self.version_1(message)
        elif message.get("channel") == "book":
            for book in message["data"]:
                yield self.version_2(message["type"] == "snapshot", book)
        elif message.get("method") == "subscribe" and "depth" in message.get("result", {}):
            self.depths[message["result"]["symbol"]] = int(message["result"]["depth"])

    def version_1(self, message: list) -> Change:
        told: dict[str, Any] = {}
        for part in message[1:-2]:
            told |= part
        whole = "as" in told or "bs" in told
        bids, asks = (told.get(side + "s" * whole, []) for side in "ba")
        times = [told_time(level[2]) for level in bids + asks if level[3:] != ["r"]]
        return Change(
            symbol=message[-1],
            channel=message[-2],
            whole=whole,
            time_ns=max(times, default=None),
            bids=pairs(bids),
            asks=pairs(asks),
            depth=int(message[-2].removeprefix("book-")),
            checksum=int(told["c"]) if "c" in told else None,
        )

    def version_2(self, whole: bool, book: dict) -> Change:
        symbol = book["symbol"]
        sides = [
            [(str(level["price"]), str(level["qty"])) for level in book.get(side, [])]
            for side in ("bids", "asks")
        ]
        if whole:
            levels = sides[0] + sides[1]
            self.digits[symbol] = tuple(  # type: ignore[assignment]
                max((-exponent(level[i]) for level in levels), default=0) for i in (0, 1)
            )
        filled = [[self.fill(symbol, level) for level in side] for side in sides]
        size = max(map(len, sides))
        told = size if size in (10, 25, 100, 500, 1000) else None
        return Change(
            symbol=symbol,
            channel="",
            whole=whole,
            time_ns=told_time(book["timestamp"]) if "timestamp" in book else None,
            bids=filled[0],
            asks=filled[1],
            depth=self.depths.get(symbol, told),
            checksum=int(book["checksum"]) if "checksum" in book else None,
        )

    def fill(self, symbol: str, level: tuple[str, str]) -> tuple[str, str]:
        """Return price and size with the zeros that a recorder has dropped."""
        texts = []
        for text, most in zip(level, self.digits.get(symbol, (0, 0)), strict=True):
            digits = max(most, -exponent(text))
            texts.append(f"{Decimal(text):.{digits}f}" if "e" in text.lower() else text)
            dot, digits = "." in texts[-1], len(texts[-1].partition(".")[2])
            texts[-1] += "." * (not dot and most > 0) + "0" * (most - digits)
        return texts[0], texts[1]


def exponent(text: str) -> int:
    """Return the power of ten of a number's last digit, 0 at most. Raises Fault if it is none."""
    number(text)
    return min(int(Decimal(text).as_tuple().exponent), 0)


def okx_checksum(bids: Levels, asks: Levels) -> int:
    texts = []
    for rank in range(25):
        texts += [":".join(level) for side in (bids, asks) for level in side[rank : rank + 1]]
    return zlib.crc32(":".join(texts).encode())


def kraken_checksum(bids: Levels, asks: Levels) -> int:
    levels = asks[:10] + bids[:10]
    texts = [text.replace(".", "").lstrip("0") for level in levels for text in level]
    return zlib.crc32("".join(texts).encode())


CHECKSUMS = {"okx": okx_checksum, "kraken": kraken_checksum}
PARSERS: dict[str, Callable[[], Callable[[Any], Iterator[Change]]]] = {
    "okx": lambda: okx,
    "bybit": lambda: bybit,
    "coinbase": Coinbase,
    "kraken": Kraken,
}


class Stream:
    """Follows the instrument that comes first; says what its messages bring."""

    def __init__(self, feed: str):
        self.checksum = CHECKSUMS.get(feed)
        self.symbols: list[str] = []
        self.channel = ""
        self.last: int | None = None
        self.runs: list[list[tuple[int, int]]] = []  # ids and times of messages in a row
        self.has_book = False  # since the last loss
        self.time: int | None = None
        self.book: list[dict[Decimal, tuple[str, str]]] | None = None
        self.depth: int | None = None
        self.messages: list[tuple[int | None, list[Row]]] = []
        self.skipped: Counter[str] = Counter()

    def take(self, change: Change) -> bool:
        """Take a change; return whether it is of the instrument."""
        if change.symbol not in self.symbols:
            self.symbols.append(change.symbol)
        if change.symbol != self.symbols[0]:
            return False
        self.channel = self.channel or change.channel
        if change.channel != self.channel:
            self.skipped["messages_of_other_channels"] += 1
            return True
        time = self.time if change.time_ns is None else change.time_ns
        breaks = self.last is not None and change.previous != self.last
        if breaks and (self.has_book or not change.whole) and self.was_read(change):
            self.skipped["messages_repeated"] += 1
            return True
        if breaks and not change.whole:
            self.has_book = False
            self.messages.append((time, [Row(GAP, True, Decimal(0), Decimal(0))]))
        if None not in (change.last, change.time_ns):
            follows = self.runs and change.previous == self.runs[-1][-1][0]
            self.runs += [] if follows else [[]]
            self.runs[-1].append((change.last, change.time_ns))
        self.last, self.time = change.last, time
        self.has_book |= change.whole
        kind = SNAPSHOT if change.whole else SET
        lost = self.follow(change)
        rows = [
            Row(kind, side == 0, number(price), size_of(size))
            for side, levels in enumerate((change.bids, change.asks))
            for price, size in (*levels, *lost[side])
        ]
        if change.whole and not rows:
            rows = [Row(SNAPSHOT, True, Decimal(0), Decimal(0))]
        if rows:
            self.messages.append((time, rows))
        return True

    def was_read(self, change: Change) -> bool:
        """Return whether id and time lie between those of messages that followed one another."""
        last, time = change.last, change.time_ns
        if last is None or time is None:
            return False
        return any(
            run[0][0] <= last <= run[-1][0] and run[0][1] <= time <= run[-1][1] for run in self.runs
        )

    def follow(self, change: Change) -> list[Levels]:
        """Return the levels that fall out of the depth, as removed; count the checksum."""
        if self.checksum is None:
            return [[], []]
        if change.whole:
            known = change.depth is not None or change.checksum is not None
            self.book, self.depth = ([{}, {}] if known else None), change.depth
        if self.book is None:
            return [[], []]
        lost: list[Levels] = []
        ordered: list[Levels] = []
        for side, levels in enumerate((change.bids, change.asks)):
            book = self.book[side]
            for price, size in levels:
                if number(size) == 0:
                    book.pop(number(price), None)
                else:
                    book[number(price)] = (price, size)
            keys = sorted(book, reverse=side == 0)
            beyond = keys[self.depth :] if self.depth else []
            lost.append([(book.pop(key)[0], "0") for key in beyond])
            ordered.append([book[key] for key in keys[: len(keys) - len(beyond)]])
        if change.checksum is not None:
            self.skipped["checksums_checked"] += 1
            right = self.checksum(*ordered) == change.checksum % 2**32
            self.skipped["checksums_differ"] += not right
        return lost


def tell_messages(feed: str, files: list[File]) -> Told:
    parse, stream = PARSERS[feed](), Stream(feed)
    for _, data in files:
        for message in read_messages(data, as_sent=feed == "kraken"):
            try:
                changes = [] if message is None else list(parse(message))
                used = [stream.take(change) for change in changes]
            except NOT_WHOLE as error:
                raise Fault(repr(error)) from None
            stream.skipped["lines_passed_by"] += not any(used)
    if len(stream.symbols) != 1:
        raise Fault(f"instruments: {stream.symbols}")
    known = next((time for time, _ in stream.messages if time is not None), None)
    if known is None:
        raise Fault("no message tells its time")
    messages = [Message(known if time is None else time, rows) for time, rows in stream.messages]
    return Told([messages], stream.skipped, needs_snapshot=True)
