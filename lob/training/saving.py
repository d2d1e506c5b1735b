"""What a training run saves, when, and how it goes on from there.

In `runs/<name>/checkpoints/`:

    best.safetensors              the weights with the least validation loss
    step_00001200.safetensors     weights and all that a resumed run needs
    nonfinite_step_*.safetensors  the weights and windows that a failed step met

lob/model/checkpoint.py says what these files hold.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lob.config import InputError
from lob.model.checkpoint import (
    BEST,
    METADATA,
    Progress,
    check_weights,
    load_checkpoint,
    save_checkpoint,
)
from lob.model.encoder import BookEncoder
from lob.training.samples import Batch
from lob.training.te_layer import fp8_state, load_plain_state, plain_name, plain_state

STEPS = "step_*.safetensors"  # checkpoints that a run can go on from
# Seconds of training for each second that the last save took, so that saving after epochs takes at
# most a tenth of the time, however slow the disk.
SAVE_SPACING = 9


@dataclass
class Saver:
    """Writes a run's checkpoints and knows when the next one is due.

    facts: the metadata of a checkpoint that stay the same all through the run; keep: how many step
    checkpoints are kept; writes: this is the first rank, the only one that writes.

    `metrics_bytes` in its methods is the length of metrics.csv at that moment. A run that resumes
    from the checkpoint drops what was logged later.
    """

    checkpoints: Path
    facts: dict[str, Any]
    model: BookEncoder
    optimizer: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    progress: Progress
    keep: int
    writes: bool

    def __post_init__(self) -> None:
        self.best: tuple[dict[str, Tensor], dict[str, Any]] | None = None  # not yet written
        self.saved_at, self.save_seconds = time.perf_counter(), 0.0
        self.saved_place = (self.progress.epoch, self.progress.step)

    def describe(self, metrics_bytes: int) -> dict[str, Any]:
        """Return the metadata of a checkpoint that is made now."""
        return self.facts | {
            "progress": asdict(self.progress),
            "lr": self.optimizer.param_groups[0]["lr"],
            "plateau": self.plateau.state_dict(),
            "metrics_bytes": metrics_bytes,
        }

    def keep_best(self, metrics_bytes: int) -> None:
        """Remember the present weights as the best ones; the next save writes them."""
        if self.writes:
            weights = training_state(self.model)
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
            self.best = copies, self.describe(metrics_bytes)

    def is_due(self, minutes: float) -> bool:
        """Return whether the last save is more than this many minutes ago."""
        return self.unsaved_seconds() > minutes * 60

    def is_worth_its_time(self) -> bool:
        """Return whether training since the last save has lasted long enough to pay for another."""
        return self.unsaved_seconds() > SAVE_SPACING * self.save_seconds

    def unsaved_seconds(self) -> float:
        return time.perf_counter() - self.saved_at

    def is_saved(self) -> bool:
        return self.saved_place == (self.progress.epoch, self.progress.step)

    def save(self, epoch_sums: Tensor, metrics_bytes: int) -> None:
        """Write the best weights, if they are new, and a step checkpoint; remove old ones."""
        began = time.perf_counter()
        if self.writes:
            name = f"step_{self.progress.step:08d}.safetensors"
            self.write(name, {"epoch_sums": epoch_sums}, metrics_bytes)
            old = sorted(self.checkpoints.glob(STEPS))[: -self.keep]
            left_by_a_kill = self.checkpoints.glob(".*.partial")
            for file in [*old, *left_by_a_kill]:
                file.unlink()
        self.saved_at = time.perf_counter()
        self.saved_place = (self.progress.epoch, self.progress.step)
        self.save_seconds = self.saved_at - began

    def write(self, name: str, more: dict[str, Tensor], metrics_bytes: int) -> None:
        """Write the best weights, if they are new, and the present state with `more` tensors."""
        if self.best:
            save_checkpoint(self.checkpoints / BEST, *self.best)
            self.best = None
        tensors = training_state(self.model, self.optimizer) | more
        save_checkpoint(self.checkpoints / name, tensors, self.describe(metrics_bytes))

    def save_failure(
        self, step: int, windows: Batch, epoch_sums: Tensor, metrics_bytes: int
    ) -> str:
        """Write the weights before a failed step and its windows of all ranks; say where."""
        name = f"nonfinite_step_{step:08d}.safetensors"
        if self.writes:
            batch = {
                "batch.pair_index": torch.from_numpy(windows.pair_index),
                "batch.end_rows": torch.from_numpy(windows.end_rows),
                "batch.keys": windows.keys,
            }
            self.write(name, {"epoch_sums": epoch_sums, **batch}, metrics_bytes)
        return f"the weights before it and its windows are in {self.checkpoints / name}"


# Which key of the trainer chooses a field of EncoderConfig; model_size chooses the others.
CHOSEN_BY = {
    "depth": "depth_dim={depth}",
    "causal": "causal={causal}",
    "normalization": "normalization={normalization}",
    "fill": "fill={fill}",
    "context": 'context="{context}"',
}


def load_newest(
    checkpoints: Path, wanted: bool
) -> tuple[Path | None, dict[str, Tensor], dict[str, Any]]:
    """Return the newest step checkpoint with its tensors and metadata.

    Return None and two empty dicts if there is none, or if it is not wanted.
    """
    newest = max(checkpoints.glob(STEPS), default=None) if wanted else None
    return (newest, *load_checkpoint(newest)) if newest else (None, {}, {})


def check_resumable(
    file: Path | None, saved: dict[str, Any], data: dict[str, Any], data_dir: str, world: int
) -> None:
    """Raise InputError if a run can't go on with these samples or on this number of ranks.

    file: None for a new run, which is not checked; saved: the checkpoint's metadata; data: the
    identity of the samples that are there now.
    """
    if file is None:
        return
    if saved["data"] != data:
        raise InputError(
            f"{file} was trained on other samples than those now in {data_dir}: "
            "make them again as they were, or start without --resume"
        )
    windows = saved["windows_a_step"]
    if windows % world:
        raise InputError(
            f"the run's {windows} windows per step can't be divided among {world} ranks: "
            "set --max_gpus"
        )


def resume(
    file: Path | None,
    tensors: dict[str, Tensor],
    saved: dict[str, Any],
    model: BookEncoder,
    optimizer: torch.optim.Optimizer,
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Put a step checkpoint's weights, moments and learning rates back.

    Return the epoch's sums of the loss and of hidden values, and FP8's scales: zeros and nothing
    without a file. Raises InputError if the file holds another network or optimizer.
    """
    if file is None:
        return torch.zeros(2, dtype=torch.float64), {}
    sums = tensors.pop("epoch_sums", torch.zeros(0))
    check_weights(file, {"epoch_sums": sums}, {"epoch_sums": torch.zeros(2)})
    scales = load_training_state(file, model, optimizer, tensors, saved["lr"])
    plateau.load_state_dict({key: saved["plateau"][key] for key in METADATA["plateau"]})
    return sums, scales


