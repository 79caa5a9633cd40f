"""Lookahead: slow weights that follow the optimizer's fast ones every few steps, and draw them back.

Zhang, Lucas, Hinton, Ba: *Lookahead Optimizer: k steps forward, 1 step back*, arXiv:1907.08610. Every k steps::

    slow <- slow + (1 - decay) * (fast - slow)
    fast <- slow
"""

from __future__ import annotations

import math

import torch
from torch import nn

from cifar_dist.config import AverageConfig
from cifar_dist.optim.averaging import EMA, SWA, WeightAverage


class Lookahead(WeightAverage):
    """Slow weights and batch statistics, which the model gets at each update and at the end of each epoch.

    The paper's alpha is ``1 - decay`` and its k is ``every``. ``ramp`` is airbench94's variant (Keller Jordan,
    arXiv:2404.00498: decay 0.95 ** 5, every 5, ramp 3), in which the slow weights hold on the harder the later it
    is: the decay of step n of N is decay * (n / N) ** ramp. The optimizer's momentum is left as it is.

    Changes the weights, so it needs a model whose optimizer has no copy of its own (one process, DDP).

    Args:
        model: the bare model, on its device.
        start: optimizer steps done when the slow weights begin, as a copy.
        every: steps from one update to the next.
        decay: share of the slow weights that an update keeps, in [0, 1).
        ramp: exponent, at least 0; 0 for a constant decay.
        steps_per_epoch, epochs: the run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        start: int,
        every: int,
        decay: float,
        ramp: float = 0.0,
        steps_per_epoch: int,
        epochs: int,
    ) -> None:
        super().__init__(model, start=start, every=every)
        self._decay, self._ramp = decay, ramp
        self._steps_per_epoch, self._total = steps_per_epoch, steps_per_epoch * epochs

    def weight(self, step: int) -> float:
        return 1 - self._decay * math.pow(step / self._total, self._ramp)

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """See :meth:`WeightAverage.update`; an epoch that ends between two updates gives up its last fast steps."""
        counted = super().update(step)
        if counted or step % self._steps_per_epoch == 0:
            self._put(self._average)
        return counted


def build_average(
    config: AverageConfig, model: nn.Module, *, steps_per_epoch: int, epochs: int
) -> WeightAverage | None:
    """The average that the config asks for, of the bare model on its device; None for none."""
    start = math.ceil(config.start * steps_per_epoch)
    if config.name == "ema":
        return EMA(model, decay=config.decay, start=start, every=config.every)
    if config.name == "swa":
        return SWA(model, start=start, every=config.every)
    if config.name == "lookahead":
        return Lookahead(
            model,
            start=start,
            every=config.every,
            decay=config.decay,
            ramp=config.ramp,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
        )
    return None
