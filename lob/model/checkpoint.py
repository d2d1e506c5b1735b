"""Checkpoints: one safetensors file each, written whole or not at all, read without running code.

    runs/<name>/checkpoints/best.safetensors             the weights with the least validation loss
    runs/<name>/checkpoints/step_00001200.safetensors    weights and all that a resumed run needs
    pretrained/<name>/model.safetensors                  weights for use (lob/export/pretrained.py)

Weights are named `model.<plain name>` and are float32; a *plain name* is that of a parameter of
BookEncoder. Step files also hold `optimizer.<plain name>.<key>`, `fp8.<name>` (scales of FP8) and
`epoch_sums` (of the loss and of hidden values in the epoch so far).

The file's metadata is one JSON text, `checkpoint`, with the keys of METADATA: the EncoderConfig,
the trainer's config, the progress, the learning rate, the identity of the data and more. No random
state is stored: the order of windows, masks and dropout follow from seed, epoch and step.

Weights for use are bf16, and their metadata stand in the `config.json` beside them, without what
only a resumed run needs (RESUMED).
"""

import errno
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lob.config import InputError
from lob.model.encoder import CONTEXT, FILLS, BookEncoder, EncoderConfig, unbuilt
from lob.model.normalisation import SCHEMES
from lob.results import ROOT
from lob.storage import FORMAT_VERSION, new_file, refuse_unmapped

BEST = "best.safetensors"  # of a run
WEIGHTS, SETTINGS = "model.safetensors", "config.json"  # of a folder of pretrained weights


@dataclass
class Progress:
    """How far a run is; it travels in every checkpoint."""

    epoch: int = 0  # epochs done
    step_in_epoch: int = 0  # optimizer steps done in the epoch under way
    step: int = 0  # optimizer steps done in all
    windows_seen: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0  # the epoch that reached best_loss, from 1; 0: before training
    seconds: float = 0.0  # of the run, over all sessions
    step_seconds: float = 0.0  # of these, in training steps
    epoch_began: float = 0.0  # step_seconds when the epoch under way began

    def is_stale(self, patience: int) -> bool:
        """Return whether so many epochs went by without a better validation loss."""
        return self.epoch - self.best_epoch >= patience

    def epochs_left(self, epochs: int, patience: int) -> int:
        """Return how many epochs are to be trained; 0 if the run is stale."""
        return 0 if self.is_stale(patience) else max(0, epochs - self.epoch)

    def end_epoch(self) -> float:
        """Count an epoch as done; return the seconds of its training steps."""
        seconds = self.step_seconds - self.epoch_began
        self.epoch_began = self.step_seconds
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        return seconds

    def reopen_epoch(self, steps: int, seconds: float) -> None:
        """Undo `end_epoch` of an epoch of so many steps."""
        self.epoch, self.step_in_epoch = self.epoch - 1, steps
        self.epoch_began -= seconds


OLDER = {"context": [], "doubt": "distance"}  # what a checkpoint means that lacks these keys
# An example of the metadata that the programs read; check_kind compares a file's with it.
METADATA: dict[str, Any] = {
    "encoder": asdict(EncoderConfig()) | {"context": []},  # JSON has no tuples
    "config": {"model_size": "", "mask_mode": ""},
    "progress": asdict(Progress()),
    "lr": 0.0,
    "plateau": {"best": 0.0, "num_bad_epochs": 0, "cooldown_counter": 0, "last_epoch": 0},
    "windows_a_step": 1,
    "data": {"books": [{"pair": ""}], "cuts_ns": [0, 0]},
    "metrics_bytes": 0,
}
# What only a resumed run needs.
RESUMED = ("lr", "plateau", "windows_a_step", "metrics_bytes", "fp8_recipe")
# What weights were trained on, in their own run and in those whose weights they began with: the
# time of the last state, and the identities of the books.
SEEN: dict[str, Any] = {"until_ns": 0, "books": [{"pair": ""}]}
DAMAGED = (
    "damaged, or not of this version: name another with --model_path, or train again "
    "(with --resume: delete it to go on from the one before)"
)


