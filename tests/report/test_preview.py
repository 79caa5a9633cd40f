"""The preview shows exactly the images that a run trains on, and names their augmentation."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from support.dataset_builders import write_npz

from cifar_dist import recipe
from cifar_dist.config import AugmentConfig, DataConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.pack import pack
from cifar_dist.errors import UserError
from cifar_dist.report.preview import augmented, describe, draw_preview
from cifar_dist.verbs import preview

EVERYTHING = (
    "--augment.transforms",
    """[
        { name = "crop", pad = 3, fill = "constant" }, { name = "randaugment" }, { name = "affine", rotation = 15 },
        { name = "perspective", p = 0.5 }, { name = "jitter", brightness = 0.2, contrast = 0.2, hue = 0.1 },
        { name = "erasing", p = 0.3 }, { name = "cutout", side = 3 },
    ]""",
)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """60 packed images of 12x10 random pixels in 3 classes."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    arrays: dict[str, ArrayLike] = {}
    for split, count in (("train", 60), ("test", 6)):
        arrays[f"x_{split}"] = random.integers(0, 256, (count, 12, 10, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 3
    source = write_npz(folder / "colours.npz", arrays)
    return pack(source, folder / "packed", samples_per_shard=20, val_fraction=0, show=False)


def preview_of(*words: str) -> Path:
    parser = argparse.ArgumentParser()
    preview.add_arguments(parser)
    arguments, arguments.settings = (known := parser.parse_known_args(words))[0], known[1]
    assert preview.run(arguments) == 0
    return arguments.out or Path(f"preview-{Path(arguments.recipe).stem}.png")


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_the_versions_are_what_a_run_trains_on_to_the_pixel(colours: Manifest) -> None:
    config = recipe.load("demo", ["--run.seed", "5", *EVERYTHING])
    plain = Normalize((0.0,) * 3, (1.0,) * 3, torch.device("cpu"), channels_last=False)
    train = Augment(config.augment, 5, colours.mean, plain)
    batches = TrainBatches(
        colours, DataConfig(), seed=5, batch_size=60, parts=1, own=range(1), device=torch.device("cpu")
    )
    ((batch,),) = batches.epoch(1)
    chosen = torch.tensor([3, 50, 17])
    shown = augmented(config, colours, batch.images[chosen], batch.labels[chosen], batch.ids[chosen], versions=2)
    assert len(shown) == 2
    trained = train(batch.images, batch.ids, 1)[chosen].permute(0, 2, 3, 1)
    assert torch.equal(shown[1][0], trained)
    assert not torch.equal(shown[0][0], shown[1][0])
    assert torch.equal(shown[1][1], batch.labels[chosen])


def test_the_partner_of_a_mixed_sample_is_the_row_above(colours: Manifest) -> None:
    settings = ["--augment.transforms", '[{ name = "mixup" }]']
    images = torch.zeros(3, 12, 10, 3, dtype=torch.uint8)
    images[0] = 255
    labels, ids = torch.tensor([0, 1, 2]), torch.arange(3)
    ((shown, targets),) = augmented(recipe.load("demo", settings), colours, images, labels, ids, versions=1)
    brightness = shown.mean(dim=(1, 2, 3))
    assert brightness[0] == pytest.approx(float(targets[0, 0]), abs=1e-6)
    assert brightness[1] == pytest.approx(float(targets[1, 0]), abs=1e-6)
    assert 0 < brightness[1] < 1
    assert brightness[2] == 0
    assert targets[2, 0] == 0
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(3))


def test_the_transforms_are_described_in_their_order() -> None:
    assert describe(AugmentConfig(transforms=())) == []
    assert describe(AugmentConfig()) == ["crop (pad 4, fill reflect)", "flip (kind random)"]
    assert describe(recipe.load("se-resnet-randaugment").augment) == [
        "flip (kind random)",
        "randaugment (operations 2, magnitude 9, bins 31)",
        "affine (rotation 15)",
        "perspective (p 0.5, distortion 0.5)",
        "jitter (brightness 0.2, contrast 0.2, saturation 0.2, hue 0.1)",
        "erasing (p 0.3, area 0.02 to 0.33, ratio 0.3 to 3.3)",
        "cutmix (p 0.7, alpha 1)",
    ]


def test_a_sheet_grows_with_its_samples_and_versions(colours: Manifest, tmp_path: Path) -> None:
    config = recipe.load("demo", EVERYTHING)
    small = pixels(draw_preview(config, colours, tmp_path / "small.png", samples=1, versions=5))
    tall = pixels(draw_preview(config, colours, tmp_path / "tall.png", samples=2, versions=5))
    wide = pixels(draw_preview(config, colours, tmp_path / "deep" / "wide.png", samples=1, versions=8))
    assert tall.shape[0] > small.shape[0] + 100
    assert tall.shape[1] == small.shape[1] < wide.shape[1]
    for sheet in (small, tall, wide):
        saturation = np.ptp(sheet.astype(int), axis=2)
        assert (saturation > 60).mean() > 0.1, "the images have colours"
        assert (sheet == 255).all(axis=2).mean() > 0.1, "and the paper is white"


def test_the_command_is_a_function_of_the_seed(colours: Manifest, tmp_path: Path) -> None:
    words = ["demo", "--samples", "2", "--versions", "1", "--augment.transforms", '[{ name = "mixup", p = 0.5 }]']
    sheets = []
    for number, seed in enumerate(("1", "1", "2")):
        path = preview_of(str(colours.root), *words, "--seed", seed, "--out", str(tmp_path / f"{number}.png"))
        sheets.append(path.read_bytes())
    assert sheets[0] == sheets[1]
    assert sheets[0] != sheets[2]


def test_a_dataset_is_found_by_its_name_and_the_sheet_is_called_after_the_recipe(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "numbers").symlink_to(digits)
    assert preview_of("numbers", "demo", "--samples", "1", "--versions", "1") == Path("preview-demo.png")
    assert pixels(tmp_path / "preview-demo.png").std() > 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "demo"], "no packed dataset at nowhere"),
        (["DIGITS", "dmeo"], "did you mean 'demo'"),
        (["DIGITS", "demo", "--augment.cropp", "2"], "did you mean '--augment.crop'"),
        (["DIGITS", "custom-resnet", "--augment.crop.pad=40", "--augment.crop.fill=reflect"], "too large for images"),
        (["DIGITS", "demo", "--out", "/"], "/ is a folder; name a file in it: --out /NAME"),
        (["DIGITS", "demo", "--samples=1", "--out", "/proc/a.png"], "/proc/a.png cannot be written: No such file"),
        (
            ["DIGITS", "demo", "--seed", "1", "--run.seed", "2"],
            "--seed and --run.seed are one setting; give one of them",
        ),
        (["DIGITS", "demo", "--samples", "1000000"], "at most 50 samples of 20 versions, not 1000000 of 6"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(words: list[str], says: str, digits: Path) -> None:
    with pytest.raises(UserError) as caught:
        preview_of(*(str(digits) if word == "DIGITS" else word for word in words))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_samples_without_a_label_are_shown_and_not_mixed(colours: Manifest) -> None:
    images, ids = torch.zeros(2, 12, 10, 3, dtype=torch.uint8), torch.arange(2)
    unlabelled = torch.tensor([0, -1])
    augmented(recipe.load("demo"), colours, images, unlabelled, ids, versions=1)
    mixed = recipe.load("demo", ["--augment.transforms", '[{ name = "cutmix" }]'])
    with pytest.raises(UserError, match="has samples without a label, which cannot be mixed"):
        augmented(mixed, colours, images, unlabelled, ids, versions=1)
