"""What pre-training saves in labels: the encoder beside networks trained from scratch on them.

    python -m benchmarks.bench_labels --data_dir=bench --encoder=pretrained/small_cell

Within each market a task of the probes (lob/evaluation/probe_tasks.py) is fitted on windows of the
first half of the recording, judged on the next sixth and tested on the last third, purged. All
models get the same windows and the same labels: a share of those that are fitted on and of those
that are judged on, 20 at least. Judged windows choose penalties and end training by one rule.

- `frozen`: a linear probe on the encoder's vector and scale block; `both`: on these and 27
  hand-made features;
- `finetuned`: encoder and probe trained further;
- `scratch`: the same network from random weights;
- `deeplob`, `binctabl`, `mlplob`, `tlob`: benchmarks/other_models.py, from random weights;
- `features`, `floor`: a linear probe on the hand-made features, and on the floor of the task.

Nothing is fitted on judged windows, not even a probe at last, as benchmarks/bench_probes.py does.
Volatility is predicted as the residual of persistence by all of them. Each job is kept in
`results_dir`; a second call with the same settings does what is missing. Markets are validation
markets by default; `--roles="['test']"` opens test markets: do that once, for the encoder that is
committed, and say so in NOTES.md.

Cases are `<market>/<share>/<model>/<task>`, with medians over seeds: `score` (area under the curve,
or R2 of volatility), `score_least`, `score_most`, and `labels` that were fitted on. Of `frozen`,
`both` and `finetuned` there are the leads `over_scratch`, `over_simple` (the better one of
`features` and `floor`) and `over_best` (the best network from scratch), both chosen on the tested
windows, with 95 % intervals over blocks of time. In `<market>/headline/<task>` `over_best` is the
lead of `finetuned` at 10 % of the labels over the best network from scratch at all labels. Cases
`cells/<share>/<model>/<lead>` and `cells/headline` count verdicts.
"""

config = {
    "data_dir": "bench",  # str: folder of depth_96/ and depth_40/, each with book_states/
    "runs_dir": "runs",  # str: folder of the training runs
    "encoder": "pretrained/small_cell",  # str | None: run, checkpoint or pretrained weights; None:
    #   the best checkpoint of the newest run
    "roles": ["validation"],  # list[validation | test]: markets that are tested on
    "markets": None,  # list[str] | None: cells, as in markets.py; None: all of the depth
    "tasks": ["direction", "move_50", "volatility_50"],  # list[str]: as in probe_tasks.py
    "models": [
        "frozen",
        "both",
        "finetuned",
        "scratch",
        "deeplob",
        "binctabl",
        "mlplob",
        "tlob",
        "features",
        "floor",
    ],  # list[frozen | both | finetuned | scratch | deeplob | binctabl | mlplob | tlob | features |
    #   floor]: what is compared
    "shares": [0.001, 0.01, 0.1, 1.0],  # list[float > 0 and <= 1]: of the labels
    "seeds": 5,  # int >= 1: draws of labels and weights
    "windows": 12000,  # int >= 60: windows that are fitted on, evenly spaced in the first half
    "judged_windows": 1000,  # int >= 20: windows that are judged on
    "tested_windows": 2000,  # int >= 20: windows that are tested on
    "batch_size": 32,  # int >= 1: windows a step
    "steps": 600,  # int >= 1: most steps of a network
    "every": 25,  # int >= 1: steps from one look at the judged windows to the next
    "patience": 4,  # int >= 1: looks without gain after which training stops
    "rates": {},  # dict: model -> largest learning rate, beside RATES of label_runs.py
    "device": "auto",  # auto | cpu | cuda: auto: cuda if there is one
    "workers": 0,  # int >= 0: jobs at a time; 0: one for each processor core, at most 12 on a GPU
    "seconds": 1e9,  # > 0: no job begins later than this after the start
    "results_dir": "runs/labels",  # str: folder of the jobs' results
    "write": False,  # bool: keep the result in benchmarks/results/labels.json
}

from lob.config import InputError, check_rules, counted, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_probes import (
    check_apart,
    count_lead,
    find_markets,
    name_cell,
    open_recording,
)
from benchmarks.label_runs import (
    FROZEN,
    RATES,
    Job,
    Settings,
    check_tasks,
    keep_settings,
    open_task,
    prepare,
    read_result,
    run_job,
)
from benchmarks.markets import SHORT
from benchmarks.other_models import PUBLISHED
from benchmarks.report import report
from lob.evaluation.intervals import interval, smallest_visible
from lob.model.checkpoint import choose_device, find_checkpoint, load_model
from lob.results import make_row

