"""Rates and memory of the window statistics and of the balanced sample, on synthetic states.

    python -m benchmarks.bench_windows
    python -m benchmarks.bench_windows --write=True --sampler_rows="[1000000, 10000000, 100000000]"

Needs about 100 bytes of disk per row under `work_dir`, and removes what it writes. Prints a table
and one JSON line.
"""

config = {
    "rows": 4_000_000,  # int >= 1: states in memory for the kernel, 96 levels each (3 GB)
    "file_rows": 20_000_000,  # int >= 1: states of 8 levels, file to file; a tenth of them as well
    "sampler_rows": [1_000_000, 10_000_000],  # list[int >= 1]: rows of statistics to sample from
    "work_dir": None,  # str | None: folder on the disk to measure; None: the system's temporary one
    "write": False,  # bool: keep the result in benchmarks/results/windows.json
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import ROW, report, watch
from lob.book.states import Book, identity, open_book
from lob.process import count_cores
from lob.storage import ArrayWriter, new_table
from lob.windows.statistics import CHUNK_ROWS, STATISTICS, chunk_statistics

BLOCK = 1 << 20


def main(config: dict) -> None:
    rows = measure_kernel(config["rows"])
    with tempfile.TemporaryDirectory(dir=config["work_dir"]) as folder:
        rows += measure_files(Path(folder), config["file_rows"])
        rows += measure_sampler(Path(folder), config["sampler_rows"])
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


def write_book(folder: Path, rows: int, depth: int) -> Book:
    """Write a book to disk, a block at a time.

    The file of its prices is sparse, since `top_of_book` is read instead.
    """
    folder.mkdir(parents=True)
    sizes = ArrayWriter(folder / "sizes.npy", np.float32, (depth,))
    top_of_book = ArrayWriter(folder / "top_of_book.npy", np.int32, (2,))
    timestamps = ArrayWriter(folder / "timestamps.npy", np.int64)
    rng = np.random.default_rng(0)
    for begin in range(0, rows, BLOCK):
        count = min(BLOCK, rows - begin)
        bid = 7_800_000 + np.cumsum(rng.integers(-1, 2, count))
        sizes.append(rng.random((count, depth), dtype=np.float32) + 1)
        ask = bid + rng.integers(1, 4, count)
        top_of_book.append(np.stack([bid, ask], axis=1).astype(np.int32))
        timestamps.append(np.arange(begin, begin + count) * 10_000_000)
    for writer in (sizes, top_of_book, timestamps):
        writer.close()
    np.save(folder / "segment_starts.npy", np.zeros(1, np.int64))
    price_file = folder / "price_ticks.npy"
    np.lib.format.open_memmap(price_file, mode="w+", dtype=np.int32, shape=(rows, depth))
    meta = {"format_version": 1, "depth": depth, "tick_size": 0.01, "rows": rows}
    (folder / "meta.json").write_text(json.dumps(meta))
    return open_book(folder)


def measure_files(folder: Path, rows: int) -> list[tuple]:
    """Time exploration_main.py from file to file, beside a plain write of as many bytes."""
    block = np.random.default_rng(0).bytes(STATISTICS.itemsize * BLOCK)
    began = time.perf_counter()
    with open(folder / "raw", "wb") as handle:
        for _ in range(rows // BLOCK + 1):
            handle.write(block)
        os.fsync(handle.fileno())
    disk = (rows // BLOCK + 1) * len(block) / (time.perf_counter() - began)
    (folder / "raw").unlink()
    found = []
    data = folder / "files"
    for count in (rows // 10, rows):  # if memory is bounded, ten times the rows take no more
        write_book(data / "book_states" / "SYN", count, 8)
        seconds, memory = watch("exploration_main.py", f"--data_dir={data}", "--plots=False")
        shutil.rmtree(data)
        note = "8 levels, Python and numba included"
        found.append(("file_to_file", f"anonymous_mb_{count}", memory, "MB", note))
    rate = rows * STATISTICS.itemsize / seconds / 1e6
    note = f"{rows:,} windows in {seconds:.1f} s; the disk takes {disk / 1e6:,.0f} MB/s"
    return [*found, ("file_to_file", "written_mb_per_second", rate, "MB/s", note)]


def measure_sampler(folder: Path, sizes: list[int]) -> list[tuple]:
    """Time create_balanced_dataset.py on heavy-tailed statistics, a window every 64 states."""
    rng = np.random.default_rng(0)
    block = np.zeros(BLOCK, dtype=STATISTICS)
    for name in STATISTICS.names or ():
        block[name] = rng.standard_t(4, BLOCK)
    found = []
    taken = []
    data = folder / "sampler"
    for rows in (sizes[0], *sizes):  # the first run compiles and is dropped
        about = identity(write_book(data / "book_states" / "SYN", rows + 255, 2))
        file = data / "window_statistics" / "SYN.npy"
        with new_table(file, STATISTICS, {"temporal_dim": 256}, about) as table:
            for begin in range(0, rows, BLOCK):
                block["end_row"] = np.arange(begin + 256, begin + 256 + BLOCK)
                table.append(block[: rows - begin])
        seconds, memory = watch("create_balanced_dataset.py", f"--data_dir={data}", "--plots=False")
        shutil.rmtree(data)
        taken.append(seconds)
        found.append(("sampler", f"seconds_{rows}", seconds, "s", "start of Python included"))
        found.append(("sampler", f"anonymous_mb_{rows}", memory, "MB", "Python and numba included"))
    each = 1e6 * (taken[-1] - taken[1]) / (sizes[-1] - sizes[0])
    return [
        *found[2:],
        ("sampler", "seconds_per_million", each, "s", f"growth from {sizes[0]:,} to {sizes[-1]:,}"),
    ]


if __name__ == "__main__":
    run(main, config)
