"""Parameter groups, by decay and by stage, and that each name builds torch's optimizer with the given settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.small_model import same, small_model, train
from torch import nn

from cifar_dist.config import OptimConfig, SGDConfig, StagedOptimConfig
from cifar_dist.config.optim import AdamConfig, AdamWConfig, MuonAdamWConfig, MuonConfig, MuonSGDConfig
from cifar_dist.errors import UserError
from cifar_dist.models import build
from cifar_dist.optim import muon
from cifar_dist.optim.optimizers import build_optimizer, thaw


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id[id(parameter)] for parameter in parameters]


def test_norms_and_biases_do_not_decay_and_frozen_weights_are_left_out() -> None:
    model = build("speed-net", classes=10, options={"widths": [4, 4, 4]})
    optimizer = build_optimizer(SGDConfig(weight_decay=0.1, lr=0.3), model)
    decayed, exempt = optimizer.param_groups
    convolutions = [f"groups.{group}.conv{conv}.weight" for group in range(3) for conv in (1, 2)]
    assert names_of(model, decayed["params"]) == [*convolutions, "head.weight"]
    norms = [f"groups.{group}.norm{norm}.bias" for group in range(3) for norm in (1, 2)]
    assert names_of(model, exempt["params"]) == ["whiten.bias", *norms]
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    assert (decayed["lr"], exempt["lr"]) == (0.3, 0.3)


def test_decay_norms_makes_one_group_of_all_in_the_models_order() -> None:
    model = build("tiny-resnet", classes=10, options={})
    (group,) = build_optimizer(SGDConfig(decay_norms=True), model).param_groups
    assert names_of(model, group["params"]) == [name for name, _ in model.named_parameters()]
    assert group["weight_decay"] == SGDConfig().weight_decay


@pytest.mark.parametrize("decay_norms", [True, False])
def test_every_parameter_is_in_exactly_one_group_even_when_shared(decay_norms: bool) -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.BatchNorm1d(4), layer)
    groups = build_optimizer(SGDConfig(decay_norms=decay_norms), model).param_groups
    names = [name for group in groups for name in names_of(model, group["params"])]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def reference(config: OptimConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(config, SGDConfig):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    assert isinstance(config, AdamConfig | AdamWConfig)
    kind = torch.optim.Adam if isinstance(config, AdamConfig) else torch.optim.AdamW
    return kind(parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


@pytest.mark.parametrize(
    "config",
    [
        SGDConfig(lr=0.03, weight_decay=0.2, decay_norms=True, momentum=0.8, nesterov=False),
        AdamConfig(lr=0.03, weight_decay=0.2, decay_norms=True, betas=(0.8, 0.9), eps=1e-3),
        AdamWConfig(lr=0.03, weight_decay=0.2, decay_norms=True, betas=(0.8, 0.9), eps=1e-3),
    ],
    ids=lambda config: config.name,
)
def test_each_name_is_torchs_optimizer_with_these_settings(config: OptimConfig) -> None:
    models, weights = [], torch.randn(3, 5)
    makes: list[Callable[[nn.Module], torch.optim.Optimizer]] = [
        lambda m: build_optimizer(config, m),
        lambda m: reference(config, list(m.parameters())),
    ]
    for make in makes:
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


@pytest.mark.parametrize("kind", [MuonSGDConfig, MuonAdamWConfig])
def test_muon_has_the_hidden_layers_and_the_rest_follows_at_its_own_rate(kind: type[MuonConfig]) -> None:
    model = build("speed-net", classes=10, options={"widths": [4, 4, 4]})
    config = kind(rest_lr=3.0, weight_decay=0.1, momentum=0.6, normalize=True)
    hidden, decayed, exempt = build_optimizer(config, model).param_groups
    assert names_of(model, hidden["params"]) == [f"groups.{g}.conv{c}.weight" for g in range(3) for c in (1, 2)]
    assert names_of(model, decayed["params"]) == ["head.weight"]
    assert len(exempt["params"]) == 7
    assert (hidden["weight_decay"], decayed["weight_decay"], exempt["weight_decay"]) == (0.0, 0.1, 0.0)
    assert [group.get("lr_scale", 1.0) for group in (hidden, decayed, exempt)] == [1.0, 3.0, 3.0]
    assert hidden["momentum"] == 0.6
    assert not isinstance(config, MuonSGDConfig) or decayed["momentum"] == config.rest_momentum


def test_muon_refuses_a_model_without_hidden_layers() -> None:
    with pytest.raises(UserError, match=r"optim\.name muon .* use --optim\.name sgd"):
        build_optimizer(MuonSGDConfig(), nn.Linear(2, 2))


def test_muon_is_not_for_gradual_unfreezing() -> None:
    model = small_model()
    with pytest.raises(
        UserError, match=r"model\.unfreeze does not work with optim\.name muon; use --optim\.name sgd or adamw"
    ):
        build_optimizer(MuonSGDConfig(), model, stages_of(model), gradual=True)


def test_an_optimizer_of_this_package_is_checked_as_that_of_a_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "Muon", lambda hidden, *_, **options: torch.optim.SGD(hidden, lr=options["lr"]))
    with pytest.raises(UserError, match=r"optim\.name muon: build left out 0\.weight, which would never train"):
        build_optimizer(MuonSGDConfig(), small_model())


# ---- stages -----------------------------------------------------------------------------------------------------


def stages_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return three stages: each convolution with its norm, and the head."""
    layers = [list(layer.parameters()) for layer in model.children()]
    return [layers[0] + layers[1], layers[3] + layers[4], layers[7]]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate as the engine does at each step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def test_stages_with_equal_settings_change_nothing() -> None:
    model = small_model()
    first, second = (build_optimizer(SGDConfig(), model, stages).param_groups for stages in ((), stages_of(model)))
    assert [names_of(model, group["params"]) for group in first] == [names_of(model, g["params"]) for g in second]
    assert all("lr_scale" not in group and "stage" not in group for group in second)


