"""What a recording's length costs: statistics, sample and loader on synthetic books that grow.

    python -m benchmarks.bench_scale --write=True
    python -m benchmarks.bench_scale --sizes="[10000, 100000, 1000000]" --pairs=3

Books with a state every 100 ms are written in the format of data_parser.py. Then
exploration_main.py, create_balanced_dataset.py and benchmarks/bench_loader.py run on them, each in
a process of its own whose files are not in the page cache. Of each the benchmark reports seconds,
the most anonymous memory, what was read from the disk and the share of its time without a core at
work. benchmarks/scale_tables.py says how they grow.

The largest book needs 8 bytes a level and 124 more of disk for each state; the books are removed.
"""

config = {
    "sizes": [100_000, 3_000_000, 10_000_000, 30_000_000],  # list[int >= 1000]: states of the books
    #   of one pair, ascending
    "pairs": 50,  # int >= 0: pairs of a day each, which are the last case; 0: none
    "depth": 20,  # int >= 2: levels of a state
    "pair_depth": 8,  # int >= 2: of the pairs of a day
    "data_dir": None,  # str | None: folder for the books; None: the system's temporary one
    "write": False,  # bool: keep the result in benchmarks/results/scale.json
}

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import report, watch
from lob.book.states import StateWriter
from lob.process import count_cores
from lob.results import make_row

BLOCK = 1 << 20
INTERVAL_NS = 100_000_000
DAY = 864_000  # states
PARTS = {
    "statistics": ("exploration_main.py",),
    "sample": ("create_balanced_dataset.py",),
    "loader": ("-m", "benchmarks.bench_loader"),
}
UNITS = {"seconds": "s", "anonymous_mb": "MB", "read_gb": "GB", "waiting_share": ""}


def main(config: dict) -> None:
    sizes = config["sizes"]
    if sizes != sorted(set(sizes)) or len(sizes) < 3:
        raise InputError(f"sizes = {sizes} must be three numbers or more, ascending")
    rows = []
    with tempfile.TemporaryDirectory(dir=config["data_dir"]) as name:
        note = f"{config['depth']} levels, {count_cores()} cores"
        for states in (sizes[0], *sizes):
            folder = Path(name) / str(states)
            write_book(folder, "SYN", states, config["depth"])
            rows += measure(folder, str(states), note)
            shutil.rmtree(folder)
        rows = rows[len(rows) // (len(sizes) + 1) :]  # the first run compiles and is dropped
        folder = Path(name) / "pairs"
        for number in range(config["pairs"]):
            write_book(folder, f"SYN_{number:03}", DAY, config["pair_depth"], number)
        if config["pairs"]:
            note = f"{config['pairs']} pairs of {DAY:,} states, {config['pair_depth']} levels"
            rows += measure(folder, "pairs", f"{note}, no pictures", plots=False)
    report("scale", rows, write=config["write"])


def write_book(data_dir: Path, pair: str, states: int, depth: int, seed: int = 0) -> None:
    """Write a random walk in the format of a parsed book, in blocks of some MB.

    Minutes differ in how often the mid moves and in the spread. Levels beyond the best and sizes
    are drawn from some thousand patterns.
    """
    folder = data_dir / "book_states" / pair
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    half, minute = depth // 2, 600
    offsets = rng.integers(1, 4, (4096, half)).cumsum(axis=1, dtype=np.int32)
    patterns = rng.lognormal(-2, 1, (4096, depth)).astype(np.float32)
    writer = StateWriter(folder, depth)
    last_bid = 7_800_000
    for begin in range(0, states, BLOCK):
        count = min(BLOCK, states - begin)
        minutes = -(-count // minute)
        moves = np.repeat(np.clip(rng.lognormal(-2, 1, minutes), 0.01, 0.9), minute)[:count]
        widths = np.repeat(rng.lognormal(0, 0.5, minutes), minute)[:count]
        moved = rng.random(count, np.float32) < moves
        bid = last_bid + np.cumsum(np.where(moved, rng.integers(0, 2, count) * 2 - 1, 0))
        last_bid = int(bid[-1])
        ask = bid + 1 + (rng.standard_exponential(count, np.float32) * widths).astype(np.int64)
        shape = offsets[rng.integers(0, 4096, count)]
        prices = np.empty((count, depth), np.int32)
        prices[:, :half] = (bid[:, None] - shape + shape[:, :1])[:, ::-1]
        prices[:, half:] = ask[:, None] + shape - shape[:, :1]
        sizes = patterns[rng.integers(0, 4096, count)]
        times = 1_700_000_000 * 10**9 + np.arange(begin, begin + count) * INTERVAL_NS
        traded = np.where(rng.random(count, np.float32) < 0.1, sizes[:, 0], 0).astype(np.float32)
        writer.append([prices, sizes, times, traded, np.arange(begin, begin + count) == 0])
    writer.close()
    meta = {"format_version": 1, "pair": pair, "depth": depth, "tick_size": 0.01, "rows": states}
    (folder / "meta.json").write_text(json.dumps(meta))


def measure(folder: Path, case: str, note: str, plots: bool = True) -> list[dict]:
    """Run all parts on the books under `folder`, one after the other; return their rows."""
    rows = []
    for part, words in PARTS.items():
        for file in folder.rglob("*.npy"):
            forget(file)
        pictures = [] if part == "loader" else [f"--plots={plots}"]
        watched = watch(*words, f"--data_dir={folder}", *pictures)
        for name, unit in UNITS.items():
            rows.append(make_row(f"{part}/{case}", name, getattr(watched, name), unit, note))
        if part == "loader":
            found = json.loads(watched.printed.splitlines()[-1])["rows"]
            rows += [row | {"case": f"{part}/{case}"} for row in found]
    return rows


def forget(file: Path) -> None:
    """Drop a file's pages from the page cache, so that they are read from the disk again."""
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    run(main, config)
