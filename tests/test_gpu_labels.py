"""The bench of labels on a GPU: each kind of model trains there, as on a CPU."""

import pytest
import torch
from test_bench_labels import CELL, bench, cheap, data  # noqa: F401

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_models_find_the_label_on_a_gpu(data, tmp_path, capsys):  # noqa: F811
    # A GPU draws other random numbers, with which a few more steps are needed.
    cells, _ = bench(data, tmp_path, capsys, device="cuda", workers=2, steps=200)
    models = "frozen", "finetuned", "scratch", "deeplob", "binctabl", "mlplob", "tlob"
    scores = {model: cells[f"{CELL}/1/{model}/direction", "score"]["value"] for model in models}
    assert min(scores.values()) > 0.8, scores
