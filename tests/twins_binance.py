"""A slow twin reading of Binance's messages (see tests/twins.py)."""

import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from twins import Fault, File, Message, Row, Told, Unsure, number, since_epoch, size_of
from twins_json import NOT_WHOLE, load, pairs

from lob.feeds.batch import GAP, SET, SNAPSHOT

NO_NUMBER = 99  # kind of a row


class Depth(NamedTuple):
    """A message: differences, a whole book, or a partial one that its stream's name tells."""

    kind: str  # "differences", "book" or "partial"
    time_ns: int
    last: int
    previous: int
    rows: list[Row]  # as differences


class Run(NamedTuple):
    previous: int
    messages: list[Depth]

    @property
    def times(self) -> list[int]:
        return [message.time_ns for message in self.messages]


class Binance:
    """Runs of differences that follow one another; a snapshot is used in the run that it fits."""

    def __init__(self, spot: bool):
        self.spot = spot
        self.runs: list[Run] = []
        self.messages: list[Message] = []
        self.known = self.begun = self.loss_told = False
        self.waiting: Depth | None = None  # a snapshot
        self.skipped: Counter[str] = Counter()
        self.most_levels = 0
        self.used = 0  # messages that are in a state

    def take_book(self, book: Depth) -> None:
        sides = [sum(row.is_buy == side for row in book.rows) for side in (True, False)]
        beside_larger = self.most_levels > 20
        self.most_levels = max(self.most_levels, *sides)
        small = sides[0] == sides[1] and sides[0] in (5, 10, 20)
        if book.kind == "partial" or (beside_larger and small):
            self.skipped["partial_books"] += 1
            return
        self.use_snapshot()
        self.drop_snapshot()
        self.waiting = book  # it is used when the next message has shown that the ids go on

    def drop_snapshot(self) -> None:
        self.skipped["snapshots_unused"] += self.waiting is not None
        self.waiting = None

    def take_differences(self, depth: Depth) -> None:
        if not self.runs:
            self.runs.append(Run(depth.previous, []))
        else:
            run = self.runs[-1]
            last = run.messages[-1].last
            if not depth.previous <= last < depth.last:
                if self.is_repeated(depth):
                    self.skipped["messages_repeated"] += 1
                    return
                self.break_off(depth)
            else:
                self.use_snapshot()
        self.runs[-1].messages.append(depth)
        if self.known:
            self.messages.append(Message(depth.time_ns, list(depth.rows)))
            self.used += 1
        self.use_snapshot()

    def is_repeated(self, depth: Depth) -> bool:
        newest = self.runs[-1].messages[-1]
        latest = max(self.runs[-1].times)
        if depth.last == newest.last and 0 <= depth.time_ns - latest <= 10**9:
            return True
        return any(
            run.previous < depth.last <= run.messages[-1].last
            and min(run.times) <= depth.time_ns <= max(run.times)
            for run in self.runs
        )

    def break_off(self, depth: Depth) -> None:
        """End the run: ids are missing, or they begin anew with a lower one."""
        run = self.runs[-1]
        anew = depth.last <= run.messages[-1].last
        if anew and not self.begun and depth.time_ns < min(run.times):
            raise Fault("files in the wrong order")
        of_new_ids = anew and self.waiting is not None and self.waiting.last <= depth.last
        if not of_new_ids:
            self.use_snapshot()
            if anew:
                self.drop_snapshot()
        if not self.loss_told:
            row = Row(GAP, True, Decimal(0), Decimal(0))
            self.messages.append(Message(depth.time_ns, [row]))
        self.known, self.loss_told = False, True
        self.runs.append(Run(depth.previous, []))

    def use_snapshot(self) -> None:
        """Put the waiting snapshot below the messages of this run that it doesn't hold yet."""
        book = self.waiting
        if book is None or not self.runs or not self.runs[-1].messages:
            return
        later = [each for each in self.runs[-1].messages if each.last >= book.last + self.spot]
        if not later:
            return
        if later[0].previous > book.last:
            self.drop_snapshot()
            return
        self.waiting = None
        whole = whole_rows(book)
        if self.known:
            self.skipped["snapshots"] += 1
            self.messages[-1].rows.extend(book.rows)
            for each in later:
                self.messages[-1].rows.extend(each.rows)
            return
        for place, each in enumerate(later):
            self.messages.append(Message(each.time_ns, (whole if not place else []) + each.rows))
        self.used += len(later)
        self.begun, self.known, self.loss_told = True, True, False


def whole_rows(book: Depth) -> list[Row]:
    return [row._replace(kind=max(row.kind, SNAPSHOT)) for row in book.rows]


