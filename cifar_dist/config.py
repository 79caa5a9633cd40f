"""The one tree of settings. A run is a pure function of this tree (and of the packed data it names).

Every section is a frozen dataclass; a recipe TOML fills it, ``--section.field VALUE`` overrides it, and what
no section knows is refused. The text under a field is its documentation: ``--help`` prints it.
This file imports nothing of the project and nothing slow, so that every part may depend on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

OptionValue = bool | int | float | str | list[int] | list[float] | list[str] | list[list[int]]

# An ASCII name that is safe as a folder name on any file system; no leading dot or dash.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,127}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class _Section:
    """What all sections share: how pydantic checks them."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "coerce_numbers_to_str": True, "allow_inf_nan": False}


@dataclass(frozen=True)
class RunConfig(_Section):
    """Which run this is."""

    name: str = ""
    """Name of the run folder. Starting again with the same name resumes. Empty: the recipe's name."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seed of everything random: weights, order, augmentation, dropout."""
    fresh: bool = False
    """Refuse to start when the run folder exists already."""
    processes: int = 0
    """Refuse to train on any other number of processes; 0 takes what the launcher gives."""

    def __post_init__(self) -> None:
        _require(
            not self.name or _NAME.fullmatch(self.name) is not None,
            f"name {self.name!r} must be 1 to 128 of A-Z a-z 0-9 _ . + = - and not start with . + = or -",
        )
        _require(0 <= self.seed < 2**31, f"seed {self.seed} must be between 0 and 2147483647")
        _require(self.processes >= 0, f"processes {self.processes} must not be negative")


@dataclass(frozen=True)
class DataConfig(_Section):
    """Which packed dataset, in which order, kept where."""

    path: str = "shards/cifar10"
    """Folder of a packed dataset: what ``cifar-dist pack`` wrote."""
    shuffle_block: int = 64
    """Shards whose samples are mixed with each other: 1 mixes within a shard only; at least the number of
    training shards gives one uniform permutation. Part of the order, so a resume may not change it."""
    resident_mb: int = 4096
    """Keep the decoded uint8 images on the device when they take at most this many MiB; 0 always streams."""
    read_ahead: int = 4
    """Batches decoded in advance when streaming."""

    def __post_init__(self) -> None:
        _require(self.shuffle_block >= 1, f"shuffle_block {self.shuffle_block} must be at least 1")
        _require(self.resident_mb >= 0, f"resident_mb {self.resident_mb} must not be negative")
        _require(self.read_ahead >= 1, f"read_ahead {self.read_ahead} must be at least 1")


@dataclass(frozen=True)
class AugmentConfig(_Section):
    """What is done to a training image, on the device, from counter-based randomness."""

    flip: Literal["none", "random", "alternating"] = "random"
    """Horizontal flip: with probability 1/2 in each epoch, or in every second epoch (airbench's, a random
    half of the samples starts flipped)."""
    crop: int = 4
    """Random crop of the original size after padding each side by this many pixels; 0 for none."""
    crop_fill: Literal["constant", "reflect"] = "reflect"
    """What the padding of ``crop`` holds: the dataset's mean colour, or the image mirrored at its edge."""
    policy: Literal["none", "randaugment", "trivialaugment", "autoaugment"] = "none"
    """Learnt or drawn sequence of operations; autoaugment is the policy found on CIFAR-10."""
    operations: int = 2
    """Operations that randaugment applies."""
    magnitude: int = 9
    """How strong randaugment's are, 0 to 30."""
    rotation: float = 0.0
    """Rotate by up to this many degrees either way."""
    perspective: float = 0.0
    """Probability of a random perspective (corners move by up to a quarter of the image)."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Random brightness, contrast and saturation (a factor of 1 give or take this) and hue (a shift of up to this)."""
    gray: float = 0.0
    """Probability of losing all colour."""
    erasing: float = 0.0
    """Probability of random erasing: a rectangle of 2 to 33 % of the image, set to the mean colour."""
    cutout: int = 0
    """Side in pixels of a square set to the mean colour at a random place; 0 for none."""
    mean: tuple[float, ...] = ()
    """Per-channel mean, in [0, 1], subtracted from the image; empty: of the training split, from the manifest."""
    std: tuple[float, ...] = ()
    """Per-channel standard deviation, in [0, 1], divided by; empty: of the training split, from the manifest."""

    def __post_init__(self) -> None:
        _require(self.crop >= 0, f"crop {self.crop} must not be negative")
        _require(self.cutout >= 0, f"cutout {self.cutout} must not be negative")
        for name in ("perspective", "gray", "erasing"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} {value} is a probability and must be in [0, 1]")
        _require(len(self.mean) == len(self.std), "mean and std must have the same number of channels")
        mean = list(self.mean)
        _require(all(0 <= m <= 1 for m in mean), f"mean {mean} must be in [0, 1]; divide pixel values by 255")
        _require(all(s > 0 for s in self.std), f"std {list(self.std)} must be positive")


