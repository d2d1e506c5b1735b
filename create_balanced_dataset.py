"""Draw a balanced sample of windows: rare market conditions are as frequent as common ones.

A condition that is too rare for that gives all the windows that it has.

    python create_balanced_dataset.py
    python create_balanced_dataset.py --windows=50000 --min_stride=64 --cells="[5, 5, 5]"

Reads `training_data/window_statistics/<PAIR>.npy` and writes
`training_data/balanced_samples/<PAIR>.npy`, a structured array sorted by time (end_row int64,
stratum int32, weight float64: how often the window is drawn per epoch; 20 bytes per window), its
`.json`, and a picture of each statistic before and after. A stratum is a kind of market condition:
one cell of volatility x spread x direction.

Training, validation and test are cut by one calendar for all pairs, and each is sampled on its own.
Limits, scales and strata are fitted on a pair's training share alone, so that each pair is balanced
over its own conditions. The recording that ships gives 21,014 windows.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds window_statistics/ and the rest
    "pairs": None,  # list[str] | None: pairs to sample; None: all under window_statistics/
    "temporal_dim": 256,  # int >= 2: states of a window, as in exploration_main.py
    "split_ratios": [0.7, 0.25, 0.05],  # list[float | str]: shares of the recorded time for
    #   training, validation and test, or the two UTC dates at which validation and test begin
    "windows": None,  # int >= 1 and <= 1e12 | None: windows to draw in all; None: one for every 64
    #   states, or if these are few up to 24,000, but at most one for every 8 states
    "pair_weights": None,  # dict | None: share of each pair, such as
    #   {"BTC_USD": 2.0, "ETH_USD": 1.0}; None: by number of states
    "cells": [8, 8, 9],  # list[int >= 1]: cells of volatility, spread and direction, of equal width
    #   within the outlier limits; each joint cell is a stratum
    "outlier_std": 3.0,  # > 0: leave out windows this many deviations off in any statistic
    "min_stride": None,  # int >= 1 and <= 1e12 | None: least distance of two sampled windows, in
    #   states; None: 16, or less where thrice the wanted windows would not fit
    "oversample": False,  # bool: repeat windows of a stratum that has too few (their weight grows)
    "seed": 0,  # int >= 0: the same seed gives the same sample on every machine
    "plots": True,  # bool: draw the pictures
}

from lob.config import InputError, check_rules, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

from pathlib import Path
from typing import Any

import numpy as np

from lob.book.states import identity
from lob.process import drawing
from lob.storage import find_pairs, save_table
from lob.windows.balancing import (
    SCORED,
    Pair,
    Sample,
    choose_stride,
    choose_windows,
    draw_pair,
    open_pairs,
    share_windows,
)
from lob.windows.splits import SPLITS, describe_dates

SPLIT_COLUMNS = {  # of a split's facts -> head in print
    "windows": "windows drawn",
    "available": "to draw from",
    "outliers": "outliers left out",
    "strata": "conditions met",
    "exhausted_strata": "drawn to the last",
    "mean_overlap": "states shared",
    "distinct_windows": "side by side",
}
COLUMNS_EXPLAINED = (
    "  conditions: cells of volatility x spread x direction; drawn to the last: those that had no "
    "more windows\n  to give; states shared: share of a window's states that the one before it has "
    "too; side by side: windows\n  that would hold as many states if they shared none"
)
LEVELS = [0.01, 0.5, 0.99]  # quantiles that are printed


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    check_config(config)
    folder = Path(config["data_dir"])
    names = find_pairs(folder, "window_statistics", config["pairs"], "exploration_main.py")
    pairs, cuts, samples = draw_samples(config, names)
    # All pairs are drawn before the first is written: an error leaves the old samples in place.
    for pair, sample in zip(pairs, samples, strict=True):
        file = save_sample(pair, sample, cuts, config)
        print(
            f"{pair.book.pair}: {len(sample.rows):,} windows, "
            f"states shared by two splits: {sample.facts['shared_states']} -> {file}"
        )
        for missing in sample.missing:
            print(f"  {missing}")
        print(summarise(pair, sample, config["outlier_std"]))
        if config["plots"]:
            with drawing(f"{pair.book.pair}: picture"):
                print(f"  {draw(pair, sample, folder / 'plots')}")
    return 0


def check_config(config: dict) -> None:
    """Raise InputError if the cells are wrong, whatever the data."""
    cells = config["cells"]
    if len(cells) != 3 or np.prod(cells, dtype=float) > 32_000:
        raise InputError(
            f"cells = {cells} must be 3 numbers (of volatility, spread and direction), "
            "such as [8, 8, 9], whose product is at most 32,000"
        )


def draw_samples(config: dict, names: list[str]) -> tuple[list[Pair], np.ndarray, list[Sample]]:
    """Draw the windows of all pairs; return the pairs, the cuts between their splits, the samples.

    A pair that has no training window is named and left out. Raises InputError if no other is left.
    """
    folder, split_ratios = Path(config["data_dir"]), config["split_ratios"]
    pairs, cuts = open_pairs(folder, names, config["temporal_dim"], split_ratios)
    opened = [pair.book.pair for pair in pairs]
    weights = config["pair_weights"]
    if weights is not None:
        weights = {name: weights[name] for name in weights if name in opened or name not in names}
    wanted = share_windows(pairs, config["windows"], weights, split_ratios)
    states = sum(pair.book.rows for pair in pairs)
    windows = config["windows"] or choose_windows(states)
    stride = config["min_stride"] or choose_stride(states, windows)
    samples = []
    for pair, counts in zip(pairs, wanted, strict=True):
        sample = draw_pair(
            pair,
            counts,
            temporal_dim=config["temporal_dim"],
            cells=config["cells"],
            outlier_std=config["outlier_std"],
            min_stride=stride,
            oversample=config["oversample"],
            exact=config["windows"] is not None,
            seed=config["seed"],
        )
        samples.append(sample)
    chosen = " (chosen by the number of states)" if config["windows"] is None else ""
    print(f"{windows:,} windows{chosen} of {states:,} states, at least {stride} states apart")
    print(describe_dates([pair.book for pair in pairs], cuts))
    for split, count in zip(SPLITS, wanted.sum(axis=0), strict=True):
        if not count:
            print(f"no window of {config['temporal_dim']} states is sampled for {split}")
    return pairs, cuts, samples


def save_sample(pair: Pair, sample: Sample, cuts: np.ndarray, config: dict) -> Path:
    """Write one pair's sample and its `.json`; return the file."""
    file = Path(config["data_dir"]) / "balanced_samples" / f"{pair.book.pair}.npy"
    parameters = {key: config[key] for key in config if key not in ("data_dir", "plots", "pairs")}
    save_table(
        file, sample.rows, parameters, identity(pair.book), cuts_ns=cuts.tolist(), **sample.facts
    )
    return file


