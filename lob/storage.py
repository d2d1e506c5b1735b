"""The files that the scripts hand to each other: written whole or not at all, then memory mapped.

training_data/book_states/<PAIR>/                     arrays of N states, and meta.json
training_data/window_statistics/<PAIR>.npy, .json     a row for each window
training_data/balanced_samples/<PAIR>.npy, .json      a row for each sampled window
training_data/embeddings/<PAIR>.npy, .json            a row of D numbers for each window

The last three are tables: an array of rows and a `.json` that says what it was made from. A book is
opened by lob/book/states.py.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lob.config import InputError, nearest

FORMAT_VERSION = 1


def find_pairs(
    data_dir: str | Path, stage: str, pairs: Sequence[str] | None, made_by: str
) -> list[str]:
    """Return `pairs`, or all pairs under `data_dir/stage` in sorted order if `pairs` is None.

    `made_by` is the script that makes them, "" for recordings. Raises InputError if there are none,
    if a named one is missing, or if a link leads nowhere.
    """
    folder = Path(data_dir) / stage
    remedy = f"run {made_by} first" if made_by else f"put recordings into {folder}/<PAIR>/"
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: {remedy}, or set --data_dir")
    names, others = set(), []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if pairs is None or path.stem in pairs or path.name in pairs:
            check_link(path)
        if path.suffix == ".npy":
            names.add(path.stem)
        elif path.is_dir():
            names.add(path.name)
        else:
            others.append(path.name)
    found = sorted(names)
    if others and not found:
        raise InputError(f"{folder} holds {min(others)!r} but no folder of a pair: {remedy}")
    if not found:
        raise InputError(f"{folder} is empty: {remedy}, or set --data_dir")
    if pairs is not None and not pairs:
        raise InputError(f"pairs = {pairs!r} names none; there are {', '.join(found)} (None: all)")
    for pair in pairs or ():
        if pair not in found:
            near = nearest(pair, found)
            raise InputError(f"no pair {pair!r} in {folder}{near}; there are {', '.join(found)}")
    return found if pairs is None else list(dict.fromkeys(pairs))


def check_link(path: Path) -> None:
    """Raise InputError if a path is a link to something that is not there."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to {os.readlink(path)}, which is not there: mend it")


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder, also by links to files and folders, in no order.

    Hidden ones are left out. Raises InputError if a link leads nowhere, or back to a folder that it
    lies in, and OSError if a folder can't be read.
    """

    def walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        real = folder.resolve()
        if real in above:
            raise InputError(f"{folder} is a link back to {real}, in which it lies: remove it")
        for path in folder.iterdir():
            if path.name.startswith("."):
                continue
            check_link(path)
            if path.is_dir():
                yield from walk(path, (*above, real))
            else:
                yield path

    return walk(folder, ()) if folder.is_dir() else iter(())


def check_writable(folder: str | Path, key: str) -> None:
    """Raise InputError if a folder can't be written to, or can't be made where it should be."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{key} = {folder} can't be written: {there} is not a writable folder")


def find_disk(folder: str) -> Path:
    """Return the folder at which a cloud disk is mounted. Raises InputError if it is not there."""
    if not Path(folder).is_dir():
        raise InputError(
            f"azure_data_root = {folder} is no folder: mount the data disk or set another one"
        )
    return Path(folder)


def read_meta(file: Path, made_by: str) -> dict[str, Any]:
    """Read a JSON file of this format version.

    Raises InputError if it is missing, damaged or of another version.
    """
    try:
        meta = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"there is no {file}: run {made_by} first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not JSON ({error}): run {made_by} again") from None
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{file} has format version {version!r}, this program reads {FORMAT_VERSION}: "
            f"run {made_by} again"
        )
    return meta


def load_array(file: Path) -> np.ndarray:
    """Memory map a `.npy` file. Raises InputError if it is missing or damaged."""
    remedy = "run the script that makes it again"
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no {file}: {remedy}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{file} is damaged ({error}): {remedy}") from None
    except OSError as error:
        refuse_unmapped(file, error)
        raise


