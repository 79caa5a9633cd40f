"""A global batch in a fixed number of parts: the same weights, bit for bit, on any number of processes up to it.

A process works through its parts one after the other, each with batch statistics and dropout of its own. What the
parts have in common does not depend on the processes: gradients are added up by a
:class:`~cifar_dist.distributed.tree_sum.TreeSum`, and each part finds the buffers (running statistics) of the step's
beginning, of which the step keeps those of part 0.

It holds on one kind of device, with deterministic kernels and equally many threads in each process. The price is a
smaller batch per pass and an exchange that does not overlap with the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from cifar_dist.data.order import own_parts
from cifar_dist.distributed.engine import DDP_COMPRESSES, Engine, Limit
from cifar_dist.distributed.tree_sum import TreeSum
from cifar_dist.distributed.wrapped_model import WrappedModel


class FixedParts(Engine):
    """Every process holds the complete network, and ``train.parts`` are dealt to them."""

    limits = (
        replace(DDP_COMPRESSES, remedy="use --train.compress_gradients no, or --train.parts 0"),
        Limit(
            "train.sync_batchnorm", bool, "needs whole batches", "use --train.sync_batchnorm false, or --train.parts 0"
        ),
    )
    kind, description = "parts", "fixed parts"
    rounds_by_processes = False

    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> WrappedModel:
        parts = self._config.train.parts
        self.description = f"{parts} fixed parts"
        wrapper = self.accelerator.prepare_model(module, evaluation_mode=True)  # autocast and compilation only
        create = functools.partial(_PartsModel, parts)
        return self.build_model(create, module, wrapper, self.accelerator.prepare_optimizer(optimizer))


class _PartsModel(WrappedModel):
    """Gradients are views of a vector, one for each part that is under way or waits to be added."""

    hides_missing_gradients = True

    def __init__(
        self, parts: int, module: nn.Module, wrapper: nn.Module, optimizer: AcceleratedOptimizer, **options: object
    ) -> None:
        super().__init__(module, wrapper, optimizer, **options)  # type: ignore[arg-type]
        self._loss_scale = 1
        self._own = own_parts(parts, self.ranks.rank, self.ranks.world_size)
        self._part = self._own.start
        self._parameters = list(self.trainable_parameters().values())
        self._sum = TreeSum(parts, self.ranks, sum(parameter.numel() for parameter in self._parameters))
        self._at_begin: list[Tensor] = []
        self._of_part_0: list[Tensor] = []

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """One part; after this process's last one, the gradients are those of the global batch."""
        if self._part == self._own.start:
            self._at_begin = [buffer.clone() for buffer in self.saved_buffers()]
        else:
            self._set_buffers(self._at_begin)
        vector = self._sum.take_zeros()
        self._set_gradients(vector)
        with super().accumulate():
            yield
        if self._part == 0:
            self._of_part_0 = [buffer.clone() for buffer in self.saved_buffers()]
        self._sum.add(self._part, vector)
        self._part += 1
        if self._part == self._own.stop:
            self._part = self._own.start
            self._set_gradients(self._sum.total())
            if self.ranks.is_main:
                self._set_buffers(self._of_part_0)
            self.broadcast_buffers()

    def _set_gradients(self, vector: Tensor) -> None:
        """Make each parameter's gradient a view of ``vector``, in the parameter's memory format."""
        begin = 0
        for parameter in self._parameters:
            parameter.grad = vector.as_strided(parameter.size(), parameter.stride(), begin)
            begin += parameter.numel()

    def _set_buffers(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.saved_buffers(), values, strict=True):
            buffer.copy_(value)
