"""Which windows each rank takes in each pass of an epoch, and the keys of their masks.

Both follow from the seed, the epoch and the window alone. The windows of an optimizer step are one run of the epoch's
order, so neither the number of ranks nor of passes changes what a step sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lob.config import InputError
from lob.dataset import Dataset
from lob.model.masking import window_keys

HELD_OUT_EPOCH = -1  # masks of validation and test windows are the same in every epoch
REPEATS = 64  # how often a window can be drawn in one epoch before its masks repeat


@dataclass(frozen=True)
class Batch:
    """The windows of one pass: number of the pair, end row and mask key, each int64 (B,)."""

    pair_index: np.ndarray
    end_rows: np.ndarray
    keys: Tensor


class Sampler:
    """Draws training windows by their weights, and deals them and held-out windows out to ranks."""

    def __init__(self, data: Dataset, seed: int, windows_a_step: int):
        self.data, self.seed, self.windows_a_step = data, seed, windows_a_step
        windows = int(data.weights[0].sum())
        self.steps_an_epoch = windows // windows_a_step
        if self.steps_an_epoch == 0:
            raise InputError(f"{windows} training windows an epoch are fewer than a step of {windows_a_step}: "
                             "lower batch_size or accumulation_steps, or sample more")  # fmt: skip

    def draw_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows of an epoch in order, and how often each was drawn before, int64 (N,) each.

        A window of weight w is drawn floor(w) or ceil(w) times, w times in expectation; N is the sum of all weights,
        rounded down or up (systematic sampling: one random offset for all).
        """
        rng = np.random.default_rng([self.seed, epoch])
        passed = np.floor(np.cumsum(self.data.weights[0]) + rng.random()).astype(np.int64)
        times = np.diff(passed, prepend=0)
        windows = np.repeat(np.arange(len(times)), times)
        repeats = np.arange(len(windows)) - np.repeat(np.cumsum(times) - times, times)
        order = rng.permutation(len(windows))
        return windows[order], repeats[order]

    def batch(self, split: int, windows: np.ndarray, repeats: np.ndarray | int, epoch: int) -> Batch:
        """Return the given windows of a split (0 training, 1 validation, 2 test) with their keys of `epoch`."""
        samples = torch.from_numpy(windows * REPEATS + repeats + split * 2**56)
        keys = window_keys(self.seed, epoch, samples)
        return Batch(self.data.pair_index[split][windows], self.data.end_rows[split][windows], keys)

    def training(self, epoch: int, step: int, rank: int = 0, world: int = 1, passes: int = 1) -> Iterator[Batch]:
        """Yield this rank's passes of an epoch from `step` on; the windows left over at its end are not drawn."""
        windows, repeats = self.draw_order(epoch)
        places = np.arange(self.steps_an_epoch * self.windows_a_step).reshape(self.steps_an_epoch, passes, world, -1)
        for place in places[step:, :, rank].reshape(-1, places.shape[3]):
            yield self.batch(0, windows[place], repeats[place], epoch)

    def first_held_out(self, split: int) -> Batch:
        """Return a split's first window."""
        return self.batch(split, np.arange(1), 0, HELD_OUT_EPOCH)

    def held_out(self, split: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """Return this rank's batches of all windows of a split."""
        mine = np.arange(rank, len(self.data.end_rows[split]), world)
        return [self.batch(split, mine[i : i + batch_size], 0, HELD_OUT_EPOCH) for i in range(0, len(mine), batch_size)]
