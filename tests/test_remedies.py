"""What a refusal of numbers tells the user to do leads to a parsed book of the right states.

The right states are those of the reference book; each test makes the input, reads the message, does
what it says, and goes on.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from reference_book import ReferenceBook
from test_feeds import put, refuse

import data_parser
import exploration_main
from lob.book import units
from lob.book.states import open_book
from lob.config import InputError
from lob.feeds import recordings
from lob.feeds.batch import ADD, DELETE, SET, SNAPSHOT

NAMES = {SNAPSHOT: "SNAPSHOT", SET: "SET", ADD: "ADD", DELETE: "DELETE"}
# A message's rows: type, is_buy, price in units, size, order id.
Messages = list[list[tuple[int, int, int, int, int]]]


def tell_orders(around: int, step: int = 1, messages: int = 40, seed: int = 0) -> Messages:
    """Return an order-by-order story of prices around `around`, `step` apart, bids below it."""
    rng = np.random.default_rng(seed)
    told: Messages = [
        [
            (SNAPSHOT, buy, around + (-i if buy else i) * step, 5, 100 * buy + i)
            for buy in (0, 1)
            for i in range(1, 9)
        ]
    ]
    for message in range(messages):
        buy, level = int(rng.integers(2)), int(rng.integers(1, 12))
        price = around + (-level if buy else level) * step
        told.append([(ADD, buy, price, int(rng.integers(1, 9)), 1000 + message)])
        if message % 3 == 2:
            told.append([(DELETE, buy, price, 1, 1000 + message)])
    return told


def write(folder: Path, messages: Messages, decimals: int) -> Path:
    """Write a story whose prices are units of 10^-decimals."""
    rows = ["time_exchange;update_type;is_buy;entry_px;entry_sx;order_id\n"]
    for index, message in enumerate(messages):
        for kind, buy, price, size, order in message:
            digits = f"{abs(price):0{decimals + 1}}"
            whole, part = digits[: len(digits) - decimals], digits[len(digits) - decimals :]
            text = f"{'-' * (price < 0)}{whole}.{part}" if decimals else str(price)
            clock = f"2026-05-02T00:{index // 60:02}:{index % 60:02}.5"
            rows.append(f"{clock};{NAMES[kind]};{buy};{text};{size};{order}\n")
    file = folder / "raw" / "A_B" / "20260502.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(rows))
    return file


def expect(messages: Messages, depth: int) -> list[list[int]]:
    reference = ReferenceBook(depth, by_order=True)
    for index, rows in enumerate(messages):
        reference.take_message(index * 10**9, rows)
    return [ticks for ticks, *_ in reference.states]


def parse(folder: Path, **settings) -> tuple[list[list[int]], float]:
    """Parse a story; return its states' ticks, and the tick size."""
    config = {**data_parser.config, "data_dir": str(folder), "depth": 4, **settings}
    data_parser.parse_pair(config, "A_B")
    book = open_book(folder / "book_states" / "A_B")
    return book.price_ticks.tolist(), book.tick_size


def settings_in(line: str) -> dict:
    """Return the keys that a message says to set."""
    found = re.findall(r"--(\w+)=([\d.e-]*\d)", line)
    return {key: int(text) if key == "depth" else float(text) for key, text in found}


def test_a_market_order_at_999999999_is_kept_in_a_book_of_many_digits(tmp_path) -> None:
    """Its price is 10^17 ticks of 1e-8: more than float64 counts, and never visible."""
    story = tell_orders(5_000_000)
    market = 999_999_999 * 10**8
    for index in range(5, 30, 5):
        story.insert(index, [(ADD, 1, market, 1, index), (DELETE, 1, market, 1, index)])
        story.insert(index + 1, [(ADD, 0, market + index, 1, -index - 1)])
    write(tmp_path, story, 8)
    assert parse(tmp_path) == (expect(story, 4), 1e-8)


