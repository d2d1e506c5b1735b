"""Files as vendors and other programs write them: Databento, LOBSTER, hftbacktest."""

import contextlib
import importlib
import io
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from reference_book import ReferenceBook
from test_feeds import put, refuse

import data_parser
from lob.book.states import Book, open_book
from lob.feeds import hftbacktest, recordings
from lob.feeds.batch import ADD, SET, SNAPSHOT, SUB, find_feed


def parse_files(folder: Path, files: list[Path], **settings) -> Book:
    """Parse files as the pair A_B; return its states."""
    raw = folder / "raw" / "A_B"
    raw.mkdir(parents=True, exist_ok=True)
    for file in files:
        (raw / file.name).write_bytes(file.read_bytes())
    data_parser.parse_pair({**data_parser.config, "data_dir": str(folder), **settings}, "A_B")
    return open_book(folder / "book_states" / "A_B")


def same(book: Book, other: Book) -> bool:
    names = ("price_ticks", "sizes", "timestamps")
    return all(np.array_equal(getattr(book, name), getattr(other, name)) for name in names)


# Databento


def databento_files(recorded: Path) -> list[Path]:
    return sorted((recorded / "formats").glob("databento_*.dbn.zst"))


def read_dbn(file: Path) -> list:
    """Return the records of a DBN file as Databento's package decodes them."""
    dbn = pytest.importorskip("databento_dbn")
    decoder = dbn.DBNDecoder()
    decoder.write(decompressed(file))
    return [record for record in decoder.decode() if isinstance(record, dbn.MBOMsg)]


def decompressed(file: Path) -> bytes:
    return (
        zstandard.ZstdDecompressor().stream_reader(file.open("rb"), read_across_frames=True).read()
    )


def tell_dbn_states(records: list, depth: int) -> ReferenceBook:
    """Return the reference book after the records' messages. A snapshot is a message."""
    reference = ReferenceBook(depth, by_order=True, max_crossed_ns=10**18, max_gap_ns=10**18)
    rows: list[tuple] = []
    for record, after in itertools.pairwise([*records, None]):
        in_snapshot = int(record.flags) & 32
        kinds = {"A": SNAPSHOT if in_snapshot else ADD, "C": SUB, "M": SET}
        if str(record.action) in kinds:
            kind, is_buy = kinds[str(record.action)], str(record.side) == "B"
            rows.append((kind, is_buy, record.price, record.size, record.order_id))
        ends = int(record.flags) & 128 or after is None or int(after.flags) & 32 != in_snapshot
        if ends and rows:
            reference.take_message(record.ts_event, rows)
            rows = []
    return reference


@pytest.mark.recorded
def test_databentos_states_are_those_of_a_book_of_dictionaries(recorded, tmp_path) -> None:
    files = databento_files(recorded)
    assert {find_feed(file) for file in files} == {"databento"}
    book = parse_files(tmp_path, files, depth=20)
    # The second file begins with the book that the first one is: no state of its own.
    assert book.meta["counters"]["snapshots"] == 2
    records = read_dbn(files[1])
    reference = tell_dbn_states(records, 20)
    assert book.rows == len(reference.states) == 46_132
    ticks, lots, times = zip(*(state[:3] for state in reference.states), strict=True)
    ticks_1e9 = np.rint(np.array(book.price_ticks) * book.tick_size * 1e9).astype(np.int64)
    np.testing.assert_array_equal(ticks_1e9, ticks)
    np.testing.assert_array_equal(book.sizes, lots)
    np.testing.assert_array_equal(book.timestamps, times)
    assert book.meta["counters"]["unknown"] == book.meta["counters"]["duplicate_orders"] == 0
    signs = {"B": 1, "A": -1, "N": 0}  # of who came last
    trades = [signs[str(record.side)] * record.size for record in records if record.action == "T"]
    assert book.traded is not None and book.traded.sum() == sum(trades) == 796


