"""Faults that the fuzzer (tests/fuzz.py) has found, each with what is right."""

import gzip
import io
import json
import re

import numpy as np
import pytest
from fuzz_files import make_events, save_array
from test_binance_stream import write_depth, write_snapshot
from test_feeds import (
    count,
    parse,
    put,
    refuse,
    tell_states,
    tell_story,
    write_coinapi,
    write_lines,
    write_npy,
    write_tardis,
)
from test_json_feeds import FEED_WRITERS

from lob.config import CheckFailed, InputError
from lob.feeds import databento
from lob.feeds.batch import NO_TIME, iso_to_ns, to_ns
from lob.feeds.json_lines import parse_time


@pytest.mark.parametrize("text", ["2500-01-01T00:00:00", "1500-01-01", "9999-12-31T23:59:59.5"])
def test_a_time_that_int64_does_not_hold_becomes_no_other_time(text) -> None:
    """numpy makes the year 1500 into 2084."""
    for read in (iso_to_ns, lambda text: parse_time(text + "Z" * ("T" in text))):
        with pytest.raises(ValueError, match=re.escape(text)):
            read(text)


def test_the_smallest_number_is_no_time() -> None:
    """It has no absolute value of its own type."""
    assert to_ns(np.array([-(2**63), 5], np.int64)).tolist() == [NO_TIME, 5 * 10**9]
    assert to_ns(np.array([5, 10**12], np.int64)).tolist() == [5 * 10**9, 10**18]


def test_a_date_of_another_century_is_refused_in_a_coinapi_file(tmp_path) -> None:
    text = write_coinapi(tell_story(30)).decode().replace("2024-08-08", "2525-08-08")
    put(tmp_path, "1.csv", text.encode())
    assert "row 1: time_exchange '2525-08-08T" in refuse(tmp_path)


@pytest.mark.parametrize("name", ["okx", "bybit", "kraken 1"])
def test_a_time_with_a_digit_too_many_is_refused_in_a_recording(tmp_path, name) -> None:
    """It is no whole number of 64 bits any more."""
    lines = FEED_WRITERS[name][1](tell_story(30))
    lines[7] = re.sub(r"1723161256\.?(\d\d\d)", r"1723161256\g<1>5", lines[7])
    write_lines(tmp_path, lines)
    assert "line 8: no whole message" in refuse(tmp_path)


def test_a_bad_time_of_a_snapshot_s_row_is_not_hidden_by_the_latest(tmp_path) -> None:
    file = write_npy(tmp_path / "raw" / "A_B" / "1.npy", tell_story(30))
    array = np.load(file)
    array[3, 0] *= 10
    np.save(file, array)
    assert "row 3: its time does not lie between" in refuse(tmp_path)


def write_events(folder, change) -> None:
    events = make_events(tell_story(30))
    change(events)
    put(folder, "1.npy", save_array(events))


def test_events_that_change_no_book_are_counted(tmp_path) -> None:
    write_events(tmp_path, lambda events: None)
    states = parse(tmp_path)
    assert [state[:2] for state in states] == [state[:2] for state in tell_states(tell_story(30))][
        1:
    ]
    assert count(tmp_path, "rows_passed_by") == 4  # the trades


def test_an_event_without_a_time_is_refused(tmp_path) -> None:
    def change(events) -> None:
        events["exch_ts"][5] = -(2**63)

    write_events(tmp_path, change)
    assert "row 5: its exch_ts does not lie between" in refuse(tmp_path)


MBO = "ts_event,publisher_id,instrument_id,action,side,price,size,order_id,flags\n"


def write_mbo(folder, old: str = "", new: str = "") -> None:
    rows = [
        f"2023-12-25T23:00:0{second}.5Z,1,7,A,{side},{price}.25,{second},{order},128\n"
        for second, (side, price, order) in enumerate(
            [("B", 99, 1), ("A", 101, 2), ("B", 98, 3), ("A", 102, 4)], 1
        )
    ]
    rows.append("2023-12-25T23:00:06.5Z,1,7,F,B,99.25,1,1,128\n")
    put(folder, "1.csv", (MBO + "".join(rows).replace(old, new)).encode())


def test_databentos_fills_are_counted(tmp_path) -> None:
    write_mbo(tmp_path)
    assert len(parse(tmp_path, depth=2)) == 3
    assert count(tmp_path, "rows_passed_by") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("7,A,A,101.25,2,2,128", "7,A,A,101.25,,2,128", "row 2: size is missing"),
        ("7,A,A,101.25,2,2,128", "7,A,A,101.25,2,,128", "row 2: order_id is missing"),
        ("2023-12-25T23:00:02.5Z", "", "row 2: ts_event is missing"),
        ("2023-12-25T23:00:02.5Z", "1823-12-25T23:00:02.5Z", "row 2: time -"),
    ],
)
def test_databentos_missing_cells_are_named(tmp_path, old, new, said) -> None:
    write_mbo(tmp_path, old, new)
    assert said in refuse(tmp_path, feed="databento")


