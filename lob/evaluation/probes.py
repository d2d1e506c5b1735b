"""Probes: what simple models can predict from a frozen vector of a window, beside simpler features.

A probe is a linear model that is fitted on the vector of a window that ends now. To compare, probes
are fitted on hand-made features, on both together, on the few numbers of a task's floor, and on
other vectors such as principal components of the inputs. Gradient-boosted trees are fitted on the
hand-made features. Settings are chosen on validation windows (lob/evaluation/probe_fits.py).

Volatility has a level that differs from market to market and from day to day. So each method is
fitted to the residual of persistence, the window's own volatility scaled to the task's states. A
fit to the label itself stands beside it.

`probe` takes anybody's vectors of one recording. A window has no label that would need states of
the next part. So no training label depends on a state of a test window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book
from lob.config import InputError
from lob.evaluation.intervals import interval, judge_lead, smallest_visible
from lob.evaluation.probe_fits import (
    area_under_curve,
    choose_boosted,
    choose_linear,
    correlate,
    explained,
    log_loss,
)
from lob.evaluation.probe_tasks import (
    LEAST_HORIZON,
    TASKS,
    drop_labels,
    find_floor,
    hand_made,
    is_classification,
    label_windows,
)
from lob.evaluation.selection import Windows, in_parts, states_after, time_blocks
from lob.model.encoder import BookEncoder
from lob.model.inputs import build_inputs
from lob.model.scale import NAMES, measure_scale
from lob.windows.splits import gather_times, gather_windows

METHODS = {  # what is fitted on what; vectors of other names may be added, such as the last two
    "ours": "encoder",
    "both": "encoder and hand-made",
    "scaled": "encoder and scale block",
    "all": "encoder, scale block and hand-made",
    "hand_made": "hand-made features",
    "boosted": "boosted trees on hand-made",
    "floor": "floor",
    "persistence": "persistence",  # of volatility, with nothing fitted
    "scale": "scale block",
    "pca": "PCA of inputs",
    "random": "random weights",
}
SIMPLE = ("floor", "persistence", "hand_made")  # the best of them in a cell is "simple"
SUMMED = ("over_simple", "scaled_over_simple", "adds", "all_adds")  # the leads that matter most
# The features that a method joins. The last one is a vector, which has a penalty of its own.
JOINED = {
    "both": ("hand_made", "ours"),
    "scaled": ("scale", "ours"),
    "all": ("hand_made", "scale", "ours"),
}
SHARES = {1.0: "", 0.1: "_10pct", 0.01: "_1pct"}  # share of the training labels -> metric's ending
CARE_AUC, CARE_R2 = 0.02, 0.05  # the smallest leads that anyone would care for
COMPONENTS = 64  # principal components of the inputs
FEWEST = 20  # labels that a probe needs to be fitted and judged, with 5 of each class
FEWEST_OF_CLASS = 5
RESAMPLES = 400  # fewer than for a mean (intervals.py), since each AUC takes a sort
PAIR_OFFSET = 2**40  # keeps the blocks of time of different recordings apart
WITHIN = (1 / 2, 1 / 6, 1 / 3)  # shares of a recording: training, validation, test
MAIN = "main"  # what is fitted: the label, or for volatility its residual of persistence
Measure = Callable[[np.ndarray, np.ndarray], float]  # predictions, labels -> higher is better


@dataclass
class ProbeSet:
    """Windows as probes need them.

    features: by name, float64 (W, P): `hand_made`, the vector `ours`, the scale block `scale` of an
    encoder (lob/model/scale.py), and other vectors; floors: by task, float64 (W, P), of volatility
    persistence; labels: by task, float64 (W,), NaN where there is none; block: int64 (W,), the
    block of time in which each window lies.
    """

    features: dict[str, np.ndarray]
    floors: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    block: np.ndarray

    def take(self, places: np.ndarray) -> "ProbeSet":
        """Return some windows, by number or by a mask."""
        features, floors, labels = (
            {name: x[places] for name, x in values.items()}
            for values in (self.features, self.floors, self.labels)
        )
        return ProbeSet(features, floors, labels, self.block[places])


Predict = Callable[[ProbeSet], np.ndarray]  # windows -> predictions (W,)


@dataclass(frozen=True)
class Lead:
    """How much more one method scores than another, with its 95 % interval, and what that says.

    smallest: the smallest lead that such a recording would show. verdict: better, worse, level or
    undecided. note: which method the other one is, if it was chosen.
    """

    value: float
    low: float
    high: float
    smallest: float
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class ProbeResult:
    """What probes found for one task.

    scores: metric -> value. The name of a method alone is its AUC (area under the curve), or for
    volatility its R2 against the mean of the training labels. An ending names another number:

    - `_log_loss`: nats;
    - `_level`: R2 of a fit to the volatility itself, not to the residual of persistence;
    - `_r2_test`: R2 against the mean of the test labels;
    - `_correlation`, and `_bias` (mean of prediction less label);
    - `_10pct` or `_1pct`, after any of these: only this share of the training labels was used.

    leads: name -> the first method's lead over the second:

    - `over_<method>`: the vector over that method;
    - `over_simple`: the vector over the best of `SIMPLE` on the test windows;
    - `scaled_over_simple`: vector and scale block over the same;
    - `adds`: vector and hand-made features over hand-made features;
    - `all_adds`: vector, scale block and hand-made features over hand-made features.
    """

    scores: dict[str, float]
    leads: dict[str, Lead]
    blocks: int


def probe(
    vectors: np.ndarray,
    ends: np.ndarray,
    book: Book,
    states: int,
    others: dict[str, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, ProbeResult | None]:
    """Return what anybody's vectors of windows are worth within one recording, by task.

    vectors: (W, D), row i of the window of `states` states that ends before row `ends[i]` of the
    book; ends: int64 (W,). others: more vectors of the same windows, by name. Probes are fitted on
    the first half of the recording, chosen on the next sixth and tested on the last third, purged.
    A window has no label that needs states beyond its part, and is left out if not even
    `LEAST_HORIZON` follow it there. The result is None for a task with too few labels. Raises
    InputError if vectors and windows don't fit together.
    """
    ends = np.asarray(ends, dtype=np.int64)
    part = in_parts(book, ends, states, LEAST_HORIZON, WITHIN)
    used = part >= 0
    named = {"ours": vectors, **(others or {})}
    for name, x in named.items():
        if np.ndim(x) != 2 or len(x) != len(ends) or not np.isfinite(x).all():
            raise InputError(
                f"the vectors {name!r} have the shape {np.shape(x)} or are not finite: give a row "
                f"of finite numbers for each of the {len(ends)} windows"
            )
    chosen = {name: np.asarray(x, dtype=np.float64)[used] for name, x in named.items()}
    windows = describe_windows(book, ends[used], states, chosen)
    sets = split_within(windows, part[used], states_after(book, ends[used], WITHIN))
    return {task: probe_task(task, sets, seed) for task in TASKS}


def split_within(windows: ProbeSet, part: np.ndarray, following: np.ndarray) -> list[ProbeSet]:
    """Return training, validation and test windows of one recording, with labels of their parts.

    part, following: of each window, as `in_parts` and `states_after` return them.
    """
    labelled = replace(windows, labels=drop_labels(windows.labels, following))
    return [labelled.take(part == number) for number in range(3)]


def describe_windows(
    book: Book, ends: np.ndarray, states: int, vectors: dict[str, np.ndarray]
) -> ProbeSet:
    """Return windows with their vectors by name, hand-made features, floors, labels and blocks.

    A window has the labels for which enough states of its segment follow.
    """
    known = hand_made(book, ends, states)
    floors = {task: find_floor(task, known, states) for task in TASKS}
    labels = label_windows(book, ends, states_after(book, ends))
    return ProbeSet({"hand_made": known, **vectors}, floors, labels, time_blocks(book, ends))


def join(sets: Sequence[ProbeSet]) -> ProbeSet:
    """Return the windows of several recordings as one set; their blocks of time stay apart."""

    def stack(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    blocks = [number * PAIR_OFFSET + found.block for number, found in enumerate(sets)]
    return ProbeSet(
        stack([found.features for found in sets]),
        stack([found.floors for found in sets]),
        stack([found.labels for found in sets]),
        np.concatenate(blocks),
    )


@torch.inference_mode()
def encode_windows(
    models: dict[str, BookEncoder],
    book: Book,
    ends: np.ndarray,
    batch_size: int,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Return features by name, float64 (W, P), of windows in which nothing is masked.

    Each of `models`, which have one shape, gives its hidden vector of the last state. `scale` is
    the scale block (lob/model/scale.py). `pca` holds the input values of the last state, and their
    means over the last 16 states and over the window; `to_components` turns it into principal
    components.
    """
    config = next(iter(models.values())).config
    found: dict[str, list[Tensor]] = {name: [torch.empty(0, config.width)] for name in models}
    found["pca"] = [torch.empty(0, 6 * config.depth)]
    found["scale"] = [torch.empty(0, len(NAMES))]
    for begin in range(0, len(ends), batch_size):
        some = book, ends[begin : begin + batch_size], config.temporal_dim
        arrays = (*gather_windows(*some), gather_times(*some))
        price, sizes, times = (torch.from_numpy(x).to(device) for x in arrays)
        tokens, _, values, _ = build_inputs(price, sizes, None, config, times)
        for name, model in models.items():
            found[name].append(model.encode(tokens)[:, -1].cpu())
        values = values.flatten(2)
        summary = [values[:, -1], values[:, -16:].mean(1), values.mean(1)]
        found["pca"].append(torch.cat(summary, dim=1).cpu())
        found["scale"].append(measure_scale(price, sizes, times, book.tick_size).cpu())
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def make_sets(
    model: BookEncoder,
    splits: list[Windows],
    batch_size: int,
    device: torch.device,
    seed: int,
) -> list[ProbeSet]:
    """Return features and labels of training, validation and test windows.

    splits: windows of each, as (book, end rows). The principal axes are those of the training
    windows.
    """
    models = {"ours": model, "random": make_untrained(model, seed)}
    states = model.config.temporal_dim
    sets = []
    for windows in splits:
        parts = []
        for book, ends in windows:
            vectors = encode_windows(models, book, ends, batch_size, device)
            parts.append(describe_windows(book, ends, states, vectors))
        sets.append(join(parts))
    return to_components(sets)


