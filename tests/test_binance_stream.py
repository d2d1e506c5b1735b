"""Binance's messages and snapshots of one book must give the states of the reference book."""

import json
import re

import pytest
from reference_book import ReferenceBook
from test_feeds import (
    START_MS,
    Message,
    count,
    parse,
    price_level,
    refuse,
    tell_states,
    tell_story,
    write_lines,
)

from lob.config import InputError
from lob.feeds.batch import FEEDS, SET, find_feed


def write_depth(
    message: int, story: list[Message], spot: bool, bare: bool = False, symbol: str = "BTCUSDT"
) -> str:
    """Return a depthUpdate line.

    Message n holds the updates from 100 n - 50 (futures) or 100 n - 99 (spot) to 100 n.
    """
    time_ms, _, levels = story[message]
    data = {
        "e": "depthUpdate",
        "E": time_ms if spot else time_ms + 3,
        "s": symbol,
        "u": 100 * message,
        "U": 100 * message - (99 if spot else 50),
        "b": [price_level(*level[1:]) for level in levels if level[0]],
        "a": [price_level(*level[1:]) for level in levels if not level[0]],
    }
    if not spot:
        data |= {"T": time_ms, "pu": 100 * (message - 1)}
    return f"{time_ms}000000 " + json.dumps(
        data if bare else {"stream": "btcusdt@depth@0ms", "data": data}
    )


