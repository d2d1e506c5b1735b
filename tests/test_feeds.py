"""One history of a book, written in each feed's format, gives the states of the reference book."""

import gzip
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
# Time in ms, SNAPSHOT or SET, levels (is_buy, ticks, lots).
Message = tuple[int, int, list[tuple[bool, int, int]]]


def tell_story(messages: int = 400, seed: int = 0) -> list[Message]:
    """Return an opening snapshot, then changes of bids below and asks above 1000 ticks.

    The book is never crossed, and rarely thin.
    """
    rng = np.random.default_rng(seed)
    story: list[Message] = [
        (
            START_MS,
            SNAPSHOT,
            [
                (side, 1000 + (-i if side else i), 5 + i)
                for side in (True, False)
                for i in range(1, 30)
            ],
        )
    ]
    for index in range(1, messages):
        levels = []
        for _ in range(rng.integers(1, 6)):
            side = bool(rng.integers(2))
            levels.append(
                (
                    side,
                    1000 + (-1 if side else 1) * int(rng.integers(1, 40)),
                    int(rng.integers(0, 9)),
                )
            )
        story.append((START_MS + 7 * index, SET, sorted(levels, key=lambda level: not level[0])))
    return story


def tell_states(story: list[Message], depth: int = 4, first: int = 0) -> list[tuple]:
    """Return the reference book's states from message `first` on.

    A state is ticks, lots, time in ms, and whether a segment begins.
    """
    reference = ReferenceBook(depth)
    for index, (time_ms, kind, levels) in enumerate(story):
        reference.take_message(time_ms, [(kind, *level, 0) for level in levels])
        if index < first:
            reference.states.clear()
            reference.new_segment = True
    return [state[:4] for state in reference.states]


def parse(folder: Path, **settings) -> list[tuple]:
    """Parse `folder`/raw/A_B in ticks of 0.1, lots of 0.001; return states as in `tell_states`."""
    data_parser.parse_pair(
        {**data_parser.config, "data_dir": str(folder), "depth": 4, **settings}, "A_B"
    )
    symbol = settings.get("symbol")
    name = f"A_B_{symbol.replace('/', '-')}" if symbol else "A_B"
    book = open_book(folder / "book_states" / name)
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


# Tardis

TARDIS_HEADER = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"


def write_tardis(story: list[Message], header: str = TARDIS_HEADER) -> bytes:
    rows = [header]
    for time_ms, kind, levels in story:
        for is_buy, ticks, lots in levels:
            snapshot, side = str(kind == SNAPSHOT).lower(), "bid" if is_buy else "ask"
            stamps = f"{time_ms}000,{time_ms}777"
            rows.append(
                f"binance-futures,BTCUSDT,{stamps},{snapshot},{side},{ticks / 10},{lots / 1000}\n"
            )
    return "".join(rows).encode()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_tardis_rows_of_one_local_timestamp_are_one_message(tmp_path, suffix) -> None:
    story = tell_story()
    file = put(tmp_path, "1.csv" + suffix, write_tardis(story[:250]))
    put(tmp_path, "2.csv" + suffix, write_tardis(story[250:]))
    assert find_feed(file) == "tardis"
    assert parse(tmp_path) == tell_states(story)


def test_tardis_snapshot_in_mid_stream_replaces_the_book(tmp_path) -> None:
    story = tell_story(30)
    time_ms, _, levels = story[0]
    again = (time_ms + 1000, SNAPSHOT, [(side, ticks + 3, lots) for side, ticks, lots in levels])
    put(tmp_path, "1.csv", write_tardis([*story, again]))
    states = parse(tmp_path)
    assert states == tell_states([*story, again])
    assert not states[-1][3]  # another book, but no time was lost
    assert (count(tmp_path, "snapshots"), count(tmp_path, "snapshots_differ")) == (2, 1)


def test_tardis_files_of_several_symbols_are_parsed_by_symbol(tmp_path) -> None:
    """Rows of both symbols alternate; then each has a file that opens with its snapshot."""
    stories = {"ONE": tell_story(30), "TWO": tell_story(30, seed=1)}
    rows = [
        write_tardis(story).replace(b"BTCUSDT", symbol.encode()).splitlines(keepends=True)[1:]
        for symbol, story in stories.items()
    ]
    longest = max(map(len, rows))
    mixed = [part[i] for i in range(longest) for part in rows if i < len(part)]
    put(tmp_path, "1.csv", TARDIS_HEADER.encode() + b"".join(mixed))
    assert "hold ONE, TWO: a pair's folder takes one symbol" in refuse(tmp_path)
    assert "holds no SIX: set --symbol to one of ONE, TWO" in refuse(tmp_path, symbol="SIX")
    for symbol, story in stories.items():
        assert parse(tmp_path, symbol=symbol) == tell_states(story)
    (tmp_path / "apart").mkdir()
    for number, part in enumerate(rows):
        put(tmp_path / "apart", f"{number}.csv", TARDIS_HEADER.encode() + b"".join(part))
    assert "takes one symbol" in refuse(tmp_path / "apart")


