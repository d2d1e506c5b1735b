"""The seven scripts by subprocess on a cut of the sample that ships, as `make pipeline` runs them,
and stale files.
"""

import contextlib
import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, shell

SAMPLE = ROOT / "training_data" / "raw" / "BTC_USD" / "20260502.csv.gz"
PIPELINE = (
    "data_parser.py",
    "exploration_main.py",
    "create_balanced_dataset.py",
    "fp8_ddp_trainer.py",
    "inference_testing.py",
    "training_results_analysis.py",
    "model_exporter.py",
)
WORDS = {
    "data_parser.py": ("--depth=16", "--workers=1"),
    "exploration_main.py": ("--temporal_dim=32",),
    "create_balanced_dataset.py": ("--temporal_dim=32",),
    "fp8_ddp_trainer.py": ("--temporal_dim=32", "--depth_dim=16"),  # and those of the Makefile
    "inference_testing.py": (
        "--windows=8",
        "--fit_windows=8",
        "--probe_windows=80",
        "--latency_runs=3",
        "--masks=['entry','tail']",
    ),
    # one part of three: tests/test_exporter.py exports all, and ONNX programs take long to make
    "model_exporter.py": ("--check_windows=3", "--parts=['encoder']"),
}


def plan(*variables: str) -> str:
    """Return the commands of `make pipeline`."""
    command = ["make", "-n", "pipeline", *variables]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def words_for(folder: Path, script: str) -> list[str]:
    """Return a script's command line, with the folders that it has a key for under `folder`."""
    keys = re.findall(
        r'^    "(data_dir|runs_dir|exports_dir)":', (ROOT / script).read_text(), re.MULTILINE
    )
    where = [f"--{key}={folder / key.removesuffix('_dir')}" for key in keys]
    return [script, *where, *WORDS.get(script, ())]


@pytest.fixture(scope="module")
def piped(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder in which all seven scripts ran, and what each printed."""
    folder = tmp_path_factory.mktemp("pipeline")
    raw = folder / "data" / "raw" / "BTC_USD"
    raw.mkdir(parents=True)
    with gzip.open(SAMPLE) as lines, gzip.open(raw / SAMPLE.name, "wb", 1) as cut:
        cut.writelines(line for line, _ in zip(lines, range(25_000), strict=False))
    printed = {}
    for script in PIPELINE:
        command = [sys.executable, *words_for(folder, script)]
        if script in ("create_balanced_dataset.py", "fp8_ddp_trainer.py"):
            found = re.search(rf"{script} (.*?);", plan("SAMPLE_WINDOWS=200").replace("\\\n", ""))
            assert found is not None
            command += shlex.split(found[1])
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        # no progress bar where there is no terminal
        assert "it/s" not in done.stderr and "%|" not in done.stderr
        printed[script] = done.stdout
    return folder, printed


def test_the_seven_scripts_hand_on_what_the_next_one_needs(piped):
    folder, printed = piped
    data, run = folder / "data", folder / "runs" / "sample"
    states = len(np.load(data / "book_states" / "BTC_USD" / "price_ticks.npy", mmap_mode="r"))
    assert f"{states:,} states of 16 levels" in printed["data_parser.py"]
    assert f"{states - 31:,} windows of 32 states" in printed["exploration_main.py"]
    assert len(list((data / "plots").glob("BTC_USD_*.png"))) == 6
    sample = np.load(data / "balanced_samples" / "BTC_USD.npy")
    assert (
        f"{len(sample):,} windows, states shared by two splits: 0"
        in printed["create_balanced_dataset.py"]
    )
    named = re.search(r"^run  *(.*)$", printed["fp8_ddp_trainer.py"], re.MULTILINE)
    assert named is not None and named[1] == str(run)  # what make hands on to the tester
    assert re.search(r"^test loss  \d", printed["fp8_ddp_trainer.py"], re.MULTILINE)
    assert re.search(
        r"^time       about [\d.]+ minutes at", printed["fp8_ddp_trainer.py"], re.MULTILINE
    )
    assert (
        "epoch  duration (s)   train loss  validation loss  learning rate"
        in printed["fp8_ddp_trainer.py"]
    )
    report = json.loads((run / "report.json").read_text())
    assert {row["case"].split("/")[1] for row in report["rows"] if "/" in row["case"]} >= {
        "entry",
        "tail",
    }
    assert "sample" in printed["training_results_analysis.py"]
    assert list((folder / "runs" / "analysis").glob("*.png"))
    assert (folder / "exports" / "sample" / "encoder.pt").is_file()


def test_make_runs_the_scripts_in_this_order_and_ends_with_the_result():
    commands = plan()
    tested_twice = (*PIPELINE[:5], *PIPELINE[4:])  # once with the encoder that ships
    assert tuple(re.findall(r"python (\w+\.py)", commands)) == tested_twice
    for script in ("inference_testing.py", "model_exporter.py"):  # of the run just trained
        assert f'{script} --model_path="$run"' in commands
    last = commands[commands.index(PIPELINE[-1]) :]
    assert "tensorboard --logdir runs" in last
    assert 'lob.evaluation.summary "$run/report.json" runs/small_cell/report.json' in last


STUB = """#!%s
import os, signal, sys, time

def stop(number, _):
    print("saved", flush=True)
    sys.exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
with open("started", "a") as handle:
    handle.write(f"{os.getpid()} {sys.argv[1]}\\n")
time.sleep(60 * (sys.argv[1] == "exploration_main.py"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_make_passes_a_signal_on_to_the_stage_and_begins_no_other(tmp_path, number):
    """Stages are replaced by a program that waits. SIGTERM is sent to make alone, as schedulers do,
    the others to all in make's group, as terminals do.
    """
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    for name in ("requirements.txt", "constraints.txt", ".venv/installed"):
        (tmp_path / name).touch()
    (tmp_path / "python").write_text(STUB % sys.executable)
    (tmp_path / "python").chmod(0o755)
    command = ["make", "--silent", "pipeline", f"BIN={tmp_path}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes)
    started = tmp_path / "started"
    while not started.exists() or "exploration_main.py" not in started.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    stages = [line.split() for line in started.read_text().splitlines()]
    assert [name for _, name in stages] == ["data_parser.py", "exploration_main.py"]
    # make ends with the stage's output; the stage itself may need another moment.
    ends_by = time.monotonic() + 20
    while any(is_alive(int(pid)) for pid, _ in stages):
        assert time.monotonic() < ends_by
        time.sleep(0.05)
    assert (tmp_path / "runs" / "pipeline.log").read_text().endswith("saved\n")


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_files_of_a_book_that_was_parsed_again_are_refused(piped, tmp_path):
    folder, _ = piped
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copytree(folder / "runs", tmp_path / "runs")
    assert shell(*words_for(tmp_path, "data_parser.py"), "--subsample=2").returncode == 0
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for script, said in (
        ("create_balanced_dataset.py", "run exploration_main.py again"),
        ("fp8_ddp_trainer.py", "run create_balanced_dataset.py again"),
    ):
        done = shell(*words_for(tmp_path, script))
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "made from another book" in done.stderr and said in done.stderr
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("script", PIPELINE[1:])
def test_a_missing_folder_is_named_and_nothing_is_made(tmp_path, script):
    done = shell(*words_for(tmp_path, script))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert str(tmp_path) in done.stderr
    assert os.listdir(tmp_path) == []
