"""Windows for a network, gathered on its device.

If the states of all pairs fit, they live on the GPU and a window is an index. Otherwise threads
copy windows from the memory-mapped files into pinned memory, a few batches ahead.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book

BATCHES_AHEAD = 4
RESIDENT_SHARE = 0.4  # of the GPU's free memory


class WindowStore:
    """Order book states of several pairs, addressed by one row number: rows of pair k begin at
    `offsets[k]`.

    `batches` yields windows (price_ticks int32 (B, T, L), sizes float32 (B, T, L)); `wait_seconds`
    adds up the time that its caller waited for data.
    """

    def __init__(
        self,
        books: list[Book],
        temporal_dim: int,
        device: torch.device,
        num_workers: int = 4,
        resident: bool | None = None,
    ):
        self.books, self.temporal_dim, self.device = books, temporal_dim, device
        self.offsets = np.concatenate([[0], np.cumsum([book.rows for book in books])]).astype(
            np.int64
        )
        self.num_workers, self.wait_seconds = max(1, num_workers), 0.0
        size = sum(book.price_ticks.nbytes + book.sizes.nbytes for book in books)
        if resident is None:
            resident = (
                device.type == "cuda" and size < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
            )
        self.resident = resident
        if resident:
            self.price_ticks = torch.cat(
                [torch.from_numpy(np.array(book.price_ticks)).to(device) for book in books]
            )
            self.sizes = torch.cat(
                [torch.from_numpy(np.array(book.sizes)).to(device) for book in books]
            )

    def start_rows(self, pair_index: np.ndarray, end_rows: np.ndarray) -> np.ndarray:
        """First row (in the store's numbering) of the windows that end before `end_rows` of each
        pair.
        """
        return self.offsets[pair_index] + end_rows - self.temporal_dim

    def gather(self, start_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows that begin at `start_rows` (int64 (B,), on the device) of a resident store."""
        rows = start_rows[:, None] + torch.arange(self.temporal_dim, device=self.device)
        return self.price_ticks[rows], self.sizes[rows]

    def copy_windows(self, start_rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Copy windows out of the files into (pinned) host memory."""
        shape = (len(start_rows), self.temporal_dim, self.books[0].depth)
        pin = self.device.type == "cuda"
        price_ticks = torch.empty(shape, dtype=torch.int32, pin_memory=pin)
        sizes = torch.empty(shape, dtype=torch.float32, pin_memory=pin)
        pairs = np.searchsorted(self.offsets, start_rows, side="right") - 1
        for i, (pair, first) in enumerate(
            zip(pairs, start_rows - self.offsets[pairs], strict=True)
        ):
            price_ticks.numpy()[i] = self.books[pair].price_ticks[first : first + self.temporal_dim]
            sizes.numpy()[i] = self.books[pair].sizes[first : first + self.temporal_dim]
        return price_ticks, sizes

    def batches(self, batches_of_rows: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
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
                    price_ticks, sizes = waiting.pop(0).result()
                    self.wait_seconds += time.perf_counter() - began
                    yield (
                        price_ticks.to(self.device, non_blocking=True),
                        sizes.to(self.device, non_blocking=True),
                    )
            finally:
                for task in waiting:
                    task.cancel()