def write_coinapi(story: list[Message]) -> bytes:
    rows = ["time_exchange;update_type;is_buy;entry_px;entry_sx\n"]
    for time_ms, kind, levels in story:
        begin = f"{np.datetime64(time_ms, 'ms')};{'SNAPSHOT' if kind == SNAPSHOT else 'SET'}"
        rows += [
            f"{begin};{int(is_buy)};{ticks / 10};{lots / 1000}\n" for is_buy, ticks, lots in levels
        ]
    return "".join(rows).encode()


@pytest.mark.parametrize("write", [write_tardis, write_coinapi])
def test_a_message_may_go_on_in_the_next_block_of_a_file(tmp_path, monkeypatch, write) -> None:
    def read_row_by_row(*args):
        for row, columns, file_bytes in read_csv(*args):
            for i in range(len(columns["is_buy" if "is_buy" in columns else "side"])):
                yield (
                    row + i,
                    {name: column[i : i + 1] for name, column in columns.items()},
                    file_bytes,
                )

    for reader in (coinapi, tardis):
        monkeypatch.setattr(reader, "read_csv", read_row_by_row)
    story = tell_story(30)
    levels = [(side, ticks + 3, lots) for side, ticks, lots in story[0][2]]
    again = [(START_MS + time, SNAPSHOT, levels) for time in (1000, 1001)]
    put(tmp_path, "1.csv", write([*story, *again]))
    assert parse(tmp_path) == tell_states([*story, *again])


def test_tardis_faults_are_named(tmp_path) -> None:
    text = write_tardis(tell_story(30)).decode()
    lines = text.splitlines(keepends=True)
    for wrong, said in (
        (
            lines[70].replace(",bid,", ",buy,").replace(",ask,", ",buy,"),
            "row 70: unknown side 'buy'",
        ),
        (lines[70].rsplit(",", 1)[0] + ",-1\n", "row 70: price"),
        (lines[70].rsplit(",", 1)[0] + ",x\n", "row 70: amount 'x' is not a number"),
        (
            lines[70].replace("BTCUSDT", "ETHUSDT"),
            "hold BTCUSDT, ETHUSDT: a pair's folder takes one symbol",
        ),
    ):
        put(tmp_path, "1.csv", "".join([*lines[:70], wrong, *lines[71:]]).encode())
        assert said in refuse(tmp_path)
    put(tmp_path, "1.csv", text.replace("timestamp,local", "time,local").encode())
    assert "timestamp" in refuse(tmp_path)
    put(tmp_path, "1.csv", TARDIS_HEADER.encode())
    assert "holds no rows" in refuse(tmp_path)


# NumPy arrays


def write_npy(
    file: Path, story: list[Message], per_ms: float = 1.0, dtype=np.float64, order="C"
) -> Path:
    rows = [
        (time_ms * per_ms, kind, side, ticks / 10, lots / 1000)
        for time_ms, kind, levels in story
        for side, ticks, lots in levels
    ]
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
    array = np.stack(
        [
            np.repeat(np.arange(60_000), 5) + 1.7e9,
            np.zeros(300_000),
            prices < 103,
            prices,
            np.ones(300_000),
        ],
        axis=1,
    )
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
    file.write_bytes(file.read_bytes().replace(b"}", b"{", 1))
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


def price_level(ticks: int, lots: int) -> list[str]:
    return [f"{ticks / 10:.2f}", f"{lots / 1000:.3f}"]


def write_lines(folder: Path, lines: list[str], name: str = "1.gz") -> Path:
    return put(folder, name, "".join(line + "\n" for line in lines).encode())


def test_the_reader_that_the_readme_shows_is_the_one_in_use() -> None:
    text = (ROOT / "training_data" / "README.md").read_text()
    shown = re.search(r"## Adding an exchange.*?```python\n(.*?)```", text, re.S)
    assert shown and shown[1] == (ROOT / "lob" / "feeds" / "okx.py").read_text()


def test_the_readme_lists_every_feed() -> None:
    text = (ROOT / "training_data" / "README.md").read_text()
    assert set(
        re.findall(r"^\| `(\w+)` \| ", text.split("| feed |")[1].split("\n\n")[0], re.M)
    ) == set(FEEDS)
