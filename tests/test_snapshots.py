"""What begins a whole book, and what is no book yet, in files of each layout.

The right values are those of the book of dictionaries, or are counted by hand.
"""

import itertools

import numpy as np
import pytest
from test_feeds import (
    START_MS,
    TARDIS_HEADER,
    count,
    parse,
    put,
    refuse,
    tell_states,
    tell_story,
    write_coinapi,
    write_npy,
    write_tardis,
)

from lob.feeds.batch import SET, SNAPSHOT, Batch
from lob.feeds.snapshots import number_books

# Levels (is_buy, ticks, lots) of whole books, each with less of the one before it.
BOOKS = [
    [(True, 100, 1), (True, 99, 2), (False, 101, 1), (False, 102, 2)],
    [(True, 100, 2), (True, 97, 2), (False, 102, 3), (False, 104, 2)],
    [(True, 103, 2), (True, 102, 2), (False, 104, 3), (False, 105, 2)],
]
SNAPSHOTS = [(START_MS + 200 * index, SNAPSHOT, book) for index, book in enumerate(BOOKS)]


def write(folder, layout: str, name: str, story) -> None:
    if layout == "npy":
        write_npy(folder / "raw" / "A_B" / f"{name}.npy", story)
    else:
        writer = {"tardis": write_tardis, "coinapi": write_coinapi}[layout]
        put(folder, f"{name}.csv", writer(story))


@pytest.mark.parametrize("layout", ["tardis", "coinapi", "npy"])
@pytest.mark.parametrize("files", [[3], [1, 1, 1], [2, 1]])
def test_each_whole_book_is_a_state(tmp_path, layout, files) -> None:
    """In one file, or in a file each."""
    cuts = np.cumsum(files)
    for name, part in enumerate(np.split(np.arange(3), cuts[:-1])):
        write(tmp_path, layout, str(name), [SNAPSHOTS[index] for index in part])
    assert parse(tmp_path) == tell_states(SNAPSHOTS)
    assert (count(tmp_path, "snapshots"), count(tmp_path, "snapshots_differ")) == (3, 2)


def test_tardis_books_of_an_exchange_that_sends_nothing_else(tmp_path) -> None:
    rows = [
        "200000,1754006400000005,true,bid,100,1",
        "200000,1754006400000005,true,ask,101,1",
        "400000,1754006400200005,true,bid,100,2",
        "400000,1754006400200005,true,ask,102,3",
    ]
    text = "".join(f"bitget,AB,1754006400{row}\n" for row in rows)
    put(tmp_path, "1.csv", (TARDIS_HEADER + text).encode())
    states = parse(tmp_path, depth=2)
    assert [state[:2] for state in states] == [
        ([1000, 1010], [1000, 1000]),
        ([1000, 1020], [2000, 3000]),
    ]


def test_tardis_rows_of_one_local_timestamp_are_one_book(tmp_path) -> None:
    """Also if they carry a time of the exchange each."""
    text = write_tardis(SNAPSHOTS[:1]).decode().splitlines()
    for row, time in zip(range(1, 5), (3, 1, 4, 2), strict=True):
        text[row] = text[row].replace(f"{START_MS}000,", f"{START_MS}00{time},")
    put(tmp_path, "1.csv", "\n".join([*text, ""]).encode())
    assert [state[:2] for state in parse(tmp_path)] == [
        state[:2] for state in tell_states(SNAPSHOTS[:1])
    ]


@pytest.mark.parametrize("layout", ["coinapi", "npy"])
def test_snapshot_rows_with_a_time_each_are_one_book(tmp_path, layout) -> None:
    """Until a price comes twice. The book has the latest of its times."""
    scattered = [
        (START_MS + time, SNAPSHOT, [level])
        for book in range(2)
        for time, level in zip((40, 10, 30, 20), BOOKS[book], strict=True)
    ]
    change = (START_MS + 50, SET, [(False, 103, 5)])
    write(tmp_path, layout, "1", [*scattered, change])
    story = [(START_MS + 40, SNAPSHOT, BOOKS[0]), (START_MS + 40, SNAPSHOT, BOOKS[1]), change]
    assert parse(tmp_path) == tell_states(story)
    assert count(tmp_path, "snapshots") == 2


