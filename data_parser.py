"""Parse raw exchange updates into complete order book states.

    python data_parser.py                      every pair under training_data/raw/
    python data_parser.py --depth=48 --pairs="['BTC_USD']" --state_interval_ms=100

Reads `training_data/raw/<PAIR>/*` (formats: training_data/README.md) and writes `training_data/book_states/<PAIR>/`:
price_ticks.npy int32 (N, depth), sizes.npy float32 (N, depth), timestamps.npy int64 (N,) ns UTC, segment_starts.npy
int64 (S,), top_of_book.npy int32 (N, 2), traded.npy float32 (N,) where the feed tells trades, and meta.json: 8 bytes a
level and state. The sample gives 168,119 states of 96 levels, 131 MB. A pair's old output stays until the new one is
complete.
"""

config = {
    "data_dir": "training_data",  # folder that holds raw/, book_states/ and the rest
    "pairs": None,  # list of pairs to parse; None: all under raw/
    "depth": 96,  # levels of a state, bids and asks together
    "subsample": 1,  # keep every n-th state
    "state_interval_ms": 0,  # keep the last state of each interval of exchange time; 0: a state a message
    "feed": None,  # name of the feed; None: recognised by content
    "tick_size": None,  # price of a tick; None: the largest power of ten that divides the first million prices
    "max_crossed_ms": 1000,  # a level that keeps the book crossed for longer is a ghost and is evicted
    "max_gap_seconds": 60.0,  # more time without a valid state ends a segment
    "max_clock_step_ms": 1000,  # exchange time may go back by this much (it is clamped); more is an error
    "workers": 0,  # pairs, or files that open with a snapshot, parsed at once; 0: one a processor core
    "scheduler": None,  # address of a Dask scheduler whose workers parse them; None: this machine
}

from lob.config import InputError, do_each, load_config, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"pairs": list, "feed": str, "tick_size": float, "scheduler": str},
        bounds={"depth": ">= 2 and <= 100000", "subsample": ">= 1 and <= 1e9", "state_interval_ms": ">= 0 and <= 1e12",
                "tick_size": "> 0 and < inf", "max_crossed_ms": ">= 0 and <= 1e12", "workers": ">= 0",
                "max_gap_seconds": ">= 0 and <= 1e9", "max_clock_step_ms": ">= 0 and <= 1e12"},
    )  # fmt: skip

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lob.book import order_book as kernel
from lob.book.price_levels import ASK, BID
from lob.book.states import StateWriter, check_states
from lob.feeds.batch import FEEDS, SNAPSHOT, Batch, find_feed
from lob.feeds.recordings import read_ahead, read_head
from lob.storage import FORMAT_VERSION, final_name, find_pairs, format_bytes, new_folder
from lob.windows.splits import segment_ranges

ROWS_TO_INFER_TICK = 1_000_000


def main(config: dict) -> int:
    check_config(config)
    pairs = find_pairs(config["data_dir"], "raw", config["pairs"], "")
    files = sum(len(list_files(Path(config["data_dir"]) / "raw" / pair)) for pair in pairs)
    workers = min(config["workers"] or os.cpu_count() or 1, files)
    if config["scheduler"] is None and not is_compiled():
        print("compiling the parser: takes about a minute, the first time alone", flush=True)

    if workers <= 1 and config["scheduler"] is None:
        do_each(lambda pair: print(parse_pair(config, pair)), pairs)
    else:
        with make_executor(config, workers) as executor, ThreadPoolExecutor(max(workers, 1)) as threads:
            do_each(lambda pair: print(parse_pair(config, pair, executor)), pairs, threads.map)
    return 0


def check_config(config: dict) -> None:
    if config["depth"] % 2:
        raise InputError(f"depth = {config['depth']} must be even: it counts bids and asks together")
    if config["subsample"] > 1 and config["state_interval_ms"]:
        raise InputError(f"subsample = {config['subsample']} and state_interval_ms = {config['state_interval_ms']} "
                         "both thin the states: set one of them")  # fmt: skip
    if config["feed"] is not None and config["feed"] not in FEEDS:
        raise InputError(f"unknown feed {config['feed']!r}; there are {', '.join(FEEDS)}")


def is_compiled() -> bool:
    """Whether numba's cache holds the book's largest kernel as compiled from its present source."""
    cached = Path(str(kernel.apply_rows.stats.cache_path)).glob("order_book.apply_rows-*.nbi")
    return any(file.stat().st_mtime > Path(kernel.__file__).stat().st_mtime for file in cached)


