"""How a pass runs: windows are gathered on the device, and on a GPU the rest is one CUDA graph.

A *pass* takes some of a step's windows through the network and back; what it computes is the
*micro-step* (mask, forward pass, loss, backward pass), which stands in fp8_ddp_trainer.py. Forty
narrow layers are some thousand kernels, and launching them one by one takes several times as long
as running them: hence the graph.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lob.model.encoder import BookEncoder, EncoderConfig
from lob.model.window_store import WindowStore
from lob.training.samples import Batch
from lob.training.te_layer import load_fp8_state

# Takes price_ticks (B, T, L), sizes (B, T, L), times_ns (B, T) and keys (B,) of windows, adds up
# gradients, and returns the summed loss and the count of hidden values.
MicroStep = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
WARM_UP_PASSES = 3


class GraphedStep:
    """A micro-step captured as one CUDA graph, for inputs of fixed shapes.

    gather: turns all inputs but the last, on the device, into price_ticks, sizes and times_ns; the
    last input is the keys.

    only: an optimizer step is one call, so the call overwrites the gradients. Otherwise each call
    adds to them. The graph writes to the memory that they had at the capture, so between steps they
    must be zeroed and never be set to None.

    Before the capture the micro-step runs a few times, as torch asks for. These runs also give
    FP8's delayed scaling its first scales. Without them the gradients of the first steps underflow
    (their norm is 1.7, not 4.0).
    """

    def __init__(
        self,
        micro_step: MicroStep,
        model: BookEncoder,
        gather: Callable[..., tuple[Tensor, Tensor, Tensor]],
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
            # A backward pass that finds no gradient writes one, and that is what is captured.
            for parameter in parameters:
                parameter.grad = None
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's own thread may query events during the capture.
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


@dataclass
class Passes:
    """Feeds windows to a micro-step and runs it, as one CUDA graph if `graph` is set.

    size: windows per pass; only: an optimizer step is one pass; fp8: the layers are Transformer
    Engine's; fp8_state: FP8's scales of a resumed run, else empty.
    """

    micro_step: MicroStep
    model: BookEncoder
    store: WindowStore
    size: int
    graph: bool
    only: bool
    fp8: bool
    fp8_state: dict[str, Tensor]

    def __post_init__(self) -> None:
        self.graphed: GraphedStep | None = None
        self.warm = not self.fp8

    def windows(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, ...]]:
        """Yield what `run` takes for each batch.

        It is start rows and keys if a graph gathers the windows itself, else the windows and keys.
        """
        if self.graph and self.store.resident:
            starts = self.store.start_rows
            return (
                (torch.from_numpy(starts(batch.pair_index, batch.end_rows)), batch.keys)
                for batch in batches
            )
        return self.load(batches)

    def load(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield price_ticks, sizes, times_ns and keys of each batch on the device."""
        now, ahead = itertools.tee(batches)  # the store reads a few batches ahead
        starts = (self.store.start_rows(batch.pair_index, batch.end_rows) for batch in ahead)
        for batch, windows in zip(now, self.store.batches(starts), strict=True):
            yield *windows, batch.keys.to(self.store.device, non_blocking=True)

    def run(self, *inputs: Tensor) -> Tensor:
        """Run the micro-step on one item of `windows`; return loss sum and count, float64 (2,)."""
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
        """Give FP8's delayed scaling its first scales, as GraphedStep does, and drop gradients."""
        for _ in range(WARM_UP_PASSES):
            self.micro_step(*inputs)
        self.model.zero_grad()
        self.warm = True
        self.restore_fp8()

    def load_scales(self) -> None:
        """Put FP8's scales of a resumed run back, once a first pass has made their tensors."""
        load_fp8_state(self.model, self.fp8_state)

    def restore_fp8(self) -> None:
        """Put the scales back for the last time: from here on training changes them."""
        self.load_scales()
        self.fp8_state = {}

    def clear_gradients(self) -> None:
        """Make room for the next step's gradients."""
        if self.graphed is None or not self.only:
            self.model.zero_grad(set_to_none=self.graphed is None)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave the time that training has waited for data as it is."""
        waited = self.store.wait_seconds
        yield
        self.store.wait_seconds = waited

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Run the model without dropout and uncompiled.

        The last batch of a split is of another size than the others, and not worth a compilation.
        """
        self.model.eval()
        with self.uncounted(), torch.compiler.set_stance("force_eager"):
            yield
        self.model.train()

    def measure_rate(self, batch: Batch) -> float:
        """Return the windows/s of training passes.

        They take more and more of the batch's windows until one lasts for half a second.
        """

        def time_pass(windows: int) -> float:
            began = time.perf_counter()
            part = Batch(batch.pair_index[:windows], batch.end_rows[:windows], batch.keys[:windows])
            with self.uncounted():
                for loaded in self.load([part]):
                    self.micro_step(*loaded)
            return time.perf_counter() - began

        time_pass(1)  # not counted: it loads and allocates what later passes find there
        windows, seconds = 1, time_pass(1)
        while seconds < 0.5 and windows < len(batch.keys):
            windows = min(2 * windows, len(batch.keys))
            seconds = time_pass(windows)
        self.model.zero_grad()
        return windows / seconds


def windows_a_pass(config: EncoderConfig, share: int, batch_size: int, device: torch.device) -> int:
    """Return how many windows run as one pass: `batch_size`, or more on a GPU.

    share: a rank's windows of a step; it is divided into equal passes. Their number does not change
    the sums of a step. Passes may grow to 60 % of the GPU's free memory, of which they take

    - for each state and layer, ten vectors of the layer's width and two of the feed-forward width,
      in two bytes (that is 109 MB per window for 40 layers of width 192, as measured);
    - for each value of the inputs 60 bytes;
    - for each cell of the convolutions (a level of a state) 42 vectors of `cell_width`, in two
      bytes.
    """
    most = batch_size
    if device.type == "cuda":
        bytes_a_state = config.layers * 2 * (10 * config.width + 2 * config.ffn_width)
        bytes_a_state += 60 * 2 * config.depth  # price and size of each level
        bytes_a_state += 42 * 2 * config.depth * config.cell_width
        free = torch.cuda.mem_get_info(device)[0]
        most = max(most, int(0.6 * free / (bytes_a_state * config.temporal_dim)))
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)
