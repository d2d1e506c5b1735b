"""Binance's recordings, usual and unusual: the numbers, and the lines that are named as faulty."""

import json
import random
import re

import numpy as np

from lob.config import InputError
from lob.feeds import binance
from lob.feeds.binance import BinanceStream, parse_json, read_binance

SNAPSHOT = '1723161256298000000 {"lastUpdateId":0,"bids":[["1.0","2"]],"asks":[["3.0","4"]]}'
ODD_NUMBERS = (
    "1e3",
    "1E-7",
    "-1",
    "-0.0",
    "+1",
    ".5",
    "5.",
    "",
    ".",
    "1.2.3",
    "nan",
    "inf",
    "x",
    " 1",
    "007.50",
)
# Members that are added to some lines, and ways to change a line's text. About half of the changed
# lines are still valid messages.
EXTRA = (
    '"ps":"BTCUSD"',
    '"x":1.5',
    '"x":null',
    '"x":true',
    '"x":[1]',
    '"x":{"b":[["7","7"]]}',
    '"b ":"b"',
    '"st":0',
    '"x":"de\\u0070th"',
    '"x":"\u00e9"',
    '"u":"1"',
    '"lastUpdateId":1',
    '"e":"trade"',
    '"x":"\\""',
    '"E":01',
    '"x":nul',
    '"b":[]',
    '"a":[["5","6"]]',
    '"s":5',
    '"s":"BTCUSDT"',
    '"u":3',
    '"T":1',
    '"data":{"E":1}',
    '"data":1',
    '"":1',
    "",
)
EDITS = (
    (",", ", "),
    (":", ": "),
    ("}", " }"),
    ('"u"', r'"\\u0075"'),
    ('"([0-9.]+)"', r"\1"),
    ('"E":', '"E":0'),
    ("$", "\r"),
    (" ?([,:]) ?", r"\1 "),
    ('"E":', '"E":-'),
    ('"E":', '"T":1,"E":'),
    ('"b":', '"b":[],"b":'),
    ('"a":', '"a":[["5","6"]],"z":'),
    ("}$", ""),
    ("^", " "),
    ('"', ""),
    ("[][{}:,]", ""),
    ("T", "E"),
    ('"', "\u00e9"),
    ('"s":"BTC', '"s":"ETH'),
    ('"U":', '"V":'),
    ('"pu":', '"pv":'),
    ('"depthUpdate"', '"trade"'),
    ("]]", "],]"),
    ("]]", "]"),
    (r"\[\[", "[[["),
    ('","', '","1","'),
    ('"E"', "E"),
    ("^[0-9]+", "1.5"),
    ("^[0-9]+ ", ""),
    ("}$", "}}"),
    ('"b":', '"b":1,"c":'),
    ('"data"', '"date"'),
    ("$", " x"),
    ("$", ",{}"),
    ('"a":', '"a" :'),
    ("[0-9]", ""),
    ("[0-9]", "77777777777777777777"),
)


def write_number(rng: random.Random, oddities: bool) -> str:
    digits = str(rng.randrange(10 ** rng.randint(1, 24 if oddities and rng.random() < 0.1 else 15)))
    point = rng.randint(1, len(digits))
    zeros = "0" * rng.choice((0, 0, 0, 8)) if oddities and point < len(digits) else ""
    text = digits[:point] + "." * (point < len(digits)) + digits[point:] + zeros
    return rng.choice(ODD_NUMBERS) if oddities and rng.random() < 0.02 else text


def write_recording(rng: random.Random, oddities: bool) -> list[str]:
    """Return lines of one spot or futures stream from update 1 on, with keys in any order.

    With `oddities` some lines hold something unusual.
    """
    spot, nested, shuffled, last = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.5, 0
    lines = [SNAPSHOT]
    for update in range(1, rng.randint(3, 12)):
        data = {
            "e": "depthUpdate",
            "E": 1_723_161_256_298 + update,
            "s": "BTCUSDT",
            "U": last + 1,
            "u": last + 3,
        }
        data |= {} if spot else {"T": 1_723_161_256_297 + update, "pu": last}
        for side in "ba":
            data[side] = [
                [write_number(rng, oddities) for _ in range(2)] for _ in range(rng.randint(0, 5))
            ]
        last += 3
        members = [f"{write_json(key)}:{write_json(value)}" for key, value in data.items()]
        odd = oddities and rng.random() < 0.3
        if odd and rng.random() < 0.5:
            members.insert(rng.randint(0, len(members)), rng.choice(EXTRA))
        if shuffled:
            rng.shuffle(members)
        text = "{" + ",".join(members) + "}"
        if nested:
            members = ['"stream":"btcusdt@depth"', f'"data":{text}']
            text = "{" + ",".join(rng.sample(members, 2) if shuffled else members) + "}"
        line = f"172316125629800{update:04d} {text}"
        if odd and rng.random() < 0.5:
            line = re.sub(*rng.choice(EDITS), line, count=rng.randint(0, 2))
        if odd and rng.random() < 0.1:
            line = line[: rng.randrange(len(line))]
        lines += [line] * (1 + (odd and rng.random() < 0.2))
    return lines


