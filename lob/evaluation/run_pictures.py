"""Pictures of training runs: curves, the effect of one setting, FP8 beside bf16."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter

from lob.evaluation.runs import LOSS_KEYS, Run, find_different_keys, group_runs, smooth, sort_key
from lob.plotting import PALETTE, scale_axis

PIXELS = 2000  # points of a curve, at most
PANELS = 9  # keys in the picture of effects, at most


def draw_curves(runs: Sequence[Run], title: str, smoothing: int) -> plt.Figure:
    """Draw loss, learning rate and gradient norm by step; validation loss by time and windows.

    The runs' losses must compare. The loss of the ladder, which needs no training, is drawn too.
    """
    seconds = max(run.metrics["validation"]["seconds"].max() for run in runs)
    unit, name = pick_unit(seconds)
    figure, axes = plt.subplot_mosaic(
        [["loss", "loss"], ["rate", "norm"], ["time", "windows"]],
        figsize=(10, 9),
        height_ratios=[3, 1.5, 2],
        layout="constrained",
    )
    for colour, run in zip(PALETTE, runs, strict=False):
        draw_steps(axes, run, colour, smoothing, raw=len(runs) <= 3)
        validation = run.metrics["validation"]
        losses = validation["validation_loss"]
        style: dict[str, Any] = {"color": colour, "ms": 3.5, "lw": 1.1}
        axes["loss"].plot(validation["step"], losses, "--o", label=run.name, **style)
        axes["time"].plot(validation["seconds"] / unit, losses, "-o", **style)
        axes["windows"].plot(validation["windows_seen"], losses, "-o", **style)
    draw_ladder([axes[panel] for panel in ("loss", "time", "windows")], runs)
    axes["loss"].set_title(f"{title}: loss in training (lines, smoothed) and in validation (dots)")
    axes["loss"].set(xlabel="optimizer step", ylabel="loss")
    axes["rate"].set(xlabel="optimizer step", ylabel="learning rate")
    axes["norm"].set(xlabel="optimizer step", ylabel="gradient norm")
    axes["time"].set(xlabel=f"time of training ({name})", ylabel="validation loss")
    axes["windows"].set(xlabel="training windows seen", ylabel="validation loss")
    for panel in ("loss", "norm", "time", "windows"):
        scale_axis(axes[panel])
    for panel in ("loss", "rate", "norm", "windows"):
        axes[panel].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes["loss"].legend(ncols=2, fontsize=8)
    return figure


def draw_ladder(axes: Sequence[plt.Axes], runs: Sequence[Run]) -> None:
    """Draw the ladder's loss: a line, or one for each run if other seeds hid other values."""
    losses = {run.name: run.ladder_loss for run in runs if np.isfinite(run.ladder_loss)}
    if not losses:
        return
    style: dict[str, Any] = {"lw": 1.2, "ls": ":"}
    alike = max(losses.values()) - min(losses.values()) < 0.01 * max(losses.values())
    for axis in axes:
        axis.plot([], [], color="black", label="ladder, not trained", **style)
        if alike:
            axis.axhline(float(np.mean([*losses.values()])), color="black", **style)
            continue
        for colour, run in zip(PALETTE, runs, strict=False):
            if run.name in losses:
                axis.axhline(losses[run.name], color=colour, **style)


def pick_unit(seconds: float) -> tuple[float, str]:
    """Return a unit of time in which `seconds` is readable: its length in seconds and its name."""
    if seconds > 7200:
        return 3600, "h"
    return (60, "min") if seconds > 120 else (1, "s")


