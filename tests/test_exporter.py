"""model_exporter.py: the files give the checkpoint's outputs in another process, and a wrong one is
deleted.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, metadata, refusal, write_book

import model_exporter
from benchmarks import bench_export
from lob.book.states import identity, open_book
from lob.config import CheckFailed, InputError, run
from lob.export import check
from lob.export.onnx_program import to_onnx
from lob.model.checkpoint import Progress, load_model, save_checkpoint
from lob.model.encoder import PRESETS, BookEncoder, EncoderConfig, encoder_config
from lob.model.inputs import build_inputs
from lob.model.normalisation import invert
from lob.storage import open_table
from lob.windows.splits import gather_windows, window_ends

STATES, DEPTH = 32, 16
EVERY_PART = model_exporter.config["parts"]


def checkpoint(runs: Path, depth: int = DEPTH, **choices) -> Path:
    """Save an encoder with a lively head as a run's best checkpoint, as an FP8 run leaves it."""
    config = encoder_config("tiny_transformer", depth=depth, temporal_dim=STATES, **choices)
    torch.manual_seed(0)
    model = BookEncoder(config)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    file = runs / "a_run" / "checkpoints" / "best.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors["fp8.layers.0.layer.self_attention.scaling_fwd.scale"] = torch.ones(3)
    save_checkpoint(file, tensors, metadata(config, progress=asdict(Progress(step=7))))
    return file


def export(data: Path, root: Path, **choices) -> Path:
    """Run the exporter on the checkpoint under `root`; return the folder of its files."""
    config = {
        **model_exporter.config,
        "data_dir": str(data),
        "runs_dir": str(root),
        "exports_dir": str(root / "exports"),
        "devices": ["cpu"],
        **choices,
    }
    assert model_exporter.main(config) == 0
    return root / "exports" / "a_run"


@pytest.fixture(scope="module")
def exported(sampled, tmp_path_factory) -> Path:
    """The files of all parts and formats, the encoder of actor_critic trainable."""
    root = tmp_path_factory.mktemp("exported")
    checkpoint(root)
    learning = {"trainable": True, "training_mode": True}
    export(sampled, root, precisions=["bf16"], formats=["onnx"], parts=["encoder"])
    export(sampled, root, precisions=["bf16"], formats=["torchscript"], **learning)
    return export(sampled, root, **learning)


