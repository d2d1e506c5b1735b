"""The output of every benchmark: a table, one JSON line and, with `write`, a file of results.

    from benchmarks.report import report
    row = {"case": "kernel", "metric": "updates_per_second", "value": 1e7, "unit": "1/s"}
    report("parser", [row], write=True)

Benchmarks run from the repository root as modules: `python -m benchmarks.bench_parser`.
lob/results.py says what a row and the JSON hold.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lob.results import ROOT, ROW, make_report, write_report

RESULTS = ROOT / "benchmarks" / "results"


def report(
    benchmark: str, rows: Sequence[dict[str, Any]], write: bool, device: str | None = None
) -> dict[str, Any]:
    """Print `rows` as a table and then as one JSON line; return what the line holds.

    Values are rounded to six digits. write: also store the JSON as
    benchmarks/results/<benchmark>.json. device: what did the work, if it was not this process.
    Raises ValueError if a row is no result (`lob.results.make_report`).
    """
    result = make_report(benchmark, rows, device)
    for row in result["rows"]:
        row["value"] = float(f"{row['value']:.6g}")
    print(format_table(result["rows"]))
    if write:
        write_report(RESULTS / f"{benchmark}.json", result)
    print(json.dumps(result, allow_nan=False), flush=True)
    return result


@dataclass(frozen=True)
class Watched:
    """What a script took. Its anonymous memory is its own, without pages of files that it maps."""

    seconds: float
    anonymous_mb: float  # the most at any time
    read_gb: float  # from the disk; what was in the page cache is not counted
    waiting_share: float  # of its seconds, without a core at work; 0 if threads kept more than one
    printed: str


def watch(*command: str) -> Watched:
    """Run a script, or with "-m" a module, to its end. Raises AssertionError if it fails."""
    most = 0
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as printed,
        subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=printed) as process,
    ):
        status = Path(f"/proc/{process.pid}/status")
        ended = 0
        while not ended:
            lines = status.read_text().splitlines()
            # A process that has just ended has no such line.
            held = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
            most = max([most, *held])
            time.sleep(0.01)
            ended, how, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(how)
        assert process.returncode == 0, f"{command} failed"
        printed.seek(0)
        busy = usage.ru_utime + usage.ru_stime
        read, waiting = usage.ru_inblock * 512 / 1e9, max(0.0, 1 - busy / seconds)
        return Watched(seconds, most * 1024 / 1e6, read, waiting, printed.read())


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    shown = [{**row, "value": format_value(row["value"])} for row in rows]
    cells = [ROW, *(tuple(row[name] for name in ROW) for row in shown)]
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
