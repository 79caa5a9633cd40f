"""Settings of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cifar_dist.config.section import Section, require

OptionValue = bool | int | float | str | list[int] | list[float] | list[str] | list[list[int]]


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which network."""

    name: str = "custom-resnet"
    """A registered model, ``torchvision:NAME``, ``timm:NAME`` (needs the extra ``timm``), or
    ``path/to/file.py:Attribute``."""
    options: dict[str, OptionValue] = field(default_factory=dict)
    """The model's own options, for example ``--model.options.widths "[64, 128, 256]"``."""
    conv: Literal["torch", "handmade"] = "torch"
    """Who computes the convolutions: torch, or our own from patches and a matrix product (the same numbers, slower)."""
    image_size: int = 0
    """Side in pixels that images are enlarged to on the device before the network sees them; 0 keeps theirs."""
    pretrained: str = ""
    """What a new run starts from: a .safetensors or .pth file of weights, or ``published`` for those that the
    model's library offers for download. The last layer stays new where the classes differ."""
    freeze: bool = False
    """Feature extraction: only the last layer learns; batch statistics are kept too."""
    unfreeze: float = 0.0
    """Gradual unfreezing: epochs after which one more stage, from the last layer down, begins to learn; 0 for all
    from the start."""

    def __post_init__(self) -> None:
        require(0 <= self.image_size <= 1024, f"image_size {self.image_size} must be between 0 and 1024")
        require(self.unfreeze >= 0, f"unfreeze {self.unfreeze} must not be negative")
        require(
            not (self.freeze and self.unfreeze),
            "freeze keeps all but the last layer for good and unfreeze does not; set one of them",
        )
