"""Windows are drawn by their weights and dealt out to ranks and passes; each draw has its key."""

import numpy as np
import pytest

from lob.training.samples import HELD_OUT_EPOCH, WINDOW, Dataset, Sampler, choose_epochs

WEIGHTS = np.array([0.3, 1.0, 2.5, 0.0, 3.75, 1.2, 0.25])


def dataset(weights=WEIGHTS):
    """Return windows without books; those of split s have the end rows from 100 (s + 1) on."""
    windows = [np.zeros(len(weights), WINDOW) for _ in range(3)]
    for split, rows in enumerate(windows):
        rows["end_row"] = np.arange(len(weights)) + 100 * (split + 1)
        rows["weight"] = weights if split == 0 else 1.0
    return Dataset([], windows, np.arange(2), 0)


def draws(batch):
    """Return the (end row, key) of each window of a batch."""
    return list(zip(batch.end_rows.tolist(), batch.keys.tolist(), strict=True))


def test_a_window_of_weight_w_is_drawn_w_times_in_expectation():
    sampler = Sampler(dataset(), 0, 4)
    drawn = []
    for epoch in range(2000):
        windows, repeats = sampler.draw_order(epoch)
        drawn.append(np.bincount(windows, minlength=len(WEIGHTS)))
        for window in range(len(WEIGHTS)):
            assert sorted(repeats[windows == window]) == list(range(drawn[-1][window]))
    assert np.abs(drawn - WEIGHTS).max() < 1
    four_standard_errors = 0.045
    np.testing.assert_allclose(np.mean(drawn, axis=0), WEIGHTS, atol=four_standard_errors)


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
    whole = [set(draws(batch)) for batch in sampler.training(2, 1)]
    assert [len(step) for step in whole] == [8, 8]  # of three steps all but the first
    dealt = [list(sampler.training(2, 1, rank, world, passes)) for rank in range(world)]
    for number, step in enumerate(whole):
        own = slice(number * passes, (number + 1) * passes)
        found = [draw for batches in dealt for batch in batches[own] for draw in draws(batch)]
        assert len(found) == 8 and set(found) == step
    ends = [b.end_rows for rank in range(world) for b in sampler.held_out(1, 4, rank, world)]
    assert sorted(np.concatenate(ends)) == list(range(200, 230)) and max(map(len, ends)) == 4


def test_samples_of_other_windows_or_weights_are_told_apart():
    data = dataset()
    assert data.identity() == dataset().identity()
    for column in WINDOW.names:
        other = dataset()
        other.windows[1][column] += 1
        assert other.identity() != data.identity()


@pytest.mark.parametrize(("windows", "epochs"), [(800, 30), (18_664, 9), (15_000_000, 1)])
def test_the_length_of_a_run_follows_from_the_number_of_windows(windows, epochs):
    sampler = Sampler(dataset(np.ones(windows)), 0, 64)
    assert choose_epochs(sampler.windows_an_epoch) == epochs
    said = sampler.describe_length(epochs, True)
    assert f"{windows // 64 * 64:,} windows" in said and "chosen" in said
    assert "warning" not in said


def test_a_run_too_short_to_learn_from_is_called_so():
    sampler = Sampler(dataset(np.ones(800)), 0, 64)
    assert "warning: in fewer than 300 steps" in sampler.describe_length(20, False)
    assert "warning" not in sampler.describe_length(25, False)


def test_validation_windows_thin_the_validation_split_alone():
    sampler = Sampler(dataset(np.ones(30)), 3, 8, validation_windows=10)
    ends = np.concatenate([batch.end_rows for batch in sampler.held_out(1, 4)])
    assert ends.tolist() == list(range(200, 230, 3))
    assert sum(len(batch.end_rows) for batch in sampler.held_out(2, 4)) == 30
    shares = [batch.end_rows for rank in (0, 1) for batch in sampler.held_out(1, 4, rank, 2)]
    assert sorted(np.concatenate(shares)) == ends.tolist()