def test_the_shipped_kind_of_market_order_may_cross_the_book_for_a_moment(tmp_path) -> None:
    story = tell_orders(5_000_000)
    market = 999_999_999 * 10**8
    story[5:5] = [[(ADD, 1, market, 1, 7777)], [(DELETE, 1, market, 1, 7777)]]
    write(tmp_path, story, 8)
    assert parse(tmp_path) == (expect(story, 4), 1e-8)
    assert open_book(tmp_path / "book_states" / "A_B").meta["counters"]["crossed_states"] == 1


def test_a_visible_price_of_too_many_ticks_names_a_depth_that_works(tmp_path) -> None:
    story = tell_orders(5_000_000, messages=0)
    story[0] = [row for row in story[0] if row[1] or row[2] < 5_000_003]  # two asks
    story.append([(ADD, 0, 999_999_999 * 10**8, 1, 5000)])
    write(tmp_path, story, 8)
    line = refuse(tmp_path, depth=6)
    assert "a visible price, 1e+09, is more than 2,147,483,647 ticks of 1e-08" in line
    assert settings_in(line) == {"depth": 4}
    assert parse(tmp_path, **settings_in(line)) == (expect(story, 4), 1e-8)


def test_prices_of_eight_decimals_near_65000_are_refused_until_they_are_rounded(tmp_path) -> None:
    story = tell_orders(6_500_012_345_678, step=123_456)
    write(tmp_path, story, 8)
    line = refuse(tmp_path)
    assert "multiples of 1e-08 and lie around 650" in line
    assert settings_in(line) == {"tick_size": 1e-4}
    rounded: Messages = [
        [(kind, buy, round(price / 10**4), *rest) for kind, buy, price, *rest in rows]
        for rows in story
    ]
    write(tmp_path, rounded, 4)
    assert parse(tmp_path, **settings_in(line)) == (expect(rounded, 4), 1e-4)


@pytest.mark.parametrize(
    ("decimals", "tick_size", "said"),
    [(2, 1e-8, 0.01), (2, 1e-12, 0.01), (2, 0.5, 0.01), (4, 0.01, 1e-4), (0, 1e-6, 1.0)],
)
def test_a_tick_size_that_does_not_fit_names_one_that_does(
    tmp_path, decimals, tick_size, said
) -> None:
    story = tell_orders(65_000 * 10**decimals + 3)
    write(tmp_path, story, decimals)
    line = refuse(tmp_path, tick_size=tick_size)
    assert settings_in(line) == {"tick_size": said}
    assert parse(tmp_path, **settings_in(line)) == (expect(story, 4), said)


