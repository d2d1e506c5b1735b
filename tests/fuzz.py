"""Feed every reader damaged recordings, and compare the parser with slow twin readings.

    make fuzz FILES=100000
    PYTHONPATH=. .venv/bin/python tests/fuzz.py --files=2000 --feeds="['okx']"
    PYTHONPATH=. .venv/bin/python tests/fuzz.py --only=1234            one recording, told in full

A recording is a small valid one that was cut, repeated, reordered, packed or had numbers and bytes
changed; its number alone decides what it is. The parser may give states, which must be those that a
book of dictionaries has after what the twin reading (tests/twins.py) tells, with the same counts of
all that was passed by. Or it may refuse in one line, and leave nothing behind, if the twin finds a
fault too. All else is a failure, which is printed with its number.
"""

config = {
    "files": 2000,  # int >= 1: recordings to try
    "first": 0,  # int >= 0: number of the first one
    "only": None,  # int >= 0 | None: the one to try, and to tell of in full
    "feeds": None,  # list[str] | None: feeds to try; None: all
    "workers": 0,  # int >= 0: processes; 0: one for each processor core
    "seconds": 20.0,  # > 0 and < inf: longer for one recording is a hang
    "folder": None,  # str | None: where the recordings lie; None: in memory, if /dev/shm is there
}

import contextlib
import faulthandler
import functools
import io
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from fuzz_files import PACKINGS, Base, damage, flip, make_bases, unpack
from reference_book import ReferenceBook, thin_states
from tqdm import tqdm
from twins import (
    Fault,
    File,
    Message,
    Told,
    Unsure,
    tell_coinapi,
    tell_npy,
    tell_tardis,
)
from twins_binance import tell_binance
from twins_json import tell_messages
from twins_vendors import tell_databento, tell_hftbacktest, tell_lobster

import data_parser
from lob.book.order_book import COUNTERS
from lob.book.states import open_book
from lob.config import InputError, load_config, run
from lob.feeds import recordings
from lob.feeds.batch import GAP, SNAPSHOT
from lob.process import count_cores

TWINS = {
    "coinapi": tell_coinapi,
    "tardis": tell_tardis,
    "npy": tell_npy,
    "lobster": tell_lobster,
    "databento": tell_databento,
    "hftbacktest": tell_hftbacktest,
}
MAX_TICKS, STEP_NS, GAP_NS = 2**31 - 1, 10**9, 60 * 10**9
SPLIT_FEEDS = ("coinapi", "tardis")  # whose files that open with a whole book are parsed apart


class Hang(Exception):
    """A recording takes too long."""


class Case(NamedTuple):
    name: str
    feed: str
    files: list[File]  # as they lie on the disk
    settings: dict[str, Any]
    threads: bool = True  # whether threads read ahead, as they do in use; it takes half the time


class Result(NamedTuple):
    """States and counters of a whole recording."""

    prices: list[list[Decimal]]
    sizes: list[list[Decimal]]
    times: list[int]
    starts: list[bool]
    traded: list[Decimal]
    counters: dict[str, int]
    rows: int


# A recording


def make_case(number: int, bases: dict[str, Base]) -> Case:
    rng = random.Random(f"{number}")
    names = sorted(bases)
    # Feeds, not their bases, are tried equally often.
    feed = rng.choice(sorted({base.feed for base in bases.values()}))
    name = rng.choice([name for name in names if bases[name].feed == feed])
    base = bases[name]
    files = list(base.files)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3))):
        files = damage(rng, base, files)
    packing = rng.choice([*["plain"] * 4, *PACKINGS]) if base.feed != "hftbacktest" else "zip"
    files = [(file, PACKINGS[packing](data)) for file, data in files]
    if packing != "plain" and rng.random() < 0.2:
        place = rng.randrange(len(files))
        file, data = files[place]
        damaged = flip(rng, data) if rng.random() < 0.5 else data[: rng.randrange(len(data))]
        files[place] = file, damaged
    settings: dict[str, Any] = {"depth": rng.choice(base.depths)}
    if rng.random() < 0.2:
        settings["book_depth"] = rng.choice((3, 5, 10))
    if rng.random() < 0.2 and base.feed not in SPLIT_FEEDS:
        settings |= rng.choice(({"subsample": 3}, {"state_interval_ms": 50}))
    if rng.random() < 0.8:  # recognising it takes a fifth of the time
        settings["feed"] = base.feed
    return Case(name, base.feed, files, settings, threads=rng.random() < 0.1)


# What the parser does


