"""README.md and docs/ against what they are made from: tables, figures, commands, messages."""

import ast
import errno
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, shell
from PIL import Image

from benchmarks import figures, pages, report, tables, worth
from lob.config import read_comments
from lob.training.run_folder import COLUMNS

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "NOTES.md", *DOCS]
PAGES += [ROOT / "training_data" / "README.md"]
TEXTS = {page: page.read_text() for page in PAGES}
README = TEXTS[ROOT / "README.md"]
SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("lob/**/*.py"), *ROOT.glob("training_data/*.py")]
SOURCES += ROOT.glob("examples/**/*.py")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_blocks_are_those_of_their_sources():
    done = shell("benchmarks.pages", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_has_its_config_table():
    begun = re.findall(r"<!-- begin:config (\S+) -->", "\n".join(TEXTS.values()))
    scripts = [path.name for path in ROOT.glob("*.py") if "\nconfig = {" in path.read_text()]
    assert sorted(begun) == sorted(scripts)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_closed_and_filled(page):
    text = TEXTS[page]
    blocks = pages.BLOCK.findall(text)
    assert text.count("<!-- begin:") == text.count("<!-- end -->") == len(blocks)
    assert "ot measured" not in text


def test_the_readme_is_a_front_door():
    lines = README.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(lines) <= 220 and len(rows) <= 60
    assert not re.search(r"_USDM|_PERP_CM|/log_size", README)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_name_scripts_targets_and_keys_that_exist(page):
    text = TEXTS[page].replace("\\\n", " ")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"(?:^|`|&& )((?:python|make) [^\n`#|&]+)", text, re.MULTILINE)
    for command in commands:
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[1].endswith(".py"):
            keys = read_comments(ROOT / words[1])
            used = {word[2:].split("=")[0] for word in words[2:] if word.startswith("--")}
            assert used <= {*keys}, command


def test_the_readme_begins_with_commands():
    assert "make pipeline" in README and "python fp8_ddp_trainer.py" in README


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_in_the_text_are_keys_of_a_script(page):
    scripts = [*ROOT.glob("*.py"), *ROOT.glob("training_data/*.py"), *ROOT.glob("examples/*.py")]
    configured = [path for path in scripts if "\nconfig = {" in path.read_text()]
    known = {key for path in configured for key in read_comments(path)}
    options = set(re.findall(r"`--(\w+)", TEXTS[page])) - {"key", "help", "signal"}
    assert options <= known


def find_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in find_anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_in_the_text_exist(page):
    folders = "lob|tests|benchmarks|docs|examples|training_data/raw/BTC_USD"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", TEXTS[page]):
        assert (ROOT / path).exists(), path


def test_a_csv_as_the_readme_shows_it_becomes_states(tmp_path):
    found = re.search(r"```\n(time_exchange,.*?)```", README, re.DOTALL)
    raw = tmp_path / "raw" / "MY_PAIR"
    raw.mkdir(parents=True)
    (raw / "20260105.csv").write_text(found[1])
    words = [f"--data_dir={tmp_path}", "--pairs=['MY_PAIR']", "--depth=2", "--workers=1"]
    done = shell("data_parser.py", *words)
    assert done.returncode == 0, done.stderr
    assert "3 states of 2 levels" in done.stdout


def read_text(node: ast.AST, known: dict[str, str]) -> str | None:
    """The text that an expression makes; {} stands for a value. None: it makes no text.

    known: texts by the name of the variable that holds them.
    """
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = []
    for part in node.values:
        inner = part.value if isinstance(part, ast.FormattedValue) else part
        if isinstance(inner, ast.Name):
            parts.append(known.get(inner.id, "{}"))
        else:
            parts.append(read_text(inner, known) or "{}")
    return "".join(parts)


def read_texts(function: ast.AST) -> list[str]:
    """All texts that a function or module makes; those that it names first are put together."""
    known = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = read_text(node.value, {})
            if text is not None:
                known[node.targets[0].id] = text
    texts = [read_text(node, known) for node in ast.walk(function)]
    return [text for text in texts if text is not None]


def source_texts() -> str:
    """All texts of the code, one a line, without the values that are put into them."""
    texts = [os.strerror(errno.ENOSPC)]
    for path in SOURCES:
        module = ast.parse(path.read_text())
        functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
        for node in (module, *functions):
            texts += read_texts(node)
    return "\n".join(texts)


