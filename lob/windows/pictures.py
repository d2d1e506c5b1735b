"""Pictures of a pair's market conditions."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from lob.book.states import Book
from lob.plotting import BLUE, GREEN, GREY, RED, VIOLET, add_size_bar, save, show_depth

DAY_NS = 86_400e9  # matplotlib's dates are days since the epoch
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


def draw_pair(book: Book, rows: np.ndarray, main: Sequence[str], folder: Path) -> list[Path]:
    """Draw a pair's five pictures into `folder`; return their files."""
    sample = np.array(rows[:: -(-len(rows) // 200_000)])
    figures = {
        "book": draw_book(book),
        "distributions": draw_distributions(sample, book.pair),
        "joint": draw_joint(sample, main, book.pair),
        "day": draw_day(book, sample),
        "extremes": draw_extremes(book, rows),
    }
    return [save(figure, folder / f"{book.pair}_{name}.png") for name, figure in figures.items()]


def set_time_axis(axis: plt.Axes) -> None:
    locator = mdates.AutoDateLocator()
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))
    axis.set_xlabel("exchange time (UTC)")


def central_range(values: np.ndarray, share: float = 0.998) -> tuple[float, float]:
    """Limits that hold the central `share` of the finite values, for axes that outliers don't stretch."""
    low, high = np.quantile(values[np.isfinite(values)], [(1 - share) / 2, (1 + share) / 2])
    one_value = high - low <= 1e-9 * max(abs(low), abs(high))
    room = (0.05 * abs(low) or 1.0) if one_value else 0.0
    return float(low - room), float(high + room)


def draw_book(book: Book) -> plt.Figure:
    """Mid and spread over time, lowest to highest of each moment, above a heat map of the depth."""
    some = np.arange(0, book.rows, -(-book.rows // 400_000))
    half, tick = book.depth // 2, book.tick_size
    top = book.price_ticks[:, half - 1 : half + 1] if book.top_of_book is None else book.top_of_book
    best = np.asarray(top[some], dtype=np.float64)
    mid = best.mean(axis=1)
    grid = np.linspace(int(book.timestamps[0]), int(book.timestamps[-1]), 1001)
    times = (grid[:-1] + grid[1:]) / 2 / DAY_NS
    moment = np.clip(np.searchsorted(grid, book.timestamps[some], side="right") - 1, 0, len(times) - 1)
    figure, axes = plt.subplots(3, 1, figsize=(10, 8.5), sharex=True, height_ratios=[2, 1, 3], layout="constrained")
    spread = (best[:, 1] - best[:, 0]) / mid * 1e4
    for axis, values, colour in ((axes[0], mid * tick, BLUE), (axes[1], spread, RED)):
        low, middle, high = bands(values, moment, len(times), (0, 0.5, 1))
        axis.fill_between(times, low, high, color=colour, alpha=0.5, lw=0, step="mid")
        axis.plot(times, middle, color=colour, lw=1)
    axes[0].set(title=f"{book.pair}: {book.rows:,} book states of {book.depth} levels", ylabel="mid price")
    axes[0].ticklabel_format(axis="y", useOffset=False, style="plain")
    axes[1].set(ylabel="spread (bps)")
    rows = np.searchsorted(book.timestamps, grid, side="right") - 1
    gap = np.isin(rows + 1, book.segment_starts) & (book.timestamps[rows] < grid)  # between two segments
    prices, sizes = book.price_ticks[rows].astype(np.float64), book.sizes[rows].astype(np.float64)
    prices[gap] = np.nan
    mesh = show_depth(axes[2], prices, sizes, tick, *grid[[0, -1]] / DAY_NS)
    axes[2].set(ylabel="price", title="resting size by price (blue line: mid; grey: outside of the recorded levels)")
    add_size_bar(mesh, axes[2], "resting size")
    set_time_axis(axes[2])
    return figure


def bands(values: np.ndarray, bin_of: np.ndarray, bins: int, quantiles: Sequence[float]) -> np.ndarray:
    """Quantiles (Q, bins) of the values of each bin, NaN where a bin has none."""
    found = np.full((len(quantiles), bins), np.nan)
    order = np.argsort(bin_of, kind="stable")
    names, first = np.unique(bin_of[order], return_index=True)
    for name, part in zip(names, np.split(values[order], first[1:]), strict=True):
        found[:, name] = np.quantile(part, quantiles)
    return found


def draw_distributions(rows: np.ndarray, pair: str) -> plt.Figure:
    """Share of windows by each statistic, on a log scale: most windows are calm, and the others matter."""
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
    figure.suptitle(
        f"{pair}: share of windows by market condition (red: median; the outer 0.2 % not drawn)", fontsize=11
    )
    return figure


def draw_joint(rows: np.ndarray, names: Sequence[str], pair: str) -> plt.Figure:
    """Corner plot: each statistic's distribution on the diagonal, the windows by each two of them below it."""
    names = [name for name in names if np.isfinite(rows[name]).any()]
    limits = {name: central_range(rows[name]) for name in names}
    figure, axes = plt.subplots(len(names), len(names), figsize=(10, 10), sharex="col", layout="constrained")
    for (i, j), axis in np.ndenumerate(axes):
        if j > i:
            axis.set_axis_off()
            continue
        across, up = rows[names[j]], rows[names[i]]
        if i == j:
            axis.hist(across, bins=50, range=limits[names[j]], color=BLUE, log=True)
            axis.yaxis.tick_right()
            axis.yaxis.set_major_locator(LogLocator(numticks=4))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.set_title("windows drawn", loc="right", fontsize=7, fontweight="normal", pad=2)
        else:
            counts, x, y = np.histogram2d(across, up, bins=50, range=(limits[names[j]], limits[names[i]]))
            mesh = axis.pcolormesh(x, y, np.ma.masked_equal(counts, 0).T, cmap="magma_r",
                                   norm=LogNorm(1, max(2, len(rows) / 10)), rasterized=True)  # fmt: skip
        axis.grid(False)
        axis.tick_params(labelsize=7)
        if i == len(names) - 1:
            axis.set_xlabel(LABELS[names[j]].replace(" (", "\n("), fontsize=8)
        if j == 0 and i > 0:
            axis.set_ylabel(LABELS[names[i]].replace(" (", "\n("), fontsize=8)
        elif j > 0 and i != j:
            axis.tick_params(labelleft=False)
    figure.colorbar(mesh, ax=axes[:2, -2:], label="windows drawn", location="top", shrink=0.9)
    figure.suptitle(f"{pair}: joint distribution of window statistics", fontsize=11)
    return figure


def draw_day(book: Book, rows: np.ndarray) -> plt.Figure:
    """Median and 10 to 90 % band of the conditions over the hours: of the day, where there is more than a day."""
    times = book.timestamps[rows["end_row"] - 1] / DAY_NS
    over_days = times[-1] - times[0] > 1.25
    clock = times % 1 * 24 if over_days else times
    edges = np.linspace(0, 24, 97) if over_days else np.linspace(times[0], times[-1], 61)
    bin_of = np.clip(np.searchsorted(edges, clock, side="right") - 1, 0, len(edges) - 2)
    panels = ("average_spread_bps", "std_tick_returns_bps", "update_rate_hz", "imbalance_depth")
    figure, axes = plt.subplots(len(panels), 1, figsize=(10, 8), sharex=True, layout="constrained")
    for axis, name, colour in zip(axes, panels, (RED, BLUE, GREEN, VIOLET), strict=True):
        low, middle, high = bands(rows[name], bin_of, len(edges) - 1, (0.1, 0.5, 0.9))
        axis.stairs(high, edges, baseline=low, color=colour, alpha=0.25, fill=True, lw=0)
        axis.stairs(middle, edges, baseline=None, color=colour, lw=1.5)
        axis.set(ylabel=LABELS[name].replace(" (", "\n("))
    if over_days:
        axes[-1].set(xlabel="hour of the day (UTC)", xlim=(0, 24), xticks=range(0, 25, 3))
    else:
        set_time_axis(axes[-1])
    when = f"over the day ({times[-1] - times[0]:.1f} days)" if over_days else "over the recording"
    figure.suptitle(f"{book.pair}: market conditions {when} (line: median; band: 10 to 90 %)", fontsize=11)
    return figure


EXTREMES = {  # title -> statistic, sign
    "largest rise": ("mid_price_change_bps", 1),
    "largest fall": ("mid_price_change_bps", -1),
    "most volatile": ("std_tick_returns_bps", 1),
    "widest spread": ("average_spread_bps", 1),
    "most updates": ("update_rate_hz", 1),
    "most one-sided": ("imbalance_depth", 0),
}


def find_extremes(rows: np.ndarray) -> dict[str, int]:
    """Return the row of the most extreme window by each of EXTREMES; one pass in blocks, as the rows may be many."""
    best = dict.fromkeys(EXTREMES, (-np.inf, 0))
    for begin in range(0, len(rows), 4096):
        block = rows[begin : begin + 4096]
        for title, (name, sign) in EXTREMES.items():
            values = block[name] * sign if sign else np.abs(block[name])
            row = int(np.argmax(values))
            best[title] = max(best[title], (float(values[row]), begin + row))
    return {title: row for title, (_, row) in best.items()}


def draw_extremes(book: Book, rows: np.ndarray) -> plt.Figure:
    """Depth heat maps of the most extreme windows."""
    length = int(rows["end_row"][0] - book.segment_starts[np.searchsorted(book.segment_starts, rows["end_row"][0]) - 1])
    picks = find_extremes(rows)
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for axis, (title, pick) in zip(axes.flat, picks.items(), strict=True):
        end, name = int(rows["end_row"][pick]), EXTREMES[title][0]
        prices = book.price_ticks[end - length : end].astype(np.float64)
        sizes = book.sizes[end - length : end].astype(np.float64)
        mesh = show_depth(axis, prices, sizes, book.tick_size, 0, length)
        start = np.datetime_as_string(book.timestamps[end - length].astype("datetime64[ns]"), unit="s")
        axis.set_title(f"{title}: {LABELS[name]} {rows[name][pick]:.3g}\n{start[:10]} {start[11:]} UTC, "
                       f"{rows['duration_s'][pick]:.3g} s", fontsize=9)  # fmt: skip
        axis.set(xlabel="book state", ylabel="price")
        add_size_bar(mesh, axis, "resting size")
    note = "blue line: mid; grey: outside of the recorded levels"
    figure.suptitle(f"{book.pair}: the most extreme windows ({note})", fontsize=11)
    return figure


def draw_balance(before: np.ndarray, after: np.ndarray, names: Sequence[str], pair: str) -> plt.Figure:
    """Each statistic's distribution over all windows and over the balanced sample, on a log scale."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        every = np.asarray(before[name][:: max(1, len(before) // 200_000)])
        low, high = central_range(every)
        span = (min(low, after[name].min()), max(high, after[name].max()))
        for values, colour, label in ((every, GREY, "all windows, outliers included"),
                                      (after[name], BLUE, "balanced sample")):  # fmt: skip
            axis.hist(values, bins=60, range=span, density=True, histtype="step", color=colour, label=label, lw=1.4)
        axis.set(xlabel=LABELS[name], yscale="log", ylabel="probability density")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{pair}: market conditions of the windows before and after balancing", fontsize=10)
    return figure
