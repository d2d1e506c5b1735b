"""What stands at a moment doesn't change when all that follows is deleted or made something else.

States, statistics and vectors are compared bit by bit. A sample is the exception: which windows of
a split are drawn depends on all windows of that split, and never on a later split.
"""

import gzip
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, shell, write_book
from test_book_properties import make_updates, run_kernel

from lob.book.states import Book, open_book
from lob.model.encoder import BookEncoder, encoder_config
from lob.model.inputs import build_inputs
from lob.windows.balancing import draw_pair, open_pairs
from lob.windows.splits import gather_windows
from lob.windows.statistics import write_statistics

SAMPLE = ROOT / "training_data" / "raw" / "BTC_USD" / "20260502.csv.gz"
STATES = 32
COLUMNS = ("price_ticks", "sizes", "timestamps", "top_of_book")


@pytest.mark.parametrize("seed", range(12))
def test_states_of_the_kernel_know_no_later_message(seed):
    rng = np.random.default_rng(seed)
    market = {
        "price_range": [6, 15, 40][seed % 3],
        "message_rows": 1 + seed % 5,
        "step_ms": [2, 20, 600][seed // 2 % 3],
        "ids": 200,
        "wide_ids": False,
        "crossing": 0.01,
    }
    updates = make_updates(rng, 6000, seed % 2 == 0, **market)
    subsample, interval_ms = [(1, 0), (2, 0), (1, 0), (1, 7)][seed % 4]
    settings = {"depth": 4, "subsample": subsample, "interval_ms": interval_ms}
    settings |= {"max_crossed_ms": 5 * market["step_ms"], "book_depth": [None, 5][seed // 6]}
    first_rows = np.flatnonzero(np.diff(updates[1], prepend=-1))
    cut = int(rng.choice(first_rows[len(first_rows) // 4 :]))
    order = np.append(np.arange(cut), cut + rng.permutation(len(updates[0]) - cut))
    # Rows of later messages change places; times and numbers of messages stay in order.
    others = [
        column if column is None or place < 2 else column[order]
        for place, column in enumerate(updates)
    ]
    deleted = [None if column is None else column[:cut] for column in updates]
    found = [run_kernel(rng, x, **settings)[0] for x in (updates, others, deleted)]
    # The last state that an interval has so far isn't the one that it ends with.
    count = len(found[2][0]) - (interval_ms > 0)
    assert count > 5
    for whole, other, kept in zip(*found, strict=True):
        np.testing.assert_array_equal(whole[:count], kept[:count])
        np.testing.assert_array_equal(other[:count], kept[:count])
    assert any(not np.array_equal(a, b) for a, b in zip(*found[:2], strict=True))


def test_states_of_the_parser_know_no_later_row(tmp_path):
    with gzip.open(SAMPLE, "rt") as lines:
        rows = list(itertools.islice(lines, 12_001))
    messages = [row.split(";", 1)[0] for row in rows]
    cut = next(i for i in range(9000, 12_000) if messages[i] != messages[i - 1])
    for pair, kept in (("WHOLE", rows), ("CUT", rows[:cut])):
        (tmp_path / "raw" / pair).mkdir(parents=True)
        (tmp_path / "raw" / pair / "20260502.csv").write_text("".join(kept))
    done = shell("data_parser.py", f"--data_dir={tmp_path}", "--depth=16", "--workers=1")
    assert done.returncode == 0, done.stderr
    whole, cut_off = (open_book(tmp_path / "book_states" / pair) for pair in ("WHOLE", "CUT"))
    assert 1000 < cut_off.rows < whole.rows
    for name in COLUMNS:
        before, after = getattr(whole, name), getattr(cut_off, name)
        np.testing.assert_array_equal(before[: cut_off.rows], after)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Book:
    folder = tmp_path_factory.mktemp("future")
    return open_book(write_book(folder, rows=3000, depth=16, segment_starts=(0, 900, 2300)))


def with_other_futures(book: Book, cut: int, seed: int) -> Iterator[Book]:
    """Yield the book without the states from `cut` on, and with them in another order."""
    order = np.append(
        np.arange(cut), cut + np.random.default_rng(seed).permutation(book.rows - cut)
    )
    starts = book.segment_starts[book.segment_starts < cut]
    columns = {name: np.asarray(getattr(book, name)) for name in COLUMNS}
    yield replace(book, segment_starts=starts, **{n: x[:cut] for n, x in columns.items()})
    shuffled = {name: x[order] for name, x in columns.items()} | {"timestamps": book.timestamps}
    yield replace(book, **shuffled)


def statistics(book: Book, folder: Path) -> np.ndarray:
    folder.mkdir()
    write_statistics(book, STATES, folder / "statistics.npy")
    return np.load(folder / "statistics.npy")


@pytest.mark.parametrize("cut", [40, 899, 1500, 2999])
def test_statistics_know_no_later_state(book, tmp_path, cut):
    whole = statistics(book, tmp_path / "whole")
    earlier = whole[whole["end_row"] <= cut]
    assert len(earlier)
    for number, other in enumerate(with_other_futures(book, cut, cut)):
        found = statistics(other, tmp_path / f"{number}")
        assert found[found["end_row"] <= cut].tobytes() == earlier.tobytes()
    assert cut > 2900 or found.tobytes() != whole.tobytes()


@pytest.mark.parametrize("split", [1, 2])
def test_a_sample_knows_no_later_split(book, tmp_path, split):
    dates = book.timestamps[[1500, 2200]].astype("datetime64[ns]").astype("datetime64[us]")
    cuts = [str(date) for date in dates]
    cut = int(
        np.searchsorted(book.timestamps, dates[split - 1].astype("datetime64[ns]").astype(int))
    )
    wanted = np.array([60, 20, 10])
    wanted[split:] = 0
    samples = []
    for number, each in enumerate((book, *with_other_futures(book, cut, 0))):
        folder = tmp_path / f"{number}"
        write_as_pair(each, folder)
        ((pair,), _) = open_pairs(folder, ["BTC_USD"], STATES, cuts)
        drawn = draw_pair(
            pair,
            wanted,
            temporal_dim=STATES,
            cells=[3, 3, 3],
            outlier_std=3.0,
            min_stride=4,
            oversample=False,
            exact=False,
            seed=0,
        )
        samples.append(drawn)
    assert len(samples[0].rows) >= 50
    for other in samples[1:]:
        assert other.rows.tobytes() == samples[0].rows.tobytes()
        assert other.facts["scale"] == samples[0].facts["scale"]


def write_as_pair(book: Book, folder: Path) -> None:
    """Write a book and its statistics as the first two scripts leave them."""
    states = folder / "book_states" / "BTC_USD"
    states.mkdir(parents=True)
    for name in (*COLUMNS, "segment_starts"):
        np.save(states / f"{name}.npy", getattr(book, name))
    (states / "meta.json").write_bytes(
        (book.path / "meta.json")
        .read_bytes()
        .replace(b'"rows": 3000', f'"rows": {book.rows}'.encode())
    )
    write_statistics(open_book(states), STATES, folder / "window_statistics" / "BTC_USD.npy")


@pytest.mark.parametrize("preset", ["tiny_transformer", "cell_transformer"])
@pytest.mark.parametrize("causal", [True, False])
def test_vectors_know_no_later_state(book, preset, causal):
    """A window's vector needs its own states alone, and a causal encoder's at t those until t."""
    small = {"layers": 2, "width": 32, "ffn_width": 64, "heads": 2}
    fill = {"fill": "ladder"} if preset == "cell_transformer" else {}
    sizes = {"depth": 16, "temporal_dim": STATES, "causal": causal}
    config = replace(encoder_config(preset, **sizes, **fill), **small)
    torch.manual_seed(0)
    model = BookEncoder(config).eval()

    def vectors(ends: list[int], of: Book, later: int | None = None) -> torch.Tensor:
        windows = [torch.from_numpy(x) for x in gather_windows(of, np.array(ends), STATES)]
        if later is not None:
            for x in windows:
                x[:, later:] = x[:, later:].flip(1)
        with torch.inference_mode():
            return model.encode(build_inputs(*windows, None, config)[0])

    whole = vectors([32, 200, 1000], book)
    for other in with_other_futures(book, 1000, 1):
        assert torch.equal(vectors([32, 200, 1000], other), whole)
    turned = vectors([32, 200, 1000], book, later=20)
    assert torch.equal(turned[:, :20], whole[:, :20]) is causal
    assert not torch.equal(turned[:, 20:], whole[:, 20:])
