"""model_exporter.py: files give the checkpoint's outputs in another process; wrong ones go."""

import itertools
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, metadata, refusal, shell, write_book

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
    """Save an encoder as a run's best checkpoint, as an FP8 run leaves it; return the file.

    Its head is not zero, so that its inputs show in its answers.
    """
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
        names = [x.name for x in session.get_inputs()]
        arrays = [given.numpy() for given in inputs]
        return session.run(None, dict(zip(names, arrays, strict=True)))
    with torch.inference_mode():
        found = torch.jit.load(str(file)).eval()(*inputs)
    return [x.numpy() for x in (found if isinstance(found, tuple) else (found,))]


def close(found: np.ndarray, expected: np.ndarray, precision: str) -> bool:
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    return np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def test_fewer_windows_than_asked_for_and_pairs_without_any_are_said(tmp_path, capsys):
    """The files are checked on what is there; pairs without a window get no embeddings."""
    checkpoint(tmp_path)
    write_book(tmp_path, "SHORT", rows=STATES - 1, depth=DEPTH)
    short = {"formats": ["torchscript"], "parts": ["encoder"], "embeddings": True}
    with pytest.raises(InputError, match=f"no pair has {STATES} states without a gap"):
        export(tmp_path, tmp_path, formats=[], embeddings=True)
    with pytest.raises(InputError, match=f"and a window of {STATES} states: set --data_dir"):
        export(tmp_path, tmp_path, **short)
    for rows in (STATES, STATES + 4):
        write_book(tmp_path, f"ROWS_{rows}", rows=rows, depth=DEPTH)
        export(tmp_path, tmp_path, **short)
        said = capsys.readouterr().out
        windows = rows - STATES + 1
        assert f"checked on {windows} windows, not 16: ROWS_{rows} has no more" in said
        assert f"SHORT: left out, it has no run of {STATES} states" in said
        assert len(np.load(tmp_path / "embeddings" / f"ROWS_{rows}.npy")) == windows
        assert not (tmp_path / "embeddings" / "SHORT.npy").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_files_give_the_checkpoints_outputs_for_any_batch(sampled, exported, suffix, precision):
    model, _ = load_model(exported.parents[1] / "a_run" / "checkpoints" / "best.safetensors")
    bf16 = "_bf16" if precision == "bf16" else ""
    ending = bf16 + suffix
    heads = torch.jit.load(str(exported / f"actor_critic_trainable{bf16}.pt")).eval()
    for batch in (1, 3, 7):
        price_ticks, sizes = some_windows(sampled, batch)
        mask = torch.rand(batch, STATES, DEPTH, 2, generator=torch.Generator().manual_seed(1)) < 0.3
        state = torch.randn(batch, 4)
        with torch.inference_mode():
            nothing_hidden = torch.zeros_like(mask)
            tokens = build_inputs(price_ticks, sizes, nothing_hidden, model.config)[0]
            embedding = model.encode(tokens)[:, -1]
            tokens, base, _, parameters = build_inputs(price_ticks, sizes, mask, model.config)
            prices, filled = invert(model(tokens, base), parameters, "book")
            logits, value = heads.heads(embedding, state)
        mean = price_ticks.double().mean(dim=(1, 2), keepdim=True)
        (found,) = run_file(exported / f"encoder{ending}", (price_ticks, sizes))
        assert close(found, embedding.numpy(), precision)
        if ending == "_bf16.onnx":
            continue  # the other parts are exported the same way, and take seconds each
        inputs = (price_ticks, sizes, mask)
        found_prices, found_sizes = run_file(exported / f"reconstruction{ending}", inputs)
        assert close(found_prices - mean.numpy(), (prices - mean).numpy(), precision)
        assert close(found_sizes, filled.numpy(), precision)
        inputs = (price_ticks, sizes, state)
        found_logits, found_value = run_file(exported / f"actor_critic_trainable{ending}", inputs)
        assert close(found_logits, logits.numpy(), precision)
        assert close(found_value, value.numpy(), precision)


