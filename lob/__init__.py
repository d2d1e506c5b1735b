"""What the scripts are made of: one room (a package) for each part of the pipeline.

The rule of the house: scripts tell, rooms do. What reads the config or decides the order of a
stage's work stands in its script. All else stands in the room of the first stage that needs it. A
room imports only from rooms above it in this list, or left of it in its line:

    process source config storage results jit plotting
    feeds, book, windows, model
    training | evaluation | export

The last three don't import one another. `feeds`, `book` and `windows` don't import torch, and only
one module imports Transformer Engine. No room takes a config dict: it takes the values that it
needs. CONTRIBUTING.md says more, and tests/test_house.py enforces it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lob.model.pretrained import Encoder


def load(
    model_path: "str | Path | None" = None,
    device: "str | torch.device | None" = None,
    runs_dir: "str | Path" = "runs",
) -> "Encoder":
    """Return a trained encoder, ready for use (lob/model/pretrained.py).

    model_path: a folder of pretrained weights, such as pretrained/<name>, a run's folder or name,
    or a checkpoint; None: the newest run under `runs_dir`; device: None takes a GPU if there is
    one. Raises InputError if there is no such checkpoint, or none of this version.
    """
    # Here, so that scripts without a network start without torch.
    from lob.model.pretrained import load as load_encoder

    return load_encoder(model_path, device, runs_dir)
