"""What a linear probe can tell from the frozen embedding of a window that ends now, beside simpler features.

TASKS are of the states after the window's last one (`now`); none is drawn across a segment's end.

Probes are ridge and L2-regularised logistic regressions, the penalty chosen on validation windows, on the embedding
(last state), on hand-made features, on principal components of the inputs and on a randomly initialised encoder of the
same shape. Training windows end `HORIZON` states before the training split does and test windows begin an embargo
after the cut, so that no label's state is a test window's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book
from lob.evaluation.intervals import interval, verdict
from lob.model.encoder import BookEncoder
from lob.model.inputs import build_inputs
from lob.windows.splits import gather_windows

HORIZON = 500  # states
TASKS = {
    "direction": "whether the next move of the mid goes up (windows whose mid moves within 500 states)",
    "move_10": "whether the mid moves within 10 states",
    "move_50": "whether the mid moves within 50 states",
    "depletion": "whether the best ask is gone before the best bid (windows in which one goes alone within 500 states)",
    "widening": "whether the spread gets wider than now within 50 states",
    "volatility_50": "log(1 + realised volatility in bps) of 50 states",
    "volatility_500": "log(1 + realised volatility in bps) of 500 states",
}
FEATURES = {"ours": "encoder", "hand_made": "hand-made features", "pca": "PCA of inputs", "random": "random weights"}
LEGEND = [
    "Probes: area under the curve (0.5: chance), of volatility R2 (0: its mean); higher is better. Over: 95 % interval "
    "of the encoder's score less that of other features, over blocks of time.", "",
    *(f"- {name}: {meaning}" for name, meaning in TASKS.items()), "",
    f"Features: {'; '.join(f'{name}: {label}' for name, label in FEATURES.items())}.",
]  # fmt: skip
SHARES = (1.0, 0.1, 0.01)  # of the training labels
COMPONENTS = 64
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FEWEST = 20  # labels, and 5 of each class: below them a probe is not fitted or judged
RESAMPLES = 400
Probe = Callable[[np.ndarray], np.ndarray]  # features (W, P) -> score (W,)


def label_windows(book: Book, ends: np.ndarray) -> dict[str, np.ndarray]:
    """Return each task's label, float64 (W,), of windows with at least HORIZON states after them; NaN: none."""
    half = book.depth // 2
    rows = ends[:, None] - 1 + np.arange(HORIZON + 1)
    bid, ask = (book.price_ticks[rows, column].astype(np.float64) for column in (half - 1, half))
    mid, spread = bid + ask, ask - bid  # the mid in half ticks
    moved = mid[:, 1:] != mid[:, :1]
    moves = moved.any(1)
    at_move = mid[np.arange(len(mid)), 1 + moved.argmax(1)]
    gone_bid, gone_ask = bid[:, 1:] < bid[:, :1], ask[:, 1:] > ask[:, :1]
    first_bid, first_ask = (np.where(x.any(1), x.argmax(1), HORIZON) for x in (gone_bid, gone_ask))
    returns = np.diff(np.log(mid), axis=1) * 1e4
    labels = {
        "direction": np.where(moves, at_move > mid[:, 0], np.nan),
        "move_10": moved[:, :10].any(1).astype(float),
        "move_50": moved[:, :50].any(1).astype(float),
        "depletion": np.where(first_bid != first_ask, first_ask < first_bid, np.nan),
        "widening": (spread[:, 1:51] > spread[:, :1]).any(1).astype(float),
    }
    for states in (50, 500):
        labels[f"volatility_{states}"] = np.log1p(np.sqrt((returns[:, :states] ** 2).sum(1)))
    return labels


