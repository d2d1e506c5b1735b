"""One pass of training or evaluation: gather windows, hide values, predict them, and add to the gradients or losses.

On a GPU the whole micro-step is one CUDA graph: forty narrow layers are some thousand kernels, and launching them one
by one takes several times as long as running them.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.model.encoder import BookEncoder, EncoderConfig
from lob.model.inputs import build_inputs
from lob.model.masking import make_mask
from lob.model.normalisation import interpolate_time
from lob.model.window_store import WindowStore
from lob.training.augmentation import augment
from lob.training.objective import describe, masked_loss, states_ahead
from lob.training.precision import Precision
from lob.training.samples import Batch
from lob.training.te_layer import load_fp8_state

WARM_UP_PASSES = 3
OUTLOOK_EVERY = 4  # windows, of which one is asked for its outlook too


@dataclass(frozen=True)
class Task:
    """What a pass does with its windows: names of loss and mask, the hidden share, and how windows are varied."""

    loss: str
    mask_mode: str
    mask_perc: float
    mirror: bool = False  # exchange bids and asks in half of them
    slow: float = 0.0  # share that is slowed down
    size_noise: float = 0.0  # of the logs of half the windows' sizes
    outlook: float = 0.0  # weight of the loss of lob/training/objective.py


class MicroStep:
    """`step(windows, keys, nominal)` adds the gradient of (summed loss / nominal) and returns the sum and the count.

    windows: price_ticks and sizes (B, T, L); keys: int64 (B,), of the masks (lob/model/masking.py) and variations.
    """

    def __init__(self, model: BookEncoder, config: EncoderConfig, precision: Precision, task: Task):
        self.model, self.config, self.precision, self.task = model, config, precision, task

    def predict(self, price_ticks: Tensor, sizes: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction, targets and mask (B, T, L, F) of windows."""
        _, states, levels = price_ticks.shape
        mask = make_mask(keys, states, levels, self.task.mask_perc, self.task.mask_mode)
        tokens, base, values, _ = build_inputs(price_ticks, sizes, mask, self.config)
        with self.precision.autocast():
            prediction = self.model(tokens, base)
        return prediction, values, mask

    def outlook_loss(self, price_ticks: Tensor, sizes: Tensor) -> Tensor:
        """Squared error, summed over windows, of what the vector of a state some way before the end tells.

        The states that it may see move to the window's end, behind as many copies of its first state: a window of
        another length would be another task than what the vector is for.
        """
        states = price_ticks.shape[1]
        seen = (torch.arange(states, device=price_ticks.device) - states_ahead(states)).clamp(min=0)
        tokens, *_ = build_inputs(price_ticks[:, seen], sizes[:, seen], None, self.config)
        with self.precision.autocast():
            told = self.model.outlook(self.model.encode(tokens)[:, -1])
        return F.mse_loss(told.float(), describe(price_ticks, sizes), reduction="none").mean(1).sum()

    def __call__(self, price_ticks: Tensor, sizes: Tensor, keys: Tensor, nominal: float) -> tuple[Tensor, Tensor]:
        task = self.task
        price_ticks, sizes = augment(price_ticks, sizes, keys, task.mirror, task.slow, task.size_noise)
        prediction, values, mask = self.predict(price_ticks, sizes, keys)
        loss, count = masked_loss(prediction, values, mask, task.loss)
        (loss / nominal).backward()
        if task.outlook:
            windows = nominal / (task.mask_perc * math.prod(price_ticks.shape[1:]) * 2)
            asked, asked_sizes = price_ticks[::OUTLOOK_EVERY], sizes[::OUTLOOK_EVERY]
            share = len(asked) / len(price_ticks)  # more than one in OUTLOOK_EVERY where the pass is no multiple of it
            (task.outlook / (share * windows) * self.outlook_loss(asked, asked_sizes)).backward()
        return loss.detach(), count


class GraphedStep:
    """A MicroStep captured as one CUDA graph, for inputs of fixed shapes and a fixed nominal count.

    windows: turns all inputs but the last, on the device, into price_ticks and sizes; the last is the keys. Each call
    adds to the parameters' gradients, which live in place (zero them, never drop them), or overwrites them where
    `only`: the call is the only one of its optimizer step. The passes before the capture also give FP8's delayed
    scaling its first scales: without them the first steps' gradients underflow (their norm is 1.7, not 4.0).
    """

    def __init__(self, step: MicroStep, windows: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor],
                 nominal: float, only: bool):  # fmt: skip
        parameters = list(step.model.parameters())
        self.inputs = [x.to(parameters[0].device, copy=True) for x in inputs]
        *data, keys = self.inputs
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_PASSES):
                step(*windows(*data), keys, nominal)
        torch.cuda.current_stream().wait_stream(side)
        if only:
            for parameter in parameters:
                parameter.grad = None
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # NCCL's own thread may look at events
            self.loss, self.count = step(*windows(*data), keys, nominal)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.zero_()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.loss, self.count