FROM_SCRATCH = ("scratch", *PUBLISHED)
RIVALS = {"scratch": ["scratch"], "simple": ["features", "floor"], "best": [*FROM_SCRATCH]}
COMPARED = ("frozen", "both", "finetuned")  # models whose leads are told
FEW, ALL = 0.1, 1.0  # shares of the headline
GPU_WORKERS = 12
Found = dict[Job, dict[str, np.ndarray]]


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    began = time.perf_counter()
    check_tasks(config["tasks"])
    settings = make_settings(config)
    cells = prepare_markets(config, settings)
    jobs = list_jobs(config, settings, list(cells))
    left = do_jobs(config, settings, jobs, began)
    found = {job: x for job in jobs if (x := read_result(settings, job))}
    if not found:
        raise InputError("no job was done: raise --seconds, or add markets, tasks or windows")
    if left and config["write"]:
        print(f"{counted(left, 'job')} are left, so nothing is written: call this again")
    rows = summarise(found, settings, cells)
    report("labels", rows, config["write"] and not left)
    if left:
        print(f"no time was left for {counted(left, 'job')}: call this again")
    return 0


def make_settings(config: dict) -> Settings:
    """Return what jobs need, and keep it beside their results. Raises InputError if it differs."""
    file = find_checkpoint(config["runs_dir"], config["encoder"])
    model, _ = load_model(file)
    rates = RATES | config["rates"]
    unknown = [name for name in rates if name not in RATES or not 0 < rates[name] < 1]
    if unknown:
        raise InputError(
            f"rates = {config['rates']!r}: give numbers between 0 and 1 for {', '.join(RATES)}"
        )
    settings = Settings(
        results_dir=config["results_dir"],
        data_dir=str(Path(config["data_dir"]) / f"depth_{model.config.depth}"),
        encoder=str(file),
        windows=(config["windows"], config["judged_windows"], config["tested_windows"]),
        batch_size=config["batch_size"],
        steps=config["steps"],
        every=config["every"],
        patience=config["patience"],
        rates=tuple(sorted(rates.items())),
        device=str(choose_device(config["device"])),
    )
    keep_settings(settings)
    return settings


def prepare_markets(config: dict, settings: Settings) -> dict[str, str]:
    """Write what the models of each market share; return the markets' cells by pair."""
    model, meta = load_model(settings.encoder)
    folder = Path(settings.data_dir) / "book_states"
    cells = {}
    for market in find_markets(config["roles"], config["markets"]):
        if model.config.depth not in market.depths() or not market.counted or market.cell == SHORT:
            continue  # captures are too short for a part of their own
        book = open_recording(folder, market.pair)
        if book is None:
            continue
        check_apart(book, meta, folder)
        if prepare(settings, market.pair):
            cells[market.pair] = name_cell(market, model.config.depth)
        else:
            print(f"{market.pair} is left out: a part of the recording has no window")
    if not cells:
        raise InputError(
            f"no market of {', '.join(config['roles'])} has windows of the encoder's depth: parse "
            "the recordings with benchmarks.lay_recordings"
        )
    return cells


def list_jobs(config: dict, settings: Settings, pairs: list[str]) -> list[Job]:
    """Return the jobs of all tasks that have enough labels, market by market.

    With all labels a frozen model does not depend on the seed, so it is fitted once.
    """
    jobs = []
    for pair in pairs:
        for task in config["tasks"]:
            if open_task(settings, pair, task) is None:
                print(f"{pair}/{task} is left out: too few labels")
                continue
            for share in config["shares"]:
                for model in config["models"]:
                    once = share == ALL and model in FROZEN
                    seeds = range(1 if once else config["seeds"])
                    jobs += [Job(pair, task, model, share, seed) for seed in seeds]
    return jobs


def do_jobs(config: dict, settings: Settings, jobs: list[Job], began: float) -> int:
    """Do the jobs that are missing; return how many there was no time for."""
    from joblib import Parallel, delayed

    missing = [job for job in jobs if not (settings.folder / job.file).exists()]
    for job in missing:
        (settings.folder / job.file).parent.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    workers = config["workers"] or (cores if settings.device == "cpu" else min(cores, GPU_WORKERS))
    deadline = time.time() + config["seconds"] - (time.perf_counter() - began)
    parallel = Parallel(workers, return_as="generator_unordered")
    done = 0
    for count, ended in enumerate(
        parallel(delayed(do_job)(settings, job, deadline) for job in missing), 1
    ):
        done += ended
        if count % 100 == 0 or count == len(missing):
            spent = time.perf_counter() - began
            print(f"{done} of {counted(len(missing), 'job')}, {spent:.0f} s", flush=True)
    return len(missing) - done


