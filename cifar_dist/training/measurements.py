"""What each step measured, kept on the device until someone looks: no step waits for its own numbers."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from cifar_dist.tracking.metrics import Record


class StepMeter:
    """Sums of the steps since the last look.

    Args:
        device: where the sums are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: list[Tensor] = []
        self._steps: list[tuple[int, int, float, float]] = []
        self._since = time.perf_counter()

    def start(self) -> None:
        """Begin a step's sums: loss in nats, right answers, samples."""
        self._sums.append(torch.zeros(3, dtype=torch.float64, device=self._device))

    def add(self, losses: Tensor, right: Tensor, weight: Tensor) -> None:
        """Add one accumulation step: float32 [n], bool [n], float32 [n]."""
        self._sums[-1] += torch.stack([(losses.detach() * weight).sum(), (right * weight).sum(), weight.sum()])

    def end(self, *, step: int, epoch: int, lr: float) -> None:
        """Note which step it was; ``step`` counts optimizer steps done."""
        before, self._since = self._since, time.perf_counter()
        self._steps.append((step, epoch, lr, self._since - before))

    def restart_clock(self) -> None:
        """Leave what was done since the last step (an evaluation, a checkpoint) out of the training time."""
        self._since = time.perf_counter()

    def take(self, total: Callable[[Tensor], Tensor]) -> list[Record]:
        """The records of the steps since the last look; ``total`` sums float64 [steps, 3] over all processes."""
        if not self._steps:
            return []
        sums, steps = total(torch.stack(self._sums)).tolist(), self._steps
        self._sums, self._steps = [], []
        return [
            Record(step, epoch, "train", loss / samples, right / samples, round(samples), round(seconds, 6), lr)
            for (step, epoch, lr, seconds), (loss, right, samples) in zip(steps, sums, strict=True)
        ]
