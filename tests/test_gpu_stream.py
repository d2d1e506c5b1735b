"""On an NVIDIA GPU: a stream by Triton's kernels gives what torch's gives, to the bit each time."""

import copy

import pytest
import torch
from test_cells import lively
from test_ladder import moving_book
from test_stream_triton import largest, relative, run_both

from lob.model import kernels
from lob.model.encoder import encoder_config
from lob.model.streaming import BookStream, GraphedStream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
NETWORKS = {  # windows of 64 states come round in the rings twice; one network has its preset's
    "default": ("cell_transformer", {}),
    "deep_narrow": ("deep_narrow_transformer", {"temporal_dim": 64}),
    "small_cells": ("small_cell_transformer", {"temporal_dim": 64, "depth": 24}),
    "tiny": ("tiny_transformer", {"temporal_dim": 64, "depth": 10, "fill": "none"}),
}


def network(name):
    preset, own = NETWORKS[name]
    return lively(encoder_config(preset, causal=True, **own)).cuda()


def book(model, streams, states):
    return [x.cuda() for x in moving_book(streams, states, model.config.depth)]


def run_graph(graph, price_ticks, sizes):
    """Return the vectors of states (B, N, L), (N, B, D)."""
    states = zip(price_ticks.cpu().unbind(1), sizes.cpu().unbind(1), strict=True)
    return torch.stack([graph(*state) for state in states])


@torch.no_grad()
@pytest.mark.parametrize("name", ["small_cells", "tiny", "deep_narrow"])
def test_kernels_give_what_torch_gives(name):
    model = network(name)
    assert largest(*run_both(model, *book(model, 2, 130), forgets=(40, 120))) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_take_weights_in_bf16(name):
    model = network(name).bfloat16()
    given = book(model, 2, model.config.temporal_dim + 44)
    reference = copy.deepcopy(model).float()
    # Torch's own kernels would round the sum over the layers: here all states are Triton's.
    assert relative(*run_both(model, *given, (90,), reference, turns=1)) < 2e-2


@torch.no_grad()
@pytest.mark.parametrize("name", ["default", "deep_narrow"])
def test_a_graph_gives_the_same_to_the_bit_however_kernels_overlap(name, monkeypatch):
    from lob.model import stream_triton

    model = network(name).bfloat16()
    given = book(model, 1, 150)
    graph = GraphedStream(BookStream(model))
    assert graph.kernels is not None
    found = run_graph(graph, *given)
    graph.module.reset(1)
    assert run_graph(graph, *given).equal(found)
    monkeypatch.setattr(stream_triton, "OVERLAP", False)
    assert run_graph(GraphedStream(BookStream(model)), *given).equal(found)
    monkeypatch.setattr(kernels, "ENABLED", False)
    by_torch = GraphedStream(BookStream(copy.deepcopy(model).float()))
    assert by_torch.kernels is None
    assert relative(found, run_graph(by_torch, *given)) < 2e-2


@torch.no_grad()
@pytest.mark.parametrize("streams", [3, 40])
def test_books_in_a_graph_are_streams_of_their_own(streams):
    model = network("small_cells")
    given = book(model, streams, 100)
    graph = GraphedStream(BookStream(model), streams)
    assert (graph.kernels is not None) == (streams == 3)
    found = run_graph(graph, *given)
    alone = run_graph(GraphedStream(BookStream(model)), *(x[1:2] for x in given))
    assert largest(found[:, 1:2], alone) < 1e-4
    # The second begins anew, the others go on.
    which = torch.arange(streams, device="cuda") == 1
    graph.module.forget(which)
    again = run_graph(graph, *given)
    assert largest(again[:, 1:2], alone) < 1e-4
    assert largest(again[:, :1], found[:, :1]) > 1e-2
    graph.module.reset(streams)
    assert run_graph(graph, *given).equal(found)
