"""The sampled windows of all pairs in three splits, and which of them a rank takes in each pass.

The order of an epoch follows from the seed and the epoch alone. The key of a window's mask follows
from these and the window. The windows of an optimizer step stand side by side in that order, so a
step sees the same windows on any number of ranks and in any number of passes.

A window is given by the number of its pair and by its *end row*, the row after its last state in
the pair's book.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book, identity, open_book
from lob.config import CheckFailed, InputError, counted
from lob.model.masking import window_keys
from lob.storage import find_pairs, open_table
from lob.windows.splits import (
    SPLITS,
    calendar_cuts,
    count_shared_states,
    describe_dates,
    split_of_windows,
    split_rows,
)

HELD_OUT_EPOCH = -1  # masks of validation and test windows are the same in every epoch
SEEN_WINDOWS = 170_000  # of a run, if the user does not say: what the default recipe was made with
MOST_EPOCHS = 30  # of those runs: with more a network learns its windows by heart
FEWEST_STEPS = 300  # of the optimizer: shorter runs have hardly left their beginning
REPEATS = 64  # a window that is drawn more often in an epoch would get keys of the next window


def choose_epochs(windows_an_epoch: int) -> int:
    """Return how many epochs to train, if the user does not say.

    A run then sees some SEEN_WINDOWS windows, but none of them more than MOST_EPOCHS times, and all
    of them at least once.
    """
    return max(1, min(MOST_EPOCHS, round(SEEN_WINDOWS / windows_an_epoch)))


WINDOW = np.dtype([("pair", np.int64), ("end_row", np.int64), ("weight", np.float64)])


@dataclass(frozen=True)
class Dataset:
    """Books, and the windows of each split, WINDOW (W,), by number of the pair and by time.

    cuts_ns: the times at which validation and test begin; shared_states: how many states lie in
    windows of two splits.
    """

    books: list[Book]
    windows: list[np.ndarray]
    cuts_ns: np.ndarray
    shared_states: int

    def check(self, depth: int) -> None:
        """Refuse samples that can't be trained on.

        Raises InputError if books have another depth or a split has no windows, and CheckFailed if
        two splits share states.
        """
        found = self.books[0].depth
        if found != depth:
            raise InputError(
                f"depth_dim = {depth}, but {self.books[0].path} holds {found} levels: "
                f"set --depth_dim={found} or parse again"
            )
        if self.shared_states:
            raise CheckFailed(
                f"{self.shared_states} states are shared by two splits: "
                "the samples are not to be used"
            )
        if not len(self.windows[0]) or not len(self.windows[1]):
            raise InputError(
                f"no windows to train or validate on ({self.describe()}): "
                "sample more, or change split_ratios"
            )

    def describe(self) -> str:
        pairs = ", ".join(book.pair for book in self.books)
        states = sum(book.rows for book in self.books)
        named = zip(SPLITS, self.windows, strict=True)
        counts = ", ".join(f"{name} {len(windows):,}" for name, windows in named)
        return (
            f"{pairs}; {states:,} states; windows: {counts}; states shared by two splits: "
            f"{self.shared_states}; {describe_dates(self.books, self.cuts_ns)}"
        )

    def identity(self) -> dict[str, Any]:
        """Return what tells these windows from others: their books, a hash, the calendar cuts."""
        digest = hashlib.sha256()
        for column in ("pair", "end_row", "weight"):
            for windows in self.windows:
                digest.update(windows[column].tobytes())
        books = [identity(book) for book in self.books]
        return {
            "books": books,
            "windows_sha256": digest.hexdigest(),
            "cuts_ns": self.cuts_ns.tolist(),
        }

    def seen(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return what weights have seen once they are trained on these windows, as SEEN has it.

        before: metadata of the checkpoint that training begins with; empty if there is none.
        """
        before = before.get("seen", {"until_ns": 0, "books": []})
        pairs, ends = self.windows[0]["pair"], self.windows[0]["end_row"]
        last = [
            int(book.timestamps[ends[pairs == number].max() - 1])
            for number, book in enumerate(self.books)
            if (pairs == number).any()
        ]
        own = [identity(book) for book in self.books]
        others = [book for book in before["books"] if book not in own]
        return {"until_ns": max([before["until_ns"], *last]), "books": [*others, *own]}


def open_dataset(
    data_dir: str | Path,
    pairs: Sequence[str] | None,
    temporal_dim: int,
    split_ratios: Sequence[float | str],
) -> Dataset:
    """Open the balanced samples of `pairs` (None: all) and divide their windows into three splits.

    Raises InputError if a sample was made from another book or with other settings, or if the books
    differ in depth.
    """
    folder = Path(data_dir)
    names = find_pairs(folder, "balanced_samples", pairs, "create_balanced_dataset.py")
    books = [open_book(folder / "book_states" / name) for name in names]
    if len({book.depth for book in books}) > 1:
        depths = ", ".join(f"{book.pair} {book.depth}" for book in books)
        raise InputError(
            f"the books differ in depth ({depths}): parse them with one --depth, or name --pairs"
        )
    cuts = calendar_cuts(books, split_ratios)

    windows: list[list[np.ndarray]] = [[] for _ in SPLITS]
    shared = 0
    for number, book in enumerate(books):
        rows, _ = open_table(
            folder / "balanced_samples" / f"{book.pair}.npy",
            "create_balanced_dataset.py",
            identity(book),
            temporal_dim=temporal_dim,
            split_ratios=list(split_ratios),
        )
        limits = split_rows(book.timestamps, cuts, temporal_dim)
        split = split_of_windows(rows["end_row"], temporal_dim, limits)
        for index, parts in enumerate(windows):
            of_split = rows[split == index]
            mine = np.empty(len(of_split), WINDOW)
            mine["pair"] = number
            mine["end_row"], mine["weight"] = of_split["end_row"], of_split["weight"]
            parts.append(mine)
        ends = [parts[-1]["end_row"] for parts in windows]
        shared += count_shared_states(ends, temporal_dim, book.rows)
    return Dataset(books, [np.concatenate(parts) for parts in windows], cuts, shared)


