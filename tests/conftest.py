"""Shared fixtures: a small synthetic book as files, and the recorded data if it is there."""

import contextlib
import importlib.util
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lob.process import REQUESTS

if TYPE_CHECKING:
    from lob.model.encoder import EncoderConfig

# Two test processes share two cores: more threads in each would only wait for one another. Torch
# and matplotlib read this when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "Agg"
# Without a GPU Triton's interpreter stands in for one. Triton reads this when it is first imported,
# which parts of torch do that some test imports.
if importlib.util.find_spec("triton") is not None:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
# Whoever starts the tests in the background may have these ignored, and scripts would inherit that.
for _number in REQUESTS:
    if signal.getsignal(_number) == signal.SIG_IGN:
        _usual = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _usual)
ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT.parent / "shared" / "real"


def write_book(
    data_dir: Path,
    pair: str = "BTC_USD",
    rows: int = 3000,
    depth: int = 96,
    seed: int = 0,
    segment_starts: tuple[int, ...] = (0,),
    start_ns: int = 1_777_689_383_201_000_000,
    step_ns: int = 10_000_000,
) -> Path:
    """Write a random-walk book of `rows` states under `data_dir`; return its folder."""
    rng = np.random.default_rng(seed)
    half = depth // 2
    steps = rng.choice([-1, 0, 1], size=rows, p=[0.1, 0.8, 0.1])
    best_bid = 7_831_800 + np.cumsum(steps)
    gaps = 1 + rng.integers(0, 3, size=depth)  # from level to level; they change slowly
    price = np.empty((rows, depth), dtype=np.int32)
    sizes = np.empty((rows, depth), dtype=np.float32)
    level_sizes = rng.lognormal(-2, 1, size=depth)
    for row in range(rows):
        change = rng.integers(0, depth)
        gaps[change] = 1 + rng.integers(0, 3)
        level_sizes[rng.integers(0, depth)] = rng.lognormal(-2, 1)
        price[row, half:] = best_bid[row] + np.cumsum(gaps[half:])
        price[row, :half] = (best_bid[row] - np.concatenate([[0], np.cumsum(gaps[1:half])]))[::-1]
        sizes[row] = level_sizes
    folder = data_dir / "book_states" / pair
    folder.mkdir(parents=True)
    waits = rng.integers(0, 2 * step_ns, size=rows)
    arrays = {
        "price_ticks": price,
        "sizes": sizes,
        "timestamps": start_ns + np.cumsum(waits).astype(np.int64),
        "segment_starts": np.array(segment_starts, dtype=np.int64),
        "top_of_book": price[:, half - 1 : half + 1].copy(),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    meta = {
        "format_version": 1,
        "pair": pair,
        "feed": "coinapi",
        "depth": depth,
        "tick_size": 0.01,
        "subsample": 1,
        "state_interval_ms": 0,
        "rows": rows,
        "sources": [],
        "counters": {},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def metadata(encoder: "EncoderConfig", **changes: Any) -> dict[str, Any]:
    """Return metadata of a checkpoint of this encoder, with some keys changed."""
    from lob.model.checkpoint import METADATA

    return METADATA | {"encoder": asdict(encoder)} | changes


def shell(*words: object) -> subprocess.CompletedProcess:
    """Run a script as `python <words>` from the root would, but in this process.

    A process of its own costs seconds: it imports torch, and the optimizer's first call imports
    torch's compiler. It is needed where signals, ranks or the environment are tested.
    """
    script, *arguments = map(str, words)
    kept = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [script, *arguments])
        try:
            if script.endswith(".py"):
                runpy.run_path(script, run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
        finally:
            for number, handler in kept:
                signal.signal(number, handler)
    return subprocess.CompletedProcess([script, *arguments], status, out.getvalue(), err.getvalue())


def refusal(script: str, *words: str) -> str:
    """Return the one line with which a script refuses words of its command line."""
    done = shell(script, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{Path(script).name}: ") and done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """A script that runs in this process takes its signals; give them back after the test."""
    before = {number: signal.getsignal(number) for number in REQUESTS}
    hook = sys.excepthook
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    sys.excepthook = hook


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the trainer in this process draw no picture, which takes as long as their epochs.

    tests/test_trainer_records.py looks at the pictures of the run that it calls `logged`.
    """
    monkeypatch.setattr("lob.training.run_log.RunLog.picture", lambda *_: None)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder with one synthetic pair of 3000 states."""
    write_book(tmp_path)
    return tmp_path


@pytest.fixture
def recorded() -> Path:
    """The folder of recorded exchange data; the test is skipped if it is absent."""
    if not RECORDED.is_dir():
        pytest.skip("needs the recorded exchange data in ../shared/real")
    return RECORDED


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that is only read: a book of depth 16 and a sample of windows of 32 states."""
    folder = tmp_path_factory.mktemp("sampled")
    write_book(folder, rows=6000, depth=16)
    words = [f"--data_dir={folder}", "--temporal_dim=32", "--plots=False"]
    sample = ["--cells=[1,1,1]", "--min_stride=1", "--windows=1000"]
    for command in (["exploration_main.py"], ["create_balanced_dataset.py", *sample]):
        assert shell(*command, *words).returncode == 0
    return folder
