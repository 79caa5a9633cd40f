"""The loss scaler of fp16 updates as torch's does, to the bit, where a gradient overflows and where none does."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from support.small_model import loss_of, same, small_model
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

from cifar_dist.distributed.loss_scaler import LossScaler, count_steps_on_device, keep
from cifar_dist.distributed.optimizer_state import by_parameter, collect, restore
from cifar_dist.optim.muon import Muon

OVERFLOWS = (True, False, True, True, False)  # of each step


def muon(parameters: Iterable[nn.Parameter], rest: Callable[[list[nn.Parameter]], Optimizer], batched: bool) -> Muon:
    others = [*parameters]
    hidden = others.pop(4)  # the second convolution
    settings = {"lr": 0.1, "momentum": 0.95, "nesterov": True, "weight_decay": 0.0, "normalize": True, "iterations": 5}
    return Muon([hidden], rest(others), batched=batched, **settings)  # type: ignore[arg-type]


BUILDERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "sgd without state": lambda p: SGD(p, lr=0.1),
    "adam": lambda p: Adam(p, lr=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01),
    "nadam": lambda p: NAdam(p, lr=0.01),
    "muon": lambda p: muon(p, lambda rest: SGD(rest, lr=0.1, momentum=0.9), batched=False),
    "muon, adamw": lambda p: muon(p, lambda rest: AdamW(rest, lr=0.01), batched=True),
}


def run(name: str, scaler: torch.amp.GradScaler, *, clip: bool, resumes: bool) -> dict[str, Tensor]:
    """Train a step for each of ``OVERFLOWS``; return weights, state of the optimizer, and scale."""
    module = small_model()
    parameters = dict(module.named_parameters())
    optimizer = BUILDERS[name]([*parameters.values()])
    for step, overflows in enumerate(OVERFLOWS):
        optimizer.zero_grad()
        for micro_batch in (2 * step, 2 * step + 1):
            scaler.scale(loss_of(module, micro_batch)).backward()
        if overflows:
            parameters["3.weight"].grad.view(-1)[step] = torch.inf  # type: ignore[union-attr]
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        if resumes:
            saved, optimizer = collect(optimizer, parameters), BUILDERS[name]([*parameters.values()])
            restore(optimizer, parameters, by_parameter(saved, parameters))
    weights = {key: parameter.detach() for key, parameter in parameters.items()}
    return {**weights, **collect(optimizer, parameters), "scale": torch.tensor(scaler.get_scale())}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("clip", "resumes"), [(False, False), (True, False), (False, True)])
def test_updates_and_their_absence_are_those_of_torch(name: str, clip: bool, resumes: bool) -> None:
    ours, torchs = (
        run(name, scaler("cpu", init_scale=1024.0), clip=clip, resumes=resumes)
        for scaler in (LossScaler, torch.amp.GradScaler)
    )
    assert same(ours, torchs)
    assert ours["scale"] == 128


@pytest.mark.parametrize("name", BUILDERS)
def test_an_overflow_in_the_first_step_leaves_what_there_was(name: str) -> None:
    module = small_model()
    before = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}
    optimizer, scaler = BUILDERS[name]([*module.parameters()]), LossScaler("cpu")
    scaler.scale(loss_of(module, 0) * torch.inf).backward()
    scaler.step(optimizer)
    assert same(before, {key: parameter.detach() for key, parameter in module.named_parameters()})
    assert not optimizer.state


@pytest.mark.parametrize("scaler", [LossScaler, torch.amp.GradScaler])
def test_an_overflow_in_the_first_step_of_a_weight_keeps_the_state_of_the_others(
    scaler: type[torch.amp.GradScaler],
) -> None:
    """As of a layer that the first steps do not use."""
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, scaled = SGD([early, late], lr=0.5, momentum=0.9), scaler("cpu")
    for loss in (early.sum(), (early + late).sum() * torch.inf):
        optimizer.zero_grad()
        scaled.scale(loss).backward()
        scaled.step(optimizer)
        scaled.update()
    assert early.tolist() == [0.5] * 3
    assert late.tolist() == [1] * 3
    assert {p: one["momentum_buffer"].tolist() for p, one in optimizer.state.items()} == {early: [1] * 3}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_numbers_are_kept_or_taken_back_to_the_bit(device: str) -> None:
    shapes = ((), (3,), (40, 3, 3, 3))
    before = [torch.randn(shape, device=device) for shape in shapes]
    before[2] = before[2].to(memory_format=torch.channels_last)
    for is_kept in (True, False):
        after = [tensor * 1e30 for tensor in before]
        after[1][0], after[2][0] = torch.inf, torch.nan
        wanted = [tensor.clone() for tensor in (after if is_kept else before)]
        keep(after, before, torch.tensor(float(is_kept), device=device))
        for found, expected in zip(after, wanted, strict=True):
            assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_what_torch_counts_on_the_host_is_counted_on_the_device_also_after_a_resume() -> None:
    parameters = {"weight": nn.Parameter(torch.ones(3, device="meta"))}
    state = {"weight": {"step": torch.tensor(4.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}
    for builder, flag in ((Adam, "fused"), (AdamW, "fused"), (NAdam, "capturable")):
        optimizer = builder(parameters.values())
        restore(optimizer, parameters, state)
        assert optimizer.state[parameters["weight"]]["step"].device.type == "cpu"
        count_steps_on_device(optimizer)
        assert optimizer.param_groups[0][flag]
        restore(optimizer, parameters, state)
        assert optimizer.state[parameters["weight"]]["step"].device.type == "meta"
