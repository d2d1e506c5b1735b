"""Ladder carry against a slow reference in plain Python, and what it leaves on recorded books."""

import bisect
import itertools

import numpy as np
import pytest
import torch
from conftest import ROOT, shell

from lob.book.states import open_book
from lob.evaluation.fills import fill_untrained, hide
from lob.model.encoder import BookEncoder, encoder_config
from lob.model.inputs import build_inputs
from lob.model.ladder import find_ladder, linear_time
from lob.model.masking import MASKS, make_mask, window_keys
from lob.model.normalisation import SCHEMES, fit, invert, transform
from lob.windows.splits import gather_windows, window_ends


def moving_book(batch=2, states=40, levels=24, seed=0):
    """Return windows of a book whose mid walks over occupied prices, with sizes that change."""
    rng = np.random.default_rng(seed)
    half, prices, sizes = levels // 2, [], []
    for _ in range(batch):
        occupied = np.cumsum(rng.integers(1, 4, 400)) + 7_000_000
        resting = rng.lognormal(0, 1, 400)
        at = 200
        for _ in range(states):
            at += rng.integers(-1, 2)
            resting[rng.integers(at - half, at + half, 3)] = rng.lognormal(0, 1, 3)
            if rng.random() < 0.3:  # a price comes in between or goes
                where = rng.integers(at - half, at + half)
                occupied[where:] += rng.integers(0, 2)
            prices.append(occupied[at - half : at + half].copy())
            sizes.append(resting[at - half : at + half].copy())
    shape = (batch, states, levels)
    return (
        torch.from_numpy(np.reshape(prices, shape).astype(np.int32)),
        torch.from_numpy(np.reshape(sizes, shape).astype(np.float32)),
    )


def reference_prices(price, known):
    """Return known and found prices of one window, T dicts level -> price, as lob/model/ladder.py.

    Each rule of that module's docstring is followed word by word, in loops.
    """
    steps, levels = price.shape
    rows = [
        {level: int(price[t, level]) for level in range(levels) if known[t, level]}
        for t in range(steps)
    ]

    def states_near(t, reach):
        near = [rows[s] for s in range(t - reach, t + reach + 1) if s != t and 0 <= s < steps]
        return {p for row in near for p in row.values()}

    def levels_near(t, _):
        found = set()
        for level in range(levels):
            for order in (range(t, -1, -1), range(t, steps)):
                found.update([rows[s][level] for s in order if level in rows[s]][:1])
        return found

    near, nearest = (states_near, 1), (levels_near, 0)
    for ladder_of, reach in (near, (states_near, 2), nearest, near, nearest):
        filled = []
        for t in range(steps):
            ladder, row = sorted(ladder_of(t, reach)), dict(rows[t])
            shown = sorted(row)
            for low, high in itertools.pairwise(shown):
                first = bisect.bisect_right(ladder, row[low])
                between = ladder[first : bisect.bisect_left(ladder, row[high])]
                if 0 < high - low - 1 == len(between):
                    row |= dict(zip(range(low + 1, high), between, strict=True))
            filled.append(row)
        rows = filled
    return rows


def reference_sizes(rows, sizes, known):
    """Return sizes (T, L) at the same price, linear in time; NaN where none is found."""
    steps, levels = sizes.shape
    found = np.full((steps, levels), np.nan)
    shown = {}
    for t, row in enumerate(rows):
        for level, price in row.items():
            if known[t, level]:
                shown.setdefault(price, []).append((t, sizes[t, level]))
    for t, row in enumerate(rows):
        for level, price in row.items():
            if price in shown:
                found[t, level] = np.interp(t, *zip(*shown[price], strict=True))
    return found


@pytest.mark.parametrize("mode", MASKS)
def test_the_ladder_is_that_of_a_slow_reference(mode):
    price_ticks, sizes = moving_book()
    mask = make_mask(window_keys(0, 0, torch.arange(2)), 40, 24, 0.25, mode)
    ladder = find_ladder(price_ticks, mask)
    anchor = fit(price_ticks, sizes, mask, "book")["anchor_ticks"]
    filled = ladder.fill_sizes(sizes, sizes)
    found = 0
    for b in range(2):
        rows = reference_prices(price_ticks[b].numpy(), ~mask[b, :, :, 0].numpy())
        expected = np.full((40, 24), np.nan)
        for t, row in enumerate(rows):
            for level, price in row.items():
                expected[t, level] = price
        known = np.isfinite(expected)
        assert np.array_equal(ladder.price_known[b].numpy(), known)
        np.testing.assert_array_equal((ladder.price[b] + anchor[b]).numpy()[known], expected[known])
        assert np.isfinite(ladder.price[b].numpy()).all()
        carried = reference_sizes(rows, sizes[b].numpy(), ~mask[b, :, :, 1].numpy())
        visible = ~mask[b, :, :, 1].numpy()
        assert np.array_equal(ladder.size_known[b].numpy(), np.isfinite(carried) | visible)
        np.testing.assert_allclose(
            filled[b].numpy()[np.isfinite(carried)], carried[np.isfinite(carried)], rtol=1e-5
        )
        found += (known & mask[b, :, :, 0].numpy()).sum()
    if mode in ("entry", "patch", "level"):
        assert found > 20
    else:
        assert found == 0


