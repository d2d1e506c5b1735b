"""Compare training runs: one table, the keys in which they differ, warnings, and pictures.

    python training_results_analysis.py
    python training_results_analysis.py --sort_by=windows_per_second --more_runs="['../old/runs']"

The script reads config.json, env.json, metrics.csv and, if the run was tested, report.json of every
`runs/<name>/`. It names damaged runs and leaves them out. It prints the main columns and writes
into `runs/analysis/`:

- runs.csv: all columns, a row for each run;
- curves.png: losses, learning rate and gradient norm, beside the ladder's loss; runs whose losses
  don't compare stand in pictures of their own, curves_2.png and so on;
- accuracy.csv: the rows of all reports, if a run was tested;
- effects.png: runs that differ in one key alone, if there are any;
- precision.png: FP8 beside bf16, if two runs differ in nothing else.
"""

config = {
    "runs_dir": "runs",  # str: folder of all runs
    "more_runs": None,  # list[str] | None: further folders: runs, or folders of runs
    "data_dir": "training_data",  # str: runs older than the samples in this folder are marked
    "pairs": None,  # list[str] | None: only runs trained on exactly these pairs; None: all runs
    "output_dir": None,  # str | None: where table and pictures go; None: runs_dir/analysis
    "sort_by": "best_validation",  # str: column of the table or key of the runs; -name: descending
    "smoothing": 20,  # int >= 1: log entries that a curve is averaged over, at least 1 % of them
    "divergence_factor": 2.0,  # > 1: warn if the smoothed train loss exceeds this times its least
    "plateau_epochs": 3,  # int >= 1: epochs at the end of a run that may be a plateau
    "plateau_gain": 0.01,  # >= 0 and < 1: warn if they lower the best validation loss by less
}

from lob.config import InputError, check_rules, counted, load_config, nearest, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lob.evaluation.run_pictures import draw_curves, draw_effects, draw_precision
from lob.evaluation.runs import (
    LOSS_KEYS,
    Run,
    find_different_keys,
    find_divergence,
    find_failure,
    find_lost_losses,
    find_plateau,
    group_comparable,
    make_table,
    sort_key,
)
from lob.plotting import PALETTE, plt, save
from lob.process import drawing
from lob.results import read_rows
from lob.storage import check_writable, new_file
from lob.training.run_folder import KINDS, read_metrics

MOST_CURVES = 6  # pictures of curves, at most
PRINTED = {  # column of the table -> its head in print
    "run": "run",
    "model_size": "model",
    "precision": "precision",
    "epochs": "epochs",
    "minutes": "minutes",
    "windows_per_second": "windows/s",
    "data_wait_share": "waiting",
    "train_loss": "train",
    "best_validation": "best val.",
    "ladder": "ladder",
    "best_epoch": "at epoch",
    "test": "test",
}


def main(config: dict[str, Any]) -> None:
    config = check_rules(config, __file__)
    output = Path(config["output_dir"] or Path(config["runs_dir"]) / "analysis")
    check_writable(output, "output_dir")
    runs, damaged = read_runs(find_runs(config["runs_dir"], config["more_runs"] or []))
    if config["pairs"] is not None:
        runs = [r for r in runs if sorted(r.pairs) == sorted(config["pairs"])]
    if damaged:
        print(f"left out, damaged: {'; '.join(damaged)}")
    if not runs:
        raise InputError(
            f"no run of pairs = {config['pairs']} in {config['runs_dir']}: train one with "
            "fp8_ddp_trainer.py, or set --runs_dir"
        )

    table = make_table(runs)
    order = sort_table(table, runs, config["sort_by"])
    table, runs = table.iloc[order], [runs[i] for i in order]
    different = find_different_keys(runs)
    print(
        "losses, lower is better; ladder: what the ladder, which is not trained, leaves in "
        "validation;\nwaiting: share of the time in which steps waited for data"
    )
    print(format_table(table))
    print(describe_differences(runs, different))
    for r in runs:
        for warning in find_warnings(r, config):
            print(f"warning: {r.name}: {warning}")
    reported = [{"run": r.name, **row} for r in runs for row in r.report]
    if reported:
        print(describe_reports(runs))

    files = [
        *save_table(table, output / "runs.csv"),
        *save_table(pd.DataFrame(reported), output / "accuracy.csv"),
        *save_pictures(runs, different, config["smoothing"], output),
    ]
    print(f"{counted(len(runs), 'run')} -> {', '.join(map(str, files))}")


