"""The registry of networks: names, and builders whose keyword-only arguments are the model's options.

A builder is a function or a class::

    def my_net(classes: int, channels: int, *, widths: tuple[Size, ...] = (64, 128)) -> nn.Module: ...

One in this package has a name in ``SHIPPED``; the name of one from outside is ``path/to/file.py:MyNet``.

Torch is imported only when the first network is built, because ``--help`` lists the names.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cifar_dist.config import ModelConfig, OptionValue, plugins
from cifar_dist.config.plugin_errors import describe_plugin_failure, describe_value
from cifar_dist.errors import UserError, first_line, nearest
from cifar_dist.formatting import counted
from cifar_dist.models import external

if TYPE_CHECKING:
    from torch import Tensor, nn

# The module of this package and the builder of each registered name.
SHIPPED = {
    "custom-resnet": "custom_resnet:CustomResNet",
    "preact-resnet18": "preact_resnet:preact_resnet18",
    "resnet18": "resnet:resnet18",
    "resnet34": "resnet:resnet34",
    "resnet50": "resnet:resnet50",
    "se-resnet": "se_resnet:se_resnet",
    "small-resnet": "small_resnet:small_resnet",
    "speed-net": "speed_net:speed_net",
    "speed-net-96": "speed_net:speed_net_96",
    "tiny-cnn": "tiny_cnn:TinyCNN",
    "tiny-resnet": "small_resnet:tiny_resnet",
    "wrn-16-8": "wide_resnet:wrn_16_8",
    "wrn-28-10": "wide_resnet:wrn_28_10",
}


@runtime_checkable
class DataInitialized(Protocol):
    """A network that computes some of its weights from training images, once, before the first step."""

    def initialize(self, images: Tensor) -> None:
        """Compute the weights, deterministically.

        Args:
            images: float [N, C, H, W], normalised as in training, not augmented, of the size that the network receives;
                N about 5000, or fewer of a large ``model.image_size``.
        """


def names() -> list[str]:
    """List all registered names, sorted. Imports nothing."""
    return sorted(SHIPPED)


def build(name: str, *, classes: int, channels: int = 3, options: Mapping[str, OptionValue]) -> nn.Module:
    """Build a new network that maps float [N, channels, H, W] to logits, float [N, classes].

    Weights are drawn from torch's global generator: seed it first.

    Args:
        name: a registered name, ``torchvision:NAME``, ``timm:NAME``, or ``path/to/file.py:Attribute``.
        options: the model's own options, as in a recipe.

    Raises:
        UserError: no such model, no such option, a value that the option cannot take, or a plug-in that fails.
    """
    from torch import nn

    from cifar_dist.models.options import checked

    if name.startswith(external.PREFIXES):
        return external.build(name, classes, channels, options)
    builder = builder_of(name)
    try:
        built = builder(classes, channels, **checked(builder, options, name))
    except UserError:
        raise
    except ValueError as error:
        if in_plugin := describe_plugin_failure(error):
            raise UserError(f"model.name: {name} cannot be built: {in_plugin}") from None
        # Of a network of this package: options that are valid individually but not together.
        raise UserError(f"model.options of {name}: {error}") from None
    if not isinstance(built, nn.Module) or not any(parameter.requires_grad for parameter in built.parameters()):
        what = type(built).__name__
        if isinstance(built, nn.Module):
            has_any = any(True for _ in built.parameters())
            what = f"a network {'whose parameters all have requires_grad False' if has_any else 'without parameters'}"
        raise UserError(f"model.name: {name} returned {what}; return a torch.nn.Module that can learn")
    _require_tensors(built, name)
    return built


def _require_tensors(model: nn.Module, name: str) -> None:
    """Refuse a network with anything else than tensors in its state, before a checkpoint of it cannot be saved.

    Raises:
        UserError: the message has the first key.
    """
    from torch import Tensor

    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            is_extra = key.endswith("_extra_state")  # torch's name for it
            way = "return a tensor from get_extra_state" if is_extra else "register a buffer instead"
            raise UserError(
                f"model.name: {name} has {key} in its state_dict, of the type {type(value).__name__}, and a checkpoint "
                f"holds tensors; {way}"
            )


def builder_of(name: str) -> Callable[..., object]:
    """Import the builder of a registered name, or of a file.

    Raises:
        UserError: no such model.
    """
    if plugins.is_spec(name):
        return _plugin(name)
    if name not in SHIPPED:
        known = [*names(), *(f"{prefix}NAME" for prefix in external.PREFIXES)]
        raise UserError(f"model.name: unknown model '{name}'; {nearest(name, known)}")
    module, _, attribute = SHIPPED[name].partition(":")
    builder: Callable[..., object] = getattr(importlib.import_module(f"cifar_dist.models.{module}"), attribute)
    return builder


def _plugin(name: str) -> Callable[..., object]:
    """Import the builder that ``path/to/file.py:Attribute`` locates."""
    try:
        found = plugins.load(name)
    except ValueError as error:
        raise UserError(f"model.{error}") from None
    from torch import nn

    is_network = isinstance(found, nn.Module)
    if callable(found) and not is_network:
        with contextlib.suppress(TypeError, ValueError):
            inspect.signature(found).bind(10, 3)
            return found
    attribute = name.rpartition(":")[2]
    raise UserError(
        f"model.name {name!r}: {attribute} {'is' if is_network else 'does not build'} a network; "
        f"write it as {attribute}(classes, channels, *, option=default, ...)"
    )


def build_for(config: ModelConfig, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network of a config for images of ``shape`` (height, width, channels), and try it on one image.

    Raises:
        UserError: as :func:`build`, or the network does not accept such an image.
    """
    model = build(config.name, classes=classes, channels=shape[2], options=config.options)
    if config.conv == "handmade":
        from cifar_dist.models.convolution import use_unfold_convolutions

        use_unfold_convolutions(model)
    if config.image_size:
        from cifar_dist.models.image_size import enlarge_input

        enlarge_input(model, config.image_size)
    check_fits(model, config.name, shape=shape, classes=classes)
    return model


def try_build(config: ModelConfig, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return what :func:`build_for` does, but on the meta device, which needs almost no time and memory.

    Its weights have no values. What fails there is tried on the CPU: code may read numbers, which a meta tensor does
    not have.

    Raises:
        UserError: the network cannot be built.
    """
    import torch

    with contextlib.suppress(Exception), torch.device("meta"):
        return build_for(config, shape=shape, classes=classes)
    return build_for(config, shape=shape, classes=classes)


def check_fits(model: nn.Module, name: str, *, shape: tuple[int, int, int], classes: int) -> None:
    """Run one black image through a freshly built network, so that a misfit is found before training.

    Args:
        shape: (height, width, channels) of the dataset's images.

    Raises:
        UserError: the network does not accept such an image, or does not return one logit per class.
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
        size = f"images of {height}x{width} with {counted(channels, 'channel')}"
        advice = "choose another model, or enlarge the images with --model.image_size"
        reason = describe_plugin_failure(error) or f"{first_line(error).rstrip('.')}; {advice}"
        raise UserError(f"model.name: {name} cannot take {size}: {reason}") from None
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor) or output.shape != (1, classes):
        raise UserError(
            f"model.name: {name} does not return one logit for each of {classes} classes: for one image it returned "
            f"{describe_value(output)}; return float [n, {classes}] for n images"
        )
