"""What agents earned in the test period: break-even fees and curves, with intervals; as rows.

The break-even fee is what a fill may cost, in bps of its price, until the test period's profit is
zero: profit before fees over the traded value. It is pooled over seeds. Intervals (95 %) come from
drawing blocks of time and seeds with replacement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.agent.market import BLOCKS, Market
from lob.evaluation.intervals import RESAMPLES, interval, judge_lead, smallest_visible
from lob.results import make_row

CARE_FEE_BPS = 0.1  # the smallest difference of break-even fees that anyone would care for
CARE_CURVE = 0.1  # the same of mean profits while learning, as a share of the features' own
LEADS = (  # agent, compared with
    ("vector", "features"),
    ("both", "features"),
    ("vector", "random_weights"),
    ("vector", "scratch"),
    ("vector", "imbalance"),
    ("vector", "symmetric"),
    ("features", "symmetric"),
)
Measure = Callable[[np.ndarray], np.ndarray]  # sums (..., K, 3) -> a number for each


@dataclass
class Result:
    """What the runs of one agent found.

    steps: decisions of training after which it was judged, K; blocks: float64 (seeds, K, 3,
    BLOCKS), the sums of NUMBERS in the test period's blocks; train_gross: float64 (seeds,), what
    the last policies earn in the training recording.
    """

    steps: list[int]
    blocks: np.ndarray
    train_gross: np.ndarray


def break_even(sums: np.ndarray) -> np.ndarray:
    """Return the break-even fee in bps after all training; NaN where nothing was traded."""
    gross, traded = sums[..., -1, 0], sums[..., -1, 1]
    return 1e4 * np.divide(gross, traded, np.full_like(gross, np.nan), where=traded > 0)


def mean_curve(sums: np.ndarray) -> np.ndarray:
    """Return the mean profit over the points of the learning curve after the first step."""
    return sums[..., 1:, 0].mean(axis=-1)


def draw(result: Result, blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return sums of drawn blocks and seeds, float64 (RESAMPLES, K, 3), means over the seeds."""
    seeds = rng.integers(0, len(result.blocks), (len(blocks), len(result.blocks)))
    weight = np.apply_along_axis(np.bincount, 1, blocks, minlength=BLOCKS).astype(float)
    chosen = np.apply_along_axis(np.bincount, 1, seeds, minlength=len(result.blocks))
    share = chosen / len(result.blocks)
    return np.einsum("rb,rs,sknb->rkn", weight, share, result.blocks, optimize=True)


def estimate(results: Sequence[Result], measure: Measure) -> tuple[float, float, float]:
    """Return a measure of one agent, or of the first less the second, and its 95 % interval."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, BLOCKS, (RESAMPLES, BLOCKS))
    values = [float(measure(result.blocks.sum(-1).mean(0))) for result in results]
    draws = [measure(draw(result, blocks, rng)) for result in results]
    value = values[0] - (values[1] if len(values) > 1 else 0.0)
    drawn = draws[0] - (draws[1] if len(draws) > 1 else 0.0)
    return value, *interval(drawn, value, BLOCKS)


def rows_of_agent(case: str, result: Result, hours: float, train_hours: float) -> list[dict]:
    """Return the rows of an agent in one market. What is per hour is before fees."""
    rows = []

    def add(metric: str, value: float, unit: str) -> None:
        if np.isfinite(value):
            rows.append(make_row(case, metric, value, unit))

    fee, low, high = estimate([result], break_even)
    add("break_even_bps", fee, "bps")
    add("break_even_bps_low", low, "bps")
    add("break_even_bps_high", high, "bps")
    sums = result.blocks.sum(-1) / hours  # (seeds, K, 3)
    add("profit_bps_hour", sums[:, -1, 0].mean(), "bps/h")
    add("train_profit_bps_hour", result.train_gross.mean() / train_hours, "bps/h")
    add("trades_hour", sums[:, -1, 2].mean(), "1/h")
    add("seeds", len(sums), "")
    for number, steps in enumerate(result.steps):
        if len(result.steps) > 1:
            profits = sums[:, number, 0]
            for name, value in (("", profits.mean()), ("_least", profits.min())):
                add(f"curve_{steps}{name}", value, "bps/h")
            add(f"curve_{steps}_most", profits.max(), "bps/h")
    return rows


def rows_of_leads(case: str, results: dict[str, Result], hours: float) -> list[dict[str, Any]]:
    """Return how much more some agents reach than others; the notes hold the verdicts."""
    rows = []
    for mine, other in LEADS:
        if not {mine, other} <= {*results}:
            continue
        two = [results[mine], results[other]]
        name = f"{case}/{mine}_over_{other}"
        rows += rows_of_lead(name, "break_even_bps", "bps", estimate(two, break_even), CARE_FEE_BPS)
        if len(two[0].steps) > 1 and two[0].steps == two[1].steps:
            found = [x / hours for x in estimate(two, mean_curve)]
            care = CARE_CURVE * abs(float(mean_curve(two[1].blocks.sum(-1).mean(0)))) / hours
            rows += rows_of_lead(name, "curve_bps_hour", "bps/h", found, care)
    return rows


def rows_of_lead(
    case: str, metric: str, unit: str, found: Sequence[float], care: float
) -> list[dict[str, Any]]:
    value, low, high = found
    if not np.isfinite(found).all():
        return []
    smallest = smallest_visible(low, high, BLOCKS)
    verdict = judge_lead(low, high, BLOCKS, care)
    numbers = {"": value, "_low": low, "_high": high, "_smallest": smallest}
    return [
        make_row(case, f"{metric}{ending}", number, unit, "" if ending else verdict)
        for ending, number in numbers.items()
    ]


def rows_of_market(case: str, train: Market, test: Market, note: str) -> list[dict[str, Any]]:
    """Return what a market is like; `test` is one whose orders are filled at the best prices."""
    now = test.decisions
    numbers = {
        "train_hours": (train.hours, "h"),
        "test_hours": (test.hours, "h"),
        "train_decisions": (len(train.decisions), ""),
        "test_decisions": (len(now), ""),
        "half_spread_bps": (float(test.half_spread[now].mean()) * test.bps, "bps"),
        "move_bps": (test.move_bps(), "bps"),
    }
    return [make_row(case, name, value, unit, note) for name, (value, unit) in numbers.items()]


def tabulate(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each agent: break-even fee with its interval, profit and trades an hour."""
    cells = {(row["case"], row["metric"]): row["value"] for row in rows}
    cases = dict.fromkeys(case for case, metric in cells if metric == "profit_bps_hour")
    width = max(len(case) for case in cases)
    lines = [f"{'':<{width}}  break-even fee, bps   95 % interval  profit, bps/h  trades/h  seeds"]
    for case in cases:
        fee, low, high = (
            cells.get((case, f"break_even_bps{end}"), np.nan) for end in ("", "_low", "_high")
        )
        shown = f"{fee:20.3f}" if np.isfinite(fee) else f"{'never trades':>20}"
        ends = f"{low:.3f} to {high:.3f}" if np.isfinite([low, high]).all() else ""
        profit, trades, seeds = (
            cells[case, name] for name in ("profit_bps_hour", "trades_hour", "seeds")
        )
        lines.append(
            f"{case:<{width}}  {shown}  {ends:>16}  {profit:11.1f}  {trades:8.0f}  {seeds:5.0f}"
        )
    return lines
