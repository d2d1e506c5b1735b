"""Test a checkpoint on windows it was not trained on: masked values beside naive methods, linear probes, speed.

    python inference_testing.py
    python inference_testing.py --model_path=runs/sample/checkpoints/best.safetensors --data_dir=other_data
    python inference_testing.py --benchmark=True

Reads the best checkpoint of the newest run and `book_states/`; writes `report.json` (benchmark `representation`),
`report.md` and pictures into the checkpoint's run. What is scored is in lob/evaluation/scoring.py, the naive methods
are in lob/evaluation/fills.py, ridge.py and lob/model/ladder.py, the masks in lob/model/masking.py, the probes in
lob/evaluation/probes.py. All that is fitted or
chosen is fitted on training windows and chosen on validation windows, by the checkpoint's calendar cut, which holds for
pairs that it has never seen too. `benchmark` times the encoder alone instead and writes `latency.json`.
"""

config = {
    "data_dir": "training_data",  # folder that holds book_states/ and balanced_samples/
    "pairs": None,  # list of pairs; None: all under book_states/
    "runs_dir": "runs",  # folder of the training runs
    "model_path": None,  # checkpoint file; None: the best one of the newest run
    "split": "test",  # test or validation: the checkpoint's calendar cut; all: whole recordings (never trained on)
    "dates": None,  # two ISO dates (UTC): only windows between them; None: all of the split
    "fit_data_dir": None,  # data whose training windows the ridge regression is fitted on; None: those of data_dir
    "masks": ["entry", "level", "span", "span64", "patch", "tail"],  # see lob/model/masking.py
    "mask_perc": 0.25,  # hidden share of the values
    "windows": 48,  # windows a pair, evenly spaced over the split, and as many of the balanced sample
    "fit_windows": 24,  # training windows of the ridge regression, and as many validation windows
    "probe_windows": 400,  # training windows of the probes, half as many to validate and test; 0: no probes
    "block_states": 1024,  # states a block of the bootstrap
    "pictures": True,  # draw a reconstructed window, and errors by level and distance
    "batch_size": 16,  # windows filled and scored at a time
    "benchmark": False,  # time eager, compiled, TorchScript and CUDA-graphed encoders instead
    "latency_runs": 100,  # single-window forward passes that are timed
    "device": "auto",  # cpu, cuda, or auto: cuda where there is one
    "seed": 0,  # of the bootstrap, of the random encoder and of the probes' share of the labels
}

from lob.config import InputError, counted, load_config, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"pairs": list, "model_path": str, "dates": list, "fit_data_dir": str},
        choices={"split": ("test", "validation", "all"), "device": ("auto", "cpu", "cuda")},
        bounds={"mask_perc": "> 0 and < 1", "windows": ">= 1", "fit_windows": ">= 1", "probe_windows": ">= 0",
                "block_states": ">= 1", "batch_size": ">= 1", "latency_runs": ">= 1", "seed": ">= 0"},
    )  # fmt: skip

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book, identity, open_books
from lob.evaluation import probes, report, scoring
from lob.evaluation.latency import BATCHES, benchmark, through, time_encoder
from lob.evaluation.report import describe, to_rows
from lob.evaluation.ridge import Fitted, fit_baselines
from lob.evaluation.scoring import OURS, RIDGE, Task, compare, fill, profile_errors, score, window_errors
from lob.model.checkpoint import describe_step, find_checkpoint, load_model
from lob.model.embedding import WindowEncoder
from lob.model.encoder import BookEncoder
from lob.model.masking import MASKS, trained_on
from lob.results import make_report, write_report
from lob.storage import check_writable, new_file, open_table
from lob.windows.splits import (
    SPLITS,
    gather_windows,
    parse_dates,
    segment_ranges,
    split_of_windows,
    split_rows,
    window_ends,
)

