"""What the shipped encoder and the trainer's default network are worth in hidden sizes.

benchmarks/results/shipped.json and representation.json, which benchmarks/prove.py makes, hold
medians over seeds of training. A case is `<market>/<mask>/<quantity>`.
"""

import matplotlib.pyplot as plt

from benchmarks import labels
from benchmarks.markets import MARKETS
from benchmarks.report import format_value
from benchmarks.tables import Cells, format_table, read_cells, say_missing, value_of
from lob.evaluation.intervals import BETTER, UNDECIDED, WORSE
from lob.evaluation.scoring import SAME
from lob.model.masking import trained_on
from lob.plotting import BLUE, GREY

LESS_IS_BETTER = {BETTER: WORSE, WORSE: BETTER, UNDECIDED: UNDECIDED}
TRAINED_MASKS = {"patch": "patches", "span": "spans", "tail": "tail", "entry": "single values"}
WORDS = {market.pair: market.words for market in MARKETS}
LAST_RATIO = 1.6  # of the picture: errors beyond it are drawn at its edge


def name_markets(cells: Cells) -> list[str]:
    """Return the markets that were scored, in their order there."""
    return list(dict.fromkeys(case.split("/")[0] for case, _ in cells if case.count("/") == 2))


def find_best_untrained(cells: Cells, case: str) -> tuple[float, bool]:
    """Return the least error of a method that learns nothing, and whether it is the ladder's.

    It is the least of the ladder's, of linear interpolation's and of that of the method that was
    best on validation windows: the encoder is never compared with the weaker one.
    """
    ladder = cells[case, "ladder_error"]["value"]
    others = [value_of(cells, case, f"{name}_error") for name in ("linear_time", "best_untrained")]
    least = min([ladder, *(other for other in others if other is not None)])
    return least, least == ladder


def make_shipped_table() -> list[str]:
    """The README's table: the encoder's error less ridge regression's, in %, by market."""
    cells = read_cells("shipped")
    rows = []
    for market in name_markets(cells):
        minutes = cells[market, "minutes"]["value"]
        blocks = cells[f"{market}/patch/log_size", "blocks"]["value"]
        row = [WORDS[market], f"{minutes:.0f} ({blocks:.0f})"]
        rows.append([*row, *(show_change(cells, f"{market}/{mask}") for mask in TRAINED_MASKS)])
    return format_table(
        ["market, never trained on", "minutes (blocks)", *TRAINED_MASKS.values()], rows
    )


def show_change(cells: Cells, case: str) -> str:
    """Return the encoder's error of log size less the ridge regression's, in % of the latter.

    It is bold if it is negative by its 95 % interval, and marked if an untrained method, such as
    the ladder, has less error than the encoder by more than rounding.
    """
    case = f"{case}/log_size"
    error, ridge = (cells[case, name]["value"] for name in ("error", "ridge_error"))
    text = f"{100 * (error / ridge - 1):+.0f} %"
    if cells[case, "difference_ridge_high"]["value"] < 0:
        text = f"**{text}**"
    untrained, _ = find_best_untrained(cells, case)
    return text + " †" * (error - untrained > SAME * ridge)


def make_seeds_table() -> list[str]:
    """The shipped recipe's errors over seeds beside those of ridge and the best untrained."""
    cells = read_cells("shipped")
    rows = []
    for market in name_markets(cells):
        for mask, words in TRAINED_MASKS.items():
            case = f"{market}/{mask}/log_size"
            untrained, is_ladder = find_best_untrained(cells, case)
            rows.append(
                [
                    WORDS[market],
                    words,
                    show(cells, case, "error"),
                    show_range(cells, case, "error_least", "error_most"),
                    show(cells, case, "ridge_error"),
                    show_error(untrained) + ("" if is_ladder else " †"),
                    show_range(cells, case, "difference_ridge_low", "difference_ridge_high"),
                ]
            )
    head = ["market", "hidden as", "median", "least to most", "ridge", "best untrained"]
    return format_table([*head, "less ridge, 95 %"], rows, words=2)


def show(cells: Cells, case: str, metric: str) -> str:
    value = value_of(cells, case, metric)
    return "" if value is None else show_error(value)


def show_error(value: float) -> str:
    """Return a squared error of log size; what float32 leaves of an exact answer is 0."""
    return "0" if 0 <= value < 1e-9 else format_value(value)


def show_range(cells: Cells, case: str, low: str, high: str) -> str:
    return f"{show(cells, case, low)} to {show(cells, case, high)}"


