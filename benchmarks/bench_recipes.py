"""Recipes side by side on validation markets: a short run of each, scored on the same windows.

    python -m benchmarks.bench_recipes --data_dir=bench/depth_96

Needs the parsed markets of benchmarks/lay_recordings.py and a sample of `pairs`, made with these
`split_ratios` (as in `make pretrained`). No test market is opened. Scored are

- the validation part of the pairs that are trained on;
- whole recordings of benchmarks/markets.py that are for validation, or for training and not in
  `pairs`, at the depth of `data_dir`.

A recipe is `recipe` with the keys of a variant. All train on the same windows in the same order, so
their errors differ by the recipe and by chance; a variant that differs from the first one in its
seed alone shows how much is chance. The first one is what the others are compared with.

Runs are in `runs_dir`/<variant>. A run that has ended there is not trained again, and one that was
interrupted goes on, so an interrupted comparison can be repeated. Variants that `seconds` leaves no
time for are named; the next call takes them.
"""

config = {
    "data_dir": "bench/depth_96",  # str: folder that holds book_states/ and balanced_samples/
    "pairs": ["BTCUSDT_USDM", "ETHUSDT_USDM", "BTCUSD_COINBASE_20180424"],  # list[str]: trained on
    "split_ratios": ["2024-07-19T00:03:30", "2024-08-01"],  # list[float | str]: as for the sample
    "recipe": {},  # dict: keys of fp8_ddp_trainer.py that all variants share, beside RECIPE
    "variants": {},  # dict: name -> keys that differ from the recipe, the base first; {}: VARIANTS
    "masks": ["patch", "span", "tail", "entry"],  # list[entry | level | span | span64 | patch |
    #   tail]: which hidden values are scored
    "windows": 192,  # int >= 8: of a scored market, evenly spaced
    "fit_windows": 96,  # int >= 8: training windows that the ridge regressions are fitted on
    "batch_size": 64,  # int >= 1: windows that are scored at a time
    "runs_a_gpu": 3,  # int >= 1: runs at a time on a GPU
    "seconds": 400.0,  # > 0: no run begins later than this after the start
    "runs_dir": "runs/recipes",  # str: folder of the runs
    "write": False,  # bool: keep the result in benchmarks/results/recipes.json
}

from lob.config import InputError, check_rules, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.markets import MARKETS
from benchmarks.prove import read_device, read_test_loss, share_gpus, train
from benchmarks.report import report
from lob.book.states import Book, open_book
from lob.evaluation.intervals import bootstrap
from lob.evaluation.ridge import fit_ridges
from lob.evaluation.scoring import LADDER, OURS, RIDGE, Masking, score
from lob.evaluation.selection import BLOCK_STATES, Selection, Windows, evenly_spaced
from lob.model.checkpoint import BEST, load_model
from lob.model.encoder import count_parameters
from lob.results import make_row
from lob.training.samples import open_dataset

