"""One process, or DistributedDataParallel: every process holds the complete network, and gradients are averaged."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from cifar_dist.config import Config
from cifar_dist.distributed.engine import Engine, check_wrapper
from cifar_dist.distributed.wrapped_model import WrappedModel
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some
from cifar_dist.terminal.notice import notice


class DataParallel(Engine):
    """Accelerate's default."""

    limits = ()
    description = "DDP"

    def __init__(self, config: Config, *, cpu: bool) -> None:
        super().__init__(config, cpu=cpu)
        several = self.ranks.world_size > 1
        self.kind, self.description = ("ddp", "DDP") if several else ("single", "one process")
        if config.train.compress_gradients != "no" and not several:  # of an elastic job, too
            notice("train.compress_gradients has no effect on one process, which sends no gradients")

    def start_accelerator(self, cpu: bool) -> Accelerator:
        hook = DDPCommunicationHookType(self._config.train.compress_gradients)
        options = DistributedDataParallelKwargs(gradient_as_bucket_view=True, comm_hook=hook)
        return self.create_accelerator(cpu=cpu, mixed_precision=self.precision.name, handlers=[options])

    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> WrappedModel:
        if self.kind == "single":
            # Not prepare(), which puts one process that a launcher started on a CPU into DDP after all.
            wrapper = self.accelerator.prepare_model(module, evaluation_mode=True)  # autocast and compilation only
            return self.build_model(WrappedModel, module, wrapper, self.accelerator.prepare_optimizer(optimizer))
        # Without it, Accelerate names DDP's device by the local rank, which no device has where ranks share a GPU. The
        # module and its inputs are on their device already.
        os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"
        wrapper, wrapped_optimizer = self.accelerator.prepare(module, optimizer)
        ddp = check_wrapper(wrapper, self.kind, "DistributedDataParallel")
        logging.getLogger("torch._dynamo.variables.ctx_manager").addFilter(_concerns_users)
        # Batch statistics are rank 0's, and reach the others where they are read, not at every step. Set here, because
        # torch has two names for the argument.
        ddp.broadcast_buffers = False  # type: ignore[assignment]
        return self.build_model(_DataParallelModel, module, wrapper, wrapped_optimizer)


class _DataParallelModel(WrappedModel):
    """DDP exchanges the gradients of one bucket of parameters while it computes those of the next."""

    _order: list[nn.Parameter]
    _hooks: Sequence[RemovableHandle] = ()

    @property
    def needs_rehearsal(self) -> bool:
        """DDP puts gradients into its buckets in the order of parameters, then in the order that the first pass showed.

        Of two processes it adds up the same two numbers. Of more, the place in a bucket decides which are added first.
        """
        return self.ranks.world_size > 2

    def watch_exchange(self, begins: Callable[[], object]) -> None:
        self._order, self._begins = [], begins
        parameters = self.trainable_parameters().values()
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._order.append) for parameter in parameters]

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        self._require_gradients()
        if self._hooks:  # the first pass has shown which gradient is the last
            for hook in self._hooks:
                hook.remove()
            self._hooks = ()
            self._order.pop().register_post_accumulate_grad_hook(_calling(self._begins))
            self._order.clear()

    def _require_gradients(self) -> None:
        """Refuse a pass in which a parameter got no gradient on this process, which no other knows.

        DDP sends the gradients of a bucket when they are complete. The next exchange of this process would be taken for
        that of the bucket, by others that have it. Torch knows without an exchange, and without the device.

        Raises:
            UserError: with the parameters.
        """
        wrapper: nn.Module = getattr(self.wrapper, "_orig_mod", self.wrapper)
        assert isinstance(wrapper, DistributedDataParallel)
        try:
            wrapper._check_reducer_finalized()
        except RuntimeError as error:
            found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
            if found is None:
                raise
            names = list(self.trainable_parameters())
            raise UserError(
                f"{list_some([names[int(number)] for number in found[1].split()])} got no gradient in a step on rank "
                f"{self.ranks.rank}, and DDP needs one of each trainable parameter in each step; remove what forward "
                "does not use, call requires_grad_(False) on it, or multiply by 0 what forward would skip"
            ) from None


def _concerns_users(record: logging.LogRecord) -> bool:
    """Leave out that the compiler ignores a profiler's labels: DDP sets some, and every rank would say so."""
    return not str(record.msg).startswith("Profiler record function")


def _calling(begins: Callable[[], object]) -> Callable[[Tensor], None]:
    """Return a hook that calls ``begins``. It does not hold the model, which its own weights would then keep alive."""

    def hook(_parameter: Tensor) -> None:
        begins()

    return hook
