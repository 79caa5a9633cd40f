"""What is said of a run before it trains, because its user may not expect it; each note is one line.

Each function returns an empty string where there is nothing to say. What cannot work is refused, see
:mod:`cifar_dist.training.requirements`.
"""

from __future__ import annotations

import math

from cifar_dist.config import Config, RunningAverageConfig
from cifar_dist.config.average import EMAConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.formatting import counted, percent
from cifar_dist.training.requirements import uneven_batch
from cifar_dist.training.setup import TrainingSetup

_MUCH, _LITTLE = 0.05, 0.01  # of an average that is still its first copy: said, and suggested


def notes_at_start(setup: TrainingSetup, ranks: Ranks, *, has_begun: bool) -> list[str]:
    """Return all that is to be said of a run; ``has_begun``: an earlier process trained it."""
    config, manifest = setup.config, setup.manifest
    notes = (
        padding_note(config, ranks.world_size),
        parts_note(config, ranks.device.type),
        batch_note(config, len(setup.batches.images)),
        size_note(config, manifest),
        average_note(config, setup.steps_per_epoch, has_begun=has_begun),
        evaluation_note(config, manifest),
    )
    return [note for note in notes if note]


def padding_note(config: Config, world_size: int) -> str:
    """Say that every global batch is filled up with repeated samples."""
    padding = -config.train.batch_size % config.train.parts_of_batch(world_size)
    if not padding:
        return ""
    computed_twice = f"{counted(padding, 'sample')} of each batch are computed twice, and count once"
    return f"{uneven_batch(config, world_size)}: {computed_twice}"


def parts_note(config: Config, device: str) -> str:
    """Say that ``parts`` alone do not give the same bits on a GPU.

    Args:
        config: the run.
        device: type of the device that it computes on.
    """
    if not config.train.parts or config.train.deterministic or device != "cuda":
        return ""
    return (
        "train.parts gives the same bits on a GPU only with deterministic kernels; a new run with "
        "--train.deterministic true has them"
    )


def batch_note(config: Config, samples: int) -> str:
    """Say that a global batch is larger than the training split."""
    size = config.train.batch_size
    if size <= samples:
        return ""
    return f"train.batch_size {size:,} is more than the {samples:,} training samples: each epoch is one step on all"


def size_note(config: Config, manifest: Manifest) -> str:
    """Say that the network sees smaller images than the dataset has."""
    height, width, _ = manifest.shape
    side = config.model.image_size
    if not 0 < side < max(height, width):
        return ""
    return f"model.image_size {side} shrinks the images of {width}x{height}; --model.image_size 0 keeps their size"


def evaluation_note(config: Config, manifest: Manifest) -> str:
    """Say that the run ends without an evaluation, or with one of images that it trains on."""
    split = config.eval.split
    if split not in manifest.splits:
        other = "test" if "test" in manifest.splits else "val"
        hold_out = "" if config.data.hold_out or other == "test" else "--data.hold_out true "
        use = f"use {hold_out}--eval.split {other}"
        remedy = use if other in manifest.splits else "hold one out when it is packed"
        return f"the dataset has no split '{split}' to end with; {remedy}"
    if config.trains_on(split):
        return (
            f"the run trains on the split '{split}', which it is evaluated on in the end; its accuracy will not be "
            "that of new images; see eval.split"
        )
    return ""


def average_note(config: Config, steps_per_epoch: int, *, has_begun: bool) -> str:
    """Say that the average is never updated, or that much of it will be untrained weights.

    Such a run is not refused: a short trial of a long recipe is not a mistake. One that has begun cannot change it.
    """
    if has_begun:
        return ""
    average, last_step = config.average, config.train.last_step(steps_per_epoch)
    if not isinstance(average, RunningAverageConfig):
        return ""
    start = average.first_step(steps_per_epoch)
    if start + average.every > last_step:
        copied = f"the weights after step {start}" if start else "the weights before the first step"
        kept = copied if start < last_step else "the last weights"
        return (
            f"the average is first updated after step {start + average.every} (average.start {average.start:g}, "
            f"average.every {average.every}), and the run ends after step {last_step}: {kept} are evaluated and kept"
        )
    if average.gives_back or average.start or config.model.pretrained or config.run.from_:
        return ""
    total = steps_per_epoch * config.train.epochs
    share = average.first_share(last_step, steps_per_epoch=steps_per_epoch, total=total)
    if share < _MUCH:
        return ""
    untrained = f"{percent(share, 0)} of the average will be the weights before the first step"
    updates = last_step // average.every
    if isinstance(average, EMAConfig):
        enough = math.floor(1000 * _LITTLE ** (1 / updates)) / 1000
        return (
            f"{untrained}: average.decay {average.decay:g} is too slow for {last_step} steps; use --average.decay "
            f"{enough:g} or less"
        )
    later = "--average.start 1"
    if steps_per_epoch + average.every > last_step:  # it would have no update
        later = "--average.start 0.5" + (" --average.every 1" if average.every > 1 else "")
    return f"{untrained}, for it has {counted(updates, 'update')} in {counted(last_step, 'step')}; use {later}"