def test_databentos_records_of_unknown_actions_are_named(tmp_path) -> None:
    """In DBN an action is a byte."""
    records = np.zeros(3, databento.RECORD)
    records["action"], records["side"], records["row"] = ord("A"), ord("B"), [1, 2, 3]
    databento.check_records(tmp_path / "1.dbn", records)
    for name, value in (("action", ord("Q")), ("side", 0), ("time_ns", -1)):
        damaged = records.copy()
        damaged[name][1] = value
        with pytest.raises(InputError, match=r"1\.dbn, row 2: .* none of Databento's"):
            databento.check_records(tmp_path / "1.dbn", damaged)


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        ("orderbook", "100,1,99,1,101", "has 5 columns, not four a level"),
        ("message", "34200.1,1,5,18,100", "has 5 columns, not six or more"),
    ],
)
def test_lobster_files_that_lost_a_column_are_refused(tmp_path, kind, line, said) -> None:
    lines = {"message": "34200.1,1,5,18,100,1", "orderbook": "100,1,99,1", kind: line}
    for name, text in lines.items():
        put(tmp_path, f"A_2012-06-21_{name}_1.csv", f"{text}\n".encode())
    assert said in refuse(tmp_path, feed="lobster")


def test_a_csv_of_empty_lines_is_refused(tmp_path) -> None:
    put(tmp_path, "1.csv", b"\n\n")
    assert "1.csv holds no rows: remove it" in refuse(tmp_path, feed="tardis")


@pytest.mark.parametrize("feed", [None, "bybit"])
def test_an_empty_file_is_refused_also_if_its_feed_is_given(tmp_path, feed) -> None:
    write_lines(tmp_path, FEED_WRITERS["bybit"][1](tell_story(30)))
    (tmp_path / "raw" / "A_B" / "2.jsonl").write_bytes(b"")
    assert "2.jsonl is empty: remove it" in refuse(tmp_path, feed=feed)


@pytest.mark.parametrize("size", [4, 10, 21])
def test_the_beginning_of_a_zip_archive_is_refused(tmp_path, size) -> None:
    put(tmp_path, "1.zip", (b"PK\x03\x04" + bytes(30))[:size])
    assert "cannot be decompressed" in refuse(tmp_path)


@pytest.mark.parametrize("kind", [InputError, CheckFailed])
def test_an_error_is_one_line_whatever_it_cites(kind) -> None:
    assert str(kind("a\nb\x13c\x85d é")) == r"a\nb\x13c\x85d é"


def test_a_control_character_in_a_file_does_not_reach_the_terminal(tmp_path) -> None:
    text = write_tardis(tell_story(30)).replace(b"BTCUSDT", b"BTC\x1bUSDT", 1)
    put(tmp_path, "1.csv", text)
    assert r"BTC\x1bUSDT" in refuse(tmp_path)


@pytest.mark.parametrize("name", FEED_WRITERS)
def test_lines_of_no_message_are_counted_in_every_recording(tmp_path, name) -> None:
    _, write, answer = FEED_WRITERS[name]
    lines = write(tell_story(30))
    others = [answer, ""] if answer else [""]
    write_lines(tmp_path, [*lines[:9], *others, *lines[9:], '{"event":"heartbeat"}'])
    assert len(parse(tmp_path)) == 30
    assert count(tmp_path, "lines_passed_by") == len(others) + 1


def test_lines_and_rows_of_other_symbols_are_counted(tmp_path) -> None:
    _, write, _ = FEED_WRITERS["okx"]
    lines = [*write(tell_story(30), "ONE"), *write(tell_story(20), "TWO")]
    write_lines(tmp_path / "okx", lines)
    parse(tmp_path / "okx", symbol="ONE")
    meta = json.loads((tmp_path / "okx" / "book_states" / "A_B_ONE" / "meta.json").read_text())
    assert meta["counters"]["lines_passed_by"] == 20
    text = write_tardis(tell_story(30))
    other = text.replace(b"BTCUSDT", b"TWO").split(b"\n", 1)[1]
    for place, data in (("first", text + other), ("last", other)):
        both = (
            data
            if place == "first"
            else text.split(b"\n", 1)[0] + b"\n" + other + text[len(text.split(b"\n", 1)[0]) + 1 :]
        )
        put(tmp_path / place, "1.csv", both)
        parse(tmp_path / place, symbol="BTCUSDT")
        folder = tmp_path / place / "book_states" / "A_B_BTCUSDT"
        counters = json.loads((folder / "meta.json").read_text())["counters"]
        assert counters["rows_passed_by"] == other.count(b"\n")


@pytest.mark.parametrize("spot", [False, True])
def test_binance_snapshots_that_no_message_continues_are_counted(tmp_path, spot) -> None:
    story = tell_story(60)
    depth = [write_depth(message, story, spot) for message in range(1, 60)]
    ahead = [write_snapshot(58, story, 1).replace('"lastUpdateId": 58', '"lastUpdateId": 158')] * 2
    lines = [write_snapshot(0, story, 1), *depth[:20], *ahead, *depth[20:]]
    write_lines(tmp_path, lines)
    assert parse(tmp_path) == tell_states(story, first=1)
    # One is replaced by the other before the stream has reached it, which it never does.
    assert count(tmp_path, "snapshots_unused") == 2
    assert count(tmp_path, "snapshots") == 1


def test_a_gzip_stream_is_read_in_pieces_of_any_size(tmp_path) -> None:
    """The pieces are smaller than this file's; its second stream follows after zeros."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 300_000, np.uint8).tobytes()
    from lob.feeds.recordings import BlockReader, open_decompressed

    file = tmp_path / "1.gz"
    file.write_bytes(gzip.compress(data[:200_000]) + bytes(70_000) + gzip.compress(data[200_000:]))
    with open_decompressed(file) as (handle, raw):
        reader = BlockReader(handle, raw)
        out = io.BytesIO()
        while block := reader.read(77_777).to_pybytes():
            out.write(block)
    assert out.getvalue() == data
    assert reader.positions[-1] == file.stat().st_size
