"""The one registry of networks: a name, and a builder whose keyword-only arguments are the model's options.

A network of your own is a decorated builder in any module that is imported before :func:`build`::

    @register("my-net")
    def my_net(classes: int, channels: int, *, widths: tuple[Size, ...] = (64, 128)) -> nn.Module: ...

Torch is imported when the first network is built, not before: the names are listed by ``--help``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from cifar_dist.config import ModelConfig, OptionValue
from cifar_dist.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

# The module of this package that registers each shipped name.
SHIPPED = {
    "custom-resnet": "custom_resnet",
    "resnet18": "resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "se-resnet": "se_resnet",
    "small-resnet": "small_resnet",
    "speed-net": "speed_net",
    "tiny-cnn": "tiny_cnn",
    "tiny-resnet": "small_resnet",
}
_TORCHVISION = "torchvision:"

_Builder = TypeVar("_Builder", bound="Callable[..., nn.Module]")
_builders: dict[str, Callable[..., nn.Module]] = {}


@runtime_checkable
class DataInitialized(Protocol):
    """A network that computes some of its weights from training images, once, before the first step."""

    def initialize(self, images: Tensor) -> None:
        """Deterministic. ``images``: float [N, C, H, W], normalised as in training, not augmented; N about 5000."""


def register(name: str) -> Callable[[_Builder], _Builder]:
    """Decorator: make ``builder(classes, channels, *, option=default, ...)`` known as ``name``."""

    def add(builder: _Builder) -> _Builder:
        assert name not in _builders, f"two models are registered as {name}"
        _builders[name] = builder
        return builder

    return add


def names() -> list[str]:
    """All registered names, sorted. Imports nothing."""
    return sorted({*SHIPPED, *_builders})


def build(name: str, *, classes: int, channels: int = 3, options: Mapping[str, OptionValue]) -> nn.Module:
    """A new network that maps float [N, channels, H, W] to logits, float [N, classes].

    Weights are drawn from torch's global generator: seed it first.

    Args:
        name: a registered name, or ``torchvision:NAME``.
        options: the model's own options, as they stand in a recipe.

    Raises:
        UserError: no such model, no such option, or a value that the option cannot take.
    """
    from cifar_dist.models.options import checked

    if name.startswith(_TORCHVISION):
        return _build_torchvision(name.removeprefix(_TORCHVISION), classes, channels, options)
    if name not in _builders and name in SHIPPED:
        importlib.import_module(f"cifar_dist.models.{SHIPPED[name]}")
    if name not in _builders:
        raise UserError(f"model.name: there is no model '{name}'; {nearest(name, [*names(), _TORCHVISION + 'NAME'])}")
    try:
        return _builders[name](classes, channels, **checked(_builders[name], options, name))
    except UserError:
        raise
    except ValueError as error:  # options that are valid one by one and not together
        raise UserError(f"model.options of {name}: {error}") from None


def _build_torchvision(name: str, classes: int, channels: int, options: Mapping[str, OptionValue]) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"model.name: torchvision has no classification model '{name}'; {nearest(name, known)}")
    if channels != 3:
        raise UserError(f"model.name: torchvision's models take 3 channels and the images have {channels}")
    settings: dict[str, OptionValue] = dict(options)
    for fixed in ("weights", "num_classes", "progress"):
        if fixed in settings:
            raise UserError(f"model.options.{fixed} of {_TORCHVISION}{name} cannot be set; remove it")
    if name in ("googlenet", "inception_v3"):
        settings.setdefault("aux_logits", False)  # else they return three tensors while training
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **settings)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"model.options of {_TORCHVISION}{name}: {_first_line(error)}") from None
    return model


def build_for(config: ModelConfig, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of a config for images of ``shape`` (height, width, channels), tried on one of them.

    Raises:
        UserError: as :func:`build`, and when it cannot take such an image.
    """
    model = build(config.name, classes=classes, channels=shape[2], options=config.options)
    check_fits(model, config.name, shape=shape, classes=classes)
    return model


def check_fits(model: nn.Module, name: str, *, shape: tuple[int, int, int], classes: int) -> None:
    """Send one black image through a freshly built network, so that a misfit is found before training.

    Args:
        shape: (height, width, channels) of the dataset's images.

    Raises:
        UserError: the network cannot take such an image, or does not answer with one logit per class.
    """
    import torch

    height, width, channels = shape
    image = torch.zeros(1, channels, height, width, device=next(model.parameters()).device)
    training = model.training
    model.eval()  # batch statistics must not see the image
    try:
        with torch.no_grad():
            output = model(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = f"images of {height}x{width} with {channels} channels"
        raise UserError(f"model.name: {name} cannot take {size}: {_first_line(error)}; choose another model") from None
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor) or output.shape != (1, classes):
        raise UserError(f"model.name: {name} does not give one logit for each of {classes} classes")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
