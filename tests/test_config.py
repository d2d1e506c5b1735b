"""The command line: what is accepted, what is refused in one line, and how fast --help answers."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lob.config import CheckFailed, InputError, describe, do_each, load_config, run

SCRIPT = '''"""Does nothing.

    python script.py
"""

config = {
    "depth": 96,  # levels
    "lr": 1e-4,  # step size, "#" in a comment is kept
    "loss": "mse",  # one of three
    "model_name": "a run",  # what the folder is called
    "use_scheduler": True,  # on or off
    "pairs": None,  # list of pairs; None: all
    "tick_size": None,  # in the quote currency; None: found
    "limit": None,  # a float; None: no limit
    "share": 0.5,  # above 0, up to 1
    "split_ratios": [
        0.7,
        0.3,
    ],  # over three lines
}
'''
OPTIONAL = {"pairs": list, "tick_size": (int, float), "limit": float}
CHOICES = {"loss": ("mse", "mae", "huber")}
BOUNDS = {"depth": ">= 2", "lr": "> 0 and < inf", "limit": ">= 0", "share": "> 0 and <= 1"}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def load(script: Path, *words: str) -> dict:
    names: dict = {}
    exec(script.read_text(), names)
    return load_config(names["config"], script, OPTIONAL, CHOICES, BOUNDS, words)


def test_overrides_are_literals_of_the_defaults_type(script):
    config = load(script, "--depth=48", "--lr=1", "--loss=mae", "--use_scheduler=False", "--pairs=['A','B']",
                  "--tick_size=0.5", "--limit=1", "--split_ratios=[1, 2]", "--model_name=2024")  # fmt: skip
    assert config == {"depth": 48, "lr": 1.0, "loss": "mae", "use_scheduler": False, "pairs": ["A", "B"],
                      "tick_size": 0.5, "limit": 1, "share": 0.5, "split_ratios": [1, 2],
                      "model_name": "2024"}  # fmt: skip
    assert type(config["lr"]) is float
    assert load(script)["pairs"] is None
    assert load(script, "--pairs=None")["pairs"] is None
    assert load(script, "--model_name=a=b")["model_name"] == "a=b"


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("--dept=48", ["'dept'", "48", "did you mean 'depth'?"]),
        ("--nothing_like_it=1", ["'nothing_like_it'", "--help lists the keys"]),
        ("--depth=many", ["depth = 'many'", "str", "not int"]),
        ("--depth=48.0", ["depth = 48.0", "float", "not int"]),
        ("--depth=True", ["depth = True", "bool", "not int"]),
        ("--lr=fast", ["lr = 'fast'", "not float"]),
        ("--lr=True", ["lr = True", "not float"]),
        ("--use_scheduler=1", ["use_scheduler = 1", "not bool: write --use_scheduler=True or --use_scheduler=False"]),
        ("--pairs=BTC_USD", ["pairs = 'BTC_USD'", "not list or None: write --pairs=\"['BTC_USD']\""]),
        ("--pairs=[3]", ["pairs = [3] holds 3, which is no text: write it in quotes, '3'\n"]),
        ("--tick_size=True", ["tick_size = True", "not int or float or None"]),
        ("--limit=True", ["limit = True", "not float or None"]),
        ("--limit=much", ["limit = 'much'", "not float or None"]),
        ("--split_ratios=0.7", ["split_ratios = 0.7", "not list"]),
        ("--depth=1", ["depth = 1 must be >= 2\n"]),
        ("--lr=0", ["lr = 0.0 must be > 0 and < inf\n"]),
        ("--lr=1e999", ["lr = inf must be > 0 and < inf\n"]),
        ("--lr=nan", ["lr = 'nan' is of type str, not float"]),
        ("--limit=-0.5", ["limit = -0.5 must be >= 0 or None\n"]),
        ("--share=0.0", ["share = 0.0 must be > 0 and <= 1\n"]),
        ("--share=1.1", ["share = 1.1"]),
        ("--loss=msee", ["loss = 'msee'", "'huber'", "did you mean 'mse'?"]),
        ("--depth", ["'--depth'", "--key=value"]),
        ("depth=3", ["'depth=3'", "--key=value"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(script, capsys, word, parts):
    with pytest.raises(SystemExit) as stopped:
        load(script, word)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("script.py: ")
    for part in parts:
        assert part in err


@pytest.mark.parametrize("bound", [">= 0", "> 0", "< 1", "<= 1", "> 0 and < inf"])
def test_nan_is_within_no_bounds(script, capsys, bound):
    """It can't be given in the shell, but written into the dict."""
    with pytest.raises(SystemExit):
        load_config({"lr": math.nan}, script, bounds={"lr": bound}, argv=())
    assert capsys.readouterr().err == f"script.py: lr = nan must be {bound}\n"