def test_files_say_what_they_take_in_themselves_and_beside(exported):
    import onnxruntime

    for part in (*EVERY_PART[:-1], "actor_critic_trainable"):
        about = json.loads((exported / f"{part}.pt.json").read_text())
        assert (about["step"], about["encoder"]["depth"], about["precision"]) == (7, DEPTH, "fp32")
        assert about["inputs"]["price_ticks"]["shape"] == ["B", STATES, DEPTH]
        assert "ticks" in str(about["inputs"])
        extra = {"metadata.json": ""}
        torch.jit.load(str(exported / f"{part}.pt"), _extra_files=extra)
        assert json.loads(extra["metadata.json"]) == about
        onnx_file = exported / f"{part}.onnx"
        session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        inside = json.loads(session.get_modelmeta().custom_metadata_map["metadata.json"])
        beside = json.loads((exported / f"{part}.onnx.json").read_text())
        assert inside == beside == about
        for found, named in (
            (session.get_inputs(), about["inputs"]),
            (session.get_outputs(), about["outputs"]),
        ):
            assert [x.name for x in found] == list(named)
            for x, field in zip(found, named.values(), strict=True):
                assert len(x.shape) == len(field["shape"])
                assert list(x.shape[1:]) == field["shape"][1:]
        assert str(ROOT).encode() not in onnx_file.read_bytes()

    def size(name: str) -> int:
        return (exported / name).stat().st_size

    assert size("encoder.onnx") > 1.3 * size("encoder_bf16.onnx")
    assert size("encoder.pt") > 1.5 * size("encoder_bf16.pt")


@pytest.mark.parametrize("part", ["encoder", "reconstruction", "actor_critic_trainable"])
def test_torchscript_refuses_windows_of_other_shapes_as_onnx_does(sampled, exported, part):
    price_ticks, sizes = some_windows(sampled, 3)
    more = {"encoder": (), "reconstruction": (torch.zeros(3, STATES, DEPTH, 2).bool(),)}
    inputs = (price_ticks, sizes, *more.get(part, (torch.zeros(3, 4),)))
    file = exported / f"{part}.pt"
    run_file(file, inputs)
    shallow = [x[:, :, 1:-1] if x.dim() > 2 else x for x in inputs]
    short = [x[:, 1:] if x.dim() > 2 else x for x in inputs]
    long = [torch.cat([x, x], dim=1) if x.dim() > 2 else x for x in inputs]
    one_level = [x[:, :, :1] if x.dim() > 2 else x for x in inputs]
    fewer_sizes = [price_ticks, *(x[:1] for x in inputs[1:])]  # would be taken for all windows
    for wrong in (shallow, short, long, one_level, fewer_sizes):
        with pytest.raises(Exception, match="must be of shape") as said:
            run_file(file, tuple(wrong))
        assert f"must be of shape [3, {STATES}, {DEPTH}" in str(said.value)


