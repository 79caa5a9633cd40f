"""Predict every sample exactly once, on any number of processes.

The samples are split into batches before these are distributed over processes, so each forward pass has the same images
on any number of processes and computes the same numbers (bit for bit on CPUs if each process has the same number of
threads). The results are ordered by sample id, and their number is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist.distributed.out_of_memory import describe_evaluation, explained
from cifar_dist.distributed.ranks import deal
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.evaluation.views import Views
from cifar_dist.terminal.progress import Show, silent


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for all samples, on the CPU, in sample-id order.

    Attributes:
        logits: float32 [samples, classes], averaged over the views.
        labels: int64 [samples], -1 for a sample without one; None if unknown.
        plain_logits: float32 [samples, classes], of the images themselves, which are the first view.
    """

    logits: Tensor
    labels: Tensor | None
    plain_logits: Tensor

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

    def _accuracy(self, logits: Tensor) -> float:
        assert self.labels is not None
        return (logits.argmax(dim=1) == self.labels).double().mean().item()


Stream = Callable[[Sequence[Tensor]], Iterator[Tensor]]
"""Maps lists of sample ids to uint8 images [n, h, w, c] on the device, one batch at a time."""


def predict(
    model: InferenceModel,
    stream: Stream,
    count: int,
    views: Views,
    *,
    batch_size: int,
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
        labels: int64 [count]; None if unknown.
        poll: called before each batch, equally often on every rank.
        show: shows the progress.
    """
    ranks = model.ranks
    mine = deal(torch.arange(count).split(batch_size), ranks.rank, ranks.world_size)
    rounds = -(-count // (batch_size * ranks.world_size))
    # Sharded weights are gathered from all ranks in every round: one with a batch less predicts a sample, and drops it.
    requests = mine + [torch.tensor([0])] * (rounds - len(mine))
    rows: list[Tensor] = []
    with explained(lambda: describe_evaluation(batch_size)), model.evaluating(), show(count) as advance:
        for number, (ids, images) in enumerate(zip(requests, stream(requests), strict=True)):
            poll()
            looks = [(weight, model.infer(view)) for weight, view in views(images, ids.to(images.device))]
            averaged = torch.stack([weight * logits for weight, logits in looks]).sum(dim=0)
            rows.append(torch.cat([averaged, looks[0][1]], dim=1))
            done = number * batch_size * ranks.world_size
            advance(min(batch_size * ranks.world_size, count - done))
    own = torch.cat([*mine, torch.empty(0, dtype=torch.int64)])
    ids = ranks.gather(own.to(ranks.device)).cpu()
    logits = ranks.gather(torch.cat(rows)[: len(own)]).cpu()
    ordered = torch.full((count, logits.shape[1]), torch.nan)
    ordered[ids] = logits
    assert len(ids) == count == len(ids.unique()), f"{len(ids)} predictions of {count} samples"
    averaged, plain = ordered.chunk(2, dim=1)
    return Predictions(averaged.contiguous(), labels, plain.contiguous())
