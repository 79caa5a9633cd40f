"""A process that has no memory left ends with one line: what it was doing, and what to type instead."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cifar_dist.config import TrainConfig
from cifar_dist.errors import OutOfMemoryError, TrainingFailedError
from cifar_dist.formatting import counted
from cifar_dist.launch.reporter import is_first

_MESSAGES = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED", "_ALLOCATION_FAILED")
"""Of torch's allocator on a CPU; of CUDA and NCCL; of cuBLAS; of cuDNN 9: each raises a bare RuntimeError."""


@contextmanager
def explained(describe: Callable[[], str]) -> Iterator[None]:
    """Raise an error of the allocator as :class:`OutOfMemoryError`.

    Args:
        describe: completes "rank 0 ran out of memory": what it was doing; what to use instead.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        request = f" (it asked for {found[1]})" if found else ""
        rank = os.environ.get("RANK", "0")
        raise OutOfMemoryError(
            f"rank {rank} ran out of memory{request} {describe()}", reports=is_first("out of memory")
        ) from error


def describe_training(train: TrainConfig, engine: str, world_size: int) -> str:
    """Name the batch and the engine of a training step, and settings of which it needs less memory."""
    size, parts = train.batch_size, train.parts_of_batch(world_size)
    ways = ways_to_smaller_steps(train, engine, world_size, " with another --run.name")
    return f"in a training step of {counted(size, 'image')}, {size // parts:,} at once, with {engine}; use {ways}"


def ways_to_smaller_steps(train: TrainConfig, engine: str, world_size: int, otherwise: str = "") -> str:
    """Name settings with which a training step needs less memory; ``otherwise`` follows those that change results."""
    size, parts = train.batch_size, train.parts_of_batch(world_size)
    finer = next((more for more in range(parts + 1, size + 1) if size % more == 0 and more % world_size == 0), None)
    changes = []
    if finer is not None:
        changes.append(f"--train.parts {finer}" if train.parts else f"--train.accumulate {finer // world_size}")
    if train.precision == "no" and torch.cuda.is_available():
        changes.append("--train.precision auto")
    ways = [f"{' or '.join(changes)}{otherwise}"] if changes else []
    if engine == "DDP":
        ways.append("launch/zero3.yaml, which shards weights and optimizer state")
    return ", or ".join(ways or ["a smaller network"])


def describe_evaluation(batch_size: int) -> str:
    """Name the batch of an evaluation, and a smaller one."""
    way = f"eval.batch_size {batch_size // 2}" if batch_size > 1 else "a smaller network"
    return f"in an evaluation, of {counted(batch_size, 'image')} at once; use {way}"


def describe_preparation(resident_mb: int, engine: str) -> str:
    """Name what needs memory besides training steps and evaluations, and what needs less."""
    ways = ["--data.resident_mb 0", "a smaller network"] if resident_mb else ["a smaller network"]
    return f"outside training steps and evaluations, with {engine}; use {', or '.join(ways)}"


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error is the allocator's, and was not explained before."""
    if isinstance(error, TrainingFailedError):  # explained already
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in _MESSAGES)
