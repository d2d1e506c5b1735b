"""What stands beside `run`: a script's environment, cores, signals and missing packages."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, refusal

from lob.config import InputError, load_config, read_comments, read_rules, run
from lob.process import count_cores, prepare
from lob.training.optimisation import describe_unused

SCRIPTS = [
    *sorted(file.name for file in ROOT.glob("*.py")),
    "examples/ppo_agent.py",
    "examples/hftbacktest_agent.py",
    "training_data/download_recordings.py",
    "training_data/download_tardis.py",
    *(f"benchmarks/{name}.py" for name in ("prove", "bench_parser", "bench_training")),
]


def rewrite(script: str, folder: Path, old: str, new: str) -> Path:
    """Return a copy of a script with one line of its config changed."""
    source = (ROOT / script).read_text()
    assert source.count(old) >= 1
    copy = folder / Path(script).name
    copy.write_text(source.replace(old, new, 1))
    return copy


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_key_that_is_misspelt_or_missing_in_the_dict_is_named(script, tmp_path):
    """A dict whose keys are exactly those that the code reads passes, so each of them is known."""
    assert read_rules(str(ROOT / script))
    for key in list(read_comments(ROOT / script))[::12]:
        misspelt = rewrite(script, tmp_path, f'    "{key}": ', f'    "{key}x": ')
        with pytest.raises(InputError, match=f"unknown key '{key}x' .*did you mean '{key}'"):
            read_rules(str(misspelt))
        missing = rewrite(script, tmp_path, f'    "{key}": ', '    # "": ')
        if len(read_comments(missing)) == len(read_comments(ROOT / script)) - 1:
            with pytest.raises(InputError, match=f"the config lacks the key '{key}'"):
                read_rules(str(missing))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{"a": 1, "a": 2}', "holds the key 'a' twice"),
        ('{"a": 1, **{}}', "holds \\*\\*, which is no key in quotes"),
        ("{a: 1}", "holds a, which is no key in quotes"),
        ("dict(a=1)", "has no dict of its own named config"),
        ('{"a": 1, "b": 2}\nprint(config["a"])', "unknown key 'b' .= 2.$"),
    ],
)
def test_a_dict_that_is_written_otherwise_is_refused(written, said, tmp_path, capsys):
    (tmp_path / "script.py").write_text(f'"""Doc."""\nconfig = {written}\n')
    with pytest.raises(InputError, match=said):
        read_rules(str(tmp_path / "script.py"))
    with pytest.raises(SystemExit) as stopped:
        load_config({"a": 1}, tmp_path / "script.py", [])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_environment_is_set_unless_the_user_did(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    prepare("script.py")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["MPLBACKEND"] == "Agg"  # a notebook's backend can't be imported in a script
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare("script.py")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_cores_are_those_of_the_affinity_mask(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 8}, raising=False)
    assert count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert count_cores() == 64


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_script_in_one_line_after_its_cleanup(number, capsys):
    cleaned = []

    def main(config: dict) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as stopped:
        run(main, {})
    err = capsys.readouterr().err
    assert stopped.value.code == 128 + number and cleaned == [True]
    assert err.count("\n") == 1 and "interrupted; unfinished output was not put in place" in err


def test_a_signal_that_comes_where_python_drops_errors_is_not_lost(capsys):
    class Slow:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def main(config: dict) -> None:
        Slow()
        time.sleep(60)

    with pytest.raises(SystemExit) as stopped:
        run(main, {})
    err = capsys.readouterr().err
    assert stopped.value.code == 128 + signal.SIGTERM and err.count("\n") == 1


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup, or of a program that a shell started in the background."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(SystemExit) as stopped:
        run(lambda config: os.kill(os.getpid(), signal.SIGHUP), {})
    assert stopped.value.code == 0


SCRIPT = """
config = {"folder": ""}
import sys
sys.path.insert(0, %r)
from lob.config import load_config, run
config = load_config(config, __file__)
import time
%s
def main(config):
    print(config["folder"])
