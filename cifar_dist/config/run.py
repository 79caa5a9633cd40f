"""Settings of the run, the training loop, evaluation, checkpoints and tracking."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cifar_dist.config import plugins
from cifar_dist.config.choice import Choice
from cifar_dist.config.section import BooleanMeans, Section, UserPath, require

# An ASCII name that is safe as a folder name on any file system; no leading dot or dash.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,127}")
_NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
_DURATION = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit in "dhms"), re.ASCII)


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
    max_time: str = ""
    """Limit on wall time, such as 45m, 2h or 1h30m, or auto for that of the Slurm job; the run saves before it and
    exits with 75. Empty: no limit."""
    from_: str = ""
    """Branch: begin with a checkpoint of another run, its weights, optimizer state, averages and place in the data.
    RUN, or RUN@STEP, RUN@best; RUN is a name in ``run.dir`` or a folder."""
    from_other_data: bool = False
    """Accept another dataset than that of ``run.from``, with the same classes and as many steps in an epoch."""
    join_timeout: int = 600
    """Seconds to wait for all processes and machines of a job to join; who is missing is reported every 10 s."""
    collective_timeout: int = 1800
    """Seconds that a process waits for the others in one exchange, from when they have joined; then the job fails. A
    checkpoint or an evaluation that one process writes alone must be done by then."""
    stall_timeout: int = 300
    """A job in which no step ends for so many seconds is ended, with exit code 124 and the stacks of its processes in
    the run folder; 0 never ends it. The first step, the first batch of an evaluation and a checkpoint have at least
    ``collective_timeout``, unless a process on the same machine is stopped."""
    stall_factor: float = 20.0
    """Where steps take long, the job is ended after this multiple of the usual time of a step instead."""

    def __post_init__(self) -> None:
        # A command with an unset variable, as --run.dir "$OUT", would write into the working directory.
        require(bool(self.dir), 'dir is empty; name a folder, or use "." for the working directory')
        require(not self.from_other_data or bool(self.from_), "from_other_data has no effect without from; remove it")
        if self.max_time not in ("", "auto"):
            seconds_of(self.max_time)
        require(
            not self.name or is_run_name(self.name),
            f"name {self.name!r} must be 1 to 128 of A-Z a-z 0-9 _ . + = - and not start with . + = or -",
        )
        require(0 <= self.seed < 2**31, f"seed {self.seed} must be between 0 and 2147483647")
        require(self.processes >= 0, f"processes {self.processes} must not be negative")
        require(self.join_timeout >= 1, f"join_timeout {self.join_timeout} must be at least 1")
        require(self.collective_timeout >= 1, f"collective_timeout {self.collective_timeout} must be at least 1")
        require(self.stall_timeout >= 0, f"stall_timeout {self.stall_timeout} must not be negative")
        require(self.stall_factor >= 1, f"stall_factor {self.stall_factor} must be at least 1")


def is_run_name(name: str) -> bool:
    """Whether a run folder may have this name."""
    return _NAME.fullmatch(name) is not None


def seconds_of(text: str) -> float:
    """Parse a duration such as ``90s``, ``45m``, ``1.5h`` or ``1d12h30m``.

    Raises:
        ValueError: it is not one; the message begins with ``max_time``.
    """
    match = _DURATION.fullmatch(text)
    counts = map(float, match.groups("0") if match else ())
    seconds = sum(count * unit for count, unit in zip(counts, (86400, 3600, 60, 1), strict=False))
    require(seconds > 0, f"max_time {text!r} must be a time such as 45m, 2h or 1h30m, or auto")
    return seconds


@dataclass(frozen=True)
class TrainConfig(Section):
    """The training loop."""

    epochs: int = 24
    """Passes over the training split."""
    max_steps: int = 0
    """Optimizer steps after which the run is complete, if ``epochs`` are more; learning rates are those of ``epochs``.
    0: no limit."""
    patience: int = 0
    """Early stopping: the run is complete after so many evaluations in a row on the validation split without an
    improvement of ``monitor``. 0: never."""
    monitor: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    """What must improve: val_accuracy, whose maximum is best, or val_loss, whose minimum is."""
    min_delta: float = 0.0
    """A smaller change is no improvement: a fraction of the images, or nats."""
    batch_size: int = 512
    """Global batch: samples in one optimizer step, over all processes and accumulation steps."""
    accumulate: int = 1
    """Gradient accumulation: forward and backward passes per optimizer step."""
    even_batches: bool = False
    """Refuse a ``batch_size`` that does not split evenly over processes and accumulation steps. Otherwise, repeated
    samples with weight 0 fill each batch."""
    parts: int = 0
    """Micro-batches of a global batch, over all processes, summed in one fixed order: the same weights, bit for bit, on
    any number of processes up to it. 0: one for each process and accumulation step."""
    precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    """Automatic mixed precision: none, bfloat16, float16 with loss scaling (GPU), or auto: bfloat16 if it is
    faster on the device, else none."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes."""
    channels_last: bool = False
    """Keep images and convolutions in the NHWC memory layout."""
    compile: Annotated[
        Literal["no", "default", "reduce-overhead", "max-autotune"], BooleanMeans(yes="default", no="no")
    ] = "no"
    """Compile the network with ``torch.compile`` in one of its modes: default; reduce-overhead, with CUDA graphs;
    max-autotune, which also times kernels and takes minutes to compile. true means default, and false means no. An
    epoch's smaller last batch is not compiled."""
    compress_gradients: Literal["no", "fp16", "bf16"] = "no"
    """Send gradients between processes as float16 or bfloat16: half the traffic, and sums that are rounded to it."""
    sync_batchnorm: bool = False
    """Normalise with the batch statistics of all processes, not of each: for few images per process."""
    tf32: bool = False
    """Compute fp32 convolutions and matrix products on a GPU in TensorFloat-32: 10 bits of mantissa, and many times
    faster."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its algorithms for each new shape and take the fastest, which may differ from run to run (GPU)."""
    deterministic: bool = False
    """Use deterministic algorithms only: the same seed on the same device gives the same bits. Slower on a GPU."""
    threads: int = 0
    """CPU threads per process. 0: the cores that no other program uses are divided among the processes, and small
    networks take fewer; the number is recorded, and a resume keeps it. Another number rounds differently."""
    profile: int = 0
    """Write a torch profiler trace of so many steps, after the first three, into the run folder's ``profile``, for
    chrome://tracing or ui.perfetto.dev. 0: none."""
    engine: str = "auto"
    """How processes synchronise: auto takes the launch config's engine (DDP, DeepSpeed, FSDP); or
    ``path/to/file.py:Attribute`` or ``package.module:Attribute``."""

    def last_step(self, steps_per_epoch: int) -> int:
        """Return the optimizer steps after which a run is complete, unless it stops early."""
        return min(self.epochs * steps_per_epoch, self.max_steps or sys.maxsize)

    def parts_of_batch(self, world_size: int) -> int:
        """Return how many micro-batches a global batch is split into, over all processes."""
        return self.parts or world_size * self.accumulate

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs {self.epochs} must be at least 1")
        require(self.max_steps >= 0, f"max_steps {self.max_steps} must not be negative")
        require(self.patience >= 0, f"patience {self.patience} must not be negative")
        require(self.min_delta >= 0, f"min_delta {self.min_delta} must not be negative")
        for key in () if self.patience else ("monitor", "min_delta"):
            unset = getattr(self, key) == getattr(type(self), key)
            require(unset, f"{key} has no effect without patience; remove it, or set --train.patience")
        require(self.batch_size >= 1, f"batch_size {self.batch_size} must be at least 1")
        require(self.accumulate >= 1, f"accumulate {self.accumulate} must be at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}",
        )
        require(0 <= self.parts <= 65536, f"parts {self.parts} must be between 0 and 65536")
        require(
            self.parts == 0 or self.accumulate == 1,
            f"accumulate {self.accumulate} has no effect beside parts {self.parts}: each part is a backward pass; "
            "remove one",
        )
        require(
            self.parts == 0 or self.batch_size % self.parts == 0,
            f"batch_size {self.batch_size} is not divisible by parts {self.parts}",
        )
        require(
            not (self.deterministic and self.cudnn_benchmark),
            "cudnn_benchmark takes another algorithm from run to run, and deterministic rules that out; remove one",
        )
        require(0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing} must be in [0, 1)")
        require(0 <= self.threads <= 1024, f"threads {self.threads} must be between 0 and 1024")
        require(self.profile >= 0, f"profile {self.profile} must not be negative")
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
    tta_below: float = 1.0
    """Give views only to images of which the network is unsure: whose most probable class has, by the image itself, a
    probability below this. 1: all images."""
    split: Literal["train", "val", "test"] = "test"
    """Split of the final evaluation."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every {self.every} must be at least 1")
        require(self.batch_size >= 1, f"batch_size {self.batch_size} must be at least 1")
        require(
            self.tta in ("mirror", "translate") or (self.tta.isdecimal() and int(self.tta) <= 1024),
            f"tta {self.tta!r} must be 0, mirror, translate, or a number of random views up to 1024",
        )
        require(0 < self.tta_below <= 1, f"tta_below {self.tta_below} must be above 0 and at most 1")
        require(
            self.tta_below == 1 or self.tta not in ("0", "1"),
            f'tta_below {self.tta_below} has no effect with tta = "{self.tta}"; remove it, or use tta = "translate"',
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
    background: bool = True
    """Write checkpoints in a thread while training continues; it waits for a copy of the state in the main memory only.
    The last one, and that of a request to stop, are complete before the run ends."""
    sharded: Annotated[Literal["auto", "yes", "no"], BooleanMeans(yes="yes", no="no")] = "auto"
    """Let each process write a part of a checkpoint, so that none needs memory for a full copy: yes (or true), no (or
    false), or auto: with an engine that shards weights or optimizer state, from 100 million parameters."""
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
    project: str = ""
    """W&B project; empty: that of ``WANDB_PROJECT``, else cifar-dist."""
    entity: str = ""
    """W&B user or team; empty: that of ``WANDB_ENTITY``, else the account's default."""


TrackingConfig.variants.update(disabled=NoMirrorConfig, offline=WandbConfig, online=WandbConfig)
