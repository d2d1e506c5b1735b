"""The tasks of probes, and the hand-made features and floors that a vector is compared with.

A probe predicts a label of the states that follow a window from features of the window. All these
states lie in the window's segment, a run of states without a gap in time. A floor is a fit on one
to four numbers that a trader would look at first. Which numbers these are stands here, by task.

One task in training, the outlook (lob/training/objective.py), also asks what follows: the next
move, which best queue is gone first, whether the spread widens. So it teaches some of what is asked
here. Its hand-made targets look as far back and as deep into the book as `hand_made` does.
"""

import numpy as np

from lob.book.states import Book
from lob.windows.reaches import DEPTHS, REACHES

HORIZON = 500  # states after a window that its labels may need
TASKS = {
    "direction": "whether the mid's next move is up (windows whose mid moves within 500 states)",
    "move_10": "whether the mid moves within 10 states",
    "move_50": "whether the mid moves within 50 states",
    "depletion": "whether the best ask is gone before the best bid (windows in which one of them "
    "goes alone within 500 states)",
    "widening": "whether the spread gets wider than now within 50 states",
    "volatility_50": "log(1 + realised volatility in bps) of 50 states",
    "volatility_500": "log(1 + realised volatility in bps) of 500 states",
}

HORIZONS = {  # task -> states that must follow a window; without them it has no label
    "direction": HORIZON,
    "move_10": 10,
    "move_50": 50,
    "depletion": HORIZON,
    "widening": 50,
    "volatility_50": 50,
    "volatility_500": HORIZON,
}
LEAST_HORIZON = 50  # states that follow a window which is worth looking at
REACH_NAMES = (*(str(reach) for reach in REACHES), "all")
HAND_MADE = (  # the names of the columns of `hand_made`
    *(f"imbalance_{levels}" for levels in (*DEPTHS, "all")),
    *("spread", "bid", "ask", "bids", "asks"),
    *(f"{x}_{n}" for n in REACH_NAMES for x in ("return", "volatility", "moves", "duration")),
    *("since_move", "mean_spread"),
)
MOVES = ("moves_20", "moves_80", "moves_all", "since_move")
FLOORS = {  # task -> columns of `hand_made`; of volatility it is persistence alone (below)
    "direction": ("imbalance_1",),
    "move_10": MOVES,
    "move_50": MOVES,
    "depletion": ("imbalance_1",),
    "widening": ("volatility_20", "volatility_80", "volatility_all", "since_move"),
}


def is_classification(task: str) -> bool:
    return not task.startswith("volatility")


def find_floor(task: str, features: np.ndarray, states: int) -> np.ndarray:
    """Return the numbers that a task's floor is fitted on, float64 (W, P).

    features: what `hand_made` returns for windows of `states` states. A task of volatility has one
    number, persistence: the window's volatility, scaled from its own length to the task's.
    """
    if task in FLOORS:
        return features[:, [HAND_MADE.index(name) for name in FLOORS[task]]]
    horizon = int(task.removeprefix("volatility_"))
    past = np.expm1(features[:, HAND_MADE.index("volatility_all")])
    return np.log1p(past * np.sqrt(horizon / (states - 1)))[:, None]


