"""Networks of the literature: sizes as published, and inputs against a slow reading."""

import numpy as np
import pytest
import torch
from conftest import write_book

from benchmarks import other_models
from lob.book.states import open_book
from lob.windows.splits import gather_windows


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("make", "states", "parameters"),
    [
        # As the authors' notebook prints it: github.com/zcakhaa/DeepLOB-..., jupyter_pytorch.
        (other_models.DeepLOB, 100, 143_907),
        # As github.com/LeonardoBerti00/TLOB has them for FI-2010, less 3 that it never uses: an
        # embedding of the kind of an order. The third of them is 1.1e4 in LOBCAST's table.
        (other_models.MLPLOB, 384, 3_012_414 - 3),
        (other_models.TLOB, 128, 1_135_974 - 3),
        (other_models.BinCtabl, 10, 11_446),
        # For the input of DeepLOB, 100 x 40.
        (other_models.MLPLOB, 100, 234_621 - 3),
        (other_models.TLOB, 100, 734_481 - 3),
    ],
)
def test_a_network_has_the_parameters_that_were_published(make, states, parameters):
    network = make(states, 40, 3)
    assert count(network) == parameters
    assert network(torch.randn(2, states, 40)).shape == (2, 3)


def test_deeplob_counts_as_its_layers_add_up():
    inputs = {"price and size": 2 * 32 + 32, "sides": 2 * 32 * 32 + 32, "levels": 10 * 32 * 32 + 32}
    convolutions = sum(inputs.values()) + 6 * (4 * 32 * 32 + 32)
    branches = 3 * (32 * 64 + 64) + (3 * 64 * 64 + 64) + (5 * 64 * 64 + 64)
    norms = 9 * 2 * 32 + 5 * 2 * 64
    lstm = 4 * 64 * (192 + 64 + 2)
    expected = convolutions + branches + norms + lstm + 64 * 3 + 3
    assert count(other_models.DeepLOB(100, 40, 3)) == expected == 143_907
    with pytest.raises(ValueError, match="18 states"):
        other_models.DeepLOB(18, 40, 3)


def test_bilinear_normalisation_is_that_of_a_slow_reading():
    torch.manual_seed(0)
    layer = other_models.BilinearNormalisation(5, 3)
    for parameter in layer.parameters():
        parameter.data.uniform_(0.1, 1)
    x = torch.randn(2, 3, 5)
    x[1, 2] = 4.0  # an input that does not change
    found = layer(x)
    for window, given in enumerate(x):
        for i in range(3):
            for t in range(5):
                row, column = given[i], given[:, t]
                spread = row.std() if row.std() > 1e-4 else 1.0
                in_time = (given[i, t] - row.mean()) / spread
                in_state = (given[i, t] - column.mean()) / column.std()
                one = layer.scale_in_time[i, 0] * in_time + layer.shift_in_time[i, 0]
                two = layer.scale_in_state[0, t] * in_state + layer.shift_in_state[0, t]
                expected = layer.weight_in_time * one + layer.weight_in_state * two
                torch.testing.assert_close(found[window, i, t], expected[0])


def test_temporal_attention_is_that_of_a_slow_reading():
    torch.manual_seed(0)
    layer = other_models.TemporalAttention(3, 4, 2, 1).requires_grad_(False)
    layer.among_states.data.normal_()
    layer.mix.data.fill_(0.3)
    x = torch.randn(1, 3, 4)
    inner = layer.left @ x[0]
    among = layer.among_states.clone()
    among.fill_diagonal_(1 / 4)  # a state's weight on itself is fixed
    expected = layer.bias.clone()
    for i in range(2):
        score = torch.stack([sum(inner[i, s] * among[s, t] for s in range(4)) for t in range(4)])
        weight = score.exp() / score.exp().sum()
        for t in range(4):
            mixed = 0.3 * inner[i, t] + 0.7 * weight[t] * inner[i, t]
            expected[i, 0] = expected[i, 0] + mixed * layer.right[t, 0]
    torch.testing.assert_close(layer(x)[0], expected)
    layer.left.data *= 1000
    assert other_models.limit(layer.left).norm().item() == pytest.approx(10, rel=1e-5)


@pytest.mark.parametrize("name", other_models.PUBLISHED)
def test_a_network_reads_what_was_published_of_a_window(name, tmp_path):
    book = open_book(write_book(tmp_path, rows=300, depth=24))
    price, sizes = (torch.from_numpy(x) for x in gather_windows(book, np.array([140, 300]), 140))
    torch.manual_seed(0)
    batches = [(price[:1], sizes[:1]), (price[1:], sizes[1:])]
    network = other_models.BookNetwork(name, 140, 24, batches).eval()
    states = min(140, other_models.PUBLISHED[name].states)
    inputs = other_models.read_levels(price, sizes, states, 10)
    assert inputs.shape == (2, states, 40)
    for window in range(2):
        mid = (price[window, -1, 11].item() + price[window, -1, 12].item()) / 2
        for t in (0, states - 1):
            at = 140 - states + t
            for level in range(10):
                ask, bid = 12 + level, 11 - level
                expected = []
                for place in (ask, bid):
                    expected.append((price[window, at, place].item() / mid - 1) * 1e4)
                    expected.append(np.log(sizes[window, at, place].item()))
                found = inputs[window, t, 4 * level : 4 * level + 4]
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
    scored = ((inputs - network.mean) / network.spread).flatten(0, 1)
    torch.testing.assert_close(scored.mean(0), torch.zeros(40), atol=1e-3, rtol=0)
    varied = network.spread > 1e-3
    torch.testing.assert_close(scored.std(0)[varied], torch.ones(40)[varied])

    answer = network(price, sizes)
    assert answer.shape == (2,)
    unseen = price.clone(), sizes.clone()
    unseen[1][:, :, [0, 1, 22, 23]] = 1e6  # beyond ten levels
    unseen[1][:, : 140 - states] = 1e6  # before its states
    assert torch.equal(network(*unseen), answer)
    seen = sizes.clone()
    seen[:, -1, 13] = 1e6
    assert not torch.equal(network(price, seen), answer)
    answer.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
