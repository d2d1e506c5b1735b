"""Compare training runs: one table, the keys in which they differ, warnings, and pictures.

    python training_results_analysis.py
    python training_results_analysis.py --sort_by=windows_per_second --more_runs="['../old/runs']"

Reads every `runs/<name>/`: config.json, env.json, metrics.csv and, where inference_testing.py left it, report.json.
Damaged runs are named and left out. Leaves in `runs/analysis/`: runs.csv (the table, a row a run), curves.png,
progress.png and, where there is something to show, effects.png, precision.png and accuracy.png.
"""

config = {
    "runs_dir": "runs",  # folder of all runs
    "more_runs": [],  # list of other folders: runs, or folders of runs
    "data_dir": "training_data",  # runs older than the samples in this folder are pointed out
    "pairs": None,  # list of pairs: only runs that were trained on exactly these; None: all runs
    "output_dir": None,  # where table and pictures go; None: runs_dir/analysis
    "sort_by": "best_validation",  # a column of the table or a key of the runs' config; -name: from high to low
    "smoothing": 20,  # log entries that a smoothed curve averages over (exponential)
    "max_curves": 12,  # runs drawn in one picture: the first of the table
    "divergence_factor": 2.0,  # warn where the smoothed train loss exceeds its least value so far by this factor
    "plateau_epochs": 3,  # warn where the last so many epochs or more
    "plateau_gain": 0.01,  # together lowered the best validation loss by less than this share
}

from lob.config import InputError, load_config, nearest, run

if __name__ == "__main__":
    config = load_config(config, __file__, optional={"pairs": list, "output_dir": str})

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter
from tqdm import tqdm

from lob.files import new_file
from lob.plots import STYLE, save

KINDS = {"step", "validation", "epoch", "test"}
COUNTS = {"epoch": "int64", "step": "int64", "windows_seen": "int64"}
COLUMNS = ["kind", *COUNTS, "seconds", "train_loss", "validation_loss", "learning_rate", "gradient_norm",
           "windows_per_second", "data_wait_share"]  # fmt: skip
NAMES = {"model_name", "runs_dir", "resume", "data_dir", "azure_data_root", "model_path"}  # no hyperparameters
LOSS_KEYS = ("data_dir", "pairs", "split_ratios", "temporal_dim", "depth_dim", "normalization", "mask_mode",
             "mask_perc", "loss", "seed")  # fmt: skip # runs that differ in one of these are scored on other values
PALETTE = ("#2a6f97", "#c1443c", "#3a7d44", "#e09f3e", "#6d597a", "#2a9d8f", "#b56576", "#5c677d", "#8ab17d", "#bc6c25",
           "#355070", "#8d99ae")  # fmt: skip


@dataclass
class Run:
    """One run: its config, environment, rows of metrics.csv by kind, and the rows of its accuracy report."""

    name: str
    config: dict[str, Any]
    env: dict[str, Any]
    metrics: dict[str, pd.DataFrame]
    report: list[dict[str, Any]]
    changed: float  # when config.json was written, s since the epoch
    warnings: list[str] = field(default_factory=list)

    @property
    def precision(self) -> str:
        return str(self.env.get("precision", self.config.get("precision")))