def hand_made(book: Book, ends: np.ndarray, states: int) -> np.ndarray:
    """Features that a trader would start from, float64 (W, 27), of the window's states alone.

    Imbalances at the best and over 3, 10 and all levels; spread; best sizes; depth of each side; returns, realised
    volatility, number of moves and duration of the last 5, 20, 80 states and the window; states since the last move.
    """
    half = book.depth // 2
    now = ends - 1
    sizes = book.sizes[now].astype(np.float64)
    bids, asks = sizes[:, half - 1 :: -1], sizes[:, half:]
    columns = []
    for levels in (1, 3, 10, half):
        bid, ask = bids[:, :levels].sum(1), asks[:, :levels].sum(1)
        columns.append((bid - ask) / (bid + ask))
    rows = ends[:, None] - states + np.arange(states)
    bid, ask = (book.price_ticks[rows, column].astype(np.float64) for column in (half - 1, half))
    mid, times = (bid + ask) / 2, book.timestamps[rows]
    columns += [np.log(ask - bid)[:, -1], np.log(bids[:, 0]), np.log(asks[:, 0])]
    columns += [np.log(bids.sum(1)), np.log(asks.sum(1))]
    returns = np.diff(np.log(mid), axis=1) * 1e4
    for reach in (min(reach, states - 1) for reach in (5, 20, 80, states)):
        last = returns[:, -reach:]
        columns += [last.sum(1), np.log1p(np.sqrt((last**2).sum(1))), np.log1p((last != 0).sum(1)),
                    np.log((times[:, -1] - times[:, -1 - reach]) / 1e6 + 1)]  # fmt: skip
    moved = returns[:, ::-1] != 0
    columns += [np.log1p(np.where(moved.any(1), moved.argmax(1), states)), np.log(ask - bid).mean(1)]
    return np.stack(columns, axis=1)


@torch.inference_mode()
def encode_windows(models: dict[str, BookEncoder], book: Book, ends: np.ndarray, batch_size: int,
                   device: torch.device) -> dict[str, np.ndarray]:  # fmt: skip
    """Features by name of windows that end now, nothing masked, float64 (W, P), all from the same inputs.

    Of each of `models`, of one shape, the last state's hidden vector; `pca`: the last state's input values, and their
    means over the last 16 states and over the window.
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
        found["pca"].append(torch.cat([values[:, -1], values[:, -16:].mean(1), values.mean(1)], dim=1).cpu())
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def fit_probe(features: np.ndarray, labels: np.ndarray, penalty: float, classify: bool) -> Probe:
    """Fit a logistic regression (`classify`) or a ridge regression, both linear in standardised features.

    features: float64 (W, P), labels: float64 (W,). The penalty is that of the mean loss: sum of losses / W +
    penalty / 2 * sum of squared weights, of ridge regression without the 2; the constant is free. Return the function
    from features to logits, or to predictions, (W,).
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = len(features)
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
    """Return the share of (one, zero) pairs that the score orders rightly, ties half; NaN if a class is missing.

    It is computed from ranks (Mann and Whitney). scikit-learn's roc_auc_score is the same number, but its checks take
    a millisecond or more, and a bootstrap asks for thousands of such numbers.
    """
    from scipy.stats import rankdata

    ones = labels == 1
    positive, negative = ones.sum(), (~ones).sum()
    if not positive or not negative:
        return float("nan")
    right = rankdata(score)[ones].sum() - positive * (positive + 1) / 2
    return float(right / (positive * negative))


def explained(score: np.ndarray, labels: np.ndarray, centre: float) -> float:
    """R2 against the training labels' mean."""
    return float(1 - np.sum((score - labels) ** 2) / max(np.sum((labels - centre) ** 2), 1e-300))


def choose_probe(train: tuple[np.ndarray, np.ndarray], judge: tuple[np.ndarray, np.ndarray], classify: bool) -> Probe:
    """The probe whose penalty has the least log-loss or squared error on `judge` (features, labels)."""
    probes = [fit_probe(*train, penalty, classify) for penalty in PENALTIES]
    losses = [log_loss(p(judge[0]), judge[1]) if classify else np.mean((p(judge[0]) - judge[1]) ** 2) for p in probes]
    return probes[int(np.argmin(losses))]


def paired_interval(measure, ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, block: np.ndarray, seed: int):
    """95 % interval of measure(ours) - measure(theirs), blocks of time drawn with replacement; and their number."""
    members = [np.flatnonzero(block == name) for name in np.unique(block)]
    rng, found = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        some = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        found.append(measure(ours[some], labels[some]) - measure(theirs[some], labels[some]))
    return *interval(found, measure(ours, labels) - measure(theirs, labels), len(members)), len(members)


