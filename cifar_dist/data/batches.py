"""Batches of images for one process, from the device's memory or streamed with read-ahead.

Both ways produce the same bytes in the same order; the choice depends only on whether the decoded split fits
``data.resident_mb``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from cifar_dist.config import DataConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.order import MicroBatch, epoch_order, global_batch, micro_batches, steps_per_epoch
from cifar_dist.data.read import ShardReader
from cifar_dist.errors import UserError

Copying = Callable[[], AbstractContextManager[object]]
"""Returns what a ``with`` statement enters."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a process, on the device.

    Attributes:
        images: uint8 [m, height, width, channels], of the n samples. If samples are mixed, each with the one before it,
            m is n + 1 and the first image is that of the sample before the first.
        image_labels: int64 [m], of ``images``.
        image_ids: int64 [m], of ``images``: sample ids within the split.
        weight: float32 [n], 0 for padding.
    """

    images: Tensor
    image_labels: Tensor
    image_ids: Tensor
    weight: Tensor

    @property
    def labels(self) -> Tensor:
        """int64 [n], of the samples."""
        return self.image_labels[-len(self.weight) :]

    @property
    def ids(self) -> Tensor:
        """int64 [n], of the samples."""
        return self.image_ids[-len(self.weight) :]


class Images:
    """The images of one split, by sample id, on a device.

    Args:
        manifest: the packed dataset.
        split: one of its splits.
        config: limit of resident images, and read-ahead.
        device: destination of batches.

    Raises:
        UserError: a shard is missing, truncated or changed.
    """

    def __init__(self, manifest: Manifest, split: str, config: DataConfig, device: torch.device) -> None:
        self._device, self._shape = device, manifest.shape
        self._reader = ShardReader(manifest, split)
        self._reader.check()
        decoded = len(self._reader) * prod(manifest.shape)
        self.resident = decoded <= config.resident_mb * 2**20
        self._all = self._reader.all().to(device) if self.resident else None
        self._read_ahead = config.read_ahead

    def __len__(self) -> int:
        return len(self._reader)

    def get(self, ids: Tensor) -> Tensor:
        """Return the images of ``ids``: uint8 [len(ids), height, width, channels] on the device.

        Args:
            ids: int64 [n], on the CPU; those of resident images may also be on the device.
        """
        if self._all is not None:
            return self._all.index_select(0, ids.to(self._device, non_blocking=True))
        return self._reader.images(ids).to(self._device)

    def stream(self, requests: Sequence[Tensor], copying: Copying = nullcontext) -> Iterator[Tensor]:
        """Yield the images of each request in order, decoded in advance unless they are resident.

        Args:
            requests: ids, as for :meth:`get`.
            copying: entered while decoded images are copied to the device, or out of those that are resident.
        """
        if self._all is not None:
            for ids in requests:
                with copying():
                    images = self.get(ids)
                yield images
            return
        with ThreadPoolExecutor(self._read_ahead) as pool:
            ahead: deque[Future[Tensor]] = deque()
            try:
                for position in range(len(requests)):
                    while len(ahead) < self._read_ahead and position + len(ahead) < len(requests):
                        ids = requests[position + len(ahead)]
                        ahead.append(pool.submit(self._reader.fill, self._buffer(len(ids)), ids))
                    decoded = ahead.popleft().result()
                    with copying():
                        images = decoded.to(self._device, non_blocking=True)
                    yield images
            finally:
                for future in ahead:
                    future.cancel()

    def _buffer(self, count: int) -> Tensor:
        """Return memory for ``count`` images, from which a GPU copies without a wait of the host."""
        return torch.empty((count, *self._shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")


class TrainBatches:
    """The training split, epoch by epoch, for one process; with ``val`` at its end if nothing is held out.

    Args:
        manifest: the packed dataset.
        config: whether ``val`` is held out, shuffling, and where images are kept.
        seed: the run's seed.
        batch_size: samples in a global batch.
        parts: micro-batches in a global batch, over all processes.
        own: numbers of this process's micro-batches.
        device: destination of batches.
        mixed: samples are mixed with the one before them, so each batch includes the one before its first.

    Raises:
        UserError: no such split, samples without a label, or a shard that is missing, truncated or changed.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        parts: int,
        own: range,
        device: torch.device,
        mixed: bool = False,
    ) -> None:
        manifest = manifest.for_training(config.hold_out)
        self.images = Images(manifest, "train", config, device)
        labels = torch.from_numpy(manifest.labels("train"))
        if bool((labels < 0).any()):
            val = "" if config.hold_out else ", which includes val (data.hold_out),"
            of_train = bool(labels[0] < 0)  # the samples of val are behind its own
            remedy = f"add them (KEY.cls), then: {manifest.made_with}" if of_train else "use --data.hold_out true"
            raise UserError(
                f"{manifest.root}: split 'train'{val} has samples without a label; training requires a label for each; "
                f"{remedy}"
            )
        self._labels = labels.to(device)
        self._sizes = [shard.samples for shard in manifest.shards("train")]
        self._block = config.shuffle_block
        self._seed = seed
        self._batch_size = batch_size
        self._own, self._parts = own, parts
        self._device = device
        self._mixed = mixed
        self.steps_per_epoch = steps_per_epoch(len(self.images), batch_size)

    def size(self, step: int) -> int:
        """Return the number of samples in global batch ``step`` of an epoch, over all processes."""
        return min(self._batch_size, len(self.images) - step * self._batch_size)

    def epoch(self, epoch: int, first_step: int = 0, copying: Copying = nullcontext) -> Iterator[list[Batch]]:
        """Yield this process's batches of one epoch from ``first_step``: a list of micro-batches per step.

        ``copying``: as for :meth:`Images.stream`.
        """
        order = epoch_order(self._sizes, self._seed, epoch, self._block)
        slices = [global_batch(order, step, self._batch_size) for step in range(first_step, self.steps_per_epoch)]
        plan = [part for batch in slices for part in micro_batches(batch, self._own, self._parts)]
        if not plan:
            return
        requests = [self._wanted(part) for part in plan]
        # Ids and weights of the entire epoch move to the device together, so that no step waits for them.
        ids, weights = self._on_device(requests), self._on_device([part.weight for part in plan])
        images = self.images.stream(ids if self.images.resident else requests, copying)
        batches = (
            Batch(next(images), self._labels[own], own, weight) for own, weight in zip(ids, weights, strict=True)
        )
        yield from (list(step) for step in zip(*[batches] * len(self._own), strict=True))

    def _wanted(self, part: MicroBatch) -> Tensor:
        """Return the ids whose images a micro-batch needs."""
        return torch.cat([part.before, part.ids]) if self._mixed else part.ids

    def _on_device(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copy tensors of one dimension to the device, all at once."""
        return torch.cat([*parts]).to(self._device).split_with_sizes([len(part) for part in parts])
