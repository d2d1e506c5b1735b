"""The sampled windows of all pairs, divided into training, validation and test, for trainer and tester alike."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lob.book.states import Book, identity, open_book
from lob.config import InputError
from lob.storage import find_pairs, open_table
from lob.windows.splits import SPLITS, calendar_cuts, count_shared_states, split_of_windows, split_rows


@dataclass(frozen=True)
class Dataset:
    """Books and, for each split, the windows in time order: pair number, end row and weight, each (W,)."""

    books: list[Book]
    pair_index: list[np.ndarray]
    end_rows: list[np.ndarray]
    weights: list[np.ndarray]
    cuts_ns: np.ndarray
    shared_states: int

    def describe(self) -> str:
        counts = ", ".join(f"{name} {len(ends):,}" for name, ends in zip(SPLITS, self.end_rows, strict=True))
        states = sum(book.rows for book in self.books)
        pairs = ", ".join(book.pair for book in self.books)
        return f"{pairs}; {states:,} states; windows: {counts}; states shared by two splits: {self.shared_states}"

    def identity(self) -> dict[str, Any]:
        """Return what tells these windows from others (the books they are of, a hash) and the calendar cuts."""
        digest = hashlib.sha256()
        for column in (self.pair_index, self.end_rows, self.weights):
            for array in column:
                digest.update(array.tobytes())
        books = [identity(book) for book in self.books]
        return {"books": books, "windows_sha256": digest.hexdigest(), "cuts_ns": self.cuts_ns.tolist()}


def open_dataset(config: dict[str, Any]) -> Dataset:
    """Open the samples that `config` (data_dir, pairs, temporal_dim, split_ratios) names.

    InputError where a sample was made from another book or with other parameters, or where books differ in depth.
    """
    folder = Path(config["data_dir"])
    names = find_pairs(folder, "balanced_samples", config["pairs"], "create_balanced_dataset.py")
    books = [open_book(folder / "book_states" / name) for name in names]
    if len({book.depth for book in books}) > 1:
        depths = ", ".join(f"{book.pair} {book.depth}" for book in books)
        raise InputError(f"the books differ in depth ({depths}): parse them with one --depth, or name --pairs")
    cuts = calendar_cuts([b.timestamps for b in books], [b.segment_starts for b in books], config["split_ratios"])
    parts: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[], [], []]
    shared = 0
    for number, book in enumerate(books):
        rows, _ = open_table(
            folder / "balanced_samples" / f"{book.pair}.npy", "create_balanced_dataset.py", identity(book),
            temporal_dim=config["temporal_dim"], split_ratios=list(config["split_ratios"]),
        )  # fmt: skip
        limits = split_rows(book.timestamps, cuts, config["temporal_dim"])
        split = split_of_windows(rows["end_row"], config["temporal_dim"], limits)
        for index in range(3):
            mine = rows[split == index]
            parts[index].append((np.full(len(mine), number), mine["end_row"].astype(np.int64), mine["weight"].copy()))
        shared += count_shared_states([part[-1][1] for part in parts], config["temporal_dim"], book.rows)
    columns = [[np.concatenate(column) for column in zip(*part, strict=True)] for part in parts]
    return Dataset(books, [c[0] for c in columns], [c[1] for c in columns], [c[2] for c in columns], cuts, shared)
