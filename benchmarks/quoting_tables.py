"""Tables of what market makers in hftbacktest earn, from results/agent_hft.json.

A case is `<market>`, `<market>/fee_<bps>/<agent>` or `<market>/fee_<bps>/<agent>_over_<agent>`.
"""

from benchmarks.agent_tables import AGENTS, name_markets, show_agent, show_lead
from benchmarks.tables import Cells, describe_conditions, format_table, read_cells, say_missing

QUOTING = {
    **{name: AGENTS[name] for name in ("vector", "features", "both")},
    "imbalance": AGENTS["imbalance"],
    "symmetric": "symmetric quotes",
    "random": "random",
    "none": "no quote",
}
LEADS = {
    "vector_over_features": "vector against features",
    "both_over_features": "vector and features against features",
    "vector_over_imbalance": "vector against the imbalance rule",
    "vector_over_symmetric": "vector against symmetric quotes",
    "features_over_symmetric": "features against symmetric quotes",
}
MEASURES = {
    "break_even_bps": "break-even maker fee, bps a fill",
    "curve_bps_hour": "mean of the learning curve, bps/h",
}
PARTS = ("spread_bps_hour", "inventory_bps_hour", "taker_fee_bps_hour", "maker_fee_bps_hour")
FILLS = ("maker_fills_hour", "taker_fills_hour")
HEAD = (
    "agent",
    "break-even maker fee, bps",
    "95 % interval",
    "profit, bps/h",
    "where it learned",
    "spread",
    "inventory",
    "taker fees",
    "maker fees",
    "maker fills/h",
    "taker fills/h",
)


def make_quoting_tables(part: str) -> list[str]:
    """The block of docs/agent.md that `part` names: agents, leads or conditions."""
    cells = read_cells("agent_hft")
    if not cells:
        return say_missing("agent_hft")
    parts = {"agents": make_agents, "leads": make_leads}
    return parts[part](cells) if part in parts else describe_conditions("agent_hft")


def name_fees(cells: Cells, market: str) -> dict[str, str]:
    """The fees of a result, in their order, and their words."""
    found = dict.fromkeys(case.split("/")[1] for case, _ in cells if case.startswith(f"{market}/"))
    words = {}
    for name in found:
        fee = float(name.removeprefix("fee_"))
        kind = "a rebate" if fee < 0 else "a maker fee"
        words[name] = f"{kind} of {abs(fee):g} bps" if fee else "no maker fee"
    return words


def make_agents(cells: Cells) -> list[str]:
    """A table for each fee that agents were trained and judged with."""
    (market,) = name_markets(cells)
    told = []
    for period, words in (("train", "to learn on"), ("test", "to test on")):
        count, hours = (
            cells[market, f"{period}_{name}"]["value"] for name in ("decisions", "hours")
        )
        told.append(f"{count:,.0f} decisions in {hours * 60:.1f} min {words}")
    lines = ["; ".join(told) + "."]
    for fee, fee_words in name_fees(cells, market).items():
        rows = []
        for agent, words in QUOTING.items():
            case = f"{market}/{fee}/{agent}"
            shown = show_agent(cells, case)[:-1]  # without all trades, which are told apart here
            shown[0] = shown[0].replace("trades", "fills")
            shown += [f"{cells[case, name]['value'] + 0.0:,.1f}" for name in PARTS]
            rows.append([words, *shown, *(f"{cells[case, name]['value']:,.0f}" for name in FILLS)])
        lines += ["", f"With **{fee_words}**:", "", *format_table(HEAD, rows)]
    return lines


def make_leads(cells: Cells) -> list[str]:
    (market,) = name_markets(cells)
    rows = []
    for fee, fee_words in name_fees(cells, market).items():
        for lead, words in LEADS.items():
            case = f"{market}/{fee}/{lead}"
            shown = [
                show_lead(cells, case, metric) if (case, metric) in cells else ""
                for metric in MEASURES
            ]
            rows.append([fee_words, words, *shown])
    return format_table(["with", "difference", *MEASURES.values()], rows, words=2)
