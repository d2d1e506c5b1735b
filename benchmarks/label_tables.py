"""Tables and the picture of what pre-training saves in labels, from results/labels.json.

A case is `<market>/<share>/<model>/<task>`, `<market>/headline/<task>`, or `cells/...` for what is
counted over all markets and tasks (benchmarks/bench_labels.py).
"""

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import labels
from benchmarks.probe_tables import judge, mark, name_market
from benchmarks.tables import Cells, describe_conditions, format_table, read_cells, value_of
from lob.evaluation.intervals import BETTER, LEVEL, UNDECIDED, WORSE
from lob.plotting import BLUE, CYAN, GREEN, GREY, NAVY, ORANGE, PINK, RED, TEAL, VIOLET

MODELS = {
    "finetuned": "encoder, fine-tuned",
    "frozen": "encoder, frozen",
    "both": "encoder, frozen, and features",
    "scratch": "the same network from scratch",
    "deeplob": "DeepLOB",
    "binctabl": "BiN-C(TABL)",
    "mlplob": "MLPLOB",
    "tlob": "TLOB",
    "features": "27 hand-made features",
    "floor": "floor",
}
OWN = ("finetuned", "frozen", "both")
COLOURS = {
    "finetuned": BLUE,
    "frozen": CYAN,
    "both": TEAL,
    "scratch": GREEN,
    "deeplob": RED,
    "binctabl": ORANGE,
    "mlplob": PINK,
    "tlob": VIOLET,
    "features": NAVY,
    "floor": GREY,
}
LEADS = {
    "over_best": "the best network from scratch",
    "over_scratch": "the same network from scratch",
    "over_simple": "the better one of 27 hand-made features and the floor",
}
VERDICTS = (BETTER, LEVEL, UNDECIDED, WORSE)
HEADLINE = "fine-tuned at 10 % of the labels, beside the best network from scratch at all"
LEGEND = (
    "Scores are areas under the curve, of volatility R2 against the mean of the training labels; "
    "medians over seeds. **Bold**: better by a 95 % interval over blocks of time than the best "
    "network from scratch, chosen on the very test windows; (=): level; (?): undecided; unmarked: "
    "worse."
)


def make_label_tables() -> list[str]:
    """All tables, with the words between them; nothing before there is a result."""
    cells = read_cells("labels")
    if not cells:
        return []
    lines = ["![Score by share of labels, a line a model](figures/labels.png)", "", LEGEND, ""]
    lines += ["Verdicts over all markets and tasks:", "", *make_counts(cells)]
    lines += ["", f"The encoder {HEADLINE}:", "", *make_headline(cells)]
    lines += ["", "With all labels:", "", *make_all_labels(cells)]
    lines += ["", "Means over the markets, which the picture shows:", "", *make_means(cells)]
    return [*lines, "", *describe_conditions("labels")]


def make_counts(cells: Cells) -> list[str]:
    """In how many cells a model is better, level, undecided or worse."""
    rows = []
    if ("cells/headline", "compared") in cells:
        rows.append([HEADLINE, *count(cells, "cells/headline")])
    for share in find_shares(cells):
        for model in OWN:
            for lead, words in LEADS.items():
                case = f"cells/{share:g}/{model}/{lead}"
                if (case, "compared") in cells:
                    name = f"{MODELS[model]}, beside {words}, both at {show_share(share)}"
                    rows.append([name, *count(cells, case)])
    return format_table(["compared", "cells", *VERDICTS], rows)


def count(cells: Cells, case: str) -> list[int]:
    return [int(cells[case, name]["value"]) for name in ("compared", *VERDICTS)]


def make_headline(cells: Cells) -> list[str]:
    """A row a market, a column a task."""
    tasks, rows = find_tasks(cells), []
    for market in find_markets(cells):
        row = []
        for task in tasks:
            case = f"{market}/headline/{task}"
            mine = value_of(cells, f"{market}/0.1/finetuned/{task}", "score")
            lead = value_of(cells, case, "over_best")
            if mine is None or lead is None:
                row.append("")
                continue
            best = f"{mine - lead:.3f} {MODELS[cells[case, 'over_best']['note']]}"
            row.append(mark(f"{mine:.3f}", best, judge(cells, case, "over_best")))
        rows.append([name_market(market), *row])
    return format_table(["market", *(labels.PROBES[task] for task in tasks)], rows)


