"""Parts of one pair's stream, which open with a snapshot: how one or several workers join them.

By threads here for speed; by worker processes and by Dask workers through the script itself.
"""

import gzip
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import shell
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference_book import ReferenceBook

import data_parser
from lob.book.order_book import COUNTERS, OrderBook
from lob.book.states import BOOK_ARRAYS, StateWriter
from lob.book.stream import Part, PartJoiner, describe_part
from lob.config import InputError
from lob.feeds.batch import MATCH, SET, SNAPSHOT, find_parts

COINAPI_HEADER = "time_exchange;time_coinapi;update_type;is_buy;entry_px;entry_sx\n"
TARDIS_HEADER = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"
NAMES = {SNAPSHOT: "SNAPSHOT", SET: "SET", MATCH: "MATCH"}
START_MS = 1_723_161_600_000
Row = tuple[int, int, bool, int, int]  # time in ms, type, is_buy, ticks, lots


def tell_days(rng: np.random.Generator, days: int, messages: int, trades: bool) -> list[list[Row]]:
    """Return days of a book around 1000 ticks, each of which opens with a snapshot.

    Mostly it is the book as the day before left it, stamped near the end of that day.
    """
    reference = ReferenceBook(4)
    time, told = START_MS, []
    for day in range(days):
        levels = [
            (side, ticks, lots) for side in (0, 1) for ticks, lots in reference.levels[side].items()
        ]
        if day == 0 or rng.random() < 0.2:  # another book
            levels = [
                (side, 1000 + (i if side else -i), int(rng.integers(1, 9)))
                for side in (0, 1)
                for i in range(1, 9)
            ]
        opening = time + int(
            rng.choice([-30, -3, 0, 1, 40, 90_000], p=[0.05, 0.15, 0.03, 0.27, 0.2, 0.3])
        )
        rows = [(opening, SNAPSHOT, side == 0, ticks, lots) for side, ticks, lots in levels]
        time = max(time, opening) + int(rng.choice([0, 1, 60], p=[0.05, 0.65, 0.3]))
        for _ in range(messages):
            far = 1 if rng.random() < 0.997 else -1  # now and then a level on the wrong side
            for _ in range(rng.integers(1, 4)):
                buy = bool(rng.integers(2))
                ticks = 1000 + (-1 if buy else 1) * far * int(rng.integers(1, 12))
                kind = MATCH if trades and rng.random() < 0.2 else SET
                rows.append((time, kind, buy, ticks, int(rng.integers(0, 9))))
            time += int(rng.choice([1, 7, 61_000], p=[0.5, 0.495, 0.005]))
        rows.append((time, SET, True, 999, 5))
        for row in rows:
            reference.take_message(row[0], [(row[1], *row[2:], 0)])
        told.append(rows)
    return told


def write_days(folder: Path, days: list[list[Row]], feed: str) -> None:
    raw = folder / "raw" / "A_B"
    raw.mkdir(parents=True)
    for day, rows in enumerate(days):
        text = [COINAPI_HEADER if feed == "coinapi" else TARDIS_HEADER]
        for time_ms, kind, buy, ticks, lots in rows:
            if feed == "coinapi":
                clock = np.datetime64(time_ms, "ms")
                text.append(f"{clock}0000;x;{NAMES[kind]};{int(buy)};{ticks / 10};{lots / 1000}\n")
            else:
                snapshot, side = str(kind == SNAPSHOT).lower(), "bid" if buy else "ask"
                times = f"{time_ms}000,{time_ms}999"
                text.append(f"x,BTCUSDT,{times},{snapshot},{side},{ticks / 10},{lots / 1000}\n")
        (raw / f"{day:02}.csv").write_text("".join(text))


def parse(folder: Path, executor: ThreadPoolExecutor | None, **settings) -> dict[str, bytes] | str:
    """The bytes of every file written, or the line that the user reads."""
    try:
        data_parser.parse_pair(
            {
                **data_parser.config,
                "data_dir": str(folder),
                "depth": 4,
                "tick_size": 0.1,
                **settings,
            },
            "A_B",
            executor,
        )
    except InputError as error:
        return str(error)
    written = {
        file.name: file.read_bytes() for file in sorted((folder / "book_states" / "A_B").iterdir())
    }
    assert [path.name for path in (folder / "book_states").iterdir()] == ["A_B"]
    return written


