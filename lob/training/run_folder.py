"""A run's folder: its name, its lock, its stored settings, and the columns of metrics.csv.

`settings` is the whole config of a run. It is stored and compared here, but no key of it is used.
"""

import fcntl
import glob
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lob.config import InputError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "kind",
    "epoch",
    "step",
    "windows_seen",
    "seconds",
    "train_loss",
    "validation_loss",
    "ladder_loss",
    "linear_loss",
    "learning_rate",
    "gradient_norm",
    "windows_per_second",
    "data_wait_share",
)
KINDS = {"step", "validation", "epoch", "test"}  # of rows of metrics.csv
# The kind of a row begins with this if its losses are of a part of the hidden values: of prices
# alone, of sizes alone, or of the windows that one mask hides.
OF_PART = "validation_"
MAY_CHANGE = {  # keys in which a resumed run may differ from what it was before
    "epochs",
    "max_gpus",
    "num_workers",
    "resume",
    "runs_dir",
    "log_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
}


def runs_named(runs_dir: str | Path, name: str) -> list[Path]:
    """Return the folders of the runs of this name, oldest first: <name>, <name>-2, ...

    Raises InputError if the name is a path.
    """
    folder = Path(runs_dir)
    if name in ("", "..") or Path(name).name != name:
        raise InputError(
            f"model_name = {name!r} must be the name of one folder; "
            "--runs_dir names the folder of all runs"
        )
    found = [(1, folder / name)] if (folder / name).is_dir() else []
    for path in folder.glob(f"{glob.escape(name)}-*"):
        number = path.name.removeprefix(f"{name}-")
        if number.isdecimal() and not is_named(path, path.name):
            found.append((int(number), path))
    return [path for _, path in sorted(found)]


def is_named(run: Path, name: str) -> bool:
    """Return whether a run's model_name is exactly `name`.

    A run named btc-2024 is not the 2024th run named btc.
    """
    try:
        return bool(json.loads((run / "config.json").read_text())["model_name"] == name)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def new_run(runs_dir: str | Path, name: str) -> Path:
    """Return the first free folder for a run of this name."""
    taken, folder = runs_named(runs_dir, name), Path(runs_dir)
    if not taken:
        return folder / name
    number = 2 if taken[-1].name == name else int(taken[-1].name.rpartition("-")[2]) + 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


def find_run(runs_dir: str | Path, name: str, settings: dict[str, Any]) -> Path:
    """Return the newest run of this name, to be resumed.

    Raises InputError if there is none, or if it was trained with other settings.
    """
    runs = runs_named(runs_dir, name)
    if not runs:
        raise InputError(f"there is no run {name!r} in {runs_dir} to resume: leave out --resume")
    check_columns(runs[-1])
    changed = [
        change
        for key, change in changed_settings(runs[-1], settings).items()
        if key not in MAY_CHANGE
    ]
    if changed:
        raise InputError(
            f"{runs[-1]} was trained with another config: {'; '.join(changed)}: "
            "change it back to resume"
        )
    return runs[-1]


def check_columns(run: Path) -> None:
    """Raise InputError if another version began the run's metrics.csv, with other columns."""
    try:
        with open(run / "metrics.csv") as metrics:
            first = metrics.readline().rstrip("\n")
    except OSError:
        return
    if first and first != ",".join(COLUMNS):
        raise InputError(
            f"{run} was begun by another version, whose metrics.csv has other columns: "
            "start without --resume; --load_model=True takes its weights"
        )


def choose_folder(runs_dir: str | Path, name: str, settings: dict[str, Any], resume: bool) -> Path:
    """Return the folder of the run to resume, or of a new one."""
    return find_run(runs_dir, name, settings) if resume else new_run(runs_dir, name)


def claim_run(run: Path, how: int = fcntl.LOCK_EX) -> BinaryIO:
    """Open a run's metrics.csv and lock it until it is closed or this process ends.

    how: LOCK_EX to write, LOCK_SH to see whether another process does. Raises InputError if another
    process holds the lock. On a file system that has no locks the file is opened without one.
    """
    metrics = open(run / "metrics.csv", "ab+")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(metrics, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{run} is still running: wait for its end, or stop it, to resume it"
        ) from None
    except OSError:  # no locks here
        pass
    return metrics


def refuse_running(run: Path) -> None:
    """Raise InputError if another process trains this run."""
    claim_run(run, fcntl.LOCK_SH).close()


def changed_settings(run: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Return how `settings` differ from a run's, as a text for each key.

    Raises InputError if the run's config.json can't be read.
    """
    try:
        old = json.loads((run / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"{run} can't be resumed: its config.json can't be read ({error})"
        ) from None
    return {
        key: f"{key} was {old.get(key)!r}, is {value!r}"
        for key, value in settings.items()
        if old.get(key) != value
    }


def read_metrics(run: Path) -> "pd.DataFrame":
    """Read a run's metrics.csv: one row for each log entry, with the columns of `COLUMNS`.

    Numbers that a row does not give are NaN. An unfinished last line, as a killed run leaves it, is
    not read. Raises ValueError if the file is damaged.
    """
    import pandas as pd

    raw = (run / "metrics.csv").read_bytes()
    raw = raw[: raw.rfind(b"\n") + 1]
    if raw.split(b"\n", 1)[0].decode() != ",".join(COLUMNS):
        raise ValueError(
            "metrics.csv does not begin with the columns that fp8_ddp_trainer.py writes"
        )
    counts = dict.fromkeys(("epoch", "step", "windows_seen"), "int64")
    numbers = dict.fromkeys(COLUMNS[1:], "float64") | counts
    rows = pd.read_csv(io.BytesIO(raw), dtype={"kind": "category", **numbers}, engine="c")
    kinds = rows["kind"].cat.categories
    unknown = {kind for kind in kinds if not str(kind).startswith(OF_PART)} - KINDS
    if unknown:
        raise ValueError(f"metrics.csv has rows of the unknown kinds {sorted(unknown)}")
    if not len(rows):
        raise ValueError("metrics.csv holds no rows")
    return rows