def make_all_labels(cells: Cells) -> list[str]:
    """A row a market and task, a column a model."""
    models, rows = find_models(cells), []
    for market in find_markets(cells):
        for task in find_tasks(cells):
            row = []
            for model in models:
                case = f"{market}/1/{model}/{task}"
                value = value_of(cells, case, "score")
                better = (case, "over_best") in cells and judge(cells, case, "over_best") == BETTER
                shown = "" if value is None else f"{value:.3f}"
                row.append(f"**{shown}**" if better else shown)
            if any(row):
                rows.append([name_market(market), labels.PROBES[task], *row])
    head = ["market", "task", *(MODELS[model] for model in models)]
    return format_table(head, rows, words=2)


def make_means(cells: Cells) -> list[str]:
    """A row a task and model, a column a share."""
    shares, rows = find_shares(cells), []
    for task in find_tasks(cells):
        for model in find_models(cells):
            means = [mean(cells, share, model, task, "score") for share in shares]
            shown = ["" if np.isnan(value) else f"{value:.3f}" for value in means]
            rows.append([labels.PROBES[task], MODELS[model], *shown])
    head = ["task", "model", *(f"{show_share(share)} of the labels" for share in shares)]
    return format_table(head, rows, words=2)


def draw_labels(cells: Cells) -> plt.Figure:
    """Score by share of labels: a panel a task, a line a model, means over the markets."""
    tasks, shares = find_tasks(cells), find_shares(cells)
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(max(4.2 * len(tasks), 5), 4.4), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for model in find_models(cells):
            values = [mean(cells, share, model, task, "score") for share in shares]
            low, high = (
                [mean(cells, share, model, task, f"score_{end}") for share in shares]
                for end in ("least", "most")
            )
            colour, own = COLOURS[model], model in OWN
            axis.fill_between(shares, low, high, color=colour, alpha=0.08, lw=0)
            style = {"color": colour, "marker": "o", "ms": 4, "lw": 2.2 if own else 1.2}
            axis.plot(shares, values, ls="--" if model == "floor" else "-", **style)
            axis.get_lines()[-1].set_label(MODELS[model])
        axis.set_xscale("log")
        axis.set_xticks(shares, [show_share(share) for share in shares])
        axis.minorticks_off()
        axis.set_title(labels.PROBES[task].removesuffix(" (R2)"), loc="left")
        axis.set_xlabel("share of the labels")
        axis.set_ylabel("R2" if "R2" in labels.PROBES[task] else "area under the curve")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(5, 2 * len(tasks)), fontsize=8
    )
    return figure


def mean(cells: Cells, share: float, model: str, task: str, metric: str) -> float:
    """Return the mean over the markets that have it; NaN if none has."""
    cases = (f"{market}/{share:g}/{model}/{task}" for market in find_markets(cells))
    known = [cells[case, metric]["value"] for case in cases if (case, metric) in cells]
    return float(np.mean(known)) if known else float("nan")


def split_cases(cells: Cells) -> list[list[str]]:
    """Return market, share, model and task of each case that has a score."""
    return [case.split("/") for case, metric in cells if metric == "score"]


def find_markets(cells: Cells) -> list[str]:
    return list(dict.fromkeys(case[0] for case in split_cases(cells)))


def find_shares(cells: Cells) -> list[float]:
    return sorted({float(case[1]) for case in split_cases(cells)})


def find_models(cells: Cells) -> list[str]:
    there = {case[2] for case in split_cases(cells)}
    return [model for model in MODELS if model in there]


def find_tasks(cells: Cells) -> list[str]:
    there = {case[3] for case in split_cases(cells)}
    return [task for task in labels.PROBES if task in there]


def show_share(share: float) -> str:
    return f"{100 * share:g} %"
