"""The table of what the encoder that ships is worth, from its card."""

import json

from benchmarks.markets import MARKETS
from benchmarks.tables import format_table
from lob.results import ROOT

MASKS = {"patch": "patches", "span": "spans", "tail": "tail", "entry": "single values"}


def make_shipped_table() -> list[str]:
    """The encoder's error less ridge regression's, in %, on markets that it never saw."""
    rows = json.loads((ROOT / "pretrained" / "small_cell" / "card.json").read_text())["scores"]
    values = {(row["case"], row["metric"]): row["value"] for row in rows}
    words = {market.pair: market.words for market in MARKETS}
    table = []
    for pair in dict.fromkeys(case.split("/")[0] for case, _ in values):
        cells = [say_change(values, f"{pair}/{mask}/log_size") for mask in MASKS]
        table.append([words[pair], *cells])
    return format_table(["market, never trained on", *MASKS.values()], table)


def say_change(values: dict[tuple[str, str], float], case: str) -> str:
    """Return the encoder's error less the ridge regression's, in % of the latter.

    It is bold if it is negative by its 95 % interval, and marked if an untrained method, such as
    the ladder, has less error than the encoder.
    """
    error, ridge = values[case, "error"], values[case, "ridge_error"]
    text = f"{100 * (error / ridge - 1):+.0f} %"
    if values[case, "difference_ridge_high"] < 0:
        text = f"**{text}**"
    return text + " †" * (values[case, "best_untrained_error"] < error)
