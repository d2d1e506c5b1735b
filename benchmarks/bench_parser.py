"""Speed and memory of the parser, beside limits that are measured in the same run.

    python -m benchmarks.bench_parser
    python -m benchmarks.bench_parser --write=True --work_dir=/data

The input is a synthetic stream and, if they are there, recordings of Binance. The limits are

- of the kernel: np.copyto of as many states;
- of CoinAPI files: pyarrow's read of the same file into arrays, and to disk also a plain write of
  as many bytes;
- of Binance files: hftbacktest's converter, which reads the USD-M and COIN-M markets. It is named
  and skipped if it is not installed.

Needs 4 GB of disk under `work_dir`, and removes what it writes. Prints a table and one JSON line.
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
from lob.process import count_cores

DEPTH = 96
LEVELS = 500  # of each side in the opening snapshot
START_NS = 1_700_000_000 * 10**9
BLOCK = 1 << 20
Columns = tuple[np.ndarray, ...]  # of update rows, in the order in which `make_updates` names them


def main(config: dict) -> None:
    columns = make_updates(config["updates"])
    rows = measure_kernel(columns)
    first_columns = tuple(column[: config["disk_updates"]] for column in columns)
    with tempfile.TemporaryDirectory(dir=config["work_dir"]) as name:
        folder = Path(name)
        rows += measure_coinapi(folder, columns)
        rows += measure_disk(folder, first_columns)
        stream = folder / "stream.gz"
        write_binance(stream, columns)
        rows += measure_binance("binance_json", [stream], "synthetic, 40 levels a message")
    rows += measure_recordings(ROOT / config["recordings"])
    report("parser", [dict(zip(ROW, row, strict=True)) for row in rows], write=config["write"])


def make_updates(rows: int, seed: int = 0) -> Columns:
    """Return the columns of a by-level stream: each row sets or removes one price level.

    They are time_ns, message number, update type, is_buy, price in ticks and size in lots. The
    first message is a snapshot of 500 levels on each side. Each row after it is a message of its
    own. Its distance from the mid is geometric (mean 25 ticks), or uniform in one row of ten; three
    in ten remove a level. The mid moves by a tick in one row of twenty, which clears the price that
    it comes to.
    """
    rng = np.random.default_rng(seed)
    number = np.arange(rows)
    opening = number < 2 * LEVELS
    step = np.where(rng.random(rows) < 0.05, rng.choice([-1, 1], rows), 0) * ~opening
    is_far = rng.random(rows) < 0.1
    distance = np.where(is_far, rng.integers(1, LEVELS, rows), rng.geometric(1 / 25, rows))
    distance[: 2 * LEVELS] = np.arange(2 * LEVELS) % LEVELS
    is_buy = np.where(opening, number < LEVELS, rng.random(rows) < 0.5)
    mid = 6_000_000 + np.cumsum(step)
    price = np.where(is_buy, mid - 1 - distance, mid + 1 + distance)
    size = np.where(opening | (rng.random(rows) > 0.3), rng.integers(1, 10**6, rows), 0)
    moves = step != 0
    price = np.where(moves, mid, price)
    is_buy = np.where(moves, step < 0, is_buy)
    size = np.where(moves, 0, size)
    message = np.maximum(np.arange(rows) - 2 * LEVELS + 1, 0)
    kind = np.where(opening, SNAPSHOT, SET).astype(np.uint8)
    return START_NS + message * 1_000_000, message, kind, is_buy, price, size


def best_of(repeats: int, *tasks: Callable[[], object]) -> list[float]:
    """Return the least seconds of each task.

    The tasks take turns, so that a busy machine slows all of them alike.
    """
    best = [np.inf] * len(tasks)
    for _ in range(repeats):
        for index, task in enumerate(tasks):
            began = time.perf_counter()
            task()
            best[index] = min(best[index], time.perf_counter() - began)
    return best


def measure_kernel(columns: Columns) -> list[tuple]:
    """Time the kernel on one core, with a state for each message.

    The limit is np.copyto of as many states, prices and sizes, between blocks of them.
    """
    block = 8192
    touched = OrderBook(DEPTH, 1e-8, lambda out: None, capacity=block).out
    source = [np.ones((block, DEPTH), dtype) for dtype in (np.int32, np.float32)]
    target = [array.copy() for array in source]

    def apply_all() -> OrderBook:
        book = OrderBook(DEPTH, 1e-8, lambda out: None, capacity=block)
        book.out = touched  # as of a running book: the system does not hand out its pages anew
        book.apply(*columns)
        return book

    def copy_states() -> None:
        for _ in range(len(columns[0]) // block):
            for index in range(2):
                np.copyto(target[index], source[index])

    book = apply_all()
    seconds, limit = best_of(5, apply_all, copy_states)
    updates = len(columns[0])
    unknown = book.counters[UNKNOWN] / book.counters[MESSAGES]
    not_there = f"{unknown:.0%} remove what is not there"
    note = f"{updates:,} updates, a {DEPTH}-level state each; {not_there}"
    limit_note = "of np.copyto into an array already touched"
    return [
        ("kernel", "updates_per_second", updates / seconds, "1/s", note),
        ("kernel", "copyto_states_per_second", updates / limit, "1/s", "768 bytes per state"),
        ("kernel", "ratio_to_limit", limit / seconds, "", limit_note),
    ]


def write_coinapi(file: Path, columns: Columns) -> None:
    """Write a by-level `limitbook_full` file as CoinAPI does: gzip, times of 100 ns."""
    kinds = np.array(["ADD", "SUB", "MATCH", "SET", "DELETE", "SNAPSHOT"])
    with gzip.open(file, "wb", compresslevel=6) as handle:
        for begin in range(0, len(columns[0]), BLOCK):
            block = (column[begin : begin + BLOCK] for column in columns)
            time_ns, _, kind, is_buy, price, size = block
            clock = np.datetime_as_string(time_ns.view("datetime64[ns]")).astype("U27")
            columns_of_file = {
                "time_exchange": clock,
                "time_coinapi": clock,
                "update_type": kinds[kind],
                "is_buy": is_buy.astype(np.int8),
                "entry_px": price / 100,
                "entry_sx": size / 10**5,
            }
            head = begin == 0
            options = csv.WriteOptions(include_header=head, delimiter=";", quoting_style="none")
            csv.write_csv(pa.table(columns_of_file), handle, options)


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
    """Return the parser's columns as pyarrow reads them: the least that a reader must do."""
    text = pa.dictionary(pa.int32(), pa.string())
    types = {
        "time_exchange": pa.timestamp("ns"),
        "update_type": text,
        "is_buy": text,
        "entry_px": pa.float64(),
        "entry_sx": pa.float64(),
    }
    reading = csv.ReadOptions(block_size=1 << 23)
    parsing = csv.ParseOptions(delimiter=";")
    converting = csv.ConvertOptions(column_types=types, include_columns=list(types))
    with open_decompressed(file) as (handle, _):
        table = csv.read_csv(handle, reading, parsing, converting)
    columns = [table.column(name).combine_chunks() for name in types]
    numbers = [column.indices if column.type == text else column for column in columns]
    return [column.to_numpy(zero_copy_only=False) for column in numbers]