def write_snapshot(message: int, story: list[Message], part: int = 0, most: int = 1000) -> str:
    """Return a REST snapshot of the book after `message`, with the best `most` levels of a side.

    If `part` is not 0, it comes that many updates later: half of the next message is in it.
    """
    reference = ReferenceBook(2)
    for time_ms, kind, levels in story[: message + 1]:
        reference.take_message(time_ms, [(kind, *level, 0) for level in levels])
    if part:
        time_ms, kind, levels = story[message + 1]
        reference.take_message(time_ms, [(kind, *level, 0) for level in levels[: len(levels) // 2]])
    bids, asks = (
        [price_level(price, reference.levels[side][price]) for price in prices][:most]
        for side, prices in ((0, reference.prices[0][::-1]), (1, reference.prices[1]))
    )
    update = 100 * message + part
    return f"{START_MS}000001 " + json.dumps({"lastUpdateId": update, "bids": bids, "asks": asks})


def compact(line: str) -> str:
    """Return a line without spaces in its JSON, as Binance sends it."""
    return line.replace(", ", ",").replace(": ", ":")


TICKER = '1723161256298000000 {"stream":"btcusdt@bookTicker",'
TICKER += '"data":{"u":1,"s":"BTCUSDT","b":"1.0","B":"2.0","a":"3.0","A":"4.0"}}'
TRADE = '1723161256298000000 {"stream":"btcusdt@trade",'
TRADE += '"data":{"e":"trade","E":1,"s":"BTCUSDT","t":1,"p":"1.0","q":"2.0","m":true}}'


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("part", [0, 30])
def test_binance_messages_before_their_snapshot_are_bridged(tmp_path, spot, part) -> None:
    """The snapshot after message 3 stands after message 9 in the file."""
    story = tell_story()
    depth = [write_depth(message, story, spot, bare=message % 5 == 0) for message in range(1, 400)]
    lines = [
        TICKER,
        TRADE,
        *depth[:9],
        write_snapshot(3, story, part if spot or part else 0),
        *depth[9:],
    ]
    file = write_lines(tmp_path, lines[:300])
    write_lines(tmp_path, lines[300:], "2.gz")
    assert find_feed(file) == "binance"
    # On futures message 3 itself, whose u is lastUpdateId, bridges the snapshot.
    first = 4 if spot or part else 3
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
    # The snapshot is older than the gap, so that it is of no use after it.
    older = write_snapshot(45, story, 1)
    lost = [
        *depth[:50],
        *depth[51:60],
        older,
        *depth[70:90],
        write_snapshot(85, story, 1),
        *depth[90:],
    ]
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
    """The first snapshot holds 2 levels of each side. The second, 8 messages late, holds all.

    No state is written twice, and none is lost.
    """
    story = [
        tell_story(1)[0],
        *((START_MS + 7 * i, SET, [(True, 999, i), (False, 1001, i)]) for i in range(1, 60)),
    ]
    depth = [write_depth(message, story, spot) for message in range(1, 60)]
    lines = [
        write_snapshot(0, story, 1, most=2),
        *depth[:30],
        write_snapshot(22, story, 1),
        *depth[30:],
    ]
    write_lines(tmp_path, lines)
    # States of depth 4 hold no more than the 2 levels of a side that were known from the start.
    assert parse(tmp_path) == tell_states(story, first=1)
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
    # The snapshot is older than all messages that are kept.
    write_lines(tmp_path, [*depth[:1100], write_snapshot(50, story), *depth[1100:]])
    (tmp_path / "book_states" / "A_B").rename(tmp_path / "old")
    assert "holds no REST depth snapshot" in refuse(tmp_path)


def test_binance_faults_name_file_and_line(tmp_path) -> None:
    story = tell_story(100)
    depth = [write_depth(message, story, spot=False) for message in range(1, 100)]
    good = [write_snapshot(0, story, 1), *depth]
    for wrong, said in (
        (good[40][:-30], "line 41: no whole Binance message"),
        (
            good[40].replace('"U"', '"V"').replace('"pu"', '"V"'),
            "line 41: no whole Binance message",
        ),
        (
            write_depth(40, story, False, symbol="ETHUSDT"),
            "it is of ETHUSDT, those before it of BTCUSDT: take one of them",
        ),
        (good[40].replace(".", "x"), "line 41: price nan and size nan must be numbers"),
        (good[40].replace('"a": ', '"a": [["1.0"]], "z": '), "line 41: no whole Binance message"),
        (
            good[40].replace('"a": ', '"a": [["99.05", "1"]], "z": '),
            "line 41: price 99.05 is no exact multiple of 0.1",
        ),
        (
            compact(good[40]).replace('"a":[[', '"a":[["1.0"],['),
            "message (ValueError('a level is no pair of price and size')): drop the",
        ),
        (
            compact(good[40]).replace('"a":[[', '"a":[["1.0",],['),
            "line 41: no whole Binance message (JSONDecodeErr",
        ),
        (
            compact(good[40]).replace('"u":4000', '"u":1e400'),
            "line 41: no whole Binance message (JSONDecodeErr",
        ),
        (
            compact(good[40]).replace('"u":4000', '"u":9999999999999999999'),
            "line 41: no whole Binance message (Over",
        ),
        (
            compact(good[40]).replace('"a":[[', '"a":[{"1.0":2},['),
            "line 41: no whole Binance message",
        ),
        (
            compact(good[40]).replace('"a":[[', '"a":[["x","1"],['),
            "line 41: price nan and size 1.0 must be numbers",
        ),
        (
            compact(good[40]).replace('"a":[', '"a":[["99.05","1"]],"z":['),
            "line 41: price 99.05 is no exact multiple",
        ),
    ):
        write_lines(tmp_path, [*good[:40], wrong, *good[41:]])
        line = refuse(tmp_path, tick_size=0.1)
        assert said in line, line
        assert "1.gz" in line
    whole = write_lines(tmp_path, good).read_bytes()
    (tmp_path / "raw" / "A_B" / "1.gz").write_bytes(whole[:-20])
    assert "cannot be decompressed" in refuse(tmp_path)


def test_binance_numbers_that_are_no_text_are_read_too(tmp_path) -> None:
    story = tell_story(20)
    lines = [
        write_snapshot(0, story, 1),
        *(write_depth(message, story, spot=True) for message in range(1, 20)),
    ]
    write_lines(tmp_path, [re.sub(r'"([0-9.]+)"', r"\1", line) for line in lines])
    assert parse(tmp_path) == tell_states(story, first=1)


@pytest.mark.parametrize("spot", [False, True])
def test_binance_recordings_that_overlap_are_one_stream(tmp_path, spot) -> None:
    """Two recorders: the second file begins 60 messages before the first one ends."""
    story = tell_story(300)
    depth = [write_depth(message, story, spot) for message in range(1, 300)]
    write_lines(tmp_path, [write_snapshot(0, story, 1), *depth[:200]])
    write_lines(tmp_path, [write_snapshot(139, story), *depth[140:]], "2.gz")
    assert parse(tmp_path) == tell_states(story, first=1)
    assert (count(tmp_path, "gaps"), count(tmp_path, "messages_repeated")) == (0, 60)


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("late", [0, 12])
def test_binance_ids_that_begin_anew_are_a_gap_until_the_next_snapshot(
    tmp_path, spot, late
) -> None:
    """The second half has the first half's ids, but later times and another book."""
    first, second = tell_story(60), tell_story(60, seed=1)
    later = [(time_ms + 1000, kind, levels) for time_ms, kind, levels in second]
    depth = [write_depth(message, first, spot) for message in range(1, 60)]
    write_lines(tmp_path, [write_snapshot(0, first, 1), *depth])
    depth = [write_depth(message, later, spot) for message in range(1, 60)]
    depth.insert(late, write_snapshot(late, later, 1 if late < 59 else 0))
    write_lines(tmp_path, depth, "2.gz")
    states = [*tell_states(first, first=1), *tell_states(later, first=late + 1)]
    assert parse(tmp_path) == states
    assert (count(tmp_path, "gaps"), count(tmp_path, "snapshots")) == (1, 2)


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("snapshots", [(0, 1, 2), (1,), (2,)])
def test_binance_days_in_the_wrong_order_name_both_files_until_renamed(
    tmp_path, spot, snapshots
) -> None:
    story = [(time_ms * 1000, *rest) for time_ms, *rest in tell_story(300)]
    story = [(START_MS + index * 60_000, *rest) for index, (_, *rest) in enumerate(story)]
    depth = [write_depth(message, story, spot) for message in range(1, 300)]
    days = []
    for day in range(3):
        opening = [write_snapshot(day * 100, story, 1)] if day in snapshots else []
        days.append([*opening, *depth[day * 100 : day * 100 + 100]])
    names = ("b.gz", "c.gz", "a.gz")
    for name, lines in zip(names, days, strict=True):
        write_lines(tmp_path, lines, name)
    line = refuse(tmp_path)
    assert "b.gz, line " in line and "a.gz" in line, line
    assert "name the files so that they sort by time" in line
    for name, new in zip(names, ("1.gz", "2.gz", "3.gz"), strict=True):
        (tmp_path / "raw" / "A_B" / name).rename(tmp_path / "raw" / "A_B" / new)
    first = snapshots[0] * 100 + 1
    assert parse(tmp_path) == tell_states(story, first=first)


@pytest.mark.parametrize("spot", [False, True])
def test_binance_events_that_overlap_are_applied(tmp_path, spot) -> None:
    """Every fifth event begins within the one before it; one begins two updates before."""
    story = tell_story(60)
    lines = [write_snapshot(0, story, 1)]
    for message in range(1, 60):
        data = json.loads(write_depth(message, story, spot, bare=True).partition(" ")[2])
        if message % 5 == 0:
            link, back = ("U", 37) if spot else ("pu", 37)
            data[link] -= back if message % 10 else 150
        lines.append(f"{story[message][0]}000000 {json.dumps(data)}")
    write_lines(tmp_path, lines)
    assert parse(tmp_path) == tell_states(story, first=1)
    assert count(tmp_path, "gaps") == 0


@pytest.mark.parametrize("spot", [False, True])
def test_binance_times_may_go_over_to_microseconds_in_mid_stream(tmp_path, spot) -> None:
    story = tell_story(60)
    lines = [write_snapshot(0, story, 1)]
    for message in range(1, 60):
        line = write_depth(message, story, spot)
        if message % 7 > 2:
            line = re.sub(r'"([ET])": (\d+)', r'"\1": \g<2>000', line)
        lines.append(line)
    write_lines(tmp_path, lines)
    assert parse(tmp_path) == tell_states(story, first=1)


@pytest.mark.parametrize("nothing", ["[]", '""', "null"])
def test_binance_levels_with_an_empty_third_element_are_read(tmp_path, nothing) -> None:
    story = tell_story(20)
    depth = [write_depth(message, story, spot=True) for message in range(1, 20)]
    lines = [
        re.sub(r'\["([0-9.]+)", "([0-9.]+)"\]', rf'["\1", "\2", {nothing}]', line)
        for line in [write_snapshot(0, story, 1), *depth]
    ]
    assert nothing in lines[-1]
    file = write_lines(tmp_path, lines)
    assert parse(tmp_path) == tell_states(story, first=1)
    write_lines(tmp_path, [line.replace(nothing, '"7"') for line in lines])
    with pytest.raises(InputError, match="line 1: no whole Binance message"):
        list(FEEDS["binance"].read([file]))


@pytest.mark.parametrize("spot", [False, True])
def test_binance_snapshot_at_the_end_of_a_recording_counts(tmp_path, spot) -> None:
    story = tell_story(30)
    depth = [write_depth(message, story, spot) for message in range(1, 30)]
    write_lines(tmp_path, [*depth, write_snapshot(20, story, 1)])
    assert parse(tmp_path) == tell_states(story, first=21)
