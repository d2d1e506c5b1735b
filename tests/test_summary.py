"""The table with which a first run ends, from report.json."""

import json
from pathlib import Path

import pytest

from lob.config import InputError
from lob.evaluation.summary import main, summarise
from lob.results import make_row


def write_report(file: Path, cells: dict[str, dict[str, float]]) -> Path:
    rows = [
        make_row(f"BTC_USD/{case}", metric, value)
        for case, values in cells.items()
        for metric, value in values.items()
    ]
    rows.append(make_row("latency/cpu", "p50", 3.0))
    file.write_text(json.dumps({"rows": rows}))
    return file


def errors(error: float, ladder: float, ridge: float, *ends: float, trained: int = 1) -> dict:
    """Return a case's metrics. ends: of the differences to ladder and to ridge, two each."""
    names = [f"difference_{name}_{end}" for name in ("ladder", "ridge") for end in ("low", "high")]
    own = {"error": error, "ladder_error": ladder, "ridge_error": ridge, "trained_on": trained}
    return own | dict(zip(names, ends, strict=True))


MINE = {
    "patch/log_size": errors(0.75, 1.0, 0.8, -0.4, -0.1, -0.08, -0.02),
    "patch/offset": errors(2.2, 2.0, 4.0, 0.1, 0.3, -3.0, -1.0),
    "tail/log_size": errors(0.5, 0.5, 0.6, -0.05, 0.1, -0.3, 0.0, trained=0),
    "entry/log_size": errors(0.3, 0.3, 0.6, 0.0, 0.0, -0.4, -0.2),
    "probe/direction": {"ours": 0.5},
}


def test_the_table_tells_the_encoder_beside_the_better_of_ladder_and_ridge(tmp_path):
    text = summarise(write_report(tmp_path / "report.json", MINE))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120 and len(lines) <= 10
    cells = [" ".join(line.split()) for line in lines]
    assert "patches of 16 states x 8 levels 1 0.8 0.75 better, -10 to -2 %" in cells
    assert "the last states * 0.5 0.6 0.5 undecided, -10 to +20 %" in cells
    assert "prices of patches of 16 states x 8 levels 2 4 2.2 worse, +5 to +15 %" in cells
    assert "single values 0.3 0.6 0.3 equal" in cells
    assert "shipped" not in text and "latency" not in text
    assert lines[-1] == "* your encoder was not trained on this way to hide"


def test_the_shipped_encoder_has_a_column_of_its_own(tmp_path):
    other = {"patch/log_size": errors(0.6, 1.0, 0.8, -0.5, -0.3, -0.24, -0.16)}
    reports = [write_report(tmp_path / "mine.json", MINE), write_report(tmp_path / "o.json", other)]
    lines = summarise(*reports).splitlines()
    assert max(map(len, lines)) <= 120
    (line,) = (line for line in lines if line.startswith("patches"))
    assert " ".join(line.split()).endswith("0.75 better, -10 to -2 % 0.6 better, -30 to -20 %")
    (line,) = (line for line in lines if line.startswith("the last"))
    assert line.endswith("-")


def test_what_was_not_fitted_or_has_no_interval_is_left_out(tmp_path):
    without_ridge = errors(0.9, 1.0, 0.8, -0.2, -0.1, -0.2, 0.1)
    without_ridge = {key: x for key, x in without_ridge.items() if "ridge" not in key}
    of_one_block = {"error": 0.5, "ladder_error": 0.6, "ridge_error": 0.7}
    cells = {"patch/log_size": without_ridge, "span/log_size": of_one_block}
    lines = summarise(write_report(tmp_path / "report.json", cells)).splitlines()
    assert " ".join(lines[3].split()).endswith("levels 1 - 0.9 better, -20 to -10 %")
    assert " ".join(lines[4].split()) == "spans of 16 states 0.6 0.7 0.5"


@pytest.mark.parametrize("content", [None, "{", '{"rows": []}', '{"rows": [{"case": 1}]}'])
def test_a_report_that_does_not_serve_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=r"report\.json"):
        main({"reports": [str(tmp_path / "report.json")]})
