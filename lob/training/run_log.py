"""What a training run leaves to look at: its folder, metrics.csv, TensorBoard events and the printed table."""

import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lob.config import InputError
from lob.model.checkpoint import Progress, describe_step
from lob.results import describe_environment
from lob.storage import new_file
from lob.training.run_folder import COLUMNS, claim_run, config_changes


class RunLog:
    """Writes a run's logs; on other ranks than the first it does nothing."""

    def __init__(self, folder: Path, config: dict[str, Any], active: bool, saved: dict[str, Any],
                 facts: dict[str, Any]):  # fmt: skip
        """saved: the metadata of the checkpoint that the run goes on from; what was logged after it is dropped.

        facts: what the config's precision and pairs came to, by key.
        """
        self.folder, self.config, self.active, self.saved, self.facts = folder, config, active, saved, facts
        self.header_printed = False
        done = Progress(**saved.get("progress", {}))
        self.clock, self.logged = time.perf_counter(), (done.windows_seen, done.step_seconds, 0.0)
        self.purge_step = done.step + 1

    def __enter__(self) -> "RunLog":
        if not self.active:
            return self
        from tensorboardX import SummaryWriter

        environment = describe_environment() | self.facts
        try:
            self.folder.mkdir(parents=True, exist_ok=self.config["resume"])
        except FileExistsError:
            raise InputError(f"another run has just begun in {self.folder}: start this one again") from None
        self.metrics = claim_run(self.folder)
        if self.config["resume"]:
            for key, change in config_changes(self.folder, self.config).items():
                if key != "resume":
                    print(f"changed    {change}")
        for name, content in (("config.json", self.config), ("env.json", environment)):
            with new_file(self.folder / name) as handle:
                handle.write(json.dumps(content, indent=1).encode())
        self.metrics.truncate(min(self.metrics_bytes(), self.saved.get("metrics_bytes", 0)))
        if self.metrics_bytes() == 0:
            self.write_row(COLUMNS)
        self.board = SummaryWriter(str(self.folder), purge_step=self.purge_step)
        self.board.add_text("config", "\n".join(f"    {key} = {value!r}" for key, value in self.config.items()))
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.metrics.close()
            self.board.close()

    def metrics_bytes(self) -> int:
        return os.fstat(self.metrics.fileno()).st_size

    def write_row(self, values: Iterable[Any]) -> None:
        self.metrics.write((",".join(map(str, values)) + "\n").encode())
        self.metrics.flush()

    def count_time(self, progress: Progress, training: bool) -> None:
        """Book the time since the last call."""
        now = time.perf_counter()
        progress.seconds += now - self.clock
        progress.step_seconds += (now - self.clock) * training
        self.clock = now

    def print(self, text: str) -> None:
        if self.active:
            print(text, flush=True)

    def write(self, kind: str, progress: Progress, scalars: dict[str, float]) -> None:
        """Append a row to metrics.csv and the scalars to TensorBoard."""
        if not self.active:
            return
        row = {"kind": kind, "epoch": progress.epoch, "step": progress.step, "windows_seen": progress.windows_seen,
               "seconds": round(progress.seconds, 3), **scalars}  # fmt: skip
        self.write_row(row.get(column, "") for column in COLUMNS)
        for name, value in scalars.items():
            self.board.add_scalar(f"{kind}/{name}", value, progress.step)

    def step(self, progress: Progress, loss: float, lr: float, norm: float, wait_seconds: float) -> None:
        """Log a step, and speed and waiting for data since the step logged before."""
        self.count_time(progress, training=True)
        now = (progress.windows_seen, progress.step_seconds, wait_seconds)
        windows, seconds, waited = (b - a for a, b in zip(self.logged, now, strict=True))
        self.logged = now
        scalars = {"train_loss": loss, "learning_rate": lr, "gradient_norm": norm,
                   "windows_per_second": windows / seconds, "data_wait_share": waited / seconds}  # fmt: skip
        self.write("step", progress, scalars)
        if self.active and torch.cuda.is_available():
            self.board.add_scalar("step/gpu_memory_gb", torch.cuda.max_memory_allocated() / 1e9, progress.step)

    def validation(self, progress: Progress, loss: float) -> None:
        self.write("validation", progress, {"validation_loss": loss})
        if progress.step == 0:
            linear = progress.linear_loss
            self.print(f"before     validation loss {loss:.6f}; linear interpolation in time {linear:.6f}")

    def epoch(self, progress: Progress, seconds: float, train: float, validation: float, lr: float,
              rate: float) -> None:  # fmt: skip
        scalars = {"train_loss": train, "validation_loss": validation, "learning_rate": lr, "windows_per_second": rate}
        self.write("epoch", progress, scalars)
        if not self.header_printed:
            self.print("epoch  duration (s)   train loss  validation loss  learning rate  windows/s")
            self.header_printed = True
        self.print(f"{progress.epoch:>5} {seconds:>13.1f} {train:>12.6f} {validation:>16.6f} {lr:>14.2e} "
                   f"{rate:>10,.0f}")  # fmt: skip

    def test(self, progress: Progress, loss: float, linear: float) -> None:
        """Log the best weights' loss on the test windows (nan where there are none) and end the table of hparams."""
        if math.isnan(loss):
            self.write("test", progress, {})  # the row says that the run has ended
            self.print("test loss  none: no window lies in the test split")
        else:
            self.write("test", progress, {"validation_loss": loss})
            self.print(f"test loss  {loss:.6f}; linear interpolation in time {linear:.6f}")
        if self.active:
            keys = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in self.config.items()}
            losses = {"best_validation_loss": progress.best_loss, "test_loss": loss}
            self.board.add_hparams(keys, {k: v for k, v in losses.items() if not math.isnan(v)}, name=".")

    def end(self, best: Path, meta: dict[str, Any]) -> None:
        """Say where everything is. meta: the best checkpoint's."""
        if self.active:
            print(f"best checkpoint {best}: epoch {meta['progress']['best_epoch']}, {describe_step(meta)}\n"
                  f"curves          tensorboard --logdir {self.config['runs_dir']}", flush=True)  # fmt: skip

    def histograms(self, model: nn.Module, step: int) -> None:
        if self.active:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    self.board.add_histogram(f"gradients/{name}", parameter.grad.float().cpu().numpy(), step)

    def picture(self, progress: Progress, values: Tensor, mask: Tensor, prediction: Tensor) -> None:
        """One reconstructed window: truth, what was visible, and the prediction of what was not; prices above sizes."""
        if not self.active:
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        images = {"truth": values, "visible": torch.where(mask, math.nan, values),
                  "encoder": torch.where(mask, prediction, values)}  # fmt: skip
        figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained", sharex=True, sharey=True)
        for field, name in enumerate(("price", "size")):
            low, high = values[..., field].quantile(torch.tensor([0.01, 0.99])).tolist()
            for axis, (title, image) in zip(axes[field], images.items(), strict=True):
                axis.imshow(image[..., field].T.numpy(), aspect="auto", origin="lower", vmin=low, vmax=high,
                            cmap="magma")  # fmt: skip
                axis.set(title=f"{name}, {title}", xlabel="book state", ylabel="level")
        self.board.add_figure("reconstruction", figure, progress.step)
        plt.close(figure)
