"""What a training run leaves to look at: its folder, metrics.csv, TensorBoard events and the printed table."""

import fcntl
import glob
import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lob.config import InputError
from lob.model.checkpoint import Progress, describe_step
from lob.results import describe_environment
from lob.storage import new_file

COLUMNS = ("kind", "epoch", "step", "windows_seen", "seconds", "train_loss", "validation_loss", "learning_rate",
           "gradient_norm", "windows_per_second", "data_wait_share")  # fmt: skip
MAY_CHANGE = {"epochs", "max_gpus", "num_workers", "resume", "runs_dir", "log_steps", "histogram_steps",
              "checkpoint_minutes", "keep_checkpoints"}  # fmt: skip


def runs_named(config: dict[str, Any]) -> list[Path]:
    """The run folders of this model_name, oldest first: <name>, <name>-2, ...; InputError where that is a path."""
    name, folder = config["model_name"], Path(config["runs_dir"])
    if name in ("", "..") or Path(name).name != name:
        raise InputError(f"model_name = {name!r} must be the name of one folder; --runs_dir names the one it lies in")
    found = [(1, folder / name)] if (folder / name).is_dir() else []
    for path in folder.glob(f"{glob.escape(name)}-*"):
        number = path.name.removeprefix(f"{name}-")
        if number.isdecimal() and not is_named(path, path.name):
            found.append((int(number), path))
    return [path for _, path in sorted(found)]


def is_named(run: Path, name: str) -> bool:
    """Whether a run was given this very name, as btc-2024 may have been, which is then no run of btc."""
    try:
        return bool(json.loads((run / "config.json").read_text())["model_name"] == name)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def new_run(config: dict[str, Any]) -> Path:
    """Return the first free folder for a run of this name."""
    name, taken, folder = config["model_name"], runs_named(config), Path(config["runs_dir"])
    if not taken:
        return folder / name
    number = 2 if taken[-1].name == name else int(taken[-1].name.rpartition("-")[2]) + 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


def find_run(config: dict[str, Any]) -> Path:
    """Return the newest run of this name; InputError where there is none or it was made with another config."""
    runs = runs_named(config)
    if not runs:
        raise InputError(f"there is no run {config['model_name']!r} in {config['runs_dir']} to resume: "
                         f"leave out --resume")  # fmt: skip
    changed = [change for key, change in config_changes(runs[-1], config).items() if key not in MAY_CHANGE]
    if changed:
        raise InputError(f"{runs[-1]} was trained with another config: {'; '.join(changed)}: change it back to resume")
    return runs[-1]


def claim_run(run: Path, how: int = fcntl.LOCK_EX) -> BinaryIO:
    """Open a run's metrics.csv, locked till it is closed or this process ends; InputError where another one has it.

    The lock is the open file's: it leaves nothing behind, and a file system without locks goes without.
    """
    metrics = open(run / "metrics.csv", "ab+")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(metrics, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{run} is still running: wait for its end, or stop it, to resume it") from None
    except OSError:
        pass
    return metrics


def config_changes(run: Path, config: dict[str, Any]) -> dict[str, str]:
    """Say in which keys `config` differs from that of a run; InputError where the run has none."""
    try:
        old = json.loads((run / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{run} can't be resumed: its config.json can't be read ({error})") from None
    return {key: f"{key} was {old.get(key)!r}, is {value!r}" for key, value in config.items() if old.get(key) != value}


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