def test_filled_prices_keep_between_the_known_ones():
    price_ticks, _ = moving_book(4, seed=3)
    mask = make_mask(window_keys(0, 0, torch.arange(4)), 40, 24, 0.25, "patch")
    ladder = find_ladder(price_ticks, mask)
    price = ladder.price.double().numpy()
    for b, t, level in np.argwhere(~ladder.price_known.numpy()):
        known = ladder.price_known[b, t].numpy()
        below, above = known[:level].nonzero()[0], known[level + 1 :].nonzero()[0] + level + 1
        assert not len(below) or price[b, t, level] >= price[b, t, below[-1]] + 1
        assert not len(above) or price[b, t, level] <= price[b, t, above[0]] - 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", ["entry", "patch", "tail"])
def test_an_untrained_encoder_with_the_ladder_has_the_ladders_error(scheme, mode):
    price_ticks, sizes = moving_book()
    mask = make_mask(window_keys(0, 0, torch.arange(2)), 40, 24, 0.25, mode)
    config = encoder_config(
        "tiny_transformer", depth=24, temporal_dim=40, fill="ladder", normalization=scheme
    )
    tokens, base, values, parameters = build_inputs(price_ticks, sizes, mask, config)
    torch.testing.assert_close(base[~mask], values[~mask], atol=1e-5, rtol=1e-5)
    assert tokens.shape[2] == config.input_width and BookEncoder(config)(tokens, base).equal(base)
    ladder = find_ladder(price_ticks, mask)
    prices, _ = invert(base, parameters, scheme)
    anchor = fit(price_ticks, sizes, mask, "book")["anchor_ticks"]
    torch.testing.assert_close(prices, ladder.price.double() + anchor, atol=2e-3, rtol=0)
    columns = fill_untrained(hide(price_ticks, sizes, mask))[0]["ladder"]
    expected = transform(prices, columns[..., 1].exp(), parameters, scheme)
    if scheme == "minmax":  # interpolates sizes, where the columns interpolate their logarithms
        in_time = linear_time(values, ~mask)[..., 1]
        expected[..., 1] = ladder.fill_sizes(values[..., 1], in_time)
    torch.testing.assert_close(base[mask], expected[mask], atol=1e-4, rtol=1e-4)


def test_the_ladder_can_be_traced():
    price_ticks, sizes = moving_book()
    config = encoder_config("tiny_transformer", depth=24, temporal_dim=40, fill="ladder")

    def inputs(price_ticks, sizes, mask):
        return build_inputs(price_ticks, sizes, mask, config)[:2]

    patch, entry = (
        make_mask(window_keys(0, 0, torch.arange(2)), 40, 24, 0.25, m) for m in ("patch", "entry")
    )
    traced = torch.jit.trace(inputs, (price_ticks, sizes, patch))
    other = moving_book(seed=5)
    for found, expected in zip(traced(*other, entry), inputs(*other, entry), strict=True):
        assert found.equal(expected)


@pytest.fixture(scope="module")
def recorded_windows(tmp_path_factory):
    """64 windows of recorded USD-M BTC, August 2024: price ticks and sizes (64, 256, 96)."""
    raw = ROOT.parent / "shared" / "real" / "binance" / "usdm" / "btcusdt_20240808.gz"
    if not raw.is_file():
        pytest.skip("needs the recorded exchange data in ../shared/real")
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "raw" / "BTC").mkdir(parents=True)
    (folder / "raw" / "BTC" / raw.name).symlink_to(raw)
    assert shell("data_parser.py", f"--data_dir={folder}").returncode == 0
    book = open_book(folder / "book_states" / "BTC")
    ends = window_ends(book.segment_starts, book.rows, 256)
    ends = ends[np.linspace(0, len(ends) - 1, 64).astype(int)]
    return [torch.from_numpy(x) for x in gather_windows(book, ends, 256)]


@pytest.mark.recorded
@pytest.mark.parametrize(
    ("mode", "column", "ceiling"), [("entry", "minmax", 0.2), ("patch", "log_size", 0.95)]
)
def test_on_a_recorded_book_the_ladder_beats_linear_interpolation(
    recorded_windows, mode, column, ceiling
):
    """`ceiling`: the most of interpolation's error that the ladder leaves in the median window."""
    mask = make_mask(window_keys(0, 0, torch.arange(64)), 256, 96, 0.25, mode)
    hidden = hide(*recorded_windows, mask)
    filled, _ = fill_untrained(hidden)
    where = hidden.mask if column == "minmax" else hidden.mask[..., 1:]

    def in_scale(columns):
        """Return columns in the scale of the comparison: min-max scaled, or logs of sizes."""
        if column == "log_size":
            return columns[..., 1:]
        parameters = fit(hidden.price_ticks, hidden.sizes, mask, "minmax")
        prices = columns[..., 0].double() + hidden.anchor_ticks
        return transform(prices, columns[..., 1].exp(), parameters, "minmax")

    errors = {}
    for name in ("ladder", "linear_time"):
        square = (in_scale(filled[name]) - in_scale(hidden.values)) ** 2 * where
        errors[name] = float((square.sum((1, 2, 3)) / where.sum((1, 2, 3))).median())
    assert errors["ladder"] < ceiling * errors["linear_time"]
