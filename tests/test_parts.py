"""Files of one pair that open with a snapshot, parsed side by side: the same bytes as one stream gives.

By threads here for speed; by worker processes and by Dask workers through the script itself.
"""

import gzip
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from reference_book import ReferenceBook

import data_parser
from lob.config import InputError
from lob.feeds.batch import MATCH, SET, SNAPSHOT

COINAPI_HEADER = "time_exchange;time_coinapi;update_type;is_buy;entry_px;entry_sx\n"
TARDIS_HEADER = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"
NAMES = {SNAPSHOT: "SNAPSHOT", SET: "SET", MATCH: "MATCH"}
START_MS = 1_723_161_600_000
Row = tuple[int, int, bool, int, int]  # time in ms, type, is_buy, ticks, lots


def tell_days(rng: np.random.Generator, days: int, messages: int, trades: bool) -> list[list[Row]]:
    """Days of a book around 1000 ticks. Each opens with a snapshot: mostly the book as it is, stamped near its end."""
    reference = ReferenceBook(4)
    time, told = START_MS, []
    for day in range(days):
        levels = [(side, ticks, lots) for side in (0, 1) for ticks, lots in reference.levels[side].items()]
        if day == 0 or rng.random() < 0.2:  # another book
            levels = [
                (side, 1000 + (i if side else -i), int(rng.integers(1, 9))) for side in (0, 1) for i in range(1, 9)
            ]
        opening = time + int(rng.choice([-30, -3, 0, 1, 40, 90_000], p=[0.05, 0.15, 0.03, 0.27, 0.2, 0.3]))
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
                text.append(f"x,BTCUSDT,{time_ms}000,{time_ms}999,{snapshot},{side},{ticks / 10},{lots / 1000}\n")
        (raw / f"{day:02}.csv").write_text("".join(text))


def parse(folder: Path, executor: ThreadPoolExecutor | None, **settings) -> dict[str, bytes] | str:
    """The bytes of every file written, or the line that the user reads."""
    try:
        data_parser.parse_pair(
            {**data_parser.config, "data_dir": str(folder), "depth": 4, "tick_size": 0.1, **settings}, "A_B", executor
        )
    except InputError as error:
        return str(error)
    written = {file.name: file.read_bytes() for file in sorted((folder / "book_states" / "A_B").iterdir())}
    assert [path.name for path in (folder / "book_states").iterdir()] == ["A_B"]
    return written


@pytest.mark.parametrize("interval_ms", [0, 10, 100])
@pytest.mark.parametrize(("feed", "trades"), [("coinapi", False), ("coinapi", True), ("tardis", False)])
def test_days_side_by_side_give_the_bytes_of_one_stream(tmp_path, monkeypatch, feed, trades, interval_ms) -> None:
    joined: list[bool] = []
    parse_apart = data_parser.parse_apart

    def watched(*words):
        parsed = parse_apart(*words)
        joined.append(parsed is not None)
        return parsed

    monkeypatch.setattr(data_parser, "parse_apart", watched)
    rng = np.random.default_rng(interval_ms)
    with ThreadPoolExecutor(2) as executor:
        for story in range(12):
            folder = tmp_path / str(story)
            write_days(folder, tell_days(rng, 3, 60, trades), feed)
            settings = {"state_interval_ms": interval_ms, "max_crossed_ms": 20, "max_clock_step_ms": 50}
            assert parse(folder, executor, **settings) == parse(folder, None, **settings)
    assert len(joined) == 12
    assert any(joined)


def test_a_day_that_opens_at_the_local_time_of_the_row_before_it_begins_a_message(tmp_path) -> None:
    levels = [(side, 1000 + (-i if side else i), 5) for side in (True, False) for i in range(1, 5)]
    days = [[(day + time, kind, *level) for time, kind in ((0, SNAPSHOT), (9, SET)) for level in levels]
            for day in (START_MS, START_MS + 20)]  # fmt: skip
    write_days(tmp_path, days, "tardis")
    second = tmp_path / "raw" / "A_B" / "01.csv"
    second.write_text(second.read_text().replace(f"{START_MS + 20}999", f"{START_MS + 9}999"))
    with ThreadPoolExecutor(2) as executor:
        apart = parse(tmp_path, executor)
    assert apart == parse(tmp_path, None)
    assert json.loads(apart["meta.json"])["rows"] == 4


def run_parser(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "data_parser.py", f"--data_dir={folder}", "--depth=4", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in (folder / "book_states").rglob("*.*")}


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


def test_worker_processes_give_the_same_bytes_and_keep_what_a_bad_day_would_replace(two_pairs) -> None:
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
    assert "3 files apart" in done.stdout
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


def test_a_disk_that_cannot_hold_the_states_is_named_before_it_is_full(tmp_path, monkeypatch) -> None:
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