def test_a_price_with_more_digits_after_the_first_million_rows(tmp_path, monkeypatch) -> None:
    """In a cheap book a finer tick is named, in a dear one the rounding that fits."""
    monkeypatch.setattr(units, "ROWS_TO_INFER_UNITS", 1)
    for around, said in ((5_000 * 10**4, 1e-4), (650_000 * 10**4, 1e-3)):
        story = [
            [(kind, buy, price * 100, *rest) for kind, buy, price, *rest in rows]
            for rows in tell_orders(around // 100)
        ]
        first, later = story[:20], [[(ADD, 1, around - 12_345, 3, 9999)], *story[20:]]
        write(tmp_path, first, 4)
        (tmp_path / "raw" / "A_B" / "20260502.csv").rename(tmp_path / "raw" / "A_B" / "1.csv")
        write(tmp_path, [[]] * len(first) + later, 4)
        line = refuse(tmp_path)
        assert "20260502.csv, row 1: price" in line
        assert settings_in(line) == {"tick_size": said}
        if "round all prices" in line:
            per = round(said * 10**4)
            later[0] = [(ADD, 1, round((around - 12_345) / per) * per, 3, 9999)]
            write(tmp_path, [[]] * len(first) + later, 4)
        per = round(said * 10**4)
        expected = [[price // per for price in state] for state in expect(first + later, 4)]
        assert parse(tmp_path, **settings_in(line)) == (expected, said)
        for file in (tmp_path / "raw" / "A_B").iterdir():
            file.unlink()
        (tmp_path / "book_states" / "A_B").rename(tmp_path / f"old{around}")


def test_sizes_beyond_two_to_the_53_lots_are_exact() -> None:
    sizes = np.array([1e9 + 0.125, 4e8, 6e8 + 0.125, 4e10, 1.5])
    lots, row = units.to_units(sizes, 1e-8, clip=False)
    assert row == -1
    assert lots.tolist() == [int(size * 1000) * 10**5 for size in sizes]
    assert units.to_units(np.array([1.0, 5e10]), 1e-8, clip=False)[1] == 1


@pytest.mark.parametrize("around", [-3763, 0, 2])
def test_prices_around_zero_and_below_are_refused_until_they_are_shifted(tmp_path, around) -> None:
    """Then a fall of the mid reads as a fall in the statistics."""
    story = tell_orders(around)
    story += [[(ADD, 0, around, 1, 9000 + index)] for index in range(4)]
    write(tmp_path, story, 2)
    if around <= 0:
        line = refuse(tmp_path)
        assert "needs it above 0" in line
        more = float(re.search(r"--price_offset, .* raised by ([\d.e+]+)", line)[1])
    else:
        more = 0.0
    try:
        found, tick = parse(tmp_path, price_offset=more)
    except InputError as error:  # one more round, for a mid that falls later
        more += float(re.search(r"raised by ([\d.e+]+)", str(error))[1])
        found, tick = parse(tmp_path, price_offset=more)
    assert tick == 0.01
    shift = round(more * 100)
    assert found == [[price + shift for price in state] for state in expect(story, 4)]
    exploration_main.main(
        {**exploration_main.config, "data_dir": str(tmp_path), "temporal_dim": 4, "plots": False}
    )
    rows = np.load(tmp_path / "window_statistics" / "A_B.npy")
    mids = np.array([(state[1] + state[2]) / 2 for state in found])
    moves = mids[rows["end_row"] - 1] - mids[rows["end_row"] - 4]
    assert (np.sign(rows["mid_price_change_bps"]) == np.sign(moves)).all() and (moves < 0).any()


def test_statistics_of_a_book_below_zero_say_what_to_do(tmp_path) -> None:
    write(tmp_path, tell_orders(5), 2)
    parse(tmp_path, depth=2)
    folder = tmp_path / "book_states" / "A_B"
    for name in ("price_ticks", "top_of_book"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy") - 500)
    config = {
        **exploration_main.config,
        "data_dir": str(tmp_path),
        "temporal_dim": 4,
        "plots": False,
    }
    with pytest.raises(
        InputError, match=r"mid-price of 0 or less.* again with a larger --price_off"
    ):
        exploration_main.main(config)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("files", [1, 3])
def test_the_forecast_holds_whatever_was_read_ahead(
    tmp_path, monkeypatch, capsys, suffix, files
) -> None:
    """Of 60,000 states half are read for it; a decompressor takes 64 KiB of 600 at once."""
    monkeypatch.setattr(units, "ROWS_TO_INFER_UNITS", 30_000)
    monkeypatch.setattr(recordings, "CSV_BLOCK_BYTES", 1 << 16)
    rng = np.random.default_rng(0)
    rows = 60_000 // files
    for file in range(files):
        start = np.datetime64("2026-05-02T00:00:00.000") + file * rows
        clocks = start + np.arange(rows)
        sizes = rng.integers(1, 10**9, rows)
        kinds = np.where(np.arange(rows) < 2, "SNAPSHOT", "SET")
        lines = [
            f"{clock};{kind};{row % 2};{99 + 2 * (row % 2 == 0)};{size}\n"
            for row, (clock, kind, size) in enumerate(zip(clocks, kinds, sizes, strict=True))
        ]
        text = "time_exchange;update_type;is_buy;entry_px;entry_sx\n" + "".join(lines)
        put(tmp_path, f"{file}.csv{suffix}", text.encode())
    states, _ = parse(tmp_path, depth=2)
    said = re.search(r"about ([\d,]+) states", capsys.readouterr().out)
    assert len(states) > 59_000
    assert float(said[1].replace(",", "")) == pytest.approx(len(states), rel=0.2)