def test_a_message_is_read_whole_from_the_code():
    lines = [
        "def check(file, made_by, key):",
        '    remedy = f"run {made_by} again"',
        "    raise InputError(",
        '        f"{file} is old: "',
        '        f"{remedy}, "',
        '        f"or set --{key}"',
        "    )",
    ]
    function = ast.parse("\n".join(lines)).body[0]
    assert "{} is old: run {} again, or set --{}" in read_texts(function)


def test_messages_that_troubleshooting_explains_are_the_programs():
    text = TEXTS[ROOT / "docs" / "troubleshooting.md"]
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    texts = source_texts()
    assert len(rows) > 50
    quoted = [words for row in rows for words in re.findall(r"`([^`]+)`", row)]
    assert [words for words in quoted if words not in texts] == []


def read_rows(page: str, heading: str) -> list[str]:
    """The first words in backticks of each table row below a heading."""
    section = TEXTS[ROOT / "docs" / page].split(f"{heading}\n", 1)[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w[\w.]*)`", section, re.MULTILINE)


def test_files_names_every_statistic_column_and_array(data_dir):
    runs = read_rows("files.md", "## Runs")
    assert [column for column in runs if column in COLUMNS] == [*COLUMNS]
    arrays = {file.name for file in (data_dir / "book_states" / "BTC_USD").iterdir()}
    assert arrays <= {*read_rows("files.md", "## Order book states")}
    words = [f"--data_dir={data_dir}", "--plots=False"]
    assert shell("exploration_main.py", *words).returncode == 0
    fields = np.load(data_dir / "window_statistics" / "BTC_USD.npy", mmap_mode="r").dtype.names
    assert {*fields} - {"end_row"} == {*read_rows("files.md", "## Window statistics")}


def test_notes_are_newest_first():
    dates = re.findall(r"^## (\d{4}-\d\d-\d\d)", TEXTS[ROOT / "NOTES.md"], re.MULTILINE)
    headings = re.findall(r"^## ", TEXTS[ROOT / "NOTES.md"], re.MULTILINE)
    assert len(dates) == len(headings) > 3 and dates == sorted(dates, reverse=True)


@pytest.mark.parametrize("picture", sorted(figures.SOURCES))
def test_figures_are_drawn_from_what_is_there_now(picture):
    with Image.open(figures.FIGURES / picture) as image:
        assert image.text["Source"] == figures.describe_source(picture), "run make figures"


def test_every_picture_is_drawn_and_shown():
    there = {file.name for file in figures.FIGURES.iterdir()}
    shown = {Path(path).name for path in re.findall(r"\(([^)]+\.png)\)", "".join(TEXTS.values()))}
    assert there == shown == {*figures.SOURCES}
    assert not list((ROOT / "docs").glob("*.png"))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results of its own."""
    for module in (tables, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


ROWS = [
    {
        "case": "kernel",
        "metric": "updates_per_second",
        "value": 4_321_987.2,
        "unit": "1/s",
        "note": "one core",
    },
    {
        "case": "kernel",
        "metric": "ratio_to_limit",
        "value": 0.61234,
        "unit": "",
        "note": "of a copy",
    },
    {"case": "json", "metric": "ratio_to_limit", "value": 0.5, "unit": ""},
    {"case": "json", "metric": "new_thing", "value": 0.25, "unit": "GB"},
]


def test_a_report_is_stored_as_printed_and_tabled(results, capsys):
    report.report("parser", ROWS, write=True, device="an abacus")
    last = capsys.readouterr().out.splitlines()[-1]
    stored = json.loads((results / "parser.json").read_text())
    assert json.loads(last) == stored
    assert set(stored) == {"benchmark", "command", "commit", "date", "device", "versions", "rows"}
    assert [set(row) for row in stored["rows"]] == [{"case", "metric", "value", "unit", "note"}] * 4
    table = tables.make_results_tables("parser")
    assert table[:4] == [
        "| input | million updates/s | times as fast | as what | new thing (GB) |",
        "| --- | ---: | ---: | --- | ---: |",
        "| updates in memory | 4.322 | 0.6123 | a copy |  |",
        "| json |  | 0.5000 |  | 0.2500 |",
    ]
    assert "an abacus" in table[-2] and stored["commit"] in table[-2]
    assert "Not measured" in tables.make_results_tables("nothing")[0]
    assert "Not measured" in worth.make_worth_table()[0]


def test_a_report_says_what_it_ran_on_and_with(results):
    plain = report.report("parser", ROWS, write=False)
    assert not list(results.iterdir())
    assert plain["versions"]["numpy"] and plain["versions"]["python"].startswith("3.")
    assert "cores" in plain["device"]
    assert str(ROOT) not in plain["command"]


@pytest.mark.parametrize(
    "row",
    [
        {"case": "a", "metric": "b", "value": float("nan"), "unit": ""},
        {"case": "a", "value": 1.0, "unit": ""},
        {"case": "a", "metric": "b", "value": 1.0, "unit": "", "device": "x"},
    ],
)
def test_a_report_refuses_rows_that_are_no_results(results, row):
    with pytest.raises(ValueError):
        report.report("parser", [row], write=True)
    assert not list(results.iterdir())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5000"),
        (0.012345, "0.01235"),
        (12.3456, "12.35"),
        (999.96, "1000.0"),
        (-2.5, "-2.500"),
        (1234.5, "1,234"),
        (1.5e-7, "1.500e-07"),
        (3.2e9, "3,200,000,000"),
    ],
)
def test_numbers_keep_four_digits(value, text):
    assert report.format_value(value) == text


def make_cells(values: dict[str, dict[str, float]]) -> tables.Cells:
    cells = {}
    for case, found in values.items():
        for metric, value in found.items():
            cells[case, metric] = {"value": value, "note": "", "unit": ""}
    return cells


@pytest.mark.parametrize(
    ("ridge", "untrained", "verdict"),
    [
        ((-2, -1), (-3, -1), "better"),
        ((-2, 1), (-3, -1), "undecided"),
        ((-2, -1), (0.0, 0.0), "undecided"),
        ((1, 2), (-3, -1), "worse"),
    ],
)
def test_the_encoder_wins_only_where_both_intervals_say_so(ridge, untrained, verdict):
    intervals = {}
    for rival, (low, high) in (("ridge", ridge), ("untrained", untrained)):
        intervals |= {f"difference_{rival}_low": low, f"difference_{rival}_high": high}
    cells = make_cells({"A/tail/log_size": intervals})
    assert worth.judge_error(cells, "A/tail/log_size") == verdict


def test_the_best_untrained_method_is_marked_if_it_is_not_the_ladder():
    errors = {"error": 3.0, "ridge_error": 4.0, "ladder_error": 6.0, "best_untrained_error": 5.0}
    better = errors | {"ladder_error": 4.5}
    cells = make_cells({"A/tail/log_size": errors, "A/patch/log_size": better})
    assert worth.compare_errors(cells, "A/tail/log_size")[2] == "5 †"
    assert worth.compare_errors(cells, "A/patch/log_size")[2] == "4.500"


def test_check_names_the_block_that_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "script.py").write_text('config = {\n    "depth": 96,  # levels | a state\n}\n')
    block = "text\n<!-- begin:config script.py -->\n<!-- end -->\nmore\n"
    (tmp_path / "README.md").write_text(block)
    assert pages.main(["--check"]) == 1
    assert "README.md: <!-- begin:config script.py -->" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == block
    assert pages.main([]) == 0 and pages.main(["--check"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert re.search(r"\| `depth` \| `96` \|.* levels \\\| a state \|", text)
    assert text.startswith("text\n") and text.endswith("\nmore\n")
    (tmp_path / "script.py").write_text('config = {\n    "depth": 48,  # levels | a state\n}\n')
    assert pages.main(["--check"]) == 1


def test_a_keys_rule_gets_a_column_of_its_own(monkeypatch):
    found = {"epochs": ("9", ">= 1", "passes"), "cells": ("[\n    8,\n    9,\n]", "", "cells")}
    monkeypatch.setattr(pages, "read_comments", lambda script: found)
    assert pages.make_config_table("any.py") == [
        "| key | default | allowed | meaning |",
        "| --- | --- | --- | --- |",
        "| `epochs` | `9` | `>= 1` | passes |",
        "| `cells` | `[8, 9]` |  | cells |",
    ]


def test_a_year_of_states_takes_what_their_bytes_add_up_to():
    row = next(line for line in pages.make_disk_table() if line.startswith("| 1 s"))
    size = 31.536e6 * 400 / 1e9
    assert row == f"| 1 s (`--state_interval_ms=1000`) | 32 million | {size:.0f} GB | 25 GB |"
