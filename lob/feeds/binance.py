"""Binance's messages as received: raw recordings of spot, USD-M and COIN-M futures.

A block of lines is read in one of two ways, with the same result. If all its messages have the form
that Binance usually sends, Arrow reads them at once (`BinanceStream.read_alike`). If not, orjson
reads them one by one (`Block`), which is slower, but finds the line at fault.
"""

import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lob.config import InputError
from lob.feeds.batch import GAP, SET, SNAPSHOT, Batch, count_only, feed, to_ns
from lob.feeds.binance_json import Block, Depth, parse_json, read_columns, read_levels
from lob.feeds.binance_lines import PLAIN_LINE, is_binance, to_plain_lines
from lob.feeds.recordings import read_line_blocks

MOST_RECENT = 1000  # messages kept for a snapshot that is still to come
DEPTH, UPDATE_ID = b'"depthUpdate"', b'"lastUpdateId"'  # in each depthUpdate; in each snapshot
PARTIAL_LEVELS = (5, 10, 20)
PARTIAL = 255  # kind of a partial book in `Depth`: no type of a row
SAME_UPDATE_NS = 10**9  # two connections stamp the same update at most this far apart
NOT_WHOLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError)  # of a damaged line


class WrongSymbol(Exception):
    """A message is of another symbol than those before it."""


@feed(is_binance, by_symbol=True)
def read_binance(files: list[Path], symbol: str | None = None) -> Iterator[Batch]:
    """Read Binance's messages of one symbol (spot, USD-M or COIN-M), one a line.

    The reader uses the `depthUpdate` messages (bare or in a combined stream) and the REST depth
    snapshots. A message's time is the transaction time T or, on spot, the event time E. Sizes are
    absolute, and 0 removes a level. A snapshot makes no state of its own: its rows belong to the
    message that bridges it (see `BinanceStream`). The files are one stream.

    Partial books (streams such as `@depth20`) hold the best levels alone. Beside differences they
    are passed by and counted (partial_books). If a recording has no differences, each of its books,
    partial or REST, is a state, with the local time if it has none of its own.
    """
    stream = BinanceStream()
    for file in files:
        line = file_bytes = 0
        stream.file = str(file)
        try:
            for lines, file_bytes in read_line_blocks(file):
                first_line = line
                lines = to_plain_lines(lines, symbol, file, line + 1)
                found = find_messages(lines, line + 1)
                if not all(PLAIN_LINE.match(text) for _, text in found):
                    lines = to_plain_lines(lines, symbol, file, line + 1, alike=False)
                    found = find_messages(lines, line + 1)
                last_line = line + lines.count(b"\n")
                stream.skipped["lines_passed_by"] += last_line - first_line - len(found)
                messages = stream.read_alike(found := stream.pass_partial(found))
                if messages is None:
                    block = Block()
                    for line, text in found:  # `line` is named below if the message is at fault
                        stream.add(block, line, text)
                    messages = block.make_messages()
                for message in messages:
                    stream.take(message)
                line = last_line
                if stream.has_rows():
                    yield stream.make_batch(file, file_bytes)
        except OSError as error:
            raise InputError(
                f"{file}, after line {line}: cannot be decompressed ({error}): fetch it again"
            ) from None
        except WrongSymbol as error:
            raise InputError(f"{file}, line {line}: {error}") from None
        except NOT_WHOLE as error:
            raise InputError(
                f"{file}, line {line}: no whole Binance message ({error!r}): drop the line, or "
                "write each message in a line of its own"
            ) from None
        if file == files[-1]:
            stream.end()
            if stream.has_rows():
                yield stream.make_batch(file, file_bytes)
        if stream.skipped:
            yield count_only(file, file_bytes, stream.take_skipped())
    if not stream.begun:
        raise InputError(
            f"{files[0].parent} holds no REST depth snapshot that its depthUpdate messages "
            "continue, so the book is never known: record one (GET depth?limit=1000) after the "
            "stream"
        )


def find_messages(lines: bytes, line: int) -> list[tuple[int, bytes]]:
    """Return number and text of each line that holds DEPTH or UPDATE_ID.

    `line` is the number of the first line. Most lines are trades and best prices: one search
    through all of them is faster than a search in each.
    """
    found, end = [], 0
    for place in sorted([*find_all(lines, DEPTH), *find_all(lines, UPDATE_ID)]):
        if place >= end:  # else this line was found already
            begin = lines.rfind(b"\n", end, place) + 1 or end
            line += lines.count(b"\n", end, begin)
            end = lines.index(b"\n", place)
            found.append((line, lines[begin:end]))
    return found


