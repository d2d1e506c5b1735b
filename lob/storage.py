"""The files that the scripts hand to each other (format version 1): written whole or not at all, memory mapped.

training_data/book_states/<PAIR>/        a book: arrays of N states and meta.json       (`open_book`)
training_data/window_statistics/<PAIR>.npy + .json     one row a window                 (`open_table`)
training_data/balanced_samples/<PAIR>.npy + .json      one row a sampled window         (`open_table`)
training_data/embeddings/<PAIR>.npy + .json            one row a window, D wide         (`open_table`)
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lob.config import InputError, nearest

FORMAT_VERSION = 1


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