def summarise(pair: Pair, sample: Sample, outlier_std: float) -> str:
    """Return what a sample holds: its splits, its evenness, each statistic before and after."""
    splits = sample.facts["splits"]
    header = "".join(f"{head:>19}" for head in SPLIT_COLUMNS.values())
    lines = [f"  {'':<12}{header}"]
    for name, split in splits.items():
        cells = "".join(format_cell(split[column]) for column in SPLIT_COLUMNS)
        lines.append(f"  {name:<12}{cells}")
    lines.append(COLUMNS_EXPLAINED)
    outliers = splits["train"]["outliers"]
    windows = outliers + splits["train"]["available"]
    if outliers > 0.1 * windows:
        lines.append(
            f"  warning: {100 * outliers / windows:.0f} % of the training windows are outliers, "
            f"and are left out: raise --outlier_std={outlier_std:g}"
        )
    lines.append(
        "  evenness of conditions in training (entropy; 1: all as frequent): "
        f"{sample.facts['entropy_before']:.3f} before, {sample.facts['entropy_after']:.3f} after"
    )
    before, after = compared_rows(pair, sample)
    header = f"{'before: 1 %':>12}{'median':>12}{'99 %':>12}"
    header += f"{'after: 1 %':>14}{'median':>12}{'99 %':>12}"
    lines.append(f"  {'':<22}{header}")
    for name in SCORED:
        low, median, high = np.quantile(before[name], LEVELS)
        low_after, median_after, high_after = np.quantile(after[name], LEVELS)
        lines.append(
            f"  {name:<22}{low:>12.4g}{median:>12.4g}{high:>12.4g}"
            f"{low_after:>14.4g}{median_after:>12.4g}{high_after:>12.4g}"
        )
    return "\n".join(lines)


def format_cell(value: Any) -> str:
    return f"{value:>19,.2f}" if isinstance(value, float) else f"{value:>19,}"


def compared_rows(pair: Pair, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return the statistics of all and of the sampled windows, at most 200,000 of each.

    They are evenly spaced, so that memory does not grow with the recording.
    """
    every, sampled = (-(-len(found) // 200_000) for found in (pair.rows, sample.places))
    return pair.rows[::every], pair.rows[sample.places[::sampled]]


def draw(pair: Pair, sample: Sample, folder: Path) -> Path:
    """Draw each statistic before and after the balancing; return the file."""
    from lob.plotting import save
    from lob.windows.pictures import draw_balance

    before, after = compared_rows(pair, sample)
    figure = draw_balance(before, after, SCORED, pair.book.pair)
    return save(figure, folder / f"{pair.book.pair}_balanced.png")


if __name__ == "__main__":
    run(main, config)
