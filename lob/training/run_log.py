"""What a run shows: config.json, env.json, metrics.csv, TensorBoard events, and what is printed."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from lob.config import InputError
from lob.model.checkpoint import Progress, describe_step
from lob.model.encoder import count_parameters, flops_per_window
from lob.process import drawing
from lob.results import describe_environment
from lob.storage import new_file
from lob.training.distributed import Team
from lob.training.passes import Passes
from lob.training.precision import Precision
from lob.training.run_folder import COLUMNS, OF_PART, changed_settings, claim_run
from lob.training.samples import Sampler
from lob.training.scores import ANSWERS, Scores

if TYPE_CHECKING:
    from lob.training.picture import Filled

# What stands for a hidden value without training, in words.
NAMES = {"ladder": "the ladder", "linear": "linear interpolation in time"}


@dataclass
class RunLog:
    """Writes a run's logs, on the first rank; on the others nothing is active.

    settings: the run's whole config, stored and shown; active: this is the first rank; resumed: the
    run goes on; saved: metadata of the checkpoint that it goes on from (what was logged after it is
    dropped), or nothing; facts: what the config's choices came to (precision, pairs, data).
    """

    folder: Path
    settings: dict[str, Any]
    active: bool
    resumed: bool
    saved: dict[str, Any]
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        self.header_printed = False
        done = Progress(**self.saved.get("progress", {}))
        self.clock = time.perf_counter()
        # At the last log entry of a step: windows seen, seconds in steps, seconds of waiting.
        self.logged = (done.windows_seen, done.step_seconds, 0.0)
        self.purge_step = done.step + 1  # TensorBoard hides what was logged from here on

    def __enter__(self) -> "RunLog":
        if not self.active:
            return self
        from lob.training.board import STEP_TAGS, Board  # loads TensorBoard, which takes a second

        environment = describe_environment() | self.facts
        try:
            self.folder.mkdir(parents=True, exist_ok=self.resumed)
        except FileExistsError:
            raise InputError(
                f"another run has just begun in {self.folder}: start this one again"
            ) from None
        self.metrics = claim_run(self.folder)
        if self.resumed:
            for key, change in changed_settings(self.folder, self.settings).items():
                if key != "resume":
                    print(f"changed    {change}")
        for name, content in (("config.json", self.settings), ("env.json", environment)):
            with new_file(self.folder / name) as handle:
                handle.write(json.dumps(content, indent=1).encode())
        self.metrics.truncate(min(self.metrics_bytes(), self.saved.get("metrics_bytes", 0)))
        if self.metrics_bytes() == 0:
            self.write_row(COLUMNS)
        self.board, self.step_tags = Board(self.folder, self.purge_step), STEP_TAGS
        self.board.begin(self.settings, describe_facts(environment))
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.metrics.close()
            self.board.close()

    def metrics_bytes(self) -> int:
        """Return the length of metrics.csv; 0 on other ranks than the first."""
        if not self.active:
            return 0
        return os.fstat(self.metrics.fileno()).st_size

    def write_row(self, values: Iterable[Any]) -> None:
        self.metrics.write((",".join(map(str, values)) + "\n").encode())
        self.metrics.flush()

    def count_time(self, progress: Progress, training: bool) -> None:
        """Add the time since the last call to the run's, and if `training` to that of its steps."""
        now = time.perf_counter()
        progress.seconds += now - self.clock
        progress.step_seconds += (now - self.clock) * training
        self.clock = now

    @contextlib.contextmanager
    def untrained(self, progress: Progress) -> Iterator[None]:
        """Count the time before this block to the steps, and that of the block to the run alone."""
        self.count_time(progress, training=True)
        try:
            yield
        finally:
            self.count_time(progress, training=False)

    def print(self, text: str) -> None:
        if self.active:
            print(text, flush=True)

    def describe(
        self,
        model_size: str,
        precision: Precision,
        sampler: Sampler,
        passes: Passes,
        team: Team,
        progress: Progress,
        epochs_left: int,
        length: str,
    ) -> None:
        """Print what a run begins with: folder, data, model, precision, step, length, CPU time."""
        data, encoder = sampler.data, passes.model.config
        passes_a_step = sampler.windows_a_step // team.world // passes.size
        place = "on the GPU" if passes.store.resident else "in files"
        lines = [
            f"run        {self.folder}",
            f"data       {data.describe()}",
            f"model      {model_size}: {count_parameters(encoder):,} parameters, "
            f"{flops_per_window(encoder) / 1e9:.2f} GFLOPs per window",
            f"precision  {precision.name} ({precision.reason})",
            f"step       {sampler.windows_a_step} windows in {passes_a_step} pass(es) on each of "
            f"{team.world} rank(s) on {team.device.type}; "
            f"{sampler.steps_an_epoch:,} steps per epoch; states {place}",
            length,
        ]
        if team.device.type == "cpu" and epochs_left:
            some = np.arange(min(passes.size, len(data.windows[0])))
            rate = team.world * passes.measure_rate(sampler.batch(0, some, 0, 0))
            held_out = len(sampler.held_out_places(1))
            validation = held_out / 3  # a forward pass is a third of a training step
            windows = sampler.windows_an_epoch + validation
            minutes = windows * epochs_left / rate / 60
            estimate = f"{minutes / 60:,.1f} hours" if minutes > 90 else f"{minutes:.1f} minutes"
            speed = f"{rate:,.1f} windows/s, measured on this CPU just now"
            lines.append(f"time       about {estimate} at {speed}")
        if self.resumed:
            rest = f"epoch {progress.epoch + 1}"
            if not epochs_left:
                rest = "nothing is left to train; testing the best weights again"
            lines.append(f"resumed    after step {progress.step:,}: {rest}")
        self.print("\n".join(lines))

    def bar(self, progress: Progress, steps: int, windows_a_step: int) -> tqdm:
        """Return a progress bar over the epoch's windows, which only a terminal shows."""
        return tqdm(
            total=steps * windows_a_step,
            initial=progress.step_in_epoch * windows_a_step,
            unit="window",
            leave=False,
            desc=f"epoch {progress.epoch + 1}",
            disable=None if self.active else True,  # None: unless stderr is a terminal
        )

    def write(self, kind: str, progress: Progress, scalars: dict[str, float]) -> None:
        """Append a row to metrics.csv."""
        if not self.active:
            return
        row = {
            "kind": kind,
            "epoch": progress.epoch,
            "step": progress.step,
            "windows_seen": progress.windows_seen,
            "seconds": round(progress.seconds, 3),
            **scalars,
        }
        self.write_row(row.get(column, "") for column in COLUMNS)

    def step(
        self, progress: Progress, loss: float, lr: float, norm: float, wait_seconds: float
    ) -> None:
        """Log a step, with speed and share of waiting for data since the step logged before.

        wait_seconds: for data, since this process began.
        """
        self.count_time(progress, training=True)
        now = (progress.windows_seen, progress.step_seconds, wait_seconds)
        windows, seconds, waited = (b - a for a, b in zip(self.logged, now, strict=True))
        self.logged = now
        scalars = {
            "train_loss": loss,
            "learning_rate": lr,
            "gradient_norm": norm,
            "windows_per_second": windows / seconds,
            "data_wait_share": waited / seconds,
        }
        self.write("step", progress, scalars)
        if self.active:
            shown = [(tag, scalars[column]) for column, tag in self.step_tags.items()]
            if torch.cuda.is_available():
                shown.append(("speed/gpu_memory_gb", torch.cuda.max_memory_allocated() / 1e9))
            self.board.scalars(shown, progress.step)

    def validation(self, progress: Progress, scores: Scores, fill: str) -> None:
        """Log the losses of a validation, whole and in parts. fill: what training began at."""
        for part in ("all", *scores.parts()):
            kind = "validation" if part == "all" else f"{OF_PART}{part}"
            losses = {f"{answer}_loss": scores.loss(answer, part) for answer in ANSWERS}
            self.write(kind, progress, losses)
        if self.active:
            self.board.validation(scores, progress.step)
        if progress.step == 0:
            beside = describe_untrained(scores, fill)
            self.print(f"before     validation loss {scores.loss():.6f}; {beside}")

    def epoch(
        self,
        progress: Progress,
        seconds: float,
        train: float,
        validation: float,
        lr: float,
        rate: float,
    ) -> None:
        """Log an epoch: its duration, losses, learning rate, and windows/s (rate)."""
        scalars = {
            "train_loss": train,
            "validation_loss": validation,
            "learning_rate": lr,
            "windows_per_second": rate,
        }
        self.write("epoch", progress, scalars)
        if not self.header_printed:
            self.print(
                "epoch  duration (s)   train loss  validation loss  learning rate  windows/s"
            )
            self.header_printed = True
        self.print(
            f"{progress.epoch:>5} {seconds:>13.1f} {train:>12.6f} {validation:>16.6f} {lr:>14.2e} "
            f"{rate:>10,.0f}"
        )

    def test(
        self, progress: Progress, scores: Scores | None, fill: str, best: Path, meta: dict[str, Any]
    ) -> None:
        """Log the best weights' loss on the test windows, and say where everything is.

        scores: None if there are no test windows. fill: what training began at. best: the best
        checkpoint; meta: its metadata.
        """
        if scores is None:
            self.write("test", progress, {})  # the row says that the run has ended
            result = "test loss  none: no window lies in the test split"
        else:
            losses = {f"{answer}_loss": scores.loss(answer) for answer in ANSWERS}
            self.write("test", progress, losses)
            result = f"test loss  {scores.loss():.6f}; {describe_untrained(scores, fill)}"
        if not self.active:
            return
        epoch = meta["progress"]["best_epoch"]
        of = f"best checkpoint {best}: epoch {epoch}, {describe_step(meta)}"
        self.board.end(f"{result}\n\n{of}")
        print(f"{result}\n{of}")
        print(f"curves          tensorboard --logdir {self.folder.parent}", flush=True)

    def stopped(self, progress: Progress, by: str) -> None:
        """Say who stopped the run, where, and how it goes on."""
        where = f"at step {progress.step:,}" if progress.step else "before the first step"
        self.print(f"stopped by {by} {where}; go on with --resume=True")

    @drawing("picture of a window")
    def picture(self, progress: Progress, window: "Filled", tick: float, pair: str) -> None:
        """Draw a window and what fills its hidden values. tick: the price of a tick."""
        if not self.active:
            return
        from lob.training.picture import draw_filled

        title = f"{pair}, step {progress.step:,}: squared error of log size"
        self.board.picture(draw_filled(window, tick, title), progress.step)


def describe_untrained(scores: Scores, fill: str) -> str:
    """Return the losses of what needs no training; the fill that training began at comes first."""
    parts = []
    for answer in sorted(NAMES, key=lambda answer: answer != fill):
        words = f"{NAMES[answer]}, at which training began," if answer == fill else NAMES[answer]
        parts.append(f"{words} {scores.loss(answer):.6f}")
    return "; ".join(parts)


def describe_facts(environment: dict[str, Any]) -> dict[str, str]:
    """Return what env.json says, in a line each."""
    facts = {}
    for name, value in environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        if value is not None:
            facts[name] = str(value)
    return facts


def show_progress(things: Iterable[Any], total: int, name: str, active: bool) -> Iterable[Any]:
    """Return the same things with a progress bar over them, which only a terminal shows."""
    disable = None if active else True  # None: unless stderr is a terminal
    return tqdm(things, total=total, desc=name, unit="batch", leave=False, disable=disable)
