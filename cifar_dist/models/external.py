"""Networks from other libraries: ``torchvision:NAME`` and ``timm:NAME``. Their options are passed through unchanged.

Only names that the library lists are accepted. Options that would load a file or download one are refused:
initial weights come from ``model.pretrained`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cifar_dist.config import OptionValue
from cifar_dist.config.plugins import LIBRARIES
from cifar_dist.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from torch import nn

PREFIXES = tuple(f"{library}:" for library in LIBRARIES)

_LOADING = {"pretrained", "weights"}
_TORCHVISION_FIXED = {"num_classes", "progress"}
_TIMM_FIXED = {"num_classes", "in_chans", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


def build(name: str, classes: int, channels: int, options: Mapping[str, OptionValue]) -> nn.Module:
    """Build a network with the library's own random initialisation.

    Args:
        name: one of ``PREFIXES`` followed by a model of that library; a timm name may include a weights tag.

    Raises:
        UserError: timm is not installed, the model does not exist, or it rejects the options.
    """
    library, _, model = name.partition(":")
    fixed = _TIMM_FIXED if library == "timm" else _TORCHVISION_FIXED
    for refused, way in ((_LOADING, "use --model.pretrained published"), (fixed, "remove it")):
        if found := refused & options.keys():
            raise UserError(f"model.options.{min(found)} cannot be set for {name}; {way}")
    build_model = _build_timm if library == "timm" else _build_torchvision
    try:
        return build_model(model, classes, channels, dict(options))
    except UserError:
        raise
    except Exception as error:  # options reach deep into another library, which may raise anything
        raise UserError(f"model.options: {name} rejects them: {first_line(error)}") from None


def _build_torchvision(name: str, classes: int, channels: int, options: dict[str, OptionValue]) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"model.name: torchvision has no classification model '{name}'; {nearest(name, known)}")
    if channels != 3:
        raise UserError(
            f"model.name: torchvision models require 3 channels, but the images have {channels}; choose another model"
        )
    if name in ("googlenet", "inception_v3"):
        options.setdefault("aux_logits", False)  # otherwise they return several tensors in training mode
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    return model


def _build_timm(name: str, classes: int, channels: int, options: dict[str, OptionValue]) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UserError(f"model.name: timm:{name} requires timm; install it with: pip install timm") from None
    # create_model also accepts folders, and repositories to download from.
    known = {*timm.list_models(), *timm.list_pretrained()}
    if name not in known:
        raise UserError(f"model.name: timm has no model '{name}'; {_nearest_timm_name(name, known)}")
    model: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels, **options)
    return model


def _nearest_timm_name(name: str, known: set[str]) -> str:
    """Suggest a name as :func:`nearest` does, but never list all two thousand."""
    hint = nearest(name, known)
    return hint if hint.startswith("did") else "timm.list_models() lists them"
