"""The published reference, github.com/qhawkins/CryptoOBPretraining: its settings, and its speed.

Nothing of it is copied: `time_reference` runs the trainer of a clone of it.
"""

import ast
import functools
import importlib.util
import io
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lob.config import InputError

REFERENCE = {  # as keys of fp8_ddp_trainer.py
    "model_size": "deep_narrow_transformer",
    "normalization": "minmax",
    "fill": "none",
    "mask_mode": "entry",
    "mirror": False,
    "slow": 0.0,
    "size_noise": 0.0,
    "outlook": 0.0,
    "dropout": 0.0,
    "weight_decay": 0.01,
    "batch_size": 48,
    "accumulation_steps": 4,
    "max_lr": 2.5e-4,
    "epochs": 10,
}
WARM_UP, TIMED = 8, 32  # batches: two steps, and eight steps


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TimedBatches:
    """Windows (B, T, L, F) on the GPU, again and again, and the seconds of all after the warm-up.

    They stand in place of the reference's data loader, so that reading data costs it nothing.
    """

    def __init__(self, batches: list[Tensor]):
        self.batches = batches
        self.seconds = 0.0

    def __len__(self) -> int:
        return WARM_UP + TIMED

    def __iter__(self) -> Iterator[Tensor]:
        began = 0.0
        for number in range(len(self)):
            if number == WARM_UP:
                wait_for_gpu()
                began = time.perf_counter()
            yield self.batches[number % len(self.batches)]
        wait_for_gpu()
        self.seconds = time.perf_counter() - began


def time_reference(clone: str, batches: list[Tensor]) -> dict[str, float]:
    """Return windows per second of the reference's own network, loop and precision, and its loss.

    clone: folder that it was cloned into; batches: normalised windows (B, T, L, F) on the GPU.
    Raises InputError if the folder lacks its files.
    """
    file = Path(clone) / "fp8_ddp_trainer.py"
    if not file.is_file():
        raise InputError(
            f"reference = {clone!r} holds no fp8_ddp_trainer.py: clone "
            "https://github.com/qhawkins/CryptoOBPretraining there"
        )
    theirs = import_trainer(file)
    timed = TimedBatches(batches)

    class Timed(theirs.Trainer):  # type: ignore[name-defined]
        def load_data(self) -> None:
            self.train_dataloader, self.val_dataloader = timed, batches[:1]

        def save_model(self, epoch: int, val_loss: float) -> None:
            pass

    config = read_config(file) | {"epochs": 1}
    with tempfile.TemporaryDirectory() as folder:
        theirs.SummaryWriter = functools.partial(theirs.SummaryWriter, folder)
        trainer = Timed(config, 0, 1, (), (), use_ddp=False)
        trainer.train(1)
        trainer.logger.close()
    rate = TIMED * len(batches[0]) / timed.seconds
    return {"windows_per_second": rate, "train_loss": float(trainer.train_loss_history[-1])}


def import_trainer(file: Path) -> Any:
    """Return the reference's trainer as a module that writes no losses into files."""
    # Of its data sets, which need more packages, nothing is used.
    data_sets = types.ModuleType("training_classes")
    data_sets.PretrainingDataset = None  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("published_reference", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_classes"] = data_sets
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
        del sys.modules["training_classes"]
    module.open = lambda *_, **__: io.StringIO()  # its logs lie in folders of its author
    return module


def read_config(file: Path) -> dict[str, Any]:
    """Return the config dict that stands in the reference's `main`."""
    for node in ast.walk(ast.parse(file.read_text())):
        is_config = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "config"
        if is_config and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    raise InputError(f"{file} has no config dict: clone another commit of it")
