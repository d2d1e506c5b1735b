"""The README's first picture: one window of the shipped half hour, filled by three methods.

The encoder is the one that ships, which was never trained on this recording. Ladder and ridge
regression are those of inference_testing.py. The window is not picked by eye: of the test windows
it is the one whose gain of the encoder over the ridge is the median.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap, LogNorm

from benchmarks.report import ROOT
from lob.book.states import Book
from lob.evaluation.fills import Hidden
from lob.evaluation.ridge import fit_ridges
from lob.evaluation.scoring import LADDER, OURS, RIDGE, Masking, fill, window_errors
from lob.evaluation.selection import Selection, evenly_spaced
from lob.model.checkpoint import load_model
from lob.plotting import EMPTY
from lob.windows.splits import calendar_cuts, gather_windows

WEIGHTS = ROOT / "pretrained" / "small_cell" / "model.safetensors"
SPLIT_RATIOS = [0.6, 0.2, 0.2]  # as in `make pipeline`
MASK, SHARE = "patch", 0.25
WINDOWS, BATCH = 48, 8
METHODS = {
    LADDER: "error of the ladder (a lookup)",
    RIDGE: "error of ridge regression",
    OURS: "error of the encoder",
}
HIDDEN, SHOWN = "#b9c2cc", "#f2f4f6"
ERROR_LIMIT = 2.0  # of the colours: a factor of e^2 too large or too small


@dataclass(frozen=True)
class Filled:
    """The chosen window, (T, L), and by method the errors of its log sizes, (T, L), and their mean.

    The errors are 0 where nothing is hidden; the mean is that of their squares where it is.
    """

    sizes: np.ndarray
    hidden: np.ndarray
    errors: dict[str, np.ndarray]
    mean_squares: dict[str, float]


@torch.inference_mode()
def fill_median_window(book: Book) -> Filled:
    """Fill the test windows with all methods and return the one with the median gain."""
    model, _ = load_model(WEIGHTS, torch.device("cpu"))
    states = model.config.temporal_dim
    cuts = calendar_cuts([book], SPLIT_RATIOS)
    selection = Selection(states, cuts, "test", None, [book])
    masking = Masking(MASK, SHARE, states, BATCH, torch.device("cpu"))
    fitted = fit_ridges(
        masking.hide(selection.to_fit(book, "train", WINDOWS)),
        masking.hide(selection.to_fit(book, "validation", WINDOWS)),
    )
    ends = evenly_spaced(selection.tested(book), WINDOWS)
    found: list[Filled] = []
    for at, hidden in zip(range(0, WINDOWS, BATCH), masking.hide([(book, ends)]), strict=True):
        sizes = gather_windows(book, ends[at : at + BATCH], states)[1]
        found += split_batch(sizes, hidden, fill(hidden, fitted, model))
    gains = [window.mean_squares[OURS] - window.mean_squares[RIDGE] for window in found]
    return found[int(np.argsort(gains)[len(gains) // 2])]


def split_batch(sizes: np.ndarray, hidden: Hidden, filled: dict[str, torch.Tensor]) -> list[Filled]:
    """Return what the picture shows of each window of a batch."""
    mask = hidden.mask[..., 1]
    errors, mean_squares = {}, {}
    for method in METHODS:
        error = (filled[method] - hidden.values)[..., 1]
        errors[method] = torch.where(mask, error, torch.zeros_like(error)).numpy()
        mean_squares[method] = window_errors(filled[method], hidden)["log_size"].tolist()
    return [
        Filled(
            sizes[row],
            mask[row].numpy(),
            {method: errors[method][row] for method in METHODS},
            {method: mean_squares[method][row] for method in METHODS},
        )
        for row in range(len(sizes))
    ]


def draw_fills(book: Book) -> plt.Figure:
    """Draw the window as the network sees it, and by how much each method is wrong."""
    window = fill_median_window(book)
    figure, axes = plt.subplots(1, 4, figsize=(11.5, 3.6), sharey=True, layout="constrained")
    style = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}
    scale = LogNorm(*np.quantile(window.sizes, [0.02, 0.995]))
    colours = plt.get_cmap("magma").with_extremes(under=EMPTY)
    axes[0].imshow(window.sizes.T, cmap=colours, norm=scale, **style)
    covered = np.ma.masked_equal(window.hidden.T, False)
    axes[0].imshow(covered, cmap=ListedColormap([HIDDEN]), **style)
    axes[0].set_title("what the network sees:\nsizes, hidden ones in grey", fontsize=10)
    errors = plt.get_cmap("RdBu_r").with_extremes(bad=SHOWN)
    for axis, (method, words) in zip(axes[1:], METHODS.items(), strict=True):
        image = np.ma.masked_where(~window.hidden.T, window.errors[method].T)
        drawn = axis.imshow(image, cmap=errors, vmin=-ERROR_LIMIT, vmax=ERROR_LIMIT, **style)
        mean = window.mean_squares[method]
        axis.set_title(f"{words}:\nsquared error {mean:.2f}", fontsize=10)
    bar = figure.colorbar(drawn, ax=axes, extend="both", aspect=30, pad=0.01)
    bar.set_label("log of filled size - log of true size")
    for axis in axes:
        axis.axhline(book.depth / 2 - 0.5, color="black", lw=0.8)
        axis.set_xlabel("states")
        axis.set(xticks=[0, 64, 128, 192, 256], yticks=[book.depth / 4, 3 * book.depth / 4])
        axis.set_yticklabels(["bids", "asks"], rotation=90, va="center")
        axis.tick_params(axis="y", length=0)
        axis.grid(False)
    return figure
