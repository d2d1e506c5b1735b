"""data_parser.py from the shell: what it writes, what it refuses, and what survives a kill."""

import gzip
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import ROOT, shell

import data_parser
from lob.book import units
from lob.book.states import open_book
from lob.config import InputError
from lob.feeds.batch import Batch

SAMPLE = ROOT / "training_data" / "raw" / "BTC_USD" / "20260502.csv.gz"
HEADER = "time_exchange;time_coinapi;update_type;is_buy;entry_px;entry_sx;order_id\n"
OPENING = "".join(
    f"2026-05-02T00:00:00.0000000;x;SNAPSHOT;{buy};{100 + sign * (level + 1)}.50;{level + 1}.25;"
    f"{buy * 10 + level}\n"
    for buy, sign in ((0, 1), (1, -1))
    for level in range(3)
)


def parse(data_dir: Path, *words: str) -> subprocess.CompletedProcess:
    return shell("data_parser.py", f"--data_dir={data_dir}", "--workers=1", *words)


def put(data_dir: Path, text: str | bytes, name: str = "20260502.csv", pair: str = "A_B") -> Path:
    file = data_dir / "raw" / pair / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def row(clock: str, kind: str, buy: int, price: str, size: str, order: int) -> str:
    return f"2026-05-02T00:00:{clock};x;{kind};{buy};{price};{size};{order}\n"


def cut_of_sample(rows: int) -> bytes:
    return b"".join(gzip.open(SAMPLE).readlines()[: rows + 1])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def refused(data_dir: Path, *words: str) -> str:
    """Run, expect one line and status 2 and no output; return the line."""
    done = parse(data_dir, *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    states = data_dir / "book_states"
    assert not states.exists() or not list(states.iterdir())
    return done.stderr


def test_order_by_order_file_with_two_decimals(tmp_path):
    more = row("01.0", "SET", 1, "99.50", "7", 10) + row("02.0", "DELETE", 0, "101.50", "1.25", 0)
    put(tmp_path, HEADER + OPENING + more)
    assert parse(tmp_path, "--depth=4").returncode == 0
    book = open_book(tmp_path / "book_states" / "A_B")
    assert (book.tick_size, book.depth, book.rows) == (0.1, 4, 3)
    assert book.price_ticks.tolist()[0] == [985, 995, 1015, 1025]
    assert book.price_ticks.tolist()[2] == [985, 995, 1025, 1035]
    assert book.sizes.tolist()[1] == [2.25, 7.0, 1.25, 2.25]
    assert book.timestamps[0] == np.datetime64("2026-05-02T00:00:00", "ns").astype(np.int64)
    assert book.top_of_book.tolist()[2] == [995, 1025]
    assert book.traded is None


@pytest.mark.parametrize(
    "variant",
    [
        "gzip",
        "zstd",
        "comma",
        "time of day",
        "by level",
        "no ids",
        "uuid",
        "quoted",
        "words",
        "mark",
    ],
)
def test_variants_of_the_layout_give_the_same_book(tmp_path, variant):
    text, name = HEADER + OPENING + row("01.5", "SET", 1, "98.50", "4", 11), "20260502.csv"
    put(tmp_path / "plain", text)
    data: str | bytes = text
    if variant == "gzip":
        data = gzip.compress(text.encode())
    elif variant == "zstd":
        data = zstandard.compress(text.encode())
    elif variant == "comma":
        data = text.replace(";", ",")
    elif variant == "time of day":
        data = text.replace("2026-05-02T", "")
    elif variant == "by level":
        data = "\n".join(line.rpartition(";")[0] for line in text.splitlines()) + "\n"
    elif variant == "no ids":
        data = HEADER + "".join(f"{line.rpartition(';')[0]};\n" for line in text.splitlines()[1:])
    elif variant == "uuid":
        lines = [line.rpartition(";") for line in text.splitlines()[1:]]
        data = HEADER + "".join(
            f"{head};{int(order):08d}-aaaa-bbbb-cccc-dddddddddddd\n" for head, _, order in lines
        )
    elif variant == "quoted":
        data = (
            "\n".join(
                ";".join(f'"{cell}"' for cell in line.split(";")) for line in text.splitlines()
            )
            + "\n"
        )
    elif variant == "words":
        data = text.replace("SNAPSHOT;1", "SNAPSHOT;true").replace("SNAPSHOT;0", "SNAPSHOT;false")
    elif variant == "mark":
        data = f"\ufeff{text}"
    put(tmp_path / "other", data, name)
    for folder in ("plain", "other"):
        done = parse(tmp_path / folder, "--depth=4")
        assert done.returncode == 0, done.stderr
    plain, other = (
        contents(tmp_path / folder / "book_states" / "A_B") for folder in ("plain", "other")
    )
    for file in plain.keys() - {"meta.json"}:
        assert plain[file] == other[file], file


def test_an_opening_snapshot_of_the_day_before_is_stamped_so(tmp_path):
    text = (HEADER + OPENING).replace("2026-05-02T00:00:00.0000000", "23:59:59.9000000")
    put(tmp_path, text + row("01.5", "SET", 1, "98.50", "4", 11).replace("2026-05-02T", ""))
    assert parse(tmp_path, "--depth=4").returncode == 0
    times = open_book(tmp_path / "book_states" / "A_B").timestamps
    assert np.diff(times).tolist() == [1_600_000_000]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (HEADER, "holds no rows"),
        ("a;b;c\n1;2;3\n", "is of no known feed"),
        (HEADER.replace("entry_px", "px") + OPENING, "lacks entry_px"),
        (
            HEADER + OPENING + row("01.0", "FROB", 1, "99", "1", 7),
            "row 7: unknown update_type 'FROB'",
        ),
        (HEADER + OPENING + row("01.0", "ADD", 7, "99", "1", 7), "row 7: unknown is_buy '7'"),
        (
            HEADER + OPENING + row("01.0", "ADD", 1, "99", "abc", 7),
            "row 7: entry_sx 'abc' is not a number",
        ),
        (
            HEADER + OPENING + row("01.0", "ADD", 1, "99", "-1", 7),
            "row 7: price 99.0 and size -1.0",
        ),
        (
            HEADER + OPENING + row("01.0", "ADD", 1, "99", "nan", 7),
            "row 7: price 99.0 and size nan",
        ),
        (
            HEADER
            + OPENING
            + row("05.0", "ADD", 1, "9", "1", 7)
            + row("03.0", "ADD", 1, "9", "1", 8),
            "row 8: time",
        ),
        (
            HEADER + OPENING + "half a row\n",
            "columns, the header 7: 'half a row': mend or drop the row",
        ),
        (
            HEADER + OPENING + row("01.0", "ADD", 1, "99", "", 7),
            "row 7: entry_sx '' is not a number",
        ),
        (
            HEADER
            + OPENING
            + row("01.0", "ADD", 1, "99", "1", 7).replace("2026-05-02T00:00:01.0", ""),
            "row 7: time_exchange '' is not a time",
        ),
        (
            HEADER + OPENING + row("77.0", "ADD", 1, "99", "1", 7),
            "row 7: time_exchange '2026-05-02T00:00:77.0' is not a time such as "
            "2026-05-02T12:30:00.5: mend",
        ),
        (
            HEADER + OPENING + row("01.0", "ADD", 1, "99", "1", 7).replace(";7\n", ";\n"),
            "row 7: the order_id is missing, other rows have one: mend",
        ),
        ((HEADER + OPENING).replace(";", "\t"), "name the columns so, with ; or , between them"),
    ],
)
def test_bad_files_get_one_line_and_leave_nothing(tmp_path, text, said):
    file = put(tmp_path, text)
    line = refused(tmp_path, "--depth=4")
    assert said in line
    assert str(file.name) in line


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_files_with_and_without_order_ids_are_not_mixed(tmp_path, column, workers):
    put(tmp_path, HEADER + OPENING)
    lines = (HEADER + OPENING).replace("2026-05-02", "2026-05-03").splitlines()
    text = "\n".join(line.rpartition(";")[0] + ";" * column for line in lines)
    put(tmp_path, text.replace(";\n", ";order_id\n", 1), "20260503.csv")
    line = refused(tmp_path, "--depth=4", f"--workers={workers}")
    assert "20260502.csv has order ids" in line and "20260503.csv has none" in line


def test_small_steps_back_are_clamped_and_counted(tmp_path):
    put(
        tmp_path,
        HEADER
        + OPENING
        + row("05.0", "ADD", 1, "99.5", "1", 7)
        + row("04.5", "ADD", 1, "99.5", "1", 8),
    )
    assert parse(tmp_path, "--depth=4").returncode == 0
    book = open_book(tmp_path / "book_states" / "A_B")
    assert book.meta["counters"]["clock_steps_back"] == 1
    assert np.diff(book.timestamps).tolist() == [5 * 10**9, 0]


