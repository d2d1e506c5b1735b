"""Tables of what the encoder is worth, from benchmarks/results/representation.json, ablation.json.

A case is `<market>/<mask>/<quantity>` or `<market>/probe/<task>`, in ablation.json with the
variant's name before it.
"""

from collections.abc import Callable

from benchmarks import labels
from benchmarks.report import format_value
from benchmarks.tables import (
    Cells,
    describe_conditions,
    format_table,
    read_cells,
    say_missing,
    value_of,
)
from lob.model.masking import trained_on

BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
LESS_IS_BETTER = {BETTER: WORSE, WORSE: BETTER, UNDECIDED: UNDECIDED}


def name_markets(cells: Cells) -> list[str]:
    return list(dict.fromkeys(case.split("/")[0] for case, _ in cells if case.count("/") == 2))


def find_cases(cells: Cells, part: str) -> list[str]:
    return list(dict.fromkeys(case for case, _ in cells if part in case))


def show(cells: Cells, case: str, metric: str) -> str:
    value = value_of(cells, case, metric)
    return "" if value is None else format_value(value)


def show_percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def show_range(cells: Cells, case: str, low: str, high: str, sign: int = 1) -> str:
    """`low to high` of two metrics, or of their negatives; nothing if one is missing."""
    known = [cells[case, name]["value"] for name in (low, high) if (case, name) in cells]
    ends = sorted(sign * value for value in known)
    return f"{format_value(ends[0])} to {format_value(ends[1])}" if len(ends) == 2 else ""


