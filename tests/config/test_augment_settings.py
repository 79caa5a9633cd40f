"""The list of transforms in a recipe and on the command line: what it accepts and refuses, and its messages."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.running import ROOT, environment
from support.transform_settings import NEEDED, OTHER, toml

from cifar_dist import recipe
from cifar_dist.config import AugmentConfig, TransformConfig
from cifar_dist.config.saved import read_config
from cifar_dist.config.settings import settings_of
from cifar_dist.config.tree import to_toml
from cifar_dist.data.transforms import Mixing, Samples, Transform
from cifar_dist.data.transforms.crop import Crop
from cifar_dist.data.transforms.flip import Flip
from cifar_dist.errors import UserError

FIELDS = [
    (name, field.name)
    for name, item in TransformConfig.variants.items()
    for field in dataclasses.fields(item)
    if field.name != "name"
]


def transforms(*words: str, of: str = "demo") -> tuple[TransformConfig, ...]:
    return recipe.load(of, words).augment.transforms


def shown(transform: TransformConfig) -> tuple[torch.Tensor, ...]:
    images = torch.randint(0, 256, (40, 3, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = Samples(1, 2, torch.arange(40), (9, 80, 255))
    if isinstance(transform, Mixing):
        mixed, ratio = transform(images.float(), images.float().roll(1, 0), samples)
        return mixed, ratio, torch.tensor(transform.p)  # whom it is applied to is tested in tests/data/test_mix.py
    assert isinstance(transform, Transform)
    return (transform(images, samples),)


def test_every_setting_is_tried_here() -> None:
    tried = {(name, key) for name, settings in OTHER.items() for key in settings}
    assert tried == {*FIELDS}, "tests/support/transform_settings.py holds another value of each setting"


@pytest.mark.parametrize(("name", "key"), FIELDS, ids=".".join)
def test_every_setting_has_an_effect(name: str, key: str) -> None:
    base = NEEDED.get(name, {})
    (before,) = transforms("--augment.transforms", f"[{toml(name, base)}]")
    (after,) = transforms("--augment.transforms", f"[{toml(name, {**base, key: OTHER[name][key]})}]")
    assert before != after
    assert not all(torch.equal(one, other) for one, other in zip(shown(before), shown(after), strict=True))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("name = 'crop', pad = -1", "augment.crop.pad -1 must not be negative"),
        ("name = 'crop', fill = 'mirror'", "augment.crop.fill 'mirror' must be 'constant' or 'reflect'"),
        ("name = 'flip', kind = 'none'", "augment.flip.kind 'none' must be 'random' or 'alternating'"),
        ("name = 'cutout', side = -1", "augment.cutout.side -1 must not be negative"),
        ("name = 'affine', rotation = -5", "augment.affine.rotation -5.0 must not be negative"),
        ("name = 'affine', translate = 2", "augment.affine.translate 2.0 must be a fraction"),
        ("name = 'affine', scale = [1.2, 0.8]", "augment.affine.scale [1.2, 0.8] must be two increasing numbers"),
        ("name = 'affine', shear = 90", "augment.affine.shear 90.0 must be degrees in [0, 90)"),
        ("name = 'affine'", "augment.affine.rotation, translate, scale and shear are all off; set one of them"),
        ("name = 'jitter'", "augment.jitter.brightness, contrast, saturation and hue are all 0; set one of them"),
        ("name = 'jitter', hue = 0.6", "augment.jitter.hue 0.6 must be in [0, 0.5]"),
        ("name = 'gray', p = 2", "augment.gray.p 2.0 is a probability and must be in [0, 1]"),
        ("name = 'gray', p = nan", "augment.gray.p nan must be a finite number"),
        ("name = 'randaugment', magnitude = 31", "augment.randaugment.magnitude 31 must be in 0..30 (bins - 1)"),
        ("name = 'trivialaugment', bins = 1", "augment.trivialaugment.bins 1 must be in 2..1000"),
        ("name = 'mixup', alpha = 0", "augment.mixup.alpha 0.0 must be above 0"),
        ("name = 'cutmix'}, {name = 'gray'", "augment.transforms: cutmix mixes finished images and gray follows it"),
        (
            "name = 'cutmix'}, {name = 'mixup'",
            "cutmix and mixup are alternatives; the sum of their p is 2, above 1",
        ),
        ("name = 'cutuot'", "name 'cutuot' is not known; did you mean 'cutout'?"),
        ("pad = 4", "augment.transforms[0].name '' is not known; known: affine, "),
        ("name = 'gray', magnitude = 3", 'augment.gray.magnitude has no effect with name = "gray"; remove it, or use'),
        ("name = 'crop', pda = 3", "unknown setting --augment.crop.pda; did you mean '--augment.crop.pad'?"),
        ("name = 'crop', pad = -1}, {name = 'crop'", "augment.transforms[0].pad -1 must not be negative"),
    ],
)
def test_what_cannot_be_is_refused_under_its_key(settings: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        transforms("--augment.transforms", f"[{{ {settings} }}]")
    assert str(caught.value).startswith("the command line: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_found_before_torch_is_loaded() -> None:
    program = """
import sys
from cifar_dist import recipe
from cifar_dist.errors import UserError
for name in recipe.shipped():
    recipe.load(name)
try:
    recipe.load("se-resnet", ["--augment.affine.rotation", "-5"])
except UserError as error:
    print(error)
assert not {"torch", "numpy"} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "the command line: augment.affine.rotation -5.0 must not be negative; it applies both ways\n"


def test_the_default_is_a_crop_and_a_random_flip() -> None:
    assert AugmentConfig().transforms == (Crop(pad=4, fill="reflect"), Flip(kind="random"))
    assert transforms("--augment.transforms", "[]") == ()