def test_missing_folders_and_books_too_thin_are_named(tmp_path):
    assert f"put recordings into {tmp_path}/raw/<PAIR>/, or set --data_dir" in refused(tmp_path)
    (tmp_path / "raw" / "A_B").mkdir(parents=True)
    (tmp_path / "raw" / "A_B" / "updates.txt").write_text(HEADER + OPENING)
    assert "holds no files (but notes such as .md)" in refused(tmp_path)
    put(tmp_path, HEADER + OPENING)
    line = refused(tmp_path)
    assert (
        "no complete state of depth 96" in line
        and "states with fewer than 48 levels on a side" in line
    )
    assert line.endswith("there were at most 3 on both sides, set --depth=6\n")
    assert parse(tmp_path, "--depth=6").returncode == 0
    shutil.rmtree(tmp_path / "book_states")
    assert "did you mean 'A_B'" in refused(tmp_path, "--pairs=['A_C']")


def test_the_depth_that_is_named_is_one_of_most_messages(tmp_path):
    """Two levels a side at first, three at last: a depth of 6 would leave one state of 31."""
    rows = "".join(row(f"{1 + n:02}.0", "SET", 1, "99.5", f"{n + 2}", 10) for n in range(29))
    opening = OPENING.splitlines(keepends=True)
    late = row("31.0", "ADD", 0, "103.5", "1", 2) + row("31.0", "ADD", 1, "97.5", "1", 12)
    text = HEADER + "".join(opening[:2] + opening[3:5]) + rows + late
    put(tmp_path, text)
    line = refused(tmp_path, "--depth=8")
    assert line.endswith("at most 3 on both sides, at least 2 after most messages, set --depth=4\n")
    assert "1 states of 6 levels" in (said := parse(tmp_path, "--depth=6").stdout)
    assert "96.8 % of all messages): left out; --depth=4 keeps most of them" in said
    assert "31 states of 4 levels" in (said := parse(tmp_path, "--depth=4").stdout)
    assert "31  messages after which the book was complete (100 % of all messages)" in said


@pytest.mark.parametrize(
    "words",
    [
        ("--depth=5",),
        ("--subsample=2", "--state_interval_ms=100"),
        ("--tick_size=-1.0",),
        ("--feed=nonesuch",),
        ("--subsample=0",),
        ("--max_gap_seconds=1e999",),
    ],
)
def test_impossible_settings_are_refused_by_name(tmp_path, words):
    assert words[0].split("=")[0].removeprefix("--") in refused(tmp_path, *words)


def test_a_finer_price_than_the_tick_names_row_and_remedy(tmp_path):
    put(tmp_path, HEADER + OPENING + row("01.0", "ADD", 1, "99.25", "1", 7))
    line = refused(tmp_path, "--depth=4", "--tick_size=0.5")
    assert (
        "row 7: price 99.25 is no exact multiple of 0.5, the tick size: set --tick_size=0.01\n"
        in line
    )


def test_a_finer_size_than_the_first_million_rows_needed_names_its_remedy():
    batch = one_batch([1.0, 2.0], [1.0, 2.5])
    with pytest.raises(
        InputError,
        match=r"row 2: size 2.5 is no exact multiple of 1, .* million .* round the sizes",
    ):
        units.to_lots(batch, 1.0)


@pytest.mark.parametrize(
    ("prices", "tick"),
    [
        ([0.5123, 0.4999, 0.501], 1e-4),
        ([50.0, 99.0], 1.0),
        ([1.2e-8, 3e-8], 1e-9),
        ([999.99, 1000.0, 1000.01], 0.01),
        ([2e6, 3e6], 1e6),
        ([0.1 + 0.2, 60000.0], 0.1),
    ],
)
def test_the_tick_found_divides_every_price(prices, tick):
    assert units.largest_power_of_ten([np.array(prices)], "prices", "") == tick


def one_batch(prices: list[float], sizes: list[float]) -> Batch:
    return Batch(
        *[np.zeros(len(prices))] * 4, np.array(prices), np.array(sizes), None, "file", 1, 0
    )


