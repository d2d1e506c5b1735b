"""What benchmarks/bench_labels.py does for one market, and for one model on some labels there.

`prepare` keeps all that the models of a market share in one file: which windows are fitted on,
judged on (for settings and early stopping) and tested on, their labels, and what frozen models are
fitted on. `run_job` fits one model on a share of the labels and keeps its score. Both skip what is
there already, so that an interrupted bench goes on.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.other_models import PUBLISHED, BookNetwork
from lob.book.states import Book, identity, open_book
from lob.config import InputError
from lob.evaluation.probe_fits import choose_linear, measure_loss
from lob.evaluation.probe_tasks import LEAST_HORIZON, TASKS, is_classification
from lob.evaluation.probes import (
    FEWEST,
    FEWEST_OF_CLASS,
    MAIN,
    WITHIN,
    ProbeSet,
    describe_windows,
    encode_windows,
    fit_method,
    is_enough,
    make_measure,
    make_untrained,
    resample,
    split_within,
)
from lob.evaluation.selection import evenly_spaced, in_parts, states_after
from lob.model.checkpoint import load_model
from lob.model.embedding import window_encoder
from lob.model.encoder import BookEncoder
from lob.model.scale import measure_scale
from lob.storage import new_file
from lob.training.optimisation import make_optimizer, set_rate
from lob.windows.splits import window_ends

# Models with nothing trained but a linear probe, and the method of the probes that each is.
FROZEN = {"frozen": "scaled", "both": "all", "features": "hand_made", "floor": "floor"}
# Largest learning rates: of two each, the better one on the validation market. The papers' are 1e-2
# (DeepLOB), 1e-3 (BiN-C(TABL)), 3e-4 (MLPLOB) and 1e-4 (TLOB), for many more steps.
RATES = {
    "finetuned": 3e-4,
    "scratch": 1e-3,
    "deeplob": 1e-3,
    "binctabl": 1e-2,
    "mlplob": 3e-4,
    "tlob": 1e-3,
}
WARM_UP = 20  # steps in which the learning rate rises
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0  # norm
FITTED_FOR_SCORES = 256  # training windows that z-scores of inputs are fitted on
AT_ONCE = {"cpu": 16, "cuda": 256}  # windows that are predicted at a time


class Job(NamedTuple):
    """One model, fitted on a share of the labels of one task in one market."""

    pair: str
    task: str
    model: str
    share: float
    seed: int

    @property
    def file(self) -> Path:
        return Path(self.pair) / self.task / f"{self.model}_{self.share:g}_{self.seed}.npz"


@dataclass(frozen=True)
class Settings:
    """What jobs need beside their names; the files of one folder are made with one of these."""

    results_dir: str
    data_dir: str  # folder of book_states/
    encoder: str  # checkpoint file
    windows: tuple[int, int, int]  # most windows that are fitted on, judged on, tested on
    batch_size: int
    steps: int  # most steps of a network
    every: int  # steps from one look at the judged windows to the next
    patience: int  # looks without gain after which training stops
    rates: tuple[tuple[str, float], ...]
    device: str

    @property
    def folder(self) -> Path:
        return Path(self.results_dir)


def keep_settings(settings: Settings) -> None:
    """Write the settings beside the results. Raises InputError if results of others are there."""
    mine = asdict(settings) | {"results_dir": "", "data_dir": "", "encoder": "", "device": ""}
    mine["weights_sha256"] = hashlib.sha256(Path(settings.encoder).read_bytes()).hexdigest()
    mine = json.loads(json.dumps(mine))
    file = settings.folder / "settings.json"
    if file.exists():
        there = json.loads(file.read_text())
        differ = [key for key in mine if mine[key] != there.get(key)]
        if differ:
            raise InputError(
                f"results_dir = {settings.results_dir!r} holds results with another "
                f"{' and '.join(differ)}: remove it, or set another"
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as handle:
        handle.write(json.dumps(mine).encode())


# What models of a market share.


@dataclass(frozen=True)
class Split:
    """Windows of one part of a market: end rows, int64 (W,), and what probes need of them."""

    ends: np.ndarray
    windows: ProbeSet

    def take(self, places: np.ndarray) -> "Split":
        return Split(self.ends[places], self.windows.take(places))


def prepare(settings: Settings, pair: str) -> bool:
    """Write what the models of a market share; return whether each part has windows.

    Raises InputError if it is there, but of another recording.
    """
    book = open_pair(settings, pair)
    file, made_from = settings.folder / pair / "windows.npz", json.dumps(identity(book))
    if file.exists():
        if np.load(file)["made_from"].item() != made_from:
            raise InputError(
                f"{file.parent} holds results of {pair} as it was before it was parsed again: "
                "remove it, or set another --results_dir"
            )
        return True
    model = load_encoder(settings.encoder, settings.device)
    ends, part = choose_windows(book, model.config.temporal_dim, settings.windows)
    if len(np.unique(part)) < 3:
        return False
    vectors = encode(settings, book, ends)
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as handle:
        np.savez(handle, ends=ends, part=part, made_from=made_from, **vectors)
    return True


def choose_windows(
    book: Book, states: int, counts: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return end rows of windows, evenly spaced in each part of the recording, and the parts."""
    ends = window_ends(book.segment_starts, book.rows, states)
    part = in_parts(book, ends, states, LEAST_HORIZON, WITHIN)
    chosen = [evenly_spaced(ends[part == number], count) for number, count in enumerate(counts)]
    return np.concatenate(chosen), np.repeat(np.arange(3), [len(some) for some in chosen])


