"""Tables of a training step's parts, and of recipes side by side."""

from benchmarks.report import format_value
from benchmarks.tables import describe_conditions, format_table, read_cells, say_missing
from benchmarks.worth import TRAINED_MASKS

PARTS = {
    "augment": "training windows are varied",
    "make_mask": "masks are drawn",
    "find_ladder": "the ladder alone",
    "build_inputs": "all inputs, with the ladder",
    "build_inputs_outlook": "the inputs of the outlook's pass, nothing hidden",
    "outlook_targets": "the outlook's targets",
    "doubt": "how far fills are corrected",
}
STEP = "default recipe, fp8, "
WHOLE = {"windows_per_second": "windows/s", "model_tflops": "TFLOP/s of the model", "step_ms": "ms"}
RECIPES = {
    "another_seed": "another seed: what chance does",
    "all": "clock, sizes, tick and order flow as inputs",
    "all_shuffled_clock": "the same, the clock of another window",
    "causal": "no state sees a later one",
    "twice_as_wide": "twice as wide",
}


def make_step_tables() -> list[str]:
    """Milliseconds of a step's parts and of its kernels, with torch's inputs and with Triton's."""
    cells = read_cells("inputs")
    if not cells:
        return say_missing("inputs")
    values = {key: row["value"] for key, row in cells.items()}

    def show(case: str, metric: str) -> str:
        found = values.get((case, metric))
        return "" if found is None else format_value(found)

    columns = "torch_ms", "triton_ms"
    parts = [[words, *(show(part, name) for name in columns)] for part, words in PARTS.items()]
    groups = [name for case, name in values if case == f"{STEP}Triton"]
    groups += [name for case, name in values if case == f"{STEP}torch" and name not in groups]
    steps = [
        [
            WHOLE.get(name, f"{name}, ms"),
            *(show(STEP + inputs, name) for inputs in ("torch", "Triton")),
        ]
        for name in groups
        if name != "train_loss"
    ]
    return [
        *format_table(["64 windows of 256 states and 96 levels", "torch, ms", "Triton, ms"], parts),
        "",
        *format_table(["a step of the default recipe, FP8", "torch's inputs", "Triton's"], steps),
        "",
        *describe_conditions("inputs"),
    ]


def make_recipes_table() -> list[str]:
    """By how much variants of the shipped recipe have less error than it, on validation markets."""
    cells = read_cells("recipes")
    if not cells:
        return say_missing("recipes")
    markets = sorted({case.split("/")[1] for case, _ in cells if case.count("/") == 2})
    rows = []
    for name, words in RECIPES.items():
        columns = []
        for mask in TRAINED_MASKS:
            found = [cells[f"{name}/{market}/{mask}", "gain"]["value"] for market in markets]
            ends = [
                [
                    cells[f"{name}/{market}/{mask}", f"gain_{end}"]["value"]
                    for end in ("low", "high")
                ]
                for market in markets
            ]
            better, worse = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
            mean = sum(found) / len(found)
            columns.append(f"{100 * mean:+.1f} % ({better}, {worse})")
        loss = cells[name, "loss"]["value"] / cells["shipped", "loss"]["value"] - 1
        rows.append([words, f"{100 * loss:+.2f} %", *columns])
    head = ["variant of the shipped recipe", "validation loss", *TRAINED_MASKS.values()]
    return [*format_table(head, rows), "", *describe_conditions("recipes")]
