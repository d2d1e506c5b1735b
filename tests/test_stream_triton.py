"""A stream by Triton's kernels gives what torch's gives; here in Triton's interpreter.

tests/test_gpu_stream.py runs the same comparison on a GPU, on whole networks.
"""

import importlib.util

import numpy as np
import pytest
import torch
from test_cells import lively
from test_ladder import moving_book

from lob.model.encoder import encoder_config
from lob.model.kernels import update_for
from lob.model.streaming import BookStream

interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="needs Triton, and no NVIDIA GPU: its interpreter stands in for one",
)
CELLS, LINEAR = "small_cell_transformer", "tiny_transformer"
ONE = {"layers": 1, "temporal_dim": 8, "depth": 6}
NETWORKS = {  # with states that come round in the rings, and sizes that are no powers of two
    "cells": (CELLS, {**ONE, "temporal_dim": 11, "depth": 10}),
    "cells_of_32": (CELLS, {**ONE, "temporal_dim": 4, "depth": 18, "cell_width": 32}),
    "linear": (LINEAR, {**ONE, "layers": 2}),
    "heads_of_24": (LINEAR, {**ONE, "width": 48, "heads": 2, "ffn_width": 100, "fill": "none"}),
    "heads_of_64": (LINEAR, {**ONE, "width": 128, "heads": 2}),
}


@pytest.fixture
def bf16_products(monkeypatch):
    """Let the interpreter multiply bfloat16, which it takes for the integers that hold it."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _convert_float, tl

    usual = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *others):
        if a.dtype.scalar == tl.bfloat16:
            as_floats = (_convert_float(x.data, tl.bfloat16, tl.float32, None) for x in (a, b))
            a, b = (TensorHandle(x.view(np.float32), tl.float32) for x in as_floats)
        return usual(self, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def network(name, **choices):
    preset, own = NETWORKS[name]
    return lively(encoder_config(preset, causal=True, **{**own, **choices}))


def run_both(model, price_ticks, sizes, forgets=(), reference=None, turns=3):
    """Return vectors of states (B, N, L) by Triton's and by torch's kernels, (N, B, D) each.

    forgets: states before which the last stream forgets all; reference: torch's network, if it is
    another one; turns: 3: torch's kernels take every third state where Triton's have ended; 1:
    none.
    """
    from lob.model.stream_triton import Update

    device, streams = model.norm.weight.device, len(price_ticks)
    mine, other = BookStream(model, streams), BookStream(reference or model, streams)
    update = Update(mine)
    last = torch.arange(streams, device=device) == streams - 1
    found, expected = [], []
    for n in range(price_ticks.shape[1]):
        state = price_ticks[:, n].long().contiguous(), sizes[:, n].contiguous()
        if n in forgets:
            mine.forget(last)
            other.forget(last)
        if n % turns == 2:
            found.append(mine(*state))
        else:
            found.append(torch.full((streams, model.config.width), torch.nan, device=device))
            update(*state, found[-1])
        expected.append(other(*state))
    return torch.stack(found), torch.stack(expected)


def largest(found, expected):
    return float((found - expected).abs().max() / expected.square().mean().sqrt())


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@interpreted
@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_give_what_torch_gives(name):
    model = network(name)
    states = model.config.temporal_dim + 4
    price_ticks, sizes = moving_book(2, states, model.config.depth)
    assert largest(*run_both(model, price_ticks, sizes, forgets=(states - 6,))) < 1e-5


@interpreted
@torch.no_grad()
@pytest.mark.parametrize("name", ["cells", "linear"])
def test_kernels_take_weights_in_bf16(name, bf16_products):
    model = network(name).bfloat16()
    price_ticks, sizes = moving_book(1, 14, model.config.depth)
    reference = network(name).bfloat16().float()
    assert relative(*run_both(model, price_ticks, sizes, reference=reference)) < 2e-2


@interpreted
@torch.no_grad()
def test_a_reset_begins_all_streams_anew():
    from lob.model.stream_triton import Update

    model = network("cells")
    stream = BookStream(model)
    update = Update(stream)
    price_ticks, sizes = moving_book(1, 4, model.config.depth)
    found = torch.empty(2, 4, model.config.width)
    for vectors in found:
        for n in range(4):
            update(price_ticks[:, n].long(), sizes[:, n], vectors[n : n + 1])
        stream.reset()
    assert found[0].equal(found[1]) and not found[0, 0].equal(found[0, 1])


@interpreted
def test_networks_without_room_in_the_kernels_are_left_to_torch():
    from lob.model.stream_triton import STREAMS, serves

    model = network("heads_of_24")
    assert serves(BookStream(model)) and not serves(BookStream(model, STREAMS + 1))
    assert not serves(BookStream(network("linear", width=256, heads=2)))
    assert not serves(BookStream(network("cells", cell_width=8)))
    assert not serves(BookStream(network("heads_of_64", temporal_dim=1024)))


def test_torch_updates_a_stream_where_triton_can_not():
    assert update_for(BookStream(network("linear"))) is None
