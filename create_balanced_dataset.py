"""Draw a sample of windows in which rare market conditions are as frequent as there are windows of them.

    python create_balanced_dataset.py
    python create_balanced_dataset.py --windows=50000 --min_stride=64 --strata=equal_width

Reads `training_data/window_statistics/<PAIR>.npy` and writes `training_data/balanced_samples/<PAIR>.npy`, a structured
array sorted by time (end_row int64, stratum int32, weight float64: how often the window is drawn an epoch; 20 bytes a
window), its `.json`, and a picture of each statistic before and after. Training, validation and test are cut by one
calendar for all pairs and sampled apart; limits, scales and strata are fitted on a pair's training share alone, so
that each pair is balanced over its own conditions. The sample that ships gives 2,626 windows.
"""

config = {
    "data_dir": "training_data",  # folder that holds window_statistics/ and the rest
    "pairs": None,  # list of pairs; None: all under window_statistics/
    "temporal_dim": 256,  # states a window, as in exploration_main.py
    "split_ratios": [0.7, 0.25, 0.05],  # train, validation, test: shares of the recorded time, or two UTC dates
    "windows": None,  # windows to draw in all, each split its share; None: one for every 64 states
    "pair_weights": None,  # share of each pair by name, {"BTC_USD": 2.0, "ETH_USD": 1.0}; None: by number of states
    "strata": "joint_cells",  # joint_cells of volatility x spread x direction; equal_width or quantile of a composite
    "cells": [8, 8, 9],  # joint_cells: equal-width cells of volatility, spread, direction inside the outlier limits
    "bins": 10,  # equal_width, quantile: strata of the composite
    "composite_weights": [0.4, 0.2, 0.3, 0.1],  # of standardised |mid-price change|, spread, deviation, |mean return|
    "outlier_std": 3.0,  # training windows beyond this many deviations in any of the four are set aside
    "min_stride": 16,  # least distance of two sampled window ends, in states
    "oversample": False,  # repeat windows of a stratum that has too few (their weight grows)
    "seed": 0,  # the same seed gives the same sample on every machine
    "plots": True,  # draw the pictures
}

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"pairs": list, "pair_weights": dict, "windows": int},
        choices={"strata": ("joint_cells", "equal_width", "quantile")},
        bounds={"temporal_dim": ">= 2", "windows": ">= 1 and <= 1e12", "bins": ">= 2 and <= 32000",
                "outlier_std": "> 0", "min_stride": ">= 1 and <= 1e12", "seed": ">= 0"},
    )  # fmt: skip

from pathlib import Path

import numpy as np

from lob.book.states import identity
from lob.storage import find_pairs, save_table
from lob.windows.balancing import SCORED, Pair, draw_pair, open_pairs, share_windows


def main(config: dict) -> int:
    check_config(config)
    folder = Path(config["data_dir"])
    names = find_pairs(folder, "window_statistics", config["pairs"], "exploration_main.py")
    pairs, cuts = open_pairs(folder, names, config["temporal_dim"], config["split_ratios"])
    wanted = share_windows(
        pairs, config["windows"], config["pair_weights"], config["split_ratios"], config["temporal_dim"]
    )
    how = ("temporal_dim", "strata", "cells", "bins", "composite_weights", "outlier_std", "min_stride", "oversample",
           "seed")  # fmt: skip
    values = {key: config[key] for key in how}
    exact = config["windows"] is not None
    samples = [draw_pair(pair, counts, exact=exact, **values) for pair, counts in zip(pairs, wanted, strict=True)]
    for pair, (sample, places, facts) in zip(pairs, samples, strict=True):
        save_sample(pair, sample, places, facts, cuts, config, folder)
    return 0


def check_config(config: dict) -> None:
    """Refuse what is wrong whatever the data."""
    weights, cells = config["composite_weights"], config["cells"]
    if [type(w) in (int, float) and 0 <= w <= 1e9 for w in weights] != [True] * len(SCORED) or not any(weights):
        raise InputError(f"composite_weights = {weights} must be {len(SCORED)} numbers from 0 to 1e9, not all 0, one "
                         f"for each of {SCORED}")  # fmt: skip
    if [type(c) is int and c >= 1 for c in cells] != [True] * 3 or np.prod(cells, dtype=float) > 32_000:
        raise InputError(f"cells = {cells} must be 3 numbers, of volatility, spread, direction, such as [8, 8, 9]")


def save_sample(
    pair: Pair, sample: np.ndarray, places: np.ndarray, facts: dict, cuts: np.ndarray, config: dict, folder: Path
) -> None:
    """Write one pair's sample, print what is in it and draw it."""
    file = folder / "balanced_samples" / f"{pair.book.pair}.npy"
    parameters = {key: config[key] for key in config if key not in ("data_dir", "plots", "pairs")}
    save_table(file, sample, parameters, identity(pair.book), cuts_ns=cuts.tolist(), **facts)
    print(f"{pair.book.pair}: {len(sample):,} windows, states shared by two splits: {facts['shared_states']} -> {file}")
    columns = ("windows", "available", "outliers", "strata", "exhausted_strata", "mean_overlap", "distinct_windows")
    print(f"  {'':<12}" + "".join(f"{column.replace('_', ' '):>18}" for column in columns))
    for name, split in facts["splits"].items():
        cells = (f"{split[c]:>18,.2f}" if isinstance(split[c], float) else f"{split[c]:>18,}" for c in columns)
        print(f"  {name:<12}" + "".join(cells))
    outliers, kept = (facts["splits"]["train"][column] for column in ("outliers", "available"))
    if outliers > 0.1 * (outliers + kept):
        print(f"  warning: {100 * outliers / (outliers + kept):.0f} % of the training windows are outliers, set aside: "
              f"raise --outlier_std={config['outlier_std']:g}")  # fmt: skip
    print(f"  normalised entropy of conditions in training: {facts['entropy_before']:.3f} before, "
          f"{facts['entropy_after']:.3f} after ({config['strata']})")  # fmt: skip
    before, after = pair.rows[:: -(-len(pair.rows) // 200_000)], pair.rows[places]
    print(f"  {'':<22}{'before: 1 %':>12}{'median':>12}{'99 %':>12}{'after: 1 %':>14}{'median':>12}{'99 %':>12}")
    for name in SCORED:
        numbers = [*np.quantile(before[name], [0.01, 0.5, 0.99]), *np.quantile(after[name], [0.01, 0.5, 0.99])]
        print(f"  {name:<22}" + "".join(f"{n:>{w}.4g}" for n, w in zip(numbers, (12, 12, 12, 14, 12, 12), strict=True)))
    if config["plots"]:
        from lob.plotting import save
        from lob.windows.pictures import draw_balance

        picture = folder / "plots" / f"{pair.book.pair}_balanced.png"
        print(f"  {save(draw_balance(before, after, SCORED, pair.book.pair), picture)}")


if __name__ == "__main__":
    run(main, config)
