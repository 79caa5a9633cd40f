"""The time of each step, on a device that computes while the host goes on."""

from __future__ import annotations

import pytest
import torch
from support.clock import Clock

from cifar_dist.distributed.ranks import PendingValues, Ranks
from cifar_dist.training.measurements import StepLog, StepMeasurements


def measured(step: int) -> StepMeasurements:
    one = torch.ones(1)
    return StepMeasurements(step, 0, 0.1, one.long(), one, one.long(), torch.ones(1, 3, dtype=torch.float64))


def test_what_the_device_still_owes_at_the_end_of_an_epoch_is_time_of_its_last_step(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive = PendingValues.wait

    def wait(self: PendingValues) -> torch.Tensor:
        clock.now += 0.5
        return arrive(self)

    monkeypatch.setattr(PendingValues, "wait", wait)
    log = StepLog(Ranks(0, 1, torch.device("cpu"), first_of_node=True))
    for step in (1, 2):
        clock.now += 2
        log.add(measured(step))
    assert [record.seconds for record in log.take()] == [2.0, 2.5]
    clock.now += 100  # an evaluation
    log.restart_clock()
    clock.now += 3
    log.add(measured(3))
    assert [record.seconds for record in log.take()] == [3.5]
