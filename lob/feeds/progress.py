"""One progress bar over the bytes of a pair's files, whatever processes parse them."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

NOTE = ".bytes_read"  # a file beside a part's states: how many bytes of the part were read
NOTE_SECONDS = 1.0


class ProgressBar:
    """Shows how many of a pair's bytes were read; in a log it adds a line each minute."""

    def __init__(self, name: str, total_bytes: int):
        in_log = not sys.stderr.isatty()
        seconds = 60 if in_log else 0.1
        self.joined_bytes = 0  # of the parts that are done with
        self.bar = tqdm(
            total=total_bytes,
            unit="B",
            unit_scale=True,
            desc=name,
            delay=seconds if in_log else 0,
            mininterval=seconds,
            miniters=1,
            ascii=in_log,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def move_to(self, read_bytes: int) -> None:
        """Show that so many bytes of the unfinished parts were read."""
        self.bar.update(max(0, self.joined_bytes + read_bytes - self.bar.n))

    def finish_part(self, part_bytes: int) -> None:
        self.joined_bytes += part_bytes
        self.move_to(0)

    def wait_for(self, future: Future, folders: Sequence[Path]) -> Any:
        """Return a future's result; meanwhile show what the notes in the parts' folders say."""
        while not wait([future], timeout=NOTE_SECONDS / 2).done:
            self.move_to(sum(read_note(folder) for folder in folders))
        return future.result()


def note_into(folder: Path) -> Callable[[int], None]:
    """Return a function that notes in `folder` how many bytes were read, once a second."""
    last = time.monotonic()

    def note(read_bytes: int) -> None:
        nonlocal last
        if time.monotonic() - last >= NOTE_SECONDS:
            (folder / NOTE).write_text(str(read_bytes))
            last = time.monotonic()

    return note


def read_note(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):  # not yet there, or being written
        return int((folder / NOTE).read_text())
    return 0
