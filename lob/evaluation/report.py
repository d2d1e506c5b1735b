"""Results of a checkpoint's test as lines of the terminal, as report.md and as report.json."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lob.evaluation.probe_tasks import TASKS
from lob.evaluation.probes import CARE_AUC, CARE_R2, SUMMED, Lead, ProbeResult
from lob.evaluation.probes import METHODS as PROBES
from lob.evaluation.scoring import OURS, QUANTITIES, RIDGE, Comparison, MaskScores, Rival
from lob.model.checkpoint import describe_step
from lob.model.masking import trained_on
from lob.results import make_row

NOT_TRAINED = "not trained on this mask"
QUANTITY_NAMES = {
    "mid": "mid (ticks)",
    "offset": "distance from mid (ticks)",
    "log_size": "log of size (squared error)",
}
QUANTITY_MEANINGS = {
    "mid": "|error| of the mid, in ticks, over states with a hidden best price; the mid is nearly "
    "a martingale, so expect a skill near 0",
    "offset": "|error| of a hidden price's distance from the mid, in ticks",
    "log_size": "squared error of the natural logarithm of a hidden size",
}
METHODS = {
    "level_mean": "mean of the level",
    "last_observation": "last value",
    "linear_time": "linear in time",
    "linear_levels": "linear over levels",
    "ladder": "ladder carry",
    "plain_ridge": "ridge",
    RIDGE: "ridge with ladder",
    OURS: "encoder",
}
MASKS = {
    "entry": "single values",
    "level": "whole levels",
    "span": "spans of 16 states",
    "span64": "one span of states",
    "patch": "patches of 16 states x 8 levels",
    "tail": "the last states",
}
LEGEND = [
    "Errors are means over the hidden values of a window, then over windows; lower is better.",
    "",
    *(f"- {name}: {QUANTITY_MEANINGS[name]}" for name in QUANTITIES),
    "",
    "Ladder carry looks a hidden size up at the same price in the states around it. Ridge is a "
    "ridge regression on what is visible around a value, with or without the ladder's answer. "
    "The best naive method is, of all methods but the encoder, the one with the least error on "
    "validation windows. Skill is 1 - the encoder's error / that method's error. The difference is "
    "the encoder's error less that method's, as a 95 % interval over blocks of time. The verdict "
    "is equal if no window differs, and undecided if the interval holds 0 or there is one block. "
    "The win rate is the share of windows on which the encoder is better; a tie counts half.",
]
PROBE_LEGEND = [
    "A probe is a linear model that is fitted on frozen features of a window that ends now. Its "
    "score is the area under the curve (AUC; 0.5: chance), or for volatility R2 (0: as good as the "
    "mean of the training labels); higher is better. The floor is fitted on one to four numbers: "
    "best-queue imbalance (direction, depletion), recent moves (move_10, move_50), trailing "
    "volatilities (widening) or persistence (volatility). Persistence is the window's volatility "
    "scaled to the task's states; nothing is fitted. The other methods are fitted to what it "
    "leaves unexplained.",
    "",
    "A column 'over' holds the 95 % interval, over blocks of time, of the encoder's score less "
    "another method's. The column 'adds' holds that of the score of encoder and hand-made features "
    "less the score of hand-made features alone. If an interval holds 0, the verdict is level if a "
    f"lead of {CARE_AUC} (AUC) or {CARE_R2} (R2) would have been seen, and undecided if not. The "
    "outlook, a task in training, teaches some of what is asked here.",
    "",
    *(f"- {name}: {meaning}" for name, meaning in TASKS.items()),
]
SHOWN = [name for name in PROBES if name != "boosted"]  # the tester fits no trees
ON_SCREEN = ("ours", "both", "hand_made", "floor", "persistence")
LEADS = {
    "over_simple": "over the best of floor, persistence and hand-made features",
    "over_random": "over random weights",
    "adds": "adds to hand-made features",
}


@dataclass
class PairReport:
    """The results of one pair.

    probes: by task, None if there were too few labels; empty if no probe was fitted. notes: what a
    reader must know about the numbers.
    """

    pair: str
    scores: list[MaskScores] = field(default_factory=list)
    probes: dict[str, ProbeResult | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def describe_training(meta: dict[str, Any], mask: str) -> str:
    """Return a checkpoint's size, step, masks and pairs in words.

    The words end with NOT_TRAINED if `mask` is none of these masks.
    """
    config = meta["config"]
    masks = sorted(trained_on(config["mask_mode"]))
    pairs = [book["pair"] for book in meta["data"].get("books", ())]
    plural = "s" if len(masks) > 1 else ""
    words = f"{config['model_size']}, {describe_step(meta)}, "
    words += f"trained on mask{plural} {', '.join(masks)}"
    if pairs:
        words += f" of {', '.join(pairs)}"
    return words if mask in masks else f"{words}, {NOT_TRAINED}"


# --- report.json


def to_rows(pairs: Sequence[PairReport]) -> list[dict[str, Any]]:
    """Return all finite numbers as rows of a report (lob/results.py)."""
    rows = []
    for found in pairs:
        for scores in found.scores:
            rows += rows_of_scores(scores)
        for task, result in found.probes.items():
            if result is not None:
                rows += rows_of_probe(f"{found.pair}/probe/{task}", result)
    return [row for row in rows if math.isfinite(row["value"])]


def rows_of_scores(scores: MaskScores) -> list[dict[str, Any]]:
    rows = []
    for quantity, found in scores.comparisons.items():
        case = f"{scores.pair}/{scores.mask}/{quantity}"
        naive = f"{found.naive.method}, {found.naive.verdict}"
        note = f"best untrained: {found.untrained.method}; best naive: {naive}"
        values = {f"{name}_error": error for name, error in found.errors.items() if name != OURS}
        values |= {"error": found.error, "median_error": found.median_error, "blocks": found.blocks}
        values |= {"windows": scores.windows, "trained_on": int(scores.trained_on)}
        for kind in ("untrained", "naive", "ladder", "ridge"):
            rival: Rival | None = getattr(found, kind)
            if rival is None:
                continue
            chosen = "best_" if kind in ("untrained", "naive") else ""
            values |= {
                f"{chosen}{kind}_error": rival.error,
                f"skill_{kind}": rival.skill,
                f"win_rate_{kind}": rival.win_rate,
                f"difference_{kind}_low": rival.low,
                f"difference_{kind}_high": rival.high,
            }
        rows += [make_row(case, metric, value, note=note) for metric, value in values.items()]
    return rows


def rows_of_probe(case: str, result: ProbeResult) -> list[dict[str, Any]]:
    values: dict[str, float] = {**result.scores, "blocks": result.blocks}
    for name, lead in result.leads.items():
        values |= {f"{name}_low": lead.low, f"{name}_high": lead.high}
    for name in [name for name in SUMMED if name in result.leads]:
        lead = result.leads[name]
        values |= {name: lead.value, f"{name}_smallest": lead.smallest}
    note = "; ".join(f"{name}: {lead.verdict}" for name, lead in result.leads.items())
    note += f"; simple: {result.leads['over_simple'].note}"
    return [make_row(case, metric, value, note=note) for metric, value in values.items()]


# --- the terminal


def head_of_scores(pair: str, windows: str) -> str:
    """Return the lines above those of `show_scores`. windows: their number and split, in words."""
    title = f"{pair}, {windows}: mean errors, lower is better"
    columns = f"{'':<30}{'encoder':>9}{'untrained, the best':>29}{'ridge':>10}"
    return f"\n{title}\n{columns}   verdict, beside the best of all others"


def show_scores(scores: MaskScores) -> str:
    """Return a line per quantity: errors of the encoder and of methods to beat, and the verdict."""
    lines = [f"mask {name_mask(scores)}"]
    for quantity, found in scores.comparisons.items():
        ridge = "-" if found.ridge is None else f"{found.ridge.error:.4g}"
        lines.append(
            f"  {QUANTITY_NAMES[quantity]:<28}{found.error:>9.4g}{found.untrained.error:>10.4g} "
            f"{METHODS[found.untrained.method]:<18}{ridge:>10}   "
            f"{say_verdict(found.naive, METHODS[found.naive.method])}"
        )
    return "\n".join(lines)


def say_verdict(found: Rival | Lead, name: str) -> str:
    """Return in words how the encoder does beside another, such as 'worse than ladder carry'."""
    words = {
        "better": "better than",
        "worse": "worse than",
        "level": "level with",
        "equal": "equal to",
    }
    return f"{words.get(found.verdict, 'undecided beside')} {name}"


def name_mask(scores: MaskScores) -> str:
    return scores.mask if scores.trained_on else f"{scores.mask}, {NOT_TRAINED}"


def head_of_probes(pair: str) -> str:
    """Return the lines above those of `show_probe`."""
    title = f"{pair}, linear probes: AUC, or R2 of volatility, higher is better"
    columns = "".join(f"{name:>{len(name) + 3}}" for name in name_columns())
    return f"\n{title}\n{'':<16}{columns}   beside the best of the last three"


def name_columns() -> list[str]:
    """Return the heads of `show_probe`'s columns; both: encoder and hand-made features."""
    return ["both" if name == "both" else PROBES[name] for name in ON_SCREEN]


