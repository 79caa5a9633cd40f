"""What each epoch takes: its time by phase, the memory, and the part of the device's arithmetic that it uses."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from functools import cached_property

import torch

from cifar_dist.distributed.engine import Engine
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.usage import Usage
from cifar_dist.training.device_speed import measure_ceiling, operations_per_image
from cifar_dist.training.phases import PhaseClock
from cifar_dist.training.setup import TrainingSetup

_SHORTEST = 1.0  # seconds of training whose arithmetic is rated: less is noise, and the ceiling would take a part of it
_RATING_SHARE = 0.01  # of an epoch, that measuring the ceiling again may take
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of getrusage, in bytes


class UsageMeter:
    """Collects what rank 0 used since the last :meth:`take`. No method is collective.

    Args:
        setup: the parts of the run.
        engine: its device and precision.
        clock: of the learner.
    """

    def __init__(self, setup: TrainingSetup, engine: Engine, clock: PhaseClock) -> None:
        self._setup, self._ranks, self._clock = setup, engine.ranks, clock
        self._dtype = engine.precision.of_products
        self._samples, self._seconds = 0, 0.0
        self._ceiling, self._measuring = 0.0, 0.0  # operations a second; seconds that it took to measure them

    def add(self, records: Sequence[Record]) -> None:
        """Count training steps whose measurements have arrived."""
        self._samples += sum(record.samples for record in records)
        self._seconds += sum(record.seconds for record in records)
        self._clock.read()

    def take(self) -> Usage:
        """Return what was used since the last call, over all processes where it is arithmetic."""
        usage = Usage.of(self._clock.take(), self._peak_bytes(), self._utilisation())
        self._samples, self._seconds = 0, 0.0
        if self._ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._ranks.device)
        return usage

    def _utilisation(self) -> float | None:
        if not self._ranks.is_main or self._seconds < _SHORTEST or self._operations is None:
            return None
        self._measure_ceiling()
        rate = self._operations * self._samples / self._seconds / self._ranks.world_size
        self._ceiling = max(self._ceiling, rate)  # which was measured beside other programs, or of slower operations
        return rate / self._ceiling

    def _peak_bytes(self) -> int:
        if self._ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._ranks.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT

    @cached_property
    def _operations(self) -> float | None:
        found = operations_per_image(self._setup.blueprint, self._setup.manifest.shape)
        passes = 2 if self._setup.config.optim.sam_rho else 1
        return found and passes * found

    def _measure_ceiling(self) -> None:
        """Measure it again where that takes little of an epoch: other programs may have disturbed an earlier one."""
        if self._ceiling and self._measuring > _RATING_SHARE * self._seconds:
            return
        begin = time.perf_counter()
        self._ceiling = max(self._ceiling, measure_ceiling(self._ranks.device, self._dtype))
        self._measuring = time.perf_counter() - begin
