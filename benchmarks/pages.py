"""Fill the marked blocks of README.md and docs/*.md, so that no number in them is typed by hand.

    python -m benchmarks.pages            write the pages
    python -m benchmarks.pages --check    write nothing; exit 1 if a block is out of date

A block stands between `<!-- begin:KIND ARGUMENT -->` and `<!-- end -->`. KINDS below maps its kind
to the function that makes its lines. Tables of keys come from the comments of the scripts' `config`
dicts, tables of results from benchmarks/results/*.json (benchmarks/tables.py, worth.py,
probe_tables.py, label_tables.py, agent_tables.py and quoting_tables.py).
"""

import ast
import re
import sys
from pathlib import Path

from benchmarks import (
    agent_tables,
    first_hour_tables,
    label_tables,
    probe_tables,
    quoting_tables,
    scale_tables,
    step_tables,
    tables,
    worth,
)
from benchmarks.report import ROOT
from benchmarks.tables import format_table
from lob.config import read_comments

BEGIN = r"<!-- begin:(?P<kind>\w+) ?(?P<argument>[^\n]*?) -->\n"
BLOCK = re.compile(BEGIN + r".*?<!-- end -->", re.DOTALL)
YEAR_SECONDS = 365 * 24 * 3600
SAMPLE_RATE = 168_119 / 1_800  # states a second the shipped half hour of BTC/USD, a state a message
BYTES_PER_LEVEL = 8  # int32 price in ticks and float32 size
TRAINING_SHARE, STEP_WINDOWS = 0.7, 64  # of the trainer's defaults: split_ratios, batch_size
RECORDINGS = {  # by their number of states
    "a few minutes": 10_000,
    "the shipped half hour": 168_119,
    "some hours": 1_000_000,
    "a year of one pair, a state every 0.3 s": 100_000_000,
    "a year of ten pairs": 1_000_000_000,
}
BYTES_PER_STATE = 16  # int64 time, int32 best bid and best ask


def main(words: list[str]) -> int:
    """Write the blocks of all pages, or with --check name those that differ; return the status."""
    if words not in ([], ["--check"]):
        print(f"unknown words {words}: only --check is known", file=sys.stderr)
        return 2
    status = 0
    for page in find_pages():
        old = page.read_text()
        new = BLOCK.sub(make_block, old)
        if not words:
            page.write_text(new)
            continue
        for before, after in zip(BLOCK.finditer(old), BLOCK.finditer(new), strict=True):
            if before[0] != after[0]:
                begin = before[0].splitlines()[0]
                print(f"{page.relative_to(ROOT)}: {begin} is out of date: run make tables")
                status = 1
    return status


def find_pages() -> list[Path]:
    """The pages that may hold blocks, README.md first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def make_block(found: re.Match[str]) -> str:
    lines = KINDS[found["kind"]](*found["argument"].split())
    return "\n".join([found[0].splitlines()[0], *lines, "<!-- end -->"])


def make_config_table(script: str) -> list[str]:
    """Key, default, rule (where a key has one) and meaning of a script's config dict."""
    rows = []
    for key, (default, *rule, meaning) in read_comments(ROOT / script).items():
        if "\n" in default:
            default = ast.unparse(ast.parse(default, mode="eval"))
        allowed = [f"`{text}`" if text else "" for text in rule]
        rows.append([f"`{key}`", f"`{default}`", *allowed, meaning])
    head = ["key", "default", "meaning"]
    if rows and len(rows[0]) == 4:
        head.insert(2, "allowed")
    return format_table(head, rows, words=len(head))


def make_presets_table() -> list[str]:
    """Layers, widths and parameters of each network that `model_size` names."""
    from lob.model.encoder import PRESETS, count_parameters, encoder_config

    rows = []
    for name in PRESETS:
        network = encoder_config(name)
        parameters = f"{count_parameters(network) / 1e6:.1f} million"
        widths = [network.layers, network.width, network.heads, network.ffn_width]
        rows.append([f"`{name}`", *widths, network.cell_width or "", parameters])
    head = ["preset", "layers", "width", "heads", "feed-forward", "channels a cell", "parameters"]
    return format_table(head, rows)


def make_disk_table() -> list[str]:
    """Bytes of a year of one instrument's states, by depth and by how often a state is kept."""
    rates = {
        f"message, at the sample's {SAMPLE_RATE:.0f} per second": SAMPLE_RATE,
        "100 ms (`--state_interval_ms=100`)": 10.0,
        "1 s (`--state_interval_ms=1000`)": 1.0,
    }
    rows = []
    for name, rate in rates.items():
        states = rate * YEAR_SECONDS
        row = [name, f"{states / 1e6:,.0f} million"]
        for depth in (48, 96):
            size = states * (depth * BYTES_PER_LEVEL + BYTES_PER_STATE)
            row.append(f"{size / 1e9:,.0f} GB")
        rows.append(row)
    return format_table(["one state per", "states", "48 levels", "96 levels"], rows)


def make_lengths_table() -> list[str]:
    """What sampler and trainer choose by themselves, by the number of states of a recording."""
    from lob.training.samples import FEWEST_STEPS, choose_epochs
    from lob.windows.balancing import choose_stride, choose_windows

    rows = []
    for words, states in RECORDINGS.items():
        windows = choose_windows(states)
        steps_an_epoch = round(TRAINING_SHARE * windows) // STEP_WINDOWS
        row = [f"{states:,} ({words})", f"{windows:,}", choose_stride(states, windows)]
        if not steps_an_epoch:
            rows.append([*row, "-", "-", "refused: fewer windows than a step has"])
            continue
        epochs = choose_epochs(steps_an_epoch * STEP_WINDOWS)
        steps = epochs * steps_an_epoch
        said = "warned of: too short" if steps < FEWEST_STEPS else "trained"
        rows.append([*row, epochs, f"{steps:,}", said])
    head = ["states", "windows drawn", "states apart, at least", "epochs", "steps", "the run is"]
    return format_table(head, rows)


KINDS = {
    "lengths": make_lengths_table,
    "config": make_config_table,
    "disk": make_disk_table,
    "presets": make_presets_table,
    "shipped": worth.make_shipped_table,
    "seeds": worth.make_seeds_table,
    "worth": worth.make_worth_table,
    "speed": tables.make_speed_table,
    "first_hour": first_hour_tables.make_first_hour_tables,
    "steps": step_tables.make_step_tables,
    "recipes": step_tables.make_recipes_table,
    "scale": scale_tables.make_scale_tables,
    "bench": probe_tables.make_bench,
    "labels": label_tables.make_label_tables,
    "agent": agent_tables.make_agent_tables,
    "quoting": quoting_tables.make_quoting_tables,
    "precision": worth.make_precision_line,
    "results": tables.make_results_tables,
    "conditions": tables.describe_conditions,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