@pytest.mark.recorded
def test_databentos_csv_gives_the_states_of_its_dbn_files(recorded, tmp_path) -> None:
    """Prices and times written out or as plain numbers, with and without symbols; a zip of both."""
    _, file = databento_files(recorded)
    dbn = pytest.importorskip("databento_dbn")
    head = 8 + int.from_bytes(decompressed(file)[4:8], "little")
    size = head + 56 * 12_000
    short = tmp_path / "short.dbn"
    short.write_bytes(decompressed(file)[:size])
    settings = {"depth": 20}
    right = parse_files(tmp_path / "dbn", [short], **settings)
    assert right.rows > 100
    for number, kind in enumerate(({}, {"pretty_px": False, "pretty_ts": False})):
        text = io.BytesIO()
        transcoder = dbn.Transcoder(text, dbn.Encoding.CSV, dbn.Compression.NONE, **kind)
        transcoder.write(short.read_bytes())
        transcoder.finish()
        lines = text.getvalue().splitlines()
        if number:
            lines = [line.rpartition(b",")[0] for line in lines]  # no column for the symbol
        (tmp_path / "short.csv").write_bytes(b"\n".join(lines) + b"\n")
        assert find_feed(tmp_path / "short.csv") == "databento"
        assert same(
            parse_files(tmp_path / str(number), [tmp_path / "short.csv"], **settings), right
        )
    with zipfile.ZipFile(tmp_path / "download.zip", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("glbx-mdp3-20231225.mbo.dbn.zst", zstandard.compress(short.read_bytes()))
    assert same(parse_files(tmp_path / "zip", [tmp_path / "download.zip"], **settings), right)


@pytest.mark.recorded
def test_databentos_records_of_several_instruments_and_kinds(recorded, tmp_path) -> None:
    dbn = pytest.importorskip("databento_dbn")
    _, file = databento_files(recorded)
    data = decompressed(file)
    head = 8 + int.from_bytes(data[4:8], "little")
    records = np.frombuffer(data[head : head + 56 * 10_000], np.dtype(dbn.MBOMsg._dtypes))
    settings = {"depth": 20}
    alone = tmp_path / "1.dbn"
    alone.write_bytes(data[:head] + records.tobytes())
    right = parse_files(tmp_path / "alone", [alone], **settings)
    twice = np.repeat(records, 2)  # each record also of another instrument, at other prices
    twice["instrument_id"][1::2] = 5
    twice["price"][1::2] += 10**9
    other_kind = bytes([4, 23]) + bytes(14)  # a record of 16 bytes that is no mbo record
    parts = [other_kind + pair.tobytes() for pair in twice.reshape(-1, 2)]
    both = tmp_path / "2.dbn"
    both.write_bytes(data[:head] + b"".join(parts))
    put(tmp_path, "2.dbn", both.read_bytes())
    assert "holds 5, ESH4: take one of them, such as --symbol=5" in refuse(tmp_path, **settings)
    assert "set --symbol to one of" in refuse(tmp_path, **settings, symbol="ESM4")
    for symbol in ("ESH4", "17077", "5"):
        config = {**data_parser.config, **settings, "data_dir": str(tmp_path), "symbol": symbol}
        data_parser.parse_pair(config, "A_B")
        book = open_book(tmp_path / "book_states" / f"A_B_{symbol}")
        moved = round((1 if symbol == "5" else 0) / book.tick_size)
        np.testing.assert_array_equal(book.price_ticks, np.array(right.price_ticks) + moved)
    put(tmp_path, "2.dbn", both.read_bytes()[:-10])
    assert "no whole DBN file" in refuse(tmp_path, **settings, symbol="ESH4")


MBO_HEADER = "ts_event,publisher_id,instrument_id,action,side,price,size,order_id,flags\n"


def test_databentos_clear_empties_the_book_and_doubtful_books_are_counted(tmp_path) -> None:
    rows = [  # action, side, price, size, order id, flags
        "R,N,,0,0,128",  # a session begins
        "A,B,99.000000000,1,1,128",
        "A,A,101.000000000,2,18446744073709551615,128",
        "R,N,,0,0,128",
        "A,B,98.000000000,3,1,0",
        "A,A,102.000000000,4,18446744073709551615,132",
        "T,A,98.000000000,1,7,0",
        "F,B,98.000000000,1,1,0",
        "M,B,98.000000000,2,1,128",
        "N,N,,0,0,128",
    ]
    lines = [f"17234000000000000{i:02d},1,5,{row}\n" for i, row in enumerate(rows)]
    put(tmp_path, "1.csv", (MBO_HEADER + "".join(lines)).encode())
    data_parser.parse_pair({**data_parser.config, "data_dir": str(tmp_path), "depth": 2}, "A_B")
    book = open_book(tmp_path / "book_states" / "A_B")
    assert (np.array(book.price_ticks) * book.tick_size).tolist() == [
        [99, 101],
        [98, 102],
        [98, 102],
    ]
    assert book.sizes.tolist() == [[1, 2], [3, 4], [2, 4]]
    assert book.traded is not None and book.traded.tolist() == [0, 0, -1]
    counters = book.meta["counters"]
    assert counters["records_of_doubtful_books"] == 1
    assert counters["unknown"] == counters["duplicate_orders"] == counters["gaps"] == 0


def test_dbn_without_its_package_names_it(tmp_path, monkeypatch) -> None:
    def import_without(name: str):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_without)
    put(tmp_path, "1.dbn", b"DBN\x01" + bytes(100))
    assert "pip install databento-dbn" in refuse(tmp_path)


