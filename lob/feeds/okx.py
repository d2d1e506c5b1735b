"""OKX's order book channels as received: raw recordings of `books` and its like."""

import re
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lob.feeds.batch import Batch, feed
from lob.feeds.json_lines import Change, Checksum, TextBook, parse_time, plain_head, read_changes

OKX = re.compile(rb'"exchange":"OK[EC]?X"|"arg":\{"channel":"[\w-]+","inst')


@feed(lambda head: OKX.search(plain_head(head)) is not None, needs_snapshot=True, by_symbol=True)
def read_okx(files: list[Path], symbol: str | None = None) -> Iterator[Batch]:
    """Read OKX's messages of one instrument, one a line: a whole book, then what changes in it.

    Each message names the one before it (`prevSeqId`), so a missing one is seen. A message's time
    is `ts`. Sizes are absolute, 0 removes a level. The checksum, where it is sent (not 0), is
    verified.
    """
    return read_changes(files, symbol, parse_okx, Checksum("{}:{}".format, join_okx))


def parse_okx(message: Any) -> Iterator[Change]:
    if not isinstance(message, dict) or "action" not in message or "arg" not in message:
        return
    for book in message["data"]:
        yield Change(
            symbol=message["arg"]["instId"],
            channel=message["arg"]["channel"],
            whole=message["action"] == "snapshot",
            time_ns=parse_time(book["ts"]),
            bids=book["bids"],
            asks=book["asks"],
            last=book.get("seqId"),
            previous=book.get("prevSeqId"),
            checksum=book.get("checksum") or None,
        )


def join_okx(book: TextBook) -> str:
    """Return bid, ask, bid, ask... of the best 25 levels; of a shorter side what there is."""
    levels = chain.from_iterable(zip_longest(book.best(0, 25), book.best(1, 25)))
    return ":".join(level for level in levels if level)
