"""One story of a book, written in each feed's format, must come out as the states of the reference book."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import ROOT
from reference_book import ReferenceBook

import data_parser
from lob.book.states import open_book
from lob.config import InputError
from lob.feeds import coinapi, tardis
from lob.feeds.batch import FEEDS, SET, SNAPSHOT, find_feed
from lob.feeds.recordings import read_csv

START_MS = 1_723_161_256_298
COMPRESS = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstandard.compress}
Message = tuple[int, int, list[tuple[bool, int, int]]]  # time in ms, SNAPSHOT or SET, levels (is_buy, ticks, lots)


def tell_story(messages: int = 400, seed: int = 0) -> list[Message]:
    """An opening snapshot, then changes of bids below and asks above 1000 ticks: never crossed, seldom thin."""
    rng = np.random.default_rng(seed)
    story: list[Message] = [(START_MS, SNAPSHOT, [(side, 1000 + (-i if side else i), 5 + i) for side in (True, False)
                                                   for i in range(1, 30)])]  # fmt: skip
    for index in range(1, messages):
        levels = []
        for _ in range(rng.integers(1, 6)):
            side = bool(rng.integers(2))
            levels.append((side, 1000 + (-1 if side else 1) * int(rng.integers(1, 40)), int(rng.integers(0, 9))))
        story.append((START_MS + 7 * index, SET, sorted(levels, key=lambda level: not level[0])))
    return story


def tell_states(story: list[Message], depth: int = 4, first: int = 0) -> list[tuple]:
    """The reference's states (ticks, lots, time in ms, whether a segment begins) from message `first` on."""
    reference = ReferenceBook(depth)
    for index, (time_ms, kind, levels) in enumerate(story):
        reference.take_message(time_ms, [(kind, *level, 0) for level in levels])
        if index < first:
            reference.states.clear()
            reference.new_segment = True
    return [state[:4] for state in reference.states]


def parse(folder: Path, **settings) -> list[tuple]:
    """Parse `folder`/raw/A_B in ticks of 0.1 and lots of 0.001; return states as `tell_states` does."""
    data_parser.parse_pair({**data_parser.config, "data_dir": str(folder), "depth": 4, **settings}, "A_B")
    book = open_book(folder / "book_states" / "A_B")
    starts = np.isin(np.arange(book.rows), np.load(book.path / "segment_starts.npy"))
    ticks = np.rint(np.array(book.price_ticks) * book.tick_size * 10).astype(int)
    lots = np.rint(np.array(book.sizes) * 1000).astype(int)
    times = np.rint(np.array(book.timestamps) / 1e6).astype(int)
    return list(zip(ticks.tolist(), lots.tolist(), times.tolist(), starts.tolist(), strict=True))


def count(folder: Path, name: str) -> int:
    return open_book(folder / "book_states" / "A_B").meta["counters"][name]


def put(folder: Path, name: str, data: bytes) -> Path:
    file = folder / "raw" / "A_B" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(COMPRESS[file.suffix if file.suffix in COMPRESS else ""](data))
    return file


def refuse(folder: Path, **settings) -> str:
    """Parse what must be refused; return the line that the user reads."""
    with pytest.raises(InputError) as error:
        parse(folder, **settings)
    assert not (folder / "book_states" / "A_B").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


# --------------------------------------------------------------------------------------------------------------- Tardis

TARDIS_HEADER = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"


def write_tardis(story: list[Message], header: str = TARDIS_HEADER) -> bytes:
    rows = [header]
    for time_ms, kind, levels in story:
        for is_buy, ticks, lots in levels:
            snapshot, side = str(kind == SNAPSHOT).lower(), "bid" if is_buy else "ask"
            stamps = f"{time_ms}000,{time_ms}777"
            rows.append(f"binance-futures,BTCUSDT,{stamps},{snapshot},{side},{ticks / 10},{lots / 1000}\n")
    return "".join(rows).encode()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_tardis_rows_of_one_local_timestamp_are_one_message(tmp_path, suffix) -> None:
    story = tell_story()
    file = put(tmp_path, "1.csv" + suffix, write_tardis(story[:250]))
    put(tmp_path, "2.csv" + suffix, write_tardis(story[250:]))
    assert find_feed(file) == "tardis"
    assert parse(tmp_path) == tell_states(story)


