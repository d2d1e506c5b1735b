"""Times in columns of texts: ISO with or without an offset, or numbers since the epoch."""

import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa

from lob.config import InputError
from lob.feeds.batch import UNIT_LIMITS, UNIT_NS, iso_to_ns
from lob.feeds.path_dates import HOUR_NS, MINUTE_NS

NUMBER = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?")
TIME = re.compile(
    r"(?:(\d{4}-\d\d-\d\d)[T ])?(\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?) ?"
    r"(?:[Zz]|([+-])(\d\d)(?::?(\d\d))?)?"
)


def texts_to_ns(
    column: pa.Array, name: str, clocks: bool, file: Path, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a column's times as int64 ns (n,), and which of them are times of day, bool (n,).

    name: of the column; clocks: whether times of day may be among them; row: number of the first
    row. Raises InputError, with file and row, if a text is no time.
    """
    times = np.empty(len(column), np.int64)
    is_clock = np.zeros(len(column), bool)
    for place, text in enumerate(column.to_pylist()):
        try:
            times[place], is_clock[place] = parse_time(text)
            if is_clock[place] and not clocks:
                raise ValueError("other times have a date")
        except (ValueError, ArithmeticError):
            raise InputError(
                f"{file}, row {row + place}: {name} {text!r} is not a time such as "
                "2026-05-02T12:30:00.5: mend or drop the row"
            ) from None
    return times, is_clock


def parse_time(text: str) -> tuple[int, bool]:
    """Return a time in ns, and whether it is a time of day. Raises ValueError if it is none."""
    if NUMBER.fullmatch(text.strip()):
        number = Decimal(text)
        unit = int(np.searchsorted(UNIT_LIMITS, float(number), side="right"))
        return round(number * UNIT_NS[unit]), False
    found = TIME.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a time")
    date, clock, sign, hours, minutes = found.groups()
    ahead_ns = int(hours or 0) * HOUR_NS + int(minutes or 0) * MINUTE_NS
    if date is None and ahead_ns:
        raise ValueError(f"{text!r} is a time of day of another zone")
    time_ns = iso_to_ns(f"{date or '1970-01-01'}T{clock}")
    return time_ns - (-ahead_ns if sign == "-" else ahead_ns), date is None