@dataclass(frozen=True)
class ModelConfig(_Section):
    """Which network."""

    name: str = "custom-resnet"
    """A registered model, or ``torchvision:NAME``."""
    options: dict[str, OptionValue] = field(default_factory=dict)
    """The model's own options, for example ``--model.options.widths "[64, 128, 256]"``."""


@dataclass(frozen=True)
class OptimConfig(_Section):
    """How weights follow gradients."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """The optimizer. muon is for the hidden layers; first layer, head, norm layers and biases follow ``rest``."""
    lr: float = 0.1
    """Learning rate at the schedule's peak, for the global batch as it is (no scaling rule is applied)."""
    momentum: float = 0.9
    """Momentum (sgd, muon)."""
    nesterov: bool = True
    """Nesterov momentum (sgd, muon and its sgd)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments (adam, adamw)."""
    eps: float = 1e-8
    """Term added to the denominator (adam, adamw)."""
    weight_decay: float = 5e-4
    """Weight decay: L2 in the gradient for sgd and adam, decoupled for adamw and muon."""
    decay_norms: bool = False
    """Decay the weights of norm layers and the biases too."""
    clip_norm: float = 0.0
    """Clip the global gradient norm at this value; 0 for none."""
    sam_rho: float = 0.0
    """Radius of sharpness-aware minimisation, around any optimizer: two passes per step; 0 for none."""
    rest: Literal["sgd", "adamw"] = "sgd"
    """Optimizer of the parameters that muon leaves."""
    rest_lr: float = 1.0
    """Its learning rate, as a multiple of ``lr``."""
    rest_momentum: float = 0.9
    """Its momentum (sgd)."""
    normalize: bool = False
    """Scale each matrix to the norm sqrt(outputs) before each step, and do not decay it (muon): for weights whose
    scale a norm layer undoes."""
    iterations: int = 5
    """Newton-Schulz iterations (muon)."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"lr {self.lr} must be positive")
        _require(0 <= self.momentum < 1, f"momentum {self.momentum} must be in [0, 1)")
        _require(
            not (self.name == "sgd" and self.nesterov and self.momentum == 0),
            "nesterov needs a momentum; set nesterov = false or momentum = 0.9",
        )
        _require(all(0 <= b < 1 for b in self.betas), f"betas {list(self.betas)} must be in [0, 1)")
        _require(self.weight_decay >= 0, f"weight_decay {self.weight_decay} must not be negative")
        _require(self.clip_norm >= 0, f"clip_norm {self.clip_norm} must not be negative")
        _require(self.sam_rho >= 0, f"sam_rho {self.sam_rho} must not be negative")
        _require(self.rest_lr > 0, f"rest_lr {self.rest_lr} must be positive")
        _require(0 <= self.rest_momentum < 1, f"rest_momentum {self.rest_momentum} must be in [0, 1)")
        _require(1 <= self.iterations <= 20, f"iterations {self.iterations} must be between 1 and 20")
        _require(
            not (self.name == "muon" and self.rest == "sgd" and self.nesterov and self.rest_momentum == 0),
            "nesterov needs a momentum; set nesterov = false or rest_momentum = 0.9",
        )


@dataclass(frozen=True)
class ScheduleConfig(_Section):
    """The learning rate as a function of the step."""

    name: Literal["constant", "onecycle", "cosine", "step", "linear", "polynomial", "restarts", "triangular", "wsd"] = (
        "onecycle"
    )
    """After a warm-up: constant stays; onecycle, linear, polynomial and cosine fall to ``final``; step multiplies by
    ``gamma`` at each milestone; restarts is a cosine anew in each ``cycle``; wsd stays, and falls in the last ``decay``
    epochs. triangular rises for ``warmup`` epochs and falls back to ``start``, in each ``cycle``."""
    warmup: float = 0.0
    """Epochs from ``start`` to the peak."""
    start: float = 0.0
    """LR of the first step, as a fraction of ``optim.lr``."""
    final: float = 0.0
    """LR that the last step (of a cycle, for restarts) tends to, as a fraction of ``optim.lr``."""
    shape: Literal["linear", "cosine"] = "linear"
    """How onecycle rises and falls, and how wsd falls."""
    three_phase: bool = False
    """Fall back to ``start`` in as many epochs as the warm-up, and from there to ``final`` (onecycle)."""
    power: float = 1.0
    """Exponent of polynomial."""
    cycle: float = 0.0
    """Epochs of the (first) cycle of restarts and triangular; 0 for one over the whole run."""
    growth: float = 1.0
    """Factor from the length of one cycle of restarts to the next."""
    decay: float = 0.0
    """Epochs at the end in which wsd falls to ``final``."""
    milestones: tuple[float, ...] = ()
    """Epochs at which step multiplies the LR by ``gamma``."""
    gamma: float = 0.1
    """Factor of step."""

    def __post_init__(self) -> None:
        _require(self.warmup >= 0, f"warmup {self.warmup} must not be negative")
        _require(0 <= self.start <= 1, f"start {self.start} must be a fraction of optim.lr, in [0, 1]")
        _require(0 <= self.final <= 1, f"final {self.final} must be a fraction of optim.lr, in [0, 1]")
        _require(
            list(self.milestones) == sorted(set(self.milestones)),
            f"milestones {list(self.milestones)} must increase",
        )
        _require(0 < self.gamma <= 1, f"gamma {self.gamma} must be above 0 and at most 1")
        _require(self.power > 0, f"power {self.power} must be positive")
        _require(self.cycle >= 0, f"cycle {self.cycle} must not be negative")
        _require(1 <= self.growth <= 10, f"growth {self.growth} must be between 1 and 10")
        _require(self.decay >= 0, f"decay {self.decay} must not be negative")
        _require(
            self.name != "triangular" or not self.cycle or self.warmup <= self.cycle,
            f"warmup {self.warmup} is how long a triangle of {self.cycle} epochs rises, and longer than it",
        )
        _require(
            self.name == "step" or not self.milestones,
            f"milestones belong to the schedule 'step', not to '{self.name}'",
        )


@dataclass(frozen=True)
class AverageConfig(_Section):
    """Which average of the weights is evaluated and kept in place of the last ones."""

    name: Literal["none", "ema", "swa", "lookahead"] = "none"
    """ema forgets by ``decay``; swa is the mean; lookahead also gives the weights the average, at each update."""
    start: float = 0.0
    """Epochs before the average begins, as a copy of the weights."""
    every: int = 1
    """Steps between two updates."""
    decay: float = 0.999
    """Share of the average that an update keeps (ema, lookahead); 1 minus the paper's alpha for lookahead."""
    ramp: float = 0.0
    """Let lookahead's decay grow over the run as decay * (step / steps) ** ramp."""
    recalibrate: int = 0
    """Training images from which batch statistics are computed anew for the averaged weights; 0 averages them too."""

    def __post_init__(self) -> None:
        _require(self.start >= 0, f"start {self.start} must not be negative")
        _require(self.every >= 1, f"every {self.every} must be at least 1")
        _require(0 <= self.decay < 1, f"decay {self.decay} must be in [0, 1)")
        _require(self.ramp >= 0, f"ramp {self.ramp} must not be negative")
        _require(self.recalibrate >= 0, f"recalibrate {self.recalibrate} must not be negative")