def make_untrained(model: BookEncoder, seed: int) -> BookEncoder:
    """Return an encoder of the same shape with random weights."""
    torch.manual_seed(seed)
    return BookEncoder(model.config).to(next(model.parameters()).device).eval()


def to_components(sets: list[ProbeSet]) -> list[ProbeSet]:
    """Return the sets with `pca` in the principal axes of the training windows, sets[0]."""
    inputs = sets[0].features["pca"]
    centre = inputs.mean(0)
    axes = np.linalg.svd(inputs - centre, full_matrices=False)[2][:COMPONENTS].T
    found = []
    for split in sets:
        components = (split.features["pca"] - centre) @ axes
        found.append(replace(split, features=split.features | {"pca": components}))
    return found


def probe_task(
    task: str,
    sets: list[ProbeSet],
    seed: int,
    shares: Sequence[float] = (1.0,),
    without: Sequence[str] = (),
) -> ProbeResult | None:
    """Return what probes score on sets[2] that were fitted on sets[0] and chosen on sets[1].

    shares: of the training labels; with each the probes are fitted anew. without: methods to leave
    out. Return None if one of the sets has too few labels.
    """
    classify = is_classification(task)
    sets = [split.take(np.isfinite(split.labels[task])) for split in sets]
    if not all(is_enough(split.labels[task], classify) for split in sets):
        return None
    train, judge, test = sets
    labels = test.labels[task]
    scores: dict[str, float] = {}
    answers: dict[str, np.ndarray] = {}
    order = np.random.default_rng(seed).permutation(len(train.block))
    for share in shares:
        some = train.take(order[: round(share * len(order))])
        if not is_enough(some.labels[task], classify):
            continue
        methods = [name for name in list_methods(task, train) if name not in without]
        for method in methods:
            found = fit_targets(method, task, some, judge, seed)
            found_scores = score_method(task, some, test, found)
            scores |= {f"{method}{name}{SHARES[share]}": x for name, x in found_scores.items()}
            if share == 1:
                answers[method] = found[MAIN](test)
    leads = find_leads(answers, make_measure(task, train), labels, test.block, seed)
    return ProbeResult(scores, leads, len(np.unique(test.block)))


