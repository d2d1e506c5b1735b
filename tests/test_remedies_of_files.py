"""Messages about files that cannot be read: what each says to do leads to the right states.

Each case is a recording at fault, the message, and the recording (or the settings) as the message
says. tests/test_remedies.py does the same for numbers, tests/test_times.py for times and names.
"""

import gzip
import re
from typing import NamedTuple

import pytest
from test_binance_stream import write_depth, write_snapshot
from test_feeds import (
    TARDIS_HEADER,
    parse,
    refuse,
    tell_states,
    tell_story,
    write_coinapi,
    write_tardis,
)
from test_json_feeds import write_okx

STORY = tell_story(60)
TARDIS, COINAPI = write_tardis(STORY), write_coinapi(STORY)
OKX = "\n".join(write_okx(STORY)).encode()
DEPTHS = [write_depth(message, STORY, False) for message in range(1, 60)]
BINANCE = "\n".join([write_snapshot(0, STORY), *DEPTHS]).encode()
OF_ANOTHER = "\n".join(
    write_depth(at, STORY, False, symbol="ETHUSDT") for at in range(1, 9)
).encode()


class Case(NamedTuple):
    files: dict[str, bytes]
    said: str
    mended: dict[str, bytes]
    settings: dict = {}  # noqa: RUF012
    new_settings: dict = {}  # noqa: RUF012
    first: int = 0  # message whose state is the first one


def by(data: bytes, old: bytes, new: bytes, count: int = 1) -> bytes:
    assert old in data
    return data.replace(old, new, count)


NO_HEADER = TARDIS.split(b"\n", 1)[1]
CASES = {
    "empty": Case({"1.csv": TARDIS, "2.csv": b""}, "2.csv is empty: remove it", {"1.csv": TARDIS}),
    "no rows": Case(
        {"1.csv": TARDIS, "2.csv": TARDIS_HEADER.encode()},
        "2.csv holds no rows: remove it",
        {"1.csv": TARDIS},
    ),
    "no known feed": Case({"1.csv": NO_HEADER}, "is of no known feed", {"1.csv": TARDIS}),
    "two feeds": Case(
        {"1.csv": TARDIS, "2.json": OKX}, "one pair's files are one feed", {"1.csv": TARDIS}
    ),
    "two symbols": Case(
        {"1.csv": TARDIS, "2.csv": by(TARDIS, b"BTCUSDT", b"ETHUSDT", -1)},
        "holds files of BTCUSDT, ETHUSDT: a pair's folder takes one symbol",
        {"1.csv": TARDIS},
    ),
    "two symbols of Binance": Case(
        {"1.json": BINANCE + b"\n" + OF_ANOTHER},
        "it is of ETHUSDT, those before it of BTCUSDT: take one of them",
        {"1.json": BINANCE},
        first=1,
    ),
    "a snapshot that names no symbol": Case(
        {"1.json": BINANCE + b"\n" + OF_ANOTHER},
        "write each symbol's lines into a folder of its own, and leave --symbol out",
        {"1.json": BINANCE},
        {"symbol": "BTCUSDT"},
        first=1,
    ),
    "a symbol where files name none": Case(
        {"1.csv": COINAPI},
        "files of feed coinapi name no instruments, leave it out",
        {"1.csv": COINAPI},
        {"symbol": "BTCUSDT"},
    ),
    "a line cut off": Case(
        {"1.json": OKX + b'\n{"arg":{"chan'}, "1.json, line 61: no whole message", {"1.json": OKX}
    ),
    "a line of Binance cut off": Case(
        {"1.json": BINANCE + b'\n1723161256298000000 {"e":"depthUpdate","E":17'},
        "1.json, line 61: no whole Binance message",
        {"1.json": BINANCE},
        first=1,
    ),
    "no book channel": Case(
        {"1.json": b'{"event":"subscribe","arg":{"channel":"trades","instId":"A-B"}}\n'},
        "holds no order book messages of this feed: record its book channel",
        {"1.json": OKX},
    ),
    "no REST snapshot": Case(
        {"1.json": "\n".join(DEPTHS).encode()},
        "record one (GET depth?limit=1000) after the stream",
        {"1.json": "\n".join([*DEPTHS[:5], write_snapshot(3, STORY), *DEPTHS[5:]]).encode()},
        first=3,
    ),
    "no snapshot of Tardis": Case(
        {"2.csv": write_tardis(STORY[30:])},
        "add the file that opens with one",
        {"1.csv": write_tardis(STORY[:30]), "2.csv": write_tardis(STORY[30:])},
    ),
    "a lost column": Case(
        {"1.csv": by(COINAPI, b"entry_sx", b"size")},
        "the header lacks entry_sx",
        {"1.csv": COINAPI},
    ),
    "an unknown word": Case(
        {"1.csv": by(COINAPI, b";SET;", b";PUT;")},
        "known: ADD, SUB, MATCH, SET",
        {"1.csv": COINAPI},
    ),
    "a row that is no number": Case(
        {"1.csv": TARDIS + b"x,BTCUSDT,1723161256298000,1723161299298000,false,bid,abc,1\n"},
        "price 'abc' is not a number: mend or drop the row",
        {"1.csv": TARDIS},
    ),
    "a short row": Case(
        {"1.csv": TARDIS + b"x,BTCUSDT,17231612\n"},
        "has 3 columns, the header 8: 'x,BTCUSDT,17231612': mend or drop the row",
        {"1.csv": TARDIS},
    ),
    "a packed file that was cut off": Case(
        {"1.csv.gzip": gzip.compress(TARDIS)[:-50]},
        "cannot be decompressed",
        {"1.csv.gzip": gzip.compress(TARDIS)},
    ),
    "too deep a state": Case(
        {"1.csv": TARDIS},
        "holds no complete state of depth 200",
        {"1.csv": TARDIS},
        {"depth": 200},
        {"depth": None},  # as the message says
    ),
}


def lay(folder, files: dict[str, bytes]) -> None:
    raw = folder / "raw" / "A_B"
    raw.mkdir(parents=True, exist_ok=True)
    for file in raw.iterdir():
        file.unlink()
    for name, data in files.items():
        (raw / name).write_bytes(data)


@pytest.mark.parametrize("name", CASES)
def test_the_remedy_leads_to_the_states(tmp_path, name) -> None:
    case = CASES[name]
    lay(tmp_path, case.files)
    said = refuse(tmp_path, **case.settings)
    assert case.said in said
    lay(tmp_path, case.mended)
    settings = dict(case.new_settings)
    if "depth" in settings:
        settings["depth"] = int(re.search(r"set --depth=(\d+)", said)[1])
    depth = settings.get("depth", 4)
    assert parse(tmp_path, **settings) == tell_states(STORY, depth, case.first)
