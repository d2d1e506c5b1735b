"""Times, dates and order ids: whatever form a file gives them in, they are the same numbers."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_feeds import START_MS, parse, put, refuse, tell_states, tell_story, write_coinapi

import data_parser
from lob.config import InputError
from lob.feeds import coinapi
from lob.feeds.batch import FEEDS, NO_TIME, SET, SNAPSHOT, to_ns
from lob.feeds.path_dates import find_date
from lob.feeds.recordings import natural_key, read_csv

HEADER = "time_exchange;update_type;is_buy;entry_px;entry_sx;order_id\n"


def read_times(file: Path, feed: str = "coinapi") -> list[str]:
    batches = FEEDS[feed].read([file])
    times = np.concatenate([batch.time_ns for batch in batches])
    return times.astype("M8[ns]").astype("M8[ms]").astype(str).tolist()


def write_clocks(folder: Path, path: str, clocks: list[str], opening: int = 0) -> Path:
    """Write rows with these times of day; the first `opening` are a snapshot."""
    kinds = ["SNAPSHOT"] * opening + ["ADD"] * (len(clocks) - opening)
    rows = [
        f"{clock};{kind};1;{index + 1};1;{index}\n"
        for index, (clock, kind) in enumerate(zip(clocks, kinds, strict=True))
    ]
    return put(folder, path, (HEADER + "".join(rows)).encode())


# Units of time


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint64])
def test_each_time_tells_its_unit_also_among_others(dtype) -> None:
    """Against datetime: times of 1975 to 2200, each in one of four units, in one array."""
    rng = np.random.default_rng(0)
    seconds = rng.integers(5 * 365 * 86_400, 230 * 365 * 86_400, 1000)
    units = rng.integers(0, 4, 1000)
    times = seconds * np.array([1, 10**3, 10**6, 10**9])[units]
    rounding = 0 if dtype != np.float64 else 512
    assert np.abs(to_ns(times.astype(dtype)) - seconds * 10**9).max() <= rounding
    one_unit = times[units == 2].astype(dtype)
    assert (to_ns(one_unit) == seconds[units == 2] * 10**9).all()
    for time in (datetime(1973, 4, 1, tzinfo=UTC), datetime(2261, 1, 1, tzinfo=UTC)):
        micros = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        found = to_ns(np.array([micros // 10**6, micros // 1000, micros, micros * 1000]))
        assert (found == micros * 1000).all()


def test_a_number_that_is_no_time_since_the_epoch_is_refused_by_row(tmp_path) -> None:
    assert to_ns(np.array([20240601123000, START_MS])).tolist() == [NO_TIME, START_MS * 10**6]
    story = tell_story(5)
    text = write_coinapi(story).decode().splitlines()
    text[60] = "20240601123000" + text[60][text[60].index(";") :]
    put(tmp_path, "1.csv", "\n".join(text).encode())
    assert "row 60: time_exchange '20240601123000' is not a time" in refuse(tmp_path)
    text[1:] = ["20240601123000" + line[line.index(";") :] for line in text[1:3]]
    put(tmp_path, "1.csv", "\n".join(text).encode())
    assert "row 1: its time does not lie between the years 1970 and 2262" in refuse(tmp_path)


@pytest.mark.parametrize(
    "write_time",
    [
        lambda ms, row: f"{ms / 1000:.3f}",
        lambda ms, row: str(ms),
        lambda ms, row: f"{ms}000000",
        lambda ms, row: [f"{ms}", f"{ms}000", f"{ms // 1000}.{ms % 1000:03}"][row % 3],
        lambda ms, row: f"{np.datetime64(ms, 'ms')}+00:00",
        lambda ms, row: f"{np.datetime64(ms + 8 * 3_600_000, 'ms')}+08:00",
        lambda ms, row: f"{np.datetime64(ms - 5_400_000, 'ms')}-0130",
        lambda ms, row: f"{np.datetime64(ms, 'ms')}".replace("T", " ") + "Z",
        lambda ms, row: f"{np.datetime64(ms, 'ms')}{['', 'Z', '+00:00'][row % 3]}",
        lambda ms, row: str(ms) if row > 70 else f"{np.datetime64(ms, 'ms')}",
    ],
)
def test_numbers_and_offsets_are_read_as_utc_is(tmp_path, write_time) -> None:
    story = tell_story(60)
    lines = write_coinapi(story).decode().splitlines()
    for row, line in enumerate(lines[1:], 1):
        clock, _, rest = line.partition(";")
        ms = int(np.datetime64(clock, "ms").astype(np.int64))
        lines[row] = f"{write_time(ms, row)};{rest}"
    put(tmp_path, "1.csv", "\n".join(lines).encode())
    assert parse(tmp_path) == tell_states(story)


def test_tardis_times_in_any_unit(tmp_path) -> None:
    header = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"
    for unit in (10**0, 10**3, 10**6):
        rows = [f"x,AB,{START_MS * unit},{START_MS * unit + 1},true,bid,1,1\n"]
        rows.append(f"x,AB,{START_MS * 10**6},{START_MS * 10**6 + 1},false,bid,1,1\n")
        file = put(tmp_path, f"{unit}.csv", (header + "".join(rows)).encode())
        assert read_times(file, "tardis") == [str(np.datetime64(START_MS, "ms"))] * 2


# Dates in paths

COINAPI = "T-LIMITBOOK_FULL/D-{}/E-X/IDDI-20110415+SC-X_SPOT_A_B+S-AB.csv.gz"


@pytest.mark.parametrize(
    ("path", "date", "hour"),
    [
        (COINAPI.format("20240601"), "2024-06-01", None),
        (COINAPI.format("2024060113"), "2024-06-01", 13),
        (
            "D-20240601/E-B/IDDI-1+SC-B_FTS_BTC_USDT_20240628+S-BTCUSDT_240628.csv",
            "2024-06-01",
            None,
        ),
        ("D-20240601/BTC_USDT_20240628.csv", "2024-06-01", None),
        ("20240601/BTC_USDT_20240628.csv", "2024-06-01", None),
        ("2024/20240601/full.csv", "2024-06-01", None),
        ("BTCUSDT-2024-06-01.csv", "2024-06-01", None),
        ("book_20240601.csv", "2024-06-01", None),
        ("2024-6-1.csv", "2024-06-01", None),
        ("D-20240601/20240601.csv", "2024-06-01", None),
    ],
)
def test_the_date_of_a_path(path, date, hour) -> None:
    for above in ("", "data/raw/A_B/", "/x/20200101/raw/A_B/", "raw/BTC_USDT_20240628/"):
        found, found_hour = find_date(Path(above) / path)
        assert str(np.datetime64(found, "ns").astype("M8[D]")) == date
        assert found_hour == hour
    assert find_date(Path("20200101/raw/A_B/full.csv"))[0] == find_date(Path("20200101.csv"))[0]


@pytest.mark.parametrize(
    "path",
    [
        "D-20240601/D-20240602/full.csv",
        "D-20240601/20240602.csv",
        "20240601/20240602.csv",
        "20240601/book-20240602.csv",
        "D-2024060112/D-2024060113.csv",
    ],
)
def test_two_dates_in_a_path_are_an_error_until_one_is_left(tmp_path, path) -> None:
    file = write_clocks(tmp_path, path, ["12:00:00"])
    with pytest.raises(InputError, match=r"holds several dates \(2024-06-01.*\): leave one, as D-"):
        find_date(file)
    assert find_date(file.parents[1] / "D-20240601" / "full.csv")


@pytest.mark.parametrize(
    "name", ["BTC_USDT_20240628.csv", "IDDI-20110415+SC-A.csv", "1234567890.csv"]
)
def test_a_path_without_a_date_is_refused_and_the_remedy_dates_it(tmp_path, name) -> None:
    clocks = ["12:00:00.5", "12:00:01"]
    file = write_clocks(tmp_path, name, clocks)
    with pytest.raises(InputError, match=r"the path holds no date.*: put D-YYYYMMDD into the name"):
        read_times(file)
    file = write_clocks(tmp_path, f"D-20240601/{name}", clocks)
    assert read_times(file) == ["2024-06-01T12:00:00.500", "2024-06-01T12:00:01.000"]


# Times of day

LATE, EARLY = "23:59:59.990", "00:00:00.010"


@pytest.mark.parametrize(
    ("path", "clocks", "opening", "days"),
    [
        ("20240601.csv", ["12:00:00", LATE, EARLY, "00:00:01"], 0, [1, 1, 2, 2]),
        ("20240601.csv", [LATE, LATE, EARLY, "18:00:00"], 2, [0, 0, 1, 1]),
        ("20240601.csv", [EARLY, LATE, EARLY, "23:00:00", LATE, EARLY], 0, [1, 0, 1, 1, 1, 2]),
        ("20240601.csv", ["12:00:00.5", "12:00:00.2", "23:00:00"], 1, [1, 1, 1]),
        ("20240601.csv", ["23:00:00", LATE, EARLY, LATE, EARLY], 0, [1, 1, 2, 1, 2]),
        ("20240601.csv", ["01:00:00", "23:30:00"], 0, [1, 1]),
        ("20240601.csv", [LATE, LATE], 2, [1, 1]),
        ("D-2024060123/full.csv", ["22:59:59.9", "23:30:00", LATE, EARLY], 0, [1, 1, 1, 2]),
        ("D-2024060100/full.csv", [LATE, EARLY, "00:30:00", "01:00:00.1"], 0, [0, 1, 1, 1]),
    ],
)
def test_rows_past_midnight_are_the_next_days(
    tmp_path, monkeypatch, path, clocks, opening, days
) -> None:
    def read_row_by_row(*args):
        for row, columns, file_bytes in read_csv(*args):
            for i in range(len(columns["is_buy"])):
                cells = {name: column[i : i + 1] for name, column in columns.items()}
                yield row + i, cells, file_bytes

    file = write_clocks(tmp_path, path, clocks, opening)
    expected = [
        str(
            np.datetime64(
                f"2024-05-{31 + day}T{clock}" if day < 1 else f"2024-06-0{day}T{clock}", "ms"
            )
        )
        for day, clock in zip(days, clocks, strict=True)
    ]
    assert read_times(file) == expected
    monkeypatch.setattr(coinapi, "read_csv", read_row_by_row)
    assert read_times(file) == expected


def test_the_time_of_receipt_tells_that_a_file_begins_before_midnight(tmp_path) -> None:
    header = HEADER.replace(";update", ";time_coinapi;update")
    rows = [
        f"{clock};{received};ADD;1;1;1;1\n"
        for clock, received in ((LATE, EARLY), (EARLY, EARLY), ("20:00:00", "20:00:00"))
    ]
    file = put(tmp_path, "20240601.csv", (header + "".join(rows)).encode())
    assert [time[:10] for time in read_times(file)] == ["2024-05-31", "2024-06-01", "2024-06-01"]


def test_a_file_of_more_than_a_day_is_refused_and_full_times_are_read(tmp_path) -> None:
    clocks = ["18:00:00", LATE, EARLY, "18:00:00"]
    with pytest.raises(InputError, match="row 4: times of day pass midnight and go on beyond noon"):
        read_times(write_clocks(tmp_path, "20240601.csv", clocks))
    full = [f"2024-06-0{1 + (row > 1)}T{clock}" for row, clock in enumerate(clocks)]
    assert len(read_times(write_clocks(tmp_path, "20240601.csv", full))) == 4


# Order ids


def test_an_id_is_the_same_in_every_column() -> None:
    texts = ["0", "7", "9223372036854775808", "18446744073709551615"]
    numbers = coinapi.to_order_ids(pa.array([int(text) for text in texts], pa.uint64()), Path(), 1)
    others = ["a1b2", "-7", "007", "7.0", "x7", "18446744073709551616"]
    mixed = coinapi.to_order_ids(pa.array([*texts, *others]), Path(), 1)
    assert mixed[:4].tolist() == numbers.tolist()
    assert mixed[6] == mixed[7] == mixed[1]
    assert len(set(mixed.tolist())) == 8
    alone = coinapi.to_order_ids(pa.array(others), Path(), 1)
    assert alone.tolist() == mixed[4:].tolist()


def test_orders_are_found_again_whatever_the_other_ids_of_their_file_are(tmp_path) -> None:
    """Order 18446744073709551615 is deleted in a file of numbers, order 7 in one of texts."""
    start = "2026-05-02T00:00:00"
    opening = [
        f"{start};SNAPSHOT;{buy};{price};1;{order}\n"
        for buy, price, order in (
            (1, 99, 7),
            (1, 98, 8),
            (0, 101, 2**64 - 1),
            (0, 102, 9),
            (0, 103, 10),
        )
    ]
    put(tmp_path, "1.csv", (HEADER + "".join(opening)).encode())
    put(tmp_path, "2.csv", (HEADER + f"{start}.1;DELETE;0;101;1;{2**64 - 1}\n").encode())
    put(
        tmp_path,
        "3.csv",
        (HEADER + f"{start}.2;ADD;1;97;1;aa-bb\n{start}.3;DELETE;1;99;1;7\n").encode(),
    )
    put(
        tmp_path,
        "4.csv",
        (HEADER + f"{start}.4;ADD;1;96;1;11\n{start}.5;DELETE;1;97;1;aa-bb\n").encode(),
    )
    states = [ticks for ticks, *_ in parse(tmp_path)]
    assert states == [
        [980, 990, 1010, 1020],
        [980, 990, 1020, 1030],
        [980, 990, 1020, 1030],
        [970, 980, 1020, 1030],
        [970, 980, 1020, 1030],
        [960, 980, 1020, 1030],
    ]


# Order of files


def test_names_are_in_natural_order() -> None:
    names = [
        "2025-8-8.csv",
        "2025-8-8-2.csv",
        "2025-8-9.csv",
        "2025-8-10.csv",
        "2025-8-10.csv.gz",
        "2025-10-1.csv",
        "a/2/1.csv",
        "a/2/b10.csv",
        "a/10/b9.csv",
        "a/10/b009-1.csv",
        "a/10/b².csv",
    ]
    shuffled = [Path(names[i]) for i in np.random.default_rng(0).permutation(len(names))]
    assert [str(path) for path in sorted(shuffled, key=natural_key)] == names


@pytest.mark.parametrize("name", ["2025-8-{}.csv", "{}/book.csv", "2025/8/{}/x.csv"])
def test_days_without_leading_zeros_are_one_stream(tmp_path, name) -> None:
    story = tell_story(300)
    for day, begin in ((8, 0), (9, 100), (10, 200)):
        put(tmp_path, name.format(day), write_coinapi(story[begin : begin + 100]))
    assert parse(tmp_path) == tell_states(story)
    files = data_parser.list_files(tmp_path / "raw" / "A_B")
    assert [str(file)[len(str(tmp_path / "raw" / "A_B")) :] for file in files] == [
        f"/{name.format(day)}" for day in (8, 9, 10)
    ]


@pytest.mark.parametrize("snapshots", [1, 0])
@pytest.mark.parametrize("updates", [1, 0])
def test_days_in_the_wrong_order_name_both_files_until_renamed(
    tmp_path, snapshots, updates
) -> None:
    """Days of a snapshot, of updates, or of both: c was recorded before a."""
    if not snapshots + updates:
        return
    levels = tell_story(1)[0][2]
    days = []
    for day in range(3):
        time_ms = START_MS + day * 86_400_000
        book = [(time_ms, SNAPSHOT if snapshots or day == 0 else SET, levels)]
        changes = [(time_ms + 5 * i, SET, [(True, 999, day + i)]) for i in range(1, 9 * updates)]
        days.append([*book, *changes])
    for name, day in zip(("b", "c", "a"), days, strict=True):
        put(tmp_path, f"{name}.csv", write_coinapi(day))
    line = refuse(tmp_path)
    assert "time goes back" in line and "b.csv, row " in line and "a.csv, row " in line
    assert "name the files so that they sort by time, and drop what two of them hold, or" in line
    folder = tmp_path / "raw" / "A_B"
    for name, new in (("b", "1"), ("c", "2"), ("a", "3")):
        (folder / f"{name}.csv").rename(folder / f"{new}.csv")
    expected = tell_states([message for day in days for message in day])
    assert [state[:3] for state in parse(tmp_path)] == [state[:3] for state in expected]


def test_rows_in_the_wrong_order_name_both_rows_until_sorted(tmp_path) -> None:
    story = tell_story(10)
    late = (START_MS + 5000, SET, [(True, 999, 3)])
    put(tmp_path, "1.csv", write_coinapi([*story[:5], late, *story[5:]]))
    line = refuse(tmp_path)
    first, second = re.findall(r"1\.csv, row (\d+)", line)
    assert int(first) == int(second) + 1
    assert "max_clock_step_ms: sort the rows, or raise" in line
    put(tmp_path, "1.csv", write_coinapi([*story, late]))
    assert parse(tmp_path) == tell_states([*story, late])
