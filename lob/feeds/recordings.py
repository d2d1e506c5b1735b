"""Recorded files (gzip, zstd, zip or plain) read in blocks, as CSV columns, lines or NumPy rows.

Memory holds a few blocks, whatever the size of a file. A file that can't be read raises InputError
with the file, the row and the remedy.
"""

import contextlib
import io
import itertools
import re
import tokenize
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import csv

from lob.config import InputError
from lob.storage import refuse_unmapped

Item = TypeVar("Item")
PIECE_BYTES, BLOCK_BYTES, CSV_BLOCK_BYTES = 1 << 15, 1 << 20, 1 << 23
NUMPY = b"\x93NUMPY"  # how an array begins
UTF8_MARK = b"\xef\xbb\xbf"  # that Excel writes before a text
# What zlib and zipfile raise of a damaged, encrypted or exotic file. ValueError is pyarrow's, of a
# place that is not in the file.
NOT_DECOMPRESSED = (
    zlib.error,
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
KINDS = {
    "double": "number",
    "int64": "whole number",
    "uint64": "whole number",
    "bool": "word such as true or false",
}  # by pyarrow's name


# Notes that vendors pack beside the recordings, among them those of a Databento download.
NOTE_SUFFIXES = (".md", ".txt", ".pdf", ".html", ".md5", ".sha256", ".CHECKSUM")
NOTES = {"LICENSE", "condition.json", "manifest.json", "metadata.json", "symbology.json"}


def is_recording(name: Path) -> bool:
    """Return whether a relative path names a recording, not a note or something hidden."""
    hidden = any(part.startswith((".", "__")) for part in name.parts)
    return not (hidden or name.suffix in NOTE_SUFFIXES or name.name in NOTES)


@contextlib.contextmanager
def open_decompressed(file: Path) -> Iterator[tuple[Any, "Place"]]:
    """Open a file that is gzip, zstd, zip or plain, which its first bytes tell.

    Yields the decompressed stream, and the place in the file, which tells how much was read. The
    streams of a gzip or zstd file, and the members of a zip archive in the order of their names,
    are read as one.
    """
    try:
        raw = pa.OSFile(str(file))
    except PermissionError as error:
        raise InputError(
            f"{file} can't be read ({error.strerror}): take the right to it, as by chmod +r"
        ) from None
    with raw:
        place = Place(raw)
        with contextlib.closing(decompress(raw, place)) as stream:
            yield stream, place


class Place:
    """How much of a file was read: its position, but in a zip archive.

    Its members are not read in the order in which they lie there.
    """

    def __init__(self, raw: Any):
        self.raw, self.shift = raw, 0

    def tell(self) -> int:
        return self.raw.tell() + self.shift


def decompress(raw: Any, place: Place) -> Any:
    """Return a seekable stream decompressed, or itself if it is plain."""
    magic = raw.read(4)
    raw.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return GzipStream(raw)
    if magic == b"PK\x03\x04":
        return io.BufferedReader(BlockStream(unzip(raw, place)), PIECE_BYTES)
    # pzstd begins a file with a frame to be skipped: 0x184D2A50 to 0x184D2A5F.
    if magic == b"\x28\xb5\x2f\xfd" or (magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5):
        return pa.CompressedInputStream(raw, "zstd")
    return raw


class BlockStream(io.RawIOBase):
    """A stream of the bytes of consecutive blocks. Raises OSError if they can't be decompressed."""

    def __init__(self, blocks: Iterator[bytes]):
        self.blocks = blocks
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            try:
                block = next(self.blocks, None)
            except NOT_DECOMPRESSED as error:
                raise OSError(str(error)) from None
            if block is None:
                return 0
            self.rest = memoryview(block)
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


class GzipStream(io.BufferedIOBase):
    """The bytes of a gzip file's streams. Zeros after a stream are padding.

    pyarrow is faster than zlib, but takes padding for damage: then zlib reads the file again, up to
    the place that pyarrow has reached, and goes on.
    """

    def __init__(self, raw: Any):
        self.raw_file = raw
        self.stream: Any = pa.CompressedInputStream(KeptOpen(raw), "gzip")
        self.done = 0

    def readable(self) -> bool:
        return True

    def read_buffer(self, size: int | None) -> pa.Buffer:
        try:
            block = self.stream.read_buffer(size)
        except (OSError, AttributeError):
            if isinstance(self.stream, pa.NativeFile):
                self.raw_file.seek(0)
                self.stream = io.BufferedReader(BlockStream(gunzip_by_zlib(self.raw_file)))
                left = self.done
                while left:
                    left -= len(self.stream.read(min(left, BLOCK_BYTES)))
            block = pa.py_buffer(self.stream.read(size))
        self.done += len(block)
        return block

    def read(self, size: int | None = -1) -> bytes:
        return self.read_buffer(None if size is None or size < 0 else size).to_pybytes()

    read1 = read


class KeptOpen:
    """A file that pyarrow reads and does not close."""

    def __init__(self, raw: Any):
        self.read, self.closed = raw.read, False

    def close(self) -> None:
        pass


def gunzip_by_zlib(raw: Any) -> Iterator[bytes]:
    data, stream = raw.read(PIECE_BYTES), zlib.decompressobj(zlib.MAX_WBITS | 16)
    while data:
        yield stream.decompress(data)
        data = stream.unused_data
        if stream.eof:
            data = data.lstrip(b"\0")
            while not data and (data := raw.read(PIECE_BYTES)):
                data = data.lstrip(b"\0")
            if not data:
                return
            stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        else:
            data = raw.read(PIECE_BYTES)
    raise EOFError("the compressed stream is cut off")


def unzip(raw: Any, place: Place) -> Iterator[bytes]:
    """Yield the bytes of a zip archive's members in natural order of their names.

    A header line of a CSV that later members repeat is left out of them. A member of text that
    lacks the newline at its end gets it.
    """
    header, ends_in_line = b"", False
    done = 0  # bytes of the members that were read
    with zipfile.ZipFile(raw) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        for name in sorted(filter(is_recording, map(Path, names)), key=natural_key):
            with archive.open(name.as_posix()) as member:
                place.shift = done - raw.tell()
                done += archive.getinfo(name.as_posix()).compress_size
                stream = decompress(member, Place(member))
                first = stream.read(BLOCK_BYTES).removeprefix(UTF8_MARK)
                line = first[: first.find(b"\n") + 1].replace(b"\r\n", b"\n")
                if not header:
                    header = line
                elif line == header and re.match(rb'"?[A-Za-z]', line):
                    first = first[first.find(b"\n") + 1 :]
                if ends_in_line:
                    yield b"\n"
                is_text = b"\0" not in first
                ends_in_line = False
                block = first
                while block:
                    ends_in_line = is_text and not block.endswith(b"\n")
                    yield block
                    block = stream.read(BLOCK_BYTES)


def read_head(file: Path, size: int = 1 << 16) -> bytes:
    """Return the first bytes of a file, decompressed and without the UTF-8 mark that Excel writes.

    Raises InputError if it can't be decompressed.
    """
    try:
        with open_decompressed(file) as (handle, _):
            return handle.read(size).removeprefix(UTF8_MARK)
    except OSError as error:
        raise InputError(f"{file} cannot be decompressed ({error}): fetch it again") from None


def read_csv(
    file: Path,
    delimiter: str,
    options: csv.ConvertOptions,
    more_general: csv.ConvertOptions | None = None,
    row: int = 1,
) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Yield a CSV file in blocks: number of the first row, columns by name, file bytes read.

    The header is row 0; the blocks begin at `row`. The bytes are those of the blocks so far, not
    those that were read ahead. If a block can't be converted by `options`, it and those after it
    are converted by `more_general`. Raises InputError, with the row, if a row can't be read.
    """
    try:
        with open_decompressed(file) as (handle, place):
            input_blocks = BlockReader(handle, place)
            reader = csv.open_csv(
                input_blocks,
                csv.ReadOptions(block_size=CSV_BLOCK_BYTES, skip_rows_after_names=row - 1),
                csv.ParseOptions(delimiter=delimiter),
                options,
            )
            for block, table in enumerate(reader):
                if len(table):
                    columns = {name: table.column(name) for name in table.schema.names}
                    yield row, columns, input_blocks.positions[block]
                    row += len(table)
    except pa.ArrowInvalid as error:
        if more_general is None and "Empty CSV" in str(error):
            raise no_rows(file) from None
        if more_general is None:
            raise InputError(f"{file}: {find_bad_row(file, delimiter, row, str(error))}") from None
        yield from read_csv(file, delimiter, more_general, None, row)
        return
    except KeyError as error:
        raise InputError(f"{file} is of another format: {error.args[0]}") from None
    except OSError as error:
        raise InputError(
            f"{file}, after row {row - 1}: cannot be decompressed ({error}): fetch it again"
        ) from None
    if row == 1:
        raise no_rows(file)


def no_rows(file: Path) -> InputError:
    return InputError(f"{file} holds no rows: remove it or fetch it again")


class BlockReader:
    """A decompressed stream that notes how far its file was read after each of its blocks.

    pyarrow takes the blocks many ahead of the rows that it hands out, one table a block.
    """

    def __init__(self, handle: Any, place: Place):
        self.handle, self.place = handle, place
        self.positions: list[int] = []
        self.closed = False

    def read_buffer(self, size: int) -> pa.Buffer:
        """Return the next block, in memory that pyarrow keeps for the blocks after it."""
        if hasattr(self.handle, "read_buffer"):
            block = self.handle.read_buffer(size)
        else:
            memory = pa.allocate_buffer(size)
            places, end = memoryview(memory), 0
            while end < size and (count := self.handle.readinto(places[end:])):
                end += count
            block = memory.slice(0, end)
        self.positions.append(self.place.tell())
        return block

    read = read_buffer  # without it pyarrow takes this for no file

    def close(self) -> None:
        self.closed = True


def find_bad_row(file: Path, delimiter: str, first_row: int, error: str) -> str:
    """Return which row from `first_row` on is the cause of pyarrow's `error`, and what is wrong.

    Return the error itself if no such row is found.
    """
    bad = re.search(r"column #(\d+):.* to (\w+).*: invalid value '(.*)'", error)
    with contextlib.suppress(OSError, EOFError), open_decompressed(file) as (handle, _):
        text = io.TextIOWrapper(handle, "utf-8-sig", errors="replace")
        lines = (line for line in text if line.strip())  # empty ones are no rows
        names = next(lines, "").strip().replace('"', "").split(delimiter)
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


def read_npy_chunks(
    file: Path, rows: int = 1 << 18, fields: tuple[str, ...] = ()
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield an (N, 5) array, or an (N,) array that has these fields, in chunks of rows.

    With each come the file bytes read. A plain file is memory mapped, a compressed one is streamed.
    Raises InputError if the file holds no such array.
    """
    try:
        with open_decompressed(file) as (handle, place):
            compressed = not isinstance(handle, pa.OSFile)
            if compressed:
                shape, column_order, dtype = read_npy_header(handle)
            else:
                array = np.load(file, mmap_mode="r")
                shape, column_order, dtype = array.shape, False, array.dtype
            if not fields:
                check_npy(file, shape, column_order, dtype)
            elif len(shape) != 1 or not set(fields) <= set(dtype.names or ()):
                raise ValueError(f"it lacks some of the fields {', '.join(fields)}")
            row_bytes = (1 if fields else 5) * dtype.itemsize
            for row in range(0, shape[0], rows):
                stop = min(row + rows, shape[0])
                if compressed:
                    data = handle.read((stop - row) * row_bytes)
                    if len(data) < (stop - row) * row_bytes:
                        raise ValueError(f"it ends before row {stop}")
                    yield np.frombuffer(data, dtype).reshape(-1, *shape[1:]), place.tell()
                else:
                    yield array[row:stop], stop * row_bytes
            if compressed and handle.read(len(NUMPY)) == NUMPY:
                raise InputError(f"{file} holds several arrays: save each in a file of its own")
    except (ValueError, OSError, SyntaxError, tokenize.TokenError, TypeError) as error:
        if isinstance(error, OSError):
            refuse_unmapped(file, error)
        raise InputError(
            f"{file} is no whole NumPy array ({error}): write it again with numpy.save"
        ) from None


def read_npy_header(handle: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether the array is in column order, and dtype of an open `.npy` file."""
    if np.lib.format.read_magic(handle) == (1, 0):
        return np.lib.format.read_array_header_1_0(handle)
    return np.lib.format.read_array_header_2_0(handle)


def check_npy(file: Path, shape: tuple[int, ...], column_order: bool, dtype: np.dtype) -> None:
    """Raise InputError if an array can't hold updates, or not in an order that can be streamed."""
    if len(shape) != 2 or shape[1] != 5 or shape[0] == 0 or column_order:
        order = " in column order" if column_order else ""
        raise InputError(
            f"{file} holds an array {shape}{order}: it must be (N, 5), and in row order if it is "
            "compressed"
        )
    if not (dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize >= 8)):
        raise InputError(
            f"{file} holds {dtype}: it must be whole numbers or float64, to hold a time"
        )


def read_ahead(items: Iterator[Item], depth: int = 4) -> Iterator[Item]:
    """Yield a generator's items while a thread runs it, at most `depth` items ahead.

    An error of the generator is raised here.
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
    """Yield whole lines in blocks of about 1 MiB, with the file bytes read.

    Each line, the last one too, ends with a newline.
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
    with open_decompressed(file) as (handle, place):
        while block := handle.read(BLOCK_BYTES):
            yield block, place.tell()


def natural_key(path: Path) -> tuple[list[list[tuple[int, str]]], Path]:
    """Return what sorts paths in natural order: runs of digits count as numbers, 8-9 before 8-10.

    A path is compared folder by folder, and the stem of a name before its suffixes.
    """
    parts = [*path.parent.parts, *path.name.partition(".")[::2]]
    runs = [re.split("([0-9]+)", part) for part in parts]  # texts and digits by turns
    numbers = [
        [(int(run), "") if place % 2 else (-1, run) for place, run in enumerate(part)]
        for part in runs
    ]
    return numbers, path
