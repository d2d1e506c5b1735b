"""Recorded files in blocks: gzip, zstd or plain, as CSV columns, lines or NumPy rows. Memory is
that of a block.

Every fault is an InputError with the file, the row and the remedy.
"""

import contextlib
import io
import itertools
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import csv

from lob.config import InputError

Item = TypeVar("Item")
# what pyarrow calls them
KINDS = {"double": "number", "int64": "whole number", "bool": "true or false"}


@contextlib.contextmanager
def open_decompressed(file: Path) -> Iterator[tuple[pa.NativeFile, pa.NativeFile]]:
    """Open a gzip, zstd or plain file, told apart by its first bytes.

    Yields the decompressed stream, and the file itself, whose position is what has been read of it.
    """
    with pa.OSFile(str(file)) as raw:
        magic = raw.read(4)
        raw.seek(0)
        codec = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(magic[:2])
        if codec is None:
            yield raw, raw
        else:
            with pa.CompressedInputStream(raw, codec) as stream:
                yield stream, raw


def read_head(file: Path, size: int = 1 << 16) -> bytes:
    """Return the first bytes of a file, decompressed and without Excel's UTF-8 mark.

    Raises InputError if it can't be decompressed.
    """
    try:
        with open_decompressed(file) as (handle, _):
            return handle.read(size).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{file} cannot be decompressed ({error}): fetch it again") from None


def read_csv(
    file: Path, delimiter: str, options: csv.ConvertOptions
) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Yield a CSV file in blocks: number of the first row, columns by name, file bytes read.

    The header is row 0. Raises InputError, with the row, if one can't be read.
    """
    row = 1
    try:
        with open_decompressed(file) as (handle, raw):
            reader = csv.open_csv(
                handle,
                csv.ReadOptions(block_size=1 << 23),
                csv.ParseOptions(delimiter=delimiter),
                options,
            )
            for table in reader:
                if len(table):
                    yield row, {name: table.column(name) for name in table.schema.names}, raw.tell()
                    row += len(table)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: {find_bad_row(file, delimiter, row, str(error))}") from None
    except KeyError as error:
        raise InputError(f"{file} is of another format: {error.args[0]}") from None
    except OSError as error:
        raise InputError(
            f"{file}, after row {row - 1}: cannot be decompressed ({error}): fetch it again"
        ) from None
    if row == 1:
        raise InputError(f"{file} holds no rows: remove it or fetch it again")


def find_bad_row(file: Path, delimiter: str, first_row: int, error: str) -> str:
    """Find the row, from `first_row` on, of the value in pyarrow's error; return what is wrong with
    it.

    If there is no such row, return the error itself.
    """
    bad = re.search(r"column #(\d+):.* to (\w+).*: invalid value '(.*)'", error)
    with contextlib.suppress(OSError, EOFError), open_decompressed(file) as (handle, _):
        lines = io.TextIOWrapper(handle, "utf-8-sig", errors="replace")
        names = next(lines).strip().replace('"', "").split(delimiter)
        for number, line in enumerate(itertools.islice(lines, first_row - 1, None), first_row):
            cells = line.rstrip("\n").replace('"', "").split(delimiter)
            if len(cells) != len(names):
                found = f"{len(cells)} columns, the header {len(names)}: {line.strip()[:80]!r}"
                return f"row {number} has {found}: mend or drop the row"
            if bad and cells[int(bad[1])] == bad[3]:
                name = names[int(bad[1])]
                kind = KINDS.get(bad[2], "time such as 2026-05-02T12:30:00.5")
                return f"row {number}: {name} {bad[3]!r} is not a {kind}: mend or drop the row"
    return f"after row {first_row - 1}: {error.splitlines()[0]}"


def read_npy_chunks(file: Path, rows: int = 1 << 18) -> Iterator[tuple[np.ndarray, int]]:
    """Yield an (N, 5) array in chunks, with the file bytes read.

    It is memory mapped, or streamed if it is compressed. Raises InputError if it is no such array.
    """
    try:
        with open_decompressed(file) as (handle, raw):
            if handle is raw:
                array = np.load(file, mmap_mode="r")
                shape, dtype, in_rows = array.shape, array.dtype, True
            else:
                version = np.lib.format.read_magic(handle)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = read(handle)
                in_rows = not fortran
            if len(shape) != 2 or shape[1] != 5 or shape[0] == 0 or not in_rows:
                order = "" if in_rows else " in column order"
                raise InputError(
                    f"{file} holds an array {shape}{order}: it must be (N, 5), and in row order if "
                    "it is compressed"
                )
            if not (dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize >= 8)):
                raise InputError(
                    f"{file} holds {dtype}: it must be whole numbers or float64, to hold a time"
                )
            for row in range(0, shape[0], rows):
                stop = min(row + rows, shape[0])
                if handle is raw:
                    yield array[row:stop], stop * 5 * dtype.itemsize
                else:
                    data = handle.read((stop - row) * 5 * dtype.itemsize)
                    if len(data) < (stop - row) * 5 * dtype.itemsize:
                        raise ValueError(f"it ends before row {stop}")
                    yield np.frombuffer(data, dtype).reshape(-1, 5), raw.tell()
    except (ValueError, OSError) as error:
        raise InputError(
            f"{file} is no whole NumPy array ({error}): write it again with numpy.save"
        ) from None


def read_ahead(items: Iterator[Item], depth: int = 4) -> Iterator[Item]:
    """Run a generator in a thread of its own, at most `depth` items ahead; its error is raised
    here.
    """
    thread = ThreadPoolExecutor(1)
    try:
        ahead = deque(thread.submit(next, items, None) for _ in range(depth))
        while (item := ahead.popleft().result()) is not None:
            ahead.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def read_lines(file: Path) -> Iterator[tuple[list[bytes], int]]:
    """Yield a file's lines in lists of about 1 MiB, with the file bytes read."""
    for block, file_bytes in read_line_blocks(file):
        yield block.split(b"\n")[:-1], file_bytes


def read_line_blocks(file: Path) -> Iterator[tuple[bytes, int]]:
    """Yield whole lines in blocks of about 1 MiB, with the file bytes read; each line ends with a
    newline.
    """
    rest, file_bytes = b"", 0
    for block, file_bytes in read_ahead(read_blocks(file)):
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + memoryview(block)[:end], file_bytes
            rest = b""
        rest += block[end:]
    if rest:
        yield rest + b"\n", file_bytes


def read_blocks(file: Path) -> Iterator[tuple[bytes, int]]:
    with open_decompressed(file) as (handle, raw):
        while block := handle.read(1 << 20):
            yield block, raw.tell()
