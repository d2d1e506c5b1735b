"""Pictures of a pair's market conditions, in one style (imported late: matplotlib takes a second)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np

from lob.files import Book, new_file

BLUE, RED, GREEN, GREY = "#2a6f97", "#c1443c", "#3a7d44", "#8d99ae"
EMPTY = "#14121f"  # behind heat maps, where no order rests
STYLE: Any = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "image.cmap": "magma",
}
LABELS = {
    "mid_price_change_bps": "mid-price change (bps)",
    "average_spread_bps": "average spread (bps)",
    "std_tick_returns_bps": "deviation of tick returns (bps)",
    "mean_tick_returns_bps": "mean tick return (bps)",
    "realised_volatility_bps": "realised volatility (bps)",
    "imbalance_best": "imbalance at the best",
    "imbalance_depth": "imbalance over the depth",
    "update_rate_hz": "states per second",
    "duration_s": "duration (s)",
    "traded_direction": "traded direction",
}


def draw_pair(book: Book, rows: np.ndarray, main: Sequence[str], folder: Path) -> list[Path]:
    """Draw a pair's five pictures into `folder`; return their files."""
    sample = np.array(rows[:: max(1, len(rows) // 200_000)])
    figures = {
        "book": draw_book(book),
        "distributions": draw_distributions(sample, book.pair),
        "joint": draw_joint(sample, main, book.pair),
        "day": draw_day(book, sample),
        "extremes": draw_extremes(book, rows),
    }
    return [save(figure, folder / f"{book.pair}_{name}.png") for name, figure in figures.items()]


def save(figure: plt.Figure, file: Path) -> Path:
    with new_file(file) as handle:
        figure.savefig(handle, format="png", bbox_inches="tight")
    plt.close(figure)
    return file


def to_dates(timestamps: np.ndarray) -> np.ndarray:
    return np.asarray(timestamps).astype("datetime64[ns]")


def depth_image(price_ticks: np.ndarray, sizes: np.ndarray, bins: int = 160) -> tuple[np.ndarray, float, float]:
    """Log size on a grid of price (bins) by time, NaN where no level falls; and the price range in ticks.

    The range holds the middle 96 % of the visible prices, so that a far order doesn't squeeze the picture.
    """
    low, high = np.quantile(price_ticks, [0.02, 0.98])
    edge = (high - low) / bins or 1.0
    cell = ((price_ticks - low) / edge).astype(np.int64)
    inside = (cell >= 0) & (cell < bins)
    image = np.zeros((bins, len(price_ticks)))
    time = np.broadcast_to(np.arange(len(price_ticks))[:, None], cell.shape)
    np.add.at(image, (cell[inside], time[inside]), sizes[inside])
    return np.log10(np.where(image > 0, image, np.nan)), low, high


def draw_book(book: Book) -> plt.Figure:
    """Mid and spread over time above a heat map of the depth."""
    rows = np.linspace(0, book.rows - 1, min(book.rows, 1500)).astype(int)
    half, tick = book.depth // 2, book.tick_size
    prices = book.price_ticks[rows].astype(np.float64)
    times = to_dates(book.timestamps[rows])
    mid = (prices[:, half - 1] + prices[:, half]) / 2
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(3, 1, figsize=(10, 8), sharex=True, height_ratios=[2, 1, 3], layout="constrained")
        axes[0].plot(times, mid * tick, color=BLUE, lw=1)
        axes[0].set(title=f"{book.pair}: {book.rows:,} states", ylabel="mid")
        axes[1].plot(times, (prices[:, half] - prices[:, half - 1]) / mid * 1e4, color=RED, lw=0.6)
        axes[1].set(ylabel="spread (bps)")
        image, low, high = depth_image(prices, book.sizes[rows])
        edges = mdates.date2num(times[[0, -1]])
        mesh = axes[2].imshow(image, aspect="auto", origin="lower", extent=(*edges, low * tick, high * tick))
        axes[2].plot(times, mid * tick, color="white", lw=0.7)
        axes[2].set(ylabel="price", xlabel="exchange time (UTC)", facecolor=EMPTY)
        axes[2].grid(False)
        figure.colorbar(mesh, ax=axes[2], label="log10 of resting size", pad=0.01)
        axes[2].xaxis.set_major_formatter(mdates.ConciseDateFormatter(axes[2].xaxis.get_major_locator()))
    return figure


def central(values: np.ndarray, share: float = 0.998) -> np.ndarray:
    """The values inside the central `share`, for axes that outliers don't stretch."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return values[(values >= low) & (values <= high)]


def draw_distributions(rows: np.ndarray, pair: str) -> plt.Figure:
    names = [name for name in LABELS if np.isfinite(rows[name]).any()]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(-(-len(names) // 3), 3, figsize=(10, 8), layout="constrained")
        for axis, name in zip(axes.flat, names, strict=False):
            axis.hist(central(rows[name]), bins=80, color=BLUE)
            axis.axvline(np.nanmedian(rows[name]), color=RED, lw=1)
            axis.set(xlabel=LABELS[name], yticks=[])
        for axis in list(axes.flat)[len(names) :]:
            axis.set_axis_off()
        figure.suptitle(f"{pair}: windows by condition (red: median; the outer 0.2 % not drawn)", fontsize=10)
    return figure


def draw_joint(rows: np.ndarray, names: Sequence[str], pair: str) -> plt.Figure:
    """Corner plot: each statistic's distribution on the diagonal, log counts of each two below it."""
    limits = {name: (central(rows[name]).min(), central(rows[name]).max()) for name in names}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(names), len(names), figsize=(10, 10), layout="constrained")
        for (i, j), axis in np.ndenumerate(axes):
            if j > i:
                axis.set_axis_off()
                continue
            across, up = rows[names[j]], rows[names[i]]
            if i == j:
                axis.hist(across, bins=60, range=limits[names[j]], color=BLUE)
                axis.set(yticks=[])
            else:
                counts, x, y = np.histogram2d(across, up, bins=50, range=(limits[names[j]], limits[names[i]]))
                axis.pcolormesh(x, y, np.where(counts > 0, np.log10(np.maximum(counts, 1)), np.nan).T)
            axis.grid(False)
            axis.tick_params(labelsize=7)
            if i == len(names) - 1:
                axis.set_xlabel(LABELS[names[j]].replace(" (", "\n("), fontsize=8)
            if j == 0 and i > 0:
                axis.set_ylabel(LABELS[names[i]].replace(" (", "\n("), fontsize=8)
        figure.suptitle(f"{pair}: joint distribution of window statistics (colour: log count)", fontsize=10)
    return figure


def draw_day(book: Book, rows: np.ndarray) -> plt.Figure:
    """Median and 10 to 90 % band of spread, deviation and update rate over the recording's hours."""
    times = np.asarray(book.timestamps)[rows["end_row"] - 1]
    edges = np.linspace(times[0], times[-1], 61)
    bin_of = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, 59)
    centres = to_dates(((edges[:-1] + edges[1:]) / 2).astype(np.int64))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(3, 1, figsize=(10, 6), sharex=True, layout="constrained")
        panels = ("average_spread_bps", "std_tick_returns_bps", "update_rate_hz")
        for axis, name, colour in zip(axes, panels, (RED, BLUE, GREEN), strict=True):
            bands = np.full((3, 60), np.nan)
            for index in np.unique(bin_of):
                bands[:, index] = np.quantile(rows[name][bin_of == index], [0.1, 0.5, 0.9])
            axis.fill_between(centres, bands[0], bands[2], color=colour, alpha=0.2, lw=0)
            axis.plot(centres, bands[1], color=colour)
            axis.set(ylabel=LABELS[name].replace(" (", "\n("))
        axes[-1].xaxis.set_major_formatter(mdates.ConciseDateFormatter(axes[-1].xaxis.get_major_locator()))
        axes[-1].set(xlabel="exchange time (UTC)")
        figure.suptitle(f"{book.pair}: conditions over time (line: median, band: 10 to 90 %)", fontsize=10)
    return figure


def draw_extremes(book: Book, rows: np.ndarray) -> plt.Figure:
    """Depth heat maps of the windows with the largest rise, fall, deviation and spread."""
    picks = {
        "largest rise": int(np.argmax(rows["mid_price_change_bps"])),
        "largest fall": int(np.argmin(rows["mid_price_change_bps"])),
        "highest deviation": int(np.argmax(rows["std_tick_returns_bps"])),
        "widest spread": int(np.argmax(rows["average_spread_bps"])),
    }
    length = int(rows["end_row"][0] - book.segment_starts[0])
    half, tick = book.depth // 2, book.tick_size
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
        for axis, (title, pick) in zip(axes.flat, picks.items(), strict=True):
            end = int(rows["end_row"][pick])
            prices = book.price_ticks[end - length : end].astype(np.float64)
            image, low, high = depth_image(prices, book.sizes[end - length : end], bins=96)
            mesh = axis.imshow(image, aspect="auto", origin="lower", extent=(0, length, low * tick, high * tick))
            axis.plot((prices[:, half - 1] + prices[:, half]) / 2 * tick, color="white", lw=1)
            change, spread = rows["mid_price_change_bps"][pick], rows["average_spread_bps"][pick]
            axis.set(title=f"{title}: {change:+.2f} bps, spread {spread:.2f} bps", xlabel="state", ylabel="price")
            axis.set_facecolor(EMPTY)
            axis.grid(False)
        figure.colorbar(mesh, ax=axes, label="log10 of resting size", shrink=0.6)
        figure.suptitle(f"{book.pair}: the most extreme windows (white: mid)", fontsize=10)
    return figure


def draw_balance(before: np.ndarray, after: np.ndarray, names: Sequence[str], pair: str) -> plt.Figure:
    """Each statistic's distribution over all windows and over the balanced sample, on a log scale."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
        for axis, name in zip(axes.flat, names, strict=False):
            every = np.asarray(before[name][:: max(1, len(before) // 200_000)])
            span = (min(central(every).min(), after[name].min()), max(central(every).max(), after[name].max()))
            for values, colour, label in ((every, GREY, "all windows"), (after[name], BLUE, "balanced sample")):
                axis.hist(values, bins=60, range=span, density=True, histtype="step", color=colour, label=label, lw=1.4)
            axis.set(xlabel=LABELS[name], yscale="log", ylabel="density")
        axes[0, 0].legend()
        figure.suptitle(f"{pair}: conditions before and after balancing", fontsize=10)
    return figure
