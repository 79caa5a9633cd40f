"""A small checkpoint of any step, and a check that a loaded one equals it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cifar_dist import checkpoint
from cifar_dist.checkpoint import Averaged, Tensors, TrainState
from cifar_dist.checkpoint.marker import AVERAGED, AVERAGED_STATISTICS, MARKER, OPTIMIZER, STATE, VERSION, WEIGHTS
from cifar_dist.checkpoint.parts import UnfinishedCheckpoint, write_part
from cifar_dist.distributed.host_copies import Deal, copy_to_host
from cifar_dist.files.checksums import sha256

CONTENT = (WEIGHTS, AVERAGED, AVERAGED_STATISTICS, OPTIMIZER, STATE)
PARTS = (*CONTENT, MARKER)


def weights(step: int) -> dict[str, Tensor]:
    return {"conv.weight": torch.arange(6.0).reshape(2, 3) * step, "bn.num_batches_tracked": torch.tensor(step)}


def averaged(step: int) -> Averaged:
    return Averaged(
        weights={name: value // 2 for name, value in weights(step).items()},
        statistics={"bn.running_mean": torch.full((3,), float(step))},
    )


def optimizer(step: int) -> dict[str, Tensor]:
    return {"momentum_buffer/conv.weight": torch.full((2, 3), 1 / (step + 1))}


def tensors(step: int) -> Tensors:
    return Tensors(weights(step), averaged(step), optimizer(step))


def dealt(all_tensors: Tensors, deal: Deal) -> Tensors:
    """The tensors of one process of those that write a checkpoint in parts."""

    def own(tensors_of_all: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return copy_to_host(tensors_of_all.items(), deal)

    weights, average = own(all_tensors.weights), all_tensors.averaged
    own_average = average and Averaged(own(average.weights), own(average.statistics))
    return Tensors(weights, own_average, own(all_tensors.optimizer))


def state(step: int, *, best: bool = False) -> TrainState:
    return TrainState(
        step=step, epochs_evaluated=1, val_accuracy=0.5, best_val_accuracy=0.5, is_best=best, loss_scaler={}
    )


def save(folder: Path, step: int, *, best: bool = False) -> Path:
    return checkpoint.save(folder, tensors(step), state(step, best=best))


def save_in_parts(folder: Path, step: int, parts: int, *, best: bool = False) -> Path:
    """Save what :func:`save` does, as so many processes would write it."""
    unfinished = UnfinishedCheckpoint(folder, state(step, best=best))
    deals = [Deal(rank, parts) for rank in range(parts)]
    written = [
        write_part(unfinished.path, dealt(tensors(step), deal), rank + 1, parts) for rank, deal in enumerate(deals)
    ]
    return unfinished.complete(written)


def holds(path: Path, step: int, saved: Tensors | None = None) -> bool:
    """Whether a checkpoint is that of a step, with these tensors or with those of :func:`tensors`."""
    loaded, saved = checkpoint.load(path), saved or tensors(step)
    pairs = [(loaded.tensors.weights, saved.weights), (loaded.tensors.optimizer, saved.optimizer)]
    if loaded.tensors.averaged is not None and saved.averaged is not None:
        averages = loaded.tensors.averaged, saved.averaged
        pairs += [(averages[0].weights, averages[1].weights), (averages[0].statistics, averages[1].statistics)]
    return (
        loaded.state.step == step
        and (loaded.tensors.averaged is None) == (saved.averaged is None)
        and all(
            found.keys() == wanted.keys() and all(torch.equal(found[name], value) for name, value in wanted.items())
            for found, wanted in pairs
        )
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sign(path: Path, *, version: int = VERSION) -> None:
    """Make the marker agree with the existing files, as someone who forges a checkpoint would."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in path.iterdir()
        if file.name != MARKER
    }
    (path / MARKER).write_text(json.dumps({"version": version, "files": files}))
