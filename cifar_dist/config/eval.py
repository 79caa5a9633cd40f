"""Settings of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cifar_dist.config.augment import AugmentConfig, TransformConfig
from cifar_dist.config.section import Section, require, require_at_least


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
        require_at_least(self, every=1, batch_size=1)
        require(
            self.tta in ("mirror", "translate")
            or (len(self.tta) <= 4 and self.tta.isdecimal() and int(self.tta) <= 1024),
            f"tta {self.tta!r} must be 0, mirror, translate, or a number of random views up to 1024",
        )
        require(0 < self.tta_below <= 1, f"tta_below {self.tta_below} must be above 0 and at most 1")
        require(
            self.tta_below == 1 or self.tta not in ("0", "1"),
            f'tta_below {self.tta_below} has no effect with tta = "{self.tta}"; use --eval.tta_below 1, or --eval.tta '
            "translate",
        )


def distinct_views(tta: str, augment: AugmentConfig) -> str:
    """Return the level that has the distinct views of ``tta``: no augmentation has one, and flips alone have two."""
    if not tta.isdecimal():
        return tta
    own = [transform for transform in augment.transforms if not transform.mixes]
    if int(tta) <= 1 or not own:
        return "0"
    return "mirror" if all(isinstance(one, TransformConfig.variants["flip"]) for one in own) else tta
