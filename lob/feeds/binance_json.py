"""Binance's raw recordings as arrays: lines as the exchange sends them by one numba kernel, all others by orjson.

A line is `<local time> <JSON>`. The kernel takes depth messages without escapes or bare decimals, with at most a space
after a comma or colon, their keys in any order, alone or under "data". What it does not know it leaves, line by line,
to `parse_depth`, which gives the same arrays.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd

from lob.jit import MAX_EXACT, borrow, compiled, inlined

# Of a message: its line, time as sent, last update, the one before the first, number of bids, of asks.
HEAD = np.dtype([(name, np.int64) for name in ("line", "time", "last", "previous", "bids", "asks")])
SHORTEST_LINE, SHORTEST_LEVEL = 48, 10  # fewer bytes hold no depth message, no level: ["1","1"] and a comma
NO_SYMBOL = b"\n"  # no text holds it
MAX_DIGITS = 18  # of an integer or a mantissa: int64 holds them
POWERS = np.array([float(f"1e{power}") for power in range(MAX_DIGITS + 1)])  # exact, as all up to 1e22
QUOTE, COMMA, COLON, POINT, SPACE, ZERO, BACKSLASH = (ord(letter) for letter in '",:. 0\\')
OPEN, CLOSE, OPEN_OBJECT, CLOSE_OBJECT, RETURN, NEWLINE = (ord(letter) for letter in "[]{}\r\n")
EVENT, TRANSACTION, SYMBOL, FIRST_ID, LAST_ID, BID_LEVELS, ASK_LEVELS = (ord(letter) for letter in "ETsUuba")
PREVIOUS_ID = ord("p") << 8 | ord("u")
DEPTH_UPDATE, DATA = (np.frombuffer(word, np.uint8) for word in (b"depthUpdate", b"data"))
LONGEST_KEY = 10  # a longer one may be lastUpdateId


class Depths(NamedTuple):
    """Consecutive depth messages.

    heads: HEAD (n,); levels: float64 (2, m), prices and sizes: bids and asks of the first message, of the second...
    """

    heads: np.ndarray
    levels: np.ndarray

    def part(self, begin: int, end: int | None = None) -> "Depths":
        stops = np.append(0, np.cumsum(self.heads["bids"] + self.heads["asks"]))
        begin, end, _ = slice(begin, end).indices(len(self.heads))
        return Depths(self.heads[begin:end], self.levels[:, stops[begin] : stops[end]])


def join_depths(parts: list[Depths]) -> Depths:
    heads, levels = zip(*parts, strict=True)
    return Depths(np.concatenate(heads), np.concatenate(levels, axis=1))


class LineScanner:
    """Reads blocks of whole lines; `symbol` and `spot` are those of the messages that the kernel may take."""

    def __init__(self) -> None:
        self.symbol, self.spot, self.line = NO_SYMBOL, False, 0

    def scan(self, block: bytes) -> Iterator[Depths | bytes]:
        """Yield a block's depth messages, and line for line what the kernel does not know; `line` is the last one."""
        data = np.frombuffer(block, np.uint8)
        heads = np.empty(len(data) // SHORTEST_LINE + 1, HEAD)
        levels = np.empty((2, len(data) // SHORTEST_LEVEL + 1))
        at = end = 0
        while end < len(data):
            symbol = np.frombuffer(self.symbol, np.uint8)
            rows, count, at, end, self.line = scan_lines(data, end, self.line, symbol, self.spot, heads, levels)
            if rows:
                yield Depths(heads[:rows], levels[:, :count])
                heads, levels = heads[rows:], levels[:, count:]
            if at < end:
                yield block[at:end]


def parse_json(text: bytes) -> dict[str, Any]:
    message = orjson.loads(text.partition(b" ")[2])
    return message.get("data", message)


def parse_depth(depth: dict[str, Any], line: int, spot: bool) -> Depths:
    """Return a depth message of JSON; KeyError, TypeError, ValueError... where it is no whole one."""
    previous = depth["U"] - 1 if spot else depth["pu"]
    time = depth["T"] if "T" in depth else depth["E"]
    return make_depth(line, time, depth["u"], previous, depth["b"], depth["a"])


def make_depth(line: int, time: int, last: int, previous: int, bids: list, asks: list) -> Depths:
    """Return one message; a level's price or size that is no number becomes NaN, a level that is no pair ValueError."""
    levels = [*bids, *asks]
    if any(not isinstance(level, list) or len(level) != 2 for level in levels):
        raise ValueError("a level is no pair")
    texts = list(chain.from_iterable(levels))
    try:
        numbers = np.array(texts, dtype=np.float64)
    except ValueError:
        numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    heads = np.array([(line, time, last, previous, len(bids), len(asks))], HEAD)
    return Depths(heads, np.ascontiguousarray(numbers.reshape(-1, 2).T))


# ---------------------------------------------------------------------------------------------------------- the kernel
# Each function is given the place of the first byte of what it reads and returns the place after it, -1 where it is
# something else. No loop passes a newline, and the data ends with one: that keeps all of them inside the array.


@inlined
def skip_string(data, at):
    at += 1
    while data[at] != QUOTE:
        if data[at] < SPACE or data[at] == BACKSLASH or data[at] > 126:
            return -1
        at += 1
    return at + 1


@inlined
def equals(data, begin, end, word):
    if end - begin != len(word):
        return False
    for index in range(len(word)):  # noqa: SIM110 (numba knows no all())
        if data[begin + index] != word[index]:
            return False
    return True


@inlined
def read_digits(data, at, number, digits):
    """Go on with a number of so many digits; return it, its digits and the place: more than 18 digits must be zeros."""
    while 0 <= np.int64(data[at]) - ZERO <= 9:
        if digits < MAX_DIGITS:
            number = number * 10 + (np.int64(data[at]) - ZERO)
            digits += 1
        elif data[at] != ZERO:
            return number, digits, -1
        at += 1
    return number, digits, at


@inlined
def skip_word(data, at):
    """Skip what is neither text nor bracket: true, null, -1.5e3, the local time before the JSON."""
    while data[at] > SPACE and data[at] != COMMA and data[at] != CLOSE_OBJECT and data[at] != QUOTE:
        at += 1
    return at


@inlined
def read_integer(data, at):
    """Read an integer; what is something else is -1, and skipped."""
    number, digits, end = read_digits(data, at, np.int64(0), 0)
    if digits == 0 or end != at + digits or (digits > 1 and data[at] == ZERO):
        return -1, skip_word(data, at)
    return number, end


@inlined
def read_decimal(data, at):
    """Read a text like "61737.60" into the nearest float64: a quotient of two numbers that are exact is."""
    if data[at] != QUOTE:
        return 0.0, -1
    begin = at + 1
    mantissa, whole_digits, at = read_digits(data, begin, np.int64(0), 0)
    if at != begin + whole_digits or whole_digits == 0:
        return 0.0, -1
    digits = whole_digits
    if data[at] == POINT:
        mantissa, digits, at = read_digits(data, at + 1, mantissa, digits)
    fraction = digits - whole_digits
    while mantissa >= MAX_EXACT and mantissa % 10 == 0 and fraction > 0:
        mantissa //= 10
        fraction -= 1
    if at < 0 or data[at] != QUOTE or mantissa >= MAX_EXACT:
        return 0.0, -1
    return mantissa / POWERS[fraction], at + 1


@compiled
def read_levels(data, at, levels, count):
    """Read [["61773.6","1001"],...] into `levels` from `count` on; return the new count and the place."""
    if data[at + 1] == CLOSE:
        return count, at + 2
    while data[at] != CLOSE:  # at the opening bracket, or a comma
        at += 1 + (data[at + 1] == SPACE)
        if data[at] != OPEN:
            return count, -1
        price, at = read_decimal(data, at + 1)
        if at < 0 or data[at] != COMMA:
            return count, -1
        size, at = read_decimal(data, at + 1 + (data[at + 1] == SPACE))
        if at < 0 or data[at] != CLOSE or (data[at + 1] != COMMA and data[at + 1] != CLOSE):
            return count, -1
        levels[0, count], levels[1, count] = price, size
        count, at = count + 1, at + 1
    return count, at + 1


@compiled
def short_key(data, begin, length):
    """A key of one or two bytes as a number, 0 for a longer one."""
    key = np.int64(0)
    for place in range(begin, begin + length * (length <= 2)):
        key = key << 8 | np.int64(data[place])
    return key


@compiled
def read_line(data, at, symbol, spot, head, levels, first):
    """Read one line, its levels from `first` on; return the levels' end, the newline's place and if it is a message.

    A line that is none is not looked at closely. Of a key that comes twice the last value counts, as in JSON parsers.
    """
    is_depth = same_symbol = odd = in_data = False
    bids = asks = event = transaction = last_id = link_id = -1
    bids_first, count, objects, link = True, first, 1, FIRST_ID if spot else PREVIOUS_ID
    at = skip_word(data, at) + 1
    if data[at - 1] != SPACE or data[at] != OPEN_OBJECT:
        return first, -1, False
    while objects:  # at an opening bracket or a comma
        at += 1 + (data[at + 1] == SPACE)
        begin = at + 1
        if data[at] != QUOTE:
            return first, -1, False
        at = skip_string(data, at)
        length = at - 1 - begin
        if at < 0 or data[at] != COLON or length > LONGEST_KEY:
            return first, -1, False
        at += 1 + (data[at + 1] == SPACE)
        key = np.int64(0) if in_data and objects == 1 else short_key(data, begin, length)
        used = key in (EVENT, TRANSACTION, SYMBOL, LAST_ID, link, BID_LEVELS, ASK_LEVELS)
        if equals(data, begin, begin + length, DATA):
            if data[at] != OPEN_OBJECT or in_data:
                return first, -1, False
            objects, in_data, same_symbol, count = 2, True, False, first
            bids = asks = event = transaction = last_id = link_id = -1
            continue
        begin = at
        if data[at] == QUOTE:
            at = skip_string(data, at)
            is_depth |= equals(data, begin + 1, at - 1, DEPTH_UPDATE)
            if key == SYMBOL:
                same_symbol = equals(data, begin + 1, at - 1, symbol)
            elif used:
                odd = True
        elif data[at] == OPEN and key in (BID_LEVELS, ASK_LEVELS):
            before = count
            count, at = read_levels(data, at, levels, count)
            if key == BID_LEVELS:
                odd, bids, bids_first = odd or bids >= 0, count - before, asks < 0
            else:
                odd, asks = odd or asks >= 0, count - before
        else:
            number, at = read_integer(data, at)
            if number < 0:
                odd = True
            elif key == EVENT:
                event = number
            elif key == TRANSACTION:
                transaction = number
            elif key == LAST_ID:
                last_id = number
            elif key == link:
                link_id = number
            else:
                odd |= used
        while at >= 0 and objects and data[at] == CLOSE_OBJECT:
            objects, at = objects - 1, at + 1
        if at < 0 or (objects and data[at] != COMMA):
            return first, -1, False
    at += data[at] == RETURN
    if data[at] != NEWLINE or not is_depth:
        return first, at if data[at] == NEWLINE else -1, False
    if odd or not same_symbol or min(bids, asks, last_id, link_id, max(event, transaction)) < 0:
        return first, -1, False
    if not bids_first:
        levels[:, first:count] = np.concatenate((levels[:, count - bids : count], levels[:, first : count - bids]), 1)
    head["time"] = transaction if transaction >= 0 else event
    head["last"], head["previous"] = last_id, link_id - spot
    head["bids"], head["asks"] = bids, asks
    return count, at, True


@compiled
def scan_lines(data, end, line, symbol, spot, heads, levels):
    """Read lines from `end` to the first that the kernel does not know, or to the last.

    Return how many messages and levels there were, begin and end of the unknown line (the same where there is none)
    and the number of the last line.
    """
    rows = count = 0
    at = end
    data, symbol, heads, levels = borrow((data, symbol, heads, levels))  # type: ignore[call-arg]
    while at < len(data):
        line += 1
        count, newline, is_depth = read_line(data, at, symbol, spot, heads[rows], levels, count)
        if newline < 0:
            end = at
            while data[end] != NEWLINE:
                end += 1
            return rows, count, at, end + 1, line
        heads[rows]["line"] = line
        rows += is_depth
        at = newline + 1
    return rows, count, at, at, line
