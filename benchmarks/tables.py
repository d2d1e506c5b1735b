"""Lines of Markdown made from benchmarks/results/*.json, in the words of benchmarks/labels.py."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import labels
from benchmarks.report import RESULTS, format_value

Cells = dict[tuple[str, str], dict[str, Any]]  # (case, metric) -> row of a result


def format_row(cells: Iterable[Any]) -> str:
    texts = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(texts)} |"


def format_table(head: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> list[str]:
    """Lines of a Markdown table: its first `words` columns to the left, numbers to the right."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [format_row(head), format_row(rule), *(format_row(row) for row in rows)]


def read_result(benchmark: str) -> dict[str, Any] | None:
    """Return the committed result of a benchmark; None if there is none."""
    file = RESULTS / f"{benchmark}.json"
    return json.loads(file.read_text()) if file.exists() else None


def read_cells(benchmark: str) -> Cells:
    """Return a result's rows by case and metric; none if there is no result."""
    result = read_result(benchmark)
    return {(row["case"], row["metric"]): row for row in result["rows"]} if result else {}


def say_missing(benchmark: str) -> list[str]:
    return [f"*Not measured yet: there is no `benchmarks/results/{benchmark}.json`.*"]


def describe_conditions(benchmark: str) -> list[str]:
    """When, on what, of which commit, with what and by which command a result was measured."""
    result = read_result(benchmark)
    if result is None:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    when = f"Measured on {result['date']}: {result['device']}; commit {result['commit']}"
    return [
        f"{when}; {versions}.  ",
        f"Command: `{result['command']}`",
    ]


def look_up(words: dict[str, Any], benchmark: str, name: str, otherwise: Any) -> Any:
    """The words of `name` in this benchmark, else in any, else `otherwise`."""
    return words.get(f"{benchmark} {name}", words.get(name, otherwise))


def make_results_tables(benchmark: str) -> list[str]:
    """Tables of a whole result: a line a case and a column a metric; and the conditions."""
    cells = read_cells(benchmark)
    if not cells:
        return say_missing(benchmark)
    lines = []
    for cases, metrics in group_cases(benchmark, cells):
        lines += [*make_group(benchmark, cells, cases, metrics), ""]
    return [*lines, *describe_conditions(benchmark)]


def group_cases(benchmark: str, cells: Cells) -> list[tuple[list[str], list[str]]]:
    """Return groups of cases that share half of their metrics or more, and each group's metrics."""
    metrics_of: dict[str, list[str]] = {}
    for case, metric in cells:
        if look_up(labels.METRICS, benchmark, metric, "") is not None:
            metrics_of.setdefault(case, []).append(metric)
    groups: list[tuple[list[str], list[str]]] = []
    for case, mine in metrics_of.items():
        group = find_alike(groups, mine)
        if group is None:
            group = ([], [])
            groups.append(group)
        cases, metrics = group
        cases.append(case)
        metrics += [metric for metric in mine if metric not in metrics]
    return groups


def find_alike(
    groups: list[tuple[list[str], list[str]]],
    metrics: list[str],
) -> tuple[list[str], list[str]] | None:
    """The first group that shares half of `metrics`, or that has half of its own there."""
    for group in groups:
        shared = len({*metrics} & {*group[1]})
        if 2 * shared >= min(len(metrics), len(group[1])):
            return group
    return None


def make_group(
    benchmark: str,
    cells: Cells,
    cases: Sequence[str],
    metrics: Sequence[str],
) -> list[str]:
    """One table. A ratio whose other side differs by case has a column that names that side."""
    head = [labels.FIRST_COLUMN.get(benchmark, "what")]
    rule = ["---"]
    for metric in metrics:
        head.append(name_metric(benchmark, cells, metric))
        rule.append("---:")
        if metric in labels.WITH_NOTES:
            head.append("as what")
            rule.append("---")
    rows = []
    for case in cases:
        row = [name_case(benchmark, case)]
        for metric in metrics:
            row.append(show(benchmark, cells, case, metric))
            if metric in labels.WITH_NOTES:
                note = cells[case, metric]["note"] if (case, metric) in cells else ""
                row.append(note.removeprefix("of "))
        rows.append(row)
    return [format_row(head), format_row(rule), *(format_row(row) for row in rows)]


def name_case(benchmark: str, case: str) -> str:
    """A case in a reader's words; of an exported file its network, format and precision."""
    if not benchmark.startswith(("export", "stream")):
        return look_up(labels.CASES, benchmark, case, case.replace("_", " "))
    network, file = case.split("/")
    kind, precision, _ = file.rsplit("_", 2)
    return f"`{network}`, {labels.FORMATS[kind]}, {precision}"


def name_metric(benchmark: str, cells: Cells, metric: str) -> str:
    """A metric in a reader's words, else its name with the unit."""
    named = look_up(labels.METRICS, benchmark, metric, None)
    if named:
        return named[0]
    units = {row["unit"] for (_, name), row in cells.items() if name == metric} - {""}
    return metric.replace("_", " ") + (f" ({' or '.join(sorted(units))})" if units else "")


def show(benchmark: str, cells: Cells, case: str, metric: str) -> str:
    """A value in the unit of its heading, or nothing."""
    value = value_of(cells, case, metric)
    named = look_up(labels.METRICS, benchmark, metric, None)
    return "" if value is None else format_value(value * (named[1] if named else 1))


def value_of(cells: Cells, case: str, metric: str) -> float | None:
    cell = cells.get((case, metric))
    return cell["value"] if cell else None


def make_speed_table() -> list[str]:
    """The README's few rows of speed."""

    def put_in(found: re.Match[str]) -> str:
        benchmark, case, metric = found[1].split("|")
        return show(benchmark, read_cells(benchmark), case, metric) or "(not measured)"

    rows = [[re.sub(r"\{([^}]+)\}", put_in, text) for text in row] for row in labels.SPEED]
    return format_table(["what", "measured", "to compare with"], rows, words=3)