def label_windows(
    book: Book, ends: np.ndarray, following: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the labels of each task, float64 (W,); NaN if a window has none.

    ends: end rows, int64 (W,). following: int64 (W,), how many states after each window may be
    looked at; None: at least HORIZON. A task that needs more than that has no label.
    """
    reach = np.full(len(ends), HORIZON) if following is None else following
    now_and_after = ends[:, None] - 1 + np.minimum(np.arange(HORIZON + 1), reach[:, None])
    bid, ask = best_prices(book, now_and_after)
    mid = bid + ask  # in half ticks
    spread = ask - bid
    moved = mid[:, 1:] != mid[:, :1]
    first_move = 1 + moved.argmax(1)
    mid_at_move = mid[np.arange(len(mid)), first_move]
    bid_gone = first_time(bid[:, 1:] < bid[:, :1])
    ask_gone = first_time(ask[:, 1:] > ask[:, :1])
    labels = {
        "direction": np.where(moved.any(1), mid_at_move > mid[:, 0], np.nan),
        "move_10": moved[:, :10].any(1).astype(float),
        "move_50": moved[:, :50].any(1).astype(float),
        "depletion": np.where(bid_gone != ask_gone, ask_gone < bid_gone, np.nan),
        "widening": (spread[:, 1:51] > spread[:, :1]).any(1).astype(float),
        "volatility_50": log_volatility(returns_bps(mid)[:, :50]),
        "volatility_500": log_volatility(returns_bps(mid)[:, :500]),
    }
    return drop_labels(labels, reach)


def drop_labels(labels: dict[str, np.ndarray], following: np.ndarray) -> dict[str, np.ndarray]:
    """Return labels without those that need more than the `following` states, int64 (W,)."""
    return {task: np.where(following < HORIZONS[task], np.nan, x) for task, x in labels.items()}


def hand_made(book: Book, ends: np.ndarray, states: int) -> np.ndarray:
    """Return features of windows that a trader would start from, float64 (W, 27).

    - of the last state: imbalances over `DEPTHS` levels and over all, log spread, logs of the best
      sizes and of each side's total size;
    - over the last `REACHES` states and over the window: return, realised volatility, number of
      moves of the mid, duration;
    - states since the mid's last move, and the window's mean log spread.
    """
    half = book.depth // 2
    sizes = book.sizes[ends - 1].astype(np.float64)
    bids, asks = sizes[:, half - 1 :: -1], sizes[:, half:]  # from the best level to the deepest
    rows = ends[:, None] - states + np.arange(states)
    bid, ask = best_prices(book, rows)
    log_spread = np.log(ask - bid)
    returns = returns_bps((bid + ask) / 2)
    columns = [imbalance(bids[:, :levels], asks[:, :levels]) for levels in (*DEPTHS, half)]
    columns += [log_spread[:, -1], np.log(bids[:, 0]), np.log(asks[:, 0])]
    columns += [np.log(bids.sum(1)), np.log(asks.sum(1))]
    for reach in (*REACHES, states):
        columns += path_features(returns, book.timestamps[rows], min(reach, states - 1))
    moved_back = returns[:, ::-1] != 0
    since_move = np.where(moved_back.any(1), moved_back.argmax(1), states)
    columns += [np.log1p(since_move), log_spread.mean(1)]
    return np.stack(columns, axis=1)


def best_prices(book: Book, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best bid and ask in ticks, float64 (W, N), of the states `rows`, int64 (W, N)."""
    half = book.depth // 2
    bid, ask = (book.price_ticks[rows, column].astype(np.float64) for column in (half - 1, half))
    return bid, ask


def returns_bps(mid: np.ndarray) -> np.ndarray:
    return np.diff(np.log(mid), axis=1) * 1e4


def log_volatility(returns: np.ndarray) -> np.ndarray:
    """Return log(1 + root of the sum of squares), (W, N) to (W,)."""
    return np.log1p(np.sqrt((returns**2).sum(1)))


def imbalance(bids: np.ndarray, asks: np.ndarray) -> np.ndarray:
    bid, ask = bids.sum(1), asks.sum(1)
    return (bid - ask) / (bid + ask)


def path_features(returns: np.ndarray, times: np.ndarray, reach: int) -> list[np.ndarray]:
    """Return features of the last `reach` states, (W,) each.

    They are the return, the volatility, the log number of moves and the log duration.
    """
    last = returns[:, -reach:]
    milliseconds = (times[:, -1] - times[:, -1 - reach]) / 1e6
    return [
        last.sum(1),
        log_volatility(last),
        np.log1p((last != 0).sum(1)),
        np.log(milliseconds + 1),
    ]


def first_time(happens: np.ndarray) -> np.ndarray:
    """Return the first True column of each row, int64 (W,); HORIZON if there is none."""
    return np.where(happens.any(1), happens.argmax(1), HORIZON)
