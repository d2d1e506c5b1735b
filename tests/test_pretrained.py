"""An encoder in use: weights that are passed on, `lob.load`, and what each script makes of them."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, write_book
from safetensors.torch import load_file

import fp8_ddp_trainer
import inference_testing
import lob
import model_exporter
from lob.book.states import identity, open_book
from lob.config import InputError
from lob.model.checkpoint import find_checkpoint, load_checkpoint, load_model
from lob.model.embedding import WindowEncoder
from lob.windows.splits import gather_windows

STATES, DEPTH = 32, 16
SMALL = {
    "model_size": "tiny_transformer",
    "depth_dim": DEPTH,
    "temporal_dim": STATES,
    "batch_size": 700,  # two steps
    "epochs": 1,
    "max_gpus": 1,
}
CARD = {"licence": "CC0-1.0", "data": "a random walk", "limits": "knows no market"}


def train(data: Path, runs: Path, **changes: Any) -> Path:
    """Train a small run in this process; return the folder of the newest one."""
    config = fp8_ddp_trainer.config | SMALL | {"data_dir": str(data), "runs_dir": str(runs)}
    before = signal.getsignal(signal.SIGTERM)  # which the trainer takes
    assert fp8_ddp_trainer.main(config | changes) == 0
    signal.signal(signal.SIGTERM, before)
    return runs / changes.get("model_name", config["model_name"])


def export(data: Path, root: Path, checkpoint: Path | str, **changes: Any) -> Path:
    """Write `root`/pretrained/small from a checkpoint; return the folder."""
    folders = {"data_dir": str(data), "runs_dir": str(root / "runs")}
    folders |= {"exports_dir": str(root / "exports"), "pretrained": str(root / "pretrained/small")}
    own = {"model_path": str(checkpoint), "formats": [], "card": CARD}
    assert model_exporter.main(model_exporter.config | folders | own | changes) == 0
    return root / "pretrained" / "small"


def score(data: Path, runs: Path, model_path: Path | str, **changes: Any) -> None:
    small = {"windows": 8, "fit_windows": 8, "probe_windows": 0, "pictures": False}
    few = {"masks": ["patch"], "latency_runs": 1}
    folders = {"data_dir": str(data), "runs_dir": str(runs), "model_path": str(model_path)}
    config = inference_testing.config | folders | small | few | changes
    assert inference_testing.main(config) == 0


@pytest.fixture(scope="module")
def run(sampled, tmp_path_factory) -> Path:
    """A short run, scored, of a network with the outlook's head."""
    runs = tmp_path_factory.mktemp("pretrained") / "runs"
    run = train(sampled, runs, model_name="parent", fill="ladder")
    score(sampled, runs, "parent")
    return run


@pytest.fixture(scope="module")
def shipped(sampled, run) -> Path:
    """Pretrained weights of that run."""
    return export(sampled, run.parents[1], run)


@pytest.fixture(scope="module")
def encoder(shipped):
    return lob.load(shipped, device="cpu")


@pytest.fixture
def copied(shipped, tmp_path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "small"))


