"""Networks of other libraries: ``torchvision:NAME`` and ``timm:NAME``, their options passed on as they are.

Only names that the library lists are taken, and no option that would load a file or a download: what a run starts
from is ``model.pretrained``'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cifar_dist.config import OptionValue
from cifar_dist.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from torch import nn

PREFIXES = ("torchvision:", "timm:")

_TORCHVISION_FIXED = {"weights", "num_classes", "progress"}
_TIMM_FIXED = {
    "pretrained",
    "num_classes",
    "in_chans",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}


def build(name: str, classes: int, channels: int, options: Mapping[str, OptionValue]) -> nn.Module:
    """A new network with weights as the library draws them.

    Args:
        name: one of ``PREFIXES`` and a name of that library; timm's may have the tag of its published weights.

    Raises:
        UserError: timm is not installed, no such model, or options that it cannot take.
    """
    library, _, model = name.partition(":")
    fixed = (_TIMM_FIXED if library == "timm" else _TORCHVISION_FIXED) & options.keys()
    if fixed:
        raise UserError(f"model.options.{min(fixed)} of {name} cannot be set; remove it")
    maker = _timm if library == "timm" else _torchvision
    try:
        return maker(model, classes, channels, dict(options))
    except UserError:
        raise
    except Exception as error:  # the options reach deep into another library, where anything may be raised
        raise UserError(f"model.options of {name}: {first_line(error)}") from None


def _torchvision(name: str, classes: int, channels: int, options: dict[str, OptionValue]) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"model.name: torchvision has no classification model '{name}'; {nearest(name, known)}")
    if channels != 3:
        raise UserError(f"model.name: torchvision's models take 3 channels and the images have {channels}")
    if name in ("googlenet", "inception_v3"):
        options.setdefault("aux_logits", False)  # else they return three tensors while training
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    return model


def _timm(name: str, classes: int, channels: int, options: dict[str, OptionValue]) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UserError(f"model.name: timm:{name} needs timm; type: pip install timm") from None
    # create_model would take more: names of folders and of repositories to download from.
    known = {*timm.list_models(), *timm.list_pretrained()}
    if name not in known:
        raise UserError(f"model.name: timm has no model '{name}'; {_near(name, known)}")
    model: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels, **options)
    return model


def _near(name: str, known: set[str]) -> str:
    """As ``nearest``, without listing two thousand names."""
    clause = nearest(name, known)
    return clause if clause.startswith("did") else "timm.list_models() lists them"