def test_tardis_snapshot_in_mid_stream_replaces_the_book_even_over_two_times(tmp_path) -> None:
    story = tell_story(30)
    time_ms, _, levels = story[0]
    again = (time_ms + 1000, SNAPSHOT, [(side, ticks + 3, lots) for side, ticks, lots in levels])
    parts = [(again[0], SNAPSHOT, again[2][:20]), (again[0] + 1, SNAPSHOT, again[2][20:])]
    put(tmp_path, "1.csv", write_tardis([*story, *parts]))
    states = parse(tmp_path)
    assert states == tell_states([*story, again])
    assert not states[-1][3]  # another book, but no time was lost
    assert (count(tmp_path, "snapshots"), count(tmp_path, "snapshots_differ")) == (2, 1)


def write_coinapi(story: list[Message]) -> bytes:
    rows = ["time_exchange;update_type;is_buy;entry_px;entry_sx\n"]
    for time_ms, kind, levels in story:
        begin = f"{np.datetime64(time_ms, 'ms')};{'SNAPSHOT' if kind == SNAPSHOT else 'SET'}"
        rows += [f"{begin};{int(is_buy)};{ticks / 10};{lots / 1000}\n" for is_buy, ticks, lots in levels]
    return "".join(rows).encode()


@pytest.mark.parametrize("write", [write_tardis, write_coinapi])
def test_a_message_may_go_on_in_the_next_block_of_a_file(tmp_path, monkeypatch, write) -> None:
    def read_row_by_row(*args):
        for row, columns, file_bytes in read_csv(*args):
            for i in range(len(columns["is_buy" if "is_buy" in columns else "side"])):
                yield row + i, {name: column[i : i + 1] for name, column in columns.items()}, file_bytes

    for reader in (coinapi, tardis):
        monkeypatch.setattr(reader, "read_csv", read_row_by_row)
    story = tell_story(30)
    levels = [(side, ticks + 3, lots) for side, ticks, lots in story[0][2]]
    again = (START_MS + 1000, SNAPSHOT, levels)
    cut = [(START_MS + 1000, SNAPSHOT, levels[:20]), (START_MS + 1001, SNAPSHOT, levels[20:])]
    put(tmp_path, "1.csv", write([*story, *(cut if write is write_tardis else [again])]))
    assert parse(tmp_path) == tell_states([*story, again])


def test_tardis_faults_are_named(tmp_path) -> None:
    text = write_tardis(tell_story(30)).decode()
    lines = text.splitlines(keepends=True)
    for wrong, said in (
        (lines[70].replace(",bid,", ",buy,").replace(",ask,", ",buy,"), "row 70: unknown side 'buy'"),
        (lines[70].rsplit(",", 1)[0] + ",-1\n", "row 70: price"),
        (lines[70].rsplit(",", 1)[0] + ",x\n", "row 70: amount 'x' is not a number"),
        (lines[70].replace("BTCUSDT", "ETHUSDT"), "hold BTCUSDT, ETHUSDT: a pair's folder takes one symbol"),
    ):
        put(tmp_path, "1.csv", "".join([*lines[:70], wrong, *lines[71:]]).encode())
        assert said in refuse(tmp_path)
    put(tmp_path, "1.csv", text.replace("timestamp,local", "time,local").encode())
    assert "timestamp" in refuse(tmp_path)
    put(tmp_path, "1.csv", TARDIS_HEADER.encode())
    assert "holds no rows" in refuse(tmp_path)


# --------------------------------------------------------------------------------------------------------- NumPy arrays


def write_npy(file: Path, story: list[Message], per_ms: float = 1.0, dtype=np.float64, order="C") -> Path:
    rows = [(time_ms * per_ms, kind, side, ticks / 10, lots / 1000) for time_ms, kind, levels in story
            for side, ticks, lots in levels]  # fmt: skip
    rows = [(time, {SNAPSHOT: 5, SET: 3}[kind], *rest) for time, kind, *rest in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.asarray(rows, dtype=dtype, order=order))
    return file


@pytest.mark.parametrize("per_ms", [0.001, 1, 1e3, 1e6])
@pytest.mark.parametrize("suffix", ["", "column order", ".gz", ".zst"])
def test_npy_arrays_in_every_unit_of_time(tmp_path, per_ms, suffix) -> None:
    story = tell_story()
    for name, part in (("1.npy", story[:250]), ("2.npy", story[250:])):
        order = "F" if suffix == "column order" else "C"
        file = write_npy(tmp_path / "raw" / "A_B" / name, part, per_ms, order=order)
        if suffix.startswith("."):
            put(tmp_path, name + suffix, file.read_bytes())
            file.unlink()
    assert find_feed(next((tmp_path / "raw" / "A_B").iterdir())) == "npy"
    assert parse(tmp_path) == tell_states(story)


