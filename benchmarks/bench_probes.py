"""What an encoder's vector is worth: probes with floors, within and across many markets.

    python -m benchmarks.lay_recordings --recordings=recorded --data_dir=bench
    python -m benchmarks.bench_probes --data_dir=bench --checkpoints="['runs/a', 'runs/b']"

Recipes are compared on the validation markets, which are the default. `--roles="['test']"` opens
the cells of the test markets: do that once, for the recipe that is committed, and say so in
NOTES.md. A test market is scored by the checkpoints of its depth, a validation market by all
(benchmarks/markets.py). A market with a day that a checkpoint was trained on is refused.

- `<market>/within/<task>`: fitted on the first half of the recording, chosen on the next sixth,
  tested on the last third, as an agent's own head would be;
- `<market>/probe/<task>`: fitted on the training markets, tested on the whole recording.

Metrics are named in lob/evaluation/probes.py. The values are medians over the checkpoints; random
weights and principal components are tried beside the first one of a shape only. Cases
`cells/<way>/<lead>` hold how many cells were compared and how often the vector won.
"""

config = {
    "data_dir": "bench",  # str: folder of depth_96/ and depth_40/, each with book_states/
    "runs_dir": "runs",  # str: folder of the training runs
    "checkpoints": None,  # list[str] | None: runs, checkpoint files, pretrained weights; None: the
    #   best checkpoint of the newest run
    "roles": ["validation"],  # list[validation | test]: markets that are scored
    "markets": None,  # list[str] | None: cells that are scored, as in markets.py; None: all
    "ways": ["within", "probe"],  # list[within | probe]: within a market, across markets
    "windows": 3000,  # int >= 60: windows of a scored recording, evenly spaced
    "fit_windows": 1500,  # int >= 60: windows of the training markets in all
    "batch_size": 64,  # int >= 1: windows that are encoded at a time
    "device": "auto",  # auto | cpu | cuda: auto: cuda if there is one
    "workers": 0,  # int >= 0: processes that fit probes; 0: one for each processor core
    "seed": 0,  # int >= 0: seed of the bootstrap, of the trees and of the random weights
    "write": False,  # bool: keep the result in benchmarks/results/probes.json
}

from lob.config import InputError, check_rules, counted, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.markets import MARKETS, SHORT, Market
from benchmarks.report import report
from lob.book.states import Book, open_book
from lob.evaluation.intervals import BETTER, WORSE, find_discoveries, judge_lead
from lob.evaluation.probe_tasks import LEAST_HORIZON, TASKS, drop_labels, is_classification
from lob.evaluation.probes import (
    CARE_AUC,
    CARE_R2,
    SUMMED,
    WITHIN,
    ProbeResult,
    ProbeSet,
    describe_windows,
    encode_windows,
    join,
    make_untrained,
    probe_task,
    split_within,
    to_components,
)
from lob.evaluation.report import rows_of_probe
from lob.evaluation.selection import evenly_spaced, in_parts, states_after
from lob.model.checkpoint import choose_device, find_checkpoint, load_model
from lob.model.encoder import BookEncoder, EncoderConfig
from lob.results import make_row
from lob.windows.splits import window_ends

ACROSS = (3 / 4, 1 / 4)  # shares of a training market's rows: fitted on, chosen on
Job = tuple[str, list[ProbeSet]]  # <market>/<way>, and training, validation and test windows
DAY_NS = 86_400 * 10**9


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    device = choose_device(config["device"])
    scored = find_markets(config["roles"], config["markets"])
    found: dict[str, list[ProbeResult]] = {}
    compared: set[EncoderConfig] = set()
    for path in config["checkpoints"] or [None]:
        file = find_checkpoint(config["runs_dir"], path)
        model, meta = load_model(file, device)
        mine = [market for market in scored if model.config.depth in market.depths()]
        print(f"{file}: depth {model.config.depth}, {counted(len(mine), 'recording')}", flush=True)
        first = model.config not in compared
        compared.add(model.config)
        jobs = make_jobs(config, model, meta, mine, device, first)
        for case, result in probe_all(jobs, config["workers"], config["seed"], first):
            found.setdefault(case, []).append(result)
    if not found:
        raise InputError(
            f"no market of {', '.join(config['roles'])} has enough windows of the checkpoints' "
            "depth: parse the recordings with benchmarks.lay_recordings"
        )
    rows = median_rows(found)
    counted_cells = [
        name_cell(market, depth) for market in scored for depth in market.depths() if market.counted
    ]
    rows += count_cells(rows, counted_cells)
    report("probes", rows, config["write"])
    return 0


def find_markets(roles: Sequence[str], cells: Sequence[str] | None) -> list[Market]:
    """Return the markets of these roles and cells. Raises InputError if a cell is none of them."""
    found = [market for market in MARKETS if market.role in roles]
    known = {market.cell for market in found}
    for cell in cells or ():
        if cell not in known:
            raise InputError(
                f"markets = {cell!r} is none of the markets of {', '.join(roles)}; there are "
                f"{', '.join(sorted(known))}"
            )
    return [market for market in found if cells is None or market.cell in cells]


