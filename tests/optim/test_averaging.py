"""EMA and SWA against torch.optim.swa_utils, batch statistics against its update_bn, and resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.layers import layer_at
from support.small_model import images, loss_of, same, small_model, train
from torch import Tensor, nn
from torch.optim import swa_utils

from cifar_dist.config import AverageConfig
from cifar_dist.config.average import EMAConfig, NoAverageConfig, RunningAverageConfig, SWAConfig
from cifar_dist.errors import UserError
from cifar_dist.models import build
from cifar_dist.optim.averaging import WeightAverage, build_average, recalibrate
from cifar_dist.optim.held_weights import HeldWeights

STEPS = 12
AVERAGES = [EMAConfig(decay=0.9, start=3, every=2), SWAConfig(start=3, every=2), EMAConfig(decay=0.5)]


def make(config: AverageConfig, model: nn.Module) -> WeightAverage:
    """Build an average for a run whose epochs are single steps."""
    average = build_average(config, HeldWeights(model), steps_per_epoch=1, epochs=1000)
    assert average is not None
    return average


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (EMAConfig(decay=0.9, start=3, every=2), swa_utils.get_ema_avg_fn(0.9)),
        (SWAConfig(start=3, every=2), swa_utils.get_swa_avg_fn()),
    ],
)
def test_an_average_equals_torchs(
    config: AverageConfig, reference: Callable[[Tensor, Tensor, Tensor | int], Tensor]
) -> None:
    model = small_model()
    optimizer = sgd(model)
    ours = make(config, model)
    theirs = swa_utils.AveragedModel(model, avg_fn=reference, use_buffers=True)
    for step in range(1, STEPS + 1):
        train(model, optimizer, range(step, step + 1))
        ours.update(step)
        if step in range(3, STEPS + 1, 2):
            theirs.update_parameters(model)
    expected = theirs.module.state_dict()
    state = ours.tensors
    assert state.keys() == {name for name in expected if not name.endswith("num_batches_tracked")}
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    assert not torch.equal(state["0.weight"], model.state_dict()["0.weight"])


def test_an_ema_that_keeps_nothing_is_the_last_weights() -> None:
    model = small_model()
    optimizer, average = sgd(model), make(EMAConfig(decay=0.0), model)
    for step in (1, 2):
        train(model, optimizer, range(step, step + 1))
        average.update(step)
    assert same(dict(average.tensors), {name: model.state_dict()[name] for name in average.tensors})


def test_swa_is_the_mean_of_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = make(SWAConfig(start=10, every=3), model)
    for step in range(1, 34):
        nn.init.constant_(model.weight, step)
        average.update(step)
    assert average.tensors["weight"].item() == pytest.approx((10 + 13 + 16 + 19 + 22 + 25 + 28 + 31) / 8)


@dataclass(frozen=True)
class Closing(RunningAverageConfig):
    """Of a plug-in, with a weight for the steps of a run only; it gives the average back."""

    gives_back: ClassVar[bool] = True

    def weight(self, step: int, *, start: int, total: int) -> float:
        assert step in range(start + self.every, total + 1, self.every)
        return 1 / (total - step + 1)


def test_a_range_test_may_take_more_steps_than_the_run() -> None:
    """An update after the end has the weight of the run's last one, here 0.5; without any, the weights are kept."""
    updated = [1, 2, 3, 4, 5 / 3, 8 / 3, 11 / 3, 14 / 3, 11 / 3, 14 / 3, 17 / 3, 20 / 3, 17 / 3, 20 / 3]
    for start, values in ((1, updated), (7, range(1, 15))):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        config = Closing(start=start / 2, every=4)
        average = build_average(config, HeldWeights(model), steps_per_epoch=2, epochs=5)
        assert average is not None
        found = []
        for step in range(1, 15):
            model.weight.data += 1
            average.update(step)
            found.append(model.weight.item())
        assert found == pytest.approx(list(values))


def test_the_weights_of_a_length_shorter_than_the_steps_done_are_not_asked_for() -> None:
    """That such a run cannot be continued is found afterwards, and said."""
    assert not Closing().keeps_weights(9, steps_per_epoch=1, before=10, after=5)
    assert Closing(every=5).keeps_weights(9, steps_per_epoch=1, before=10, after=4)


@pytest.mark.parametrize("config", AVERAGES)
@pytest.mark.parametrize("stop", [2, 3, 6, 11])
def test_a_resume_is_exact_to_the_bit(config: AverageConfig, stop: int) -> None:
    model = small_model()
    average, optimizer = make(config, model), sgd(model)
    for step in range(1, stop + 1):
        train(model, optimizer, range(step, step + 1))
        average.update(step)
    resumed = small_model()
    resumed.load_state_dict(model.state_dict())
    again = make(config, resumed)
    again.load(average.tensors, stop)
    for module, running in ((model, average), (resumed, again)):
        optimizer = sgd(module)
        for step in range(stop + 1, STEPS + 1):
            train(module, optimizer, range(step, step + 1))
            running.update(step)
    assert average.tensors
    assert same(average.tensors, again.tensors)


@pytest.mark.parametrize("config", AVERAGES)
def test_applied_swaps_the_average_in_and_the_weights_back(config: AverageConfig) -> None:
    model = small_model()
    average, optimizer = make(config, model), sgd(model)
    for step in range(1, STEPS + 1):
        train(model, optimizer, range(step, step + 1))
        average.update(step)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert average.begun
    with average.applied():
        inside = {name: model.state_dict()[name].clone() for name in average.tensors}
    assert same(inside, average.tensors)
    assert not torch.equal(inside["0.weight"], before["0.weight"])
    assert same(model.state_dict(), before)
    with average.applied():
        recalibrate(model, [images(0)])
    assert same(model.state_dict(), before)
    with pytest.raises(RuntimeError), average.applied():
        model(torch.zeros(1, 1, 1, 1))
    assert same(model.state_dict(), before)


