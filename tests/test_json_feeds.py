"""Raw recordings of JSON messages, as recorders write them, give the reference book's states."""

import json
import re
import zipfile
import zlib

import numpy as np
import pytest
from test_binance_stream import compact, write_depth, write_snapshot
from test_feeds import (
    START_MS,
    Message,
    count,
    parse,
    put,
    refuse,
    tell_states,
    tell_story,
    write_lines,
)

import data_parser
from lob.book.states import open_book
from lob.feeds.batch import SNAPSHOT, find_feed
from lob.feeds.json_lines import parse_time

COMPACT = {"separators": (",", ":")}


def split(levels, price_digits: int = 2) -> tuple[list[list[str]], list[list[str]]]:
    """Return bids and asks of a message of the story, as texts."""
    bids, asks = (
        [
            [f"{ticks / 10:.{price_digits}f}", f"{lots / 1000:.3f}"]
            for buy, ticks, lots in levels
            if buy == side
        ]
        for side in (True, False)
    )
    return bids, asks


def iso(time_ms: int, end: str = "Z") -> str:
    return f"{np.datetime64(time_ms, 'ms')}000000{end}"


class Checksummed:
    """A book of texts that computes the checksums of its messages."""

    def __init__(self, price_digits: int = 2):
        self.sides = ({}, {})
        self.price_digits = price_digits

    def take(self, message: Message) -> tuple[list, list]:
        """Apply a message; return bids and asks, best first, as texts."""
        if message[1] == SNAPSHOT:
            self.sides = ({}, {})
        for side, levels in zip(self.sides, split(message[2], self.price_digits), strict=True):
            for price, size in levels:
                side[price] = size
                if float(size) == 0:
                    del side[price]
        bids, asks = (
            sorted(side.items(), key=lambda level: float(level[0])) for side in self.sides
        )
        return bids[::-1], asks


def write_okx(story: list[Message], symbol: str = "A-B") -> list[str]:
    lines, book, last = [], Checksummed(), -1
    for number, message in enumerate(story):
        time_ms, kind, levels = message
        bids, asks = book.take(message)
        texts = []
        for rank in range(25):
            for side in (bids, asks):
                texts += [":".join(level) for level in side[rank : rank + 1]]
        checksum = np.uint32(zlib.crc32(":".join(texts).encode())).view(np.int32).item()
        whole = kind == SNAPSHOT
        sides = ([[*level, "0", "1"] for level in side] for side in split(levels))
        data = dict(zip(("bids", "asks"), sides, strict=True))
        data |= {"ts": str(time_ms), "checksum": checksum}
        data |= {"seqId": 100 + 7 * number, "prevSeqId": -1 if whole else last}
        last = data["seqId"]
        action = "snapshot" if whole else "update"
        arg = {"channel": "books", "instId": symbol}
        lines.append(json.dumps({"arg": arg, "action": action, "data": [data]}, **COMPACT))
    return lines


def write_kraken_1(story: list[Message], symbol: str = "A/B") -> list[str]:
    lines, book = [], Checksummed()
    for message in story:
        time_ms, kind, levels = message
        checksum = kraken_checksum(*book.take(message))
        time = f"{time_ms / 1000:.6f}"
        bids, asks = ([[*level, time] for level in side] for side in split(levels))
        if kind == SNAPSHOT:
            parts = [{"as": asks, "bs": bids}]
        else:
            parts = [{name: side} for name, side in (("a", asks), ("b", bids)) if side]
            parts[-1]["c"] = str(checksum)
        lines.append(json.dumps([336, *parts, "book-1000", symbol], **COMPACT))
    return lines


def write_kraken_2(story: list[Message], symbol: str = "A/B") -> list[str]:
    """Write numbers, not texts, with the zeros at their end that are part of a checksum."""
    lines, book = [], Checksummed(price_digits=1)
    for message in story:
        time_ms, kind, levels = message
        checksum = kraken_checksum(*book.take(message))
        bids, asks = (
            ",".join(f'{{"price":{price},"qty":{size}}}' for price, size in side)
            for side in split(levels, price_digits=1)
        )
        time = "" if kind == SNAPSHOT else f',"timestamp":"{iso(time_ms)}"'
        data = f'"symbol":"{symbol}","bids":[{bids}],"asks":[{asks}],"checksum":{checksum}{time}'
        kind_word = "snapshot" if kind == SNAPSHOT else "update"
        lines.append(f'{{"channel":"book","type":"{kind_word}","data":[{{{data}}}]}}')
    return lines