RECIPE = {
    "model_size": "small_cell_transformer",
    "precision": "fastest",
    "max_lr": 3e-3,
    "dropout": 0.0,
    "epochs": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "shipped": {},
    "another_seed": {"seed": 1},
    "clock": {"context": ["clock"]},
    "size": {"context": ["size"]},
    "tick": {"context": ["tick"]},
    "flow": {"context": ["flow"]},
    "all": {"context": ["clock", "size", "tick", "flow"]},
    "all_shuffled_clock": {"context": ["shuffled_clock", "size", "tick", "flow"]},
    "causal": {"causal": True},
    "twice_as_wide": {"model_size": "medium_cell_transformer"},
}
HIDDEN = 0.25  # share of the values
Cell = tuple[str, str]  # market and mask
Errors = dict[Any, np.ndarray]  # squared errors of windows, float64 (W,)


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    config["recipe"] = RECIPE | config["recipe"]
    config["variants"] = config["variants"] or VARIANTS
    began = time.perf_counter()
    markets = find_markets(config)
    folders = train_variants(config, began)
    base = next(iter(config["variants"]))
    if base not in folders:
        raise InputError(f"no time was left for {base!r}: raise --seconds, or call this again")
    ours, naive = score_variants(config, markets, folders)
    blocks = {book.pair: ends // BLOCK_STATES for book, ends in markets}
    rows = []
    for name, folder in folders.items():
        rows += describe_run(name, folder, f"{config['variants'][name]}")
        for cell, errors in ours[name].items():
            rows += compare(name, cell, errors, ours[base][cell], naive[cell], blocks[cell[0]])
    report("recipes", rows, config["write"], read_device(folders[base]))
    print("\n".join(show(rows, list(folders), list(blocks), config["masks"])))
    left = [name for name in config["variants"] if name not in folders]
    if left:
        print(f"no time was left for {', '.join(left)}: call this again")
    return 0


def find_markets(config: dict) -> Windows:
    """Return the scored windows of each market. Raises InputError if there is none."""
    folder = Path(config["data_dir"]) / "book_states"
    trained, cuts = config["pairs"], find_cuts(config)
    others = [
        market.pair
        for market in MARKETS
        if market.role != "test" and market.pair not in trained and (folder / market.pair).is_dir()
    ]
    found = []
    for pair in [*trained, *others]:
        book = open_book(folder / pair)
        ends = select(config, book, cuts, "validation" if pair in trained else "all")
        if len(ends):
            found.append((book, evenly_spaced(ends, config["windows"])))
    if not found:
        raise InputError(f"{folder} holds no window to validate on: set --split_ratios")
    return found


def find_cuts(config: dict) -> np.ndarray:
    """Return when validation and test begin, int64 (2,). Raises InputError without a sample."""
    states, ratios = config["recipe"].get("temporal_dim", 256), config["split_ratios"]
    return open_dataset(config["data_dir"], config["pairs"], states, ratios).cuts_ns


def select(config: dict, book: Book, cuts: np.ndarray, split: str) -> np.ndarray:
    """Return end rows of the windows of a split of a book, int64 (W,)."""
    states = config["recipe"].get("temporal_dim", 256)
    return Selection(states, cuts, split, None, []).ends(book, split)


def train_variants(config: dict, began: float) -> dict[str, Path]:
    """Train the variants, as many as there is time for; return their folders by name."""
    Path(config["runs_dir"]).mkdir(parents=True, exist_ok=True)
    free = share_gpus(config["runs_a_gpu"])

    def work(name: str) -> Path | None:
        gpu = free.get()
        try:
            if time.perf_counter() - began > config["seconds"]:
                return None
            keys = config["variants"][name]
            folder = train(config, name, keys, config["pairs"], gpu)
            spent = time.perf_counter() - began
            print(f"{name}: loss {read_test_loss(folder)}, {spent:.0f} s", flush=True)
            return folder
        finally:
            free.put(gpu)

    names = list(config["variants"])
    with ThreadPoolExecutor(free.qsize()) as pool:
        found = dict(zip(names, pool.map(work, names), strict=True))
    return {name: folder for name, folder in found.items() if folder}


def score_variants(
    config: dict, markets: Windows, folders: dict[str, Path]
) -> tuple[dict[str, Errors], dict[Cell, Errors]]:
    """Return squared errors of log size, float64 (W,), by cell.

    The first are those of the variants, by name; the second those of ladder and ridge, by method.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {name: load_model(find_best(folder), device)[0] for name, folder in folders.items()}
    states = next(iter(models.values())).config.temporal_dim
    ours: dict[str, Errors] = {name: {} for name in folders}
    naive: dict[Cell, Errors] = {}
    for mask in config["masks"]:
        masking = Masking(mask, HIDDEN, states, config["batch_size"], device)
        ridges = fit_ridges(masking.hide(find_training(config)), [])
        for windows in markets:
            cell = windows[0].pair, mask
            found = score(masking, [windows], ridges, None)["log_size"]
            naive[cell] = {method: found[method] for method in (LADDER, RIDGE)}
            for name, model in models.items():
                ours[name][cell] = score(masking, [windows], None, model)["log_size"][OURS]
    return ours, naive


def find_best(folder: Path) -> Path:
    return folder / "checkpoints" / BEST


def find_training(config: dict) -> Windows:
    """Return training windows for the ridge regressions, equally many of each pair."""
    folder = Path(config["data_dir"]) / "book_states"
    books = [open_book(folder / pair) for pair in config["pairs"]]
    each = -(-config["fit_windows"] // len(books))
    cuts = find_cuts(config)
    found = [(book, select(config, book, cuts, "train")) for book in books]
    return [(book, evenly_spaced(ends, each)) for book, ends in found if len(ends)]


def describe_run(name: str, folder: Path, keys: str) -> list[dict[str, Any]]:
    """Return the rows of a run: its loss on the trained pairs' validation part, and its size."""
    model, meta = load_model(find_best(folder))
    return [
        make_row(name, "loss", meta["progress"]["best_loss"], note=keys),
        make_row(name, "parameters", count_parameters(model.config), note=keys),
        make_row(name, "windows_seen", meta["progress"]["windows_seen"], note=keys),
    ]


def compare(
    name: str,
    cell: Cell,
    errors: np.ndarray,
    base: np.ndarray,
    naive: dict[str, np.ndarray],
    block: np.ndarray,
) -> list[dict[str, Any]]:
    """Return the rows of a variant in one cell.

    Skills are 1 - error / the other's error, `gain` is that over the base, with its 95 % interval.
    """
    case = f"{name}/{'/'.join(cell)}"
    mean, before = float(errors.mean()), float(base.mean())
    low, high, count = bootstrap(base - errors, block, 0)
    values = {
        "error": mean,
        "skill_ladder": 1 - mean / float(naive[LADDER].mean()),
        "skill_ridge": 1 - mean / float(naive[RIDGE].mean()),
        "gain": 1 - mean / before,
        "gain_low": low / before,
        "gain_high": high / before,
        "blocks": count,
    }
    return [make_row(case, metric, x) for metric, x in values.items() if np.isfinite(x)]


def show(
    rows: list[dict[str, Any]], names: list[str], markets: list[str], masks: list[str]
) -> list[str]:
    """Return two tables: skill over ridge, and gain over the base, in percent.

    A gain whose interval leaves out 0 is marked with *.
    """
    cells = {(row["case"], row["metric"]): row["value"] for row in rows}
    width = max(len(name) for name in names)
    lines = []
    for metric, title in (("skill_ridge", "skill over ridge, %"), ("gain", "gain, %")):
        for market in markets:
            head = [f"{mask:>8}" for mask in masks]
            lines.append(f"{market}, {title}")
            lines.append(f"  {'':<{width}}{'loss':>9}{''.join(head)}")
            for name in names:
                shown = []
                for mask in masks:
                    case = f"{name}/{market}/{mask}"
                    ends = [cells.get((case, f"gain_{end}"), 0.0) for end in ("low", "high")]
                    sure = "*" if metric == "gain" and ends[0] * ends[1] > 0 else " "
                    shown.append(f"{100 * cells[case, metric]:>7.1f}{sure}")
                lines.append(f"  {name:<{width}}{cells[name, 'loss']:>9.4f}{''.join(shown)}")
    return lines


if __name__ == "__main__":
    run(main, config)
