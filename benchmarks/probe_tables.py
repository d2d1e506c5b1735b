"""Tables of what the encoder's vector is worth in many markets, from results/probes.json.

A case is `<market>/<way>/<task>`, or `cells/<way>/<lead>` for what is counted over all markets. The
ways are `within` (fitted on the first part of the recording) and `probe` (on other markets).
"""

import textwrap
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import labels
from benchmarks.markets import MARKETS
from benchmarks.report import format_value
from benchmarks.tables import Cells, describe_conditions, format_table, read_cells, value_of
from lob.evaluation.intervals import BETTER, LEVEL, UNDECIDED, WORSE, judge_lead
from lob.evaluation.probe_tasks import is_classification
from lob.evaluation.probes import CARE_AUC, CARE_R2
from lob.plotting import BLUE, GREEN, GREY, RED

WAYS = {
    "within": "Within a market: fitted on the first half of a recording, tested on its last third",
    "probe": "Across markets: fitted on the training markets",
}
LEADS = {
    "over_simple": "vector, beside the best simple method",
    "scaled_over_simple": "vector and scale block, beside the best simple method",
    "adds": "vector and hand-made features, beside the features",
    "all_adds": "vector, scale block and features, beside the features",
}
COUNTS = {
    "compared": "cells",
    BETTER: "better",
    WORSE: "worse",
    LEVEL: "level",
    UNDECIDED: "undecided",
    "better_found": "better, all cells together",
    "worse_found": "worse, all cells together",
    "false_expected": "intervals without 0 by chance",
    "smallest_median": "smallest lead seen, median",
}
VERDICTS = {BETTER: GREEN, LEVEL: BLUE, UNDECIDED: GREY, WORSE: RED}
FURTHEST = 0.35  # of the picture: leads and ends of intervals beyond it are drawn at its edge
VOLATILITY = {
    "persistence": "persistence",
    "floor": "a line on it",
    "hand_made": "hand-made",
    "boosted": "trees",
    "ours": "encoder",
    "ours_level": "encoder, fitted to the level",
    "ours_r2_test": "encoder, R2 against the test mean",
    "persistence_r2_test": "persistence, the same",
    "ours_correlation": "encoder, correlation",
    "ours_bias": "encoder, bias",
}
LEGEND = [
    "The simple methods are the floor (best-queue imbalance, recent moves, trailing volatilities "
    "or persistence, by the question), persistence with nothing fitted, and 27 hand-made features. "
    "All are fitted to the residual of persistence where volatility is asked for. "
    "The vector is set beside the one that is best on the very test windows. Scores are areas "
    "under the curve, of volatility R2 against the mean of the training labels. **Bold**: better "
    f"by a 95 % interval over blocks of time; (=): level, a lead of {CARE_AUC} (AUC) or {CARE_R2} "
    "(R2) would have been seen in four of five such recordings; (?): undecided, it would not; "
    "unmarked: worse by an interval. *All cells together*: what remains if at most 5 % of what is "
    "called a difference may be false (Benjamini and Hochberg).",
    "",
]


def make_bench() -> list[str]:
    """All tables, with the words between them; nothing before there is a result."""
    cells = read_cells("probes")
    if not cells:
        return []
    lines = [*LEGEND, *make_counts(cells)]
    for way, words in WAYS.items():
        if find_markets(cells, way):
            lines += ["", f"**{words}.** Encoder's vector / best simple method:", ""]
            lines += make_matrix(cells, way, show_vector)
    lines += ["", "Within a market, vector and hand-made features / the features alone:", ""]
    lines += make_matrix(cells, "within", show_both)
    for horizon in (50, 500):
        task = f"volatility_{horizon}"
        lines += ["", f"Within a market, volatility of the next {horizon} states, R2:", ""]
        lines += make_task_table(cells, "within", task, VOLATILITY)
    return [*lines, "", *describe_conditions("probes")]


def make_counts(cells: Cells) -> list[str]:
    """How many cells were compared, and what came out."""
    rows = []
    for way, words in WAYS.items():
        for lead, what in LEADS.items():
            case = f"cells/{way}/{lead}"
            if (case, "compared") in cells:
                shown = [show(cells, case, metric) for metric in COUNTS]
                rows.append([f"{words.split(':')[0]}: {what}", *shown])
    return format_table(["compared", *COUNTS.values()], rows)


def make_matrix(cells: Cells, way: str, show_cell: Callable[[Cells, str], str]) -> list[str]:
    """A row a market and a column a question."""
    rows = []
    for market in find_markets(cells, way):
        cases = [f"{market}/{way}/{task}" for task in labels.PROBES]
        blocks = {
            int(cells[case, "blocks"]["value"]) for case in cases if (case, "blocks") in cells
        }
        row = [name_market(market), " or ".join(str(count) for count in sorted(blocks))]
        rows.append([*row, *(show_cell(cells, case) for case in cases)])
    return format_table(["market", "blocks of time", *labels.PROBES.values()], rows)