def list_methods(task: str, split: ProbeSet) -> list[str]:
    """Return the methods of a task: those of `METHODS`, and the vectors with other names."""
    derived = ["boosted", "floor"]
    derived += [name for name, parts in JOINED.items() if {*parts} <= {*split.features}]
    if not is_classification(task):
        derived.append("persistence")
    there = {*split.features, *derived}
    return [name for name in METHODS if name in there] + sorted(there - {*METHODS})


def fit_targets(
    method: str, task: str, train: ProbeSet, judge: ProbeSet, seed: int
) -> dict[str, Predict]:
    """Return a fitted method by target: `MAIN` and, of volatility, also the `level` itself."""
    if method == "persistence":
        return {MAIN: lambda split: split.floors[task][:, 0]}
    targets = (MAIN,) if is_classification(task) else (MAIN, "level")
    return {target: fit_method(method, task, train, judge, target, seed) for target in targets}


def fit_method(
    method: str,
    task: str,
    train: ProbeSet,
    judge: ProbeSet,
    target: str,
    seed: int,
    refit: bool = True,
) -> Predict:
    """Return a method fitted to a target; refit: a linear one on the judged windows too, at last.

    target: `MAIN`, or "level" for volatility itself.
    """

    def inputs(split: ProbeSet) -> np.ndarray:
        if method == "floor":
            return split.floors[task]
        if method in JOINED:
            return np.hstack([split.features[name] for name in JOINED[method]])
        return split.features["hand_made" if method == "boosted" else method]

    def persistence(split: ProbeSet) -> np.ndarray:
        known = target == MAIN and not classify
        return split.floors[task][:, 0] if known else np.zeros(len(split.block))

    classify = is_classification(task)
    fitted, judged = (
        (inputs(split), split.labels[task] - persistence(split)) for split in (train, judge)
    )
    if method == "boosted":
        predict = choose_boosted(fitted, judged, classify, seed)
    else:
        known = None
        if method in JOINED:
            known = sum(train.features[name].shape[1] for name in JOINED[method][:-1])
        # Of features and vector the features stay: it is asked what the vector adds to them.
        apart = method == "scaled"
        predict = choose_linear(fitted, judged, classify, known, may_leave_out=apart, refit=refit)
    return lambda split: predict(inputs(split)) + persistence(split)