def find_runs(runs_dir: str, more: Sequence[str]) -> list[Path]:
    """Return the folders that hold a run: those given, and those right under them.

    A run's folder holds a config.json or a metrics.csv. Raises InputError if a given folder is
    missing.
    """
    found = {}
    for folder in [Path(runs_dir), *map(Path, more)]:
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder}: run fp8_ddp_trainer.py first, or set --runs_dir"
            )
        for path in (folder, *sorted(folder.iterdir())):
            holds_run = any((path / name).is_file() for name in ("config.json", "metrics.csv"))
            if holds_run and not path.name.startswith("."):
                found[path.resolve()] = path
    return list(found.values())


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs, and a text for each damaged one: its folder and what is wrong with it.

    Runs whose folders have one name are named by their paths.
    """
    runs, damaged = [], []
    names = [folder.name for folder in folders]
    for folder in tqdm(folders, unit="run", desc="reading", disable=None, leave=False):
        try:
            r = read_run(folder)
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{folder} ({str(error).splitlines()[0]})")
            continue
        if names.count(folder.name) > 1:
            r.name = str(folder)
        runs.append(r)
    return runs, damaged


def read_run(folder: Path) -> Run:
    """Read a run. Raises OSError, KeyError or ValueError if a file is missing or damaged."""
    config = read_object(folder / "config.json")
    env = read_object(folder / "env.json") if (folder / "env.json").exists() else {}
    is_tested = (folder / "report.json").exists()
    rows = read_metrics(folder)
    return Run(
        name=folder.name,
        config=config,
        precision=str(env.get("precision", config.get("precision"))),
        pairs=env.get("pairs") or config.get("pairs") or [],
        metrics={kind: rows[rows["kind"] == kind].reset_index(drop=True) for kind in sorted(KINDS)},
        report=read_rows(folder / "report.json") if is_tested else [],
        changed=(folder / "config.json").stat().st_mtime,
    )


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError if the file holds something else."""
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return found


def sort_table(table: pd.DataFrame, runs: Sequence[Run], sort_by: str) -> np.ndarray:
    """Return the order of the rows by a column or a config key, int64 (runs,), NaN last.

    A name that begins with "-" sorts in descending order. Raises InputError if no column and no key
    has the name.
    """
    name = sort_by.removeprefix("-")
    keys = sorted({key for r in runs for key in r.config})
    if name not in table and name not in keys:
        raise InputError(
            f"sort_by = {sort_by!r} is no column or key{nearest(name, [*table, *keys])}; "
            f"the columns are {', '.join(table)}"
        )
    values = table.get(name, pd.Series([sort_key(r.config.get(name)) for r in runs]))
    return values.sort_values(ascending=name == sort_by, kind="stable").index.to_numpy()


def format_table(table: pd.DataFrame) -> str:
    losses = ("train_loss", "best_validation", "ladder", "test")
    formats = dict.fromkeys(losses, "{:.6f}".format)
    formats["minutes"] = "{:.1f}".format
    formats["windows_per_second"] = "{:,.0f}".format
    formats["data_wait_share"] = "{:.1%}".format
    sizes = table["model_size"].str.removesuffix("_transformer")
    shown = table[list(PRINTED)].assign(model_size=sizes)
    heads = list(PRINTED.values())
    return shown.to_string(index=False, header=heads, formatters=formats, na_rep="-")


def describe_differences(runs: Sequence[Run], different: Sequence[str]) -> str:
    """Return a line for each key that differs: its values and the runs that have them."""
    lines = []
    if different:
        lines.append("the runs differ in:")
    elif len(runs) > 1:
        lines.append("the runs have one config")
    for key in different:
        having: dict[str, list[str]] = {}
        for r in runs:
            having.setdefault(repr(r.config.get(key)), []).append(r.name)
        parts = [f"{value} ({name_few(names)})" for value, names in having.items()]
        lines.append(f"  {key:<20} {'   '.join(parts)}")
    apart = find_different_keys(runs, LOSS_KEYS)
    if apart:
        lines.append(
            f"warning: losses of runs that differ in {', '.join(apart)} "
            f"are taken over different values and do not compare"
        )
    return "\n".join(lines)


