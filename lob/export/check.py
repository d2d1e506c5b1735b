"""The check of an exported file: does it give the outputs of the network that it was made from?"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# Runs a file without this repository, as a user's program does: on all inputs in batches of two
# sizes, then on one window on one thread to take its time. A file with the method `reset` gets the
# states of a window one by one; its time is that of a state.
FRESH_PROCESS = """
import sys, time, numpy
file, given, found, device = sys.argv[1:]
data = numpy.load(given)
inputs = [data[name] for name in data.files]
is_stream = False
if file.endswith(".onnx"):
    import onnxruntime
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=[provider])
    names = [x.name for x in session.get_inputs()]
    call = lambda arrays: session.run(None, dict(zip(names, arrays)))
else:
    import torch
    torch.set_num_threads(1)
    module = torch.jit.load(file, map_location=device).eval()
    def stream(*windows):
        module.reset(len(windows[0]))
        states = zip(*(x.unbind(1) for x in windows))
        return torch.stack([module(*state) for state in states], 1)
    is_stream = hasattr(module, "reset")
    def call(arrays):
        with torch.inference_mode():
            inputs = [torch.from_numpy(x).to(device) for x in arrays]
            found = (stream if is_stream else module)(*inputs)
            return [x.cpu().numpy() for x in (found if isinstance(found, tuple) else (found,))]
batches = [call([x[i : i + n] for x in inputs]) for i, n in ((0, 1), (1, len(inputs[0]) - 1))]
times, states = [], inputs[0].shape[1] if is_stream else 1
for _ in range(2 if is_stream else 15):
    began = time.perf_counter()
    call([x[:1] for x in inputs])
    times.append((time.perf_counter() - began) / states)
outputs = [numpy.concatenate(column) for column in zip(*batches)]
numpy.savez(found, *outputs, milliseconds=1e3 * numpy.median(times[len(times) // 3:]))
"""


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.inference_mode():
        found = module.eval()(*inputs)
    several = found if isinstance(found, tuple) else (found,)
    return [x.numpy() for x in several]


def compare(
    file: Path, expected: list[np.ndarray], inputs: tuple[Tensor, ...], device: str
) -> tuple[float, float]:
    """Run a file in a fresh process.

    Return the largest `difference` of its outputs from the expected ones and its median time in ms
    of one window, or of one state of a stream. The difference is infinite if the file does not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "inputs.npz"
        found = Path(folder) / "outputs.npz"
        np.savez(given, *[x.numpy() for x in inputs])
        words = [str(file.resolve()), str(given), str(found), device]
        command = [sys.executable, "-c", FRESH_PROCESS, *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1]
            print(f"{file} does not run: {reason}", file=sys.stderr)
            return float("inf"), float("nan")
        outputs = np.load(found)
        differences = [
            difference(outputs[f"arr_{index}"], reference)
            for index, reference in enumerate(expected)
        ]
        return float(np.max(differences)), float(outputs["milliseconds"])


def difference(found: np.ndarray, reference: np.ndarray) -> float:
    """Return |found - reference| / |reference| (Euclidean norms); NaN if an entry is NaN.

    Prices (float64) are measured from the mean of their window: relative to 7,831,845 ticks an
    error of dozens of ticks would pass.
    """
    level = 0.0
    if reference.dtype == np.float64:
        level = reference.mean(axis=(1, 2), keepdims=True)
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference - level))
