"""What a test adds to the TensorBoard events of the run: skills, the report as text, pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lob.evaluation.report import PairReport
from lob.results import TEST_SCORES

ENDING = ".tester"  # of the file of events, which a later test replaces


def mean_skills(pairs: Sequence[PairReport]) -> dict[str, float]:
    """Return the skill in log sizes over the ladder and over the ridge, by these names.

    They are means over pairs and over the masks trained on. A method that was not fitted is left
    out.
    """
    found: dict[str, list[float]] = {name: [] for name in TEST_SCORES}
    for pair in pairs:
        for scores in pair.scores:
            sizes = scores.comparisons.get("log_size")
            if sizes is None or not scores.trained_on:
                continue
            for name, rival in (("ladder", sizes.ladder), ("ridge", sizes.ridge)):
                if rival is not None and np.isfinite(rival.skill):
                    found[name].append(rival.skill)
    return {name: float(np.mean(skills)) for name, skills in found.items() if skills}


def add_test(
    run: Path, step: int, pairs: Sequence[PairReport], text: str, pictures: Mapping[str, Path]
) -> None:
    """Add a test's results to a run's events; do nothing if the folder holds no run's events.

    step: of the tested checkpoint; text: Markdown; pictures: name -> PNG file. A skill is one
    number; it is written at the first step and at this one, so that it shows as a line.
    """
    old = list(run.glob(f"events.out.tfevents.*{ENDING}"))
    if len(old) == len(list(run.glob("events.out.tfevents.*"))):
        return
    from matplotlib import image
    from torch.utils.tensorboard import SummaryWriter  # takes a second

    for file in old:
        file.unlink()
    with SummaryWriter(str(run), filename_suffix=ENDING) as writer:
        for name, skill in mean_skills(pairs).items():
            for at in (0, max(step, 1)):
                writer.add_scalar(TEST_SCORES[name], skill, at)
        writer.add_text("test", text, step)
        for name, file in pictures.items():
            pixels = image.imread(file)[..., :3]
            writer.add_image(f"test/{name}", pixels, step, dataformats="HWC")
