"""How every benchmark ends: a table, one JSON line, and with `write` the file that the README's tables come from.

    from benchmarks.report import report
    report("parser", [{"case": "kernel", "metric": "updates_per_second", "value": 1e7, "unit": "1/s"}], write=True)

Benchmarks run from the repository root as modules: `python -m benchmarks.bench_parser`. The JSON holds benchmark,
command, commit, date, device, versions and rows of case, metric, value, unit, note.
"""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "numpy", "numba", "pandas", "pyarrow", "safetensors", "transformer-engine", "triton",
            "order-book", "hftbacktest")  # fmt: skip
ROW = ("case", "metric", "value", "unit", "note")


def report(benchmark: str, rows: Sequence[dict[str, Any]], write: bool, device: str | None = None) -> dict[str, Any]:
    """Print `rows` as a table and as one JSON line, the last that is printed; return what the line holds.

    A row has case, metric, a finite value (rounded to six digits), unit and optionally a note (the conditions, in
    words); ValueError where it has not. `write` also stores the JSON as benchmarks/results/<benchmark>.json. `device`
    replaces this process's, where others did the work.
    """
    complete = []
    for row in rows:
        if not {"case", "metric", "value", "unit"} <= set(row) <= set(ROW):
            raise ValueError(f"a result row needs {', '.join(ROW)} (note may be left out), not {', '.join(row)}")
        if not math.isfinite(row["value"]):
            raise ValueError(f"{row['case']}, {row['metric']}: {row['value']} is no result")
        complete.append({**row, "value": float(f"{row['value']:.6g}"), "note": row.get("note", "")})
    result = {
        "benchmark": benchmark,
        "command": " ".join(["python", *(word.replace(f"{ROOT}/", "") for word in sys.orig_argv[1:])]),
        "commit": describe_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device or describe_device(),
        "versions": describe_versions(),
        "rows": complete,
    }
    print(format_table(complete))
    if write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{benchmark}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(json.dumps(result, allow_nan=False), flush=True)
    return result


def watch(*command: str) -> tuple[float, float]:
    """Run a script; return its seconds and the most anonymous memory it held, in MB."""
    began, most = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = max([most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
            time.sleep(0.01)
    assert process.returncode == 0, f"{command} failed"
    return time.perf_counter() - began, most / 1024


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [ROW, *((r["case"], r["metric"], format_value(r["value"]), r["unit"], r["note"]) for r in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(ROW))]
    return "\n".join(
        f"{case:<{widths[0]}}  {metric:<{widths[1]}}  {value:>{widths[2]}}  {unit:<{widths[3]}}  {note}".rstrip()
        for case, metric, value, unit, note in cells
    )


def format_value(value: float) -> str:
    """Return a number with four significant digits, or all of its whole part: 0.01234, 12.34, 9, 1,234,567."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.3e}"
    return f"{value:.{3 - math.floor(math.log10(abs(value)))}f}"


def describe_commit() -> str:
    """Return the short commit, with -dirty where tracked files differ from it, results and README aside."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", ".", ":!benchmarks/results", ":!README.md")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def describe_device() -> str:
    """Return the GPU's name where this process has used CUDA, else the processor's and how many cores it may use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name()}" if count > 1 else torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter to speed and accuracy, without importing them."""
    named = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in metadata.distributions()}
    return {"python": platform.python_version()} | {name: named[name] for name in PACKAGES if name in named}
