"""What is refused before the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.small_packed import TEST, TRAIN, small_packed, with_val
from torch import nn

from cifar_dist import recipe
from cifar_dist.config import Config, DataConfig, EvalConfig, ModelConfig, SGDConfig, TrainConfig
from cifar_dist.config.average import SWAConfig
from cifar_dist.distributed.start import start_engine
from cifar_dist.errors import UserError
from cifar_dist.models import transfer
from cifar_dist.training.requirements import (
    check_evaluations,
    check_graphs,
    check_repeatable,
    check_stages,
)
from cifar_dist.training.setup import build_setup

IMAGENET_STEM = ModelConfig("resnet18", {"stem": "imagenet"})
"""It reduces small images to one position, so batch normalisation of one sample has a single value."""


def set_up(data: Path, model: ModelConfig, batch_size: int, accumulate: int) -> None:
    train = TrainConfig(batch_size=batch_size, accumulate=accumulate, threads=1)
    config = Config(data=DataConfig(path=str(data)), model=model, train=train)
    with start_engine(config) as engine:
        build_setup(config, engine.ranks)


@pytest.mark.parametrize(("batch_size", "accumulate", "works"), [(26, 2, 24), (4, 4, 8), (52, 1, 51)])
def test_batch_normalisation_of_a_single_value_is_refused_with_a_size_that_works(
    tmp_path: Path, batch_size: int, accumulate: int, works: int
) -> None:
    data = small_packed(tmp_path, "npy").root
    with pytest.raises(
        UserError, match=rf"of the {TRAIN} training samples.* resnet18; use --train.batch_size {works}$"
    ):
        set_up(data, IMAGENET_STEM, batch_size, accumulate)
    set_up(data, IMAGENET_STEM, works, accumulate)


def test_cuda_graphs_of_several_processes_are_refused_with_synchronised_batch_norms() -> None:
    """They would hold the exchanges, and NCCL would wait for their end."""
    both = Config(train=TrainConfig(compile="max-autotune", sync_batchnorm=True))
    with pytest.raises(UserError, match=r"^train.compile max-autotune would .*; use --train.compile default$"):
        check_graphs(both, 2, "cuda")
    check_graphs(both, 1, "cuda")
    check_graphs(both, 2, "cpu")
    for change in (TrainConfig(compile="default", sync_batchnorm=True), TrainConfig(compile="max-autotune")):
        check_graphs(replace(both, train=change), 2, "cuda")


def test_one_sample_per_step_is_enough_for_other_networks(tmp_path: Path) -> None:
    """They have more than one position, or no batch normalisation."""
    data = small_packed(tmp_path, "npy").root
    set_up(data, ModelConfig("tiny-cnn"), 52, 1)
    set_up(data, ModelConfig("tiny-resnet", {"widths": [4, 8]}), 52, 1)


def test_a_network_without_layers_of_torch_is_one_stage_of_which_nothing_can_be_frozen(tmp_path: Path) -> None:
    data = small_packed(tmp_path, "npy").root
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, classes, channels):\n"
        "        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.zeros(channels, classes))\n"
        "    def forward(self, images):\n"
        "        return images.mean((2, 3)) @ self.weight\n"
    )
    net = f"{plugin}:Net"
    set_up(data, ModelConfig(net), 4, 1)
    for config, option in (
        (Config(model=ModelConfig(net, freeze=True)), "model.freeze"),
        (Config(model=ModelConfig(net, unfreeze=1.0)), "model.unfreeze"),
        (Config(model=ModelConfig(net), optim=SGDConfig(backbone_lr=0.1)), "optim.backbone_lr"),
        (Config(model=ModelConfig(net), optim=SGDConfig(layer_decay=0.1)), "optim.layer_decay"),
    ):
        with pytest.raises(UserError, match=rf"^{option} has no effect: .*; use --{option} (false|0|1)$"):
            check_stages(config, 1)
        check_stages(config, 3)
        if option != "optim.layer_decay":
            check_stages(config, 2)


UNLEARNING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.backbone, self.head = nn.Linear(channels, classes), nn.Linear(classes, classes)

    def forward(self, images):
        return self.head(self.backbone(images.mean((2, 3))))


class NoGrad(Net):
    @torch.no_grad()
    def forward(self, images):
        return super().forward(images)


class Detached(Net):
    def forward(self, images):
        return super().forward(images).detach()


class Unused(Net):
    def forward(self, images):
        return self.backbone(images.mean((2, 3)))


class Frozen(Net):
    def __init__(self, classes, channels):
        super().__init__(classes, channels)
        self.head.requires_grad_(False)


class OnlyEvaluated(Net):
    def forward(self, images):
        with torch.set_grad_enabled(self.training):
            return super().forward(images)
"""


def test_a_network_that_cannot_learn_is_refused_before_a_step(tmp_path: Path) -> None:
    data = small_packed(tmp_path, "npy").root
    (tmp_path / "own.py").write_text(UNLEARNING)
    for name, freeze, says in (
        ("NoGrad", False, "its logits have no gradient, as under torch.no_grad() or after .detach(); remove that from"),
        ("Detached", False, "its logits have no gradient, "),
        ("Unused", True, "its logits have no gradient, .*, or use --model.freeze false$"),
        ("Frozen", True, "its last layer has requires_grad False itself; use --model.freeze false$"),
    ):
        with pytest.raises(UserError, match=says.replace("()", r"\(\)")):
            set_up(data, ModelConfig(f"{tmp_path}/own.py:{name}", freeze=freeze), 4, 1)
    for name in ("Unused", "Frozen", "OnlyEvaluated"):
        set_up(data, ModelConfig(f"{tmp_path}/own.py:{name}"), 4, 1)