def kraken_checksum(bids: list, asks: list) -> int:
    texts = [text.replace(".", "").lstrip("0") for level in asks[:10] + bids[:10] for text in level]
    return zlib.crc32("".join(texts).encode())


def write_coinbase(story: list[Message], symbol: str = "A-B") -> list[str]:
    """Write Exchange's messages, whose snapshot of old did not tell its time."""
    lines = []
    for time_ms, kind, levels in story:
        bids, asks = split(levels)
        if kind == SNAPSHOT:
            message = {"type": "snapshot", "product_id": symbol, "asks": asks, "bids": bids}
        else:
            changes = [["buy", *level] for level in bids] + [["sell", *level] for level in asks]
            message = {"type": "l2update", "product_id": symbol, "changes": changes}
            message["time"] = iso(time_ms)
        lines.append(json.dumps(message, **COMPACT))
    return lines


def write_advanced_trade(story: list[Message], symbol: str = "A-B") -> list[str]:
    lines = []
    for number, (time_ms, kind, levels) in enumerate(story):
        sides = zip(("bid", "offer"), split(levels), strict=True)
        updates = [
            {"side": side, "event_time": "", "price_level": price, "new_quantity": size}
            for side, side_levels in sides
            for price, size in side_levels
        ]
        event = {"type": "snapshot" if kind == SNAPSHOT else "update", "product_id": symbol}
        message = {"channel": "l2_data", "client_id": "", "timestamp": iso(time_ms)}
        message |= {"sequence_num": number, "events": [event | {"updates": updates}]}
        lines.append(json.dumps(message, **COMPACT))
    return lines


def write_bybit(story: list[Message], symbol: str = "AB") -> list[str]:
    lines = []
    for number, (time_ms, kind, levels) in enumerate(story):
        bids, asks = split(levels)
        message = {
            "topic": f"orderbook.500.{symbol}",
            "type": "snapshot" if kind == SNAPSHOT else "delta",
            "ts": time_ms,
            "data": {"s": symbol, "b": bids, "a": asks, "u": 50 + number, "seq": 9 * number},
            "cts": time_ms - 3,
        }
        lines.append(json.dumps(message, **COMPACT))
    return lines


# Of each feed: its name, its writer, and what the exchange answers to a subscription.
FEED_WRITERS = {
    "okx": ("okx", write_okx, '{"event":"subscribe","arg":{"channel":"books","instId":"A-B"}}'),
    "kraken 1": (
        "kraken",
        write_kraken_1,
        '{"connectionID":18239578009413566319,"event":"systemStatus","status":"online"}',
    ),
    "kraken 2": (
        "kraken",
        write_kraken_2,
        '{"method":"subscribe","result":{"channel":"book","depth":1000,"snapshot":true,'
        '"symbol":"A/B"},"success":true,"time_in":"2023-10-06T17:35:55.219022Z"}',
    ),
    "coinbase": (
        "coinbase",
        write_coinbase,
        '{"type":"subscriptions","channels":[{"name":"level2","product_ids":["A-B"]}]}',
    ),
    "advanced trade": ("coinbase", write_advanced_trade, ""),
    "bybit": (
        "bybit",
        write_bybit,
        '{"success":true,"ret_msg":"","conn_id":"c","req_id":"","op":"subscribe"}',
    ),
}


def by_cryptofeed(line: str, time_ms: int) -> str:
    record = {"t": "recv", "conn": "X.ws.1", "ts": time_ms / 1000, "data": line}
    return json.dumps(record, **COMPACT)


# How recorders write a message that was received at a local time in ms.
RECORDERS = {
    "the message alone": lambda line, time_ms: line,
    "ns": lambda line, time_ms: f"{time_ms}123456 {line}",
    "seconds": lambda line, time_ms: f"{time_ms / 1000},{line}",
    "ISO": lambda line, time_ms: f"{iso(time_ms, '+00:00')}\t{line}",
    "date and time": lambda line, time_ms: f"{iso(time_ms, '').replace('T', ' ')} {line}",
    "cryptofeed": by_cryptofeed,
    "a record with the message in it": lambda line, time_ms: (
        f'{{"local_timestamp":{time_ms}000,"message":{line}}}'
    ),
    "read and written again, with empty lines": lambda line, time_ms: (
        json.dumps(json.loads(line)) + "\r\n"
    ),
}


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("name", FEED_WRITERS)
def test_a_recording_gives_the_reference_books_states(tmp_path, name, recorder) -> None:
    feed, write, answer = FEED_WRITERS[name]
    story = tell_story(120)
    again = [(side, ticks + 1, 5) for side, ticks, _ in story[0][2]]
    story[60] = story[60][0], SNAPSHOT, again  # a reconnection
    lines = write(story)
    for place, text in ((60, answer), (0, answer)):
        lines[place:place] = [text] if text else []
    recorded = [RECORDERS[recorder](line, START_MS + 5) for line in lines]
    write_lines(tmp_path, recorded[:90], "1.gz")
    write_lines(tmp_path, recorded[90:], "2.gz")
    assert find_feed(tmp_path / "raw" / "A_B" / "1.gz") == feed
    states = parse(tmp_path)
    expected = tell_states(story)
    # A snapshot that does not tell its time has that of the next, or of the message before it.
    assert [state[:2] for state in states] == [state[:2] for state in expected]
    untimed = {0, 60} if name in ("kraken 2", "coinbase") else set()
    for place, (state, right) in enumerate(zip(states, expected, strict=True)):
        assert place in untimed or state == right
    counters = open_book(tmp_path / "book_states" / "A_B").meta["counters"]
    assert counters.get("checksums_differ", 0) == 0
    if feed in ("okx", "kraken"):
        assert counters["checksums_checked"] == len(story) - 2 * (name == "kraken 1")


