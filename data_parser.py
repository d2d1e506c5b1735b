"""Parse raw exchange updates into complete order book states.

    python data_parser.py                      every pair under training_data/raw/
    python data_parser.py --depth=48 --pairs="['BTC_USD']" --state_interval_ms=100

Reads `training_data/raw/<PAIR>/*` (formats: training_data/README.md) and writes
`training_data/book_states/<PAIR>/`: price_ticks.npy int32 (N, depth), sizes.npy float32 (N, depth),
timestamps.npy int64 (N,) ns UTC, segment_starts.npy int64 (S,), top_of_book.npy int32 (N, 2),
traded.npy float32 (N,) if the feed has trades, and meta.json. Each state takes 8 bytes per level:
the sample gives 168,119 states of 96 levels, 131 MB. A pair's old output stays until the new one is
complete.

A file that opens with a snapshot begins a new *part* of the pair's stream. Each part is parsed on
its own, several at a time if there are several workers. Then the parts are joined;
`lob/book/stream.py` says what happens where two of them meet.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds raw/, book_states/ and the rest
    "pairs": None,  # list[str] | None: pairs to parse; None: all under raw/
    "depth": 96,  # int >= 2 and <= 100000: levels of a state, bids and asks together
    "subsample": 1,  # int >= 1 and <= 1e9: keep every n-th state, counted anew in each segment
    #   and each part of the stream
    "state_interval_ms": 0,  # int >= 0 and <= 1e12: keep each interval's last state; 0: all states
    "feed": None,  # str | None: name of the feed; None: recognised by the files' content
    "symbol": None,  # str | None: instrument to take from recordings of several, such as XBT/USD;
    #   its states go to book_states/<PAIR>_XBT-USD; None: the only one
    "tick_size": None,  # > 0 and < inf | None: price of a tick, in the quote currency;
    #   None: the largest power of ten that divides the first million prices
    "price_offset": 0.0,  # > -1e9 and < 1e9: is added to every price; statistics in basis points
    #   need mid-prices above 0
    "book_depth": None,  # int >= 1 and <= 1e6 | None: levels of a side that the feed tells of, such
    #   as 10 of a subscription: what falls out of them is never deleted, so that each side is cut
    #   to them after every message; None: all levels are kept
    "max_crossed_ms": 1000,  # int >= 0 and <= 1e12: evict a level that crosses the book for longer;
    #   order by order only if trades or unknown orders show that its delete was lost
    "max_gap_seconds": 60.0,  # >= 0 and <= 1e9: longer without a valid state ends a segment
    "max_clock_step_ms": 1000,  # int >= 0 and <= 1e12: exchange time may go back by this much,
    #   and is then clamped; more is an error
    "workers": 0,  # int >= 0: processes that parse pairs, or parts of them, side by side;
    #   0: one for each processor core
    "scheduler": None,  # str | None: address of a Dask scheduler; None: work on this machine
}

from lob.config import CheckFailed, InputError, check_rules, do_each, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import hashlib
import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lob.book.counters import COUNTER_WORDS, as_share
from lob.book.order_book import ROWS, OrderBook, apply_rows
from lob.book.states import check_states
from lob.book.stream import Part, PartJoiner, PartParser, apply_batch, finish_book
from lob.book.units import infer_units
from lob.feeds.batch import FEEDS, Batch, find_feed, find_parts
from lob.feeds.progress import NOTE, ProgressBar, note_into
from lob.feeds.recordings import is_recording, natural_key, read_ahead
from lob.jit import is_compiled
from lob.process import count_cores, leave_requests_to_parent
from lob.storage import (
    FORMAT_VERSION,
    final_name,
    find_pairs,
    format_bytes,
    new_folder,
    walk_files,
)
from lob.windows.splits import segment_ranges

# Keys of the config that the joiner of parts takes, and those that the order book takes.
JOINER_KEYS = ("state_interval_ms", "max_gap_seconds", "max_clock_step_ms")
BOOK_KEYS = ("subsample", "book_depth", "max_crossed_ms", *JOINER_KEYS)


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    check_config(config)
    pairs = find_pairs(config["data_dir"], "raw", config["pairs"], "")
    files = sum(len(list_files(Path(config["data_dir"]) / "raw" / pair)) for pair in pairs)
    workers = min(config["workers"] or count_cores(), files)
    if config["scheduler"] is None and not is_compiled(apply_rows):
        print("compiling the parser, once: this takes about a minute", flush=True)

    if workers <= 1 and config["scheduler"] is None:
        do_each(lambda pair: print(parse_pair(config, pair)), pairs)
    else:
        with make_executor(config, workers) as executor:
            parse_side_by_side(config, pairs, executor, workers)
    return 0


def parse_side_by_side(config: dict, pairs: list[str], executor: Executor, workers: int) -> None:
    """Parse pairs, a thread for each that waits for the executor's workers.

    Raises CheckFailed if a worker was killed. If this process is asked to end, the workers are
    ended first, so that the threads can remove what is unfinished.
    """
    try:
        with ThreadPoolExecutor(max(workers, 1), initializer=leave_requests_to_parent) as threads:
            try:
                do_each(lambda pair: print(parse_pair(config, pair, executor)), pairs, threads.map)
            except KeyboardInterrupt:
                executor.shutdown(wait=False, cancel_futures=True)
                for worker in active_children():
                    worker.terminate()
                raise
    except Exception as error:
        # Dask's own error is named, so that Dask is not needed here.
        if not isinstance(error, BrokenExecutor) and type(error).__name__ != "KilledWorker":
            raise
        fewer = f"--workers={workers // 2}" if workers > 1 else "workers with more memory"
        raise CheckFailed(
            "a worker process was killed, as the system does when memory runs out; the old output "
            f"of pairs not yet parsed is kept: set {fewer}"
        ) from None


def check_config(config: dict) -> None:
    """Raise InputError if the settings are wrong, whatever the recordings."""
    depth, subsample = config["depth"], config["subsample"]
    interval_ms = config["state_interval_ms"]
    if depth % 2:
        raise InputError(f"depth = {depth} must be even: it counts bids and asks together")
    if subsample > 1 and interval_ms:
        raise InputError(
            f"subsample = {subsample} and state_interval_ms = {interval_ms} both thin the states: "
            "set one of them"
        )
    book_depth = config["book_depth"]
    if book_depth is not None and depth > 2 * book_depth:
        raise InputError(
            f"depth = {depth} needs {depth // 2} levels on each side, book_depth = {book_depth} "
            f"keeps fewer: set --depth={2 * book_depth} or less"
        )
    if config["scheduler"] is not None and config["workers"]:
        print("no effect: workers (scheduler is set, and its workers parse)")
    if config["feed"] is not None and config["feed"] not in FEEDS:
        raise InputError(f"unknown feed {config['feed']!r}; there are {', '.join(FEEDS)}")


def make_executor(config: dict, workers: int) -> Executor:
    """Return what runs the tasks: processes of this machine, or the workers of a Dask cluster."""
    address = config["scheduler"]
    if address is None:
        context = get_context("spawn")  # threads do not survive a fork
        return ProcessPoolExecutor(workers, context, initializer=start_worker)
    try:
        from dask.distributed import Client
    except ImportError:
        raise InputError(f"scheduler = {address!r} needs Dask: pip install distributed") from None
    try:
        return Client(address).get_executor()
    except (OSError, ValueError) as error:
        raise InputError(
            f"scheduler = {address!r} does not answer ({error}): start it, or leave scheduler None"
        ) from None


def start_worker() -> None:
    """Give bars a lock of threads: a lock of processes is left behind when a worker is killed."""
    tqdm.set_lock(threading.RLock())


def parse_pair(config: dict, pair: str, executor: Executor | None = None) -> str:
    """Parse one pair's files into `book_states/<name>`; return the report that is printed.

    The name is the pair's, with the symbol if one is chosen.

    The parts of its stream are tasks for the executor. If it is None, they are parsed here, one
    after the other.
    """
    began = time.perf_counter()
    raw = Path(config["data_dir"]) / "raw" / pair
    files = list_files(raw)
    if not files:
        raise InputError(
            f"{raw} holds no files (but notes such as .md): put the pair's recorded updates there"
        )
    feed = config["feed"] or find_feed(files[0])
    for file in files[1:]:
        if config["feed"] is None and (other := find_feed(file)) != feed:
            raise InputError(
                f"{file} is of feed {other}, {files[0].name} is of {feed}: "
                "one pair's files are one feed"
            )
    symbol = config["symbol"]
    name = pair if symbol is None else pair + "_" + re.sub(r"[^\w.-]", "-", symbol)
    folder = Path(config["data_dir"]) / "book_states" / name
    with new_folder(folder) as partial:
        parts = find_parts(feed, files, symbol)
        with ProgressBar(name, count_bytes(files)) as bar:
            if len(parts) > 1:
                whole = parse_parts(config, feed, parts, partial, executor, bar)
            elif executor is not None:
                task = executor.submit(parse_stream, config, feed, files, partial)
                whole = bar.wait_for(task, [partial])
            else:
                whole = parse_stream(config, feed, files, partial, told=bar.move_to)
        if whole.rows == 0:
            raise no_state_error(config["depth"], raw, whole)
        if not whole.any_trade:
            (partial / "traded.npy").unlink()
        check_states(partial, whole.rows)
        whole.counters["files_passed_by"] = sum(map(Path.is_file, walk_files(raw))) - len(files)
        meta = describe_pair(config, name, feed, raw, files, whole, partial)
        (partial / "meta.json").write_text(json.dumps(meta, indent=1))
    return report(name, meta, folder, time.perf_counter() - began, whole.usual_depth())


def list_files(folder: Path) -> list[Path]:
    """Return a pair's recorded files in natural order, without notes and hidden files.

    Files of subfolders are among them, also by links. In natural order 2025-8-9 comes before
    2025-8-10. Raises InputError if a link leads nowhere.
    """
    found = [
        file
        for file in walk_files(folder)
        if file.is_file() and is_recording(file.relative_to(folder))
    ]
    return sorted(found, key=natural_key)


def count_bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def parse_parts(
    config: dict,
    feed: str,
    parts: list[list[Path]],
    partial: Path,
    executor: Executor | None,
    bar: ProgressBar,
) -> Part:
    """Parse the parts of a stream, each into a folder of its own, and join them in `partial`.

    All parts share one tick size and one lot size, found in the first million rows of the stream.
    """
    name = final_name(partial)
    files = list(itertools.chain.from_iterable(parts))
    units, said = look_ahead(config, feed, files, partial)
    print(f"{name}: {said}; {len(parts)} parts, each opens with a snapshot")
    joiner = PartJoiner(partial, config["depth"], **{key: config[key] for key in JOINER_KEYS})
    folders = [partial / f"{name}.{index}" for index in range(len(parts))]
    parts_and_folders = zip(parts, folders, strict=True)
    tasks = [(config, feed, part, folder, units) for part, folder in parts_and_folders]
    if executor is None:
        for task, folder in zip(tasks, folders, strict=True):
            joiner.append(parse_stream(*task, told=bar.move_to), folder)
            bar.finish_part(count_bytes(task[2]))
        return joiner.close()
    running = [executor.submit(parse_stream, *task) for task in tasks]
    try:
        for future, folder, part in zip(running, folders, parts, strict=True):
            joiner.append(bar.wait_for(future, folders), folder)
            bar.finish_part(count_bytes(part))
    except BaseException:
        for future in running:
            future.cancel()
        wait(running)
        raise
    return joiner.close()


def look_ahead(
    config: dict, feed: str, files: list[Path], partial: Path
) -> tuple[tuple[float, float], str]:
    """Return tick size and lot size, and the forecast, after the first million rows.

    The rows are parsed, but their states are only counted: the parts are parsed from their start.
    """
    batches = read_ahead(read_updates(config, feed, files))
    first_batches, tick_size, lot_size = infer_units(batches, config["tick_size"])
    state_counts: list[int] = []
    book = make_book(config, lot_size, lambda states: state_counts.append(len(states[0])))
    # A file's last batch says how much of the file has been read by then.
    read_bytes = sum({batch.file: batch.file_bytes for batch in first_batches}.values())
    while first_batches:
        apply_batch(book, first_batches.pop(0), tick_size)  # and free its memory
    finish_book(book, tick_size)
    share = read_bytes / count_bytes(files)
    return (tick_size, lot_size), forecast(sum(state_counts), config["depth"], share, partial)


def parse_stream(
    config: dict,
    feed: str,
    files: list[Path],
    folder: Path,
    units: tuple[float, float] | None = None,
    told: Callable[[int], None] | None = None,
) -> Part:
    """Parse files as one stream into arrays in `folder`.

    `units` are tick size and lot size. If None, they are found in the first million rows, after
    which the forecast is printed. `told` is called with the number of bytes read; if it is None,
    as in a process of its own, they are noted in the folder.
    """
    folder.mkdir(exist_ok=True)
    told = told or note_into(folder)
    name = final_name(folder)
    batches: Iterator[Batch] = read_ahead(read_updates(config, feed, files))
    first_batches: list[Batch] = []
    if units is None:
        first_batches, tick_size, lot_size = infer_units(batches, config["tick_size"])
    else:
        tick_size, lot_size = units
    forecast_due = bool(first_batches)
    settings = {key: config[key] for key in BOOK_KEYS}
    parser = PartParser(
        folder, config["depth"], (tick_size, lot_size), FEEDS[feed].needs_snapshot, **settings
    )
    total_bytes = count_bytes(files)
    done_bytes = dict.fromkeys(map(str, files), 0)
    for batch in chain_freeing(first_batches, batches):
        parser.take(batch)
        done_bytes[batch.file] = batch.file_bytes
        told(sum(done_bytes.values()))
        if forecast_due and not first_batches:
            forecast_due = False
            share = sum(done_bytes.values()) / total_bytes
            written = parser.states.rows
            found = written + int(parser.book.memory[ROWS])  # written, and still in memory
            said = forecast(found, config["depth"], share, folder, written)
            if share < 1:
                tqdm.write(f"{name}: {said}")
    (folder / NOTE).unlink(missing_ok=True)
    return parser.finish()


def read_updates(config: dict, feed: str, files: list[Path]) -> Iterator[Batch]:
    """Yield the files' batches, with `price_offset` added to their prices."""
    for batch in FEEDS[feed].read(files, config["symbol"]):
        yield batch._replace(price=batch.price + config["price_offset"])


