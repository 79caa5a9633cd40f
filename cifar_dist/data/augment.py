"""Apply the recipe's transforms to a batch on its device, with counter-based randomness for each sample.

The pixels of a sample are a function of (seed, epoch, sample id), whichever rank, batch or device computes them.
Consecutive flips and crops are one gather: the source row and column of every output pixel are computed, so nothing is
padded or copied twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.config.plugin_errors import describe_value
from cifar_dist.data.keys import Keys
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.operations.rearrange import Sources, rearrange
from cifar_dist.data.transforms import Mixing, Rearrangement, Samples, Transform, is_plug_in, occurrences
from cifar_dist.errors import UserError


class Augment:
    """The transforms that change single images, in the recipe's order, then :class:`Normalize`.

    Args:
        config: the transforms.
        seed: the run's seed.
        mean: per channel, in [0, 1]: the colour of pixels that a crop or cutout leaves empty.
        normalize: applied last.

    Raises:
        UserError: a plug-in is not a transform, or (when it is applied) does not return images.
    """

    def __init__(self, config: AugmentConfig, seed: int, mean: tuple[float, ...], normalize: Normalize) -> None:
        self._seed = seed
        self._fill = tuple(round(255 * m) for m in mean)
        self._chain: list[tuple[Transform, int]] = []
        for transform, occurrence in occurrences(config.transforms):
            if isinstance(transform, Transform):
                self._chain.append((transform, occurrence))
            elif not isinstance(transform, Mixing):
                raise UserError(
                    f"augment.transforms: {transform.name} cannot be applied; derive it from Transform, Rearrangement "
                    "or Mixing of cifar_dist.data.transforms"
                )
        self._normalize = normalize

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse images (height, width, channels) that the transforms do not accept.

        Raises:
            UserError: for example, a reflecting crop pads more pixels than the image has, or gray images have no hue.
        """
        for transform, _ in self._chain:
            transform.check(*shape)

    def samples(self, ids: Tensor, epoch: int | Tensor, keys: Keys | None = None) -> Samples:
        """Return the samples ``ids``, int64 [n], as transforms take them."""
        return Samples(self._seed, epoch, ids, self._fill, keys=keys)

    def __call__(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Augment and normalise uint8 ``images`` [n, h, w, c] of samples ``ids`` int64 [n]: float32 [n, c, h, w]."""
        return self.apply(images, self.samples(ids, epoch))

    def apply(self, images: Tensor, samples: Samples) -> Tensor:
        """As a call, for ``samples`` that know their random numbers."""
        return self._normalize(self._pixels(images, samples))

    def pixels(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Augment without normalising: uint8 [n, h, w, c]."""
        return self._pixels(images, self.samples(ids, epoch))

    def _pixels(self, images: Tensor, samples: Samples) -> Tensor:
        _, height, width, channels = images.shape
        self.check((height, width, channels))
        result = images.permute(0, 3, 1, 2)  # a view; the memory layout changes only if a transform requires it
        for moves, links in itertools.groupby(self._chain, lambda link: isinstance(link[0], Rearrangement)):
            if moves:
                result = rearrange(result, [_bound(*link, samples) for link in links], self._fill)
                continue
            for transform, occurrence in links:
                given = _laid_out(result, transform)
                result = _checked(transform(given, samples.of_occurrence(occurrence)), given, transform)
        return result.permute(0, 2, 3, 1).contiguous()


def _laid_out(images: Tensor, transform: Transform) -> Tensor:
    """Return ``images``, uint8 [n, c, h, w], in the memory layout of ``transform``; a copy for a plug-in.

    It may change in place what it is given, and the stored images are read again: for other views, and by a step that
    has two passes.
    """
    if is_plug_in(transform):
        return images.clone(memory_format=torch.contiguous_format if transform.planar else torch.preserve_format)
    return images.contiguous() if transform.planar else images


def _checked(result: object, given: Tensor, transform: Transform) -> Tensor:
    """Return what a transform has made of ``given``, uint8 [n, c, h, w].

    Raises:
        UserError: it is something else, as images in [0, 1] would be, or of another size.
    """
    if is_like(result, given):
        return result
    raise UserError(
        f"augment.transforms: {transform.name} was given {describe_value(given)} and returned "
        f"{describe_value(result)}; return images of the same type and shape"
    )


def _bound(transform: Transform, occurrence: int, samples: Samples) -> Callable[[Sources], Sources]:
    assert isinstance(transform, Rearrangement)
    own = samples.of_occurrence(occurrence)
    return lambda sources: _checked_sources(transform.sources(sources, own), sources, transform)


def _checked_sources(result: object, given: Sources, transform: Transform) -> Sources:
    """Return what a rearrangement has made of ``given``.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(result, Sources):
        raise UserError(f"augment.transforms: {transform.name} returned {describe_value(result)}; return the sources")
    for name in ("rows", "columns"):
        found, wanted = getattr(result, name), getattr(given, name)
        if not is_like(found, wanted):
            raise UserError(
                f"augment.transforms: {transform.name} returned {name} that are {describe_value(found)}; "
                f"return {describe_value(wanted)}"
            )
    return result


def is_like(found: object, wanted: Tensor) -> TypeGuard[Tensor]:
    """Whether a plug-in returned a tensor with the type, shape and device of ``wanted``. Waits for no device."""
    return isinstance(found, Tensor) and _kind(found) == _kind(wanted)


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.device
