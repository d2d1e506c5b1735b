"""Relatives of vendors' files: other spellings, mixtures and faults of LOBSTER's and the like.

The right states are those of the file as its vendor writes it, of the reference book, or of
hftbacktest's own simulated exchange.
"""

import io
import itertools

import numpy as np
import pytest
from reference_book import ReferenceBook
from test_containers import pack_zip
from test_feeds import START_MS, count, parse, put, refuse

from lob.feeds.batch import SET

# LOBSTER

BOOK = "1010000,5,1000000,7,1020000,5,990000,2\n"
LATER = BOOK.replace("1010000,5", "1010000,4")
NAME = "AAPL_2012-06-21_34200000_57600000_{}_2.csv"
MESSAGES = "34200.5,1,7,5,1000000,1\n34201.25,4,7,1,1010000,-1\n34202,7,0,0,-1,-1\n"
DAY = {NAME.format("message"): MESSAGES, NAME.format("orderbook"): BOOK + LATER + LATER}
OPENING_MS = int(np.datetime64("2012-06-21T13:30:00.5", "ms").astype(int))
RIGHT = [  # the halt (type 7) is a row as any other
    ([990, 1000, 1010, 1020], [2000, 7000, 5000, 5000], OPENING_MS, True),
    ([990, 1000, 1010, 1020], [2000, 7000, 4000, 5000], OPENING_MS + 750, False),
    ([990, 1000, 1010, 1020], [2000, 7000, 4000, 5000], OPENING_MS + 1500, False),
]