def main(config: dict[str, Any]) -> None:
    check_config(config)
    folders = find_runs(config)
    runs, damaged = [], []
    for folder in tqdm(folders, unit="run", desc="reading", disable=None, leave=False):
        try:
            runs.append(read_run(folder))
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{folder} ({str(error).splitlines()[0]})")
    if config["pairs"] is not None:
        runs = [r for r in runs if sorted(r.config.get("pairs") or ()) == sorted(config["pairs"])]
    if damaged:
        print(f"left out, damaged: {'; '.join(damaged)}")
    if not runs:
        raise InputError(f"no readable run in {config['runs_dir']}" + (f" on {config['pairs']}" if config["pairs"] else "")
                         + ": train one with fp8_ddp_trainer.py or set --runs_dir")  # fmt: skip

    table = make_table(runs)
    order = sort_table(table, runs, config["sort_by"])
    table, runs = table.iloc[order], [runs[i] for i in order]
    print(format_table(table))
    different = find_different_keys(runs)
    print(describe_differences(runs, different))
    for r in runs:
        r.warnings = [*find_divergence(r, config), *find_plateau(r, config), *find_oddities(r, config)]
        for warning in r.warnings:
            print(f"warning: {r.name}: {warning}")
    print(describe_reports(runs), end="")

    output = Path(config["output_dir"] or Path(config["runs_dir"]) / "analysis")
    with new_file(output / "runs.csv") as handle:
        table.to_csv(handle, index=False)
    shown = runs[: config["max_curves"]]
    figures = {
        "curves": draw_curves(shown, len(runs), config["smoothing"]),
        "progress": draw_progress(shown, len(runs)),
        "effects": draw_effects(runs, different),
        "precision": draw_precision(runs),
        "accuracy": draw_accuracy(shown),
    }
    files = [str(output / "runs.csv")]
    for name, figure in figures.items():
        file = output / f"{name}.png"
        if figure is None:
            file.unlink(missing_ok=True)  # an older analysis's, of runs that are gone
        else:
            files.append(str(save(figure, file)))
    print(f"{len(runs)} runs -> {', '.join(files)}")


def check_config(config: dict[str, Any]) -> None:
    for key, least in (("smoothing", 1), ("max_curves", 1), ("plateau_epochs", 1)):
        if config[key] < least:
            raise InputError(f"{key} = {config[key]} must be at least {least}")
    if config["divergence_factor"] <= 1:
        raise InputError(f"divergence_factor = {config['divergence_factor']} must be more than 1")
    if not 0 <= config["plateau_gain"] < 1:
        raise InputError(f"plateau_gain = {config['plateau_gain']} must lie between 0 and 1")


def find_runs(config: dict[str, Any]) -> list[Path]:
    """Return every folder that holds a config.json or metrics.csv in or right under the folders given."""
    found = {}
    for folder in [Path(config["runs_dir"]), *map(Path, config["more_runs"])]:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}: run fp8_ddp_trainer.py first, or set --runs_dir")
        for path in (folder, *sorted(folder.iterdir())):
            if not path.name.startswith(".") and any((path / n).is_file() for n in ("config.json", "metrics.csv")):
                found[path.resolve()] = path
    return list(found.values())


def read_run(folder: Path) -> Run:
    """Read a run; OSError, KeyError or ValueError where a file is missing or damaged.

    A last line without its end is what a killed run leaves and is not read.
    """
    config = json.loads((folder / "config.json").read_text())
    env, report = ({}, {})
    if (folder / "env.json").exists():
        env = json.loads((folder / "env.json").read_text())
    if (folder / "report.json").exists():
        report = json.loads((folder / "report.json").read_text())
    raw = (folder / "metrics.csv").read_bytes()
    raw = raw[: raw.rfind(b"\n") + 1]
    if raw.split(b"\n", 1)[0].decode() != ",".join(COLUMNS):
        raise ValueError("metrics.csv does not begin with the columns that fp8_ddp_trainer.py writes")
    numbers = {name: "float64" for name in COLUMNS[4:]}
    rows = pd.read_csv(io.BytesIO(raw), dtype={"kind": "category", **COUNTS, **numbers}, engine="c")
    kinds = set(rows["kind"].cat.categories)
    if not len(rows) or not kinds <= KINDS:
        raise ValueError("metrics.csv holds no rows" if not len(rows) else f"unknown kinds {sorted(kinds - KINDS)}")
    metrics = {kind: rows[rows["kind"] == kind].reset_index(drop=True) for kind in sorted(KINDS)}
    changed = (folder / "config.json").stat().st_mtime
    return Run(folder.name, config, env, metrics, report.get("rows", []), changed)


