"""Settings of the data."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_dist.config.section import Section, require


@dataclass(frozen=True)
class DataConfig(Section):
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
        require(self.shuffle_block >= 1, f"shuffle_block {self.shuffle_block} must be at least 1")
        require(self.resident_mb >= 0, f"resident_mb {self.resident_mb} must not be negative")
        require(self.read_ahead >= 1, f"read_ahead {self.read_ahead} must be at least 1")
