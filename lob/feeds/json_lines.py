"""Recordings of an exchange's JSON messages, one a line, as recorders write them.

A line holds the message alone, or after the local time, or in the record of a recorder such as
cryptofeed, which may hold it as a text. A reader says what a message changes (`Parse`). Everything
else that such feeds have in common is done here: which instrument, what follows on what, checksums.
"""

import functools
import itertools
import re
import zlib
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd

from lob.config import InputError
from lob.feeds.batch import GAP, SET, SNAPSHOT, Batch, count_only, iso_to_ns
from lob.feeds.binance_json import to_numbers
from lob.feeds.recordings import read_lines

NOT_WHOLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)
# A list begins with a number and a comma, or with another list: other brackets are of a log.
MESSAGE_BEGINS = re.compile(rb"\{|\[(?=\s*(?:\d+\s*,|[\[{\"\]]))")
RECORDS = ("data", "msg", "message", "raw", "payload")  # where recorders put the message
# Names beside "data" in messages of exchanges: there it is not a recorder's.
ENVELOPE = {"arg", "channel", "e", "stream", "topic", "type"}
HEARTBEAT = re.compile(rb"(?:.*[\s,;|])?\"?(?:ping|pong)\"?\s*", re.IGNORECASE)
LINES_TO_FIND_SYMBOLS = 10_000  # that are read on, to name all instruments in an error message


class Change(NamedTuple):
    """What one message does to the levels of one instrument."""

    symbol: str
    whole: bool  # whether it replaces the book
    time_ns: int | None  # None: the message does not tell; it gets its neighbour's
    bids: Sequence[Sequence]  # levels, each begins with price and size; a size of 0 removes
    asks: Sequence[Sequence]
    channel: str = ""  # of several channels with one instrument's book, the first one is read
    last: int | None = None  # id of the last update in it
    previous: int | None = None  # id of the update before it
    depth: int | None = None  # of a whole book: levels of a side, beyond which the feed is silent
    checksum: int | None = None  # CRC32 of the book after it


Parse = Callable[[Any], Iterator[Change]]


class TextBook:
    """The levels of an instrument as the exchange wrote them, as its checksums need them.

    depth: levels that are kept of a side (None: all); to_text: what stands for a level in the text
    of which the checksum is taken.
    """

    def __init__(self, depth: int | None, to_text: Callable[[str, str], str]):
        self.depth, self.to_text = depth, to_text
        # Of bids and asks: price and text of each level, by a key that sorts the best one first.
        self.levels: tuple[dict[float, tuple[str, str]], ...] = ({}, {})
        self.keys: tuple[list[float], ...] = ([], [])

    def take(self, change: Change) -> list[list[tuple[str, str]]]:
        """Apply a change; return the levels that fell out of the depth, as removed ones."""
        lost = []
        for side, (sign, sent) in enumerate(((-1, change.bids), (1, change.asks))):
            levels, keys = self.levels[side], self.keys[side]
            for price, size, *_ in sent:
                key = sign * float(price)
                if float(size) == 0:
                    if levels.pop(key, None):
                        keys.pop(bisect_left(keys, key))
                else:
                    if key not in levels:
                        insort(keys, key)
                    levels[key] = price, self.to_text(price, size)
            beyond = keys[self.depth :] if self.depth else []
            del keys[len(keys) - len(beyond) :]
            lost.append([(levels.pop(key)[0], "0") for key in beyond])
        return lost

    def best(self, side: int, count: int) -> list[str]:
        """Return the texts of the best levels of a side (0 bids, 1 asks)."""
        levels = self.levels[side]
        return [levels[key][1] for key in self.keys[side][:count]]


class Checksum(NamedTuple):
    """How an exchange computes the checksums of its messages."""

    to_text: Callable[[str, str], str]  # of a level's price and size
    join: Callable[[TextBook], str]  # the text of which it sends the CRC32


def read_changes(
    files: list[Path],
    symbol: str | None,
    parse: Parse,
    checksum: Checksum | None = None,
    loads: Callable[[Any], Any] = orjson.loads,
) -> Iterator[Batch]:
    """Read one instrument's messages as a stream over all files.

    symbol: the instrument; None: the only one; parse: what a message changes; checksum: how
    the exchange computes it; loads: reads JSON. Raises InputError if a line is no whole
    message, or if the files do not hold the instrument, or several and none is chosen.
    """
    stream = LevelStream(symbol, checksum)
    for file in files:
        line = 0
        try:
            for lines, file_bytes in read_lines(file):
                for text in lines:
                    line += 1
                    used = False
                    begin = MESSAGE_BEGINS.search(text)
                    if begin:
                        for change in parse(unwrap(loads(text[begin.start() :]), loads)):
                            used |= stream.take(line, change)
                    elif text.strip() and not HEARTBEAT.fullmatch(text):
                        raise ValueError("it holds no JSON")
                    stream.skipped["lines_passed_by"] += not used
                stream.check_symbol(file, len(lines))
                yield from stream.make_batches(file, file_bytes)
        except OSError as error:
            raise InputError(
                f"{file}, after line {line}: cannot be decompressed ({error}): fetch it again"
            ) from None
        except NOT_WHOLE as error:
            raise InputError(
                f"{file}, line {line}: no whole message of this feed ({error!r}): drop the line, "
                "or write each message in a line of its own"
            ) from None
    stream.check_symbol(files[0].parent, LINES_TO_FIND_SYMBOLS)
    yield from stream.make_batches(files[-1], files[-1].stat().st_size, at_end=True)


