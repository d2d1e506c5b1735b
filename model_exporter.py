"""Export a checkpoint for C++ and other programs; every file is checked in a fresh process.

    python model_exporter.py                    the best checkpoint of the newest run
    python model_exporter.py --parts="['actor_critic']" --trainable=True --training_mode=True
    python model_exporter.py --formats=[] --embeddings=True      only training_data/embeddings/
    python model_exporter.py --formats=[] --pretrained=pretrained/mine    weights to pass on

A part is the encoder, or the encoder with what is needed for one use of it. Each takes windows of
any batch size B, with T states and L levels: price_ticks int64 (B, T, L), sizes float32 (B, T, L).
The normalisation is inside:

- encoder -> embedding float32 (B, D);
- reconstruction, with a mask bool (B, T, L, 2), True where hidden
  -> price in ticks float64 (B, T, L), size float32 (B, T, L);
- actor_critic, with S numbers of the agent's own state, float32 (B, S)
  -> logits float32 (B, 3) of sell, hold, buy; value float32 (B,).
  As TorchScript it also has the methods `embed(price_ticks, sizes)` and `heads(embedding, state)`;
- stream, for encoders trained with causal=True, takes no windows but one state of each of B books,
  price_ticks int64 (B, L) and sizes float32 (B, L), and keeps what it needs of earlier ones
  -> embedding float32 (B, D). It has the methods `reset(B)` and `forget(which)`, with a bool for
  each book. lob/model/streaming.py says what the vector of a state is.

Files are `exports/<run>/<part>[_trainable][_bf16][_cuda].pt` (TorchScript) and `.onnx`. Each holds
metadata (inputs, outputs, units, checkpoint), and the `.json` beside it holds the same. Both refuse
windows of other lengths or depths than the encoder's. The layers of a bf16 file multiply in bf16
and add in fp32. An ONNX file only stores its weights in bf16, since ONNX's CPU kernels have no bf16
products. If a file's outputs on recorded windows differ from the checkpoint's by more than the
tolerance, the file is deleted and the exit status is 1.
"""

config = {
    "data_dir": "training_data",  # str: folder whose book_states/ give the windows of the check
    "pairs": None,  # list[str] | None: pairs to check and embed with; None: all under book_states/
    "runs_dir": "runs",  # str: folder of all runs
    "model_path": None,  # str | None: checkpoint, run or pretrained weights; None: the newest run
    "exports_dir": "exports",  # str: folder of the exported files
    "parts": ["encoder", "reconstruction", "actor_critic"],  # list[encoder |
    #   reconstruction | actor_critic | stream]: what is exported
    "formats": ["torchscript", "onnx"],  # list[torchscript | onnx] | []: file formats; []: no files
    "pretrained": None,  # str | None: folder of weights for use that is written too,
    #   such as pretrained/<name>
    "card": None,  # dict | None: what its card says beside what the run knows: licence, data, ...
    "precisions": ["fp32"],  # list[fp32 | bf16]: precisions of the layers, a file for each
    "devices": None,  # list[cpu | cuda] | None: devices of TorchScript files, a file for each;
    #   None: all of this machine
    "pooling": "last",  # last | mean | all: what embeds a window: its last state's vector, the mean
    #   over states, or the vector of each state (for encoders trained with causal=True)
    "trainable": False,  # bool: actor_critic's encoder goes on learning
    "training_mode": False,  # bool: actor_critic is saved in training mode, with dropout
    "state_features": 4,  # int >= 1: numbers of an agent's state, such as its position
    "state_widths": [32],  # list[int >= 1]: layers of actor_critic's head for these numbers
    "policy_widths": [64],  # list[int >= 1]: hidden layers of actor_critic's policy head
    "value_widths": [64],  # list[int >= 1]: hidden layers of actor_critic's value head
    "seed": 0,  # int >= 0: seed of actor_critic's first weights
    "embeddings": False,  # bool: write training_data/embeddings/<PAIR>.npy, a row for each window
    "embedding_stride": 1,  # int >= 1: states from one embedded window to the next
    "batch_size": None,  # int >= 1 | None: windows embedded at a time;
    #   None: 16 on a CPU, so that they fit into its cache, and 256 on a GPU
    "check_windows": 16,  # int >= 2: real windows on which file and checkpoint are compared
    "tolerance": 1e-5,  # > 0: largest |difference| / |reference| of an fp32 file
    "tolerance_bf16": 2e-2,  # > 0: largest |difference| / |reference| of a bf16 file
}

