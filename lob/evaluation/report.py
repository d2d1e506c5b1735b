"""Rows of a report in words: lines for the terminal, Markdown."""

import numpy as np

from lob.evaluation.scoring import METHODS, QUANTITIES, Errors
from lob.results import make_row

LEGEND = [
    "Errors are means over the hidden values of a window, then over windows; lower is better.", "",
    *(f"- {name}: {meaning}" for name, (_, meaning) in QUANTITIES.items()), "",
    f"Methods: {'; '.join(f'{name}: {label}' for name, label in METHODS.items())}.", "",
    "Best naive: of all methods but the encoder, the one of the least error on validation windows. Skill: 1 - the "
    "encoder's error / its error. Difference: the encoder's error less its error, a 95 % interval over blocks of time; "
    "undecided: it holds 0, or there is one block. Win rate: share of windows on which the encoder is better, a tie "
    "half. Median: of its errors.",
]  # fmt: skip


def to_rows(case: str, facts: dict) -> list[dict]:
    """A row of the report for each fact that is a finite number, all with the fact `note`."""
    found = {metric: value for metric, value in facts.items() if not isinstance(value, str) and np.isfinite(value)}
    return [make_row(case, metric, value, note=facts["note"]) for metric, value in found.items()]


def table_head(windows: str) -> list[str]:
    """Lines that stand above those of `summarise`."""
    return [f"\n{windows}: mean errors, lower is better; verdict: beside the best naive method",
            f"{'':<36}{'encoder':>9}     {'best untrained method':<27}{'ridge with ladder':>18}   verdict"]  # fmt: skip


def summarise(mask: str, found: dict[str, dict]) -> list[str]:
    """Lines for the terminal: a quantity's errors of the encoder and of the methods to beat, and the verdict."""
    lines = [f"mask {mask}"]
    for quantity, facts in found.items():
        ridge = f"{facts['ridge_error']:.4g}" if "ridge_error" in facts else "-"
        lines.append(f"  {QUANTITIES[quantity][0]:<34}{facts['error']:>9.4g}{facts['best_untrained_error']:>12.4g} "
                     f"{METHODS[facts['untrained']]:<19}{ridge:>18}   {facts['verdict_naive']}")  # fmt: skip
    return lines


def describe(title: str, windows: str, errors: Errors, found: dict[str, dict]) -> list[str]:
    """Lines of a Markdown table: mean error of every method by quantity, and the encoder against the best naive one."""
    methods = list(next(iter(errors.values())))
    head = ["quantity", *methods, "best naive", "skill", "difference (95 %)", "blocks", "verdict", "win rate", "median"]
    lines = [f"\n### {title}, {windows}\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for quantity, facts in found.items():
        cells = [quantity, *(f"{np.nanmean(errors[quantity][method]):.4g}" for method in methods), facts["naive"],
                 f"{facts['skill_naive']:+.3f}",
                 f"{facts['difference_naive_low']:+.3g} to {facts['difference_naive_high']:+.3g}",
                 str(facts["blocks"]), facts["verdict_naive"], f"{facts['win_rate_naive']:.2f}",
                 f"{facts['median_error']:.4g}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines
