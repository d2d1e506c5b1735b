"""Draw a sample of windows in which rare market conditions are as frequent as common ones.

    python create_balanced_dataset.py
    python create_balanced_dataset.py --strata=joint_cells --windows=50000 --min_stride=64

Reads `training_data/window_statistics/<PAIR>.npy` and writes `training_data/balanced_samples/<PAIR>.npy`, a structured
array sorted by time (end_row int64, stratum int32, weight float64: how often the window is drawn an epoch), its
`.json`, and a picture of each statistic before and after. Training, validation and test are cut by one calendar for
all pairs and sampled apart; limits, standardisation and strata are fitted on the training share alone.
"""

config = {
    "data_dir": "training_data",  # folder that holds window_statistics/ and the rest
    "pairs": None,  # list of pairs; None: all under window_statistics/
    "temporal_dim": 256,  # states a window, as in exploration_main.py
    "split_ratios": [0.7, 0.25, 0.05],  # train, validation, test: shares of the recorded time
    "windows": 20_000,  # windows to draw in all, in the proportions of split_ratios
    "pair_weights": None,  # share of each pair by name, {"BTC_USD": 2.0}; None: equal shares
    "strata": "joint_cells",  # joint_cells of volatility x spread x direction, equal_width or quantile of a composite
    "bins": 10,  # strata of the composite, or about bins^(1/3) a dimension of the joint cells, at least 3
    "composite_weights": [0.4, 0.2, 0.3, 0.1],  # of standardised |mid-price change|, spread, deviation, |mean return|
    "outlier_std": 3.0,  # windows beyond this many deviations in any of the four are set aside
    "min_stride": 16,  # least distance of two sampled window ends, in states
    "oversample": False,  # repeat windows of a stratum that has too few (their weight grows)
    "seed": 0,  # the same seed gives the same sample on every machine
    "plots": True,  # draw the pictures
}

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"pairs": list, "pair_weights": dict},
        choices={"strata": ("joint_cells", "equal_width", "quantile")},
    )  # fmt: skip

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lob.files import Book, find_pairs, identity, new_table, open_book, open_table
from lob.windows import SPLITS, calendar_cuts, count_shared_states, split_of_windows, split_rows

SAMPLE = np.dtype([("end_row", np.int64), ("stratum", np.int32), ("weight", np.float64)])
SCORED = ("mid_price_change_bps", "average_spread_bps", "std_tick_returns_bps", "mean_tick_returns_bps")
SIGNED = (True, False, False, True)  # of these the composite takes the absolute value
BLOCK_ROWS = 1 << 20


@dataclass
class Pair:
    """One pair's book, its statistics and the rows that each split may use."""

    book: Book
    rows: np.ndarray  # structured, see exploration_main.py
    rows_of_splits: np.ndarray  # int64 (3, 2)

    def blocks(self):
        """Yield the statistics in blocks with the split of each window."""
        temporal_dim = int(self.rows["end_row"][0] - self.book.segment_starts[0])
        for begin in range(0, len(self.rows), BLOCK_ROWS):
            block = np.asarray(self.rows[begin : begin + BLOCK_ROWS])
            yield block, split_of_windows(block["end_row"], temporal_dim, self.rows_of_splits)


def main(config: dict) -> int:
    check_config(config)
    folder = Path(config["data_dir"])
    names = find_pairs(folder, "window_statistics", config["pairs"], "exploration_main.py")
    books = [open_book(folder / "book_states" / name) for name in names]
    cuts = calendar_cuts([b.timestamps for b in books], [b.segment_starts for b in books], config["split_ratios"])
    pairs = []
    for book in books:
        rows, _ = open_table(folder / "window_statistics" / f"{book.pair}.npy", "exploration_main.py", identity(book),
                             temporal_dim=config["temporal_dim"])  # fmt: skip
        pairs.append(Pair(book, rows, split_rows(book.timestamps, cuts, config["temporal_dim"])))
    scale = Scale.fit(pairs, config["outlier_std"])
    strata = Strata.fit(pairs, scale, config)
    shares = pair_shares(config["pair_weights"], names)
    samples = [draw_pair(pair, scale, strata, config, share) for pair, share in zip(pairs, shares, strict=True)]
    for pair, (chosen, facts) in zip(pairs, samples, strict=True):
        save(pair, chosen, facts, cuts, config, folder)
    return 0


def check_config(config: dict) -> None:
    ratios, weights = config["split_ratios"], config["composite_weights"]
    if len(ratios) != 3 or any(not isinstance(r, int | float) or r < 0 for r in ratios) or not ratios[0] > 0:
        raise InputError(f"split_ratios = {ratios} must be three shares: train (above 0), validation, test")
    if len(weights) != len(SCORED):
        raise InputError(f"composite_weights = {weights} must be {len(SCORED)} numbers, one for each of {SCORED}")
    for key, least in (("windows", 1), ("bins", 2), ("min_stride", 1), ("temporal_dim", 2)):
        if config[key] < least:
            raise InputError(f"{key} = {config[key]} must be at least {least}")
    if not config["outlier_std"] > 0:
        raise InputError(f"outlier_std = {config['outlier_std']} must be positive")