def make_book(
    config: dict, lot_size: float, flush: Callable[[list[np.ndarray]], None]
) -> OrderBook:
    return OrderBook(config["depth"], lot_size, flush, **{key: config[key] for key in BOOK_KEYS})


def chain_freeing(first: list[Batch], rest: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the first batches and the rest; forget each of the first ones, to free its memory."""
    while first:
        yield first.pop(0)
    yield from rest


def forecast(rows: int, depth: int, share_read: float, folder: Path, written: int = 0) -> str:
    """Return how many states, and bytes of them, the whole input will give, as a line of text.

    `rows` states came out of the share of the input that was read; `written` of them are on the
    disk already. Raises InputError if the disk cannot hold all of them.
    """
    expected = int(rows / share_read)
    state_bytes = 8 * depth + 20
    size = expected * state_bytes
    free = shutil.disk_usage(folder.parent).free + written * state_bytes
    if size > free:
        raise InputError(
            f"about {expected:,} states of depth {depth} will take {format_bytes(size)} and "
            f"{folder.parent} has {format_bytes(free)}: set --state_interval_ms=100, --subsample "
            "or a smaller --depth"
        )
    return f"about {expected:,} states, {format_bytes(size)} expected"


def no_state_error(depth: int, raw: Path, whole: Part) -> InputError:
    thin, crossed = whole.counters["thin_states"], whole.counters["crossed_states"]
    if whole.counters["rows_before_snapshot"] and not whole.counters["snapshots"]:
        return InputError(
            f"{raw} holds no snapshot, so the book is never known: add the file that opens with "
            "one, which is the first of its day"
        )
    usual, deepest = whole.usual_depth(), np.flatnonzero(whole.levels)[-1:].sum()
    if usual:
        most = f", at least {usual // 2} after most messages" if usual < 2 * deepest else ""
        remedy = f"there were at most {deepest} on both sides{most}, set --depth={usual}"
    elif thin:
        remedy = "a side was always empty, or the book crossed; is the column of the sides right?"
    else:
        remedy = "is the column of the sides the wrong way round?"
    return InputError(
        f"{raw} holds no complete state of depth {depth} in {whole.updates:,} rows "
        f"({thin:,} states with fewer than {depth // 2} levels on a side, {crossed:,} crossed): "
        f"{remedy}"
    )


def describe_pair(
    config: dict, pair: str, feed: str, raw: Path, files: list[Path], whole: Part, partial: Path
) -> dict:
    """Return what meta.json holds."""
    starts = np.load(partial / "segment_starts.npy")
    lengths = np.diff(segment_ranges(starts, whole.rows)).ravel()
    return {
        "format_version": FORMAT_VERSION,
        "pair": pair,
        "feed": feed,
        "depth": config["depth"],
        "tick_size": whole.tick_size,
        "lot_size": whole.lot_size,
        "price_offset": config["price_offset"],
        "subsample": config["subsample"],
        "state_interval_ms": config["state_interval_ms"],
        "rows": whole.rows,
        "updates": whole.updates,
        "sources": [describe_source(file, raw) for file in files],
        "counters": whole.counters | {"crossed_ms": whole.crossed_ns // 10**6},
        "segments": len(lengths),
        "longest_segment": int(lengths.max()),
    }


def describe_source(file: Path, raw: Path) -> dict:
    """Return what meta.json says of a file. By its digest later scripts see a replaced file."""
    with open(file, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {
        "name": file.relative_to(raw).as_posix(),
        "bytes": file.stat().st_size,
        "sha256": digest,
    }


def report(pair: str, meta: dict, folder: Path, seconds: float, usual_depth: int) -> str:
    """Return the lines that are printed of a parsed pair."""
    size = format_bytes(sum(file.stat().st_size for file in folder.iterdir()))
    lines = [
        f"{pair}: {meta['rows']:,} states of {meta['depth']} levels "
        f"from {meta['updates']:,} updates of feed {meta['feed']} in {seconds:.1f} s; "
        f"tick {meta['tick_size']:g}; {size} in {folder}"
    ]
    counters = meta["counters"]
    whole = {"row": meta["updates"], "message": counters["messages"]}
    for name, count in counters.items():
        words, unit, note = COUNTER_WORDS.get(name, (name.replace("_", " "), "", ""))
        share = f" ({as_share(count, whole[unit])} of all {unit}s)" if whole.get(unit) else ""
        if name == "thin_states" and usual_depth < meta["depth"]:
            note = f"{note}; --depth={usual_depth} keeps most of them"
        if count:
            lines.append(f"  {count:>14,}  {words}{share}{': ' * bool(note)}{note}")
    if not counters["snapshots"]:
        lines.append(
            f"  {0:>14,}  snapshots: the book began empty, levels not yet updated are missing"
        )
    longest = f"the longest of {meta['longest_segment']:,} states"
    lines.append(f"  {meta['segments']:>14,}  runs of states without a gap, {longest}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, config)
