"""Score a checkpoint on held-out windows beside methods that need no training, and time it.

    python inference_testing.py
    python inference_testing.py --model_path=runs/sample/checkpoints/best.safetensors --data_dir=other_data --split=all

Reads the best checkpoint of the newest run and `book_states/`; writes `report.json` (benchmark `representation`) and
`report.md` into the checkpoint's run. Errors are means over the hidden values of a window, then over windows:

- mid: |error| of the mid in ticks, in states where a best price is hidden (near a martingale: expect skill near 0);
- offset: |error| of a hidden price's distance from the mid, in ticks;
- log_size: squared error of the natural logarithm of a hidden size;
- minmax: squared error in the published reference's scale, price and size pooled, for comparison only.

Masks are those of lob/masking.py, hidden by the seeds below and the window's end row alone.
"""

config = {
    "data_dir": "training_data",  # folder that holds book_states/ and balanced_samples/
    "pairs": None,  # list of pairs; None: all under book_states/
    "runs_dir": "runs",  # folder of the training runs
    "model_path": None,  # checkpoint file; None: the best one of the newest run
    "split": "test",  # test or validation: the checkpoint's calendar cut; all: whole recordings (never trained on)
    "masks": ["entry", "level", "span", "span64", "patch", "tail"],  # see lob/masking.py
    "mask_perc": 0.25,  # hidden share of the values
    "windows": 160,  # windows a pair, evenly spaced over the split
    "batch_size": 16,  # windows filled and scored at a time
    "latency_runs": 100,  # single-window forward passes that are timed
    "device": "auto",  # cpu, cuda, or auto: cuda where there is one
    "seed": 0,  # of the block bootstrap
}

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"pairs": list, "model_path": str},
        choices={"split": ("test", "validation", "all"), "device": ("auto", "cpu", "cuda")},
    )  # fmt: skip

import json
import platform
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lob.baselines import UNTRAINED, Hidden, fill_untrained, hide, to_columns
from lob.checkpoints import find_checkpoint, load_model
from lob.encoder import BookEncoder, build_inputs
from lob.files import Book, find_pairs, new_file, open_book
from lob.masking import MASKS, make_mask, window_keys
from lob.normalisation import invert
from lob.run_log import describe_environment
from lob.windows import SPLITS, gather_windows, split_of_windows, split_rows, window_ends

MASK_SEEDS = {"entry": 101, "level": 102, "span": 103, "span64": 104, "patch": 105, "tail": 106}
QUANTITIES = ("mid", "offset", "log_size", "minmax")
OURS = "encoder"


def main(config: dict) -> int:
    check_config(config)
    device = pick_device(config["device"])
    checkpoint = find_checkpoint(config["runs_dir"], config["model_path"])
    model, meta = load_model(checkpoint, device)
    folder = Path(config["data_dir"])
    names = find_pairs(folder, "book_states", config["pairs"], "data_parser.py")
    books = [open_book(folder / "book_states" / name) for name in names]
    for book in books:
        if book.depth != model.config.depth:
            raise InputError(f"{book.path} has depth {book.depth}, the checkpoint wants {model.config.depth}: "
                             f"run data_parser.py --depth={model.config.depth}")  # fmt: skip
    print(f"{checkpoint}: {model.config.layers} layers of width {model.config.width} on {device}")
    ends = [split_ends(books, meta, model.config.temporal_dim, split) for split in ("validation", config["split"])]
    rows, tables = [], []
    for number, book in enumerate(books):
        choose_on, test_on = (spread(found[number], config["windows"]) for found in ends)
        if len(test_on) == 0:
            raise InputError(f"{book.pair} has no window in the split {config['split']!r} of this checkpoint: "
                             f"set --pairs, or --split=all for a recording that was not trained on")  # fmt: skip
        for mask in config["masks"]:
            states = model.config.temporal_dim
            errors = score(model, states, book, test_on, mask, config, device)
            chosen = score(None, states, book, choose_on, mask, config, device) if len(choose_on) else errors
            found = compare(errors, chosen)
            rows += to_rows(book.pair, mask, found)
            tables.append((book.pair, mask, len(test_on), errors, found))
            print("\n".join(describe(*tables[-1])))
    speed = measure_latency(model, books[0], ends[1][0], config, device)
    rows += speed
    print("  ".join(f"{row['metric']} {row['value']:.4g} {row['unit']}" for row in speed))
    write_report(checkpoint, rows, tables, meta, device)
    return 0