Windows = list[tuple[Book, np.ndarray]]  # of each book its end rows
Part = tuple[list[dict], list[str], list[str]]  # rows of report.json, lines of report.md, lines for the terminal
PROFILED_MASKS = ("patch", "span64", "tail")
DRAWN_MASKS = {"patch": "patches of 16 states x 8 levels", "span64": "one span of states", "tail": "the last states",
               "span": "spans of 16 states", "level": "whole levels", "entry": "single values"}  # fmt: skip
DRAWN_METHODS = {name: scoring.METHODS[name] for name in ("linear_time", "ladder", RIDGE, OURS)}


def main(config: dict) -> int:
    check_config(config)
    device = pick_device(config["device"])
    checkpoint = find_checkpoint(config["runs_dir"], config["model_path"])
    check_writable(run_folder(checkpoint), "the checkpoint's run")
    model, meta = load_model(checkpoint, device)
    books = open_books(config["data_dir"], config["pairs"], model.config.depth)
    print(f"{checkpoint} ({describe_step(meta)})")
    print(f"{model.config.layers} layers of width {model.config.width} on {device}")
    if config["benchmark"]:
        devices = ["cpu", *["cuda"] * torch.cuda.is_available()] if config["device"] == "auto" else [config["device"]]
        windows = example_windows(books[0], model.config.temporal_dim, BATCHES["cuda"][-1])
        rows = benchmark(model, windows, config["latency_runs"], devices)
        save_report(checkpoint, "latency", rows, [], meta, device)
        return 0
    bench = Bench(config, model, meta, books, device)
    rows, lines = [], ["", *report.LEGEND, "", *probes.LEGEND]
    for book in books:
        for part in (bench.score_masks(book), bench.probe(book)):
            for found, text, shown in part:
                rows += found
                lines += text
                if shown:
                    print("\n".join(shown), flush=True)
        if config["pictures"]:
            print("\n".join(f"picture    {file}" for file in bench.draw(book, run_folder(checkpoint))))
    windows = example_windows(books[0], model.config.temporal_dim, config["batch_size"])
    encode = through(device, WindowEncoder(model, "last"))
    speed = time_encoder(f"latency/{device.type}", encode, windows, config["latency_runs"])
    facts = (f"{row['metric'].replace('_', ' ')} {row['value']:.4g} {row['unit']}" for row in speed)
    print(f"one window {'  '.join(facts)}")
    save_report(checkpoint, "report", rows + speed, lines, meta, device)
    return 0


def check_config(config: dict) -> None:
    for mask in config["masks"]:
        if mask not in MASKS:
            raise InputError(f"masks: {mask!r} is none of {', '.join(MASKS)}")
    if config["dates"] is not None and len(config["dates"]) != 2:
        raise InputError(f"dates = {config['dates']!r} must be two ISO dates, such as ['2024-08-01', '2024-09-01']")


def pick_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda', but torch finds no CUDA device: set --device=cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def spread(ends: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the window ends, evenly spaced."""
    return ends[np.linspace(0, len(ends) - 1, min(count, len(ends))).round().astype(np.int64)]