def make_executor(config: dict, workers: int) -> Executor:
    """Return the executor of the tasks (pairs, or single files): processes here, or a Dask cluster's workers."""
    if config["scheduler"] is None:
        return ProcessPoolExecutor(workers, get_context("spawn"))  # forking and threads do not go together
    try:
        from dask.distributed import Client
    except ImportError:
        raise InputError(f"scheduler = {config['scheduler']!r} needs Dask: pip install distributed") from None
    try:
        return Client(config["scheduler"]).get_executor()
    except (OSError, ValueError) as error:
        raise InputError(f"scheduler = {config['scheduler']!r} does not answer ({error}): start it, or leave scheduler "
                         "None") from None  # fmt: skip


def parse_pair(config: dict, pair: str, executor: Executor | None = None) -> str:
    """Parse one pair's files into `book_states/<pair>`; return the report that is printed.

    An executor does the work where there is one; files that open with a snapshot are then tasks of their own.
    """
    began = time.perf_counter()
    raw = Path(config["data_dir"]) / "raw" / pair
    files = list_files(raw)
    if not files:
        raise InputError(f"{raw} holds no files (.md and .txt aside): put the pair's recorded updates there")
    feed = config["feed"] or find_feed(files[0])
    for file in files[1:]:
        if config["feed"] is None and (other := find_feed(file)) != feed:
            raise InputError(f"{file} is of feed {other}, {files[0].name} of {feed}: one pair's files are one feed")
    folder = Path(config["data_dir"]) / "book_states" / pair
    with new_folder(folder) as partial:
        parsed = None
        if executor is not None and config["subsample"] == 1 and open_alike(feed, files):
            parsed = parse_apart(config, feed, files, partial, executor)
        if parsed is None:
            task = config, feed, files, partial
            parsed = executor.submit(parse_files, *task).result() if executor else parse_files(*task)
        counters = parsed["counters"]
        if parsed["rows"] == 0:
            raise InputError(f"{raw} holds no complete state of depth {config['depth']} in {parsed['updates']:,} rows "
                             f"({counters['thin_states']:,} states with fewer than {config['depth'] // 2} levels "
                             f"on a side, {counters['crossed_states']:,} crossed): "
                             "lower --depth or mend the files")  # fmt: skip
        if not parsed["any_trade"]:
            (partial / "traded.npy").unlink()
        meta = {
            "format_version": FORMAT_VERSION, "pair": pair, "feed": feed, "depth": config["depth"],
            "tick_size": parsed["tick_size"], "lot_size": parsed["lot_size"], "subsample": config["subsample"],
            "state_interval_ms": config["state_interval_ms"], "rows": parsed["rows"], "updates": parsed["updates"],
            "sources": [describe_source(file, raw) for file in files],
            "counters": counters | {"crossed_ms": parsed["crossed_ns"] // 10**6},
        }  # fmt: skip
        check_states(partial, parsed["rows"])
        lengths = np.diff(segment_ranges(np.load(partial / "segment_starts.npy"), parsed["rows"])).ravel()
        meta |= {"segments": len(lengths), "longest_segment": int(lengths.max())}
        (partial / "meta.json").write_text(json.dumps(meta, indent=1))
    return report(pair, meta, folder, time.perf_counter() - began)


def describe_source(file: Path, raw: Path) -> dict:
    """What meta.json says of a file; by its digest, statistics of another file of the same length are told."""
    with open(file, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"name": file.relative_to(raw).as_posix(), "bytes": file.stat().st_size, "sha256": digest}


def parse_files(config: dict, feed: str, files: list[Path], folder: Path, given: tuple | None = None) -> dict:
    """Parse files as one stream into arrays in `folder`; return what meta.json and `find_joint` need of it.

    `given`: tick size and lot size; None: found in the first million rows, after which the forecast is made.
    """
    folder.mkdir(exist_ok=True)
    name = final_name(folder)
    batches: Iterator[Batch] = read_ahead(FEEDS[feed].read(files))
    first_batches, *units = infer_units(batches, config["tick_size"]) if given is None else ([], *given)
    opening = read_opening(config, FEEDS[feed].read(files), given) if given else None
    states, rows, forecast_due = StateWriter(folder, config["depth"]), 0, bool(first_batches)
    book = make_book(config, units[1], states.append)
    total_bytes = sum(file.stat().st_size for file in files)
    with tqdm(total=total_bytes, unit="B", unit_scale=True, desc=name, disable=None) as progress:
        done_bytes = dict.fromkeys(map(str, files), 0)
        for batch in chain_freeing(first_batches, batches):
            apply_batch(book, batch, *units)
            rows += len(batch.time_ns)
            done_bytes[batch.file] = batch.file_bytes
            progress.update(sum(done_bytes.values()) - progress.n)
            if forecast_due and not first_batches:
                forecast_due = False
                share = sum(done_bytes.values()) / total_bytes
                found = states.rows + int(book.memory[kernel.ROWS])
                said = forecast(found, config["depth"], share, folder, states.rows)
                if share < 1:
                    progress.write(f"{name}: {said}")
        book.finish()
    states.close()
    return {
        "tick_size": units[0], "lot_size": units[1], "rows": states.rows, "updates": rows,
        "counters": dict(zip(kernel.COUNTERS, book.counters.tolist(), strict=True)),
        "crossed_ns": int(book.memory[kernel.CROSSED_NS]), "any_trade": states.any_trade, "opening": opening,
        "second_begins": 1 in np.load(folder / "segment_starts.npy"),  # whether a segment begins with the second state
        "end": describe_book(book) | {"time": int(batch.time_ns[-1]), "kind": int(batch.update_type[-1])},
    }  # fmt: skip


def make_book(config: dict, lot_size: float, flush: Callable[[list[np.ndarray]], None]) -> kernel.OrderBook:
    limits = ("subsample", "state_interval_ms", "max_crossed_ms", "max_gap_seconds", "max_clock_step_ms")
    return kernel.OrderBook(config["depth"], lot_size, flush, **{name: config[name] for name in limits})


def list_files(folder: Path) -> list[Path]:
    """The recorded files of a pair and its subfolders in path order (licences, notes and hidden ones are none)."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".md", ".txt"))
    return sorted(file for file in files if file.name != "LICENSE"
                  and not any(part.startswith(".") for part in file.relative_to(folder).parts))  # fmt: skip


def infer_units(batches: Iterator[Batch], tick_size: float | None) -> tuple[list[Batch], float, float]:
    """Read the first million rows; return them with the tick size and the lot size.

    A tick is the largest power of ten that divides every price there (or as given). A lot is as fine as these sizes
    need, and down to 1e-8 where float64 still counts sizes a thousand times as large exactly.
    """
    first, rows = [], 0
    while rows < ROWS_TO_INFER_TICK and (batch := next(batches, None)) is not None:
        first.append(batch)
        rows += len(batch.time_ns)
    if tick_size is None:
        tick_size = largest_power_of_ten([batch.price for batch in first], "prices", "set --tick_size")
    largest = max((float(batch.size.max()) for batch in first if len(batch.size)), default=1.0)
    needed = largest_power_of_ten([batch.size for batch in first], "sizes", "round them")
    lot = min(needed, max(finest_lot(1000 * largest), 1e-8))
    return first, tick_size, max(lot, finest_lot(largest))


def finest_lot(size: float) -> float:
    """The smallest power of ten of which float64 counts up to `size` exactly."""
    return 10.0 ** -int(np.floor(np.log10(kernel.MAX_EXACT / max(size, 1e-9))))


def largest_power_of_ten(arrays: list[np.ndarray], name: str, remedy: str) -> float:
    """The largest power of ten, from 1e6 down to 1e-12, of which every value is a multiple."""
    values = np.unique(np.concatenate([np.unique(array) for array in arrays]))
    for digits in range(-6, 13):
        if kernel.is_whole(values * 10.0**digits).all():
            return float(f"1e{-digits}")
    raise InputError(f"the first million {name} are multiples of no power of ten down to 1e-12: {remedy}")


def apply_batch(book: kernel.OrderBook, batch: Batch, tick_size: float, lot_size: float) -> None:
    """Turn a batch's prices into ticks and sizes into lots, exactly, and apply it to the book."""
    ticks = to_units(batch.price, tick_size, batch, "price", "the tick size: set a finer --tick_size")
    lots = to_units(batch.size, lot_size, batch, "size", "the finest that the first million rows need: round the sizes")
    try:
        book.apply(batch.time_ns, batch.message, batch.update_type, batch.is_buy, ticks, lots, batch.order_id)
    except ValueError as error:
        row, reason = error.args
        said = f"a visible price does not fit int32 in ticks of {tick_size}: set --tick_size"
        if reason == kernel.CLOCK_BACK:
            said = (f"time goes back to {np.datetime64(int(batch.time_ns[row]), 'ns')} by more than max_clock_step_ms: "
                    "sort the files, or raise --max_clock_step_ms")  # fmt: skip
        raise InputError(f"{batch.locate(row)}: {said}") from None


def to_units(values: np.ndarray, unit: float, batch: Batch, name: str, remedy: str) -> np.ndarray:
    """Return int64 multiples of `unit`; InputError naming file and row where a value is none."""
    per_one = round(1 / unit)
    units, row = kernel.count_units(values, per_one if abs(per_one * unit - 1) < 1e-9 else 0, unit)
    if row >= 0:
        raise InputError(f"{batch.locate(row)}: {name} {float(values[row])!r} is no exact multiple of "
                         f"{unit:g}, {remedy}")  # fmt: skip
    return units


def chain_freeing(first: list[Batch], rest: Iterator[Batch]) -> Iterator[Batch]:
    while first:
        yield first.pop(0)
    yield from rest


def forecast(rows: int, depth: int, share_read: float, folder: Path, written: int = 0) -> str:
    """Extrapolate rows and bytes from the input read so far; InputError where the disk cannot hold them.

    `written`: how many of the `rows` are on the disk already.
    """
    expected = int(rows / share_read)
    size = expected * (8 * depth + 20)
    free = shutil.disk_usage(folder.parent).free + written * (8 * depth + 20)
    if size > free:
        raise InputError(f"about {expected:,} states of depth {depth} will take {format_bytes(size)} and "
                         f"{folder.parent} has {format_bytes(free)}: set --state_interval_ms=100, --subsample or a "
                         "smaller --depth")  # fmt: skip
    return f"about {expected:,} states, {format_bytes(size)} expected"


# ----------------------------------------------------------------------- files of one pair that are parsed side by side


def open_alike(feed: str, files: list[Path]) -> bool:
    """Whether there are several files, and each opens with a snapshot of the same kind."""
    opening = FEEDS[feed].opening
    kinds = {opening(read_head(file)) for file in files} if opening and len(files) > 1 else {None}
    return len(kinds) == 1 and None not in kinds


def parse_apart(config: dict, feed: str, files: list[Path], partial: Path, executor: Executor) -> dict | None:
    """Parse each file as a task of its own and join the parts; None where one stream would have given other bytes."""
    batches = read_ahead(FEEDS[feed].read(files))
    first, *units = infer_units(batches, config["tick_size"])
    states: list[int] = []
    book = make_book(config, units[1], lambda out: states.append(len(out[0])))
    read_bytes = sum({batch.file: batch.file_bytes for batch in first}.values())
    while first:
        apply_batch(book, first.pop(0), *units)
    book.finish()
    share = read_bytes / sum(file.stat().st_size for file in files)
    name = final_name(partial)
    print(f"{name}: {forecast(sum(states), config['depth'], share, partial)}; {len(files)} files apart")
    folders = [partial / f"{name}.{index}" for index in range(len(files))]
    tasks = [executor.submit(parse_files, config, feed, [file], folder, tuple(units))
             for file, folder in zip(files, folders, strict=True)]  # fmt: skip
    try:
        parts = [task.result() for task in tasks]
    except BaseException:
        for task in tasks:
            task.cancel()
        wait(tasks)
        raise
    joints = [find_joint(config, *pair) for pair in itertools.pairwise(parts)]
    if None in joints:
        for folder in folders:
            shutil.rmtree(folder)
        return None
    return join_parts(config["depth"], parts, folders, joints, partial)


def read_opening(config: dict, batches: Iterator[Batch], units: tuple) -> dict | None:
    """The book after a file's first message, that message's time and the next one's; None where there is none."""
    book, first = make_book(config, units[1], lambda out: None), None
    for batch in batches:
        first = first or batch
        end = int(np.searchsorted(batch.message, first.message[0], side="right"))
        opening = Batch._make(part[:end] if isinstance(part, np.ndarray) else part for part in batch)
        apply_batch(book, opening, *units)
        if end < len(batch.time_ns):
            return describe_book(book) | {"time": int(first.time_ns[0]), "next_time": int(batch.time_ns[end])}
    return None


def describe_book(book: kernel.OrderBook) -> dict:
    """The kernel's memory, and the best levels of a state's depth: bids' ticks and lots, asks' ticks and lots."""
    levels = [array.tolist() for side in (BID, ASK) for array in book.levels(side, book.half)]
    return {"memory": book.memory.tolist(), "levels": levels}


def find_joint(config: dict, before: dict, after: dict) -> tuple[bool, bool] | None:
    """Whether a segment begins between two parts, and whether the latter's first state replaces the former's last.

    The latter was parsed from nothing. Past its opening snapshot the kernel carries nothing from before it, save in the
    cases that give None: then only one stream gives the right bytes.
    """
    end, opening = before["end"], after["opening"]
    if opening is None or 0 in (before["rows"], after["rows"]):
        return None
    bids, asks, half = opening["levels"][0], opening["levels"][2], config["depth"] // 2
    memory, last_time, interval = end["memory"], end["memory"][kernel.TIME], config["state_interval_ms"] * 10**6
    clamped = max(opening["time"], last_time)
    unwritten = memory[kernel.TRADED] - (memory[kernel.TRADED_WRITTEN] if interval else 0)
    if (
        min(len(bids), len(asks)) < half or bids[0] >= asks[0]  # no state
        or end["kind"] == SNAPSHOT or opening["time"] == end["time"]  # perhaps one message over both files
        or opening["next_time"] <= last_time  # time would be clamped, or refused
        or memory[kernel.CROSSED_SINCE] != kernel.NEVER or unwritten or opening["memory"][kernel.TRADED]
    ):  # fmt: skip
        return None
    held_back = max(0, clamped - opening["time"])
    if held_back and after["second_begins"]:  # the silence before it would be shorter
        return None
    empty = not (end["levels"][0] or end["levels"][2])
    silence = clamped - memory[kernel.LAST_VALID]
    new_segment = bool(memory[kernel.NEW_SEGMENT]) or silence > config["max_gap_seconds"] * 10**9
    new_segment = new_segment or (not empty and end["levels"] != opening["levels"])
    if not interval:
        return new_segment, False
    next_interval = opening["next_time"] // interval
    if (next_interval == clamped // interval) != (next_interval == opening["time"] // interval):
        return None
    replaces = not new_segment and clamped // interval == memory[kernel.INTERVAL]
    return None if replaces and next_interval == clamped // interval else (new_segment, replaces)


def join_parts(depth: int, parts: list[dict], folders: list[Path], joints: list, partial: Path) -> dict:
    """Append part after part to the arrays in `partial`, each deleted when it is copied."""
    whole = StateWriter(partial, depth)
    last_traded, last_begins = 0.0, False
    for index, (part, folder) in enumerate(zip(parts, folders, strict=True)):
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in whole.writers}
        starts = np.array(arrays.pop("segment_starts"))
        if index:
            begins, replaces = joints[index - 1]
            arrays["timestamps"][0] = max(arrays["timestamps"][0], parts[index - 1]["end"]["memory"][kernel.TIME])
            if replaces:
                arrays["traded"][0], begins = last_traded, last_begins
            starts = starts if begins else starts[1:]
        last_traded, last_begins = arrays["traded"][-1], part["rows"] - 1 in starts
        rows = part["rows"] - (index < len(joints) and joints[index][1])
        for name, array in arrays.items():
            whole.writers[name].append(array[:rows])
        whole.writers["segment_starts"].append(whole.rows + starts[starts < rows])
        whole.rows += rows
        shutil.rmtree(folder)
    whole.close()
    summed = {name: sum(part[name] for part in parts) for name in ("updates", "crossed_ns", "any_trade")}
    counters = {name: sum(part["counters"][name] for part in parts) for name in kernel.COUNTERS}
    return parts[0] | summed | {"rows": whole.rows, "counters": counters}


def report(pair: str, meta: dict, folder: Path, seconds: float) -> str:
    size = sum(file.stat().st_size for file in folder.iterdir())
    head = (f"{pair}: {meta['rows']:,} states of {meta['depth']} levels from {meta['updates']:,} updates of feed "
            f"{meta['feed']} in {seconds:.1f} s; tick {meta['tick_size']:g}; "
            f"{format_bytes(size)} in {folder}")  # fmt: skip
    lines = [f"  {name.replace('_', ' '):<18} {count:>12,}" for name, count in meta["counters"].items() if count]
    if not meta["counters"]["snapshots"]:
        lines.append(f"  {'snapshots':<18} {0:>12}: the book began empty, levels not yet updated are missing")
    lines.append(f"  {'segments':<18} {meta['segments']:>12,}, the longest of {meta['longest_segment']:,} states")
    return "\n".join([head, *lines])


if __name__ == "__main__":
    run(main, config)
