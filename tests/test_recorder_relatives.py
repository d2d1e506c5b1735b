"""Relatives of raw recordings: what recorders write between the messages, around them and of them.

The right states are those of the recording as the exchange sent it.
"""

import io
import json
import tarfile

import numpy as np
import pytest
from test_binance_stream import write_depth, write_snapshot
from test_containers import pack_zip
from test_feeds import (
    START_MS,
    count,
    parse,
    put,
    refuse,
    tell_states,
    tell_story,
    write_coinapi,
    write_lines,
    write_tardis,
)
from test_json_feeds import (
    FEED_WRITERS,
    iso,
    kraken_checksum,
    write_coinbase,
    write_kraken_2,
    write_okx,
)

from lob.book import units
from lob.book.states import open_book
from lob.feeds import recordings
from lob.feeds.batch import SNAPSHOT, find_feed

STORY = tell_story(60)

# Between the messages


def between(lines: list[str], words: list[str]) -> list[str]:
    """Return lines with a word behind each, one word after the other."""
    return [text for at, line in enumerate(lines) for text in (line, words[at % len(words)])]


WORDS = {
    "okx": ["pong", "1723161256298 pong", '"ping"', '{"event":"notice","code":"64008","msg":"x"}'],
    "kraken 1": ['{"event":"heartbeat"}', '[7,["5698.4","5700.0","1.5"],"spread","A/B"]', "pong"],
    "kraken 2": [
        '{"channel":"heartbeat"}',
        '{"method":"subscribe","result":null,"success":false,"error":"x"}',
        '{"method":"pong","req_id":1,"time_in":"2023-10-06T17:35:55Z"}',
    ],
    "coinbase": [
        '{"type":"heartbeat","sequence":90,"product_id":"A-B","time":"2024-08-08T23:54:16Z"}',
        '{"type":"error","message":"Failed to subscribe"}',
    ],
    "bybit": ['{"success":true,"ret_msg":"pong","conn_id":"x","op":"ping"}', "pong"],
}


@pytest.mark.parametrize("name", WORDS)
def test_heartbeats_and_answers_between_are_passed_by(tmp_path, name) -> None:
    _, write, _ = FEED_WRITERS[name]
    write_lines(tmp_path, between(write(STORY), WORDS[name]))
    assert [state[:2] for state in parse(tmp_path)] == [state[:2] for state in tell_states(STORY)]
    assert count(tmp_path, "lines_passed_by") == 60


FIRST_WORDS = {
    "bybit": '{"topic":"publicTrade.AB","type":"snapshot","ts":1723161256298,"data":[{"s":"AB"}]}',
    "kraken 2": '{"channel":"level3","type":"update","data":[{"symbol":"A/B","bids":[]}]}',
    "coinbase": '{"type":"open","side":"sell","product_id":"A-B","price":"1","order_id":"a-b"}',
}


@pytest.mark.parametrize("name", FIRST_WORDS)
def test_a_recording_may_begin_with_many_messages_of_other_channels(tmp_path, name) -> None:
    feed, write, _ = FEED_WRITERS[name]
    words = [FIRST_WORDS[name]] * 1000  # more than the 64 KiB that tell the feed
    write_lines(tmp_path, words)
    assert find_feed(tmp_path / "raw" / "A_B" / "1.gz") == feed
    said = refuse(tmp_path)
    assert "record its book channel (training_data/README.md names it)" in said
    write_lines(tmp_path, [*words, *write(STORY)])
    assert [state[:2] for state in parse(tmp_path)] == [state[:2] for state in tell_states(STORY)]


# Around them


@pytest.mark.parametrize("name", FEED_WRITERS)
def test_a_record_may_hold_the_message_as_its_data(tmp_path, name) -> None:
    _, write, _ = FEED_WRITERS[name]
    lines = write(STORY)
    write_lines(tmp_path, [f'{{"received":{START_MS}000,"data":{line}}}' for line in lines])
    assert [state[:2] for state in parse(tmp_path)] == [state[:2] for state in tell_states(STORY)]


LOGS = {
    "a time in brackets": lambda line: f"[2024-08-08 23:54:16,298] {line}",
    "a level and a number": lambda line: f"2024-08-08 23:54:16,298 [INFO] [5] {line}",
    "sorted keys": lambda line: json.dumps(json.loads(line), sort_keys=True),
}


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("name", FEED_WRITERS)
def test_a_line_may_be_that_of_a_log(tmp_path, name, log) -> None:
    feed, write, _ = FEED_WRITERS[name]
    write_lines(tmp_path, [LOGS[log](line) for line in write(STORY)])
    assert find_feed(tmp_path / "raw" / "A_B" / "1.gz") == feed
    assert [state[:2] for state in parse(tmp_path)] == [state[:2] for state in tell_states(STORY)]