def tell_binance(_feed: str, files: list[File]) -> Told:
    read = [(kind, message) for _, data in files for kind, message in read_binance_lines(data)]
    passed_by = sum(kind == "none" for kind, _ in read)
    told = [message for kind, message in read if kind != "none"]
    symbols = {symbol for symbol, _, _ in told if symbol}
    if len(symbols) > 1:
        if len({symbol for symbol, _, each in told if each.kind == "differences"}) == 1:
            raise Unsure("a partial book of another symbol, which may be passed by")
        raise Fault(f"symbols: {symbols}")
    differences = [spot for _, spot, each in told if each.kind == "differences"]
    if not differences:
        messages = [Message(each.time_ns, whole_rows(each)) for *_, each in told]
        if not messages:
            raise Fault("no book")
        return Told([check_rows(messages)], Counter(lines_passed_by=passed_by))
    stream = Binance(differences[0])
    for *_, each in told:
        if each.kind == "differences":
            stream.take_differences(each)
        else:
            stream.take_book(each)
    stream.use_snapshot()
    stream.drop_snapshot()
    if not stream.begun:
        raise Fault("no snapshot")
    count = sum(len(run.messages) for run in stream.runs)
    stream.skipped["messages_before_snapshot"] += count - stream.used
    stream.skipped["lines_passed_by"] += passed_by
    return Told([check_rows(stream.messages)], stream.skipped)


def read_binance_lines(data: bytes) -> Iterator[tuple[str, Any]]:
    """Yield of each line its kind, and symbol, whether it is spot's, and the message."""
    spot = None
    for line in data.removesuffix(b"\n").split(b"\n"):
        if b'"depthUpdate"' not in line and b'"lastUpdateId"' not in line:
            if b"depthUpdate" in line or b"lastUpdateId" in line:
                raise Unsure("a damaged name")
            yield "none", None
            continue
        begin = re.fullmatch(rb"(\d+) (\{.*)", line)
        if not begin:
            if b"{" not in line:
                yield "none", None  # a message that has lost its beginning
                continue
            raise Unsure("a damaged local time")
        try:
            message = load(begin[2], as_sent=False)
            stream = str(message.get("stream", ""))
            told = message.get("data", message)
            partial = re.search(r"(\w+)@depth\d", stream)
            is_update = b'"depthUpdate"' in line
            if is_update and not partial:
                spot = "pu" not in told if spot is None else spot
                if {"pu", "T"} <= told.keys() if spot else not {"pu", "T"} & told.keys():
                    raise Fault("spot and futures")
                time = told["T"] if "T" in told else told["E"]
                last, previous = told["u"], told["U"] - 1 if spot else told["pu"]
                found = Depth("differences", 0, last, previous, [])
                symbol = told["s"]
            else:
                time = told.get("T") or told.get("E") or int(begin[1])
                last = told["u" if is_update else "lastUpdateId"]
                found = Depth("partial" if partial else "book", 0, last, last, [])
                symbol = partial[1].upper() if partial else ""
            names = ("b", "a") if is_update else ("bids", "asks")
            rows = []
            for is_buy, name in zip((True, False), names, strict=True):
                for level in told[name]:
                    if not isinstance(level, list) or len(level) != 2:
                        raise Fault("a level is no pair")
                    price, size = pairs([level])[0]
                    rows.append(binance_row(is_buy, price, size))
            if not all(isinstance(each, int) for each in (time, last, found.previous)):
                raise Fault("an id or a time is no whole number")
            try:
                time_ns = since_epoch(time)
            except Fault:
                raise Unsure("no time, of a message that may not be used") from None
            yield found.kind, (symbol, spot, found._replace(time_ns=time_ns, rows=rows))
        except (*NOT_WHOLE, Fault) as error:
            if re.search(rb"@depth\d", line):
                raise Unsure("a damaged partial book, which may be passed by") from None
            raise Fault(repr(error)) from None


def binance_row(is_buy: bool, price: str, size: str) -> Row:
    """Return a level; one that is no number counts if its message is used."""
    try:
        return Row(SET, is_buy, number(price), size_of(size))
    except Fault:
        return Row(NO_NUMBER, is_buy, Decimal(0), Decimal(0))


def check_rows(messages: list[Message]) -> list[Message]:
    """Return the messages that have rows. Raises Fault if one has a level that is no number."""
    if any(row.kind == NO_NUMBER for message in messages for row in message.rows):
        raise Fault("no number")
    return [message for message in messages if message.rows]