SEQUENCED = {name: FEED_WRITERS[name] for name in ("okx", "advanced trade", "bybit")}


@pytest.mark.parametrize("name", SEQUENCED)
def test_a_message_that_is_missing_loses_the_book_until_the_next_snapshot(tmp_path, name) -> None:
    story = tell_story(60)
    story[40] = (story[40][0], SNAPSHOT, story[0][2])
    lines = SEQUENCED[name][1](story)
    write_lines(tmp_path, [*lines[:20], *lines[21:]])
    states = parse(tmp_path)
    assert states == tell_states(story[:20]) + tell_states(story[40:])
    lost_rows = sum(len(levels) for _, _, levels in story[21:40])
    assert count(tmp_path, "gaps") == 1
    assert count(tmp_path, "rows_before_snapshot") == lost_rows


@pytest.mark.parametrize("name", SEQUENCED)
def test_messages_that_came_twice_are_counted_and_change_nothing(tmp_path, name) -> None:
    story = tell_story(60)
    lines = SEQUENCED[name][1](story)
    write_lines(tmp_path, [*lines[:30], *lines[25:]])
    assert parse(tmp_path) == tell_states(story)
    assert count(tmp_path, "messages_repeated") == 5
    assert count(tmp_path, "gaps") == 0


@pytest.mark.parametrize("name", ["kraken 1", "coinbase"])
def test_files_that_overlap_where_no_message_has_a_number_are_cut(tmp_path, name) -> None:
    """Kraken and Coinbase Exchange number nothing: the user has to drop what came twice."""
    story = tell_story(400)
    _, write, _ = FEED_WRITERS[name]
    write_lines(tmp_path, write(story), "1.gz")
    write_lines(tmp_path, write(story)[100:], "2.gz")
    said = refuse(tmp_path)
    assert "2.gz, line 1: time goes back" in said and "drop what two of them hold" in said
    write_lines(tmp_path, write(story)[:100], "1.gz")
    assert parse(tmp_path)[1:] == tell_states(story)[1:]


@pytest.mark.parametrize("name", ["okx", "bybit"])
def test_a_message_that_comes_again_after_an_earlier_one_is_counted(tmp_path, name) -> None:
    """Messages of a lost book come in any order: 30, 20 and 30 once more."""
    story = tell_story(60)
    story[40] = story[40][0], SNAPSHOT, story[0][2]
    lines = SEQUENCED[name][1](story)
    write_lines(tmp_path, [*lines[:10], lines[30], lines[20], lines[30], *lines[40:]])
    expected = tell_states(story[:10]) + tell_states(story[40:])
    assert parse(tmp_path) == expected
    assert (count(tmp_path, "messages_repeated"), count(tmp_path, "gaps")) == (1, 2)


def test_a_lower_id_at_a_later_time_is_a_restart(tmp_path) -> None:
    story = tell_story(60)
    lines = write_okx(story[:30]) + write_okx([(story[30][0], SNAPSHOT, story[0][2]), *story[31:]])
    write_lines(tmp_path, [*lines[:30], *lines[31:]])
    assert parse(tmp_path) == tell_states(story[:30])
    assert count(tmp_path, "gaps") == 1


