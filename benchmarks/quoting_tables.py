"""Tables of what market makers in hftbacktest earn, from results/agent_hft.json.

A case is `<market>` or `<market>/quote/<agent>` or `<market>/quote/<agent>_over_<agent>`.
"""

from benchmarks.agent_tables import AGENTS, name_markets, show_agent, show_lead
from benchmarks.tables import Cells, describe_conditions, format_table, read_cells, say_missing

QUOTING = {
    **{name: AGENTS[name] for name in ("vector", "features", "both")},
    "symmetric": "symmetric quotes",
    "random": "random",
    "none": "no quote",
}
LEADS = {
    "vector_over_features": "vector against features",
    "both_over_features": "vector and features against features",
    "vector_over_symmetric": "vector against symmetric quotes",
    "features_over_symmetric": "features against symmetric quotes",
}
MEASURES = {
    "break_even_bps": "break-even maker fee, bps a fill",
    "curve_bps_hour": "mean of the learning curve, bps/h",
}
PARTS = ("spread_bps_hour", "inventory_bps_hour", "taker_fee_bps_hour")
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


def make_agents(cells: Cells) -> list[str]:
    (market,) = name_markets(cells)
    rows = []
    for agent, words in QUOTING.items():
        case = f"{market}/quote/{agent}"
        shown = show_agent(cells, case)[:-1]  # without all trades, which are told apart here
        shown[0] = shown[0].replace("trades", "fills")
        shown += [f"{cells[case, name]['value']:,.1f}" for name in PARTS]
        rows.append([words, *shown, *(f"{cells[case, name]['value']:,.0f}" for name in FILLS)])
    numbers = [
        cells[market, name]["value"]
        for name in ("train_decisions", "train_hours", "test_decisions", "test_hours")
    ]
    told = "{:,.0f} decisions to learn on in {:.1f} min, {:,.0f} in the test's {:.1f} min."
    minutes = [x * (60 if number % 2 else 1) for number, x in enumerate(numbers)]
    return [told.format(*minutes), "", *format_table(HEAD, rows)]


def make_leads(cells: Cells) -> list[str]:
    (market,) = name_markets(cells)
    rows = []
    for lead, words in LEADS.items():
        case = f"{market}/quote/{lead}"
        shown = [
            show_lead(cells, case, metric) if (case, metric) in cells else "" for metric in MEASURES
        ]
        rows.append([words, *shown])
    return format_table(["difference", *MEASURES.values()], rows)
