"""Which weights of a run are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CheckpointRef:
    """The weights of a run that are evaluated.

    Attributes:
        files: one file, of safetensors or saved by torch, or its parts.
        name: their name in folder names: ``final``, the checkpoint's, for example ``step-00000345``, with its run in
            front if that is another one (``other-step-00000345``), or the file's.
        step: optimizer steps done; None if unknown.
        val_accuracy: fraction, as measured during training; None if it was not.
    """

    files: tuple[Path, ...]
    name: str
    step: int | None
    val_accuracy: float | None

    @property
    def path(self) -> Path:
        """The file of the weights, or the folder with its parts."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent
