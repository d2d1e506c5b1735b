"""Result rows, and the report files that say what the rows were measured with.

A row is a dict with the five entries of `ROW`: what was measured (`case`, such as a network, and
`metric`), the finite number `value`, its `unit`, and a `note` on the conditions, which may be
empty. A report is a dict of rows, the command, the commit, the date, the device and the versions of
the packages that matter. It is stored as JSON.
"""

import json
import math
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lob.process import count_cores
from lob.storage import new_file

ROOT = Path(__file__).resolve().parent.parent
ROW = ("case", "metric", "value", "unit", "note")
# TensorBoard tags of a checkpoint's skills on tested windows. The tester writes them; the trainer
# names them among the metrics of its page HPARAMS.
TEST_SCORES = {"ladder": "test/skill_over_ladder", "ridge": "test/skill_over_ridge"}
PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "pandas",
    "pyarrow",
    "scipy",
    "scikit-learn",
    "safetensors",
    "tensorboard",
    "transformer-engine",
    "triton",
    "order-book",
    "hftbacktest",
    "gymnasium",
    "stable-baselines3",
)


def make_row(
    case: str, metric: str, value: float, unit: str = "", note: str = ""
) -> dict[str, Any]:
    return dict(zip(ROW, (case, metric, float(value), unit, note), strict=True))


def make_report(
    benchmark: str, rows: Sequence[dict[str, Any]], device: str | None = None, **more: Any
) -> dict[str, Any]:
    """Return a report: rows, and what they were measured with.

    device: what did the work, if it was not this process. more: further entries of the report.
    Raises ValueError if a row lacks an entry other than the note, has an unknown one, or has a
    value that is not finite.
    """
    return {
        "benchmark": benchmark,
        "command": describe_command(),
        "commit": describe_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "device": device or describe_device(),
        "versions": {"python": platform.python_version()} | describe_versions(),
        **more,
        "rows": [complete_row(row) for row in rows],
    }


def complete_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row, with an empty note if it has none. Raises ValueError if it is no result."""
    if not {*ROW} - {"note"} <= set(row) <= {*ROW}:
        needed = f"{', '.join(ROW)} (note may be left out)"
        raise ValueError(f"a result row needs {needed}, not {', '.join(row)}")
    if not math.isfinite(row["value"]):
        raise ValueError(f"{row['case']}, {row['metric']}: the value {row['value']} is not finite")
    return {"note": "", **row}


def write_report(file: Path, report: dict[str, Any]) -> None:
    with new_file(file) as handle:
        handle.write((json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a report. Raises ValueError if the file is not JSON or not a report."""
    report = json.loads(file.read_text())
    rows = report.get("rows") if isinstance(report, dict) else None
    if not isinstance(rows, list) or not all(is_row(row) for row in rows):
        raise ValueError(f"{file.name} holds no rows of {', '.join(ROW)}")
    return rows


def is_row(found: Any) -> bool:
    return isinstance(found, dict) and set(found) >= {*ROW}


def describe_command() -> str:
    """Return how this process was started, with paths from the root of the repository."""
    words = [word.replace(f"{ROOT}/", "") for word in sys.orig_argv[1:]]
    return " ".join(["python", *words])


def describe_environment() -> dict[str, Any]:
    """Return command, date, commit, versions, machine and GPU of this process."""
    torch = sys.modules.get("torch")  # not imported here, so that scripts without torch start fast
    gpus = torch.cuda.device_count() if torch is not None else 0
    return {
        "command": describe_command(),
        "date": datetime.now(UTC).isoformat(sep=" ", timespec="minutes"),
        "commit": describe_commit(),
        "python": platform.python_version(),
        "versions": describe_versions(),
        "gpu": torch.cuda.get_device_name() if torch is not None and gpus else None,
        "gpus": gpus,
        "machine": platform.platform(),
    }


def describe_commit() -> str:
    """Return the short commit; '-dirty' follows if tracked files differ from it.

    Files that the benchmarks themselves write (results, README.md, docs) may differ.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, cwd=ROOT
        )
        return done.stdout.strip()

    generated = (":!benchmarks/results", ":!README.md", ":!docs")
    changed = git("status", "--porcelain", "--untracked-files=no", ".", *generated)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def describe_device() -> str:
    """Return the GPU's name if this process has used CUDA, else the processor's and its cores."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        name = torch.cuda.get_device_name()
        count = torch.cuda.device_count()
        return f"{count} x {name}" if count > 1 else name
    return f"{describe_processor()}, {count_cores()} cores"


def describe_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    """Return the versions of those of `PACKAGES` that are installed, without importing them."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
