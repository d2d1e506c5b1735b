"""Which windows are sampled: as far as possible, equally many of each kind of market condition.

The kinds are called strata. They are made from three statistics of a window: its volatility, its
spread and its direction (the change of the mid-price). Each of the three is divided into cells of
equal width, between the limits that `fit_scale` finds in the pair's training windows. A stratum, or
joint cell, is a combination of one cell of each.
"""

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import prange

from lob.book.states import Book, identity, open_book
from lob.config import InputError
from lob.jit import compiled, parallel
from lob.storage import open_table
from lob.windows.splits import SPLITS, calendar_cuts, count_shared_states, split_rows, to_iso

SAMPLE = np.dtype([("end_row", np.int64), ("stratum", np.int32), ("weight", np.float64)])
SCORED = (
    "mid_price_change_bps",
    "average_spread_bps",
    "std_tick_returns_bps",
    "mean_tick_returns_bps",
)
# Windows that one thread sums up. It is fixed, so that sums don't depend on the number of threads.
CHUNK = 8192
LARGEST = float(np.finfo(np.float64).max)
# How many windows are drawn if the user does not say: one for every 64 states, or 24,000 if that is
# more, since a training run of a few thousand steps needs them; but at most one for every 8 states.
STATES_A_WINDOW = 64
ENOUGH_WINDOWS = 24_000
LEAST_STATES_A_WINDOW = 8
WIDEST_STRIDE = 16


@dataclass
class Pair:
    """One pair's book, its statistics, and which of them lie in each split."""

    book: Book
    rows: np.ndarray  # STATISTICS (see statistics.py), read-only; end_row ascending
    splits: list[slice]  # of `rows`: the windows that lie wholly in train, validation and test


@dataclass
class Sample:
    """The windows sampled of one pair, ascending in time."""

    rows: np.ndarray  # SAMPLE (n,)
    places: np.ndarray  # int64 (n,): where each window stands in the pair's statistics
    facts: dict[str, Any]  # what the sample's `.json` says about it
    missing: list[str]  # what was asked for and could not be given, in words


def open_pairs(
    folder: Path, names: Sequence[str], temporal_dim: int, split_ratios: Sequence[float | str]
) -> tuple[list[Pair], np.ndarray]:
    """Open each pair's book and statistics and cut them into splits.

    Return the pairs and the cuts, int64 (2,), in ns. A pair without a window in the training share
    is named and left out, and the others are cut anew. Raises InputError if no other is left, or if
    the statistics were made with another `temporal_dim` or from another book.
    """
    books = [open_book(folder / "book_states" / name) for name in names]
    cuts = calendar_cuts(books, split_ratios)
    pairs = []
    for book in books:
        file = folder / "window_statistics" / f"{book.pair}.npy"
        rows, _ = open_table(file, "exploration_main.py", identity(book), temporal_dim=temporal_dim)
        ends = rows["end_row"]
        splits = []
        for first, end in split_rows(book.timestamps, cuts, temporal_dim).tolist():
            begin = bisect_left(ends, first + temporal_dim)
            splits.append(slice(begin, max(begin, bisect_right(ends, end))))
        if splits[0].stop == splits[0].start:
            begins_at, ends_at = (to_iso(int(book.timestamps[row])) for row in (0, -1))
            reason = (
                f"{book.pair}: no window of {temporal_dim} states lies in the training share, "
                f"which ends at {to_iso(cuts[0])}; the pair's states are of {begins_at} to "
                f"{ends_at}: change split_ratios = {split_ratios}, or leave the pair out"
            )
            others = [name for name in names if name != book.pair]
            if not others:
                raise InputError(reason)
            print(f"left out, {reason}")
            return open_pairs(folder, others, temporal_dim, split_ratios)
        pairs.append(Pair(book, np.asarray(rows), splits))
    return pairs, cuts