def make_task_table(cells: Cells, way: str, task: str, metrics: dict[str, str]) -> list[str]:
    """A row a market and a column a metric of one question."""
    rows = []
    for market in find_markets(cells, way):
        case = f"{market}/{way}/{task}"
        if (case, "ours") in cells:
            rows.append([name_market(market), *(show(cells, case, name) for name in metrics)])
    return format_table(["market", *metrics.values()], rows)


def find_markets(cells: Cells, way: str) -> list[str]:
    cases = [case.split("/") for case, _ in cells if not case.startswith("cells/")]
    return list(dict.fromkeys(market for market, found, _ in cases if found == way))


def name_market(name: str) -> str:
    """A market in a reader's words, with what must be known about it."""
    cell = name.removesuffix("_D40")
    market = next((market for market in MARKETS if market.cell == cell), None)
    words = market.words if market else name
    if market and not market.counted:
        words += " (shown apart, not counted)"
    return words if cell == name else f"{words} (40 levels)"


def show_vector(cells: Cells, case: str) -> str:
    """The vector's score and that of the best simple method, marked by the verdict."""
    ours, lead = value_of(cells, case, "ours"), value_of(cells, case, "over_simple")
    if ours is None or lead is None:
        return ""
    return mark(f"{ours:.3f}", f"{ours - lead:.3f}", judge(cells, case, "over_simple"))


def show_both(cells: Cells, case: str) -> str:
    """The score of vector and features, and that of the features alone, marked by the verdict."""
    both, known = value_of(cells, case, "both"), value_of(cells, case, "hand_made")
    if both is None or known is None:
        return ""
    return mark(f"{both:.3f}", f"{known:.3f}", judge(cells, case, "adds"))


def mark(mine: str, other: str, verdict: str) -> str:
    first = f"**{mine}**" if verdict == BETTER else mine
    return f"{first} / {other}" + {LEVEL: " (=)", UNDECIDED: " (?)"}.get(verdict, "")


def judge(cells: Cells, case: str, lead: str) -> str:
    low, high = (value_of(cells, case, f"{lead}_{end}") for end in ("low", "high"))
    if low is None or high is None:  # one block of time
        return UNDECIDED
    care = CARE_AUC if is_classification(case.split("/")[-1]) else CARE_R2
    return judge_lead(low, high, int(cells[case, "blocks"]["value"]), care)


def show(cells: Cells, case: str, metric: str) -> str:
    value = value_of(cells, case, metric)
    return "" if value is None else format_value(value)


def draw_leads(cells: Cells) -> plt.Figure:
    """Draw the vector's lead over the best simple method within each market, by question."""
    markets = find_markets(cells, "within")[::-1]
    size = (12, 1.4 + 0.36 * len(markets))
    figure, axes = plt.subplots(
        1, len(labels.PROBES), figsize=size, sharey=True, layout="constrained"
    )
    for axis, (task, words) in zip(axes, labels.PROBES.items(), strict=True):
        for row, market in enumerate(markets):
            draw_lead(axis, row, cells, f"{market}/within/{task}")
        axis.axvline(0, color="black", lw=1)
        axis.set(xlim=(-FURTHEST, FURTHEST), ylim=(-0.6, len(markets) - 0.4))
        axis.set_title(textwrap.fill(words, 14), fontsize=8)
        axis.grid(axis="y", alpha=0)
    axes[0].set_yticks(range(len(markets)), [name_market(name) for name in markets], fontsize=9)
    axes[0].tick_params(axis="y", length=0)
    figure.supxlabel("AUC (volatility: R2), vector less the best simple method", fontsize=10)
    handles = [plt.Line2D([], [], color=colour, marker="o", lw=4) for colour in VERDICTS.values()]
    figure.legend(handles, VERDICTS, loc="outside upper center", ncols=len(VERDICTS), fontsize=9)
    return figure


def draw_lead(axis: plt.Axes, row: int, cells: Cells, case: str) -> None:
    """Draw a cell's lead with its 95 % interval, in the colour of its verdict."""
    values = [value_of(cells, case, f"over_simple{end}") for end in ("", "_low", "_high")]
    if None in values:
        return
    lead, *ends = np.clip(values, -FURTHEST, FURTHEST)
    colour = VERDICTS[judge(cells, case, "over_simple")]
    axis.plot(ends, [row, row], color=colour, lw=4, alpha=0.45, solid_capstyle="butt")
    axis.plot(lead, row, "o", color=colour, ms=6)
