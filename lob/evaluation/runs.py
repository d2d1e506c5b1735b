"""Training runs compared: a table, the keys in which they differ, and warnings about a run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lob.config import counted

# Keys of a run's config that name the run or a place, and are no hyperparameters.
NAMES = {"model_name", "runs_dir", "resume", "data_dir", "azure_data_root", "model_path"}
# Keys that decide over which values the loss is taken. If two runs differ in one of them, their
# losses can't be compared.
LOSS_KEYS = (
    "data_dir",
    "pairs",
    "split_ratios",
    "temporal_dim",
    "depth_dim",
    "normalization",
    "causal",
    "mask_mode",
    "mask_perc",
    "loss",
)


@dataclass
class Run:
    """A training run."""

    name: str
    config: dict[str, Any]
    precision: str  # in which it ran (env.json), or else the one asked for (config.json)
    pairs: list[str]  # it was trained on these (env.json or config.json); empty if not known
    metrics: dict[str, pd.DataFrame]  # rows of metrics.csv by kind
    report: list[dict[str, Any]]  # rows of report.json; empty if the run was not tested
    changed: float  # when config.json was written, seconds since 1970

    @property
    def trained(self) -> pd.DataFrame:
        """The validations after the first step that have a loss."""
        return self.metrics["validation"].query("step > 0").dropna(subset="validation_loss")

    @property
    def best_loss(self) -> float:
        return float(self.trained["validation_loss"].min())

    @property
    def loss_before(self) -> float:
        """The validation loss before the first step; NaN if there is none."""
        before = self.metrics["validation"].query("step == 0")["validation_loss"]
        return float(before.iloc[0]) if len(before) else float("nan")

    @property
    def ladder_loss(self) -> float:
        """The validation loss of the ladder, which is not trained; NaN if it is not known."""
        known = self.metrics["validation"]["ladder_loss"].dropna()
        return float(known.iloc[-1]) if len(known) else float("nan")

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return int(max(self.metrics["epoch"]["epoch"], default=0))


def make_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a table with a row for each run; losses are NaN if the run did not get that far."""
    return pd.DataFrame([describe_run(run) for run in runs])


def describe_run(run: Run) -> dict[str, Any]:
    step, epoch, test = (run.metrics[kind] for kind in ("step", "epoch", "test"))
    logged = pd.concat(run.metrics.values())
    last = logged.loc[logged["step"] == logged["step"].max()].iloc[0]
    trained = run.trained
    best_epoch = trained.loc[trained["validation_loss"].idxmin(), "epoch"] if len(trained) else 0
    rates = epoch if len(epoch) else step
    return {
        "run": run.name,
        "model_size": run.config.get("model_size", ""),
        "precision": run.precision,
        "epochs": f"{run.epochs}/{run.config.get('epochs', '?')}",
        "steps": int(last["step"]),
        "windows_seen": int(last["windows_seen"]),
        "minutes": logged["seconds"].max() / 60,
        "windows_per_second": rates["windows_per_second"].median(),
        "data_wait_share": step["data_wait_share"].median(),
        "train_loss": epoch["train_loss"].iloc[-1] if len(epoch) else np.nan,
        "before_training": run.loss_before,
        "best_validation": run.best_loss,
        "ladder": run.ladder_loss,
        "best_epoch": best_epoch,
        "test": test["validation_loss"].iloc[-1] if len(test) else np.nan,
    }


def sort_key(value: Any) -> tuple[float, str]:
    """Return what sorts the values of a config key: numbers by size, others by their text."""
    if isinstance(value, int | float):
        return float(value), f"{value:g}"
    return 0.0, str(value)


def find_different_keys(runs: Sequence[Run], keys: Sequence[str] = ()) -> list[str]:
    """Return those of `keys` (if empty, of all hyperparameters) that differ between the runs."""
    all_keys = dict.fromkeys(key for run in runs for key in run.config if key not in NAMES)
    return [key for key in keys or all_keys if len({repr(run.config.get(key)) for run in runs}) > 1]


def group_runs(runs: Sequence[Run], but: set[str]) -> list[list[Run]]:
    """Return groups of runs whose hyperparameters other than those in `but` are equal."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in sorted(run.config.items()) if key not in NAMES | but}
        groups.setdefault(repr(rest), []).append(run)
    return list(groups.values())


def group_comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Return groups of runs whose losses compare, since they are taken over the same values."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = repr([sorted(run.pairs), *(run.config.get(key) for key in LOSS_KEYS)])
        groups.setdefault(rest, []).append(run)
    return list(groups.values())


def smooth(values: Any, entries: int) -> Any:
    """Return the exponential average of a series or frame over about so many entries."""
    return values.ewm(span=entries, ignore_na=True).mean()


def find_lost_losses(run: Run) -> Iterator[str]:
    """Yield a warning if a train loss is not finite."""
    steps = run.metrics["step"]
    finite = np.isfinite(steps["train_loss"])
    if not finite.all():
        row = steps.loc[finite.idxmin()]
        epoch = int(row["epoch"]) + 1
        yield f"train loss {row['train_loss']} at step {int(row['step']):,}, epoch {epoch}"


def find_divergence(run: Run, smoothing: int, factor: float) -> Iterator[str]:
    """Yield a warning if the smoothed train loss exceeds `factor` times its least value before."""
    steps = run.metrics["step"]
    losses = steps["train_loss"].where(np.isfinite(steps["train_loss"]))
    level = smooth(losses, smoothing)[smoothing:]  # an average over fewer entries is noise
    over = level > factor * level.cummin()
    if over.any():
        first = over.idxmax()
        row, least = steps.loc[first], level[:first].min()
        yield (
            f"diverged in epoch {int(row['epoch']) + 1}, step {int(row['step']):,}: "
            f"smoothed train loss {level[first]:.4g} after {least:.4g}"
        )


def find_plateau(run: Run, least_epochs: int, gain: float) -> Iterator[str]:
    """Yield a warning if the last `least_epochs` or more lowered the loss by less than `gain`.

    gain: a share of the best validation loss.
    """
    trained = run.trained
    if not len(trained):
        return
    best = trained["validation_loss"].cummin()
    final = best.iloc[-1]
    near = trained.loc[(best * (1 - gain) <= final).idxmax()]
    epochs = int(trained["epoch"].iloc[-1] - near["epoch"])
    if epochs >= least_epochs:
        yield (
            f"plateau from epoch {int(near['epoch'])}: {counted(epochs, 'more epoch')} "
            f"lowered the best validation loss by {1 - final / near['validation_loss']:.2%}"
        )


def find_failure(run: Run) -> Iterator[str]:
    """Yield a warning if training made a run no better, or if it has not ended."""
    if len(run.trained) and run.best_loss >= run.loss_before:
        yield (
            f"no validation was better than before training, {run.loss_before:.6f}: the best "
            "checkpoint holds untrained weights"
        )
    wanted = run.config.get("epochs", 0)
    if run.epochs < wanted and not len(run.metrics["test"]):
        yield f"unfinished: {run.epochs} of {counted(wanted, 'epoch')}"
