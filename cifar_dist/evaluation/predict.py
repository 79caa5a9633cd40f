"""Predictions for every sample exactly once, on any number of processes.

The samples are split into batches first, and batches are dealt to processes, so each forward pass sees the same images
on any number of processes and computes the same numbers (on CPUs to the bit where each process has equally many
threads). The results are ordered by sample id, and counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist.distributed.ranks import Ranks, deal
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.evaluation.views import Views
from cifar_dist.formatting import progress


@dataclass(frozen=True)
class Predictions:
    """What a model says of each sample, on the CPU, in sample-id order.

    Attributes:
        logits: float32 [samples, classes], averaged over the views.
        labels: int64 [samples], -1 where there is none; None without any.
    """

    logits: Tensor
    labels: Tensor | None

    @property
    def classes(self) -> Tensor:
        """int64 [samples], the predicted class."""
        return self.logits.argmax(dim=1)

    @property
    def probabilities(self) -> Tensor:
        """float32 [samples, classes]."""
        return self.logits.softmax(dim=1)

    @property
    def accuracy(self) -> float:
        """The fraction that is right."""
        assert self.labels is not None
        return (self.classes == self.labels).double().mean().item()

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        assert self.labels is not None
        return F.cross_entropy(self.logits.double(), self.labels).item()


Stream = Callable[[Sequence[Tensor]], Iterator[Tensor]]
"""Lists of sample ids -> uint8 images [n, h, w, c] on the device, one batch at a time."""


def predict(
    model: InferenceModel,
    stream: Stream,
    count: int,
    views: Views,
    *,
    batch_size: int,
    labels: Tensor | None = None,
    poll: Callable[[], None] = lambda: None,
    show: str = "",
) -> Predictions:
    """Average the model's logits over views for samples 0..count-1. Collective; every rank gets all of them.

    Args:
        model: on every rank; its ranks share the work.
        stream: gives the images of the batches dealt to this process.
        count: number of samples.
        views: see :mod:`cifar_dist.evaluation.views`.
        batch_size: images in one forward pass.
        labels: int64 [count] when they are known.
        poll: called before each batch, equally often on every rank.
        show: rank 0 shows progress under this name on stderr; nothing where it is empty.
    """
    ranks = model.ranks
    mine = deal(torch.arange(count).split(batch_size), ranks.rank, ranks.world_size)
    rounds = -(-count // (batch_size * ranks.world_size))
    rows: list[Tensor] = []
    said = progress(show, count, show=bool(show) and ranks.is_main)
    with model.evaluating(), said as advance:
        batches = zip(mine, stream(mine), strict=True)
        for number in range(rounds):
            poll()
            for ids, images in itertools.islice(batches, 1):  # none in the last round of a rank dealt one batch less
                looks = views(images, ids.to(images.device))
                rows.append(torch.stack([weight * model.infer(view) for weight, view in looks]).sum(dim=0))
            done = number * batch_size * ranks.world_size
            advance(min(batch_size * ranks.world_size, count - done))
    ids = ranks.gather(torch.cat([*mine, torch.empty(0, dtype=torch.int64)]).to(ranks.device)).cpu()
    logits = ranks.gather(_stack(rows, ranks)).cpu()
    ordered = torch.full((count, logits.shape[1]), torch.nan)
    ordered[ids] = logits
    assert len(ids) == count == len(ids.unique()), f"{len(ids)} predictions of {count} samples"
    return Predictions(ordered, labels)


def _stack(rows: Sequence[Tensor], ranks: Ranks) -> Tensor:
    """This process's logits as one tensor; without a batch of its own, no rows of the right width."""
    width = max(ranks.gather_objects(rows[0].shape[1] if rows else 0))
    return torch.cat(list(rows)) if rows else torch.empty(0, width, device=ranks.device)