def make_jobs(
    config: dict,
    model: BookEncoder,
    meta: dict[str, Any],
    markets: list[Market],
    device: torch.device,
    with_random: bool,
) -> list[Job]:
    """Encode the windows of all markets and return the sets of windows of each cell and way.

    with_random: encode them with random weights too.
    """
    folder = Path(config["data_dir"]) / f"depth_{model.config.depth}" / "book_states"
    models = {"ours": model}
    if with_random:
        models["random"] = make_untrained(model, config["seed"])

    def encode(book: Book, ends: np.ndarray) -> ProbeSet:
        vectors = encode_windows(models, book, ends, config["batch_size"], device)
        return describe_windows(book, ends, model.config.temporal_dim, vectors)

    jobs: list[Job] = []
    whole: dict[str, list[ProbeSet]] = {}
    for market in markets:
        book = open_recording(folder, market.pair)
        if book is None:
            continue
        check_apart(book, meta, folder)
        ends, part = choose_windows(book, model.config.temporal_dim, WITHIN, config["windows"])
        if not len(ends):
            print(f"{market.pair} is left out: no window has {LEAST_HORIZON} states after it")
            continue
        windows = encode(book, ends)
        cell = name_cell(market, book.depth)
        whole.setdefault(cell, []).append(windows)
        if "within" not in config["ways"] or market.cell == SHORT:
            continue
        sets = split_within(windows, part, states_after(book, ends, WITHIN))
        if all(len(split.block) for split in sets):
            jobs.append((f"{cell}/within", sets))
        else:
            print(f"{cell}/within is left out: a part of the recording has no window")
    if "probe" in config["ways"] and whole:
        fitted = fit_sets(folder, model.config.temporal_dim, config["fit_windows"], encode)
        for cell, parts in whole.items():
            jobs.append((f"{cell}/probe", [*fitted, join_captures(parts)]))
    return jobs


def name_cell(market: Market, depth: int) -> str:
    """Return a cell's name; a market at another depth than its own is another cell."""
    return market.cell if depth == market.depth else f"{market.cell}_D{depth}"


def open_recording(folder: Path, pair: str) -> Book | None:
    """Return a market's book, or None if it was not parsed, which is said."""
    if (folder / pair).is_dir():
        return open_book(folder / pair)
    print(f"{pair} is left out: {folder} does not hold it")
    return None