def encode(settings: Settings, book: Book, ends: np.ndarray) -> dict[str, np.ndarray]:
    """Return the frozen vectors of windows and their scale blocks, float64 (W, P)."""
    model = load_encoder(settings.encoder, settings.device)
    device = torch.device(settings.device)
    found = encode_windows({"ours": model}, book, ends, settings.batch_size, device)
    return {name: found[name] for name in ("ours", "scale")}


@functools.lru_cache(maxsize=2)
def open_splits(settings: Settings, pair: str) -> list[Split]:
    """Return the windows that are fitted on, judged on and tested on, with their parts' labels."""
    there = np.load(settings.folder / pair / "windows.npz")
    ends, part = there["ends"], there["part"]
    book = open_pair(settings, pair)
    states = load_encoder(settings.encoder, settings.device).config.temporal_dim
    vectors = {name: there[name] for name in ("ours", "scale")}
    windows = describe_windows(book, ends, states, vectors)
    sets = split_within(windows, part, states_after(book, ends, WITHIN))
    return [Split(ends[part == number], found) for number, found in enumerate(sets)]


def open_task(settings: Settings, pair: str, task: str) -> list[Split] | None:
    """Return the windows that have a label of a task; None if there are too few in a part."""
    splits = [
        split.take(np.isfinite(split.windows.labels[task])) for split in open_splits(settings, pair)
    ]
    enough = [is_enough(x.windows.labels[task], is_classification(task)) for x in splits]
    return splits if all(enough) else None


