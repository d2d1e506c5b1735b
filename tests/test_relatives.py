"""Relatives of inputs that were once read wrong: other spellings, packings, orders and mixtures."""

import bz2
import gzip
import json
import lzma
import re

import numpy as np
import pytest
import zstandard
from test_binance_stream import compact, write_depth, write_snapshot
from test_containers import pack_zip
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
    write_lines,
    write_tardis,
)
from test_json_feeds import write_bybit, write_okx

from lob.book import units
from lob.feeds import recordings
from lob.feeds.batch import SNAPSHOT

WRITERS = {"okx": write_okx, "bybit": write_bybit}


def retime(text: str, form) -> str:
    """Return a Tardis file with other forms of its times in us."""
    return re.sub(r"\b\d{16}\b", lambda found: form(int(found[0])), text)


# What a file may look like

SPELLINGS = {
    "quoted": lambda text: re.sub(r"[^,\n]+", r'"\g<0>"', text),
    "times in seconds": lambda text: retime(text, lambda us: f"{us / 10**6:.6f}"),
    "times in ISO": lambda text: retime(text, lambda us: f"{np.datetime64(us, 'us')}Z"),
    "times in ISO, ahead of UTC": lambda text: retime(
        text, lambda us: f"{np.datetime64(us + 19_800 * 10**6, 'us')}+0530"
    ),
    "ISO from the middle on": lambda text: (
        text[:3000] + retime(text[3000:], lambda us: f"{np.datetime64(us, 'us')}Z")
    ),
    "Windows line ends, a mark, empty lines": lambda text: (
        "\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n"
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_tardis_file_may_be_spelt_otherwise(tmp_path, spelling) -> None:
    story = tell_story(100)
    put(tmp_path, "1.csv", SPELLINGS[spelling](write_tardis(story).decode()).encode())
    assert parse(tmp_path) == tell_states(story)


def test_cells_may_have_spaces_and_offsets_a_small_z(tmp_path) -> None:
    story = tell_story(60)
    text = write_coinapi(story).decode()
    header, *rows = text.splitlines()
    place = header.split(";").index("is_buy")
    cells = [row.split(";") for row in rows]
    for row in cells:
        row[place] = f" {row[place]} "
        row[0] += "z" * ("T" in row[0])
    put(tmp_path, "1.csv", "\n".join([header, *map(";".join, cells)]).encode())
    assert parse(tmp_path) == tell_states(story)


def test_an_empty_line_is_no_row_that_is_at_fault(tmp_path) -> None:
    first, second, third, fourth = (
        f"x,AB,{START_MS}000,{START_MS}000,true,{side},{price},1\n"
        for side, price in (("bid", 100), ("bid", 99), ("ask", "x1"), ("ask", 102))
    )
    put(tmp_path, "1.csv", (TARDIS_HEADER + first + "\n" + second + third + fourth).encode())
    assert "row 3: price 'x1' is not a number" in refuse(tmp_path)


@pytest.mark.parametrize("remedy", ["an id each", "an empty column"])
def test_an_id_that_only_the_first_row_lacks_is_missed(tmp_path, remedy) -> None:
    header = "time_exchange;update_type;is_buy;entry_px;entry_sx;order_id\n"
    rows = [("SNAPSHOT", 1, 100, 1), ("SNAPSHOT", 0, 101, 2), ("ADD", 1, 100, 3)]

    def write(ids: list[str]) -> None:
        told = zip(rows, ids, strict=True)
        lines = [
            f"2024-06-01T00:00:0{int(kind == 'ADD')};{kind};{buy};{price};{size};{id_}\n"
            for (kind, buy, price, size), id_ in told
        ]
        put(tmp_path, "1.csv", (header + "".join(lines)).encode())

    write(["", "7", "8"])
    assert "row 2: it has an order_id, the first row has none: give each row one" in refuse(
        tmp_path, depth=2
    )
    write(["6", "7", "8"] if remedy == "an id each" else ["", "", ""])
    states = parse(tmp_path, depth=2)
    assert [state[:2] for state in states] == [
        ([1000, 1010], [1000, 2000]),
        ([1000, 1010], [4000, 2000]),
    ]


# What a file may be packed in

PACKED = {"xz": lzma.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("kind", [*PACKED, "twice", "UTF-16", "an empty zip"])
def test_a_packing_that_is_not_read_is_named_until_it_is_unpacked(tmp_path, kind) -> None:
    story = tell_story(60)
    data = write_tardis(story)
    packed = {
        **{name: packing(data) for name, packing in PACKED.items()},
        "twice": zstandard.compress(gzip.compress(data)),
        "UTF-16": data.decode().encode("utf-16"),
        "an empty zip": pack_zip({}),
    }[kind]
    put(tmp_path, "1.packed", packed)
    said = refuse(tmp_path)
    name = {"twice": "packed twice", "an empty zip": "a zip archive without members"}.get(
        kind, kind
    )
    assert name in said and "as gzip, zstd, zip or plain UTF-8" in said
    put(tmp_path, "1.packed", data)
    assert parse(tmp_path) == tell_states(story)


def members_of(story: list) -> tuple[bytes, bytes]:
    """Return a Tardis file in two, each with its header, cut between two messages."""
    header = TARDIS_HEADER.encode()
    first, second = write_tardis(story[:30]), write_tardis(story[30:])
    assert second.startswith(header)
    return first, second


MEMBERS = {
    "no newline at their ends": lambda first, second: {"1": first[:-1], "2": second[:-1]},
    "marks": lambda first, second: {"1": b"\xef\xbb\xbf" + first, "2": b"\xef\xbb\xbf" + second},
    "a mark and other line ends": lambda first, second: {
        "1": first,
        "2": b"\xef\xbb\xbf" + second.replace(b"\n", b"\r\n"),
    },
    "an empty one first": lambda first, second: {"0": b"", "1": first, "2": second},
    "one in an archive": lambda first, second: {"1": first, "2": pack_zip({"x": second})},
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_members_of_an_archive_are_one_file(tmp_path, kind) -> None:
    story = tell_story(60)
    put(tmp_path, "1.zip", pack_zip(MEMBERS[kind](*members_of(story))))
    assert parse(tmp_path) == tell_states(story)


def test_members_of_json_without_a_newline_are_lines(tmp_path) -> None:
    story = tell_story(60)
    lines = write_okx(story)
    members = {"2": "\n".join(lines[30:]).encode(), "1": "\n".join(lines[:30]).encode()}
    put(tmp_path, "1.zip", pack_zip(members))
    assert parse(tmp_path) == tell_states(story)


def test_the_forecast_of_an_archive_in_another_order_than_its_names(
    tmp_path, monkeypatch, capsys
) -> None:
    """The members that are read first lie at the end of the archive."""
    monkeypatch.setattr(units, "ROWS_TO_INFER_UNITS", 30_000)
    for name in ("CSV_BLOCK_BYTES", "BLOCK_BYTES"):
        monkeypatch.setattr(recordings, name, 1 << 16)
    sizes = np.random.default_rng(0).integers(1, 10**9, 60_000).tolist()
    sides = ("bid,9", "ask,10")
    rows = [
        f"x,AB,{START_MS + at},{at},{str(at < 2).lower()},{sides[at % 2]},{size}\n"
        for at, size in enumerate(sizes)
    ]
    members = {
        str(at): (TARDIS_HEADER + "".join(rows[at : at + 15_000])).encode()
        for at in range(0, 60_000, 15_000)
    }
    put(tmp_path, "1.zip", pack_zip(dict(reversed(members.items()))))
    states = parse(tmp_path, depth=2)
    said = re.search(r"about ([\d,]+) states", capsys.readouterr().out)
    assert len(states) > 59_000
    assert float(said[1].replace(",", "")) == pytest.approx(len(states), rel=0.2)


# In which order, and from whom


@pytest.mark.parametrize("name", WRITERS)
def test_recordings_that_overlap_are_one_stream_though_each_opens_with_a_snapshot(
    tmp_path, name
) -> None:
    story = tell_story(60)
    lines = WRITERS[name](story)
    levels: dict = {}
    for _, _, changes in story[:31]:
        levels |= {(side, ticks): lots for side, ticks, lots in changes}
    book = [(*level, lots) for level, lots in levels.items() if lots]
    again = [*story[:30], (story[30][0], SNAPSHOT, book)]
    write_lines(tmp_path, lines[:40], "1.gz")
    write_lines(tmp_path, [WRITERS[name](again)[30], *lines[31:]], "2.gz")
    assert parse(tmp_path) == tell_states(story)
    assert count(tmp_path, "messages_repeated") == 10
    assert (count(tmp_path, "snapshots"), count(tmp_path, "gaps")) == (1, 0)


@pytest.mark.parametrize("opens_whole", [True, False])
@pytest.mark.parametrize("name", WRITERS)
def test_an_earlier_recording_in_a_later_file_is_not_what_was_read(
    tmp_path, name, opens_whole
) -> None:
    story = tell_story(600)
    opening = (story[300][0], SNAPSHOT, story[0][2])
    lines = WRITERS[name]([*story[:300], opening, *story[301:]])
    write_lines(tmp_path, lines[300:], "1.gz")
    write_lines(tmp_path, lines[0 if opens_whole else 1 : 200], "2.gz")
    said = refuse(tmp_path)
    assert "1.gz, line" in said and "2.gz, line" in said
    assert "name the files so that they sort by time" in said
    (tmp_path / "raw" / "A_B" / "2.gz").rename(tmp_path / "raw" / "A_B" / "0.gz")
    if opens_whole:
        assert len(parse(tmp_path)) > 450


@pytest.mark.parametrize("order", [(1, 0), (0, 2, 1)])
@pytest.mark.parametrize("name", [*WRITERS, "tardis"])
def test_whole_books_alone_in_the_wrong_order_are_refused(tmp_path, name, order) -> None:
    """Each could be older than updates before it, but there are none."""
    books = [
        (START_MS + 100 * index, SNAPSHOT, [(True, 1000, 1 + index % 7), (False, 1001, 5)])
        for index in range(90)
    ]
    if name == "tardis":  # in one file
        lines = write_tardis(books).decode().splitlines()[1:]
    else:
        lines = WRITERS[name](books)
    third = len(lines) // 3
    parts = [lines[third * part : third * part + third] for part in order]
    if name == "tardis":
        put(tmp_path, "1.csv", (TARDIS_HEADER + "\n".join(map("\n".join, parts))).encode())
    else:
        for number, part in enumerate(parts):
            write_lines(tmp_path, part, f"{number}.gz")
    assert "time goes back to" in refuse(tmp_path, depth=2)


def test_a_chosen_symbol_goes_on_where_a_file_opens_with_the_book_of_another(tmp_path) -> None:
    story, other = tell_story(60), tell_story(60, seed=1)
    first = write_tardis(story[:30]) + write_tardis(other[:30], header="").replace(b"BTC", b"ETH")
    second = write_tardis([(story[30][0], SNAPSHOT, other[0][2])]).replace(b"BTC", b"ETH")
    put(tmp_path, "1.csv", first)
    put(tmp_path, "2.csv", second + write_tardis(story[30:], header=""))
    assert parse(tmp_path, symbol="BTCUSDT") == tell_states(story)


# Binance


@pytest.mark.parametrize("spot", [False, True])
def test_a_third_element_that_is_an_empty_object_is_passed_by(tmp_path, spot) -> None:
    story = tell_story(60)
    lines = [write_snapshot(0, story), *(write_depth(i, story, spot) for i in range(1, 60))]
    lines = [compact(line) for line in lines]
    put(tmp_path, "1.gz", "\n".join(lines).replace('"]', '",{}]').encode())
    assert parse(tmp_path) == tell_states(story, first=1)


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("kind", ["bare", "tab", "record of a text", "record"])
def test_a_file_may_hold_lines_of_two_recorders(tmp_path, spot, kind) -> None:
    story = tell_story(60)
    lines = [write_snapshot(0, story), *(write_depth(i, story, spot) for i in range(1, 60))]
    lines = [compact(line) for line in lines]
    other = {
        "bare": lambda time, text: text,
        "tab": lambda time, text: f"{time}\t{text}",
        "record of a text": lambda time, text: json.dumps({"ts": int(time), "data": text}),
        "record": lambda time, text: json.dumps({"ts": int(time), "message": json.loads(text)}),
    }[kind]
    mixed = [line if at % 3 != 1 else other(*line.split(" ", 1)) for at, line in enumerate(lines)]
    put(tmp_path, "1.gz", "\n".join(mixed).encode())
    assert parse(tmp_path) == tell_states(story, first=1)


def test_files_that_are_passed_by_are_counted(tmp_path) -> None:
    story = tell_story(30)
    put(tmp_path, "1.csv", write_tardis(story))
    assert parse(tmp_path) == tell_states(story)
    assert count(tmp_path, "files_passed_by") == 0
    put(tmp_path, "2.txt", write_tardis(story))
    put(tmp_path, "notes/LICENSE", b"x")
    put(tmp_path, ".hidden", b"x")
    assert parse(tmp_path) == tell_states(story)
    assert count(tmp_path, "files_passed_by") == 2


@pytest.mark.parametrize("per_s", [1, 10**3, 10**6, 10**9])
def test_databentos_csv_tells_its_unit_of_time(tmp_path, per_s) -> None:
    rows = ["ts_event,action,side,price,size,order_id,flags,publisher_id,instrument_id\n"]
    second = START_MS // 1000
    for at, (side, price, order) in enumerate((("B", 99, 1), ("A", 101, 2), ("B", 100, 3))):
        rows.append(f"{(second + at) * per_s},A,{side},{price}.0,1,{order},128,1,7\n")
    put(tmp_path, "1.csv", "".join(rows).encode())
    times = [time for _, _, time, _ in parse(tmp_path, depth=2)]
    assert times == [(second + 1) * 1000, (second + 2) * 1000]