def pair_shares(weights: dict | None, names: list[str]) -> list[float]:
    weights = weights if weights is not None else dict.fromkeys(names, 1.0)
    if set(weights) != set(names) or any(not w > 0 for w in weights.values()):
        raise InputError(f"pair_weights = {weights} must give a positive share to each of {', '.join(names)}")
    return [weights[name] / sum(weights.values()) for name in names]


@dataclass
class Scale:
    """Mean and deviation of the scored statistics over the training windows of all pairs, and the outlier limit."""

    mean: np.ndarray
    deviation: np.ndarray
    outlier_std: float

    @classmethod
    def fit(cls, pairs: list[Pair], outlier_std: float) -> "Scale":
        count, mean, m2 = 0, np.zeros(len(SCORED)), np.zeros(len(SCORED))
        for pair in pairs:
            for block, split in pair.blocks():
                values = scored(block[split == 0])
                if not np.isfinite(values).all():
                    bad = SCORED[int(np.argmin(np.isfinite(values).all(axis=0)))]
                    raise InputError(
                        f"{pair.book.pair}: {bad} is not finite in a window: run exploration_main.py again"
                    )
                if len(values):  # joined as Chan et al. (1979)
                    gap = values.mean(axis=0) - mean
                    m2 += ((values - values.mean(axis=0)) ** 2).sum(axis=0)
                    m2 += gap**2 * count * len(values) / (count + len(values))
                    mean += gap * len(values) / (count + len(values))
                    count += len(values)
        if count == 0:
            raise InputError("no window lies wholly in the training share: lower temporal_dim or raise split_ratios[0]")
        deviation = np.sqrt(m2 / count)
        if (deviation == 0).any():
            name = SCORED[int(np.argmin(deviation))]
            raise InputError(f"{name} is constant over all {count:,} training windows: there is nothing to balance")
        return cls(mean, deviation, outlier_std)

    def standardise(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return z (W, 4) and whether each window is inside the outlier limit."""
        z = (scored(block) - self.mean) / self.deviation
        return z, (np.abs(z) <= self.outlier_std).all(axis=1)


def scored(block: np.ndarray) -> np.ndarray:
    return np.stack([block[name] for name in SCORED], axis=1)


@dataclass
class Strata:
    """Where the strata's edges lie, fitted on the training windows inside the outlier limit."""

    method: str
    weights: np.ndarray
    edges: list[np.ndarray]  # inner edges, one array a dimension

    @classmethod
    def fit(cls, pairs: list[Pair], scale: Scale, config: dict) -> "Strata":
        found = cls(config["strata"], np.array(config["composite_weights"], dtype=np.float64), [])
        parts = []
        for pair in pairs:
            for block, split in pair.blocks():
                z, inside = scale.standardise(block)
                parts.append(found.measures(z)[inside & (split == 0)].astype(np.float32))
        values = np.concatenate(parts)
        if found.method == "quantile":
            found.edges = [np.quantile(values[:, 0], np.linspace(0, 1, config["bins"] + 1)[1:-1])]
        else:
            count = config["bins"] if found.method == "equal_width" else max(3, round(config["bins"] ** (1 / 3)))
            found.edges = [np.linspace(column.min(), column.max(), count + 1)[1:-1] for column in values.T]
        return found

    def measures(self, z: np.ndarray) -> np.ndarray:
        """What is cut into strata: the composite (W, 1), or volatility, spread and direction (W, 3)."""
        if self.method == "joint_cells":
            return np.stack([z[:, 2], z[:, 1], z[:, 0]], axis=1)
        return (np.where(SIGNED, np.abs(z), z) @ self.weights)[:, None]

    def assign(self, z: np.ndarray) -> np.ndarray:
        """Return int32 (W,): the stratum of each window."""
        stratum = np.zeros(len(z), dtype=np.int32)
        for edges, column in zip(self.edges, self.measures(z).T, strict=True):
            stratum = stratum * (len(edges) + 1) + np.searchsorted(edges, column, side="right").astype(np.int32)
        return stratum


def draw_pair(pair: Pair, scale: Scale, strata: Strata, config: dict, share: float) -> tuple[np.ndarray, dict]:
    """Draw one pair's windows; return them as SAMPLE, sorted by time, and what was done."""
    digest = int.from_bytes(hashlib.sha256(pair.book.pair.encode()).digest()[:8], "little")
    rng = np.random.default_rng([config["seed"], digest])
    ends, stratum, split, outliers = [], [], [], 0
    for block, split_of in pair.blocks():
        z, inside = scale.standardise(block)
        outliers += int((~inside & (split_of >= 0)).sum())
        keep = inside & (split_of >= 0)
        ends.append(block["end_row"][keep])
        stratum.append(strata.assign(z[keep]))
        split.append(split_of[keep])
    end_row, stratum_of, split_of = np.concatenate(ends), np.concatenate(stratum), np.concatenate(split)
    facts: dict = {"outliers": outliers, "splits": {}}
    chosen = []
    for index, name in enumerate(SPLITS):
        wanted = round(config["windows"] * share * config["split_ratios"][index] / sum(config["split_ratios"]))
        mine = np.flatnonzero(split_of == index)
        rows = draw_balanced(end_row[mine], stratum_of[mine], wanted, config, rng)
        facts["splits"][name] = {"available": len(mine), "wanted": wanted, "windows": len(rows)}
        chosen.append(rows)
    facts["shared_states"] = count_shared_states([c["end_row"] for c in chosen], config["temporal_dim"], pair.book.rows)
    sample = np.concatenate(chosen)
    return sample[np.argsort(sample["end_row"], kind="stable")], facts


def draw_balanced(
    ends: np.ndarray, strata: np.ndarray, wanted: int, config: dict, rng: np.random.Generator
) -> np.ndarray:
    """Draw `wanted` windows, the same number from each stratum, none nearer than `min_stride` to another.

    Rare strata choose first, so that the stride takes their windows last. A stratum with too few gives what it has;
    under `oversample` its weight makes up for it.
    """
    names, counts = np.unique(strata, return_counts=True)
    quota = -(-wanted // max(len(names), 1))
    taken = np.zeros(int(ends.max()) // config["min_stride"] + 3 if len(ends) else 0, dtype=np.int64)
    chosen = [np.zeros(0, dtype=SAMPLE)]
    for name in names[np.argsort(counts, kind="stable")]:
        candidates = rng.permutation(ends[strata == name])
        picked = pick_apart(candidates, quota, config["min_stride"], taken)
        rows = np.zeros(len(picked), dtype=SAMPLE)
        rows["end_row"], rows["stratum"], rows["weight"] = picked, name, 1.0
        if config["oversample"] and 0 < len(picked) < quota:
            rows["weight"] = quota / len(picked)
        chosen.append(rows)
    return np.concatenate(chosen)


def pick_apart(candidates: np.ndarray, quota: int, stride: int, taken: np.ndarray) -> list[int]:
    """Take up to `quota` candidates in order, each at least `stride` from all taken before.

    `taken` holds the end taken in each cell of `stride` states (0: none), so that only three cells are looked at.
    """
    picked: list[int] = []
    for end in candidates.tolist():
        if len(picked) >= quota:
            break
        cell = end // stride
        if all(taken[c] == 0 or abs(int(taken[c]) - end) >= stride for c in (cell - 1, cell, cell + 1)):
            taken[cell] = end
            picked.append(end)
    return picked


def mean_overlap(ends: np.ndarray, temporal_dim: int) -> float:
    """Mean share of a window's states that the sampled window before it also holds."""
    return float(np.clip(1 - np.diff(ends) / temporal_dim, 0, 1).mean()) if len(ends) > 1 else 0.0


def save(pair: Pair, sample: np.ndarray, facts: dict, cuts: np.ndarray, config: dict, folder: Path) -> None:
    """Write one pair's sample, print what is in it and draw it."""
    if len(sample) == 0:
        raise InputError(f"{pair.book.pair}: no window fits the splits: lower --temporal_dim or record longer")
    file = folder / "balanced_samples" / f"{pair.book.pair}.npy"
    facts["mean_overlap"] = mean_overlap(sample["end_row"], config["temporal_dim"])
    facts["distinct_windows"] = covered_states(sample["end_row"], config["temporal_dim"]) / config["temporal_dim"]
    facts["cuts_ns"] = cuts.tolist()
    parameters = {key: config[key] for key in config if key not in ("data_dir", "plots", "pairs")}
    with new_table(file, SAMPLE, parameters, identity(pair.book)) as table:
        table.append(sample)
        table.extra.update(facts)
    splits = ", ".join(f"{name} {s['windows']:,} of {s['available']:,}" for name, s in facts["splits"].items())
    strata = len(np.unique(sample["stratum"]))
    print(f"{pair.book.pair}: {len(sample):,} windows ({splits}) from {strata} strata -> {file}")
    print(f"  {facts['outliers']:,} outliers set aside; states shared by two splits: {facts['shared_states']}; mean "
          f"overlap {facts['mean_overlap']:.2f}; {facts['distinct_windows']:,.0f} distinct windows")  # fmt: skip
    after = pair.rows[np.searchsorted(pair.rows["end_row"], sample["end_row"])]
    for name in SCORED:
        before = pair.rows[name][:: max(1, len(pair.rows) // 1_000_000)]
        print(f"  {name:<24} before {np.mean(before):>10.4g} +- {np.std(before):<10.4g}"
              f" after {np.mean(after[name]):>10.4g} +- {np.std(after[name]):<10.4g}")  # fmt: skip
    if config["plots"]:
        import matplotlib

        matplotlib.use("Agg")
        from lob import plots

        picture = folder / "plots" / f"{pair.book.pair}_balanced.png"
        print(f"  {plots.save(plots.draw_balance(pair.rows, after, SCORED, pair.book.pair), picture)}")


def covered_states(ends: np.ndarray, temporal_dim: int) -> int:
    """How many states the windows cover; `ends` ascending."""
    return int(np.minimum(np.diff(ends), temporal_dim).sum()) + temporal_dim


if __name__ == "__main__":
    run(main, config)
