"""One process, or DistributedDataParallel: every process holds the whole network, and gradients are averaged."""

from __future__ import annotations

import torch
from torch import nn

from cifar_dist.config import Config
from cifar_dist.distributed.engine import Engine, check_wrapper
from cifar_dist.distributed.wrapped_model import WrappedModel


class DataParallel(Engine):
    """Accelerate's default. It has no limits."""

    description = "DDP"

    def __init__(self, config: Config, *, cpu: bool) -> None:
        super().__init__(config, cpu=cpu)
        several = self.ranks.world_size > 1
        self.kind, self.description = ("ddp", "DDP") if several else ("single", "one process")

    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> WrappedModel:
        wrapper, wrapped_optimizer = self.accelerator.prepare(module, optimizer)
        if self.kind == "ddp":
            check_wrapper(wrapper, self.kind, "DistributedDataParallel")
        return self.build_model(WrappedModel, module, wrapper, wrapped_optimizer)
