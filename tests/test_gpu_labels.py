"""The bench of labels on a GPU: each kind of model trains there, as on a CPU."""

import pytest
import torch
from test_bench_labels import CELL, bench, cheap, data  # noqa: F401

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_models_find_the_label_on_a_gpu(data, tmp_path, capsys):  # noqa: F811
    cells, _ = bench(data, tmp_path, capsys, device="cuda", workers=2)
    for model in ("frozen", "finetuned", "scratch", "deeplob", "binctabl", "mlplob", "tlob"):
        assert cells[f"{CELL}/1/{model}/direction", "score"]["value"] > 0.8, model
