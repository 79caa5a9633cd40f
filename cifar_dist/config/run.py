"""Settings of the run, the training loop, evaluation, checkpoints and tracking."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from cifar_dist.config import plugins
from cifar_dist.config.choice import Choice
from cifar_dist.config.section import Section, UserPath, require

# An ASCII name that is safe as a folder name on any file system; no leading dot or dash.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,127}")


@dataclass(frozen=True)
class RunConfig(Section):
    """The run: its name, folder, seed and number of processes."""

    name: str = ""
    """Name of the run folder; training again with the same name resumes. Empty: the recipe's name."""
    dir: UserPath = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seed of all randomness: weights, order, augmentation, dropout."""
    fresh: bool = False
    """Refuse to start if the run folder already exists."""
    processes: int = 0
    """Required number of processes; 0 accepts any number that the launcher starts."""

    def __post_init__(self) -> None:
        require(
            not self.name or _NAME.fullmatch(self.name) is not None,
            f"name {self.name!r} must be 1 to 128 of A-Z a-z 0-9 _ . + = - and not start with . + = or -",
        )
        require(0 <= self.seed < 2**31, f"seed {self.seed} must be between 0 and 2147483647")
        require(self.processes >= 0, f"processes {self.processes} must not be negative")


@dataclass(frozen=True)
class TrainConfig(Section):
    """The training loop."""

    epochs: int = 24
    """Passes over the training split."""
    batch_size: int = 512
    """Global batch: samples in one optimizer step, over all processes and accumulation steps."""
    accumulate: int = 1
    """Gradient accumulation: forward and backward passes per optimizer step."""
    parts: int = 0
    """Micro-batches of a global batch, over all processes, summed in one fixed order: the same weights, bit for bit, on
    any number of processes up to it. 0: one for each process and accumulation step."""
    precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    """Automatic mixed precision: none, bfloat16, float16 with loss scaling (GPU), or auto: bfloat16 if the device
    supports it in hardware, else none."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes."""
    channels_last: bool = False
    """Keep images and convolutions in the NHWC memory layout."""
    compile: bool = False
    """Compile the model with ``torch.compile``."""
    sync_batchnorm: bool = False
    """Normalise with the batch statistics of all processes, not of each: for few images per process."""
    threads: int = 0
    """CPU threads per process; 0 divides the machine's cores among its processes."""
    engine: str = "auto"
    """How processes synchronise: auto takes the launch config's engine (DDP, DeepSpeed, FSDP); or
    ``path/to/file.py:Attribute`` or ``package.module:Attribute``."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs {self.epochs} must be at least 1")
        require(self.batch_size >= 1, f"batch_size {self.batch_size} must be at least 1")
        require(self.accumulate >= 1, f"accumulate {self.accumulate} must be at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}",
        )
        require(self.parts >= 0, f"parts {self.parts} must not be negative")
        require(
            self.parts == 0 or self.accumulate == 1,
            f"accumulate {self.accumulate} has no effect beside parts {self.parts}: each part is a backward pass; "
            "remove one",
        )
        require(
            self.parts == 0 or self.batch_size % self.parts == 0,
            f"batch_size {self.batch_size} is not divisible by parts {self.parts}",
        )
        require(0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing} must be in [0, 1)")
        require(self.threads >= 0, f"threads {self.threads} must not be negative")
        require(
            self.engine == "auto" or plugins.is_spec(self.engine),
            f"engine {self.engine!r} must be auto or path/to/file.py:Attribute; launch/*.yaml chooses a built-in one",
        )


@dataclass(frozen=True)
class EvalConfig(Section):
    """When and how to evaluate."""

    every: int = 1
    """Epochs between evaluations on the validation split; the last epoch is always evaluated."""
    batch_size: int = 500
    """Images in one forward pass. The split is divided into batches before these are distributed over processes, so
    predictions do not depend on the number of processes."""
    tta: str = "mirror"
    """Test-time augmentation of the final evaluation: 0 (none), mirror (2 views), translate (6), or N random views."""
    split: str = "test"
    """Split of the final evaluation."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every {self.every} must be at least 1")
        require(self.batch_size >= 1, f"batch_size {self.batch_size} must be at least 1")
        require(
            self.tta in ("mirror", "translate") or (self.tta.isdecimal() and int(self.tta) <= 1024),
            f"tta {self.tta!r} must be 0, mirror, translate, or a number of random views up to 1024",
        )


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """When to save checkpoints and how many to keep."""

    every: int = 1
    """Epochs between checkpoints; the end of training always saves one too."""
    every_steps: int = 0
    """Optimizer steps between checkpoints, in addition to those of ``every``; 0 for none."""
    keep: int = 2
    """Number of newest checkpoints to keep, in addition to the best one."""
    on_error: Literal["warn", "stop"] = "warn"
    """If the run folder cannot be written, for example because the disk is full: warn, continue and try again, or stop
    at once. The final weights must be written."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every {self.every} must be at least 1")
        require(self.every_steps >= 0, f"every_steps {self.every_steps} must not be negative")
        require(self.keep >= 1, f"keep {self.keep} must be at least 1")


@dataclass(frozen=True)
class TrackingConfig(Choice):
    """Where to send metrics in addition to the run folder."""

    key: ClassVar[str] = "tracking"
    picked_by: ClassVar[str] = "wandb"
    variants: ClassVar[dict[str, type[TrackingConfig]]] = {}

    wandb: str = "disabled"
    """Mirror the run to Weights & Biases from rank 0: disabled, offline or online; a failure never stops the run."""
    every: int = 10
    """Steps between updates of the console and metrics.jsonl; the file has a line for every step, whatever the
    interval."""
    mirrors: tuple[str, ...] = ()
    """Other trackers that mirror the run, as ``path/to/file.py:Attribute`` or ``package.module:Attribute``. Each is a
    class that takes the run folder, the config and the run's facts; a failure never stops the run."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every {self.every} must be at least 1")


@dataclass(frozen=True)
class NoMirrorConfig(TrackingConfig):
    """Metrics are written to the run folder only."""

    wandb: str = "disabled"


@dataclass(frozen=True)
class WandbConfig(TrackingConfig):
    """Metrics are also sent to Weights & Biases: now (online), or when the run is synchronised later (offline)."""

    wandb: Literal["offline", "online"] = "online"
    project: str = "cifar-dist"
    """W&B project."""
    entity: str = ""
    """W&B user or team; empty: the account's default."""


TrackingConfig.variants.update(disabled=NoMirrorConfig, offline=WandbConfig, online=WandbConfig)