def test_a_decay_over_the_stages_of_a_backbone_that_is_one_is_refused() -> None:
    """Its rate would be optim.lr * optim.backbone_lr, whatever the decay."""
    stages = len(transfer.stages(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))))
    config = Config(optim=SGDConfig(layer_decay=0.5, backbone_lr=0.1))
    with pytest.raises(UserError, match=r"^optim\.layer_decay has no .* one stage .*; use --optim\.layer_decay 1, "):
        check_stages(config, stages)
    check_stages(replace(config, optim=SGDConfig(backbone_lr=0.1)), stages)


def test_batch_statistics_of_a_network_without_any_are_not_recalibrated(tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "from torch import nn\n"
        "def net(classes, channels, *, kept: bool = True):\n"
        "    norm = nn.BatchNorm2d(4, track_running_stats=kept)\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, classes))\n"
    )
    config = Config(
        data=DataConfig(path=str(small_packed(tmp_path, "npy").root)),
        model=ModelConfig(f"{plugin}:net"),
        average=SWAConfig(recalibrate=20),
        train=TrainConfig(batch_size=13, threads=1),
    )
    with start_engine(config) as engine:
        build_setup(config, engine.ranks)
        for model in (ModelConfig("tiny-cnn"), ModelConfig(config.model.name, {"kept": False})):
            said = rf"^average\.recalibrate has no effect: {model.name} has no .*; use --average\.recalibrate 0$"
            with pytest.raises(UserError, match=said):
                build_setup(replace(config, model=model), engine.ranks)
            build_setup(replace(config, model=model, average=SWAConfig()), engine.ranks)


def test_val_without_labels_is_refused_before_training(tmp_path: Path) -> None:
    packed = small_packed(tmp_path, "npy")
    check_evaluations(Config(), packed)
    check_evaluations(Config(), with_val(packed, labelled=True))
    unlabelled = with_val(packed, labelled=False)
    with pytest.raises(UserError, match=r"val has no labels, .*; add them, or name its tars 'test' instead of 'val'"):
        check_evaluations(Config(), unlabelled)
    check_evaluations(Config(eval=EvalConfig(split="train"), data=DataConfig(hold_out=False)), unlabelled)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("size", [None, 100])
def test_a_damaged_shard_that_is_evaluated_is_refused_before_training(
    tmp_path: Path, split: str, size: int | None
) -> None:
    packed = with_val(small_packed(tmp_path, "npy"), labelled=True)
    assert packed.samples(split) == TEST
    shard = packed.root / packed.shards(split)[-1].name
    complete = shard.read_bytes()
    if size is None:
        shard.unlink()
    else:
        shard.write_bytes(complete[:size])
    config = Config(
        data=DataConfig(hold_out=split == "val"), eval=EvalConfig(split="test" if split == "test" else "train")
    )
    with pytest.raises(UserError, match=rf"{shard}: .*; find all damage with: cifar-dist verify"):
        check_evaluations(config, packed)
    check_evaluations(Config(data=DataConfig(hold_out=False), eval=EvalConfig(split="train")), packed)
    shard.write_bytes(complete)
    check_evaluations(config, packed)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (
            TrainConfig(deterministic=True, compile="max-autotune"),
            "train.compile max-autotune takes the kernels that are fastest now, and train.deterministic needs the same "
            "ones each time; use --train.compile reduce-overhead",
        ),
        (
            TrainConfig(parts=4, cudnn_benchmark=True),
            "train.cudnn_benchmark takes the algorithms that are fastest now, and train.parts needs the same ones each "
            "time; use --train.cudnn_benchmark false",
        ),
    ],
)
def test_what_times_kernels_is_refused_in_a_run_that_promises_the_same_bits(train: TrainConfig, says: str) -> None:
    check_repeatable(Config(train=replace(train, deterministic=False, parts=0)))
    with pytest.raises(UserError) as caught:
        check_repeatable(Config(train=train))
    assert str(caught.value) == says


PLUG_IN = """
from dataclasses import dataclass

from cifar_dist.config import RunningAverageConfig


@dataclass(frozen=True)
class Growing(RunningAverageConfig):
    def weight(self, step, *, start, total):
        return step / 100
"""


def test_a_plug_in_average_that_fails_late_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUG_IN)
    words = ["--average.name", f"{tmp_path}/mine.py:Growing", "--average.start", "1", "--average.every", "4"]
    config = Config(
        data=DataConfig(path=str(small_packed(tmp_path, "npy").root)),
        model=ModelConfig("tiny-cnn"),
        average=recipe.load("demo", words).average,
        train=TrainConfig(batch_size=13, epochs=20, threads=1),
    )
    with start_engine(config) as engine:
        assert build_setup(config, engine.ranks).last_step == 100
        longer = replace(config, train=replace(config.train, epochs=21))
        with pytest.raises(
            UserError, match=r"mine\.py:Growing: the weight of step 101 is 1\.01, not a number in \[0, 1\]"
        ):
            build_setup(longer, engine.ranks)
