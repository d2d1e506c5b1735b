"""Compare training runs: one table, the keys in which they differ, warnings, and pictures.

    python training_results_analysis.py
    python training_results_analysis.py --sort_by=windows_per_second --more_runs="['../old/runs']"

Reads every `runs/<name>/`: config.json, env.json, metrics.csv and, where inference_testing.py left it, report.json.
Damaged runs are named and left out. Prints the main columns; leaves in `runs/analysis/`: runs.csv (all columns, a row a
run), curves.png and, where there is something to show, accuracy.csv (all rows of the reports), effects.png (one key
changed) and precision.png (FP8 against bf16).
"""

config = {
    "runs_dir": "runs",  # folder of all runs
    "more_runs": None,  # list of further folders: runs, or folders of runs
    "data_dir": "training_data",  # runs older than the samples in this folder are pointed out
    "pairs": None,  # list of pairs: only runs that were trained on exactly these; None: all runs
    "output_dir": None,  # where table and pictures go; None: runs_dir/analysis
    "sort_by": "best_validation",  # a column of the table or a key of the runs' config; -name: from high to low
    "smoothing": 20,  # log entries that a smoothed curve averages over (exponential); in pictures at least 1 % of them
    "divergence_factor": 2.0,  # warn where the smoothed train loss exceeds its least value so far by this factor
    "plateau_epochs": 3,  # warn where the last so many epochs or more
    "plateau_gain": 0.01,  # together lowered the best validation loss by less than this share
}

from lob.config import InputError, counted, load_config, nearest, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"more_runs": list, "pairs": list, "output_dir": str},
        bounds={"smoothing": ">= 1", "divergence_factor": "> 1", "plateau_epochs": ">= 1",
                "plateau_gain": ">= 0 and < 1"},
    )  # fmt: skip

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter
from tqdm import tqdm

from lob.plotting import PALETTE, save, scale_axis  # and its style and backend
from lob.results import read_rows
from lob.storage import check_writable, new_file
from lob.training.run_folder import KINDS, read_metrics

NAMES = {"model_name", "runs_dir", "resume", "data_dir", "azure_data_root", "model_path"}  # no hyperparameters
LOSS_KEYS = ("data_dir", "pairs", "split_ratios", "temporal_dim", "depth_dim", "normalization", "mask_mode",
             "mask_perc", "loss")  # fmt: skip # runs that differ in one of these are scored on other values
PRINTED = {"run": "run", "model_size": "model", "precision": "precision", "epochs": "epochs", "minutes": "minutes",
           "windows_per_second": "windows/s", "data_wait_share": "waiting", "train_loss": "train",
           "best_validation": "best val.", "best_epoch": "at epoch", "test": "test"}  # fmt: skip


@dataclass
class Run:
    """One run: its config, precision, rows of metrics.csv by kind, and the rows of its accuracy report."""

    name: str
    config: dict[str, Any]
    precision: str  # that it ran in, where env.json names it
    pairs: list[str]  # that it was trained on, where env.json or config.json names them
    metrics: dict[str, pd.DataFrame]
    report: list[dict[str, Any]]
    changed: float  # when config.json was written, s since the epoch

    @property
    def trained(self) -> pd.DataFrame:
        """The validations after the first step, those without a loss left out."""
        return self.metrics["validation"].query("step > 0").dropna(subset="validation_loss")

    @property
    def best_loss(self) -> float:
        return float(self.trained["validation_loss"].min())


def main(config: dict[str, Any]) -> None:
    output = Path(config["output_dir"] or Path(config["runs_dir"]) / "analysis")
    check_writable(output, "output_dir")
    runs, damaged, folders = [], [], find_runs(config)
    names = [folder.name for folder in folders]
    for folder in tqdm(folders, unit="run", desc="reading", disable=None, leave=False):
        try:
            runs.append(read_run(folder))
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{folder} ({str(error).splitlines()[0]})")
            continue
        if names.count(folder.name) > 1:
            runs[-1].name = str(folder)
    if config["pairs"] is not None:
        runs = [r for r in runs if sorted(r.pairs) == sorted(config["pairs"])]
    if damaged:
        print(f"left out, damaged: {'; '.join(damaged)}")
    if not runs:
        raise InputError(f"no run of pairs = {config['pairs']} in {config['runs_dir']}: train one with "
                         f"fp8_ddp_trainer.py or set --runs_dir")  # fmt: skip

    table = make_table(runs)
    order = sort_table(table, runs, config["sort_by"])
    table, runs = table.iloc[order], [runs[i] for i in order]
    print("losses, lower is better; waiting: share of the time in which steps waited for data")
    print(format_table(table))
    different = find_different_keys(runs)
    print(describe_differences(runs, different))
    for r in runs:
        for warning in find_warnings(r, config):
            print(f"warning: {r.name}: {warning}")
    files = [output / "runs.csv"]
    with new_file(files[0]) as handle:
        table.to_csv(handle, index=False)
    (output / "accuracy.csv").unlink(missing_ok=True)
    if reports := [{"run": r.name, **row} for r in runs for row in r.report]:
        files.append(output / "accuracy.csv")
        with new_file(files[-1]) as handle:
            pd.DataFrame(reports).to_csv(handle, index=False)
        print(describe_reports(runs))
    shown = runs[: len(PALETTE)]
    title = (
        counted(len(runs), "run") if len(shown) == len(runs) else f"The table's first {len(shown)} of {len(runs)} runs"
    )
    for name, figure in (("curves", draw_curves(shown, title, config["smoothing"])),
                         ("effects", draw_effects(runs, different)), ("precision", draw_precision(runs))):  # fmt: skip
        file = output / f"{name}.png"
        if figure is None:
            file.unlink(missing_ok=True)  # an older analysis's, of runs that are gone
        else:
            files.append(save(figure, file))
    print(f"{counted(len(runs), 'run')} -> {', '.join(map(str, files))}")


