"""Linear probes: what a linear model can predict from the frozen embedding of a window.

Probes are ridge and L2-regularised logistic regressions. They are fitted on the embedding of the
window's last state and, to compare, on hand-made features, on principal components of the inputs
and on the embedding of a randomly initialised encoder of the same shape. The penalty is chosen on
validation windows. Training windows end at least `HORIZON` states before the training split does,
and test windows begin an embargo after the cut. So no training label depends on a state of a test
window.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book
from lob.evaluation.intervals import interval, verdict
from lob.evaluation.probe_tasks import TASKS, hand_made, is_classification, label_windows
from lob.model.encoder import BookEncoder
from lob.model.inputs import build_inputs
from lob.windows.splits import gather_windows

FEATURES = {
    "ours": "encoder",
    "hand_made": "hand-made features",
    "pca": "PCA of inputs",
    "random": "random weights",
}
OTHERS = [name for name in FEATURES if name != "ours"]
SHARES = {1.0: "", 0.1: "_10pct", 0.01: "_1pct"}  # share of the training labels -> metric's ending
COMPONENTS = 64  # principal components of the inputs
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FEWEST = 20  # labels, with 5 of each class: with fewer a probe is neither fitted nor judged
FEWEST_OF_CLASS = 5
RESAMPLES = 400  # fewer than for a mean (intervals.py), since each AUC takes a sort
PAIR_OFFSET = 2**40  # keeps the blocks of time of different pairs apart
Probe = Callable[[np.ndarray], np.ndarray]  # features (W, P) -> predictions (W,), or logits
Measure = Callable[[np.ndarray, np.ndarray], float]  # predictions, labels -> higher is better


@dataclass
class ProbeSet:
    """A split's windows, as probes need them."""

    features: dict[str, np.ndarray]  # by name, float64 (W, P)
    labels: dict[str, np.ndarray]  # by task, float64 (W,), NaN where there is none
    block: np.ndarray  # int64 (W,), the block of time in which each window lies


@dataclass(frozen=True)
class Lead:
    """The 95 % interval of the encoder's score less that of other features, and what it says."""

    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class ProbeResult:
    """What probes found for one task.

    scores: metric -> value. A metric's name is that of the features for the AUC (area under the
    curve), or for volatility the R2. For log losses (nats) `_log_loss` follows, and then `_10pct`
    or `_1pct` if only that share of the training labels was used. leads: name of the other features
    -> the encoder's lead over them.
    """

    scores: dict[str, float]
    leads: dict[str, Lead]
    blocks: int


