"""Varied training windows are books that could have been, and are fixed by their key."""

import numpy as np
import pytest
import torch
from test_ladder import moving_book

from lob.model.masking import window_keys
from lob.training.augmentation import augment, exchange_sides, slow_down, vary_sizes


def keys(count):
    return window_keys(0, 0, torch.arange(count))


def pairs_of(prices, values):
    """Return the (price, value) of each entry."""
    return list(zip(prices.flatten().tolist(), values.flatten().tolist(), strict=True))


def test_mirrored_windows_exchange_bids_and_asks_and_stay_books():
    window = [[90, 97, 99, 102, 105, 111], [91, 97, 101, 104, 105, 113]]
    price_ticks = torch.tensor([window]).expand(2, -1, -1)
    sizes = torch.arange(1.0, 7.0).expand(2, 2, 6)
    turned, swapped = exchange_sides(price_ticks, sizes, torch.tensor([[False], [True]]))
    assert turned[0].equal(price_ticks[0]) and swapped[0].equal(sizes[0])
    assert swapped[1].equal(sizes[1].flip(1))
    assert turned[1, 0].tolist() == [90, 96, 99, 102, 104, 111]  # each gap is on the other side
    assert turned[1, 1].tolist() == [88, 96, 97, 100, 104, 110]  # a rise becomes a fall
    assert (turned.diff(dim=2) > 0).all()
    again, _ = exchange_sides(turned, swapped, torch.tensor([[False], [True]]))
    assert again.equal(price_ticks)


def test_slowed_windows_pass_the_recorded_states_in_order():
    price_ticks, sizes = moving_book(16, states=64, levels=24)
    times = torch.arange(64).square().expand(16, -1) * 1_000_000
    slowed, slowed_sizes, slowed_times = slow_down(price_ticks, sizes, times, keys(16), 1.0)
    assert slowed[:, -1].equal(price_ticks[:, -1]) and slowed_sizes[:, -1].equal(sizes[:, -1])
    for window in range(16):
        resting = set(pairs_of(price_ticks[window], sizes[window]))
        at = 0  # the recorded state that has the slowed state's prices
        for state in range(64):
            while not slowed[window, state].equal(price_ticks[window, at]):
                at += 1
            found = pairs_of(slowed[window, state], slowed_sizes[window, state])
            assert resting.issuperset(found)
    passed = slowed_times[:, -1:] - slowed_times  # since the state that is k / speed states back
    for speed in (2, 3, 4):
        mine = passed[:, -1 - speed] == times[0, -1] - times[0, -2]
        back = np.interp(63 - np.arange(63, -1, -1) / speed, range(64), times[0].numpy())
        expected = np.broadcast_to(back, (int(mine.sum()), 64))
        assert len(expected)
        np.testing.assert_allclose(slowed_times[mine].numpy(), expected, atol=1e3)
    drift = torch.arange(64).view(1, 64, 1)
    slowed, _, _ = slow_down(price_ticks + 100 * drift, sizes, times, keys(16), 1.0)
    passed = {len(set(window[:, 0].tolist())) for window in slowed}  # about 64 / 2, 64 / 3, 64 / 4
    assert passed <= {33, 32, 22, 23, 16, 17} and len(passed) >= 3


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6])
def test_as_many_windows_are_slowed_down_as_asked_for(share):
    price_ticks, sizes = moving_book(1, states=16, levels=8)
    sizes = torch.arange(16.0).view(1, 16, 1).expand(2000, -1, 8)
    windows = price_ticks.expand(2000, -1, -1), sizes, torch.zeros(2000, 16, dtype=torch.long)
    _, slowed, _ = augment(*windows, keys(2000), False, share, 0.0)
    assert (slowed != sizes).any(dim=(1, 2)).float().mean() == pytest.approx(share, abs=0.03)


def test_sizes_vary_by_price_in_half_the_windows():
    price_ticks, _ = moving_book(400, states=32, levels=16)
    factors = vary_sizes(price_ticks, torch.ones(400, 32, 16), keys(400), 1.5).log()
    varied = factors.abs().amax(dim=(1, 2)) > 0
    assert varied.float().mean() == pytest.approx(0.5, abs=0.1) and (factors[~varied] == 0).all()
    drawn = []
    for prices, found in zip(price_ticks[varied], factors[varied], strict=True):
        factor_of = dict(pairs_of(prices, found))
        assert all(factor_of[price] == factor for price, factor in pairs_of(prices, found))
        drawn += factor_of.values()
    values = torch.tensor(drawn)
    assert values.abs().max() <= 1.5 and values.std() == pytest.approx(3 / 12**0.5, rel=0.05)
    assert values.mean() == pytest.approx(0, abs=0.05)


def test_no_variation_of_a_window_tells_of_another():
    price_ticks, sizes = (x.expand(4000, -1, -1) for x in moving_book(1, states=16, levels=8))
    times = torch.zeros(4000, 16, dtype=torch.long)
    ways = [(True, 0.0, 0.0), (False, 0.5, 0.0), (False, 0.0, 1.5)]
    varied = [
        (augment(price_ticks, sizes, times, keys(4000), *way)[1] != sizes).any(dim=(1, 2)).float()
        for way in ways
    ]
    correlations = torch.corrcoef(torch.stack(varied)) - torch.eye(3)
    assert correlations.abs().max() < 0.06  # four standard errors


def test_a_window_is_varied_by_its_key_alone():
    price_ticks, sizes = moving_book(8, states=32, levels=16)
    windows = price_ticks, sizes, torch.arange(32).expand(8, -1) * 10**7
    together = augment(*windows, keys(8), True, 0.5, 1.5)
    alone = augment(*(x[5:6] for x in windows), keys(8)[5:6], True, 0.5, 1.5)
    assert all(a[5:6].equal(b) for a, b in zip(together, alone, strict=True))
    assert (together[0].diff(dim=2) > 0).all()
