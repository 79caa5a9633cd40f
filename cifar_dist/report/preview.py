"""Draw a sheet of training images: each as stored, and as a recipe augments it in the first epochs."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig, Config, TransformConfig
from cifar_dist.config.named_items import item_key
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import Batch
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.mix import Mix
from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.data.randomness import permutation
from cifar_dist.data.read import ShardReader
from cifar_dist.errors import UserError
from cifar_dist.formatting import percent
from cifar_dist.report.style import INK, figure, short, show_image

_SPLIT = "train"
_CELL = 1.15  # inches
_MOST_SAMPLES, _MOST_VERSIONS = 50, 20  # larger sheets are illegible
_OFF = (0, "", (), (1.0, 1.0))  # values of settings that have no effect, which are not shown


def draw_preview(config: Config, manifest: Manifest, path: Path, *, samples: int = 8, versions: int = 6) -> Path:
    """Write the sheet, with a row for each of ``samples`` random training images, to ``path`` and return it.

    The versions are exactly those of epochs 0, 1, ... of a run of ``config``, before normalisation. Only the partner of
    a mixed image differs: here it is the sample of the row above.

    Raises:
        UserError: no training split, mixing without labels, images that do not suit the transforms, or too many.
    """
    if samples > _MOST_SAMPLES or versions > _MOST_VERSIONS:
        most = f"at most {_MOST_SAMPLES} samples of {_MOST_VERSIONS} versions"
        raise UserError(f"a sheet shows {most}, not {samples} of {versions}")
    reader = ShardReader(manifest, _SPLIT)
    try:
        count = min(samples, len(reader))
        ids = permutation(config.run.seed, 0, len(reader), "preview")[:count]
        images = reader.images(ids)
    finally:
        reader.close()
    labels = torch.from_numpy(manifest.labels(_SPLIT))[ids]
    columns = [(images.to(torch.float32) / 255, None), *augmented(config, manifest, images, labels, ids, versions)]
    names = [short(name, 14) for name in manifest.classes]
    mixed = any(targets is not None and targets.is_floating_point() for _, targets in columns)
    width = max((1 + versions) * _CELL + 0.3, 6.0)
    parts = describe(config.augment) or ["no augmentation"]
    words = textwrap.wrap(", ".join(part.replace(" ", "\u00a0") for part in parts), int(15 * width))
    head = 0.45 + 0.17 * len(words)
    height = head + 0.25 + count * (_CELL + (0.36 if mixed else 0.22))
    with figure(path, width, height) as drawing:
        margin = (0.1 / width, 0.08 / height)
        below_head = (margin[0], margin[1], 1 - 2 * margin[0], 1 - margin[1] - head / height)
        drawing.set_layout_engine("constrained", rect=below_head, w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        left, top = 0.13 / width, 1 - 0.12 / height
        title = short(f"{manifest.name}, augmented by {config.run.name}", int(8 * width))
        drawing.text(left, top, title, va="top", fontsize=12, fontweight="bold")
        drawing.text(left, top - 0.24 / height, "\n".join(words), va="top", fontsize=8.5, linespacing=1.25)
        grid = drawing.subplots(count, len(columns), squeeze=False)
        for place, (shown, targets) in enumerate(columns):
            title = "as stored" if place == 0 else f"epoch {place - 1}"
            grid[0, place].set_title(title, fontsize=9, fontweight="normal", loc="center", pad=4)
            for row in range(count):
                axes = grid[row, place]
                show_image(axes, shown[row].numpy())
                axes.spines[:].set_visible(False)
                if targets is None:
                    axes.set_xlabel(_named(int(labels[row]), names), fontsize=8, color=INK, labelpad=3)
                elif targets.is_floating_point():
                    axes.set_xlabel(_shares(targets[row], names), fontsize=7, labelpad=3)
    return path


def augmented(
    config: Config, manifest: Manifest, images: Tensor, labels: Tensor, ids: Tensor, versions: int
) -> list[tuple[Tensor, Tensor]]:
    """Return for each of ``versions`` epochs the images, float32 [n, h, w, c] in [0, 1], and the targets.

    Args:
        images: uint8 [n, h, w, c].
        labels, ids: int64 [n]. Each sample's partner is the one before it, the first one's the last.

    Raises:
        UserError: mixing samples without a label, or images that cannot be augmented this way.
    """
    channels = manifest.shape[2]
    mean, _ = normalization_statistics(config.augment, manifest)
    unchanged = Normalize((0.0,) * channels, (1.0,) * channels, torch.device("cpu"), channels_last=False)
    augment = Augment(config.augment, config.run.seed, mean, unchanged)
    augment.check(manifest.shape)
    mix = Mix(config.augment, augment, len(manifest.classes))
    if mix.mixes and bool((labels < 0).any()):
        raise UserError(f"{manifest.root}: split '{_SPLIT}' has samples without a label, which cannot be mixed")
    last = torch.arange(len(ids))[-1:] if mix.mixes else torch.arange(0)
    order = torch.cat([last, torch.arange(len(ids))])
    batch = Batch(images[order], labels[order], ids[order], torch.ones(len(ids)))
    shown = []
    for epoch in range(versions):
        pixels, targets = mix(batch, epoch)
        shown.append((pixels.permute(0, 2, 3, 1).clamp(0, 1), targets))
    return shown


def describe(augment: AugmentConfig) -> list[str]:
    """Describe the transforms and their settings in order, such as ``perspective (p 0.5)``."""
    return [_described(transform) for transform in augment.transforms]


def _described(transform: TransformConfig) -> str:
    settings = asdict(transform)
    name = item_key(settings.pop("name"))
    shown_settings = [
        f"{key.replace('_', ' ')} {_format(value)}" for key, value in settings.items() if value not in _OFF
    ]
    return f"{name} ({', '.join(shown_settings)})" if shown_settings else name


def _format(value: object) -> str:
    if isinstance(value, tuple | list):
        return " to ".join(_format(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(label: int, names: list[str]) -> str:
    return names[label] if label >= 0 else "no label"


def _shares(target: Tensor, names: list[str]) -> str:
    """List the classes of a mixed sample, one per line, as ``cat 62 %``; for a single class, only its name."""
    order: list[int] = target.argsort(descending=True).tolist()
    classes = [label for label in order if target[label] >= 0.005]
    if len(classes) == 1:
        return names[classes[0]]
    return "\n".join(f"{names[label]} {percent(target[label].item(), 0)}" for label in classes)
