"""The benchmarks of training run on any machine in a small form and end with a JSON line."""

import json
from pathlib import Path

import pytest
import torch
from conftest import shell, write_book

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU the benchmarks themselves are run"
)


def make_data(folder: Path, rows: int, depth: int, states: int) -> Path:
    """Make a small book and its sample of 40 windows under `folder`."""
    write_book(folder, rows=rows, depth=depth)
    few_windows = ["--windows=40", "--cells=[1,1,1]", "--min_stride=1"]
    for script, words in (
        ("exploration_main.py", []),
        ("create_balanced_dataset.py", few_windows),
    ):
        common = f"--data_dir={folder}", f"--temporal_dim={states}", "--plots=False"
        assert shell(script, *common, *words).returncode == 0
    return folder


def bench(name: str, data: Path, *words: str) -> dict[tuple[str, str], float]:
    """Run a benchmark; return its values by case and metric."""
    done = shell(f"benchmarks.{name}", f"--data_dir={data}", *words)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    result = json.loads(line)
    return {(row["case"], row["metric"]): row["value"] for row in result["rows"]}


def test_training_speed_is_measured_in_the_trainers_own_steps(tmp_path):
    data = make_data(tmp_path, 12_000, 96, 256)  # the sizes of the quick case
    found = bench("bench_training", data, "--quick=True", "--seconds=0.1")
    assert found["quick", "windows_per_second"] > 0 and found["quick", "model_tflops"] > 0
    assert 0 <= found["quick", "data_wait_share"] < 1
    # A machine without a GPU must not replace the stored results.
    for word in ("--write=True", "--cases=['wide_fp8']"):
        done = shell("benchmarks.bench_training", word)
        assert done.returncode == 2 and "leave out --write and --cases" in done.stderr


def test_an_interrupted_run_of_a_recipe_goes_on(tmp_path):
    data = make_data(tmp_path / "data", 3000, 16, 32)
    recipe = {
        "model_size": "tiny_transformer",
        "depth_dim": 16,
        "temporal_dim": 32,
        "batch_size": 8,
        "epochs": 1,
        "mask_mode": "entry",
        "max_lr": 1e-12,
        "fill": "linear",
    }
    scoring = {
        "masks": ["entry"],
        "windows": 4,
        "fit_windows": 4,
        "probe_windows": 0,
        "pictures": False,
        "latency_runs": 1,
    }
    words = [
        f"--recipe={recipe}",
        f"--scoring={scoring}",
        "--seeds=1",
        "--checksums=False",
        f"--runs_dir={tmp_path}",
    ]
    found = bench("prove", data, *words)
    case = "BTC_USD/entry/log_size"
    error, linear = found[case, "error"], found[case, "linear_time_error"]
    assert error == pytest.approx(linear, rel=1e-4)
    assert found[case, "ladder_error"] != pytest.approx(linear, rel=1e-4)
    # Leave the run as if it had been interrupted after its last checkpoint.
    run = tmp_path / "auto_0"
    (run / "report.json").unlink()
    entries = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(entries[:-1]))
    again = bench("prove", data, *words)
    assert again.keys() == found.keys()
    assert all(again[cell] == found[cell] for cell in found if "cost" not in cell[0])
    assert "resumed    after step" in run.with_suffix(".log").read_text()
    assert not (tmp_path / "auto_0-2").exists()