def put_all(folder, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        put(folder, name, text if isinstance(text, bytes) else text.encode())


def rename(files: dict[str, str], old: str, new: str) -> dict[str, str]:
    return {name.replace(old, new): text for name, text in files.items()}


def map_texts(change) -> dict[str, str]:
    return {name: change(text) for name, text in DAY.items()}


def with_column(word: str) -> dict[str, str]:
    """Return the day with a column behind the message's six, as newer files of LOBSTER have."""
    messages, book = DAY
    return {messages: MESSAGES.replace("\n", f",{word}\n"), book: DAY[book]}


LOBSTER_SPELLINGS = {
    "a participant": with_column("GSCO"),
    "no participant": with_column("null"),
    "one of the files packed": dict(
        zip((f"{NAME.format('message')}.gz", NAME.format("orderbook")), DAY.values(), strict=True)
    ),
    "a folder for each kind": {
        f"{kind}s/{name}": text
        for kind, (name, text) in zip(("message", "book"), DAY.items(), strict=True)
    },
    "Windows line ends and a mark": map_texts(lambda text: "\ufeff" + text.replace("\n", "\r\n")),
    "empty lines": map_texts(lambda text: text.replace("\n", "\n\n")),
    "numbered": {f"1_{name}": text for name, text in DAY.items()},
    "a dot in the ticker": rename(DAY, "AAPL", "BRK.B"),
}


@pytest.mark.parametrize("spelling", LOBSTER_SPELLINGS)
def test_lobsters_files_may_be_spelt_otherwise(tmp_path, spelling) -> None:
    put_all(tmp_path, LOBSTER_SPELLINGS[spelling])
    assert parse(tmp_path) == RIGHT


TWICE = {f"a/{name}": text for name, text in DAY.items()} | {
    f"b/{name}": text.replace("1010000", "1015000") for name, text in DAY.items()
}
LOBSTER_MIXTURES = {
    "two shares": (
        DAY | rename(rename(DAY, "AAPL", "MSFT"), "21", "22"),
        "holds files of AAPL, MSFT",
    ),
    "a day twice": (TWICE, "are files of one name: remove one of them"),
    "an archive of both": ({"1.zip": pack_zip({n: t.encode() for n, t in DAY.items()})}, "unpack"),
}


@pytest.mark.parametrize("mixture", LOBSTER_MIXTURES)
def test_lobsters_files_that_are_mixed_are_refused_until_they_are_apart(tmp_path, mixture) -> None:
    files, said = LOBSTER_MIXTURES[mixture]
    put_all(tmp_path / "mixed", files)
    assert said in refuse(tmp_path / "mixed")
    put_all(tmp_path, DAY)
    assert parse(tmp_path) == RIGHT


# Databento

HEADER = "ts_event,publisher_id,instrument_id,action,side,price,size,order_id,flags\n"
START_NS = START_MS * 10**6


def write_mbo(price=lambda dollars: f"{dollars}.000000000", time=str, flags=128) -> str:
    """Return orders of ids up to 2^64 - 1, a message each, at whole dollars around 100."""
    rows = [
        f"{time(START_NS + at * 10**6)},1,7,A,{'AB'[at % 2]},"
        f"{price(100 - at % 7 if at % 2 else 101 + at % 5)},{1 + at},{2**64 - 1 - at},{flags}\n"
        for at in range(20)
    ]
    return HEADER + "".join(rows)


def iso_time(zone: str, ahead_ns: int = 0):
    return lambda time_ns: f"{np.datetime64(time_ns + ahead_ns, 'ns')}{zone}"


def some_iso(time_ns: int) -> str:
    return iso_time("Z")(time_ns) if time_ns < START_NS + 10**7 else str(time_ns)


WRITTEN_OUT, IN_1E9 = write_mbo(), write_mbo(lambda dollars: f"{dollars}000000000")
MBO_SPELLINGS = {
    "prices that count 1e-9": IN_1E9,
    "quoted": WRITTEN_OUT.replace(",", '","').replace("\n", '"\n"')[:-1].join(['"', ""]),
    "quoted prices that count 1e-9": IN_1E9.replace(",", '","')
    .replace("\n", '"\n"')[:-1]
    .join(['"', ""]),
    "some prices without their dot": write_mbo(
        lambda dollars: str(dollars) if dollars % 2 else f"{dollars}.0"
    ),
    "exponents": write_mbo(lambda dollars: f"{dollars / 100:g}E+02"),
    "ISO without an offset": write_mbo(time=iso_time("")),
    "ISO ahead of UTC": write_mbo(time=iso_time("+02:00", 7200 * 10**9)),
    "ISO up to the middle": write_mbo(time=some_iso),
    "times in seconds": write_mbo(time=lambda ns: f"{ns // 10**9}.{ns % 10**9:09}"),
    "semicolons": WRITTEN_OUT.replace(",", ";"),
    "columns the other way round": "\n".join(
        ",".join(reversed(line.split(","))) for line in WRITTEN_OUT.splitlines()
    ),
}


@pytest.mark.parametrize("spelling", MBO_SPELLINGS)
def test_databentos_csv_may_be_spelt_otherwise(tmp_path, spelling) -> None:
    put(tmp_path / "right", "1.csv", WRITTEN_OUT.encode())
    right = parse(tmp_path / "right", depth=2)
    assert len(right) == 19 and right[-1][0] == [1000, 1010]
    put(tmp_path, "1.csv", MBO_SPELLINGS[spelling].encode())
    assert parse(tmp_path, depth=2) == right


def test_databentos_files_without_ends_of_messages_or_of_two_forms_are_refused(tmp_path) -> None:
    put(tmp_path, "1.csv", write_mbo(flags=0).encode())
    assert "holds no record with the flag F_LAST (128)" in refuse(tmp_path, depth=2)
    rows = (IN_1E9 * 40).splitlines(keepends=True)  # what tells the form is the first 64 KiB
    rows = [row for at, row in enumerate(rows) if at == 0 or row != HEADER]
    bad = rows[-1].replace("95000000000", "95.5")
    put(tmp_path, "1.csv", "".join([*rows, *rows[1:] * 2, bad]).encode())
    assert "is written out, those before it count 1e-9: write all prices in one way" in refuse(
        tmp_path, depth=2
    )
    put(tmp_path, "1.csv", WRITTEN_OUT.encode())
    assert len(parse(tmp_path, depth=2)) == 19


# hftbacktest

FIELDS = {"ev": "u8", "exch_ts": "i8", "local_ts": "i8", "px": "f8", "qty": "f8"}
EVENT = np.dtype([*FIELDS.items(), ("order_id", "u8"), ("ival", "i8"), ("fval", "f8")])
BUY, SELL, BOTH = 1 << 29, 1 << 28, 3 << 30
DEPTH, CLEAR, LEVEL = 1, 3, 4
STEP_NS = 10**7


def to_events(rows: list[tuple]) -> np.ndarray:
    events = np.zeros(len(rows), EVENT)
    for name, column in zip(FIELDS, zip(*rows, strict=True), strict=True):
        events[name] = column
    return events


def tell_events(messages: int = 300, seed: int = 0) -> list[tuple]:
    """Return events: snapshots of few levels beside differences that reach deeper.

    A clear is of one side up to the snapshot's last price, of a whole side, or of both sides.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple] = []
    for number in range(messages):
        time = START_NS + number * STEP_NS
        sides = {BUY: -1, SELL: 1}
        if number % 25 == 0:
            before = time - 1000
            if number % 75 == 50:
                rows.append((CLEAR | BOTH, before, before + 1, np.nan, 0))
            for side, sign in list(sides.items())[: 1 if number % 50 == 25 else 2]:
                last = 1000 + sign * int(rng.integers(2, 9))
                upto = np.nan if number % 100 == 75 else last
                rows.append((CLEAR | BOTH | side, before, before + 1, upto, 0))
                for price in range(1000 + sign, last + sign, sign):
                    size = int(rng.integers(1, 9))
                    rows.append((LEVEL | BOTH | side, before, before + 1, price, size))
        for side, sign in sides.items():
            for _ in range(int(rng.integers(1, 4))):
                price = 1000 + sign * int(rng.integers(1, 15))
                size = int(rng.integers(0, 6))
                rows.append((DEPTH | BOTH | side, time, time + 1, price, size))
    return rows


def put_events(folder, rows: list[tuple], name: str = "1.npz") -> None:
    file = io.BytesIO()
    np.savez_compressed(file, data=to_events(rows))
    put(folder, name, file.getvalue())


def to_levels(state: tuple) -> tuple:
    """Return best bids and asks of a state of prices, as in `tell_events`."""
    ticks, lots, *_ = state
    levels = [(tick // 10, lot // 1000) for tick, lot in zip(ticks, lots, strict=True)]
    return levels[1::-1], levels[2:]


def test_clears_remove_what_hftbacktests_own_exchange_removes(tmp_path) -> None:
    """Its book is looked at between two messages; a state is there if both have two levels."""
    module = pytest.importorskip("hftbacktest")
    rows = tell_events()
    cut = next(at for at, row in enumerate(rows) if row[1] > START_NS + 133 * STEP_NS)
    put_events(tmp_path, rows[:cut], "9.npz")
    put_events(tmp_path, rows[cut:], "10.npz")
    states = {state[2]: to_levels(state) for state in parse(tmp_path, max_gap_seconds=1e9)}
    events = to_events(rows)  # which hftbacktest reads, but does not keep
    asset = module.BacktestAsset().data(events).linear_asset(1.0).tick_size(1).lot_size(1)
    asset = asset.constant_order_latency(0, 0).risk_adverse_queue_model()
    asset = asset.no_partial_fill_exchange().trading_value_fee_model(0, 0)
    market = module.HashMapMarketDepthBacktest([asset])
    compared = 0
    for number in range(299):  # with the last event its time ends
        between_ns = START_NS + number * STEP_NS + STEP_NS // 2
        assert market.elapse(between_ns - (market.current_timestamp if number else rows[0][1])) == 0
        depth = market.depth(0)
        sides = [
            [(tick, at_tick(tick)) for tick in ticks if at_tick(tick) > 0][:2]
            for at_tick, ticks in (
                (depth.bid_qty_at_tick, range(1020, 980, -1)),
                (depth.ask_qty_at_tick, range(980, 1020)),
            )
        ]
        if min(map(len, sides)) == 2:
            assert states[START_MS + 10 * number] == tuple(sides), number
            compared += 1
    market.close()
    assert compared == len(states) - 1 > 250
    assert count(tmp_path, "snapshots") == 12


def test_a_later_snapshot_wipes_no_level_that_it_does_not_reach(tmp_path) -> None:
    """The same without hftbacktest: a clear of one side up to 999, and one of no side."""
    first = [(CLEAR, BUY, 998, 0), (CLEAR, SELL, 1003, 0)]
    first += [(LEVEL, BUY, 1000 - at, at) for at in (1, 2)]
    first += [(LEVEL, SELL, 1000 + at, at) for at in (1, 2)]
    blocks = [
        first,
        [(DEPTH, BUY, 997, 3), (DEPTH, SELL, 1003, 3)],
        [(CLEAR, BUY, 999, 0), (LEVEL, BUY, 999, 8)],
        [(DEPTH, SELL, 1001, 9)],
        [(CLEAR, 0, 0, 0)],
        [
            (DEPTH, BUY, 996, 1),
            (DEPTH, BUY, 995, 1),
            (DEPTH, SELL, 1004, 1),
            (DEPTH, SELL, 1005, 1),
        ],
    ]
    rows = [
        (kind | side | BOTH, START_NS + at * STEP_NS, START_NS + at * STEP_NS + 1, price, size)
        for at, block in enumerate(blocks)
        for kind, side, price, size in block
    ]
    put_events(tmp_path, rows)
    right = [
        ([(999, 1), (998, 2)], [(1001, 1), (1002, 2)]),
        ([(999, 8), (998, 2)], [(1001, 9), (1002, 2)]),
        ([(996, 1), (995, 1)], [(1004, 1), (1005, 1)]),
    ]
    assert [to_levels(state) for state in parse(tmp_path)] == right


def test_arrays_that_hold_no_book_of_levels_are_refused(tmp_path) -> None:
    rows = tell_events(5)
    file = io.BytesIO()
    np.savez_compressed(file, data=to_events(rows), more=to_events(rows))
    put(tmp_path, "1.npz", file.getvalue())
    assert "holds several arrays: save each in a file of its own" in refuse(tmp_path)
    put_events(tmp_path, [*rows, (LEVEL | BOTH, rows[-1][1], rows[-1][1], 999, 1)])
    assert f"row {len(rows)}: a level that is neither bid nor ask" in refuse(tmp_path)
    put_events(tmp_path, rows)
    reference = ReferenceBook(4)
    for time, block in itertools.groupby(rows, lambda row: row[1] // STEP_NS):
        reference.take_message(
            time,
            [(SET, ev & BUY > 0, price, size, 0) for ev, *_, price, size in block if ev & 7 != 3],
        )
    assert [to_levels(state) for state in parse(tmp_path)] == [
        (
            list(zip(ticks[1::-1], lots[1::-1], strict=True)),
            list(zip(ticks[2:], lots[2:], strict=True)),
        )
        for ticks, lots, *_ in reference.states
    ]
