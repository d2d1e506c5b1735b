"""Prices and sizes as exact integers: prices count ticks, sizes count lots."""

from collections.abc import Iterator
from decimal import Decimal

import numpy as np

from lob.config import InputError
from lob.feeds.batch import Batch
from lob.jit import MAX_EXACT, compiled, inlined

ROWS_TO_INFER_UNITS = 1_000_000
MAX_TICKS = 2**31 - 1  # of a visible price, which is int32
LARGEST = 2**62  # ticks or lots of any row
UNCOUNTED = -(2**63)


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
        check_tick_size(np.concatenate(prices), tick_size)
    needed = largest_power_of_ten([batch.size for batch in first], "sizes", "round them")
    largest = max((float(batch.size.max()) for batch in first if len(batch.size)), default=1.0)
    lot_size = min(needed, max(finest_lot(1000 * largest), 1e-8))
    return first, tick_size, max(lot_size, finest_lot(largest))


def check_tick_size(prices: np.ndarray, tick_size: float) -> None:
    """Raise InputError if most prices have too many digits to be counted in ticks by int32."""
    usual = usual_price(prices) if len(prices) else 0.0
    if usual > MAX_TICKS * tick_size:
        raise InputError(
            f"the first million prices are multiples of {tick_size:g} and lie around {usual:g}: "
            f"{price_remedy([usual, tick_size])}"
        )


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
    """Return prices as int64 ticks. Raises InputError, with the row, if one is no multiple.

    A price of more than LARGEST ticks, which is never visible, counts as LARGEST.
    """
    ticks, row = to_units(batch.price, tick_size, clip=True)
    if row >= 0:
        price = float(batch.price[row])
        raise InputError(
            f"{batch.locate(row)}: price {price!r} is no exact multiple of {tick_size:g}, the tick "
            f"size: {price_remedy([price, usual_price(batch.price)])}"
        )
    return ticks


def to_lots(batch: Batch, lot_size: float) -> np.ndarray:
    """Return sizes as int64 lots. Raises InputError, with the row, if one is no multiple."""
    lots, row = to_units(batch.size, lot_size, clip=False)
    if row >= 0:
        size = float(batch.size[row])
        reason = "is no exact multiple of"
        if size / lot_size > LARGEST:
            reason = f"is more than {LARGEST:g} times"
        raise InputError(
            f"{batch.locate(row)}: size {size!r} {reason} {lot_size:g}, the finest that the first "
            "million rows need: round the sizes, in those rows too if it is too large"
        )
    return lots


def to_units(values: np.ndarray, unit: float, clip: bool) -> tuple[np.ndarray, int]:
    """Return values as int64 multiples of `unit`, and the first row that is no multiple, or -1.

    With `clip` a value of more than LARGEST units becomes LARGEST, else it is no multiple.
    """
    per_one = round(1 / unit)
    if abs(per_one * unit - 1) >= 1e-9:  # such as a tick of 0.3
        per_one = 0
    units, row, largest = count_units(values, per_one, unit)
    if largest > MAX_EXACT:  # float64 can't count these, decimals can
        exact_unit = Decimal(repr(unit))
        for place in np.flatnonzero(units == UNCOUNTED).tolist():
            number = Decimal(repr(float(values[place]))) / exact_unit
            if abs(number) > LARGEST and clip:
                number = Decimal(LARGEST).copy_sign(number)
            if abs(number) > LARGEST or number != number.to_integral_value():
                row = place if row < 0 else min(row, place)
            else:
                units[place] = int(number)
    return units, row


def usual_price(prices: np.ndarray) -> float:
    """Return a median of some absolute prices, which is one of them."""
    some = np.abs(prices[:: max(1, len(prices) // 10_000)])
    return float(np.sort(some)[len(some) // 2])


def price_remedy(prices: list[float]) -> str:
    """Return what to do so that these prices can be written as int32 ticks."""
    values = np.abs(np.array(prices))
    largest = float(values.max())
    units = [10.0**-digits for digits in range(-6, 13)]
    fitting = [unit for unit in units if largest / unit <= MAX_TICKS]
    dividing = [unit for unit in fitting if to_units(values, unit, clip=False)[1] < 0]
    if dividing:
        return f"set --tick_size={dividing[0]:g}"
    finest = fitting[-1] if fitting else units[0]
    return (
        f"int32 holds {MAX_TICKS:,} ticks, fewer than so many digits need: round all prices to "
        f"multiples of {finest:g}, and set --tick_size={finest:g}"
    )


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
    """Return float64 values in units, int64 (n,), the first row that is no multiple, or -1, and the
    largest absolute number of units.

    `per_one` is the number of units in 1, or 0 if that is no whole number. Multiplication by it is
    exact up to one rounding; a unit such as 0.1 is rounded itself, so that a division by it is not.
    A number of more than MAX_EXACT units is UNCOUNTED.
    """
    units, bad, largest = np.empty(len(values), np.int64), -1, 0.0
    for row in range(len(values)):
        scaled = values[row] * per_one if per_one else values[row] / unit
        whole = np.rint(scaled)
        size = abs(whole)
        if size > largest:
            largest = size
        if size > MAX_EXACT:
            units[row] = UNCOUNTED
            continue
        if bad < 0 and not is_whole(scaled):
            bad = row
        units[row] = np.int64(whole)
    return units, bad, largest
