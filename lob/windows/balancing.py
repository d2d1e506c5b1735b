"""Which windows are drawn: market conditions as strata, and from each the same number of windows."""

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange

from lob.book.states import Book, identity, open_book
from lob.config import InputError
from lob.storage import open_table
from lob.windows.splits import SPLITS, calendar_cuts, count_shared_states, split_rows

SAMPLE = np.dtype([("end_row", np.int64), ("stratum", np.int32), ("weight", np.float64)])
SCORED = ("mid_price_change_bps", "average_spread_bps", "std_tick_returns_bps", "mean_tick_returns_bps")
GRID = (8, 8, 9)  # cells of volatility, spread and direction in which every method's evenness is measured
CHUNK = 8192  # windows that one thread sums; fixed, so that sums don't depend on the number of threads


@dataclass
class Pair:
    """One pair's book, its statistics, and which of them lie in each split."""

    book: Book
    rows: np.ndarray  # structured, see statistics.py; end_row ascending
    splits: list[slice]  # of `rows`, train, validation, test: the windows that lie wholly in the split


def open_pairs(
    folder: Path, names: list[str], temporal_dim: int, split_ratios: Sequence[float | str]
) -> tuple[list[Pair], np.ndarray]:
    """Open each pair's book and statistics and cut them into splits; return the pairs and the cuts (ns)."""
    books = [open_book(folder / "book_states" / name) for name in names]
    cuts = calendar_cuts([b.timestamps for b in books], [b.segment_starts for b in books], split_ratios)
    pairs = []
    for book in books:
        file = folder / "window_statistics" / f"{book.pair}.npy"
        rows, _ = open_table(file, "exploration_main.py", identity(book), temporal_dim=temporal_dim)
        ends = rows["end_row"]
        splits = [slice(bisect_left(ends, first + temporal_dim), bisect_right(ends, end))
                  for first, end in split_rows(book.timestamps, cuts, temporal_dim).tolist()]  # fmt: skip
        if splits[0].stop <= splits[0].start:
            raise InputError(f"{book.pair}: no window of {temporal_dim} states lies in the training share: change "
                             f"split_ratios = {split_ratios}, or leave the pair out")  # fmt: skip
        pairs.append(Pair(book, np.asarray(rows), splits))
    return pairs, cuts