def unwrap(message: Any, loads: Callable[[Any], Any]) -> Any:
    """Return the message in a recorder's record, or the message itself if there is no record."""
    if isinstance(message, dict):
        for name in RECORDS:
            inner = message.get(name)
            if isinstance(inner, str) and inner[:1] in ("{", "["):
                return loads(inner)
            if isinstance(inner, dict | list) and (name != "data" or not ENVELOPE & message.keys()):
                return inner
    return message


def parse_time(time: Any) -> int:
    """Return a time as int ns since the epoch: ISO, or s, ms, us or ns, which the magnitude tells.

    Nothing is rounded. Raises ValueError if it is no time, or if it lies beyond the year 2261.
    """
    text = str(time)
    whole, _, fraction = text.partition(".")
    if not whole.isdigit():
        if text.endswith("Z"):
            return iso_to_ns(text[:-1])
        return pd.Timestamp(text).as_unit("ns").value
    length = len(whole)
    digits = 9 if length <= 11 else 6 if length <= 14 else 3 if length <= 17 else 0
    time_ns = int(whole) * 10**digits + int(fraction[:digits].ljust(digits, "0") or 0)
    if time_ns >= 2**63:
        raise ValueError(f"{text!r} lies beyond the year 2262")
    return time_ns


class Run(NamedTuple):
    """Ids and times of consecutive messages without a gap."""

    first: int
    last: int
    first_ns: int
    last_ns: int


class Rows(NamedTuple):
    """The update rows of one message."""

    kind: int
    line: int
    time_ns: int | None
    message: int
    bids: Sequence[Sequence]
    asks: Sequence[Sequence]