@pytest.mark.parametrize(("interval_ms", "subsample"), [(0, 1), (10, 1), (100, 1), (0, 3)])
@pytest.mark.parametrize(
    ("feed", "trades"), [("coinapi", False), ("coinapi", True), ("tardis", False)]
)
def test_several_workers_give_the_bytes_of_one(
    tmp_path, feed, trades, interval_ms, subsample
) -> None:
    """Days that open in another book, that step back in time, or that come after a long silence."""
    rng = np.random.default_rng(interval_ms + subsample)
    refused, differ = 0, 0
    limits = {"state_interval_ms": interval_ms, "subsample": subsample, "max_crossed_ms": 20}
    with ThreadPoolExecutor(2) as executor:
        for story in range(12):
            folder = tmp_path / str(story)
            write_days(folder, tell_days(rng, 3, 60, trades), feed)
            found = parse(folder, executor, max_clock_step_ms=20, **limits)
            assert found == parse(folder, None, max_clock_step_ms=20, **limits)
            refused += isinstance(found, str)
            if isinstance(found, dict):
                differ += json.loads(found["meta.json"])["counters"]["snapshots_differ"]
    assert refused < 6
    assert differ


def test_a_day_that_opens_at_the_local_time_of_the_row_before_it_begins_a_message(tmp_path) -> None:
    levels = [(side, 1000 + (-i if side else i), 5) for side in (True, False) for i in range(1, 5)]
    days = [
        [(day + time, kind, *level) for time, kind in ((0, SNAPSHOT), (9, SET)) for level in levels]
        for day in (START_MS, START_MS + 20)
    ]
    write_days(tmp_path, days, "tardis")
    second = tmp_path / "raw" / "A_B" / "01.csv"
    second.write_text(second.read_text().replace(f"{START_MS + 20}999", f"{START_MS + 9}999"))
    with ThreadPoolExecutor(2) as executor:
        apart = parse(tmp_path, executor)
    assert apart == parse(tmp_path, None)
    assert json.loads(apart["meta.json"])["rows"] == 4


# A join, rule by rule.

OPENING = [(SNAPSHOT, True, 999, 5), (SNAPSHOT, False, 1001, 6)]
OTHER = [(SNAPSHOT, True, 998, 5), (SNAPSHOT, False, 1001, 6)]
# Time in ms, and rows of type, is_buy, ticks, lots.
Message = tuple[int, list[tuple[int, bool, int, int]]]


def parse_part(folder: Path, messages: list[Message], depth: int, **limits) -> Part:
    """Parse messages into `folder` as data_parser.py does; sizes are halves."""
    folder.mkdir()
    states = StateWriter(folder, depth)
    book = OrderBook(depth, 0.5, states.append, **limits)
    rows = [(time, number, *row) for number, (time, rows) in enumerate(messages) for row in rows]
    time, number, kind, is_buy, ticks, lots = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    book.apply(time * 10**6, number, kind.astype(np.uint8), is_buy.astype(bool), ticks, lots)
    book.finish()
    states.close()
    later = [row for row in rows if row[2] != SNAPSHOT]
    after_opening = (later[0][0] * 10**6, f"row {rows.index(later[0])}") if later else None
    return describe_part(book, states, 1.0, len(rows), after_opening)


def join(folder: Path, parts: list[list[Message]], depth: int = 2, **limits) -> tuple[dict, Part]:
    """Parse parts on their own and join them; return the arrays and what is known of the whole."""
    folder.mkdir(exist_ok=True)
    names = ("state_interval_ms", "max_gap_seconds", "max_clock_step_ms")
    defaults = {"state_interval_ms": 0, "max_gap_seconds": 60.0, "max_clock_step_ms": 1000}
    whole = folder / "whole"
    whole.mkdir()
    joiner = PartJoiner(whole, depth, **{name: (defaults | limits)[name] for name in names})
    for index, messages in enumerate(parts):
        part_folder = folder / str(index)
        joiner.append(parse_part(part_folder, messages, depth, **limits), part_folder)
        assert not part_folder.exists()
    part = joiner.close()
    return {name: np.load(whole / f"{name}.npy") for name in BOOK_ARRAYS}, part