@dataclass(frozen=True)
class Batch:
    """The windows of one pass: pair number, end row and mask key, int64 (B,) each."""

    pair_index: np.ndarray
    end_rows: np.ndarray
    keys: Tensor


class Sampler:
    """Draws training windows by their weights, and deals windows out to ranks and passes.

    Held-out windows are those of validation and test. windows_a_step: of all ranks together.
    validation_windows: how many of the validation windows are used, evenly spaced; None: all.
    """

    def __init__(
        self, data: Dataset, seed: int, windows_a_step: int, validation_windows: int | None = None
    ):
        self.data, self.seed, self.windows_a_step = data, seed, windows_a_step
        self.validation_windows = validation_windows
        windows = int(data.windows[0]["weight"].sum())
        self.steps_an_epoch = windows // windows_a_step
        if self.steps_an_epoch == 0:
            raise InputError(
                f"{windows} training windows per epoch are fewer than a step of {windows_a_step}: "
                "lower batch_size or accumulation_steps, or sample more"
            )

    @property
    def windows_an_epoch(self) -> int:
        """How many windows an epoch trains on: those of its whole steps."""
        return self.steps_an_epoch * self.windows_a_step

    def describe_length(self, epochs: int, chosen: bool) -> str:
        """Return how long a run of so many epochs is, and whether that is too short."""
        steps, windows = epochs * self.steps_an_epoch, self.windows_an_epoch
        text = f"length     {counted(epochs, 'epoch')} of {windows:,} windows, {steps:,} steps"
        if chosen:
            text += " (chosen by the number of windows: --epochs)"
        if steps < FEWEST_STEPS:
            text += (
                f"\nwarning: in fewer than {FEWEST_STEPS} steps a network learns little more than "
                "what it begins with: sample more windows, raise --epochs, or lower --batch_size"
            )
        return text

    def draw_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows of an epoch in order, and how often each was drawn before.

        Both are int64 (N,). A window of weight w is drawn floor(w) or ceil(w) times, w times in
        expectation, by systematic sampling: one random offset for all windows. N is the sum of all
        weights, rounded down or up.
        """
        rng = np.random.default_rng([self.seed, epoch])
        passed = np.floor(np.cumsum(self.data.windows[0]["weight"]) + rng.random()).astype(np.int64)
        times = np.diff(passed, prepend=0)
        windows = np.repeat(np.arange(len(times)), times)
        repeats = np.arange(len(windows)) - np.repeat(np.cumsum(times) - times, times)
        order = rng.permutation(len(windows))
        return windows[order], repeats[order]

    def batch(
        self, split: int, windows: np.ndarray, repeats: np.ndarray | int, epoch: int
    ) -> Batch:
        """Return windows of a split (0 training, 1 validation, 2 test) with their keys of `epoch`.

        windows: their numbers within the split; repeats: how often each was drawn before.
        """
        # One number for each draw, different for all windows, repeats and splits.
        samples = torch.from_numpy(windows * REPEATS + repeats + split * 2**56)
        keys = window_keys(self.seed, epoch, samples)
        chosen = self.data.windows[split][windows]
        return Batch(chosen["pair"], chosen["end_row"], keys)

    def training(
        self, epoch: int, step: int, rank: int = 0, world: int = 1, passes: int = 1
    ) -> Iterator[Batch]:
        """Yield this rank's passes of an epoch from `step` on.

        Windows that are too few for another step are left out at its end.
        """
        windows, repeats = self.draw_order(epoch)
        whole = np.arange(self.windows_an_epoch)
        places = whole.reshape(self.steps_an_epoch, passes, world, -1)
        for places_of_step in places[step:, :, rank]:
            for place in places_of_step:
                yield self.batch(0, windows[place], repeats[place], epoch)

    def first_validation(self, most: int) -> Batch:
        """Return the first validation windows, at most `most`."""
        some = np.arange(min(most, len(self.data.windows[1])))
        return self.batch(1, some, 0, HELD_OUT_EPOCH)

    def held_out_places(self, split: int) -> np.ndarray:
        """Return which windows of a split are used; `validation_windows` thins those of validation.

        int64 (N,): their numbers within the split.
        """
        count = len(self.data.windows[split])
        most = self.validation_windows if split == 1 else None
        kept = count if most is None else min(most, count)
        return np.arange(kept) * count // max(kept, 1)

    def held_out(self, split: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """Return this rank's batches of a split."""
        mine = self.batch(split, self.held_out_places(split)[rank::world], 0, HELD_OUT_EPOCH)
        parts = [slice(i, i + batch_size) for i in range(0, len(mine.end_rows), batch_size)]
        return [Batch(mine.pair_index[i], mine.end_rows[i], mine.keys[i]) for i in parts]