def make_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row a run; losses are NaN where the run did not get so far."""
    rows = []
    for r in runs:
        step, validation, epoch, test = (r.metrics[kind] for kind in ("step", "validation", "epoch", "test"))
        last = max(r.metrics.values(), key=lambda rows: rows["step"].max() if len(rows) else -1).iloc[-1]
        trained = validation[validation["step"] > 0]
        best = trained["validation_loss"].idxmin() if trained["validation_loss"].notna().any() else None
        before = validation.loc[validation["step"] == 0, "validation_loss"]
        rows.append({
            "run": r.name,
            "model_size": r.config.get("model_size", ""),
            "precision": r.precision,
            "epochs": f"{int(epoch['epoch'].max()) if len(epoch) else 0}/{r.config.get('epochs', '?')}",
            "steps": int(last["step"]),
            "windows_seen": int(last["windows_seen"]),
            "minutes": max(rows["seconds"].max() for rows in r.metrics.values() if len(rows)) / 60,
            "windows_per_second": (epoch if len(epoch) else step)["windows_per_second"].median(),
            "data_wait_share": step["data_wait_share"].median(),
            "train_loss": epoch["train_loss"].iloc[-1] if len(epoch) else np.nan,
            "before_training": before.iloc[0] if len(before) else np.nan,
            "best_validation": np.nan if best is None else trained.loc[best, "validation_loss"],
            "best_epoch": 0 if best is None else int(trained.loc[best, "epoch"]),
            "test": test["validation_loss"].iloc[-1] if len(test) else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def sort_table(table: pd.DataFrame, runs: Sequence[Run], sort_by: str) -> np.ndarray:
    """Return the rows' order by a column or config key, NaN last."""
    name = sort_by.removeprefix("-")
    keys = sorted({key for r in runs for key in r.config})
    if name not in table and name not in keys:
        raise InputError(f"sort_by = {sort_by!r} is no column or key{nearest(name, [*table, *keys])}; the columns are "
                         f"{', '.join(table)}")  # fmt: skip
    values = table[name] if name in table else pd.Series([r.config.get(name) for r in runs])
    values = values if pd.api.types.is_numeric_dtype(values) else values.astype(str)
    return values.sort_values(ascending=not sort_by.startswith("-"), kind="stable").index.to_numpy()


def format_table(table: pd.DataFrame) -> str:
    formats = {"windows_seen": "{:,}", "steps": "{:,}", "minutes": "{:.1f}", "windows_per_second": "{:,.0f}",
               "data_wait_share": "{:.1%}"}  # fmt: skip
    losses = ("train_loss", "before_training", "best_validation", "test")
    formats |= dict.fromkeys(losses, "{:.6f}")
    text = {name: [format_cell(formats.get(name, "{}"), value) for value in table[name]] for name in table}
    return pd.DataFrame(text).rename(columns=lambda name: name.replace("_", " ")).to_string(index=False)


def format_cell(form: str, value: Any) -> str:
    return "-" if isinstance(value, float) and np.isnan(value) else form.format(value)


def find_different_keys(runs: Sequence[Run]) -> list[str]:
    """Return the hyperparameters that have more than one value over the runs."""
    keys = dict.fromkeys(key for r in runs for key in r.config if key not in NAMES)
    return [key for key in keys if len({repr(r.config.get(key)) for r in runs}) > 1]


def describe_differences(runs: Sequence[Run], different: Sequence[str]) -> str:
    """Return a line a key: each value and the runs that have it."""
    lines = ["the runs differ in:" if different else "the runs have one config" if len(runs) > 1 else ""]
    for key in different:
        having: dict[str, list[str]] = {}
        for r in runs:
            having.setdefault(repr(r.config.get(key)), []).append(r.name)
        parts = [f"{value} ({', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''})"
                 for value, names in having.items()]  # fmt: skip
        lines.append(f"  {key:<20} {'   '.join(parts)}")
    apart = [key for key in LOSS_KEYS if len({repr(r.config.get(key)) for r in runs}) > 1]
    if apart:
        lines.append(f"warning: losses of runs that differ in {', '.join(apart)} are taken over different values and "
                     f"do not compare")  # fmt: skip
    return "\n".join(line for line in lines if line)


