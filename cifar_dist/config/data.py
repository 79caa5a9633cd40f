"""Settings of the data and of what is done to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class AugmentConfig(Section):
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
    translate: float = 0.0
    """Move by up to this fraction of the image's side, in whole pixels, along both axes."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest factor by which the image is scaled."""
    shear: float = 0.0
    """Shear by up to this many degrees either way, along both axes."""
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
    mixup: float = 0.0
    """Probability that a sample is blended with another, and its label too."""
    cutmix: float = 0.0
    """Probability that a rectangle of a sample is another's, and the label in proportion."""
    mix_alpha: float = 1.0
    """How much is mixed is drawn from Beta(mix_alpha, mix_alpha)."""
    mean: tuple[float, ...] = ()
    """Per-channel mean, in [0, 1], subtracted from the image; empty: of the training split, from the manifest."""
    std: tuple[float, ...] = ()
    """Per-channel standard deviation, in [0, 1], divided by; empty: of the training split, from the manifest."""

    def __post_init__(self) -> None:
        require(self.crop >= 0, f"crop {self.crop} must not be negative")
        require(self.cutout >= 0, f"cutout {self.cutout} must not be negative")
        for name in ("perspective", "gray", "erasing", "mixup", "cutmix"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} {value} is a probability and must be in [0, 1]")
        require(self.mixup + self.cutmix <= 1, "mixup and cutmix are probabilities of one draw; their sum is above 1")
        require(self.mix_alpha > 0, f"mix_alpha {self.mix_alpha} must be positive")
        require(len(self.mean) == len(self.std), "mean and std must have the same number of channels")
        mean = list(self.mean)
        require(all(0 <= m <= 1 for m in mean), f"mean {mean} must be in [0, 1]; divide pixel values by 255")
        require(all(s > 0 for s in self.std), f"std {list(self.std)} must be positive")