def parse(case: Case, folder: Path, seconds: float) -> str | Result:
    """Return the parser's states, or the line with which it refuses."""
    shutil.rmtree(folder, ignore_errors=True)
    raw = folder / "raw" / "A_B"
    raw.mkdir(parents=True)
    for name, data in case.files:
        (raw / name).write_bytes(data)
    settings = {**data_parser.config, "data_dir": str(folder), **case.settings}
    with contextlib.ExitStack() as stack:
        stack.enter_context(deadline(seconds))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for module in () if case.threads else (data_parser, recordings):
            stack.enter_context(mock.patch.object(module, "read_ahead", iter))
        try:
            data_parser.parse_pair(settings, "A_B")
        except InputError as error:
            assert not list((folder / "book_states").glob("*")), "half-written output is left"
            line = str(error)
            assert line.isprintable() and line, f"not one line: {line!r}"
            return line
    return read_result(folder / "book_states" / "A_B")


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_result(folder: Path) -> Result:
    book = open_book(folder)
    tick = Decimal(repr(book.tick_size))
    starts = np.zeros(book.rows, bool)
    starts[book.segment_starts] = True
    traded = np.zeros(book.rows) if book.traded is None else book.traded
    return Result(
        [[ticks * tick for ticks in row] for row in book.price_ticks.tolist()],
        book.sizes.tolist(),
        book.timestamps.tolist(),
        starts.tolist(),
        traded.tolist(),
        book.meta["counters"],
        book.meta["updates"],
    )


# What is right


def tell(case: Case) -> Told:
    """Return what the recording says. Raises Fault, or Unsure."""
    files = [(name, unpack(data)) for name, data in case.files]
    if any(not data for _, data in files):
        raise Fault("an empty file")
    if case.feed in TWINS:
        return TWINS[case.feed](files)
    return (tell_binance if case.feed == "binance" else tell_messages)(case.feed, files)


def find_unit(values: set[Decimal]) -> Decimal:
    """Return the largest power of ten from 1e6 to 1e-12 that divides every value."""
    for exponent in range(6, -13, -1):
        unit = Decimal(10) ** exponent
        if all(value % unit == 0 for value in values):
            return unit
    raise Unsure("so many decimals that they may be a float's rounding error")


