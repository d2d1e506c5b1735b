"""Prices and sizes as exact integers: prices count ticks, sizes count lots."""

from collections.abc import Iterator

import numpy as np

from lob.config import InputError
from lob.feeds.batch import Batch
from lob.jit import MAX_EXACT, compiled, inlined

ROWS_TO_INFER_UNITS = 1_000_000


def infer_units(
    batches: Iterator[Batch], tick_size: float | None
) -> tuple[list[Batch], float, float]:
    """Read the first million rows; return their batches, the tick size and the lot size.

    The tick size is `tick_size`, or if it is None the largest power of ten that divides every price
    in these rows. The lot size is the largest power of ten that divides every size in them. It is
    made finer, down to 1e-8, as long as float64 can still count exactly a size a thousand times the
    largest: later sizes may have more digits.
    """
    first: list[Batch] = []
    rows = 0
    while rows < ROWS_TO_INFER_UNITS and (batch := next(batches, None)) is not None:
        first.append(batch)
        rows += len(batch.time_ns)
    if tick_size is None:
        prices = [batch.price for batch in first]
        tick_size = largest_power_of_ten(prices, "prices", "set --tick_size")
    needed = largest_power_of_ten([batch.size for batch in first], "sizes", "round them")
    largest = max((float(batch.size.max()) for batch in first if len(batch.size)), default=1.0)
    lot_size = min(needed, max(finest_lot(1000 * largest), 1e-8))
    return first, tick_size, max(lot_size, finest_lot(largest))


def finest_lot(size: float) -> float:
    """Return the smallest power of ten in which float64 can count up to `size` exactly."""
    return 10.0 ** -int(np.floor(np.log10(MAX_EXACT / max(size, 1e-9))))


def largest_power_of_ten(arrays: list[np.ndarray], name: str, remedy: str) -> float:
    """Return the largest power of ten, from 1e6 down to 1e-12, that divides every value.

    Raises InputError, which names the values by `name` and ends with `remedy`, if there is none.
    """
    values = np.unique(np.concatenate([np.unique(array) for array in arrays]))
    for digits in range(-6, 13):
        if is_whole(values * 10.0**digits).all():
            return float(f"1e{-digits}")
    raise InputError(
        f"the first million {name} are multiples of no power of ten down to 1e-12: {remedy}"
    )


def to_ticks(batch: Batch, tick_size: float) -> np.ndarray:
    """Return prices as int64 ticks. Raises InputError, with the row, if one is no multiple."""
    remedy = "the tick size: set a finer --tick_size"
    return to_units(batch.price, tick_size, batch, "price", remedy)


def to_lots(batch: Batch, lot_size: float) -> np.ndarray:
    """Return sizes as int64 lots. Raises InputError, with the row, if one is no multiple."""
    remedy = "the finest that the first million rows need: round the sizes"
    return to_units(batch.size, lot_size, batch, "size", remedy)


def to_units(values: np.ndarray, unit: float, batch: Batch, name: str, remedy: str) -> np.ndarray:
    """Return values as int64 multiples of `unit`.

    Raises InputError, with file, row and `remedy`, if a value is no multiple.
    """
    per_one = round(1 / unit)
    if abs(per_one * unit - 1) >= 1e-9:  # such as a tick of 0.3
        per_one = 0
    units, row = count_units(values, per_one, unit)
    if row >= 0:
        value = float(values[row])
        raise InputError(
            f"{batch.locate(row)}: {name} {value!r} is no exact multiple of {unit:g}, {remedy}"
        )
    return units


@inlined
def is_whole(scaled):
    """Return whether a float64 (or each of an array) is an integer, apart from rounding errors.

    It may be off by 1e-9 of itself, but at most by 1e-4, or by some ulps if that is more.
    """
    size = np.abs(scaled)
    tolerance = np.maximum(np.minimum(size * 1e-9, 1e-4), size * 1e-15)
    return np.abs(scaled - np.rint(scaled)) <= tolerance


@compiled
def count_units(values, per_one, unit):
    """Return float64 values in units, int64 (n,), and the first row that is no multiple, or -1.

    `per_one` is the number of units in 1, or 0 if that is no whole number. Multiplication by it is
    exact up to one rounding; a unit such as 0.1 is rounded itself, so that a division by it is not.
    """
    units, bad = np.empty(len(values), np.int64), -1
    for row in range(len(values)):
        scaled = values[row] * per_one if per_one else values[row] / unit
        whole = np.rint(scaled)
        if not (is_whole(scaled) and abs(whole) <= MAX_EXACT) and bad < 0:
            bad = row
        units[row] = np.int64(whole)
    return units, bad
