"""All ranks agree: to stop, and that the loss is finite. Decided once, the same on each, after the same step.

After every step each rank tells all whether it was asked to stop and whether its losses were finite. The answer is
read one step late, so that no device waits for it. A loss that is not finite has by then reached the weights in
memory, never a checkpoint: :meth:`Agreement.settle` comes before anything is saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.ranks import Pending
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import TrainingFailedError

_IDS_SHOWN = 8


class StopRequested(Exception):  # noqa: N818 - it is no error
    """All ranks have agreed to stop."""


@dataclass(frozen=True)
class _Told:
    """What every rank tells after a step, on its way to all."""

    pending: Pending
    step: int
    ids: Tensor
    finite: Tensor


class Agreement:
    """One rank's part in it. Every method is collective.

    Args:
        engine: this process's place in the job.
        signals: what this process was asked.
    """

    def __init__(self, engine: Engine, signals: StopSignals) -> None:
        self._engine = engine
        self._signals = signals
        self._told: _Told | None = None

    def after_step(self, step: int, ids: Tensor, finite: Tensor) -> None:
        """Tell all ranks about this step, and judge what they told about the step before.

        Args:
            step: optimizer steps done.
            ids: int64 [n], the samples of this rank.
            finite: bool [n], whether the loss of each was finite.

        Raises:
            StopRequested: a rank was asked to stop.
            TrainingFailedError: a loss was not finite; the message names the step and the samples.
        """
        flags = torch.stack([torch.full_like(finite[0], bool(self._signals.received)), ~finite.all()]).float()
        before, self._told = self._told, _Told(self._engine.exchange(flags), step, ids, finite)
        if before is not None:
            self._judge(before)

    def settle(self, *, stopping: bool = False) -> None:
        """Judge the last step too, before anything is evaluated or saved; ``stopping``: it is agreed already.

        Raises:
            StopRequested, TrainingFailedError: as :meth:`after_step`.
        """
        before, self._told = self._told, None
        if before is not None:
            self._judge(before, stopping=stopping)

    def poll(self) -> None:
        """Ask outside the steps, before a batch of an evaluation.

        Raises:
            StopRequested: a rank was asked to stop.
        """
        wish = torch.tensor([float(bool(self._signals.received))], device=self._engine.device)
        if self._engine.exchange(wish).wait()[0]:
            raise StopRequested

    def _judge(self, told: _Told, *, stopping: bool = False) -> None:
        stop, broken = told.pending.wait()
        if broken:
            everyone = self._engine.gather_objects(told.ids[~told.finite].tolist())
            ids = sorted({sample for rank in everyone for sample in rank})
            more = f" and {len(ids) - _IDS_SHOWN} more" if len(ids) > _IDS_SHOWN else ""
            raise TrainingFailedError(
                f"the loss is not finite at step {told.step} for {len(ids)} samples "
                f"(ids {', '.join(map(str, ids[:_IDS_SHOWN]))}{more}); the checkpoints before it are whole. "
                "Try a lower --optim.lr, --optim.clip_norm 1, or --train.precision no"
            )
        if stop and not stopping:
            raise StopRequested