class Passes:
    """Runs a model's passes over batches of windows, each as one CUDA graph where `graph`.

    step: trains; plain: the same for evaluation; nominal: see MicroStep; only:
    an optimizer step is one pass; fp8_state: the scales of a resumed run.
    """

    def __init__(self, step: MicroStep, plain: MicroStep, store: WindowStore, size: int, nominal: float, graph: bool,
                 only: bool, fp8_state: dict[str, Tensor]):  # fmt: skip
        self.step, self.plain, self.store, self.size, self.nominal = step, plain, store, size, nominal
        self.graph, self.only, self.fp8_state = graph, only, fp8_state
        self.graphed: GraphedStep | None = None
        self.warm = step.precision.name != "fp8"

    def clear_gradients(self) -> None:
        """Make room for the next step's gradients."""
        if self.graphed is None or not self.only:
            self.plain.model.zero_grad(set_to_none=self.graphed is None)

    def load(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield price_ticks, sizes (B, T, L) and keys of each batch on the device."""
        now, ahead = itertools.tee(batches)
        starts = (self.store.start_rows(batch.pair_index, batch.end_rows) for batch in ahead)
        for batch, (price_ticks, sizes) in zip(now, self.store.batches(starts), strict=True):
            yield price_ticks, sizes, batch.keys.to(self.store.device, non_blocking=True)

    def rows(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield start rows and keys of each batch, for a store that gathers them on the device."""
        for batch in batches:
            yield torch.from_numpy(self.store.start_rows(batch.pair_index, batch.end_rows)), batch.keys

    def run(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Yield summed loss and count, float64 (2,), of each batch when asked for; its gradient is added then."""
        batches = iter(batches)
        if self.graph:
            resident = self.store.resident
            for inputs in self.rows(batches) if resident else self.load(batches):
                if self.graphed is None:
                    gather = self.store.gather if resident else lambda *windows: windows
                    self.graphed = GraphedStep(self.step, gather, inputs, self.nominal, self.only)
                    self.restore_fp8()
                yield torch.stack([part.double() for part in self.graphed(*inputs)])
        else:
            if not self.warm and (first := next(batches, None)):
                self.warm_up(first)
                batches = itertools.chain([first], batches)
            for windows in self.load(batches):
                yield torch.stack([part.double() for part in self.step(*windows, self.nominal)])

    def warm_up(self, batch: Batch) -> None:
        """Give delayed scaling its first scales, as GraphedStep does: a few passes whose gradients are dropped."""
        for windows in self.load([batch] * WARM_UP_PASSES):
            self.step(*windows, self.nominal)
        self.step.model.zero_grad()
        self.warm = True
        self.restore_fp8()

    def restore_fp8(self) -> None:
        """Put back the scales of a resumed run; Transformer Engine makes their tensors in its first pass."""
        load_fp8_state(self.plain.model, self.fp8_state)
        self.fp8_state = {}

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave the time that training waited for data as it was."""
        waited = self.store.wait_seconds
        yield
        self.store.wait_seconds = waited

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Run the model without dropout, and uncompiled: a last batch of odd size is not worth a compilation."""
        self.plain.model.eval()
        with self.uncounted(), torch.compiler.set_stance("force_eager"):
            yield
        self.plain.model.train()

    @torch.inference_mode()
    def evaluate(self, batches: Sequence[Batch]) -> Tensor:
        """Sums over the hidden values of all windows, float64 (3,): loss, loss of interpolation in time, and count."""
        if self.fp8_state and batches:  # resumed, and no training pass yet: without gradients scales would stay at 1
            self.reconstruct(batches[0])
            load_fp8_state(self.plain.model, self.fp8_state)
        sums = torch.zeros(3, dtype=torch.float64, device=self.store.device)
        with self.judging():
            for windows in self.load(batches):
                prediction, values, mask = self.plain.predict(*windows)
                loss, count = masked_loss(prediction, values, mask, self.plain.task.loss)
                linear, _ = masked_loss(interpolate_time(values, ~mask), values, mask, self.plain.task.loss)
                sums += torch.stack([loss.double(), linear.double(), count.double()])
        return sums

    @torch.inference_mode()
    def reconstruct(self, batch: Batch) -> list[Tensor]:
        """Values, mask and prediction, each (T, L, F) on the CPU, of a batch's first window."""
        with self.judging():
            (windows,) = self.load([batch])
            prediction, values, mask = self.plain.predict(*windows)
        return [values[0].cpu(), mask[0].cpu(), prediction[0].float().cpu()]

    def measure_rate(self, batch: Batch) -> float:
        """Windows/s of training passes over a growing part of a batch, until one takes half a second."""

        def time_pass(windows: int) -> float:
            began = time.perf_counter()
            part = Batch(batch.pair_index[:windows], batch.end_rows[:windows], batch.keys[:windows])
            with self.uncounted():
                for loaded in self.load([part]):
                    self.step(*loaded, self.nominal)
            return time.perf_counter() - began

        time_pass(1)  # loads and allocates what those that count find there
        windows, seconds = 1, time_pass(1)
        while seconds < 0.5 and windows < len(batch.keys):
            windows = min(2 * windows, len(batch.keys))
            seconds = time_pass(windows)
        self.step.model.zero_grad()
        return windows / seconds


def windows_a_pass(config: EncoderConfig, share: int, batch_size: int, device: torch.device) -> int:
    """How many of a rank's `share` of a step's windows run as one pass: `batch_size`, or more where a GPU takes it.

    The sums stay the same. A layer keeps about ten vectors of the width and two of the feed-forward's a state, in two
    bytes (109 MB a window for 40 layers of width 192, as measured), the inputs some 60 bytes a value, convolutions
    about 42 vectors of a cell's width a cell: passes grow to 60 % of the GPU's free memory, the share divided evenly.
    """
    most = batch_size
    if device.type == "cuda":
        a_state = config.layers * 2 * (10 * config.width + 2 * config.ffn_width) + 60 * 2 * config.depth
        a_state += 42 * 2 * config.depth * config.cell_width
        most = max(most, int(0.6 * torch.cuda.mem_get_info(device)[0] / (a_state * config.temporal_dim)))
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)
