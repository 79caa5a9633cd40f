"""A network as this process holds it: for prediction alone, or wrapped by an engine and trained.

What goes into a checkpoint leaves it as full tensors by parameter name, the same for every engine, so a run may resume
on another number of processes or with another engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Final

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from cifar_dist.cpu.conv2d import convolutions_in_int8
from cifar_dist.distributed.checksum import checksum
from cifar_dist.distributed.host_copies import Deal, copy_to_host
from cifar_dist.distributed.optimizer_state import by_parameter, collect, group_values, require_savable, restore
from cifar_dist.distributed.precision import Precision
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.sharded_tensor import full_shape, full_tensor
from cifar_dist.distributed.sharded_weights import ShardedWeights
from cifar_dist.errors import TrainingFailedError, UserError
from cifar_dist.optim.held_weights import HeldWeights

_LEAST_SCALE: Final = torch.finfo(torch.float16).smallest_normal
"""Of the loss: with it gradients of 1 vanish. It begins at 65536, and each overflow halves it."""


class InferenceModel:
    """A network on this process's device.

    Attributes:
        module: the bare network.
        ranks: this process among those that share the predictions.
        moved: called after each forward pass of :meth:`infer`.
    """

    moved: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, module: nn.Module, ranks: Ranks, precision: Precision) -> None:
        self.module = module
        self.ranks = ranks
        self._precision = precision
        saved = module.state_dict(keep_vars=True)
        self._saved_buffers = [name for name, _ in module.named_buffers() if name in saved]

    @torch.no_grad()
    def infer(self, images: Tensor) -> Tensor:
        """Logits, float32 [n, classes], of normalised images, float32 [n, c, h, w], in the run's precision.

        Collective where the weights are sharded: every rank must call it equally often.
        """
        dtype = self._precision.autocast
        with torch.autocast(self.ranks.device.type, dtype=dtype, enabled=dtype is not None):
            logits: Tensor = self.module(images)  # not DDP's wrapper, which asks the other ranks
        self.moved()
        return logits.float()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode inside, with rank 0's batch statistics on all ranks; the former modes after. Collective."""
        self.broadcast_buffers()
        modes = {module: module.training for module in self.module.modules()}  # a frozen stage does not train
        self.module.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    def saved_buffers(self) -> list[Tensor]:
        """The buffers that a checkpoint has. Others are each process's own, and may appear or change their shape."""
        buffers = dict(self.module.named_buffers())
        return [buffers[name] for name in self._saved_buffers if name in buffers]

    def broadcast_buffers(self) -> None:
        """Give every rank the saved buffers of rank 0: the batch statistics of the run. Collective."""
        if self.ranks.world_size == 1:
            return
        saved = self.saved_buffers()
        for dtype in dict.fromkeys(buffer.dtype for buffer in saved):  # in one message each
            buffers = [buffer for buffer in saved if buffer.dtype == dtype]
            together = torch.cat([buffer.reshape(-1) for buffer in buffers])
            dist.broadcast(together, src=0)
            for buffer, values in zip(buffers, together.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(values.view_as(buffer))

    def state(self, deal: Deal | None = None) -> dict[str, Tensor]:
        """A copy of the full weights and buffers by name, on the CPU. Collective.

        Args:
            deal: which of them this process copies; None for all.
        """
        self.broadcast_buffers()
        return copy_to_host(self.module.state_dict(keep_vars=True).items(), deal)


class WrappedModel(InferenceModel):
    """A network and its optimizer, wrapped by an engine. A training step is::

        model.begin_step(lr)
        for micro_batch in step:
            with model.accumulate():
                model.backward(loss_of(model(micro_batch)))
        model.update()

    Args:
        module: the bare network, on its device.
        wrapper: what a forward pass of training calls.
        optimizer: as the engine wrapped it.
        ranks, precision, accelerator: of the engine.
        accumulate: micro-batches in a step.
        clip_norm: maximum global gradient norm, 0 for none.

    Attributes:
        wrapper: for example torch's ``DistributedDataParallel``.
        is_sharded: whether each process holds shards of the weights.
        hides_missing_gradients: whether a parameter without a gradient looks like the others after a backward pass.
        weights: what this process holds of the network's weights.
        before_update: called by :meth:`update` with the gradients of a step complete, before anything changes them.
    """

    before_update: Callable[[], None] = staticmethod(lambda: None)
    is_sharded: ClassVar[bool] = False
    hides_missing_gradients: ClassVar[bool] = False

    def __init__(
        self,
        module: nn.Module,
        wrapper: nn.Module,
        optimizer: AcceleratedOptimizer,
        *,
        ranks: Ranks,
        precision: Precision,
        accelerator: Accelerator,
        accumulate: int,
        clip_norm: float,
    ) -> None:
        super().__init__(module, ranks, precision)
        self.weights = ShardedWeights(module) if self.is_sharded else HeldWeights(module)
        self.wrapper, self._optimizer, self._accelerator = wrapper, optimizer, accelerator
        self._built_groups = group_values(optimizer.param_groups)
        self._loss_scale = ranks.world_size * accumulate
        self._clip_norm = clip_norm
        self._first_shapes = self._shapes()
        self._without_gradient: list[str] | None = None
        self._reached: set[Tensor] = set()  # by a gradient in the first step, where that does not show afterwards
        watched = self.trainable_parameters().values() if self.hides_missing_gradients else ()
        self._reached_hooks = [weight.register_post_accumulate_grad_hook(self._reached.add) for weight in watched]

    @property
    def needs_rehearsal(self) -> bool:
        """Whether the first step of a process adds up gradients in another order than all later ones.

        The passes of a step are then computed before it and discarded; otherwise, a resumed run would differ from an
        uninterrupted one.
        """
        return False

    def __call__(self, images: Tensor, *, compiled: bool = True) -> Tensor:
        """Logits [n, classes] in the run's precision, with gradients.

        Args:
            images: float32 [n, c, h, w], normalised.
            compiled: False for a batch of an unusual size, which is not worth a compilation of its own.
        """
        # torch.compile keeps what it compiles there.
        wrapper = self.wrapper if compiled else getattr(self.wrapper, "_orig_mod", self.wrapper)
        with convolutions_in_int8(self._precision.int8):
            logits: Tensor = wrapper(images)
        return logits

    def begin_step(self, lr: float) -> None:
        """Clear the gradients and set the learning rate, each group's by its ``lr_scale``."""
        # Only where the network is compiled, by torch or in place by DeepSpeed: the call imports the compiler.
        if hasattr(self.wrapper, "_orig_mod") or getattr(self.wrapper, "is_compiled", False):
            torch.compiler.cudagraph_mark_step_begin()  # what the graphs of the last step returned may be overwritten
        self._set_lr(lr)
        self._clear_gradients()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """One micro-batch; the gradients are synchronised in the last of a step."""
        with self._accelerator.accumulate(self.wrapper):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, a scalar: this micro-batch's share of the global batch's mean loss.

        The gradient of the global batch is the sum over ranks and micro-batches.
        """
        # Each engine averages over ranks, and Accelerate divides by the number of micro-batches.
        self._accelerator.backward(loss * self._loss_scale)

    def update(self) -> Tensor | None:
        """Clip the gradients and step the optimizer.

        Returns:
            The norm of all gradients before they are clipped, a scalar on the device; None where they are not.
        """
        norm: Tensor | None = None
        self.before_update()
        self._keep_without_gradient()  # some optimizers free the gradients in their step
        if self._clip_norm:
            norm = self._accelerator.clip_grad_norm_(self.trainable_parameters().values(), self._clip_norm)
        self._optimizer.step()
        return norm if norm is None else full_tensor(norm.detach())

    def gradient_norms(self) -> dict[str, float]:
        """The L2 norm of each parameter's gradient, without those that have none. Collective.

        Called from :attr:`before_update`: clipping changes gradients, and so do some of torch's optimizers, as SGD with
        Nesterov momentum on a GPU.
        """
        scale = self.scaler_state().get("scale", 1.0)
        gradients = {name: p.grad for name, p in self.trainable_parameters().items() if p.grad is not None}
        return {name: float(full_tensor(gradient).norm()) / scale for name, gradient in gradients.items()}

    def watch_exchange(self, begins: Callable[[], object]) -> None:
        """Have ``begins`` called in a backward pass when all gradients are computed, and only exchanged from there on.

        Only DDP shows it. Other engines exchange gradients while they compute, or after the pass.
        """

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def parameters_without_gradient(self) -> list[str]:
        """The trainable parameters that got no gradient on this process in the first step, or have none before it ends.

        With :attr:`hides_missing_gradients`, those that got none on any process; collective.
        """
        if self._without_gradient is not None:
            return self._without_gradient
        parameters = self.trainable_parameters().items()
        if not self.hides_missing_gradients:
            return [name for name, parameter in parameters if parameter.grad is None]
        of_ranks = self.ranks.gather_objects({name for name, parameter in parameters if parameter not in self._reached})
        return [name for name, _ in parameters if all(name in missing for missing in of_ranks)]

    def assert_synchronised(self) -> None:
        """Assert after a first step that gradients (or, where an engine freed them, weights) are equal on all ranks.

        Raises:
            TrainingFailedError: they differ; the processes train separate models.
        """

        def facts(parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
            full = full_tensor(parameter.grad if parameter.grad is not None else parameter)
            return checksum(full), full.isfinite().all()

        # One full tensor at a time: a process may have no room for all of them.
        sums, are_finite = zip(*map(facts, self.trainable_parameters().values()), strict=True)
        everyone = self.ranks.gather(torch.stack(sums)[None])
        if not torch.equal(everyone, everyone[:1].expand_as(everyone)) and bool(torch.stack(are_finite).all()):
            raise TrainingFailedError(
                f"the {self.ranks.world_size} processes hold different gradients after their first step: they do not "
                "synchronise; start with one of the files in launch/"
            )

    def optimizer_state(self, deal: Deal | None = None) -> dict[str, Tensor]:
        """Full optimizer state as ``KEY/PARAMETER``, on the CPU; see :mod:`cifar_dist.distributed.optimizer_state`.

        Collective.

        Args:
            deal: which tensors this process copies; None for all.
        """
        return collect(self._optimizer.optimizer, self.trainable_parameters(), deal)

    def require_savable_state(self) -> None:
        """Refuse, after a step, an optimizer whose state a checkpoint cannot hold.

        Raises:
            UserError: see :func:`cifar_dist.distributed.optimizer_state.require_savable`.
        """
        require_savable(self._optimizer.optimizer, self.trainable_parameters(), self._built_groups)

    def require_fixed_shapes(self) -> None:
        """Refuse, after a pass of the first step, a network whose checkpoint a newly built one could not load.

        Raises:
            UserError: a tensor of its state appeared, vanished, or changed its shape.
        """
        before, after = self._first_shapes, self._shapes()
        for name in {**before, **after}:
            was, now = before.get(name, "not a tensor"), after.get(name, "not a tensor")
            if was != now:
                raise UserError(
                    f"the network's {name} was {was} before the first step and is {now} within it: no checkpoint of it "
                    "could be loaded; register_buffer it with its final shape, or with persistent=False"
                )

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`optimizer_state` returned, whichever engine returned it.

        Raises:
            UserError: the state belongs to another model or optimizer.
        """
        parameters = self.trainable_parameters()
        restore(self._optimizer.optimizer, parameters, by_parameter(state, parameters))

    def scaler_state(self) -> dict[str, float]:
        """The state of the fp16 loss scaler; empty without one."""
        scaler = self._accelerator.scaler
        return dict(scaler.state_dict()) if scaler is not None else {}

    def always_overflows(self) -> bool:
        """Whether gradients in fp16 overflow at any scale of the loss, so that every update is left out."""
        return self.scaler_state().get("scale", 1.0) < _LEAST_SCALE

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Load what :meth:`scaler_state` returned; no effect without a scaler."""
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(dict(state))

    def _shapes(self) -> dict[str, list[int]]:
        """The shape of each full tensor of the network's state."""
        state = self.module.state_dict(keep_vars=True)
        return {name: list(full_shape(value)) for name, value in state.items() if isinstance(value, Tensor)}

    def _keep_without_gradient(self) -> None:
        """Keep what :meth:`parameters_without_gradient` returns at the end of the first step."""
        if self._without_gradient is None:
            self._without_gradient = self.parameters_without_gradient()
            for hook in self._reached_hooks:
                hook.remove()
            self._reached_hooks, self._reached = [], set()

    def _clear_gradients(self) -> None:
        self._optimizer.optimizer.zero_grad()

    def _set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
