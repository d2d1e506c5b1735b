"""data_parser.py's limits, set in its config, reach the book."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_data_parser import HEADER, OPENING, put, row

import data_parser
from lob.book.order_book import apply_rows
from lob.config import InputError
from lob.jit import is_compiled


def parse(folder: Path, text: str, **changes) -> tuple[dict, int]:
    """Parse one file in this process; return the counters and the number of segments."""
    put(folder, HEADER + OPENING + text)
    assert (
        data_parser.main(
            {**data_parser.config, "data_dir": str(folder), "depth": 4, "workers": 1, **changes}
        )
        == 0
    )
    book = folder / "book_states" / "A_B"
    counters = json.loads((book / "meta.json").read_text())["counters"]
    return counters, len(np.load(book / "segment_starts.npy"))


def test_a_longer_silence_than_the_limit_ends_a_segment(tmp_path):
    text = row("01.0", "SET", 1, "99.50", "7", 10) + row("10.0", "SET", 1, "99.50", "8", 10)
    assert [parse(tmp_path, text, max_gap_seconds=limit)[1] for limit in (5.0, 60.0)] == [2, 1]


def test_a_ghost_is_evicted_after_the_limit(tmp_path):
    text = "".join(
        row(f"0{s}.0", "ADD", 1, "101.50" if s == 1 else "98.50", "1", 40 + s) for s in range(1, 5)
    )
    loss = row("00.5", "DELETE", 1, "98.50", "1", 77)  # of an order that is not there
    found = [
        parse(tmp_path, loss + text, max_crossed_ms=limit)[0]["ghosts_evicted"]
        for limit in (500, 60_000)
    ]
    assert found == [1, 0]
    assert parse(tmp_path, text, max_crossed_ms=500)[0]["ghosts_evicted"] == 0


def test_a_side_is_cut_to_the_levels_that_the_feed_tells_of(tmp_path, capsys):
    """102.50 falls out of the best two asks, so that its delete is never told."""
    changes = [("01.0", "SET", 0, "100.50", "2"), ("02.0", "SET", 0, "100.50", "0")]
    changes += [("03.0", "SET", 0, "103.00", "7")]
    text = "".join(f"2026-05-02T00:00:{t};x;{k};{b};{p};{s}\n" for t, k, b, p, s in changes)
    lines = (HEADER + OPENING).splitlines()
    opening = "".join(line.rpartition(";")[0] + "\n" for line in lines)
    put(tmp_path, opening + text)
    limits = {"data_dir": str(tmp_path), "depth": 4, "workers": 1}
    for book_depth, second_ask in ((2, 103.0), (None, 102.5)):
        data_parser.main({**data_parser.config, **limits, "book_depth": book_depth})
        said = capsys.readouterr().out
        assert ("past the best book_depth of a side" in said) == (book_depth == 2)
        book = tmp_path / "book_states" / "A_B"
        ticks = np.load(book / "price_ticks.npy")[-1] * 0.1
        assert ticks.round(1).tolist() == [98.5, 99.5, 101.5, second_ask]
    with pytest.raises(InputError, match="set --depth=2 or less"):
        data_parser.main({**data_parser.config, **limits, "book_depth": 1})


def test_a_clock_may_go_back_by_the_limit(tmp_path):
    text = row("05.0", "SET", 1, "99.50", "7", 10) + row("04.5", "SET", 1, "99.50", "8", 10)
    assert parse(tmp_path, text, max_clock_step_ms=500)[0]["clock_steps_back"] == 1
    with pytest.raises(InputError, match="max_clock_step_ms"):
        parse(tmp_path, text, max_clock_step_ms=499)


def test_a_feed_that_is_forced_is_the_one_that_reads(tmp_path):
    assert parse(tmp_path, "", feed="coinapi")[0]["snapshots"] == 1
    with pytest.raises(InputError):
        parse(tmp_path, "", feed="tardis")


def test_it_says_that_it_compiles_only_where_it_has_to(tmp_path, capsys, monkeypatch):
    parse(tmp_path, "")
    assert is_compiled(apply_rows)
    capsys.readouterr()
    parse(tmp_path, "")
    assert "compiling" not in capsys.readouterr().out
    empty = SimpleNamespace(
        stats=SimpleNamespace(cache_path=str(tmp_path)), py_func=apply_rows.py_func
    )
    assert not is_compiled(empty)
    monkeypatch.setattr(data_parser, "is_compiled", lambda function: False)
    parse(tmp_path, "")
    assert capsys.readouterr().out.startswith(
        "compiling the parser, once: this takes about a minute\n"
    )
