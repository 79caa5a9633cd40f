"""A layer of a network by its path, with its type."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def layer_at(model: nn.Module, path: str, kind: type[Layer]) -> Layer:
    """Return the layer at a path such as ``stages.0.body``, which must be of this kind."""
    found = model.get_submodule(path)
    assert isinstance(found, kind)
    return found