@dataclass
class ProbeSet:
    """Features by name, float64 (W, P) each, labels by task, and blocks of time, of a split's windows."""

    features: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    block: np.ndarray


def make_sets(model: BookEncoder, splits: list[list[tuple[Book, np.ndarray]]], batch_size: int, block_states: int,
              device: torch.device, seed: int) -> list[ProbeSet]:  # fmt: skip
    """Features and labels of training, validation and test windows, each a list of (book, end rows)."""
    torch.manual_seed(seed)
    untrained = BookEncoder(model.config).to(device).eval()
    sets = []
    for windows in splits:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in FEATURES}
        labels: dict[str, list[np.ndarray]] = {task: [] for task in TASKS}
        blocks = []
        for number, (book, ends) in enumerate(windows):
            for name, x in encode_windows({"ours": model, "random": untrained}, book, ends, batch_size, device).items():
                parts[name].append(x)
            parts["hand_made"].append(hand_made(book, ends, model.config.temporal_dim))
            for task, label in label_windows(book, ends).items():
                labels[task].append(label)
            blocks.append(number * 2**40 + ends // block_states)
        features, targets = ({name: np.concatenate(part) for name, part in x.items()} for x in (parts, labels))
        sets.append(ProbeSet(features, targets, np.concatenate(blocks)))
    centre = sets[0].features["pca"].mean(0)
    axes = np.linalg.svd(sets[0].features["pca"] - centre, full_matrices=False)[2][:COMPONENTS].T
    for part in sets:
        part.features["pca"] = (part.features["pca"] - centre) @ axes
    return sets


def probe_task(task: str, sets: list[ProbeSet], seed: int) -> dict[str, float | str]:
    """Return each kind of features' scores on a task, and the intervals of ours less each; empty: too few labels.

    Metrics: AUC (or R2) by the features' name, at 10 and 1 % of the labels with _10pct and _1pct, log-losses with
    _log_loss; `over_<name>_low` and `_high`: the interval; `verdict_<name>`; `note`, all verdicts.
    """
    classify = not task.startswith("volatility")
    here = [np.isfinite(part.labels[task]) for part in sets]
    labels = [part.labels[task][keep] for part, keep in zip(sets, here, strict=True)]
    if not all(enough(label, classify) for label in labels):
        return {}
    order = np.random.default_rng(seed).permutation(len(labels[0]))
    facts: dict[str, float | str] = {}
    answers = {}
    for share in SHARES:
        some = order[: round(share * len(order))]
        if not enough(labels[0][some], classify):
            continue
        suffix = "" if share == 1 else f"_{share * 100:.0f}pct"
        mean = float(labels[0][some].mean())
        for name in FEATURES:
            x = [part.features[name][keep] for part, keep in zip(sets, here, strict=True)]
            probe = choose_probe((x[0][some], labels[0][some]), (x[1], labels[1]), classify)
            score = probe(x[2])
            facts[name + suffix] = area_under_curve(score, labels[2]) if classify else explained(score, labels[2], mean)
            if classify:
                facts[f"{name}_log_loss{suffix}"] = log_loss(score, labels[2])
            if share == 1:
                answers[name] = score
    centre = float(labels[0].mean())
    measure = area_under_curve if classify else lambda score, label: explained(score, label, centre)
    for name in list(FEATURES)[1:]:
        low, high, blocks = paired_interval(measure, answers["ours"], answers[name], labels[2], sets[2].block[here[2]],
                                            seed)  # fmt: skip
        facts |= {f"over_{name}_low": low, f"over_{name}_high": high, "blocks": blocks,
                  f"verdict_{name}": verdict(-high, -low)}  # fmt: skip
    facts["note"] = "; ".join(f"over {name}: {facts[f'verdict_{name}']}" for name in list(FEATURES)[1:])
    return facts


def enough(labels: np.ndarray, classify: bool) -> bool:
    return len(labels) >= FEWEST and (not classify or 5 <= labels.sum() <= len(labels) - 5)
