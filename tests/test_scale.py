"""The scale block beside a loop in plain Python; it is finite, causal and can be scripted."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import write_book
from test_ladder import moving_book

import lob
from lob.book.states import open_book
from lob.config import InputError
from lob.evaluation.probe_tasks import HAND_MADE, hand_made
from lob.model.checkpoint import BEST, save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config
from lob.model.scale import NAMES, measure_scale
from lob.training.saving import training_state
from lob.windows.splits import gather_times, gather_windows

STATES, LEVELS = 100, 16


def slowly(ticks, sizes, times_ns, tick_size):
    """Return the block of one window: ticks and sizes (T, L), times_ns (T,) or None."""
    count, half = len(ticks), len(ticks[0]) // 2
    mids = [(row[half - 1] + row[half]) / 2 for row in ticks]
    moves = [1e4 * math.log(b / a) for a, b in itertools.pairwise(mids)]
    reaches = [min(reach, count - 1) for reach in (5, 20, 80, count)]
    found = [math.log1p(math.sqrt(sum(x * x for x in moves[count - 1 - n :]))) for n in reaches]
    if times_ns is None:
        found += [0.0] * 5
    else:
        found += [math.log1p((times_ns[-1] - times_ns[-1 - n]) / 1e6) for n in reaches] + [1.0]
    if tick_size is None:
        found += [0.0] * 2
    else:
        now = zip(ticks[-1], sizes[-1], strict=True)
        found += [math.log(sum(p * tick_size * s for p, s in now)), 1.0]
    still = 0
    while still < count - 1 and mids[-1 - still] == mids[-2 - still]:
        still += 1
    return [*found, math.log(1e4 / mids[-1]), math.log1p(still if still < count - 1 else count)]


def windows(states=STATES):
    price_ticks, sizes = moving_book(5, states, LEVELS)
    price_ticks[0] = price_ticks[0, :1]  # a book that stands still
    price_ticks[1, 90:] = price_ticks[1, 90]
    price_ticks[2] += 2**30  # more ticks than float32 holds apart
    rng = np.random.default_rng(0)
    waits = torch.from_numpy(rng.integers(0, 2, (5, states)) * rng.integers(0, 10**10, (5, states)))
    return price_ticks, sizes, 1_777_689_383_201_000_000 + waits.cumsum(1)


@pytest.mark.parametrize("states", [STATES, 30, 2, 1])
@pytest.mark.parametrize("tick_size", [None, 0.01])
def test_the_block_is_that_of_a_loop_over_single_windows(states, tick_size):
    given = windows(states) if states > 90 else tuple(x[:, -states:] for x in windows())
    scripted = torch.jit.script(measure_scale)
    for times in (None, given[2]):
        found = measure_scale(*given[:2], times, tick_size)
        assert found.dtype == torch.float32 and found.shape == (5, len(NAMES))
        expected = [
            slowly(*(x.tolist() for x in each), None if times is None else t, tick_size)
            for *each, t in zip(*given[:2], given[2].tolist(), strict=True)
        ]
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
        assert scripted(*given[:2], times, tick_size).equal(found)


@pytest.mark.parametrize("price", [0, -5, 1])
def test_it_is_finite_whatever_the_prices(price):
    price_ticks = price - 1 + torch.arange(4).expand(2, 8, 4)
    times = torch.arange(8, 0, -1).expand(2, 8)  # falling, which no book has
    for given in ((times, 1e-30), (None, None)):
        assert measure_scale(price_ticks, torch.full((2, 8, 4), 1e-38), *given).isfinite().all()


def test_it_says_what_the_hand_made_features_say(tmp_path):
    book = open_book(write_book(tmp_path, rows=400, depth=LEVELS))
    ends = np.arange(100, 400, 37)
    arrays = (*gather_windows(book, ends, STATES), gather_times(book, ends, STATES))
    block = measure_scale(*(torch.from_numpy(x) for x in arrays), book.tick_size).numpy()
    known = hand_made(book, ends, STATES)
    for name in NAMES:
        if name in HAND_MADE:
            same = known[:, HAND_MADE.index(name)]
            np.testing.assert_allclose(block[:, NAMES.index(name)], same, rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_small(tmp_path_factory.mktemp("scale"))


def load_small(folder, **choices):
    from conftest import metadata

    torch.manual_seed(0)
    small = {"width": 32, "heads": 2, "ffn_width": 64, "cell_width": 8}
    model = BookEncoder(
        encoder_config("small_cell_transformer", depth=LEVELS, temporal_dim=32, **small, **choices)
    )
    save_checkpoint(folder / BEST, training_state(model), metadata(model.config))
    return lob.load(folder / BEST, device="cpu")


@pytest.mark.parametrize("context", [(), ("clock", "size", "tick", "flow")])
def test_an_encoder_appends_it_to_windows_states_and_books(tmp_path, context):
    encoder = load_small(tmp_path, context=context)
    book = open_book(write_book(tmp_path, rows=200, depth=LEVELS))
    ends = encoder.end_rows(book, stride=30)
    arrays = (*gather_windows(book, ends, 32), gather_times(book, ends, 32))
    block = measure_scale(*(torch.from_numpy(x) for x in arrays), book.tick_size).numpy()
    found = encoder.embed_book(book, stride=30, scale=True)
    assert found.dtype == np.float32 and found.shape == (len(ends), encoder.width + len(NAMES))
    np.testing.assert_array_equal(found[:, encoder.width :], block)
    plain = encoder.embed_book(book, stride=30)
    np.testing.assert_array_equal(found[:, : encoder.width], plain)
    prices = np.asarray(book.price_ticks) * 0.01
    for times in (book.timestamps, np.asarray(book.timestamps).astype("datetime64[ns]")):
        given = {"tick_size": 0.01, "stride": 30, "times_ns": times, "scale": True}
        states = encoder.embed(prices, book.sizes, **given)
        np.testing.assert_allclose(states, found, rtol=1e-4, atol=1e-5)
    given = {"times_ns": arrays[2], "scale": True, "batch_size": 3}
    in_ticks = encoder.embed(*arrays[:2], **given)
    depth = [encoder.width + NAMES.index(name) for name in ("depth", "has_tick_size")]
    assert (in_ticks[:, depth] == 0).all()
    rest = np.setdiff1d(np.arange(found.shape[1]), depth)
    np.testing.assert_allclose(in_ticks[:, rest], found[:, rest], rtol=1e-4, atol=1e-5)
    if context:
        with pytest.raises(InputError, match="times_ns is None"):
            encoder.embed(*arrays[:2])
    else:
        np.testing.assert_allclose(encoder.embed(*arrays[:2]), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:, 1:], r"times_ns are \(2, 31\): give one for each state, \(2, 32\)"),
        (lambda t: t[:, ::-1], "times_ns fall"),
        (lambda t: t * 0.5, "are no integers"),
        (lambda t: [["a"]], "are no numbers"),
    ],
)
def test_times_that_cannot_be_right_are_refused_in_a_line(encoder, change, message):
    price_ticks, sizes = moving_book(2, 32, LEVELS)
    times = np.arange(1, 65).reshape(2, 32) * 10**6
    with pytest.raises(InputError, match=message):
        encoder.embed(price_ticks, sizes, times_ns=change(times), scale=True)


@pytest.mark.parametrize("cut", [60, 150])
def test_it_knows_no_later_state(tmp_path, encoder, cut):
    """Bit by bit: a book that ends at `cut` has the vectors and blocks of the whole one."""
    whole = open_book(write_book(tmp_path, "WHOLE", rows=200, depth=LEVELS))
    folder = write_book(tmp_path, "CUT", rows=200, depth=LEVELS)
    for file in folder.glob("*.npy"):
        if file.name != "segment_starts.npy":
            np.save(file, np.load(file)[:cut])
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"rows": 200', f'"rows": {cut}'))
    there, kept = (encoder.embed_book(x, batch_size=1, scale=True) for x in (whole, folder))
    np.testing.assert_array_equal(there[: len(kept)], kept)
    assert 0 < len(kept) < len(there)
