"""All ranks agree to stop, and on a loss that is not finite: the same decision, after the same step.

After every step each rank reports to all whether it was asked to stop and whether its losses were finite. The reports
are read one step late, so that no device waits for them. A loss that is not finite has by then reached the weights in
memory, but never a checkpoint: :meth:`Agreement.settle` runs before anything is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.distributed.ranks import PendingValues, Ranks
from cifar_dist.distributed.stop_requests import StopRequests, cause_of
from cifar_dist.errors import StopRequested, TrainingFailedError
from cifar_dist.formatting import and_more, counted

_IDS_SHOWN = 8


@dataclass(frozen=True)
class _Report:
    """A step's report, on its way to all ranks."""

    pending: PendingValues
    step: int
    ids: Tensor
    finite: Tensor


class StopPoll:
    """Asks all ranks whether to stop. Each call is collective, and acts on the answers to the call before.

    Args:
        ranks: this process among all of the job.
        requests: to stop, of this process.
    """

    def __init__(self, ranks: Ranks, requests: StopRequests) -> None:
        self._ranks, self._requests = ranks, requests
        self._asked: PendingValues | None = None

    def __call__(self) -> None:
        """Raises StopRequested if a rank had been asked to stop by the call before."""
        code = torch.full((1,), float(self._requests.code()), device=self._ranks.device)
        before, self._asked = self._asked, self._ranks.start_maximum(code)
        if before is not None and (cause := cause_of(*before.wait().tolist())):
            raise StopRequested(cause)


class Agreement:
    """One rank's part in the agreement. Every method is collective.

    Args:
        ranks: this process among all of the job.
        requests: to stop, of this process.
        moved: called after each step.
        diverged: creates the error for a loss that is not finite, given what happened.

    Attributes:
        poll: asks only whether to stop, where there are no losses: before each batch of an evaluation.
    """

    def __init__(
        self,
        ranks: Ranks,
        requests: StopRequests,
        moved: Callable[[], None] = lambda: None,
        diverged: Callable[[str], TrainingFailedError] = TrainingFailedError,
    ) -> None:
        self._ranks, self._moved, self._diverged = ranks, moved, diverged
        self._requests = requests
        self.poll = StopPoll(ranks, requests)
        self._last: _Report | None = None

    def after_step(self, step: int, ids: Tensor, finite: Tensor) -> None:
        """Report this step to all ranks, and act on the reports of the step before.

        Args:
            step: optimizer steps done.
            ids: int64 [n], the samples of this rank.
            finite: bool [n], whether the loss of each was finite.

        Raises:
            StopRequested: a rank was asked to stop.
            TrainingFailedError: a loss was not finite; the message names the step and the samples.
        """
        self._moved()
        failed = (~finite.all()).float()
        flags = torch.stack([torch.full_like(failed, self._requests.code()), failed])
        before, self._last = self._last, _Report(self._ranks.start_maximum(flags), step, ids, finite)
        if before is not None:
            self._act_on(before)

    def settle(self, *, stopping: bool = False) -> None:
        """Act on the last step's reports too, before anything is evaluated or saved.

        Args:
            stopping: the ranks have agreed to stop already.

        Raises:
            StopRequested, TrainingFailedError: as :meth:`after_step`.
        """
        before, self._last = self._last, None
        if before is not None:
            self._act_on(before, stopping=stopping)

    def _act_on(self, report: _Report, *, stopping: bool = False) -> None:
        stop, not_finite = report.pending.wait().tolist()
        if not_finite:
            everyone = self._ranks.gather_objects(report.ids[~report.finite].tolist())
            ids = sorted({sample for rank in everyone for sample in rank})
            some = and_more([str(sample) for sample in ids[:_IDS_SHOWN]], len(ids))
            samples = f"{counted(len(ids), 'sample')} ({'ids' if len(ids) > 1 else 'id'} {some})"
            raise self._diverged(f"the loss is not finite at step {report.step} for {samples}")
        if stop and not stopping:
            raise StopRequested(cause_of(stop))