def test_npy_array_of_many_chunks_is_one_stream(tmp_path) -> None:
    """Rows past the first chunk of 2^18: the message that goes over its end is one."""
    prices = 100 + np.arange(300_000) % 7
    array = np.stack([np.repeat(np.arange(60_000), 5) + 1.7e9, np.zeros(300_000), prices < 103, prices,
                      np.ones(300_000)], axis=1)  # fmt: skip
    file = tmp_path / "1.npy"
    np.save(file, array)
    batches = list(FEEDS["npy"].read([file]))
    message = np.concatenate([batch.message for batch in batches])
    assert len(batches) == 2
    np.testing.assert_array_equal(message - message[0], np.repeat(np.arange(60_000), 5))
    np.testing.assert_array_equal(np.concatenate([batch.price for batch in batches]), prices)


def test_npy_faults_are_named(tmp_path) -> None:
    file = write_npy(tmp_path / "raw" / "A_B" / "1.npy", tell_story(30))
    array = np.load(file)
    for column, wrong in ((0, np.nan), (1, 6.0), (1, 0.5), (2, 2.0), (3, np.inf), (4, -1.0)):
        bad = array.copy()
        bad[77, column] = wrong
        np.save(file, bad)
        assert "row 77" in refuse(tmp_path), (column, wrong)
    np.save(file, array[:, :4])
    assert "(N, 5)" in refuse(tmp_path)
    np.save(file, np.array([[None] * 5], dtype=object), allow_pickle=True)
    assert "no whole NumPy array" in refuse(tmp_path)
    np.save(file, array)
    file.write_bytes(file.read_bytes()[:-100])
    assert "no whole NumPy array" in refuse(tmp_path)
    for dtype in (str, np.float32, complex):
        np.save(file, array.astype(dtype))
        assert "must be whole numbers or float64" in refuse(tmp_path)
    np.save(file, np.asfortranarray(array))
    put(tmp_path, "1.npy.gz", file.read_bytes())
    file.unlink()
    assert "row order" in refuse(tmp_path)
    np.save(file, array)
    put(tmp_path, "1.npy.gz", file.read_bytes()[: -10 * 5 * 8])
    file.unlink()
    assert f"ends before row {len(array)}" in refuse(tmp_path)


# -------------------------------------------------------------------------------------------------------------- Binance


def price_level(ticks: int, lots: int) -> list[str]:
    return [f"{ticks / 10:.2f}", f"{lots / 1000:.3f}"]


def write_depth(message: int, story: list[Message], spot: bool, bare: bool = False, symbol: str = "BTCUSDT") -> str:
    """One depthUpdate line; message n holds the updates 100 n - 50 (futures) or 100 n - 99 (spot) to 100 n."""
    time_ms, _, levels = story[message]
    data = {"e": "depthUpdate", "E": time_ms if spot else time_ms + 3, "s": symbol, "u": 100 * message,
            "U": 100 * message - (99 if spot else 50),
            "b": [price_level(*level[1:]) for level in levels if level[0]],
            "a": [price_level(*level[1:]) for level in levels if not level[0]]}  # fmt: skip
    if not spot:
        data |= {"T": time_ms, "pu": 100 * (message - 1)}
    return f"{time_ms}000000 " + json.dumps(data if bare else {"stream": "btcusdt@depth@0ms", "data": data})


