"""Windows for a network, gathered on its device.

If the states of all pairs fit on the GPU they stay there, and a window is gathered by its first
row. Otherwise threads copy windows from the memory-mapped files into pinned memory, a few batches
ahead.
"""

import itertools
import mmap
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book

BATCHES_AHEAD = 4
RESIDENT_SHARE = 0.4  # of the GPU's free memory
Arrays = tuple[Tensor, Tensor, Tensor]  # price_ticks, sizes and times_ns of windows


class WindowStore:
    """Order book states of several pairs under one numbering of rows.

    The rows of pair k begin at `offsets[k]`. `batches` yields windows: price_ticks int32 (B, T, L),
    sizes float32 (B, T, L) and times_ns int64 (B, T). `wait_seconds` adds up the time that its
    caller waited for data.

    num_workers: threads that copy windows. The store is `resident`, with its states on the device,
    on a GPU if they take less than RESIDENT_SHARE of its free memory.
    """

    def __init__(
        self,
        books: list[Book],
        temporal_dim: int,
        device: torch.device,
        num_workers: int = 4,
    ):
        self.books, self.temporal_dim, self.device = books, temporal_dim, device
        ends = np.cumsum([book.rows for book in books])
        self.offsets = np.concatenate([[0], ends]).astype(np.int64)
        self.num_workers, self.wait_seconds = max(1, num_workers), 0.0
        size = sum(book.price_ticks.nbytes + book.sizes.nbytes for book in books)
        self.resident = device.type == "cuda" and size < RESIDENT_SHARE * free_bytes(device)
        if self.resident:
            self.price_ticks = on_device([book.price_ticks for book in books], device)
            self.sizes = on_device([book.sizes for book in books], device)
            self.times_ns = on_device([book.timestamps for book in books], device)

    def start_rows(self, pair_index: np.ndarray, end_rows: np.ndarray) -> np.ndarray:
        """Return the first rows, in the store's numbering, of windows.

        A window is given by the number of its pair and by the row after its last, int64 (B,) each.
        """
        return self.offsets[pair_index] + end_rows - self.temporal_dim

    def gather(self, start_rows: Tensor) -> Arrays:
        """Return the windows from `start_rows` on, int64 (B,) on the device of a resident store."""
        rows = start_rows[:, None] + torch.arange(self.temporal_dim, device=self.device)
        return self.price_ticks[rows], self.sizes[rows], self.times_ns[rows]

    def copy_windows(self, start_rows: np.ndarray) -> Arrays:
        """Copy windows out of the files into host memory, which is pinned for a GPU."""
        shape = (len(start_rows), self.temporal_dim, self.books[0].depth)
        pin = self.device.type == "cuda"
        price_ticks = torch.empty(shape, dtype=torch.int32, pin_memory=pin)
        sizes = torch.empty(shape, dtype=torch.float32, pin_memory=pin)
        times_ns = torch.empty(shape[:2], dtype=torch.int64, pin_memory=pin)
        pairs = np.searchsorted(self.offsets, start_rows, side="right") - 1
        firsts = start_rows - self.offsets[pairs]
        for pair, first in zip(pairs, firsts, strict=True):
            book = self.books[pair]
            for array in (book.price_ticks, book.sizes, book.timestamps):
                ask_for(array, int(first), self.temporal_dim)
        for i, (pair, first) in enumerate(zip(pairs, firsts, strict=True)):
            book, rows = self.books[pair], slice(first, first + self.temporal_dim)
            price_ticks.numpy()[i] = book.price_ticks[rows]
            sizes.numpy()[i] = book.sizes[rows]
            times_ns.numpy()[i] = book.timestamps[rows]
        return price_ticks, sizes, times_ns

    def batches(self, batches_of_rows: Iterable[np.ndarray]) -> Iterator[Arrays]:
        """Yield the windows of each array of start rows, in order, on the device."""
        if self.resident:
            for rows in batches_of_rows:
                yield self.gather(torch.from_numpy(rows).to(self.device, non_blocking=True))
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            waiting: list[Future] = []
            remaining = iter(batches_of_rows)
            try:
                while True:
                    for rows in itertools.islice(remaining, BATCHES_AHEAD - len(waiting)):
                        waiting.append(pool.submit(self.copy_windows, rows))
                    if not waiting:
                        return
                    began = time.perf_counter()
                    windows = waiting.pop(0).result()
                    self.wait_seconds += time.perf_counter() - began
                    price_ticks, sizes, times_ns = (
                        x.to(self.device, non_blocking=True) for x in windows
                    )
                    yield price_ticks, sizes, times_ns
            finally:
                for task in waiting:
                    task.cancel()


def ask_for(array: np.ndarray, first: int, rows: int) -> None:
    """Have the disk read some rows of a memory-mapped file, and nothing around them.

    Left alone, the system reads 128 kB around the first page that is touched, and one window after
    the other. An array in memory is left as it is.
    """
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)):
        return
    begin = array.offset % mmap.ALLOCATIONGRANULARITY + first * array.strides[0]
    end = begin + rows * array.strides[0]
    page = begin - begin % mmap.PAGESIZE
    array.base.madvise(mmap.MADV_WILLNEED, page, end - page)


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def on_device(arrays: list[np.ndarray], device: torch.device) -> Tensor:
    """Return the arrays, one after the other, in one tensor on the device."""
    return torch.cat([torch.from_numpy(np.array(array)).to(device) for array in arrays])
