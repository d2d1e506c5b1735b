"""Draw docs/figures/*.png from the shipped sample and benchmarks/results/*.json.

    python -m benchmarks.figures

Each picture holds, as its PNG text `Source`, a hash of what it was drawn from: the result or the
recording, the labels and the file that draws it. A test compares it, so that a picture cannot age.
The same machine draws the same bytes.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap, LogNorm
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks import agent_tables, fill_figure, label_tables, labels, probe_tables, worth
from benchmarks.fill_figure import WEIGHTS
from benchmarks.report import RESULTS, ROOT
from benchmarks.tables import read_cells
from lob.book.states import Book, open_book
from lob.model.masking import MIX, make_mask, window_keys
from lob.plotting import EMPTY, show_depth
from lob.windows.splits import gather_windows

FIGURES = ROOT / "docs" / "figures"
SAMPLE = ROOT / "training_data" / "raw" / "BTC_USD" / "20260502.csv.gz"
SOURCES = {  # picture -> what it is drawn from
    "worth.png": [RESULTS / "shipped.json", Path(worth.__file__)],
    "probes.png": [RESULTS / "probes.json", Path(probe_tables.__file__)],
    "fills.png": [SAMPLE, WEIGHTS, Path(fill_figure.__file__)],
    "masks.png": [SAMPLE],
    "book.png": [SAMPLE],
    "joint.png": [SAMPLE],
    "balanced.png": [SAMPLE],
    "agent.png": [RESULTS / "agent.json", Path(agent_tables.__file__)],
}
LABELS = RESULTS / "labels.json"
if LABELS.exists():
    SOURCES["labels.png"] = [LABELS, Path(label_tables.__file__)]
WINDOW_AT = "2026-05-02T02:52:18"  # a window of the sample in which the price moves
STATES = 256
HIDDEN = "#b9c2cc"


def main() -> int:
    """Draw all pictures; return the exit status."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    keep(worth.draw_worth(read_cells("shipped")), "worth.png")
    keep(probe_tables.draw_leads(read_cells("probes")), "probes.png")
    keep(agent_tables.draw_curves(read_cells("agent")), "agent.png")
    if LABELS.exists():
        keep(label_tables.draw_labels(read_cells("labels")), "labels.png")
    with prepare_sample() as (book, plots):
        keep(fill_figure.draw_fills(book), "fills.png")
        keep(draw_masks(book), "masks.png")
        for name in ("book", "joint", "balanced"):
            keep(Image.open(plots / f"{book.pair}_{name}.png"), f"{name}.png")
    return 0


def describe_source(name: str) -> str:
    """A hash of a picture's data, of its words and of this file's text."""
    words = repr((labels.MASKS, labels.PROBES))
    data = b"".join(path.read_bytes() for path in SOURCES[name])
    text = data + words.encode() + Path(__file__).read_bytes()
    return hashlib.sha256(text).hexdigest()[:16]


def keep(picture: plt.Figure | Image.Image, name: str) -> None:
    """Write a picture with the hash of its source, in few colours, as small files load fast."""
    if isinstance(picture, plt.Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=130, bbox_inches="tight", facecolor="white")
        plt.close(picture)
        picture = Image.open(buffer)
    info = PngInfo()
    info.add_text("Source", describe_source(name))
    few = picture.convert("RGB").quantize(255, dither=Image.Dither.NONE)
    few.save(FIGURES / name, pnginfo=info, optimize=True)
    print(f"docs/figures/{name}")