def save_checkpoint(file: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and metadata; the old file stays until the new one is complete."""
    # Cloned, since safetensors refuses tensors that share memory.
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, **meta})
    with new_file(file) as handle:
        handle.write(save(flat, metadata={"checkpoint": text}))


def load_checkpoint(file: str | Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors whose names begin with `prefix`, which is stripped, and the metadata.

    Raises InputError if the file is missing, is no checkpoint or has another format version.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(
            f"there is no checkpoint {file}: train one with fp8_ddp_trainer.py, "
            "or set --model_path to a checkpoint, a run or pretrained weights"
        )
    try:
        with safe_open(file, framework="pt") as handle:
            text = (handle.metadata() or {}).get("checkpoint", "null")
            every = handle.keys()
            names = [name for name in every if name.startswith(prefix)]
            tensors = {name.removeprefix(prefix): handle.get_tensor(name) for name in names}
        if file.name == WEIGHTS:
            text = file.with_name(SETTINGS).read_text()
        meta = json.loads(text)
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        if "os error 19" in str(error):  # safetensors' words for ENODEV
            refuse_unmapped(file, OSError(errno.ENODEV, os.strerror(errno.ENODEV)))
        # ValueError and RecursionError come from json: broken or deeply nested metadata.
        raise InputError(
            f"{file} is not a safetensors checkpoint ({error}); other files are not opened"
        ) from None
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION:
        found = meta.get("format_version") if isinstance(meta, dict) else None
        raise InputError(
            f"{file} has checkpoint version {found!r}, this program reads {FORMAT_VERSION}: "
            "train again"
        )
    check_metadata(file, meta)
    return tensors, meta


def check_metadata(file: Path, meta: dict[str, Any]) -> None:
    """Raise InputError unless a checkpoint's metadata can be used; put in what may be left out."""
    if isinstance(meta.get("encoder"), dict):
        meta["encoder"] = OLDER | meta["encoder"]
    pretrained = file.name == WEIGHTS
    left_out = RESUMED if pretrained else ()
    example = {key: value for key, value in METADATA.items() if key not in left_out}
    check_kind(file, "", meta, example)
    if pretrained and meta.get("sha256") != file_sha256(file):
        raise InputError(f"{file} is not the file that its {SETTINGS} describes: fetch both again")
    data = meta["data"]
    # Training windows end before the first cut.
    meta.setdefault("seen", {"until_ns": data["cuts_ns"][0], "books": data["books"]})
    check_kind(file, "", meta, {"seen": SEEN})


def file_sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_kind(file: Path, name: str, found: Any, example: Any) -> None:
    """Raise InputError unless the metadata `found`, called `name`, is of its example's kind.

    Of the same kind are

    - dicts, if `found` has at least the example's keys, with values of the same kinds;
    - lists, if `found` has at least as many entries, each of the kind of the example's first, or
      texts if it has none;
    - ints, if `found` is at least 0, or at least 1 if the example is;
    - floats, for which an int will do, if `found` is at least 0 (NaN passes);
    - texts, and booleans.
    """
    if isinstance(example, dict) and isinstance(found, dict):
        for key, value in example.items():
            check_kind(file, f"{name}.{key}".lstrip("."), found.get(key), value)
        return
    if isinstance(example, list) and isinstance(found, list) and len(found) >= len(example):
        for entry in found:
            check_kind(file, name, entry, example[0] if example else "")
        return
    if type(found) is type(example) is int:
        fits = found in range(min(example, 1), 2**63)
    elif type(example) is float:
        fits = type(found) in (int, float) and not found < 0
    else:
        fits = type(found) is type(example) and isinstance(found, bool | str)
    if not fits:
        said = "is missing" if found is None else f"is {repr(found)[:60]}"
        raise InputError(f"{file}: metadata {name!r} {said}: {DAMAGED}")


def find_checkpoint(runs_dir: str | Path, model_path: str | Path | None) -> Path:
    """Return the file of a checkpoint.

    model_path: a checkpoint; a run, by its folder or by its name under `runs_dir`, which stands for
    its best checkpoint; a folder of pretrained weights; None: the newest run that has a best
    checkpoint. A relative path may also begin at the root of this repository. Raises InputError if
    there is none; `load_checkpoint` refuses a file that isn't there.
    """
    if model_path is None:
        files = Path(runs_dir).glob(f"*/checkpoints/{BEST}")
        newest_last = sorted(files, key=lambda file: file.stat().st_mtime)
        if not newest_last:
            raise InputError(
                f"no run under {runs_dir} has a best checkpoint: "
                "run fp8_ddp_trainer.py or set --model_path"
            )
        return newest_last[-1]
    places = [folder / model_path for folder in (Path(), Path(runs_dir), ROOT)]
    for place in places:
        weights = list(place.glob("*.safetensors"))
        only = weights if len(weights) == 1 else []  # such as pretrained weights
        for file in (place, place / "checkpoints" / BEST, place / BEST, *only):
            if file.is_file():
                return file
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        return places[0]
    raise InputError(
        f"the folder {folder} holds no best checkpoint: it is no run, or has none yet; "
        "name a checkpoint with --model_path"
    )


def run_folder(checkpoint: Path, runs_dir: str | Path) -> Path:
    """Return where what is made of a checkpoint is written: its run's folder, or else its own.

    What is made of pretrained weights goes into a folder of their name under `runs_dir`, since
    theirs stays as it was fetched.
    """
    folder = checkpoint.parent
    if checkpoint.name == WEIGHTS:
        return Path(runs_dir) / checkpoint.absolute().parent.name
    return folder.parent if folder.name == "checkpoints" else folder


def choose_device(wanted: str | torch.device | None) -> torch.device:
    """Return the device that is asked for; 'auto' or None: a GPU if there is one.

    Raises InputError if it is a GPU and torch finds none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted in ("auto", None):
        return torch.device("cuda" if has_gpu else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not has_gpu:
        raise InputError(
            f"device = {str(wanted)!r}, but torch finds no CUDA device: set it to 'cpu'"
        )
    return device


def load_model(
    file: str | Path, device: str | torch.device = "cpu"
) -> tuple[BookEncoder, dict[str, Any]]:
    """Return a checkpoint's encoder of plain PyTorch layers, in evaluation mode, and its metadata.

    The head of the outlook (lob/training/objective.py) serves training alone and is left out.
    Raises InputError if the file holds no encoder that this version can run.
    """
    tensors, meta = load_checkpoint(file, "model.")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("outlook.")}
    try:
        encoder = replace(EncoderConfig(**meta["encoder"]), outlook=False)
        check_encoder(encoder, len(tensors))
        check_weights(file, tensors, unbuilt(encoder).state_dict())
        model = BookEncoder(encoder)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{file} names no encoder of this version ({error}): {DAMAGED}") from None
    model.load_state_dict(tensors)
    return model.to(device).eval(), meta


def check_encoder(config: EncoderConfig, tensors: int) -> None:
    """Raise ValueError for a config that no weights can make right.

    tensors: how many the checkpoint holds. An encoder of more layers than that would not be this
    checkpoint's, and building it might take forever.
    """
    of_cells = {"fill": ("ladder",), "doubt": ("change",)}
    known_values = {"normalization": SCHEMES} | (of_cells if config.cell_width else {"fill": FILLS})
    for name, known in known_values.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} = {getattr(config, name)!r}")
    if {*config.context} - {*CONTEXT} or (config.context and not config.cell_width):
        raise ValueError(f"context = {config.context!r}")
    if not config.dropout < 1 or config.width % (2 * config.heads) or config.layers > tensors:
        raise ValueError(
            f"dropout {config.dropout}, width {config.width}, {config.heads} heads, "
            f"{config.layers} layers"
        )


def check_weights(file: str | Path, tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raise InputError unless a checkpoint's tensors have the wanted names and shapes."""
    wrong = [
        name for name, t in wanted.items() if name not in tensors or tensors[name].shape != t.shape
    ]
    if wrong or len(tensors) != len(wanted):
        first = next(iter(wrong), "extra keys")
        raise InputError(
            f"{file} does not hold the encoder that its metadata names ({first}): {DAMAGED}"
        )


def describe_step(meta: dict[str, Any]) -> str:
    """Say which step's weights a checkpoint holds, and what step 0 means."""
    if step := meta["progress"]["step"]:
        return f"step {step:,}"
    return "step 0, the weights before training: no later ones did better in validation"
