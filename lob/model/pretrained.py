"""An encoder in use: `lob.load(...)`, then windows or a whole book -> vectors.

Axes: B window, T state, L level, D width, N consecutive states, W windows among them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book, open_book
from lob.config import InputError
from lob.model.card import read_card
from lob.model.checkpoint import choose_device, find_checkpoint, load_model
from lob.model.embedding import embed_windows, in_bf16, window_encoder
from lob.model.encoder import BookEncoder
from lob.model.scale import measure_scale
from lob.model.streaming import BookStream, GraphedStream
from lob.windows.splits import strided_ends, too_short

ORDER = "L/2 bids from deepest to best, then asks from best to deepest"


class Encoder:
    """A trained encoder of windows of T = `states` order book states of L = `levels` levels.

    - `card`: a dict of what it was trained on, until when, and its licence (lob/model/card.py);
    - `module`: the network, price_ticks int64 (B, T, L) and sizes float32 (B, T, L) -> float32
      (B, D), with gradients, for who trains it further. It is in evaluation mode, without dropout;
      `module.train()` changes that.

    The last state of a window is the present one. The vector of a window knows nothing after it.

    The vector is relative, and does not say how volatile or deep a market is. The *scale block*
    does: 13 numbers that `scale=True` appends (lob/model/scale.py).
    """

    def __init__(self, model: BookEncoder, card: dict[str, Any]):
        self.module = window_encoder(model, "last").eval()
        self.card = card
        self.states, self.levels = model.config.temporal_dim, model.config.depth
        self.width = model.config.width

    def __repr__(self) -> str:
        return (
            f"Encoder({self.card['name']!r}: windows of {self.states} states x {self.levels} "
            f"levels -> {self.width} numbers, trained until {self.card['last_date']})"
        )

    @property
    def device(self) -> torch.device:
        return self.module.encoder.norm.weight.device

    @torch.no_grad()
    def embed(
        self,
        prices: Any,
        sizes: Any,
        tick_size: float | None = None,
        stride: int = 1,
        batch_size: int | None = None,
        times_ns: Any = None,
        scale: bool = False,
    ) -> Any:
        """Return a vector for each window, float32 (B, D): a tensor for tensors, else an array.

        prices, sizes: arrays, tensors or DataFrames of one shape; either windows (B, T, L), or
        consecutive states (N, L), of which every `stride`-th window is taken: the first ends with
        state T - 1. The last axis holds L/2 bids from deepest to best, then asks from best to
        deepest. Prices are whole ticks, or with a `tick_size` in the exchange's units; sizes are in
        the base currency.

        scale: append the scale block, (B, D + 13), in the order of `lob.model.scale.NAMES`. What it
        can't know without times_ns and tick_size is 0 there. times_ns: of the states, (B, T) or
        (N,), ns since any moment or datetime64; an encoder with a clock among its inputs needs it.

        Raises InputError, in one line, unless shape, order, sizes and times are right.
        """
        price_ticks = as_ticks(prices, tick_size)
        amounts = as_tensor(sizes, "sizes").float()
        self.check(price_ticks, amounts, stride)
        given = [price_ticks, amounts]
        if times_ns is not None:
            given.append(as_times(times_ns, price_ticks.shape[:-1]))
        elif self.module.encoder.config.reads_times:
            raise InputError(
                "times_ns is None, and this encoder reads the times of states: give it"
            )
        if price_ticks.dim() == 2:
            windows = [x.unfold(0, self.states, stride) for x in given]
            given = [x.transpose(1, 2) if x.dim() == 3 else x for x in windows]
        size = batch_size or (256 if self.device.type == "cuda" else 16)
        vectors = []
        for first in range(0, len(given[0]), size):
            some = [x[first : first + size].to(self.device) for x in given]
            found = self.module(*some[: 3 if self.module.encoder.config.reads_times else 2])
            if scale:
                times = some[2] if times_ns is not None else None
                unit = None if tick_size is None else float(tick_size)
                found = torch.cat([found, measure_scale(some[0], some[1], times, unit)], dim=1)
            vectors.append(found)
        found = torch.cat(vectors)
        return found if isinstance(prices, Tensor) else found.cpu().numpy()

    def check(self, price_ticks: Tensor, sizes: Tensor, stride: int) -> None:
        """Raise InputError unless these are windows (B, T, L) or states (N, L) for this encoder."""
        shape = tuple(price_ticks.shape)
        wanted = f"windows (B, {self.states}, {self.levels}) or states (N, {self.levels})"
        if shape != tuple(sizes.shape):
            raise InputError(f"prices are {shape}, sizes {tuple(sizes.shape)}: give one shape")
        if len(shape) not in (2, 3) or shape[-1] != self.levels:
            raise InputError(f"prices are {shape}: this encoder takes {wanted}")
        if len(shape) == 3 and (shape[1] != self.states or not shape[0]):
            raise InputError(f"prices are {shape}: this encoder takes {wanted}")
        if len(shape) == 2 and shape[0] < self.states:
            raise InputError(f"{shape[0]} states are given: a window takes {self.states}")
        check_stride(stride)
        check_values(price_ticks, sizes)

    def stream(self, precision: str = "fp32") -> "Stream":
        """Return a `Stream`, which takes one state at a time, with the weights as they are now.

        precision: 'fp32', or 'bf16' for the products of the transformer layers. Raises InputError
        unless the encoder was trained with causal=True: another's vector of a state waits for later
        ones.
        """
        encoder = self.module.encoder
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision = {precision!r} must be 'fp32' or 'bf16'")
        return Stream(in_bf16(encoder) if precision == "bf16" else encoder)

    def end_rows(self, book: str | Path | Book, stride: int = 1) -> np.ndarray:
        """Return the row after the last state of each window that `embed_book` takes, int64 (W,).

        Each segment of the book, a run of states without a gap, begins with a window of its own.
        """
        ranges = self.find_ends(open_if_path(book), stride)
        return np.concatenate([np.asarray(ends, dtype=np.int64) for ends in ranges])

    def embed_book(
        self,
        book: str | Path | Book,
        stride: int = 1,
        batch_size: int | None = None,
        scale: bool = False,
    ) -> np.ndarray:
        """Return a vector for every `stride`-th window of a parsed book, float32 (W, D).

        book: its folder, such as training_data/book_states/BTC_USD; scale: append the scale block,
        (W, D + 13). `end_rows` says where the windows end. Raises InputError if the book has other
        levels or no window.
        """
        book = open_if_path(book)
        ranges = self.find_ends(book, stride)
        return np.concatenate([*embed_windows(self.module, book, ranges, batch_size, scale)])

    def stream_book(self, book: str | Path | Book, precision: str = "fp32") -> np.ndarray:
        """Return the vector of each state of a parsed book as a stream gives it, float32 (N, D).

        They are what an agent that streams would have seen: train it on these. Each segment of the
        book begins anew. Raises InputError as `stream` does, or if the book has other levels.
        """
        book = open_if_path(book)
        self.check_depth(book)
        stream = self.stream(precision)
        vectors = np.empty((book.rows, self.width), np.float32)
        segment_starts = set(book.segment_starts.tolist())
        for row in range(book.rows):
            if row in segment_starts:
                stream.reset()
            vectors[row] = stream.update(book.price_ticks[row], book.sizes[row])
        return vectors

    def check_depth(self, book: Book) -> None:
        """Raise InputError unless a book has the levels that this encoder takes."""
        if book.depth != self.levels:
            raise InputError(
                f"{book.path} has depth {book.depth}, the encoder wants {self.levels}: "
                f"run data_parser.py --depth={self.levels}, or take an encoder of that many levels"
            )

    def find_ends(self, book: Book, stride: int) -> list[range]:
        self.check_depth(book)
        check_stride(stride)
        ranges = strided_ends(book.segment_starts, book.rows, self.states, stride)
        if not ranges:
            raise too_short(book, self.states, "take an encoder of shorter windows")
        return ranges


class Stream:
    """Order books as they come: one new state in, its vector out, for one or several books at once.

    lob/model/streaming.py says what the vector of a state is. On a GPU an update is one CUDA graph.
    `module` is the network, with all that it keeps of earlier states.
    """

    def __init__(self, encoder: BookEncoder):
        with torch.inference_mode(False):  # else it could never be used outside of that mode
            self.module = BookStream(encoder)
        self.streams = 0  # until a state is given
        self.compute: Any = self.module

    @torch.no_grad()
    def update(self, prices: Any, sizes: Any, tick_size: float | None = None) -> Any:
        """Take the next state of each book; return its vector, float32: a tensor if one is given.

        prices, sizes: (L,) of one book -> (D,), or (B, L), a row for each of B books, -> (B, D).
        The first update after `reset` says how many books there are. Levels, prices and sizes are
        as for `Encoder.embed`. Raises InputError, in one line, unless they are right.
        """
        price_ticks = as_ticks(prices, tick_size).cpu()
        amounts = as_tensor(sizes, "sizes").float().cpu()
        shape, levels = tuple(price_ticks.shape), self.module.depth
        if shape != tuple(amounts.shape):
            raise InputError(f"prices are {shape}, sizes {tuple(amounts.shape)}: give one shape")
        if len(shape) not in (1, 2) or shape[-1] != levels or not price_ticks.numel():
            raise InputError(
                f"prices are {shape}: this stream takes a state ({levels},) of one book, or "
                f"(B, {levels}) of B books"
            )
        check_values(price_ticks, amounts)
        self.expect(shape[0] if len(shape) == 2 else 1)
        vectors = self.compute(price_ticks.view(-1, levels), amounts.view(-1, levels))
        found = vectors[0] if len(shape) == 1 else vectors
        return found if isinstance(prices, Tensor) else found.cpu().numpy()

    def expect(self, streams: int) -> None:
        """Make room for `streams` books. Raises InputError if it was made for another number."""
        if self.streams not in (0, streams):
            raise InputError(
                f"{streams} states are given, this stream has {self.streams} books: give one for "
                "each, or call reset() first"
            )
        if self.streams == streams:
            return
        with torch.inference_mode(False):
            if self.module.clock.count.device.type == "cuda":  # pragma: cuda
                if len(self.module.clock.seen) != streams or self.compute is self.module:
                    self.compute = self.module  # until the graph is made, should that fail
                    self.compute = GraphedStream(self.module, streams)
            else:
                self.module.reset(streams)
        self.streams = streams

    @torch.no_grad()
    def reset(self, which: Any = None) -> None:
        """Forget all states, so that the next one is the first.

        which: for some books only, their numbers or a bool for each; the others go on.
        """
        if which is None:
            self.module.reset(len(self.module.clock.seen))
            self.streams = 0
            return
        chosen = torch.zeros(self.streams, dtype=torch.bool)
        try:
            chosen[torch.as_tensor(which)] = True
        except IndexError:
            raise InputError(
                f"which = {which!r}: this stream has {self.streams} books, numbered from 0"
            ) from None
        self.module.forget(chosen.to(self.module.clock.seen.device))


def load(
    model_path: str | Path | None = None,
    device: str | torch.device | None = None,
    runs_dir: str | Path = "runs",
) -> Encoder:
    """Return a trained encoder, ready for use; `lob.load` says what its arguments are."""
    place = choose_device(device)
    checkpoint = find_checkpoint(runs_dir, model_path)
    model, meta = load_model(checkpoint, place)
    return Encoder(model, read_card(checkpoint, meta))


def check_values(price_ticks: Tensor, sizes: Tensor) -> None:
    """Raise InputError unless prices ascend and sizes are finite and above 0, (..., L) each."""
    falls = (price_ticks.diff(dim=-1) <= 0).nonzero()
    if len(falls):
        at = falls[0].tolist()
        low, high = (price_ticks[(*at[:-1], at[-1] + i)].item() for i in (0, 1))
        raise InputError(
            f"prices must ascend along the levels ({ORDER}), but {low} stands before {high} "
            f"ticks at {at}: reverse the bids or the asks"
        )
    wrong = (~(sizes > 0) | sizes.isinf()).nonzero()
    if len(wrong):
        at = wrong[0].tolist()
        value = sizes[tuple(at)].item()
        raise InputError(f"a size is {value} at {at}: each must be finite and above 0")


def check_stride(stride: int) -> None:
    if stride < 1:
        raise InputError(f"stride = {stride} must be at least 1")


def open_if_path(book: str | Path | Book) -> Book:
    return book if isinstance(book, Book) else open_book(book)


def as_tensor(values: Any, name: str) -> Tensor:
    """Return numbers as an int64 or float64 tensor. Raises InputError if they are no numbers."""
    if isinstance(values, Tensor):
        return values.detach().double() if values.is_floating_point() else values.long()
    try:
        array = np.asarray(values)
        return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are no numbers ({error}): give an array of numbers") from None


def as_times(times_ns: Any, shape: tuple[int, ...]) -> Tensor:
    """Return times as int64 ns. Raises InputError unless they are of this shape and don't fall."""
    given = times_ns
    if not isinstance(given, Tensor):
        given = np.asarray(given)
        if given.dtype.kind == "M":
            given = given.astype("datetime64[ns]").astype(np.int64)
    found = as_tensor(given, "times_ns")
    if found.is_floating_point():
        raise InputError("times_ns are no integers: give ns, or datetime64")
    if found.shape != shape:
        raise InputError(
            f"times_ns are {tuple(found.shape)}: give one for each state, {tuple(shape)}"
        )
    if (found.diff(dim=-1) < 0).any():
        raise InputError("times_ns fall from one state to the next: sort the states by time")
    return found


def as_ticks(prices: Any, tick_size: float | None) -> Tensor:
    """Return prices as whole ticks, int64. Raises InputError if they are no multiples of it."""
    given = as_tensor(prices, "prices")
    if tick_size is None:
        if given.is_floating_point():
            raise InputError("prices are no integers: give tick_size, 1 if they count ticks")
        return given
    tick_size = float(tick_size)
    if not 0 < tick_size < np.inf:
        raise InputError(f"tick_size = {tick_size} must be a number above 0")
    per_one = round(1 / tick_size)
    # A tick of 0.01 is rounded itself; a product with 100 is not.
    is_whole = abs(per_one * tick_size - 1) < 1e-9
    ticks = given.double() * per_one if is_whole else given.double() / tick_size
    whole = ticks.round()
    # Off by 1e-9 of itself, at most by 1e-4 of a tick, or by some ulps if that is more.
    tolerance = (1e-9 * ticks.abs()).clamp(max=1e-4).maximum(1e-15 * ticks.abs())
    off = ~((ticks - whole).abs() <= tolerance)
    if off.any():
        price = given[off][0].item()
        raise InputError(
            f"the price {price} is no multiple of tick_size = {tick_size}: give the market's tick "
            "size, and prices in float64"
        )
    return whole.long()
