"""A stream: a state in, its vector out, equal to a slow network over the whole recording."""

import copy
import gzip
import itertools

import numpy as np
import pytest
import torch
from conftest import ROOT, shell, write_book
from reference_stream import reference_vectors
from test_cells import lively
from test_ladder import moving_book

from lob.book.states import open_book
from lob.config import InputError
from lob.model.embedding import WindowEncoder, in_bf16
from lob.model.encoder import encoder_config
from lob.model.pretrained import Encoder, Stream
from lob.model.streaming import BookStream

SAMPLE = ROOT / "training_data" / "raw" / "BTC_USD" / "20260502.csv.gz"
STATES, LEVELS = 40, 24
SMALL = {"depth": LEVELS, "temporal_dim": STATES, "causal": True}
NETWORKS = {
    "cells": ("small_cell_transformer", {}),
    "linear": ("tiny_transformer", {}),
    "linear_without_fill": ("tiny_transformer", {"fill": "none"}),
    "short_windows": ("small_cell_transformer", {"temporal_dim": 9}),
}


def network(name, **choices):
    preset, own = NETWORKS[name]
    return lively(encoder_config(preset, **{**SMALL, **own, **choices}))


def encoder_of(model):
    return Encoder(model, {"name": "a network", "last_date": None})


@pytest.fixture(scope="module")
def recorded_states(tmp_path_factory):
    """The first states of the recording that ships, price_ticks and sizes (N, L)."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "raw" / "BTC_USD").mkdir(parents=True)
    with gzip.open(SAMPLE, "rt") as lines:
        rows = "".join(itertools.islice(lines, 12_001))
    (folder / "raw" / "BTC_USD" / "20260502.csv").write_text(rows)
    assert shell("data_parser.py", f"--data_dir={folder}", f"--depth={LEVELS}").returncode == 0
    book = open_book(folder / "book_states" / "BTC_USD")
    return np.array(book.price_ticks[:170]), np.array(book.sizes[:170])


@pytest.fixture(scope="module")
def random_states():
    """A book whose mid walks over prices that leave and come back; windows (B, N, L)."""
    price_ticks, sizes = moving_book(states=170, levels=LEVELS)
    return price_ticks.numpy(), sizes.numpy()


def run_stream(stream, price_ticks, sizes):
    """Return the vectors of states given one by one: (N, L) -> (N, D)."""
    return np.stack([stream.update(*state) for state in zip(price_ticks, sizes, strict=True)])


def off(found, expected):
    """Return the largest difference, by the norm of a vector of numbers about 1."""
    return np.abs(found - expected).max() / np.sqrt(np.square(expected).mean())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stream_is_a_banded_network_over_all_states(name, recorded_states, random_states):
    model = network(name)
    for price_ticks, sizes in (recorded_states, [x[0] for x in random_states]):
        assert (price_ticks[0] != price_ticks[-1]).any()
        expected = reference_vectors(model, price_ticks, sizes)
        found = run_stream(encoder_of(model).stream(), price_ticks, sizes)
        assert off(found, expected) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_window_of_a_stream_is_what_embed_gives(name, recorded_states):
    model = network(name)
    states = model.config.temporal_dim
    price_ticks, sizes = (x[50 : 50 + states] for x in recorded_states)
    window = torch.from_numpy(price_ticks)[None], torch.from_numpy(sizes)[None]
    with torch.inference_mode():
        whole = WindowEncoder(model, "all")(*window)[0].numpy()
    encoder = encoder_of(model)
    stream = encoder.stream()
    found = run_stream(stream, price_ticks, sizes)
    assert found.dtype == np.float32 and off(found, whole) < 1e-5
    assert off(found[-1], encoder.embed(price_ticks, sizes)[0]) < 1e-5
    stream.reset()
    assert np.array_equal(run_stream(stream, price_ticks, sizes), found)


@pytest.mark.parametrize("name", ["cells", "linear"])
def test_products_in_bf16_stay_within_their_tolerance(name, recorded_states):
    model = network(name)
    states = model.config.temporal_dim
    expected = reference_vectors(model, *recorded_states)
    wholly = Stream(copy.deepcopy(model).bfloat16())  # as lob/evaluation/latency.py takes it
    for stream in (wholly, encoder_of(model).stream(precision="bf16")):
        found = run_stream(stream, *recorded_states)
        assert np.linalg.norm(found - expected) < 2e-2 * np.linalg.norm(expected)
    window = [torch.from_numpy(x[:states])[None] for x in recorded_states]
    with torch.inference_mode():
        whole = WindowEncoder(in_bf16(model), "all")(*window)[0].numpy()
    assert np.linalg.norm(found[:states] - whole) < 2e-2 * np.linalg.norm(whole)


def test_books_beside_each_other_are_streams_of_their_own(random_states):
    model = network("cells")
    price_ticks, sizes = random_states
    alone = [
        run_stream(encoder_of(model).stream(), prices, amounts)
        for prices, amounts in zip(price_ticks, sizes, strict=True)
    ]
    both = encoder_of(model).stream()
    together = run_stream(both, price_ticks.swapaxes(0, 1), sizes.swapaxes(0, 1))
    assert off(together, np.stack(alone, axis=1)) < 1e-5
    # One of them begins anew, the other goes on.
    for which in ([1], [False, True], np.array([False, True])):
        both.reset(which)
        again = run_stream(both, price_ticks[:, :50].swapaxes(0, 1), sizes[:, :50].swapaxes(0, 1))
        assert off(again[:, 1], alone[1][:50]) < 1e-5
    assert off(again[:, 0], alone[0][:50]) > 1e-2


def test_what_has_left_every_window_is_forgotten(random_states):
    """A vector depends on the last (layers + 1) (T - 1) + 29 states, to the bit."""
    model = network("short_windows")
    reach = (model.config.layers + 1) * (model.config.temporal_dim - 1) + 29
    price_ticks, sizes = (x[0] for x in random_states)
    before = run_stream(encoder_of(model).stream(), price_ticks, sizes)
    changed = price_ticks.copy(), sizes.copy()
    changed[0][:60] -= 3
    changed[1][:60] *= 7
    after = run_stream(encoder_of(model).stream(), *changed)
    last = 59 + reach  # 60 states are changed; the next vector doesn't know them
    assert np.array_equal(before[last:], after[last:])
    assert not np.array_equal(before[last - 1], after[last - 1])


def test_only_the_distance_of_states_counts_however_long_a_stream_is(recorded_states):
    model = network("cells")
    stream = encoder_of(model).stream()
    found = run_stream(stream, *recorded_states)
    stream.reset()
    later = 3_600 * 24 * 365 * 1000  # a year of a state a millisecond
    clock = stream.module.clock
    clock.count += later
    clock.angle.copy_(torch.remainder(clock.step * 123.4, 2 * torch.pi))
    assert off(run_stream(stream, *recorded_states), found) < 1e-5


def test_a_books_segments_are_streams_of_their_own(tmp_path):
    model = network("linear", depth=16)
    folder = write_book(tmp_path, rows=100, depth=16, segment_starts=(0, 45))
    found = encoder_of(model).stream_book(folder)
    book = open_book(folder)
    for rows in (slice(0, 45), slice(45, 100)):
        expected = reference_vectors(model, book.price_ticks[rows], book.sizes[rows])
        assert off(found[rows], expected) < 1e-5
    with pytest.raises(InputError, match="--depth=16"):
        encoder_of(model).stream_book(write_book(tmp_path, "B", rows=40, depth=8))


def test_later_training_does_not_change_a_stream(recorded_states):
    model = network("cells")
    before = run_stream(encoder_of(model).stream(), *(x[:9] for x in recorded_states))
    stream = encoder_of(model).stream()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert np.array_equal(run_stream(stream, *(x[:9] for x in recorded_states)), before)


def test_tensors_exchange_units_and_inference_mode_are_taken(recorded_states):
    encoder = encoder_of(network("linear"))
    price_ticks, sizes = (x[:5] for x in recorded_states)
    expected = run_stream(encoder.stream(), price_ticks, sizes)
    with torch.inference_mode():
        stream = encoder.stream()
        first = stream.update(price_ticks[0] * 0.01, sizes[0].tolist(), tick_size=0.01)
    assert np.array_equal(first, expected[0])
    second = stream.update(torch.from_numpy(price_ticks[1]), torch.from_numpy(sizes[1]))
    assert isinstance(second, torch.Tensor) and np.array_equal(second.numpy(), expected[1])


def test_mistakes_get_one_line(recorded_states):
    price_ticks, sizes = (x[0] for x in recorded_states)
    for choices, said in (
        ({"causal": False}, "with --causal=True"),
        ({"normalization": "minmax"}, "--normalization=book"),
    ):
        with pytest.raises(InputError, match=said):
            encoder_of(network("linear", **choices)).stream()
    encoder = encoder_of(network("linear"))
    with pytest.raises(InputError, match="must be 'fp32' or 'bf16'"):
        encoder.stream(precision="fp16")
    stream = encoder.stream()
    for given, said in (
        ((price_ticks[1:], sizes[1:]), rf"takes a state \({LEVELS},\) of one book"),
        ((price_ticks[None, None], sizes[None, None]), "takes a state"),
        ((price_ticks[None][:0], sizes[None][:0]), "takes a state"),
        ((price_ticks, sizes[1:]), "give one shape"),
        ((price_ticks[::-1], sizes), "must ascend"),
        ((price_ticks, sizes * 0), "a size is 0.0"),
        ((price_ticks * 1.0, sizes), "give tick_size"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            stream.update(*given)
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="this stream has 0 books"):
        stream.reset([0])
    stream.update(price_ticks, sizes)
    with pytest.raises(InputError, match="2 states are given, this stream has 1 books"):
        stream.update(np.stack([price_ticks] * 2), np.stack([sizes] * 2))
    stream.reset()
    stream.update(np.stack([price_ticks] * 2), np.stack([sizes] * 2))


@pytest.mark.parametrize("name", ["cells", "linear"])
def test_a_script_of_it_gives_the_same(name, random_states, tmp_path):
    model = network(name)
    price_ticks, sizes = (torch.from_numpy(x) for x in random_states)
    expected = reference_vectors(model, price_ticks[1].numpy(), sizes[1].numpy())
    torch.jit.save(torch.jit.script(BookStream(model)), tmp_path / "stream.pt")
    script = torch.jit.load(tmp_path / "stream.pt")
    with pytest.raises(torch.jit.Error, match=rf"must be of shape \[1, {LEVELS}\], not \[2"):
        script(price_ticks[:, 0].long(), sizes[:, 0])
    script.reset(2)
    for _ in range(2):
        rows = [script(price_ticks[:, n].long(), sizes[:, n]) for n in range(price_ticks.shape[1])]
        assert off(torch.stack(rows)[:, 1].numpy(), expected) < 1e-5
        script.forget(torch.tensor([True, True]))


@pytest.mark.parametrize("name", ["cells", "linear"])
def test_the_future_changes_no_vector_of_a_stream(name, recorded_states):
    stream = encoder_of(network(name)).stream()
    price_ticks, sizes = recorded_states
    whole = run_stream(stream, price_ticks, sizes)
    stream.reset()
    first = run_stream(stream, price_ticks[:90], sizes[:90])
    kept = copy.deepcopy(stream.module)
    other = run_stream(stream, price_ticks[90:][::-1] + 40, sizes[90:][::-1])
    assert np.array_equal(first, whole[:90]) and not np.array_equal(other, whole[90:])
    # What was kept at that state knows nothing of what came after either.
    stream.module = stream.compute = kept
    assert np.array_equal(run_stream(stream, price_ticks[90:], sizes[90:]), whole[90:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["cells", "linear"])
def test_an_update_as_a_cuda_graph_gives_what_the_cpu_gives(name, random_states):
    model = network(name)
    price_ticks, sizes = (x.swapaxes(0, 1) for x in random_states)
    expected = run_stream(encoder_of(model).stream(), price_ticks, sizes)
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 2e-2)):  # cuBLAS sums in another order
        stream = encoder_of(copy.deepcopy(model).cuda()).stream(precision)
        found = run_stream(stream, price_ticks, sizes)
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
        stream.reset([1])
        again = run_stream(stream, price_ticks[:50], sizes[:50])
        difference = np.linalg.norm(again[:, 1] - expected[:50, 1])
        assert difference < tolerance * np.linalg.norm(expected[:50, 1])
        stream.reset()
        alone = run_stream(stream, price_ticks[:50, 0], sizes[:50, 0])
        difference = np.linalg.norm(alone - expected[:50, 0])
        assert difference < tolerance * np.linalg.norm(expected[:50, 0])
