"""Regenerate the marked blocks of README.md, so that no table in it is typed by hand.

    python -m benchmarks.readme_tables            write README.md
    python -m benchmarks.readme_tables --check    write nothing; exit 1 where README.md differs

A block stands between `<!-- begin:KIND ARGUMENT -->` and `<!-- end -->`. Kinds: `config SCRIPT`
(keys, defaults and comments of its dict), `results BENCHMARK` (benchmarks/results/BENCHMARK.json, a
line a case and a column a metric), `sentence BENCHMARK CASE [METRIC,...]` (that case's metrics in
words), `accuracy` (what representation.json says of sizes, prices and probes) and `disk` (what a
year takes).
"""

import json
import re
import sys
from typing import Any

from benchmarks.report import RESULTS, ROOT, format_value
from lob.config import read_comments

BLOCK = re.compile(
    r"<!-- begin:(?P<kind>\w+) ?(?P<argument>[^\n]*?) -->\n.*?<!-- end -->", re.DOTALL
)
YEAR_SECONDS = 365 * 24 * 3600
SAMPLE_STATES_PER_SECOND = 168_119 / 1_800  # of the shipped half hour of BTC/USD, a state a message
BYTES_PER_LEVEL = 8  # int32 price in ticks and float32 size


def main(words: list[str]) -> int:
    """Write README.md's blocks, or with --check name those that differ; return the exit status."""
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = BLOCK.sub(make_block, old)
    if words not in ([], ["--check"]):
        print(f"unknown words {words}: only --check is known", file=sys.stderr)
        return 2
    if not words:
        readme.write_text(new)
        return 0
    for before, after in zip(BLOCK.finditer(old), BLOCK.finditer(new), strict=True):
        if before[0] != after[0]:
            print(
                f"README.md: {before[0].splitlines()[0]} is out of date: run python -m "
                "benchmarks.readme_tables"
            )
    return 1 if new != old else 0


def make_block(found: re.Match[str]) -> str:
    makers = {
        "config": config_table,
        "results": results_table,
        "sentence": result_sentence,
        "accuracy": accuracy_tables,
        "disk": disk_table,
    }
    lines = makers[found["kind"]](*found["argument"].split())
    return "\n".join([found[0].splitlines()[0], *lines, "<!-- end -->"])


def format_row(cells: Any) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def config_table(script: str) -> list[str]:
    comments = read_comments(ROOT / script)
    rows = [(f"`{key}`", f"`{comment.default}`", comment.text) for key, comment in comments.items()]
    return [format_row(row) for row in (("key", "default", "meaning"), ("---",) * 3, *rows)]


def read_result(benchmark: str) -> dict[str, Any] | None:
    file = RESULTS / f"{benchmark}.json"
    return json.loads(file.read_text()) if file.exists() else None


def describe_conditions(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"`{result['command']}`, commit {result['commit']}, {result['date']}, {result['device']}; "
        f"{versions}."
    )


def results_table(benchmark: str) -> list[str]:
    """A line a case and a column a metric, a table for cases of much the same metrics; then notes
    and conditions.
    """
    result = read_result(benchmark)
    if result is None:
        return [f"*Not measured yet: there is no `benchmarks/results/{benchmark}.json`.*"]
    cells = {(row["case"], row["metric"]): row for row in result["rows"]}
    groups: list[tuple[list[str], list[str]]] = []  # cases and metrics
    for case in dict.fromkeys(case for case, _ in cells):
        mine = [metric for name, metric in cells if name == case]
        alike = (
            group
            for group in groups
            if 2 * len({*mine} & {*group[1]}) >= min(len(mine), len(group[1]))
        )
        cases, metrics = next(alike, ([], []))
        if not cases:
            groups.append((cases, metrics))
        cases.append(case)
        metrics += [metric for metric in mine if metric not in metrics]
    lines = [line for group in groups for line in [*format_group(cells, *group), ""]]
    count, having = sum(len(cases) for cases, _ in groups), dict[str, list[str]]()
    for row in result["rows"]:
        if row["note"] and row["case"] not in having.setdefault(row["note"], []):
            having[row["note"]].append(row["case"])
    notes = [
        note if len(names) == count else f"{', '.join(names)}: {note}"
        for note, names in having.items()
    ]
    return [*lines, *(f"{note.rstrip('.')}.  " for note in notes), describe_conditions(result)]


def format_group(
    cells: dict[tuple[str, str], dict[str, Any]], cases: list[str], metrics: list[str]
) -> list[str]:
    head = []
    for metric in metrics:
        units = {cells[case, metric]["unit"] for case in cases if (case, metric) in cells} - {""}
        head.append(
            metric.replace("_", " ") + (f" ({' or '.join(sorted(units))})" if units else "")
        )
    lines = [format_row(["case", *head]), format_row(["---", *["---:"] * len(metrics)])]
    for case in cases:
        values = [
            format_value(cells[case, metric]["value"]) if (case, metric) in cells else ""
            for metric in metrics
        ]
        lines.append(format_row([case, *values]))
    return lines


