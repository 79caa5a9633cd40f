"""The augmentation for a GPU gives the pixels of the CPU's, without ever waiting for the device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.transform_settings import OTHER, toml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifar_dist import recipe
from cifar_dist.config import AugmentConfig, TransformConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import Batch
from cifar_dist.data.mix import Mix
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.static_mix import StaticMix, compile_static
from cifar_dist.data.transforms import Mixing, Samples, Transform

CPU = torch.device("cpu")
SHAPE = (26, 21, 3)
MEAN = (0.49, 0.48, 0.45)
LISTS = (
    '[{name="crop", fill="constant"}, {name="flip", kind="alternating"}, {name="autoaugment"}, {name="randaugment"}]',
    '[{name="trivialaugment"}, {name="affine", rotation=9, scale=[0.7, 1.2], shear=8, translate=0.2}, {name="gray"}]',
    '[{name="flip"}, {name="perspective"}, {name="jitter", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.2}]',
    '[{name="cutout"}, {name="flip"}, {name="flip"}, {name="erasing"}, {name="mixup", p=0.4}, {name="cutmix", p=0.5}]',
    '[{name="mixup", p=0.4, alpha=0.2}, {name="cutmix", p=0.5, alpha=0.5}]',
)


def mix_of(config: AugmentConfig, device: torch.device = CPU) -> Mix:
    plain = Normalize((0.0,) * 3, (1 / 255,) * 3, device, channels_last=False)
    return Mix(config, Augment(config, 5, MEAN, plain), 10)


def static(mix: Mix, size: int = 0, device: torch.device = CPU) -> StaticMix:
    """Build the GPU's augmentation; it is not compiled for batches of any size but ``size``."""
    return StaticMix(mix, 5, SHAPE, size, device)


def batch_of(count: int, *, mixes: bool) -> Batch:
    random = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count + mixes, *SHAPE), generator=random).to(torch.uint8)
    images[::4] = torch.linspace(0, 255, SHAPE[1]).to(torch.uint8)[:, None]
    images[1::6] //= 4
    ids = torch.randperm(count + mixes, generator=random) + 49_000
    return Batch(images, ids % 10, ids, torch.ones(count))


def in_lists(name: str) -> bool:
    return any(f'name="{name}"' in words for words in LISTS)


@functools.cache
def configs() -> Sequence[AugmentConfig]:
    """Return the distinct augmentations of all shipped recipes and of LISTS, and those that these lack, alone."""
    alone = [f"[{toml(name, OTHER.get(name, {}))}]" for name in TransformConfig.variants if not in_lists(name)]
    shipped = [recipe.load(name).augment for name in recipe.shipped()]
    others = [recipe.load("demo", ["--augment.transforms", words]).augment for words in (*LISTS, *alone)]
    return [*{str(config.transforms): config for config in (*shipped, *others)}.values()]


def test_the_pixels_and_targets_are_those_of_the_groups() -> None:
    for config in configs():
        mix = mix_of(config)
        assert mix.mixes == any(isinstance(transform, Mixing) for transform in config.transforms)
        fixed = static(mix)
        for count, epoch in ((60, 0), (60, 1), (7, 122)):
            batch = batch_of(count, mixes=mix.mixes)
            for expected, found in zip(mix(batch, epoch), fixed(batch, epoch), strict=True):
                assert torch.equal(expected, found), (config.transforms, epoch)


# Every processor rounds these once and alike (IEEE 754), or they do not round.
EXACT = {
    *("add", "sub", "rsub", "mul", "div", "neg", "abs", "round", "floor", "ceil", "trunc", "clamp", "copysign"),
    *(
        "maximum",
        "minimum",
        "nan_to_num",
        "where",
        "masked_fill",
        "lt",
        "le",
        "ge",
        "eq",
        "ones_like",
        "_to_copy",
        "copy",
        "stack",
        "index",
    ),
    "beta_quantile",  # computed on the CPU, whatever the device
}
# On a few numbers a sample, in float64: where processors differ, it is in the last of 53 bits, and 24 are kept. MKL's
# square roots in float32 differ between AMD's and Intel's processors in a fifth of all numbers.
ROUNDED_AFTERWARDS = {"sin", "cos", "tan", "atan", "exp", "sqrt", "deg2rad", "rad2deg"}