def smooth(values: pd.Series, entries: int) -> pd.Series:
    """Exponential average over about so many entries."""
    return values.ewm(span=entries, ignore_na=True).mean()


def find_divergence(r: Run, config: dict[str, Any]) -> Iterator[str]:
    step = r.metrics["step"]
    broken = step[~np.isfinite(step["train_loss"])]
    if len(broken):
        row = broken.iloc[0]
        yield f"train loss {row['train_loss']} at step {int(row['step']):,}, epoch {int(row['epoch']) + 1}"
    level = smooth(step["train_loss"].where(np.isfinite(step["train_loss"])), config["smoothing"])
    level = level[config["smoothing"] :]  # before that it is no average yet
    over = level > config["divergence_factor"] * level.cummin()
    if over.any():
        at, least = step.loc[over.idxmax()], level[: over.idxmax()].min()
        yield (f"diverged in epoch {int(at['epoch']) + 1}, step {int(at['step']):,}: smoothed train loss "
               f"{level[over.idxmax()]:.4g} after {least:.4g}")  # fmt: skip


def find_plateau(r: Run, config: dict[str, Any]) -> Iterator[str]:
    trained = r.metrics["validation"].query("step > 0").dropna(subset="validation_loss")
    best = trained["validation_loss"].cummin()
    if not len(best):
        return
    near = trained.loc[(best * (1 - config["plateau_gain"]) <= best.iloc[-1]).idxmax()]
    epochs = int(trained["epoch"].iloc[-1] - near["epoch"])
    if epochs >= config["plateau_epochs"]:
        yield (f"plateau from epoch {int(near['epoch'])}: the {epochs} epochs after it lowered the best validation loss "
               f"by {1 - best.iloc[-1] / near['validation_loss']:.2%}")  # fmt: skip


def find_oddities(r: Run, config: dict[str, Any]) -> Iterator[str]:
    epoch, wanted = r.metrics["epoch"], r.config.get("epochs", 0)
    done = int(epoch["epoch"].max()) if len(epoch) else 0
    if done < wanted and not len(r.metrics["test"]):
        yield f"unfinished: {done} of {wanted} epochs"
    for file in sorted((Path(config["data_dir"]) / "balanced_samples").glob("*.json")):
        if file.stem in (config["pairs"] or [file.stem]) and file.stat().st_mtime > r.changed:
            yield f"trained before {file} was last written: newer runs may have been scored on other windows"


def describe_reports(runs: Sequence[Run]) -> str:
    """Return the accuracy reports as a table: a line a case, a column a run; '' where there are none."""
    cells = {(row["case"], row["metric"], r.name): row["value"] for r in runs for row in r.report}
    if not cells:
        return ""
    wide = pd.Series(cells).unstack(level=2)
    wide.index.names = ["case", "metric"]
    return f"accuracy on held-out windows (inference_testing.py):\n{wide.to_string(float_format='{:.5g}'.format)}\n"


def colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def thin(rows: pd.DataFrame, points: int = 2000) -> pd.DataFrame:
    """At most so many rows, evenly spread: more than a picture has pixels are drawn for nothing."""
    return rows.iloc[:: max(1, -(-len(rows) // points))]


def title_runs(what: str, shown: int, total: int) -> str:
    return what if shown == total else f"{what} (the first {shown} of {total} runs of the table)"


def draw_curves(runs: Sequence[Run], total: int, smoothing: int) -> plt.Figure:
    """Train and validation loss, learning rate and gradient norm against optimizer steps."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(3, 1, figsize=(10, 8), sharex=True, height_ratios=[3, 1, 1], layout="constrained")
        for number, r in enumerate(runs):
            step, validation = r.metrics["step"].replace([np.inf, -np.inf], np.nan), r.metrics["validation"]
            averaged = thin(step.assign(train_loss=smooth(step["train_loss"], smoothing)))
            if len(runs) <= 4:
                raw = thin(step)
                axes[0].plot(raw["step"], raw["train_loss"], color=colour(number), lw=0.5, alpha=0.25)
            axes[0].plot(averaged["step"], averaged["train_loss"], color=colour(number), lw=1.2)
            axes[0].plot(validation["step"], validation["validation_loss"], color=colour(number), lw=1, ls="--",
                         marker="o", ms=3.5, label=r.name)  # fmt: skip
            axes[1].plot(thin(step)["step"], thin(step)["learning_rate"], color=colour(number), lw=1.2)
            axes[2].plot(averaged["step"], smooth(step["gradient_norm"], smoothing)[averaged.index],
                         color=colour(number), lw=1.2)  # fmt: skip
        what = f"Loss over hidden values: train (line, averaged over {smoothing} entries) and validation (dots)"
        axes[0].set(ylabel="loss", yscale="log", title=title_runs(what, len(runs), total))
        axes[1].set(ylabel="learning rate")
        axes[2].set(ylabel="gradient norm", yscale="log", xlabel="optimizer step")
        axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0e}" if value else "0")
        axes[2].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[0].legend(ncols=2, fontsize=8)
    return figure


def draw_progress(runs: Sequence[Run], total: int) -> plt.Figure:
    """Validation loss against time of training and against windows seen."""
    seconds = max(r.metrics["validation"]["seconds"].max() for r in runs)
    unit, name = (3600, "h") if seconds > 7200 else (60, "min") if seconds > 120 else (1, "s")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
        for number, r in enumerate(runs):
            rows = r.metrics["validation"]
            style = {"color": colour(number), "marker": "o", "ms": 3.5, "lw": 1.2}
            axes[0].plot(rows["seconds"] / unit, rows["validation_loss"], **style)
            axes[1].plot(rows["windows_seen"], rows["validation_loss"], label=r.name, **style)
        axes[0].set(xlabel=f"time of training ({name})", ylabel="validation loss", yscale="log")
        axes[1].set(xlabel="windows seen")
        axes[1].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[1].legend(fontsize=8)
        figure.suptitle(title_runs("What the time and the data bought", len(runs), total), fontsize=10, weight="bold")
    return figure


def group_runs(runs: Sequence[Run], but: set[str]) -> list[list[Run]]:
    """Return groups of runs whose hyperparameters are equal, those in `but` aside."""
    groups: dict[str, list[Run]] = {}
    for r in runs:
        rest = {key: value for key, value in sorted(r.config.items()) if key not in NAMES | but}
        groups.setdefault(repr(rest), []).append(r)
    return list(groups.values())


def best_loss(r: Run) -> float:
    return float(r.metrics["validation"].query("step > 0")["validation_loss"].min())


def draw_effects(runs: Sequence[Run], different: Sequence[str], panels: int = 9) -> plt.Figure | None:
    """Best validation loss against each key in which runs differ while all others but the seed are equal."""
    effects = {}
    for key in different:
        groups = [[r for r in group if np.isfinite(best_loss(r))] for group in group_runs(runs, {key, "seed"})]
        groups = [group for group in groups if len({repr(r.config.get(key)) for r in group}) > 1]
        if groups and key not in ("seed", "precision", "fp8_recipe"):
            effects[key] = groups
    if not effects:
        return None
    most = sorted(effects, key=lambda key: -sum(map(len, effects[key])))[:panels]
    columns = min(3, len(most))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(-(-len(most) // columns), columns, figsize=(max(5, 3.4 * columns),
                                    3 * -(-len(most) // columns)), squeeze=False, layout="constrained")  # fmt: skip
        for axis, key in zip(axes.flat, most, strict=False):
            draw_effect(axis, key, effects[key])
        for axis in list(axes.flat)[len(most) :]:
            axis.set_axis_off()
        figure.supylabel("best validation loss", fontsize=9)
        figure.suptitle("One key changed, all others equal (a line a setting of the others; dots: seeds)", fontsize=10)
    return figure


def draw_effect(axis: plt.Axes, key: str, groups: Sequence[Sequence[Run]]) -> None:
    values = [r.config.get(key) for group in groups for r in group]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    names = sorted(set(values)) if numeric else list(dict.fromkeys(map(str, values)))
    for number, group in enumerate(groups):
        points = pd.DataFrame({"x": [r.config.get(key) if numeric else names.index(str(r.config.get(key))) for r in group],
                               "loss": [best_loss(r) for r in group]})  # fmt: skip
        means = points.groupby("x")["loss"].mean()
        axis.plot(means.index, means, color=colour(number), lw=1.2)
        axis.plot(points["x"], points["loss"], "o", color=colour(number), ms=4)
    axis.set(xlabel=key)
    if not numeric:
        axis.set_xticks(range(len(names)), names)
        axis.margins(x=0.2)
    elif names[0] > 0 and names[-1] / names[0] >= 8:
        axis.set_xscale("log")


def draw_precision(runs: Sequence[Run]) -> plt.Figure | None:
    """Each FP8 run beside the bf16 run of equal hyperparameters: loss, its relative difference, speed."""
    pairs = [(fp8, bf16) for group in group_runs(runs, {"precision", "fp8_recipe"})
             for fp8 in group if fp8.precision == "fp8" for bf16 in group if bf16.precision == "bf16"]  # fmt: skip
    if not pairs:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), width_ratios=[3, 3, 2], layout="constrained")
        for number, (fp8, bf16) in enumerate(pairs[: len(PALETTE)]):
            name, style = f"{fp8.name} / {bf16.name}", {"color": colour(number), "lw": 1.2}
            losses = [r.metrics["validation"].set_index("step")["validation_loss"] for r in (fp8, bf16)]
            axes[0].plot(losses[0], "-o", ms=3.5, **style)
            axes[0].plot(losses[1], "--", **style)
            axes[1].plot((losses[0] / losses[1] - 1).dropna() * 100, "-o", ms=3.5, label=name, **style)
            speed = [r.metrics["epoch"]["windows_per_second"].median() for r in (fp8, bf16)]
            axes[2].barh(number, speed[0] / speed[1], color=colour(number))
        axes[0].set(xlabel="optimizer step", ylabel="validation loss", yscale="log", title="FP8 (line), bf16 (dashes)")
        axes[1].set(xlabel="optimizer step", ylabel="FP8's loss over bf16's (%)", title="difference")
        axes[2].set(xlabel="FP8's windows/s over bf16's", yticks=[], title="speed")
        axes[1].axhline(0, color="black", lw=0.6)
        axes[2].axvline(1, color="black", lw=0.6)
        axes[1].legend(fontsize=8)
    return figure


def draw_accuracy(runs: Sequence[Run]) -> plt.Figure | None:
    """Errors over hidden values from the runs' accuracy reports, as shares of the best untrained baseline's."""
    cells = {(row["case"], row["metric"], r.name): row["value"] for r in runs for row in r.report
             if row["metric"] in ("error", "best_untrained_error", "ridge_error")}  # fmt: skip
    if not cells:
        return None
    table = pd.Series(cells).unstack(level=1)
    cases = [case for case in dict.fromkeys(case for case, _, _ in cells)]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(10, 1.6 + 0.26 * len(cases)), layout="constrained")
        for number, r in enumerate(runs):
            mine = table.xs(r.name, level=1).reindex(cases) if r.report else table.iloc[:0]
            at = np.arange(len(mine)) + (number - (len(runs) - 1) / 2) * 0.5 / len(runs)
            axis.plot(mine["error"] / mine["best_untrained_error"], at, "o", color=colour(number), label=r.name)
            if "ridge_error" in mine:
                axis.plot(mine["ridge_error"] / mine["best_untrained_error"], at, "|", color="#444444", ms=8)
        axis.axvline(1, color="black", lw=0.8)
        axis.set(xlabel="error over hidden values / that of the best untrained baseline (bar: ridge regression)")
        axis.set_yticks(range(len(cases)), cases, fontsize=8)
        axis.invert_yaxis()
        axis.legend(fontsize=8)
        axis.set_title("Accuracy on held-out windows: left of the line is better")
    return figure


if __name__ == "__main__":
    run(main, config)
