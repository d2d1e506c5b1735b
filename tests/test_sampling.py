"""Windows are drawn by their weights, dealt out to ranks and passes, and keyed: each draw has a
mask of its own.
"""

from dataclasses import replace

import numpy as np
import pytest

from lob.training.samples import HELD_OUT_EPOCH, Dataset, Sampler

WEIGHTS = np.array([0.3, 1.0, 2.5, 0.0, 3.75, 1.2, 0.25])


def dataset(weights=WEIGHTS):
    ends = [np.arange(len(weights)) + 100 * (split + 1) for split in range(3)]
    return Dataset(
        [],
        [np.zeros_like(e) for e in ends],
        ends,
        [weights, *[np.ones(len(weights))] * 2],
        np.arange(2),
        0,
    )


def test_a_window_of_weight_w_is_drawn_w_times_in_expectation():
    sampler = Sampler(dataset(), 0, 4)
    drawn = []
    for epoch in range(2000):
        windows, repeats = sampler.draw_order(epoch)
        drawn.append(np.bincount(windows, minlength=len(WEIGHTS)))
        for window in range(len(WEIGHTS)):
            assert sorted(repeats[windows == window]) == list(range(drawn[-1][window]))
    assert np.abs(drawn - WEIGHTS).max() < 1
    # four deviations of chance
    np.testing.assert_allclose(np.mean(drawn, axis=0), WEIGHTS, atol=0.045)


def test_every_draw_has_a_key_of_its_own():
    sampler = Sampler(dataset(), 0, 4)
    order = sampler.draw_order(0)
    batches = [sampler.batch(0, *order, 0), sampler.batch(0, *order, 1)]
    batches += [sampler.batch(split, np.arange(7), 0, HELD_OUT_EPOCH) for split in range(3)]
    keys = np.concatenate([batch.keys.numpy() for batch in batches])
    assert len(np.unique(keys)) == len(keys)


@pytest.mark.parametrize(("world", "passes"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_passes_share_out_the_same_steps(world, passes):
    sampler = Sampler(dataset(np.ones(30)), 3, 8)
    whole = [
        set(zip(b.end_rows.tolist(), b.keys.tolist(), strict=True)) for b in sampler.training(2, 1)
    ]
    assert [len(step) for step in whole] == [8, 8]  # of three steps all but the first
    dealt = [list(sampler.training(2, 1, rank, world, passes)) for rank in range(world)]
    for number, step in enumerate(whole):
        mine = [b for batches in dealt for b in batches[number * passes : (number + 1) * passes]]
        found = [
            pair for b in mine for pair in zip(b.end_rows.tolist(), b.keys.tolist(), strict=True)
        ]
        assert len(found) == 8 and set(found) == step
    ends = [b.end_rows for rank in range(world) for b in sampler.held_out(1, 4, rank, world)]
    assert sorted(np.concatenate(ends)) == list(range(200, 230)) and max(map(len, ends)) == 4


def test_samples_of_other_windows_or_weights_are_told_apart():
    data = dataset()
    others = [
        replace(data, **{name: [x + 1 for x in getattr(data, name)]})
        for name in ("pair_index", "end_rows", "weights")
    ]
    assert data.identity() == dataset().identity()
    assert all(other.identity() != data.identity() for other in others)