@dataclass(frozen=True)
class TrainConfig(_Section):
    """The loop."""

    epochs: int = 24
    """Times that every training sample is seen."""
    batch_size: int = 512
    """Samples in one optimizer step, over all processes and accumulation steps together."""
    accumulate: int = 1
    """Forward and backward passes per optimizer step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Automatic mixed precision: none, bfloat16, or float16 with loss scaling (GPU)."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes."""
    channels_last: bool = False
    """Keep images and convolutions in the NHWC memory layout."""
    compile: bool = False
    """Compile the model with ``torch.compile``."""
    threads: int = 0
    """CPU threads per process; 0 shares the machine's cores among its processes."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"epochs {self.epochs} must be at least 1")
        _require(self.batch_size >= 1, f"batch_size {self.batch_size} must be at least 1")
        _require(self.accumulate >= 1, f"accumulate {self.accumulate} must be at least 1")
        _require(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}",
        )
        _require(0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing} must be in [0, 1)")
        _require(self.threads >= 0, f"threads {self.threads} must not be negative")


@dataclass(frozen=True)
class EvalConfig(_Section):
    """When and how accuracy is measured."""

    every: int = 1
    """Epochs between evaluations on the validation split; the last epoch is always evaluated."""
    batch_size: int = 500
    """Images in one forward pass. Batches are cut before they are dealt to processes, so predictions do not
    depend on the number of processes."""
    tta: str = "mirror"
    """Views of the evaluation that ends a run: 0 (none), mirror (2), translate (6), or N for N random views."""
    split: str = "test"
    """Split of the evaluation that ends a run."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"every {self.every} must be at least 1")
        _require(self.batch_size >= 1, f"batch_size {self.batch_size} must be at least 1")
        _require(
            self.tta in ("mirror", "translate") or (self.tta.isdecimal() and int(self.tta) <= 1024),
            f"tta {self.tta!r} must be 0, mirror, translate, or a number of random views up to 1024",
        )