def test_orders_of_a_snapshot_with_a_time_each_are_one_book(tmp_path) -> None:
    rows = [
        ("01.0", "SNAPSHOT", 1, 99, 1),
        ("04.0", "SNAPSHOT", 1, 98, 2),
        ("02.0", "SNAPSHOT", 0, 101, 3),
        ("03.0", "SNAPSHOT", 0, 102, 4),
        ("05.0", "ADD", 1, 100, 5),
        ("06.0", "DELETE", 0, 101, 3),
    ]
    text = "time_exchange,update_type,is_buy,entry_px,entry_sx,order_id\n"
    text += "".join(
        f"2024-01-05T00:00:{time},{kind},{buy},{price},1,{order}\n"
        for time, kind, buy, price, order in rows
    )
    put(tmp_path, "1.csv", text.encode())
    states = parse(tmp_path, depth=2)
    assert [state[0] for state in states] == [[990, 1010], [1000, 1010], [1000, 1020]]
    start_ms = states[0][2]
    assert [state[2] - start_ms for state in states] == [0, 1000, 2000]
    assert count(tmp_path, "snapshots") == 1


def number(rows, cuts=(), by_order=True) -> list[tuple[int, int]]:
    """Return message number and time of rows (time, type, is_buy, price or id), in batches."""
    time, kind, is_buy, key = (np.array(column) for column in zip(*rows, strict=True))
    bounds = [0, *cuts, len(rows)]
    batches = []
    for begin, end in itertools.pairwise(bounds):
        batches.append(
            Batch(
                time_ns=time[begin:end],
                message=np.cumsum(np.diff(time, prepend=-1) != 0)[begin:end],
                update_type=kind[begin:end].astype(np.uint8),
                is_buy=is_buy[begin:end].astype(bool),
                price=key[begin:end].astype(np.float64),
                size=np.ones(end - begin),
                order_id=key[begin:end] if by_order else None,
                file="",
                first_row=1 + begin,
                file_bytes=end,
                skipped={"lines_passed_by": 1},
            )
        )
    done = list(number_books(iter(batches)))
    assert sum((batch.skipped or {}).get("lines_passed_by", 0) for batch in done) == len(batches)
    for batch in done:
        assert batch.locate(0) == f", row {batch.first_row}"
    numbers = np.concatenate([batch.message for batch in done])
    times = np.concatenate([batch.time_ns for batch in done])
    assert np.concatenate([batch.price for batch in done]).tolist() == key.tolist()
    return list(zip((numbers - numbers[0]).tolist(), times.tolist(), strict=True))


def number_slowly(rows, by_order=True) -> list[tuple[int, int]]:
    """Do the same by sets, row by row, for times that differ from row to row."""
    numbers, seen, kind_before = [], set(), None
    for _, kind, is_buy, key in rows:
        name = key if by_order else (is_buy, key)
        begins = kind != SNAPSHOT or kind_before != SNAPSHOT or name in seen
        if begins:
            seen = set()
        seen.add(name)
        numbers.append((numbers[-1] if numbers else -1) + begins)
        kind_before = kind
    latest = {}
    for index, row in zip(numbers, rows, strict=True):
        latest[index] = max(row[0], latest.get(index, 0))
    return [(index, latest[index]) for index in numbers]


@pytest.mark.parametrize("by_order", [True, False])
def test_books_are_told_apart_by_what_comes_twice_wherever_batches_end(by_order) -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        count_rows = int(rng.integers(1, 40))
        kinds = rng.choice([SNAPSHOT, SET], p=[0.85, 0.15], size=count_rows)
        sides = rng.integers(0, 2, size=count_rows)
        keys = rng.integers(0, 12, size=count_rows) + 1
        keys = np.where(sides, keys, 100 + keys)  # so that no price crosses the book
        times = rng.permutation(1000)[:count_rows] + 1
        rows = list(zip(*(a.tolist() for a in (times, kinds, sides, keys)), strict=True))
        cuts = np.unique(rng.integers(0, count_rows, size=3))
        assert number(rows, cuts.tolist(), by_order) == number_slowly(rows, by_order)