@contextmanager
def prepare_sample() -> Iterator[tuple[Book, Path]]:
    """Run the first three scripts on the shipped recording; yield its book and their pictures."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw" / SAMPLE.parent.name
        raw.mkdir(parents=True)
        shutil.copy(SAMPLE, raw)
        for script in ("data_parser.py", "exploration_main.py", "create_balanced_dataset.py"):
            subprocess.run([sys.executable, script, f"--data_dir={folder}"], cwd=ROOT, check=True)
        yield open_book(Path(folder) / "book_states" / raw.name), Path(folder) / "plots"


def draw_masks(book: Book) -> plt.Figure:
    """The sample's book, one window of it by level, and what each mask hides there."""
    end = int(np.searchsorted(book.timestamps, np.datetime64(WINDOW_AT, "ns").astype(np.int64)))
    sizes = gather_windows(book, np.array([end]), STATES)[1][0]
    figure = plt.figure(figsize=(10, 9), layout="constrained")
    grid = figure.add_gridspec(3, 3)
    draw_sample(figure.add_subplot(grid[0, :2]), book, end)
    scale = LogNorm(*np.quantile(sizes, [0.02, 0.995]))
    draw_window(figure.add_subplot(grid[0, 2]), sizes, scale, None)
    figure.axes[-1].set_title(f"one window: {STATES} states x {book.depth} levels")
    figure.axes[-1].set_xlabel("states")
    for place, (mask, words) in enumerate(labels.MASKS.items()):
        axis = figure.add_subplot(grid[1 + place // 3, place % 3])
        keys = window_keys(7, 0, torch.tensor([end]))
        hidden = make_mask(keys, *sizes.shape, 0.25, mask)[0, :, :, 1].numpy()
        draw_window(axis, sizes, scale, hidden)
        axis.set_title(f"{mask}: {words.removeprefix('patches of ')}")
        axis.set_xlabel(f"states; {describe_share(mask)}")
    return figure


def describe_share(mask: str) -> str:
    """How many of the training windows the default recipe hides this way."""
    upper = {**MIX, "entry": 1.0}
    if mask not in upper:
        return "never trained on, only scored"
    lower = max((other for other in upper.values() if other < upper[mask]), default=0.0)
    return f"{16 * (upper[mask] - lower):.0f} of 16 training windows"


def draw_sample(axis: plt.Axes, book: Book, end: int) -> None:
    """The half hour as a depth map, with the window's place marked."""
    minutes = (book.timestamps[[0, end - STATES, end, -1]] - book.timestamps[0]) / 60e9
    rows = np.searchsorted(book.timestamps, np.linspace(*book.timestamps[[0, -1]], 900))
    rows = np.minimum(rows, book.rows - 1)
    prices, sizes = book.price_ticks[rows].astype(float), book.sizes[rows].astype(float)
    show_depth(axis, prices, sizes, book.tick_size, 0, minutes[-1])
    axis.axvspan(minutes[1], minutes[2], color="white", alpha=0.9)
    low, high = axis.get_ylim()
    axis.annotate(
        "the window",
        ((minutes[1] + minutes[2]) / 2, low + 0.1 * (high - low)),
        xytext=(-45, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        bbox={"facecolor": "white", "edgecolor": "black", "pad": 3},
        arrowprops={"arrowstyle": "simple", "facecolor": "white", "edgecolor": "black"},
    )
    axis.set_title("the shipped half hour: resting size (bright: much) by price; blue: the mid")
    axis.set(xlabel="minutes", ylabel="BTC/USD")


def draw_window(
    axis: plt.Axes,
    sizes: np.ndarray,
    scale: LogNorm,
    hidden: np.ndarray | None,
) -> None:
    """Sizes (T, L) of a window by state and level, with hidden ones, bool (T, L), in grey."""
    colours = plt.get_cmap("magma").with_extremes(under=EMPTY)
    style = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}
    axis.imshow(sizes.T, cmap=colours, norm=scale, **style)
    if hidden is not None:
        image = np.ma.masked_equal(hidden.T, False)
        axis.imshow(image, cmap=ListedColormap([HIDDEN]), **style)
    middle = sizes.shape[1] / 2
    axis.axhline(middle - 0.5, color="#4cc9f0", lw=1.2)
    axis.set(yticks=[middle / 2, 1.5 * middle], xticks=[0, 64, 128, 192, 256])
    axis.set_yticklabels(["bids", "asks"], rotation=90, va="center")
    axis.tick_params(axis="y", length=0)
    axis.grid(False)


if __name__ == "__main__":
    sys.exit(main())
