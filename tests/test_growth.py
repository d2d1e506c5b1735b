"""What a recording's length costs: memory by the stages' own arrays, and the benchmark of it."""

import json
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import shell

from benchmarks.bench_scale import forget, write_book
from benchmarks.report import watch
from benchmarks.scale_tables import measure_growth
from lob.book.states import Book, check_states, open_book
from lob.model.window_store import WindowStore
from lob.windows.balancing import Pair, draw_pair
from lob.windows.pictures import draw_book
from lob.windows.splits import gather_windows
from lob.windows.statistics import STATISTICS


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that Python and numpy held at a time in the second of two calls."""
    work()  # compiles, imports, fills caches
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def long_book(rows: int) -> Book:
    """Return a book of one state, again and again, that takes 8 bytes a state."""
    prices = np.broadcast_to(np.array([99, 100, 102, 103], np.int32), (rows, 4))
    sizes = np.broadcast_to(np.ones(4, np.float32), (rows, 4))
    times = 1_777_689_383_201_000_001 + np.arange(rows) * 100_000_000
    meta = {"depth": 4, "tick_size": 0.01}
    return Book(Path("SYN"), meta, prices, sizes, times, np.zeros(1, np.int64), None, None)


def test_a_sample_is_drawn_in_few_bytes_a_window():
    windows = 400_000
    rng = np.random.default_rng(0)
    rows = np.zeros(windows, STATISTICS)
    for name in STATISTICS.names:
        rows[name] = rng.standard_t(4, windows)
    rows["end_row"] = np.arange(windows) + 256
    first, second = int(0.7 * windows), int(0.95 * windows)
    splits = [slice(0, first), slice(first + 256, second), slice(second + 256, windows)]
    pair = Pair(long_book(windows + 255), rows, splits)
    few = {"temporal_dim": 256, "cells": [8, 8, 9], "outlier_std": 3.0, "min_stride": 16}
    kind = {"oversample": False, "exact": False, "seed": 0}
    held = peak_bytes(lambda: draw_pair(pair, np.array([700, 250, 50]), **few, **kind))
    assert held < 7 * windows  # two of the stratum, four of the place, one of the distance


def test_a_picture_of_a_book_copies_none_of_its_arrays():
    book = long_book(12_000_000)
    held = peak_bytes(lambda: plt.close(draw_book(book)))
    assert held < book.timestamps.nbytes / 2


def test_a_synthetic_book_is_one_that_the_parser_could_have_written(tmp_path):
    write_book(tmp_path, "SYN", 3000, 6)
    book = open_book(tmp_path / "book_states" / "SYN")
    check_states(book.path, 3000)
    assert book.top_of_book is not None and book.traded is not None
    np.testing.assert_array_equal(book.top_of_book, book.price_ticks[:, 2:4])
    assert np.diff(book.timestamps).tolist() == [100_000_000] * 2999
    assert book.segment_starts.tolist() == [0]


def test_growth_is_that_of_what_exceeds_the_smallest_book():
    sizes = [1000, 10_000, 100_000, 1_000_000]
    exponent, rate, year = measure_growth(sizes, [3 + 1e-6 * states for states in sizes])
    assert exponent == pytest.approx(1.0, abs=0.05)
    assert rate == pytest.approx(1e-6) and year == pytest.approx(303)
    found = measure_growth(sizes, [3 + 1e-6 * states**1.5 for states in sizes])
    assert found[0] == pytest.approx(1.5, abs=0.05)


def test_a_watched_script_is_measured():
    watched = watch(
        "-c", "import time; held = bytearray(80_000_000); time.sleep(0.3); print('done')"
    )
    assert watched.printed == "done\n"
    assert 80 < watched.anonymous_mb < 130
    assert watched.seconds > 0.3 and 0.1 < watched.waiting_share <= 1
    with pytest.raises(AssertionError, match="failed"):
        watch("-c", "raise SystemExit(3)")


def test_the_loader_alone_is_timed(sampled):
    words = ["--temporal_dim=32", "--batch_size=8", "--steps=5", "--step_ms=1", "--num_workers=1"]
    done = shell("benchmarks.bench_loader", f"--data_dir={sampled}", *words)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    found = {row["metric"]: row["value"] for row in rows}
    assert found["windows_per_second"] > 0 and 0 <= found["data_wait_share"] < 1
    assert found["first_batch_seconds"] > 0


def test_of_a_file_on_the_disk_little_more_than_the_windows_is_read(tmp_path):
    """Where a file can't leave the page cache, as in a file system in memory, nothing is read."""
    write_book(tmp_path, "SYN", 100_000, 20)
    book = open_book(tmp_path / "book_states" / "SYN")
    for file in book.path.glob("*.npy"):
        forget(file)
    store = WindowStore([book], 256, torch.device("cpu"))
    ends = np.arange(5000, 100_000, 5000)
    starts = store.start_rows(np.zeros_like(ends), ends)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    ((price_ticks, sizes, times_ns),) = store.batches([starts])
    read = 512 * (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before)
    asked = sum(array.numpy().nbytes for array in (price_ticks, sizes, times_ns))
    assert read < 2 * asked
    expected = gather_windows(book, ends, 256)
    np.testing.assert_array_equal(price_ticks, expected[0])
    np.testing.assert_array_equal(sizes, expected[1])
