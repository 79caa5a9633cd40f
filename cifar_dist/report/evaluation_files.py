"""Read the files of an evaluation that are drawn."""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.errors import UserError
from cifar_dist.report.style import short_names
from cifar_dist.run_folder import EvaluationFolder, EvaluationSummary, read_summary

ImageOf = Callable[[int], NDArray[np.uint8]]
"""Maps the position of a sample in its split to its image, uint8 [height, width, channels]."""


@dataclass(frozen=True)
class Evaluation:
    """The contents of an evaluation folder.

    Attributes:
        folder: its path.
        summary: its summary.json.
        probabilities: float32 [N, classes].
        labels: int64 [N]; None if unknown.
        ids: what the source calls each sample, as in the CSV.
    """

    folder: Path
    summary: EvaluationSummary
    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    ids: list[int] | list[str]

    @property
    def predicted(self) -> NDArray[np.int64]:
        classes: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return classes

    @property
    def confidence(self) -> NDArray[np.float32]:
        highest: NDArray[np.float32] = self.probabilities.max(axis=1)
        return highest

    def name(self, label: int) -> str:
        """Return the class's name, shortened for a picture, or its number if it has none."""
        return self._short_names[label] if label < len(self._short_names) else str(label)

    def full_name(self, label: int) -> str:
        """Return the class's name, or its number if it has none."""
        names = self.summary.classes
        return names[label] if label < len(names) else str(label)

    @functools.cached_property
    def _short_names(self) -> list[str]:
        return short_names(self.summary.classes, 14)


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation folder.

    Raises:
        UserError: a file is missing or damaged.
    """
    paths = EvaluationFolder(folder)
    try:
        with np.load(paths.probabilities, allow_pickle=False) as arrays:
            probabilities = arrays["probabilities"]
            labels = arrays["labels"] if "labels" in arrays.files else None
            ids = arrays["ids"] if "ids" in arrays.files else np.arange(len(probabilities))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{folder} is not a complete evaluation: {error}; run cifar-dist evaluate again") from None
    summary = read_summary(paths.summary)
    if summary is None or probabilities.ndim != 2 or len(ids) != len(probabilities):
        raise UserError(f"{folder} is not an evaluation; run cifar-dist evaluate again")
    return Evaluation(folder, summary, probabilities, labels, ids.tolist())
