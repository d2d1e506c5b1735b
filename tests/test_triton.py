"""Triton's kernels of the network's inputs find what torch's do; here in Triton's interpreter.

tests/test_gpu_inputs.py runs the same comparison on a GPU, on whole windows.
"""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from test_ladder import moving_book

from lob.model import kernels
from lob.model.encoder import encoder_config
from lob.model.inputs import build_inputs
from lob.model.ladder import find_ladder
from lob.model.masking import make_mask, window_keys

interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="needs Triton, and no NVIDIA GPU: its interpreter stands in for one",
)


def compare_inputs(price_ticks, sizes, mask):
    """Raise AssertionError if Triton's inputs differ from torch's."""
    from lob.model import inputs_triton

    _, states, levels = price_ticks.shape
    config = encoder_config("small_cell_transformer", depth=levels, temporal_dim=states)
    torchs = build_inputs(price_ticks, sizes, mask, config)
    ours = inputs_triton.build_cells(price_ticks, sizes, mask)
    for mine, other in zip(ours[:3], torchs[:3], strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-5)
    assert ours[3].keys() == torchs[3].keys()
    for name, other in torchs[3].items():
        torch.testing.assert_close(ours[3][name], other, atol=1e-4, rtol=1e-5)


def compare_ladders(price_ticks, mask):
    """Raise AssertionError if Triton's ladder differs from torch's."""
    from lob.model import inputs_triton

    mine, other = inputs_triton.find_ladder(price_ticks, mask), find_ladder(price_ticks, mask)
    for name in ("price_known", "size_visible", "carried", "before", "after"):
        assert getattr(mine, name).equal(getattr(other, name)), name
    torch.testing.assert_close(mine.share, other.share, atol=0, rtol=1e-6)  # a GPU's division
    torch.testing.assert_close(mine.price, other.price, atol=1e-3, rtol=1e-6)


def hidden(states, levels, mode, share=0.25):
    return make_mask(window_keys(0, 0, torch.arange(1)), states, levels, share, mode)


@interpreted
@pytest.mark.parametrize("mode", ["entry", "level", "patch", "tail"])
def test_kernels_find_what_torch_finds(mode):
    price_ticks, sizes = moving_book(1, states=18, levels=10)
    compare_inputs(price_ticks, sizes, hidden(18, 10, mode))
    compare_ladders(price_ticks, hidden(18, 10, mode))


@interpreted
def test_kernels_take_windows_with_nothing_hidden():
    compare_inputs(*moving_book(1, states=9, levels=6), None)


@interpreted
def test_kernels_take_windows_with_everything_hidden():
    price_ticks, sizes = moving_book(1, states=9, levels=6)
    compare_inputs(price_ticks, sizes, torch.ones(1, 9, 6, 2, dtype=torch.bool))


@interpreted
def test_prices_that_meet_in_the_table_are_kept_apart():
    """All prices have the same first slot: they differ by multiples of the table's size."""
    price_ticks, _ = moving_book(1, states=16, levels=6)
    far = (price_ticks.long() - price_ticks[:, :1, :1]) * 65536 + 2**33
    compare_ladders(far, hidden(16, 6, "entry"))


@pytest.mark.parametrize(
    ("choices", "taken"),
    [
        ({}, True),
        ({"causal": True}, False),
        ({"context": ("size",)}, False),
        ({"causal": True, "context": ("size", "flow")}, False),
        ({"normalization": "minmax"}, False),
    ],
)
@pytest.mark.parametrize("nothing_hidden", [False, True])
def test_the_kernels_of_cells_serve_only_what_they_define(
    monkeypatch, choices, taken, nothing_hidden
):
    calls = []
    stand_in = SimpleNamespace(build_cells=lambda *windows: calls.append(windows))
    monkeypatch.setattr("lob.model.inputs.kernels_for", lambda *windows: stand_in)
    price_ticks, sizes = moving_book(1, states=16, levels=6)
    mask = None if nothing_hidden else hidden(16, 6, "patch")
    config = encoder_config("small_cell_transformer", depth=6, temporal_dim=16, **choices)
    made = build_inputs(price_ticks, sizes, mask, config)
    assert len(calls) == taken
    if not taken:
        monkeypatch.undo()
        for mine, other in zip(
            made[:3], build_inputs(price_ticks, sizes, mask, config)[:3], strict=True
        ):
            assert mine.equal(other)


def test_torch_makes_the_inputs_where_triton_can_not():
    price_ticks, sizes = moving_book(1, states=16, levels=6)
    assert kernels.kernels_for(price_ticks, sizes) is None
