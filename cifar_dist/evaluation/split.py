"""Open a split for prediction: images, labels, and the normalisation that the model was trained with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cifar_dist.config import Config
from cifar_dist.data.batches import Images
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.evaluation.data_matching import labels_as_trained, require_packed_shape
from cifar_dist.evaluation.predict import Predictions, Stream, predict
from cifar_dist.evaluation.views import make_views
from cifar_dist.terminal.progress import Show, silent


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