@pytest.mark.parametrize("bare", [False, True])
def test_a_record_may_hold_binances_message_as_its_data(tmp_path, bare) -> None:
    lines = [write_snapshot(0, STORY), *(write_depth(at, STORY, False) for at in range(1, 60))]
    records = []
    for line in lines:
        time, message = line.split(" ", 1)
        message = json.loads(message)
        data = message.get("data", message) if bare else message
        records.append(json.dumps({"received": int(time), "data": data}))
    write_lines(tmp_path, records)
    assert parse(tmp_path) == tell_states(STORY, first=1)


@pytest.mark.parametrize("indent", [None, 1])
def test_messages_in_one_list_are_refused_until_each_has_its_line(tmp_path, indent) -> None:
    messages = [json.loads(line) for line in write_okx(STORY)]
    put(tmp_path, "1.json", json.dumps(messages, indent=indent).replace("}, {", "},\n{").encode())
    assert "or write each message in a line of its own" in refuse(tmp_path)
    write_lines(tmp_path, [json.dumps(message) for message in messages], "1.json")
    assert parse(tmp_path) == tell_states(STORY)


# Of them


def test_krakens_small_numbers_may_be_written_with_exponents(tmp_path) -> None:
    """Python writes 0.00000006 as 6e-08, which has 8 decimals; the checksum is over those."""
    book: tuple[dict, dict] = ({}, {})
    as_sent, written_again = [], []
    for time_ms, kind, levels in STORY:
        sides: dict[str, list] = {"bids": [], "asks": []}
        for is_buy, ticks, lots in levels:
            price, size = f"{ticks / 10:.1f}", f"{lots / 1e8:.8f}"
            book[is_buy].pop(ticks, None)
            if lots:
                book[is_buy][ticks] = price, size
            sides["bids" if is_buy else "asks"].append(f'{{"price":{price},"qty":{size}}}')
        asks, bids = ([side[ticks] for ticks in sorted(side)] for side in book)
        data = ",".join(f'"{side}":[{",".join(texts)}]' for side, texts in sides.items())
        time = "" if kind == SNAPSHOT else f',"timestamp":"{iso(time_ms)}"'
        checksum = kraken_checksum(bids[::-1], asks)
        word = "snapshot" if kind == SNAPSHOT else "update"
        as_sent.append(
            f'{{"channel":"book","type":"{word}","data":[{{"symbol":"A/B",{data},'
            f'"checksum":{checksum}{time}}}]}}'
        )
        written_again.append(json.dumps(json.loads(as_sent[-1])))
    assert "e-08" in written_again[0]
    for name, lines in (("sent", as_sent), ("again", written_again)):
        write_lines(tmp_path / name, lines)
        ticks = [state[0] for state in parse(tmp_path / name)]
        assert ticks == [state[0] for state in tell_states(STORY)]
        found = open_book(tmp_path / name / "book_states" / "A_B")
        assert np.array_equal(
            np.rint(np.array(found.sizes, np.float64) * 1e8),
            [state[1] for state in tell_states(STORY)],
        )
        assert found.meta["counters"]["checksums_checked"] == 60
        assert found.meta["counters"]["checksums_differ"] == 0


@pytest.mark.parametrize("wrong", ['"x"', "1e-99", "1e400", "null"])
def test_a_number_of_kraken_that_is_none_is_named(tmp_path, wrong) -> None:
    lines = write_kraken_2(STORY)
    head, place, rest = lines[5].partition('"qty":')
    lines[5] = head + place + wrong + rest[rest.index("}") :]
    write_lines(tmp_path, lines)
    assert "line 6" in refuse(tmp_path)


@pytest.mark.parametrize(
    "time", ['"0001-01-01T00:00:00.000000Z"', '"1970-01-01T00:00:00Z"', '""', "null"]
)
def test_a_time_that_coinbase_leaves_open_is_that_of_the_next_message(tmp_path, time) -> None:
    lines = write_coinbase(STORY)
    lines[0] = f'{lines[0][:-1]},"time":{time}}}'
    write_lines(tmp_path, lines)
    (first, *states), (right, *expected) = parse(tmp_path), tell_states(STORY)
    assert states == expected
    assert first == (*right[:2], STORY[1][0], True)


# From whom