@pytest.mark.parametrize("opening", [OPENING, OTHER])
@pytest.mark.parametrize(("time", "segments"), [(61_000, [0]), (61_001, [0, 2])])
def test_time_alone_decides_whether_a_segment_goes_on(tmp_path, opening, time, segments) -> None:
    arrays, whole = join(
        tmp_path, [[(0, OPENING), (1000, [(SET, True, 999, 5)])], [(time, opening)]]
    )
    assert arrays["segment_starts"].tolist() == segments
    assert whole.counters["snapshots_differ"] == (opening is OTHER)
    assert (whole.counters["snapshots"], whole.rows, whole.updates) == (2, 3, 5)


def test_a_silence_is_measured_over_a_part_that_leaves_no_state(tmp_path) -> None:
    thin = (1000, OPENING[:1])
    for time, segments in ((60_000, [0]), (60_001, [0, 1])):
        arrays, whole = join(tmp_path / str(time), [[(0, OPENING)], [thin], [(time, OPENING)]])
        assert arrays["segment_starts"].tolist() == segments
        assert (whole.rows, whole.counters["thin_states"]) == (2, 1)
        assert whole.counters["snapshots_differ"] == 2


def test_what_is_stamped_before_the_end_of_the_part_before_gets_its_time(tmp_path) -> None:
    first = [(0, OPENING), (1000, [(SET, True, 999, 7)])]
    early = [(970, OPENING), (1001, [(SET, True, 999, 8)])]
    arrays, whole = join(tmp_path / "snapshot", [first, early])
    assert (arrays["timestamps"] // 10**6).tolist() == [0, 1000, 1000, 1001]
    # A snapshot alone may be older: it is taken a little earlier than it comes.
    assert whole.counters["clock_steps_back"] == 0
    early = [
        (970, OPENING),
        *((980 + i, [(SET, True, 999, 8 + i)]) for i in range(3)),
        (1001, OTHER),
    ]
    arrays, whole = join(tmp_path / "updates", [first, early])
    assert (arrays["timestamps"] // 10**6).tolist() == [0, *[1000] * 5, 1001]
    assert whole.counters["clock_steps_back"] == 1
    with pytest.raises(
        InputError,
        match=r"^row 2: time goes back to 1970-01-01T00:00:00.98.* raise --max_clock_step_ms",
    ):
        join(tmp_path / "refused", [first, early], max_clock_step_ms=19)


def test_the_clock_of_all_parts_before_counts_and_may_go_back_by_the_limit(tmp_path) -> None:
    first = [(0, OPENING), (1000, [(SET, True, 999, 7)])]
    third = [(980, OPENING), (980, [(SET, True, 999, 8)]), (1001, OPENING)]
    arrays, _ = join(tmp_path, [first, [(970, OPENING)], third], max_clock_step_ms=20)
    assert (arrays["timestamps"] // 10**6).tolist() == [0, *[1000] * 4, 1001]


def test_an_opening_after_an_empty_book_is_no_other_book(tmp_path) -> None:
    emptied = (10, [(SET, True, 999, 0), (SET, False, 1001, 0)])
    _, whole = join(tmp_path, [[(0, OPENING), emptied], [(20, OPENING)]])
    assert (whole.counters["snapshots"], whole.counters["snapshots_differ"]) == (2, 0)


def test_one_state_an_interval_is_kept_over_a_join(tmp_path) -> None:
    """The later of two in one interval replaces the other, and has the sum of what was traded."""
    first = [(0, OPENING), (1000, [(SET, True, 999, 7)]), (1010, [(MATCH, True, 999, 2)])]
    second = [(1020, OPENING), (1030, [(MATCH, False, 1001, 5)]), (1200, [(SET, True, 999, 9)])]
    arrays, whole = join(tmp_path / "goes on", [first, second], state_interval_ms=100)
    assert (arrays["timestamps"] // 10**6).tolist() == [0, 1030, 1200]
    assert arrays["traded"].tolist() == [0, 1.5, 0]
    assert (whole.rows, whole.any_trade) == (3, True)
    arrays, _ = join(
        tmp_path / "gap", [first, second], state_interval_ms=100, max_gap_seconds=0.009
    )
    assert (arrays["timestamps"] // 10**6).tolist() == [0, 1000, 1010, 1020, 1030, 1200]
    assert arrays["segment_starts"].tolist() == [0, 1, 2, 3, 4, 5]
    early = [(730, OPENING), (830, [(SET, True, 999, 1)]), (930, [(SET, True, 999, 2)])]
    arrays, _ = join(tmp_path / "back", [first, early], state_interval_ms=100)
    assert (arrays["timestamps"] // 10**6).tolist() == [0, 1010]
    assert arrays["sizes"][:, 0].tolist() == [2.5, 1.0]
    assert arrays["traded"].tolist() == [0, -1]


def test_a_trade_after_the_last_state_counts_for_the_next_one(tmp_path) -> None:
    crossed = [(10, [(SET, True, 1001, 1)]), (20, [(MATCH, False, 1001, 3)])]
    arrays, whole = join(tmp_path, [[(0, OPENING), *crossed], [(25, OPENING[:1])], [(30, OPENING)]])
    assert arrays["traded"].tolist() == [0, 1.5]
    assert whole.crossed_ns == 10 * 10**6  # until the last message of the first part
    assert whole.any_trade


def test_files_that_open_with_no_snapshot_belong_to_the_part_before(tmp_path) -> None:
    days = tell_days(np.random.default_rng(0), 4, 10, False)
    days[2] = [row for row in days[2] if row[1] != SNAPSHOT]
    for feed in ("coinapi", "tardis"):
        write_days(tmp_path / feed, days, feed)
        files = data_parser.list_files(tmp_path / feed / "raw" / "A_B")
        assert find_parts(feed, files) == [files[:1], files[1:3], files[3:]]
    assert find_parts("npy", files) == [files]


# A stream, cut anywhere.


def tell_messages(rng: np.random.Generator, count: int) -> list[Message]:
    """Return a snapshot, then changes and trades around 1000 ticks.

    The book is never crossed, but sometimes thin or silent.
    """
    levels = [
        (SNAPSHOT, side, 1000 + (-i if side else i), 5)
        for side in (True, False)
        for i in range(1, 5)
    ]
    messages, time = [(START_MS, levels)], START_MS
    for _ in range(count):
        time += int(rng.choice([0, 1, 7, 61_000], p=[0.2, 0.4, 0.39, 0.01]))
        rows = []
        for _ in range(rng.integers(1, 4)):
            buy = bool(rng.integers(2))
            kind = MATCH if rng.random() < 0.2 else SET
            rows.append(
                (
                    kind,
                    buy,
                    1000 + (-1 if buy else 1) * int(rng.integers(1, 6)),
                    int(rng.integers(0, 9)),
                )
            )
        messages.append((time, rows))
    return messages


def cut(messages: list[Message], places: list[int]) -> tuple[list[list[Message]], list[int]]:
    """Cut before these messages; each part opens with the book at that time.

    Also return the places of the states that the openings add.
    """
    reference, parts, added = ReferenceBook(4), [[messages[0]]], []
    complete = reference.take_message(messages[0][0], [(*row, 0) for row in messages[0][1]])
    for index, (time, rows) in enumerate(messages[1:], 1):
        book = [
            (SNAPSHOT, side == 0, *level)
            for side in (0, 1)
            for level in reference.levels[side].items()
        ]
        if index in places and book:
            parts.append([(messages[index - 1][0], book)])
            if complete:
                added.append(len(reference.states) + len(added))
        parts[-1].append((time, rows))
        complete = reference.take_message(time, [(*row, 0) for row in rows])
    return parts, added


def test_a_stream_cut_anywhere_gives_its_states(tmp_path) -> None:
    """Parts that open with the running book give the states of the uncut stream."""
    folders = iter(tmp_path / str(number) for number in range(1000))
    parts_joined = 0

    @settings(
        max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
    )
    @given(
        seed=st.integers(0, 2**32),
        places=st.lists(st.integers(1, 200), min_size=1, max_size=6),
        interval_ms=st.sampled_from([0, 10, 100, 200_000]),
    )
    def check(seed, places, interval_ms) -> None:
        nonlocal parts_joined
        messages = tell_messages(np.random.default_rng(seed), 200)
        parts, added = cut(messages, places)
        parts_joined += len(parts) - 1
        limits = {"depth": 4, "state_interval_ms": interval_ms, "max_gap_seconds": 60}
        expected, uncut = join(next(folders), [messages], **limits)
        found, whole = join(next(folders), parts, **limits)
        starts = np.isin(np.arange(len(found["traded"])), found.pop("segment_starts"))
        if not interval_ms:
            found = {name: np.delete(array, added, axis=0) for name, array in found.items()}
            starts = np.delete(starts, added)
        np.testing.assert_array_equal(np.flatnonzero(starts), expected.pop("segment_starts"))
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        openings = len(parts) - 1
        more = {
            "messages": openings,
            "snapshots": openings,
            "states": len(added),
            "thin_states": openings - len(added),
        }
        assert whole.counters == {
            name: uncut.counters[name] + more.get(name, 0) for name in COUNTERS
        }
        assert whole.any_trade == uncut.any_trade

    check()
    assert parts_joined > 100


# Through the script.


def run_parser(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return shell("data_parser.py", f"--data_dir={folder}", "--depth=4", *words)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in (folder / "book_states").rglob("*.*")
    }


@pytest.fixture
def two_pairs(tmp_path) -> Path:
    """Three days of A_B, and of C_D, whose second day is cut off."""
    days = tell_days(np.random.default_rng(1), 3, 1500, False)
    write_days(tmp_path, days, "coinapi")
    (tmp_path / "raw" / "C_D").mkdir()
    for file in sorted((tmp_path / "raw" / "A_B").iterdir()):
        (tmp_path / "raw" / "C_D" / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    cut = tmp_path / "raw" / "C_D" / "01.csv.gz"
    cut.write_bytes(cut.read_bytes()[:-200])
    return tmp_path


def test_worker_processes_give_the_same_bytes_and_keep_what_a_bad_day_would_replace(
    two_pairs,
) -> None:
    alone = run_parser(two_pairs, "--workers=1")
    assert alone.returncode == 2
    expected = contents(two_pairs)
    assert {name.split("/")[1] for name in expected} == {"A_B"}
    old = two_pairs / "book_states" / "C_D" / "old.npy"
    old.parent.mkdir()
    old.write_bytes(b"kept")
    shutil.rmtree(two_pairs / "book_states" / "A_B")
    done = run_parser(two_pairs, "--workers=2")
    assert done.returncode == 2
    assert "3 parts, each opens with a snapshot" in done.stdout
    assert "C_D" in done.stderr and "01.csv.gz, after row" in done.stderr
    assert contents(two_pairs) == expected | {"book_states/C_D/old.npy": b"kept"}
    assert sorted(path.name for path in (two_pairs / "book_states").iterdir()) == ["A_B", "C_D"]


def test_dask_workers_give_the_same_bytes(two_pairs) -> None:
    distributed = pytest.importorskip("distributed")
    shutil.rmtree(two_pairs / "raw" / "C_D")
    assert run_parser(two_pairs, "--workers=1").returncode == 0
    expected = contents(two_pairs)
    shutil.rmtree(two_pairs / "book_states")
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster:
        done = run_parser(two_pairs, f"--scheduler={cluster.scheduler_address}")
    assert done.returncode == 0, done.stderr
    assert contents(two_pairs) == expected


def test_a_disk_that_cannot_hold_the_states_is_named_before_it_is_full(
    tmp_path, monkeypatch
) -> None:
    write_days(tmp_path, tell_days(np.random.default_rng(0), 2, 300, False), "coinapi")
    free = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(data_parser.shutil, "disk_usage", lambda folder: free)
    with ThreadPoolExecutor(1) as executor:
        for run_by in (None, executor):
            line = parse(tmp_path, run_by, depth=4)
            assert "set --state_interval_ms=100" in line
            assert "has 10.0 kB" in line
            assert not list((tmp_path / "book_states").iterdir())
    monkeypatch.setattr(data_parser.shutil, "disk_usage", lambda folder: free._replace(free=10**9))
    assert "meta.json" in parse(tmp_path, None, depth=4)
