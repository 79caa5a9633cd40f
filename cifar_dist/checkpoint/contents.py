"""The contents of a checkpoint: tensors by name, and the state of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field
from torch import Tensor

from cifar_dist.errors import UserError

Count = Annotated[int, Field(ge=0, lt=10**12)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class CheckpointError(UserError):
    """A damaged checkpoint; the message names the file and the reason."""


class NoCheckpointLeftError(UserError):
    """None of the checkpoints that a run had can be continued from."""


class NewerCheckpointError(UserError):
    """A checkpoint that a newer version of this program wrote. It is intact, so it is never set aside."""


@dataclass(frozen=True)
class TrainState:
    """The progress of a run: ``state.json``. A file with a missing, unknown or mistyped field is rejected.

    Attributes:
        step: optimizer steps done.
        epochs_evaluated: complete epochs, including their evaluation if one was due. One less than the epochs trained
            if the checkpoint was saved between an epoch's last step and its evaluation.
        val_accuracy: fraction correct at the last evaluation on the validation split; None before the first.
        best_val_accuracy: the highest of those; None before the first, and after its checkpoint was lost.
        is_best: whether this checkpoint holds the weights that reached ``best_val_accuracy``.
        loss_scaler: state of the fp16 loss scaler; empty without one.
    """

    step: Count
    epochs_evaluated: Count
    val_accuracy: Fraction | None
    best_val_accuracy: Fraction | None
    is_best: bool
    loss_scaler: Mapping[str, int | float]

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid"}


NEW_RUN: Final = TrainState(
    step=0, epochs_evaluated=0, val_accuracy=None, best_val_accuracy=None, is_best=False, loss_scaler={}
)
"""The state of a run before its first step."""


@dataclass(frozen=True)
class Averaged:
    """A running average of the weights that has begun.

    Attributes:
        weights: weights and buffers by name, as they are evaluated: recalibrated if the run asks for it.
        statistics: the average's own floating-point buffers, which recalibration replaces in ``weights``. Averaging
            resumes exactly from them.
    """

    weights: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]

    def running(self) -> dict[str, Tensor]:
        """Return the state of the average itself: its floating-point tensors by name."""
        floating = {name: value for name, value in self.weights.items() if value.is_floating_point()}
        return floating | dict(self.statistics)


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint: full tensors on the CPU, whichever engine sharded them.

    Attributes:
        weights: weights and buffers by name, as training continues with them.
        averaged: None without an average, and before it begins.
        optimizer: optimizer state as ``KEY/PARAMETER``.
    """

    weights: Mapping[str, Tensor]
    averaged: Averaged | None
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The data that a run needs to resume.

    Attributes:
        tensors: see :class:`Tensors`.
        state: see :class:`TrainState`.
        path: the folder that it was loaded from.
    """

    tensors: Tensors
    state: TrainState
    path: Path
