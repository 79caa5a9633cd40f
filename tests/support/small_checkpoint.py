"""A small checkpoint of any step, and whether one that was found is it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from cifar_dist import checkpoint
from cifar_dist.checkpoint import MARKER, MODEL, OPTIMIZER, STATE
from cifar_dist.files import sha256

PARTS = (MODEL, OPTIMIZER, STATE, MARKER)


def weights(step: int) -> dict[str, Tensor]:
    return {"conv.weight": torch.arange(6.0).reshape(2, 3) * step, "bn.num_batches_tracked": torch.tensor(step)}


def optimizer(step: int) -> dict[str, Tensor]:
    return {"momentum_buffer/conv.weight": torch.full((2, 3), 1 / (step + 1))}


def save(folder: Path, step: int, *, best: bool = False, **state: object) -> Path:
    content = {"step": step, "evaluated": 1, "val_accuracy": 0.5, "best": 0.5, "scaler": {}, **state}
    return checkpoint.save(folder, weights(step), optimizer(step), content, best=best)


def holds(path: Path, step: int) -> bool:
    loaded = checkpoint.load(path)
    return (
        loaded.step == step
        and all(torch.equal(loaded.model[name], value) for name, value in weights(step).items())
        and all(torch.equal(loaded.optimizer[name], value) for name, value in optimizer(step).items())
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sign(path: Path) -> None:
    """Make the marker agree with what is there: what someone who forges a checkpoint would do."""
    parts = {part: path / part for part in (MODEL, OPTIMIZER, STATE)}
    files = {part: {"bytes": file.stat().st_size, "sha256": sha256(file)} for part, file in parts.items()}
    (path / MARKER).write_text(json.dumps({"version": 1, "files": files}))
