"""Stages of every network, and what learns in which epoch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifar_dist.config import ModelConfig, OptionValue, SGDConfig, StagedOptimConfig
from cifar_dist.config.optim import AdamConfig, AdamWConfig
from cifar_dist.models import build
from cifar_dist.models.registry import names
from cifar_dist.models.transfer import Stage, freeze_backbone, last_layer, set_mode, stages
from cifar_dist.optim.optimizers import build_optimizer, thaw

OTHERS = ["resnet18", "vgg11_bn", "mobilenet_v3_small", "densenet121", "vit_b_16", "squeezenet1_1", "convnext_tiny"]
MOVING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def unreal(name: str) -> nn.Module:
    """Build a network without values, which is fast at any size."""
    with torch.device("meta"):
        return build(name, classes=10, options={})


def names_of(model: nn.Module, stage: Stage) -> list[str]:
    known = {module: name for name, module in model.named_modules()}
    return [known[module] for module in stage.modules]


def assert_is_a_partition(model: nn.Module) -> None:
    cut = stages(model)
    parameters = [id(parameter) for stage in cut for parameter in stage.parameters]
    assert parameters == [id(parameter) for parameter in model.parameters()]
    last = last_layer(model)
    assert last is not None
    assert {id(p) for p in cut[-1].parameters} == {id(p) for p in last[1].parameters()}
    assert all(stage.parameters for stage in cut)
    inner = [module for stage in cut for part in stage.modules for module in part.modules()]
    for module in model.modules():
        assert not isinstance(module, MOVING) or inner.count(module) == 1


@pytest.mark.parametrize("name", [*names(), *(f"torchvision:{name}" for name in OTHERS)])
def test_every_parameter_is_in_exactly_one_stage_in_the_models_order(name: str) -> None:
    model = unreal(name)
    assert_is_a_partition(model)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(stages(model)) >= min(5, len(layers))


@given(
    blocks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    head=st.lists(st.integers(1, 8), max_size=2),
    extra=st.integers(0, 4),
)
@settings(max_examples=30)
def test_every_small_resnet_is_split_into_blocks(blocks: list[int], head: list[int], extra: int) -> None:
    options: dict[str, OptionValue] = {
        "widths": [4] * len(blocks),
        "blocks": blocks,
        "head": head,
        "dropout": [0.5] * (len(head) + 1),
        "extra_conv": extra,
    }
    with torch.device("meta"):
        model = build("small-resnet", classes=3, options=options)
    assert_is_a_partition(model)
    cut = [name for stage in stages(model) for name in names_of(model, stage)]
    assert [name for name in cut if name.startswith("stages")] == [
        f"stages.{index}" for index in range(sum(blocks) + (extra > 0))
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet34", ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]),
        ("torchvision:resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]),
        ("custom-resnet", ["prep", "layer1", "layer2", "layer3", "head"]),
        ("speed-net", ["whiten", "groups.0", "groups.1", "groups.2", "head"]),
        ("tiny-resnet", ["stem", "stages.0", "stages.1", "stages.2", "head.0"]),
        ("tiny-cnn", ["features.0", "features.3", "head.1"]),
        (
            "torchvision:alexnet",
            [*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6))],
        ),
        (
            "torchvision:vit_b_16",
            ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "heads.head"],
        ),
        ("torchvision:swin_t", [*(f"features.{i}" for i in range(8)), "head"]),
    ],
)
def test_well_known_networks_are_split_at_their_stages(name: str, expected: list[str]) -> None:
    model = unreal(name)
    known = {module: name for name, module in model.named_modules()}
    cut = [[known[m] for m in stage.modules if any(p.ndim > 1 for p in m.parameters())] for stage in stages(model)]
    assert cut == [[part] for part in expected]


def test_tokens_and_positions_of_a_vit_are_in_the_first_stage_and_the_last_norm_is_before_the_head() -> None:
    model = unreal("torchvision:vit_b_16")
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    cut = [[known[id(parameter)] for parameter in stage.parameters] for stage in stages(model)]
    assert cut[0] == ["class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"]
    assert cut[-2][-2:] == ["encoder.ln.weight", "encoder.ln.bias"]


def test_dropout_goes_with_the_layer_after_it_and_a_norm_with_the_layer_before() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
        nn.Dropout(),
        nn.Linear(4, 4),
        nn.Dropout(),
        nn.BatchNorm1d(4, affine=False),  # no parameters, and statistics that would move
        nn.Dropout(),
        nn.Linear(4, 2),
    )
    assert [names_of(model, stage) for stage in stages(model)] == [["0", "1"], ["2", "3", "4", "5"], ["6", "7"]]


def test_a_layer_that_is_used_twice_is_in_one_stage() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(layer, nn.ReLU()), nn.Sequential(layer, nn.Linear(4, 4)), nn.Linear(4, 2))
    parameters = [id(parameter) for stage in stages(model) for parameter in stage.parameters]
    assert parameters == [id(parameter) for parameter in model.parameters()]


# ---- what learns ------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    """Five stages, batch norm in each but the head, dropout in the head."""
    torch.manual_seed(0)
    return build(
        "small-resnet", classes=4, options={"widths": [4, 4, 8], "blocks": [1, 1, 1], "stem": 4, "dropout": [0.5]}
    )


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the names of the stages that are no longer equal bit for bit."""
    names = (name for name, value in model.state_dict().items() if not torch.equal(value, before[name]))
    return {".".join(name.split(".")[: 2 if name.startswith("stages") else 1]) for name in names}


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float = 0.1) -> None:
    """Train two steps, with the learning rate set as the engine sets it."""
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.zero_grad()
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        F.cross_entropy(model(images), torch.arange(8) % 4).backward()
        optimizer.step()


