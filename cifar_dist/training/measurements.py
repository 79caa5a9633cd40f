"""What training steps measured. It stays on the device until it is read: no step waits for its own numbers."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from cifar_dist.distributed.ranks import PendingValues, Ranks
from cifar_dist.tracking.metrics import Record


@dataclass(frozen=True)
class StepMeasurements:
    """What one process measured in one training step.

    Attributes:
        step: optimizer steps done, this one included.
        epoch: of its samples, from 0.
        lr: learning rate.
        ids: int64 [n], this process's samples.
        losses: float32 [n], in nats.
        predicted: int64 [n], classes.
        sums: float64 [1, 3]: loss in nats, correct predictions, samples; padding counts as none. With ``train.parts``,
            float64 [parts, 3], 0 for those of other processes.
        grad_norm: scalar, of the global batch's gradients before clipping; None where they are not clipped.
    """

    step: int
    epoch: int
    lr: float
    ids: Tensor
    losses: Tensor
    predicted: Tensor
    sums: Tensor
    grad_norm: Tensor | None = None

    @property
    def finite(self) -> Tensor:
        """bool [n], whether the loss of each sample was finite."""
        return self.losses.isfinite()


class StepLog:
    """The measurements of the steps since they were last read, and the time that each step took.

    Args:
        ranks: the processes whose sums are added up.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._steps: list[tuple[StepMeasurements, float]] = []
        self._reading: deque[tuple[list[tuple[StepMeasurements, float]], PendingValues]] = deque()
        self._since = time.perf_counter()

    def add(self, measured: StepMeasurements) -> None:
        """Add a step that has just ended."""
        before, self._since = self._since, time.perf_counter()
        self._steps.append((measured, self._since - before))

    def restart_clock(self) -> None:
        """Leave what was done since the last step (an evaluation, a checkpoint) out of the training time."""
        self._since = time.perf_counter()

    def take(self, *, wait: bool = True) -> list[Record]:
        """The records of the steps since the last call, over all processes. Collective.

        Args:
            wait: for the device; otherwise a later call returns what has not arrived yet.
        """
        if self._steps:
            by_part = self._ranks.sum(torch.stack([measured.sums for measured, _ in self._steps], dim=1))
            sums = reduce(torch.add, by_part)  # in order: the result does not depend on the processes
            norms = [measured.grad_norm for measured, _ in self._steps if measured.grad_norm is not None]
            if norms:
                sums = torch.cat([sums, torch.stack(norms)[:, None]], dim=1)
            self._reading.append((self._steps, self._ranks.start_reading(sums)))
            self._steps = []
        records: list[Record] = []
        while self._reading and (wait or self._reading[0][1].arrived()):
            steps, arriving = self._reading.popleft()
            records += self._records(steps, arriving.wait().tolist())
        if wait and records:  # a device that the steps were queued for has finished them only now
            before, self._since = self._since, time.perf_counter()
            records[-1] = replace(records[-1], seconds=round(records[-1].seconds + self._since - before, 6))
        return records

    @staticmethod
    def _records(steps: list[tuple[StepMeasurements, float]], sums: list[list[float]]) -> list[Record]:
        return [
            Record(
                step=measured.step,
                epoch=measured.epoch,
                split="train",
                loss=loss / samples,
                accuracy=correct / samples,
                samples=round(samples),
                seconds=round(seconds, 6),
                lr=measured.lr,
                grad_norm=norm[0] if norm else None,
            )
            for (measured, seconds), (loss, correct, samples, *norm) in zip(steps, sums, strict=True)
        ]
