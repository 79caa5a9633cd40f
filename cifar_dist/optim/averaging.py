"""Averages of the weights over the run, and the batch statistics that an average needs.

There is no counter to save: whether step n counts, and how much, is computed from n. So the tensors alone, by name,
are the state, and a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifar_dist.config import AverageConfig, RunningAverageConfig
from cifar_dist.errors import UserError


class WeightAverage:
    """A running average of a model's parameters and floating buffers, kept beside it: A <- A + weight * (W - A).

    It begins as a copy of the model after ``config.start`` epochs and takes the model in after every ``config.every``
    steps from there. Each process keeps its own; as the weights are equal on all of them, so is it. One that gives
    the model its weights back needs a model whose optimizer has no copy of its own (one process, DDP); the optimizer's
    momentum is left as it is.

    Args:
        model: the bare model, on its device, its parameters whole.
        config: how much each update counts.
        steps_per_epoch, epochs: the run.
    """

    def __init__(self, model: nn.Module, config: RunningAverageConfig, *, steps_per_epoch: int, epochs: int) -> None:
        self.model, self._config = model, config
        self._steps_per_epoch, self._total = steps_per_epoch, steps_per_epoch * epochs
        self._start = math.ceil(config.start * steps_per_epoch)
        self._average = self._copy() if self._start == 0 else {}

    @property
    def recalibrate(self) -> int:
        """Training images from which batch statistics are to be computed anew: :func:`recalibrate`."""
        return self._config.recalibrate

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Take the model in if its turn has come, and give it the average back if it is to have it.

        To be called once after each step. An epoch that ends between two updates gives up its last steps where the
        model gets the average.

        Args:
            step: optimizer steps done.

        Returns:
            whether it counted.
        """
        counts = step >= self._start and (step - self._start) % self._config.every == 0
        if step == self._start:
            self._average = self._copy()
        elif counts:
            assert self._average, f"the average begins after step {self._start} and was not loaded at step {step}"
            model = self._tensors()
            weight = self._config.weight(step, start=self._start, total=self._total)
            torch._foreach_lerp_(list(self._average.values()), list(model.values()), weight)
        if self._config.gives_back and (counts or step % self._steps_per_epoch == 0):
            self._put(self._average)
        return counts

    @property
    def begun(self) -> bool:
        """Whether there is an average yet."""
        return bool(self._average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, to be evaluated or saved, and its own again after.

        Before the average has begun the model keeps its own weights.
        """
        kept = self._copy() if self._average else {}
        try:
            self._put(self._average)
            yield
        finally:
            self._put(kept)

    def state(self) -> dict[str, Tensor]:
        """The average by name of parameter or buffer, on the CPU; empty before it has begun."""
        return {name: value.cpu().clone().contiguous() for name, value in self._average.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Put back what :meth:`state` gave after ``step`` steps.

        Raises:
            UserError: the state is of another model, or of another setting of the average.
        """
        model = self._tensors() if step >= self._start else {}
        if {name: value.shape for name, value in model.items()} != {n: value.shape for n, value in state.items()}:
            raise UserError(
                f"the checkpoint of step {step} holds {len(state) or 'no'} averaged weights and this run needs "
                f"{len(model) or 'none'}; resume with the settings it was started with, or take another --run.name"
            )
        self._average = {name: torch.empty_like(value).copy_(state[name]) for name, value in model.items()}

    def _tensors(self) -> dict[str, Tensor]:
        """The model's own floating tensors, in a fixed order; counters of batches are no weights."""
        return {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._tensors().items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        model = self._tensors()
        for name, value in values.items():
            model[name].copy_(value)


def build_average(
    config: AverageConfig, model: nn.Module, *, steps_per_epoch: int, epochs: int
) -> WeightAverage | None:
    """The average that the config asks for, of the bare model on its device; None for none."""
    if not isinstance(config, RunningAverageConfig):
        return None
    return WeightAverage(model, config, steps_per_epoch=steps_per_epoch, epochs=epochs)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of all batch norms to the mean over ``batches`` of each one's own.

    What torch.optim.swa_utils.update_bn does, but that dropout is off, as it will be when the statistics are used,
    and that it asks nothing of a layer's momentum. Deterministic; equal on all processes that see the same batches.

    Args:
        model: the bare model. Its mode is as before afterwards.
        batches: float [n, c, h, w], normalised as in training, n at least 2.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = {module: module.training for module in model.modules()}
    before = [buffer.clone() for norm in norms for buffer in norm.buffers()]
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

    def look(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float()
        seen[norm].append(torch.var_mean(x, dim=[axis for axis in range(x.ndim) if axis != 1]))

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()  # normalises with the batch's own statistics, as the layers after it will expect
    try:
        for images in batches:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for buffer, value in zip((b for norm in norms for b in norm.buffers()), before, strict=True):
            buffer.copy_(value)  # the passes moved them too, by their own momentum
    for norm in norms:
        if seen[norm] and norm.running_mean is not None and norm.running_var is not None:
            variances, means = zip(*seen[norm], strict=True)
            norm.running_mean.copy_(torch.stack(means).mean(dim=0))
            norm.running_var.copy_(torch.stack(variances).mean(dim=0))
