"""The tables of what the encoder that ships is worth, from benchmarks/results/shipped.json.

`make reproduce` measures it over seeds. Without it the README's table is that of the card, which
knows one seed.
"""

import json

from benchmarks.markets import MARKETS
from benchmarks.report import format_value
from benchmarks.tables import format_table, read_result
from lob.results import ROOT

MASKS = {"patch": "patches", "span": "spans", "tail": "tail", "entry": "single values"}
WORDS = {market.pair: market.words for market in MARKETS}
Values = dict[tuple[str, str], float]  # by case and metric


def read_values() -> tuple[Values, bool]:
    """Return the scores, and whether they are medians over seeds."""
    result = read_result("shipped")
    if result is None:
        file = ROOT / "pretrained" / "small_cell" / "card.json"
        rows = json.loads(file.read_text())["scores"]
    else:
        rows = result["rows"]
    return {(row["case"], row["metric"]): row["value"] for row in rows}, result is not None


def name_pairs(values: Values) -> list[str]:
    """Return the pairs that were scored, in their order there."""
    return list(dict.fromkeys(case.split("/")[0] for case, _ in values if case.count("/") == 2))


def make_shipped_table() -> list[str]:
    """The encoder's error less ridge regression's, in %, on markets that it never saw.

    Over seeds it also has the minutes of each recording, the windows tested and their blocks.
    """
    values, over_seeds = read_values()
    table = []
    for pair in name_pairs(values):
        data = say_data(values, pair) if over_seeds else []
        cells = [say_change(values, f"{pair}/{mask}/log_size") for mask in MASKS]
        table.append([WORDS[pair], *data, *cells])
    data = ["minutes", "windows (blocks)"] if over_seeds else []
    return format_table(["market, never trained on", *data, *MASKS.values()], table)


def say_data(values: Values, pair: str) -> list[str]:
    """Return a recording's minutes, and the windows that were tested with their blocks of time."""
    windows, blocks = (values[f"{pair}/patch/log_size", name] for name in ("windows", "blocks"))
    minutes = values[pair, "minutes"]
    return [
        f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}",
        f"{windows:.0f} ({blocks:.0f})",
    ]


def say_change(values: Values, case: str) -> str:
    """Return the encoder's error less the ridge regression's, in % of the latter.

    It is bold if it is negative by its 95 % interval, and marked if an untrained method, such as
    the ladder, has less error than the encoder. Over seeds all three are medians.
    """
    error, ridge = values[case, "error"], values[case, "ridge_error"]
    text = f"{100 * (error / ridge - 1):+.0f} %"
    if values[case, "difference_ridge_high"] < 0:
        text = f"**{text}**"
    return text + " †" * (values[case, "best_untrained_error"] < error)


def make_seeds_table() -> list[str]:
    """The encoder's errors over seeds beside those of ridge regression and the best untrained."""
    values, over_seeds = read_values()
    if not over_seeds:
        return ["*One seed so far, that of its [card](../pretrained/small_cell/README.md).*"]
    table = []
    for pair in name_pairs(values):
        for mask, words in MASKS.items():
            case = f"{pair}/{mask}/log_size"
            table.append([WORDS[pair], words, *say_seeds(values, case)])
    head = ["market", "hidden as", "median", "least to most", "ridge", "untrained"]
    return format_table([*head, "less ridge, 95 %"], table, words=2)


def say_seeds(values: Values, case: str) -> list[str]:
    """Return the cells of a case: the encoder's errors, its rivals', and the interval."""
    error, ridge, untrained, low, high = (
        values[case, name]
        for name in (
            "error",
            "ridge_error",
            "best_untrained_error",
            "difference_ridge_low",
            "difference_ridge_high",
        )
    )
    # A single seed has neither a least nor a most.
    least, most = (values.get((case, f"error_{name}"), error) for name in ("least", "most"))
    return [
        format_value(error),
        f"{format_value(least)} to {format_value(most)}",
        format_value(ridge),
        format_value(untrained),
        f"{format_value(low)} to {format_value(high)}",
    ]