def test_later_states_change_no_embedding_of_a_causal_encoder(sampled, tmp_path):
    checkpoint(tmp_path, causal=True)
    folder = export(sampled, tmp_path, parts=["encoder"], formats=["torchscript"], pooling="all")
    price_ticks, sizes = some_windows(sampled, 3)
    later = price_ticks.clone(), sizes.clone()
    later[0][:, 20:] += torch.randint(1, 50, (3, 12, DEPTH)).cumsum(2)
    later[1][:, 20:] *= 7
    (before,) = run_file(folder / "encoder.pt", (price_ticks, sizes))
    (after,) = run_file(folder / "encoder.pt", later)
    assert before.shape == (3, STATES, 64)
    np.testing.assert_allclose(before[:, :20], after[:, :20], rtol=0, atol=1e-6)
    assert np.abs(before[:, 20:] - after[:, 20:]).max(axis=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_a_row_a_window_that_ends_now(tmp_path, pooling):
    write_book(tmp_path, rows=400, depth=DEPTH, segment_starts=(0, 150, 170))
    path = checkpoint(tmp_path)
    choices = {"embedding_stride": 5, "batch_size": 16, "pooling": pooling}
    folder = export(tmp_path, tmp_path, formats=[], embeddings=True, **choices)
    assert not folder.exists()
    book = open_book(tmp_path / "book_states" / "BTC_USD")
    file = tmp_path / "embeddings" / "BTC_USD.npy"
    rows, about = open_table(file, "model_exporter.py", None, stride=5)
    assert isinstance(rows, np.memmap) and rows.dtype == np.float32
    assert about["made_from"]["book"] == identity(book)
    assert about["parameters"]["temporal_dim"] == STATES
    ends = np.concatenate([np.arange(*r) for r in about["end_row_ranges"]])
    possible = window_ends(book.segment_starts, book.rows, STATES)
    assert set(ends) <= set(possible)
    assert {32, 170 + 32} <= set(ends)  # the first window of each segment
    assert len(ends) == len(rows)
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
    one_file = {"parts": ["encoder"], "formats": ["torchscript"]}
    off_by_one = check.FRESH_PROCESS.replace("*outputs", "*[x + 1 for x in outputs]")
    assert off_by_one != check.FRESH_PROCESS
    for script in (off_by_one, "raise SystemExit('no such library')"):
        monkeypatch.setattr(check, "FRESH_PROCESS", script)
        with pytest.raises(CheckFailed, match="was deleted"):
            export(sampled, tmp_path, **one_file)
        assert list((tmp_path / "exports" / "a_run").iterdir()) == []
    printed = capsys.readouterr()
    assert "no such library" in printed.err and "best.safetensors (step 7) -> " in printed.out


class Scans(torch.nn.Module):
    """The operations of lob.model.normalisation and lob.model.ladder that ONNX lacks."""

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
    # Integers of so small a range are full of ties.
    x, values = (torch.randint(-5, 6, (5, 50, n), generator=generator) for n in (levels, 3))
    facts = {"inputs": ["x", "values"], "outputs": list("abcd"), "precision": "fp32"}
    program = to_onnx(Scans().eval(), (x[:2], values[:2]), facts)
    file = tmp_path / "scans.onnx"
    file.write_bytes(program.SerializeToString())
    outputs = run_file(file, (x, values))
    for found, expected in zip(outputs, Scans()(x, values), strict=True):
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
    """A tolerance relative to the price itself would let errors of dozens of ticks pass."""
    price_ticks, sizes = (x.numpy() for x in some_windows(sampled, 4))
    assert check.difference(price_ticks + 0.01, price_ticks.astype(np.float64)) > 1e-5
    assert check.difference(sizes * np.float32(1.001), sizes) == pytest.approx(1e-3, rel=1e-2)
    sizes_with_nan = np.where(sizes == sizes.max(), np.nan, sizes)
    assert np.isnan(check.difference(sizes_with_nan, sizes))


class Hostile:
    """An object that makes a folder if a pickle of it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_users_mistakes_get_one_line(sampled, tmp_path, capsys):
    torch.save(Hostile(tmp_path / "harm"), tmp_path / "hostile.pt")
    good, other = checkpoint(tmp_path / "good"), {"model.embed.weight": torch.zeros(1)}
    checkpoint(tmp_path / "deeper", depth=20)
    meta = metadata(encoder_config("tiny_transformer", depth=DEPTH, temporal_dim=STATES))
    later = meta | {"encoder": meta["encoder"] | {"rope": 2}}
    save_checkpoint(tmp_path / "later.safetensors", other, later)
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
    line = refusal("model_exporter.py", "--check_windows=1")
    assert "check_windows = 1 must be >= 2" in line
    line = refusal("model_exporter.py", "--embedding_stride=0")
    assert "embedding_stride = 0 must be >= 1" in line
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
    folders = [f"--data_dir={sampled}", f"--runs_dir={tmp_path}"]
    for words in (["--pooling=first"], []):
        done = shell("model_exporter.py", *folders, *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_the_benchmark_ends_with_one_line_of_json(capsys):
    files = [
        ("torchscript", "fp32", "cpu"),
        ("torchscript", "bf16", "cpu"),
        ("eager", "fp32", "cpu"),
        ("stream", "fp32", "cpu"),
    ]
    quick = {
        "presets": ["tiny_transformer"],
        "depth": 16,
        "temporal_dim": 32,
        "runs": 5,
        "batch_size": 8,
        "formats": ["torchscript", "eager", "graphed", "stream"],  # a CPU has no graphs
    }
    bench_export.main({**bench_export.config, **quick})
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "stream"
    found = {(row["case"], row["metric"]) for row in result["rows"] if row["value"] > 0}
    cases = [f"tiny_transformer/{'_'.join(file)}" for file in files]
    assert found == {*itertools.product(cases, ("p50_ms", "p99_ms", "windows_per_second"))}


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
    file = tmp_path / "embeddings" / "BTC_USD.npy"
    rows, _ = open_table(file, "model_exporter.py", None, stride=1)
    book = open_book(tmp_path / "book_states" / "BTC_USD")
    model, _ = load_model(path)
    windows = gather_windows(book, np.arange(STATES, 401), STATES)
    price_ticks, sizes = (torch.from_numpy(x) for x in windows)
    with torch.inference_mode():
        tokens = build_inputs(price_ticks, sizes, None, model.config)[0]
        expected = model.encode(tokens)[:, -1].numpy()
    assert close(np.array(rows), expected, "fp32")
    learner = torch.jit.load(str(folder / "actor_critic_trainable_cuda.pt"))
    some = price_ticks[:4].long().cuda(), sizes[:4].cuda()
    logits, value = learner(*some, torch.zeros(4, 4, device="cuda"))
    (logits.square().sum() + value.sum()).backward()
    assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)