def expect(told: Told, settings: dict[str, Any]) -> Result:
    """Return the states of the book of dictionaries. Raises Fault if there are none."""
    rows = [row for part in told.parts for message in part for row in message.rows]
    tick, lot = (find_unit({row[place] for row in rows}) for place in (2, 3))
    if max((abs(row.price) for row in rows), default=0) / tick > 10**9:
        raise Unsure("digits that may be a float's rounding error")
    usual = sorted(abs(row.price) for row in rows)[len(rows) // 2] if rows else 0
    if usual > MAX_TICKS * tick:
        raise Fault("prices of too many ticks")
    if max((row.size for row in rows), default=0) / lot > 2**52:
        raise Unsure("sizes of too many digits")
    joiner = Joiner(tick, lot, told, settings)
    for part in told.parts:
        joiner.join(part)
    return joiner.result(len(rows))


class Joiner:
    """Books of the parts, one after the other, and what happens where two of them meet."""

    def __init__(self, tick: Decimal, lot: Decimal, told: Told, settings: dict[str, Any]):
        self.tick, self.lot, self.told, self.settings = tick, lot, told, settings
        self.half = settings["depth"] // 2
        self.states: list[tuple] = []
        self.counters: Counter[str] = Counter(told.skipped)
        self.clock: int | None = None  # time of the last message
        self.last_state: int | None = None
        self.closing: Any = None
        self.part_began: int | None = None  # time of the first state of the part before
        self.traded_since = 0
        self.rows = 0  # of the parts so far
        self.snapshots = 0  # in them

    def join(self, part: list[Message]) -> None:
        part, skipped = self.without_book(part)
        book, opening, first_clock = self.run_book(part)
        if book.counters["snapshots"] and not self.snapshots and self.rows:
            passed_by = self.rows
            self.__init__(self.tick, self.lot, self.told, self.settings)  # type: ignore[misc]
            skipped += passed_by
        self.counters["rows_before_snapshot"] += skipped
        self.rows += skipped + sum(len(message.rows) for message in part)
        self.snapshots += book.counters["snapshots"]
        self.counters.update(book.counters)
        if self.clock is not None:
            self.meet(book, opening, first_clock)
        elif book.states:
            self.states += book.states
        if book.states:
            self.last_state = max(book.last_valid, self.clock or book.last_valid)
        self.part_began = book.states[0][2] if book.states else None
        if book.time is not None:
            self.clock = max(book.time, self.clock or book.time)
        self.closing = [book.best(0), book.best(1)]
        last = book.states[-1][4] if book.states else 0
        self.traded_since = book.traded - last + (0 if book.states else self.traded_since)

    def without_book(self, part: list[Message]) -> tuple[list[Message], int]:
        """Return a part without the rows before its first snapshot, and their number."""
        kinds = [row.kind for message in part for row in message.rows]
        first = kinds.index(SNAPSHOT) if SNAPSHOT in kinds else len(kinds)
        if not self.told.needs_snapshot and (
            first == len(kinds) or all(kind == GAP for kind in kinds[:first])
        ):
            return part, 0
        if not self.told.needs_snapshot:
            try:  # they make states until the snapshot comes
                self.run_book(part)
            except Fault:
                raise Unsure("rows before the first snapshot may be at fault") from None
        left, kept = first, []
        for message in part:
            rows = message.rows[min(left, len(message.rows)) :]
            left -= len(message.rows) - len(rows)
            if rows:
                kept.append(Message(message.time_ns, rows))
        return kept, first

    def run_book(self, part: list[Message]) -> tuple[ReferenceBook, Any, int | None]:
        """Return the book after a part, the best levels after its first message, and a time.

        The time is that of the first row which is no SNAPSHOT, or None.
        """
        settings = self.settings
        book = ReferenceBook(
            settings["depth"], self.told.by_order, book_depth=settings.get("book_depth")
        )
        opening = first_clock = None
        for message in part:
            rows = [
                (kind, is_buy, int(price / self.tick), int(size / self.lot), order)
                for kind, is_buy, price, size, order in message.rows
            ]
            kinds = [row[0] for row in rows]
            if first_clock is None and any(kind != SNAPSHOT for kind in kinds):
                first_clock = message.time_ns
            if book.lost:
                kinds = [kind for kind in kinds if kind in (SNAPSHOT, GAP)]
            after_book = book.kind_before == SNAPSHOT and not book.by_order
            if kinds and (kinds[0] != SNAPSHOT or after_book):
                limit = book.time
            else:  # a snapshot may be older than the updates before it, but not than all states
                limit = book.states[0][2] if book.states else None
            if kinds and limit is not None and message.time_ns < limit - STEP_NS:
                raise Fault("time goes back")
            if book.take_message(message.time_ns, rows):
                ticks = book.states[-1][0]
                if max(map(abs, ticks)) > MAX_TICKS:
                    raise Fault("a visible price of too many ticks")
                if ticks[self.half - 1] + ticks[self.half] <= 0:
                    raise Fault("a mid-price that is not above 0")
            if opening is None and book.counters["messages"]:
                opening = [book.best(0), book.best(1)]
        return book, opening, first_clock

    def meet(self, book: ReferenceBook, opening: Any, first_clock: int | None) -> None:
        """Join the states of a part to those before it."""
        assert self.clock is not None
        if any(self.closing) and opening != self.closing:
            self.counters["snapshots_differ"] += 1
        if first_clock is not None:
            if self.clock - first_clock > STEP_NS:
                raise Fault("time goes back")
            self.counters["clock_steps_back"] += self.clock > first_clock
        elif self.part_began is not None and book.time < self.part_began - STEP_NS:
            raise Fault("time goes back")
        before = self.traded_since + (self.states[-1][4] if self.states else 0)
        for index, (ticks, lots, time, starts, traded) in enumerate(book.states):
            time = max(time, self.clock)
            if index == 0:
                starts = self.last_state is None or time - self.last_state > GAP_NS
            self.states.append((ticks, lots, time, starts, traded + before))

    def result(self, rows: int) -> Result:
        if not self.states:
            raise Fault("no state")
        interval_ns = self.settings.get("state_interval_ms", 0) * 10**6
        thinned = thin_states(self.states, self.settings.get("subsample", 1), interval_ns)
        ticks, lots, times, starts, traded = zip(*thinned, strict=True)
        return Result(
            [[price * self.tick for price in row] for row in ticks],
            [[size * self.lot for size in row] for row in lots],
            list(times),
            list(starts),
            [each * self.lot for each in traded],
            dict(self.counters),
            rows,
        )


# The comparison


def compare(found: Result, right: Result) -> str:
    """Return how the parser's result differs from the right one; "" if it does not."""
    if found.rows != right.rows:
        return f"{found.rows} rows, {right.rows} in the recording"
    names = (set(found.counters) | set(right.counters) | set(COUNTERS)) - {"crossed_ms"}
    for name in sorted(names):
        count, expected = found.counters.get(name, 0), right.counters.get(name, 0)
        if count != expected:
            return f"{name} = {count}, should be {expected}"
    for name in ("times", "starts", "prices"):
        ours, theirs = getattr(found, name), getattr(right, name)
        if ours != theirs:
            row = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)  # noqa: B905
            if row is None:
                return f"{len(ours)} states, should be {len(theirs)}"
            return f"{name} of state {row}: {ours[row]}, should be {theirs[row]}"
    for name in ("sizes", "traded"):
        ours, theirs = (np.array(getattr(each, name), np.float64) for each in (found, right))
        if not np.allclose(ours, theirs, rtol=2e-7, atol=0):
            return f"{name} differ"
    return ""