def draw_steps(axes: dict[str, plt.Axes], run: Run, colour: str, smoothing: int, raw: bool) -> None:
    """Draw a run's step entries, smoothed over at least 1 % of them; with `raw` also each loss."""
    step = run.metrics["step"].replace([np.inf, -np.inf], np.nan)
    few = step.iloc[:: max(1, -(-len(step) // PIXELS))]
    entries = max(smoothing, len(step) // 100)
    averaged = smooth(step[["train_loss", "gradient_norm"]], entries).loc[few.index]
    if raw:
        axes["loss"].plot(few["step"], few["train_loss"], color=colour, lw=0.6, alpha=0.3)
    axes["loss"].plot(few["step"], averaged["train_loss"], color=colour, lw=1.3)
    axes["rate"].plot(few["step"], few["learning_rate"], color=colour, lw=1.3)
    axes["norm"].plot(few["step"], averaged["gradient_norm"], color=colour, lw=1.3)


def draw_effects(runs: Sequence[Run], different: Sequence[str]) -> plt.Figure | None:
    """Draw the best validation loss against each key in which otherwise equal runs differ.

    Equal means equal but for the seed. different: the keys in which the runs differ; those that
    change which values the loss is taken over are left out. A line joins otherwise equal runs
    through their mean over seeds. The values of a key are spaced evenly.
    """
    effects = find_effects(runs, different)
    if not effects:
        return None
    most = sorted(effects, key=lambda key: -sum(map(len, effects[key])))[:PANELS]
    rows, columns = -(-len(most) // 3), min(3, len(most))
    size = max(6, 3.4 * columns), 3 * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(most) :]:
        axis.set_axis_off()
    for axis, key in zip(axes.flat, most, strict=False):
        draw_effect(axis, key, effects[key])
    figure.supylabel("best validation loss", fontsize=9)
    title = "One setting changed, the others equal (dot: a run; line: mean over seeds)"
    figure.suptitle(title, fontsize=10, weight="bold")
    return figure


def find_effects(runs: Sequence[Run], different: Sequence[str]) -> dict[str, list[list[Run]]]:
    """Return for each key the groups of finished runs that differ in it and the seed alone."""
    finished = [run for run in runs if np.isfinite(run.best_loss)]
    effects = {}
    for key in different:
        if key in ("seed", "precision", "fp8_recipe", *LOSS_KEYS):
            continue
        groups = group_runs(finished, {key, "seed"})
        differing = [group for group in groups if find_different_keys(group, [key])]
        if differing:
            effects[key] = differing
    return effects


def draw_effect(axis: plt.Axes, key: str, groups: list[list[Run]]) -> None:
    """Draw the runs of each group, which are equal but for `key` and the seed, in one colour."""

    def value_of(run: Run) -> Any:
        return sort_key(run.config.get(key))

    values = sorted({value_of(run) for group in groups for run in group})
    for number, group in enumerate(groups):
        places = [values.index(value_of(run)) for run in group]
        losses = pd.Series([run.best_loss for run in group], index=places)
        colour = PALETTE[number % len(PALETTE)]
        axis.plot(losses.groupby(level=0).mean(), color=colour, lw=1.3)
        axis.plot(places, losses, "o", color=colour, ms=4)
    axis.set(xlabel=key, xticks=range(len(values)), xticklabels=[text for _, text in values])
    axis.margins(x=0.15)
    scale_axis(axis)


def draw_precision(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw each FP8 run beside the bf16 run of equal hyperparameters, and their difference."""
    pairs = pair_precisions(runs)
    if not pairs:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for colour, pair in zip(PALETTE, pairs, strict=False):
        fp8, bf16 = (run.metrics["validation"].set_index("step")["validation_loss"] for run in pair)
        rates = [run.metrics["epoch"]["windows_per_second"].median() for run in pair]
        label = f"{pair[0].name} over {pair[1].name}, {rates[0] / rates[1]:.2f} x its speed"
        difference = (fp8 / bf16 - 1).dropna() * 100
        axes[0].plot(fp8, "-o", bf16, "--", color=colour, ms=3.5)
        axes[1].plot(difference, "-o", color=colour, ms=3.5, label=label)
    axes[0].set_title("Runs in FP8 (lines) and in bf16 (dashes)")
    axes[0].set(xlabel="optimizer step", ylabel="validation loss")
    axes[1].set_title("Their difference")
    axes[1].set(xlabel="optimizer step", ylabel="FP8's loss over bf16's (%)")
    axes[1].axhline(0, color="black", lw=0.6)
    axes[1].legend(fontsize=8)
    scale_axis(axes[0])
    return figure


def pair_precisions(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return pairs of an FP8 run and a bf16 run that differ in precision alone."""
    pairs = []
    for group in group_runs(runs, {"precision", "fp8_recipe"}):
        fp8 = [run for run in group if run.precision == "fp8"]
        bf16 = [run for run in group if run.precision == "bf16"]
        pairs += [(one, other) for one in fp8 for other in bf16]
    return pairs
