"""Read checkpoints of version 1 of the layout.

Its ``model.safetensors`` contained the weights to evaluate. With an average, the trained weights were in
``optimizer.safetensors`` as ``weights/NAME``, and the average itself, once it had begun, as ``average/NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from cifar_dist.checkpoint.contents import Averaged, Count, Fraction, Tensors, TrainState

_WEIGHTS, _AVERAGE = "weights/", "average/"


class _State(BaseModel, strict=True, extra="ignore"):
    """``state.json`` of version 1."""

    version: Literal[1]
    step: Count
    evaluated: Count
    val_accuracy: Fraction | None
    best: Annotated[float, Field(ge=-1, le=1)]  # -1 before the first evaluation
    scaler: dict[str, int | float]
    is_best: bool


def parse_state(text: bytes) -> TrainState:
    """Parse the ``state.json`` of a version 1 checkpoint.

    Raises:
        pydantic.ValidationError: anything else.
    """
    old = _State.model_validate_json(text)
    return TrainState(
        step=old.step,
        epochs_evaluated=old.evaluated,
        val_accuracy=old.val_accuracy,
        best_val_accuracy=old.best if old.best >= 0 else None,
        is_best=old.is_best,
        loss_scaler=old.scaler,
    )


def convert_tensors(model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Tensors:
    """Convert the tensors of version 1 to the current layout."""
    average = _below(optimizer, _AVERAGE)
    own = {key: value for key, value in optimizer.items() if not key.startswith((_WEIGHTS, _AVERAGE))}
    return Tensors(
        weights=_below(optimizer, _WEIGHTS) or model,
        averaged=Averaged(model, average) if average else None,
        optimizer=own,
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
