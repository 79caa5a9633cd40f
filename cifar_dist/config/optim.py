"""Settings of how weights follow gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cifar_dist.config.section import Section, require


@dataclass(frozen=True)
class OptimConfig(Section):
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
    backbone_lr: float = 1.0
    """Learning rate of all but the last layer, as a multiple of ``lr`` (not for muon)."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each stage of the backbone to the one before it (not for muon)."""
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
        require(self.lr > 0, f"lr {self.lr} must be positive")
        require(0 <= self.momentum < 1, f"momentum {self.momentum} must be in [0, 1)")
        require(
            not (self.name == "sgd" and self.nesterov and self.momentum == 0),
            "nesterov needs a momentum; set nesterov = false or momentum = 0.9",
        )
        require(all(0 <= b < 1 for b in self.betas), f"betas {list(self.betas)} must be in [0, 1)")
        require(self.backbone_lr > 0, f"backbone_lr {self.backbone_lr} must be positive; to keep it, model.freeze")
        require(0 < self.layer_decay <= 1, f"layer_decay {self.layer_decay} must be above 0 and at most 1")
        require(
            self.name != "muon" or self.backbone_lr == self.layer_decay == 1,
            "backbone_lr and layer_decay are not for muon; use --optim.name sgd or adamw",
        )
        require(self.weight_decay >= 0, f"weight_decay {self.weight_decay} must not be negative")
        require(self.clip_norm >= 0, f"clip_norm {self.clip_norm} must not be negative")
        require(self.sam_rho >= 0, f"sam_rho {self.sam_rho} must not be negative")
        require(self.rest_lr > 0, f"rest_lr {self.rest_lr} must be positive")
        require(0 <= self.rest_momentum < 1, f"rest_momentum {self.rest_momentum} must be in [0, 1)")
        require(1 <= self.iterations <= 20, f"iterations {self.iterations} must be between 1 and 20")
        require(
            not (self.name == "muon" and self.rest == "sgd" and self.nesterov and self.rest_momentum == 0),
            "nesterov needs a momentum; set nesterov = false or rest_momentum = 0.9",
        )


@dataclass(frozen=True)
class ScheduleConfig(Section):
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
        require(self.warmup >= 0, f"warmup {self.warmup} must not be negative")
        require(0 <= self.start <= 1, f"start {self.start} must be a fraction of optim.lr, in [0, 1]")
        require(0 <= self.final <= 1, f"final {self.final} must be a fraction of optim.lr, in [0, 1]")
        require(
            list(self.milestones) == sorted(set(self.milestones)),
            f"milestones {list(self.milestones)} must increase",
        )
        require(0 < self.gamma <= 1, f"gamma {self.gamma} must be above 0 and at most 1")
        require(self.power > 0, f"power {self.power} must be positive")
        require(self.cycle >= 0, f"cycle {self.cycle} must not be negative")
        require(1 <= self.growth <= 10, f"growth {self.growth} must be between 1 and 10")
        require(self.decay >= 0, f"decay {self.decay} must not be negative")
        require(
            self.name != "triangular" or not self.cycle or self.warmup <= self.cycle,
            f"warmup {self.warmup} is how long a triangle of {self.cycle} epochs rises, and longer than it",
        )
        require(
            self.name == "step" or not self.milestones,
            f"milestones belong to the schedule 'step', not to '{self.name}'",
        )


@dataclass(frozen=True)
class AverageConfig(Section):
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
        require(self.start >= 0, f"start {self.start} must not be negative")
        require(self.every >= 1, f"every {self.every} must be at least 1")
        require(0 <= self.decay < 1, f"decay {self.decay} must be in [0, 1)")
        require(self.ramp >= 0, f"ramp {self.ramp} must not be negative")
        require(self.recalibrate >= 0, f"recalibrate {self.recalibrate} must not be negative")
