"""Binance's JSON made into numbers: a block at once by Arrow, or line by line by orjson."""

import io
import itertools
from array import array
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
from pyarrow import json as pj

from lob.feeds.batch import to_ns

# What once stood in a level behind price and size.
NOTHING: tuple[list, ...] = ([[]], [{}], [""], [None])

LEVELS = pa.list_(pa.list_(pa.string()))
NUMBERS = [(name, pa.int64()) for name in ("E", "T", "U", "u", "pu")]
FIELDS = [*NUMBERS, ("s", pa.string()), ("b", LEVELS), ("a", LEVELS)]
SCHEMA = pa.schema([("data", pa.struct(FIELDS)), *FIELDS])


def parse_json(text: bytes) -> dict[str, Any]:
    message = orjson.loads(text.partition(b" ")[2])
    return message.get("data", message)


class Depth(NamedTuple):
    """A depthUpdate, a REST snapshot or a partial book."""

    kind: int  # update type of its rows: SET of a depthUpdate, SNAPSHOT of a snapshot; or PARTIAL
    line: int  # its line in the file
    time: int  # ns since the epoch; of a book without a time the local one
    last: int  # id of the last update in it
    previous: int  # id of the update before its first one
    bids: np.ndarray  # float64 (levels, 2): price and size
    asks: np.ndarray


class Block:
    """Messages that are read one by one, by orjson.

    Their prices and sizes become numbers all at once, in `make_messages`.
    """

    def __init__(self) -> None:
        self.heads: list[tuple[int, int, int, int, int]] = []  # kind, line, time, last, previous
        self.level_counts: list[tuple[int, int]] = []  # number of bids and asks of each message
        self.texts: list[str] = []  # price, size, price, size... of all messages

    def add(
        self, kind: int, line: int, time: int, last: int, previous: int, bids: list, asks: list
    ) -> None:
        """Add a message. Raises TypeError, OverflowError or ValueError if it is not a whole one."""
        array("q", (time, last, previous))  # refuses all but integers of 64 bits
        levels = bids + asks
        if set(map(type, levels)) <= {list} and not set(map(len, levels)) <= {2}:
            levels = [level[:2] if level[2:] in NOTHING else level for level in levels]
        if not (set(map(type, levels)) <= {list} and set(map(len, levels)) <= {2}):
            raise ValueError("a level is no pair of price and size")
        self.heads.append((kind, line, time, last, previous))
        self.level_counts.append((len(bids), len(asks)))
        self.texts += itertools.chain.from_iterable(levels)

    def make_messages(self) -> list[Depth]:
        """Return the messages, complete with their levels."""
        levels = to_numbers(self.texts).reshape(-1, 2)
        times = to_ns(np.array([time for _, _, time, _, _ in self.heads])).tolist()
        messages, end = [], 0
        for head, time, (bids, asks) in zip(self.heads, times, self.level_counts, strict=True):
            begin, middle, end = end, end + bids, end + bids + asks
            message = Depth(*head, levels[begin:middle], levels[middle:end])
            messages.append(message._replace(time=time))
        return messages


def read_columns(text: bytes) -> dict[str, pa.Array]:
    """Return the columns of JSON lines whose messages are all bare, or all under "data".

    Raises ArrowInvalid or ValueError if the lines are of another form.
    """
    options = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
    parse_options = pj.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore")
    table = pj.read_json(io.BytesIO(text), options, parse_options)
    data = table.column("data").combine_chunks()
    if data.null_count == 0:
        return {name: data.field(name) for name, _ in FIELDS}
    if data.null_count < len(data):
        raise ValueError("some messages are bare")
    return {name: table.column(name).combine_chunks() for name, _ in FIELDS}


def read_levels(column: pa.ListArray) -> list[np.ndarray]:
    """Return each message's prices and sizes, float64 (levels, 2).

    Raises ValueError if a level is no pair of them.
    """
    pairs = column.flatten()
    if column.null_count or pairs.null_count or (np.diff(pairs.offsets) != 2).any():
        raise ValueError("a level is no pair of price and size")
    numbers = pairs.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(-1, 2)
    stops = column.offsets.to_numpy()
    return [numbers[begin:end] for begin, end in itertools.pairwise(stops.tolist())]


def to_numbers(texts: list[str]) -> np.ndarray:
    """Return the nearest float64 of each decimal text; NaN if the text is no number."""
    try:
        return pa.array(texts, pa.string()).cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        column = pd.Series(texts, dtype=object)
        return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
