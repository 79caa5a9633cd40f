"""Settings of the training loop."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from cifar_dist.config import plugins
from cifar_dist.config.section import BooleanMeans, Section, require, require_at_least


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
    """A smaller change is not an improvement: a fraction of the images, or nats."""
    batch_size: int = 512
    """Global batch: samples in one optimizer step, over all processes and accumulation steps."""
    accumulate: int = 1
    """Gradient accumulation: forward and backward passes per optimizer step."""
    even_batches: bool = False
    """Refuse a ``batch_size`` that does not split evenly over processes and accumulation steps. Otherwise, repeated
    samples with weight 0 fill each batch."""
    parts: int = 0
    """Micro-batches of a global batch, over all processes, summed in one fixed order: the same weights, bit for bit, on
    any number of processes up to it; on GPUs with ``deterministic``, on CPUs with equal ``threads``. 0: one for each
    process and accumulation step."""
    precision: Literal["no", "auto", "bf16", "fp16", "int8"] = "no"
    """Automatic mixed precision: none, bfloat16, float16 with loss scaling (GPU), or auto: bfloat16 if it is
    faster on the device, else none. int8: as auto, but a CPU with VNNI and without AMX trains wide convolutions in
    8-bit integers: noisier, and up to 1.5 times as fast as in bfloat16."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes."""
    channels_last: bool = False
    """Keep images and convolutions in the NHWC memory layout."""
    compile: Annotated[
        Literal["no", "default", "reduce-overhead", "max-autotune"], BooleanMeans(yes="default", no="no")
    ] = "no"
    """Compile the network with ``torch.compile`` in one of its modes: default; reduce-overhead, with CUDA graphs;
    max-autotune, which also times kernels and takes minutes to compile (not with ``deterministic`` or ``parts``). true
    means default, and false means no. An epoch's smaller last batch is not compiled."""
    compress_gradients: Literal["no", "fp16", "bf16"] = "no"
    """Send gradients between processes as float16 or bfloat16: half the traffic, and sums that are rounded to it."""
    sync_batchnorm: bool = False
    """Normalise with the batch statistics of all processes, not of each: for few images per process.
    On several GPUs not with a ``compile`` that uses CUDA graphs: reduce-overhead or max-autotune."""
    tf32: bool = False
    """Compute fp32 convolutions and matrix products on a GPU in TensorFloat-32: 10 bits of mantissa, and many times
    faster."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its algorithms for each new shape and take the fastest, which may differ from run to run (GPU;
    not with ``deterministic`` or ``parts``)."""
    deterministic: bool = False
    """Use deterministic algorithms only: the same seed on the same device gives the same bits. Slower on a GPU."""
    threads: int = 0
    """CPU threads per process. 0: the cores that no other program uses are divided among the processes, and small
    networks take fewer; the number is recorded, and a resume keeps it (on the same number of processes, or with
    ``parts``). Another number rounds differently."""
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
        require_at_least(self, epochs=1, max_steps=0, patience=0, min_delta=0)
        for key in () if self.patience else ("monitor", "min_delta"):
            value, default = getattr(self, key), getattr(type(self), key)
            way = f"set --train.patience, or --train.{key} {default}"
            require(value == default, f"{key} {value} has no effect with patience 0; {way}")
        require_at_least(self, batch_size=1, accumulate=1)
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}; "
            f"use {-(-self.batch_size // max(self.accumulate, 1)) * self.accumulate}",
        )
        require(0 <= self.parts <= 65536, f"parts {self.parts} must be between 0 and 65536")
        require(
            self.parts == 0 or self.accumulate == 1,
            f"accumulate {self.accumulate} has no effect beside parts {self.parts}: each part is a backward pass; "
            "use --train.accumulate 1, or --train.parts 0",
        )
        require(
            self.parts == 0 or self.batch_size % self.parts == 0,
            f"batch_size {self.batch_size} is not divisible by parts {self.parts}; "
            f"use {-(-self.batch_size // max(self.parts, 1)) * self.parts}",
        )
        require(0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing} must be in [0, 1)")
        require(0 <= self.threads <= 1024, f"threads {self.threads} must be between 0 and 1024")
        require(
            self.precision != "int8" or self.compile == "no",
            f"compile {self.compile} has no convolutions in int8; use --train.compile no, or --train.precision auto",
        )
        require_at_least(self, profile=0)
        require(
            self.engine == "auto" or plugins.is_spec(self.engine),
            f"engine {self.engine!r} must be auto or path/to/file.py:Attribute; launch/*.yaml chooses a built-in one",
        )
