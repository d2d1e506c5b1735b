"""One style for all pictures, and the depth map. Imported late: matplotlib takes a second."""

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullLocator

from lob.storage import new_file

matplotlib.use("Agg")
plt.rcParams.update({
    "figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
    "axes.titleweight": "bold", "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "axes.axisbelow": True,
})  # fmt: skip
BLUE, RED, GREEN, VIOLET, GREY = "#2a6f97", "#c1443c", "#3a7d44", "#6d4c91", "#8d99ae"
EMPTY, UNSEEN = "#14121f", "#e5e7eb"  # in depth heat maps: no order rests; outside of the recorded levels
MID = "#4cc9f0"  # the mid on a depth heat map
PALETTE = (BLUE, RED, GREEN, "#e09f3e", "#6d597a", "#2a9d8f", "#b56576", "#00b4d8", "#8ab17d", "#bc6c25",
           "#355070", GREY)  # fmt: skip


def save(figure: plt.Figure, file: Path) -> Path:
    with new_file(file) as handle:
        figure.savefig(handle, format="png", bbox_inches="tight")
    plt.close(figure)
    return file


def scale_axis(axis: plt.Axes) -> None:
    """Draw losses logarithmically where they span more than a factor of 5, with plain numbers at the ticks."""
    if axis.dataLim.minposy * 5 < axis.dataLim.ymax:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def show_depth(axis: plt.Axes, price_ticks: np.ndarray, sizes: np.ndarray, tick: float, begin: float, end: float,
               scale: tuple[float, float] | None = None) -> AxesImage:  # fmt: skip
    """Draw resting size (colour, log scale) by price and time, NaN states left blank, and the mid.

    price_ticks, sizes: float64 (N, L), evenly spaced between times `begin` and `end`. Rows of the picture are whole
    ticks high, so that no pattern of the grid shows, and hold the middle 94 % of the visible prices and every mid.
    scale: sizes of the faintest and strongest colour, in place of these sizes' own.
    """
    half = price_ticks.shape[1] // 2
    mid = (price_ticks[:, half - 1] + price_ticks[:, half]) / 2
    low, high = np.nanquantile(price_ticks, [0.03, 0.97])
    low, high = np.floor(min(low, np.nanmin(mid))), np.ceil(max(high, np.nanmax(mid)))
    step = max(1, -(-int(high - low) // 150))
    bins = int(high - low) // step + 1
    seen = np.isfinite(mid)
    cell = np.floor((np.where(seen[:, None], price_ticks, low - 1) - low) / step).astype(np.int64)
    inside = (cell >= 0) & (cell < bins)
    time = np.broadcast_to(np.arange(len(mid))[:, None], cell.shape)
    image = np.zeros((bins, len(mid)))
    np.add.at(image, (cell[inside], time[inside]), sizes[inside])
    faint, strong = np.quantile(image[image > 0], [0.02, 0.995]) if scale is None else scale
    level = np.arange(bins)[:, None]
    unseen = (level < cell[:, 0]) | (level > cell[:, -1]) | ~seen
    image = np.ma.array(np.where(image > 0, np.maximum(image, faint), faint / 10), mask=unseen)
    mesh = axis.imshow(
        image, aspect="auto", origin="lower", extent=(begin, end, (low - 0.5) * tick, (low - 0.5 + bins * step) * tick),
        norm=LogNorm(faint, max(strong, faint * 1.01)), interpolation="nearest",
        cmap=plt.get_cmap("magma").with_extremes(under=EMPTY, bad=UNSEEN),
    )  # fmt: skip
    axis.plot(np.linspace(begin, end, len(mid)), mid * tick, color=MID, lw=1.2)
    axis.grid(False)
    axis.ticklabel_format(axis="y", useOffset=False, style="plain")
    return mesh


def add_size_bar(mesh: AxesImage, axes: plt.Axes | np.ndarray, label: str, **options: Any) -> None:
    """Put the colour bar of a depth map beside `axes`, with plain numbers."""
    faint, strong = mesh.get_clim()
    ticks = LogLocator(subs=(1, 2, 5) if strong < 300 * faint else (1,))
    bar = mesh.figure.colorbar(mesh, ax=axes, label=label, pad=0.01, ticks=ticks, format="{x:g}", **options)
    bar.minorticks_off()
