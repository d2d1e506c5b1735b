"""Export a checkpoint for C++ and other programs: normalisation inside, every file checked in a fresh process.

    python model_exporter.py                                     the best checkpoint of the newest run
    python model_exporter.py --parts="['actor_critic']" --trainable=True --training_mode=True
    python model_exporter.py --formats=[] --embeddings=True      only training_data/embeddings/

Each part takes windows that end now, price_ticks int64 (B, T, L) and sizes float32 (B, T, L), of any batch size:

- encoder -> embedding float32 (B, D);
- reconstruction, with a mask bool (B, T, L, 2), True where hidden -> price in ticks float64 and size float32 (B, T, L);
- actor_critic, with the agent's own state float32 (B, S) -> logits float32 (B, 3) of sell, hold, buy; value float32
  (B,). As TorchScript it also has the methods `embed(price_ticks, sizes)` and `heads(embedding, state)`.

Files are `exports/<run>/<part>[_bf16][_cuda].pt` (TorchScript) and `.onnx`, each with a `.json` that says what its own
metadata says: inputs, outputs, units, checkpoint. A bf16 file's layers multiply in bf16 and add in fp32; in ONNX, whose
CPU kernels have no bf16 products, only their weights are stored so. A file whose outputs differ from the checkpoint's
on real windows by more than the tolerance is deleted, with exit status 1.
"""

config = {
    "data_dir": "training_data",  # folder whose book_states/ give the windows for the check
    "pairs": None,  # list of pairs, for the check and for embeddings; None: all under book_states/
    "runs_dir": "runs",  # folder of all runs
    "model_path": None,  # checkpoint; None: the best one of the newest run
    "exports_dir": "exports",  # folder of the exported files
    "parts": ["encoder", "reconstruction", "actor_critic"],  # what to export
    "formats": ["torchscript", "onnx"],  # some of these two, or none
    "precisions": ["fp32"],  # fp32 and bf16
    "devices": None,  # list of cpu and cuda, for TorchScript; None: cpu, and cuda where there is one
    "pooling": "last",  # embedding of a window: its last state, the mean of all, or (encoder trained causal) all states
    "trainable": False,  # actor_critic's encoder: goes on learning, or stays as it is
    "training_mode": False,  # actor_critic is saved in training mode, with dropout
    "state_features": 4,  # actor_critic: what the agent knows of itself, such as its position
    "state_widths": [32],  # actor_critic: layers of the state-features head
    "policy_widths": [64],  # actor_critic: hidden layers of the policy head
    "value_widths": [64],  # actor_critic: hidden layers of the value head
    "seed": 0,  # of actor_critic's first weights
    "embeddings": False,  # write training_data/embeddings/<PAIR>.npy: a row a window
    "embedding_stride": 1,  # states from one embedded window to the next
    "batch_size": None,  # windows embedded at a time; None: 16 on a CPU (they stay in its cache), 256 on a GPU
    "check_windows": 16,  # real windows on which file and checkpoint are compared
    "tolerance": 1e-5,  # largest |difference| / |reference| of an fp32 file
    "tolerance_bf16": 2e-2,  # and of a bf16 one
}

from lob.config import CheckFailed, InputError, load_config, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"model_path": str, "pairs": list, "devices": list, "batch_size": int},
        choices={"pooling": ("last", "mean", "all")},
        bounds={"check_windows": ">= 2", "embedding_stride": ">= 1", "batch_size": ">= 1", "state_features": ">= 1"},
    )  # fmt: skip

import copy
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lob.book.states import Book, identity, open_book, open_books
from lob.export.actor_critic import ACTIONS, ActorCritic
from lob.export.onnx_program import to_onnx
from lob.model.checkpoint import describe_step, find_checkpoint, load_model
from lob.model.embedding import Reconstruction, WindowEncoder, in_bf16
from lob.model.encoder import BookEncoder, EncoderConfig, count_parameters
from lob.model.window_store import WindowStore
from lob.storage import FORMAT_VERSION, check_writable, find_pairs, format_bytes, new_file, new_table
from lob.windows.splits import gather_windows, segment_ranges, window_ends

