"""How a pass over windows runs: they are gathered on the device, and on a GPU the micro-step is one
CUDA graph.

Forty narrow layers are some thousand kernels, and launching them one by one takes several times as
long as running them. What a micro-step does (mask, forward pass, loss, backward pass) stands in
fp8_ddp_trainer.py.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lob.model.encoder import BookEncoder, EncoderConfig
from lob.model.window_store import WindowStore
from lob.training.samples import Batch
from lob.training.te_layer import load_fp8_state

# Adds the gradients of windows (price_ticks and sizes (B, T, L), keys (B,)); returns summed loss
# and count.
MicroStep = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
WARM_UP_PASSES = 3


class GraphedStep:
    """A micro-step captured as one CUDA graph, for inputs of fixed shapes.

    gather: turns all inputs but the last, on the device, into price_ticks and sizes; the last input
    is the keys. only: the call is the only one of its optimizer step, so it overwrites the
    gradients. Otherwise each call adds to them: they live in place, so zero them and never drop
    them.

    The passes before the capture also give FP8's delayed scaling its first scales. Without them the
    gradients of the first steps underflow (their norm is 1.7, not 4.0).
    """

    def __init__(
        self,
        micro_step: MicroStep,
        model: BookEncoder,
        gather: Callable[..., tuple[Tensor, Tensor]],
        inputs: Sequence[Tensor],
        only: bool,
    ):
        parameters = list(model.parameters())
        self.inputs = [x.to(parameters[0].device, copy=True) for x in inputs]
        *data, keys = self.inputs
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_PASSES):
                micro_step(*gather(*data), keys)
        torch.cuda.current_stream().wait_stream(side)
        if only:
            for parameter in parameters:
                parameter.grad = None
        self.graph = torch.cuda.CUDAGraph()
        # NCCL's own thread may look at events
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.loss, self.count = micro_step(*gather(*data), keys)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.zero_()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.loss, self.count


class Passes:
    """Feeds windows to a micro-step and runs it, as one CUDA graph if `graph` is set.

    size: windows of a pass; only: an optimizer step is one pass; fp8: the layers are Transformer
    Engine's; fp8_state: the scales of a resumed run, or nothing.
    """

    def __init__(
        self,
        micro_step: MicroStep,
        model: BookEncoder,
        store: WindowStore,
        size: int,
        graph: bool,
        only: bool,
        fp8: bool,
        fp8_state: dict[str, Tensor],
    ):
        self.micro_step = micro_step
        self.model = model
        self.store = store
        self.size = size
        self.graph = graph
        self.only = only
        self.fp8_state = fp8_state
        self.graphed: GraphedStep | None = None
        self.warm = not fp8

    def windows(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, ...]]:
        """Yield what `run` takes of each batch: start rows and keys for a graph that gathers, else
        loaded windows.
        """
        if self.graph and self.store.resident:
            return self.start_rows(batches)
        return self.load(batches)

    def start_rows(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield start rows and keys of each batch, for a store that gathers windows on the
        device.
        """
        for batch in batches:
            yield (
                torch.from_numpy(self.store.start_rows(batch.pair_index, batch.end_rows)),
                batch.keys,
            )

    def load(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield price_ticks, sizes (B, T, L) and keys of each batch on the device."""
        now, ahead = itertools.tee(batches)
        starts = (self.store.start_rows(batch.pair_index, batch.end_rows) for batch in ahead)
        for batch, (price_ticks, sizes) in zip(now, self.store.batches(starts), strict=True):
            yield price_ticks, sizes, batch.keys.to(self.store.device, non_blocking=True)

    def run(self, *inputs: Tensor) -> Tensor:
        """Run the micro-step on one item of `windows`; return its summed loss and count, float64
        (2,).
        """
        if self.graph:
            if self.graphed is None:
                gather = self.store.gather if self.store.resident else lambda *windows: windows
                self.graphed = GraphedStep(self.micro_step, self.model, gather, inputs, self.only)
                self.restore_fp8()
            loss, count = self.graphed(*inputs)
        else:
            if not self.warm:
                self.warm_up(*inputs)
            loss, count = self.micro_step(*inputs)
        return torch.stack([loss.double(), count.double()])

    def warm_up(self, *inputs: Tensor) -> None:
        """Give delayed scaling its first scales, as GraphedStep does: a few passes whose gradients
        are dropped.
        """
        for _ in range(WARM_UP_PASSES):
            self.micro_step(*inputs)
        self.model.zero_grad()
        self.warm = True
        self.restore_fp8()

    def load_scales(self) -> None:
        """Put FP8's scales of a resumed run back. Transformer Engine makes their tensors in its
        first pass.
        """
        load_fp8_state(self.model, self.fp8_state)

    def restore_fp8(self) -> None:
        """Put the scales back for good: from here on training moves them."""
        self.load_scales()
        self.fp8_state = {}

    def clear_gradients(self) -> None:
        """Make room for the next step's gradients."""
        if self.graphed is None or not self.only:
            self.model.zero_grad(set_to_none=self.graphed is None)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave the time that training waited for data as it was."""
        waited = self.store.wait_seconds
        yield
        self.store.wait_seconds = waited

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Run the model without dropout, and uncompiled: a last batch of odd size is not worth a
        compilation.
        """
        self.model.eval()
        with self.uncounted(), torch.compiler.set_stance("force_eager"):
            yield
        self.model.train()

    def measure_rate(self, batch: Batch) -> float:
        """Windows/s of training passes over a growing part of a batch, until one takes half a
        second.
        """

        def time_pass(windows: int) -> float:
            began = time.perf_counter()
            part = Batch(batch.pair_index[:windows], batch.end_rows[:windows], batch.keys[:windows])
            with self.uncounted():
                for loaded in self.load([part]):
                    self.micro_step(*loaded)
            return time.perf_counter() - began

        time_pass(1)  # loads and allocates what the passes that count find there
        windows, seconds = 1, time_pass(1)
        while seconds < 0.5 and windows < len(batch.keys):
            windows = min(2 * windows, len(batch.keys))
            seconds = time_pass(windows)
        self.model.zero_grad()
        return windows / seconds


def windows_a_pass(config: EncoderConfig, share: int, batch_size: int, device: torch.device) -> int:
    """Return how many of a rank's `share` of a step's windows run as one pass: `batch_size`, or
    more on a GPU.

    The sums of a step stay the same. A layer keeps about ten vectors of the width and two of the
    feed-forward's for a state, in two bytes (109 MB a window for 40 layers of width 192, as
    measured), the inputs some 60 bytes a value, convolutions about 42 vectors of a cell's width for
    a cell. Passes grow to 60 % of the GPU's free memory, and the share is divided evenly.
    """
    most = batch_size
    if device.type == "cuda":
        bytes_a_state = config.layers * 2 * (10 * config.width + 2 * config.ffn_width)
        bytes_a_state += 60 * 2 * config.depth
        bytes_a_state += 42 * 2 * config.depth * config.cell_width
        free = torch.cuda.mem_get_info(device)[0]
        most = max(most, int(0.6 * free / (bytes_a_state * config.temporal_dim)))
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)
