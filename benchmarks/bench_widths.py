"""Where FP8 pays: training steps of twelve transformer layers, by width and arithmetic.

    python -m benchmarks.bench_widths --write=True    one GPU, some five minutes

Needs the books and samples of the first three scripts and an NVIDIA GPU with FP8. Each case trains
`wide_transformer` at another width as benchmarks/bench_training.py does, 192 windows a pass.
`FP8_PAYS_FROM_WIDTH` of lob/training/precision.py is the least width from which on FP8 is faster
than bf16 at every width measured.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/ and balanced_samples/
    "widths": [192, 384, 768, 1536, 2048],  # list[int >= 64]: multiples of 64
    "recipes": ["bf16", "delayed", "current", "block"],  # list[bf16 | delayed | current | block |
    #   mxfp8 | nvfp4]: bf16, or a way to scale values of FP8
    "seconds": 1.5,  # >= 0: least time for which a case is measured
    "write": False,  # bool: keep the result in benchmarks/results/widths.json
}

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_training import WIDE, WIDE_LARGE, measure_case, to_rows
from benchmarks.report import report
from lob.model.encoder import PRESETS

HEAD = 64  # width of a head


def main(config: dict) -> None:
    if not torch.cuda.is_available():
        raise InputError("bench_widths measures an NVIDIA GPU, this machine shows none")
    rows: list[dict[str, Any]] = []
    for width in config["widths"]:
        for recipe in config["recipes"]:
            found = measure_width(config, width, recipe)
            rows += to_rows(f"{width}/{recipe}", found, [])
            rate, flops = found["windows_per_second"], found["model_tflops"]
            print(f"{width} {recipe}: {rate:,.0f} windows/s, {flops:,.0f} TFLOP/s", flush=True)
    report("widths", rows, config["write"])


def measure_width(config: dict, width: int, recipe: str) -> dict[str, Any]:
    """Return what `measure_case` finds for the layers of `wide_transformer` at another width."""
    arithmetic = {"precision": "bf16"}
    if recipe != "bf16":
        arithmetic = {"precision": "fp8", "fp8_recipe": recipe}
    measured = {"data_dir": config["data_dir"], "seconds": config["seconds"]}
    name = "wide_transformer"
    kept = PRESETS[name]
    PRESETS[name] = kept | {"width": width, "heads": width // HEAD, "ffn_width": 4 * width}
    try:
        with tempfile.TemporaryDirectory() as folder:
            case = {**WIDE, **WIDE_LARGE, **arithmetic}
            return measure_case(0, 1, None, measured, case, Path(folder) / "result.json")
    finally:
        PRESETS[name] = kept


if __name__ == "__main__":
    run(main, config)