def draw_worth(cells: Cells) -> plt.Figure:
    """Draw the shipped recipe's errors over ridge regression's, a panel for each way to hide."""
    markets = name_markets(cells)[::-1]
    size = (11, 4.4)
    figure, axes = plt.subplots(1, 4, figsize=size, sharey=True, layout="constrained")
    for axis, (mask, words) in zip(axes, TRAINED_MASKS.items(), strict=True):
        for row, market in enumerate(markets):
            draw_worth_row(axis, row, cells, f"{market}/{mask}/log_size")
        axis.axvline(1, color="black", lw=1)
        axis.set(xlim=(-0.06, LAST_RATIO + 0.05), ylim=(-0.6, len(markets) - 0.4))
        axis.set_title(f"{words} hidden", fontsize=10)
        axis.grid(axis="y", alpha=0)
    axes[0].set_yticks(range(len(markets)), [WORDS[market] for market in markets], fontsize=9)
    axes[0].tick_params(axis="y", length=0)
    figure.supxlabel("squared error of log sizes, ridge regression = 1", fontsize=10)
    marks = axes[0].get_legend_handles_labels()
    named = dict(zip(marks[1], marks[0], strict=True))
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=2, fontsize=9)
    return figure


def draw_worth_row(axis: plt.Axes, row: int, cells: Cells, case: str) -> None:
    """Draw a market's encoder with the interval of its gap to ridge, and the best untrained."""
    ridge = cells[case, "ridge_error"]["value"]
    ends = [cells[case, f"difference_ridge_{end}"]["value"] for end in ("low", "high")]
    bar = [1 + end / ridge for end in ends]
    axis.plot(bar, [row, row], color=BLUE, lw=5, alpha=0.4, solid_capstyle="butt")
    untrained = min(find_best_untrained(cells, case)[0] / ridge, LAST_RATIO)
    words = "best method that learns nothing (at the edge: beyond it)"
    axis.plot(untrained, row, "D", color=GREY, ms=5, label=words)
    words = "encoder, median of five seeds, and the 95 % interval of its gap to ridge"
    axis.plot(cells[case, "error"]["value"] / ridge, row, "o", color=BLUE, ms=6, label=words)


def make_worth_table() -> list[str]:
    """Errors of the default network, ridge and the best untrained, by what is hidden."""
    cells = read_cells("representation")
    if not cells:
        return say_missing("representation")
    markets = name_markets(cells)
    head = ["hidden (a quarter of the window)"]
    for market in markets:
        short = labels.SHORT_MARKETS.get(market, market)
        head += [f"{short}: encoder", "ridge", "untrained"]
    rows = []
    for mask, words in labels.MASKS.items():
        row = [words if mask in trained_on("mix") else f"{words} (never trained on)"]
        for market in markets:
            row += compare_errors(cells, f"{market}/{mask}/log_size")
        rows.append(row)
    return format_table(head, rows)


def compare_errors(cells: Cells, case: str) -> list[str]:
    """The encoder's error (bold: it wins; ?: undecided) and those of its two rivals."""
    if (case, "error") not in cells:
        return ["", "", ""]
    ours, verdict = show(cells, case, "error"), judge_error(cells, case)
    marked = {BETTER: f"**{ours}**", UNDECIDED: f"{ours} (?)", WORSE: ours}[verdict]
    least, is_ladder = find_best_untrained(cells, case)
    untrained = format_value(least) + ("" if is_ladder else " †")
    return [marked, show(cells, case, "ridge_error"), untrained]


def judge_error(cells: Cells, case: str) -> str:
    """Whether the encoder's error is below ridge regression's and the best untrained method's."""
    found = [judge(cells, case, f"difference_{rival}") for rival in ("ridge", "untrained")]
    verdicts = {LESS_IS_BETTER[verdict] for verdict in found}
    if WORSE in verdicts:
        return WORSE
    return BETTER if verdicts == {BETTER} else UNDECIDED


def judge(cells: Cells, case: str, name: str) -> str:
    """What the 95 % interval of a difference says: it lies above zero, below, or holds it."""
    low, high = (value_of(cells, case, f"{name}_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return UNDECIDED
    return BETTER if low > 0 else WORSE if high < 0 else UNDECIDED


def make_precision_line() -> list[str]:
    """FP8 beside bf16: the mean difference of paired test losses, and its 90 % interval."""
    cells = read_cells("representation")
    difference = value_of(cells, "FP8 over bf16", "difference")
    half = value_of(cells, "FP8 over bf16", "interval")
    if difference is None or half is None:
        return say_missing("representation")
    note = cells["FP8 over bf16", "difference"]["note"].split(";")[0]
    return [
        f"FP8 instead of bf16 changes the test loss by {100 * difference:+.2f} % (90 % interval "
        f"{100 * (difference - half):+.2f} to {100 * (difference + half):+.2f} %; {note})."
    ]
