"""Export a checkpoint's encoder for C++ and Python: normalisation inside, checked in a fresh process.

    python model_exporter.py                                     the best checkpoint of the newest run
    python model_exporter.py --model_path=runs/a/checkpoints/best.safetensors --parts="['encoder']"

Writes `exports/<run>/encoder.pt` (TorchScript: price_ticks int64 (B, T, L) and sizes float32 (B, T, L) of windows that
end now -> embedding float32 (B, D)), `reconstruction.pt` (the same and a mask bool (B, T, L, 2), True where hidden ->
price in ticks float64 (B, T, L) and size float32 (B, T, L)), each with a `.json` beside it that says the same. A file
whose outputs differ from the checkpoint's on real windows is deleted, with exit status 1.
"""

config = {
    "data_dir": "training_data",  # folder whose book_states/ give the windows for the check
    "runs_dir": "runs",  # folder of all runs
    "model_path": None,  # checkpoint; None: the best one of the newest run
    "exports_dir": "exports",  # folder of the exported files
    "parts": ["encoder", "reconstruction"],  # what to export
    "pooling": "last",  # embedding of a window: its last state, or the mean of all states
    "check_windows": 16,  # real windows on which file and checkpoint are compared
    "tolerance": 1e-5,  # largest |difference| / |reference| that passes
}

from lob.config import CheckFailed, InputError, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__, optional={"model_path": str}, choices={"pooling": ("last", "mean")})

import hashlib
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lob.checkpoints import find_checkpoint, load_model
from lob.encoder import BookEncoder, build_inputs
from lob.files import FORMAT_VERSION, find_pairs, new_file, open_book
from lob.normalisation import invert
from lob.windows import gather_windows, window_ends

PARTS = ("encoder", "reconstruction")
# Runs without this repository, as a user's program does.
FRESH_PROCESS = """
import sys, numpy, torch
module = torch.jit.load(sys.argv[1])
data = numpy.load(sys.argv[2])
inputs = [torch.from_numpy(data[f"input{i}"]) for i in range(sum(k.startswith("input") for k in data))]
with torch.inference_mode():
    parts = [module(*(x[i : i + n] for x in inputs)) for i, n in ((0, 1), (1, len(inputs[0]) - 1))]
parts = [p if isinstance(p, tuple) else (p,) for p in parts]
outputs = [torch.cat(column).numpy() for column in zip(*parts)]
numpy.savez(sys.argv[3], **{f"output{i}": x for i, x in enumerate(outputs)})
"""


class ExportedEncoder(nn.Module):
    """Windows that end now -> one embedding each; normalisation is part of the graph.

    The embedding is taken at the window's end alone: in a bidirectional encoder those of earlier states hold their
    future.
    """

    def __init__(self, encoder: BookEncoder, pooling: str):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(self, price_ticks: Tensor, sizes: Tensor) -> Tensor:
        mask = torch.zeros_like(sizes, dtype=torch.bool).unsqueeze(3).expand(-1, -1, -1, 2)
        tokens, _, _, _ = build_inputs(price_ticks, sizes, mask, self.encoder.config)
        hidden = self.encoder.encode(tokens)
        return hidden[:, -1] if self.pooling == "last" else hidden.mean(dim=1)


class ExportedReconstruction(nn.Module):
    """Windows and a mask -> the predicted price in ticks and size of every entry."""

    def __init__(self, encoder: BookEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, price_ticks: Tensor, sizes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens, base, _, parameters = build_inputs(price_ticks, sizes, mask, self.encoder.config)
        return invert(self.encoder(tokens, base), parameters, self.encoder.config.normalization)


def main(config: dict) -> int:
    unknown = [part for part in config["parts"] if part not in PARTS]
    if unknown or not config["parts"]:
        raise InputError(f"parts = {config['parts']} must be some of {', '.join(PARTS)}")
    if config["check_windows"] < 2:
        raise InputError(f"check_windows = {config['check_windows']} must be at least 2: two batch sizes are compared")
    path = find_checkpoint(config["runs_dir"], config["model_path"])
    encoder, meta = load_model(path)
    price_ticks, sizes = real_windows(config, encoder)
    mask = torch.zeros((*price_ticks.shape, 2), dtype=torch.bool)
    mask[:, ::3, ::2] = True
    modules: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "encoder": (ExportedEncoder(encoder, config["pooling"]), (price_ticks, sizes)),
        "reconstruction": (ExportedReconstruction(encoder), (price_ticks, sizes, mask)),
    }
    folder = Path(config["exports_dir"]) / path.resolve().parent.parent.name
    print(f"{path} (step {meta['progress']['step']:,}) -> {folder}")
    print(f"{'file':<20}{'bytes':>12}{'difference':>12}{'p50, batch 1':>14}")
    for part in config["parts"]:
        module, inputs = modules[part]
        file = folder / f"{part}.pt"
        write(file, module.eval(), inputs, describe(part, encoder, path, meta, config["pooling"]))
        difference = compare(file, module, inputs)
        if not difference <= config["tolerance"]:
            file.unlink()
            file.with_suffix(".json").unlink()
            raise CheckFailed(f"{file} differed from the checkpoint by {difference:.1e}, more than "
                              f"{config['tolerance']:g}, and was deleted")  # fmt: skip
        print(f"{file.name:<20}{file.stat().st_size:>12,}{difference:>12.1e}{median_ms(file, inputs):>11.2f} ms")
    return 0


