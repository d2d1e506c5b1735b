"""Describe the market conditions of every window of order book states, and draw them.

    python exploration_main.py                     every pair under training_data/book_states/
    python exploration_main.py --temporal_dim=512 --plots=False

Reads `training_data/book_states/<PAIR>/` and writes `training_data/window_statistics/<PAIR>.npy`, a structured array
with one row a window of `temporal_dim` states (all of them, one state apart, none across a segment border), 96 bytes
each, its `.json`, and PNG pictures under `training_data/plots/`. The sample gives 167,864 windows.
"""

config = {
    "data_dir": "training_data",  # folder that holds book_states/ and the rest
    "pairs": None,  # list of pairs; None: all under book_states/
    "temporal_dim": 256,  # states a window
    "plots": True,  # draw the pictures
}

from lob.config import do_each, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__, optional={"pairs": list}, bounds={"temporal_dim": ">= 2"})

import time
from pathlib import Path

import numpy as np

from lob.book.states import open_book
from lob.storage import find_pairs
from lob.windows.statistics import STATISTICS, write_statistics

MAIN = ("mid_price_change_bps", "average_spread_bps", "std_tick_returns_bps", "imbalance_best", "update_rate_hz")


def main(config: dict) -> int:
    pairs = find_pairs(config["data_dir"], "book_states", config["pairs"], "data_parser.py")
    do_each(lambda pair: describe_pair(pair, Path(config["data_dir"]), config), pairs)
    return 0


def describe_pair(pair: str, folder: Path, config: dict) -> None:
    """Write one pair's statistics and pictures, and print what they hold and where they are."""
    began = time.perf_counter()
    book = open_book(folder / "book_states" / pair)
    file = folder / "window_statistics" / f"{pair}.npy"
    windows = write_statistics(book, config["temporal_dim"], file)
    seconds = time.perf_counter() - began
    print(f"{pair}: {windows:,} windows of {config['temporal_dim']} states in {seconds:.1f} s -> {file}")
    rows = np.load(file, mmap_mode="r")
    print(summarise(rows))
    if config["plots"]:
        from lob.windows.pictures import draw_pair

        for picture in draw_pair(book, rows, MAIN, folder / "plots"):
            print(f"  {picture}")


def summarise(rows: np.ndarray) -> str:
    """A table of each statistic's mean, deviation and quantiles, over at most a million rows evenly taken."""
    rows = rows[:: max(1, len(rows) // 1_000_000)]
    lines = [f"  {'':<24}{'mean':>12}{'deviation':>12}{'1 %':>12}{'median':>12}{'99 %':>12}"]
    for name in STATISTICS.names or ():
        values = rows[name]
        if name != "end_row" and not np.isnan(values).all():
            low, median, high = np.nanquantile(values, [0.01, 0.5, 0.99])
            numbers = (np.nanmean(values), np.nanstd(values), low, median, high)
            lines.append(f"  {name:<24}" + "".join(f"{number:>12.5g}" for number in numbers))
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, config)
