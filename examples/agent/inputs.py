"""What agents see: the encoder's vector, hand-made features, both, or the window itself.

Inputs are scaled by the mean and deviation of the training recording, and cut off at `LIMIT`
deviations. Vectors are kept in a folder, since a CPU takes tens of milliseconds for each.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lob.book.states import Book, identity
from lob.config import InputError
from lob.evaluation.probe_tasks import hand_made
from lob.model.pretrained import Encoder
from lob.storage import new_file
from lob.windows.splits import to_iso

LIMIT = 5.0  # deviations


def pick_ends(
    encoder: Encoder, books: Sequence[Book], count: int, share: float
) -> tuple[int, list[np.ndarray]]:
    """Return the states from one decision to the next, and the end rows of the decisions' windows.

    books: one recording, whose first `share` of the time is trained on, or two. count: decisions of
    the training recording. There are end rows to train on and to test on. The windows of the two
    sets share no state.
    """
    if len(books) == 2:
        stride = max(1, books[0].rows // count)
        return stride, [encoder.end_rows(book, stride) for book in books]
    (book,) = books
    stride = max(1, int(book.rows * share) // count)
    ends = encoder.end_rows(book, stride)
    first, last = book.timestamps[0], book.timestamps[-1]
    cut = int(np.searchsorted(book.timestamps, first + int(share * float(last - first))))
    return stride, [ends[ends <= cut], ends[ends - encoder.states >= cut + encoder.states]]


def check_unseen(encoder: Encoder, book: Book, first_row: int) -> None:
    """Raise InputError if the encoder was trained or chosen on the recording after `first_row`."""
    begins = to_iso(int(book.timestamps[first_row]))
    seen = max(encoder.card["last_date"], encoder.card["chosen_until"])
    if book.pair in encoder.card["pairs"] and begins < seen:
        raise InputError(
            f"the encoder saw {book.pair} until {seen}, but the test begins at {begins}: test on "
            "another recording, set --train_share, or --model_path=pretrained/small_cell"
        )


def find_vectors(
    encoder: Encoder, weights: str, book: Book, ends: np.ndarray, folder: Path
) -> np.ndarray:
    """Return the vectors of the windows that end at `ends`, float32 (n, D).

    They are read from `folder` if they were written before. weights: which weights these are.
    """
    told = repr((identity(book), weights)).encode() + ends.tobytes()
    file = folder / f"{book.pair}_{hashlib.sha256(told).hexdigest()[:16]}.npy"
    if not file.exists():
        began = time.perf_counter()
        parts = []
        for first in range(0, len(ends), 128):
            rows = ends[first : first + 128, None] - encoder.states + np.arange(encoder.states)
            parts.append(encoder.embed(book.price_ticks[rows], book.sizes[rows]))
            if sys.stderr.isatty():
                print(f"\r{book.pair}: {first:,} of {len(ends):,} vectors", end="", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(file) as handle:
            np.save(handle, np.concatenate(parts))
        seconds = time.perf_counter() - began
        print(f"{book.pair}: {len(ends):,} vectors in {seconds:.0f} s", flush=True)
    return np.load(file)


def describe(book: Book, ends: np.ndarray, states: int) -> np.ndarray:
    """Return the 27 hand-made features of the windows that end at `ends`, float64 (n, 27)."""
    parts = [hand_made(book, ends[i : i + 4096], states) for i in range(0, len(ends), 4096)]
    return np.concatenate(parts)


def scale(train: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """Return both float32 (n, P), scaled by mean and deviation of `train`."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    scaled = (np.clip((x - mean) / deviation, -LIMIT, LIMIT) for x in (train, other))
    return [x.astype(np.float32) for x in scaled]
