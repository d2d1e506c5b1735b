"""Binance's raw recordings as hftbacktest plays them, and when our states of them were received.

A recording has two clocks: the exchange's, in which the states of lob/book are, and the recorder's,
in which an agent decides. A decision may use only the states whose messages were received by then.
"""

import contextlib
import gzip
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hftbacktest import DEPTH_EVENT, LOCAL_EVENT
from hftbacktest.data.utils import binancefutures

from lob.book.states import Book
from lob.config import InputError
from lob.storage import new_file


def find_events(files: Sequence[Path], folder: Path, latency_ns: int) -> np.ndarray:
    """Return hftbacktest's events of a raw recording, whose files follow each other without a gap.

    They are read from `folder` if they were converted before. latency_ns: added to the time that
    each message takes to the recorder. Raises InputError if a file is not there, or if
    hftbacktest's converter can't read it.
    """
    for file in files:
        if not file.is_file():
            raise InputError(f"there is no {file}: the raw recording must lie beside its states")
    told = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    kept = folder / f"{files[0].parent.name}_{told}.npz"
    if not kept.exists():
        events = convert(files)
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(kept) as handle:
            np.savez_compressed(handle, data=events)
    events = np.load(kept)["data"]
    # Not by hftbacktest's `latency_offset`: that changes the array anew for each backtest.
    events["local_ts"] += latency_ns
    return events


def convert(files: Sequence[Path]) -> np.ndarray:
    """Convert the files as one, so that one correction of the recorder's clock holds for all."""
    names = ", ".join(file.name for file in files)
    with TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        try:
            parts = [gzip.decompress(file.read_bytes()).splitlines() for file in files]
            text = b"\n".join(line for lines in parts for line in lines if line)
            if b'"depthUpdate"' not in text:
                raise ValueError("no depthUpdate in it")
            whole = Path(place) / "recording.gz"
            whole.write_bytes(gzip.compress(text, compresslevel=1))
            # Levels, trades, and a snapshot's clears.
            most = text.count(b"[") + text.count(b"\n") + 5
            return binancefutures.convert(str(whole), buffer_size=most)
        except (ValueError, LookupError, TypeError, AttributeError, OSError, EOFError) as error:
            raise InputError(
                f"hftbacktest's converter can't read {names} ({error}): it reads what its "
                "collector records of futures, gzipped, with local times in ns. Name such files "
                "with --train_files or --test_files"
            ) from None


def find_received(events: np.ndarray, book: Book) -> tuple[int, np.ndarray]:
    """Return the first state of a recording in its book, and when each was received, int64 (n,) ns.

    A state counts as received when the last depth message up to its exchange time was. Raises
    InputError if the states are not those of the recording, or have a gap.
    """
    depth = (events["ev"] & 0xFF == DEPTH_EVENT) & (events["ev"] & LOCAL_EVENT > 0)
    order = np.argsort(events["exch_ts"][depth], kind="stable")
    sent = events["exch_ts"][depth][order]
    received = np.maximum.accumulate(events["local_ts"][depth][order])
    first, end = np.searchsorted(book.timestamps, [sent[0], sent[-1] + 1]).tolist()
    times = book.timestamps[first:end]
    if not np.isin(times, sent).all() or len(times) < 2:
        raise InputError(
            f"the states of {book.pair} are not those of the recording: parse it again with "
            "data_parser.py, --state_interval_ms=0 and --subsample=1"
        )
    starts = book.segment_starts
    if ((starts > first) & (starts < end)).any():
        raise InputError(
            f"the recording of {book.pair} has a gap: name files without one in --train_files or "
            "--test_files"
        )
    return first, received[np.searchsorted(sent, times, side="right") - 1]


def pick_decisions(
    events: np.ndarray, book: Book, states: int, interval_ns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of n decisions and of the end, int64 (n + 1,), and their windows' ends.

    The `states` states of a window were received by its decision.
    """
    first, received = find_received(events, book)
    begin = int(received[min(states, len(received)) - 1])
    times = np.arange(begin, int(events["local_ts"].max()), interval_ns)
    return times, first + np.searchsorted(received, times[:-1], side="right")
