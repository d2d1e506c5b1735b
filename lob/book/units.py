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
    """Read the first million rows; return them with the tick size and the lot size.

    A tick is `tick_size`, or the largest power of ten that divides every price in these rows. A lot
    is as fine as their sizes need. It is even finer, down to 1e-8, as long as float64 still counts
    sizes a thousand times as large exactly.
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
    """Return the smallest power of ten of which float64 counts up to `size` exactly."""
    return 10.0 ** -int(np.floor(np.log10(MAX_EXACT / max(size, 1e-9))))


def largest_power_of_ten(arrays: list[np.ndarray], name: str, remedy: str) -> float:
    """Return the largest power of ten, from 1e6 down to 1e-12, that divides every value.

    Raises InputError, with the `name` of the values and the `remedy`, if there is none.
    """
    values = np.unique(np.concatenate([np.unique(array) for array in arrays]))
    for digits in range(-6, 13):
        if is_whole(values * 10.0**digits).all():
            return float(f"1e{-digits}")
    raise InputError(
        f"the first million {name} are multiples of no power of ten down to 1e-12: {remedy}"
    )


def to_ticks(batch: Batch, tick_size: float) -> np.ndarray:
    """Return a batch's prices as int64 ticks; InputError, naming the row, if one is no multiple."""
    remedy = "the tick size: set a finer --tick_size"
    return to_units(batch.price, tick_size, batch, "price", remedy)


def to_lots(batch: Batch, lot_size: float) -> np.ndarray:
    """Return a batch's sizes as int64 lots; InputError, naming the row, if one is no multiple."""
    remedy = "the finest that the first million rows need: round the sizes"
    return to_units(batch.size, lot_size, batch, "size", remedy)


def to_units(values: np.ndarray, unit: float, batch: Batch, name: str, remedy: str) -> np.ndarray:
    """Return values as int64 multiples of `unit`.

    Raises InputError, with file, row and `remedy`, if a value is no multiple.
    """
    per_one = round(1 / unit)
    if abs(per_one * unit - 1) >= 1e-9:
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
    """Whether a float64 (or each of an array) is an integer, apart from its rounding errors.

    It may be off by 1e-9 of itself, at most by 1e-4, or by an ulp.
    """
    size = np.abs(scaled)
    return np.abs(scaled - np.rint(scaled)) <= np.maximum(
        np.minimum(size * 1e-9, 1e-4), size * 1e-15
    )


@compiled
def count_units(values, per_one, unit):
    """Return int64 (n,), float64 values in units, and the first row that is no multiple, or -1.

    `per_one` is the number of units in 1, or 0 if that is no whole number. To multiply by it is
    more exact than to divide by the unit.
    """
    units, bad = np.empty(len(values), np.int64), -1
    for row in range(len(values)):
        scaled = values[row] * per_one if per_one else values[row] / unit
        whole = np.rint(scaled)
        if not (is_whole(scaled) and abs(whole) <= MAX_EXACT) and bad < 0:
            bad = row
        units[row] = np.int64(whole)
    return units, bad