def judge(cells: Cells, case: str, name: str) -> str:
    """What the 95 % interval of a difference says: it lies above zero, below, or holds it."""
    low, high = (value_of(cells, case, f"{name}_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return UNDECIDED
    return BETTER if low > 0 else WORSE if high < 0 else UNDECIDED


def judge_error(cells: Cells, case: str) -> str:
    """Whether the encoder's error is below ridge regression's and the best untrained method's."""
    found = [judge(cells, case, f"difference_{rival}") for rival in ("ridge", "untrained")]
    verdicts = {LESS_IS_BETTER[verdict] for verdict in found}
    if WORSE in verdicts:
        return WORSE
    return BETTER if verdicts == {BETTER} else UNDECIDED


def judge_probe(cells: Cells, case: str) -> str:
    """Whether the encoder's vector probes better than the floors and the hand-made features.

    Results that were made before there were floors are judged by the hand-made features alone.
    """
    floors = (case, "over_simple_low") in cells
    return judge(cells, case, "over_simple" if floors else "over_hand_made")


def find_best_untrained(cells: Cells, case: str) -> tuple[float, bool]:
    """Return the least error of a method that learns nothing, and whether it is the ladder's.

    It is the least of the ladder's, of linear interpolation's and of that of the method that was
    best on validation windows: the encoder is never compared with the weaker one.
    """
    ladder = cells[case, "ladder_error"]["value"]
    others = [value_of(cells, case, f"{name}_error") for name in ("linear_time", "best_untrained")]
    least = min([ladder, *(other for other in others if other is not None)])
    return least, least == ladder


def make_worth_table() -> list[str]:
    """The README's table: errors of hidden log sizes of encoder, ridge and the best untrained."""
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
    return [marked, show(cells, case, "ridge_error"), show_best_untrained(cells, case)]


def show_best_untrained(cells: Cells, case: str) -> str:
    """The least error of a method that learns nothing; marked if it is not the ladder's."""
    least, is_ladder = find_best_untrained(cells, case)
    return format_value(least) + ("" if is_ladder else " †")


def make_verdicts() -> list[str]:
    """How many comparisons the encoder wins, in words that follow the numbers."""
    cells = read_cells("representation")
    if not cells:
        return say_missing("representation")
    sizes = [judge_error(cells, case) for case in find_cases(cells, "/log_size")]
    prices = find_cases(cells, "/offset")
    ridge_wins = [case for case in prices if read_pair(cells, case, "ridge_error", "error") < 0]
    probes = [judge_probe(cells, case) for case in find_cases(cells, "/probe/")]
    less = " and ".join(show_gain(cells, market) for market in name_markets(cells))
    return [
        f"- **Hidden sizes**: of {len(sizes)} comparisons (six ways to hide, two markets; they "
        f"share windows, so they are not independent) the encoder wins {sizes.count(BETTER)} and "
        f"loses {sizes.count(WORSE)}; undecided: {sizes.count(UNDECIDED)}. It makes {less} less "
        "squared error than ridge regression.",
        "- **Hidden prices**: the default network leaves them to a lookup, the *ladder* "
        "(below), because learned prices were worse. So it has nothing to win there, and ridge "
        f"regression has less error in {len(ridge_wins)} of {len(prices)} comparisons.",
        "- **Its vector instead of 27 hand-made features**, in linear probes of what comes next "
        f"(seven questions, two markets): better in {probes.count(BETTER)} of {len(probes)}, "
        f"worse in {probes.count(WORSE)}; in {probes.count(UNDECIDED)} the data cannot tell.",
        f"- **Direction**: whether the mid's next move is up, {describe_direction(cells)}.",
    ]


def show_gain(cells: Cells, market: str) -> str:
    """By how much less error than ridge regression, from the least to the most of all masks."""
    cases = [f"{market}/{mask}/log_size" for mask in labels.MASKS]
    found = [value_of(cells, case, "skill_ridge") for case in cases]
    gains = [gain for gain in found if gain is not None]
    name = labels.SHORT_MARKETS.get(market, market)
    return f"{100 * min(gains):.1f} to {show_percent(max(gains))} ({name})"


def describe_direction(cells: Cells) -> str:
    """The scores of both kinds of features for the next move, and whether they differ."""
    cases = find_cases(cells, "/probe/direction")
    markets = [case.split("/")[0] for case in cases]
    names = " and ".join(labels.SHORT_MARKETS.get(market, market) for market in markets)
    ours, theirs = (
        " and ".join(f"{cells[case, name]['value']:.2f}" for case in cases)
        for name in ("ours", "hand_made")
    )
    verdicts = " and ".join(dict.fromkeys(judge_probe(cells, case) for case in cases))
    return (
        f"its vector tells with an area under the curve of {ours} ({names}), hand-made features "
        f"with {theirs} (verdict: {verdicts})"
    )


def read_pair(cells: Cells, case: str, first: str, second: str) -> float:
    """The first metric of a case less the second."""
    return cells[case, first]["value"] - cells[case, second]["value"]


def make_size_tables() -> list[str]:
    """Errors of hidden log sizes, a table a market."""
    head = [
        "hidden",
        "encoder",
        "least to most of its seeds",
        "ridge",
        "ladder",
        "linear in time",
        "best untrained",
        "less error than ridge",
        "ridge's error less the encoder's, 95 %",
        "verdict",
    ]
    return make_mask_tables("log_size", head, make_size_row)


def make_size_row(cells: Cells, case: str) -> list[str]:
    ours, verdict = show(cells, case, "error"), judge_error(cells, case)
    rivals = ("ridge", "ladder", "linear_time")
    return [
        f"**{ours}**" if verdict == BETTER else ours,
        show_range(cells, case, "error_least", "error_most"),
        *(show(cells, case, f"{name}_error") for name in rivals),
        show_best_untrained(cells, case),
        show_percent(value_of(cells, case, "skill_ridge")),
        show_range(cells, case, "difference_ridge_low", "difference_ridge_high", -1),
        verdict,
    ]


def make_price_tables() -> list[str]:
    """Errors of hidden prices and of the mid's path in ticks, a table a market."""
    head = ["hidden"]
    for quantity in ("price", "mid"):
        head += [f"{quantity}: encoder (the ladder's)", "ridge", "linear in time"]
    return make_mask_tables("offset", head, make_price_row)


def make_price_row(cells: Cells, case: str) -> list[str]:
    row = []
    for quantity in ("offset", "mid"):
        mine = f"{case.rsplit('/', 1)[0]}/{quantity}"
        row += [show(cells, mine, f"{name}error") for name in ("", "ridge_", "linear_time_")]
    return row


def make_mask_tables(
    quantity: str,
    head: list[str],
    make_row: Callable[[Cells, str], list[str]],
) -> list[str]:
    """A table a market, with a row for each way to hide that `make_row` makes of its case."""
    cases = {f"{mask}/{quantity}": words for mask, words in labels.MASKS.items()}
    return make_market_tables(cases, "error", f"/{quantity}", head, make_row)


def make_market_tables(
    cases: dict[str, str],
    metric: str,
    part: str,
    head: list[str],
    make_row: Callable[[Cells, str], list[str]],
) -> list[str]:
    """A table a market, with a row for each of its cases that has `metric`.

    cases: a case's name without the market -> its words; part: which of the market's cases tell the
    blocks of time.
    """
    cells = read_cells("representation")
    if not cells:
        return say_missing("representation")
    lines = []
    for market in name_markets(cells):
        rows = []
        for name, words in cases.items():
            case = f"{market}/{name}"
            if (case, metric) in cells:
                rows.append([words, *make_row(cells, case)])
        lines += [name_market(cells, market, part), "", *format_table(head, rows), ""]
    return lines[:-1]


def name_market(cells: Cells, market: str, part: str) -> str:
    """A market in a reader's words, and over how many blocks of time its intervals are."""
    blocks = set()
    for (case, metric), row in cells.items():
        if metric == "blocks" and case.startswith(f"{market}/") and part in case:
            blocks.add(int(row["value"]))
    counts = " or ".join(str(count) for count in sorted(blocks))
    return f"**{labels.MARKETS.get(market, market)}** ({counts} blocks of time):"


def make_probe_tables() -> list[str]:
    """What linear probes tell from the encoder's vector and from simpler features."""
    head = [
        "question",
        "encoder",
        "least to most of its seeds",
        *(words for _, words in list_others(read_cells("representation"))),
        "encoder less hand-made, 95 %",
        "verdict",
    ]
    cases = {f"probe/{task}": words for task, words in labels.PROBES.items()}
    return make_market_tables(cases, "ours", "/probe/", head, make_probe_row)


def list_others(cells: Cells) -> list[tuple[str, str]]:
    """The metrics beside the encoder's score that a result holds, with their words."""
    names = {
        "both": "encoder and hand-made",
        "floor": "floor",
        "persistence": "persistence",
        "hand_made": "hand-made features",
        "pca": "principal components",
        "random": "random weights",
        "ours_10pct": "encoder, 10 % of the labels",
        "hand_made_10pct": "hand-made, 10 %",
    }
    there = {metric for _, metric in cells}
    return [item for item in names.items() if item[0] in there]


def make_probe_row(cells: Cells, case: str) -> list[str]:
    ours, verdict = show(cells, case, "ours"), judge_probe(cells, case)
    others = [name for name, _ in list_others(cells)]
    return [
        f"**{ours}**" if verdict == BETTER else ours,
        show_range(cells, case, "ours_least", "ours_most"),
        *(show(cells, case, name) for name in others),
        show_range(cells, case, "over_hand_made_low", "over_hand_made_high"),
        verdict,
    ]


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


def make_variants_table() -> list[str]:
    """Variants of the recipe, one run each: how much less error than ridge regression they make."""
    cells, ours = read_cells("ablation"), read_cells("representation")
    if not cells or not ours:
        return say_missing("ablation")
    markets, masks = name_markets(ours), ("patch", "span", "tail", "entry")
    head = ["recipe"]
    for market in markets:
        short = labels.SHORT_MARKETS.get(market, market)
        head += [f"{short}: {masks[0]}", *masks[1:]]
    rows = [["the default, median of its seeds", *list_skills(ours, markets, masks)]]
    for name in dict.fromkeys(case.split("/")[0] for case, _ in cells):
        mine = [f"{name}/{market}" for market in markets]
        rows.append([describe_variant(cells, name), *list_skills(cells, mine, masks)])
    return [*format_table(head, rows), "", *describe_conditions("ablation")]


def list_skills(cells: Cells, markets: list[str], masks: tuple[str, ...]) -> list[str]:
    skills = []
    for market in markets:
        for mask in masks:
            skills.append(show_percent(value_of(cells, f"{market}/{mask}/log_size", "skill_ridge")))
    return skills


def describe_variant(cells: Cells, name: str) -> str:
    """The keys that differ from the default's, as the benchmark noted them."""
    note = next(row["note"] for (case, _), row in cells.items() if case.startswith(f"{name}/"))
    return f"`{note.removeprefix('seed 0; ')}`, seed 0"
