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
from cifar_dist.report.sheet import sheet
from cifar_dist.report.style import FAINT, short, short_names

_SPLIT = "train"
_CELL, _IMAGE = 1.15, 1.08  # inches
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
    names = short_names(manifest.classes, 14)
    mixed = any(targets is not None and targets.is_floating_point() for _, targets in columns)
    width = max((1 + versions) * _CELL + 0.3, 6.0)
    parts = describe(config.augment) or ["no augmentation"]
    words = textwrap.wrap(", ".join(part.replace(" ", "\u00a0") for part in parts), int(15 * width))
    head = 0.45 + 0.17 * len(words)
    row_height = _CELL + (0.36 if mixed else 0.22)
    with sheet(path, width, head + 0.25 + count * row_height) as drawing:
        drawing.title(short(f"{manifest.name}, augmented by {config.run.name}", int(8 * width)))
        drawing.text(0.12, 0.36, "\n".join(words), 8.5)
        for place, (shown, targets) in enumerate(columns):
            left = 0.15 + place * _CELL
            middle = left + _IMAGE / 2
            drawing.text(middle, head, "as stored" if place == 0 else f"epoch {place - 1}", 9, align="center")
            for row in range(count):
                top = head + 0.22 + row * row_height
                drawing.image(left, top, _IMAGE, shown[row].numpy())
                if targets is None:
                    drawing.text(
                        middle, top + _IMAGE + 0.04, _named(int(labels[row]), names), 8, align="center", room=_IMAGE
                    )
                elif targets.is_floating_point():
                    shares = _shares(targets[row], names)
                    drawing.text(middle, top + _IMAGE + 0.04, shares, 7, colour=FAINT, align="center", room=_IMAGE)
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
