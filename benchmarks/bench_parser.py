"""Speed and memory of the parser beside what bounds it, on a synthetic stream and on recordings
where they are.

    python -m benchmarks.bench_parser
    python -m benchmarks.bench_parser --write=True --work_dir=/data

Each rate is compared with a limit that is measured in the same run: np.copyto of as many states for
the kernel, pyarrow's read into arrays for CoinAPI (to disk also a plain write of the same bytes),
and hftbacktest's own converter for Binance, which reads USD-M and COIN-M and is skipped by name if
it is not installed. Needs 4 GB of disk under `work_dir`, all removed at the end. Prints a table and
one JSON line.
"""

config = {
    "updates": 5_000_000,  # int >= 5000000: length of the synthetic stream; shorter ones say little
    "disk_updates": 1_500_000,  # int >= 1: updates that go to disk, as states of 788 bytes
    "recordings": "../shared/real/binance",  # str: <market>/*.gz of Binance; skipped if missing
    "work_dir": None,  # str | None: folder on the disk to measure; None: the system's temporary one
    "write": False,  # bool: keep the result in benchmarks/results/parser.json
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import contextlib
import gzip
import importlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from benchmarks.report import ROOT, ROW, report, watch
from lob.book.order_book import MESSAGES, UNKNOWN, OrderBook
from lob.book.states import StateWriter
from lob.book.stream import apply_batch
from lob.book.units import infer_units
from lob.feeds.batch import FEEDS, SET, SNAPSHOT
from lob.feeds.recordings import open_decompressed, read_ahead

DEPTH = 96
LEVELS = 500  # a side in the opening snapshot
START_NS = 1_700_000_000 * 10**9
BLOCK = 1 << 20
Columns = tuple[np.ndarray, ...]


def main(config: dict) -> None:
    columns = make_updates(config["updates"])
    rows = measure_kernel(columns)
    with tempfile.TemporaryDirectory(dir=config["work_dir"]) as folder:
        rows += measure_coinapi(Path(folder), columns)
        rows += measure_disk(
            Path(folder), tuple(column[: config["disk_updates"]] for column in columns)
        )
        stream = Path(folder) / "stream.gz"
        write_binance(stream, columns)
        rows += measure_binance("binance_json", [stream], "synthetic, 40 levels a message")
    rows += measure_recordings(ROOT / config["recordings"])
    report("parser", [dict(zip(ROW, row, strict=True)) for row in rows], write=config["write"])


def make_updates(rows: int, seed: int = 0) -> Columns:
    """Return time_ns, message, update type, is_buy, price in ticks, size in lots of a by-level
    stream, a row a message.

    An opening snapshot of 500 levels a side, then changes at a geometric distance (mean 25 ticks;
    one in ten uniform) from a mid that walks a tick every 20 messages; 3 in 10 remove a level.
    """
    rng = np.random.default_rng(seed)
    opening = np.arange(rows) < 2 * LEVELS
    step = np.where(rng.random(rows) < 0.05, rng.choice([-1, 1], rows), 0) * ~opening
    distance = np.where(
        rng.random(rows) < 0.1, rng.integers(1, LEVELS, rows), rng.geometric(1 / 25, rows)
    )
    distance[: 2 * LEVELS] = np.arange(2 * LEVELS) % LEVELS
    is_buy = np.where(opening, np.arange(rows) < LEVELS, rng.random(rows) < 0.5)
    mid = 6_000_000 + np.cumsum(step)
    price = np.where(is_buy, mid - 1 - distance, mid + 1 + distance)
    size = np.where(opening | (rng.random(rows) > 0.3), rng.integers(1, 10**6, rows), 0)
    price, is_buy, size = (
        np.where(step != 0, *pair) for pair in ((mid, price), (step < 0, is_buy), (0, size))
    )
    message = np.maximum(np.arange(rows) - 2 * LEVELS + 1, 0)
    kind = np.where(opening, SNAPSHOT, SET).astype(np.uint8)
    return START_NS + message * 1_000_000, message, kind, is_buy, price, size


def best_of(repeats: int, *tasks: Callable[[], object]) -> list[float]:
    """Return the least seconds of each task. They take turns, so that a busy machine slows them all
    alike.
    """
    best = [np.inf] * len(tasks)
    for _ in range(repeats):
        for index, task in enumerate(tasks):
            began = time.perf_counter()
            task()
            best[index] = min(best[index], time.perf_counter() - began)
    return best


def measure_kernel(columns: Columns) -> list[tuple]:
    """One core: updates in, a state a message out, beside np.copyto of as many states between
    arrays of that size.
    """
    block = 8192
    touched = OrderBook(DEPTH, 1e-8, lambda out: None, capacity=block).out
    source, target = (
        [np.ones((block, DEPTH), dtype) for dtype in (np.int32, np.float32)] for _ in range(2)
    )

    def apply_all() -> OrderBook:
        book = OrderBook(DEPTH, 1e-8, lambda out: None, capacity=block)
        book.out = touched
        book.apply(*columns)
        return book

    def copy_states() -> None:
        for _ in range(len(columns[0]) // block):
            for index in range(2):
                np.copyto(target[index], source[index])

    book = apply_all()
    seconds, limit = best_of(5, apply_all, copy_states)
    unknown = book.counters[UNKNOWN] / book.counters[MESSAGES]
    note = (
        f"{len(columns[0]):,} updates, a {DEPTH}-level state each; {unknown:.0%} remove what is "
        "not there"
    )
    return [
        ("kernel", "updates_per_second", len(columns[0]) / seconds, "1/s", note),
        ("kernel", "copyto_states_per_second", len(columns[0]) / limit, "1/s", "768 bytes a state"),
        (
            "kernel",
            "ratio_to_limit",
            limit / seconds,
            "",
            "of np.copyto into an array already touched",
        ),
    ]


def write_coinapi(file: Path, columns: Columns) -> None:
    """Write a by-level `limitbook_full` file as CoinAPI does: gzip, times of 100 ns."""
    kinds = np.array(["ADD", "SUB", "MATCH", "SET", "DELETE", "SNAPSHOT"])
    with gzip.open(file, "wb", compresslevel=6) as handle:
        for begin in range(0, len(columns[0]), BLOCK):
            time_ns, _, kind, is_buy, price, size = (
                column[begin : begin + BLOCK] for column in columns
            )
            clock = np.datetime_as_string(time_ns.view("datetime64[ns]")).astype("U27")
            columns_of_file = {
                "time_exchange": clock,
                "time_coinapi": clock,
                "update_type": kinds[kind],
                "is_buy": is_buy.astype(np.int8),
                "entry_px": price / 100,
                "entry_sx": size / 10**5,
            }
            table = pa.table(columns_of_file)
            options = csv.WriteOptions(
                include_header=begin == 0, delimiter=";", quoting_style="none"
            )
            csv.write_csv(table, handle, options)


def discard(states: list[np.ndarray]) -> None:
    pass


def parse(
    feed: str, files: list[Path], flush: Callable[[list[np.ndarray]], None] = discard
) -> OrderBook:
    """Parse as data_parser.py does, in two threads, and hand the states to `flush`."""
    batches = read_ahead(FEEDS[feed].read(files))
    first, tick_size, lot_size = infer_units(batches, None)
    book = OrderBook(DEPTH, lot_size, flush)
    while first:
        apply_batch(book, first.pop(0), tick_size)
    for batch in batches:
        apply_batch(book, batch, tick_size)
    book.finish()
    return book


def read_by_pyarrow(file: Path) -> list[np.ndarray]:
    """Do what a reader must at least do: the parser's columns and types into arrays, in pyarrow's
    own threads.
    """
    text = pa.dictionary(pa.int32(), pa.string())
    types = {
        "time_exchange": pa.timestamp("ns"),
        "update_type": text,
        "is_buy": text,
        "entry_px": pa.float64(),
        "entry_sx": pa.float64(),
    }
    options = csv.ConvertOptions(column_types=types, include_columns=list(types))
    with open_decompressed(file) as (handle, _):
        table = csv.read_csv(
            handle, csv.ReadOptions(block_size=1 << 23), csv.ParseOptions(delimiter=";"), options
        )
    parts = [table.column(name).combine_chunks() for name in types]
    return [
        (part.indices if part.type == text else part).to_numpy(zero_copy_only=False)
        for part in parts
    ]


def measure_coinapi(folder: Path, columns: Columns) -> list[tuple]:
    """A gzip file to discarded states on two cores, beside pyarrow reading it into arrays."""
    file = folder / "20231114.csv.gz"
    write_coinapi(file, columns)
    seconds, limit = best_of(3, lambda: parse("coinapi", [file]), lambda: read_by_pyarrow(file))
    rows, size = len(columns[0]), file.stat().st_size
    note = (
        f"{rows:,} rows, {size / 1e6:,.0f} MB gzip, states discarded, 2 threads of "
        f"{os.cpu_count()} cores"
    )
    found = [
        ("coinapi_gzip", "updates_per_second", rows / seconds, "1/s", note),
        ("coinapi_gzip", "pyarrow_rows_per_second", rows / limit, "1/s", "read into arrays"),
        (
            "coinapi_gzip",
            "ratio_to_limit",
            limit / seconds,
            "",
            "of pyarrow's read of the same file",
        ),
    ]
    return found + measure_days(folder, rows // 2) + measure_memory(folder, file)


def measure_days(folder: Path, rows: int) -> list[tuple]:
    """Two days of one pair that open with a snapshot, side by side, and the hours that 60 GB of
    such gzip take.
    """
    raw = folder / "days" / "raw" / "SYN"
    raw.mkdir(parents=True)
    for day in range(2):
        time_ns, *columns = make_updates(rows, seed=day)
        write_coinapi(raw / f"{20231114 + day}.csv.gz", (time_ns + day * 86_400 * 10**9, *columns))
    size = sum(file.stat().st_size for file in raw.iterdir())
    seconds, _ = watch(
        "data_parser.py", f"--data_dir={folder / 'days'}", "--state_interval_ms=1000", "--workers=2"
    )
    shutil.rmtree(folder / "days")
    rate = size / seconds / 1e6
    note = f"{rate:.1f} MB/s of gzip on 2 cores, a state a second; start of Python included"
    return [
        (
            "coinapi_days",
            "gzip_mb_per_second",
            rate,
            "MB/s",
            f"2 files of one pair side by side, {2 * rows:,} rows",
        ),
        ("coinapi_days", "hours_for_60_gb_2_cores", 60e3 / rate / 3600, "h", note),
        (
            "coinapi_days",
            "hours_for_60_gb_16_cores",
            60e3 / rate / 3600 / 8,
            "h",
            "computed: 8 times that rate",
        ),
    ]


def measure_memory(folder: Path, file: Path) -> list[tuple]:
    """Anonymous memory (RssAnon) of data_parser.py, on the stream and on four times the stream."""
    found = []
    for times in (1, 4):
        raw = folder / "memory" / "raw" / "SYN"
        raw.mkdir(parents=True)
        for index in range(times):
            os.link(file, raw / f"{20231114 + index}.csv.gz")
        words = (
            f"--data_dir={folder / 'memory'}",
            "--workers=1",
            "--subsample=100",
            "--max_clock_step_ms=1000000000",
        )
        _, memory = watch("data_parser.py", *words)
        shutil.rmtree(folder / "memory")
        note = f"RssAnon peak, {times} x the stream, Python and numba included"
        found.append(("memory", f"anonymous_mb_{times}", memory, "MB", note))
    return found


def measure_disk(folder: Path, columns: Columns) -> list[tuple]:
    """A gzip file to states on disk, beside pyarrow's read and a plain write of the same bytes."""
    file = folder / "20231114.csv.gz"
    write_coinapi(file, columns)
    states = folder / "states"

    def parse_to_disk() -> None:
        shutil.rmtree(states, ignore_errors=True)
        states.mkdir()
        writer = StateWriter(states, DEPTH)
        parse("coinapi", [file], writer.append)
        writer.close()

    def read_and_write() -> None:
        read_by_pyarrow(file)
        block = np.ones(1 << 20, np.int64)
        with open(folder / "plain", "wb") as handle:
            for _ in range(size // block.nbytes):
                handle.write(block.data)
            os.fsync(handle.fileno())
        (folder / "plain").unlink()

    parse_to_disk()
    size = sum(array.stat().st_size for array in states.iterdir())
    seconds, limit = best_of(3, parse_to_disk, read_and_write)
    shutil.rmtree(states)
    file.unlink()
    note = f"{len(columns[0]):,} updates to {size / 1e6:,.0f} MB"
    limit_note = "of pyarrow's read and a plain write of these bytes"
    return [
        ("coinapi_to_disk", "updates_per_second", len(columns[0]) / seconds, "1/s", note),
        ("coinapi_to_disk", "ratio_to_limit", limit / seconds, "", limit_note),
    ]


def write_binance(file: Path, columns: Columns) -> None:
    """Write the stream as Binance's USD-M: a REST snapshot, then depthUpdate messages."""
    levels = 40  # a message; recorded: 15 to 68
    _, _, _, is_buy, price, size = (column.tolist() for column in columns)
    texts = [
        f'["{ticks / 100:.2f}","{lots / 10**5:.5f}"]'
        for ticks, lots in zip(price, size, strict=True)
    ]
    with gzip.open(file, "wb", compresslevel=6) as handle:
        bids, asks = (",".join(texts[begin : begin + LEVELS]) for begin in (0, LEVELS))
        head = f'"lastUpdateId":0,"E":{START_NS // 10**6},"T":{START_NS // 10**6}'
        handle.write(f'{START_NS} {{{head},"bids":[{bids}],"asks":[{asks}]}}\n'.encode())
        for update, begin in enumerate(range(2 * LEVELS, len(texts), levels), 1):
            sides: tuple[list[str], list[str]] = ([], [])
            for index in range(begin, min(begin + levels, len(texts))):
                sides[not is_buy[index]].append(texts[index])
            time_ms = START_NS // 10**6 + 10 * update
            ids = f'"U":{update},"u":{update},"pu":{update - 1}'
            head = f'"e":"depthUpdate","E":{time_ms},"T":{time_ms},"s":"BTCUSDT",{ids}'
            bids, asks = (",".join(side) for side in sides)
            data = f'{{{head},"b":[{bids}],"a":[{asks}]}}'
            handle.write(
                f'{time_ms}000000 {{"stream":"btcusdt@depth@100ms","data":{data}}}\n'.encode()
            )


def convert_by_hftbacktest(files: list[Path]) -> None:
    module = importlib.import_module("hftbacktest.data.utils.binancefutures")
    for file in files:
        with contextlib.redirect_stdout(io.StringIO()):
            module.convert(str(file), buffer_size=20_000_000)


def measure_binance(case: str, files: list[Path], note: str) -> list[tuple]:
    """JSON lines to discarded states; and to arrays of updates, which is what hftbacktest's
    converter does too.
    """

    def read() -> int:
        return sum(len(batch.time_ns) for batch in FEEDS["binance"].read(files))

    rows, messages = read(), int(parse("binance", files).counters[MESSAGES])
    tasks: list[Callable[[], object]] = [lambda: parse("binance", files), read]
    try:
        convert_by_hftbacktest(files[:1])  # compiles
        tasks.append(lambda: convert_by_hftbacktest(files))
    except ImportError:
        print(f"{case}: hftbacktest is not installed, ratio_to_limit is skipped")
    except (KeyError, ValueError) as error:
        print(
            f"{case}: hftbacktest does not read this recording ({error!r}), ratio_to_limit is "
            "skipped"
        )
    seconds, reading, *limits = best_of(5, *tasks)
    limit_note = (
        "JSON to arrays of updates, beside hftbacktest's converter (binancefutures.convert) on the "
        "same files"
    )
    return [
        (
            case,
            "updates_per_second",
            rows / seconds,
            "1/s",
            f"{rows:,} updates in {messages:,} messages; {note}",
        ),
        (case, "messages_per_second", messages / seconds, "1/s", "states discarded, 2 threads"),
        *((case, "ratio_to_limit", limit / reading, "", limit_note) for limit in limits),
    ]


def measure_recordings(folder: Path) -> list[tuple]:
    """The same on recorded streams, each of one symbol on consecutive days, if they are there."""
    streams: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*/*.gz")):
        symbol, _, date = file.name.split(".")[0].rpartition("_")
        streams.setdefault(f"{file.parent.name}_{symbol}_{date[:6]}", []).append(file)
    if not streams:
        print(f"no recordings in {folder}: their cases are skipped")
    return [
        row for name, files in streams.items() for row in measure_binance(name, files, "recorded")
    ]


if __name__ == "__main__":
    run(main, config)
