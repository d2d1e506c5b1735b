"""Tables and the picture of what trading agents earn, from results/agent.json (make agent).

A case is `<market>`, `<market>/<fill>/<agent>` or `<market>/<fill>/<agent>_over_<agent>`.
"""

import math
import textwrap

import matplotlib.pyplot as plt

from benchmarks.markets import MARKETS
from benchmarks.report import format_value
from benchmarks.tables import Cells, describe_conditions, format_table, read_cells, say_missing
from lob.plotting import BLUE, GREEN, GREY, ORANGE, RED, VIOLET

AGENTS = {
    "vector": "PPO on the vector",
    "features": "PPO on 27 features",
    "both": "PPO on both",
    "random_weights": "PPO on the vector of random weights",
    "scratch": "PPO with the network from scratch",
    "imbalance": "imbalance rule",
    "random": "random",
    "hold": "hold",
}
FILLS = {"take": "taking at the spread", "mid": "filled at the mid: a bound, not a strategy"}
LEADS = {
    "vector_over_features": "vector against features",
    "both_over_features": "vector and features against features",
    "vector_over_random_weights": "vector against that of random weights",
    "vector_over_scratch": "vector against the network from scratch",
    "vector_over_imbalance": "vector against the imbalance rule",
}
COLOURS = {
    "vector": BLUE,
    "features": RED,
    "both": VIOLET,
    "random_weights": ORANGE,
    "scratch": GREEN,
}

MARKET_NUMBERS = {
    "half_spread_bps": "half the spread, bps",
    "move_bps": "deviation of the mid's move to the next decision, bps",
}
AGENT_NUMBERS = (
    "break-even fee a fill, bps",
    "95 % interval",
    "profit before fees, bps/h",
    "the same where it learned, bps/h",
    "trades/h",
)


def make_agent_tables(part: str) -> list[str]:
    """The block of docs/agent.md that `part` names.

    scratch is all that results/agent_scratch.json holds, the others are of results/agent.json.
    """
    if part == "scratch":
        cells = read_cells("agent_scratch")
        if not cells:
            return ["No result is committed yet."]
        return [
            *make_fees(cells),
            "",
            *make_leads(cells),
            "",
            *describe_conditions("agent_scratch"),
        ]
    cells = read_cells("agent")
    if not cells:
        return say_missing("agent")
    parts = {"markets": make_markets, "fees": make_fees, "leads": make_leads}
    return parts[part](cells) if part in parts else describe_conditions("agent")


def name_markets(cells: Cells) -> dict[str, str]:
    """Markets of a result, in their order, and their words."""
    words = {market.pair: market.words for market in MARKETS}
    found = dict.fromkeys(case for case, _ in cells if "/" not in case)
    return {market: words.get(market, market) for market in found}


def make_markets(cells: Cells) -> list[str]:
    words = {market.pair: market.words for market in MARKETS}
    rows = []
    for market, name in name_markets(cells).items():
        trained, _, saw = cells[market, "test_hours"]["note"].partition("; the encoder ")
        trained = trained.removeprefix("learned on ")
        row = [name, words.get(trained, trained), "yes" if saw == "saw it" else "no"]
        for period in ("train", "test"):
            minutes = cells[market, f"{period}_hours"]["value"] * 60
            decisions = cells[market, f"{period}_decisions"]["value"]
            row.append(f"{decisions:,.0f} in {minutes:,.0f} min")
        row += [format_value(cells[market, name]["value"]) for name in MARKET_NUMBERS]
        rows.append(row)
    head = ["test", "learned on", "the encoder saw that", "decisions to learn on", "in the test"]
    return format_table([*head, *MARKET_NUMBERS.values()], rows, words=3)


def make_fees(cells: Cells) -> list[str]:
    """A table for each market and way to fill: break-even fee, profit before fees, trades."""
    lines: list[str] = []
    for market, name in name_markets(cells).items():
        for fill, words in FILLS.items():
            rows = [
                [AGENTS[agent], *show_agent(cells, f"{market}/{fill}/{agent}")]
                for agent in AGENTS
                if (f"{market}/{fill}/{agent}", "profit_bps_hour") in cells
            ]
            if rows:
                lines += ["", f"**{name}**, {words}", ""]
                lines += format_table(["agent", *AGENT_NUMBERS], rows)
    return lines[1:]