def choose_windows(states: int) -> int:
    """Return how many windows to draw of so many states, if the user does not say."""
    enough = min(ENOUGH_WINDOWS, states // LEAST_STATES_A_WINDOW)
    return max(1, states // STATES_A_WINDOW, enough)


def choose_stride(states: int, windows: int) -> int:
    """Return the least distance of two windows, in states, if the user does not say.

    It leaves at least three times as many windows as are wanted to choose from.
    """
    return max(1, min(WIDEST_STRIDE, states // (3 * windows)))


def share_windows(
    pairs: list[Pair],
    windows: int | None,
    pair_weights: Mapping[str, float] | None,
    split_ratios: Sequence[float | str],
) -> np.ndarray:
    """Return int64 (pairs, 3): how many windows to draw of each pair in each split.

    `windows` is their sum; None: as many as `choose_windows` says. Each split gets its share in
    `split_ratios` of them; if these are two dates, its share of all windows there are. A split's
    windows are divided among the pairs that have any in it, in proportion to `pair_weights` (None:
    to their number of states). If no pair has a window in a split, that split's share of `windows`
    is not drawn. Raises InputError if a weight is missing or not above 0.
    """
    states = {pair.book.pair: pair.book.rows for pair in pairs}
    weights = states if pair_weights is None else pair_weights
    valid = [type(weight) in (int, float) and 0 < weight <= 1e9 for weight in weights.values()]
    if set(weights) != set(states) or not all(valid):
        raise InputError(
            f"pair_weights = {weights}: give a share in (0, 1e9] to each of {', '.join(states)}"
        )
    available = np.array([[split.stop - split.start for split in pair.splits] for pair in pairs])
    by_dates = len(split_ratios) == 2
    ratios = available.sum(axis=0) if by_dates else split_ratios
    weight_of_pair = np.array([[weights[name]] for name in states])
    shares = weight_of_pair * (available > 0)
    shares = shares / np.maximum(shares.sum(axis=0), 1e-300) * ratios
    total = windows or choose_windows(sum(states.values()))
    # Rounding the running sum, and not each share, keeps the total exact.
    whole = shares.sum() if windows is None else np.sum(ratios, dtype=float)
    edges = np.round(total * np.cumsum(shares) / whole)
    return np.diff(edges.astype(np.int64), prepend=0).reshape(shares.shape)


def draw_pair(
    pair: Pair,
    wanted: np.ndarray,
    *,
    temporal_dim: int,
    cells: Sequence[int],
    outlier_std: float,
    min_stride: int,
    oversample: bool,
    exact: bool,
    seed: int,
) -> Sample:
    """Draw `wanted` windows, int (3,), of a pair's training, validation and test windows.

    `cells` are the numbers of cells of volatility, spread and direction. Training windows beyond
    `outlier_std` standard deviations in a statistic are left out. Two windows of a split end at
    least `min_stride` states apart. A split that has fewer windows gives those, and with `exact`
    the sample's `missing` says so. Raises InputError if no window can be drawn.
    """
    scale = fit_scale(pair, outlier_std)
    strata = find_strata(pair, scale, cells, outlier_std)
    counts = [count_strata(stratum) for stratum in strata]
    parts, places, splits, missing = [], [], {}, []
    for index, (name, split, stratum) in enumerate(zip(SPLITS, pair.splits, strata, strict=True)):
        ends = pair.rows["end_row"][split]
        rng = make_generator(seed, pair.book.pair, index)
        picked, weights, exhausted = draw_split(
            ends, stratum, int(wanted[index]), min_stride, oversample, rng
        )
        if exact and weights.sum() < wanted[index] - 0.5:
            missing.append(
                f"{len(picked):,} {name} windows, not its share of {wanted[index]:,}: it has "
                f"{len(ends):,}, and these can be drawn {min_stride} states apart"
            )
        part = np.empty(len(picked), dtype=SAMPLE)
        part["end_row"] = ends[picked]
        part["stratum"] = stratum[picked]
        part["weight"] = weights
        parts.append(part)
        places.append(split.start + picked)
        facts_of_split = part["end_row"], len(ends), counts[index], exhausted, temporal_dim
        splits[name] = describe_split(*facts_of_split)
    if not any(len(part) for part in parts):
        raise InputError(
            f"{pair.book.pair}: none of the windows falls to it: raise --windows, or its share in "
            "--pair_weights, or leave the pair out"
        )
    before = counts[0]
    after = np.bincount(parts[0]["stratum"], parts[0]["weight"], len(before))
    end_rows = [part["end_row"] for part in parts]
    facts = {
        "splits": splits,
        "scale": scale.tolist(),
        "shared_states": count_shared_states(end_rows, temporal_dim, pair.book.rows),
        "entropy_before": normalised_entropy(before, before),
        "entropy_after": normalised_entropy(after, before),
    }
    return Sample(np.concatenate(parts), np.concatenate(places), facts, missing)


def make_generator(seed: int, pair: str, split: int) -> np.random.Generator:
    """Return a generator for one split of one pair: a draw does not depend on other pairs."""
    digest = hashlib.sha256(pair.encode()).digest()
    return np.random.Generator(np.random.PCG64([seed, int.from_bytes(digest[:8], "little"), split]))


def describe_split(
    drawn_ends: np.ndarray, windows: int, counts: np.ndarray, exhausted: int, temporal_dim: int
) -> dict[str, Any]:
    """Return what the sample's `.json` says about one split.

    windows: how many there are; counts: of each stratum, which outliers have none of.
    """
    available = int(counts.sum())
    overlap, distinct = measure_overlap(drawn_ends, temporal_dim)
    return {
        "windows": len(drawn_ends),
        "available": available,
        "outliers": windows - available,
        "strata": int(np.count_nonzero(counts)),
        "exhausted_strata": exhausted,
        "mean_overlap": overlap,
        "distinct_windows": distinct,
    }


def fit_scale(pair: Pair, outlier_std: float) -> np.ndarray:
    """Return mean, deviation, lower and upper limit of the SCORED statistics of training windows.

    float64 (4, 4): a row for each of the four, with the statistics along the columns. The limits
    lie `outlier_std` deviations from the mean, or at the smallest and largest value if these are
    nearer. Raises InputError if a statistic is not finite, or the same in all training windows.
    """
    rows = pair.rows[pair.splits[0]]
    mean, squares, lowest, highest = sum_statistics(rows)
    for name, centre, square in zip(SCORED, mean, squares, strict=True):
        if not np.isfinite([centre, square]).all():
            raise InputError(
                f"{pair.book.pair}: {name} is NaN or infinite: run exploration_main.py again"
            )
        if square <= 1e-24 * len(rows) * centre**2:
            raise InputError(
                f"{pair.book.pair}: {name} is {centre:g} in all {len(rows):,} training windows: "
                "there is nothing to balance, record for longer or leave the pair out"
            )
    deviation = np.sqrt(squares / len(rows))
    limit = outlier_std * deviation
    low = np.maximum(lowest, mean - limit)
    high = np.minimum(highest, mean + limit)
    return np.stack([mean, deviation, low, high])


@parallel
def sum_statistics(rows):
    """Return float64 (4, 4): mean, sum of squared deviations, smallest and largest of SCORED.

    Each chunk keeps its mean and squared deviations as by Welford (1962), so that no large sums
    cancel. The chunks are joined in their order, whichever thread was done first.
    """
    chunks = (len(rows) + CHUNK - 1) // CHUNK
    parts = np.zeros((chunks, 4, 4))
    for chunk in prange(chunks):
        begin = chunk * CHUNK
        part = parts[chunk]
        part[2], part[3] = np.inf, -np.inf
        for i in range(begin, min(begin + CHUNK, len(rows))):
            row = rows[i]
            scored = (
                row["mid_price_change_bps"],
                row["average_spread_bps"],
                row["std_tick_returns_bps"],
                row["mean_tick_returns_bps"],
            )
            for k, value in enumerate(scored):
                step = value - part[0, k]
                part[0, k] += step / (i - begin + 1)
                part[1, k] += step * (value - part[0, k])
                part[2, k] = min(part[2, k], value)
                part[3, k] = max(part[3, k], value)
    total = parts[0].copy()
    count = min(CHUNK, len(rows))
    for chunk in range(1, chunks):  # two chunks are joined as by Chan et al. (1979)
        part = parts[chunk]
        more = min(CHUNK, len(rows) - chunk * CHUNK)
        gap = part[0] - total[0]
        total[0] += gap * (more / (count + more))
        total[1] += part[1] + gap * gap * (count * more / (count + more))
        total[2] = np.minimum(total[2], part[2])
        total[3] = np.maximum(total[3], part[3])
        count += more
    return total


def find_strata(
    pair: Pair, scale: np.ndarray, cells: Sequence[int], outlier_std: float
) -> list[np.ndarray]:
    """Return, for each split, the stratum of each of its windows, int16 (w,), -1 for an outlier.

    Only training windows can be outliers. Windows of validation and test beyond the limits are
    placed in the outermost cells: a market that has changed must still be judged. Raises InputError
    if all training windows are outliers, or if a statistic is not finite.
    """
    training, *others = (pair.rows[split] for split in pair.splits)
    cells_of_axes = np.array(cells, dtype=np.int64)
    strata = [place(training, scale, cells_of_axes, float(outlier_std))]
    if (strata[0] < 0).all():
        raise InputError(
            f"{pair.book.pair}: all {len(training):,} training windows are outliers: "
            f"raise --outlier_std={outlier_std:g}"
        )
    for rows in others:
        stratum = place(rows, scale, cells_of_axes, LARGEST)  # only NaN and infinity lie beyond it
        if (stratum < 0).any():
            raise InputError(
                f"{pair.book.pair}: a statistic is NaN or infinite: run exploration_main.py again"
            )
        strata.append(stratum)
    return strata


@parallel
def place(rows, scale, cells, outlier_std):
    """Return the joint cell of each window, int16 (w,), -1 for an outlier.

    scale: as `fit_scale` returns it; cells: int64 (3,).
    """
    cell_of = np.empty(len(rows), dtype=np.int16)
    for i in prange(len(rows)):
        change = rows[i]["mid_price_change_bps"]
        spread = rows[i]["average_spread_bps"]
        volatility = rows[i]["std_tick_returns_bps"]
        drift = rows[i]["mean_tick_returns_bps"]
        outlier = False
        for k, value in enumerate((change, spread, volatility, drift)):
            deviations = (value - scale[0, k]) / scale[1, k]
            outlier |= not abs(deviations) <= outlier_std  # also true of NaN
        if outlier:
            cell_of[i] = -1
            continue
        # The number of the joint cell has a digit for each axis, volatility first, direction last.
        cell = 0
        for axis, (k, value) in enumerate(((2, volatility), (1, spread), (0, change))):
            position = cells[axis] * (value - scale[2, k]) / (scale[3, k] - scale[2, k])
            cell = cell * cells[axis] + int(min(max(position, 0.0), cells[axis] - 1.0))
        cell_of[i] = cell
    return cell_of


def draw_split(
    ends: np.ndarray,
    stratum: np.ndarray,
    wanted: int,
    min_stride: int,
    oversample: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Pick `wanted` windows, as far as possible equally many of each stratum.

    No two of them end less than `min_stride` states apart.

    The rarest stratum chooses first. If it has too few windows, those after it share what is
    missing; with `oversample` its own windows get larger weights instead. `min_stride` may leave a
    stratum short of its quota: further rounds make up for that, until one finds no window.

    ends: int64 (w,), ascending; stratum: int (w,), negative for windows that are never picked.
    Return the places of the picked windows, int64 (n,), ascending; their weights, float64 (n,); and
    how many strata gave all they had.
    """
    counts = count_strata(stratum)
    members, bounds = sort_by_stratum(stratum, counts)
    rare_first = np.argsort(counts, kind="stable")
    rare_first = rare_first[counts[rare_first] > 0]
    unused = bounds.copy()  # where each stratum's members that were not yet looked at begin
    blocked = np.zeros(len(ends), dtype=np.bool_)
    place_parts, weight_parts = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    missing = wanted
    found_some = True
    while missing > 0 and found_some:
        found_some = False
        for turn, name in enumerate(rare_first):
            strata_left = len(rare_first) - turn
            quota = -(-missing // strata_left)  # rounded up
            picked, unused[name] = take_apart(
                members, unused[name], bounds[name + 1], quota, min_stride, ends, blocked, rng
            )
            if len(picked) == 0:
                continue
            found_some = True
            weight = quota / len(picked) if oversample else 1.0
            missing -= quota if oversample else len(picked)
            place_parts.append(picked)
            weight_parts.append(np.full(len(picked), weight))
    places, weights = np.concatenate(place_parts), np.concatenate(weight_parts)
    order = np.argsort(places)
    exhausted = np.count_nonzero(unused[rare_first] == bounds[rare_first + 1])
    return places[order], weights[order], int(exhausted)


@compiled
def count_strata(stratum):
    """Return how many windows each stratum has, int64 (highest stratum + 1,)."""
    counts = np.zeros(max(0, stratum.max() + 1) if len(stratum) else 0, dtype=np.int64)
    for name in stratum:
        if name >= 0:
            counts[name] += 1
    return counts


@compiled
def sort_by_stratum(stratum, counts):
    """Sort the windows by stratum; leave out those of a negative one. counts: of `count_strata`.

    Return their places, uint32 (n,), and where each stratum begins among them, int64 (strata + 1,).
    """
    bounds = np.zeros(len(counts) + 1, dtype=np.int64)
    bounds[1:] = np.cumsum(counts)
    members = np.empty(bounds[-1], dtype=np.uint32)
    cursor = bounds.copy()
    for place, name in enumerate(stratum):
        if name >= 0:
            members[cursor[name]] = place
            cursor[name] += 1
    return members, bounds


@compiled
def take_apart(members, begin, end, quota, stride, ends, blocked, rng):
    """Pick up to `quota` of members[begin:end] at random.

    None of them ends less than `stride` states from a window that was picked before. `blocked`
    marks the windows that are too near to a picked one, of any stratum. `members` is shuffled only
    as far as it is used (Fisher and Yates). Return the places, int64, and where the unused members
    begin.
    """
    picked = np.empty(min(quota, end - begin), dtype=np.int64)
    count = 0
    while begin < end and count < quota:
        swap = begin + int(rng.random() * (end - begin))
        place = np.int64(members[swap])
        members[swap] = members[begin]
        begin += 1
        if blocked[place]:
            continue
        picked[count] = place
        count += 1
        for step in (-1, 1):
            near = place
            while 0 <= near < len(ends) and abs(ends[near] - ends[place]) < stride:
                blocked[near] = True
                near += step
    return picked[:count], begin


def normalised_entropy(counts: np.ndarray, natural: np.ndarray) -> float:
    """Return the entropy of `counts`, divided by the largest possible over the cells in `natural`.

    A cell without windows in `natural` can't get any.
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    occupied = int(np.count_nonzero(natural))
    return -float((share * np.log(share)).sum()) / math.log(max(2, occupied))


def measure_overlap(ends: np.ndarray, temporal_dim: int) -> tuple[float, float]:
    """Return how far windows overlap, and how many windows side by side would cover as many states.

    The overlap is the mean share of a window's states that the window before it holds too.
    ends: int64 (n,), ascending.
    """
    if len(ends) == 0:
        return 0.0, 0.0
    new_states = np.minimum(np.diff(ends, prepend=ends[0] - temporal_dim), temporal_dim)
    overlap = float(1 - new_states[1:].mean() / temporal_dim) if len(ends) > 1 else 0.0
    return overlap, float(new_states.sum() / temporal_dim)
