"""A run's TensorBoard events: scalars grouped by quantity, charts, settings, text and a picture.

Groups: `loss` (what is minimised, over all hidden values), `losses_by_field` and `losses_by_mask`
(its parts), `skill`, `optimizer`, `speed`. The page CUSTOM SCALARS has the lines of one loss in one
chart. A row of metrics.csv and its scalars hold the same numbers; no number has two tags.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lob.model.encoder import FILLS, PRESETS
from lob.model.masking import MODES
from lob.model.normalisation import SCHEMES
from lob.results import TEST_SCORES
from lob.training.objective import LOSSES
from lob.training.optimisation import OPTIMIZERS
from lob.training.scores import ANSWERS, FIELDS, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Keys of a run's config that describe how it learns, for the page HPARAMS. A key whose values are
# names has all of them here, since the page offers, for all runs, the names of the first run.
LEARNING_KEYS: dict[str, Sequence[str]] = {
    "model_size": tuple(PRESETS),
    "normalization": SCHEMES,
    "fill": FILLS,
    "causal": ("False", "True"),
    "dropout": (),
    "mask_mode": MODES,
    "mask_perc": (),
    "slow": (),
    "size_noise": (),
    "outlook": (),
    "loss": tuple(LOSSES),
    "epochs": (),
    "batch_size": (),
    "optimizer": tuple(OPTIMIZERS),
    "weight_decay": (),
    "max_lr": (),
    "seed": (),
}
STEP_TAGS = {  # column of metrics.csv -> tag
    "train_loss": "loss/train",
    "learning_rate": "optimizer/learning_rate",
    "gradient_norm": "optimizer/gradient_norm",
    "windows_per_second": "speed/windows_per_second",
    "data_wait_share": "speed/data_wait_share",
}
SKILL = {"ladder": "skill/over_ladder", "linear": "skill/over_linear"}  # in validation
METRICS = ("loss/validation", SKILL["ladder"], *TEST_SCORES.values())  # of the page HPARAMS
FIELD_NAMES = {"price": "prices", "size": "sizes"}


class Board:
    """Writes events into a run's folder.

    TensorBoard hides what earlier sessions of the run wrote from `purge_step` on.
    """

    def __init__(self, folder: Path, purge_step: int):
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        self.charted = False

    def close(self) -> None:
        self.writer.close()

    def begin(self, settings: dict[str, Any], facts: dict[str, str]) -> None:
        """Write what the run is: facts and the whole config as text, LEARNING_KEYS as hparams.

        They are written at the beginning, so that unfinished runs have them too.
        """
        lines = [f"- **{name}**: {value}" for name, value in facts.items()]
        self.writer.add_text("run", "\n".join(lines))
        keys = (f"    {key} = {value!r}" for key, value in settings.items())
        self.writer.add_text("config", "\n".join(keys))
        values = {
            key: str(settings[key]) if names else float(settings[key])
            for key, names in LEARNING_KEYS.items()
        }
        domains = {key: list(names) for key, names in LEARNING_KEYS.items() if names}
        experiment, start, _ = hparams(values, dict.fromkeys(METRICS, 0.0), domains)
        self.writer._get_file_writer().add_summary(experiment)
        self.writer._get_file_writer().add_summary(start)
        self.writer.flush()

    def end(self, result: str) -> None:
        """Write that the run has ended, and its result as text."""
        end = hparams({}, {})[2]
        self.writer._get_file_writer().add_summary(end)
        self.writer.add_text("result", result)
        self.writer.flush()

    def scalars(self, values: Iterable[tuple[str, float]], step: int) -> None:
        for tag, value in values:
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def validation(self, scores: Scores, step: int) -> None:
        """Write the losses of a validation, whole and in parts, and the skills over the others."""
        parts = scores.parts()
        if not self.charted:
            self.writer.add_custom_scalars(make_charts(parts))
            self.charted = True
        values = [(f"loss/{answer}", scores.loss(answer)) for answer in ANSWERS]
        for part in parts:
            values += [(name_tag(part, answer), scores.loss(answer, part)) for answer in ANSWERS]
        for answer, tag in SKILL.items():
            values.append((tag, 1 - scores.loss() / max(scores.loss(answer), 1e-30)))
        self.scalars(values, step)

    def picture(self, figure: "Figure", step: int) -> None:
        self.writer.add_figure("fills", figure, step)
        self.writer.flush()


def name_tag(part: str, answer: str) -> str:
    # Not `loss_by_...`, which the page SCALARS would show before `loss`: it sorts _ and / as equal.
    group = "losses_by_field" if part in FIELDS else "losses_by_mask"
    return f"{group}/{part}_{answer}"


def make_charts(parts: Sequence[str]) -> dict[str, dict[str, list]]:
    """Return the charts of the page CUSTOM SCALARS: the lines of each loss in one chart."""
    whole = [f"loss/{name}" for name in ("train", *ANSWERS)]
    charts: dict[str, dict[str, list]] = {
        "loss": {"all hidden values": ["Multiline", whole]},
        "loss by mask": {},
    }
    for part in parts:
        category = "loss" if part in FIELDS else "loss by mask"
        title = f"hidden {FIELD_NAMES[part]}" if part in FIELDS else f"mask {part}"
        charts[category][title] = ["Multiline", [name_tag(part, answer) for answer in ANSWERS]]
    charts["skill in validation (0: no better, 1: perfect)"] = {
        "over the ladder and the line": ["Multiline", list(SKILL.values())]
    }
    return {category: inner for category, inner in charts.items() if inner}