def share_windows(
    pairs: list[Pair],
    windows: int | None,
    pair_weights: Mapping[str, float] | None,
    split_ratios: Sequence[float | str],
    temporal_dim: int,
) -> np.ndarray:
    """Return int64 (pairs, 3): windows to draw of each pair in each split, shared by the pairs that reach it."""
    states = {pair.book.pair: pair.book.rows for pair in pairs}
    weights = pair_weights if pair_weights is not None else states
    if set(weights) != set(states) or not all(type(w) in (int, float) and 0 < w <= 1e9 for w in weights.values()):
        raise InputError(f"pair_weights = {weights} must give a share above 0, at most 1e9, to each of "
                         f"{', '.join(states)}")  # fmt: skip
    have = np.array([[max(0, split.stop - split.start) for split in pair.splits] for pair in pairs])
    ratios = split_ratios if len(split_ratios) == 3 else have.sum(axis=0)  # of two dates
    shares = np.array([[weights[name]] for name in states]) * (have > 0)
    for name, share, ratio in zip(SPLITS, shares.sum(axis=0), ratios, strict=True):
        if windows is not None and ratio > 0 and share == 0:
            raise InputError(f"no pair has a window of {temporal_dim} states for {name}: change "
                             f"split_ratios = {split_ratios}, or lower --temporal_dim")  # fmt: skip
    shares = shares / np.maximum(shares.sum(axis=0), 1e-300) * ratios
    total = windows or max(1, sum(states.values()) // 64)
    edges = np.round(total * np.cumsum(shares) / shares.sum())
    return np.diff(edges.astype(np.int64), prepend=0).reshape(shares.shape)


def fit_scale(pair: Pair, outlier_std: float) -> np.ndarray:
    """Mean, deviation and the limits of the equal-width cells of a pair's training windows, (4, 4), a row each.

    The limits are the outlier limits, or the extremes where those are nearer. Columns are the SCORED statistics.
    """
    rows = pair.rows[pair.splits[0]]
    mean, squares, low, high = sum_statistics(rows)
    for name, centre, square in zip(SCORED, mean, squares, strict=True):
        if not np.isfinite([centre, square]).all():
            raise InputError(f"{pair.book.pair}: {name} is NaN or infinite: run exploration_main.py again")
        if square <= 1e-24 * len(rows) * centre**2:
            raise InputError(f"{pair.book.pair}: {name} is {centre:g} in all {len(rows):,} training windows: there is "
                             "nothing to balance")  # fmt: skip
    deviation = np.sqrt(squares / len(rows))
    limit = outlier_std * deviation
    return np.stack([mean, deviation, np.maximum(low, mean - limit), np.minimum(high, mean + limit)])


@njit(cache=True, parallel=True)
def sum_statistics(rows):
    """Mean, sum of squared deviations, smallest and largest of the SCORED statistics, (4, 4), a row each."""
    chunks = (len(rows) + CHUNK - 1) // CHUNK
    parts = np.zeros((chunks, 4, 4))
    for chunk in prange(chunks):
        begin, part = chunk * CHUNK, parts[chunk]
        part[2], part[3] = np.inf, -np.inf
        for i in range(begin, min(begin + CHUNK, len(rows))):
            row = rows[i]
            for k, value in enumerate((row["mid_price_change_bps"], row["average_spread_bps"],
                                       row["std_tick_returns_bps"], row["mean_tick_returns_bps"])):  # fmt: skip
                step = value - part[0, k]
                part[0, k] += step / (i - begin + 1)
                part[1, k] += step * (value - part[0, k])
                part[2, k], part[3, k] = min(part[2, k], value), max(part[3, k], value)
    total, count = parts[0].copy(), min(CHUNK, len(rows))
    for chunk in range(1, chunks):  # joined as Chan et al. (1979)
        part, more = parts[chunk], min(CHUNK, len(rows) - chunk * CHUNK)
        gap = part[0] - total[0]
        total[0] += gap * (more / (count + more))
        total[1] += part[1] + gap * gap * (count * more / (count + more))
        total[2], total[3] = np.minimum(total[2], part[2]), np.maximum(total[3], part[3])
        count += more
    return total


def place(
    rows: np.ndarray, scale: np.ndarray, cells: Sequence[int], weights: Sequence[float], outlier_std: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return each window's joint cell, int16, -1 for an outlier, and its composite score, float32."""
    cell, score = np.empty(len(rows), dtype=np.int16), np.empty(len(rows), dtype=np.float32)
    rows.flags.writeable = False  # as the memory map, so that the kernel is compiled once
    each = np.array(weights, dtype=np.float64)
    place_windows(rows, scale, float(outlier_std), np.array(cells, dtype=np.int64), each, cell, score)
    return cell, score


@njit(cache=True, parallel=True)
def place_windows(rows, scale, outlier_std, cells, weights, cell_of, score_of):
    """Cell of volatility x spread x direction (-1: outlier) and composite score of each window.

    The composite is the weighted sum of the standardised statistics, of the two signed ones their size: a fall is as
    far from calm as a rise.
    """
    for i in prange(len(rows)):
        change, spread = rows[i]["mid_price_change_bps"], rows[i]["average_spread_bps"]
        volatility, drift = rows[i]["std_tick_returns_bps"], rows[i]["mean_tick_returns_bps"]
        score, outlier = 0.0, False
        for k, value in enumerate((change, spread, volatility, drift)):
            z = (value - scale[0, k]) / scale[1, k]
            outlier |= not abs(z) <= outlier_std  # NaN is one, too
            score += weights[k] * (abs(z) if k == 0 or k == 3 else z)
        cell = 0
        for axis, (k, value) in enumerate(((2, volatility), (1, spread), (0, change))):
            place = cells[axis] * (value - scale[2, k]) / (scale[3, k] - scale[2, k]) if not outlier else 0.0
            cell = cell * cells[axis] + int(min(max(place, 0.0), cells[axis] - 1.0))
        cell_of[i] = -1 if outlier else cell
        score_of[i] = score


def find_strata(
    pair: Pair,
    scale: np.ndarray,
    strata: str,
    cells: Sequence[int],
    bins: int,
    composite_weights: Sequence[float],
    outlier_std: float,
) -> list[np.ndarray]:
    """Return, for each split, the stratum of each of its windows, int16, -1 for an outlier among training's.

    Those of validation and test stay, in the outermost strata: a market that has moved on is no reason to drop it.
    """
    found: list[np.ndarray] = []
    edges = None
    for split, limit in zip(pair.splits, (outlier_std, np.inf, np.inf), strict=True):
        stratum, score = place(pair.rows[split], scale, cells, composite_weights, limit)
        if not found and (stratum < 0).all():
            raise InputError(f"{pair.book.pair}: all {len(stratum):,} training windows are outliers: raise "
                             f"--outlier_std={outlier_std:g}")  # fmt: skip
        if not np.isfinite(score).all():
            raise InputError(f"{pair.book.pair}: a statistic is NaN or infinite: run exploration_main.py again")
        if strata != "joint_cells":
            if edges is None:  # of the training share, which comes first
                inside, share = score[stratum >= 0], np.linspace(0, 1, bins + 1)[1:-1]
                if strata == "quantile":
                    edges = np.quantile(inside, share, overwrite_input=True)
                else:
                    edges = inside.min() + share * (inside.max() - inside.min())
            for begin in range(0, len(score), 1 << 20):
                part = slice(begin, begin + (1 << 20))
                stratum[part] = np.where(stratum[part] < 0, -1, np.searchsorted(edges, score[part], side="right"))
        found.append(stratum)
    return found


def draw_pair(
    pair: Pair,
    wanted: np.ndarray,
    *,
    temporal_dim: int,
    strata: str,
    cells: Sequence[int],
    bins: int,
    composite_weights: Sequence[float],
    outlier_std: float,
    min_stride: int,
    oversample: bool,
    exact: bool,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Draw one pair's windows: SAMPLE in time order, their places in the pair's statistics, and what was found.

    With `exact`, raises InputError if a split can't give the windows that are wanted of it.
    """
    scale = fit_scale(pair, outlier_std)
    name = int.from_bytes(hashlib.sha256(pair.book.pair.encode()).digest()[:8], "little")
    places, samples = [], []
    facts: dict[str, Any] = {"splits": {}, "scale": scale.tolist()}
    found = find_strata(pair, scale, strata, cells, bins, composite_weights, outlier_std)
    for index, stratum in enumerate(found):
        rng = np.random.Generator(np.random.PCG64([seed, name, index]))
        ends = pair.rows["end_row"][pair.splits[index]]
        picked, weight, exhausted = draw_split(ends, stratum, int(wanted[index]), min_stride, oversample, rng)
        if exact and weight.sum() < wanted[index] - 0.5:
            raise InputError(f"{pair.book.pair}: {wanted[index]:,} {SPLITS[index]} windows asked for, {len(picked):,} "
                             f"of {len(ends):,} can be had {min_stride} states apart: lower --windows (None: "
                             "what there is) or --min_stride")  # fmt: skip
        sample = np.empty(len(picked), dtype=SAMPLE)
        sample["end_row"], sample["stratum"], sample["weight"] = ends[picked], stratum[picked], weight
        overlap, distinct = measure_overlap(sample["end_row"], temporal_dim)
        outliers = int(np.count_nonzero(stratum < 0))
        facts["splits"][SPLITS[index]] = {
            "windows": len(sample), "available": len(ends) - outliers, "outliers": outliers,
            "strata": len(np.unique(stratum[stratum >= 0])), "exhausted_strata": exhausted,
            "mean_overlap": overlap, "distinct_windows": distinct,
        }  # fmt: skip
        places.append(pair.splits[index].start + picked)
        samples.append(sample)
    if not any(map(len, samples)):
        raise InputError(f"{pair.book.pair}: none of the windows falls to it: raise --windows, or its share in "
                         "--pair_weights, or leave the pair out")  # fmt: skip
    facts["shared_states"] = count_shared_states([s["end_row"] for s in samples], temporal_dim, pair.book.rows)
    on_grid = strata == "joint_cells" and tuple(cells) == GRID
    limits = composite_weights, outlier_std
    before = found[0] if on_grid else place(pair.rows[pair.splits[0]], scale, GRID, *limits)[0]
    after, _ = place(pair.rows[places[0]], scale, GRID, *limits)
    natural = np.bincount(before[before >= 0])
    facts["entropy_before"] = normalised_entropy(natural, natural)
    facts["entropy_after"] = normalised_entropy(np.bincount(after, samples[0]["weight"], len(natural)), natural)
    return np.concatenate(samples), np.concatenate(places), facts


def draw_split(
    ends: np.ndarray, stratum: np.ndarray, wanted: int, min_stride: int, oversample: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Pick `wanted` windows, as nearly as can be the same number of each stratum, all `min_stride` apart.

    Rare strata choose first. One that has too few gives what it has, and those after it share what it lacks; under
    `oversample` its own weights make up for it. Returns the places, ascending, their weights, and how many strata
    gave all they had.
    """
    members, bounds = sort_by_stratum(stratum)
    names = np.argsort(np.diff(bounds), kind="stable")
    names = names[np.diff(bounds)[names] > 0]
    used, blocked = bounds.copy(), np.zeros(len(ends), dtype=np.bool_)
    parts, weights = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    missing, found = wanted, 1
    while missing and found:
        found = 0
        for left, name in zip(range(len(names), 0, -1), names, strict=True):
            quota, stop = -(-missing // left), bounds[name + 1]
            picked, used[name] = take_apart(members, used[name], stop, quota, min_stride, ends, blocked, rng)
            repeated = oversample and len(picked) > 0
            missing -= quota if repeated else len(picked)
            parts.append(picked)
            weights.append(np.full(len(picked), quota / len(picked) if repeated else 1.0))
            found += len(picked)
    places, weight = np.concatenate(parts), np.concatenate(weights)
    order = np.argsort(places)
    return places[order], weight[order], int(np.count_nonzero(used[names] == bounds[names + 1]))


@njit(cache=True)
def sort_by_stratum(stratum):
    """Places of the windows, stratum after stratum, and where each stratum begins (one more than strata)."""
    bounds = np.zeros(max(0, stratum.max()) + 2 if len(stratum) else 1, dtype=np.int64)
    for name in stratum:
        if name >= 0:
            bounds[name + 1] += 1
    bounds = np.cumsum(bounds)
    members, cursor = np.empty(bounds[-1], dtype=np.uint32), bounds.copy()
    for place, name in enumerate(stratum):
        if name >= 0:
            members[cursor[name]] = place
            cursor[name] += 1
    return members, bounds


@njit(cache=True)
def take_apart(members, begin, end, quota, stride, ends, blocked, rng):
    """Pick up to `quota` of members[begin:end] at random, none within `stride` states of one picked before.

    `blocked` marks the windows that are too near; `members` is shuffled as far as it is used (Fisher and Yates).
    Returns the places and where the unused members begin.
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
    """Entropy of the distribution over the cells that `natural` occupies, as a share of the largest possible."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return -float((share * np.log(share)).sum()) / math.log(max(2, int(np.count_nonzero(natural))))


def measure_overlap(ends: np.ndarray, temporal_dim: int) -> tuple[float, float]:
    """Mean share of a window's states that the window before it holds; distinct windows: states covered / T."""
    if len(ends) == 0:
        return 0.0, 0.0
    new = np.minimum(np.diff(ends, prepend=ends[0] - temporal_dim), temporal_dim)
    return float(1 - new[1:].mean() / temporal_dim) if len(ends) > 1 else 0.0, float(new.sum() / temporal_dim)
