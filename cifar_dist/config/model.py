"""Settings of the network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from cifar_dist.config.section import Section, UserPath, require, require_at_least

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class _Strict:
    """Tells pydantic to read nothing else as a boolean or text: else ``[1, 0.0]`` were true and false, nan a text."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        if source is bool:
            return core_schema.bool_schema(strict=True)
        return core_schema.str_schema(strict=True, coerce_numbers_to_str=False)


_Text = Annotated[str, _Strict()]

OptionValue = (
    list[Annotated[bool, _Strict()]]
    | bool
    | int
    | float
    | _Text
    | list[int]
    | list[float]
    | list[_Text]
    | list[list[int]]
    | list[list[float]]
)


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network."""

    name: str = "custom-resnet"
    """A registered model, ``torchvision:NAME``, ``timm:NAME`` (needs the extra ``timm``), or
    ``path/to/file.py:Attribute``."""
    options: dict[str, OptionValue] = field(default_factory=dict)
    """The model's own options, for example ``--model.options.widths "[64, 128, 256]"``."""
    conv: Literal["torch", "handmade"] = "torch"
    """Implementation of the convolutions: torch's, or our own from patches and a matrix product (the same numbers,
    slower)."""
    image_size: int = 0
    """Side in pixels to which images are enlarged, or shrunk, on the device before they enter the network; 0 keeps
    their size."""
    pretrained: UserPath = ""
    """Weights that a new run starts from: a .safetensors or .pth file, or ``published`` for those that the model's
    library offers for download. The last layer keeps its random initialisation if the classes differ."""
    freeze: bool = False
    """Feature extraction: only the last layer learns; batch statistics are frozen too."""
    unfreeze: float = 0.0
    """Gradual unfreezing: epochs after which one more stage, from the last layer down, begins to learn; 0 trains all
    stages from the start."""

    def learning_stages(self, count: int, epoch: int) -> int:
        """Return how many of ``count`` stages learn in an epoch (from 0), from the last layer down."""
        if self.freeze:
            return 1
        # 33 / 1.1 is 29.999999999999996.
        return min(1 + math.floor(epoch / self.unfreeze + 1e-6), count) if self.unfreeze else count

    def describe_unfreezing(self, count: int, epochs: int) -> str:
        """Say how many of ``count`` stages a run of ``epochs`` begins and ends with; empty without ``unfreeze``."""
        if not self.unfreeze:
            return ""
        last = self.learning_stages(count, epochs - 1)
        in_the_last = "all" if last == count else last
        what = f"1 of {count} stages learns in the first epoch, {in_the_last} in the last"
        if last == 1:
            what = f"no epoch of train.epochs {epochs} begins after that; only the last layer learns"
        return f"model.unfreeze {self.unfreeze:g}: {what}"

    def __post_init__(self) -> None:
        require(0 <= self.image_size <= 1024, f"image_size {self.image_size} must be between 0 and 1024")
        require_at_least(self, unfreeze=0)
        require(
            not (self.freeze and self.unfreeze),
            "freeze and unfreeze exclude each other: freeze trains only the last layer; use --model.freeze false, or "
            "--model.unfreeze 0",
        )