def test_the_name_none_builds_no_average() -> None:
    assert build_average(NoAverageConfig(), HeldWeights(small_model()), steps_per_epoch=1, epochs=1) is None


def test_before_its_start_the_average_is_empty() -> None:
    model = small_model()
    average = make(EMAConfig(decay=0.9, start=5), model)
    average.update(4)
    assert average.tensors == {}
    assert not average.begun
    average.load({}, 4)
    assert not average.begun


def test_an_average_of_another_model_is_refused_in_one_line() -> None:
    model = small_model()
    average = make(EMAConfig(decay=0.9, start=5), model)
    average.update(5)
    state = average.tensors
    wrong_shape = {**state, "0.weight": torch.zeros(1)}
    for content, step in (({}, 5), (state, 4), (wrong_shape, 5), ({"other.weight": torch.zeros(1)}, 5)):
        with pytest.raises(UserError, match=f"checkpoint of step {step} has") as error:
            make(EMAConfig(decay=0.9, start=5), model).load(content, step)
        assert "\n" not in str(error.value)


def test_the_average_has_the_memory_layout_of_its_model() -> None:
    model = small_model().to(memory_format=torch.channels_last)
    average = make(EMAConfig(decay=0.9), model)
    average.update(0)
    again = make(EMAConfig(decay=0.9), model)
    again.load(average.tensors, 1)
    for kept in (average, again):
        assert kept.tensors["0.weight"].is_contiguous(memory_format=torch.channels_last)


# ---- batch statistics ------------------------------------------------------------------------------------------


def test_recalibration_equals_torchs_update_bn() -> None:
    ours, theirs = small_model(), small_model()
    batches = [images(step) for step in range(4)]
    recalibrate(ours, batches)
    swa_utils.update_bn(batches, theirs)
    for name, value in theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours.get_buffer("1.running_mean"), torch.zeros(4))


def test_recalibration_does_not_depend_on_a_layers_momentum() -> None:
    """The batch norm of speed-net has its own momentum, which update_bn cannot reset."""
    torch.manual_seed(0)
    model = build("speed-net", classes=3, options={"widths": [4, 4, 4]})
    batches = [torch.randn(6, 3, 12, 12) for _ in range(3)]
    recalibrate(model, batches)
    whiten, conv = model.get_submodule("whiten"), model.get_submodule("groups.0.conv1")
    inputs = torch.stack([conv(torch.nn.functional.gelu(whiten(batch))) for batch in batches])
    pooled = torch.nn.functional.max_pool2d(inputs.flatten(0, 1), 2)
    torch.testing.assert_close(model.get_buffer("groups.0.norm1.running_mean"), pooled.mean(dim=(0, 2, 3)))


def test_recalibration_uses_no_dropout_and_changes_only_statistics() -> None:
    model, without = (nn.Sequential(nn.Dropout(share), small_model(share)) for share in (0.5, 0.0))
    model.get_submodule("1.6").eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for network in (model, without):
        recalibrate(network, [images(0), images(1)])
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    after = model.state_dict()
    assert same(after, without.state_dict())
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"1.{norm}.running_{what}" for norm in (1, 4) for what in ("mean", "var")}


def test_the_statistics_of_half_precision_are_as_precise_as_others() -> None:
    norm, batch = nn.BatchNorm2d(3), images(0).bfloat16()
    recalibrate(norm, [batch])
    variance, mean = torch.var_mean(batch.float(), dim=(0, 2, 3))
    assert torch.equal(norm.get_buffer("running_mean"), mean)
    assert torch.equal(norm.get_buffer("running_var"), variance)


def test_a_batch_norm_in_evaluation_mode_keeps_its_statistics() -> None:
    """And those after it see what comes out of it with them, as in the training of a network with frozen stages."""
    ours, theirs = small_model(), small_model()
    for model in (ours, theirs):
        model[1].eval()
    batches = [images(step) for step in range(4)]
    recalibrate(ours, batches)
    layer_at(theirs, "4", nn.BatchNorm2d).momentum = None  # the mean of all batches
    for batch in batches:
        theirs(batch)
    assert torch.equal(ours.get_buffer("1.running_mean"), torch.zeros(4))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(ours.get_buffer(f"4.{name}"), theirs.get_buffer(f"4.{name}"))


def test_recalibration_without_batch_norm_or_batches_changes_nothing() -> None:
    recalibrate(nn.Linear(2, 2), [torch.zeros(2, 2)])
    model = small_model()
    recalibrate(model, [])
    assert same(model.state_dict(), small_model().state_dict())


def test_an_averaged_model_has_a_lower_loss_than_its_last_weights() -> None:
    """The purpose of averaging: at a large learning rate the mean of the weights has a lower loss than any of them."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    average = make(SWAConfig(start=60), model)
    noise = torch.Generator().manual_seed(0)
    for step in range(1, 121):
        train(model, optimizer, range(1))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.05)
        average.update(step)
    alone = loss_of(model, 0).item()
    with average.applied():
        recalibrate(model, [images(0)])
        together = loss_of(model.eval(), 0).item()
    assert together < alone