def result_sentence(benchmark: str, case: str, metrics: str = "") -> list[str]:
    """A case's metrics in words: all of them, or those named with commas between, in that order."""
    result = read_result(benchmark)
    found = {row["metric"]: row for row in result["rows"] if row["case"] == case} if result else {}
    if result is None or not found:
        return [f"*Not measured yet: `benchmarks/results/{benchmark}.json` has no case {case}.*"]
    rows = (
        [found[metric] for metric in metrics.split(",") if metric in found]
        if metrics
        else list(found.values())
    )
    values = [
        f"{row['metric'].replace('_', ' ')} **{format_value(row['value'])}** {row['unit']}".rstrip()
        for row in rows
    ]
    return [
        f"{case}: {', '.join(values)} (`benchmarks/results/{benchmark}.json`, {result['date']}, "
        f"{result['device']})."
    ]


def accuracy_tables() -> list[str]:
    """Of representation.json: errors of hidden sizes and prices by pair and mask, and the probes of
    the embedding.
    """
    result = read_result("representation")
    if result is None:
        return ["*Not measured yet: there is no `benchmarks/results/representation.json`.*"]
    cells = {(row["case"], row["metric"]): row["value"] for row in result["rows"]}

    def show(case: str, *metrics: str) -> list[str]:
        values = [cells.get((case, metric)) for metric in metrics]
        return ["" if value is None else format_value(value) for value in values]

    def interval(case: str, name: str, sign: int = 1) -> str:
        ends = [cells.get((case, f"{name}_{end}")) for end in ("low", "high")]
        return (
            ""
            if None in ends
            else " to ".join(
                format_value(x) for x in sorted(sign * x for x in ends if x is not None)
            )
        )

    def seeds(case: str, metric: str) -> str:
        least, most = show(case, f"{metric}_least", f"{metric}_most")
        return f" ({least} to {most})" if least else ""

    lines = [
        format_row(
            [
                "windows of",
                "mask",
                "encoder (seeds)",
                "ladder carry",
                "best untrained",
                "ridge with ladder",
                "skill over untrained",
                "over ridge",
                "ridge's error less ours",
                "blocks",
                "price",
            ]
        ),
        format_row(["---"] * 2 + ["---:"] * 9),
    ]
    for case in dict.fromkeys(case for case, _ in cells if case.endswith("/log_size")):
        pair, mask, _ = case.split("/")
        sizes = show(
            case,
            "error",
            "ladder_error",
            "best_untrained_error",
            "ridge_error",
            "skill_untrained",
            "skill_ridge",
        )
        row = [
            pair,
            mask,
            f"**{sizes[0]}**{seeds(case, 'error')}",
            *sizes[1:],
            interval(case, "difference_ridge", -1),
        ]
        lines.append(
            format_row([*row, *show(case, "blocks"), *show(f"{pair}/{mask}/offset", "error")])
        )
    lines += [
        "",
        format_row(
            [
                "windows of",
                "probe",
                "encoder (seeds)",
                "at 10 % of the labels",
                "hand-made features",
                "random weights",
                "over hand-made",
                "over random",
                "blocks",
            ]
        ),
        format_row(["---"] * 2 + ["---:"] * 7),
    ]
    for case in dict.fromkeys(case for case, _ in cells if "/probe/" in case):
        scores = show(case, "ours", "ours_10pct", "hand_made", "random")
        found = [
            f"**{scores[0]}**{seeds(case, 'ours')}",
            *scores[1:],
            interval(case, "over_hand_made"),
            interval(case, "over_random"),
        ]
        lines.append(format_row([*case.split("/probe/"), *found, *show(case, "blocks")]))
    notes = dict.fromkeys(
        f"{row['case'].split('/')[0]}: {row['note']}.  "
        for row in result["rows"]
        if "/" in row["case"]
    )
    paired = [row for row in result["rows"] if row["case"] == "FP8 over bf16"]
    if paired:
        difference, half = (row["value"] for row in paired)
        lines += [
            "",
            f"FP8 over bf16: **{difference:+.2%}** of the loss, +-{half:.2%} "
            f"({paired[0]['note']}).",
        ]
    return [*lines, "", *notes, describe_conditions(result)]


def disk_table() -> list[str]:
    """Bytes of a year of one instrument's states, by depth and by how often a state is kept."""
    rates = {
        f"every message, at the sample's {SAMPLE_STATES_PER_SECOND:.0f} a second": SAMPLE_STATES_PER_SECOND,
        "100 ms (`--state_interval_ms=100`)": 10.0,
        "1 s (`--state_interval_ms=1000`)": 1.0,
    }
    lines = [
        format_row(["a state", "states", "48 levels", "96 levels"]),
        format_row(["---", "---:", "---:", "---:"]),
    ]
    for name, rate in rates.items():
        states = rate * YEAR_SECONDS
        sizes = [states * (depth * BYTES_PER_LEVEL + 16) / 1e9 for depth in (48, 96)]
        lines.append(
            format_row(
                [name, f"{states / 1e6:,.0f} million", *(f"{size:,.0f} GB" for size in sizes)]
            )
        )
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
