"""Open a split for prediction: images, labels, and the normalisation that the model was trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_dist.config import Config
from cifar_dist.data.batches import Images
from cifar_dist.data.manifest import UNLABELLED, Manifest
from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.errors import UserError, quoted
from cifar_dist.evaluation.predict import Predictions, Stream, predict
from cifar_dist.evaluation.views import make_views
from cifar_dist.formatting import list_some
from cifar_dist.terminal.progress import Show, silent

_UNKNOWN = -2  # stands for a class that the run was not trained on


class Predictor:
    """Predicts images, normalised as in the run's training.

    Args:
        device: device of the images.
        config: the run's.
        trained_on: the manifest of the run's training data.
    """

    def __init__(self, device: torch.device, config: Config, trained_on: Manifest) -> None:
        self._config = config
        self._mean, std = normalization_statistics(config.augment, trained_on)
        self._normalize = Normalize(self._mean, std, device, config.train.channels_last)

    def predict(
        self,
        model: InferenceModel,
        stream: Stream,
        count: int,
        tta: str,
        *,
        labels: torch.Tensor | None,
        poll: Callable[[], None],
        show: Show,
    ) -> Predictions:
        """Predict samples 0..count-1; see :func:`cifar_dist.evaluation.predict.predict`. Collective."""
        views = make_views(tta, self._config.augment, self._config.run.seed, self._mean, self._normalize)
        return predict(
            model,
            stream,
            count,
            views,
            batch_size=self._config.eval.batch_size,
            seed=self._config.run.seed,
            below=self._config.eval.tta_below,
            labels=labels,
            poll=poll,
            show=show,
        )


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


class Split:
    """One split of a packed dataset, opened for evaluation.

    Raises:
        UserError: no such split, labels of some samples only, a damaged shard, or images of another shape or class than
            the model was trained on.
    """

    def __init__(
        self, device: torch.device, config: Config, manifest: Manifest, split: str, trained_on: Manifest
    ) -> None:
        require_packed_shape(manifest, trained_on)
        labels = torch.from_numpy(labels_as_trained(manifest, split, trained_on))
        self.labels = labels if manifest.is_labelled(split) else None
        self.images = Images(manifest, split, config.data, device)
        self._predictor = Predictor(device, config, trained_on)

    def predict(
        self, model: InferenceModel, tta: str, *, poll: Callable[[], None] = lambda: None, show: Show = silent
    ) -> Predictions:
        """Predict every sample; every rank returns all predictions. Collective."""
        return self._predictor.predict(
            model, self.images.stream, len(self.images), tta, labels=self.labels, poll=poll, show=show
        )