from lob.config import CheckFailed, InputError, check_rules, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import copy
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lob.book.states import Book, identity, open_book, open_books
from lob.export.actor_critic import ACTIONS, ActorCritic
from lob.export.check import compare, outputs_of
from lob.export.pretrained import check_folder, choose_scores, write_pretrained
from lob.export.program import ENDINGS, about, write_program
from lob.model.card import GIVEN, read_card
from lob.model.checkpoint import describe_step, find_checkpoint, load_model, run_folder
from lob.model.embedding import (
    Reconstruction,
    WindowEncoder,
    embed_windows,
    in_bf16,
    window_encoder,
)
from lob.model.encoder import BookEncoder, EncoderConfig, count_parameters
from lob.model.streaming import BookStream, check_causal
from lob.results import read_rows
from lob.storage import FORMAT_VERSION, check_writable, find_pairs, format_bytes, new_table
from lob.windows.splits import gather_times, gather_windows, strided_ends, window_ends

# Keys of the trainer that name a run or a place and are no part of its recipe.
PLACES = ("data_dir", "runs_dir", "azure_data_root", "model_name", "resume")


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    check_config(config)
    checkpoint = find_checkpoint(config["runs_dir"], config["model_path"])
    encoder, meta = load_model(checkpoint)
    check_encoder(config, encoder.config)
    run = run_folder(checkpoint.resolve(), config["runs_dir"])
    folder = Path(config["exports_dir"]) / run.name
    # All that can be refused is looked at before any file is written.
    inputs = {}
    books = []
    if config["formats"]:
        inputs = find_inputs(config, encoder.config)
        check_writable(config["exports_dir"], "exports_dir")
    if config["pretrained"]:
        check_folder(Path(config["pretrained"]))
    if config["embeddings"]:
        books = find_books(config, encoder.config)
        check_writable(config["data_dir"], "data_dir")
    origin = {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "step": meta["progress"]["step"],
    }
    print(f"{checkpoint} ({describe_step(meta)}){f' -> {folder}' if inputs else ''}")
    if inputs:
        print(f"{'file':<28}{'bytes':>12}{'difference':>12}{'batch 1':>12}")
        for part in config["parts"]:
            export_part(part, encoder, inputs[part], folder, origin, config)
    if config["pretrained"]:
        share(Path(config["pretrained"]), checkpoint, encoder, meta, run, config["card"] or {})
    for book in books:
        write_embeddings(book, encoder, config, origin)
    return 0


def check_config(config: dict) -> None:
    """Raise InputError if the settings are wrong, whatever the checkpoint."""
    if "cuda" in (config["devices"] or ()) and not torch.cuda.is_available():
        raise InputError(
            "devices names 'cuda', but torch finds no CUDA device: set --devices=\"['cpu']\""
        )
    packages = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if "onnx" in config["formats"] and missing:
        raise InputError(
            f"formats names 'onnx', but {', '.join(missing)} is not installed: "
            "pip install onnx onnxscript onnxruntime, or set --formats=\"['torchscript']\""
        )
    if config["pooling"] == "all" and (config["embeddings"] or "actor_critic" in config["parts"]):
        raise InputError(
            "pooling = 'all' is possible for the part encoder alone: "
            "set --parts=\"['encoder']\" and --embeddings=False, or --pooling=last"
        )
    if "stream" in config["parts"] and "onnx" in config["formats"]:
        raise InputError(
            "an ONNX file keeps nothing between two states, which the part stream must: "
            "set --formats=\"['torchscript']\", and export it in a run of its own"
        )
    if config["trainable"] and "actor_critic" not in config["parts"]:
        print("no effect: trainable (parts holds no actor_critic)")
    if not config["formats"] and not config["embeddings"] and not config["pretrained"]:
        raise InputError(
            "formats = [] and embeddings = False leave nothing to do: "
            "set one of them, or --pretrained"
        )


