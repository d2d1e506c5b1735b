"""model_exporter.py: the files give the checkpoint's outputs in another process, and a wrong one is deleted."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from lob.checkpoints import save_checkpoint
from lob.encoder import BookEncoder, build_inputs, encoder_config
from lob.files import open_book
from lob.windows import gather_windows


def checkpoint(runs: Path, depth: int = 16, **choices) -> Path:
    """Save an encoder with a lively head as a run's best checkpoint."""
    config = encoder_config("tiny_transformer", depth=depth, temporal_dim=32, **choices)
    torch.manual_seed(0)
    model = BookEncoder(config)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    file = runs / "a_run" / "checkpoints" / "best.safetensors"
    save_checkpoint(file, {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
                    {"encoder": asdict(config), "progress": {"step": 7}})  # fmt: skip
    return file


def export(data: Path, root: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "model_exporter.py", f"--data_dir={data}", f"--runs_dir={root}",
               f"--exports_dir={root / 'exports'}", *words]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("normalization", ["book", "minmax"])
def test_exported_files_give_the_checkpoints_outputs_for_any_batch(sampled, tmp_path, normalization):
    checkpoint(tmp_path, normalization=normalization)
    done = export(sampled, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "exports" / "a_run"
    facts = json.loads((folder / "encoder.json").read_text())
    assert (facts["step"], facts["encoder"]["depth"]) == (7, 16)
    extra = {"metadata.json": ""}
    module = torch.jit.load(str(folder / "encoder.pt"), _extra_files=extra)
    assert json.loads(extra["metadata.json"]) == facts
    from lob.checkpoints import load_model

    model, _ = load_model(tmp_path / "a_run" / "checkpoints" / "best.safetensors")
    book = open_book(sampled / "book_states" / "BTC_USD")
    for batch in (1, 3, 7):
        price, sizes = (torch.from_numpy(x) for x in gather_windows(book, np.arange(40, 40 + batch), 32))
        with torch.inference_mode():
            tokens, *_ = build_inputs(price, sizes, torch.zeros(batch, 32, 16, 2, dtype=torch.bool), model.config)
            expected = model.encode(tokens)[:, -1]
            torch.testing.assert_close(module(price.long(), sizes), expected, rtol=1e-5, atol=1e-6)


def test_a_file_that_differs_is_deleted_with_status_1(sampled, tmp_path):
    checkpoint(tmp_path)
    done = export(sampled, tmp_path, "--tolerance=-1.0", "--parts=['encoder']")
    assert done.returncode == 1
    assert "was deleted" in done.stderr
    assert list((tmp_path / "exports" / "a_run").iterdir()) == []


def test_users_mistakes_get_one_line(sampled, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save(Hostile(), tmp_path / "hostile.pt")
    checkpoint(tmp_path / "deeper", depth=20)
    for words, said in [
        ((), "has a best checkpoint"),
        ((f"--model_path={tmp_path / 'hostile.pt'}",), "is not a safetensors checkpoint"),
        ((f"--model_path={tmp_path / 'none'}",), "there is no checkpoint"),
        ((f"--runs_dir={tmp_path / 'deeper'}",), "has depth 20"),
        (("--parts=['policy']",), "parts"),
        (("--pooling=first",), "pooling"),
    ]:
        done = export(sampled, tmp_path, *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
    assert not (tmp_path / "harm").exists()
