"""Times of day made into times: the date stands in the file's path."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lob.config import InputError
from lob.feeds.batch import SNAPSHOT, iso_to_ns

MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
HALF_DAY_NS = DAY_NS // 2

# A field of CoinAPI's paths: D is the date (with an hour in hourly partitions); the others name
# type, exchange, id and symbols, which may look like dates.
COINAPI_FIELD = re.compile(r"(T|D|E|IDDI|SC|S)-(.+)")
DATE_AND_HOUR = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)?(?!\d)")
DATE = re.compile(r"(?<!\d)(20\d\d)(?:([-_.]?)(\d\d)\2(\d\d)|[-_.](\d\d?)[-_.](\d\d?))(?!\d)")
CONTRACT = re.compile(r"[A-Z0-9]+_[A-Z0-9]+_\d{8}(?!\d)")  # BTC_USDT_20240628: an expiry


def find_date(file: Path) -> tuple[int, int | None]:
    """Return the date in a file's path, in ns since the epoch, and the hour that the file holds.

    `D-20240601` is a date, and `D-2024060113` an hour of it, in any part of the path. Without such
    a part, 20240601, 2024-06-01 and 2024-6-1 are dates, but not as the end of a contract's symbol
    such as BTC_USDT_20240628. The parts below `raw/<PAIR>` are looked at first, then the nearest
    folder above that holds a date. The hour is None if the file is not of an hourly partition.
    Raises InputError if there is no date, or if there are several.
    """
    parts = file.parts
    below = len(parts) - parts[::-1].index("raw") + 1 if "raw" in parts[:-2] else 0
    groups: list[Sequence[str]] = [parts[below:], *([part] for part in reversed(parts[:below]))]
    for group in groups:
        found = dates_in(group)
        if len({date for date, _ in found}) > 1 or len({hour for _, hour in found} - {None}) > 1:
            several = ", ".join(sorted({format_date(date, hour) for date, hour in found}))
            raise InputError(
                f"{file}: time_exchange is a time of day and the path holds several dates "
                f"({several}): leave one, as D-YYYYMMDD in the name of the file or of a folder"
            )
        if found:
            return max(found, key=lambda date_and_hour: date_and_hour[1] is not None)
    symbol = CONTRACT.search(str(file))
    note = f" ({symbol[0]} may be a contract and its expiry)" if symbol else ""
    raise InputError(
        f"{file}: time_exchange is a time of day and the path holds no date{note}: put D-YYYYMMDD "
        "into the name of the file or of a folder"
    )


def dates_in(parts: Sequence[str]) -> list[tuple[int, int | None]]:
    """Return date (ns) and hour, or None, of each date in the parts of a path."""
    certain: list[tuple[int, int | None]] = []  # D-<date>
    whole: list[tuple[int, int | None]] = []  # the part is a date and nothing else
    inside: list[tuple[int, int | None]] = []
    found: re.Match[str] | None
    for part in parts:
        for text in part.split("+"):
            if field := COINAPI_FIELD.match(text):
                found = DATE_AND_HOUR.match(field[2]) if field[1] == "D" else None
                if found:
                    add_date(certain, *found.groups())
                continue
            for found in DATE.finditer(CONTRACT.sub("", text)):
                is_whole = found.start() == 0 and text[found.end() :].partition(".")[0] == ""
                year, _, month, day, short_month, short_day = found.groups()
                dates = whole if is_whole else inside
                add_date(dates, year, month or short_month, day or short_day)
    return certain + whole if certain else whole + inside


def add_date(
    dates: list[tuple[int, int | None]], year: str, month: str, day: str, hour: str | None = None
) -> None:
    """Append a date, unless there is no such day or hour."""
    try:
        date = iso_to_ns(f"{year}-{int(month):02}-{int(day):02}")
    except ValueError:
        return
    if hour is None or int(hour) < 24:
        dates.append((date, None if hour is None else int(hour)))


def format_date(date_ns: int, hour: int | None) -> str:
    date = str(np.datetime64(date_ns, "ns").astype("datetime64[D]"))
    return date if hour is None else f"{date} {hour:02}h"


class DayClock:
    """Dates the times of day of one file.

    In a file of a day, rows past midnight are the next day's. The opening snapshot and the first
    row after it may be of the day before. In a file of an hour, each row is of the day on which it
    lies nearest to the hour.

    first_clock: time of day of the first row that is no opening SNAPSHOT, in ns, or None; received:
    time of day at which it was received, or None if that is not known.
    """

    def __init__(self, file: Path, first_clock: int | None, received: int | None):
        self.file = file
        self.date_ns, self.hour = find_date(file)
        self.first_clock = first_clock
        self.opening = first_clock is not None  # whether the rows so far were the opening snapshot
        self.last: int | None = None  # time of day of the last row that was dated
        early = first_clock is not None and received is not None
        self.day = -1 if early and first_clock - received > HALF_DAY_NS else 0  # type: ignore[operator]

    def date(self, clocks: np.ndarray, kinds: np.ndarray, row: int) -> np.ndarray:
        """Return the times of day, int64 ns (n,), of consecutive rows as ns since the epoch.

        kinds: their update types; row: number of the first of them. Raises InputError, with the
        row, if the rows go on past the noon of the next day.
        """
        if self.hour is not None:
            from_hour = clocks - (self.hour * HOUR_NS + HOUR_NS // 2)
            nearest = (from_hour + HALF_DAY_NS) % DAY_NS - HALF_DAY_NS
            return self.date_ns + clocks + (nearest - from_hour)
        result = self.date_ns + clocks
        begin = 0
        if self.opening:
            others = np.flatnonzero(kinds != SNAPSHOT)
            begin = int(others[0]) if len(others) else len(kinds)
            self.opening = not len(others)
            opening_day = np.where(clocks[:begin] - self.first_clock > HALF_DAY_NS, -1, 0)
            result[:begin] += (opening_day + self.day) * DAY_NS
        if begin < len(clocks):
            result[begin:] += self.count_days(clocks[begin:], row + begin) * DAY_NS
        return result

    def count_days(self, clocks: np.ndarray, row: int) -> np.ndarray:
        """Return on which day from the path's date on each of these times of day lies."""
        steps = np.diff(clocks, prepend=clocks[0] if self.last is None else self.last)
        self.last = int(clocks[-1])
        days = np.full(len(clocks), self.day)
        # Around midnight a clock may also step back to the day before.
        before_midnight = (clocks > DAY_NS - MINUTE_NS) & (clocks - steps < MINUTE_NS)
        for place in np.flatnonzero((steps < -HALF_DAY_NS) | before_midnight).tolist():
            self.day += 1 if steps[place] < 0 else -1
            days[place:] = self.day
        late = (days > 0) & (clocks > HALF_DAY_NS) | (days > 1)
        if late.any():
            raise InputError(
                f"{self.file}, row {row + int(np.argmax(late))}: times of day pass midnight and go "
                "on beyond noon: write full date-times, or a file for each day"
            )
        return days
