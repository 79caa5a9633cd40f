"""Engines that wait for ranks as NCCL may and gloo does not: when they leave the process group, or as they begin.

``--train.engine tests/support/patient_group.py:Failing``. A Python subclass of torch's process group would be more
direct, but DDP sometimes deadlocks with one.
"""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from cifar_dist.distributed.data_parallel import DataParallel
from cifar_dist.distributed.wrapped_model import WrappedModel


class Patient(DataParallel):
    """DDP."""

    def close(self) -> None:
        print("waiting for the other ranks", flush=True)
        dist.barrier()
        super().close()


class Late(DataParallel):
    """DDP whose rank 1 comes to the first exchange once the file exists that the environment names."""

    def start_accelerator(self, cpu: bool) -> Accelerator:
        accelerator = super().start_accelerator(cpu)
        while accelerator.process_index == 1 and not os.path.exists(os.environ["CIFAR_DIST_TEST_LATE_UNTIL"]):
            time.sleep(0.05)
        return accelerator


class Failing(Patient):
    """Rank 1 fails while rank 0 waits for it in a collective."""

    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> WrappedModel:
        if self.ranks.rank == 1:
            raise RuntimeError("rank 1 broke")
        return super().wrap(module, optimizer)
