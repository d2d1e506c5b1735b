"""Kraken's book channel as received: raw recordings of versions 1 and 2 of its WebSocket API."""

import functools
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from lob.feeds.batch import Batch, feed
from lob.feeds.json_lines import Change, Checksum, TextBook, parse_time, plain_head, read_changes

KRAKEN = re.compile(
    rb'"exchange":"KRAKEN"|"event":"(systemStatus|subscriptionStatus)"|,"book-\d+","'
    rb'|"channel":"(book|level3|status|ticker|trade|instrument)",("type":"(snap|upd)|"data":\[)'
    rb'|"channel":"heartbeat"\}'
    rb'|"method":"subscribe",("req_id":\d+,)?"result":\{"channel":'
)
MOST_DECIMALS = 30
DEPTHS = (10, 25, 100, 500, 1000)  # levels of a side that can be subscribed to
# The checksum is over the numbers as they were sent, so they are kept as texts.
loads = functools.partial(json.loads, parse_float=str, parse_int=str)


@feed(lambda head: KRAKEN.search(plain_head(head)) is not None, needs_snapshot=True, by_symbol=True)
def read_kraken(files: list[Path], symbol: str | None = None) -> Iterator[Batch]:
    """Read Kraken's messages of one pair, one a line: a whole book, then what changes in it.

    A subscription has a depth, and Kraken does not say when a level falls out of it: after each
    message both sides are cut to it. A message's time is the latest of its levels' (version 2: its
    `timestamp`). Sizes are absolute, 0 removes a level. The checksums are verified.
    """
    # Of version 2, by pair: the subscription's depth, and decimals of prices and of sizes.
    parse = functools.partial(parse_kraken, {}, {})
    return read_changes(files, symbol, parse, Checksum(to_text, join_kraken), loads)


def parse_kraken(
    depths: dict[str, int], decimals: dict[str, list[int]], message: Any
) -> Iterator[Change]:
    if isinstance(message, list):
        if len(message) >= 4 and str(message[-2]).startswith("book-"):
            yield parse_version_1(message)
    elif message.get("channel") == "book":
        for book in message["data"]:
            yield parse_version_2(message["type"] == "snapshot", book, depths, decimals)
    elif message.get("method") == "subscribe":
        answer = message.get("result") or {}
        if "depth" in answer:
            depths[answer["symbol"]] = int(answer["depth"])


def parse_version_1(message: list) -> Change:
    """Return the change of [channel, levels, perhaps levels of the other side, "book-N", pair]."""
    *parts, channel, pair = message[1:]
    levels = {name: value for part in parts for name, value in part.items()}
    whole = "as" in levels or "bs" in levels
    bids, asks = (levels.get(name + "s" * whole, []) for name in "ba")
    # A level that is sent again, because it came back into the depth, has the time of old.
    times = [parse_time(level[2]) for level in (*bids, *asks) if level[3:] != ["r"]]
    return Change(
        symbol=pair,
        channel=channel,
        whole=whole,
        time_ns=max(times, default=None),
        bids=bids,
        asks=asks,
        depth=int(channel.removeprefix("book-")),
        checksum=int(levels["c"]) if "c" in levels else None,
    )


def parse_version_2(
    whole: bool, book: dict[str, Any], depths: dict[str, int], decimals: dict[str, list[int]]
) -> Change:
    symbol = book["symbol"]
    bids, asks = (
        [(level["price"], level["qty"]) for level in book.get(side, [])]
        for side in ("bids", "asks")
    )
    if whole:
        decimals[symbol] = [
            max((count_decimals(level[place]) for level in (*bids, *asks)), default=0)
            for place in (0, 1)
        ]
    size = max(len(bids), len(asks))
    return Change(
        symbol=symbol,
        whole=whole,
        time_ns=parse_time(book["timestamp"]) if "timestamp" in book else None,
        bids=[fill_up(level, decimals.get(symbol, [0, 0])) for level in bids],
        asks=[fill_up(level, decimals.get(symbol, [0, 0])) for level in asks],
        # Without the subscription's answer a whole book tells the depth, unless it is shallower.
        depth=depths.get(symbol, size if size in DEPTHS else None),
        checksum=int(book["checksum"]) if "checksum" in book else None,
    )


def count_decimals(text: str) -> int:
    """Return a number's decimals. Raises ValueError if it is none, or has far too many."""
    if "e" not in text and "E" not in text:
        return len(text.partition(".")[2])
    exponent = int(to_decimal(text).as_tuple().exponent)
    if abs(exponent) > MOST_DECIMALS:
        raise ValueError(f"{text!r} is no price and no size")
    return max(-exponent, 0)


def to_decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise ValueError(f"{text!r} is no number") from None


def fill_up(level: tuple[str, str], decimals: list[int]) -> tuple[str, str]:
    """Return price and size as they were sent, where a recorder has read and written them again.

    That drops zeros at their end, and writes 0.00000006 as 6e-08. The checksum is over the texts as
    sent: their decimals are as many as those of the whole book at most.
    """
    price, size = (
        f"{to_decimal(text):.{max(most, count)}f}" if count < most or "e" in text.lower() else text
        for text, most, count in zip(level, decimals, map(count_decimals, level), strict=True)
    )
    return price, size


def to_text(price: str, size: str) -> str:
    """Return price and size without the dot and the zeros before the first digit."""
    return price.replace(".", "").lstrip("0") + size.replace(".", "").lstrip("0")


def join_kraken(book: TextBook) -> str:
    return "".join([*book.best(1, 10), *book.best(0, 10)])
