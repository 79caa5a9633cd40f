"""The steps of two epochs, without a trainer around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.small_model import same
from torch import Tensor

from cifar_dist.checkpoint import NEW_RUN, Checkpoint
from cifar_dist.config import AverageConfig, Config, DataConfig, ModelConfig, TrainConfig
from cifar_dist.config.average import EMAConfig, LookaheadConfig, NoAverageConfig, SWAConfig
from cifar_dist.config.optim import SGDConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.randomness import step_seed
from cifar_dist.distributed.loss_scaler import LossScaler
from cifar_dist.distributed.start import start_engine
from cifar_dist.errors import UserError
from cifar_dist.models.speed_net import SpeedNet
from cifar_dist.run_folder import RunFolder
from cifar_dist.training.learner import Learner
from cifar_dist.training.setup import build_setup

PER_EPOCH, ACCUMULATE, EPOCHS = 2, 2, 2


@contextmanager
def learner_of(
    data: Path,
    model: ModelConfig,
    average: AverageConfig,
    loaded: Checkpoint | None = None,
    *,
    parts: int = 0,
    sam_rho: float = 0,
    scales_loss: bool = False,
) -> Iterator[Learner]:
    accumulate = 1 if parts else ACCUMULATE
    train = TrainConfig(epochs=EPOCHS, batch_size=126, accumulate=accumulate, parts=parts, threads=1)
    config = Config(
        data=DataConfig(path=str(data)), model=model, optim=SGDConfig(sam_rho=sam_rho), train=train, average=average
    )
    with start_engine(config) as engine:
        if scales_loss:  # as in fp16, which no CPU computes in
            engine.accelerator.scaler = LossScaler("cpu")
        setup = build_setup(config, engine.ranks)
        assert setup.steps_per_epoch == PER_EPOCH
        yield Learner(setup, engine, loaded)


def train(learner: Learner, first: int, last: int) -> None:
    for _ in learner.steps(first, last, lambda _: 0.1):
        pass


def test_each_micro_batch_of_each_step_has_dropout_of_its_own(digits: Path) -> None:
    seeds: list[int] = []
    with learner_of(digits, ModelConfig("tiny-cnn"), NoAverageConfig()) as learner:
        learner.model.module.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
        train(learner, 0, EPOCHS * PER_EPOCH)
    steps = range(EPOCHS * PER_EPOCH)
    assert seeds == [step_seed(0, step, part) for step in steps for part in range(ACCUMULATE)]
    assert len(set(seeds)) == len(seeds)


DRAWING = """
import random
import numpy as np
from torch import nn


class Drawing(nn.Linear):
    drawn = []

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(channels, classes)
        self.draw()

    def draw(self):
        self.drawn.append((random.random(), np.random.rand()))

    def forward(self, images):
        self.draw()
        return super().forward(images.mean((2, 3)))
"""


def test_a_network_that_draws_from_python_and_numpy_repeats(digits: Path, tmp_path: Path) -> None:
    """In the constructor and in each micro-batch of a step, whichever steps came before."""
    (tmp_path / "drawing.py").write_text(DRAWING)
    drawn: list[list[tuple[float, ...]]] = []
    for first in (0, 0, PER_EPOCH):
        with learner_of(digits, ModelConfig(f"{tmp_path}/drawing.py:Drawing"), NoAverageConfig()) as learner:
            own: list[tuple[float, ...]] = vars(type(learner.model.module))["drawn"]
            drawn.append(own)
            train(learner, first, EPOCHS * PER_EPOCH)
        drawn[-1] = drawn[-1].copy()
        own.clear()
    whole, again, rest = drawn
    assert whole == again
    assert rest[-PER_EPOCH * ACCUMULATE :] == whole[-PER_EPOCH * ACCUMULATE :]
    tried = 2  # on an image, and for its gradients
    assert len(set(whole)) == len(whole) == 1 + tried + EPOCHS * PER_EPOCH * ACCUMULATE


GROWING = """
import torch
from torch import nn


class Growing(nn.Linear):
    def __init__(self, classes: int, channels: int, *, saved: bool = True) -> None:
        super().__init__(channels, classes)
        self.register_buffer("bank", torch.zeros(0, classes), persistent=saved)

    def forward(self, images):
        logits = super().forward(images.mean((2, 3)))
        self.bank = torch.cat([self.bank, logits.detach()])
        return logits