@pytest.mark.parametrize("name", FEED_WRITERS)
def test_a_recording_of_several_instruments_is_parsed_by_symbol(tmp_path, name) -> None:
    _, write, _ = FEED_WRITERS[name]
    stories = {"ONE/X": tell_story(50), "TWO/X": tell_story(50, seed=1)}
    both = [write(story, symbol) for symbol, story in stories.items()]
    lines = [line for pair in zip(*both, strict=True) for line in pair]
    if name == "advanced trade":  # which numbers the messages of a connection
        for number, line in enumerate(lines):
            message = json.loads(line)
            lines[number] = json.dumps(message | {"sequence_num": number}, **COMPACT)
    write_lines(tmp_path, lines)
    said = refuse(tmp_path)
    assert "holds ONE/X, TWO/X: take one of them, such as --symbol=ONE/X" in said
    assert "set --symbol to one of ONE/X, TWO/X" in refuse(tmp_path, symbol="THREE/X")
    for symbol, story in stories.items():
        right = [state[:2] for state in tell_states(story)]
        assert [state[:2] for state in parse(tmp_path, symbol=symbol)] == right
    names = {folder.name for folder in (tmp_path / "book_states").iterdir()}
    assert names == {"A_B_ONE-X", "A_B_TWO-X"}


def test_a_level_that_falls_out_of_krakens_depth_is_gone(tmp_path) -> None:
    """A subscription of 10 levels. The 11th bid is not deleted, and is not sent again either."""
    levels = [(side, 1000 + (-i if side else i), 5) for side in (True, False) for i in range(2, 12)]
    first = (START_MS, SNAPSHOT, levels)
    better = (START_MS + 5, 3, [(True, 999, 7)])  # the bid at 989 falls out
    removed = (START_MS + 9, 3, [(True, 999, 0)])  # Kraken sends the next one: not the old 989
    back = (START_MS + 12, 3, [(True, 988, 4)])
    story = [first, better, removed, back]
    lines = [line.replace("book-1000", "book-10") for line in write_kraken_1(story)]
    write_lines(tmp_path, lines)
    states = parse(tmp_path, depth=20)
    bids = [state[0][:10] for state in states]
    assert bids == [
        list(range(989, 999)),
        list(range(990, 1000)),
        [988, *range(990, 999)],
    ]
    assert count(tmp_path, "thin_states") == 1


def test_checksums_that_differ_are_counted(tmp_path) -> None:
    story = tell_story(40)
    lines = write_okx(story)
    lines[20] = re.sub('"checksum":-?', '"checksum":1', lines[20])
    write_lines(tmp_path, lines)
    assert parse(tmp_path) == tell_states(story)
    assert (count(tmp_path, "checksums_checked"), count(tmp_path, "checksums_differ")) == (40, 1)
    # OKX sends 0 now: no checksum.
    write_lines(tmp_path, [json.dumps(zero_checksum(json.loads(line))) for line in lines])
    assert parse(tmp_path) == tell_states(story)
    assert "checksums_checked" not in open_book(tmp_path / "book_states" / "A_B").meta["counters"]


def zero_checksum(message: dict) -> dict:
    message["data"][0]["checksum"] = 0
    return message


def test_another_channel_of_the_same_instrument_is_passed_by(tmp_path) -> None:
    story = tell_story(40)
    lines = write_okx(story)
    other = [line.replace('"books"', '"books50-l2-tbt"') for line in lines[::2]]
    write_lines(tmp_path, [*lines[:20], *other, *lines[20:]])
    assert parse(tmp_path) == tell_states(story)
    assert count(tmp_path, "messages_of_other_channels") == 20


def test_faults_of_a_recording_are_named(tmp_path) -> None:
    lines = write_okx(tell_story(30))
    write_lines(tmp_path, [*lines[:20], lines[20][:50], *lines[21:]])
    assert "line 21: no whole message of this feed" in refuse(tmp_path)
    write_lines(tmp_path, [*lines[:20], "Connection closed", *lines[20:]])
    assert "line 21: no whole message of this feed" in refuse(tmp_path)
    write_lines(tmp_path, lines[1:])
    assert "holds no snapshot" in refuse(tmp_path)
    write_lines(tmp_path, [FEED_WRITERS["okx"][2]] * 3)
    assert "holds no order book messages" in refuse(tmp_path)
    snapshot = write_coinbase(tell_story(1))
    write_lines(tmp_path, snapshot)
    assert "no message that tells its time" in refuse(tmp_path)
    text = lines[5].replace('["', '["x', 1)
    write_lines(tmp_path, [*lines[:5], text, *lines[6:]])
    assert "line 6" in refuse(tmp_path)
    put(
        tmp_path,
        "1.gz",
        b"time_exchange,update_type,is_buy,entry_px,entry_sx\n2026-01-01,SET,1,1,1\n",
    )
    assert "files of feed coinapi name no instruments" in refuse(tmp_path, symbol="A")


