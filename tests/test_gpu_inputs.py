"""On an NVIDIA GPU: Triton's kernels of the network's inputs find what torch's do."""

from dataclasses import astuple

import pytest
import torch
from test_ladder import moving_book
from test_triton import compare_inputs, compare_ladders

from lob.model import kernels
from lob.model.encoder import encoder_config
from lob.model.inputs import build_inputs
from lob.model.ladder import find_ladder
from lob.model.masking import MASKS, make_mask, window_keys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def on_gpu(batch=4, states=256, levels=96, seed=0):
    return [x.cuda() for x in moving_book(batch, states, levels, seed)]


def hidden(batch, states, levels, mode, share=0.25):
    return make_mask(window_keys(0, 0, torch.arange(batch).cuda()), states, levels, share, mode)


@pytest.fixture
def torchs(monkeypatch):
    """Let torch make the inputs, for the kernels to be compared with."""
    assert kernels.kernels_for(on_gpu()[0]) is not None
    monkeypatch.setattr(kernels, "ENABLED", False)


@pytest.mark.parametrize("mode", [*MASKS, "mix", None])
def test_kernels_find_what_torch_finds(torchs, mode):
    mask = hidden(4, 256, 96, mode) if mode else None
    price_ticks, sizes = on_gpu()
    compare_inputs(price_ticks, sizes, mask)
    if mask is not None:
        compare_ladders(price_ticks, mask)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(3, 192, 40), (2, 33, 10), (1, 100, 8), (2, 512, 128)])
def test_kernels_take_any_shape_and_share(torchs, shape, share):
    price_ticks, sizes = on_gpu(*shape)
    compare_inputs(price_ticks, sizes, hidden(*shape, "entry", share))
    compare_ladders(price_ticks, hidden(*shape, "entry", share))


def test_kernels_take_books_of_any_range(torchs):
    price_ticks, _ = on_gpu()
    mask = hidden(4, 256, 96, "entry")
    first = price_ticks[:, :1, :1].long()
    for far in (65536, 3 * 2**16, 10_007, 500_000):
        compare_ladders((price_ticks.long() - first) * far + 2**33, mask)


def test_a_graph_finds_the_ladder_of_eager_kernels():
    price_ticks, _ = on_gpu()
    mask = hidden(4, 256, 96, "patch")
    find_ladder(price_ticks, mask)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = find_ladder(price_ticks, mask)
    for seed in (1, 2):
        price_ticks.copy_(on_gpu(seed=seed)[0])
        graph.replay()
        for mine, other in zip(
            astuple(found), astuple(find_ladder(price_ticks, mask)), strict=True
        ):
            assert mine.equal(other)


@pytest.mark.parametrize("choices", [{"causal": True}, {"context": ("size", "flow")}])
def test_networks_that_the_cells_do_not_serve_take_the_ladder(monkeypatch, choices):
    price_ticks, sizes = on_gpu()
    mask = hidden(4, 256, 96, "mix")
    config = encoder_config("small_cell_transformer", **choices)
    ours = build_inputs(price_ticks, sizes, mask, config)
    monkeypatch.setattr(kernels, "ENABLED", False)
    torchs = build_inputs(price_ticks, sizes, mask, config)
    for mine, other in zip(ours[:3], torchs[:3], strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-5)


def test_the_kernels_are_what_training_takes():
    price_ticks, sizes = on_gpu()
    mask = hidden(4, 256, 96, "mix")
    config = encoder_config("cell_transformer")
    ours = build_inputs(price_ticks, sizes, mask, config)[0]
    from lob.model import inputs_triton

    assert ours.equal(inputs_triton.build_cells(price_ticks, sizes, mask)[0])