def name_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def find_warnings(r: Run, config: dict[str, Any]) -> Iterator[str]:
    yield from find_lost_losses(r)
    yield from find_divergence(r, config["smoothing"], config["divergence_factor"])
    yield from find_plateau(r, config["plateau_epochs"], config["plateau_gain"])
    yield from find_failure(r)
    for file in sorted((Path(config["data_dir"]) / "balanced_samples").glob("*.json")):
        was_used = not r.pairs or file.stem in r.pairs
        if was_used and file.stat().st_mtime > r.changed:
            unlike = "newer runs may have been scored on other windows"
            yield f"trained before {file} was last written: {unlike}"


def describe_reports(runs: Sequence[Run]) -> str:
    """Return a table of the skill in hidden sizes: a line per run and pair, a column per mask.

    It is taken from the rows `<pair>/<mask>/log_size` of the runs' reports.
    """
    skills: dict[tuple[str, str], dict[str, str]] = {}  # run and pair -> mask -> skill and star
    for r in runs:
        found = {(row["case"], row["metric"]): row["value"] for row in r.report}
        for (case, metric), value in found.items():
            pair, *rest = case.split("/")
            if metric == "skill_untrained" and rest[1:] == ["log_size"]:
                star = "*" if found.get((case, "trained_on")) == 0 else " "
                skills.setdefault((r.name, pair), {})[rest[0]] = f"{value:+.3f}{star}"
    masks = dict.fromkeys(mask for skills_of_pair in skills.values() for mask in skills_of_pair)
    lines = [
        "accuracy on held-out windows (inference_testing.py): "
        "1 - squared error of log sizes / that of the best untrained method;",
        "above 0: better than it; *: not trained on this mask; more in accuracy.csv",
        f"{'run':<24}{'pair':<24}{''.join(f'{mask:>9} ' for mask in masks)}",
    ]
    for (name, pair), skills_of_pair in skills.items():
        cells = "".join(f"{skills_of_pair.get(mask, '- '):>10}" for mask in masks)
        lines.append(f"{name:<23} {pair:<23} {cells}".rstrip())
    return "\n".join(lines)


def save_table(table: pd.DataFrame, file: Path) -> list[Path]:
    """Write a table and return its file; if it is empty, remove the file of an older analysis."""
    if not len(table):
        file.unlink(missing_ok=True)
        return []
    with new_file(file) as handle:
        table.to_csv(handle, index=False)
    return [file]


def save_pictures(
    runs: Sequence[Run], different: Sequence[str], smoothing: int, output: Path
) -> list[Path]:
    """Draw what there is to show and return the files.

    Pictures of an older analysis that are not drawn again are removed.
    """
    groups = group_comparable(runs)
    pictures: dict[str, Callable[[], Any]] = {}
    for number in range(min(len(groups), MOST_CURVES)):
        name = f"curves_{number + 1}" if number else "curves"
        pictures[name] = functools.partial(draw_group, groups, number, smoothing)
    if len(groups) > MOST_CURVES:
        print(
            f"curves of {MOST_CURVES} groups are drawn: losses of the table's runs compare "
            f"within {len(groups)} groups"
        )
    pictures["effects"] = lambda: draw_effects(runs, different)
    pictures["precision"] = lambda: draw_precision(runs)
    for old in output.glob("curves*.png"):
        if old.stem not in pictures:
            old.unlink()
    files = []
    for name, draw in pictures.items():
        file = output / f"{name}.png"
        file.unlink(missing_ok=True)
        with drawing(file.name):
            figure = draw()
            if figure is not None:
                files.append(save(figure, file))
    return files


def draw_group(groups: Sequence[Sequence[Run]], number: int, smoothing: int) -> plt.Figure | None:
    """Draw the curves of a group of runs whose losses compare, titled with what sets it apart."""
    runs = groups[number]
    shown = runs[: len(PALETTE)]
    title = counted(len(runs), "run")
    if len(shown) < len(runs):
        title = f"The table's first {len(shown)} of {len(runs)} runs"
    first_of_each = [group[0] for group in groups]
    apart = find_different_keys(first_of_each, LOSS_KEYS)
    if apart:
        title += f" with {', '.join(f'{key} = {runs[0].config.get(key)!r}' for key in apart)}"
    return draw_curves(shown, title, smoothing)


if __name__ == "__main__":
    run(main, config)