class Arithmetic(TorchDispatchMode):
    """Records the floating-point operations whose result may depend on the processor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.doubtful: set[str] = set()

    def __torch_dispatch__(
        self,
        func: object,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        assert isinstance(func, torch._ops.OpOverload)
        name = func._schema.name.split("::")[1].removesuffix("_") or func._schema.name
        floats = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
        per_sample = all(x.dtype is torch.float64 and x.ndim < 3 for x in floats)
        by_number = name == "div" and floats and not all(isinstance(x, Tensor) for x in args[:2])
        exact = name in EXACT or func.is_view or (name in ROUNDED_AFTERWARDS and per_sample)
        if floats and (by_number or not exact):
            self.doubtful.add(str(func))
        return func(*args, **(kwargs or {}))


def unscaled(images: Tensor) -> Tensor:
    """Convert to floats without normalising, which rounds as the processor does."""
    return images.permute(0, 3, 1, 2).to(torch.float32)


def test_processors_agree_on_the_arithmetic_of_every_transform() -> None:
    """Hence a GPU gives the pixels of a CPU, as far as a CPU can show it; a GPU may replace division by a constant."""
    for config in configs():
        mix = Mix(config, Augment(config, 5, MEAN, unscaled), 10)  # type: ignore[arg-type]
        batch = batch_of(9, mixes=mix.mixes)
        with Arithmetic() as seen:
            mix(batch, 3)
        assert not seen.doubtful, config.transforms


def test_the_arithmetic_test_sees_a_division_by_a_number() -> None:
    with Arithmetic() as seen:
        _ = torch.ones(3) / 6, torch.ones(3) / torch.ones(3), torch.arange(3) % 2, torch.ones(3).sqrt()
    assert seen.doubtful == {"aten.div.Tensor", "aten.sqrt.default"}


def test_a_trace_draws_anew_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, **options: traced)
    for config in configs()[-2:]:  # those that mix draw most, and a trace takes seconds
        mix = mix_of(config)
        batch, last = (batch_of(count, mixes=mix.mixes) for count in (20, 7))  # the last of an epoch is smaller
        fixed = static(mix, size=len(batch.images))
        fixed.warm_up()
        for shown, epoch in ((batch, 0), (last, 0), (batch, 1)):
            for expected, found in zip(mix(shown, epoch), fixed(shown, epoch), strict=True):
                assert torch.equal(expected, found), (config.transforms, epoch)
        assert fixed._compiled is not None, config.transforms


@pytest.mark.parametrize(
    ("computed", "why"),
    [
        ("255 - images if int(images[0, 0, 0, 0]) % 2 else images", ""),
        ("torch.from_numpy(255 - images.cpu().numpy())", "compiled, it gives other images: a transform"),
        ("torch.tensor((255 - images).tolist(), dtype=torch.uint8)", "compiled, it gives other images: a transform"),
    ],
)
def test_what_cannot_be_compiled_runs_as_it_is_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: str, why: str
) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, **options: traced)
    file = tmp_path / "curious.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom cifar_dist.data.transforms import Transform\n"
        "@dataclass(frozen=True)\nclass Curious(Transform):\n    name: str = 'curious'\n"
        "    def __call__(self, images, samples):\n"
        f"        return {computed}\n"
    )
    mix = mix_of(recipe.load("demo", ["--augment.transforms", f'[{{name="{file}:Curious"}}]']).augment)
    batch = batch_of(8, mixes=False)
    fixed = static(mix, size=8)
    fixed.warm_up()
    for epoch in (0, 1):
        assert torch.equal(fixed(batch, epoch)[0], mix(batch, epoch)[0])
    assert fixed.failure
    assert fixed.failure.startswith(why)


def test_what_only_some_epochs_draw_is_drawn_as_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, **options: traced)
    file = tmp_path / "late.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom cifar_dist.data.transforms import Transform\n"
        "@dataclass(frozen=True)\nclass Late(Transform):\n    name: str = 'late'\n"
        "    def __call__(self, images, samples):\n"
        "        if samples.epoch < 2:\n            return images\n"
        "        always = samples.of_all_epochs().uniform('late', range(2))[1]\n"
        "        chosen = (samples.uniform('late') < 0.5) | (always < 0.3)\n"
        "        return torch.where(chosen[:, None, None, None], 255 - images, images)\n"
    )
    mix = mix_of(recipe.load("demo", ["--augment.transforms", f'[{{name="{file}:Late"}}, {{name="flip"}}]']).augment)
    batch = batch_of(16, mixes=False)
    fixed = static(mix, size=16)
    fixed.warm_up()
    assert fixed.failure
    seen = [fixed(batch, epoch)[0] for epoch in range(4)]
    for epoch, images in enumerate(seen):
        assert torch.equal(images, mix(batch, epoch)[0]), epoch
    assert not torch.equal(seen[2], seen[3])


@pytest.mark.parametrize("lacks", [False, True])
def test_a_compiler_that_always_flushes_subnormal_numbers_compiles_nevertheless(
    monkeypatch: pytest.MonkeyPatch, lacks: bool
) -> None:
    asked: list[set[str]] = []

    def compiled(function: object, *, dynamic: bool, options: dict[str, bool]) -> object:
        asked.append(set(options))
        if lacks and "eager_numerics.disable_ftz" in options:
            raise RuntimeError("Unexpected optimization option eager_numerics.disable_ftz")
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    found = compile_static(lambda *inputs: (inputs[0] + 1, inputs[1]), *torch.zeros(5, 2))
    assert found(*torch.ones(5, 2))[0].tolist() == [2, 2]
    exact = {"emulate_precision_casts", "eager_numerics.division_rounding"}
    assert asked == [exact | {"eager_numerics.disable_ftz"}, exact][: 1 + lacks]


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(len(configs())))
def test_compiled_for_a_gpu_it_shows_the_pixels_of_a_cpu(number: int) -> None:
    config, cuda = configs()[number], torch.device("cuda")
    mix, on_cpu = mix_of(config, cuda), mix_of(config)
    batch = batch_of(60, mixes=mix.mixes)
    fixed = static(mix, len(batch.images), cuda)
    fixed.warm_up()
    there = Batch(*(getattr(batch, field.name).to(cuda) for field in dataclasses.fields(Batch)))
    for epoch in (0, 1):
        for expected, found in zip(on_cpu(batch, epoch), fixed(there, epoch), strict=True):
            assert torch.equal(expected, found.cpu()), (config.transforms, epoch)
    assert fixed._compiled is not None, config.transforms


@dataclasses.dataclass(frozen=True)
class InvertedInPlace(Transform):
    """A plug-in that changes what it is given."""

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        images ^= 255
        return images


@dataclasses.dataclass(frozen=True)
class BlendedInPlace(Mixing):
    """Likewise, one that mixes."""

    def __call__(self, images: Tensor, partners: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        images += partners
        return images.mul_(0.5), torch.full_like(samples.uniform("share"), 0.5)


def test_a_plug_in_that_works_in_place_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, **options: traced)
    mix = mix_of(AugmentConfig(transforms=(InvertedInPlace(name="mine"), BlendedInPlace(name="yours", p=0.5))))
    batch = batch_of(20, mixes=True)
    stored = batch.images.clone()
    fixed = static(mix, 21)
    fixed.warm_up()
    assert not fixed.failure
    for epoch in (0, 3):
        for expected, found in zip(mix(batch, epoch), fixed(batch, epoch), strict=True):
            assert torch.equal(expected, found)
    assert torch.equal(batch.images, stored)
