"""The ``summary.json`` of an evaluation: what was evaluated, on which data, and the result."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cifar_dist.config import Config
from cifar_dist.formatting import counted, percent, percent_cell


@dataclass(frozen=True)
class EvaluationSummary:
    """``summary.json`` of an evaluation. What the file of an earlier version lacks has its default.

    Attributes:
        run, checkpoint, step: the evaluated weights; the step is None if they are not a checkpoint.
        split, data, samples, classes: the data.
        tta: the views of each image, see ``eval.tta``.
        accuracy: fraction correct, None without labels.
        loss: mean cross-entropy in nats, None without labels; null in the file also if it is not finite.
        val_accuracy: of this checkpoint during training, None if it was not measured.
        seconds: wall time of the predictions.
        processes: number of processes that computed them.
        plain_accuracy: fraction correct without test-time augmentation, None without labels.
        tta_images: number of images that got all views, see ``eval.tta_below``; None: of all.
        fingerprint, split_fingerprint: of the data, and of what its manifest says of the split; empty in evaluations
            of earlier versions.
        tta_below: which images got all views, see ``eval.tta_below``; None in evaluations of earlier versions.
        calibration_error: the expected calibration error, a fraction, see :mod:`cifar_dist.evaluation.calibration`;
            None without labels, with a loss that is not finite, and in evaluations of earlier versions.
    """

    run: str = ""
    checkpoint: str = ""
    step: int | None = None
    split: str = ""
    data: str = ""
    samples: int = 0
    classes: tuple[str, ...] = ()
    tta: str = ""
    accuracy: float | None = None
    loss: float | None = None
    val_accuracy: float | None = None
    seconds: float = 0.0
    processes: int = 0
    plain_accuracy: float | None = None
    tta_images: int | None = None
    fingerprint: str = ""
    split_fingerprint: str = ""
    tta_below: float | None = None
    calibration_error: float | None = None

    @property
    def views(self) -> str:
        """The views of each image, and how many images got them where it was not all: ``8 of 190 images``."""
        if self.tta == "0" or self.tta_images in (None, self.samples):
            return self.tta
        return f"{self.tta} of {counted(self.tta_images, 'image')}"

    def other_setting(self, config: Config) -> str:
        """The key of a setting that ``config`` would evaluate otherwise with; empty for none."""
        if self.split not in ("", config.eval.split):
            return "eval.split"
        if self.tta not in ("", config.distinct_tta):  # as evaluate records it
            return "eval.tta"
        has_threshold = self.tta != "0" and self.tta_below is not None
        return "eval.tta_below" if has_threshold and self.tta_below != config.eval.tta_below else ""

    def result(self) -> str:
        """Say the accuracy in words, that of the images themselves beside it, and the calibration error."""
        tta = f"TTA {self.views}"
        if self.accuracy is None or self.plain_accuracy is None:
            return f"no labels, {tta}"
        error = self.calibration_error
        calibration = "" if error is None or math.isnan(error) else f", calibration error {percent(error, 1)}"
        if self.tta == "0":
            return f"accuracy {percent(self.accuracy)} without TTA{calibration}"
        return f"accuracy {percent(self.accuracy)} with {tta}, {percent(self.plain_accuracy)} without{calibration}"

    def warning(self) -> str:
        """Say that the network has diverged, or that test-time augmentation lowers the accuracy; empty if neither."""
        if self.loss is not None and not math.isfinite(self.loss):
            return "the loss is not finite: training has diverged, and the predictions mean nothing; lower --optim.lr"
        if self.accuracy is None or self.plain_accuracy is None:
            return ""
        if round((self.plain_accuracy - self.accuracy) * self.samples) < _MORE_THAN_CHANCE:
            return ""
        return (
            f"TTA {self.tta} lowers the accuracy from {percent_cell(self.plain_accuracy)} to {percent(self.accuracy)}; "
            "evaluate with --tta 0, or train with --eval.tta 0"
        )

    def to_json(self) -> str:
        """Format it as a file, in which a number that is not finite is null: JSON has no nan."""
        values = asdict(self)
        not_finite = [key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        return json.dumps({**values, **dict.fromkeys(not_finite)}, indent=2) + "\n"


_SUMMARY = TypeAdapter(EvaluationSummary)
_MORE_THAN_CHANCE = 5
"""Images: of so many that all change from right to wrong, chance does it to all in one case of 32 (McNemar's test)."""


def read_summary(path: Path) -> EvaluationSummary | None:
    """Read a ``summary.json``; None if it is missing or has anything of another type."""
    try:
        summary = _SUMMARY.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    diverged = summary.loss is None and summary.accuracy is not None
    return replace(summary, loss=math.nan) if diverged else summary