@pytest.mark.parametrize("one_file", [False, True])
@pytest.mark.parametrize("first", ["spot", "futures"])
def test_binances_spot_and_futures_in_one_folder_are_refused(tmp_path, first, one_file) -> None:
    """Both name their symbol BTCUSDT."""
    spot, futures = (
        [write_snapshot(0, STORY), *(write_depth(at, STORY, spot) for at in range(1, 60))]
        for spot in (True, False)
    )
    before, after = (spot, futures) if first == "spot" else (futures, spot)
    if one_file:
        write_lines(tmp_path, [*before[:40], *after[40:]])
    else:
        write_lines(tmp_path, before[:40], "1.gz")
        write_lines(tmp_path, after[40:], "2.gz")
    said = refuse(tmp_path)
    other = "futures" if first == "spot" else "spot"
    assert f"it is of {other}, those before it are of the other market: keep each market" in said
    write_lines(tmp_path, before, "1.gz")
    write_lines(tmp_path, before[40:], "2.gz")
    assert parse(tmp_path) == tell_states(STORY, first=1)


@pytest.mark.parametrize("one_file", [False, True])
def test_tardis_files_of_two_exchanges_are_refused(tmp_path, monkeypatch, one_file) -> None:
    """Both name their symbol BTCUSDT. Files that open with a snapshot are parsed apart."""
    monkeypatch.setattr(units, "ROWS_TO_INFER_UNITS", 1)
    other = write_tardis(STORY).replace(b"binance-futures", b"okex-swap")
    if one_file:
        put(tmp_path, "1.csv", write_tardis(STORY[:30]) + other.partition(b"\n")[2])
    else:
        put(tmp_path, "1.csv", write_tardis(STORY[:30]))
        put(tmp_path, "2.csv", other)
    assert "are of binance-futures, okex-swap: keep each exchange in a folder" in refuse(tmp_path)
    put(tmp_path, "1.csv", write_tardis(STORY[:30]))
    put(tmp_path, "2.csv", write_tardis(STORY[30:]))
    assert parse(tmp_path) == tell_states(STORY)


def test_a_tardis_file_may_have_semicolons_and_its_columns_in_any_order(tmp_path) -> None:
    rows = [line.split(",") for line in write_tardis(STORY).decode().splitlines()]
    text = "\n".join(";".join(cells[::-1]) for cells in rows)
    put(tmp_path, "1.csv", text.encode())
    assert parse(tmp_path) == tell_states(STORY)
    put(tmp_path, "1.csv", "\n".join(",".join(cells[1:]) for cells in rows).encode())  # no exchange
    assert parse(tmp_path) == tell_states(STORY)


# In what


def pack_tar(name: str, data: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


PACKED = {
    "a tar archive": pack_tar("1.csv", write_tardis(STORY)),
    "packed twice": pack_zip({"1.csv": write_tardis(STORY)}),
    "an Arrow file": b"ARROW1\0\0" + bytes(100),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("feed", [None, "tardis"])
@pytest.mark.parametrize("kind", PACKED)
def test_a_packing_is_named_until_it_is_unpacked(tmp_path, kind, feed) -> None:
    put(tmp_path, "1.csv.gz", PACKED[kind])
    said = refuse(tmp_path, feed=feed)
    assert f"1.csv.gz is {kind}: unpack it, or write it again, as gzip, zstd, zip or plain" in said
    put(tmp_path, "1.csv.gz", write_tardis(STORY))
    assert parse(tmp_path, feed=feed) == tell_states(STORY)


def test_a_file_without_the_right_to_read_it_is_named(tmp_path, monkeypatch) -> None:
    """Tests may run as root, who reads all files."""

    def refuse_to_open(name: str):
        raise PermissionError(13, "Permission denied", name)

    put(tmp_path, "1.csv", write_coinapi(STORY))
    with monkeypatch.context() as patch:
        patch.setattr(recordings.pa, "OSFile", refuse_to_open)
        assert "1.csv can't be read (Permission denied): take the right to it" in refuse(tmp_path)
    assert parse(tmp_path) == tell_states(STORY)


def test_notes_and_checksums_beside_a_recording_are_no_recordings(tmp_path) -> None:
    put(tmp_path, "días 1/büch – 1.csv", write_tardis(STORY))
    for name in ("1.csv.sha256", "1.csv.md5", "1.csv.CHECKSUM", "about.html"):
        put(tmp_path, name, b"x")
    assert parse(tmp_path) == tell_states(STORY)
    assert count(tmp_path, "files_passed_by") == 4
