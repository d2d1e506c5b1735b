"""Describe the market conditions of every window of order book states, and draw them.

    python exploration_main.py                     every pair under training_data/book_states/
    python exploration_main.py --temporal_dim=512 --plots=False

Reads `training_data/book_states/<PAIR>/` and writes `training_data/window_statistics/<PAIR>.npy`, a
structured array with one row of 96 bytes for each window of `temporal_dim` states, its `.json`, and
PNG pictures under `training_data/plots/`. A window ends at every state that has enough states
before it in its segment (a run of states without a gap). The sample gives 167,864 windows.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/ and the rest
    "pairs": None,  # list[str] | None: pairs to describe; None: all under book_states/
    "temporal_dim": 256,  # int >= 2: states of a window
    "plots": True,  # bool: draw the pictures
}

from lob.config import check_rules, do_each, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import time
from pathlib import Path

import numpy as np

from lob.book.states import open_book
from lob.process import drawing
from lob.storage import find_pairs, load_array
from lob.windows.statistics import STATISTICS, write_statistics

IN_JOINT_PICTURE = (
    "mid_price_change_bps",
    "average_spread_bps",
    "std_tick_returns_bps",
    "imbalance_best",
    "update_rate_hz",
)


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    folder = Path(config["data_dir"])
    pairs = find_pairs(folder, "book_states", config["pairs"], "data_parser.py")
    temporal_dim, plots = config["temporal_dim"], config["plots"]
    do_each(lambda pair: describe_pair(pair, folder, temporal_dim, plots), pairs)
    return 0


def describe_pair(pair: str, folder: Path, temporal_dim: int, plots: bool) -> None:
    """Write one pair's statistics and pictures; print what they hold and where they are."""
    began = time.perf_counter()
    book = open_book(folder / "book_states" / pair)
    file = folder / "window_statistics" / f"{pair}.npy"
    windows = write_statistics(book, temporal_dim, file)
    seconds = time.perf_counter() - began
    print(f"{pair}: {windows:,} windows of {temporal_dim} states in {seconds:.1f} s -> {file}")
    rows = load_array(file)
    print(summarise(rows))
    if plots:
        with drawing(f"{pair}: pictures"):
            from lob.windows.pictures import draw_pair  # late: matplotlib takes a second

            for picture in draw_pair(book, rows, IN_JOINT_PICTURE, folder / "plots"):
                print(f"  {picture}")


def summarise(rows: np.ndarray) -> str:
    """Return a table of each statistic over at most a million windows, evenly spaced."""
    rows = rows[:: max(1, len(rows) // 1_000_000)]
    header = f"{'mean':>12}{'deviation':>12}{'1 %':>12}{'median':>12}{'99 %':>12}"
    lines = [f"  {'':<24}{header}"]
    for name in STATISTICS.names or ():
        values = rows[name]
        if name == "end_row" or np.isnan(values).all():
            continue
        low, median, high = np.nanquantile(values, [0.01, 0.5, 0.99])
        mean, deviation = np.nanmean(values), np.nanstd(values)
        numbers = f"{mean:>12.5g}{deviation:>12.5g}{low:>12.5g}{median:>12.5g}{high:>12.5g}"
        lines.append(f"  {name:<24}{numbers}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, config)
