"""Binance's messages as received: raw recordings of spot, USD-M and COIN-M."""

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lob.config import InputError
from lob.feeds.batch import GAP, SET, SNAPSHOT, Batch, feed, to_ns
from lob.feeds.binance_json import NO_SYMBOL, Depths, LineScanner, join_depths, make_depth, parse_depth, parse_json
from lob.feeds.recordings import read_line_blocks

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