@torch.inference_mode()
def encode_windows(
    models: dict[str, BookEncoder],
    book: Book,
    ends: np.ndarray,
    batch_size: int,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Return features by name, float64 (W, P), of windows in which nothing is masked.

    Each of `models`, which have one shape, gives its hidden vector of the last state. `pca` holds
    the input values of the last state, and their means over the last 16 states and over the window;
    `make_sets` turns it into principal components.
    """
    config = next(iter(models.values())).config
    found: dict[str, list[Tensor]] = {name: [torch.empty(0, config.width)] for name in models}
    found["pca"] = [torch.empty(0, 6 * config.depth)]
    for begin in range(0, len(ends), batch_size):
        windows = gather_windows(book, ends[begin : begin + batch_size], config.temporal_dim)
        price, sizes = (torch.from_numpy(x).to(device) for x in windows)
        tokens, _, values, _ = build_inputs(price, sizes, None, config)
        for name, model in models.items():
            found[name].append(model.encode(tokens)[:, -1].cpu())
        values = values.flatten(2)
        summary = [values[:, -1], values[:, -16:].mean(1), values.mean(1)]
        found["pca"].append(torch.cat(summary, dim=1).cpu())
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def make_sets(
    model: BookEncoder,
    splits: list[list[tuple[Book, np.ndarray]]],
    batch_size: int,
    block_states: int,
    device: torch.device,
    seed: int,
) -> list[ProbeSet]:
    """Return features and labels of training, validation and test windows.

    splits: windows of each, as (book, end rows). The principal axes are those of the training
    windows.
    """
    torch.manual_seed(seed)
    untrained = BookEncoder(model.config).to(device).eval()
    models = {"ours": model, "random": untrained}
    sets = [make_set(models, windows, batch_size, block_states, device) for windows in splits]
    inputs = sets[0].features["pca"]
    centre = inputs.mean(0)
    axes = np.linalg.svd(inputs - centre, full_matrices=False)[2][:COMPONENTS].T
    for split in sets:
        split.features["pca"] = (split.features["pca"] - centre) @ axes
    return sets


def make_set(
    models: dict[str, BookEncoder],
    windows: list[tuple[Book, np.ndarray]],
    batch_size: int,
    block_states: int,
    device: torch.device,
) -> ProbeSet:
    """Return features and labels of one split's windows, with `pca` still in the inputs' axes."""
    features: dict[str, list[np.ndarray]] = {name: [] for name in FEATURES}
    labels: dict[str, list[np.ndarray]] = {task: [] for task in TASKS}
    blocks = []
    states = models["ours"].config.temporal_dim
    for number, (book, ends) in enumerate(windows):
        encoded = encode_windows(models, book, ends, batch_size, device)
        encoded["hand_made"] = hand_made(book, ends, states)
        for name, x in encoded.items():
            features[name].append(x)
        for task, label in label_windows(book, ends).items():
            labels[task].append(label)
        blocks.append(number * PAIR_OFFSET + ends // block_states)
    return ProbeSet(
        {name: np.concatenate(parts) for name, parts in features.items()},
        {task: np.concatenate(parts) for task, parts in labels.items()},
        np.concatenate(blocks),
    )


def fit_probe(features: np.ndarray, labels: np.ndarray, penalty: float, classify: bool) -> Probe:
    """Fit a logistic regression (`classify`) or a ridge regression on standardised features.

    features: float64 (W, P); labels: float64 (W,). The logistic regression minimises the mean log
    loss + penalty / 2 * the sum of squared weights, the ridge regression the mean squared error +
    penalty * that sum. The constant is not penalised. Return the function from features to logits
    or, of the ridge regression, to predictions, (W,).
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = len(features)  # scikit-learn's penalties are relative to sums, ours to means
    if classify:
        linear = LogisticRegression(C=1 / (penalty * count), solver="newton-cholesky", tol=1e-8)
    else:
        linear = Ridge(alpha=penalty * count)
    model = make_pipeline(StandardScaler(), linear).fit(features, labels)
    return model.decision_function if classify else model.predict


def log_loss(score: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log likelihood (nats) of logits."""
    from scipy.special import expit
    from sklearn import metrics

    return float(metrics.log_loss(labels, expit(score), labels=[0, 1]))


def area_under_curve(score: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of pairs (a one, a zero) that the score orders rightly; a tie counts half.

    It is NaN if a class is missing. It is computed from ranks (Mann and Whitney). scikit-learn's
    roc_auc_score gives the same number, but its checks take a millisecond or more, and a bootstrap
    asks for thousands of such numbers.
    """
    from scipy.stats import rankdata

    ones = labels == 1
    positive, negative = ones.sum(), (~ones).sum()
    if not positive or not negative:
        return float("nan")
    right = rankdata(score)[ones].sum() - positive * (positive + 1) / 2
    return float(right / (positive * negative))


def explained(score: np.ndarray, labels: np.ndarray, centre: float) -> float:
    """Return R2 against the constant `centre`, the mean of the training labels."""
    unexplained = np.sum((score - labels) ** 2)
    total = max(np.sum((labels - centre) ** 2), 1e-300)
    return float(1 - unexplained / total)


def choose_probe(
    train: tuple[np.ndarray, np.ndarray], judge: tuple[np.ndarray, np.ndarray], classify: bool
) -> Probe:
    """Return the probe that is fitted on `train` and has the penalty of the least loss on `judge`.

    Both are (features, labels).
    """
    features, labels = judge
    probes = [fit_probe(*train, penalty, classify) for penalty in PENALTIES]
    losses = []
    for probe in probes:
        score = probe(features)
        losses.append(log_loss(score, labels) if classify else np.mean((score - labels) ** 2))
    return probes[int(np.argmin(losses))]


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


def probe_task(task: str, sets: list[ProbeSet], seed: int) -> ProbeResult | None:
    """Return what probes score on sets[2] that were fitted on sets[0] and chosen on sets[1].

    Return None if one of the sets has too few labels.
    """
    classify = is_classification(task)
    labelled = [keep_labelled(split, task) for split in sets]
    labels = [split.labels[task] for split in labelled]
    if not all(is_enough(label, classify) for label in labels):
        return None
    order = np.random.default_rng(seed).permutation(len(labels[0]))
    scores: dict[str, float] = {}
    answers = {}
    for share, suffix in SHARES.items():
        some = order[: round(share * len(order))]
        if not is_enough(labels[0][some], classify):
            continue
        measure = make_measure(classify, labels[0][some])
        for name in FEATURES:
            train, judge, test = (split.features[name] for split in labelled)
            probe = choose_probe((train[some], labels[0][some]), (judge, labels[1]), classify)
            answer = probe(test)
            scores[name + suffix] = measure(answer, labels[2])
            if classify:
                scores[f"{name}_log_loss{suffix}"] = log_loss(answer, labels[2])
            if share == 1:
                answers[name] = answer
    measure = make_measure(classify, labels[0])
    block = labelled[2].block
    drawn = {name: resample(measure, x, labels[2], block, seed) for name, x in answers.items()}
    blocks = len(np.unique(block))
    leads = {}
    for name in OTHERS:
        difference = scores["ours"] - scores[name]
        low, high = interval(drawn["ours"] - drawn[name], difference, blocks)
        leads[name] = Lead(low, high, verdict(-high, -low))  # of errors, so with the sign changed
    return ProbeResult(scores, leads, blocks)


def keep_labelled(split: ProbeSet, task: str) -> ProbeSet:
    """Return the windows that have a label of the task."""
    here = np.isfinite(split.labels[task])
    features = {name: x[here] for name, x in split.features.items()}
    return ProbeSet(features, {task: split.labels[task][here]}, split.block[here])


def make_measure(classify: bool, training_labels: np.ndarray) -> Measure:
    """Return the area under the curve, or R2 against the training labels' mean."""
    if classify:
        return area_under_curve
    centre = float(training_labels.mean())
    return lambda score, labels: explained(score, labels, centre)


def is_enough(labels: np.ndarray, classify: bool) -> bool:
    ones = labels.sum()
    both = FEWEST_OF_CLASS <= ones <= len(labels) - FEWEST_OF_CLASS
    return len(labels) >= FEWEST and (both or not classify)
