"""Tables of what a recording's length costs."""

from benchmarks.report import format_value
from benchmarks.tables import Cells, describe_conditions, format_table, read_cells, say_missing

PARTS = {
    "statistics": "`exploration_main.py`",
    "sample": "`create_balanced_dataset.py`",
    "loader": "the trainer's loader",
}
COLUMNS = {"seconds": 1, "anonymous_mb": 1, "read_gb": 1, "waiting_share": 100}
LOADER = {"first_batch_seconds": 1, "windows_per_second": 1, "data_wait_share": 100}


def make_scale_tables() -> list[str]:
    """Seconds, memory and bytes read by number of states, how they grow, and the loader's rate."""
    cells = read_cells("scale")
    if not cells:
        return say_missing("scale")
    rows, loader = [], []
    for part, words in PARTS.items():
        for case, name in list_cases(cells, part):
            rows.append([words, name, *show(cells, case, COLUMNS)])
            if (case, "windows_per_second") in cells:
                loader.append([name, *show(cells, case, LOADER)])
        exponents = [cells.get((f"{part}/growth", f"{column}_exponent")) for column in COLUMNS]
        shown = ["" if row is None else say_exponent(row["value"]) for row in exponents]
        rows.append([words, "exponent of growth", *shown])
    head = ["stage", "states", "seconds", "anonymous MB", "GB read", "no core at work, %"]
    loader_head = [
        "states",
        "seconds to the first batch",
        "windows/s",
        "waiting at 37 ms a step, %",
    ]
    return [
        *format_table(head, rows, words=2),
        "",
        *format_table(loader_head, loader),
        "",
        *describe_conditions("scale"),
    ]


def list_cases(cells: Cells, part: str) -> list[tuple[str, str]]:
    """Return the cases of a part, each with its number of states in words."""
    found = []
    for case in dict.fromkeys(case for case, _ in cells):
        owner, name = case.split("/")
        if owner != part or name == "growth":
            continue
        states = name.removeprefix("estimate_")
        if name == "pairs":
            words = cells[case, "seconds"]["note"]
        else:
            words = f"{int(states):,}" + (" (estimate)" if states != name else "")
        found.append((case, words))
    return found


def show(cells: Cells, case: str, columns: dict[str, int]) -> list[str]:
    found = {name: cells.get((case, name)) for name in columns}
    return [
        "" if row is None else format_value(row["value"] * columns[name])
        for name, row in found.items()
    ]


def say_exponent(value: float) -> str:
    return f"{value:.2f}" if value else "does not grow"
