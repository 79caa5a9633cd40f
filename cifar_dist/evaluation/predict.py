"""Predict every sample exactly once, on any number of processes.

The samples are split into batches before these are distributed over processes, so each forward pass has the same images
on any number of processes and computes the same numbers (bit for bit on CPUs if each process has the same number of
threads). The results are ordered by sample id, and their number is verified.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist.data.randomness import prediction_seed, seed_generators
from cifar_dist.distributed.out_of_memory import describe_evaluation, explained
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.evaluation.calibration import calibration
from cifar_dist.evaluation.views import View, Views
from cifar_dist.terminal.progress import Show, silent


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for all samples, on the CPU, in sample-id order.

    Attributes:
        logits: float32 [samples, classes], averaged over the views.
        labels: int64 [samples], -1 for a sample without one; None if unknown.
        plain_logits: float32 [samples, classes], of the images themselves, which are the first view.
        viewed: number of samples whose logits are averaged over all views.
    """

    logits: Tensor
    labels: Tensor | None
    plain_logits: Tensor
    viewed: int = 0

    @property
    def classes(self) -> Tensor:
        """Return the predicted classes, int64 [samples]."""
        return self.logits.argmax(dim=1)

    @property
    def probabilities(self) -> Tensor:
        """Return the class probabilities, float32 [samples, classes]."""
        return self.logits.softmax(dim=1)

    @property
    def accuracy(self) -> float:
        """Return the fraction of correct predictions."""
        return self._accuracy(self.logits)

    @property
    def plain_accuracy(self) -> float:
        """Return the fraction of correct predictions without test-time augmentation."""
        return self._accuracy(self.plain_logits)

    @property
    def loss(self) -> float:
        """Return the mean cross-entropy, in nats."""
        assert self.labels is not None
        return F.cross_entropy(self.logits.double(), self.labels).item()

    @property
    def calibration_error(self) -> float:
        """Return the expected calibration error, a fraction; nan if a logit is not finite."""
        assert self.labels is not None
        return calibration(self.probabilities.numpy(), self.labels.numpy()).error

    def _accuracy(self, logits: Tensor) -> float:
        assert self.labels is not None
        return (logits.argmax(dim=1) == self.labels).double().mean().item()


Stream = Callable[[Sequence[Tensor]], Iterator[Tensor]]
"""Maps lists of sample ids to uint8 images [n, h, w, c] on the device, one batch at a time."""


def batches_of(rank: int, world_size: int, count: int, batch_size: int) -> tuple[list[Tensor], int]:
    """Return the sample ids of each batch that a rank infers, and how many of these it predicts.

    Sharded weights are gathered from all ranks in every round: a rank with a batch less infers a sample, and drops it.
    """
    mine = list(torch.arange(count).split(batch_size))[rank::world_size]
    rounds = -(-count // (batch_size * world_size))
    return mine + [torch.tensor([0])] * (rounds - len(mine)), len(mine)


def predict(
    model: InferenceModel,
    stream: Stream,
    count: int,
    views: Views,
    *,
    batch_size: int,
    seed: int = 0,
    below: float = 1.0,
    labels: Tensor | None = None,
    poll: Callable[[], None] = lambda: None,
    show: Show = silent,
) -> Predictions:
    """Average the model's logits over views for samples 0..count-1. Collective; every rank returns all of them.

    Args:
        model: on every rank; its ranks share the work.
        stream: returns the images of this process's batches.
        count: number of samples.
        views: see :mod:`cifar_dist.evaluation.views`.
        batch_size: images in one forward pass.
        seed: of the generators from which a network may draw.
        below: see ``eval.tta_below``.
        labels: int64 [count]; None if unknown.
        poll: called before each batch, equally often on every rank.
        show: shows the progress.
    """
    ranks = model.ranks
    requests, predicted = batches_of(ranks.rank, ranks.world_size, count, batch_size)
    rows: list[Tensor] = []
    with explained(lambda: describe_evaluation(batch_size)), model.evaluating(), show(count) as advance:
        for number, (ids, images) in enumerate(zip(requests, stream(requests), strict=True)):
            poll()
            seed_generators(prediction_seed(seed, number * ranks.world_size + ranks.rank), ranks.device)
            rows.append(_infer_batch(model, views, images, ids.to(images.device, non_blocking=True), below))
            done = number * batch_size * ranks.world_size
            advance(min(batch_size * ranks.world_size, count - done))
    own = torch.cat([*requests[:predicted], torch.empty(0, dtype=torch.int64)])
    ids = ranks.gather(own.to(ranks.device)).cpu()
    logits = torch.cat(rows)[: len(own)]
    rows.clear()  # with many classes, each copy takes more memory than the images
    logits = ranks.gather(logits).cpu()
    ordered = torch.full((count, logits.shape[1]), torch.nan)
    ordered[ids] = logits
    del logits
    assert len(ids) == count == len(ids.unique()), f"{len(ids)} predictions of {count} samples"
    averaged, plain = ordered[:, :-1].chunk(2, dim=1)
    return Predictions(averaged, labels, plain, int(ordered[:, -1].sum()))


def _infer_batch(model: InferenceModel, views: Views, images: Tensor, ids: Tensor, below: float) -> Tensor:
    """Average the logits of a batch over its views: of all images, or of those of which the model is unsure.

    Selective views are those of the hiverge cifar10-speedrun, which chooses a quantile of all images; a threshold
    needs one batch only, so that it is the same on any number of processes. Where one of them is unsure of an image,
    all call the model equally often, as sharded weights require: one without such an image infers its first again, and
    drops the result.

    Returns:
        float [n, 2 * classes + 1]: averaged logits, those of the image itself, and 1 where all views were averaged.
    """
    looks = views(images, ids)
    weight, first = next(looks)
    plain = model.infer(first)
    if below == 1:
        averaged = _average(weight * plain, looks, model)
        return torch.cat([averaged, plain, torch.ones_like(plain[:, :1])], dim=1)
    unsure = plain.float().softmax(dim=1).amax(dim=1) < below
    averaged = plain.clone()
    if model.ranks.sum(unsure.sum()):
        again = unsure.nonzero()[:, 0] if unsure.any() else torch.zeros(1, dtype=torch.int64, device=ids.device)
        looks = itertools.islice(views(images[again], ids[again]), 1, None)
        seen = _average(weight * plain[again], looks, model)
        averaged[unsure] = seen[: int(unsure.sum())]
    return torch.cat([averaged, plain, unsure[:, None].to(plain.dtype)], dim=1)


def _average(first: Tensor, looks: Iterator[View], model: InferenceModel) -> Tensor:
    """Add the weighted logits of the views to ``first``, those of the image itself."""
    return torch.stack([first, *(weight * model.infer(view) for weight, view in looks)]).sum(dim=0)
