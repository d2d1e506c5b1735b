"""Tables of a first hour on a CPU: three encoders on the half hour that ships, and the speed."""

from benchmarks.report import format_value
from benchmarks.tables import describe_conditions, format_table, read_cells, say_missing
from benchmarks.worth import TRAINED_MASKS
from lob.evaluation.intervals import verdict

ENCODERS = {
    "own": "trained on the half hour",
    "shipped": "shipped, never trained on it",
    "tuned": "shipped, then tuned on it",
}


def make_first_hour_tables() -> list[str]:
    """Errors of hidden sizes by encoder, with verdicts beside ladder and ridge; windows/s."""
    values = {key: row["value"] for key, row in read_cells("first_hour").items()}
    if not values:
        return say_missing("first_hour")
    rows = []
    for mask, words in TRAINED_MASKS.items():
        cases = {name: f"{name}/{mask}/log_size" for name in ENCODERS}
        rivals = [values[cases["own"], f"{rival}_error"] for rival in ("ladder", "ridge")]
        errors = [say_error(values, case) for case in cases.values()]
        rows.append([words, *map(format_value, rivals), *errors])
    times = [values.get((f"training, {name}", "minutes")) for name in ENCODERS]
    shown = ["" if time is None else f"{time:.1f}" for time in times]
    rows.append(["minutes of training on 2 cores", "", "", *shown])
    head = ["squared error of log sizes, hidden", "ladder", "ridge", *ENCODERS.values()]
    waits = ("passive", "active")
    speeds = [
        [
            place,
            *(format_value(values[f"training, {place}", f"windows_per_second_{x}"]) for x in waits),
        ]
        for place in ("alone", "beside a busy process")
    ]
    return [
        *format_table(head, rows),
        "",
        *format_table(
            ["training on 2 cores, windows/s", "threads wait passively", "actively"], speeds
        ),
        "",
        *describe_conditions("first_hour"),
    ]


def say_error(values: dict[tuple[str, str], float], case: str) -> str:
    """Return an error, and by intervals whether it is better than both ladder and ridge."""
    found = []
    for rival in ("ladder", "ridge"):
        ends = [values[case, f"difference_{rival}_{end}"] for end in ("low", "high")]
        found.append(verdict(*ends))
    word = found[0] if found[0] == found[1] else f"{found[0]} / {found[1]}"
    return f"{format_value(values[case, 'error'])} {word}"