run(main, config)
%s
"""


def start(folder: Path, before: str = "", after: str = "", *words: str) -> subprocess.Popen:
    script = folder / "script.py"
    script.write_text(SCRIPT % (str(ROOT), before, after))
    command = [sys.executable, str(script), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_packages_load_gives_one_line(tmp_path, number):
    """An import that swallows KeyboardInterrupt, as some packages do, changes nothing."""
    swallow = "try:\n  print(1, flush=True); time.sleep(60)\nexcept BaseException: pass"
    process = start(tmp_path, swallow)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (128 + number, "script.py: interrupted\n")


def test_a_package_that_is_missing_is_one_line(tmp_path):
    _, err = start(tmp_path, "import no_such_package.part").communicate(timeout=20)
    assert err == (
        "script.py: the package no_such_package is not installed: "
        "run .venv/bin/python, or pip install -r requirements.txt\n"
    )


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    out, err = start(tmp_path, "", "", "--folder=Börse").communicate(timeout=20)
    assert (out, err) == ("B\\xf6rse\n", "")


def test_memory_that_is_used_up_is_one_line(capsys):
    def main(config: dict) -> None:
        bytearray(1 << 62)

    with pytest.raises(SystemExit) as stopped:
        run(main, {})
    err = capsys.readouterr().err
    assert stopped.value.code == 1 and err.count("\n") == 1 and "memory is used up" in err


KERNEL = """
from lob.jit import compiled, is_compiled
@compiled
def double(x):
    return 2 * x
print(is_compiled(double), double(21), is_compiled(double))
"""


@pytest.mark.parametrize("taken", ["free", "a file", "open to all"])
def test_kernels_compile_where_neither_code_nor_home_can_be_written(tmp_path, taken):
    (tmp_path / "kernel.py").write_text(KERNEL)
    (tmp_path / "lob").mkdir()
    (tmp_path / "lob" / "__init__.py").touch()
    shutil.copy(ROOT / "lob" / "jit.py", tmp_path / "lob")
    for folder in (tmp_path, tmp_path / "lob"):
        (folder / "__pycache__").write_text("no folder")
    cache = tmp_path / f"lob-numba-{os.getuid()}"
    if taken == "a file":
        cache.touch()
    elif taken == "open to all":
        cache.mkdir()
        cache.chmod(0o777)
    places = {"HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    own = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"} | places
    for expected in ("False 42 True", "True 42 True"):
        done = subprocess.run(
            [sys.executable, "-B", "kernel.py"],
            cwd=tmp_path,
            env=own,
            capture_output=True,
            text=True,
            check=True,
        )
        if taken == "free":
            assert done.stdout == f"{expected}\n"
            said = f"compiled code is kept in {cache}, since code and home can't be written"
        else:
            assert done.stdout == "False 42 False\n"
            said = "each run compiles anew, which takes a minute: set NUMBA_CACHE_DIR to a folder"
        assert done.stderr.count("\n") == 1 and said in done.stderr


@pytest.mark.parametrize(
    ("script", "package", "module"),
    [("ppo", "stable_baselines3", "policies"), ("hftbacktest", "hftbacktest", "quoting")],
)
def test_the_agents_without_their_packages_are_one_line(monkeypatch, script, package, module):
    monkeypatch.setitem(sys.modules, package, None)
    # Another test may have loaded what imports it.
    loaded = sys.modules.get("examples.agent")
    if hasattr(loaded, module):
        monkeypatch.delattr(loaded, module)
    monkeypatch.delitem(sys.modules, f"examples.agent.{module}", raising=False)
    said = refusal(f"examples/{script}_agent.py")
    assert f"the agents need the package {package}" in said
    assert "-r examples/requirements.txt" in said


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ((True, "adamw", False, False, None), ["lr, lr_decay_factor, lr_decay_patience (use_sch"]),
        ((False, "sgd", False, False, None), ["max_lr (use_sch", "weight_decay (optimizer = 'sgd"]),
        ((True, "adamw", False, False, "a"), ["model_path (load_model = False)"]),
        ((True, "adamw", True, True, "a"), ["load_model, model_path (resume = True)"]),
    ],
)
def test_keys_without_effect_are_named_with_the_reason(chosen, said):
    line = describe_unused(*chosen)
    assert line.startswith("no effect ") and all(words in line for words in said)
    assert ("max_lr" in line) is not chosen[0] and ("weight_decay" in line) is ("sgd" in chosen)