class LevelStream:
    """Follows one instrument; gathers the rows that its messages bring."""

    def __init__(self, symbol: str | None, checksum: Checksum | None):
        self.chosen = symbol is not None
        self.symbol, self.channel = symbol, ""
        self.symbols: dict[str, None] = {}  # all that were seen, in that order
        self.lines_since = 0  # lines read since a second instrument was seen
        self.checksum = checksum
        self.book: TextBook | None = None  # None: no checksum and no depth ask for one
        self.message = 0
        self.last: int | None = None  # id of the last update
        self.runs: list[Run] = []  # of the messages taken
        self.highest_id = self.latest_ns = 0  # among them
        self.known = False  # whether there is a book, since no message was lost after a whole one
        self.time_ns: int | None = None  # of the last message
        self.rows: list[Rows] = []  # for the next batch
        self.skipped: Counter[str] = Counter()

    def take(self, line: int, change: Change) -> bool:
        """Take a message's change; return whether it is of the instrument."""
        self.symbols[change.symbol] = None
        if self.symbol is None:
            self.symbol = change.symbol
        if change.symbol != self.symbol:
            return False
        for levels in (change.bids, change.asks):
            if levels and (str in map(type, levels) or min(map(len, levels)) < 2):
                raise ValueError("a level is no pair of price and size")
        self.channel = self.channel or change.channel
        if change.channel != self.channel:
            self.skipped["messages_of_other_channels"] += 1
            return True
        time_ns = self.time_ns if change.time_ns is None else change.time_ns
        follows = self.last is None or change.previous == self.last
        if not follows and (self.known or not change.whole) and self.is_repeated(change):
            self.skipped["messages_repeated"] += 1
            return True
        if not follows and not change.whole:
            self.put(GAP, line, time_ns, [("0", "0")], [])
            self.known = False
        self.known |= change.whole
        self.last, self.time_ns = change.last, time_ns
        self.note(change)
        bids, asks = self.follow(change)
        if change.whole and not (bids or asks):
            bids = [("0", "0")]  # an empty book
        if bids or asks:
            self.put(SNAPSHOT if change.whole else SET, line, time_ns, bids, asks)
        return True

    def note(self, change: Change) -> None:
        """Note an update's id and time in the run that it goes on with, or in a new one."""
        if change.last is None or change.time_ns is None:
            return
        self.highest_id = max(self.highest_id, change.last) if self.runs else change.last
        self.latest_ns = max(self.latest_ns, change.time_ns)
        run = self.runs[-1] if self.runs else None
        if run is not None and change.previous == run.last:
            self.runs[-1] = run._replace(last=change.last, last_ns=change.time_ns)
        else:
            self.runs.append(Run(change.last, change.last, change.time_ns, change.time_ns))

    def is_repeated(self, change: Change) -> bool:
        """Return whether a message came before: its id and its time lie in a run.

        A restart has a lower id too, but later; what was never read has an earlier time.
        """
        if change.last is None or change.time_ns is None or not self.runs:
            return False
        last, time_ns = change.last, change.time_ns
        if last > self.highest_id or time_ns > self.latest_ns:  # nearly always
            return False
        return any(
            run.first <= last <= run.last and run.first_ns <= time_ns <= run.last_ns
            for run in reversed(self.runs)
        )

    def follow(self, change: Change) -> tuple[Sequence[Sequence], Sequence[Sequence]]:
        """Return the levels that a change brings, with those that fall out of the feed's depth.

        A checksum that differs is counted.
        """
        if self.checksum is None:
            return change.bids, change.asks
        if change.whole:
            needed = change.depth is not None or change.checksum is not None
            self.book = TextBook(change.depth, self.checksum.to_text) if needed else None
        if self.book is None:
            return change.bids, change.asks
        lost_bids, lost_asks = self.book.take(change)
        if change.checksum is not None:
            found = zlib.crc32(self.checksum.join(self.book).encode())
            self.skipped["checksums_checked"] += 1
            # Some exchanges send it as a signed number.
            self.skipped["checksums_differ"] += found != change.checksum % 2**32
        return [*change.bids, *lost_bids], [*change.asks, *lost_asks]

    def put(self, kind: int, line: int, time_ns: int | None, bids: Any, asks: Any) -> None:
        self.message += 1
        self.rows.append(Rows(kind, line, time_ns, self.message, bids, asks))

    def check_symbol(self, place: Path, lines: int) -> None:
        """Raise InputError if the chosen instrument is missing, or if there are several to choose.

        It is raised some lines later than could be, so that the message names all of them.
        """
        at_end = lines == LINES_TO_FIND_SYMBOLS
        self.lines_since += lines if len(self.symbols) > 1 else 0
        there = ", ".join(sorted(self.symbols))
        if not self.chosen and self.lines_since >= LINES_TO_FIND_SYMBOLS:
            raise InputError(
                f"{place} holds {there}: take one of them, such as --symbol={min(self.symbols)}"
            )
        if at_end and not self.symbols:
            raise InputError(
                f"{place} holds no order book messages of this feed: record its book channel "
                "(training_data/README.md names it)"
            )
        if at_end and self.symbol not in self.symbols:
            raise InputError(f"{place} holds no {self.symbol}: set --symbol to one of {there}")

    def make_batches(self, file: Path, file_bytes: int, at_end: bool = False) -> Iterator[Batch]:
        """Yield the rows gathered since the last batch, with a row per level.

        They wait for the first message that tells its time, and while it is open which instrument
        is meant.
        """
        open_question = not self.chosen and len(self.symbols) > 1
        if open_question or (self.time_ns is None and not at_end):
            return
        skipped, self.skipped = dict(self.skipped), Counter()
        rows, self.rows = self.rows, []
        if not rows:
            if any(skipped.values()):
                yield count_only(file, file_bytes, skipped)
            return
        first_time = next((row.time_ns for row in rows if row.time_ns is not None), None)
        if first_time is None:
            raise InputError(f"{file} holds no message that tells its time: record updates too")
        kinds, lines, times, messages, bids, asks = zip(*rows, strict=True)
        sides = list(itertools.chain.from_iterable(zip(bids, asks, strict=True)))
        level_counts = np.array([len(side) for side in sides])
        counts = level_counts.reshape(-1, 2).sum(axis=1)
        levels = list(itertools.chain.from_iterable(sides))
        yield Batch(
            time_ns=np.repeat([first_time if time is None else time for time in times], counts),
            message=np.repeat(messages, counts),
            update_type=np.repeat(np.array(kinds, np.uint8), counts),
            is_buy=np.repeat(np.tile([True, False], len(rows)), level_counts),
            price=to_numbers([level[0] for level in levels]),
            size=to_numbers([level[1] for level in levels]),
            order_id=None,
            file=str(file),
            first_row=lines[0],
            file_bytes=file_bytes,
            lines=np.repeat(lines, counts),
            skipped=skipped,
        )


@functools.lru_cache(maxsize=2)
def plain_head(head: bytes) -> bytes:
    """Return a file's head without escapes and without spaces between words of JSON."""
    return re.sub(rb"\s*([:,\[\]{}])\s*", rb"\1", head.replace(b'\\"', b'"'))
