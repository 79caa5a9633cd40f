"""Facts about a run that are known only after it has started: the network, the data and the processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeInt

from cifar_dist.formatting import counted


@dataclass(frozen=True)
class RunFacts:
    """Facts for the banner, environment.json and the report, where those of an earlier version may be unknown.

    Attributes:
        model: its name.
        parameters: total number, trainable or not.
        dataset: its name.
        fingerprint: of the packed data (``Manifest.fingerprint``).
        classes: number of classes.
        image_shape: (height, width, channels).
        train_samples, val_samples: size of each split; 0 without validation.
        processes: number of training processes.
        wrapper: what synchronises the processes, for example ``DDP`` or ``DeepSpeed ZeRO-2``.
        device: device of each process, for example ``cuda (NVIDIA A100)`` or ``cpu``.
        precision: for example ``fp32``, or ``bf16 + cuDNN benchmark``.
        steps_per_epoch: optimizer steps.
        epochs: length of the complete run.
        max_steps: optimizer steps after which it is complete, if that is earlier; 0: none.
        threads: of each process on a CPU; 0 on a GPU.
    """

    model: str = ""
    parameters: NonNegativeInt = 0
    dataset: str = ""
    fingerprint: str = ""
    classes: NonNegativeInt = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    train_samples: NonNegativeInt = 0
    val_samples: NonNegativeInt = 0
    processes: NonNegativeInt = 0
    wrapper: str = ""
    device: str = ""
    precision: str = ""
    steps_per_epoch: NonNegativeInt = 0
    epochs: NonNegativeInt = 0
    max_steps: NonNegativeInt = 0
    threads: Annotated[int, Field(ge=0, lt=2**16)] = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in the complete run."""
        steps = self.steps_per_epoch * self.epochs
        return min(steps, self.max_steps or steps)

    def lines(self) -> list[tuple[str, str]]:
        """Return (label, text) lines for a reader."""
        height, width, channels = self.image_shape
        processes = "one process" if self.processes == 1 else f"{self.processes} processes"
        on = dict.fromkeys((processes, self.wrapper, f"{self.device}{self._threads()}", self.precision))
        return [
            ("model", f"{self.model}, {self.parameters:,} parameters"),
            (
                "data",
                f"{self.dataset} ({self.fingerprint}), {self.classes} classes of {height}x{width}x{channels}, "
                f"{self.train_samples:,} to train on, {self.val_samples:,} to validate",
            ),
            ("on", ", ".join(on)),  # the wrapper of one process is called that, too
            ("steps", self._steps()),
        ]

    def _threads(self) -> str:
        if not self.threads:
            return ""
        each = " each" if self.processes > 1 else ""
        return f" with {counted(self.threads, 'thread')}{each}"

    def _steps(self) -> str:
        epochs = f"{counted(self.epochs, 'epoch')} of {self.steps_per_epoch:,}"
        return f"{self.steps:,} {'of' if self.max_steps else '='} {epochs}"
