"""One process, or DistributedDataParallel: every process holds the whole network, and gradients are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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
            return self.build_model(_DataParallelModel, module, wrapper, wrapped_optimizer)
        return self.build_model(WrappedModel, module, wrapper, wrapped_optimizer)


class _DataParallelModel(WrappedModel):
    """DDP exchanges the gradients of one bucket of parameters while it computes those of the next."""

    _order: list[nn.Parameter]
    _hooks: Sequence[RemovableHandle] = ()

    def watch_exchange(self, begins: Callable[[], object]) -> None:
        self._order, self._begins = [], begins
        parameters = self.trainable_parameters().values()
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._order.append) for parameter in parameters]

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if self._hooks:  # the first pass has shown which gradient is the last
            for hook in self._hooks:
                hook.remove()
            self._hooks = ()
            self._order[-1].register_post_accumulate_grad_hook(self._begin_exchange)

    def _begin_exchange(self, _parameter: Tensor) -> None:
        self._begins()
