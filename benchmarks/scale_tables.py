"""Tables of what a recording's length costs, and how that grows."""

import numpy as np

from benchmarks.report import format_value
from benchmarks.tables import Cells, describe_conditions, format_table, read_cells, say_missing

PARTS = {
    "statistics": "`exploration_main.py`",
    "sample": "`create_balanced_dataset.py`",
    "loader": "the trainer's loader",
}
COLUMNS = {"seconds": 1, "core_seconds": 1, "anonymous_mb": 1, "read_gb": 1}
LOADER = {"first_batch_seconds": 1, "windows_per_second": 1, "data_wait_share": 100}
GROWING = ("core_seconds", "anonymous_mb", "read_gb")
YEAR = 300_000_000  # states at 100 ms, some weeks of gaps left out


def make_scale_tables() -> list[str]:
    """Seconds, memory and bytes read by number of states, how they grow, and the loader's rate."""
    cells = read_cells("scale")
    if not cells:
        return say_missing("scale")
    for case in {case for case, _ in cells}:
        seconds, waiting = (cells[case, name] for name in ("seconds", "waiting_share"))
        at_work = seconds["value"] * (1 - waiting["value"])
        cells[case, "core_seconds"] = seconds | {"value": at_work}
    rows, growth, loader = [], [], []
    sizes = sorted({int(case.split("/")[1]) for case, _ in cells if not case.endswith("pairs")})
    names = {str(states): f"{states:,}" for states in sizes}
    names["pairs"] = cells["statistics/pairs", "seconds"]["note"]
    for part, words in PARTS.items():
        for case, name in names.items():
            rows.append([words, name, *show(cells, f"{part}/{case}", COLUMNS)])
        if part != "loader":  # it takes the same number of steps from any book
            growth += describe_growth(cells, part, sizes)
    for case, name in names.items():
        loader.append([name, *show(cells, f"loader/{case}", LOADER)])
    head = ["stage", "states", "seconds", "of them at work on a core", "anonymous MB", "GB read"]
    growth_head = ["stage", "", "seconds at work", "anonymous MB", "GB read"]
    loader_head = [
        "states",
        "seconds to the first batch",
        "windows/s",
        "waiting at 37 ms a step, %",
    ]
    return [
        *format_table(head, rows, words=2),
        "",
        *format_table(growth_head, growth, words=2),
        "",
        *format_table(loader_head, loader),
        "",
        *describe_conditions("scale"),
    ]


def describe_growth(cells: Cells, part: str, sizes: list[int]) -> list[list[str]]:
    """Return lines of a part's exponents, its growth by million states, and its year."""
    found = [
        measure_growth(sizes, [cells[f"{part}/{states}", name]["value"] for states in sizes])
        for name in GROWING
    ]
    exponents = [f"{exponent:.2f}" for exponent, _, _ in found]
    exponents[1] = ""  # memory is the larger of what grows and of what does not
    return [
        [PARTS[part], "exponent of growth", *exponents],
        [PARTS[part], "each further million", *(format_value(1e6 * rate) for _, rate, _ in found)],
        [PARTS[part], f"{YEAR:,} (estimate)", *(format_value(year) for *_, year in found)],
    ]


def measure_growth(sizes: list[int], values: list[float]) -> tuple[float, float, float]:
    """Return how values grow with sizes: exponent, growth by state, and the value at YEAR states.

    The exponent is that of what exceeds the first value, fitted to all others; growth by state is
    that between the last two, and continues up to YEAR.
    """
    counts, taken = np.array(sizes, dtype=float), np.array(values)
    more = np.maximum(taken[1:] - taken[0], 1e-9)
    exponent, _ = np.polyfit(np.log(counts[1:]), np.log(more), 1)
    rate = (taken[-1] - taken[-2]) / (counts[-1] - counts[-2])
    return float(exponent), float(rate), float(taken[-1] + rate * (YEAR - counts[-1]))


def show(cells: Cells, case: str, columns: dict[str, int]) -> list[str]:
    return [format_value(cells[case, name]["value"] * scale) for name, scale in columns.items()]