def test_a_book_begins_with_the_first_row_of_its_time() -> None:
    """So do two snapshots of a time each, of which the second begins with new orders."""
    rows = [(7, SNAPSHOT, True, key) for key in (1, 2, 3)]
    rows += [(9, SNAPSHOT, True, key) for key in (4, 5, 2, 1, 6)]
    rows += [(9, SNAPSHOT, True, key) for key in (5, 7)]  # twice within a time
    found = number(rows)
    assert found == [*[(0, 7)] * 3, *[(1, 9)] * 5, *[(2, 9)] * 2]
    for cut in range(1, len(rows)):
        assert number(rows, [cut]) == found


def test_by_level_a_later_time_that_would_cross_the_book_begins_another() -> None:
    rows = [(7, SNAPSHOT, True, 100), (7, SNAPSHOT, False, 101)]
    rows += [(8, SNAPSHOT, True, 99), (8, SNAPSHOT, False, 102)]  # deeper: the same book
    rows += [(9, SNAPSHOT, False, 104), (9, SNAPSHOT, True, 103)]
    assert [index for index, _ in number(rows, by_order=False)] == [0, 0, 0, 0, 1, 1]


def test_a_snapshot_of_the_time_of_the_update_before_it_belongs_to_its_message() -> None:
    """Wherever a batch ends: the state after the message is the snapshot."""
    rows = [(7, SET, True, 1), (7, SNAPSHOT, True, 2), (7, SNAPSHOT, True, 3), (7, SET, True, 4)]
    for cut in range(1, 4):
        assert number(rows, [cut]) == [(0, 7)] * 4


def test_a_book_delivered_twice_is_one_and_another_of_its_time_is_another() -> None:
    book = [(7, SNAPSHOT, True, key) for key in (1, 2, 3)]
    assert [index for index, _ in number(book * 3)] == [0] * 9
    assert [index for index, _ in number([*book, *book[:2], (8, SET, True, 9)])] == [0] * 3 + [
        1,
        1,
        2,
    ]
    assert [index for index, _ in number([*book, *book[1:], (7, SNAPSHOT, True, 4)])] == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    later = [(8, *row[1:]) for row in book]
    assert [index for index, _ in number([*book, *later])] == [0] * 3 + [1] * 3


# Before the first snapshot there is no book.


@pytest.mark.parametrize("layout", ["tardis", "coinapi", "npy"])
@pytest.mark.parametrize("files", [1, 2])
def test_rows_before_the_first_snapshot_are_skipped_and_counted(tmp_path, layout, files) -> None:
    story = tell_story(60)
    before = [(START_MS - 500 + index, *message[1:]) for index, message in enumerate(story[1:40])]
    if files == 1:
        write(tmp_path, layout, "1", [*before, *story])
    else:
        write(tmp_path, layout, "1", before)
        write(tmp_path, layout, "2", story)
    assert parse(tmp_path) == tell_states(story)
    rows = sum(len(levels) for _, _, levels in before)
    assert count(tmp_path, "rows_before_snapshot") == rows
    assert count(tmp_path, "snapshots") == 1
    assert count(tmp_path, "messages") == len(story)


def test_a_recording_without_any_snapshot_begins_empty_or_is_refused(tmp_path) -> None:
    levels = [(side, 1000 + (-i if side else i), 5 + i) for side in (True, False) for i in (1, 2)]
    story = [(START_MS, SET, levels), *tell_story(40)[1:]]
    write(tmp_path / "coinapi", "coinapi", "1", story)
    assert parse(tmp_path / "coinapi") == tell_states(story)
    assert count(tmp_path / "coinapi", "rows_before_snapshot") == 0
    write(tmp_path / "tardis", "tardis", "1", story)
    assert "holds no snapshot, so the book is never known" in refuse(tmp_path / "tardis")
