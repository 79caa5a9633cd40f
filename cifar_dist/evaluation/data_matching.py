"""Whether data match those that a run was trained on: the shape of images, and classes by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.manifest import Manifest
from cifar_dist.data.shard import UNLABELLED
from cifar_dist.errors import UserError, quoted
from cifar_dist.formatting import list_some

_UNKNOWN = -2  # stands for a class that the run was not trained on


def labels_as_trained(manifest: Manifest, split: str, trained_on: Manifest) -> NDArray[np.int64]:
    """Return the labels of a split, int64 [samples], as the classes of the run.

    Classes of other data are matched by name. In the shards that the run was trained on, a label has the meaning that
    the run learnt, whatever the class is called now.

    Raises:
        UserError: an image has a class that the run was not trained on.
    """
    labels = manifest.labels(split)
    if manifest.classes == trained_on.classes or manifest.fingerprint == trained_on.fingerprint:
        return labels
    index = {name: label for label, name in enumerate(trained_on.classes)}
    as_trained = np.array([index.get(name, _UNKNOWN) for name in manifest.classes] + [UNLABELLED], dtype=np.int64)
    matched = as_trained[labels]  # UNLABELLED is -1, the last
    unknown = [manifest.classes[label] for label in np.unique(labels[matched == _UNKNOWN])]
    if unknown:
        remedy = "pack the data again without them or with the run's names"
        if manifest.is_indexed:
            remedy = f"name its classes: cifar-dist index {quoted(manifest.root)} --classes FILE"
        raise UserError(
            f"{manifest.root}: {split} has images of {_some(unknown)}, but the run was trained on "
            f"{_some(trained_on.classes)}; classes are matched by name, so {remedy}"
        )
    return matched


def require_packed_shape(manifest: Manifest, trained_on: Manifest) -> None:
    """Refuse a dataset as :func:`require_shape` does, with what to do about its tars."""
    height, width, _ = trained_on.shape
    remedy = ""
    if manifest.is_indexed:
        remedy = f"write its tars again with images of {width}x{height}"
    elif width == height:
        remedy = f"pack its source again with --size {width}"
    require_shape(str(manifest.root), manifest.shape, trained_on, remedy)


def require_shape(where: str, shape: Sequence[int], trained_on: Manifest, remedy: str = "") -> None:
    """Refuse images of another shape than those that a run was trained on.

    Args:
        where: prefix of the message.
        shape: height, width and channels.
        trained_on: the manifest of the run's training data.
        remedy: what to do; by default, to resize the images.

    Raises:
        UserError: with what to do about it.
    """
    height, width, _ = trained_on.shape
    if tuple(shape) == trained_on.shape:
        return
    remedy = remedy or f"resize the images to {width}x{height}"
    raise UserError(
        f"{where}: an image is {_pixels(shape)}, but the run was trained on {_pixels(trained_on.shape)}; {remedy}"
    )


def _pixels(shape: Sequence[int]) -> str:
    height, width, channels = shape
    return f"{width}x{height}x{channels}"


def _some(names: Sequence[str]) -> str:
    return f"the class{'es' if len(names) != 1 else ''} {list_some(names, limit=5)}"