def some_windows(data: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    book = open_book(data / "book_states" / "BTC_USD")
    price_ticks, sizes = gather_windows(book, np.arange(40, 40 + 9 * count, 9), STATES)
    return torch.from_numpy(price_ticks.astype(np.int64)), torch.from_numpy(sizes)


def run_file(file: Path, inputs: tuple) -> list[np.ndarray]:
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return session.run(
            None,
            {x.name: given.numpy() for x, given in zip(session.get_inputs(), inputs, strict=True)},
        )
    with torch.inference_mode():
        found = torch.jit.load(str(file)).eval()(*inputs)
    return [x.numpy() for x in (found if isinstance(found, tuple) else (found,))]


def close(found: np.ndarray, expected: np.ndarray, precision: str) -> bool:
    return np.linalg.norm(found - expected) <= {"fp32": 1e-5, "bf16": 2e-2}[
        precision
    ] * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_files_give_the_checkpoints_outputs_for_any_batch(sampled, exported, suffix, precision):
    model, _ = load_model(exported.parents[1] / "a_run" / "checkpoints" / "best.safetensors")
    ending = ("_bf16" if precision == "bf16" else "") + suffix
    heads = torch.jit.load(
        str(exported / f"actor_critic{'_bf16' if precision == 'bf16' else ''}.pt")
    ).eval()
    for batch in (1, 3, 7):
        price_ticks, sizes = some_windows(sampled, batch)
        mask = torch.rand(batch, STATES, DEPTH, 2, generator=torch.Generator().manual_seed(1)) < 0.3
        state = torch.randn(batch, 4)
        with torch.inference_mode():
            embedding = model.encode(
                build_inputs(price_ticks, sizes, torch.zeros_like(mask), model.config)[0]
            )[:, -1]
            tokens, base, _, parameters = build_inputs(price_ticks, sizes, mask, model.config)
            prices, filled = invert(model(tokens, base), parameters, "book")
            logits, value = heads.heads(embedding, state)
        mean = price_ticks.double().mean(dim=(1, 2), keepdim=True)
        (found,) = run_file(exported / f"encoder{ending}", (price_ticks, sizes))
        assert close(found, embedding.numpy(), precision)
        if ending == "_bf16.onnx":
            continue  # exported the same way, in seconds each
        found_prices, found_sizes = run_file(
            exported / f"reconstruction{ending}", (price_ticks, sizes, mask)
        )
        assert close(found_prices - mean.numpy(), (prices - mean).numpy(), precision)
        assert close(found_sizes, filled.numpy(), precision)
        found_logits, found_value = run_file(
            exported / f"actor_critic{ending}", (price_ticks, sizes, state)
        )
        assert close(found_logits, logits.numpy(), precision) and close(
            found_value, value.numpy(), precision
        )


def test_files_say_what_they_take_in_themselves_and_beside(exported):
    import onnxruntime

    for part in EVERY_PART:
        about = json.loads((exported / f"{part}.pt.json").read_text())
        assert (about["step"], about["encoder"]["depth"], about["precision"]) == (7, DEPTH, "fp32")
        assert about["inputs"]["price_ticks"]["shape"] == ["B", STATES, DEPTH] and "ticks" in str(
            about["inputs"]
        )
        extra = {"metadata.json": ""}
        torch.jit.load(str(exported / f"{part}.pt"), _extra_files=extra)
        assert json.loads(extra["metadata.json"]) == about
        session = onnxruntime.InferenceSession(
            str(exported / f"{part}.onnx"), providers=["CPUExecutionProvider"]
        )
        props = session.get_modelmeta().custom_metadata_map
        assert (
            json.loads(props["metadata.json"])
            == json.loads((exported / f"{part}.onnx.json").read_text())
            == about
        )
        for found, named in (
            (session.get_inputs(), about["inputs"]),
            (session.get_outputs(), about["outputs"]),
        ):
            assert [x.name for x in found] == list(named)
            for x, field in zip(found, named.values(), strict=True):
                assert (
                    len(x.shape) == len(field["shape"]) and list(x.shape[1:]) == field["shape"][1:]
                )
        assert str(ROOT).encode() not in (exported / f"{part}.onnx").read_bytes()
    sizes = [
        (exported / f"encoder{ending}").stat().st_size
        for ending in (".onnx", "_bf16.onnx", ".pt", "_bf16.pt")
    ]
    assert sizes[0] > 1.3 * sizes[1] and sizes[2] > 1.5 * sizes[3]


def test_a_policy_goes_on_learning_only_where_it_was_exported_to(sampled, tmp_path):
    checkpoint(tmp_path, dropout=0.5)
    inputs = (*some_windows(sampled, 4), torch.randn(4, 2))
    for trainable in (True, False):
        folder = export(
            sampled,
            tmp_path,
            parts=["actor_critic"],
            formats=["torchscript"],
            trainable=trainable,
            training_mode=True,
            state_features=2,
            policy_widths=[],
            value_widths=[8, 8],
        )
        policy = torch.jit.load(str(folder / "actor_critic.pt"))
        assert policy.training
        learning = {name for name, p in policy.named_parameters() if p.requires_grad}
        assert any(name.startswith("window.encoder.layers.1.fc2") for name in learning) is trainable
        assert {"state_head.0.weight", "policy_head.0.weight", "value_head.4.bias"} <= learning
        embedded = [policy.embed(*inputs[:2]) for _ in range(2)]
        assert torch.equal(*embedded) is not trainable  # dropout is the encoder's alone
        sum(x.square().sum() for x in policy(*inputs)).backward()
        gradients = {
            name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()
        }
        assert {"policy_head.0.weight", "state_head.0.weight"} <= gradients <= learning
        assert (
            any(name.startswith("window.encoder.layers.0.qkv") for name in gradients) is trainable
        )
        policy.eval()
        first, second = policy(*inputs), policy(*inputs)
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_later_states_change_no_embedding_of_a_causal_encoder(sampled, tmp_path):
    checkpoint(tmp_path, causal=True)
    folder = export(sampled, tmp_path, parts=["encoder"], formats=["torchscript"], pooling="all")
    price_ticks, sizes = some_windows(sampled, 3)
    later = price_ticks.clone(), sizes.clone()
    later[0][:, 20:] += torch.randint(1, 50, (3, 12, DEPTH)).cumsum(2)
    later[1][:, 20:] *= 7
    before, after = (
        run_file(folder / "encoder.pt", pair)[0] for pair in ((price_ticks, sizes), later)
    )
    assert before.shape == (3, STATES, 64)
    np.testing.assert_allclose(before[:, :20], after[:, :20], rtol=0, atol=1e-6)
    assert np.abs(before[:, 20:] - after[:, 20:]).max(axis=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_a_row_a_window_that_ends_now(tmp_path, pooling):
    write_book(tmp_path, rows=400, depth=DEPTH, segment_starts=(0, 150, 170))
    path = checkpoint(tmp_path)
    folder = export(
        tmp_path,
        tmp_path,
        formats=[],
        embeddings=True,
        embedding_stride=5,
        batch_size=16,
        pooling=pooling,
    )
    assert not folder.exists()
    book = open_book(tmp_path / "book_states" / "BTC_USD")
    rows, about = open_table(
        tmp_path / "embeddings" / "BTC_USD.npy", "model_exporter.py", None, stride=5
    )
    assert isinstance(rows, np.memmap) and rows.dtype == np.float32
    assert (
        about["made_from"]["book"] == identity(book)
        and about["parameters"]["temporal_dim"] == STATES
    )
    ends = np.concatenate([np.arange(*r) for r in about["end_row_ranges"]])
    possible = window_ends(book.segment_starts, book.rows, STATES)
    assert set(ends) <= set(possible) and {32, 170 + 32} <= set(ends) and len(ends) == len(rows)
    assert len(possible) / 5 <= len(ends) < len(possible) / 5 + 2
    model, _ = load_model(path)
    price_ticks, sizes = (torch.from_numpy(x) for x in gather_windows(book, ends, STATES))
    with torch.inference_mode():
        hidden = model.encode(build_inputs(price_ticks, sizes, None, model.config)[0])
    expected = hidden[:, -1] if pooling == "last" else hidden.mean(dim=1)
    torch.testing.assert_close(torch.from_numpy(np.array(rows)), expected, rtol=1e-5, atol=1e-5)


def test_a_file_that_differs_or_does_not_run_is_deleted_with_status_1(
    sampled, tmp_path, monkeypatch, capsys
):
    checkpoint(tmp_path)
    for tolerance, script in (
        (-1.0, check.FRESH_PROCESS),
        (1e-5, "raise SystemExit('no such library')"),
    ):
        monkeypatch.setattr(check, "FRESH_PROCESS", script)
        with pytest.raises(CheckFailed, match="was deleted"):
            export(
                sampled, tmp_path, parts=["encoder"], formats=["torchscript"], tolerance=tolerance
            )
        assert list((tmp_path / "exports" / "a_run").iterdir()) == []
    printed = capsys.readouterr()
    assert "no such library" in printed.err and "best.safetensors (step 7) -> " in printed.out


class Scans(torch.nn.Module):
    """What lob.model.normalisation and lob.model.ladder do and ONNX lacks."""

    def forward(self, x: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        place = torch.sort(x, dim=1, stable=True)[1]
        ordered = torch.sort(x, dim=2)[0]
        return (
            torch.cummax(x, 1)[0],
            torch.cummin(x, dim=2)[0],
            place,
            torch.searchsorted(ordered, values),
        )


@pytest.mark.parametrize("levels", [8, 33])
def test_translated_scans_sorts_and_searches_agree_with_torch(tmp_path, levels):
    generator = torch.Generator().manual_seed(levels)
    # full of ties
    x, values = (torch.randint(-5, 6, (5, 50, n), generator=generator) for n in (levels, 3))
    facts = {"inputs": ["x", "values"], "outputs": list("abcd"), "precision": "fp32"}
    (tmp_path / "scans.onnx").write_bytes(
        to_onnx(Scans().eval(), (x[:2], values[:2]), facts).SerializeToString()
    )
    for found, expected in zip(
        run_file(tmp_path / "scans.onnx", (x, values)), Scans()(x, values), strict=True
    ):
        np.testing.assert_array_equal(found, expected.numpy())


def test_what_torch_cannot_translate_is_one_line():
    class Bessel(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(x)

    facts = {"inputs": ["x"], "outputs": ["y"], "precision": "fp32"}
    with pytest.raises(CheckFailed, match=r"has no ONNX for this part .*i0") as failed:
        to_onnx(Bessel().eval(), (torch.rand(2, 3),), facts)
    assert "\n" not in str(failed.value)


def test_a_wrong_price_is_noticed_to_a_fraction_of_a_tick(sampled):
    """A share of the price itself would let dozens of ticks pass."""
    price_ticks, sizes = (x.numpy() for x in some_windows(sampled, 4))
    assert check.difference(price_ticks + 0.01, price_ticks.astype(np.float64)) > 1e-5
    assert check.difference(sizes * np.float32(1.001), sizes) == pytest.approx(1e-3, rel=1e-2)
    sizes_with_nan = np.where(sizes == sizes.max(), np.nan, sizes)
    assert np.isnan(check.difference(sizes_with_nan, sizes))


class Hostile:
    """Makes a folder where a pickle of it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_users_mistakes_get_one_line(sampled, tmp_path, capsys):
    torch.save(Hostile(tmp_path / "harm"), tmp_path / "hostile.pt")
    good, other = checkpoint(tmp_path / "good"), {"model.embed.weight": torch.zeros(1)}
    checkpoint(tmp_path / "deeper", depth=20)
    meta = metadata(encoder_config("tiny_transformer", depth=DEPTH, temporal_dim=STATES))
    save_checkpoint(
        tmp_path / "later.safetensors", other, meta | {"encoder": meta["encoder"] | {"rope": 2}}
    )
    save_checkpoint(tmp_path / "newer.safetensors", other, meta | {"format_version": 9})
    cases = [
        ({"runs_dir": "none"}, "has a best checkpoint"),
        ({"model_path": f"{tmp_path}/hostile.pt"}, "is not a safetensors checkpoint"),
        ({"model_path": f"{tmp_path}/none"}, "there is no checkpoint"),
        ({"model_path": f"{tmp_path}/later.safetensors"}, "names no encoder of this version"),
        ({"model_path": f"{tmp_path}/newer.safetensors"}, "checkpoint version 9"),
        ({"runs_dir": f"{tmp_path}/deeper"}, "has depth 20"),
        (
            {"runs_dir": f"{tmp_path}/deeper", "formats": [], "embeddings": True},
            "the checkpoint wants 20",
        ),
        ({"parts": ["policy"]}, "parts = ['policy'] must be some of encoder"),
        ({"formats": ["onnx", "tflite"]}, "must be some of torchscript, onnx"),
        ({"precisions": []}, "must be some of fp32, bf16"),
        ({"devices": ["tpu"]}, "must be some of cpu, cuda"),
        ({"pooling": "all"}, "is possible for the part encoder alone"),
        ({"pooling": "all", "parts": ["encoder"]}, "contain their future"),
        ({"policy_widths": [64, 0]}, "policy_widths = [64, 0] holds 0, which must be >= 1"),
        ({"formats": []}, "nothing to do"),
        ({"pairs": ["BTC_USDT"]}, "did you mean 'BTC_USD'"),
        ({"exports_dir": f"{tmp_path}/hostile.pt/x"}, "exports_dir = "),
    ]
    if not torch.cuda.is_available():
        cases.append(({"devices": ["cpu", "cuda"]}, "torch finds no CUDA device"))
    for choices, said in cases:
        config = {
            **model_exporter.config,
            "data_dir": str(sampled),
            "runs_dir": str(good.parents[2]),
            "exports_dir": str(tmp_path / "exports"),
            **choices,
        }
        with pytest.raises(SystemExit) as stopped:
            run(model_exporter.main, config)
        error = capsys.readouterr().err
        assert (stopped.value.code, error.count("\n")) == (2, 1), error
        assert said in error
    assert "check_windows = 1 must be >= 2" in refusal("model_exporter.py", "--check_windows=1")
    assert "embedding_stride = 0 must be >= 1" in refusal(
        "model_exporter.py", "--embedding_stride=0"
    )
    assert not (tmp_path / "harm").exists() and not (tmp_path / "exports").exists()


def test_what_this_machine_cannot_write_is_said_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="onnxscript is not installed"):
        model_exporter.check_config(model_exporter.config)
    model_exporter.check_config({**model_exporter.config, "formats": ["torchscript"]})
    wide = EncoderConfig(**PRESETS["wide_transformer"])
    with pytest.raises(InputError, match="at most 2 GB"):
        model_exporter.check_encoder(model_exporter.config, wide)


def test_the_shell_gets_the_status(sampled, tmp_path):
    command = [
        sys.executable,
        "model_exporter.py",
        f"--data_dir={sampled}",
        f"--runs_dir={tmp_path}",
    ]
    for words in (["--pooling=first"], []):
        done = subprocess.run(
            [*command, *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_the_benchmark_ends_with_one_line_of_json(capsys):
    files = [("torchscript", "fp32", "cpu"), ("torchscript", "bf16", "cpu")]
    quick = {
        "presets": ["tiny_transformer"],
        "depth": 16,
        "temporal_dim": 32,
        "runs": 5,
        "batch_size": 8,
        "formats": ["torchscript"],
    }
    bench_export.main({**bench_export.config, **quick})
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "export"
    found = {(row["case"], row["metric"]) for row in result["rows"] if row["value"] > 0}
    assert found == {
        (f"tiny_transformer/{'_'.join(file)}", metric)
        for file in files
        for metric in ("p50_ms", "p99_ms", "windows_per_second")
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_files_for_the_gpu_pass_their_check_and_embeddings_are_made_there(sampled, tmp_path):
    write_book(tmp_path, rows=400, depth=DEPTH)
    path = checkpoint(tmp_path)
    folder = export(
        tmp_path,
        tmp_path,
        devices=["cpu", "cuda"],
        formats=["torchscript"],
        precisions=["fp32", "bf16"],
        embeddings=True,
        trainable=True,
    )
    assert len(list(folder.glob("*.pt"))) == 12
    rows, _ = open_table(
        tmp_path / "embeddings" / "BTC_USD.npy", "model_exporter.py", None, stride=1
    )
    book, (model, _) = open_book(tmp_path / "book_states" / "BTC_USD"), load_model(path)
    price_ticks, sizes = (
        torch.from_numpy(x) for x in gather_windows(book, np.arange(STATES, 401), STATES)
    )
    with torch.inference_mode():
        expected = model.encode(build_inputs(price_ticks, sizes, None, model.config)[0])[
            :, -1
        ].numpy()
    assert close(np.array(rows), expected, "fp32")
    learner = torch.jit.load(str(folder / "actor_critic_cuda.pt"))
    logits, value = learner(
        price_ticks[:4].long().cuda(), sizes[:4].cuda(), torch.zeros(4, 4, device="cuda")
    )
    (logits.square().sum() + value.sum()).backward()
    assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)


def ppo_losses(
    policy: torch.jit.ScriptModule, price_ticks: torch.Tensor, sizes: torch.Tensor
) -> list[float]:
    """The ten steps of examples/cpp/policy.cpp."""
    mid = price_ticks[:, -1, DEPTH // 2 - 1 : DEPTH // 2 + 1].double().mean(1)
    actions = torch.arange(len(mid) - 1) % 3
    rewards = ((actions - 1) * (mid[1:] / mid[:-1] - 1) * 1e4).float()
    inputs = price_ticks[:-1], sizes[:-1], torch.zeros(len(actions), 4)
    learning = [p for p in policy.train().parameters() if p.requires_grad]
    adam = torch.optim.Adam(learning, lr=3e-4, eps=1e-5)
    losses, before, advantage = [], None, None
    for _ in range(10):
        logits, value = policy(*inputs)
        every = torch.distributions.Categorical(logits=logits)
        if before is None:
            before, advantage = every.log_prob(actions).detach(), rewards - value.detach()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = (every.log_prob(actions) - before).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        loss = (
            -surrogate
            + 0.5 * torch.nn.functional.mse_loss(value, rewards)
            - 0.01 * every.entropy().mean()
        )
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 0.5)
        adam.step()
    return losses


@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="needs cmake and g++"
)
def test_a_cpp_program_gives_pythons_outputs_and_trains_on(sampled, exported, tmp_path):
    prefix = torch.utils.cmake_prefix_path
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run(
        ["cmake", *generator, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}"],
        cwd=ROOT / "examples" / "cpp",
        check=True,
        capture_output=True,
    )
    subprocess.run(["cmake", "--build", tmp_path], check=True, capture_output=True)
    price_ticks, sizes = some_windows(sampled, 13)
    np.save(tmp_path / "price_ticks.npy", price_ticks.numpy().astype(np.int32))
    np.save(tmp_path / "sizes.npy", sizes.numpy())
    command = [
        tmp_path / "policy",
        exported / "actor_critic.pt",
        tmp_path / "price_ticks.npy",
        tmp_path / "sizes.npy",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = [
        (line.split()[0], np.array(line.split()[1:], dtype=float))
        for line in done.stdout.splitlines()
    ]
    model, _ = load_model(exported.parents[1] / "a_run" / "checkpoints" / "best.safetensors")
    with torch.inference_mode():
        embedding = model.encode(build_inputs(price_ticks, sizes, None, model.config)[0])[
            -1, -1
        ].numpy()
    policy = torch.jit.load(str(exported / "actor_critic.pt")).eval()
    with torch.inference_mode():
        logits, _ = policy(price_ticks[-1:], sizes[-1:], torch.zeros(1, 4))
    assert [name for name, _ in printed] == ["embedding", "policy", *["loss"] * 10]
    assert close(printed[0][1], embedding, "fp32") and close(
        printed[1][1], logits.softmax(1)[0].numpy(), "fp32"
    )
    losses = np.concatenate([values for name, values in printed if name == "loss"])
    np.testing.assert_allclose(losses, ppo_losses(policy, price_ticks, sizes), rtol=1e-4, atol=1e-5)
    assert losses[-1] < losses[0]
    done = subprocess.run([*command[:3], command[1]], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no .npy file" in done.stderr