def judge(case: Case, folder: Path, seconds: float) -> tuple[str, str]:
    """Return how a recording ended, and what is said of it.

    It ends in "states", "refused", "unsure" (not judged), or as a failure of another name.
    """
    try:
        found = parse(case, folder, seconds)
    except Hang as error:
        return "hang", str(error)
    except Exception as error:
        return f"crash: {type(error).__name__}", traceback.format_exc()
    try:
        right = expect(tell(case), case.settings)
    except Unsure as error:
        return "unsure", str(error)
    except Fault as fault:
        if isinstance(found, str):
            return "refused", found
        return "read, though at fault", str(fault)
    except Exception as error:
        return f"twin's crash: {type(error).__name__}", traceback.format_exc()
    if isinstance(found, str):
        if "is of no known feed" in found or "files are one feed" in found:
            return "unsure", "damage to what a file is recognised by"
        if "is no whole DBN file" in found:
            return "unsure", "damage to the head of a DBN file"
        return "refused, though whole", found
    difference = compare(found, right)
    return ("differs" if difference else "states"), difference


FINE = ("states", "refused", "unsure")


def try_cases(numbers: list[int], seconds: float, folder: str | None, feeds: list[str] | None):
    """Try recordings; return counts by feed and end, and the failures."""
    bases = make_bases()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    failures: list[str] = []
    # A kernel that hangs hears no signal.
    faulthandler.dump_traceback_later(1200 + 2 * seconds, exit=True, file=sys.__stderr__)
    where = folder or ("/dev/shm" if Path("/dev/shm").is_dir() else None)
    with tempfile.TemporaryDirectory(dir=where) as name, contextlib.redirect_stderr(io.StringIO()):
        compile_kernels(name)
        for number in numbers:
            case = make_case(number, bases)
            if feeds is not None and case.feed not in feeds:
                continue
            end, said = judge(case, Path(name), seconds)
            counts[case.feed][end] += 1
            if end not in FINE:
                failures.append(f"{number}  {case.name}  {end}: {said.strip().splitlines()[-1]}")
    faulthandler.cancel_dump_traceback_later()
    return counts, failures


@functools.cache
def compile_kernels(folder: str) -> None:
    """Parse a recording by level and one order by order: the first of each compiles for long."""
    for base in (make_bases()[name] for name in ("coinapi", "coinapi sample")):
        parse(Case("", base.feed, base.files, {"depth": 2}), Path(folder), seconds=600)


def tell_one(config: dict) -> None:
    case = make_case(config["only"], make_bases())
    folder = Path(config["folder"] or tempfile.mkdtemp())
    end, said = judge(case, folder, config["seconds"])
    print(f"{case.name}, {case.settings}, in {folder}/raw\n{end}: {said}")


def main(config: dict) -> int:
    if config["only"] is not None:
        tell_one(config)
        return 0
    workers = config["workers"] or count_cores()
    numbers = range(config["first"], config["first"] + config["files"])
    blocks = [list(numbers[at : at + 200]) for at in range(0, len(numbers), 200)]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    failed = 0
    arguments = config["seconds"], config["folder"], config["feeds"]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = [pool.submit(try_cases, block, *arguments) for block in blocks]
        for future in tqdm(running, unit=" x 200", mininterval=5):
            counted, failures = future.result()
            failed += len(failures)
            for feed, ends in counted.items():
                counts[feed].update(ends)
            for line in failures:
                tqdm.write(line, file=sys.stdout)
    print(f"{'feed':12} {'tried':>8} {'states':>8} {'refused':>8} {'unsure':>8} {'failed':>8}")
    for feed, ends in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        fine = [ends[name] for name in FINE]
        print(f"{feed:12} {ends.total():8,} " + " ".join(f"{n:8,}" for n in fine), end=" ")
        print(f"{ends.total() - sum(fine):8,}")
    return 1 if failed else 0


if __name__ == "__main__":
    run(main, load_config(config, __file__))