def do_job(settings: Settings, job: Job, deadline: float) -> bool:
    """Do a job if there is time left; return whether it was done."""
    if time.time() > deadline:
        return False
    run_job(settings, job)
    return True


def summarise(found: Found, settings: Settings, cells: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows of all cells, and those that count verdicts."""
    rows: list[dict[str, Any]] = []
    leads: dict[str, dict[str, dict[str, float]]] = {}  # by <share>/<model>/<lead>, then by case
    for pair, task in dict.fromkeys((job.pair, job.task) for job in found):
        splits = open_task(settings, pair, task)
        assert splits is not None
        blocks = len(np.unique(splits[2].windows.block))
        mine = {job: x for job, x in found.items() if (job.pair, job.task) == (pair, task)}
        tables = {share: gather_models(mine, share) for share in {job.share for job in mine}}
        for share in sorted(tables):
            for model in tables[share]:
                case = f"{cells[pair]}/{share:g}/{model}/{task}"
                rows += describe(case, tables[share][model])
                if model in COMPARED:
                    rows.append(make_row(case, "blocks", blocks))
                    for name, others in RIVALS.items():
                        pair_of = tables[share], model, tables[share], others
                        lead = compare(f"over_{name}", *pair_of, blocks)
                        rows += lead_rows(case, f"over_{name}", lead)
                        if lead:
                            key = f"{share:g}/{model}/over_{name}"
                            leads.setdefault(key, {})[case] = lead[0]
        pair_of = tables.get(FEW, {}), "finetuned", tables.get(ALL, {}), RIVALS["best"]
        lead = compare("over_best", *pair_of, blocks)
        case = f"{cells[pair]}/headline/{task}"
        rows += lead_rows(case, "over_best", lead)
        if lead:
            rows.append(make_row(case, "blocks", blocks))
            leads.setdefault("headline", {})[case] = lead[0]
    for key, values in leads.items():
        name = "over_best" if key == "headline" else key.split("/")[-1]
        rows += count_lead(f"cells/{key}", values, name)
    return rows


def gather_models(found: Found, share: float) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return the results of all seeds at a share of the labels, by model."""
    table: dict[str, list[dict[str, np.ndarray]]] = {}
    for job, result in found.items():
        if job.share == share:
            table.setdefault(job.model, []).append(result)
    return table


def median(results: Iterable[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.median([result[name] for result in results], axis=0)


def describe(case: str, results: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    scores = [float(result["score"]) for result in results]
    note = f"median of {counted(len(results), 'seed')}"
    rows = [make_row(case, "score", np.median(scores), note=note)]
    rows += [make_row(case, "score_least", min(scores)), make_row(case, "score_most", max(scores))]
    for name in ("labels", "judged", "step"):
        rows.append(make_row(case, name, float(median(results, name))))
    return rows


def compare(
    name: str,
    here: dict[str, list[dict[str, np.ndarray]]],
    model: str,
    there: dict[str, list[dict[str, np.ndarray]]],
    others: list[str],
    blocks: int,
) -> tuple[dict[str, float], str] | None:
    """Return the lead of a model over the best of others, with its interval, and that one's name.

    The best is that of the tested windows, so that no weaker one is compared with. None: a model
    has no results.
    """
    others = [other for other in others if other in there]
    if model not in here or not others:
        return None
    best = max(others, key=lambda other: float(median(there[other], "score")))
    scores, draws = (
        median(here[model], part) - median(there[best], part) for part in ("score", "drawn")
    )
    low, high = interval(draws, float(scores), blocks)
    smallest = smallest_visible(low, high, blocks)
    values = {"": float(scores), "_low": low, "_high": high, "_smallest": smallest}
    found = {f"{name}{end}": x for end, x in values.items() if np.isfinite(x)}
    return found | {"blocks": float(blocks)}, best


def lead_rows(
    case: str, name: str, lead: tuple[dict[str, float], str] | None
) -> list[dict[str, Any]]:
    if lead is None:
        return []
    values, best = lead
    return [make_row(case, metric, x, note=best) for metric, x in values.items() if name in metric]


if __name__ == "__main__":
    run(main, config)
