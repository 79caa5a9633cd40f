"""The one tree of settings. A run is a pure function of this tree (and of the packed data it names).

Every section is a frozen dataclass; a recipe TOML fills it, ``--section.field VALUE`` overrides it, and what
no section knows is refused. The text under a field is its documentation: ``--help`` prints it.
This package imports nothing else of the project and nothing slow, so that every part may depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cifar_dist.config.data import AugmentConfig, DataConfig
from cifar_dist.config.model import ModelConfig, OptionValue
from cifar_dist.config.optim import AverageConfig, OptimConfig, ScheduleConfig
from cifar_dist.config.run import CheckpointConfig, EvalConfig, RunConfig, TrackingConfig, TrainConfig
from cifar_dist.config.section import Section, require

__all__ = [
    "AugmentConfig",
    "AverageConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "OptimConfig",
    "OptionValue",
    "RunConfig",
    "ScheduleConfig",
    "TrackingConfig",
    "TrainConfig",
]


@dataclass(frozen=True)
class Config(Section):
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
        require(
            self.schedule.warmup <= self.train.epochs,
            f"schedule.warmup {self.schedule.warmup} is longer than train.epochs {self.train.epochs}",
        )
        require(
            not self.schedule.three_phase or 2 * self.schedule.warmup <= self.train.epochs,
            f"schedule.three_phase takes twice schedule.warmup {self.schedule.warmup}, and that is longer than "
            f"train.epochs {self.train.epochs}",
        )
        require(
            self.average.name == "none" or self.average.start < self.train.epochs,
            f"average.start {self.average.start} must be below train.epochs {self.train.epochs}",
        )