@dataclass(frozen=True)
class CheckpointConfig(_Section):
    """When state is saved and how long it is kept."""

    every: int = 1
    """Epochs between checkpoints; the end of training always saves one."""
    every_steps: int = 0
    """Optimizer steps between checkpoints, besides those of ``every``; 0 for none."""
    keep: int = 2
    """Newest checkpoints that are kept, besides the best one."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"every {self.every} must be at least 1")
        _require(self.every_steps >= 0, f"every_steps {self.every_steps} must not be negative")
        _require(self.keep >= 1, f"keep {self.keep} must be at least 1")


@dataclass(frozen=True)
class TrackingConfig(_Section):
    """Where metrics go besides the run folder."""

    every: int = 10
    """Steps between two looks at the metrics: they reach the console and metrics.jsonl (every step has its
    line there, whatever this is) that often."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Mirror the run to Weights & Biases, from rank 0; it can never stop or fail a run."""
    project: str = "cifar-dist"
    """W&B project."""
    entity: str = ""
    """W&B user or team; empty: the account's default."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"every {self.every} must be at least 1")


@dataclass(frozen=True)
class Config(_Section):
    """The whole tree."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require(
            self.schedule.warmup <= self.train.epochs,
            f"schedule.warmup {self.schedule.warmup} is longer than train.epochs {self.train.epochs}",
        )
        _require(
            not self.schedule.three_phase or 2 * self.schedule.warmup <= self.train.epochs,
            f"schedule.three_phase takes twice schedule.warmup {self.schedule.warmup}, and that is longer than "
            f"train.epochs {self.train.epochs}",
        )
        _require(
            self.average.name == "none" or self.average.start < self.train.epochs,
            f"average.start {self.average.start} must be below train.epochs {self.train.epochs}",
        )