"""


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize(
    ("average", "parts", "sam_rho"),
    [
        (NoAverageConfig(), 0, 0),
        (NoAverageConfig(), 3, 0),
        (NoAverageConfig(), 0, 0.05),
        (NoAverageConfig(), 3, 0.05),
        (EMAConfig(), 0, 0),
        (SWAConfig(start=0), 0, 0),
        (LookaheadConfig(), 0, 0),
        (EMAConfig(), 3, 0.05),
    ],
)
def test_a_saved_buffer_that_grows_is_refused_before_a_step_uses_it(
    digits: Path, tmp_path: Path, average: AverageConfig, parts: int, sam_rho: float, saved: bool
) -> None:
    """One that no checkpoint has may grow."""
    (tmp_path / "growing.py").write_text(GROWING)
    network = ModelConfig(f"{tmp_path}/growing.py:Growing", {"saved": saved})
    said = r"the network's bank was \[1, 10\] before the first step and is \[\d+, 10\] within it: no checkpoint"
    refused = pytest.raises(UserError, match=said) if saved else nullcontext()
    with learner_of(digits, network, average, parts=parts, sam_rho=sam_rho) as learner, refused:
        train(learner, 0, PER_EPOCH)


def test_a_step_of_sam_applies_the_gradient_from_uphill(digits: Path) -> None:
    def gradient(at: dict[str, Tensor], rho: float) -> dict[str, Tensor]:
        """What the first step subtracts from the weights ``at``, at a learning rate of 1."""
        config = Config(
            data=DataConfig(path=str(digits)),
            model=ModelConfig("tiny-cnn"),
            optim=SGDConfig(momentum=0, nesterov=False, weight_decay=0, sam_rho=rho),
            train=TrainConfig(epochs=1, batch_size=126, threads=1),
        )
        with start_engine(config) as engine:
            learner = Learner(build_setup(config, engine.ranks), engine)
            weights = {name: value.detach() for name, value in learner.model.module.named_parameters()}
            for name, value in at.items():
                weights[name].copy_(value)
            before = {name: value.clone() for name, value in weights.items()}
            for _ in learner.steps(0, 1, lambda _: 1.0):
                pass
            first.update(before if not first else {})
            return {name: before[name] - value for name, value in weights.items()}

    first: dict[str, Tensor] = {}
    there = gradient({}, 0)
    scale = 0.05 / torch.stack([value.norm() for value in there.values()]).norm()
    uphill = gradient({name: first[name] + scale * value for name, value in there.items()}, 0)
    for name, value in gradient({}, 0.05).items():
        torch.testing.assert_close(value, uphill[name], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(value, there[name], rtol=1e-3, atol=1e-5)


DETACHED = """
from torch import nn


class Detached(nn.Linear):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(channels, classes)

    def forward(self, images):
        means = images.mean((2, 3))
        return super().forward(means - means.mean().item()).detach()
