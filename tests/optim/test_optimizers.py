"""Parameter groups, and that each name is torch's optimizer with the settings it was given."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from cifar_dist.config import OptimConfig
from cifar_dist.errors import UserError
from cifar_dist.models import build
from cifar_dist.optim import build_optimizer


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id[id(parameter)] for parameter in parameters]


def test_norms_and_biases_do_not_decay_and_frozen_weights_are_left_out() -> None:
    model = build("speed-net", classes=10, options={"widths": [4, 4, 4]})
    optimizer = build_optimizer(OptimConfig(weight_decay=0.1, lr=0.3), model)
    decayed, exempt = optimizer.param_groups
    convolutions = [f"groups.{group}.conv{conv}.weight" for group in range(3) for conv in (1, 2)]
    assert names_of(model, decayed["params"]) == [*convolutions, "head.weight"]
    norms = [f"groups.{group}.norm{norm}.bias" for group in range(3) for norm in (1, 2)]
    assert names_of(model, exempt["params"]) == ["whiten.bias", *norms]
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    assert (decayed["lr"], exempt["lr"]) == (0.3, 0.3)


def test_decay_norms_makes_one_group_of_all_in_the_models_order() -> None:
    model = build("tiny-resnet", classes=10, options={})
    (group,) = build_optimizer(OptimConfig(decay_norms=True), model).param_groups
    assert names_of(model, group["params"]) == [name for name, _ in model.named_parameters()]
    assert group["weight_decay"] == OptimConfig().weight_decay


@pytest.mark.parametrize("decay_norms", [True, False])
def test_every_parameter_is_in_exactly_one_group_even_when_shared(decay_norms: bool) -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.BatchNorm1d(4), layer)
    groups = build_optimizer(OptimConfig(decay_norms=decay_norms), model).param_groups
    names = [name for group in groups for name in names_of(model, group["params"])]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def reference(name: str, config: OptimConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_each_name_is_torchs_optimizer_with_these_settings(name: Literal["sgd", "adam", "adamw"]) -> None:
    config = OptimConfig(
        name=name, lr=0.03, momentum=0.8, nesterov=False, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2, decay_norms=True
    )
    models, weights = [], torch.randn(3, 5)
    for make in (lambda m: build_optimizer(config, m), lambda m: reference(name, config, list(m.parameters()))):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        start = model.weight.detach().clone()
        optimizer = make(model)
        for _ in range(3):
            optimizer.zero_grad()
            (model.weight * weights).sum().backward()
            optimizer.step()
        assert not torch.equal(model.weight, start)
        models.append(model)
    assert torch.equal(models[0].weight, models[1].weight)


@pytest.mark.parametrize("rest", ["sgd", "adamw"])
def test_muon_has_the_hidden_layers_and_the_rest_follows_at_its_own_rate(rest: Literal["sgd", "adamw"]) -> None:
    model = build("speed-net", classes=10, options={"widths": [4, 4, 4]})
    config = OptimConfig(name="muon", rest=rest, rest_lr=3.0, weight_decay=0.1, momentum=0.6, normalize=True)
    hidden, decayed, exempt = build_optimizer(config, model).param_groups
    assert names_of(model, hidden["params"]) == [f"groups.{g}.conv{c}.weight" for g in range(3) for c in (1, 2)]
    assert names_of(model, decayed["params"]) == ["head.weight"]
    assert len(exempt["params"]) == 7
    assert (hidden["weight_decay"], decayed["weight_decay"], exempt["weight_decay"]) == (0.0, 0.1, 0.0)
    assert [group.get("lr_scale", 1.0) for group in (hidden, decayed, exempt)] == [1.0, 3.0, 3.0]
    assert hidden["momentum"] == 0.6
    assert rest == "adamw" or decayed["momentum"] == config.rest_momentum


def test_muon_refuses_a_model_without_hidden_layers() -> None:
    with pytest.raises(UserError, match=r"optim\.name muon .* use --optim\.name sgd"):
        build_optimizer(OptimConfig(name="muon"), nn.Linear(2, 2))
