"""The tree of settings. A run is a pure function of this tree and of the packed data that it names.

Every section is a frozen dataclass; a recipe TOML fills it, ``--section.field VALUE`` overrides it. Where a section
offers a choice, its ``name`` picks the dataclass (see :mod:`.choice`), so a setting either has an effect or is refused.
The string under a field is its documentation, which ``--help`` prints.

This package imports nothing slow, and of the project only its errors and the settings of the transforms, so that every
part may depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from cifar_dist.config.augment import AugmentConfig, TransformConfig
from cifar_dist.config.average import AverageConfig, NoAverageConfig, RunningAverageConfig
from cifar_dist.config.checkpoint import CheckpointConfig
from cifar_dist.config.data import DataConfig
from cifar_dist.config.eval import EvalConfig, distinct_views
from cifar_dist.config.model import ModelConfig, OptionValue
from cifar_dist.config.optim import OptimConfig, SGDConfig, StagedOptimConfig
from cifar_dist.config.run import RunConfig
from cifar_dist.config.schedule import OnecycleConfig, ScheduleConfig
from cifar_dist.config.section import Section, require
from cifar_dist.config.tracking import NoMirrorConfig, TrackingConfig, WandbConfig
from cifar_dist.config.train import TrainConfig

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
    "RunningAverageConfig",
    "SGDConfig",
    "ScheduleConfig",
    "StagedOptimConfig",
    "TrackingConfig",
    "TrainConfig",
    "TransformConfig",
    "WandbConfig",
]


@dataclass(frozen=True)
class Config(Section):
    """The complete tree of settings."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=SGDConfig)
    schedule: ScheduleConfig = field(default_factory=OnecycleConfig)
    average: AverageConfig = field(default_factory=NoAverageConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=NoMirrorConfig)

    @property
    def distinct_tta(self) -> str:
        """``eval.tta`` without views that would repeat others."""
        return distinct_views(self.eval.tta, self.augment)

    def with_run(self, **settings: Any) -> Self:
        """Return the same config with other ``settings`` of its section ``run``."""
        return replace(self, run=replace(self.run, **settings))

    def trains_on(self, split: str) -> bool:
        """Whether the run learns from the images of a split, so that its accuracy there is not that of new images."""
        return split == "train" or (split == "val" and not self.data.hold_out)

    def __post_init__(self) -> None:
        if isinstance(self.average, RunningAverageConfig):
            require(
                self.average.start < self.train.epochs,
                f"average.start {self.average.start} must be below train.epochs {self.train.epochs}",
            )
            require(
                not (self.average.recalibrate and self.model.freeze),
                "average.recalibrate has no effect with model.freeze, which keeps batch statistics; "
                "use --average.recalibrate 0, or --model.freeze false",
            )
        if isinstance(self.optim, StagedOptimConfig):
            for key in ("backbone_lr", "layer_decay"):
                require(
                    not self.model.freeze or getattr(self.optim, key) == 1,
                    f"optim.{key} has no effect with model.freeze, which trains the last layer only; "
                    f"use --optim.{key} 1, or --model.freeze false",
                )
