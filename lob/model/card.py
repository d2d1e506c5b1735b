"""The card of an encoder: what it was trained on, until when, how, and what may be done with it."""

from pathlib import Path
from typing import Any

from lob.model.checkpoint import WEIGHTS, run_folder
from lob.model.encoder import EncoderConfig, count_parameters
from lob.storage import read_meta
from lob.windows.splits import to_iso

CARD = "card.json"
# What a card of pretrained weights says beside `make_card`; a run that is not shipped has none.
GIVEN = {
    "licence": "licence of the weights",
    "data": "what the pairs are and where they come from",
    "limits": "where the encoder fails, and what was not tried",
}


def make_card(name: str, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint's metadata tell: times are ISO in UTC, None is not known.

    `last_date` is the time of the last state that the weights were trained on, in their own run or
    in one whose weights they began with. Weights were chosen by validation until `chosen_until`.
    """
    encoder = EncoderConfig(**meta["encoder"])
    return {
        "name": name,
        **dict.fromkeys(GIVEN),
        "pairs": sorted({book["pair"] for book in meta["seen"]["books"]}),
        "last_date": to_iso(meta["seen"]["until_ns"]),
        "chosen_until": to_iso(meta["data"]["cuts_ns"][1]),
        "states": encoder.temporal_dim,
        "levels": encoder.depth,
        "width": encoder.width,
        "parameters": count_parameters(encoder),
        "steps": meta["progress"]["step"],
        "windows_seen": meta["progress"]["windows_seen"],
        "recipe": meta["config"],
    }


def read_card(checkpoint: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the card beside pretrained weights, or that of a run's checkpoint.

    Raises InputError if the file beside pretrained weights is missing or damaged.
    """
    if checkpoint.name == WEIGHTS:
        return read_meta(checkpoint.with_name(CARD), "model_exporter.py --pretrained")
    return make_card(run_folder(checkpoint.absolute(), "").name, meta)


def to_markdown(card: dict[str, Any]) -> str:
    """Return a card as a page: its facts, its scores if it has some, and its recipe."""
    long = ("recipe", "scores", "format_version", "versions", "name")
    facts = {key: value for key, value in card.items() if key not in long}
    lines = [f"# {card['name']}", "", "| | |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {show(value)} |" for key, value in facts.items()]
    lines += ["", "```python", "import lob", "", f'encoder = lob.load("pretrained/{card["name"]}")']
    lines += ["z = encoder.embed(price_ticks, sizes)  # windows -> vectors", "```"]
    if card.get("scores"):
        lines += ["", "## Scores", "", *table_scores(card["scores"])]
    recipe = [f"--{key}={value}" for key, value in card["recipe"].items()]
    return "\n".join([*lines, "", "## Recipe", "", "```", *recipe, "```", ""])


def show(value: Any) -> str:
    if value is None:
        return "not said"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def table_scores(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of report rows on hidden sizes: a line for each market and way to hide."""
    cells = {(row["case"], row["metric"]): row["value"] for row in rows}
    lines = [
        "Squared error of the logarithm of hidden sizes, lower is better; the interval is that of",
        "the encoder's error less the ridge regression's (95 %, over blocks of time).",
        "",
        "| market | hidden | encoder | best untrained method | ridge regression | interval |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        values = [cells.get((case, f"{name}error")) for name in ("", "best_untrained_", "ridge_")]
        ends = [cells.get((case, f"difference_ridge_{end}")) for end in ("low", "high")]
        market, mask = case.split("/")[:2]
        numbers = ["" if value is None else show_error(value) for value in values]
        interval = "" if None in ends else " to ".join(f"{end:+.3g}" for end in ends)
        lines.append(f"| {' | '.join([market, mask, *numbers, interval])} |")
    return lines


def show_error(value: float) -> str:
    """Return a squared error; what float32 leaves of an exact answer is 0."""
    return "0" if value < 1e-9 else f"{value:.4g}"
