"""Which of Binance's messages are whole books, which are differences, and which are partial."""

import json

import pytest
from reference_book import ReferenceBook
from test_binance_stream import TICKER, TRADE, write_depth, write_snapshot
from test_feeds import (
    START_MS,
    count,
    parse,
    price_level,
    refuse,
    tell_states,
    tell_story,
    write_lines,
)

from lob.feeds.batch import SET, SNAPSHOT


def best_levels(message: int, story, most: int) -> tuple[list, list]:
    """Return the best `most` bids and asks (ticks, lots) after a message."""
    reference = ReferenceBook(2 * most)
    for time_ms, kind, levels in story[: message + 1]:
        reference.take_message(time_ms, [(kind, *level, 0) for level in levels])
    return reference.best(0), reference.best(1)


def write_partial(message: int, story, most: int, spot: bool, bare: bool = False) -> str:
    """Return a line of a stream of partial books: `@depth<most>`."""
    bids, asks = (
        [price_level(*level) for level in side] for side in best_levels(message, story, most)
    )
    time_ms, update = story[message][0], 100 * message
    if spot:
        data = {"lastUpdateId": update, "bids": bids, "asks": asks}
    else:
        times = {"e": "depthUpdate", "E": time_ms + 3, "T": time_ms, "s": "BTCUSDT"}
        ids = {"U": update - 50, "u": update, "pu": update - 100}
        data = {**times, **ids, "b": bids, "a": asks}
    name = f"btcusdt@depth{most}@100ms"
    return f"{time_ms}000000 " + json.dumps(data if bare else {"stream": name, "data": data})


def interleave(story, most: int, spot: bool, bare: bool = False) -> list[str]:
    """Return differences, a partial book behind each third one, and a snapshot of all levels."""
    lines: list[str] = []
    for message in range(1, len(story)):
        lines.append(write_depth(message, story, spot))
        if message % 3 == 0:
            lines.append(write_partial(message, story, most, spot, bare))
    return [*lines[:9], write_snapshot(2, story, 1), *lines[9:]]


@pytest.mark.parametrize("spot", [True, False])
@pytest.mark.parametrize("most", [5, 10, 20])
@pytest.mark.parametrize("first", ["partial", "difference"])
def test_partial_books_beside_differences_are_passed_by(tmp_path, spot, most, first) -> None:
    """Whichever comes first."""
    story = tell_story(60)
    lines = interleave(story, most, spot)
    if first == "partial":
        lines.insert(0, write_partial(1, story, most, spot))
    write_lines(tmp_path, [TICKER, *lines[:40], TRADE, *lines[40:]])
    assert parse(tmp_path, depth=48) == tell_states(story, depth=48, first=3)
    assert count(tmp_path, "partial_books") == 59 // 3 + (first == "partial")
    assert count(tmp_path, "lines_passed_by") == 2
    assert count(tmp_path, "messages_before_snapshot") == 2
    assert (count(tmp_path, "gaps"), count(tmp_path, "snapshots")) == (0, 1)


def test_bare_partial_books_beside_differences_wipe_nothing(tmp_path) -> None:
    """A bare one looks like a REST snapshot of a small limit."""
    story = tell_story(60)
    lines = interleave(story, 10, spot=True, bare=True)
    write_lines(tmp_path, [lines.pop(9), *lines])
    assert parse(tmp_path, depth=48) == tell_states(story, depth=48, first=3)


@pytest.mark.parametrize("spot", [True, False])
def test_a_later_snapshot_of_a_smaller_limit_wipes_nothing(tmp_path, spot) -> None:
    story = tell_story(60)
    depth = [write_depth(message, story, spot) for message in range(1, 60)]
    small = [write_snapshot(28, story, 1, most=7), write_snapshot(40, story, 1, most=3)]
    lines = [
        write_snapshot(0, story, 1),
        *depth[:30],
        small[0],
        *depth[30:45],
        small[1],
        *depth[45:],
    ]
    write_lines(tmp_path, lines)
    assert parse(tmp_path, depth=40) == tell_states(story, depth=40, first=1)
    assert (count(tmp_path, "gaps"), count(tmp_path, "snapshots")) == (0, 3)


@pytest.mark.parametrize("spot", [True, False])
@pytest.mark.parametrize("messages", [40, 1100])
def test_partial_books_alone_are_a_state_each(tmp_path, spot, messages) -> None:
    """More than are held back until it is known that there are no differences."""
    story = tell_story(40)
    numbers = [message % 40 for message in range(messages)]
    lines = [write_partial(number, story, 5, spot) for number in numbers]
    if messages > 40:  # of one time, so that it never goes back
        story = [(START_MS, *message[1:]) for message in story]
        lines = [write_partial(number, story, 5, spot) for number in numbers]
    write_lines(tmp_path, lines)
    told = []
    for number in numbers:
        bids, asks = best_levels(number, story, 5)
        levels = [(True, *level) for level in bids] + [(False, *level) for level in asks]
        told.append((story[number][0], SNAPSHOT, levels))
    assert parse(tmp_path, depth=10) == tell_states(told, depth=10)
    assert count(tmp_path, "snapshots") == messages


def test_rest_snapshots_alone_are_a_state_each_at_their_local_time(tmp_path) -> None:
    story = tell_story(5)
    lines = [write_snapshot(number, story).split(" ", 1)[1] for number in range(5)]
    stamps = [f"{START_MS + 1000 * number}000000" for number in range(5)]
    write_lines(tmp_path, [f"{stamp} {line}" for stamp, line in zip(stamps, lines, strict=True)])
    states = tell_states(story)
    found = parse(tmp_path)
    assert [state[:2] for state in found] == [state[:2] for state in states]
    assert [state[2] for state in found] == [START_MS + 1000 * number for number in range(5)]


def test_differences_without_a_whole_book_are_refused(tmp_path) -> None:
    """A partial book is none, though all its levels are true."""
    story = tell_story(60)
    lines = [line for line in interleave(story, 20, True) if '"stream"' in line]
    write_lines(tmp_path, lines)
    assert "holds no REST depth snapshot" in refuse(tmp_path)


def test_partial_books_of_two_symbols_are_refused(tmp_path) -> None:
    story = tell_story(4)
    lines = [write_partial(number, story, 5, spot=True) for number in range(4)]
    write_lines(tmp_path, [*lines[:3], lines[3].replace("btcusdt", "ethusdt")])
    assert "it is of ETHUSDT, those before it of BTCUSDT" in refuse(tmp_path)


def test_what_is_delivered_twice_is_counted(tmp_path) -> None:
    story = tell_story(30)
    depth = [write_depth(message, story, spot=True) for message in range(1, 30)]
    write_lines(tmp_path, [write_snapshot(0, story, 1), *depth[:20], *depth[15:]])
    assert parse(tmp_path) == tell_states(story, first=1)
    assert count(tmp_path, "messages_repeated") == 5
    assert [kind for _, kind, _ in story].count(SET) == 29
