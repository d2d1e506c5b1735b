"""What a run shows: config.json, env.json, metrics.csv, TensorBoard events, and what is printed."""

import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lob.config import InputError
from lob.model.checkpoint import Progress, describe_step
from lob.model.encoder import count_parameters, flops_per_window
from lob.results import describe_environment
from lob.storage import new_file
from lob.training.distributed import Team
from lob.training.passes import Passes
from lob.training.precision import Precision
from lob.training.run_folder import COLUMNS, changed_settings, claim_run
from lob.training.samples import Sampler


class RunLog:
    """Writes a run's logs, on the first rank; on the others nothing is active.

    settings: the run's whole config, stored and shown; active: this is the first rank; resumed: the
    run goes on; saved: metadata of the checkpoint that it goes on from (what was logged after it is
    dropped), or nothing; facts: the precision and pairs that the config's choices came to.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        active: bool,
        resumed: bool,
        saved: dict[str, Any],
        facts: dict[str, Any],
    ):
        self.folder = folder
        self.settings = settings
        self.active = active
        self.resumed = resumed
        self.saved = saved
        self.facts = facts
        self.header_printed = False
        done = Progress(**saved.get("progress", {}))
        self.clock = time.perf_counter()
        # At the last log entry of a step: windows seen, seconds in steps, seconds of waiting.
        self.logged = (done.windows_seen, done.step_seconds, 0.0)
        self.purge_step = done.step + 1  # TensorBoard hides what was logged from here on

    def __enter__(self) -> "RunLog":
        if not self.active:
            return self
        from tensorboardX import SummaryWriter

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
        self.board = SummaryWriter(str(self.folder), purge_step=self.purge_step)
        lines = (f"    {key} = {value!r}" for key, value in self.settings.items())
        self.board.add_text("config", "\n".join(lines))
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
    ) -> None:
        """Print what a run begins with: folder, data, model, precision, step, time on a CPU."""
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
        ]
        if team.device.type == "cpu" and epochs_left:
            some = np.arange(min(passes.size, len(data.end_rows[0])))
            rate = team.world * passes.measure_rate(sampler.batch(0, some, 0, 0))
            validation = len(data.end_rows[1]) / 3  # a forward pass is a third of a training step
            windows = sampler.steps_an_epoch * sampler.windows_a_step + validation
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
        """Append a row to metrics.csv and the scalars to TensorBoard."""
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
        for name, value in scalars.items():
            self.board.add_scalar(f"{kind}/{name}", value, progress.step)

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
        if self.active and torch.cuda.is_available():
            gigabytes = torch.cuda.max_memory_allocated() / 1e9
            self.board.add_scalar("step/gpu_memory_gb", gigabytes, progress.step)

    def validation(self, progress: Progress, loss: float) -> None:
        self.write("validation", progress, {"validation_loss": loss})
        if progress.step == 0:
            linear = f"linear interpolation in time {progress.linear_loss:.6f}"
            self.print(f"before     validation loss {loss:.6f}; {linear}")

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

    def test(self, progress: Progress, loss: float, linear: float) -> None:
        """Log the best weights' loss on the test windows, and the config beside the run's scores.

        loss and linear (interpolation's loss) are NaN if there are no test windows.
        """
        if math.isnan(loss):
            self.write("test", progress, {})  # the row says that the run has ended
            self.print("test loss  none: no window lies in the test split")
        else:
            self.write("test", progress, {"validation_loss": loss})
            self.print(f"test loss  {loss:.6f}; linear interpolation in time {linear:.6f}")
        if self.active:
            keys = {
                key: value if isinstance(value, int | float | str | bool) else str(value)
                for key, value in self.settings.items()
            }
            scores = {"best_validation_loss": progress.best_loss, "test_loss": loss}
            finite = {name: value for name, value in scores.items() if not math.isnan(value)}
            self.board.add_hparams(keys, finite, name=".")

    def end(self, best: Path, meta: dict[str, Any]) -> None:
        """Say where everything is. meta: the best checkpoint's metadata."""
        if self.active:
            epoch = meta["progress"]["best_epoch"]
            print(f"best checkpoint {best}: epoch {epoch}, {describe_step(meta)}")
            print(f"curves          tensorboard --logdir {self.folder.parent}", flush=True)

    def histograms(self, model: nn.Module, step: int) -> None:
        """Write a histogram of each parameter's gradients to TensorBoard."""
        if self.active:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    gradients = parameter.grad.float().cpu().numpy()
                    self.board.add_histogram(f"gradients/{name}", gradients, step)

    def picture(self, progress: Progress, values: Tensor, mask: Tensor, prediction: Tensor) -> None:
        """Draw a reconstructed window (T, L, F): truth, what was visible, and what was predicted.

        Prices stand above sizes.
        """
        if not self.active:
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        images = {
            "truth": values,
            "visible": torch.where(mask, math.nan, values),
            "encoder": torch.where(mask, prediction, values),
        }
        figure, axes = plt.subplots(
            2, 3, figsize=(12, 6), layout="constrained", sharex=True, sharey=True
        )
        for field, name in enumerate(("price", "size")):
            low, high = values[..., field].quantile(torch.tensor([0.01, 0.99])).tolist()
            for axis, (title, image) in zip(axes[field], images.items(), strict=True):
                picture = image[..., field].T.numpy()
                axis.imshow(
                    picture, aspect="auto", origin="lower", vmin=low, vmax=high, cmap="magma"
                )
                axis.set(title=f"{name}, {title}", xlabel="book state", ylabel="level")
        self.board.add_figure("reconstruction", figure, progress.step)
        plt.close(figure)