def write_snapshot(message: int, story: list[Message], part: int = 0, most: int = 1000) -> str:
    """A REST snapshot after `message` and the first `part` updates of the next one (which hold half its levels)."""
    reference = ReferenceBook(2)
    for time_ms, kind, levels in story[: message + 1]:
        reference.take_message(time_ms, [(kind, *level, 0) for level in levels])
    if part:
        time_ms, kind, levels = story[message + 1]
        reference.take_message(time_ms, [(kind, *level, 0) for level in levels[: len(levels) // 2]])
    bids, asks = ([price_level(price, reference.levels[side][price]) for price in prices][:most]
                  for side, prices in ((0, reference.prices[0][::-1]), (1, reference.prices[1])))  # fmt: skip
    update = 100 * message + part
    return f"{START_MS}000001 " + json.dumps({"lastUpdateId": update, "bids": bids, "asks": asks})


def compact(line: str) -> str:
    """A line without spaces in its JSON, as Binance sends it: read by the faster way."""
    return line.replace(", ", ",").replace(": ", ":")


def write_lines(folder: Path, lines: list[str], name: str = "1.gz") -> Path:
    return put(folder, name, "".join(line + "\n" for line in lines).encode())


TICKER = '1723161256298000000 {"stream":"btcusdt@bookTicker",'
TICKER += '"data":{"u":1,"s":"BTCUSDT","b":"1.0","B":"2.0","a":"3.0","A":"4.0"}}'
TRADE = '1723161256298000000 {"stream":"btcusdt@trade",'
TRADE += '"data":{"e":"trade","E":1,"s":"BTCUSDT","t":1,"p":"1.0","q":"2.0","m":true}}'


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("part", [0, 30])
def test_binance_messages_before_their_snapshot_are_bridged(tmp_path, spot, part) -> None:
    """The snapshot of update 300 stands after message 9: states begin with the message that bridges it."""
    story = tell_story()
    depth = [write_depth(message, story, spot, bare=message % 5 == 0) for message in range(1, 400)]
    lines = [TICKER, TRADE, *depth[:9], write_snapshot(3, story, part if spot or part else 0), *depth[9:]]
    file = write_lines(tmp_path, lines[:300])
    write_lines(tmp_path, lines[300:], "2.gz")
    assert find_feed(file) == "binance"
    first = 4 if spot or part else 3  # on futures message 3 itself, with u = lastUpdateId, is applied again
    assert parse(tmp_path) == tell_states(story, first=first)
    assert (count(tmp_path, "gaps"), count(tmp_path, "snapshots")) == (0, 1)


@pytest.mark.parametrize("spot", [False, True])
def test_binance_snapshot_ahead_of_the_stream_waits_for_it(tmp_path, spot) -> None:
    story = tell_story(50)
    depth = [write_depth(message, story, spot) for message in range(1, 50)]
    write_lines(tmp_path, [write_snapshot(6, story, 30), *depth])
    assert parse(tmp_path) == tell_states(story, first=7)


@pytest.mark.parametrize("spot", [False, True])
def test_binance_sequence_gap_ends_the_segment_until_the_next_snapshot(tmp_path, spot) -> None:
    story = tell_story(200)
    depth = [write_depth(message, story, spot) for message in range(1, 200)]
    older = write_snapshot(45, story, 1)  # than the gap: of no use, though the messages up to it were there
    lost = [*depth[:50], *depth[51:60], older, *depth[70:90], write_snapshot(85, story, 1), *depth[90:]]
    write_lines(tmp_path, [write_snapshot(0, story, 1), *lost])
    assert parse(tmp_path) == [*tell_states(story[:51], first=1), *tell_states(story, first=86)]
    assert (count(tmp_path, "gaps"), count(tmp_path, "snapshots")) == (1, 2)


@pytest.mark.parametrize("spot", [False, True])
def test_binance_messages_delivered_twice_change_nothing(tmp_path, spot) -> None:
    story = tell_story(60)
    depth = [write_depth(message, story, spot) for message in range(1, 60)]
    write_lines(tmp_path, [write_snapshot(0, story, 1), *depth[:40], *depth[30:]])
    assert parse(tmp_path) == tell_states(story, first=1)
    assert count(tmp_path, "gaps") == 0


@pytest.mark.parametrize("spot", [False, True])
def test_binance_snapshot_in_a_running_stream_brings_levels_it_did_not_know(tmp_path, spot) -> None:
    """The first snapshot holds 2 levels a side, the second, 8 messages late, all: no state is told twice or lost."""
    story = [tell_story(1)[0], *((START_MS + 7 * i, SET, [(True, 999, i), (False, 1001, i)]) for i in range(1, 60))]
    depth = [write_depth(message, story, spot) for message in range(1, 60)]
    lines = [write_snapshot(0, story, 1, most=2), *depth[:30], write_snapshot(22, story, 1), *depth[30:]]
    write_lines(tmp_path, lines)
    assert parse(tmp_path) == tell_states(story, first=1)  # depth 4: the 2 levels a side that it knew are the book
    assert parse(tmp_path, depth=8) == tell_states(story, depth=8, first=30)
    assert (count(tmp_path, "gaps"), count(tmp_path, "snapshots")) == (0, 2)


def test_binance_stream_without_its_snapshot_is_counted_or_refused(tmp_path) -> None:
    story = tell_story(1200)
    depth = [write_depth(message, story, spot=True) for message in range(1, 1200)]
    write_lines(tmp_path, depth)
    assert "holds no REST depth snapshot" in refuse(tmp_path)
    write_lines(tmp_path, [*depth[:1100], write_snapshot(1090, story), *depth[1100:]])
    assert parse(tmp_path) == tell_states(story, first=1091)
    assert count(tmp_path, "gaps") == 1
    write_lines(tmp_path, [*depth[:1100], write_snapshot(50, story), *depth[1100:]])  # older than all that is kept
    (tmp_path / "book_states" / "A_B").rename(tmp_path / "old")
    assert "holds no REST depth snapshot" in refuse(tmp_path)


def test_binance_faults_name_file_and_line(tmp_path) -> None:
    story = tell_story(100)
    depth = [write_depth(message, story, spot=False) for message in range(1, 100)]
    good = [write_snapshot(0, story, 1), *depth]
    for wrong, said in (
        (good[40][:-30], "line 41: no whole Binance message"),
        (good[40].replace('"U"', '"V"').replace('"pu"', '"V"'), "line 41: no whole Binance message"),
        (write_depth(40, story, False, symbol="ETHUSDT"), "(ValueError('of ETHUSDT among those of BTCUSDT"),
        (good[40].replace('.', 'x'), "line 41: price nan and size nan must be numbers"),
        (good[40].replace('"a": ', '"a": [["1.0"]], "z": '), "line 41: no whole Binance message"),
        (good[40].replace('"a": ', '"a": [["99.05", "1"]], "z": '), "line 41: price 99.05 is no exact multiple of 0.1"),
        (compact(good[40]).replace('"a":[[', '"a":[["1.0"],['), "message (ValueError('a level is no pair')): drop the"),
        (compact(good[40]).replace('"a":[[', '"a":[["1.0",],['), "line 41: no whole Binance message (JSONDecodeErr"),
        (compact(good[40]).replace('"u":4000', '"u":1e400'), "line 41: no whole Binance message (JSONDecodeErr"),
        (compact(good[40]).replace('"u":4000', '"u":9999999999999999999'), "line 41: no whole Binance message (Over"),
        (compact(good[40]).replace('"a":[[', '"a":[{"1.0":2},['), "line 41: no whole Binance message"),
        (compact(good[40]).replace('"a":[[', '"a":[["x","1"],['), "line 41: price nan and size 1.0 must be numbers"),
        (compact(good[40]).replace('"a":[', '"a":[["99.05","1"]],"z":['), "line 41: price 99.05 is no exact multiple"),
    ):  # fmt: skip
        write_lines(tmp_path, [*good[:40], wrong, *good[41:]])
        line = refuse(tmp_path, tick_size=0.1)
        assert said in line, line
        assert "1.gz" in line
    whole = write_lines(tmp_path, good).read_bytes()
    (tmp_path / "raw" / "A_B" / "1.gz").write_bytes(whole[:-20])
    assert "cannot be decompressed" in refuse(tmp_path)


def test_binance_numbers_that_are_no_text_are_read_too(tmp_path) -> None:
    story = tell_story(20)
    lines = [write_snapshot(0, story, 1), *(write_depth(message, story, spot=True) for message in range(1, 20))]
    write_lines(tmp_path, [re.sub(r'"([0-9.]+)"', r"\1", line) for line in lines])
    assert parse(tmp_path) == tell_states(story, first=1)


# ------------------------------------------------------------------------------------------------- the README's example


def test_the_exchange_that_the_readme_adds_is_read(tmp_path) -> None:
    code = re.search(
        r"## Adding an exchange.*?```python\n(.*?)```", (ROOT / "training_data" / "README.md").read_text(), re.S
    )
    assert code
    try:
        exec(code[1], {})
        story = tell_story()
        for name, part in (("1.gz", story[:250]), ("2.gz", story[250:])):
            lines = []
            for time_ms, kind, levels in part:
                sides = {side: [price_level(*level[1:]) for level in levels if level[0] == buy]
                         for side, buy in (("b", True), ("a", False))}  # fmt: skip
                message = {"topic": "orderbook.500.BTCUSDT", "type": "snapshot" if kind == SNAPSHOT else "delta",
                           "ts": time_ms, "data": {"s": "BTCUSDT", **sides, "u": 1, "seq": 2}}  # fmt: skip
                lines.append(json.dumps(message, separators=(",", ":")))
            file = write_lines(tmp_path, lines, name)
        assert find_feed(file) == "bybit"
        assert parse(tmp_path) == tell_states(story)
    finally:
        FEEDS.pop("bybit", None)
