"""A torch profiler trace of some training steps, with the phases of training by name: ``train.profile``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

from cifar_dist.errors import StorageError
from cifar_dist.files.atomic import write_atomic
from cifar_dist.tracking.tracker import AnyTracker
from cifar_dist.training.phases import PhaseClock

_WARM_UP: Final = 3  # steps that compile, choose algorithms and fill caches


class StepProfiler:
    """Profiles this process, and writes one Chrome trace. The profiler only observes, so no weight changes.

    Args:
        folder: for the trace; created if it does not exist.
        steps: to profile; 0 for none. Fewer if the run ends before.
        clock: its phases become ranges in the trace.
        tracker: says where the trace is, or that it could not be written.
        begin, end: steps done before the first and after the last step of this process.
    """

    def __init__(
        self, folder: Path, steps: int, clock: PhaseClock, tracker: AnyTracker, *, begin: int, end: int
    ) -> None:
        self._folder, self._clock, self._tracker = folder, clock, tracker
        self._first = max(begin, min(begin + _WARM_UP, end - steps))
        self._last = min(self._first + steps, end)
        self._profile: profile | None = None
        if self._first == begin and self._last > begin:
            self._start()

    def after_step(self, step: int) -> None:
        """Start or end the profile, if ``step`` steps done are where it does."""
        if self._profile is None and self._first == step < self._last:
            self._start()
        elif self._profile is not None and step == self._last:
            self._write(self._profile)
            self._profile = None

    def close(self, step: int) -> None:
        """Write what is profiled so far: the run ends after ``step`` steps."""
        if self._profile is not None:
            self._last = step
            self.after_step(step)

    def _start(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else stderr has that it starts, and that a CPU is no GPU
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(activities=activities)
        self._profile.start()
        self._clock.names_ranges = True

    def _write(self, running: profile) -> None:
        self._clock.names_ranges = False
        running.stop()
        target = self._folder / f"steps-{self._first + 1}-to-{self._last}.json.gz"
        try:
            with tempfile.TemporaryDirectory() as scratch:
                trace = Path(scratch, target.name)
                running.export_chrome_trace(str(trace))
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomic(target, trace.read_bytes())
        except OSError as error:  # of the disk; the run does not depend on it
            self._tracker.warn(f"the profile could not be written: {StorageError.of(error, target)}")
        else:
            self._tracker.say(f"profile of steps {self._first + 1:,} to {self._last:,}: {target}")