def check_config(config: dict) -> None:
    for mask in config["masks"]:
        if mask not in MASKS:
            raise InputError(f"masks: {mask!r} is none of {', '.join(MASKS)}")
    if not 0 < config["mask_perc"] < 1:
        raise InputError(f"mask_perc = {config['mask_perc']} must lie between 0 and 1")
    for key in ("windows", "batch_size", "latency_runs"):
        if config[key] < 1:
            raise InputError(f"{key} = {config[key]} must be at least 1")


def pick_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda', but torch finds no CUDA device: set --device=cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def split_ends(books: list[Book], meta: dict, temporal_dim: int, split: str) -> list[np.ndarray]:
    """Return each book's window ends in `split`, cut as the checkpoint's training was."""
    all_ends = [window_ends(book.segment_starts, book.rows, temporal_dim) for book in books]
    if split == "all":
        return all_ends
    cuts = meta["data"]["cuts_ns"]
    found = []
    for book, ends in zip(books, all_ends, strict=True):
        rows = split_rows(book.timestamps, np.asarray(cuts, dtype=np.int64), temporal_dim)
        found.append(ends[split_of_windows(ends, temporal_dim, rows) == SPLITS.index(split)])
    return found


def spread(ends: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the window ends, evenly spaced."""
    if len(ends) <= count:
        return ends
    return ends[np.linspace(0, len(ends) - 1, count).round().astype(np.int64)]


def batches(
    book: Book, ends: np.ndarray, mask: str, config: dict, states: int, device: torch.device
) -> Iterator[Hidden]:
    """Yield the windows with their masks, which depend on the mask's seed and the window's end row alone."""
    for begin in range(0, len(ends), config["batch_size"]):
        mine = ends[begin : begin + config["batch_size"]]
        price, sizes = (torch.from_numpy(x).to(device) for x in gather_windows(book, mine, states))
        keys = window_keys(MASK_SEEDS[mask], 0, torch.from_numpy(mine).to(device))
        yield hide(price, sizes, make_mask(keys, states, book.depth, config["mask_perc"], mask))


@torch.inference_mode()
def score(
    model: BookEncoder | None, states: int, book: Book, ends: np.ndarray, mask: str, config: dict, device: torch.device
) -> dict[str, dict[str, np.ndarray]]:
    """Return errors[quantity][method], float64 (W,), of every method (and the model) on the windows `ends`."""
    found: dict[str, dict[str, list[np.ndarray]]] = {quantity: {} for quantity in QUANTITIES}
    for hidden in batches(book, ends, mask, config, states, device):
        filled = fill_untrained(hidden)
        if model is not None:
            filled[OURS] = predict(model, hidden)
        for method, columns in filled.items():
            for quantity, error in window_errors(columns, hidden).items():
                found[quantity].setdefault(method, []).append(error.double().cpu().numpy())
    return {q: {method: np.concatenate(parts) for method, parts in found[q].items()} for q in QUANTITIES}


def predict(model: BookEncoder, hidden: Hidden) -> Tensor:
    """The encoder's answer in columns, float32 (B, T, L, K)."""
    tokens, base, _, parameters = build_inputs(hidden.price_ticks, hidden.sizes, hidden.mask, model.config)
    price, sizes = invert(model(tokens, base), parameters, model.config.normalization)
    return to_columns(price, sizes, hidden.anchor_ticks, hidden.minmax)


def window_errors(columns: Tensor, hidden: Hidden) -> dict[str, Tensor]:
    """Return each quantity's error of each window, (B,); NaN where nothing of it is hidden."""
    truth = hidden.values
    columns = torch.where(hidden.known, truth, columns)
    half = truth.shape[2] // 2
    hidden_price, hidden_size = hidden.mask[..., 0], hidden.mask[..., 1]
    mid, true_mid = (x[:, :, half - 1 : half + 1, 0].mean(dim=2, keepdim=True) for x in (columns, truth))
    offset, true_offset = columns[..., 0] - mid, truth[..., 0] - true_mid
    return {
        "mid": mean_where((mid - true_mid).abs(), hidden_price[:, :, half - 1 : half + 1].any(dim=2, keepdim=True)),
        "offset": mean_where((offset - true_offset).abs(), hidden_price),
        "log_size": mean_where((columns[..., 1] - truth[..., 1]) ** 2, hidden_size),
        "minmax": mean_where((columns[..., 2:] - truth[..., 2:]) ** 2, hidden.mask),
    }


def mean_where(x: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, x, torch.zeros_like(x)).flatten(1).sum(1) / where.flatten(1).sum(1)


def compare(errors: dict, chosen: dict) -> dict[str, dict]:
    """Set the encoder against the untrained method that was best on the validation windows, per quantity."""
    found = {}
    for quantity, methods in errors.items():
        scores = {
            name: np.nanmean(chosen[quantity][name]) for name in UNTRAINED if np.isfinite(chosen[quantity][name]).any()
        }
        if not scores:
            continue
        best = min(scores, key=lambda name: scores[name])
        ours, naive = methods[OURS], methods[best]
        seen = np.isfinite(ours) & np.isfinite(naive)
        if not seen.any():
            continue
        found[quantity] = {
            "best_untrained": best,
            "error": float(ours[seen].mean()),
            "median_error": float(np.median(ours[seen])),
            "best_untrained_error": float(naive[seen].mean()),
            "win_rate": float(((ours < naive) + 0.5 * (ours == naive))[seen].mean()),
        }
        found[quantity]["skill_untrained"] = 1 - found[quantity]["error"] / max(naive[seen].mean(), 1e-300)
    return found


def to_rows(pair: str, mask: str, found: dict[str, dict]) -> list[dict]:
    """Rows of the report: case `<pair>/<mask>/<quantity>`, a metric each."""
    return [
        {"case": f"{pair}/{mask}/{quantity}", "metric": metric, "value": value, "unit": "",
         "note": f"best untrained: {facts['best_untrained']}"}
        for quantity, facts in found.items() for metric, value in facts.items() if metric != "best_untrained"
    ]  # fmt: skip


def describe(pair: str, mask: str, windows: int, errors: dict, found: dict[str, dict]) -> list[str]:
    """Lines of a Markdown table: mean error of every method by quantity, and the encoder's skill and win rate."""
    methods = [*UNTRAINED, OURS]
    header = f"| quantity | {' | '.join(methods)} | skill | win rate |"
    lines = [f"\n### {pair}, mask {mask}, {windows} windows\n", header, "|---" * (len(methods) + 3) + "|"]
    for quantity, facts in found.items():
        means = " | ".join(f"{np.nanmean(errors[quantity][method]):.4g}" for method in methods)
        lines.append(f"| {quantity} | {means} | {facts['skill_untrained']:+.3f} | {facts['win_rate']:.2f} |")
    return lines


@torch.inference_mode()
def measure_latency(model: BookEncoder, book: Book, ends: np.ndarray, config: dict, device: torch.device) -> list[dict]:
    """Time single windows (copy to the device, normalisation and copy back included) and batches."""
    price, sizes = (
        torch.from_numpy(x) for x in gather_windows(book, ends[: config["batch_size"]], model.config.temporal_dim)
    )

    def encode(count: int) -> float:
        began = time.perf_counter()
        mask = torch.zeros(*price[:count].shape, 2, dtype=torch.bool, device=device)
        tokens, *_ = build_inputs(price[:count].to(device), sizes[:count].to(device), mask, model.config)
        model.encode(tokens)[:, -1].cpu()
        return time.perf_counter() - began

    encode(1)
    single = np.array([encode(1) for _ in range(config["latency_runs"])]) * 1e3
    batch = np.median([encode(len(price)) for _ in range(5)])
    values = {"p50": (np.median(single), "ms"), "p99": (np.quantile(single, 0.99), "ms"),
              "windows_per_second": (len(price) / batch, "1/s")}  # fmt: skip
    return [{"case": f"latency/{device.type}", "metric": metric, "value": float(value), "unit": unit, "note": ""}
            for metric, (value, unit) in values.items()]  # fmt: skip


def write_report(checkpoint: Path, rows: list[dict], tables: list, meta: dict, device: torch.device) -> None:
    """Write report.json and report.md into the checkpoint's run (or beside a checkpoint that lies elsewhere)."""
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    environment = describe_environment()
    report = {
        "benchmark": "representation", "command": f"python {' '.join(sys.argv)}", "commit": environment["commit"],
        "date": datetime.now(UTC).date().isoformat(), "device": environment["gpu"] or platform.processor() or "CPU",
        "versions": environment["versions"], "checkpoint": checkpoint.name, "step": meta["progress"]["step"],
        "rows": rows,
    }  # fmt: skip
    with new_file(folder / "report.json") as handle:
        handle.write(json.dumps(report, indent=1).encode())
    text = [
        f"# Accuracy of {checkpoint.name} on {device.type}",
        *(line for table in tables for line in describe(*table)),
    ]
    with new_file(folder / "report.md") as handle:
        handle.write(("\n".join(text) + "\n").encode())
    print(f"report     {folder / 'report.md'}")


if __name__ == "__main__":
    run(main, config)
