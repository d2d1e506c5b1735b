"""A pair's order book states on disk, in `training_data/book_states/<PAIR>/`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lob.config import CheckFailed, InputError
from lob.storage import ArrayWriter, find_pairs, load_array, read_meta

BOOK_ARRAYS = {  # name -> dtype, dimensions, whether a book may lack it
    "price_ticks": (np.int32, 2, False),
    "sizes": (np.float32, 2, False),
    "timestamps": (np.int64, 1, False),
    "segment_starts": (np.int64, 1, False),
    "top_of_book": (np.int32, 2, True),
    "traded": (np.float32, 1, True),
}


@dataclass(frozen=True)
class Book:
    """A pair's order book states, memory mapped.

    price_ticks: int32 (N, L), ascending along a row (bids, then asks); sizes: float32 (N, L), > 0;
    timestamps: int64 (N,), ns since the epoch, UTC, non-decreasing; segment_starts: int64 (S,),
    first row of each segment, a run of states without a gap; top_of_book: int32 (N, 2) or None,
    best bid and ask in ticks; traded: float32 (N,) or None, size bought minus size sold since the
    state before.
    """

    path: Path
    meta: dict[str, Any]
    price_ticks: np.ndarray
    sizes: np.ndarray
    timestamps: np.ndarray
    segment_starts: np.ndarray
    top_of_book: np.ndarray | None
    traded: np.ndarray | None

    @property
    def pair(self) -> str:
        return self.path.name

    @property
    def rows(self) -> int:
        return len(self.price_ticks)

    @property
    def depth(self) -> int:
        return int(self.meta["depth"])

    @property
    def tick_size(self) -> float:
        return float(self.meta["tick_size"])


def open_book(path: str | Path) -> Book:
    """Open the book in `book_states/<PAIR>`.

    Raises InputError if it is missing or of another version, or if its arrays don't fit together.
    """
    path = Path(path)
    if not (path / "meta.json").exists():
        raise InputError(
            f"there is no {path / 'meta.json'}: run data_parser.py first, or name the folder that "
            "it left, such as training_data/book_states/BTC_USD"
        )
    meta = read_meta(path / "meta.json", "data_parser.py")
    arrays: dict[str, Any] = {}
    for name, (dtype, ndim, may_lack) in BOOK_ARRAYS.items():
        file = path / f"{name}.npy"
        if may_lack and not file.exists():
            arrays[name] = None
            continue
        arrays[name] = array = load_array(file)
        is_of_kind = array.dtype == dtype and array.ndim == ndim
        if not is_of_kind or (name != "segment_starts" and len(array) != meta["rows"]):
            raise InputError(
                f"{file} holds {array.dtype} {array.shape}, meta.json says {meta['rows']} rows of "
                f"{np.dtype(dtype)}: run data_parser.py again"
            )
    shape = (meta["rows"], meta["depth"])
    if not arrays["price_ticks"].shape == arrays["sizes"].shape == shape:
        raise InputError(
            f"{path}: the arrays are not of meta.json's depth {meta['depth']}: "
            "run data_parser.py again"
        )
    return Book(path, meta, **arrays)


def open_books(data_dir: str | Path, pairs: Sequence[str] | None, depth: int) -> list[Book]:
    """Open the books of these pairs (None: of all).

    Raises InputError if one has not `depth` levels, which are those of a checkpoint.
    """
    folder = Path(data_dir) / "book_states"
    names = find_pairs(data_dir, "book_states", pairs, "data_parser.py")
    books = [open_book(folder / name) for name in names]
    for book in books:
        if book.depth != depth:
            raise InputError(
                f"{book.path} has depth {book.depth}, the checkpoint wants {depth}: "
                f"run data_parser.py --depth={depth}, or set --pairs"
            )
    return books


def identity(book: Book) -> dict[str, Any]:
    """Return what tells a parsed book from others: pair, rows, size and hash of its meta.json."""
    raw = (book.path / "meta.json").read_bytes()
    return {
        "pair": book.pair,
        "rows": book.rows,
        "meta_bytes": len(raw),
        "meta_sha256": hashlib.sha256(raw).hexdigest(),
    }


class StateWriter:
    """Appends states to a book's files in `folder`."""

    def __init__(self, folder: Path, depth: int):
        self.folder, self.half = folder, depth // 2
        self.rows = 0
        self.any_trade = False
        shapes = {"price_ticks": (depth,), "sizes": (depth,), "top_of_book": (2,)}
        self.writers = {}
        for name, (dtype, *_) in BOOK_ARRAYS.items():
            self.writers[name] = ArrayWriter(folder / f"{name}.npy", dtype, shapes.get(name, ()))

    def append(self, states: list[np.ndarray]) -> None:
        """Append states as `lob.book.order_book.OrderBook` hands them out."""
        price_ticks, sizes, timestamps, traded, starts = states
        self.writers["price_ticks"].append(price_ticks)
        self.writers["sizes"].append(sizes)
        self.writers["timestamps"].append(timestamps)
        self.writers["traded"].append(traded)
        self.writers["top_of_book"].append(price_ticks[:, self.half - 1 : self.half + 1])
        self.writers["segment_starts"].append(self.rows + np.flatnonzero(starts))
        self.any_trade = self.any_trade or bool(traded.any())
        self.rows += len(timestamps)

    def restart(self) -> None:
        """Forget all states."""
        self.close()
        self.__init__(self.folder, 2 * self.half)  # type: ignore[misc]

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def check_states(folder: Path, rows: int) -> None:
    """Read the first and last 10,000 states again, as a check of the files just written.

    Raises CheckFailed if there are not `rows` states, prices don't ascend, a size is not positive,
    or time goes back.
    """
    names = ("price_ticks", "sizes", "timestamps")
    price_ticks, sizes, timestamps = (load_array(folder / f"{name}.npy") for name in names)
    for some in (slice(0, 10_000), slice(-10_000, None)):
        ascending = (np.diff(price_ticks[some].astype(np.int64), axis=1) > 0).all()
        in_order = (np.diff(timestamps[some]) >= 0).all()
        if not (ascending and in_order and (sizes[some] > 0).all()):
            raise CheckFailed(
                f"self-check failed: {folder.name} holds an impossible state; "
                "its old output is kept"
            )
    if not len(price_ticks) == len(sizes) == len(timestamps) == rows:
        raise CheckFailed(
            f"self-check failed: {folder.name} is not {rows} rows long; its old output is kept"
        )
