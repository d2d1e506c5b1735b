"""Coinbase's level2 channel as received: raw recordings of Exchange and of Advanced Trade."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lob.feeds.batch import Batch, feed
from lob.feeds.json_lines import Change, parse_time, plain_head, read_changes

COINBASE = re.compile(
    rb'"exchange":"COINBASE"|"type":"(l2update|subscriptions)"|"channel":"l2_data"'
    rb'|"type":"\w+",("sequence":\d+,)?"product_id":|"channel":"(subscriptions|heartbeats)",'
    rb'|"type":"(received|open|done|match)","(order_id|side|product_id|trade_id)":'
)
NO_TIMES = ("0001-01-01", "1970-01-01")  # what stands for a time that is not known
SIDES = {"buy": 0, "bid": 0, "sell": 1, "offer": 1, "ask": 1}


@feed(
    lambda head: COINBASE.search(plain_head(head)) is not None, needs_snapshot=True, by_symbol=True
)
def read_coinbase(files: list[Path], symbol: str | None = None) -> Iterator[Batch]:
    """Read Coinbase's messages of one product, one a line: a whole book, then what changes in it.

    Exchange sends `snapshot` and `l2update`, Advanced Trade `l2_data`. A message's time is its
    `time` (`timestamp`). Sizes are absolute, 0 removes a level. Neither has a checksum. Advanced
    Trade numbers all messages of a connection: if a number is missing, so may be an update.
    """
    return read_changes(files, symbol, CoinbaseParser().parse)


class CoinbaseParser:
    """Follows the numbers of Advanced Trade's messages, which all products share."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the connection's last message
        self.time_ns = 0  # its time
        self.breaks = 0  # how often a number was missing

    def parse(self, message: Any) -> Iterator[Change]:
        if not isinstance(message, dict):
            return
        previous = self.follow(message) if "sequence_num" in message else None
        if message.get("channel") == "l2_data":
            for event in message["events"]:
                bids, asks = split(
                    (update["side"], update["price_level"], update["new_quantity"])
                    for update in event["updates"]
                )
                yield Change(
                    symbol=event["product_id"],
                    whole=event["type"] == "snapshot",
                    time_ns=parse_time(message["timestamp"]),
                    bids=bids,
                    asks=asks,
                    last=self.breaks,
                    previous=previous,
                )
        elif message.get("type") in ("snapshot", "l2update"):
            whole = message["type"] == "snapshot"
            bids, asks = (message["bids"], message["asks"]) if whole else split(message["changes"])
            yield Change(
                symbol=message["product_id"],
                whole=whole,
                time_ns=told_time(message.get("time")),
                bids=bids,
                asks=asks,
            )

    def follow(self, message: dict[str, Any]) -> int:
        """Return the number of breaks before a message; -1 if it was delivered before."""
        number, time_ns = message["sequence_num"], parse_time(message["timestamp"])
        if self.number is not None:
            if number <= self.number and time_ns <= self.time_ns:
                return -1
            self.breaks += number != self.number + 1
        self.number, self.time_ns = number, time_ns
        return self.breaks


def told_time(time: str | None) -> int | None:
    return None if not time or str(time).startswith(NO_TIMES) else parse_time(time)


def split(changes: Any) -> tuple[list, list]:
    """Return bids and asks of changes (side, price, size)."""
    sides: tuple[list, list] = ([], [])
    for side, *level in changes:
        sides[SIDES[side]].append(level)
    return sides
