"""Pictures of filled windows: depth maps, and errors by level and by distance."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from lob.book.states import Book
from lob.evaluation.fills import Hidden
from lob.evaluation.report import MASKS, METHODS, describe_training
from lob.evaluation.ridge import Ridges
from lob.evaluation.scoring import OURS, RIDGE, Masking, fill, profile_errors, window_errors
from lob.model.encoder import BookEncoder
from lob.plotting import BLUE, GREEN, GREY, RED, add_size_bar, cover, show_depth

PROFILED_MASKS = ("patch", "span64", "tail")
METHODS_DRAWN = {name: METHODS[name] for name in ("linear_time", "ladder", RIDGE, OURS)}
Panel = tuple[np.ndarray, np.ndarray]  # prices in ticks and sizes of a window, float64 (T, L) each


@torch.inference_mode()
def draw_pair(
    model: BookEncoder,
    meta: dict[str, Any],
    maskings: list[Masking],
    ridges: dict[str, Ridges | None],
    book: Book,
    end: int,
    ends: np.ndarray,
) -> dict[str, plt.Figure]:
    """Return two pictures of a pair: 'fills' of one window, and 'errors' by level and by distance.

    'fills' shows the window as it was, masked, and as methods filled it. The distance in 'errors'
    is the number of states to the nearest one that shows the level.

    meta: the checkpoint's metadata. ridges: by mask. end: end row of the window in 'fills'. ends:
    end rows of the windows in 'errors', int64 (W,).
    """
    drawn = [masking for mask in PROFILED_MASKS for masking in maskings if masking.mask == mask]
    drawn = drawn or maskings[:1]
    profiles = {}
    windows = [(book, ends)]
    for masking in drawn:
        fitted = ridges[masking.mask]
        curves = profile_errors(masking, windows, fitted, model, list(METHODS_DRAWN))
        named = {label: curves[name] for name, label in METHODS_DRAWN.items() if name in curves}
        profiles[MASKS[masking.mask]] = named
    mask = drawn[0].mask
    hidden = next(iter(drawn[0].hide([(book, np.array([end]))])))
    panels, errors = make_panels(hidden, fill(hidden, ridges[mask], model), METHODS_DRAWN)
    covered = hidden.mask[0, ..., 1].cpu().numpy()
    what = f"{book.pair}, resting size by price; hidden: {MASKS[mask]}; errors over what is hidden"
    title = f"{what}\nencoder: {describe_training(meta, mask)}"
    title_of_errors = f"{book.pair}: errors over hidden sizes of tested windows"
    return {
        "fills": draw_fills(panels, covered, errors, book.tick_size, title),
        "errors": draw_error_profiles(profiles, title_of_errors),
    }


def make_panels(
    hidden: Hidden, filled: dict[str, Tensor], labels: Mapping[str, str]
) -> tuple[dict[str, Panel], dict[str, str]]:
    """Return panels of the batch's first window, 'truth' first, and each fill's errors in words.

    filled: each method's columns. labels: method -> its name in the picture.
    """
    panels = {"truth": to_panel(hidden, hidden.values)}
    errors = {}
    for method, label in labels.items():
        if method not in filled:
            continue
        panels[label] = to_panel(hidden, filled[method])
        found = window_errors(filled[method], hidden)
        size, price = float(found["log_size"][0]), float(found["offset"][0])
        errors[label] = f"squared error of log size {size:.3g},\nprices {price:.3g} ticks off"
    return panels, errors


def to_panel(hidden: Hidden, columns: Tensor) -> Panel:
    """Return the first window with its hidden values filled from columns, (B, T, L, K)."""
    complete = torch.where(hidden.known, hidden.values, columns)[0].double().cpu()
    anchor = hidden.anchor_ticks[0].cpu()
    return (complete[..., 0] + anchor).numpy(), complete[..., 1].exp().numpy()


def draw_fills(
    fills: dict[str, Panel],
    hidden: np.ndarray,
    errors: dict[str, str],
    tick: float,
    title: str,
) -> plt.Figure:
    """Draw depth maps of one window: the truth, the same with hidden values in grey, and each fill.

    fills: 'truth', then a panel for each method. hidden: bool (T, L). errors: what stands below a
    panel. tick: the price of a tick.
    """
    panels = {"truth": fills["truth"], "masked (grey: hidden)": fills["truth"], **fills}
    columns = -(-len(panels) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(11.5, 7.5), sharey=True, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    scale = None
    for axis, (name, (prices, sizes)) in zip(axes.flat, panels.items(), strict=False):
        mesh = show_depth(axis, prices, sizes, tick, 0, len(prices), scale)
        scale = mesh.get_clim()
        axis.set(title=name, xlabel=f"book state\n{errors.get(name, '')}")
        if name not in fills:
            cover(axis, mesh, prices * tick, hidden)
    add_size_bar(mesh, axes, "resting size (black: no order)", extend="min", aspect=40)
    for axis in axes[:, 0]:
        axis.set_ylabel("price")
    figure.suptitle(title, fontsize=11)
    return figure


def draw_error_profiles(
    profiles: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], title: str
) -> plt.Figure:
    """Draw the squared error of log size by level, (L,), and by states to a visible one, (T,).

    profiles: mask -> method -> both curves, as `profile_errors` returns them.
    """
    size = (10, 3 * len(profiles))
    figure, axes = plt.subplots(len(profiles), 2, figsize=size, squeeze=False, layout="constrained")
    colours = (GREY, BLUE, GREEN, RED)
    for row, (mask, methods) in zip(axes, profiles.items(), strict=True):
        for colour, (method, curves) in zip(colours, methods.items(), strict=False):
            for axis, curve in zip(row, curves, strict=True):
                axis.plot(curve, color=colour, lw=1.3, label=method)
        row[0].set(
            xlabel="level, from the lowest bid to the highest ask",
            ylabel=f"{mask} hidden:\nsquared error of log size",
        )
        row[0].xaxis.get_major_locator().set_params(integer=True)
        row[1].set(xlabel="book states to the nearest one that shows the level", ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=11)
    return figure
