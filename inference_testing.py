"""Test a checkpoint on windows it was not trained on: masked values, linear probes, speed.

    python inference_testing.py
    python inference_testing.py --model_path=sample     the best checkpoint of runs/sample/
    python inference_testing.py --benchmark=True

The script reads a checkpoint (by default the best one of the newest run) and `book_states/`. It
hides values of recorded windows and compares how well the encoder and naive methods fill them. Then
it fits linear probes: linear models that predict the next states from the frozen embedding of a
window. It writes `report.json` (benchmark `representation`), `report.md` and pictures into the
checkpoint's run, and adds them to its TensorBoard events. With `benchmark` it only times the
encoder, and writes `latency.json`.

Naive methods and probes are fitted on training windows, and the best of them are chosen on
validation windows. The checkpoint's calendar cut decides which windows these are, also for pairs
that it has never seen, unless `split_ratios` is set. Windows that are not later than all that the
checkpoint was trained on are refused, unless `allow_earlier` is set.

The naive methods are in lob/evaluation/fills.py and ridge.py and in lob/model/ladder.py, the masks
in lob/model/masking.py, the probes in lob/evaluation/probes.py.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/ and balanced_samples/
    "pairs": None,  # list[str] | None: pairs to test on; None: all under book_states/
    "runs_dir": "runs",  # str: folder of the training runs
    "model_path": None,  # str | None: checkpoint, run or pretrained weights; None: the newest run
    "split": "test",  # test | validation | all: what is tested;
    #   all: whole recordings, which must not have been trained on
    "split_ratios": None,  # list[float | str] | None: how recordings that were not trained on are
    #   split, as for training; None: by the checkpoint's calendar
    "allow_earlier": False,  # bool: also test windows that are not later than all training data
    "dates": None,  # list[str] | None: windows between two ISO dates (UTC); None: all windows
    "fit_data_dir": None,  # str | None: data that ridge regression and probes are fitted on;
    #   None: data_dir
    "masks": ["entry", "level", "span", "span64", "patch", "tail"],  # list[entry | level |
    #   span | span64 | patch | tail]: what is hidden, see lob/model/masking.py
    "mask_perc": 0.25,  # > 0 and < 1: share of the values that are hidden
    "windows": 48,  # int >= 1: windows of a pair, evenly spaced
    "fit_windows": 24,  # int >= 1: training windows of the ridge, and as many validation windows
    "probe_windows": None,  # int >= 0 | None: training windows of the probes, half as many for
    #   validation and for test; 0: no probes; None: 400 if the tested windows span 30 minutes
    "block_states": 1024,  # int >= 1: states of a block of time in the bootstrap of the masks
    "pictures": True,  # bool: draw a reconstructed window, and errors by level and distance
    "batch_size": 16,  # int >= 1: windows that are filled and scored at a time
    "benchmark": False,  # bool: time eager, compiled, TorchScript and CUDA-graphed encoders instead
    "latency_runs": 100,  # int >= 1: single-window forward passes that are timed
    "device": "auto",  # auto | cpu | cuda: auto: cuda if there is one
    "seed": 0,  # int >= 0: seed of the bootstrap, the random encoder and the probes' labels
}

from lob.config import check_rules, counted, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lob.book.states import Book, open_books
from lob.evaluation import latency, probes, report
from lob.evaluation.board import add_test
from lob.evaluation.probe_tasks import HORIZON, TASKS
from lob.evaluation.report import PairReport
from lob.evaluation.ridge import Ridges, fit_ridges
from lob.evaluation.scoring import Masking, MaskScores, compare, score
from lob.evaluation.selection import Selection, evenly_spaced
from lob.model.checkpoint import (
    choose_device,
    describe_step,
    find_checkpoint,
    load_model,
    run_folder,
)
from lob.model.embedding import window_encoder
from lob.model.encoder import BookEncoder
from lob.model.masking import trained_on
from lob.process import drawing
from lob.results import make_report, write_report
from lob.storage import check_writable, new_file
from lob.windows.splits import calendar_cuts, parse_dates

PROBE_WINDOWS, PROBE_MINUTES = 400, 30.0  # where probe_windows is None


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    device = choose_device(config["device"])
    checkpoint = find_checkpoint(config["runs_dir"], config["model_path"])
    folder = run_folder(checkpoint, config["runs_dir"])
    check_writable(folder, "the checkpoint's run")
    model, meta = load_model(checkpoint, device)
    books = open_books(config["data_dir"], config["pairs"], model.config.depth)
    facts = {"checkpoint": checkpoint.name, "step": meta["progress"]["step"]}
    print(f"{checkpoint} ({describe_step(meta)})")
    print(f"{model.config.layers} layers of width {model.config.width} on {device}")
    if config["benchmark"]:
        rows = time_variants(config, model, books[0])
        write_report(folder / "latency.json", make_report("latency", rows, **facts))
        print(f"report     {folder / 'latency.json'}")
        return 0

    tester = Tester(config, device, model, meta, folder, books)
    found = [tester.test(book) for book in tester.books]
    speed = time_embedding(config, model, device, books[0])
    print(f"one window {report.show_speed(speed)}")
    rows = [*report.to_rows(found), *speed]
    write_report(folder / "report.json", make_report("representation", rows, **facts))
    text = report.to_markdown(f"Accuracy of {checkpoint.name} on {device.type}", found)
    with new_file(folder / "report.md") as handle:
        handle.write(text.encode())
    add_test(folder, meta["progress"]["step"], found, text, tester.pictures)
    print(f"report     {folder / 'report.md'}")
    return 0


def select_windows(
    config: dict, model: BookEncoder, meta: dict[str, Any], books: Sequence[Book]
) -> tuple[Selection, list[Book]]:
    """Return which windows are tested and fitted on, and the books that have windows to test.

    The others are named. Raises InputError if no book has any.
    """
    if config["fit_data_dir"] is not None:
        fit_books = open_books(config["fit_data_dir"], None, model.config.depth)
    else:
        fit_books = [] if config["split"] == "all" else list(books)
    dates = None if config["dates"] is None else parse_dates(config["dates"], "dates")
    cuts = np.asarray(meta["data"]["cuts_ns"], dtype=np.int64)
    if config["split_ratios"] is not None:
        cuts = calendar_cuts(books, config["split_ratios"])
    selection = Selection(model.config.temporal_dim, cuts, config["split"], dates, fit_books)
    tested = []
    for book in books:
        if len(selection.tested(book)) or len(books) == 1:
            tested.append(book)
        else:
            print(f"{book.pair}: left out, it has no window in the split {config['split']!r}")
    for book in tested or books[:1]:
        if config["split"] == "all" or config["split_ratios"] is not None:
            selection.refuse_trained(book, meta["seen"]["books"])
        selection.check(book)
        if not config["allow_earlier"]:
            selection.refuse_earlier(book, meta["seen"]["until_ns"])
    return selection, tested


def plan_probes(wanted: int | None, selection: Selection, book: Book) -> tuple[int, str]:
    """Return how many windows the probes are fitted on, and why there are none, in words.

    wanted: probe_windows. Without it a market too short to tell anything is not probed.
    """
    ends = selection.tested(book, HORIZON)
    minutes = 0.0
    if len(ends):
        first, last = book.timestamps[ends[0] - selection.states], book.timestamps[ends[-1] - 1]
        minutes = float(last - first) / 60e9
    count = PROBE_WINDOWS if wanted is None else wanted
    if wanted is None and minutes < PROBE_MINUTES:
        span = f"the tested windows span {minutes:.1f} minutes of market, too few to judge by"
        return 0, f"(no probes: {span}; --probe_windows={PROBE_WINDOWS} fits them all the same)"
    sets = [selection.to_fit(book, split, count, HORIZON) for split in ("train", "validation")]
    if count and not (len(ends) and all(sets)):
        return 0, f"(no probes: a split has no window with {HORIZON} states after it)"
    return count, ""


def find_notes(config: dict, selection: Selection, book: Book) -> list[str]:
    """Return what a reader must know about how a pair's numbers were made."""
    notes = []
    found = len(selection.tested(book))
    if found < config["windows"]:
        notes.append(f"({found:,} windows, not {config['windows']:,}: the split has no more)")
    if not selection.to_fit(book, "validation", config["fit_windows"]):
        chosen = "the best naive methods were chosen on the tested windows"
        notes.append(f"(no validation windows: {chosen})")
    if config["split"] == "validation":
        notes.append("(split = 'validation': methods and penalties were chosen on these windows)")
    return notes