def test_with_freeze_the_head_learns_and_nothing_else_moves() -> None:
    model, config = small(), ModelConfig(freeze=True)
    before = copied(model)
    freeze_backbone(model)
    optimizer = build_optimizer(SGDConfig(), model, [stage.parameters for stage in stages(model)])
    for epoch in (0, 1, 7):
        assert set_mode(model, [stage.modules for stage in stages(model)], config, epoch) == 1
        train_epoch(model, optimizer)
    assert changed(model, before) == {"head"}
    assert model.get_submodule("head.0").training, "the head's dropout is on"
    assert not model.get_submodule("stem").training


@pytest.mark.parametrize("kind", [SGDConfig, AdamConfig, AdamWConfig])
def test_frozen_stages_keep_their_bits(kind: type[StagedOptimConfig]) -> None:
    """Weights and batch statistics, with momentum and weight decay; an unfrozen stage changes completely."""
    model, config = small(), ModelConfig(unfreeze=1.5)
    optimizer = build_optimizer(
        kind(lr=0.1, weight_decay=0.1),
        model,
        [stage.parameters for stage in stages(model)],
        gradual=True,
    )
    assert all(parameter.requires_grad for parameter in model.parameters())
    order = ["head", "stages.2", "stages.1", "stages.0", "stem"]
    for epoch, learning in enumerate([1, 1, 2, 3, 3, 4, 5, 5]):
        before = copied(model)
        assert set_mode(model, [stage.modules for stage in stages(model)], config, epoch) == learning
        thaw(optimizer.param_groups, learning)
        train_epoch(model, optimizer)
        assert changed(model, before) == set(order[:learning])


@pytest.mark.parametrize("unfreeze", [0.5, 1, 1.5, 2, 3])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_run_says_how_many_stages_learn_at_its_beginning_and_end(unfreeze: float, epochs: int) -> None:
    model, config = small(), ModelConfig(unfreeze=unfreeze)
    learning = set_mode(model, [stage.modules for stage in stages(model)], config, epochs - 1)
    if learning == 1:
        said = f"no epoch of train.epochs {epochs} begins after that; only the last layer learns"
    else:
        said = f"1 of 5 stages learns in the first epoch, {'all' if learning == 5 else learning} in the last"
    assert config.describe_unfreezing(5, epochs) == f"model.unfreeze {unfreeze:g}: {said}"
    assert ModelConfig().describe_unfreezing(5, epochs) == ""


def test_a_stage_thaws_in_the_epoch_that_the_setting_says_though_the_quotient_is_rounded() -> None:
    assert 33 / 2.2 < 15
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    assert set_mode(model, [[layer] for layer in model], ModelConfig(unfreeze=2.2), 33) == 16


@pytest.mark.parametrize(
    ("config", "learning"),
    [
        (ModelConfig(), {0: 5, 3: 5}),
        (ModelConfig(freeze=True), {0: 1, 2: 1, 1000: 1}),
        (ModelConfig(unfreeze=1), {0: 1, 1: 2, 3: 4, 4: 5, 9: 5}),
        (ModelConfig(unfreeze=0.5), {0: 1, 1: 3, 2: 5}),
        (ModelConfig(unfreeze=3), {2: 1, 3: 2, 11: 4, 12: 5}),
    ],
)
def test_the_mode_is_a_function_of_the_epoch(config: ModelConfig, learning: dict[int, int]) -> None:
    """Forwards, backwards, after an evaluation or after ``train()``: only the epoch counts."""
    model = small()
    cut = stages(model)
    for epoch in (*learning, *reversed(learning)):
        for mode in (True, False):
            model.train(mode)
            assert set_mode(model, [stage.modules for stage in stages(model)], config, epoch) == learning[epoch]
            modes = [{inner.training for part in stage.modules for inner in part.modules()} for stage in cut]
            assert modes == [{False}] * (5 - learning[epoch]) + [{True}] * learning[epoch]
            assert model.training