def test_each_stage_has_its_learning_rate_and_the_usual_decay() -> None:
    model = small_model()
    model.get_submodule("0").requires_grad_(False)
    config = SGDConfig(weight_decay=0.1, backbone_lr=0.5, layer_decay=0.1)
    groups = build_optimizer(config, model, stages_of(model)).param_groups
    found = [(g["stage"], names_of(model, g["params"]), g["weight_decay"], g["lr_scale"]) for g in groups]
    assert found == [
        (2, ["1.weight", "1.bias"], 0.0, pytest.approx(0.05)),  # frozen parameters are left out
        (1, ["3.weight"], 0.1, 0.5),
        (1, ["3.bias", "4.weight", "4.bias"], 0.0, 0.5),
        (0, ["7.weight"], 0.1, 1.0),
        (0, ["7.bias"], 0.0, 1.0),
    ]


@pytest.mark.parametrize("kind", [SGDConfig, AdamWConfig])
def test_a_stage_at_a_tenth_of_the_rate_is_torchs_group_at_a_tenth(kind: type[StagedOptimConfig]) -> None:
    config = kind(lr=0.1, backbone_lr=0.1, weight_decay=0.01, decay_norms=True)
    weights = []
    for ours in (True, False):
        model = small_model()
        *backbone, head = stages_of(model)
        if ours:
            optimizer = build_optimizer(config, model, [*backbone, head])
            set_lr(optimizer, 0.1)
        else:
            optimizer = reference(config, head)
            optimizer.add_param_group({"params": [*backbone[0], *backbone[1]], "lr": 0.1 * 0.1})
        train(model, optimizer, range(3))
        weights.append(model.state_dict())
    assert same(*weights)


def test_thaw_is_idempotent() -> None:
    model = small_model()
    config = SGDConfig(backbone_lr=0.5, layer_decay=0.5)
    groups = build_optimizer(config, model, stages_of(model), gradual=True).param_groups
    scales = {1: [0.0, 0.0, 1.0], 2: [0.0, 0.5, 1.0], 3: [0.25, 0.5, 1.0], 9: [0.25, 0.5, 1.0]}
    for learning in (2, 1, 9, 1, 3, 2):
        thaw(groups, learning)
        assert [group["lr_scale"] for group in groups[::2]] == scales[learning]
        assert [group["lr_scale"] for group in groups[1::2]] == scales[learning]


def test_thaw_leaves_groups_without_a_stage_alone() -> None:
    groups = [{"lr_scale": 3.0}, {"lr": 1.0}]
    thaw(groups, 1)
    assert groups == [{"lr_scale": 3.0}, {"lr": 1.0}]


