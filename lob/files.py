"""The files that the scripts hand to each other (format version 1): written whole or not at all, memory mapped.

training_data/book_states/<PAIR>/        a book: arrays of N states and meta.json       (`open_book`)
training_data/window_statistics/<PAIR>.npy + .json     one row a window                 (`open_table`)
training_data/balanced_samples/<PAIR>.npy + .json      one row a sampled window         (`open_table`)
training_data/embeddings/<PAIR>.npy + .json            one row a window, D wide         (`open_table`)
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lob.config import CheckFailed, InputError, nearest

FORMAT_VERSION = 1
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

    price_ticks: int32 (N, L), ascending along a row; sizes: float32 (N, L), > 0; timestamps: int64 (N,), ns since the
    epoch, UTC, non-decreasing; segment_starts: int64 (S,), first row of each run without a gap; top_of_book: int32
    (N, 2) or None, best bid and ask in ticks; traded: float32 (N,) or None, signed traded size a state.
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
    """Open `book_states/<PAIR>`; InputError where it is missing, of another version, or its parts disagree."""
    path = Path(path)
    meta = read_meta(path / "meta.json", "data_parser.py")
    arrays: dict[str, Any] = {}
    for name, (dtype, ndim, may_lack) in BOOK_ARRAYS.items():
        file = path / f"{name}.npy"
        if may_lack and not file.exists():
            arrays[name] = None
            continue
        arrays[name] = array = load_array(file)
        if array.dtype != dtype or array.ndim != ndim or (name != "segment_starts" and len(array) != meta["rows"]):
            raise InputError(f"{file} holds {array.dtype} {array.shape}, meta.json says {meta['rows']} rows of "
                             f"{np.dtype(dtype)}: run data_parser.py again")  # fmt: skip
    shape = (meta["rows"], meta["depth"])
    if not arrays["price_ticks"].shape == arrays["sizes"].shape == shape:
        raise InputError(f"{path}: the arrays are not of meta.json's depth {meta['depth']}: run data_parser.py again")
    return Book(path, meta, **arrays)


def find_pairs(data_dir: str | Path, stage: str, pairs: Sequence[str] | None, made_by: str) -> list[str]:
    """Return the pairs under `data_dir/stage`, sorted: all (None) or the named ones.

    InputError where there are none, or one is missing; `made_by` is the script to run first, '' where it is recordings.
    """
    folder = Path(data_dir) / stage
    remedy = f"run {made_by} first" if made_by else f"put recordings into {folder}/<PAIR>/"
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: {remedy}, or set --data_dir")
    found = sorted({p.stem if p.suffix == ".npy" else p.name for p in folder.iterdir()
                    if not p.name.startswith(".") and (p.is_dir() or p.suffix == ".npy")})  # fmt: skip
    if not found:
        raise InputError(f"{folder} is empty: {remedy}, or set --data_dir")
    if pairs is not None and not pairs:
        raise InputError(f"pairs = {pairs!r} names none; there are {', '.join(found)} (None: all)")
    for pair in pairs or ():
        if pair not in found:
            raise InputError(f"no pair {pair!r} in {folder}{nearest(pair, found)}; there are {', '.join(found)}")
    return list(dict.fromkeys(pairs)) if pairs is not None else found


def check_writable(folder: str | Path, key: str) -> None:
    """Raise InputError where a folder, or the nearest one above it that exists, can't be written to."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{key} = {folder} can't be written: {there} is not a writable folder")


def open_books(data_dir: str | Path, pairs: Sequence[str] | None, depth: int) -> list[Book]:
    """Open the books of these pairs (None: of all); InputError where one has not the `depth` of a checkpoint."""
    folder = Path(data_dir) / "book_states"
    books = [open_book(folder / name) for name in find_pairs(data_dir, "book_states", pairs, "data_parser.py")]
    for book in books:
        if book.depth != depth:
            raise InputError(f"{book.path} has depth {book.depth}, the checkpoint wants {depth}: "
                             f"run data_parser.py --depth={depth}, or set --pairs")  # fmt: skip
    return books


def read_meta(file: Path, made_by: str) -> dict[str, Any]:
    """Read a JSON file of format version 1; InputError where it is missing, damaged or of another version."""
    try:
        meta = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"there is no {file}: run {made_by} first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not JSON ({error}): run {made_by} again") from None
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{file} has format version {version!r}, this program reads {FORMAT_VERSION}: "
                         f"run {made_by} again")  # fmt: skip
    return meta


def load_array(file: Path) -> np.ndarray:
    """Memory map a `.npy` file (an empty one is loaded); InputError where it is missing or damaged."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no {file}: run the script that makes it again") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{file} is damaged ({error}): run the script that makes it again") from None


def identity(book: Book) -> dict[str, Any]:
    """Return what tells one parsed book from another: pair, rows, size in bytes and hash of meta.json."""
    raw = (book.path / "meta.json").read_bytes()
    return {
        "pair": book.pair,
        "rows": book.rows,
        "meta_bytes": len(raw),
        "meta_sha256": hashlib.sha256(raw).hexdigest(),
    }


@contextlib.contextmanager
def new_table(
    file: Path, dtype: Any, parameters: Mapping[str, Any], made_from: Any, row_shape: tuple[int, ...] = ()
) -> Iterator["ArrayWriter"]:
    """Stream an array of rows and its `.json` to `file`; both take their places when the block ends well.

    The old `.json` goes first and the new one comes last, so that a kill in between leaves no pair that disagrees.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, about = file.with_name(f".{file.name}.partial"), file.with_suffix(".json")
    writer = ArrayWriter(partial, dtype, row_shape)
    try:
        yield writer
        writer.close()
        meta = {"format_version": FORMAT_VERSION, "rows": writer.rows, "parameters": dict(parameters),
                "made_from": made_from, **writer.extra}  # fmt: skip
        with new_file(about) as handle:
            handle.write(json.dumps(meta, indent=1).encode())
            about.unlink(missing_ok=True)
            os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # on a full disk what is buffered cannot be flushed
            writer.handle.close()
        raise


