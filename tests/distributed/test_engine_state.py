"""The state of a network and its optimizer in an engine: it continues bit for bit, or is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import engine_on_ranks
from support.engine_on_ranks import network, optimizer, prepared, train
from support.engines import engine as start
from support.small_model import same
from torch import Tensor, nn

from cifar_dist.distributed.loss_scaler import LossScaler
from cifar_dist.distributed.optimizer_state import restore
from cifar_dist.errors import UserError


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_restored_state_continues_bit_for_bit(name: str) -> None:
    model = prepared(name)
    train(model, 1, [16, 13])
    weights = {key: value.clone() for key, value in model.state().items()}
    state = model.optimizer_state()
    keys = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}[name]
    assert set(state) == {f"{key}/{parameter}" for key in keys for parameter in weights}

    other = prepared(name)
    other.module.load_state_dict(weights)
    other.load_optimizer_state(state)
    assert same(other.optimizer_state(), state)
    for both in (model, other):
        train(both, 1, [7, 16])
    assert same(other.state(), model.state())
    assert same(other.optimizer_state(), model.optimizer_state())
    untouched = prepared(name)
    train(untouched, 1, [7, 16])
    assert not same(untouched.optimizer_state(), model.optimizer_state())


class Counting(torch.optim.SGD):
    """Keeps a Python number, which no checkpoint has."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        super().step()
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["steps"] = 1


class CountingByGroup(torch.optim.SGD):
    """Keeps a count as timm's Lamb, Adan and Prodigy do."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        super().step()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1


@pytest.mark.parametrize(
    ("updater", "says"),
    [
        (CountingByGroup, r"CountingByGroup keeps 'step' in a parameter group, after a step 1: such a run"),
        (torch.optim.Adafactor, r"Adafactor keeps a tensor of \[8, 1\] as 'row_var' of 0.weight: such a run"),
        (Counting, r"Counting keeps 1, which is not a tensor, as 'steps' of 0.weight: such a run could not be resumed"),
    ],
)
def test_a_state_that_no_checkpoint_holds_is_refused_after_the_first_step(
    updater: type[torch.optim.Optimizer], says: str
) -> None:
    module = network()
    model = start().prepare(module, updater(module.parameters()))  # type: ignore[call-arg]
    train(model, 1, [16])
    with pytest.raises(UserError, match=says):
        model.require_savable_state()


def test_a_network_whose_buffers_appear_in_a_step_is_refused() -> None:
    """No new network could load its checkpoint."""
    models = []
    for persistent in (True, False):
        module = engine_on_ranks.Remembering(persistent)
        models.append(start().prepare(module, optimizer("sgd", module)))
        models[-1].require_fixed_shapes()
        train(models[-1], 1, [16])
    with pytest.raises(
        UserError, match=r"network's bank was not a tensor before the first step and is \[16, 6\] within it"
    ):
        models[0].require_fixed_shapes()
    models[1].require_fixed_shapes()


def test_restored_state_has_the_memory_format_of_the_weights() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    saved = torch.randn(4, 3, 2, 2)
    restore(optimizer, {"conv": weight}, {"conv": {"momentum_buffer": saved}})
    restored = optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(restored, saved)
    assert restored.stride() == weight.stride(), "else torch updates one tensor at a time"


def test_a_saved_state_does_not_change_with_the_next_step() -> None:
    model = prepared("sgd")
    train(model, 1, [16])
    state = model.optimizer_state()
    before = {key: value.clone() for key, value in state.items()}
    train(model, 1, [16])
    assert same(state, before)


def test_a_loss_that_overflows_at_any_scale_is_noticed() -> None:
    """A gradient that is never finite halves the scale of the loss in each step, and no weight changes."""
    engine = start()
    engine.accelerator.scaler = LossScaler("cpu")
    module = network()
    model = engine.prepare(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert model.scaler_state()["scale"] == 65536
    assert not model.always_overflows()
    model.load_scaler_state({**model.scaler_state(), "scale": 1e-5})
    assert model.always_overflows()


def test_before_the_first_step_the_state_is_empty() -> None:
    model = prepared("sgd")
    assert model.optimizer_state() == {}
    model.load_optimizer_state({})
    train(model, 1, [16])


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("momentum_buffer/0.weight", torch.zeros(8, 7)),
        ("momentum_buffer/9.weight", torch.zeros(8, 6)),
        ("momentum_buffer", torch.zeros(8, 6)),
        ("/", torch.zeros(())),
    ],
)
def test_optimizer_state_of_another_model_is_refused(entry: str, value: Tensor) -> None:
    model = prepared("sgd")
    with pytest.raises(UserError, match=f"optimizer state '{entry}' fits no parameter of this model"):
        model.load_optimizer_state({entry: value})


def test_frozen_parameters_have_no_state() -> None:
    module = network()
    module[0].requires_grad_(False)
    weight = module.get_parameter("0.weight")
    before = weight.clone()
    learn = [p for p in module.parameters() if p.requires_grad]
    model = start().prepare(module, torch.optim.SGD(learn, lr=1, momentum=0.9))
    train(model, 1, [16])
    assert not [key for key in model.optimizer_state() if "/0." in key]
    assert torch.equal(weight, before)
    assert "0.weight" in model.state()