# LOBSTER


def lobster_files(recorded: Path) -> list[Path]:
    return sorted((recorded / "formats").glob("lobster_*.csv"))


@pytest.mark.recorded
def test_lobsters_states_follow_from_one_another_by_its_messages(recorded, tmp_path) -> None:
    """State i is the state before it after message i, to depth 9: the 10th level is not known."""
    message_file, book_file = lobster_files(recorded)
    assert {find_feed(message_file), find_feed(book_file)} == {"lobster"}
    book = parse_files(tmp_path, [message_file, book_file], depth=20)
    messages = np.loadtxt(message_file, delimiter=",")
    assert (book.rows, book.tick_size) == (len(messages), 0.01)
    ticks, sizes = np.array(book.price_ticks), np.array(book.sizes)
    sides = [(slice(9, None, -1), 1), (slice(10, 20), -1)]
    for row in range(1, book.rows):
        _, kind, _, size, price, direction = messages[row]
        for levels, sign in sides:
            before = dict(zip(ticks[row - 1, levels], sizes[row - 1, levels], strict=True))
            if sign == direction and kind in (1, 2, 3, 4):
                tick = round(price / 100)
                before[tick] = before.get(tick, 0) + (size if kind == 1 else -size)
            expected = sorted((-sign * tick, left) for tick, left in before.items() if left > 0)
            found = list(zip(-sign * ticks[row, levels], sizes[row, levels], strict=True))
            assert found[:9] == expected[:9], row
    # 2012-06-21 was summer time in New York: 34200.004241176 s after midnight is 13:30 UTC.
    opening_ns = np.datetime64("2012-06-21T13:30:00.004241176", "ns").astype(int)
    assert book.timestamps[0] == opening_ns
    executed = messages[1:][messages[1:, 1] == 4]
    assert book.traded.sum() == -(executed[:, 3] * executed[:, 5]).sum()


def write_lobster(folder: Path, books: str, messages: int, name: str = "A_2024-01-05") -> None:
    lines = "".join(f"34200.{i:09d},1,{i},5,100,1\n" for i in range(messages))
    put(folder, f"{name}_message_2.csv", lines.encode())
    put(folder, f"{name}_orderbook_2.csv", books.encode())


def test_lobsters_empty_levels_and_faults(tmp_path) -> None:
    empty = "9999999999,0,-9999999999,0"
    books = f"1010000,5,1000000,7,{empty}\n{empty},{empty}\n1020000,5,1000000,6,{empty}\n"
    write_lobster(tmp_path, books, 3)
    data_parser.parse_pair({**data_parser.config, "data_dir": str(tmp_path), "depth": 2}, "A_B")
    book = open_book(tmp_path / "book_states" / "A_B")
    assert (np.array(book.price_ticks) * book.tick_size).tolist() == [[100, 101], [100, 102]]
    assert book.sizes.tolist() == [[7, 5], [6, 5]]
    assert book.meta["counters"]["thin_states"] == 1
    assert str(np.datetime64(int(book.timestamps[0]), "ns"))[:19] == "2024-01-05T14:30:00"  # winter
    for folder in ("negative", "more", "fewer", "dateless", "alone", "cut"):
        (tmp_path / folder).mkdir()
    write_lobster(tmp_path / "negative", books.replace(",7,", ",-7,"), 3)
    assert "row 1: it or the message beside it" in refuse(tmp_path / "negative", depth=2)
    write_lobster(tmp_path / "more", books, 4)
    assert "ends before row 4" in refuse(tmp_path / "more", depth=2)
    write_lobster(tmp_path / "fewer", books, 2)
    assert "ends before row 3" in refuse(tmp_path / "fewer", depth=2)
    write_lobster(tmp_path / "dateless", books, 3, "A")
    assert "its name holds no date" in refuse(tmp_path / "dateless", depth=2)
    put(tmp_path / "alone", "A_2024-01-05_orderbook_2.csv", books.encode())
    assert "put the other one beside it" in refuse(tmp_path / "alone", depth=2)
    write_lobster(tmp_path / "cut", books[:-20], 3)
    assert "no whole LOBSTER file" in refuse(tmp_path / "cut", depth=2)


# hftbacktest