@pytest.mark.parametrize("tick", [0.3, 0.4, 0.03, 2.5, 1 / 3, 0.25, 1e-10])
def test_a_tick_may_be_any_number(tick):
    prices = np.array([1.0, 7.0, 1000.0, 123_457.0]) * tick
    assert units.to_units(prices, tick, clip=False)[0].tolist() == [1, 7, 1000, 123_457]
    with pytest.raises(InputError, match=r"row 2: price .* is no exact multiple"):
        units.to_ticks(one_batch([tick, 10.001 * tick], [0, 0]), tick)


def test_no_size_becomes_zero_and_later_ones_may_be_a_thousand_times_as_large():
    assert units.infer_units(iter([one_batch([1.0, 2.0], [2.0, 1e-11])]), None)[2] == 1e-11
    with pytest.raises(
        InputError, match=r"first million sizes are multiples of no power of ten .*: round them"
    ):
        units.infer_units(iter([one_batch([1.0, 2.0], [1 / 3, 1.0])]), None)
    _, _, lot = units.infer_units(iter([one_batch([1.0, 2.0], [5e7, 0.01])]), None)
    assert units.to_units(np.array([5e10, 0.01]), lot, clip=False)[0].tolist() == [
        5 * 10**15,
        1000,
    ]


def test_a_truncated_gzip_among_good_files_keeps_the_old_output_and_the_other_pairs(tmp_path):
    put(tmp_path, cut_of_sample(20_000), "20260502.csv")
    assert parse(tmp_path).returncode == 0
    before = contents(tmp_path / "book_states" / "A_B")
    put(tmp_path, SAMPLE.read_bytes()[:1_000_000], "20260503.csv.gz")
    put(tmp_path, cut_of_sample(20_000), pair="C_D")
    done = parse(tmp_path)
    assert done.returncode == 2
    assert "20260503.csv.gz, after row" in done.stderr
    assert done.stderr.count("\n") == 2 and "A_B: " in done.stderr.splitlines()[0]
    assert "1 of 2 pairs failed" in done.stderr.splitlines()[1]
    assert contents(tmp_path / "book_states" / "A_B") == before
    assert open_book(tmp_path / "book_states" / "C_D").rows > 1000


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_keeps_the_old_output_and_the_other_pairs(tmp_path, workers):
    """A file may grow to 50 kB here: A_B's states are larger, C_D's are not."""
    put(tmp_path, cut_of_sample(8_000))
    assert parse(tmp_path).returncode == 0
    before = contents(tmp_path / "book_states" / "A_B")
    put(tmp_path, cut_of_sample(20_000))
    put(tmp_path, HEADER + OPENING.replace("100", "99") * 2, pair="C_D")
    command = [
        sys.executable,
        "data_parser.py",
        f"--data_dir={tmp_path}",
        f"--workers={workers}",
        "--depth=4",
    ]
    # Coverage would write a file that grows beyond the limit too.
    uncovered = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit_files,
        env=uncovered,
    )
    assert done.returncode == 1
    assert "A_B: File too large" in done.stderr
    assert done.stderr.count("\n") == 2
    assert contents(tmp_path / "book_states" / "A_B") == before
    assert open_book(tmp_path / "book_states" / "C_D").rows == 1
    assert sorted(path.name for path in (tmp_path / "book_states").iterdir()) == ["A_B", "C_D"]


def test_twice_the_same_bytes_also_by_worker_processes(tmp_path):
    for pair in ("A_B", "C_D"):
        put(tmp_path, cut_of_sample(30_000), pair=pair)
    assert parse(tmp_path).returncode == 0
    first = {pair: contents(tmp_path / "book_states" / pair) for pair in ("A_B", "C_D")}
    shutil.rmtree(tmp_path / "book_states")
    assert parse(tmp_path, "--workers=2").returncode == 0
    assert first == {pair: contents(tmp_path / "book_states" / pair) for pair in ("A_B", "C_D")}