PARTS = ("encoder", "reconstruction", "actor_critic")
FORMATS = {"torchscript": ".pt", "onnx": ".onnx"}
# Run without this repository, as a user's program does: two batch sizes, then the time of one window on one thread.
FRESH_PROCESS = """
import sys, time, numpy
file, given, found, device = sys.argv[1:]
data = numpy.load(given)
inputs = [data[name] for name in data.files]
if file.endswith(".onnx"):
    import onnxruntime
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=[provider])
    names = [x.name for x in session.get_inputs()]
    call = lambda arrays: session.run(None, dict(zip(names, arrays)))
else:
    import torch
    torch.set_num_threads(1)
    module = torch.jit.load(file, map_location=device).eval()
    def call(arrays):
        with torch.inference_mode():
            found = module(*(torch.from_numpy(x).to(device) for x in arrays))
            return [x.cpu().numpy() for x in (found if isinstance(found, tuple) else (found,))]
batches = [call([x[i : i + n] for x in inputs]) for i, n in ((0, 1), (1, len(inputs[0]) - 1))]
times = []
for _ in range(15):
    began = time.perf_counter()
    call([x[:1] for x in inputs])
    times.append(time.perf_counter() - began)
outputs = [numpy.concatenate(column) for column in zip(*batches)]
numpy.savez(found, *outputs, milliseconds=1e3 * numpy.median(times[5:]))
"""


def main(config: dict) -> int:
    check_config(config)
    path = find_checkpoint(config["runs_dir"], config["model_path"])
    encoder, meta = load_model(path)
    check_encoder(config, encoder.config)
    origin = {"checkpoint": path.name, "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
              "step": meta["progress"]["step"]}  # fmt: skip
    folder = Path(config["exports_dir"]) / path.resolve().parent.parent.name
    inputs = check_inputs(config, encoder.config) if config["formats"] else {}
    books = open_books(config["data_dir"], config["pairs"], encoder.config.depth) if config["embeddings"] else []
    for written, key in ((inputs, "exports_dir"), (books, "data_dir")):
        if written:
            check_writable(config[key], key)
    print(f"{path} ({describe_step(meta)}){f' -> {folder}' if inputs else ''}")
    if inputs:
        print(f"{'file':<28}{'bytes':>12}{'difference':>12}{'batch 1':>12}")
    for part in config["parts"] if inputs else ():
        expected = outputs_of(make_part(part, encoder, config), inputs[part])
        for format_, precision, device in variants(config):
            file = folder / (part + ("_bf16" if precision == "bf16" else "") + ("_cuda" if device == "cuda" else "")
                             + FORMATS[format_])  # fmt: skip
            module = make_part(part, encoder, config, precision, device)
            facts = describe(part, encoder.config, config, precision, device) | origin
            write(file, module, inputs[part], facts)
            found, milliseconds = compare(file, expected, inputs[part], device)
            tolerance = config["tolerance" if precision == "fp32" else "tolerance_bf16"]
            if not found <= tolerance:
                file.unlink()
                file.with_suffix(file.suffix + ".json").unlink()
                raise CheckFailed(f"{file} differed from the checkpoint by {found:.1e}, more than "
                                  f"{tolerance:g}, and was deleted")  # fmt: skip
            print(f"{file.name:<28}{file.stat().st_size:>12,}{found:>12.1e}{milliseconds:>9.2f} ms", flush=True)
    for book in books:
        write_embeddings(book, encoder, config, origin)
    return 0


def check_config(config: dict) -> None:
    known_values = {"parts": PARTS, "formats": FORMATS, "precisions": ("fp32", "bf16"), "devices": ("cpu", "cuda")}
    for key, known in known_values.items():
        unknown = [value for value in config[key] or () if value not in known]
        if unknown or (config[key] == [] and key != "formats"):
            raise InputError(f"{key} = {config[key]} must be some of {', '.join(known)}")
    if "cuda" in (config["devices"] or ()) and not torch.cuda.is_available():
        raise InputError("devices names 'cuda', but torch finds no CUDA device: set --devices=\"['cpu']\"")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if "onnx" in config["formats"] and missing:
        raise InputError(f"formats names 'onnx', but {', '.join(missing)} is not installed: "
                         "pip install onnx onnxscript onnxruntime, or set --formats=\"['torchscript']\"")  # fmt: skip
    if config["pooling"] == "all" and (config["embeddings"] or "actor_critic" in config["parts"]):
        raise InputError("pooling = 'all' is of the encoder alone: set --parts=\"['encoder']\" and --embeddings=False")
    if not config["formats"] and not config["embeddings"]:
        raise InputError("formats = [] and embeddings = False leave nothing to do: set one of them")
    for key in ("state_widths", "policy_widths", "value_widths"):
        if not all(type(width) is int and width > 0 for width in config[key]):
            raise InputError(f"{key} = {config[key]} must be a list of widths, such as [64, 64]")


