"""Writing pretrained weights: a folder that is loaded wherever a checkpoint is.

pretrained/<name>/model.safetensors    weights of the encoder and of its head or decoder, bf16
pretrained/<name>/config.json          what rebuilds the network, and what it was trained on
pretrained/<name>/card.json            the card (lob/model/card.py)
pretrained/<name>/README.md            the same as a page
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from lob.config import InputError
from lob.model.card import CARD, to_markdown
from lob.model.checkpoint import RESUMED, SETTINGS, WEIGHTS, file_sha256
from lob.model.encoder import BookEncoder
from lob.storage import FORMAT_VERSION, check_writable, new_folder

# Of a report: what a card says of hidden sizes. Probes and other quantities stay in the report.
QUANTITY = "log_size"
METRICS = (
    "error",
    "best_untrained_error",
    "ridge_error",
    "difference_ridge_low",
    "difference_ridge_high",
)


def write_pretrained(
    folder: Path, model: BookEncoder, meta: dict[str, Any], card: dict[str, Any]
) -> dict[str, Any]:
    """Write an encoder as `folder`, which is replaced whole; return its card.

    meta: metadata of its checkpoint; card: what the card says, without the folder's name.
    """
    weights = {f"model.{name}": x.to(torch.bfloat16) for name, x in model.state_dict().items()}
    kept = {key: value for key, value in meta.items() if key not in RESUMED}
    kept |= {"format_version": FORMAT_VERSION, "encoder": asdict(model.config)}
    card = card | {"format_version": FORMAT_VERSION, "name": folder.absolute().name}
    with new_folder(folder) as new:
        (new / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
        kept["sha256"] = file_sha256(new / WEIGHTS)
        (new / SETTINGS).write_text(json.dumps(kept, indent=1) + "\n")
        (new / CARD).write_text(json.dumps(card, indent=1) + "\n")
        (new / "README.md").write_text(to_markdown(card))
    return card


def check_folder(folder: Path) -> None:
    """Raise InputError if pretrained weights can't be written as `folder`."""
    check_writable(folder, "pretrained")
    if folder.exists() and not (folder / WEIGHTS).is_file():
        raise InputError(
            f"pretrained = {folder} exists and holds no pretrained weights: name a new folder, "
            f"such as {folder / 'mine'}"
        )


def choose_scores(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those rows of a report that a card shows: errors of hidden sizes, by mask."""
    return [
        row for row in rows if row["case"].endswith(f"/{QUANTITY}") and row["metric"] in METRICS
    ]
