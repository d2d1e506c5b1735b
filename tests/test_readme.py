"""README.md against what it is made from: tables, commands, links and quoted messages."""

import ast
import errno
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import readme_tables, report
from lob.config import read_comments

README = (ROOT / "README.md").read_text()
SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("lob/*.py")]


def test_tables_are_those_of_their_sources():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.readme_tables", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_has_its_config_table():
    begun = re.findall(r"<!-- begin:config (\S+) -->", README)
    scripts = [path.name for path in ROOT.glob("*.py") if "\nconfig = {" in path.read_text()]
    assert sorted(begun) == sorted(scripts)
    assert (
        README.count("<!-- begin:")
        == README.count("<!-- end -->")
        == len(readme_tables.BLOCK.findall(README))
    )


def test_commands_name_scripts_targets_and_keys_that_exist():
    commands = re.findall(r"(?:python|python -m|make) [^\n`#|]+", README.replace("\\\n", " "))
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert any(c.startswith("make pipeline") for c in commands)
    for command in commands:
        words = shlex.split(command.split("&&")[0])
        if words[0] == "make":
            assert words[1].rstrip("`,.;") in targets, command
        elif words[1].endswith(".py"):
            keys = read_comments(ROOT / words[1])
            assert {word[2:].split("=")[0] for word in words[2:] if word.startswith("--")} <= set(
                keys
            ), command


def test_options_in_the_text_are_keys_of_a_script():
    known = {key for path in ROOT.glob("*.py") for key in read_comments(path)}
    options = set(re.findall(r"`--(\w+)", README)) - {"key", "help", "signal"}
    assert options and options <= known


def test_links_and_pictures_exist():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if not t.startswith("http")]
    assert len(targets) > 3
    for target in targets:
        assert (ROOT / target).is_file(), target


def source_texts() -> str:
    """All string literals of the code, one a line; the values put into them are left out."""
    texts = [os.strerror(errno.ENOSPC)]
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    " ".join(
                        str(part.value) for part in node.values if isinstance(part, ast.Constant)
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_that_the_readme_explains_are_the_programs():
    section = README.split("## When something goes wrong")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    texts = source_texts()
    assert len(rows) > 10
    for row in rows:
        for quoted in re.findall(r"`([^`]+)`", row):
            assert quoted in texts, quoted


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results of its own."""
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
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
        "note": "one core",
    },
    {"case": "json", "metric": "ratio_to_limit", "value": 0.5, "unit": ""},
]


def test_a_report_is_stored_as_printed_and_tabled(results, capsys):
    report.report("parser", ROWS, write=True, device="an abacus")
    last = capsys.readouterr().out.splitlines()[-1]
    stored = json.loads((results / "parser.json").read_text())
    assert json.loads(last) == stored
    assert set(stored) == {"benchmark", "command", "commit", "date", "device", "versions", "rows"}
    assert [set(row) for row in stored["rows"]] == [{"case", "metric", "value", "unit", "note"}] * 3
    table = readme_tables.results_table("parser")
    assert table[:4] == [
        "| case | updates per second (1/s) | ratio to limit |",
        "| --- | ---: | ---: |",
        "| kernel | 4,321,990 | 0.6123 |",
        "| json |  | 0.5000 |",
    ]
    assert (
        "kernel: one core.  " in table
        and "an abacus" in table[-1]
        and stored["commit"] in table[-1]
    )
    assert "**0.6123**" in readme_tables.result_sentence("parser", "kernel")[0]
    assert "has no case parquet" in readme_tables.result_sentence("parser", "parquet")[0]
    assert "Not measured" in readme_tables.results_table("nothing")[0]


def test_a_report_says_what_it_ran_on_and_with(results):
    plain = report.report("parser", ROWS, write=False)
    assert not list(results.iterdir())
    assert (
        plain["versions"]["numpy"]
        and plain["versions"]["python"].startswith("3.")
        and "cores" in plain["device"]
    )
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


def test_check_names_the_block_that_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    (tmp_path / "script.py").write_text('config = {\n    "depth": 96,  # levels | a state\n}\n')
    block = "text\n<!-- begin:config script.py -->\n<!-- end -->\nmore\n"
    (tmp_path / "README.md").write_text(block)
    assert (
        readme_tables.main(["--check"]) == 1 and "begin:config script.py" in capsys.readouterr().out
    )
    assert (tmp_path / "README.md").read_text() == block
    assert readme_tables.main([]) == 0 and readme_tables.main(["--check"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert (
        "| `depth` | `96` | levels \\| a state |" in text
        and text.startswith("text\n")
        and text.endswith("\nmore\n")
    )
    (tmp_path / "script.py").write_text('config = {\n    "depth": 48,  # levels | a state\n}\n')
    assert readme_tables.main(["--check"]) == 1


def test_a_year_of_states_takes_what_their_bytes_add_up_to():
    row = next(line for line in readme_tables.disk_table() if line.startswith("| 1 s"))
    assert (
        row
        == f"| 1 s (`--state_interval_ms=1000`) | 32 million | {31.536e6 * 400 / 1e9:.0f} GB | 25 GB |"
    )