"""


def test_a_network_that_reads_numbers_and_cannot_learn_is_refused_in_its_first_step(
    digits: Path, tmp_path: Path
) -> None:
    """Shapes alone do not show it."""
    (tmp_path / "detached.py").write_text(DETACHED)
    network = ModelConfig(f"{tmp_path}/detached.py:Detached")
    refused = pytest.raises(UserError, match=r"no parameter of .*:Detached can learn: its logits have no gradient")
    with learner_of(digits, network, NoAverageConfig()) as learner, refused:
        train(learner, 0, 1)


def test_weights_from_images_are_those_of_the_images_that_the_network_receives(digits: Path) -> None:
    """Enlarged ones, with ``model.image_size``."""
    config = Config(
        data=DataConfig(path=str(digits)),
        model=ModelConfig("speed-net", {"widths": [4, 4, 4]}, image_size=40),
        train=TrainConfig(epochs=1, batch_size=126, threads=1),
    )
    received: list[Tensor] = []
    with start_engine(config) as engine:
        setup = build_setup(config, engine.ranks)
        Learner(setup, engine)
        network, images = setup.module, setup.batches.images
        assert isinstance(network, SpeedNet)
        first = network.whiten.weight.clone()
        network.whiten.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
        network(setup.normalize(images.get(torch.arange(len(images)))))
        assert received[0].shape[2:] == (40, 40)
        network.initialize(received[0])
        torch.testing.assert_close(first, network.whiten.weight)


def test_frozen_random_weights_are_reported(digits: Path) -> None:
    for freeze in (True, False):
        with learner_of(digits, ModelConfig("tiny-cnn", freeze=freeze), NoAverageConfig()) as learner:
            assert any("keep random weights" in note for note in learner.notes) is freeze


@pytest.mark.parametrize("place", ["final/model.safetensors", "checkpoints/step-1/weights.safetensors"])
def test_weights_of_a_run_with_classes_of_other_names_are_reported(digits: Path, tmp_path: Path, place: str) -> None:
    """As many, so that the last layer is loaded: it tells digits apart, whatever the images show now."""
    with learner_of(digits, ModelConfig("tiny-cnn"), NoAverageConfig()) as learner:
        weights = learner.model.state()
    run = RunFolder(tmp_path / "run")
    file = run.path / place
    file.parent.mkdir(parents=True)
    save_file(weights, file)
    run.config.touch()
    manifest = Manifest.load(digits)
    network = ModelConfig("tiny-cnn", pretrained=str(file))
    for classes, note in (
        (manifest.classes, []),
        (
            ("zero", *manifest.classes[1:]),
            [f"{file} has classes of other names, and keeps its last layer: zero -> 0"],
        ),
    ):
        replace(manifest, classes=classes).save(run.path)
        with learner_of(digits, network, NoAverageConfig()) as learner:
            assert learner.notes == note


def test_a_stage_learns_from_its_epoch_on(digits: Path) -> None:
    with learner_of(digits, ModelConfig("tiny-cnn", unfreeze=1), NoAverageConfig()) as learner:
        states = [learner.model.state()]
        for epoch in range(EPOCHS):
            train(learner, epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH)
            states.append(learner.model.state())
    first, *later = states
    head, more = ({name for name in first if not torch.equal(first[name], weights[name])} for weights in later)
    assert head == {"head.1.weight", "head.1.bias"}
    assert more > head


def test_a_frozen_stage_keeps_its_batch_statistics_in_an_average(digits: Path, tmp_path: Path) -> None:
    """Also in a run that was stopped before it was evaluated."""
    network, average = ModelConfig("tiny-resnet", {"widths": [4, 4]}, unfreeze=1), SWAConfig(recalibrate=50)
    with learner_of(digits, network, average) as learner:
        first = learner.model.state()
        train(learner, 0, PER_EPOCH)
        frozen = learner.state()
        train(learner, PER_EPOCH, EPOCHS * PER_EPOCH)
        thawed = learner.state()
    loaded = Checkpoint(frozen, replace(NEW_RUN, step=PER_EPOCH), tmp_path)
    with learner_of(digits, network, average, loaded) as learner:
        resumed = learner.state()
    statistics = {name for name in first if name.endswith("running_mean")}

    assert frozen.averaged is not None
    assert resumed.averaged is not None
    assert thawed.averaged is not None
    for name in statistics:
        assert torch.equal(frozen.averaged.weights[name], first[name])
        assert torch.equal(resumed.averaged.weights[name], first[name])
    assert any(not torch.equal(thawed.averaged.weights[name], first[name]) for name in statistics)


def test_a_checkpoint_has_the_batch_statistics_with_which_its_average_was_evaluated(digits: Path) -> None:
    """They are computed once for both."""
    network, average = ModelConfig("tiny-resnet", {"widths": [4, 4]}), EMAConfig(decay=0.5, recalibrate=50)
    with learner_of(digits, network, average) as learner:
        train(learner, 0, PER_EPOCH)
        with learner.averaged():
            evaluated = learner.model.state()
        saved = learner.state().averaged
    assert saved is not None
    assert same(saved.weights, evaluated)
    assert not same(saved.statistics, {name: evaluated[name] for name in saved.statistics})


def test_a_rehearsal_of_the_first_step_changes_neither_weights_nor_batch_statistics(digits: Path) -> None:
    """Each process that trains with others makes one, so that a resumed run would differ."""
    states = []
    for rehearses in (False, True):
        with learner_of(digits, ModelConfig("tiny-resnet", {"widths": [4, 4]}), NoAverageConfig()) as learner:
            learner._needs_rehearsal = rehearses
            train(learner, 0, PER_EPOCH)
            states.append(learner.model.state())
    assert same(*states)


def test_a_resume_continues_with_the_saved_scale_of_the_loss(digits: Path, tmp_path: Path) -> None:
    network, average = ModelConfig("tiny-cnn"), NoAverageConfig()
    with learner_of(digits, network, average, scales_loss=True) as learner:
        train(learner, 0, PER_EPOCH)
        scaler, tensors = learner.model.scaler_state(), learner.state()
    saved = {**scaler, "scale": 256.0}
    assert scaler["_growth_tracker"] == PER_EPOCH
    loaded = Checkpoint(tensors, replace(NEW_RUN, step=PER_EPOCH, loss_scaler=saved), tmp_path)
    with learner_of(digits, network, average, loaded, scales_loss=True) as learner:
        assert learner.model.scaler_state() == saved


@pytest.mark.parametrize(
    ("batch_size", "images", "seen"), [(2, 3, [3]), (2, 5, [3, 2]), (1, 4, [2, 2]), (3, 5, [3, 2])]
)
def test_batch_statistics_are_never_of_one_image(digits: Path, batch_size: int, images: int, seen: list[int]) -> None:
    config = Config(
        data=DataConfig(path=str(digits)),
        model=ModelConfig("tiny-resnet", {"widths": [4, 4]}),
        train=TrainConfig(epochs=1, batch_size=batch_size, threads=1),
        average=SWAConfig(recalibrate=images),
    )
    sizes: list[int] = []
    with start_engine(config) as engine:
        learner = Learner(build_setup(config, engine.ranks), engine)
        learner.model.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        with learner.averaged():
            assert sizes == seen
        with pytest.raises(UserError, match=r"average\.recalibrate 1: one image .*; use --average\.recalibrate 2"):
            build_setup(replace(config, average=SWAConfig(recalibrate=1)), engine.ranks)
