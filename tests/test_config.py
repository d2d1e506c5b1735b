"""The command line: what is accepted, what is refused in one line, and how fast --help answers."""

import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lob.config import (
    CheckFailed,
    InputError,
    check_rules,
    describe,
    do_each,
    load_config,
    parse_rule,
    read_comments,
    read_rules,
    run,
)

SCRIPT = '''"""Does nothing.

    python script.py
"""

config = {
    # a section
    "depth": 96,  # int >= 2: levels
    "lr": 1e-4,  # > 0 and < inf: step size, "#" and é in a comment are kept
    "loss": "mse",  # mse | mae | huber: what is
    #   minimised: over hidden values
    "model_name": "a # run",  # what the folder is called
    "use_scheduler": True,  # on or off
    "pairs": None,  # list[str] | None: pairs; None: all
    "tick_size": None,  # int | float | None: in the quote currency; None: found
    "limit": None,  # >= 0 | None: None: no limit
    "share": 0.5,  # > 0 and <= 1: of the windows
    "split_ratios": [
        0.7,
        0.3,
    ],  # list[>= 0 | str]: over three lines
    "model_path": None,  # str | None: file
    "widths": [64],  # list[int >= 1]: of layers
    "devices": ["cpu"],  # list[cpu | cuda] | None: where; None: everywhere
    "formats": ["onnx"],  # list[onnx | pt] | []: of files
    "device": None,  # cpu | cuda | None: where
    # another section
    "offset": 0.0,  # float: any number
}
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def load(script: Path, *words: str) -> dict:
    names: dict = {}
    exec(script.read_text(), names)
    return load_config(names["config"], script, words)


def edit(script: Path, key: str, value: str) -> None:
    """Change a key's default in the script."""
    lines = script.read_text().splitlines(keepends=True)
    (at,) = [number for number, line in enumerate(lines) if line.startswith(f'    "{key}": ')]
    before, comment = lines[at].split(",  #")
    lines[at] = f"{before.split(': ')[0]}: {value},  #{comment}"
    script.write_text("".join(lines))


def test_overrides_are_literals_of_the_defaults_type(script):
    config = load(
        script,
        "--depth=48",
        "--lr=1",
        "--loss=mae",
        "--use_scheduler=False",
        "--pairs=['A','B']",
        "--tick_size=0.5",
        "--limit=1",
        "--split_ratios=[1, 2]",
        "--model_name=2024",
    )
    assert config == {
        "depth": 48,
        "lr": 1.0,
        "loss": "mae",
        "use_scheduler": False,
        "pairs": ["A", "B"],
        "tick_size": 0.5,
        "limit": 1,
        "share": 0.5,
        "split_ratios": [1, 2],
        "model_name": "2024",
        "model_path": None,
        "widths": [64],
        "devices": ["cpu"],
        "formats": ["onnx"],
        "device": None,
        "offset": 0.0,
    }
    assert type(config["lr"]) is float and type(config["limit"]) is float
    assert load(script)["pairs"] is None
    assert load(script, "--pairs=None")["pairs"] is None
    assert load(script, "--model_name=a=b")["model_name"] == "a=b"
    assert load(script, "--model_path=2024")["model_path"] == "2024"
    assert load(script, "--model_path={[]: 1}")["model_path"] == "{[]: 1}"
    assert type(load(script, "--tick_size=1")["tick_size"]) is int
    assert load(script, "--formats=[]", "--widths=[]")["formats"] == []


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
        (
            "--use_scheduler=1",
            ["use_scheduler = 1", "not bool: write --use_scheduler=True or --use_scheduler=False"],
        ),
        (
            "--pairs=BTC_USD",
            ["pairs = 'BTC_USD'", "not list or None: write --pairs=\"['BTC_USD']\""],
        ),
        ("--pairs=[3]", ["pairs = [3] holds 3, which is no text: write it in quotes, '3'\n"]),
        ("--tick_size=True", ["tick_size = True", "not int or float or None"]),
        ("--limit=True", ["limit = True", "not float or None"]),
        ("--limit=much", ["limit = 'much'", "not float or None"]),
        ("--split_ratios=0.7", ["split_ratios = 0.7", "not list"]),
        ("--depth=1", ["depth = 1 must be >= 2\n"]),
        ("--lr=0", ["lr = 0.0 must be > 0 and < inf\n"]),
        ("--lr=1e999", ["lr = inf must be > 0 and < inf\n"]),
        ("--depth=-1" + "0" * 400, ["depth = -1", "000 must be >= 2\n"]),
        ("--lr=nan", ["lr = 'nan' is of type str, not float"]),
        ("--limit=-0.5", ["limit = -0.5 must be >= 0 or None\n"]),
        ("--share=0.0", ["share = 0.0 must be > 0 and <= 1\n"]),
        ("--share=1.1", ["share = 1.1"]),
        ("--loss=msee", ["loss = 'msee'", "'huber'", "did you mean 'mse'?"]),
        ("--device=cup", ["device = 'cup' is none of 'cpu', 'cuda', None, did you mean 'cpu'?"]),
        ("--device=1", ["device = '1' is none of 'cpu', 'cuda', None\n"]),
        ("--devices=cpu", ["devices = 'cpu'", "not list or None: write --devices=\"['cpu']\""]),
        ("--devices=['cup']", ["devices = ['cup'] must be some of cpu, cuda, did you mean 'cpu'?"]),
        ("--devices=[]", ["devices = [] must be some of cpu, cuda\n"]),
        ("--widths=[64, 0]", ["widths = [64, 0] holds 0, which must be >= 1\n"]),
        ("--widths=[64, 1.5]", ["widths = [64, 1.5] holds 1.5, which is of type float, not int\n"]),
        ("--split_ratios=[True]", ["split_ratios = [True] holds True, which is of type bool, not"]),
        ("--lr=1" + "0" * 400, ["lr = inf must be > 0 and < inf\n"]),
        ("--lr={[]: 1}", ["lr = '{[]: 1}' is of type str, not float"]),
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


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--depth=1e2", 100),
        ("--pairs=A", ["A"]),
        ("--pairs=[A, B]", ["A", "B"]),
        ("--pairs=A,B", ["A", "B"]),
        ("--pairs=['A', B]", ["A", "B"]),
        ("--widths=64, 32", [64, 32]),
        ("--widths=64", [64]),
        ("--split_ratios=[2026-01-05,0.5]", ["2026-01-05", 0.5]),
        ("--devices=[cpu, cuda]", ["cpu", "cuda"]),
    ],
)
def test_the_value_that_was_meant_is_shown_as_it_is_written(script, capsys, word, meant):
    with pytest.raises(SystemExit):
        load(script, word)
    _, _, written = capsys.readouterr().err.partition(": write ")
    assert load(script, *shlex.split(written))[word[2:].split("=")[0]] == meant


@pytest.mark.parametrize("word", ["--depth=1.0", "--depth=1.5", "--widths=[64 32]", "--widths=0"])
def test_no_value_is_shown_if_none_is_right(script, capsys, word):
    with pytest.raises(SystemExit):
        load(script, word)
    assert "write" not in capsys.readouterr().err


@pytest.mark.parametrize("bound", [">= 0", "> 0", "< 1", "<= 1", "> 0 and < inf"])
def test_nan_is_within_no_bounds(script, capsys, bound):
    """It can't be given in the shell, but written into the dict."""
    script.write_text(f'config = {{\n    "lr": float("nan"),  # {bound}: step size\n}}\n')
    with pytest.raises(SystemExit):
        load_config({"lr": math.nan}, script, argv=())
    assert capsys.readouterr().err == f"script.py: lr = nan must be {bound}\n"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("depth", "96.0", "depth = 96.0 is of type float, not int: write --depth=96\n"),
        ("depth", "0", "depth = 0 must be >= 2\n"),
        ("depth", "None", "depth = None is of type NoneType, not int\n"),
        (
            "loss",
            "'hubert'",
            "loss = 'hubert' is none of 'mse', 'mae', 'huber', did you mean 'huber'?\n",
        ),
        ("loss", "3", "loss = 3 is none of 'mse', 'mae', 'huber'\n"),
        ("pairs", "'BTC'", "pairs = 'BTC' is of type str, not list or None"),
        ("share", "'half'", "share = 'half' is of type str, not float\n"),
        ("offset", 'float("nan")', "offset = nan must be a number\n"),
    ],
)
def test_what_is_edited_in_the_dict_is_checked_too(script, capsys, key, value, said):
    edit(script, key, value)
    with pytest.raises(SystemExit) as stopped:
        load(script)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(f"script.py: {said}")
    with pytest.raises(SystemExit):  # --help shows the dict as it is
        load(script, "--help")
    assert f"--{key}={value}" in capsys.readouterr().out


def test_a_dict_from_elsewhere_is_checked_against_the_scripts_rules(script):
    config = load(script)
    assert check_rules({**config, "lr": 1}, script) == {**config, "lr": 1.0}
    for change, said in (
        ({"depth": 1}, "depth = 1 must be >= 2"),
        ({"dept": 48}, "unknown key 'dept' .= 48., did you mean 'depth'"),
        ({"devices": ["tpu"]}, "devices = .* must be some of cpu, cuda"),
    ):
        with pytest.raises(InputError, match=said):
            check_rules({**config, **change}, script)
    del config["lr"]
    with pytest.raises(InputError, match=r"lacks the key 'lr' of script\.py"):
        check_rules(config, script)


def test_comments_are_split_into_rule_and_meaning(script):
    comments = read_comments(script)
    assert list(comments["depth"]) == ["96", "int >= 2", "levels"]
    assert list(comments["loss"]) == [
        '"mse"',
        "mse | mae | huber",
        "what is minimised: over hidden values",
    ]
    assert list(comments["model_name"]) == ['"a # run"', "", "what the folder is called"]
    assert comments["split_ratios"].rule == "list[>= 0 | str]"
    assert "0.3" in comments["split_ratios"].default
    assert comments["devices"].text == "list[cpu | cuda] | None: where; None: everywhere"


@pytest.mark.parametrize(
    "prose",
    [
        "",
        "note",
        "None",
        "was",
        "of the composite",
        ">= one",
        "int => 1",
        "> 0 and <= ",
        "list[a b]",
        "a | b c",
        "int >= 1 | > 2",
        "list[note]",
        "[]",
        "a | []",
        "float >= 1,",
        "str or None",
    ],
)
def test_prose_before_a_colon_is_no_rule(script, prose):
    assert parse_rule(prose) is None
    script.write_text(f'config = {{\n    "depth": 96,  # {prose}: levels\n}}\n')
    assert read_comments(script)["depth"].text == f"{prose}: levels".strip()
    assert load_config({"depth": 96}, script, argv=["--depth=-3"]) == {"depth": -3}
    with pytest.raises(SystemExit):
        load_config({"depth": 96}, script, argv=["--depth=1.5"])


@pytest.mark.parametrize("words", [(), ("--help",), ("--depth=48",)])
def test_a_program_without_its_source_says_so_in_one_line(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        load_config({"depth": 96}, tmp_path / "frozen.py", words)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1
    assert err.startswith("frozen.py: ") and "run it from source" in err


def test_rules_are_read_once():
    trainer = str(ROOT / "fp8_ddp_trainer.py")
    assert read_rules(trainer) is read_rules(trainer)


def test_help_lists_every_key_with_default_and_comment(script):
    text = describe(script)
    assert text.startswith("Does nothing.")
    rows = [line for line in text.splitlines() if line.startswith("  --")]
    lines = {row.split("=")[0].strip(): row for row in rows}
    assert set(lines) == {f"--{key}" for key in load(script)}
    assert "--depth=96" in lines["--depth"] and lines["--depth"].endswith("  int >= 2: levels")
    assert lines["--lr"].endswith('step size, "#" and é in a comment are kept')
    assert "over three lines" in text


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.py")))
def test_help_and_a_misspelt_key_answer_before_the_heavy_imports(name):
    """Within a second, since nothing slow is loaded."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", name, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--data_dir='training_data'" in done.stdout.replace('"', "'")
    rows = [line for line in done.stderr.splitlines() if "|" in line]
    loaded = {row.rsplit("|", 1)[-1].strip().split(".")[0] for row in rows}
    assert "lob" in loaded and not loaded & {
        "numpy",
        "numba",
        "pandas",
        "pyarrow",
        "matplotlib",
        "torch",
        "tqdm",
    }
    command = [sys.executable, name, "--datadir=3"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
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
        (
            OSError(28, "No space left on device", "/data/x.npy"),
            1,
            "No space left on device: /data/x.npy",
        ),
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


ENDLESS = """
from lob.config import run
def main(config):
    while True: print('x' * 5000)
run(main, {})
"""
HELP = """
from lob import config
config.describe = lambda script: 'x' * 10**6
config.load_config({}, '', argv=['--help'])
"""


@pytest.mark.parametrize("code", [ENDLESS, HELP])
def test_a_closed_pipe_leaves_no_traceback(code):
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    reader = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe)
    assert reader.stdout is not None and reader.stderr is not None
    reader.stdout.read(10)
    reader.stdout.close()
    assert reader.wait(20) == 1 and reader.stderr.read() == b""
    reader.stderr.close()
