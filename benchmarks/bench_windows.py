"""Rate of the window statistics in memory; benchmarks/bench_scale.py has the stages on files.

    python -m benchmarks.bench_windows --write=True

Prints a table and one JSON line.
"""

config = {
    "rows": 4_000_000,  # int >= 1: states in memory for the kernel, 96 levels each (3 GB)
    "write": False,  # bool: keep the result in benchmarks/results/windows.json
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import time
from pathlib import Path

import numpy as np

from benchmarks.report import ROW, report
from lob.book.states import Book
from lob.process import count_cores
from lob.windows.statistics import CHUNK_ROWS, chunk_statistics


def main(config: dict) -> None:
    rows = measure_kernel(config["rows"])
    report("windows", [dict(zip(ROW, row, strict=True)) for row in rows], write=config["write"])


def measure_kernel(rows: int) -> list[tuple]:
    """Time the statistics of all windows of a book in memory, of two lengths: the best of five.

    The lengths take turns, so that a busy machine slows both alike.
    """
    rng = np.random.default_rng(0)
    mid = 7_800_000 + np.cumsum(rng.integers(-1, 2, rows))
    top = np.stack([mid, mid + rng.integers(1, 4, rows)], axis=1).astype(np.int32)
    sizes = rng.random((rows, 96), dtype=np.float32)
    book = Book(
        path=Path("memory"),
        meta={"depth": 96, "tick_size": 0.01},
        price_ticks=sizes.view(np.int32),  # never read, since there is a top of book
        sizes=sizes,
        timestamps=np.cumsum(rng.integers(0, 20_000_000, rows)),
        segment_starts=np.zeros(1, np.int64),
        top_of_book=top,
        traded=sizes[:, 0].copy(),
    )
    best = {256: np.inf, 1024: np.inf}
    for length in (256, 1024) * 5:
        began = time.perf_counter()
        for first in range(0, rows - length + 1, CHUNK_ROWS):
            last = min(first + CHUNK_ROWS + length - 1, rows)
            chunk_statistics(book, first, last, length)
        best[length] = min(best[length], time.perf_counter() - began)
    note = f"{rows:,} states of 96 levels in memory, temporal_dim 256, {count_cores()} cores"
    note_of_ratio = "time at temporal_dim 1024 / at 256"
    return [
        ("kernel", "windows_per_second", (rows - 255) / best[256], "1/s", note),
        ("kernel", "ratio_1024_to_256", best[1024] / best[256], "", note_of_ratio),
    ]


if __name__ == "__main__":
    run(main, config)