def show_agent(cells: Cells, case: str) -> list[str]:
    ends = [f"break_even_bps{end}" for end in ("", "_low", "_high")]
    fee = [cells[case, name]["value"] for name in ends if (case, name) in cells]
    shown = f"{fee[0]:.3f}" if fee else "never trades"
    interval = f"{fee[1]:.3f} to {fee[2]:.3f}" if len(fee) == 3 else ""
    names = ("profit_bps_hour", "train_profit_bps_hour", "trades_hour")
    profit, learned, trades = (cells[case, name]["value"] for name in names)
    return [shown, interval, f"{profit:,.1f}", f"{learned:,.1f}", f"{trades:,.0f}"]


def make_leads(cells: Cells) -> list[str]:
    """What the intervals of the differences say, a row for each market and way to fill."""
    there = [lead for lead in LEADS if any(case.endswith(f"/{lead}") for case, _ in cells)]
    lines: list[str] = []
    for metric, words in (
        ("break_even_bps", "Break-even fee, bps a fill"),
        ("curve_bps_hour", "Mean of the learning curve (sample efficiency), bps/h before fees"),
    ):
        shown = [lead for lead in there if any(key[1] == metric for key in cells if lead in key[0])]
        rows = []
        for market, name in name_markets(cells).items():
            for fill, how in FILLS.items():
                row = [show_lead(cells, f"{market}/{fill}/{lead}", metric) for lead in shown]
                rows.append([name, how.split(":")[0], *row])
        lines += ["", f"**{words}**", ""]
        lines += format_table(["market", "orders", *(LEADS[x] for x in shown)], rows, words=2)
    return lines[1:]


def show_lead(cells: Cells, case: str, metric: str) -> str:
    if (case, metric) not in cells:
        return "one never trades"
    numbers = [cells[case, f"{metric}{end}"]["value"] for end in ("", "_low", "_high")]
    digits = max(0, 2 - math.floor(math.log10(max(map(abs, numbers)) or 1)))
    value, low, high = (f"{number:+.{min(digits, 3)}f}" for number in numbers)
    return f"{cells[case, metric]['note']}: {value} ({low} to {high})"


def draw_curves(cells: Cells) -> plt.Figure:
    """Profit in the test period by decisions of training: means and ranges over seeds."""
    markets = name_markets(cells)
    figure, axes = plt.subplots(
        len(FILLS),
        len(markets),
        figsize=(3.4 * len(markets), 6.2),
        layout="constrained",
        squeeze=False,
    )
    for column, (market, name) in enumerate(markets.items()):
        for row, (fill, words) in enumerate(FILLS.items()):
            axis = axes[row, column]
            draw_panel(axis, cells, f"{market}/{fill}")
            axis.set_title(textwrap.fill(name, 34) if row == 0 else "", loc="left", fontsize=9)
            if column == 0:
                axis.set_ylabel(f"{words.split(':')[0]}\nprofit before fees, bps/h")
            if row == len(FILLS) - 1:
                axis.set_xlabel("decisions of training")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9)
    return figure


def draw_panel(axis: plt.Axes, cells: Cells, case: str) -> None:
    for agent, colour in COLOURS.items():
        mine = f"{case}/{agent}"
        metrics = [metric for found, metric in cells if found == mine]
        steps = sorted(int(x[6:]) for x in metrics if x.startswith("curve_") and x[6:].isdigit())
        if not steps:
            continue
        middle, low, high = (
            [cells[mine, f"curve_{step}{end}"]["value"] for step in steps]
            for end in ("", "_least", "_most")
        )
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(steps, middle, color=colour, marker="o", ms=3, label=AGENTS[agent])
    rule = cells[f"{case}/imbalance", "profit_bps_hour"]["value"]
    axis.axhline(rule, color=GREY, ls="--", label=AGENTS["imbalance"])
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xscale("symlog", base=2, linthresh=256)
    axis.set_xlim(-40, 40_000)
    axis.set_xticks([0, 512, 2048, 8192, 32768], ["0", "512", "2k", "8k", "33k"])
