"""Pictures of filled windows: depth maps, and errors by level and distance."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.image import AxesImage

from lob.plotting import BLUE, GREEN, GREY, RED, add_size_bar, show_depth


def draw_fills(fills: dict[str, tuple[np.ndarray, np.ndarray]], hidden: np.ndarray, errors: dict[str, str], tick: float,
               title: str) -> plt.Figure:  # fmt: skip
    """Depth heat maps of one window, all in one scale: the truth, that with `hidden` cells in grey, and what filled it.

    fills: name ('truth' the first) -> price in ticks and sizes, float64 (T, L) each; hidden: bool (T, L).
    """
    panels = {"truth": fills["truth"], "masked (grey: hidden)": fills["truth"], **fills}
    figure, axes = plt.subplots(2, -(-len(panels) // 2), figsize=(11.5, 7.5), sharey=True, layout="constrained")
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


def cover(axis: plt.Axes, mesh: AxesImage, prices: np.ndarray, hidden: np.ndarray) -> None:
    """Paint those cells of a depth map grey whose nearest level, of `prices` (T, L), is `hidden`, bool (T, L)."""
    low, high = mesh.get_extent()[2:]
    rows, states = mesh.get_size()
    at = low + (np.arange(rows) + 0.5) * (high - low) / rows
    nearest = np.abs(at[:, None, None] - prices).argmin(axis=2)
    image = np.ma.masked_equal(hidden[np.arange(states), nearest], False)
    axis.imshow(image, aspect="auto", origin="lower", extent=mesh.get_extent(), cmap=ListedColormap([GREY]),
                interpolation="nearest")  # fmt: skip


def draw_error_profiles(profiles: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], title: str) -> plt.Figure:
    """Squared error of log size by level, (L,), and by states to a visible one, (T,): mask -> method -> both."""
    size = (10, 3 * len(profiles))
    figure, axes = plt.subplots(len(profiles), 2, figsize=size, squeeze=False, layout="constrained")
    for row, (mask, methods) in zip(axes, profiles.items(), strict=True):
        for colour, (method, curves) in zip((GREY, BLUE, GREEN, RED), methods.items(), strict=False):
            for axis, curve in zip(row, curves, strict=True):
                axis.plot(curve, color=colour, lw=1.3, label=method)
        row[0].set(
            xlabel="level, from the lowest bid to the highest ask", ylabel=f"{mask} hidden:\nsquared error of log size"
        )
        row[1].set(xlabel="book states to the nearest one that shows the level", ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=11)
    return figure