def load_weights(file: str | Path, model: BookEncoder) -> dict[str, Any]:
    """Put a checkpoint's weights into a model and return its metadata.

    The head of the outlook serves training alone: one that the checkpoint lacks stays as it is in
    the model, and one that the model lacks is left out. Raises InputError if the checkpoint holds
    another network.
    """
    tensors, meta = load_checkpoint(file, "model.")
    # The first three have no weights, and what is done about the outlook's is said above.
    may_differ = {"dropout", "temporal_dim", "doubt", "outlook"}
    found = meta["encoder"]
    wanted = asdict(model.config) | {"context": list(model.config.context)}
    differing = {
        key: value for key, value in wanted.items() if key not in may_differ and found[key] != value
    }
    if differing:
        said = ", ".join(f"{key} {found[key]!r}, not {value!r}" for key, value in differing.items())
        keys = {
            CHOSEN_BY.get(key, f"model_size={meta['config']['model_size']}") for key in differing
        }
        words = " ".join(sorted(f"--{key.format(**found)}" for key in keys))
        raise InputError(f"{file} holds an encoder of {said}: set {words}, or another model_path")
    own = plain_state(model)
    tensors = {name: x for name, x in tensors.items() if name in own or not is_outlook(name)}
    tensors |= {name: x for name, x in own.items() if name not in tensors and is_outlook(name)}
    check_weights(file, tensors, own)
    load_plain_state(model, tensors)
    return meta


def is_outlook(name: str) -> bool:
    return name.startswith("outlook.")


def training_state(
    model: BookEncoder, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors: weights, and with an optimizer its moments and FP8's scales.

    Moments have the plain names too (lob/training/te_layer.py), so a run that began with one
    encoder can go on with the other.
    """
    tensors = {f"model.{name}": tensor for name, tensor in plain_state(model).items()}
    if optimizer is None:
        return tensors
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{plain_name(name)}.{key}"] = value
    return tensors | {f"fp8.{name}": tensor for name, tensor in fp8_state(model).items()}


def load_training_state(
    file: str | Path,
    model: BookEncoder,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    lr: float,
) -> dict[str, Tensor]:
    """Put back what `training_state` returned, except FP8's scales, which are returned.

    They wait for `load_fp8_state`. Raises InputError if the weights and moments read from `file`
    are those of another network or optimizer.
    """
    part: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "fp8": {}}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        part.setdefault(prefix, {})[rest] = tensor
    check_weights(file, part["model"], plain_state(model))
    load_plain_state(model, part["model"])
    for name, parameter in model.named_parameters():
        prefix = f"{plain_name(name)}."
        state = {
            key.removeprefix(prefix): value
            for key, value in part["optimizer"].items()
            if key.startswith(prefix)
        }
        if not state:
            continue
        like = parameter.detach()
        if isinstance(optimizer, torch.optim.SGD):
            wanted = {"momentum_buffer": like}
        else:
            wanted = {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}
        check_weights(file, state, wanted)
        moments = {key: value.to(parameter.device) for key, value in state.items()}
        optimizer.state[parameter] = moments
    for group in optimizer.param_groups:
        group["lr"] = lr
    return part["fp8"]