class Recording:
    """A book's states on a device, from which windows are gathered."""

    def __init__(self, book: Book, states: int, device: torch.device):
        arrays = book.price_ticks, book.sizes, book.timestamps
        self.arrays = [torch.from_numpy(np.array(array)).to(device) for array in arrays]
        self.device, self.tick_size = device, book.tick_size
        self.offsets = torch.arange(-states, 0, device=device)

    def gather(self, ends: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return price_ticks, sizes (B, T, L) and times_ns (B, T) of windows by their end rows."""
        rows = torch.from_numpy(ends).to(self.device)[:, None] + self.offsets
        price_ticks, sizes, times_ns = (array[rows] for array in self.arrays)
        return price_ticks, sizes, times_ns


@functools.lru_cache(maxsize=1)
def open_recording(settings: Settings, pair: str) -> Recording:
    states = load_encoder(settings.encoder, settings.device).config.temporal_dim
    return Recording(open_pair(settings, pair), states, torch.device(settings.device))


def open_pair(settings: Settings, pair: str) -> Book:
    return open_book(Path(settings.data_dir) / "book_states" / pair)


@functools.lru_cache(maxsize=1)
def load_encoder(file: str, device: str) -> BookEncoder:
    return load_model(file, torch.device(device))[0]


# One model on some labels.


def run_job(settings: Settings, job: Job) -> None:
    """Fit a model on its share of the labels and keep what it scores on the tested windows."""
    splits = open_task(settings, job.pair, job.task)
    assert splits is not None
    train, judge, test = splits
    some, judged = (draw_labels(split, job, number) for number, split in enumerate((train, judge)))
    if job.model in FROZEN:
        method, sets = FROZEN[job.model], (some.windows, judged.windows)
        predict = fit_method(method, job.task, *sets, MAIN, job.seed, refit=False)
        answer, step = predict(test.windows), 0
    else:
        answer, step = fit_network(settings, job, some, judged, test)
    labels, measure = test.windows.labels[job.task], make_measure(job.task, train.windows)
    found = {
        "score": measure(answer, labels),
        "drawn": resample(measure, answer, labels, test.windows.block, 0).astype(np.float32),
        "labels": len(some.ends),
        "judged": len(judged.ends),
        "step": step,
    }
    with new_file(settings.folder / job.file) as handle:
        np.savez(handle, **found)


def draw_labels(split: Split, job: Job, number: int) -> Split:
    """Return the windows of a part whose labels a job may use: a share, the same for all models.

    They are FEWEST at least, with FEWEST_OF_CLASS of each class. A smaller share of the same seed
    is part of a larger one. number: 0 for the windows that are fitted on, 1 for those judged on.
    """
    labels = split.windows.labels[job.task]
    order = np.random.default_rng([job.seed, number]).permutation(len(labels))
    count = max(round(job.share * len(order)), min(FEWEST, len(order)))
    if is_classification(job.task):
        for name in (0, 1):
            count = max(count, int(np.flatnonzero(labels[order] == name)[FEWEST_OF_CLASS - 1]) + 1)
    return split.take(np.sort(order[:count]))


class TunedEncoder(nn.Module):
    """The encoder and a linear head on vector and scale block: windows (B, T, L) to (B,)."""

    mean: Tensor
    spread: Tensor

    def __init__(self, encoder: BookEncoder, tick_size: float, scale: np.ndarray):
        super().__init__()
        self.encoder, self.tick_size = window_encoder(encoder, "last"), tick_size
        self.head = nn.Linear(encoder.config.width + scale.shape[1], 1)
        for name, values in (("mean", scale.mean(0)), ("spread", np.maximum(scale.std(0), 1e-6))):
            self.register_buffer(name, torch.from_numpy(values).float())

    def forward(self, price_ticks: Tensor, sizes: Tensor, times_ns: Tensor) -> Tensor:
        windows = (price_ticks, sizes, times_ns)
        given = windows[: 3 if self.encoder.encoder.config.reads_times else 2]
        with torch.autocast("cuda", torch.bfloat16, enabled=sizes.is_cuda):
            vector = self.encoder(*given)
        scale = measure_scale(*windows, self.tick_size).float()
        inputs = torch.cat([vector.float(), (scale - self.mean) / self.spread], dim=1)
        return self.head(inputs)[:, 0]

    @torch.no_grad()
    def begin_at(self, weight: np.ndarray, constant: float) -> None:
        """Make the head that of a linear probe on vector and scale block, float64 (P,)."""
        width = self.encoder.encoder.config.width
        mean, spread = (x.double().cpu().numpy() for x in (self.mean, self.spread))
        constant += float(weight[width:] @ mean)
        both = np.concatenate([weight[:width], weight[width:] * spread])
        self.head.weight.copy_(torch.from_numpy(both)[None])
        self.head.bias.fill_(constant)


class Targets:
    """What a network predicts: logits of a class, or the z-score of the residual of persistence."""

    def __init__(self, task: str, some: ProbeSet):
        self.task, self.classify = task, is_classification(task)
        self.mean, self.spread = 0.0, 1.0
        if not self.classify:
            residual = self.of(some)
            self.mean, self.spread = float(residual.mean()), max(float(residual.std()), 1e-9)

    def of(self, windows: ProbeSet) -> np.ndarray:
        """Return targets, float64 (W,)."""
        labels = windows.labels[self.task]
        if self.classify:
            return labels
        return (labels - windows.floors[self.task][:, 0] - self.mean) / self.spread

    def invert(self, output: np.ndarray, windows: ProbeSet) -> np.ndarray:
        """Return the logits or the labels that a network's outputs stand for."""
        if self.classify:
            return output
        return output * self.spread + self.mean + windows.floors[self.task][:, 0]


def fit_network(
    settings: Settings, job: Job, some: Split, judged: Split, test: Split
) -> tuple[np.ndarray, int]:
    """Return a network's predictions of the tested windows, and the step that they are of.

    It is the step with the least loss on the judged windows. Step 0, before training, is one.
    """
    recording = open_recording(settings, job.pair)
    targets = Targets(job.task, some.windows)
    network = make_network(settings, job, some, judged, targets).to(recording.device)
    generator = np.random.default_rng([job.seed, 2])
    loss_of = nn.BCEWithLogitsLoss() if targets.classify else nn.MSELoss()
    wanted = torch.from_numpy(targets.of(some.windows)).float().to(recording.device)
    rate = dict(settings.rates)[job.model]
    optimizer = make_optimizer("adamw", network, rate, WEIGHT_DECAY)
    batches = draw_batches(len(some.ends), settings.batch_size, generator)
    least, best, kept = np.inf, 0, {}
    for step in range(settings.steps + 1):
        if step % settings.every == 0:
            output = compute(network, recording, judged.ends)
            loss = measure_loss(output, targets.of(judged.windows), targets.classify)
            if loss < least:
                least, best = loss, step
                kept = {name: x.detach().clone() for name, x in network.state_dict().items()}
            elif step - best >= settings.patience * settings.every:
                break
        network.train()
        set_rate(optimizer, rate * min(1.0, (step + 1) / WARM_UP))
        places = next(batches)
        optimizer.zero_grad()
        loss_of(network(*recording.gather(some.ends[places])), wanted[places]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
    if kept:
        network.load_state_dict(kept)
    return targets.invert(compute(network, recording, test.ends), test.windows), best


def make_network(
    settings: Settings, job: Job, some: Split, judged: Split, targets: Targets
) -> nn.Module:
    """Return a job's network as its training begins."""
    recording = open_recording(settings, job.pair)
    train = open_splits(settings, job.pair)[0]
    encoder = load_encoder(settings.encoder, settings.device)
    torch.manual_seed(job.seed)
    if job.model in PUBLISHED:
        ends = evenly_spaced(train.ends, FITTED_FOR_SCORES)
        windows = (recording.gather(ends[first::8]) for first in range(min(8, len(ends))))
        return BookNetwork(job.model, encoder.config.temporal_dim, encoder.config.depth, windows)
    own = make_untrained(encoder, job.seed)
    network = TunedEncoder(own, recording.tick_size, train.windows.features["scale"])
    if job.model == "finetuned":
        own.load_state_dict(encoder.state_dict())
        network.begin_at(*fit_head(some.windows, judged.windows, targets))
    return network


def fit_head(some: ProbeSet, judged: ProbeSet, targets: Targets) -> tuple[np.ndarray, float]:
    """Return weights (P,) and constant of the linear probe on vector and scale block.

    A head of random weights would spoil the encoder in the first steps (Kumar et al. 2022,
    arXiv:2202.10054).
    """
    sets = [
        (np.hstack([x.features["scale"], x.features["ours"]]), targets.of(x))
        for x in (some, judged)
    ]
    known = some.features["scale"].shape[1]
    probe = choose_linear(*sets, targets.classify, known, may_leave_out=True, refit=False)
    points = np.vstack([np.zeros(sets[0][0].shape[1]), np.eye(sets[0][0].shape[1])])
    constant, *others = probe(points)
    weight = np.array(others) - constant  # since the probe is a constant and a product
    return np.concatenate([weight[known:], weight[:known]]), float(constant)


def draw_batches(count: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield places of windows without end, each once before one comes again."""
    size = min(size, count)
    while True:
        order = generator.permutation(count)
        for first in range(0, count - size + 1, size):
            yield order[first : first + size]


@torch.no_grad()
def compute(network: nn.Module, recording: Recording, ends: np.ndarray) -> np.ndarray:
    """Return a network's outputs for windows, float64 (W,)."""
    network.eval()
    size = AT_ONCE[recording.device.type]
    batches = (ends[first : first + size] for first in range(0, len(ends), size))
    parts = [network(*recording.gather(some)) for some in batches]
    return torch.cat(parts).double().cpu().numpy()


def read_result(settings: Settings, job: Job) -> dict[str, Any] | None:
    """Return what a job has kept; None if it has not been done."""
    file = settings.folder / job.file
    return dict(np.load(file)) if file.exists() else None


def check_tasks(tasks: list[str]) -> None:
    """Raise InputError unless all are tasks of the probes."""
    for task in tasks:
        if task not in TASKS:
            raise InputError(f"tasks = {task!r} is none of {', '.join(TASKS)}")