def find_runs(config: dict[str, Any]) -> list[Path]:
    """Return every folder that holds a config.json or metrics.csv in or right under the folders given."""
    found = {}
    for folder in [Path(config["runs_dir"]), *map(Path, config["more_runs"] or ())]:
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
    config = read_object(folder / "config.json")
    env = read_object(folder / "env.json") if (folder / "env.json").exists() else {}
    report = read_rows(folder / "report.json") if (folder / "report.json").exists() else []
    rows = read_metrics(folder)
    metrics = {kind: rows[rows["kind"] == kind].reset_index(drop=True) for kind in sorted(KINDS)}
    return Run(folder.name, config, str(env.get("precision", config.get("precision"))),
               env.get("pairs") or config.get("pairs") or [], metrics, report,
               (folder / "config.json").stat().st_mtime)  # fmt: skip


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError where the file holds something else."""
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return found


def make_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row a run; losses are NaN where the run did not get so far."""
    rows = []
    for r in runs:
        step, validation, epoch, test = (r.metrics[kind] for kind in ("step", "validation", "epoch", "test"))
        last = max(r.metrics.values(), key=lambda rows: rows["step"].max() if len(rows) else -1).iloc[-1]
        rows.append({
            "run": r.name,
            "model_size": r.config.get("model_size", ""),
            "precision": r.precision,
            "epochs": f"{max(epoch['epoch'], default=0)}/{r.config.get('epochs', '?')}",
            "steps": int(last["step"]),
            "windows_seen": int(last["windows_seen"]),
            "minutes": max(rows["seconds"].max() for rows in r.metrics.values() if len(rows)) / 60,
            "windows_per_second": (epoch if len(epoch) else step)["windows_per_second"].median(),
            "data_wait_share": step["data_wait_share"].median(),
            "train_loss": epoch["train_loss"].iloc[-1] if len(epoch) else np.nan,
            "before_training": next(iter(validation.query("step == 0")["validation_loss"]), np.nan),
            "best_validation": r.best_loss,
            "best_epoch": r.trained.loc[r.trained["validation_loss"].idxmin(), "epoch"] if len(r.trained) else 0,
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
    values = table[name] if name in table else pd.Series([sort_key(r.config.get(name)) for r in runs])
    return values.sort_values(ascending=name == sort_by, kind="stable").index.to_numpy()


def format_table(table: pd.DataFrame) -> str:
    losses = dict.fromkeys(("train_loss", "before_training", "best_validation", "test"), "{:.6f}".format)
    formats = {"minutes": "{:.1f}".format, "windows_per_second": "{:,.0f}".format, "data_wait_share": "{:.1%}".format}
    shown = table[list(PRINTED)].assign(model_size=table["model_size"].str.removesuffix("_transformer"))
    return shown.to_string(index=False, header=list(PRINTED.values()), formatters=losses | formats, na_rep="-")


def find_different_keys(runs: Sequence[Run], keys: Any = ()) -> list[str]:
    """Return those of `keys` (none: all hyperparameters) that have more than one value over the runs."""
    keys = keys or dict.fromkeys(key for r in runs for key in r.config if key not in NAMES)
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
    if apart := find_different_keys(runs, LOSS_KEYS):
        lines.append(f"warning: losses of runs that differ in {', '.join(apart)} are taken over different values and "
                     f"do not compare")  # fmt: skip
    return "\n".join(line for line in lines if line)


def smooth(values: Any, entries: int) -> Any:
    return values.ewm(span=entries, ignore_na=True).mean()


def find_warnings(r: Run, config: dict[str, Any]) -> Iterator[str]:
    losses = r.metrics["step"]["train_loss"]
    finite = np.isfinite(losses)
    if not finite.all():
        row = r.metrics["step"].loc[finite.idxmin()]
        yield f"train loss {row['train_loss']} at step {int(row['step']):,}, epoch {int(row['epoch']) + 1}"
    level = smooth(losses.where(finite), config["smoothing"])[config["smoothing"] :]  # before that it is no average yet
    over = level > config["divergence_factor"] * level.cummin()
    if over.any():
        row, least = r.metrics["step"].loc[over.idxmax()], level[: over.idxmax()].min()
        yield (f"diverged in epoch {int(row['epoch']) + 1}, step {int(row['step']):,}: smoothed train loss "
               f"{level[over.idxmax()]:.4g} after {least:.4g}")  # fmt: skip
    if len(r.trained):
        best = r.trained["validation_loss"].cummin()
        near = r.trained.loc[(best * (1 - config["plateau_gain"]) <= best.iloc[-1]).idxmax()]
        epochs = int(r.trained["epoch"].iloc[-1] - near["epoch"])
        if epochs >= config["plateau_epochs"]:
            yield (f"plateau from epoch {int(near['epoch'])}: {counted(epochs, 'more epoch')} lowered the best "
                   f"validation loss by {1 - best.iloc[-1] / near['validation_loss']:.2%}")  # fmt: skip
    before = r.metrics["validation"].query("step == 0")["validation_loss"]
    if len(r.trained) and len(before) and r.best_loss >= before.iloc[0]:
        yield f"no validation was better than before training, {before.iloc[0]:.6f}: its best checkpoint is from then"
    done, wanted = max(r.metrics["epoch"]["epoch"], default=0), r.config.get("epochs", 0)
    if done < wanted and not len(r.metrics["test"]):
        yield f"unfinished: {done} of {counted(wanted, 'epoch')}"
    for file in sorted((Path(config["data_dir"]) / "balanced_samples").glob("*.json")):
        if file.stem in (r.pairs or [file.stem]) and file.stat().st_mtime > r.changed:
            yield f"trained before {file} was last written: newer runs may have been scored on other windows"


def describe_reports(runs: Sequence[Run]) -> str:
    """Return what the accuracy reports say of sizes: a line a run and pair, a column a mask."""
    cells = {}
    for r in runs:
        for row in r.report:
            pair, *case = row["case"].split("/")
            if row["metric"] == "skill_untrained" and case[1:] == ["log_size"]:
                mark = "*" if row["note"].endswith("not trained on this mask") else " "
                cells[r.name, pair, case[0]] = f"{row['value']:+.3f}{mark}"
    masks = dict.fromkeys(mask for *_, mask in cells)
    lines = ["accuracy on held-out windows (inference_testing.py): 1 - squared error of log sizes / that of the best "
             "untrained method;", "above 0: better than it; *: not trained on this mask; more in accuracy.csv",
             f"{'run':<24}{'pair':<24}{''.join(f'{mask:>9} ' for mask in masks)}"]  # fmt: skip
    for run_, pair in dict.fromkeys((run_, pair) for run_, pair, _ in cells):
        found = "".join(f"{cells.get((run_, pair, mask), '- '):>10}" for mask in masks)
        lines.append(f"{run_:<23} {pair:<23} {found}".rstrip())
    return "\n".join(lines)


def draw_curves(runs: Sequence[Run], title: str, smoothing: int) -> plt.Figure:
    """Losses, learning rate and gradient norm by optimizer step; validation loss by time and by windows seen."""
    seconds = max(r.metrics["validation"]["seconds"].max() for r in runs)
    unit, name = (3600, "h") if seconds > 7200 else (60, "min") if seconds > 120 else (1, "s")
    figure, axes = plt.subplot_mosaic("LL;RN;TW", figsize=(10, 9), height_ratios=[3, 1.5, 2], layout="constrained")
    for colour, r in zip(PALETTE, runs, strict=False):
        step, validation = r.metrics["step"].replace([np.inf, -np.inf], np.nan), r.metrics["validation"]
        few = step.iloc[:: -(-len(step) // 2000) or 1]  # a picture has no pixels for more
        averaged = smooth(step[["train_loss", "gradient_norm"]], max(smoothing, len(step) // 100)).loc[few.index]
        if len(runs) <= 3:
            axes["L"].plot(few["step"], few["train_loss"], color=colour, lw=0.6, alpha=0.3)
        axes["L"].plot(few["step"], averaged["train_loss"], color=colour, lw=1.3)
        axes["R"].plot(few["step"], few["learning_rate"], color=colour, lw=1.3)
        axes["N"].plot(few["step"], averaged["gradient_norm"], color=colour, lw=1.3)
        for panel, x, style in (("L", validation["step"], "--o"), ("T", validation["seconds"] / unit, "-o"),
                                ("W", validation["windows_seen"], "-o")):  # fmt: skip
            axes[panel].plot(x, validation["validation_loss"], style, color=colour, ms=3.5, lw=1.1, label=r.name)
    axes["L"].set_title(f"{title}: loss in training (lines, smoothed) and in validation (dots)")
    for panel, x, y in (("L", "optimizer step", "loss"), ("R", "optimizer step", "learning rate"),
                        ("N", "optimizer step", "gradient norm"), ("W", "training windows seen", "validation loss"),
                        ("T", f"time of training ({name})", "validation loss")):  # fmt: skip
        axes[panel].set(xlabel=x, ylabel=y)
        if panel != "R":
            scale_axis(axes[panel])
        if panel != "T":
            axes[panel].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes["L"].legend(ncols=2, fontsize=8)
    return figure


def group_runs(runs: Sequence[Run], but: set[str]) -> list[list[Run]]:
    """Return groups of runs whose hyperparameters are equal, those in `but` aside."""
    groups: dict[str, list[Run]] = {}
    for r in runs:
        rest = {key: value for key, value in sorted(r.config.items()) if key not in NAMES | but}
        groups.setdefault(repr(rest), []).append(r)
    return list(groups.values())


def draw_effects(runs: Sequence[Run], different: Sequence[str]) -> plt.Figure | None:
    """Best validation loss against each key in which runs differ while all others but the seed are equal.

    Keys that change what the loss is taken over are left out. A line a setting of the other keys, through the mean over
    seeds; the values are spread evenly.
    """
    finished = [r for r in runs if np.isfinite(r.best_loss)]
    groups = {key: [group for group in group_runs(finished, {key, "seed"}) if find_different_keys(group, {key})]
              for key in different if key not in ("seed", "precision", "fp8_recipe", *LOSS_KEYS)}  # fmt: skip
    effects = {key: some for key, some in groups.items() if some}
    if not effects:
        return None
    most = sorted(effects, key=lambda key: -sum(map(len, effects[key])))[:9]
    shape = -(-len(most) // 3), min(3, len(most))
    size = max(6, 3.4 * shape[1]), 3 * shape[0]
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(most) :]:
        axis.set_axis_off()
    for axis, key in zip(axes.flat, most, strict=False):
        values = sorted({sort_key(r.config.get(key)) for group in effects[key] for r in group})
        for number, group in enumerate(effects[key]):
            losses = pd.Series({(r.name, values.index(sort_key(r.config.get(key)))): r.best_loss for r in group})
            colour = PALETTE[number % len(PALETTE)]
            axis.plot(losses.groupby(level=1).mean(), color=colour, lw=1.3)
            axis.plot(losses.index.get_level_values(1), losses, "o", color=colour, ms=4)
        axis.set(xlabel=key, xticks=range(len(values)), xticklabels=[text for _, text in values])
        axis.margins(x=0.15)
        scale_axis(axis)
    figure.supylabel("best validation loss", fontsize=9)
    figure.suptitle(
        "One setting changed, the others equal (a dot a run; line: mean over seeds)", fontsize=10, weight="bold"
    )
    return figure


def sort_key(value: Any) -> tuple[float, str]:
    """A key that sorts a config's values: numbers by size, others by their text."""
    return (float(value), f"{value:g}") if isinstance(value, int | float) else (0.0, str(value))


def draw_precision(runs: Sequence[Run]) -> plt.Figure | None:
    """Each FP8 run beside the bf16 run of equal hyperparameters: their losses, and the difference."""
    pairs = [(fp8, bf16) for group in group_runs(runs, {"precision", "fp8_recipe"})
             for fp8 in group if fp8.precision == "fp8" for bf16 in group if bf16.precision == "bf16"]  # fmt: skip
    if not pairs:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for colour, pair in zip(PALETTE, pairs, strict=False):
        losses = [r.metrics["validation"].set_index("step")["validation_loss"] for r in pair]
        speed = [r.metrics["epoch"]["windows_per_second"].median() for r in pair]
        axes[0].plot(losses[0], "-o", losses[1], "--", color=colour, ms=3.5)
        axes[1].plot((losses[0] / losses[1] - 1).dropna() * 100, "-o", color=colour, ms=3.5,
                     label=f"{pair[0].name} over {pair[1].name}, {speed[0] / speed[1]:.2f} x its speed")  # fmt: skip
    axes[0].set(xlabel="optimizer step", ylabel="validation loss", title="Runs in FP8 (lines) and in bf16 (dashes)")
    axes[1].set(xlabel="optimizer step", ylabel="FP8's loss over bf16's (%)", title="Their difference")
    axes[1].axhline(0, color="black", lw=0.6)
    axes[1].legend(fontsize=8)
    scale_axis(axes[0])
    return figure


if __name__ == "__main__":
    run(main, config)