def some_windows(data: Path, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    book = open_book(data / "book_states" / "BTC_USD")
    return gather_windows(book, np.arange(40, 40 + 9 * count, 9), STATES)


def test_weights_are_those_of_the_run_in_bf16_without_the_outlooks_head(run, shipped):
    assert {file.name for file in shipped.iterdir()} == {
        "model.safetensors",
        "config.json",
        "card.json",
        "README.md",
    }
    of_run, meta = load_checkpoint(run / "checkpoints" / "best.safetensors", "model.")
    assert meta["encoder"]["outlook"] and "outlook.weight" in of_run
    stored = load_file(shipped / "model.safetensors")
    assert {x.dtype for x in stored.values()} == {torch.bfloat16}
    model, about = load_model(find_checkpoint("runs", shipped))
    expected = {name: x for name, x in of_run.items() if not name.startswith("outlook.")}
    assert model.state_dict().keys() == expected.keys() and not model.config.outlook
    for name, x in model.state_dict().items():
        assert x.dtype == torch.float32 and torch.equal(x, expected[name].bfloat16().float())
    assert about["data"] == meta["data"] and about["seen"] == meta["seen"]
    # Neither a folder of this machine nor what only a resumed run needs is passed on.
    assert not {"data_dir", "runs_dir", "plateau"} & {*about, *about["config"]}


def test_the_card_says_data_date_licence_recipe_and_scores(sampled, run, shipped, encoder):
    card = json.loads((shipped / "card.json").read_text())
    assert encoder.card == card and card.items() >= CARD.items()
    assert card["pairs"] == ["BTC_USD"] and card["name"] == "small"
    assert card["recipe"]["seed"] == 0 and card["recipe"]["mask_mode"] == "mix"
    assert card["commit"] == json.loads((run / "env.json").read_text())["commit"]
    cases = {row["case"] for row in card["scores"]}
    assert "BTC_USD/patch/log_size" in cases
    # The last state of the last training window, in seconds.
    rows = np.load(sampled / "balanced_samples" / "BTC_USD.npy")
    meta = load_checkpoint(run / "checkpoints" / "best.safetensors")[1]
    times = open_book(sampled / "book_states" / "BTC_USD").timestamps
    last = times[rows["end_row"] - 1]
    last = last[last < meta["data"]["cuts_ns"][0]].max()
    assert meta["seen"]["until_ns"] == last
    assert card["last_date"] == str(np.datetime64(int(last), "ns").astype("datetime64[s]"))
    page = (shipped / "README.md").read_text()
    for words in ("CC0-1.0", card["last_date"], "--seed=0", 'lob.load("pretrained/small")'):
        assert words in page


def test_the_tester_takes_them_and_leaves_their_folder_as_it_was(sampled, shipped, tmp_path):
    before = {file: file.stat().st_mtime_ns for file in shipped.iterdir()}
    score(sampled, tmp_path, shipped)
    assert (tmp_path / "small" / "report.json").is_file()
    assert {file: file.stat().st_mtime_ns for file in shipped.iterdir()} == before


def test_the_trainer_begins_with_them_and_what_was_seen_adds_up(sampled, copied, tmp_path):
    config, until = json.loads((copied / "config.json").read_text()), 2**61
    config["seen"] = {"until_ns": until, "books": [{"pair": "ETH_USD"}]}
    (copied / "config.json").write_text(json.dumps(config))
    words = {"load_model": True, "model_path": str(copied), "fill": "ladder"}
    child = train(sampled, tmp_path, **words, max_lr=1e-12)
    tensors, meta = load_checkpoint(child / "checkpoints" / "best.safetensors", "model.")
    for name, x in load_file(copied / "model.safetensors").items():
        found = tensors[name.removeprefix("model.")]
        torch.testing.assert_close(found, x.float(), rtol=1e-4, atol=1e-6)
    assert "outlook.weight" in tensors  # the pretrained weights had none
    own = identity(open_book(sampled / "book_states" / "BTC_USD"))
    assert meta["seen"] == {"until_ns": until, "books": [{"pair": "ETH_USD"}, own]}
    assert lob.load(child).card["pairs"] == ["BTC_USD", "ETH_USD"]
    with pytest.raises(InputError, match="windows of BTC_USD begin before 2043"):
        score(sampled, tmp_path, child)


def test_the_trainer_says_which_keys_fit_the_weights(sampled, shipped, tmp_path):
    words = {"load_model": True, "model_path": str(shipped), "fill": "ladder"}
    wrong = {"fill": "linear", "model_size": "deep_narrow_transformer", "causal": True}
    remedy = "--causal=False --fill=ladder --model_size=tiny_transformer"
    with pytest.raises(InputError, match=remedy):
        train(sampled, tmp_path, **words | wrong)


def test_exporter_and_embeddings_take_them(sampled, shipped, tmp_path):
    small = {"formats": ["torchscript"], "parts": ["encoder"], "devices": ["cpu"]}
    again = export(sampled, tmp_path, shipped, **small, card={"licence": "MIT"})
    assert (tmp_path / "exports" / "small" / "encoder.pt").is_file()
    card = json.loads((again / "card.json").read_text())
    old = json.loads((shipped / "card.json").read_text())
    assert card == old | {"licence": "MIT"}
    weights = [folder / "model.safetensors" for folder in (again, shipped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_no_folder_but_old_weights_is_replaced(sampled, run, tmp_path):
    (tmp_path / "pretrained" / "small").mkdir(parents=True)
    (tmp_path / "pretrained" / "small" / "thesis.txt").write_text("of three years")
    with pytest.raises(InputError, match="holds no pretrained weights"):
        export(sampled, tmp_path, run)
    assert (tmp_path / "pretrained" / "small" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "model.safetensors",
            lambda raw: raw[:-1] + b"\x7f",
            "is not the file that its config.json",
        ),
        ("model.safetensors", lambda raw: raw[:99], "is not a safetensors checkpoint"),
        ("config.json", lambda raw: b"{", "is not a safetensors checkpoint"),
        ("config.json", lambda raw: raw.replace(b'format_version": 1', b'format_version": 2'), "2"),
        (
            "config.json",
            lambda raw: raw.replace(b'"until_ns": ', b'"until_ns": -'),
            "seen.until_ns",
        ),
        ("config.json", lambda raw: None, "config.json"),
        ("card.json", lambda raw: None, "there is no "),
        ("card.json", lambda raw: b"[]", "has format version None"),
    ],
)
def test_damaged_folders_are_refused_in_a_line(copied, name, change, message):
    changed = change((copied / name).read_bytes())
    (copied / name).unlink()
    if changed is not None:
        (copied / name).write_bytes(changed)
    with pytest.raises(InputError, match=message) as refused:
        lob.load(copied)
    assert str(copied) in str(refused.value) and "\n" not in str(refused.value)


def test_a_checkpoint_is_found_by_file_folder_and_name(run, shipped, monkeypatch, tmp_path):
    best = run / "checkpoints" / "best.safetensors"
    for path in (best, run, run / "checkpoints", "parent", str(run), None):
        assert find_checkpoint(run.parent, path) == best
    assert find_checkpoint("runs", shipped) == shipped / "model.safetensors"
    monkeypatch.chdir(shipped.parents[1])
    assert find_checkpoint("runs", "pretrained/small") == Path("pretrained/small/model.safetensors")
    monkeypatch.setattr("lob.model.checkpoint.ROOT", shipped.parents[1])
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("runs", "pretrained/small") == shipped / "model.safetensors"
    (tmp_path / "parent").mkdir()  # a folder of the run's name that is no run
    assert find_checkpoint(run.parent, "parent") == best
    with pytest.raises(InputError, match="there is no checkpoint parnt"):
        lob.load("parnt", runs_dir=run.parent)
    with pytest.raises(InputError, match="holds no best checkpoint"):
        find_checkpoint(run.parent, run.parent)


def test_windows_become_the_networks_vectors(sampled, shipped, encoder):
    price_ticks, sizes = some_windows(sampled)
    model, _ = load_model(shipped / "model.safetensors")
    given = torch.from_numpy(price_ticks.astype(np.int64)), torch.from_numpy(sizes)
    with torch.inference_mode():
        expected = WindowEncoder(model, "last")(*given)
    found = encoder.embed(price_ticks, sizes, batch_size=2)
    assert found.dtype == np.float32 and found.shape == (5, encoder.width)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    tensors = encoder.embed(*given)
    assert isinstance(tensors, torch.Tensor) and not tensors.is_inference()
    torch.testing.assert_close(tensors, expected, rtol=1e-4, atol=1e-5)
    lists = encoder.embed(price_ticks.tolist(), sizes.tolist())
    np.testing.assert_allclose(lists, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tick_size", [0.01, 1.0, 0.25, 0.3, 5.0, 1e-8])
def test_dataframes_in_exchange_units_give_the_same_vectors(sampled, encoder, tick_size):
    book = open_book(sampled / "book_states" / "BTC_USD")
    ticks, sizes = book.price_ticks[:50], book.sizes[:50]
    windows = [np.stack([x[i : i + STATES] for i in range(0, 19, 3)]) for x in (ticks, sizes)]
    expected = encoder.embed(*windows)
    prices = pd.DataFrame(ticks * tick_size)
    found = encoder.embed(prices, pd.DataFrame(sizes), tick_size=tick_size, stride=3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_book_becomes_a_vector_for_each_of_its_windows(tmp_path, encoder):
    starts = (0, 100, 120, 300)  # one segment is shorter than a window
    folder = write_book(tmp_path, rows=400, depth=DEPTH, segment_starts=starts)
    ends = encoder.end_rows(folder, stride=24)
    expected = [*range(32, 101, 24), *range(152, 301, 24), *range(332, 401, 24)]
    assert ends.tolist() == expected
    found = encoder.embed_book(folder, stride=24, batch_size=2)
    windows = encoder.embed(*gather_windows(open_book(folder), ends, STATES))
    np.testing.assert_allclose(found, windows, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="--depth=16"):
        encoder.embed_book(write_book(tmp_path, "B", rows=40, depth=8))
    with pytest.raises(InputError, match="31 states, fewer than a window of 32"):
        encoder.embed_book(write_book(tmp_path, "C", rows=31, depth=DEPTH))


def test_the_module_has_gradients(sampled, shipped):
    encoder = lob.load(shipped, device="cpu")
    windows = [torch.from_numpy(x) for x in some_windows(sampled)]
    encoder.module(*windows).square().mean().backward()
    without = {name for name, x in encoder.module.named_parameters() if x.grad is None}
    assert all("head" in name for name in without)
    assert not encoder.module.training


def swap(array: np.ndarray, *at: int) -> np.ndarray:
    """Return a copy in which an entry has changed places with the next along the last axis."""
    changed = array.copy()
    here, there = at, (*at[:-1], at[-1] + 1)
    changed[here], changed[there] = array[there], array[here]
    return changed


def put(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[1, 2, 3] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, s: (p, s[1:]), "give one shape"),
        (lambda p, s: (p[:, 1:], s[:, 1:]), r"takes windows \(B, 32, 16\)"),
        (lambda p, s: (p[..., 1:], s[..., 1:]), r"takes windows \(B, 32, 16\)"),
        (lambda p, s: (p[:0], s[:0]), r"takes windows \(B, 32, 16\)"),
        (lambda p, s: (p[0, 1:], s[0, 1:]), "31 states are given"),
        (lambda p, s: (p[0, 0], s[0, 0]), "takes windows"),
        (lambda p, s: (swap(p, 1, 2, 7), s), r"ticks at \[1, 2, 7\]: reverse"),
        (lambda p, s: (p[..., ::-1], s[..., ::-1]), "must ascend"),
        (lambda p, s: (p * 0 + 5, s), "5 stands before 5"),
        (lambda p, s: (p, put(s, 0)), r"a size is 0.0 at \[1, 2, 3\]"),
        (lambda p, s: (p, put(s, -1)), "a size is -1.0"),
        (lambda p, s: (p, put(s, np.nan)), "a size is nan"),
        (lambda p, s: (p, put(s, np.inf)), "a size is inf"),
        (lambda p, s: (p * 0.01, s), "give tick_size"),
        (lambda p, s: (p * 0.01, s, 0.1), "no multiple of tick_size = 0.1"),
        (lambda p, s: ((p * 0.01).astype(np.float32), s, 0.01), "prices in float64"),
        (lambda p, s: (put(p.astype(float), np.nan), s, 1), "the price nan"),
        (lambda p, s: (p, s, 0), "tick_size = 0.0 must be"),
        (lambda p, s: (p[0], s[0], None, 0), "stride = 0"),
        (lambda p, s: ([["a"]], s), "are no numbers"),
        (lambda p, s: ([[1], [1, 2]], s), "are no numbers"),
    ],
)
def test_windows_that_cannot_be_right_are_refused_in_a_line(sampled, encoder, change, message):
    given = change(*some_windows(sampled))
    with pytest.raises(InputError, match=message) as refused:
        encoder.embed(*given)
    assert "\n" not in str(refused.value)


def test_windows_of_dates_that_were_trained_on_are_refused(sampled, run, shipped, tmp_path, capsys):
    write_book(tmp_path, "ETH_USD", rows=6000, depth=DEPTH, seed=3)  # of the same hour
    words = {"split": "all", "fit_data_dir": str(sampled)}
    with pytest.raises(InputError, match="the last date of the encoder's training data") as refused:
        score(tmp_path, tmp_path / "runs", shipped, **words)
    told = str(refused.value)
    dates = json.loads(told.split('--dates="')[1].split('"')[0].replace("'", '"'))
    score(tmp_path, tmp_path / "runs", shipped, **words, dates=dates)
    score(tmp_path, tmp_path / "runs", shipped, **words, allow_earlier=True)
    own = {"split_ratios": [0.7, 0.25, 0.05], "allow_earlier": True}
    capsys.readouterr()
    score(tmp_path, tmp_path / "runs", shipped, **own)
    assert "ridge regression left out" not in capsys.readouterr().out
    with pytest.raises(InputError, match="BTC_USD was trained on"):
        score(sampled, tmp_path / "runs", shipped, **own)


FRESH = """
import sys
import lob
assert "torch" not in sys.modules and "numpy" not in sys.modules
encoder = lob.load(sys.argv[1])
import numpy
ticks = numpy.arange(16) + numpy.zeros((2, 32, 1), int)
found = encoder.embed(ticks, ticks + 1.0), encoder.embed(ticks * 0.5, ticks + 1, tick_size=0.5)
print(encoder, *(vectors.shape for vectors in found))
print(sorted({name.split(".")[0] for name in sys.modules} & {"numba", "pyarrow", "pandas"}))
"""


def test_an_encoder_loads_from_any_folder_without_numba_and_pyarrow(shipped, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(shipped)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts, modules = done.stdout.splitlines()
    assert facts.startswith("Encoder('small': windows of 32 states x 16 levels -> 64 numbers")
    assert facts.endswith("(2, 64) (2, 64)") and modules == "[]"


def test_the_readmes_lines_run(sampled, shipped):
    """The lines with a small encoder and its book in the place of the sample's."""
    (lines,) = re.findall(r"```python\n(import lob.*?)```", (ROOT / "README.md").read_text(), re.S)
    for old, new in (
        (r"pretrained/small_cell", shipped),
        (r"training_data/book_states/BTC_USD", sampled / "book_states" / "BTC_USD"),
        (r"-256", -STATES),
    ):
        assert old in lines
        lines = lines.replace(old, str(new))
    names: dict[str, Any] = {}
    exec(lines, names)  # the page's own code
    assert names["z"].shape == (6, 64) and names["now"].shape == (1, 64)


def test_the_package_holds_every_room():
    """`pip install -e .` finds packages by their `__init__.py`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["lob*"]
    folders = {file.parent for file in (ROOT / "lob").rglob("*.py")}
    assert folders and all((folder / "__init__.py").is_file() for folder in folders)