def test_killed_at_any_moment_it_leaves_the_old_output_and_the_next_run_finishes(tmp_path):
    put(tmp_path, cut_of_sample(20_000))
    assert parse(tmp_path, "--depth=4").returncode == 0
    book = tmp_path / "book_states" / "A_B"
    before = contents(book)
    put(tmp_path, SAMPLE.read_bytes() * 4, "20260502.csv.gz")
    (tmp_path / "raw" / "A_B" / "20260502.csv").unlink()
    killed = 0
    for delay in (0.3, 0.8, 1.2, 1.6, 2.0):
        command = [sys.executable, "data_parser.py", f"--data_dir={tmp_path}", "--workers=1"]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed += 1
            assert contents(book) == before
    assert killed
    put(tmp_path, cut_of_sample(30_000), "20260502.csv")
    (tmp_path / "raw" / "A_B" / "20260502.csv.gz").unlink()
    assert parse(tmp_path).returncode == 0
    assert open_book(book).depth == 96
    assert [path.name for path in (tmp_path / "book_states").iterdir()] == ["A_B"]


def test_meta_names_sources_and_counts(tmp_path):
    put(tmp_path, cut_of_sample(20_000))
    done = parse(tmp_path, "--state_interval_ms=1000")
    meta = json.loads((tmp_path / "book_states" / "A_B" / "meta.json").read_text())
    cut = cut_of_sample(20_000)
    digest = hashlib.sha256(cut).hexdigest()
    assert meta["sources"] == [{"name": "20260502.csv", "bytes": len(cut), "sha256": digest}]
    assert meta["updates"] == 20_000
    assert meta["counters"]["snapshots"] == 1
    assert f"{meta['counters']['messages']:,}" in done.stdout
    seconds = open_book(tmp_path / "book_states" / "A_B").timestamps // 10**9
    assert (np.diff(seconds) > 0).all()


def test_a_book_without_an_opening_snapshot_and_its_gaps_are_told(tmp_path):
    """The rest of a file whose SNAPSHOT rows are gone, with a silence of two minutes."""
    levels = OPENING.replace("SNAPSHOT", "ADD")
    text = (
        HEADER
        + levels
        + "".join(row(f"{s}.0", "SET", 1, "99.50", f"{s}", 10) for s in (10, 11, 12))
    )
    put(tmp_path, text + row("10.0", "SET", 1, "99.50", "9", 10).replace("00:00:", "00:02:"))
    said = parse(tmp_path, "--depth=4").stdout
    assert " 0  snapshots: the book began empty, levels not yet updated are missing" in said
    assert " 2  runs of states without a gap, the longest of 4 states" in said
    meta = open_book(tmp_path / "book_states" / "A_B").meta
    assert (meta["segments"], meta["longest_segment"]) == (2, 4)
    put(tmp_path, HEADER + OPENING)
    said = parse(tmp_path, "--depth=4").stdout
    assert (
        "began empty" not in said
        and " 1  runs of states without a gap, the longest of 1 states" in said
    )
    assert " 0 MB" not in said and "about" not in said  # nothing is left to forecast


def test_files_in_subfolders_are_read_in_path_order(tmp_path):
    clocks = OPENING.replace("2026-05-02T", "")
    put(tmp_path, HEADER + clocks, "2026/20260502/full.csv")
    put(tmp_path, HEADER + clocks, "2026/20260503/full.csv")
    put(tmp_path, "notes", "2026/.hidden/full.csv")
    assert parse(tmp_path, "--depth=4").returncode == 0
    book = open_book(tmp_path / "book_states" / "A_B")
    assert book.timestamps.astype("M8[ns]").astype("M8[D]").astype(str).tolist() == [
        "2026-05-02",
        "2026-05-03",
    ]
    assert [source["name"] for source in book.meta["sources"]] == [
        "2026/20260502/full.csv",
        "2026/20260503/full.csv",
    ]
    assert parse(tmp_path, "--depth=4", "--workers=2").stdout.startswith("A_B: about 2 states, ")


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:1"])
def test_a_scheduler_that_does_not_answer_is_told_in_one_line(tmp_path, address):
    dask = pytest.importorskip("distributed.client").dask
    put(tmp_path, HEADER + OPENING)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(InputError) as refused,
    ):
        data_parser.make_executor({"scheduler": address}, 1)
    assert f"scheduler = {address!r} does not answer" in str(refused.value) and "\n" not in str(
        refused.value
    )
    assert "start it, or leave scheduler None" in str(refused.value)


@pytest.mark.parametrize(
    ("size", "text"), [(3.1e9, "3.1 GB"), (131.96e6, "132.0 MB"), (2340, "2.3 kB")]
)
def test_sizes_are_told_in_a_fitting_unit(size, text):
    assert data_parser.format_bytes(size) == text