def test_help_lists_every_key_with_default_and_comment(script):
    text = describe(script)
    assert text.startswith("Does nothing.")
    lines = {line.split("=")[0].strip(): line for line in text.splitlines() if line.startswith("  --")}
    assert set(lines) == {"--depth", "--lr", "--loss", "--model_name", "--use_scheduler", "--pairs", "--tick_size",
                          "--limit", "--share", "--split_ratios"}  # fmt: skip
    assert "--depth=96" in lines["--depth"] and lines["--depth"].endswith("levels")
    assert lines["--lr"].endswith('step size, "#" in a comment is kept')
    assert "over three lines" in text


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.py")))
def test_help_and_a_misspelt_key_answer_before_the_heavy_imports(name):
    """Within a second, since nothing slow is loaded."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", name, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "--data_dir='training_data'" in done.stdout.replace('"', "'")
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "lob" in loaded and not loaded & {"numpy", "numba", "pandas", "pyarrow", "matplotlib", "torch", "tqdm"}
    wrong = subprocess.run([sys.executable, name, "--datadir=3"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "did you mean 'data_dir'?" in wrong.stderr


def raised(error: BaseException | None):
    def main(config: dict) -> int:
        if error is not None:
            raise error
        return int(config["status"])

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("depth = 3 is odd"), 2, "depth = 3 is odd"),
        (OSError(28, "No space left on device", "/data/x.npy"), 1, "No space left on device: /data/x.npy"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_run_turns_errors_into_one_line_and_a_status(capsys, error, status, line):
    with pytest.raises(SystemExit) as stopped:
        run(raised(error), {})
    err = capsys.readouterr().err
    assert stopped.value.code == status and err.count("\n") == 1 and line in err


@pytest.mark.parametrize("pairs", [["A"], ["A", "B"]])
def test_a_pair_that_cannot_be_written_is_told_as_a_full_disk_is(capsys, pairs):
    def work(pair: str) -> None:
        raise OSError(30, "Read-only file system", f"/data/{pair}.npy")

    with pytest.raises(CheckFailed) as failed:
        do_each(work, pairs)
    told = capsys.readouterr().err + str(failed.value)
    assert "A: Read-only file system: /data/A.npy" in told and "Errno" not in told


def test_run_lets_our_own_mistakes_through_and_keeps_mains_status():
    with pytest.raises(ZeroDivisionError):
        run(raised(ZeroDivisionError()), {})
    for status in (0, 1, 2):
        with pytest.raises(SystemExit) as stopped:
            run(raised(None), {"status": status})
        assert stopped.value.code == status


ENDLESS = "from lob.config import run\ndef main(config):\n    while True: print('x' * 5000)\nrun(main, {})"
HELP = ("from lob import config\nconfig.describe = lambda script: 'x' * 10**6\n"
        "config.load_config({}, '', argv=['--help'])")  # fmt: skip


@pytest.mark.parametrize("code", [ENDLESS, HELP])
def test_a_closed_pipe_leaves_no_traceback(code):
    reader = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert reader.stdout is not None and reader.stderr is not None
    reader.stdout.read(10)
    reader.stdout.close()
    assert reader.wait(20) == 1 and reader.stderr.read() == b""
    reader.stderr.close()
