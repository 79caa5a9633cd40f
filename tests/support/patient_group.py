"""Engines whose process group waits for its peers when it is destroyed, as NCCL's can.

``--train.engine tests/support/patient_group.py:Failing``. The group is gloo's.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from cifar_dist.distributed.data_parallel import DataParallel
from cifar_dist.distributed.wrapped_model import WrappedModel


class PatientGroup(dist.ProcessGroup):
    """gloo's; ``shutdown`` returns when all ranks have called it."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(store, rank, size)
        gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        self._set_default_backend(dist.ProcessGroup.BackendType.GLOO)

    def shutdown(self) -> None:
        print("waiting for the other ranks", flush=True)
        self.barrier().wait()


dist.Backend.register_backend("patient", PatientGroup, devices=["cpu"])


class Patient(DataParallel):
    """DDP over it."""

    def start_accelerator(self, cpu: bool) -> Accelerator:
        dist.init_process_group("patient", timeout=timedelta(minutes=30))  # Accelerate knows no such backend
        return super().start_accelerator(cpu)


class Failing(Patient):
    """Rank 1 fails while rank 0 waits for it in a collective."""

    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> WrappedModel:
        if self.ranks.rank == 1:
            raise RuntimeError("rank 1 broke")
        return super().wrap(module, optimizer)
