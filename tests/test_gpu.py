"""On an NVIDIA GPU with Transformer Engine: both encoders agree, FP8 trains, its state is kept."""

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_book
from test_ladder import moving_book
from test_te_names import engine_shapes

from lob.evaluation import latency
from lob.model.encoder import PRESETS, BookEncoder, encoder_config
from lob.model.inputs import build_inputs
from lob.model.ladder import find_ladder
from lob.model.masking import make_mask, window_keys
from lob.training.precision import Precision, build_encoder
from lob.training.te_layer import (
    TELayer,
    fp8_state,
    load_fp8_state,
    load_plain_state,
    plain_state,
    te_obstacle,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        bool(te_obstacle()), reason=f"needs an NVIDIA GPU and Transformer Engine: {te_obstacle()}"
    ),
]
FP8 = Precision("fp8", "delayed", "test")
BF16 = Precision("bf16", "", "test")


def random_inputs(config, batch=2):
    generator = torch.Generator().manual_seed(0)
    gaps = torch.randint(1, 4, (batch, config.temporal_dim, config.depth), generator=generator)
    price_ticks = (100_000 + gaps.cumsum(2)).to(torch.int32).cuda()
    sizes = torch.rand(batch, config.temporal_dim, config.depth, generator=generator).cuda() + 0.01
    keys = window_keys(0, 0, torch.arange(batch)).cuda()
    mask = make_mask(keys, config.temporal_dim, config.depth, 0.25, "patch")
    return build_inputs(price_ticks, sizes, mask, config)


