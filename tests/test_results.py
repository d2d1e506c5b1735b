"""Result rows, what they were measured with, and report files."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from lob.results import ROW, describe_environment, make_report, make_row, read_rows, write_report


def test_an_environment_is_described_without_loading_torch():
    code = "import sys, lob.results as r; print(r.describe_environment(), r.describe_device())"
    code += "; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False" and "'torch': '" in done.stdout


def test_an_environment_names_commit_versions_and_machine():
    found = describe_environment()
    assert list(found) == [
        "command",
        "date",
        "commit",
        "python",
        "versions",
        "gpu",
        "gpus",
        "machine",
    ]
    assert found["versions"]["numpy"] and found["commit"]


def test_a_written_report_is_read_back(tmp_path):
    row = make_row("kernel", "rate", 1, "1/s")
    without_note = {key: row[key] for key in ROW if key != "note"}
    report = make_report("parser", [row, without_note], "an abacus", step=3)
    write_report(tmp_path / "report.json", report)
    assert read_rows(tmp_path / "report.json") == [row, row]
    stored = json.loads((tmp_path / "report.json").read_text())
    assert (stored["device"], stored["step"]) == ("an abacus", 3)
    assert stored["versions"]["python"].startswith("3.")


@pytest.mark.parametrize("text", ["[]", '{"rows": 1}', '{"rows": [{"case": "a"}]}', "{"])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError):
        read_rows(tmp_path / "report.json")
