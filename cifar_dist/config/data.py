"""Settings of the data."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_dist.config.section import Section, UserPath, require_at_least


@dataclass(frozen=True)
class DataConfig(Section):
    """The packed dataset, its order, and where decoded images are kept."""

    path: UserPath = "shards/cifar10"
    """Folder of the packed dataset, as ``cifar-dist pack`` wrote it."""
    hold_out: bool = True
    """Keep the split ``val`` out of training, to validate on it after each epoch; false trains on it as well. Datasets
    without ``val`` have nothing to hold out."""
    shuffle_block: int = 64
    """Number of shards to shuffle together: 1 shuffles within each shard only; the number of training shards
    or more gives one uniform permutation. A resume cannot change it, because it determines the order."""
    resident_mb: int = 4096
    """Keep the decoded uint8 images on the device if they need at most this many MiB; 0 always streams."""
    read_ahead: int = 4
    """Batches to decode in advance when streaming."""

    def __post_init__(self) -> None:
        require_at_least(self, shuffle_block=1, resident_mb=0, read_ahead=1)