def check_apart(book: Book, meta: dict[str, Any], folder: Path) -> None:
    """Raise InputError if the encoder was trained on a day of this recording, of any pair."""
    trained = [found["pair"] for found in meta["data"].get("books", ())]
    test_begins = max(meta["data"].get("cuts_ns", [0]))
    days = {*np.unique(book.timestamps // DAY_NS).tolist()}
    parsed = {path.name for path in folder.iterdir()}
    for pair in trained:
        if pair == book.pair:
            raise InputError(f"the encoder was trained on {pair}: it can't be scored there")
        if pair in parsed:
            times = open_book(folder / pair).timestamps
            shared = days & {*np.unique(times[times < test_begins] // DAY_NS).tolist()}
            if shared:
                day = np.datetime64(min(shared), "D")
                raise InputError(
                    f"{book.pair} holds {day}, a day of {pair}, which the encoder was trained on: "
                    "train without it, or set --markets"
                )


def choose_windows(
    book: Book, states: int, shares: Sequence[float], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return end rows of windows that LEAST_HORIZON states follow, and the part of each.

    Some lie in no part, for they are next to a border; across markets they count too.
    """
    ends = window_ends(book.segment_starts, book.rows, states)
    ends = evenly_spaced(ends[in_parts(book, ends, states, LEAST_HORIZON, (1.0,)) == 0], count)
    return ends, in_parts(book, ends, states, LEAST_HORIZON, shares)


def fit_sets(folder: Path, states: int, count: int, encode) -> list[ProbeSet]:
    """Return the windows of the training markets that are fitted on and chosen on.

    Each market gives equally many. Raises InputError if none was parsed.
    """
    pairs = [market.pair for market in MARKETS if market.role == "train"]
    books = [open_book(folder / pair) for pair in pairs if (folder / pair).is_dir()]
    parts: list[list[ProbeSet]] = [[], []]
    for book in books:
        ends, part = choose_windows(book, states, ACROSS, -(-count // len(books)))
        for number in range(2):
            mine = ends[part == number]
            if len(mine):
                found = encode(book, mine)
                found.labels = drop_labels(found.labels, states_after(book, mine, ACROSS))
                parts[number].append(found)
    if not all(parts):
        raise InputError(
            f"{folder} holds no training market with windows of {states} states: parse one with "
            "benchmarks.lay_recordings, or set --ways=\"['within']\""
        )
    return [join(some) for some in parts]


def join_captures(parts: list[ProbeSet]) -> ProbeSet:
    """Return a cell's recordings as one set; of several, each is a block of its own."""
    if len(parts) == 1:
        return parts[0]
    whole = join(parts)
    sizes = [len(part.block) for part in parts]
    whole.block = np.repeat(np.arange(len(parts)), sizes)
    return whole


def probe_all(
    jobs: list[Job], workers: int, seed: int, with_components: bool
) -> list[tuple[str, ProbeResult]]:
    """Return the results of all tasks that have enough labels, by <market>/<way>/<task>."""
    from joblib import Parallel, delayed

    count = workers or len(os.sched_getaffinity(0))
    found = Parallel(count)(delayed(probe_cell)(sets, seed, with_components) for _, sets in jobs)
    cells = []
    for (case, _), results in zip(jobs, found, strict=True):
        for task, result in results.items():
            if result is None:
                print(f"{case}/{task} is left out: too few labels")
            else:
                cells.append((f"{case}/{task}", result))
    return cells


def probe_cell(
    sets: list[ProbeSet], seed: int, with_components: bool
) -> dict[str, ProbeResult | None]:
    if with_components:
        sets = to_components(sets)
    without = () if with_components else ("pca",)
    return {task: probe_task(task, sets, seed, without=without) for task in TASKS}


def median_rows(found: dict[str, list[ProbeResult]]) -> list[dict[str, Any]]:
    """Return medians over checkpoints of all finite numbers, and the range of the vector's score.

    The notes of the vector's score and of its leads hold the verdicts, made from the medians.
    """
    rows = []
    for case, results in found.items():
        values: dict[str, list[float]] = {}
        for result in results:
            for row in rows_of_probe(case, result):
                values.setdefault(row["metric"], []).append(row["value"])
        medians = {metric: float(np.median(x)) for metric, x in values.items()}
        leads = [name for name in SUMMED if f"{name}_low" in medians]
        verdicts = [f"{name}: {judge_medians(case, medians, name)}" for name in leads]
        simple = sorted({result.leads["over_simple"].note for result in results})
        note = f"{'; '.join(verdicts)}; simple: {' or '.join(simple)}; "
        note += f"median of {counted(len(results), 'checkpoint')}"
        if len(results) > 1:
            medians |= {"ours_least": min(values["ours"]), "ours_most": max(values["ours"])}
        kept = {metric: x for metric, x in medians.items() if np.isfinite(x)}
        for metric, x in kept.items():
            rows.append(make_row(case, metric, x, note=note if metric in ("ours", *SUMMED) else ""))
    return rows


def judge_medians(case: str, medians: dict[str, float], lead: str) -> str:
    low, high = (medians[f"{lead}_{end}"] for end in ("low", "high"))
    care = CARE_AUC if is_classification(case.split("/")[-1]) else CARE_R2
    return judge_lead(low, high, int(medians["blocks"]), care)


def count_cells(rows: list[dict[str, Any]], cells: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows that say how many cells were compared, and what came out, by way and lead.

    Metrics: `compared`, the number of cells; `better`, `worse`, `level`, `undecided`, by each
    cell's own interval; `better_found`, `worse_found`, the cells that remain if all of them are
    looked at together; `false_expected`, how many intervals would leave out 0 by chance;
    `smallest_median`, the median of the smallest leads that would have been seen.
    """
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        table.setdefault(row["case"], {})[row["metric"]] = row["value"]
    counts = []
    for way in ("within", "probe"):
        mine = {
            case: values
            for case, values in table.items()
            if case.split("/")[1] == way and case.split("/")[0] in cells
        }
        for lead in SUMMED if mine else ():
            counts += count_lead(f"cells/{way}/{lead}", mine, lead)
    return counts


def count_lead(case: str, cells: dict[str, dict[str, float]], lead: str) -> list[dict[str, Any]]:
    decided = {name: x for name, x in cells.items() if f"{lead}_low" in x}  # others: one block
    verdicts = [judge_medians(name, x, lead) for name, x in decided.items()]
    columns = [f"{lead}", f"{lead}_low", f"{lead}_high", "blocks"]
    numbers = np.array([[x[name] for name in columns] for x in decided.values()]).reshape(-1, 4)
    value, low, high, blocks = numbers.T
    certain = find_discoveries(value, low, high, blocks)
    counts = {verdict: verdicts.count(verdict) for verdict in (BETTER, WORSE, "level", "undecided")}
    counts["undecided"] += len(cells) - len(decided)
    counts |= {
        "compared": len(cells),
        "better_found": int((certain & (value > 0)).sum()),
        "worse_found": int((certain & (value < 0)).sum()),
        "false_expected": 0.05 * len(cells),
    }
    smallest = [x[f"{lead}_smallest"] for x in decided.values()]
    if smallest:
        counts["smallest_median"] = float(np.median(smallest))
    return [make_row(case, metric, x) for metric, x in counts.items()]


if __name__ == "__main__":
    run(main, config)