def check_encoder(config: dict, encoder: EncoderConfig) -> None:
    """Raise InputError if this encoder can't be exported as configured."""
    if config["formats"] and "stream" in config["parts"]:
        check_causal(encoder)
    sees_no_future = encoder.causal and encoder.normalization == "book"
    if config["pooling"] == "all" and not sees_no_future:
        raise InputError(
            "pooling = 'all', but this encoder's embeddings of earlier states contain their future:"
            " train one with --causal=True --normalization=book, or set --pooling=last"
        )
    if "shuffled_clock" in encoder.context and config["formats"]:
        raise InputError(
            "this encoder was trained with shuffled_clock, a control: a window's vector depends on "
            "the other windows of its batch; set --model_path to another one"
        )
    if encoder.reads_times and "actor_critic" in config["parts"] and config["formats"]:
        raise InputError(
            "the part actor_critic takes no times of states, which this encoder reads: "
            "set --parts=\"['encoder']\""
        )
    too_large = 4 * count_parameters(encoder) > 2**31
    if too_large and "onnx" in config["formats"] and "fp32" in config["precisions"]:
        raise InputError(
            "an ONNX file holds at most 2 GB, and this encoder in fp32 is larger: "
            "set --precisions=\"['bf16']\" or --formats=\"['torchscript']\""
        )


def find_inputs(config: dict, encoder: EncoderConfig) -> dict[str, tuple[Tensor, ...]]:
    """Return each part's inputs for the check: recorded windows, a mask, an agent's state.

    The windows are spread over the first pair of the encoder's depth that has enough windows, else
    over the one with most. Raises InputError if no pair has a window.
    """
    folder = Path(config["data_dir"])
    count, states = config["check_windows"], encoder.temporal_dim
    names = find_pairs(folder, "book_states", config["pairs"], "data_parser.py")
    chosen, ends = None, np.empty(0, np.int64)
    for name in names:
        book = open_book(folder / "book_states" / name)
        found = window_ends(book.segment_starts, book.rows, states)
        if book.depth == encoder.depth and len(ends) < min(count, len(found)):
            chosen, ends = book, found
    if chosen is None:
        raise InputError(
            f"no book in {folder / 'book_states'} ({', '.join(names)}) has depth {encoder.depth} "
            f"and a window of {states} states: set --data_dir"
        )
    if len(ends) < count:
        print(f"checked on {len(ends)} windows, not {count}: {chosen.pair} has no more")
        count = max(len(ends), 2)  # files are checked for two sizes of a batch
    spread_out = ends[np.linspace(0, len(ends) - 1, count).astype(int)]
    price_ticks, sizes = gather_windows(chosen, spread_out, states)
    windows = torch.from_numpy(price_ticks.astype(np.int64)), torch.from_numpy(sizes)
    mask = torch.zeros((*sizes.shape, 2), dtype=torch.bool)
    mask[:, ::3, ::2] = True
    times: tuple[Tensor, ...] = ()
    if encoder.reads_times:
        times = (torch.from_numpy(gather_times(chosen, spread_out, states)),)
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(count, config["state_features"], generator=generator)
    return {
        "encoder": (*windows, *times),
        "stream": windows,
        "reconstruction": (*windows, mask, *times),
        "actor_critic": (*windows, state),
    }


def find_books(config: dict, encoder: EncoderConfig) -> list[Book]:
    """Return the books that have a window to embed; the others are named.

    Raises InputError if none has one.
    """
    books = open_books(config["data_dir"], config["pairs"], encoder.depth)
    states = encoder.temporal_dim
    with_windows = []
    for book in books:
        if strided_ends(book.segment_starts, book.rows, states, book.rows):
            with_windows.append(book)
        else:
            print(f"{book.pair}: left out, it has no run of {states} states without a gap")
    if not with_windows:
        raise InputError(
            f"no pair has {states} states without a gap: record for longer, or parse with a larger "
            "--max_gap_seconds"
        )
    return with_windows


