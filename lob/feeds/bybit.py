"""Bybit's order book messages: its archives as downloaded, and raw recordings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lob.feeds.batch import Batch, feed
from lob.feeds.json_lines import Change, parse_time, plain_head, read_changes

BYBIT = re.compile(rb'"topic":"(orderbook|publicTrade|tickers|kline|liquidation|allLiquidation)\.')


@feed(lambda head: BYBIT.search(plain_head(head)) is not None, needs_snapshot=True, by_symbol=True)
def read_bybit(files: list[Path], symbol: str | None = None) -> Iterator[Batch]:
    """Read Bybit's messages of one instrument, one a line: a whole book, then what changes in it.

    Update ids (`u`) count up by one, so a missing message is seen; 1 begins a whole book. A
    message's time is `ts`. Sizes are absolute, 0 removes a level.
    """
    return read_changes(files, symbol, parse_bybit)


def parse_bybit(message: Any) -> Iterator[Change]:
    if isinstance(message, dict) and str(message.get("topic")).startswith("orderbook."):
        book = message["data"]
        yield Change(
            symbol=book["s"],
            channel=message["topic"],
            whole=message["type"] == "snapshot" or book["u"] == 1,
            time_ns=parse_time(message["ts"]),
            bids=book["b"],
            asks=book["a"],
            last=book["u"],
            previous=book["u"] - 1,
        )
