"""The folder of an evaluation: its name, and the paths in it."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

from cifar_dist.files.folders import free_name
from cifar_dist.run_folder.summary import EvaluationSummary

FINAL = "final"
"""Name of the weights at the end of training: of their folder, and in evaluations."""

_NAMED_FINAL = re.compile(rf"_model_{FINAL}(-\d+)?$")

_LONGEST_NAME = 220  # bytes of an evaluation: a file system allows 255, of which temporary names and numbers need some
_SHORTENED = 48  # of which the weights have so many at least


class EvaluationFolder:
    """Paths inside ``runs/NAME/evaluations/...``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = path / "summary.json"
        self.submission = path / "submission.csv"
        self.probabilities = path / "probabilities.npz"
        self.weights = path / "model.safetensors"
        self.figures = path / "figures"

    @staticmethod
    def name_of(summary: EvaluationSummary, written: datetime) -> str:
        """Return the name of an evaluation; ``written``: when, in UTC. Long names of run and weights are shortened."""
        accuracy = "unknown" if summary.val_accuracy is None else f"{summary.val_accuracy:.4f}"
        middle = f"_val_acc_{accuracy}_{written:%Y%m%d-%H%M%S}_model_"
        free = _LONGEST_NAME - len(middle)
        weights = _shortened(summary.checkpoint, max(free - len(os.fsencode(summary.run)), _SHORTENED))
        return f"{_shortened(summary.run, free - len(os.fsencode(weights)))}{middle}{weights}"

    @property
    def is_named_final(self) -> bool:
        """Whether the final weights were evaluated, as its name says."""
        return _NAMED_FINAL.search(self.path.name) is not None

    def rename_final(self, step: str) -> None:
        """Rename it to say ``step`` instead of ``final``, though ``training.log`` has the old name.

        An extended run gets another evaluation that says ``final``.
        """
        if self.is_named_final:
            name = _NAMED_FINAL.sub(f"_model_{step}", self.path.name)
            self.path.rename(free_name(self.path.with_name(name)))

    @property
    def written(self) -> str:
        """When it was written, as its name says, so that the times of a copy do not matter; empty if it does not."""
        found = re.search(r".*_(\d{8}-\d{6})_model_", self.path.name)
        return found[1] if found else ""


def _shortened(name: str, most: int) -> str:
    """Leave out the middle of a name of more than ``most`` bytes: its end may be a step or a suffix."""
    encoded, half = os.fsencode(name), (most - len("...")) // 2
    if len(encoded) <= most:
        return name
    return "...".join(part.decode(errors="ignore") for part in (encoded[:half], encoded[-half:]))
