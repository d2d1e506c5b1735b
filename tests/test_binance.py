"""Depth messages through the numba kernel and through orjson alone must give the same arrays, or the same error."""

import json
import random
import re

import numpy as np
import pytest

from lob.config import InputError
from lob.feeds.binance import read_binance
from lob.feeds.binance_json import LineScanner

SNAPSHOT = '1723161256298000000 {"lastUpdateId":0,"bids":[["1.0","2"]],"asks":[["3.0","4"]]}'
ODD_NUMBERS = ("1e3", "1E-7", "-1", "-0.0", "+1", ".5", "5.", "", ".", "1.2.3", "nan", "inf", "x", " 1", "007.50")
# A member that a line may have besides, and what may become of its text: about half of it stays a valid message.
EXTRA = (
    '"ps":"BTCUSD"', '"x":1.5', '"x":null', '"x":true', '"x":[1]', '"x":{"b":[["7","7"]]}', '"b ":"b"', '"st":0',
    '"x":"de\\u0070th"', '"x":"\u00e9"', '"u":"1"', '"lastUpdateId":1', '"e":"trade"', '"x":"\\""', '"E":01', '"x":nul',
    '"b":[]', '"a":[["5","6"]]', '"s":5', '"s":"BTCUSDT"', '"u":3', '"T":1', '"data":{"E":1}', '"data":1', '"":1', "",
)  # fmt: skip
EDITS = (
    (",", ", "), (":", ": "), ("}", " }"), ('"u"', r'"\\u0075"'), ('"([0-9.]+)"', r"\1"), ('"E":', '"E":0'),
    ("$", "\r"), (" ?([,:]) ?", r"\1 "), ('"E":', '"E":-'), ('"E":', '"T":1,"E":'), ('"b":', '"b":[],"b":'),
    ('"a":', '"a":[["5","6"]],"z":'), ("}$", ""), ("^", " "), ('"', ""), ("[][{}:,]", ""), ("T", "E"), ('"', "\u00e9"),
    ('"s":"BTC', '"s":"ETH'), ('"U":', '"V":'), ('"pu":', '"pv":'), ('"depthUpdate"', '"trade"'), ("]]", "],]"),
    ("]]", "]"), (r"\[\[", "[[["), ('","', '","1","'), ('"E"', "E"), ("^[0-9]+", "1.5"), ("^[0-9]+ ", ""), ("}$", "}}"),
    ('"b":', '"b":1,"c":'), ('"data"', '"date"'), ("$", " x"), ("$", ",{}"), ('"a":', '"a" :'), ("[0-9]", ""),
    ("[0-9]", "77777777777777777777"),
)  # fmt: skip


def write_number(rng: random.Random, oddities: bool) -> str:
    digits = str(rng.randrange(10 ** rng.randint(1, 24 if oddities and rng.random() < 0.1 else 15)))
    point = rng.randint(1, len(digits))
    zeros = "0" * rng.choice((0, 0, 0, 8)) if oddities and point < len(digits) else ""
    text = digits[:point] + "." * (point < len(digits)) + digits[point:] + zeros
    return rng.choice(ODD_NUMBERS) if oddities and rng.random() < 0.02 else text


def write_recording(rng: random.Random, oddities: bool) -> list[str]:
    """Lines of one spot or futures stream from update 1 on, keys in any order, some with something unusual."""
    spot, nested, shuffled, last = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.5, 0
    lines = [SNAPSHOT]
    for update in range(1, rng.randint(3, 12)):
        data = {"e": "depthUpdate", "E": 1_723_161_256_298 + update, "s": "BTCUSDT", "U": last + 1, "u": last + 3}
        data |= {} if spot else {"T": 1_723_161_256_297 + update, "pu": last}
        for side in "ba":
            data[side] = [[write_number(rng, oddities) for _ in range(2)] for _ in range(rng.randint(0, 5))]
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
            for column, values in zip(columns, (*batch[:6], batch.lines), strict=True):
                column += values.tolist()
        return columns
    except InputError as error:
        return str(error)


def leave_all(self, block):
    for line in block.splitlines(keepends=True):
        self.line += 1
        yield line


def compare(folder, lines: list[str]) -> list | str:
    """Read the lines with and without the kernel; return what both found."""
    file = folder / "1.json"
    file.write_text("\n".join(lines), newline="\n")
    found = read(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LineScanner, "scan", leave_all)
        assert found == read(file), lines
    return found


def test_unusual_lines_are_read_as_by_orjson(tmp_path) -> None:
    found = [compare(tmp_path, write_recording(random.Random(seed), oddities=True)) for seed in range(800)]
    faults = {fault.partition(": ")[2][:12] for fault in found if isinstance(fault, str)}
    assert len(faults) >= 3, faults
    assert sum(isinstance(columns, list) for columns in found) > 200


def test_the_kernel_reads_what_is_usual(tmp_path) -> None:
    """Python's float() is the reference. No line is left to orjson where the symbol is known."""
    for seed in range(300):
        lines = write_recording(random.Random(seed), oddities=False)
        if seed % 2:
            lines = [line.replace(",", ", ").replace(":", ": ") for line in lines]
        columns = compare(tmp_path, lines)
        messages = [json.loads(line.partition(" ")[2]) for line in lines[1:]]
        levels = [level for message in messages for side in "ba" for level in message.get("data", message)[side]]
        expected = [[float(level[field]) for level in levels] for field in range(2)]
        assert [columns[4][2:], columns[5][2:]] == expected, lines
        scanner = LineScanner()
        scanner.symbol, scanner.spot = b"BTCUSDT", '"pu"' not in lines[1]
        assert not any(isinstance(found, bytes) for found in scanner.scan("\n".join([*lines[1:], ""]).encode()))


@pytest.mark.parametrize("space", ["", " "])
def test_a_line_cut_anywhere_is_left(space) -> None:
    """Run by tests/test_bounds.py too: at a block's end no byte past the newline may be read."""
    line = '1 {"stream":"x","data":{"e":"depthUpdate","T":1,"s":"A","u":2,"pu":1,"b":[["1.0","2"],["3","4"]],"a":[]}}'
    line = line.replace(",", "," + space).replace(":", ":" + space)
    for end in range(len(line)):
        scanner = LineScanner()
        scanner.symbol = b"A"
        cut = f"{line[:end]}\n".encode()
        assert list(scanner.scan(cut)) == [cut]
    (whole,) = scanner.scan(f"{line}\n".encode())
    assert whole.heads.tolist() == [(2, 1, 2, 1, 2, 0)]
    assert whole.levels.tolist() == [[1, 3], [2, 4]]


def test_any_decimal_becomes_the_nearest_float64(tmp_path) -> None:
    """Random mantissas up to 2^53 and beyond, at every place of the point, against Python's float()."""
    rng = np.random.default_rng(0)
    texts = []
    for digits in range(1, 19):
        for mantissa in rng.integers(10 ** (digits - 1), 10**digits, 200).tolist():
            point = int(rng.integers(1, digits + 1))
            texts.append(f"{str(mantissa)[:point]}.{str(mantissa)[point:]}".rstrip("."))
    texts += [str(2**53 + step) for step in (-1, 0, 1)] + ["150000000.00000000", "123456789012.00000000", "0.000000001"]
    line = '1 {"e":"depthUpdate","E":1,"s":"BTCUSDT","U":%d,"u":%d,"b":[["%s","1"]],"a":[]}'
    lines = [line % (update, update, text) for update, text in enumerate(texts, 1)]
    columns = compare(tmp_path, [SNAPSHOT, *lines])
    assert columns[4][2:] == [float(text) for text in texts]
