"""Fits of probes: linear models and boosted trees, with settings chosen on validation windows.

What was chosen is then fitted on training and validation windows together: the latter are nearer in
time to what is predicted.

A probe predicts a label from features of a window, (W, P) to (W,). Of a task with two classes it
predicts logits. All fits are scikit-learn's.
"""

from collections.abc import Callable

import numpy as np

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# A vector that is added to a few known features is penalised this many times as much as they are.
VECTOR_PENALTIES = (1.0, 10.0, 100.0, 1000.0, np.inf)
COMPONENTS = (4, 16, None)  # principal components of an added vector; None: the vector itself
LEAVES = (4, 16)  # of a boosted tree
TREES = 150
Probe = Callable[[np.ndarray], np.ndarray]
Windows = tuple[np.ndarray, np.ndarray]  # features (W, P) and labels (W,), float64


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    penalty: float,
    classify: bool,
    weights: np.ndarray | None = None,
) -> Probe:
    """Fit a logistic regression (`classify`) or a ridge regression on standardised features.

    features: float64 (W, P); labels: float64 (W,). The logistic regression minimises the mean log
    loss + penalty / 2 * the sum of squared weights, the ridge regression the mean squared error +
    penalty * that sum. The constant is not penalised. weights: (P,), factors of the standardised
    features; a factor of 1/10 is a penalty 100 times as large. Return the function from features to
    logits or, of the ridge regression, to predictions, (W,).
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    count = len(features)  # scikit-learn's penalties are relative to sums, ours to means
    if classify:
        linear = LogisticRegression(C=1 / (penalty * count), solver="newton-cholesky", tol=1e-8)
    else:
        linear = Ridge(alpha=penalty * count)
    weigh = FunctionTransformer(lambda x: x if weights is None else x * weights)
    model = make_pipeline(StandardScaler(), weigh, linear).fit(features, labels)
    return model.decision_function if classify else model.predict


def choose_linear(
    train: Windows,
    judge: Windows,
    classify: bool,
    known: int | None = None,
    may_leave_out: bool = False,
    refit: bool = True,
) -> Probe:
    """Return a linear probe: the penalty is chosen on `judge`, then it is fitted on both sets.

    known: number of the first columns that are known features; the others are a vector. Then a
    number of principal components of the vector is chosen too, and a penalty of its own, which may
    be infinite. may_leave_out: the known features may be left out instead. refit: if False the
    probe stays fitted on `train` alone.
    """
    best, settings = np.inf, None
    for count in COMPONENTS if known is not None else (None,):
        reduce = reduce_vector(train[0], known, count)
        some, judged = reduce(train[0]), reduce(judge[0])
        for weights in list_weights(some.shape[1], known, may_leave_out):
            for penalty in PENALTIES:
                probe = fit_probe(some, train[1], penalty, classify, weights)
                loss = measure_loss(probe(judged), judge[1], classify)
                if loss < best:
                    best, settings = loss, (count, weights, penalty)
    assert settings is not None, "no penalty gave a finite loss"
    count, weights, penalty = settings
    features, labels = join_windows(train, judge) if refit else train
    reduce = reduce_vector(features, known, count)
    predict = fit_probe(reduce(features), labels, penalty, classify, weights)
    return lambda x: predict(reduce(x))


def list_weights(columns: int, known: int | None, may_leave_out: bool) -> list[np.ndarray | None]:
    """Return the weights of the columns that are tried: each group's penalty, or one for all."""
    if known is None:
        return [None]
    groups = [(1.0, 1 / np.sqrt(penalty)) for penalty in VECTOR_PENALTIES]
    if may_leave_out:
        groups.append((0.0, 1.0))
    return [np.repeat(weights, [known, columns - known]) for weights in groups]


def join_windows(train: Windows, judge: Windows) -> Windows:
    return np.concatenate([train[0], judge[0]]), np.concatenate([train[1], judge[1]])


def reduce_vector(features: np.ndarray, known: int | None, count: int | None) -> Probe:
    """Return a function that replaces all columns from `known` on by principal components of them.

    features: float64 (W, P), whose first `count` components are taken, of standardised columns.
    """
    if known is None or count is None:
        return lambda x: x
    vector = features[:, known:]
    centre, spread = vector.mean(0), np.maximum(vector.std(0), 1e-12)
    axes = np.linalg.svd((vector - centre) / spread, full_matrices=False)[2][:count].T
    return lambda x: np.hstack([x[:, :known], (x[:, known:] - centre) / spread @ axes])


def choose_boosted(train: Windows, judge: Windows, classify: bool, seed: int) -> Probe:
    """Return boosted trees: size and number are chosen on `judge`, then fitted on both sets."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor

    def fit(windows: Windows, leaves: int, trees: int):
        model = kind(
            learning_rate=0.05,
            max_leaf_nodes=leaves,
            max_iter=trees,
            early_stopping=False,
            random_state=seed,
        )
        return model.fit(*windows)

    found = []
    for leaves in LEAVES:
        model = fit(train, leaves, TREES)
        stages = model.staged_decision_function if classify else model.staged_predict
        losses = [measure_loss(stage.ravel(), judge[1], classify) for stage in stages(judge[0])]
        found.append((min(losses), leaves, 1 + int(np.argmin(losses))))
    _, leaves, trees = min(found)
    best = fit(join_windows(train, judge), leaves, trees)
    return best.decision_function if classify else best.predict


def measure_loss(score: np.ndarray, labels: np.ndarray, classify: bool) -> float:
    return log_loss(score, labels) if classify else float(np.mean((score - labels) ** 2))


def log_loss(score: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log likelihood (nats) of logits.

    scikit-learn's log_loss gives the same number, but its checks take milliseconds, and each stage
    of boosted trees asks for one.
    """
    return float(np.mean(np.logaddexp(0, score) - labels * score))


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
    """Return R2 against the constant `centre`."""
    unexplained = np.sum((score - labels) ** 2)
    total = max(np.sum((labels - centre) ** 2), 1e-300)
    return float(1 - unexplained / total)


def correlate(score: np.ndarray, labels: np.ndarray) -> float:
    """Return the correlation; 0 if one of the two is constant, and so says nothing of the other."""
    if np.ptp(score) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(np.corrcoef(score, labels)[0, 1])