def show_probe(task: str, result: ProbeResult | None) -> str:
    if result is None:
        return f"{task:<16}   too few labels"
    scores_shown = [result.scores.get(name, math.nan) for name in ON_SCREEN]
    cells = zip(name_columns(), scores_shown, strict=True)
    scores = "".join(f"{format_number(score, '.3f'):>{len(name) + 3}}" for name, score in cells)
    lead = result.leads["over_simple"]
    return f"{task:<16}{scores}   {say_verdict(lead, lead.note)}"


def show_speed(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of one case, which are an encoder's latency and rate, in a line."""
    facts = [f"{row['metric'].replace('_', ' ')} {row['value']:.4g} {row['unit']}" for row in rows]
    return "  ".join(facts)


# --- report.md


def to_markdown(title: str, pairs: Sequence[PairReport]) -> str:
    lines = [f"# {title}", "", *LEGEND]
    if any(found.probes for found in pairs):
        lines += ["", *PROBE_LEGEND]
    for found in pairs:
        lines += ["", f"## {found.pair}"]
        for scores in found.scores:
            lines += ["", *table_scores(scores)]
        if found.probes:
            lines += ["", *table_probes(found)]
        for note in found.notes:
            lines += ["", note]
    return "\n".join([*lines, ""])


def table_scores(scores: MaskScores) -> list[str]:
    """Return the lines of two tables: all methods' errors, and the encoder beside the best one."""
    comparisons = scores.comparisons
    title = f"### {scores.pair}, mask {name_mask(scores)}, windows: {scores.windows}"
    lines = [title, "", f"Hidden: {MASKS[scores.mask]}.", ""]
    lines += table_head("mean error", [QUANTITY_NAMES[quantity] for quantity in comparisons])
    methods = next(iter(comparisons.values())).errors if comparisons else {}
    for method in methods:
        errors = [f"{found.errors[method]:.4g}" for found in comparisons.values()]
        lines.append(table_row([METHODS[method], *errors]))
    columns = [
        "best naive method",
        "skill",
        "difference (95 %)",
        "blocks",
        "verdict",
        "win rate",
        "median error",
    ]
    lines += ["", *table_head("encoder beside it", columns)]
    return [*lines, *(table_row(compare_cells(name, found)) for name, found in comparisons.items())]


def compare_cells(quantity: str, found: Comparison) -> list[str]:
    """Return the cells of a row of the second table."""
    rival = found.naive
    return [
        QUANTITY_NAMES[quantity],
        METHODS[rival.method],
        format_number(rival.skill, "+.3f"),
        format_interval(rival.low, rival.high),
        str(found.blocks),
        rival.verdict,
        f"{rival.win_rate:.2f}",
        f"{found.median_error:.4g}",
    ]


def table_probes(found: PairReport) -> list[str]:
    """Return the lines of the table of a pair's probes."""
    columns = [*(PROBES[name] for name in SHOWN), "encoder, 10 % of the labels"]
    columns += LEADS.values()
    lines = [f"### {found.pair}, probes of the frozen encoder", ""]
    lines += table_head("task (AUC; R2 of volatility)", [*columns, "blocks"])
    for task, result in found.probes.items():
        if result is None:
            continue
        scores = [result.scores.get(name, math.nan) for name in (*SHOWN, "ours_10pct")]
        cells = [task, *(format_number(score, ".3f") for score in scores)]
        for name in LEADS:
            lead = result.leads[name]
            cells.append(f"{format_interval(lead.low, lead.high)}, {lead.verdict}")
        lines.append(table_row([*cells, str(result.blocks)]))
    few = [task for task, result in found.probes.items() if result is None]
    if few:
        lines += ["", f"Too few labels: {', '.join(few)}."]
    return lines


def table_head(first: str, columns: Sequence[str]) -> list[str]:
    return [table_row([first, *columns]), table_row(["---", *["---:"] * len(columns)])]


def table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def format_number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def format_interval(low: float, high: float) -> str:
    return f"{low:+.3g} to {high:+.3g}" if math.isfinite(low) else "-"
