"""Settings of tracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cifar_dist.config.choice import Choice
from cifar_dist.config.section import require_at_least


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
        require_at_least(self, every=1)


@dataclass(frozen=True)
class NoMirrorConfig(TrackingConfig):
    """Metrics are written to the run folder only."""

    wandb: str = "disabled"


@dataclass(frozen=True)
class WandbConfig(TrackingConfig):
    """Metrics are also sent to Weights & Biases: now (online), or when the run is synchronised later (offline)."""

    wandb: Literal["offline", "online"] = "online"
    project: str = ""
    """W&B project; empty: that of the run so far, else of ``WANDB_PROJECT``, else cifar-dist."""
    entity: str = ""
    """W&B user or team; empty: that of the run so far, else of ``WANDB_ENTITY``, else the account's default."""


TrackingConfig.variants.update(disabled=NoMirrorConfig, offline=WandbConfig, online=WandbConfig)