def save_table(file: Path, rows: np.ndarray, parameters: Mapping[str, Any], made_from: Any, **extra: Any) -> None:
    """Write a whole structured array and its `.json` (see `new_table`)."""
    with new_table(file, rows.dtype, parameters, made_from) as table:
        table.append(rows)
        table.extra.update(extra)


def open_table(file: Path, made_by: str, made_from: Any, **parameters: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Memory map a table and read its `.json`.

    InputError where it was made from something else than `made_from` (None: not checked) or with other values of
    the `parameters` given: it names the first difference and the script to run again.
    """
    meta = read_meta(file.with_suffix(".json"), made_by)
    rows = load_array(file)
    if rows.shape[:1] != (meta["rows"],):
        raise InputError(f"{file} has {len(rows)} rows, its .json says {meta['rows']}: run {made_by} again")
    if made_from is not None and meta["made_from"] != made_from:
        raise InputError(f"{file} was made from another book than the one now there: run {made_by} again")
    for key, value in parameters.items():
        if meta["parameters"].get(key) != value:
            raise InputError(f"{file} was made with {key} = {meta['parameters'].get(key)!r}, not {value!r}: "
                             f"run {made_by} again, or set --{key}")  # fmt: skip
    return rows, meta


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Any]:
    """Open a binary file beside `file` that takes its place when the block ends well, and is removed otherwise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        with open(partial, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder beside `folder` that takes its place when the block ends well, and is removed otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def final_name(partial: Path) -> str:
    """Return the name that a folder made by `new_folder` takes in the end."""
    return partial.name.removeprefix(".").removesuffix(".partial")


def format_bytes(size: float) -> str:
    """Return a number of bytes in GB, MB or kB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:,.1f} {name}"


class ArrayWriter:
    """Appends rows to a `.npy` file whose length is not known beforehand; `close` writes the length into its header.

    Of a table the entries of `extra` go into its `.json`.
    """

    def __init__(self, file: Path, dtype: Any, row_shape: tuple[int, ...] = ()):
        self.rows, self.dtype, self.row_shape = 0, np.dtype(dtype), row_shape
        self.extra: dict[str, Any] = {}
        self.handle = open(file, "wb")  # noqa: SIM115 - closed by close()
        self.write_header()

    def write_header(self) -> None:
        """numpy pads the header so that the first axis can grow without moving the data."""
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        self.handle.seek(0)
        np.lib.format.write_array_header_1_0(self.handle, header)
        self.handle.seek(0, os.SEEK_END)

    def append(self, rows: np.ndarray) -> None:
        assert rows.dtype == self.dtype and rows.shape[1:] == self.row_shape
        self.handle.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self) -> None:
        self.write_header()
        os.fsync(self.handle.fileno())
        self.handle.close()


class StateWriter:
    """Streams the order book kernel's output rows to a book's files in `folder`."""

    def __init__(self, folder: Path, depth: int):
        self.half, self.rows, self.any_trade = depth // 2, 0, False
        shapes = {"price_ticks": (depth,), "sizes": (depth,), "top_of_book": (2,)}
        self.writers = {name: ArrayWriter(folder / f"{name}.npy", dtype, shapes.get(name, ()))
                        for name, (dtype, *_) in BOOK_ARRAYS.items()}  # fmt: skip

    def append(self, out: list[np.ndarray]) -> None:
        price_ticks, _, timestamps, traded, starts = out
        for name, rows in zip(("price_ticks", "sizes", "timestamps", "traded"), out, strict=False):
            self.writers[name].append(rows)
        self.writers["top_of_book"].append(price_ticks[:, self.half - 1 : self.half + 1])
        self.writers["segment_starts"].append(self.rows + np.flatnonzero(starts))
        self.any_trade = self.any_trade or bool(traded.any())
        self.rows += len(timestamps)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def check_states(folder: Path, rows: int) -> None:
    """Re-read the first and last states: ascending prices, positive sizes, time in order, as many as there should be.

    CheckFailed where it is otherwise.
    """
    names = ("price_ticks", "sizes", "timestamps")
    price_ticks, sizes, timestamps = (load_array(folder / f"{name}.npy") for name in names)
    for part in (slice(0, 10_000), slice(-10_000, None)):
        ascending = (np.diff(price_ticks[part].astype(np.int64), axis=1) > 0).all()
        if not (ascending and (np.diff(timestamps[part]) >= 0).all() and (sizes[part] > 0).all()):
            raise CheckFailed(f"self-check failed: {folder.name} holds an impossible state; its old output is kept")
    if not len(price_ticks) == len(sizes) == len(timestamps) == rows:
        raise CheckFailed(f"self-check failed: {folder.name} is not {rows} rows long; its old output is kept")