def measure_coinapi(folder: Path, columns: Columns) -> list[tuple]:
    """Time a gzip file to states that are discarded, beside pyarrow's read of it into arrays."""
    file = folder / "20231114.csv.gz"
    write_coinapi(file, columns)
    seconds, limit = best_of(3, lambda: parse("coinapi", [file]), lambda: read_by_pyarrow(file))
    rows = len(columns[0])
    megabytes = file.stat().st_size / 1e6
    threads = f"2 threads of {count_cores()} cores"
    note = f"{rows:,} rows, {megabytes:,.0f} MB gzip, states discarded, {threads}"
    limit_note = "of pyarrow's read of the same file"
    found = [
        ("coinapi_gzip", "updates_per_second", rows / seconds, "1/s", note),
        ("coinapi_gzip", "pyarrow_rows_per_second", rows / limit, "1/s", "read into arrays"),
        ("coinapi_gzip", "ratio_to_limit", limit / seconds, "", limit_note),
    ]
    return found + measure_days(folder, rows // 2) + measure_memory(folder, file)


def measure_days(folder: Path, rows: int) -> list[tuple]:
    """Time data_parser.py on two days of one pair side by side; also in hours for 60 GB of gzip.

    Both files open with a snapshot, so that they can be parsed at the same time.
    """
    data = folder / "days"
    raw = data / "raw" / "SYN"
    raw.mkdir(parents=True)
    for day in range(2):
        time_ns, *columns = make_updates(rows, seed=day)
        write_coinapi(raw / f"{20231114 + day}.csv.gz", (time_ns + day * 86_400 * 10**9, *columns))
    size = sum(file.stat().st_size for file in raw.iterdir())
    words = (f"--data_dir={data}", "--state_interval_ms=1000", "--workers=2")
    seconds = watch("data_parser.py", *words).seconds
    shutil.rmtree(data)
    rate = size / seconds / 1e6
    hours = 60e3 / rate / 3600
    files = f"2 files of one pair side by side, {2 * rows:,} rows"
    note = f"{rate:.1f} MB/s of gzip on 2 cores, a state per second; start of Python included"
    computed = "computed: 8 times that rate"
    return [
        ("coinapi_days", "gzip_mb_per_second", rate, "MB/s", files),
        ("coinapi_days", "hours_for_60_gb_2_cores", hours, "h", note),
        ("coinapi_days", "hours_for_60_gb_16_cores", hours / 8, "h", computed),
    ]


def measure_memory(folder: Path, file: Path) -> list[tuple]:
    """Measure the anonymous memory of data_parser.py, on the stream and on four times the stream.

    If memory is bounded, both take the same.
    """
    found = []
    data = folder / "memory"
    for times in (1, 4):
        raw = data / "raw" / "SYN"
        raw.mkdir(parents=True)
        for index in range(times):
            os.link(file, raw / f"{20231114 + index}.csv.gz")
        words = [f"--data_dir={data}", "--workers=1", "--subsample=100"]
        words.append("--max_clock_step_ms=1000000000")  # one file again: its clock goes back
        memory = watch("data_parser.py", *words).anonymous_mb
        shutil.rmtree(data)
        note = f"RssAnon peak, {times} x the stream, Python and numba included"
        found.append(("memory", f"anonymous_mb_{times}", memory, "MB", note))
    return found


def measure_disk(folder: Path, columns: Columns) -> list[tuple]:
    """Time a gzip file to states on disk, beside pyarrow's read and a plain write of as much."""
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
    """Write the stream as recorded from Binance's USD-M market.

    It begins with a REST snapshot, and depthUpdate messages follow.
    """
    levels = 40  # of a message; recordings have 15 to 68
    _, _, _, is_buy, price, size = (column.tolist() for column in columns)
    rows = zip(price, size, strict=True)
    texts = [f'["{ticks / 100:.2f}","{lots / 10**5:.5f}"]' for ticks, lots in rows]
    start_ms = START_NS // 10**6
    with gzip.open(file, "wb", compresslevel=6) as handle:
        bids, asks = (",".join(texts[begin : begin + LEVELS]) for begin in (0, LEVELS))
        head = f'"lastUpdateId":0,"E":{start_ms},"T":{start_ms}'
        handle.write(f'{START_NS} {{{head},"bids":[{bids}],"asks":[{asks}]}}\n'.encode())
        for update, begin in enumerate(range(2 * LEVELS, len(texts), levels), 1):
            sides: tuple[list[str], list[str]] = ([], [])
            for index in range(begin, min(begin + levels, len(texts))):
                sides[not is_buy[index]].append(texts[index])
            time_ms = start_ms + 10 * update
            ids = f'"U":{update},"u":{update},"pu":{update - 1}'
            head = f'"e":"depthUpdate","E":{time_ms},"T":{time_ms},"s":"BTCUSDT",{ids}'
            bids, asks = (",".join(side) for side in sides)
            data = f'{{{head},"b":[{bids}],"a":[{asks}]}}'
            message = f'{{"stream":"btcusdt@depth@100ms","data":{data}}}'
            handle.write(f"{time_ms}000000 {message}\n".encode())


def convert_by_hftbacktest(files: list[Path]) -> None:
    """Convert files to arrays of updates. Raises ImportError if hftbacktest is not installed."""
    module = importlib.import_module("hftbacktest.data.utils.binancefutures")
    for file in files:
        with contextlib.redirect_stdout(io.StringIO()):
            module.convert(str(file), buffer_size=20_000_000)


def measure_binance(case: str, files: list[Path], note: str) -> list[tuple]:
    """Time files to states that are discarded, and to arrays of updates beside hftbacktest."""

    def read() -> int:
        return sum(len(batch.time_ns) for batch in FEEDS["binance"].read(files))

    rows, messages = read(), int(parse("binance", files).counters[MESSAGES])
    tasks: list[Callable[[], object]] = [lambda: parse("binance", files), read]
    try:
        convert_by_hftbacktest(files[:1])  # the first call compiles
        tasks.append(lambda: convert_by_hftbacktest(files))
    except ImportError:
        print(f"{case}: hftbacktest is not installed, ratio_to_limit is skipped")
    except (KeyError, ValueError) as error:
        reason = f"hftbacktest does not read this recording ({error!r})"
        print(f"{case}: {reason}, ratio_to_limit is skipped")
    seconds, reading, *limits = best_of(5, *tasks)
    updates_note = f"{rows:,} updates in {messages:,} messages; {note}"
    converter = "hftbacktest's converter (binancefutures.convert) on the same files"
    limit_note = f"JSON to arrays of updates, beside {converter}"
    return [
        (case, "updates_per_second", rows / seconds, "1/s", updates_note),
        (case, "messages_per_second", messages / seconds, "1/s", "states discarded, 2 threads"),
        *((case, "ratio_to_limit", limit / reading, "", limit_note) for limit in limits),
    ]


def measure_recordings(folder: Path) -> list[tuple]:
    """Time recorded Binance streams, if there are any, each of one symbol and month."""
    streams: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*/*.gz")):
        symbol, _, date = file.name.split(".")[0].rpartition("_")
        streams.setdefault(f"{file.parent.name}_{symbol}_{date[:6]}", []).append(file)
    if not streams:
        print(f"no recordings in {folder}: their cases are skipped")
    rows = []
    for name, files in streams.items():
        rows += measure_binance(name, files, "recorded")
    return rows


if __name__ == "__main__":
    run(main, config)
