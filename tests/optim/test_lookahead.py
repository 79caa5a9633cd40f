"""Lookahead against the paper's algorithm and airbench's variant of it."""

from __future__ import annotations

import pytest
import torch
from support.small_model import same, small_model, train
from torch import Tensor, nn

from cifar_dist.config.average import LookaheadConfig
from cifar_dist.optim.averaging import WeightAverage
from cifar_dist.optim.held_weights import HeldWeights

PER_EPOCH, EPOCHS = 8, 4


def test_the_defaults_are_those_of_the_paper() -> None:
    """With those of an EMA, a decay of 0.999 at every step, a run learnt nothing: 0.1 % of each step was kept."""
    config = LookaheadConfig()
    assert (config.every, config.weight(5, start=0, total=100)) == (5, 0.5)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def airbench(model: nn.Module, *, start: int, every: int, base: float, power: float) -> None:
    """Train with the loop of airbench94, transcribed from its source."""
    optimizer, slow, total = sgd(model), None, PER_EPOCH * EPOCHS

    def update(slow: dict[str, Tensor], decay: float) -> None:
        for held, own in zip(slow.values(), model.state_dict().values(), strict=True):
            if own.dtype is torch.float32:
                held.lerp_(own, 1 - decay)
                own.copy_(held)

    for step in range(1, total + 1):
        train(model, optimizer, range(step, step + 1))
        if step >= start and step % every == 0:
            if slow is None:
                slow = {name: value.clone() for name, value in model.state_dict().items()}
            else:
                update(slow, base**every * (step / total) ** power)
    assert slow is not None
    update(slow, 1.0)


def test_lookahead_equals_airbenchs() -> None:
    theirs, ours = small_model(), small_model()
    airbench(theirs, start=10, every=5, base=0.95, power=3.0)
    lookahead = WeightAverage(
        HeldWeights(ours),
        LookaheadConfig(start=10 / PER_EPOCH, every=5, decay=0.95**5, ramp=3.0),
        steps_per_epoch=PER_EPOCH,
        epochs=EPOCHS,
    )
    optimizer = sgd(ours)
    for step in range(1, PER_EPOCH * EPOCHS + 1):
        train(ours, optimizer, range(step, step + 1))
        lookahead.update(step)
    with lookahead.applied():  # airbench replaces the weights at the end of the run, which is not the end of an update
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_papers_algorithm_by_hand() -> None:
    """With k = 2 and alpha = 0.5, the slow weight moves half the way of two fast steps of +1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    lookahead = WeightAverage(
        HeldWeights(model), LookaheadConfig(start=0 / 100, every=2, decay=0.5), steps_per_epoch=100, epochs=1
    )
    values = []
    for step in range(1, 7):
        model.weight.data += 1
        lookahead.update(step)
        values.append(model.weight.item())
    assert values == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    with lookahead.applied():
        assert model.weight.item() == 3.0


def test_the_steps_before_the_end_of_an_epoch_count_in_the_next_update() -> None:
    """An epoch of 3 steps ends between two updates, and once the average was given back there, too."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    lookahead = WeightAverage(
        HeldWeights(model), LookaheadConfig(start=2 / 3, every=5, decay=0.5), steps_per_epoch=3, epochs=3
    )
    values = []
    for step in range(1, 9):
        model.weight.data += 1
        lookahead.update(step)
        values.append(model.weight.item())
    assert values == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.5, 5.5]  # a copy after 2; half way from it after 7


@pytest.mark.parametrize("stop", [1, 4, 7, 8])
def test_a_resume_is_exact_to_the_bit(stop: int) -> None:
    def lookahead(model: nn.Module) -> WeightAverage:
        return WeightAverage(
            HeldWeights(model),
            LookaheadConfig(start=4 / PER_EPOCH, every=3, decay=0.8, ramp=1.0),
            steps_per_epoch=PER_EPOCH,
            epochs=EPOCHS,
        )

    model = small_model()
    before, optimizer = lookahead(model), sgd(model)
    for step in range(1, stop + 1):
        train(model, optimizer, range(step, step + 1))
        before.update(step)
    resumed = small_model()
    resumed.load_state_dict(model.state_dict())
    after = lookahead(resumed)
    after.load(before.tensors, stop)
    for module, running in ((model, before), (resumed, after)):
        optimizer = sgd(module)
        for step in range(stop + 1, 20):
            train(module, optimizer, range(step, step + 1))
            running.update(step)
    assert same(model.state_dict(), resumed.state_dict())
    assert same(before.tensors, after.tensors)