def export_part(
    part: str,
    encoder: BookEncoder,
    inputs: tuple[Tensor, ...],
    folder: Path,
    origin: dict[str, Any],
    config: dict,
) -> None:
    """Write a part in each format, in each precision and for each device, and check each file.

    Deletes a file and raises CheckFailed if its outputs differ by more than the tolerance.
    """
    reference = make_part(part, encoder, config, "fp32", "cpu")
    if part == "stream":  # it must give what the network makes of whole windows
        reference = WindowEncoder(copy.deepcopy(encoder), "all")
    expected = outputs_of(reference, inputs)
    for format_, precision, device in variants(config):
        bf16 = "_bf16" if precision == "bf16" else ""
        cuda = "_cuda" if device == "cuda" else ""
        learns = "_trainable" if part == "actor_critic" and config["trainable"] else ""
        file = folder / f"{part}{learns}{bf16}{cuda}{ENDINGS[format_]}"
        module = make_part(part, encoder, config, precision, device)
        facts = describe(part, encoder.config, config, precision, device) | origin
        write_program(file, module, inputs, facts)
        found, milliseconds = compare(file, expected, inputs, device)
        tolerance = config["tolerance" if precision == "fp32" else "tolerance_bf16"]
        if not found <= tolerance:  # `found > tolerance` would let NaN pass
            file.unlink()
            about(file).unlink()
            excess = f"{found:.1e}, more than {tolerance:g}"
            raise CheckFailed(f"{file} differed from the checkpoint by {excess}, and was deleted")
        size = file.stat().st_size
        print(f"{file.name:<28}{size:>12,}{found:>12.1e}{milliseconds:>9.2f} ms", flush=True)


def variants(config: dict) -> Iterator[tuple[str, str, str]]:
    """Yield format, precision and device of each file of a part; one ONNX file fits all devices."""
    here = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    devices = {"torchscript": config["devices"] or here, "onnx": ("cpu",)}
    for format_ in config["formats"]:
        for precision in config["precisions"]:
            for device in devices[format_]:
                yield format_, precision, device


def make_part(
    part: str, encoder: BookEncoder, config: dict, precision: str, device: str
) -> nn.Module:
    """Return a part around a copy of the encoder; only the encoder's layers take the precision."""
    encoder = copy.deepcopy(encoder) if precision == "fp32" else in_bf16(encoder)
    encoder.requires_grad_(False)
    if part == "encoder":
        return window_encoder(encoder, config["pooling"]).eval().to(device)
    if part == "reconstruction":
        return Reconstruction(encoder).eval().to(device)
    if part == "stream":
        return BookStream(encoder).eval().to(device)
    policy = ActorCritic(
        encoder,
        config["pooling"],
        trainable=config["trainable"],
        state_features=config["state_features"],
        state_widths=config["state_widths"],
        policy_widths=config["policy_widths"],
        value_widths=config["value_widths"],
        seed=config["seed"],
    )
    return policy.train(config["training_mode"]).to(device)