def convert_by_hftbacktest(file: Path, out: Path) -> Path:
    converter = pytest.importorskip("hftbacktest.data.utils.binancefutures")
    with contextlib.redirect_stdout(io.StringIO()):
        converter.convert(str(file), str(out / f"{file.name}.npz"), buffer_size=600_000)
    return out / f"{file.name}.npz"


@pytest.mark.recorded
@pytest.mark.parametrize("symbol", ["btcusdt", "ethusdt"])
def test_what_hftbacktest_makes_of_a_recording_gives_its_states(recorded, tmp_path, symbol) -> None:
    """The snapshot of ETH has the time of the message before it, which belongs to it."""
    files = sorted((recorded / "binance" / "usdm").glob(f"{symbol}_2024071[89].gz"))
    right = parse_files(tmp_path / "recorded", files, depth=20)
    converted = [convert_by_hftbacktest(file, tmp_path) for file in files]
    assert find_feed(converted[0]) == "hftbacktest"
    book = parse_files(tmp_path / "converted", converted, depth=20)
    assert right.rows == {"btcusdt": 9_017, "ethusdt": 8_924}[symbol]
    assert same(book, right)
    assert book.meta["counters"]["snapshots"] == 1


FIELDS = {"ev": "u8", "exch_ts": "i8", "local_ts": "i8", "px": "f8", "qty": "f8"}
EVENT = np.dtype([*FIELDS.items(), ("order_id", "u8"), ("ival", "i8"), ("fval", "f8")])
BUY, SELL, EXCHANGE, LOCAL = 1 << 29, 1 << 28, 1 << 31, 1 << 30


def test_hftbacktests_events_of_any_chunks_are_one_stream(tmp_path, monkeypatch) -> None:
    """Snapshots wait for the message after them, wherever a chunk ends; local events are left."""
    day = 1_723_161_256 * 10**9
    both = EXCHANGE | LOCAL
    rows = [
        (1 | BUY | both, day, day + 1, 99.0, 3.0),  # before the first snapshot
        (3 | BUY | both, day + 5, day + 9, 90.0, 0.0),
        (4 | BUY | both, day + 5, day + 9, 100.0, 1.0),
        (3 | SELL | both, day + 5, day + 9, 110.0, 0.0),
        (4 | SELL | both, day + 5, day + 9, 101.0, 2.0),
        (1 | BUY | both, day + 7, day + 8, 100.0, 4.0),
        (2 | BUY | both, day + 8, day + 9, 101.0, 1.0),  # a trade
        (1 | SELL | LOCAL, day + 3, day + 10, 101.0, 9.0),  # not of the exchange's order
        (1 | SELL | both, day + 20, day + 21, 101.0, 5.0),
        (1 | BUY | both, day + 30, day + 31, 100.0, 6.0),
        (3 | BUY | both, day + 30, day + 40, 90.0, 0.0),  # of the message before it
        (4 | BUY | both, day + 30, day + 40, 99.0, 1.0),
        (3 | SELL | both, day + 30, day + 40, 110.0, 0.0),
        (4 | SELL | both, day + 30, day + 40, 102.0, 2.0),
        (1 | SELL | both, day + 50, day + 60, 103.0, 1.0),
    ]
    events = np.zeros(len(rows), EVENT)
    for name, column in zip(EVENT.names[:5], zip(*rows, strict=True), strict=True):
        events[name] = column
    expected = [  # time, best bid and ask with their sizes
        (7, 100, 4, 101, 2),
        (20, 100, 4, 101, 5),
        (30, 100, 6, 102, 2),
        (50, 100, 6, 102, 2),
    ]
    for chunk in (1, 2, 3, 5, 15):
        folder = tmp_path / str(chunk)
        (folder / "raw" / "A_B").mkdir(parents=True)
        np.savez_compressed(folder / "raw" / "A_B" / "1.npz", data=events)
        whole = recordings.read_npy_chunks
        monkeypatch.setattr(
            hftbacktest,
            "read_npy_chunks",
            lambda file, fields, chunk=chunk, whole=whole: whole(file, chunk, fields),
        )
        config = {**data_parser.config, "data_dir": str(folder), "depth": 2}
        data_parser.parse_pair(config, "A_B")
        book = open_book(folder / "book_states" / "A_B")
        prices = np.array(book.price_ticks) * book.tick_size
        found = np.column_stack([book.timestamps - day, prices, book.sizes])
        assert found[:, [0, 1, 3, 2, 4]].tolist() == [list(map(float, row)) for row in expected]
    events["ev"] = 10 | BUY | both
    np.save(tmp_path / "raw.npy", events)
    put(tmp_path, "1.npy", (tmp_path / "raw.npy").read_bytes())
    assert "order by order events" in refuse(tmp_path)