def check_encoder(config: dict, encoder: EncoderConfig) -> None:
    if config["pooling"] == "all" and not (encoder.causal and encoder.normalization == "book"):
        raise InputError("pooling = 'all', but this encoder's embeddings of earlier states contain their future: train "
                         "one with --causal=True --normalization=book, or set --pooling=last")  # fmt: skip
    if "onnx" in config["formats"] and 4 * count_parameters(encoder) > 2**31 and "fp32" in config["precisions"]:
        raise InputError("an ONNX file holds at most 2 GB: set --precisions=\"['bf16']\" or "
                         "--formats=\"['torchscript']\"")  # fmt: skip


def variants(config: dict) -> list[tuple[str, str, str]]:
    """Format, precision and device of every file; an ONNX file is one for all devices."""
    devices = config["devices"] or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [(format_, precision, device) for format_ in config["formats"] for precision in config["precisions"]
            for device in (devices if format_ == "torchscript" else ["cpu"])]  # fmt: skip


def make_part(part: str, encoder: BookEncoder, config: dict, precision: str = "fp32", device: str = "cpu") -> nn.Module:
    """Return a part around a copy of the encoder, whose layers alone take the precision."""
    encoder = (copy.deepcopy(encoder) if precision == "fp32" else in_bf16(encoder)).requires_grad_(False)
    if part == "actor_critic":
        return ActorCritic(encoder, config).train(config["training_mode"]).to(device)
    made = WindowEncoder(encoder, config["pooling"]) if part == "encoder" else Reconstruction(encoder)
    return made.eval().to(device)


def check_inputs(config: dict, encoder: EncoderConfig) -> dict[str, tuple[Tensor, ...]]:
    """The inputs of each part: windows spread over the first pair whose depth fits, a mask, a state."""
    folder = Path(config["data_dir"])
    names = find_pairs(folder, "book_states", config["pairs"], "data_parser.py")
    count, states = config["check_windows"], encoder.temporal_dim
    for name in names:
        book = open_book(folder / "book_states" / name)
        ends = window_ends(book.segment_starts, book.rows, states)
        if book.depth == encoder.depth and len(ends) >= count:
            price_ticks, sizes = gather_windows(book, ends[np.linspace(0, len(ends) - 1, count).astype(int)], states)
            windows = torch.from_numpy(price_ticks.astype(np.int64)), torch.from_numpy(sizes)
            mask = torch.zeros((*sizes.shape, 2), dtype=torch.bool)
            mask[:, ::3, ::2] = True
            state = torch.randn(count, config["state_features"], generator=torch.Generator().manual_seed(0))
            return {"encoder": windows, "reconstruction": (*windows, mask), "actor_critic": (*windows, state)}
    raise InputError(f"no book in {folder / 'book_states'} ({', '.join(names)}) has depth {encoder.depth} and "
                     f"{count} windows of {states}: set --data_dir")  # fmt: skip


def describe(part: str, encoder: EncoderConfig, config: dict, precision: str, device: str) -> dict[str, Any]:
    """What a caller must know: it goes into the file and into the `.json` beside it."""
    window = ["B", encoder.temporal_dim, encoder.depth]

    def field(dtype: str, shape: list, meaning: str) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "meaning": meaning}

    order = f"along the last axis {encoder.depth // 2} bids, deepest to best, then asks, best to deepest"
    inputs = {
        "price_ticks": field("int64", window, f"price in ticks; states in time order, the last is now; {order}"),
        "sizes": field("float32", window, "resting size at each price in the base currency, above 0"),
    }  # fmt: skip
    outputs = {"embedding": field("float32", ["B", encoder.width], f"{config['pooling']} of the window that ends now")}
    if config["pooling"] == "all":
        outputs["embedding"] = field("float32", ["B", encoder.temporal_dim, encoder.width], "of each state")
    if part == "reconstruction":
        inputs["mask"] = field("bool", [*window, 2], "True where price (0) or size (1) is hidden")
        outputs = {"predicted_price_ticks": field("float64", window, "price in ticks, not rounded"),
                   "predicted_sizes": field("float32", window, "size")}  # fmt: skip
    if part == "actor_critic":
        inputs["state"] = field("float32", ["B", config["state_features"]], "the agent's own state, scaled to about 1")
        outputs = {"logits": field("float32", ["B", len(ACTIONS)], f"of {', '.join(ACTIONS)}"),
                   "value": field("float32", ["B"], "of the window and state")}  # fmt: skip
    return {"format_version": FORMAT_VERSION, "part": part, "precision": precision, "device": device,
            "inputs": inputs, "outputs": outputs, "encoder": vars(encoder)}  # fmt: skip