@dataclass
class Tester:
    """What is the same for all books of a test: the encoder, and which windows are hidden how.

    meta: metadata of the checkpoint; folder: where pictures go; books: those given, and once it is
    built those of them that have windows to test.
    """

    config: dict
    device: torch.device
    model: BookEncoder
    meta: dict[str, Any]
    folder: Path
    books: list[Book]

    def __post_init__(self) -> None:
        config = self.config
        self.selection, self.books = select_windows(config, self.model, self.meta, self.books)
        how = config["mask_perc"], self.selection.states, config["batch_size"], self.device
        self.maskings = [Masking(mask, *how) for mask in config["masks"]]
        # By mask and by the books that they were fitted on: books may share them.
        self.fitted: dict[tuple, Ridges | None] = {}
        self.pictures: dict[str, Path] = {}

    def test(self, book: Book) -> PairReport:
        """Score, probe and draw the tested windows of a book."""
        ridges = self.fit_masks(book)
        scores = self.score_masks(book, ridges)
        count, why_none = plan_probes(self.config["probe_windows"], self.selection, book)
        probed = self.probe_embedding(book, count) if count else {}
        notes = find_notes(self.config, self.selection, book)
        if why_none:
            notes.append(why_none)
        for note in notes:
            print(note)
        if self.config["pictures"]:
            with drawing(f"{book.pair}: pictures"):
                self.draw(book, ridges)
        return PairReport(book.pair, scores, probed, notes)

    def fit_masks(self, book: Book) -> dict[str, Ridges | None]:
        """Return a book's ridge regressions by mask; None if there are no training windows."""
        training = self.selection.to_fit(book, "train", self.config["fit_windows"])
        validation = self.selection.to_fit(book, "validation", self.config["fit_windows"])
        if not training and not self.fitted:
            print("ridge regression left out: no training windows (set --fit_data_dir)")
        found = {}
        for masking in self.maskings:
            key = (masking.mask, *(str(source.path) for source, _ in training))
            if key not in self.fitted:
                name = "fitting the ridge"
                sets = masking.hide_all(training, name), masking.hide_all(validation, name)
                self.fitted[key] = fit_ridges(*sets)
            found[masking.mask] = self.fitted[key]
        return found

    def score_masks(self, book: Book, ridges: dict[str, Ridges | None]) -> list[MaskScores]:
        """Score every mask on evenly spaced windows."""
        config, selection = self.config, self.selection
        ends = evenly_spaced(selection.tested(book), config["windows"])
        validation = selection.to_fit(book, "validation", config["fit_windows"])
        windows = f"{counted(len(ends), 'window')} of the split {config['split']!r}"
        print(report.head_of_scores(book.pair, windows))
        found = []
        for masking in self.maskings:
            fitted = ridges[masking.mask]
            errors = score(masking, [(book, ends)], fitted, self.model)
            judged = score(masking, validation, fitted, None) if validation else errors
            blocks = ends // config["block_states"]
            scores = MaskScores(
                pair=book.pair,
                mask=masking.mask,
                trained_on=masking.mask in trained_on(self.meta["config"]["mask_mode"]),
                windows=len(ends),
                comparisons=compare(errors, judged, blocks, config["seed"]),
            )
            found.append(scores)
            print(report.show_scores(scores), flush=True)
        return found

    def probe_embedding(self, book: Book, count: int) -> dict[str, probes.ProbeResult | None]:
        """Return what linear probes score on the tested windows, by task.

        count: training windows; half as many are used for validation, and for the test.
        """
        selection, seed = self.selection, self.config["seed"]
        tested = evenly_spaced(selection.tested(book, HORIZON), count // 2)
        splits = [
            selection.to_fit(book, "train", count, HORIZON),
            selection.to_fit(book, "validation", count // 2, HORIZON),
            [(book, tested)],
        ]
        sets = probes.make_sets(self.model, splits, self.config["batch_size"], self.device, seed)
        print(report.head_of_probes(book.pair))
        found = {}
        shares, trees = tuple(probes.SHARES), ("boosted",)  # trees take too long for every test
        for task in TASKS:
            found[task] = probes.probe_task(task, sets, seed, shares, without=trees)
            print(report.show_probe(task, found[task]), flush=True)
        return found

    def draw(self, book: Book, ridges: dict[str, Ridges | None]) -> None:
        """Draw one window as it was, masked and filled, and errors by level and by distance.

        The distance of a hidden value is the number of states to the nearest one that shows its
        level.
        """
        from lob.evaluation.pictures import draw_pair  # loads matplotlib
        from lob.plotting import save

        ends = self.selection.tested(book)
        middle = ends[len(ends) // 2]
        some = evenly_spaced(ends, self.config["batch_size"])
        figures = draw_pair(self.model, self.meta, self.maskings, ridges, book, middle, some)
        for name, figure in figures.items():
            file = save(figure, self.folder / f"{book.pair}_{name}.png")
            self.pictures[f"{book.pair}_{name}"] = file
            print(f"picture    {file}")


def time_variants(config: dict, model: BookEncoder, book: Book) -> list[dict]:
    """Return rows of the encoder's latency, eager, compiled, as TorchScript and as CUDA graphs."""
    devices = [config["device"]]
    if config["device"] == "auto":
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    windows = latency.example_windows(book, model.config, latency.BATCHES["cuda"][-1])
    rows = []
    for found in latency.benchmark(model, windows, config["latency_runs"], devices):
        print(f"{found[0]['case']:<24}  {report.show_speed(found)}", flush=True)
        rows += found
    return rows


def time_embedding(
    config: dict, model: BookEncoder, device: torch.device, book: Book
) -> list[dict]:
    """Return rows of the eager encoder's latency on the device of the test."""
    windows = latency.example_windows(book, model.config, config["batch_size"])
    encode = latency.through(device, window_encoder(model, "last"))
    return latency.time_encoder(f"latency/{device.type}", encode, windows, config["latency_runs"])


if __name__ == "__main__":
    run(main, config)