def refuse_unmapped(file: Path, error: OSError) -> None:
    """Raise InputError if `error` says that the file system maps no files into memory.

    FUSE file systems such as those of object stores, and some network shares, don't.
    """
    if error.errno in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP):
        raise InputError(
            f"{file} can't be memory mapped ({error.strerror}), as its file system has no such "
            "mappings: copy the data folder to a local disk and set --data_dir"
        ) from None


@contextlib.contextmanager
def new_table(
    file: Path,
    dtype: Any,
    parameters: Mapping[str, Any],
    made_from: Any,
    row_shape: tuple[int, ...] = (),
) -> Iterator["ArrayWriter"]:
    """Open a table, which is an array of rows in `file` with a `.json` beside it, to write it.

    The `with` block gets an `ArrayWriter`. Both files take their places when the block ends without
    an error. The `.json` holds `parameters`, `made_from` and the writer's `extra`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, about = file.with_name(f".{file.name}.partial"), file.with_suffix(".json")
    writer = ArrayWriter(partial, dtype, row_shape)
    try:
        yield writer
        writer.close()
        meta = {
            "format_version": FORMAT_VERSION,
            "rows": writer.rows,
            "parameters": dict(parameters),
            "made_from": made_from,
            **writer.extra,
        }
        # The old `.json` is removed before the array is replaced, and the new one comes after: a
        # kill at any moment leaves no array beside another array's `.json`.
        with new_file(about) as handle:
            handle.write(json.dumps(meta, indent=1).encode())
            about.unlink(missing_ok=True)
            os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk takes no more of what is buffered
            writer.handle.close()
        raise


def save_table(
    file: Path, rows: np.ndarray, parameters: Mapping[str, Any], made_from: Any, **extra: Any
) -> None:
    """Write a table that is in memory: a structured array, and its `.json` with `extra` in it."""
    with new_table(file, rows.dtype, parameters, made_from) as table:
        table.append(rows)
        table.extra.update(extra)


def open_table(
    file: Path, made_by: str, made_from: Any, **parameters: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Memory map a table and read its `.json`; return both.

    Raises InputError if it was made from something else than `made_from` (None: not checked), or
    with other values of the given `parameters`. The message names `made_by` as the script to run.
    """
    meta = read_meta(file.with_suffix(".json"), made_by)
    rows = load_array(file)
    remedy = f"run {made_by} again"
    if rows.shape[:1] != (meta["rows"],):
        raise InputError(f"{file} has {len(rows)} rows, its .json says {meta['rows']}: {remedy}")
    if made_from is not None and meta["made_from"] != made_from:
        raise InputError(f"{file} was made from another book than the one now there: {remedy}")
    for key, value in parameters.items():
        used = meta["parameters"].get(key)
        if used != value:
            raise InputError(
                f"{file} was made with {key} = {used!r}, not {value!r}: "
                f"run {made_by} again, or set --{key}"
            )
    return rows, meta


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Any]:
    """Open a new binary file, which replaces `file` if the `with` block ends without an error."""
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
    """Make a new folder, which replaces `folder` if the `with` block ends without an error."""
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
    """Return the name that a folder made by `new_folder` will take."""
    return partial.name.removeprefix(".").removesuffix(".partial")


def format_bytes(size: float) -> str:
    """Return a number of bytes as text, in GB, MB or kB."""
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    if size >= 1e6:
        return f"{size / 1e6:,.1f} MB"
    return f"{size / 1e3:,.1f} kB"


class ArrayWriter:
    """Appends rows to a `.npy` file; `close` writes their number into its header.

    The entries of `extra` go into the `.json` of a table (`new_table`).
    """

    def __init__(self, file: Path, dtype: Any, row_shape: tuple[int, ...] = ()):
        self.rows = 0
        self.dtype = np.dtype(dtype)
        self.row_shape = row_shape
        self.extra: dict[str, Any] = {}
        self.handle = open(file, "wb")  # noqa: SIM115 - `close` closes it
        self.write_header()

    def write_header(self) -> None:
        """Write the header. numpy pads it, so that it keeps its length when the rows grow."""
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