def describe(
    part: str, encoder: EncoderConfig, config: dict, precision: str, device: str
) -> dict[str, Any]:
    """Return what a caller must know. It goes into the file and into the `.json` beside it."""
    depth, width = encoder.depth, encoder.width
    is_stream = part == "stream"
    window = ["B", depth] if is_stream else ["B", encoder.temporal_dim, depth]
    order = "" if is_stream else "states in time order, the last is now; "
    prices = (
        f"price in ticks; {order}along the last axis "
        f"{depth // 2} bids, deepest to best, then asks, best to deepest"
    )
    sizes = "resting size at each price in the base currency, above 0"
    inputs = {"price_ticks": ("int64", window, prices), "sizes": ("float32", window, sizes)}
    if part == "reconstruction":
        inputs["mask"] = ("bool", [*window, 2], "True where price (0) or size (1) is hidden")
    if encoder.reads_times:
        inputs["times_ns"] = ("int64", window[:2], "time of each state in ns, not falling")
    if part == "reconstruction":
        outputs = {
            "predicted_price_ticks": ("float64", window, "price in ticks, not rounded"),
            "predicted_sizes": ("float32", window, "size"),
        }
    elif part == "actor_critic":
        own = ["B", config["state_features"]]
        inputs["state"] = ("float32", own, "the agent's own state, scaled to about 1")
        outputs = {
            "logits": ("float32", ["B", len(ACTIONS)], f"of {', '.join(ACTIONS)}"),
            "value": ("float32", ["B"], "of the window and state"),
        }
    elif is_stream:
        outputs = {"embedding": ("float32", ["B", width], "of the state, which is the present one")}
    elif config["pooling"] == "all":
        outputs = {"embedding": ("float32", [*window[:2], width], "of each state")}
    else:
        meaning = f"{config['pooling']} of the window that ends now"
        outputs = {"embedding": ("float32", ["B", width], meaning)}

    def fields(of: dict[str, tuple]) -> dict[str, dict[str, Any]]:
        names = ("dtype", "shape", "meaning")
        return {name: dict(zip(names, field, strict=True)) for name, field in of.items()}

    return {
        "format_version": FORMAT_VERSION,
        "part": part,
        "precision": precision,
        "device": device,
        "inputs": fields(inputs),
        "outputs": fields(outputs),
        "encoder": vars(encoder),
    }


def share(
    folder: Path,
    checkpoint: Path,
    encoder: BookEncoder,
    meta: dict[str, Any],
    run: Path,
    said: dict[str, Any],
) -> None:
    """Write pretrained weights, whose card holds the run's commit and scores and what is `said`."""
    recipe = {key: value for key, value in meta["config"].items() if key not in PLACES}
    card = read_card(checkpoint, meta) | {"recipe": recipe}
    if (run / "env.json").is_file():
        environment = json.loads((run / "env.json").read_text())
        card |= {key: environment[key] for key in ("commit", "versions")}
    if (run / "report.json").is_file():
        card["scores"] = choose_scores(read_rows(run / "report.json"))
    card = write_pretrained(folder, encoder, meta | {"config": recipe}, card | said)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {format_bytes(size)}, trained until {card['last_date']}")
    if missing := [key for key in GIVEN if not card[key]]:
        print(f"the card does not say: {', '.join(missing)} (set --card)")


def write_embeddings(
    book: Book, encoder: BookEncoder, config: dict, origin: dict[str, Any]
) -> None:
    """Write `embeddings/<PAIR>.npy`, float32 (W, D), and its `.json`.

    There is a row for each window. Their end rows are the `end_row_ranges` of the `.json`, each a
    range [first, stop, stride], one range after the other. Agents with a frozen encoder memory-map
    the file. Raises InputError if the disk has no room.
    """
    states = encoder.config.temporal_dim
    width = encoder.config.width
    stride = config["embedding_stride"]
    ranges = strided_ends(book.segment_starts, book.rows, states, stride)
    windows = sum(len(ends) for ends in ranges)
    size = 4 * width * windows
    free = shutil.disk_usage(config["data_dir"]).free
    if size > free:
        raise InputError(
            f"embeddings of {book.pair} will take {format_bytes(size)}, free are "
            f"{format_bytes(free)}: raise --embedding_stride"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = make_part("encoder", encoder, config, "fp32", device)
    assert isinstance(module, WindowEncoder)
    file = Path(config["data_dir"]) / "embeddings" / f"{book.pair}.npy"
    parameters = {"temporal_dim": states, "pooling": config["pooling"], "stride": stride}
    made_from = {"book": identity(book), **origin}
    with (
        new_table(file, np.float32, parameters, made_from, (width,)) as table,
        tqdm(total=windows, desc=book.pair, unit=" windows", disable=None) as progress,
    ):
        for embeddings in embed_windows(module, book, ranges, config["batch_size"]):
            table.append(embeddings)
            progress.update(len(embeddings))
        table.extra["end_row_ranges"] = [[ends.start, ends.stop, ends.step] for ends in ranges]
    print(f"{file}: {windows:,} windows of {width} values")


if __name__ == "__main__":
    run(main, config)