@pytest.mark.parametrize(
    ("time", "right"),
    [
        ("1723161256", 1723161256 * 10**9),
        (1723161256298, 1723161256298 * 10**6),
        ("1723161256298765", 1723161256298765 * 10**3),
        (1723161256298765432, 1723161256298765432),
        ("1723161256.298765", 1723161256298765 * 10**3),
        ("1723161256298.765", 1723161256298765 * 10**3),
        ("2024-08-08T23:54:16.298765432Z", 1723161256298765432),
        ("2024-08-08T23:54:16.298765+00:00", 1723161256298765 * 10**3),
        ("2024-08-09T01:54:16.298765+02:00", 1723161256298765 * 10**3),
    ],
)
def test_times_are_exact_in_every_unit(time, right) -> None:
    assert parse_time(time) == right


@pytest.mark.recorded
def test_bybits_archive_as_downloaded_gives_the_dictionaries_states(recorded, tmp_path) -> None:
    file = recorded / "formats" / "bybit_XRPUSDT_ob500.data.zip"
    folder = tmp_path / "raw" / "A_B"
    folder.mkdir(parents=True)
    (folder / file.name).write_bytes(file.read_bytes())
    assert find_feed(file) == "bybit"
    with zipfile.ZipFile(file) as archive:
        lines = archive.read(archive.namelist()[0]).splitlines()
    expected = []
    sides: tuple[dict, dict] = ({}, {})
    for line in lines:
        message = json.loads(line)
        if message["type"] == "snapshot":
            sides = ({}, {})
        for side, name in zip(sides, "ba", strict=True):
            side |= {round(float(p) * 10**4): float(size) for p, size in message["data"][name]}
        for side in sides:
            for price in [price for price, size in side.items() if size == 0]:
                del side[price]
        bids, asks = sorted(sides[0])[-50:], sorted(sides[1])[:50]
        sizes = [sides[0][price] for price in bids] + [sides[1][price] for price in asks]
        expected.append((bids + asks, sizes, message["ts"] * 10**6))
    data_parser.parse_pair({**data_parser.config, "data_dir": str(tmp_path), "depth": 100}, "A_B")
    book = open_book(tmp_path / "book_states" / "A_B")
    assert book.rows == len(expected) == 50
    ticks, right_sizes, times = zip(*expected, strict=True)
    np.testing.assert_array_equal(book.price_ticks, ticks)
    np.testing.assert_array_equal(book.sizes, np.array(right_sizes, np.float32))
    np.testing.assert_array_equal(book.timestamps, times)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("recorder", RECORDERS)
def test_binances_messages_are_read_as_recorders_write_them(tmp_path, recorder, spot, bare) -> None:
    story = tell_story(120)
    depth = [write_depth(message, story, spot, bare) for message in range(1, 120)]
    lines = [*depth[:9], write_snapshot(3, story), *depth[9:]]
    bodies = [compact(line.partition(" ")[2]) for line in lines]
    recorded = [
        RECORDERS[recorder](line, START_MS + 5) for line in ['{"result":null,"id":1}', *bodies]
    ]
    write_lines(tmp_path, recorded[:90], "1.gz")
    write_lines(tmp_path, recorded[90:], "2.gz")
    assert find_feed(tmp_path / "raw" / "A_B" / "1.gz") == "binance"
    assert parse(tmp_path) == tell_states(story, first=4 if spot else 3)


def test_binances_symbols_are_chosen_and_a_nameless_snapshot_is_refused(tmp_path) -> None:
    stories = {"ONEUSDT": tell_story(60), "TWOUSDT": tell_story(60, seed=1)}
    lines = []
    for symbol, story in stories.items():
        depth = [write_depth(message, story, True, True, symbol) for message in range(1, 60)]
        body = write_snapshot(3, story).partition(" ")[2]
        url = f"https://api.binance.com/api/v3/depth?symbol={symbol}&limit=1000"
        record = {"t": "http", "conn": "", "ts": START_MS / 1000, "url": url, "data": body}
        lines += [*depth[:9], json.dumps(record), *depth[9:]]
    write_lines(tmp_path, lines)
    assert "take one of them, such as --symbol=ONEUSDT" in refuse(tmp_path)
    for symbol, story in stories.items():
        assert parse(tmp_path, symbol=symbol) == tell_states(story, first=4)
    write_lines(tmp_path, [*lines[:20], write_snapshot(3, stories["ONEUSDT"]), *lines[20:]])
    assert "line 21: a REST snapshot does not tell its symbol" in refuse(tmp_path, symbol="TWOUSDT")
