"""Lines of Binance's messages, as recorders write them, in one form: local time, a space, JSON."""

import re
from pathlib import Path
from typing import Any

import orjson

from lob.config import InputError
from lob.feeds.json_lines import MESSAGE_BEGINS, parse_time, plain_head, unwrap

BINANCE = re.compile(
    rb'"stream":"[^"]*@|"e":"(depthUpdate|aggTrade|bookTicker|markPriceUpdate|24hrTicker)"'
    rb'|"lastUpdateId":\d|"exchange":"BINANCE'
)
PLAIN = re.compile(rb'\d+ \{"(stream|e|u|lastUpdateId|result)"')
PLAIN_LINE = re.compile(rb"-?\d+ \{")
SYMBOL = re.compile(rb'\bsymbol[\\"]*[=:]\s*[\\"]*(\w+)')  # as in the address of a REST snapshot
NO_TIME = b"-1"


def is_binance(head: bytes) -> bool:
    return BINANCE.search(plain_head(head)) is not None


def to_plain_lines(
    lines: bytes, symbol: str | None, file: Path, line: int, alike: bool = True
) -> bytes:
    """Return a block of lines, each as local time, a space, JSON.

    alike: whether the lines may be taken for plain if the first one is; line: the number of the
    first one. Lines of other symbols than the chosen one become empty, and so does what is no
    message. Raises InputError if a snapshot does not tell its symbol, though one is chosen.
    """
    # A message as a text in a recorder's record holds backslashes.
    if alike and symbol is None and PLAIN.match(lines) and b"\\" not in lines:
        return lines
    plain = [
        to_plain_line(text, symbol, f"{file}, line {number}")
        for number, text in enumerate(lines.split(b"\n")[:-1], line)
    ]
    return b"\n".join([*plain, b""])


def to_plain_line(text: bytes, symbol: str | None, place: str) -> bytes:
    begin = MESSAGE_BEGINS.search(text)
    if begin is None:
        return b""
    if b"depthUpdate" not in text and b"lastUpdateId" not in text:
        return b""
    try:
        record = orjson.loads(text[begin.start() :])
        message = unwrap(record, orjson.loads)
    except ValueError:
        return NO_TIME + b" " + text[begin.start() :]  # whose fault the reader names
    if not isinstance(message, dict):
        return b""
    if symbol is not None and not is_of(message, text, symbol, place):
        return b""
    time = find_local_time(text[: begin.start()], record if message is not record else {})
    return time + b" " + orjson.dumps(message)


def is_of(message: dict[str, Any], text: bytes, symbol: str, place: str) -> bool:
    """Return whether a message is of a symbol, which a REST snapshot itself does not say."""
    data = message.get("data", message)
    told = data.get("s") or str(message.get("stream", "")).partition("@")[0]
    if not told and (found := SYMBOL.search(text)):
        told = found[1].decode()
    if told:
        return told.upper() == symbol.upper()
    raise InputError(
        f"{place}: a REST snapshot does not tell its symbol: write each symbol's lines into a "
        "folder of its own, and leave --symbol out"
    )


def find_local_time(prefix: bytes, record: dict[str, Any]) -> bytes:
    """Return the local time before a message, or in a recorder's record, in ns; NO_TIME if none."""
    told = [prefix.strip(b" \t,;|").decode(errors="replace")]
    told += [value for name, value in record.items() if re.search("ts|time|rec", name)]
    for time in told:
        try:
            return b"%d" % parse_time(time)
        except (ValueError, TypeError):
            continue
    return NO_TIME
