"""The benchmarks run on any machine in a small form and end with a JSON line."""

import json
from pathlib import Path

import pytest
import torch
from conftest import shell, write_book

from benchmarks import bench_widths
from benchmarks.bench_export import kernel_table
from benchmarks.reference import TIMED, WARM_UP, time_reference
from lob.config import InputError, check_rules
from lob.model.encoder import encoder_config

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


CLONE = """
from pathlib import Path

from training_classes import PretrainingDataset


class SummaryWriter:  # as tensorboardX's, which opens a folder of its own if it is given none
    def __init__(self, folder="runs"):
        Path(folder).mkdir(exist_ok=True)

    def close(self):
        pass


class Trainer:
    def __init__(self, config, rank, world_size, train_dataset, test_dataset, use_ddp):
        self.config, self.logger, self.train_loss_history = config, SummaryWriter(), []
        self.load_data()

    def train(self, epochs):
        seen = 0
        for data in self.train_dataloader:
            seen += len(data)
            with open("/no/such/folder/losses.txt", "a+") as f:
                f.write("0.5")
        self.save_model(0, 0.5)
        self.train_loss_history.append(seen * self.config["lr"])


def main():
    config = {"lr": 0.5, "epochs": 10}
"""


def test_a_clone_of_the_reference_is_timed_without_a_file_of_its_own(tmp_path):
    (tmp_path / "fp8_ddp_trainer.py").write_text(CLONE)
    before = sorted(tmp_path.iterdir())
    batches = [torch.zeros(4, 8, 6, 2), torch.ones(4, 8, 6, 2)]
    found = time_reference(str(tmp_path), batches)
    assert found["train_loss"] == (WARM_UP + TIMED) * 4 * 0.5  # by the settings of the clone
    assert found["windows_per_second"] > 0
    assert sorted(x for x in tmp_path.iterdir() if x.name != "__pycache__") == before
    with pytest.raises(InputError, match=r"clone https://github\.com"):
        time_reference(str(tmp_path / "nothing"), batches)
    (tmp_path / "fp8_ddp_trainer.py").write_text(CLONE.replace("config =", "settings ="))
    with pytest.raises(InputError, match="clone another commit"):
        time_reference(str(tmp_path), batches)


def test_a_width_is_trained_with_layers_of_that_width(tmp_path, monkeypatch):
    asked = {}

    def measure(rank, world, port, config, case, file):
        asked[case["precision"], case.get("fp8_recipe")] = encoder_config(case["model_size"])
        return {}

    monkeypatch.setattr(bench_widths, "measure_case", measure)
    before = encoder_config("wide_transformer")
    check_rules(bench_widths.config, bench_widths.__file__)
    for recipe in ("bf16", "block"):
        bench_widths.measure_width(bench_widths.config, 384, recipe)
    assert list(asked) == [("bf16", None), ("fp8", "block")]
    for shape in asked.values():
        assert (shape.width, shape.heads, shape.ffn_width, shape.layers) == (384, 6, 1536, 12)
    assert encoder_config("wide_transformer") == before


def test_networks_in_this_process_are_timed():
    sizes = "--depth=8", "--temporal_dim=16", "--runs=2", "--batch_size=2", "--kernels=True"
    words = "--formats=['eager','stream']", "--presets=['tiny_transformer']", *sizes
    done = shell("benchmarks.bench_export", *words)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    rows = json.loads(line)["rows"]
    assert {row["case"] for row in rows} == {
        "tiny_transformer/eager_fp32_cpu",
        "tiny_transformer/stream_fp32_cpu",
    }
    assert len(rows) == 6 and all(row["value"] > 0 for row in rows)


def test_kernels_of_calls_are_counted_and_their_times_add_up():
    """Two calls: a copy, then kernels that start before the one before them has ended."""
    call = [(2.0, 0.0, "copy"), (5.0, 1.0, "work"), (9.0, 4.0, "work"), (10.0, 9.5, "end")]
    spans = [*call, *((end + 100, start + 100, name) for end, start, name in call)]
    found = [line.split() for line in kernel_table(spans, 2)]
    assert found == [
        ["4", "10.00", "us", "in", "all"],
        ["2", "7.00", "us", "work"],
        ["1", "2.00", "us", "copy"],
        ["1", "1.00", "us", "end"],
    ]
