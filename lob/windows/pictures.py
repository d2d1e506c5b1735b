"""Pictures of a pair's market conditions."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from lob.book.states import Book
from lob.plotting import BLUE, GREEN, GREY, RED, VIOLET, add_size_bar, save, show_depth
from lob.windows.splits import to_iso

DAY_NS = 86_400e9  # matplotlib's dates are days since the epoch
MOST_WINDOWS = 200_000  # counted in a picture: of more windows every n-th one
LABELS = {
    "mid_price_change_bps": "mid-price change (bps)",
    "average_spread_bps": "average spread (bps)",
    "std_tick_returns_bps": "volatility per state (bps)",
    "mean_tick_returns_bps": "mean return per state (bps)",
    "realised_volatility_bps": "realised volatility (bps)",
    "imbalance_best": "size imbalance, best prices",
    "imbalance_depth": "size imbalance, all levels",
    "update_rate_hz": "book states per second",
    "duration_s": "duration of the window (s)",
    "traded_direction": "traded size: bought less sold (share)",
}
TWO_LINE_LABELS = {name: label.replace(" (", "\n(") for name, label in LABELS.items()}
PARTS = 64  # of a recording: extreme windows are drawn from different ones
EXTREMES = {  # title -> statistic, its sign; 0: either sign
    "largest rise": ("mid_price_change_bps", 1),
    "largest fall": ("mid_price_change_bps", -1),
    "most volatile": ("std_tick_returns_bps", 1),
    "widest spread": ("average_spread_bps", 1),
    "most updates": ("update_rate_hz", 1),
    "most one-sided": ("imbalance_depth", 0),
}


def draw_pair(book: Book, rows: np.ndarray, joint: Sequence[str], folder: Path) -> list[Path]:
    """Draw a pair's five pictures into `folder`; return their files.

    rows: STATISTICS (W,), ascending in time; joint: names of the statistics in the joint picture.
    """
    sample = np.array(rows[:: -(-len(rows) // MOST_WINDOWS)])
    figures = {
        "book": draw_book(book),
        "distributions": draw_distributions(sample, book.pair),
        "joint": draw_joint(sample, joint, book.pair),
        "day": draw_day(book, sample),
        "extremes": draw_extremes(book, rows),
    }
    return [save(figure, folder / f"{book.pair}_{name}.png") for name, figure in figures.items()]


def set_time_axis(axis: plt.Axes) -> None:
    locator = mdates.AutoDateLocator()
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))
    axis.set_xlabel("exchange time (UTC)")


def central_range(values: np.ndarray) -> tuple[float, float]:
    """Return the limits of the central 99.8 % of the finite values, for the range of an axis."""
    low, high = np.quantile(values[np.isfinite(values)], [0.001, 0.999])
    room = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a single value
        room = 0.05 * abs(low) or 1.0
    return float(low - room), float(high + room)


def bands(
    values: np.ndarray, bin_of: np.ndarray, bins: int, quantiles: Sequence[float]
) -> np.ndarray:
    """Return quantiles of the values in each bin, float64 (Q, bins); NaN for a bin without any."""
    found = pd.Series(values).groupby(bin_of).quantile(list(quantiles)).unstack()
    return found.reindex(range(bins)).to_numpy().T


def draw_book(book: Book) -> plt.Figure:
    """Draw mid and spread over time, from lowest to highest of each moment, and the depth map."""
    figure, axes = plt.subplots(
        3, 1, figsize=(10, 8.5), sharex=True, height_ratios=[2, 1, 3], layout="constrained"
    )
    begin, end = int(book.timestamps[0]), int(book.timestamps[-1])
    # Whole ns: to find other numbers among the times, numpy would copy all of them.
    grid = begin + np.linspace(0, end - begin, 1001).astype(np.int64)
    draw_touch(axes[0], axes[1], book, grid)
    mesh = draw_depth(axes[2], book, grid)
    add_size_bar(mesh, axes[2], "resting size")
    set_time_axis(axes[2])
    return figure


def draw_touch(mid_axis: plt.Axes, spread_axis: plt.Axes, book: Book, grid: np.ndarray) -> None:
    """Draw mid and spread: range and median in each interval of the time grid (ns)."""
    half = book.depth // 2
    some = np.arange(0, book.rows, -(-book.rows // 400_000))
    top = book.top_of_book
    if top is None:
        top = book.price_ticks[:, half - 1 : half + 1]
    best = np.asarray(top[some], dtype=np.float64)
    mid = best.mean(axis=1)
    spread_bps = (best[:, 1] - best[:, 0]) / mid * 1e4
    times = (grid[:-1] / DAY_NS + grid[1:] / DAY_NS) / 2
    interval = np.searchsorted(grid, book.timestamps[some], side="right") - 1
    interval = np.clip(interval, 0, len(times) - 1)
    panels = ((mid_axis, mid * book.tick_size, BLUE), (spread_axis, spread_bps, RED))
    for axis, values, colour in panels:
        low, middle, high = bands(values, interval, len(times), (0, 0.5, 1))
        axis.fill_between(times, low, high, color=colour, alpha=0.5, lw=0, step="mid")
        axis.plot(times, middle, color=colour, lw=1)
    title = f"{book.pair}: {book.rows:,} book states of {book.depth} levels"
    mid_axis.set(title=title, ylabel="mid price")
    mid_axis.ticklabel_format(axis="y", useOffset=False, style="plain")
    spread_axis.set(ylabel="spread (bps)")


def draw_depth(axis: plt.Axes, book: Book, grid: np.ndarray) -> AxesImage:
    """Draw the depth map of the states at the moments of the time grid (ns), blank in gaps."""
    rows = np.searchsorted(book.timestamps, grid, side="right") - 1
    last_of_segment = np.isin(rows + 1, book.segment_starts)
    between_segments = last_of_segment & (book.timestamps[rows] < grid)
    prices = book.price_ticks[rows].astype(np.float64)
    prices[between_segments] = np.nan
    sizes = book.sizes[rows].astype(np.float64)
    begin, end = grid[[0, -1]] / DAY_NS
    mesh = show_depth(axis, prices, sizes, book.tick_size, begin, end)
    axis.set(
        ylabel="price",
        title="resting size by price (blue line: mid; grey: outside of the recorded levels)",
    )
    return mesh


def draw_distributions(rows: np.ndarray, pair: str) -> plt.Figure:
    """Draw a histogram of the windows for each statistic.

    The scale is logarithmic, because most windows are calm and the others matter.
    """
    names = [name for name in LABELS if np.isfinite(rows[name]).any()]
    figure, axes = plt.subplots(-(-len(names) // 3), 3, figsize=(10, 8), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        values = rows[name][np.isfinite(rows[name])]
        share = np.full(len(values), 100 / len(values))
        axis.hist(values, bins=70, range=central_range(values), weights=share, color=BLUE)
        axis.axvline(np.median(values), color=RED, lw=1.2)
        axis.set(xlabel=LABELS[name], yscale="log")
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.yaxis.set_major_formatter("{x:g} %")
        axis.yaxis.set_minor_formatter(NullFormatter())
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    note = "red: median; the outer 0.2 % not drawn"
    figure.suptitle(f"{pair}: share of windows by market condition ({note})", fontsize=11)
    return figure


def draw_joint(rows: np.ndarray, names: Sequence[str], pair: str) -> plt.Figure:
    """Draw a histogram of each statistic on the diagonal, and of each two of them below it."""
    names = [name for name in names if np.isfinite(rows[name]).any()]
    limits = {name: central_range(rows[name]) for name in names}
    norm = LogNorm(1, max(2, len(rows) / 10))
    figure, axes = plt.subplots(
        len(names), len(names), figsize=(10, 10), sharex="col", layout="constrained"
    )
    for (i, j), axis in np.ndenumerate(axes):
        across, up = names[j], names[i]
        if j > i:
            axis.set_axis_off()
            continue
        if i == j:
            axis.hist(rows[across], bins=50, range=limits[across], color=BLUE, log=True)
            axis.yaxis.tick_right()
            axis.yaxis.set_major_locator(LogLocator(numticks=4))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.set_title("windows counted", loc="right", fontsize=7, fontweight="normal", pad=2)
        else:
            counts, x, y = np.histogram2d(
                rows[across], rows[up], bins=50, range=(limits[across], limits[up])
            )
            occupied = np.ma.masked_equal(counts, 0).T
            mesh = axis.pcolormesh(x, y, occupied, cmap="magma_r", norm=norm, rasterized=True)
        axis.grid(False)
        axis.tick_params(labelsize=7)
        if i == len(names) - 1:
            axis.set_xlabel(TWO_LINE_LABELS[across], fontsize=8)
        if j == 0 and i > 0:
            axis.set_ylabel(TWO_LINE_LABELS[up], fontsize=8)
        elif j > 0 and i != j:
            axis.tick_params(labelleft=False)
    figure.colorbar(mesh, ax=axes[:2, -2:], label="windows counted", location="top", shrink=0.9)
    figure.suptitle(f"{pair}: joint distribution of window statistics", fontsize=11)
    return figure


def draw_day(book: Book, rows: np.ndarray) -> plt.Figure:
    """Draw the median and the 10 to 90 % band of the conditions over the hours of the day.

    A recording of less than a day and a quarter is drawn over its own time.
    """
    times = book.timestamps[rows["end_row"] - 1] / DAY_NS
    days = times[-1] - times[0]
    over_days = days > 1.25
    clock = times % 1 * 24 if over_days else times
    edges = np.linspace(0, 24, 97) if over_days else np.linspace(times[0], times[-1], 61)
    bin_of = np.clip(np.searchsorted(edges, clock, side="right") - 1, 0, len(edges) - 2)
    panels = {
        "average_spread_bps": RED,
        "std_tick_returns_bps": BLUE,
        "update_rate_hz": GREEN,
        "imbalance_depth": VIOLET,
    }
    figure, axes = plt.subplots(len(panels), 1, figsize=(10, 8), sharex=True, layout="constrained")
    for axis, (name, colour) in zip(axes, panels.items(), strict=True):
        low, middle, high = bands(rows[name], bin_of, len(edges) - 1, (0.1, 0.5, 0.9))
        axis.stairs(high, edges, baseline=low, color=colour, alpha=0.25, fill=True, lw=0)
        axis.stairs(middle, edges, baseline=None, color=colour, lw=1.5)
        axis.set(ylabel=TWO_LINE_LABELS[name])
    if over_days:
        axes[-1].set(xlabel="hour of the day (UTC)", xlim=(0, 24), xticks=range(0, 25, 3))
    else:
        set_time_axis(axes[-1])
    when = f"over the day ({days:.1f} days)" if over_days else "over the recording"
    note = "line: median; band: 10 to 90 %"
    figure.suptitle(f"{book.pair}: market conditions {when} ({note})", fontsize=11)
    return figure


def find_extremes(rows: np.ndarray) -> dict[str, int]:
    """Return the row of an extreme window by each of EXTREMES, each from another moment.

    One burst is often the extreme by several statistics. So a title takes its most extreme window
    of those that lie a PARTS-th of the recording or more from the windows of the titles before it.

    It takes one pass in blocks, because the rows may be more than memory holds.
    """
    parts = min(PARTS, len(rows))
    edges = np.linspace(0, len(rows), parts + 1).astype(np.int64)
    best: dict[str, list[tuple[float, int]]] = {title: [] for title in EXTREMES}  # of each part
    for first, last in itertools.pairwise(edges):
        found = dict.fromkeys(EXTREMES, (-np.inf, int(first)))
        for begin in range(first, last, 4096):
            block = rows[begin : min(begin + 4096, last)]
            for title, (name, sign) in EXTREMES.items():
                values = block[name] * sign if sign else np.abs(block[name])
                row = int(np.argmax(values))
                found[title] = max(found[title], (float(values[row]), begin + row))
        for title, candidate in found.items():
            best[title].append(candidate)
    chosen: dict[str, int] = {}
    for title, candidates in best.items():
        ranked = [row for _, row in sorted(candidates, reverse=True)]
        far = [
            row
            for row in ranked
            if all(abs(row - other) * parts >= len(rows) for other in chosen.values())
        ]
        chosen[title] = (far or ranked)[0]
    return chosen


def draw_extremes(book: Book, rows: np.ndarray) -> plt.Figure:
    """Draw the depth maps of extreme windows, each of another moment."""
    # The first window begins where its segment begins, which tells the length of all windows.
    first_end = rows["end_row"][0]
    first_segment = np.searchsorted(book.segment_starts, first_end) - 1
    length = int(first_end - book.segment_starts[first_segment])
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for axis, (title, row) in zip(axes.flat, find_extremes(rows).items(), strict=True):
        name = EXTREMES[title][0]
        end = int(rows["end_row"][row])
        begin = end - length
        prices = book.price_ticks[begin:end].astype(np.float64)
        sizes = book.sizes[begin:end].astype(np.float64)
        mesh = show_depth(axis, prices, sizes, book.tick_size, 0, length)
        start = to_iso(int(book.timestamps[begin])).replace("T", " ")
        value, duration = rows[name][row], rows["duration_s"][row]
        quantity, _, unit = LABELS[name].rstrip(")").partition(" (")
        axis.set_title(
            f"{title}: {quantity} {value:.3g} {unit}\n{start} UTC, {duration:.3g} s",
            fontsize=9,
        )
        axis.set(xlabel="book state", ylabel="price")
        add_size_bar(mesh, axis, "resting size")
    note = "blue line: mid; grey: outside of the recorded levels"
    figure.suptitle(f"{book.pair}: extreme windows, each of another moment ({note})", fontsize=11)
    return figure


def draw_balance(
    before: np.ndarray, after: np.ndarray, names: Sequence[str], pair: str
) -> plt.Figure:
    """Draw each statistic's distribution over all windows and over the balanced sample.

    before, after: STATISTICS (W,) and (n,); names: four of them. The scale is logarithmic.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        every = np.asarray(before[name][:: max(1, len(before) // MOST_WINDOWS)])
        sampled = after[name]
        low, high = central_range(every)
        limits = min(low, sampled.min()), max(high, sampled.max())
        style = {"bins": 60, "range": limits, "density": True, "histtype": "step", "lw": 1.4}
        axis.hist(every, color=GREY, label="all windows, outliers included", **style)
        axis.hist(sampled, color=BLUE, label="balanced sample", **style)
        axis.set(xlabel=LABELS[name], yscale="log", ylabel="probability density")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    title = f"{pair}: market conditions of the windows before and after balancing"
    figure.suptitle(title, fontsize=10)
    return figure