def write_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def read(file) -> list | str:
    """All columns of the recording's batches, or the error."""
    try:
        columns: list[list] = [[] for _ in range(7)]
        for batch in read_binance([file]):
            if batch.lines is None:
                continue  # it only counts
            for column, values in zip(columns, (*batch[:6], batch.lines), strict=True):
                column += values.tolist()
        return columns
    except InputError as error:
        return str(error)


def write(folder, lines: list[str]):
    file = folder / "1.json"
    file.write_text("\n".join(lines), newline="\n")
    return file


def expect_levels(lines: list[str]) -> list[list[float]]:
    """Prices and sizes of the messages after the snapshot, by Python's json and float()."""
    messages = [json.loads(line.partition(" ")[2]) for line in lines[1:]]
    data = [message.get("data", message) for message in messages]
    levels = [level for message in data for side in "ba" for level in message[side]]
    return [[float(level[field]) for level in levels] for field in range(2)]


def test_unusual_lines_are_read_alike_at_once_and_one_by_one(tmp_path, monkeypatch) -> None:
    """A recording gives the same rows or the same fault, whether Arrow or orjson reads its JSON."""
    faults, read_well = [], 0
    for seed in range(800):
        file = write(tmp_path, write_recording(random.Random(seed), oddities=True))
        found = read(file)
        with monkeypatch.context() as patch:
            patch.setattr(BinanceStream, "read_alike", lambda self, lines: None)
            assert found == read(file), seed
        if isinstance(found, list):
            read_well += 1
        else:
            faults.append(found)
            assert re.match(rf"{file}, line \d+: |{tmp_path} holds no REST depth snapshot", found)
    kinds = {fault.partition(": ")[2][:12] for fault in faults}
    assert len(kinds) >= 3, kinds
    assert read_well > 200


def read_a_line_a_block(file):
    for line in file.read_bytes().split(b"\n"):
        yield line + b"\n", 0


def parse_first(text: bytes):
    message = parse_json(text)
    assert "lastUpdateId" in message or 1 in (message["u"], message["U"]), "left to orjson"
    return message


def test_usual_lines_are_read_as_python_reads_them(tmp_path, monkeypatch) -> None:
    for seed in range(300):
        lines = write_recording(random.Random(seed), oddities=False)
        if seed % 2:
            lines = [line.replace(",", ", ").replace(":", ": ") for line in lines]
        file = write(tmp_path, lines)
        columns = read(file)
        assert [columns[4][2:], columns[5][2:]] == expect_levels(lines), lines
        with monkeypatch.context() as patch:  # each line but the first is read by Arrow
            patch.setattr(binance, "read_line_blocks", read_a_line_a_block)
            patch.setattr(binance, "parse_json", parse_first)
            assert columns == read(file), lines


def test_any_decimal_becomes_the_nearest_float64(tmp_path) -> None:
    """Random mantissas up to 2^53 and beyond, at every place of the point, by Python's float()."""
    rng = np.random.default_rng(0)
    texts = []
    for digits in range(1, 19):
        for mantissa in rng.integers(10 ** (digits - 1), 10**digits, 200).tolist():
            point = int(rng.integers(1, digits + 1))
            texts.append(f"{str(mantissa)[:point]}.{str(mantissa)[point:]}".rstrip("."))
    texts += [str(2**53 + step) for step in (-1, 0, 1)] + [
        "150000000.00000000",
        "123456789012.00000000",
        "0.000000001",
    ]
    line = '1 {"e":"depthUpdate","E":1,"s":"BTCUSDT","U":%d,"u":%d,"b":[["%s","1"]],"a":[]}'
    lines = [line % (update, update, text) for update, text in enumerate(texts, 1)]
    columns = read(write(tmp_path, [SNAPSHOT, *lines]))
    assert columns[4][2:] == [float(text) for text in texts]
