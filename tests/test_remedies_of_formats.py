"""Messages about single formats, and about settings: what each says to do leads to the states.

As tests/test_remedies_of_files.py, of which this is the second part.
"""

import io
import re
import shutil

import numpy as np
import pytest
from fuzz_files import make_events
from reference_book import ReferenceBook
from test_binance_stream import write_depth, write_snapshot
from test_feeds import (
    START_MS,
    parse,
    refuse,
    tell_states,
)
from test_json_feeds import write_coinbase, write_okx
from test_remedies_of_files import COINAPI, STORY, TARDIS, Case, by, lay
from test_vendor_relatives import DAY, NAME, RIGHT, WRITTEN_OUT

import data_parser
from lob.book.states import open_book
from lob.config import InputError
from lob.feeds.batch import ADD

STATES = tell_states(STORY)
ROWS = COINAPI.splitlines(keepends=True)


def tell_orders() -> list[tuple]:
    """Return the reference book's states after the orders of `WRITTEN_OUT`, with two levels."""
    reference = ReferenceBook(2, by_order=True)
    for line in WRITTEN_OUT.splitlines()[1:]:
        time_ns, _, _, _, side, price, size, order, _ = line.split(",")
        row = ADD, side == "B", round(float(price) * 10), int(size) * 1000, int(order)
        reference.take_message(int(time_ns) // 10**6, [row])
    return [state[:4] for state in reference.states]


def save(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def as_rows() -> np.ndarray:
    return np.array(
        [
            (time_ms, kind, side, ticks / 10, lots / 1000)
            for time_ms, kind, levels in STORY
            for side, ticks, lots in levels
        ]
    )


def with_ids(ids) -> bytes:
    """Return the story's snapshot order by order, with the ids that `ids` gives to its rows."""
    lines = [ROWS[0].strip() + b";order_id"]
    lines += [row.strip() + f";{ids(at)}".encode() for at, row in enumerate(ROWS[1:59])]
    return b"\n".join(lines) + b"\n"


def put_cell(array: np.ndarray, row: int, column, value) -> np.ndarray:
    changed = array.copy()
    changed[column][row] = value
    return changed


ARRAY, EVENTS = as_rows(), make_events(STORY)
MESSAGE_FILE, BOOK_FILE = NAME.format("message"), NAME.format("orderbook")
LOBSTER = {name: text.encode() for name, text in DAY.items()}
MBO = {"1.csv": WRITTEN_OUT.encode()}
# Each case of one format has one list of right states, and the settings that it needs.
TELLS = {
    "story": (STATES, {}),
    "snapshot": (STATES[:1], {}),
    "lobster": (RIGHT, {}),
    "orders": (tell_orders(), {"depth": 2}),
    "events": (tell_states(STORY, first=1), {}),
    "untimed": ([(*STATES[0][:2], STORY[1][0], True), *STATES[1:]], {}),
}


def lobster(**changed: bytes) -> dict[str, bytes]:
    """Return LOBSTER's day with the message file, or the book, of other content."""
    return LOBSTER | {NAME.format(kind): data for kind, data in changed.items()}


def without(name: str) -> dict[str, bytes]:
    return {each: data for each, data in LOBSTER.items() if each != name}


MESSAGES, BOOKS = LOBSTER.values()
MBO_ROWS = WRITTEN_OUT.splitlines(keepends=True)
TWO_IDS = "".join([*MBO_ROWS, MBO_ROWS[-1].replace(",1,7,", ",1,8,")]).encode()
TWO_VENUES = "".join([*MBO_ROWS, MBO_ROWS[-1].replace(",1,7,", ",2,7,")]).encode()
DEPTHS = [write_depth(at, STORY, False) for at in range(1, 60)]
OTHER = [write_depth(at, STORY, False, symbol="ETHUSDT") for at in range(1, 9)]
NAMELESS = "\n".join([write_snapshot(0, STORY), *DEPTHS]).encode()
NAMED = by(NAMELESS, b'{"lastUpdateId"', b'{"symbol": "BTCUSDT", "lastUpdateId"')
OTHERS = b"\n" + "\n".join(OTHER).encode()
OKX = "\n".join(write_okx(STORY)).encode()
COINBASE = "\n".join(write_coinbase(STORY)).encode()
CASES: dict[str, tuple[str, Case]] = {
    # CSV
    "a time of no year": (
        "story",
        Case(
            {"1.csv": by(COINAPI, ROWS[70].split(b";")[0], b"1823-05-02T00:00:00", 1)},
            "lie between the years",
            {"1.csv": COINAPI},
        ),
    ),
    "a negative size": (
        "story",
        Case(
            {"1.csv": COINAPI + by(ROWS[-1], ROWS[-1].split(b";")[-1], b"-1\n")},
            "the size not negative: mend or drop the row",
            {"1.csv": COINAPI},
        ),
    ),
    "text for a time": (
        "story",
        Case(
            {"1.csv": COINAPI + by(ROWS[-1], ROWS[-1].split(b";")[0], b"noon")},
            "'noon' is not a time such as",
            {"1.csv": COINAPI},
        ),
    ),
    "a lost column of Tardis": (
        "story",
        Case(
            {"1.csv": by(TARDIS, b"symbol", b"instrument")},
            "is of another format",
            {"1.csv": TARDIS},
        ),
    ),
    "a symbol that Tardis has not": (
        "story",
        Case(
            {"1.csv": TARDIS},
            "set --symbol to one of BTCUSDT",
            {"1.csv": TARDIS},
            {"symbol": "XBT"},
            {"symbol": "BTCUSDT"},
        ),
    ),
    "files with and without ids": (
        "snapshot",
        Case(
            {"1.csv": with_ids(str), "2.csv": COINAPI},
            "a pair's files are of one kind",
            {"1.csv": with_ids(str)},
        ),
    ),
    "a row without its id": (
        "snapshot",
        Case(
            {"1.csv": with_ids(lambda at: at if at != 57 else "")},
            "the order_id is missing",
            {"1.csv": with_ids(str)},
        ),
    ),
    # Raw recordings
    "a symbol that OKX has not": (
        "story",
        Case(
            {"1.json": OKX},
            "set --symbol to one of A-B",
            {"1.json": OKX},
            {"symbol": "AB"},
            {"symbol": "A-B"},
        ),
    ),
    "nothing but a snapshot without a time": (
        "untimed",
        Case({"1.json": COINBASE.partition(b"\n")[0]}, "record updates too", {"1.json": COINBASE}),
    ),
    "two symbols of Binance, with --symbol": (
        "events",
        Case(
            {"1.json": NAMED + OTHERS},
            "take one of them, such as --symbol=BTCUSDT",
            {"1.json": NAMED + OTHERS},
            {},
            {"symbol": "BTCUSDT"},
        ),
    ),
    "two symbols of Binance, of which none is told": (
        "events",
        Case(
            {"1.json": NAMELESS + OTHERS},
            "write each symbol's lines into a folder of its own",
            {"1.json": NAMELESS},
            {"symbol": "BTCUSDT"},
        ),
    ),
    # Databento
    "a cell that Databento lacks": (
        "orders",
        Case({"1.csv": by(MBO["1.csv"], b",1,7,", b",,7,")}, "publisher_id is missing", MBO),
    ),
    "an instrument that Databento has not": (
        "orders",
        Case(MBO, "holds 7, not ESH4: set --symbol", MBO, {"symbol": "ESH4"}, {"symbol": "7"}),
    ),
    "two instruments of Databento": (
        "orders",
        Case({"1.csv": TWO_IDS}, "such as --symbol=7", {"1.csv": TWO_IDS}, {}, {"symbol": "7"}),
    ),
    "days of two venues": (
        "orders",
        Case(
            MBO | {"2.csv": MBO["1.csv"].replace(b",1,7,", b",2,7,")},
            "books of the publishers 1, 2: ask",
            MBO,
        ),
    ),
    "days of two symbols of CoinAPI": (
        "story",
        Case(
            {"IDDI-1+SC-X_SPOT_A_B+S-AB.csv": COINAPI, "IDDI-2+SC-X_SPOT_C_B+S-CB.csv": COINAPI},
            "holds files of X_SPOT_A_B, X_SPOT_C_B: a pair's folder takes one symbol",
            {"IDDI-1+SC-X_SPOT_A_B+S-AB.csv": COINAPI},
        ),
    ),
    "two venues of Databento": (
        "orders",
        Case({"1.csv": TWO_VENUES}, "ask Databento for one venue's dataset", MBO),
    ),
    # LOBSTER
    "a day without its messages": (
        "lobster",
        Case(without(MESSAGE_FILE), "put the other one beside it", LOBSTER),
    ),
    "fewer messages than books": (
        "lobster",
        Case(lobster(message=MESSAGES[:24]), "message_2.csv ends before row 2", LOBSTER),
    ),
    "a book that lost a column": (
        "lobster",
        Case(
            lobster(orderbook=BOOKS.replace(b",2\n", b"\n")),
            "not four a level",
            LOBSTER,
            {"feed": "lobster"},
        ),
    ),
    "messages that lost a column": (
        "lobster",
        Case(
            lobster(message=re.sub(rb",-?1\n", b"\n", MESSAGES)),
            "not six or more",
            LOBSTER,
            {"feed": "lobster"},
        ),
    ),
    "a book of words": (
        "lobster",
        Case(lobster(orderbook=BOOKS + b"x,1,2,3,4,5,6,7\n"), "no whole LOBSTER file", LOBSTER),
    ),
    "a row of no size": (
        "lobster",
        Case(
            lobster(
                orderbook=BOOKS + b"1010000,-5,1000000,7,1020000,5,990000,2\n",
                message=MESSAGES + b"34203,1,7,5,1000000,1\n",
            ),
            "row 4: it or the message beside it",
            LOBSTER,
        ),
    ),
    "a day without a date": (
        "lobster",
        Case(
            {name.replace("2012-06-21", "june"): data for name, data in LOBSTER.items()},
            "its name holds no date: put YYYY-MM-DD in it",
            LOBSTER,
        ),
    ),
    # Arrays
    "rows of another type": (
        "story",
        Case(
            {"1.npy": save(ARRAY.astype(np.float32))},
            "whole numbers or float64",
            {"1.npy": save(ARRAY)},
        ),
    ),
    "rows of four numbers": (
        "story",
        Case({"1.npy": save(ARRAY[:, :4])}, "it must be (N, 5)", {"1.npy": save(ARRAY)}),
    ),
    "an array that was cut": (
        "story",
        Case({"1.npy": save(ARRAY)[:-9]}, "write it again with numpy.save", {"1.npy": save(ARRAY)}),
    ),
    "a row of no update type": (
        "story",
        Case(
            {"1.npy": save(np.append(ARRAY, [[START_MS, 9, 1, 1, 1]], axis=0))},
            f"row {len(ARRAY)}: ",
            {"1.npy": save(ARRAY)},
        ),
    ),
    "an event of no time": (
        "events",
        Case(
            {"1.npy": save(put_cell(EVENTS, -1, "exch_ts", -1))},
            "its exch_ts does not lie",
            {"1.npy": save(EVENTS)},
        ),
    ),
    "events of orders": (
        "story",
        Case(
            {"1.npy": save(put_cell(EVENTS, -1, "ev", 10))},
            "parse the recording that it was made",
            {"1.csv": COINAPI},
        ),
    ),
    # What there is
    "no file": ("story", Case({"README.md": b"x"}, "holds no files", {"1.csv": COINAPI})),
}


@pytest.mark.parametrize("name", CASES)
def test_the_remedy_leads_to_the_states(tmp_path, name) -> None:
    told, case = CASES[name]
    right, settings = TELLS[told]
    lay(tmp_path, case.files)
    assert case.said in refuse(tmp_path, **settings, **case.settings)
    lay(tmp_path, case.mended)
    assert parse(tmp_path, **settings, **case.new_settings) == right


SETTINGS = {
    "an odd depth": ({"depth": 5}, "depth = 5 must be even", {"depth": 4}),
    "two ways to thin": (
        {"subsample": 2, "state_interval_ms": 100},
        "both thin the states: set one of them",
        {"subsample": 1},
    ),
    "more levels than are kept": (
        {"depth": 8, "book_depth": 3},
        "set --depth=6 or less",
        {"depth": 6},
    ),
    "a misspelt feed": (
        {"feed": "coinapy"},
        "there are binance, bybit, coinapi",
        {"feed": "coinapi"},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_do_not_fit_lead_to_some_that_do(tmp_path, name) -> None:
    settings, said, mended = SETTINGS[name]
    lay(tmp_path, {"1.csv": COINAPI})
    config = {**data_parser.config, "data_dir": str(tmp_path), "workers": 1, "depth": 4, **settings}
    with pytest.raises(InputError, match=re.escape(said)):
        data_parser.main(config)
    assert data_parser.main({**config, **mended}) == 0
    assert open_book(tmp_path / "book_states" / "A_B").rows > 0


@pytest.mark.parametrize("remedy", [{"state_interval_ms": 100}, {"subsample": 2}, {"depth": 2}])
def test_a_disk_too_small_for_all_states_holds_fewer_of_them(tmp_path, monkeypatch, remedy) -> None:
    """60 states of 4 levels take 3,120 bytes, of 2 levels 2,160."""
    lay(tmp_path, {"1.csv": COINAPI})
    right = parse(tmp_path, **remedy)
    shutil.rmtree(tmp_path / "book_states")
    free = shutil.disk_usage(tmp_path)._replace(free=2_500)
    monkeypatch.setattr(data_parser.shutil, "disk_usage", lambda folder: free)
    said = refuse(tmp_path)
    assert "set --state_interval_ms=100, --subsample or a smaller --depth" in said
    assert parse(tmp_path, **remedy) == right


def test_prices_and_sizes_of_too_many_digits_are_refused_until_they_are_rounded(tmp_path) -> None:
    def write(column: int, text: str, name: str = "2.csv") -> None:
        cells = ROWS[1].decode().strip().split(";")
        cells[column] = text
        lay(
            tmp_path, {"1.csv": COINAPI, name: (ROWS[0].decode() + ";".join(cells) + "\n").encode()}
        )

    write(3, "99.91234567890123")
    said = refuse(tmp_path)
    assert "prices are multiples of no power of ten down to 1e-12: set --tick_size" in said
    write(4, "0.0123456789012345")
    assert "sizes are multiples of no power of ten down to 1e-12: round them" in refuse(tmp_path)
    lay(tmp_path, {"1.csv": COINAPI})
    assert parse(tmp_path) == STATES


def test_sides_the_wrong_way_round_are_told_by_what_they_do(tmp_path) -> None:
    turned = re.sub(rb";([01]);", lambda found: b";%d;" % (found[1] == b"0"), COINAPI)
    lay(tmp_path, {"1.csv": turned})
    assert "is the column of the sides the wrong way round?" in refuse(
        tmp_path, max_crossed_ms=10**6
    )
    lay(tmp_path, {"1.csv": COINAPI})
    assert parse(tmp_path) == STATES
