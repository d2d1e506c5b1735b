"""The table with which a first run ends: the encoder beside the ladder and the ridge, in words.

    python -m lob.evaluation.summary runs/sample/report.json
    python -m lob.evaluation.summary runs/sample/report.json runs/shipped/report.json

It reads report.json as inference_testing.py writes it. The second report is that of the encoder
that ships, on the same windows; without it its column is left out.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from lob.config import InputError, run
from lob.evaluation.intervals import verdict
from lob.evaluation.report import MASKS
from lob.results import read_rows

Cells = dict[tuple[str, str], float]  # (case, metric) -> value
RIVALS = ("ladder", "ridge")
ROWS = (  # mask and quantity
    ("patch", "log_size"),
    ("span", "log_size"),
    ("tail", "log_size"),
    ("entry", "log_size"),
    ("patch", "offset"),
)


def summarise(report: Path, shipped: Path | None = None) -> str:
    """Return the table of each pair. Raises InputError if a report is missing or damaged."""
    mine = read_cells(report)
    other = read_cells(shipped) if shipped else {}
    pairs = dict.fromkeys(case.split("/")[0] for case, _ in mine)
    tables = [table_of(pair, mine, other) for pair in pairs]
    if not any(tables):
        names = ", ".join(dict.fromkeys(mask for mask, _ in ROWS))
        raise InputError(f"{report} scores none of the masks {names}: set --masks in the tester")
    return "\n\n".join("\n".join(lines) for lines in tables if lines)


def read_cells(report: Path) -> Cells:
    try:
        return {(row["case"], row["metric"]): row["value"] for row in read_rows(report)}
    except (OSError, ValueError) as error:
        raise InputError(f"{report} can't be read ({error}): run inference_testing.py") from None


def table_of(pair: str, mine: Cells, other: Cells) -> list[str]:
    """Return the lines of a pair's table; none if nothing of ROWS was scored."""
    heads = ["hidden", "ladder", "ridge", "your encoder", "shipped encoder"]
    table = []
    for mask, quantity in ROWS:
        case = f"{pair}/{mask}/{quantity}"
        if (case, "error") not in mine:
            continue
        name = MASKS[mask] if quantity == "log_size" else f"prices of {MASKS[mask]}"
        star = "" if mine.get((case, "trained_on"), 1) else " *"
        errors = [show(mine, case, f"{method}_error") for method in RIVALS]
        table.append([name + star, *errors, *(describe(cells, case) for cells in (mine, other))])
    if not table:
        return []
    columns = len(heads) if other else len(heads) - 1
    widths = [max(map(len, column)) for column in zip(heads, *table, strict=True)]
    lines = [
        f"{pair}, test windows: squared error of the logarithm of hidden sizes (of prices, ticks "
        "from the mid);",
        "lower is better; beside it, what the encoder's error is more or less than the better one "
        "of ladder and ridge (95 %)",
    ]
    for row in (heads, *table):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells[:columns]).rstrip())
    if any(row[0].endswith(" *") for row in table):
        lines.append("* your encoder was not trained on this way to hide")
    return lines


def show(cells: Cells, case: str, metric: str) -> str:
    return f"{cells[case, metric]:.3g}" if (case, metric) in cells else "-"


def describe(cells: Cells, case: str) -> str:
    """Return an encoder's error, and how it does beside the better one of ladder and ridge.

    Such as '0.216 better, -9 to -5 %', with the ends of the 95 % interval.
    """
    rivals = {
        name: cells[case, f"{name}_error"] for name in RIVALS if (case, f"{name}_error") in cells
    }
    ends = []
    if rivals:
        rival = min(rivals, key=lambda name: rivals[name])
        ends = [cells.get((case, f"difference_{rival}_{end}"), math.nan) for end in ("low", "high")]
    error = show(cells, case, "error")
    if not ends or not all(map(math.isfinite, ends)):
        return error
    words = f"{error} {verdict(*ends)}"
    if rivals[rival] == 0 or ends == [0, 0]:
        return words
    low, high = (100 * end / rivals[rival] for end in ends)
    return f"{words}, {low:+.0f} to {high:+.0f} %"


def main(words: dict[str, Sequence[str]]) -> int:
    reports = [Path(name) for name in words["reports"]]
    if len(reports) not in (1, 2):
        raise InputError("name one report.json, or two: yours and the shipped encoder's")
    print(summarise(*reports))
    return 0


if __name__ == "__main__":
    run(main, {"reports": sys.argv[1:]})