def real_windows(config: dict, encoder: BookEncoder) -> tuple[Tensor, Tensor]:
    """Windows spread over the recordings of the first pair whose depth fits."""
    folder = Path(config["data_dir"])
    names = find_pairs(folder, "book_states", None, "data_parser.py")
    for name in names:
        book = open_book(folder / "book_states" / name)
        ends = window_ends(book.segment_starts, book.rows, encoder.config.temporal_dim)
        if book.depth == encoder.config.depth and len(ends) >= config["check_windows"]:
            chosen = ends[np.linspace(0, len(ends) - 1, config["check_windows"]).astype(int)]
            price_ticks, sizes = gather_windows(book, chosen, encoder.config.temporal_dim)
            return torch.from_numpy(price_ticks.astype(np.int64)), torch.from_numpy(sizes)
    raise InputError(f"no book in {folder / 'book_states'} ({', '.join(names)}) has depth {encoder.config.depth} and "
                     f"{config['check_windows']} windows of {encoder.config.temporal_dim}: set --data_dir")  # fmt: skip


def describe(part: str, encoder: BookEncoder, path: Path, meta: dict[str, Any], pooling: str) -> dict[str, Any]:
    """What a caller must know: it goes into the file and into the `.json` beside it."""
    states, levels = encoder.config.temporal_dim, encoder.config.depth
    window = f"(B, {states}, {levels})"
    inputs = {
        "price_ticks": f"int64 {window}: price in ticks, ascending: {levels // 2} bids up to the best, then asks",
        "sizes": f"float32 {window}: resting size at each price, > 0",
    }
    outputs = {"embedding": f"float32 (B, {encoder.config.width}): {pooling} of the window that ends now"}
    if part == "reconstruction":
        inputs["mask"] = f"bool (B, {states}, {levels}, 2): True where price (0) or size (1) is hidden"
        outputs = {"price_ticks": f"float64 {window}", "sizes": f"float32 {window}"}
    return {
        "format_version": FORMAT_VERSION, "part": part, "inputs": inputs, "outputs": outputs,
        "encoder": meta["encoder"], "checkpoint": path.name, "step": meta["progress"]["step"],
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip


def write(file: Path, module: nn.Module, inputs: tuple[Tensor, ...], facts: dict[str, Any]) -> None:
    """Trace the module (the batch dimension stays free) and write it and its description."""
    text = json.dumps(facts, indent=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what LibTorch loads
        traced = torch.jit.trace(module, tuple(x[:2] for x in inputs), check_trace=False)
    with new_file(file) as handle:
        torch.jit.save(traced, handle, _extra_files={"metadata.json": text})
    with new_file(file.with_suffix(".json")) as handle:
        handle.write(text.encode())


def compare(file: Path, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest |difference| / |reference| of the file's outputs, computed in a fresh process, from the module's."""
    with torch.inference_mode():
        expected = module(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        arrays: dict[str, Any] = {f"input{i}": x.numpy() for i, x in enumerate(inputs)}
        np.savez(given, **arrays)
        command = [sys.executable, "-c", FRESH_PROCESS, str(file.resolve()), str(given), str(found)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return float("inf")
        outputs = np.load(found)
        expected = expected if isinstance(expected, tuple) else (expected,)
        return max(float(np.linalg.norm(outputs[f"output{i}"] - x.numpy()) / np.linalg.norm(x.numpy()))
                   for i, x in enumerate(expected))  # fmt: skip


def median_ms(file: Path, inputs: tuple[Tensor, ...], repeats: int = 20) -> float:
    """Median latency of one window, in milliseconds, after the first calls have specialised the graph."""
    module = torch.jit.load(str(file))
    one = [x[:1] for x in inputs]
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            began = time.perf_counter()
            module(*one)
            times.append(time.perf_counter() - began)
    return float(np.median(times[3:]) * 1e3)


if __name__ == "__main__":
    run(main, config)