class Bench:
    """The windows of each split and what is fitted on them; scores come a mask or a task at a time."""

    def __init__(self, config: dict, model: BookEncoder, meta: dict, books: list[Book], device: torch.device):
        self.config, self.model, self.device, self.books = config, model, device, books
        self.states = model.config.temporal_dim
        self.trained_on, self.origin = trained_on(meta["config"]["mask_mode"]), describe_training(meta)
        self.cuts = np.asarray(meta["data"]["cuts_ns"], dtype=np.int64)
        other = config["fit_data_dir"]
        self.fit_books = books if other is None else open_books(other, None, model.config.depth)
        self.fitted: dict[Any, Fitted | None] = {}
        for book in books:
            if config["split"] == "all" and identity(book) in meta["data"].get("books", ()):
                raise InputError(
                    f"{book.pair} was trained on, and split = 'all' holds those windows too: set --split=test"
                )
            if not len(self.ends(book, config["split"])):
                raise InputError(f"{book.pair} has no window in the split {config['split']!r} of this checkpoint: "
                                 f"set --pairs, or --split=all for a recording that was not trained on")  # fmt: skip

    def ends(self, book: Book, split: str, after: int = 0) -> np.ndarray:
        """Window ends of a split, cut as the checkpoint's training was, with `after` more states of the same split."""
        ends = window_ends(book.segment_starts, book.rows, self.states)
        last = np.full(len(ends), book.rows, dtype=np.int64)
        if split != "all":
            rows = split_rows(book.timestamps, self.cuts, self.states)
            ends = ends[split_of_windows(ends, self.states, rows) == SPLITS.index(split)]
            last = np.full(len(ends), rows[SPLITS.index(split), 1])
        if self.config["dates"] is not None and split == self.config["split"]:
            begin, end = parse_dates(self.config["dates"], "dates")
            inside = (book.timestamps[ends - self.states] >= begin) & (book.timestamps[ends - 1] < end)
            ends, last = ends[inside], last[inside]
        segments = segment_ranges(book.segment_starts, book.rows)
        segment_end = segments[np.searchsorted(segments[:, 0], ends - 1, side="right") - 1, 1]
        return ends[ends + after <= np.minimum(segment_end, last)]

    def windows_to_fit(self, book: Book, split: str, count: int, after: int = 0) -> Windows:
        """Windows of the same pair where it has any in that split, else of all pairs.

        None is tested, but in the split 'validation' those that penalties are chosen on.
        """
        if self.config["split"] == "all" and self.config["fit_data_dir"] is None:
            return []
        others = [b for b in self.fit_books if self.config["split"] != "all" or identity(b) != identity(book)]
        sources = [b for b in others if b.pair == book.pair and len(self.ends(b, "train", after))]
        sources = sources or [b for b in others if len(self.ends(b, "train", after))]
        found = [(b, self.ends(b, split, after)) for b in sources]
        found = [(b, ends) for b, ends in found if len(ends)]
        return [(b, spread(ends, -(-count // len(found)))) for b, ends in found]

    def score_masks(self, book: Book) -> Iterator[Part]:
        """Score every mask on windows as they come and, where there is a balanced sample, as that draws them."""
        config = self.config
        natural, balanced = spread(self.ends(book, config["split"]), config["windows"]), self.balanced(book)
        both = np.unique(np.concatenate([natural, balanced]))
        windows = f"{book.pair}, {counted(len(natural), 'window')} of the split {config['split']!r}"
        yield [], [], report.table_head(windows)
        for mask in config["masks"]:
            heading = mask if mask in self.trained_on else f"{mask}, {scoring.NOT_TRAINED}"
            task = Task(mask, config["mask_perc"], self.states, config["batch_size"], self.device)
            fitted = self.fit(book, task)
            chosen = self.windows_to_fit(book, "validation", config["fit_windows"])
            errors = score(task, [(book, both)], fitted, self.model)
            judged = score(task, chosen, fitted, None) if chosen else errors
            for ends, suffix in ((natural, ""), (balanced, "/balanced")):
                if not len(ends):
                    continue
                here = np.searchsorted(both, ends)
                mine = {q: {name: values[here] for name, values in methods.items()} for q, methods in errors.items()}
                found = compare(mine, judged, ends // config["block_states"], config["seed"])
                for facts in found.values():
                    facts["note"] += "" if mask in self.trained_on else f"; {scoring.NOT_TRAINED}"
                rows = [row for quantity, facts in found.items()
                        for row in to_rows(f"{book.pair}/{mask}/{quantity}{suffix}", facts)]  # fmt: skip
                title = f"{book.pair}, mask {heading}{', balanced sample' if suffix else ''}"
                text = describe(title, counted(len(ends), "window"), mine, found)
                yield rows, text, [] if suffix else report.summarise(heading, found)
            if not chosen:
                text = ["(no validation windows: the best naive method was chosen on the tested windows themselves)"]
                yield [], text, text * (mask == config["masks"][-1])
        if config["split"] == "validation":
            text = ["(split = 'validation': checkpoint, best naive method and penalties were chosen on these windows)"]
            yield [], text, text

    def balanced(self, book: Book) -> np.ndarray:
        """Window ends of the balanced sample in the tested split; none where there is no sample."""
        file = Path(self.config["data_dir"]) / "balanced_samples" / f"{book.pair}.npy"
        if not file.exists():
            return np.empty(0, dtype=np.int64)
        rows, _ = open_table(file, "create_balanced_dataset.py", identity(book), temporal_dim=self.states)
        return spread(np.intersect1d(rows["end_row"], self.ends(book, self.config["split"])), self.config["windows"])

    def fit(self, book: Book, task: Task) -> Fitted | None:
        """The fitted methods for a pair and mask; None, with a word, where there are no training windows."""
        config = self.config
        training, validation = (self.windows_to_fit(book, s, config["fit_windows"]) for s in ("train", "validation"))
        key = (task.mask, *(str(b.path) for b, _ in training))
        if key not in self.fitted:
            if not training and not self.fitted:
                print("ridge regression left out: no training windows (set --fit_data_dir)")
            self.fitted[key] = fit_baselines(task.hide(training), task.hide(validation))
        return self.fitted[key]

    def probe(self, book: Book) -> Iterator[Part]:
        """Fit and score linear probes on frozen features; a line a task."""
        config, count = self.config, self.config["probe_windows"]
        if not count:
            return
        splits = [self.windows_to_fit(book, split, size, probes.HORIZON)
                  for split, size in (("train", count), ("validation", count // 2))]  # fmt: skip
        splits.append([(book, spread(self.ends(book, config["split"], probes.HORIZON), count // 2))])
        if not all(windows and all(len(ends) for _, ends in windows) for windows in splits):
            text = [f"\nprobes of {book.pair} left out: a split has no window with {probes.HORIZON} states after it"]
            yield [], text, text
            return
        sets = probes.make_sets(self.model, splits, config["batch_size"], config["block_states"], self.device,
                                config["seed"])  # fmt: skip
        names, few = list(probes.FEATURES), []
        head = ["task", *names, "ours, 10 % of labels", *(f"over {name}" for name in names[1:]), "blocks"]
        title = f"\n### {book.pair}, probes of the frozen encoder (AUC; R2 of volatility)\n"
        shown = [f"\n{book.pair}, linear probes: AUC, or R2 of volatility, higher is better; verdict: over hand-made",
                 f"{'':<16}{''.join(f'{label:>20}' for label in probes.FEATURES.values())}   verdict"]  # fmt: skip
        yield [], [title, f"| {' | '.join(head)} |", "|---" * len(head) + "|"], shown
        for task in probes.TASKS:
            facts = probes.probe_task(task, sets, config["seed"])
            if not facts:
                few.append(task)
                continue
            cells = [task, *(f"{facts[name]:.3f}" for name in names), f"{facts.get('ours_10pct', np.nan):.3f}",
                     *(f"{facts[f'over_{n}_low']:+.3f} to {facts[f'over_{n}_high']:+.3f}, {facts[f'verdict_{n}']}"
                       for n in names[1:]), str(facts["blocks"])]  # fmt: skip
            line = f"{task:<16}{''.join(f'{facts[name]:>20.3f}' for name in names)}   {facts['verdict_hand_made']}"
            yield to_rows(f"{book.pair}/probe/{task}", facts), [f"| {' | '.join(cells)} |"], [line]
        if few:
            yield [], ["", f"Too few labels: {', '.join(few)}."], [f"too few labels: {', '.join(few)}"]

    @torch.inference_mode()
    def draw(self, book: Book, folder: Path) -> list[Path]:
        """Draw one window as truth, masked and filled, and errors by level and distance."""
        from lob.evaluation.pictures import draw_error_profiles, draw_fills
        from lob.plotting import save

        config, ends = self.config, self.ends(book, self.config["split"])
        masks = [mask for mask in PROFILED_MASKS if mask in config["masks"]] or config["masks"][:1]
        tasks = [Task(mask, config["mask_perc"], self.states, config["batch_size"], self.device) for mask in masks]
        some = [(book, spread(ends, config["batch_size"]))]
        profiles = {DRAWN_MASKS[task.mask]: profile_errors(task, some, self.fit(book, task), self.model, DRAWN_METHODS)
                    for task in tasks}  # fmt: skip
        hidden = next(iter(tasks[0].hide([(book, ends[[len(ends) // 2]])])))
        filled = fill(hidden, self.fit(book, tasks[0]), self.model)

        def panel(columns: Tensor) -> tuple[np.ndarray, np.ndarray]:
            columns = torch.where(hidden.known, hidden.values, columns)[0].double().cpu()
            return (columns[..., 0] + hidden.anchor_ticks[0].cpu()).numpy(), columns[..., 1].exp().numpy()

        panels, errors = {"truth": panel(hidden.values)}, {}
        for name, label in DRAWN_METHODS.items():
            if name in filled:
                panels[label], found = panel(filled[name]), window_errors(filled[name], hidden)
                errors[label] = (f"squared error of log size {float(found['log_size']):.3g},\n"
                                 f"prices {float(found['offset']):.3g} ticks off")  # fmt: skip
        unseen = "" if masks[0] in self.trained_on else f", {scoring.NOT_TRAINED}"
        title = (f"{book.pair}, resting size by price; hidden: {DRAWN_MASKS[masks[0]]}; errors over what is hidden\n"
                 f"encoder: {self.origin}{unseen}")  # fmt: skip
        covered = hidden.mask[0, ..., 1].cpu().numpy()
        return [
            save(draw_fills(panels, covered, errors, book.tick_size, title), folder / f"{book.pair}_fills.png"),
            save(draw_error_profiles(profiles, f"{book.pair}: errors over hidden sizes, {config['split']} windows"),
                 folder / f"{book.pair}_errors.png"),
        ]  # fmt: skip


def describe_training(meta: dict) -> str:
    config, pairs = meta["config"], [book["pair"] for book in meta["data"].get("books", ())]
    masks = f"mask{'s' * (config['mask_mode'] == 'mix')} {', '.join(sorted(trained_on(config['mask_mode'])))}"
    return f"{config['model_size']}, {describe_step(meta)}, trained on {masks}{' of ' * bool(pairs)}{', '.join(pairs)}"


def example_windows(book: Book, states: int, count: int) -> tuple[Tensor, Tensor]:
    ends = spread(window_ends(book.segment_starts, book.rows, states), count)
    price, sizes = (torch.from_numpy(x) for x in gather_windows(book, np.resize(ends, count), states))
    return price, sizes


def run_folder(checkpoint: Path) -> Path:
    """The checkpoint's run, or the folder of a checkpoint that lies elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def save_report(checkpoint: Path, name: str, rows: list[dict], lines: list[str], meta: dict,
                device: torch.device) -> None:  # fmt: skip
    """Write <name>.json and, where there are lines, <name>.md into the checkpoint's run."""
    folder = run_folder(checkpoint)
    benchmark = "representation" if name == "report" else name
    report = make_report(benchmark, rows, checkpoint=checkpoint.name, step=meta["progress"]["step"])
    write_report(folder / f"{name}.json", report)
    if lines:
        text = "\n".join([f"# Accuracy of {checkpoint.name} on {device.type}", *lines])
        with new_file(folder / f"{name}.md") as handle:
            handle.write((text + "\n").encode())
    print(f"report     {folder / name}.{'md' if lines else 'json'}")


if __name__ == "__main__":
    run(main, config)
