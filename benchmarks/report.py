"""How every benchmark ends: a table, one JSON line, and with `write` a file of results.

    from benchmarks.report import report
    row = {"case": "kernel", "metric": "updates_per_second", "value": 1e7, "unit": "1/s"}
    report("parser", [row], write=True)

Benchmarks run from the repository root as modules: `python -m benchmarks.bench_parser`. What a row
and the JSON hold is said in lob/results.py.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lob.results import ROOT, ROW, make_report, write_report

RESULTS = ROOT / "benchmarks" / "results"


def report(
    benchmark: str, rows: Sequence[dict[str, Any]], write: bool, device: str | None = None
) -> dict[str, Any]:
    """Print `rows` as a table and then as one JSON line; return what the line holds.

    Values are rounded to six digits. `write` also stores the JSON as
    benchmarks/results/<benchmark>.json. `device` replaces the name of this process's device, for
    work that other processes did. Raises ValueError if a row is no result
    (`lob.results.make_report`).
    """
    result = make_report(benchmark, rows, device)
    for row in result["rows"]:
        row["value"] = float(f"{row['value']:.6g}")
    print(format_table(result["rows"]))
    if write:
        write_report(RESULTS / f"{benchmark}.json", result)
    print(json.dumps(result, allow_nan=False), flush=True)
    return result


def watch(*command: str) -> tuple[float, float]:
    """Run a script; return its seconds and the most anonymous memory that it held, in MB."""
    began, most = time.perf_counter(), 0
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            held = [
                int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")
            ]
            most = max([most, *held])
            time.sleep(0.01)
    assert process.returncode == 0, f"{command} failed"
    return time.perf_counter() - began, most / 1024


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        ROW,
        *((r["case"], r["metric"], format_value(r["value"]), r["unit"], r["note"]) for r in rows),
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(ROW))]
    sides = "<<><<"  # values are aligned at the right
    lines = []
    for line in cells:
        columns = zip(line, sides, widths, strict=True)
        lines.append("  ".join(f"{cell:{side}{width}}" for cell, side, width in columns).rstrip())
    return "\n".join(lines)


def format_value(value: float) -> str:
    """Return four significant digits, or the whole part: 0.01234, 12.34, 9, 1,234,567."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.3e}"
    return f"{value:.{3 - math.floor(math.log10(abs(value)))}f}"