def lively(model):
    """Give the head and the norms values that a mistake in the mapping would show in."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "head" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def relative(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


def cosine(a, b):
    a, b = a.float().flatten(), b.float().flatten()
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("preset", PRESETS)
def test_transformer_engine_agrees_with_plain_in_bf16(preset):
    config = encoder_config(preset)
    torch.manual_seed(0)
    plain = lively(BookEncoder(config).cuda().eval())
    engine = BookEncoder(config, TELayer).cuda().eval()
    load_plain_state(engine, plain.state_dict())
    for name, tensor in plain_state(engine).items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    tokens, *_ = random_inputs(config)
    with torch.inference_mode(), BF16.autocast():
        assert relative(engine.encode(tokens), plain.encode(tokens)) < 2e-2


@pytest.mark.parametrize("recipe", ["delayed", "current", "block"])
@pytest.mark.parametrize("preset", PRESETS)
def test_fp8_is_close_to_bf16(preset, recipe):
    config = encoder_config(preset)
    torch.manual_seed(0)
    plain = lively(BookEncoder(config).cuda().eval())
    engine = BookEncoder(config, TELayer).cuda()
    load_plain_state(engine, plain.state_dict())
    tokens, *_ = random_inputs(config)
    precision = Precision("fp8", recipe, "test")
    for _ in range(2):  # delayed scaling learns its scales from the pass before
        with precision.autocast():
            hidden = engine.encode(tokens)
        hidden.float().square().mean().backward()
    engine.eval()
    with torch.inference_mode(), precision.autocast():
        hidden = engine.encode(tokens)
    with torch.inference_mode(), BF16.autocast():
        expected = plain.encode(tokens)
    assert cosine(hidden, expected) > 0.99


def test_transformer_engine_has_the_keys_that_the_cpu_tests_assume():
    config = encoder_config("tiny_transformer")
    state = TELayer(config).state_dict()
    found = {key: tuple(getattr(tensor, "shape", ())) for key, tensor in state.items()}
    expected = engine_shapes(config.width, config.ffn_width)
    assert found.keys() == expected.keys()
    for key, shape in expected.items():
        assert found[key] == shape or key.endswith("_extra_state")


def test_fp8_state_comes_back():
    config = encoder_config("tiny_transformer")
    tokens, base, values, _ = random_inputs(config)
    first, second = (build_encoder(config, FP8, torch.device("cuda")) for _ in range(2))
    load_plain_state(second, plain_state(first))
    for scale in (1.0, 8.0):
        with FP8.autocast():
            prediction = first(tokens * scale, base)
        (prediction - values).square().mean().backward()
    with FP8.autocast():
        second(tokens, base)
    state = fp8_state(first)
    assert state
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    load_fp8_state(second, state)
    assert all(torch.equal(tensor, fp8_state(second)[name]) for name, tensor in state.items())


def trainer(data_dir: Path, *words: str) -> subprocess.Popen:
    """Start the trainer on a small run."""
    command = [
        sys.executable,
        "fp8_ddp_trainer.py",
        f"--data_dir={data_dir}",
        f"--runs_dir={data_dir / 'runs'}",
        "--model_size=tiny_transformer",
        "--batch_size=16",
        "--accumulation_steps=2",
        "--log_steps=1",
        "--epochs=6",
        "--dropout=0.1",
        "--fill=linear",
        "--slow=0",
        "--size_noise=0",
        *words,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def losses(run: Path) -> np.ndarray:
    with open(run / "metrics.csv") as handle:
        steps = [row for row in csv.DictReader(handle) if row["kind"] == "step"]
    return np.array([float(row["train_loss"]) for row in steps])


def test_fp8_training_learns_and_resumes_after_a_kill(tmp_path):
    write_book(tmp_path, rows=20_000)
    for script in ("exploration_main.py", "create_balanced_dataset.py"):
        command = [sys.executable, script, f"--data_dir={tmp_path}", "--plots=False"]
        subprocess.run(command, cwd=ROOT, check=True)
    task = "--mask_mode=entry", "--fill=none"  # the loss starts high: 36 steps show that it falls
    whole = trainer(tmp_path, "--model_name=whole", *task)
    printed, errors = whole.communicate()
    assert whole.returncode == 0, errors
    assert "precision  fp8" in printed
    expected = losses(tmp_path / "runs" / "whole")
    steps = len(expected) // 6
    assert expected[-steps:].mean() < 0.5 * expected[:steps].mean()
    killed = trainer(tmp_path, "--model_name=killed", *task)
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    while killed.poll() is None and len(list(checkpoints.glob("step_*.safetensors"))) < 2:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    resumed = trainer(tmp_path, "--model_name=killed", "--resume=True", *task)
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    np.testing.assert_allclose(losses(tmp_path / "runs" / "killed"), expected, rtol=2e-2)
    # A run that has ended is scored before any training pass.
    again = trainer(tmp_path, "--model_name=whole", "--resume=True", *task)
    scored, errors = again.communicate()
    assert again.returncode == 0, errors
    first, second = (
        float(re.search(r"test loss +([\d.]+)", text)[1]) for text in (printed, scored)
    )
    assert second == pytest.approx(first, rel=2e-3)


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize("model", ["tiny_transformer", "cell_transformer"])
def test_windows_of_any_number_of_states_train_in_a_graph(tmp_path, model, precision):
    write_book(tmp_path, rows=8_000)
    words = [f"--data_dir={tmp_path}", "--temporal_dim=192"]
    for script in ("exploration_main.py", "create_balanced_dataset.py"):
        subprocess.run([sys.executable, script, "--plots=False", *words], cwd=ROOT, check=True)
    run = trainer(
        tmp_path,
        "--model_name=odd",
        f"--model_size={model}",
        f"--precision={precision}",
        "--outlook=0",
        "--temporal_dim=192",
        "--fill=ladder",
        "--epochs=2",
    )
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    assert np.isfinite(losses(tmp_path / "runs" / "odd")).all()


def test_the_ladder_finds_the_same_in_a_graph_as_on_the_cpu():
    price_ticks, _ = moving_book(4, states=64, levels=32)
    mask = make_mask(window_keys(0, 0, torch.arange(4)), 64, 32, 0.25, "patch")
    inputs = price_ticks.cuda(), mask.cuda()
    find_ladder(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = find_ladder(*inputs)
    graph.replay()
    expected = find_ladder(price_ticks, mask)
    for name in ("price_known", "size_known", "before", "after"):
        assert getattr(found, name).cpu().equal(getattr(expected, name)), name
    torch.testing.assert_close(found.price.cpu(), expected.price, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("quicker", ["plain", "searched"])
def test_a_graph_with_its_copies_gives_the_embedding_of_eager_layers(monkeypatch, quicker):
    monkeypatch.setattr(latency, "SEARCH", None)  # takes a minute

    def seconds(graph):
        return (graph.encode is model) == (quicker == "searched")

    monkeypatch.setattr(latency.Graph, "seconds", seconds)
    torch.manual_seed(0)
    encoder = lively(BookEncoder(encoder_config("tiny_transformer", depth=24)))
    model = latency.window_encoder(encoder, "last").cuda().eval()
    windows = moving_book(4)
    with torch.inference_mode():
        wanted = model(*(x.cuda() for x in windows)).cpu()
        graphed = latency.VARIANTS["graphed"](model, *(x[:1].cuda() for x in windows))
        for count in (1, 4, 1):
            for begin in range(4 - count + 1):
                found = graphed(*(x[begin : begin + count] for x in windows))
                assert relative(found, wanted[begin : begin + count]) < 1e-3