def find_all(text: bytes, word: bytes) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


@dataclass(slots=True)
class Run:
    """Consecutive messages without a gap."""

    file: str  # that the first one stands in
    previous: int  # id of the update before the first one
    last: int  # id of the last update
    first_time: int  # the earliest time, in ns
    last_time: int  # the latest


def partial_symbol(text: bytes) -> str:
    """Return the symbol of the stream of partial books that a line names; "" if it names none.

    Such a stream is `btcusdt@depth20@100ms`; `btcusdt@depth@100ms` is one of differences.
    """
    place = text.find(b"@depth", 0, 120)
    if place < 0:
        place = text.find(b"@depth", len(text) - 60)
    if place < 0 or not text[place + 6 : place + 7].isdigit():
        return ""
    return text[text.rfind(b'"', 0, place) + 1 : place].decode().upper()


class BinanceStream:
    """Follows one symbol by Binance's rules ("How to manage a local order book correctly").

    A depthUpdate holds the updates with ids from `U` to `u`. It follows another one if its `pu` is
    the other's `u` (futures), or if its `U` is the other's u + 1 (spot). It may also begin earlier,
    since sizes are absolute. It was delivered twice if its id and its time are those of messages
    before. A later one with a lower id begins the ids anew: there is a gap, and the next snapshot
    counts.

    A snapshot shows the book after update L. The first message with u >= L (spot: u > L) bridges it
    to the stream, provided that no update is missing between L and this message. It is used when
    the next message has shown that the ids go on.

    A snapshot of a known book adds the levels that were too deep for those before it, and removes
    none: it may hold fewer itself. Whole books that come before the first depthUpdate wait until it
    shows that there are differences.
    """

    def __init__(self) -> None:
        self.symbol: str | None = None
        self.book_symbol: str | None = None  # of partial books
        self.spot = False
        self.message = 0  # number of the last message
        self.last: int | None = None  # update id that the stream has reached
        self.begun = False  # whether the book was ever known
        self.known = False  # whether the book is known now
        self.loss_told = False  # whether a GAP row has told that messages are missing
        self.snapshot: Depth | None = None  # waits for the message that bridges it
        # A snapshot stands in the file up to some seconds after its time. The messages since then
        # have to be applied to it.
        self.recent: deque[Depth] = deque(maxlen=MOST_RECENT)
        self.most_levels = 0  # of a side of a snapshot
        self.differences: bool | None = None  # whether there are depthUpdates of differences
        self.books: list[Depth] = []  # wait until this is known
        self.unused = 0  # messages since the book has been unknown
        self.skipped: Counter[str] = Counter()  # what was passed by since the last batch
        self.rows: list[tuple[int, Depth]] = []  # for the next batch: message number, its levels
        self.file = ""  # that the messages are read from
        self.runs: list[Run] = []  # of all messages taken

    def add(self, block: Block, line: int, text: bytes) -> None:
        """Add a message to a block."""
        data = parse_json(text)
        partial = partial_symbol(text)
        if DEPTH in text and not partial:
            self.add_depth(block, line, data)
            return
        if partial:
            self.check_symbol(partial, self.symbol or self.book_symbol)
            self.book_symbol = partial
        sides = ("b", "a") if DEPTH in text else ("bids", "asks")
        last = data["u" if DEPTH in text else "lastUpdateId"]
        time = data.get("T") or data.get("E") or int(text.partition(b" ")[0])
        bids, asks = (data[side] for side in sides)
        block.add(PARTIAL if partial else SNAPSHOT, line, time, last, last, bids, asks)

    def add_depth(self, block: Block, line: int, data: dict[str, Any]) -> None:
        """Add a depthUpdate to a block; the stream's first one tells symbol and market."""
        if self.symbol is None:
            self.symbol, self.spot = data["s"], "pu" not in data
        self.check_symbol(data["s"], self.symbol)
        if ("pu" in data) == ("T" in data) == self.spot:
            raise WrongSymbol(
                f"it is of {'futures' if self.spot else 'spot'}, those before it are of the other "
                "market: keep each market in a folder of its own"
            )
        previous = data["U"] - 1 if self.spot else data["pu"]
        time = data["T"] if "T" in data else data["E"]
        block.add(SET, line, time, data["u"], previous, data["b"], data["a"])

    def check_symbol(self, symbol: str, before: str | None) -> None:
        if before is not None and symbol != before:
            raise WrongSymbol(
                f"it is of {symbol}, those before it of {before}: take one of them, such as "
                f"--symbol={before}"
            )

    def pass_partial(self, found: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Return lines without those of partial books, if there are differences to read."""
        if not self.differences:
            return found
        kept = [(line, text) for line, text in found if not partial_symbol(text)]
        self.skipped["partial_books"] += len(found) - len(kept)
        return kept

    def read_alike(self, found: list[tuple[int, bytes]]) -> list[Depth] | None:
        """Read a block's messages at once if they are depthUpdates as Binance usually sends them.

        Return None if they are not, or if a snapshot is among them: they have to be read one by
        one, which takes twice the time.
        """
        text = b"\n".join(line.partition(b" ")[2] for _, line in found)
        if self.symbol is None or not self.differences or UPDATE_ID in text:
            return None
        try:
            columns = read_columns(text)
            if set(columns["s"].to_pylist()) != {self.symbol} or len(columns["s"]) != len(found):
                return None
            link, time = ("U", "E") if self.spot else ("pu", "T")
            if self.spot and min(columns[name].null_count for name in ("T", "pu")) < len(found):
                return None  # a T on spot would be the message's time, and futures have a pu
            times, lasts, links = (columns[name].to_pylist() for name in (time, "u", link))
            bids, asks = (read_levels(columns[name]) for name in "ba")
        except (pa.ArrowInvalid, ValueError):
            return None
        if None in times or None in lasts or None in links:
            return None
        times = to_ns(np.array(times)).tolist()
        return [
            Depth(SET, line, times[row], lasts[row], links[row] - self.spot, bids[row], asks[row])
            for row, (line, _) in enumerate(found)
        ]

    def take(self, message: Depth) -> None:
        """Take the next message of the stream, and put the rows that it brings."""
        if self.differences and message.kind == SET:
            self.take_depth(message)
            self.use_snapshot(message.line)
            return
        if message.kind != SET and not self.differences:
            self.books.append(message)
            if self.differences is False or len(self.books) == MOST_RECENT:
                self.put_books()
            return
        if self.differences is False:
            self.skipped["depth_updates_passed_by"] += 1
            return
        self.differences = True
        books, self.books = self.books, []
        for each in (*books, message):
            if each.kind == SET:
                self.take_depth(each)
            elif self.is_partial(each):
                self.skipped["partial_books"] += 1
            else:
                self.use_snapshot(each.line)  # the one before it
                self.drop_snapshot()
                self.snapshot = each

    def is_partial(self, book: Depth) -> bool:
        """Return whether a book is partial, which only streams with a name say.

        One of 5, 10 or 20 levels beside larger snapshots is taken for partial too.
        """
        bids, asks = len(book.bids), len(book.asks)
        larger = self.most_levels > PARTIAL_LEVELS[-1]
        self.most_levels = max(self.most_levels, bids, asks)
        return book.kind == PARTIAL or (larger and bids == asks and bids in PARTIAL_LEVELS)

    def put_books(self) -> None:
        """Put the waiting books, each a state: there are no differences."""
        self.differences = False
        books, self.books = self.books, []
        for book in books:
            self.put_rows(self.message + 1, book._replace(kind=SNAPSHOT))
            self.begun = True

    def end(self) -> None:
        """Put what still waits at the end of the stream, be it a snapshot."""
        if self.books:
            self.put_books()
        if self.snapshot is not None:
            self.use_snapshot(self.snapshot.line)
            self.drop_snapshot()
        self.skipped["messages_before_snapshot"] += self.unused

    def take_skipped(self) -> dict[str, int]:
        skipped = {name: count for name, count in self.skipped.items() if count}
        self.skipped.clear()
        return skipped

    def take_depth(self, depth: Depth) -> None:
        if self.last is None:
            self.begin_run(depth)
        elif depth.previous <= self.last < depth.last:  # all between is in one of the two
            if self.snapshot is not None:
                self.use_snapshot(depth.line)
            if len(self.recent) == MOST_RECENT and not self.known:
                self.lose_book(depth)
        elif self.is_repeated(depth):
            self.skipped["messages_repeated"] += 1
            return
        else:
            self.end_run(depth)
            self.lose_book(depth)
            self.begin_run(depth)
        run = self.runs[-1]
        if depth.time > run.last_time:
            run.last_time = depth.time
        elif depth.time < run.first_time:
            run.first_time = depth.time
        self.last = run.last = depth.last
        self.recent.append(depth)
        if self.known:
            self.put_rows(self.message + 1, depth)
        else:
            self.unused += 1
        if self.snapshot is not None:  # it was ahead of the stream
            self.use_snapshot(depth.line)

    def is_repeated(self, depth: Depth) -> bool:
        """Return whether a message was delivered before: its id and its time lie in a run."""
        if depth.last == self.last and 0 <= depth.time - self.runs[-1].last_time <= SAME_UPDATE_NS:
            return True
        return any(
            run.previous < depth.last <= run.last and run.first_time <= depth.time <= run.last_time
            for run in reversed(self.runs)
        )

    def begin_run(self, depth: Depth) -> None:
        self.runs.append(Run(self.file, depth.previous, depth.last, depth.time, depth.time))

    def end_run(self, depth: Depth) -> None:
        """Leave the run that a message does not follow.

        If ids begin anew with a lower one, a snapshot that came since the last message is of the
        new ids, unless it is ahead of them.
        """
        run = self.runs[-1]
        begins_anew = depth.last <= run.last
        if begins_anew and not self.begun and depth.time < run.first_time:
            raise InputError(
                f"{self.file}, line {depth.line} is of {np.datetime64(depth.time, 'ns')}, but "
                f"{run.file} before it begins at {np.datetime64(run.first_time, 'ns')}: name the "
                "files so that they sort by time"
            )
        if not (begins_anew and self.snapshot and self.snapshot.last <= depth.last):
            self.use_snapshot(depth.line)
            if begins_anew:
                self.drop_snapshot()
        self.recent.clear()

    def use_snapshot(self, line: int) -> None:
        """Put the waiting snapshot's rows and the later messages', once the stream has reached it.

        If the book is known already, these rows become the end of the last message. The state after
        it stays as it was, but for levels that lay too deep for the first snapshot.
        """
        snapshot = self.snapshot
        if snapshot is None or self.last is None or self.last < snapshot.last + self.spot:
            return
        later = [depth for depth in self.recent if depth.last >= snapshot.last + self.spot]
        if later[0].previous > snapshot.last:  # it is older than the messages kept
            self.drop_snapshot()
            return
        self.snapshot = None
        numbers = list(range(self.message + 1, self.message + 1 + len(later)))
        times = [depth.time for depth in later]
        kind = SNAPSHOT
        if self.known:
            kind = SET
            self.skipped["snapshots"] += 1
            numbers = [self.message] * len(later)
            times = [times[-1]] * len(later)
        else:
            self.skipped["messages_before_snapshot"] += self.unused - len(later)
            self.unused = 0
        self.put_rows(numbers[0], snapshot._replace(kind=kind, line=line, time=times[0]))
        for number, time, depth in zip(numbers, times, later, strict=True):
            self.put_rows(number, depth._replace(line=line, time=time))
        self.begun, self.known, self.loss_told = True, True, False

    def drop_snapshot(self) -> None:
        self.skipped["snapshots_unused"] += self.snapshot is not None
        self.snapshot = None

    def lose_book(self, depth: Depth) -> None:
        """Put a GAP row, unless the last loss is still open: the book is unknown from here on."""
        if not self.loss_told:
            gap = depth._replace(kind=GAP, bids=np.zeros((1, 2)), asks=np.zeros((0, 2)))
            self.put_rows(self.message + 1, gap)
        self.known, self.loss_told = False, True

    def put_rows(self, number: int, message: Depth) -> None:
        self.rows.append((number, message))
        self.message = number

    def has_rows(self) -> bool:
        return any(len(message.bids) or len(message.asks) for _, message in self.rows)

    def make_batch(self, file: Path, file_bytes: int) -> Batch:
        """Turn the messages gathered since the last batch into a batch, with a row per level."""
        numbers, messages = zip(*self.rows, strict=True)
        self.rows = []
        kinds, lines, times, _, _, bids, asks = zip(*messages, strict=True)
        sides = list(itertools.chain.from_iterable(zip(bids, asks, strict=True)))
        level_counts = np.array([len(side) for side in sides])
        rows = level_counts.reshape(-1, 2).sum(axis=1)  # of each message
        price, size = np.concatenate(sides).T
        return Batch(
            time_ns=np.repeat(times, rows),
            message=np.repeat(numbers, rows),
            update_type=np.repeat(np.array(kinds, np.uint8), rows),
            is_buy=np.repeat(np.tile([True, False], len(rows)), level_counts),
            price=np.ascontiguousarray(price),
            size=np.ascontiguousarray(size),
            order_id=None,
            file=str(file),
            first_row=lines[0],
            file_bytes=file_bytes,
            lines=np.repeat(lines, rows),
            skipped=self.take_skipped(),
        )
