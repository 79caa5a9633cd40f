"""On a pretend CUDA device, a training step never waits, and launches little more than its network requires.

Where there is a real one, torch says whether it waits.

``python -m support.pretend_steps``, which accepts every shipped recipe, gives the table of docs/decisions.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support import forked_ranks, gpu_steps
from support.running import spawn
from torch import Tensor

from cifar_dist import recipe
from cifar_dist.data import static_mix
from cifar_dist.data.pack import pack
from cifar_dist.data.randomness import step_seed
from cifar_dist.data.static_mix import Function
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.training.setup import build_setup


@dataclass(frozen=True)
class Budget:
    """Kernel launches of a step.

    Attributes:
        augmentation: before it is compiled.
        network: forward, loss and backward.
        optimizer: with clipping and averages.
        rest: the batch, measurements and agreement.
    """

    augmentation: int
    network: int
    optimizer: int
    rest: int


BUDGETS = {
    "speedrun-94": Budget(60, 140, 34, 15),
    "custom-resnet": Budget(560, 140, 20, 15),
    "se-resnet-randaugment": Budget(1480, 470, 40, 16),
}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 32x32."""
    folder, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    images = random.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "source.npz", x_train=images, y_train=np.arange(60) % 10)
    pack(folder / "source.npz", folder / "packed", val_fraction=0, show=False)
    return folder / "packed"


def test_a_step_on_streamed_images_waits_for_nothing(colours: Path, tmp_path: Path) -> None:
    """A batch of 24 has 72 KiB: more than CUDA takes at once from memory that is not pinned."""
    words = ["--data.path", str(colours), "--run.dir", str(tmp_path), "--data.resident_mb", "0"]
    config = recipe.load("custom-resnet", [*words, "--train.batch_size", "24", "--train.precision", "no"])

    def step() -> None:
        from support.pretend_steps import count_step

        counts = count_step(config, steps=2)
        assert not counts.waits.total(), f"the host waits for the device: {dict(+counts.waits)}"

    forked_ranks.run(1, step)


def test_dropout_is_seeded_on_the_device_of_the_process(colours: Path, tmp_path: Path) -> None:
    words = ["--data.path", str(colours), "--run.dir", str(tmp_path), "--train.batch_size", "10"]
    config = recipe.load("custom-resnet", [*words, "--train.precision", "no"])

    def step() -> None:
        from support.pretend_steps import count_step

        def seeds_all(seed: int) -> None:
            raise AssertionError("it also seeds devices that are absent, and records a stack for each")

        torch.cuda.manual_seed_all, torch.manual_seed = seeds_all, torch.default_generator.manual_seed
        count_step(config, steps=2)
        (generator,) = torch.cuda.default_generators
        assert generator.initial_seed() == step_seed(config.run.seed, 1, 0)
        assert torch.default_generator.initial_seed() == step_seed(config.run.seed, 1, 0)

    forked_ranks.run(1, step)


def test_the_compiled_augmentation_outlives_the_job(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    config = recipe.load("speedrun-94", ["--data.path", str(colours), "--train.batch_size", "10"])

    def build() -> None:
        from support.pretend_cuda import CUDA, pretend

        places = []

        def compiled(function: Function, *_: Tensor) -> Function:
            places.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            return function

        monkeypatch.setattr(static_mix, "compile_static", compiled)
        with pretend():
            build_setup(config, Ranks(0, 1, CUDA, first_of_node=True))
        (place,) = places
        assert place.startswith(str(tmp_path / "cifar-dist" / "compiled"))

    forked_ranks.run(1, build)


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_waits_for_nothing_and_stays_in_its_budget(name: str, colours: Path, tmp_path: Path) -> None:
    words = ["--data.path", str(colours), "--run.dir", str(tmp_path), "--train.batch_size", "10"]
    config = recipe.load(name, [*words, "--train.precision", "no", "--train.threads", "1"])

    def step() -> None:
        from support.pretend_steps import count_step, split

        counts = count_step(config)
        assert not counts.waits.total(), f"the host waits for the device: {dict(+counts.waits)}"
        for part, launches in split(counts).items():
            assert launches <= getattr(BUDGETS[name], part), (
                f"{part}: {launches}, most by {counts.launches.most_common(9)}"
            )

    forked_ranks.run(1, step)


@pytest.mark.parametrize(
    "words", [("speedrun-94",), ("speedrun-94", "--optim.rest", "adamw"), ("custom-resnet",)], ids=" ".join
)
def test_a_step_with_a_loss_scale_waits_for_nothing(words: tuple[str, ...], colours: Path, tmp_path: Path) -> None:
    name, *settings = words
    few = ["--augment.transforms", "[]", "--train.batch_size", "10", "--train.precision", "no", "--train.threads", "1"]
    config = recipe.load(name, [*settings, "--data.path", str(colours), "--run.dir", str(tmp_path), *few])

    def step() -> None:
        from support.pretend_steps import count_step, split

        counts = count_step(config, scales_loss=True)
        assert not counts.waits.total(), f"the host waits for the device: {dict(+counts.waits)}"
        assert split(counts)["optimizer"] < 60

    forked_ranks.run(1, step)


@pytest.mark.parametrize("has_other_groups", [False, True])
def test_the_next_step_is_not_queued_behind_what_the_ranks_ask_each_other(
    monkeypatch: pytest.MonkeyPatch, has_other_groups: bool
) -> None:
    """Unless it exchanges over another process group, as DeepSpeed does: NCCL might block with two at once."""

    def ask() -> None:
        from support.pretend_cuda import CUDA, counts, pretend

        waited: list[object] = []
        exchange = SimpleNamespace(wait=lambda: waited.append(torch.cuda.current_stream()))
        monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: exchange)
        with pretend():
            compute = torch.cuda.Stream(CUDA)
            with torch.cuda.stream(compute):
                ranks = Ranks(0, 2, CUDA, first_of_node=True, has_other_groups=has_other_groups)
                pending = [ranks.start_maximum(torch.full((2,), float(n), device=CUDA)) for n in range(2)]
                assert torch.cuda.current_stream() is compute
        assert waited.count(compute) == (2 if has_other_groups else 0), "the next step would wait for the other ranks"
        assert len(waited) == 2 + waited.count(compute)
        assert [asked.wait().tolist() for asked in pending] == [[0, 0], [1, 1]]
        assert not counts.waits.total()

    forked_ranks.run(1, ask)


def test_predictions_wait_for_nothing(colours: Path, tmp_path: Path) -> None:
    words = ["--data.path", str(colours), "--run.dir", str(tmp_path), "--eval.batch_size", "20"]
    config = recipe.load("speedrun-94", [*words, "--train.precision", "no", "--train.threads", "1"])

    def predict() -> None:
        from support.pretend_steps import count_waits_of_predictions

        assert not count_waits_of_predictions(config)

    forked_ranks.run(1, predict)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "precision"), [("speedrun-94", "fp16"), ("custom-resnet", "bf16"), ("se-resnet-randaugment", "no")]
)
def test_torch_sees_no_wait_on_a_gpu(name: str, precision: str, colours: Path, tmp_path: Path) -> None:
    words = ["--data.path", str(colours), "--run.dir", str(tmp_path), "--train.batch_size", "10"]
    (done,) = spawn([gpu_steps.__file__, name, *words, "--train.precision", precision], fresh=True)
    assert done.returncode == 0, done.stderr
    assert " steps on cuda" in done.stdout