def test_alternatives_may_add_up_to_one_however_their_sum_is_rounded() -> None:
    assert 0.34 + 0.56 + 0.1 > 1
    words = "[{name='mixup', p=0.34, alpha=0.2}, {name='cutmix', p=0.56}, {name='mixup', p=0.1}]"
    assert len(transforms("--augment.transforms", words)) == 3


def test_one_setting_of_one_transform(tmp_path: Path) -> None:
    assert transforms("--augment.crop.pad", "1") == (Crop(pad=1, fill="constant"),)
    pad, both = "--augment.crop.pad=1", '--augment.transforms=[{ name = "flip" }, { name = "crop" }]'
    assert (transforms(both, pad), transforms(pad, both)) == ((Flip(), Crop(pad=1)), (Flip(), Crop())), "the last wins"
    (tmp_path / "base.toml").write_text('base = "demo"\n[augment.crop]\nfill = "reflect"\n')
    (tmp_path / "own.toml").write_text('base = "base.toml"\n[augment]\ncrop.pad = 5\nmean = [0.5]\nstd = [0.5]\n')
    own = recipe.load(str(tmp_path / "own.toml"), ["--augment.crop.pad", "6"])
    assert own.augment == AugmentConfig(transforms=(Crop(pad=6),), mean=(0.5,), std=(0.5,))
    (tmp_path / "new.toml").write_text('base = "own.toml"\n[augment]\ntransforms = [{ name = "flip" }]\n')
    assert transforms(of=str(tmp_path / "new.toml")) == (Flip(),), "a list replaces the one below, and its changes"
    (tmp_path / "plain.toml").write_text("[augment.crop]\npad = 2\n")
    assert transforms(of=str(tmp_path / "plain.toml")) == (Crop(pad=2), Flip()), "of the default list"
    assert settings_of(own)["augment.crop.pad"] == 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--augment.gray.p", "0.3"],
            "augment.transforms has no gray; give the whole list with it: --augment.transforms "
            """'[{ name = "crop", pad = 3, fill = "constant" }, { name = "gray", p = 0.3 }]'""",
        ),
        (
            ["--augment.transforms", '[{ name = "flip" }, { name = "flip" }]', "--augment.flip.kind", "random"],
            "augment.transforms has flip 2 times; give the whole list: --augment.transforms "
            """'[{ name = "flip" }, { name = "flip" }]'""",
        ),
        (["--augment.crop", "2"], "--augment.crop has settings of its own; set one of them, as --augment.crop.pad"),
        (
            ["--augment.rotation", "2"],
            "unknown setting --augment.rotation; did you mean '--augment.affine.rotation'?",
        ),
        (["--augment.magnitude", "30"], "did you mean '--augment.randaugment.magnitude'?"),
        (["--augment.cropp.pad", "2"], "unknown setting --augment.cropp.pad; did you mean '--augment.crop.pad'?"),
        (["--augment.foo.x", "1"], "unknown setting --augment.foo.x; transforms: affine, autoaugment, crop, "),
        (["--augment.transforms.crop.pad", "1"], "did you mean '--augment.crop.pad'?"),
        (["--augment.crop.name", "flip"], "augment.flip.pad has no effect with name = "),
        (["--augment.crop.pda", "2"], "unknown setting --augment.crop.pda; did you mean '--augment.crop.pad'?"),
        (["--augment.crop.pad", "many"], "augment.crop.pad 'many' must be a valid integer"),
        (["--augment.transforms.0.pad", "2"], "--augment.transforms is not a section; set it as a whole"),
        (["--augment.transforms", "crop"], "augment.transforms 'crop' must be a list"),
        (["--augment.transforms=crop", "--augment.crop.pad=2"], "augment.transforms 'crop' must be a list"),
        (["--augment.transforms=[1]", "--augment.crop.pad=2"], "augment.transforms[0]: must be a table"),
        (["--augment.transforms", '["crop"]'], 'augment.transforms[0]: must be a table such as { name = "..." }'),
    ],
)
def test_a_mistake_says_what_to_type(words: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        transforms(*words)
    assert str(caught.value).startswith("the command line: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[augment.transforms.crop]\npad = 1\n", "did you mean 'augment.crop.pad'?"),
        ("[augment.transforms]\nflip = 'random'\n", "did you mean 'augment.flip.kind'?"),
        ("[augment.transforms]\npad = 1\n", "set it as a whole, as augment.transforms"),
        ("[augment.transforms]\n", "set it as a whole, as augment.transforms"),
    ],
)
def test_a_table_in_place_of_the_list_is_refused(tmp_path: Path, text: str, right: str) -> None:
    (tmp_path / "table.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        transforms(of=str(tmp_path / "table.toml"))
    assert str(caught.value).endswith(f"table.toml: augment.transforms is not a section; {right}")


def test_what_a_message_says_to_type_is_accepted() -> None:
    typed = '[{ name = "crop", pad = 3, fill = "constant" }, { name = "gray", p = 0.3 }]'
    assert len(transforms("--augment.transforms", typed)) == 2


def test_the_config_of_a_run_is_read_again(tmp_path: Path) -> None:
    for name in ("se-resnet-randaugment", "speedrun-96"):
        config = recipe.load(name)
        (tmp_path / "config.toml").write_text(to_toml(config))
        assert read_config(tmp_path / "config.toml") == config
        assert recipe.load(str(tmp_path / "config.toml")) == config


def test_the_help_of_a_recipe_names_what_can_be_typed() -> None:
    command = [sys.executable, "train.py", "se-resnet", "--help", "augment"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    for key in ("transforms", "flip.kind", "affine.rotation", "jitter.hue", "cutmix.alpha", "mean"):
        assert f"--augment.{key}" in done.stdout
    assert "transforms.0" not in done.stdout
