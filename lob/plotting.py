"""One style for all pictures, and the depth map. Import it late: matplotlib takes a second."""

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullLocator

from lob.storage import new_file

matplotlib.use("Agg")
plt.rcParams.update(
    {
        "figure.dpi": 110,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "axes.axisbelow": True,
    }
)
BLUE, RED, GREEN, VIOLET, GREY = "#2a6f97", "#c1443c", "#3a7d44", "#6d4c91", "#8d99ae"
ORANGE, PLUM, TEAL, PINK = "#e09f3e", "#6d597a", "#2a9d8f", "#b56576"
CYAN, SAGE, BROWN, NAVY = "#00b4d8", "#8ab17d", "#bc6c25", "#355070"
PALETTE = (BLUE, RED, GREEN, ORANGE, PLUM, TEAL, PINK, CYAN, SAGE, BROWN, NAVY, GREY)
# Colours of a depth map: of a price at which no order rests, of a price outside of the recorded
# levels, and of the line that is the mid.
EMPTY, UNSEEN, MID = "#14121f", "#e5e7eb", "#4cc9f0"


def save(figure: plt.Figure, file: Path) -> Path:
    """Write a figure as PNG, close it, and return the file."""
    with new_file(file) as handle:
        figure.savefig(handle, format="png", bbox_inches="tight")
    plt.close(figure)
    return file


def scale_axis(axis: plt.Axes) -> None:
    """Make a loss axis logarithmic if its values span more than a factor of 5; plain numbers."""
    if axis.dataLim.minposy * 5 < axis.dataLim.ymax:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def show_depth(
    axis: plt.Axes,
    price_ticks: np.ndarray,
    sizes: np.ndarray,
    tick: float,
    begin: float,
    end: float,
    scale: tuple[float, float] | None = None,
) -> AxesImage:
    """Draw a depth map: resting size (colour, log scale) by price and time, and the mid.

    price_ticks, sizes: float64 (N, L), the states, evenly spaced between the times `begin` and
    `end`; a state of NaN is left blank. scale: the sizes that the faintest and the strongest colour
    stand for; None: quantiles of the sizes drawn.

    The picture holds every mid and the middle 94 % of the prices. Its rows are whole ticks high:
    rows that hold now one tick, now two would show as stripes.
    """
    half = price_ticks.shape[1] // 2
    mid = (price_ticks[:, half - 1] + price_ticks[:, half]) / 2
    low, high = np.nanquantile(price_ticks, [0.03, 0.97])
    low = np.floor(min(low, np.nanmin(mid)))
    high = np.ceil(max(high, np.nanmax(mid)))
    step = max(1, -(-int(high - low) // 150))  # ticks per row: some 150 rows at most
    bins = int(high - low) // step + 1

    seen = np.isfinite(mid)
    known_ticks = np.where(seen[:, None], price_ticks, low - 1)  # below the picture if unknown
    row = np.floor((known_ticks - low) / step).astype(np.int64)
    column = np.broadcast_to(np.arange(len(mid))[:, None], row.shape)
    inside = (row >= 0) & (row < bins)
    image = np.zeros((bins, len(mid)))
    np.add.at(image, (row[inside], column[inside]), sizes[inside])

    if scale is None:
        faint, strong = np.quantile(image[image > 0], [0.02, 0.995])
    else:
        faint, strong = scale
    every_row = np.arange(bins)[:, None]
    unseen = (every_row < row[:, 0]) | (every_row > row[:, -1]) | ~seen
    # Below the scale, for a price without orders: its colour is EMPTY.
    image = np.where(image > 0, np.maximum(image, faint), faint / 10)
    bottom = (low - 0.5) * tick
    top = (low - 0.5 + bins * step) * tick
    mesh = axis.imshow(
        np.ma.array(image, mask=unseen),
        aspect="auto",
        origin="lower",
        extent=(begin, end, bottom, top),
        norm=LogNorm(faint, max(strong, faint * 1.01)),
        interpolation="nearest",
        cmap=plt.get_cmap("magma").with_extremes(under=EMPTY, bad=UNSEEN),
    )
    axis.plot(np.linspace(begin, end, len(mid)), mid * tick, color=MID, lw=1.2)
    axis.grid(False)
    axis.ticklabel_format(axis="y", useOffset=False, style="plain")
    return mesh


def cover(axis: plt.Axes, mesh: AxesImage, prices: np.ndarray, hidden: np.ndarray) -> None:
    """Paint those pixels of a depth map grey whose nearest level is hidden.

    prices: of the levels, (T, L); hidden: bool (T, L).
    """
    low, high = mesh.get_extent()[2:]
    rows, states = mesh.get_size()
    price_of_row = low + (np.arange(rows) + 0.5) * (high - low) / rows
    nearest = np.abs(price_of_row[:, None, None] - prices).argmin(axis=2)
    image = np.ma.masked_equal(hidden[np.arange(states), nearest], False)
    axis.imshow(
        image,
        aspect="auto",
        origin="lower",
        extent=mesh.get_extent(),
        cmap=ListedColormap([GREY]),
        interpolation="nearest",
    )


def add_size_bar(mesh: AxesImage, axes: plt.Axes | np.ndarray, label: str, **options: Any) -> None:
    """Put the colour bar of a depth map, with plain numbers, beside `axes`."""
    faint, strong = mesh.get_clim()
    ticks = LogLocator(subs=(1, 2, 5) if strong < 300 * faint else (1,))
    bar = mesh.figure.colorbar(
        mesh, ax=axes, label=label, pad=0.01, ticks=ticks, format="{x:g}", **options
    )
    bar.minorticks_off()