# ---- of a plug-in -----------------------------------------------------------------------------------------------

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Own(StagedOptimConfig):
    """As a plug-in that builds what ``make`` returns."""

    name: str = "own.py:Own"
    make: Callable[[Groups], object] = torch.optim.SGD

    def build(self, groups: Groups) -> Any:
        return self.make(groups)


def split(groups: Groups, **of_biases: float) -> Groups:
    """Give biases and norms groups of their own."""
    halves = [([p for p in g["params"] if (p.ndim > 1) == large], g, large) for g in groups for large in (True, False)]
    return [{**group, "params": own, **({} if large else of_biases)} for own, group, large in halves if own]


def flat(groups: Groups) -> list[nn.Parameter]:
    return [parameter for group in groups for parameter in group["params"]]


def of_any_rate(groups: Iterable[nn.Parameter] | Iterable[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, **{"lr": 0.1, **options})


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return super().step(closure)


class TakesNone(torch.optim.SGD):
    def step(self) -> Any:  # type: ignore[override]
        return super().step()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda g: of_any_rate(split(g, lr=5.0)), r'learning rate 5, .* at most 0\.1; .* "lr_scale": 50$'),
        (lambda g: of_any_rate(split(g, lr=5.0, lr_scale=2.0)), r"learning rate 5, "),
        (torch.optim.SGD, r"learning rate 0\.001, .*; pass lr=self\.lr, "),
        (lambda g: of_any_rate(g[:1]), r"build left out 0\.bias, which would never train; pass all groups to the opt"),
        (lambda g: of_any_rate([*g, {"params": [nn.Parameter(torch.ones(1))]}]), r"optimizer of 1 tensors that are"),
        (
            lambda g: torch.optim.LBFGS(flat(g), lr=0.1),
            r"LBFGS\.step\(closure\) is called without a closure; use an opt",
        ),
        (lambda g: NeedsClosure(g, lr=0.1), r"NeedsClosure\.step\(closure: .* is called without a closure; "),
        (lambda g: TakesNone(g, lr=0.1), r"TakesNone\.step\(\).*; use an optimizer with step\(closure=None\)$"),
    ],
)
def test_an_optimizer_that_the_trainer_could_not_step_as_it_was_built_is_refused(
    make: Callable[[Groups], object], says: str
) -> None:
    with pytest.raises(UserError, match=rf"^optim\.name own\.py:Own: .*{says}"):
        build_optimizer(Own(make=make), small_model())


@pytest.mark.parametrize(
    "make",
    [
        of_any_rate,
        lambda g: of_any_rate(split(g, lr_scale=50.0)),
        lambda g: of_any_rate(split(g, lr_scale=50.0, lr=5.0)),
        lambda g: of_any_rate(flat(g)),
        lambda g: of_any_rate(iter(g)),
        lambda g: torch.optim.AdamW(g, lr=torch.tensor(0.1)),
    ],
)
def test_groups_of_its_own_are_accepted(make: Callable[[Groups], object]) -> None:
    optimizer = build_optimizer(Own(make=make), small_model())
    set_lr(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} <= {0.1, 5.0}


def test_groups_of_its_own_follow_the_stages() -> None:
    model = small_model()
    config = Own(make=lambda g: of_any_rate([{**one, "lr_scale": 4 * one["lr_scale"]} for one in split(g)]))
    groups = build_optimizer(config, model, stages_of(model), gradual=True).param_groups
    for learning, scales in ((1, {0.0, 4.0}), (3, {4.0})):
        thaw(groups, learning)
        assert {group["lr_scale"] for group in groups} == scales


@pytest.mark.parametrize("keys", [(), ("stage",)])
@pytest.mark.parametrize(("config", "gradual"), [(Own(), True), (Own(backbone_lr=0.1), False)])
def test_groups_that_lose_their_stage_are_refused(keys: tuple[str, ...], config: Own, gradual: bool) -> None:
    """Frozen stages would train."""
    model = small_model()
    config = replace(
        config, make=lambda g: of_any_rate([{k: v for k, v in x.items() if k in ("params", *keys)} for x in g])
    )
    with pytest.raises(UserError, match=r'lost the stage of 0\.weight; keep .*: \{\*\*group, "params": \[\.\.\.\]\}$'):
        build_optimizer(config, model, stages_of(model), gradual=gradual)
