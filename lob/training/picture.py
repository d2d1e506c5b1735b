"""The picture of a window in validation: truth, what was hidden, fills and their errors.

TensorBoard shows it some 350 pixels wide, so it has few panels and large letters.
"""

from lob.plotting import cover, plt, show_depth
from lob.training.filled import Filled

LETTERS = 22  # points, in a picture 10 inches wide
MOST_ERROR = 2.0  # of log size, as the strongest colour


def draw_filled(window: Filled, tick: float, title: str) -> plt.Figure:
    """Draw two fills as depth maps beside the truth, and below each its errors of log size.

    Above a fill stands its squared error of log size, above its errors that of its prices.
    """
    with plt.rc_context({"axes.titlesize": LETTERS, "axes.labelsize": LETTERS}):
        figure, axes = plt.subplots(2, 3, figsize=(10, 7), layout="constrained")
        states = len(window.prices)
        panels = {"truth": (window.prices, window.sizes)} | window.fills
        scale = None
        for axis, (name, (prices, shown)) in zip(axes[0], panels.items(), strict=True):
            mesh = show_depth(axis, prices, shown, tick, 0, states, scale)
            scale = mesh.get_clim()
            axis.set_title(name)
        masked = show_depth(axes[1, 0], window.prices, window.sizes, tick, 0, states, scale)
        cover(axes[1, 0], masked, window.prices * tick, window.hidden[..., 1])
        axes[1, 0].set_title("grey: hidden")
        for column, name in enumerate(window.fills, start=1):
            square, off = window.errors(name)
            axes[0, column].set_title(f"{name}: {square:.3g}")
            axes[1, column].set_title(f"prices: {off:.2g} ticks")
            axes[1, column].imshow(
                window.size_errors(name).T,
                aspect="auto",
                origin="lower",
                cmap="RdBu_r",
                vmin=-MOST_ERROR,
                vmax=MOST_ERROR,
                interpolation="nearest",
            )
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        axes[0, 0].set_ylabel("price")
        axes[1, 0].set_ylabel("price")
        axes[1, 1].set(ylabel="level", xlabel="errors of log size")
        axes[1, 2].set_xlabel("red: too large")
        figure.suptitle(title, fontsize=LETTERS)
    return figure
