"""Engines that join the ranks over gloo, also on GPUs: two ranks can then share one, whatever NCCL allows.

For checks only: ``--train.engine benchmarks/gpu/over_gloo.py:DataParallelOverGloo``. Gloo copies every gradient through
the host's memory.
"""

from __future__ import annotations

from accelerate import Accelerator

from cifar_dist.distributed.data_parallel import DataParallel
from cifar_dist.distributed.fixed_parts import FixedParts


class DataParallelOverGloo(DataParallel):
    """DDP whose gradients travel over gloo."""

    def start_accelerator(self, cpu: bool) -> Accelerator:
        return self.create_accelerator(cpu=cpu, mixed_precision=self.precision.name, backend="gloo")


class FixedPartsOverGloo(FixedParts):
    """``train.parts`` whose sums travel over gloo."""

    def start_accelerator(self, cpu: bool) -> Accelerator:
        return self.create_accelerator(cpu=cpu, mixed_precision=self.precision.name, backend="gloo")