def score_method(
    task: str, train: ProbeSet, test: ProbeSet, found: dict[str, Predict]
) -> dict[str, float]:
    """Return a method's scores on the test windows, by the ending of the metric's name."""
    labels, answer = test.labels[task], found[MAIN](test)
    measure = make_measure(task, train)
    scores = {"": measure(answer, labels)}
    if is_classification(task):
        return scores | {"_log_loss": log_loss(answer, labels)}
    if "level" in found:
        scores["_level"] = measure(found["level"](test), labels)
    return scores | {
        "_r2_test": explained(answer, labels, float(labels.mean())),
        "_correlation": correlate(answer, labels),
        "_bias": float(np.mean(answer - labels)),
    }


def find_leads(
    answers: dict[str, np.ndarray],
    measure: Measure,
    labels: np.ndarray,
    block: np.ndarray,
    seed: int,
) -> dict[str, Lead]:
    """Return the leads of the vector, and of vector and hand-made features, by name.

    answers: predictions of the test windows by method. The simple method is the one that scores
    most on these very windows, so that the vector is never compared with the weaker one.
    """
    scores = {name: measure(answer, labels) for name, answer in answers.items()}
    simple = max((name for name in SIMPLE if name in answers), key=lambda name: scores[name])
    drawn = {name: resample(measure, x, labels, block, seed) for name, x in answers.items()}
    blocks = len(np.unique(block))
    care = CARE_AUC if measure is area_under_curve else CARE_R2
    others = [name for name in answers if name != "ours" and name not in JOINED]
    wanted = {f"over_{name}": ("ours", name) for name in others}
    wanted |= {"over_simple": ("ours", simple), "adds": ("both", "hand_made")}
    if "scale" in answers:
        wanted |= {"scaled_over_simple": ("scaled", simple), "all_adds": ("all", "hand_made")}
    leads = {}
    for name, (mine, other) in wanted.items():
        value, draws = scores[mine] - scores[other], drawn[mine] - drawn[other]
        if np.allclose(answers[mine], answers[other]):  # the same fit, but for rounding
            value, draws = 0.0, np.zeros_like(draws)
        low, high = interval(draws, value, blocks)
        smallest = smallest_visible(low, high, blocks)
        verdict = judge_lead(low, high, blocks, care)
        leads[name] = Lead(value, low, high, smallest, verdict, METHODS.get(other, other))
    return leads


def resample(
    measure: Measure, score: np.ndarray, labels: np.ndarray, block: np.ndarray, seed: int
) -> np.ndarray:
    """Return `measure` of RESAMPLES draws of whole blocks of time with replacement.

    Equal seeds draw equal blocks, so that the results of two scores can be subtracted.
    """
    members = [np.flatnonzero(block == name) for name in np.unique(block)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(members), len(members))
        some = np.concatenate([members[i] for i in drawn])
        found.append(measure(score[some], labels[some]))
    return np.array(found)


def make_measure(task: str, train: ProbeSet) -> Measure:
    """Return the area under the curve, or R2 against the training labels' mean."""
    if is_classification(task):
        return area_under_curve
    centre = float(train.labels[task].mean())
    return lambda score, labels: explained(score, labels, centre)


def is_enough(labels: np.ndarray, classify: bool) -> bool:
    ones = labels.sum()
    both = FEWEST_OF_CLASS <= ones <= len(labels) - FEWEST_OF_CLASS
    return len(labels) >= FEWEST and (both or not classify)