def write(file: Path, module: nn.Module, inputs: tuple[Tensor, ...], facts: dict[str, Any]) -> None:
    """Write the module in the format that the file's ending names, and its description; batch sizes stay free."""
    text = json.dumps(facts, indent=1)
    example = tuple(x[:2].to(next(module.parameters()).device) for x in inputs)
    about = file.with_suffix(file.suffix + ".json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is what LibTorch loads
        if file.suffix == ".pt":
            program = to_torchscript(module, example)
            with new_file(file) as handle:
                torch.jit.save(program, handle, _extra_files={"metadata.json": text})
        else:
            model = to_onnx(module.float().eval(), example, facts)
            with new_file(file) as handle:
                handle.write(model.SerializeToString())
    with new_file(about) as handle:
        handle.write(text.encode())


def to_torchscript(module: nn.Module, example: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    """Trace the normalisation; script the rest of an actor_critic, so that train() and eval() switch its dropout."""
    if not isinstance(module, ActorCritic):
        with torch.no_grad():
            return torch.jit.trace(module, example, check_trace=False)
    module.window.tokens = torch.jit.trace(module.window.tokens, example[:2], check_trace=False)
    return torch.jit.script(module)


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.inference_mode():
        found = module.eval()(*inputs)
    return [x.numpy() for x in (found if isinstance(found, tuple) else (found,))]


def compare(file: Path, expected: list[np.ndarray], inputs: tuple[Tensor, ...], device: str) -> tuple[float, float]:
    """Largest `difference` of the file's outputs in a fresh process, and its median time of a window, ms."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(given, *[x.numpy() for x in inputs])
        command = [sys.executable, "-c", FRESH_PROCESS, str(file.resolve()), str(given), str(found), device]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{file} does not run: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return float("inf"), float("nan")
        outputs = np.load(found)
        differences = [difference(outputs[f"arr_{index}"], reference) for index, reference in enumerate(expected)]
        return float(np.max(differences)), float(outputs["milliseconds"])


def difference(found: np.ndarray, reference: np.ndarray) -> float:
    """|found - reference| / |reference|, NaN where an entry is.

    Prices count from their window's mean: a share of 7,831,845 ticks would pass an error of dozens.
    """
    level = reference.mean(axis=(1, 2), keepdims=True) if reference.dtype == np.float64 else 0.0
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference - level))


def write_embeddings(book: Book, encoder: BookEncoder, config: dict, origin: dict[str, Any]) -> None:
    """Write `embeddings/<PAIR>.npy`, float32 (W, D), and its `.json`, memory mapped by agents with a frozen encoder.

    Rows are the windows that end at the `end_row_ranges` [first, stop, stride] of the `.json`, one after the other.
    """
    states, stride, width = encoder.config.temporal_dim, config["embedding_stride"], encoder.config.width
    ranges = [range(first + states, end + 1, stride) for first, end in
              segment_ranges(book.segment_starts, book.rows).tolist() if end - first >= states]  # fmt: skip
    windows, file = sum(map(len, ranges)), Path(config["data_dir"]) / "embeddings" / f"{book.pair}.npy"
    free = shutil.disk_usage(config["data_dir"]).free
    if not windows:
        raise InputError(f"{book.path} has no run of {states} states without a gap: set --pairs")
    if 4 * width * windows > free:
        raise InputError(f"embeddings of {book.pair} will take {format_bytes(4 * width * windows)}, free are "
                         f"{format_bytes(free)}: raise --embedding_stride")  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    count = config["batch_size"] or (256 if device == "cuda" else 16)
    module = make_part("encoder", encoder, config, device=device)
    batches = (np.asarray(ends[first : first + count]) - states
               for ends in ranges for first in range(0, len(ends), count))  # fmt: skip
    parameters = {"temporal_dim": states, "pooling": config["pooling"], "stride": stride}
    made_from = {"book": identity(book), **origin}
    with (
        new_table(file, np.float32, parameters, made_from, (width,)) as table,
        tqdm(total=windows, desc=book.pair, unit=" windows", disable=None) as bar,
        torch.inference_mode(),
    ):
        for price_ticks, sizes in WindowStore([book], states, torch.device(device)).batches(batches):
            table.append(module(price_ticks, sizes).cpu().numpy())
            bar.update(len(sizes))
        table.extra["end_row_ranges"] = [[ends.start, ends.stop, ends.step] for ends in ranges]
    print(f"{file}: {windows:,} windows of {width} values")


if __name__ == "__main__":
    run(main, config)
