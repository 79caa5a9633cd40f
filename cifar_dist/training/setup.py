"""What a run trains, built from its config and checked: data, network and optimizer, before any weights are loaded."""

from __future__ import annotations

import copy
import math
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cifar_dist import models
from cifar_dist.config import Config, RunningAverageConfig
from cifar_dist.config.average import EMAConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.mix import Mix
from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.data.order import own_parts
from cifar_dist.data.read import ShardReader
from cifar_dist.data.static_mix import StaticMix
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.sync_batchnorm import check_batch_norms, synchronise_batch_norms
from cifar_dist.errors import UserError
from cifar_dist.formatting import percent
from cifar_dist.models import transfer
from cifar_dist.optim.optimizers import build_optimizer
from cifar_dist.optim.schedules import learning_rate
from cifar_dist.training.device_speed import blueprint_of

_MUCH, _LITTLE = 0.05, 0.01  # of an average that is still its first copy: said, and suggested


@dataclass(frozen=True)
class TrainingSetup:
    """The parts of a run that its config alone determines.

    Attributes:
        config: the run.
        manifest: the packed dataset.
        normalize: of images, for training and evaluation alike.
        mix: augmentation of a batch, and its targets.
        own_parts: numbers of this process's micro-batches among those of a global batch.
        batches: the training split.
        module: the bare network, on the CPU, with new weights; an engine wraps it.
        blueprint: of the network, which no engine changes.
        parameters: how many the network has.
        stages: the modules of each stage of the network.
        optimizer: of its parameters.
    """

    config: Config
    manifest: Manifest
    normalize: Normalize
    mix: Mix | StaticMix
    own_parts: range
    batches: TrainBatches
    module: nn.Module
    blueprint: nn.Module
    parameters: int
    stages: list[tuple[nn.Module, ...]]
    optimizer: torch.optim.Optimizer

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return self.batches.steps_per_epoch

    @property
    def last_step(self) -> int:
        """Optimizer steps after which the run is complete, unless it stops early."""
        return self.config.train.last_step(self.steps_per_epoch)

    def is_turn(self, step: int) -> bool:
        """Whether the run is evaluated after ``step`` also where that is not its end."""
        return step % (self.steps_per_epoch * self.config.eval.every) == 0

    def learning_rate(self, step: int) -> float:
        """The schedule's learning rate, given the optimizer steps done before."""
        config = self.config
        return learning_rate(
            config.schedule, config.optim.lr, step, steps_per_epoch=self.steps_per_epoch, epochs=config.train.epochs
        )


def open_dataset(path: str, ranks: Ranks) -> Manifest:
    """The dataset as rank 0 knows it, at the path of this process. Collective.

    Raises:
        UserError: there is none, or a machine has a copy of another one, in which rank 0's offsets lead elsewhere.
    """
    manifest = ranks.run_on_main(lambda: Manifest.load(path))

    def compare() -> None:
        own = Manifest.load(path).fingerprint
        if own != manifest.fingerprint:
            raise UserError(
                f"{path} on {socket.gethostname()} is not the dataset of rank 0 ({own}, there {manifest.fingerprint}); "
                "copy that one to every machine"
            )

    ranks.run_on_all(compare if ranks.first_of_node and not ranks.is_main else lambda: None)
    return replace(manifest, root=Path(path))


def build_setup(config: Config, ranks: Ranks) -> TrainingSetup:
    """Open the data, and build network and optimizer. Collective.

    Raises:
        UserError: data, network and settings that do not fit each other.
    """
    check_batch_size(config, ranks.world_size)
    manifest = open_dataset(config.data.path, ranks)
    classes = len(manifest.classes)
    mean, std = normalization_statistics(config.augment, manifest)
    normalize = Normalize(mean, std, ranks.device, config.train.channels_last)
    augment = Augment(config.augment, config.run.seed, mean, normalize)
    augment.check(manifest.shape)
    mix = Mix(config.augment, augment, classes)
    parts = config.train.parts_of_batch(ranks.world_size)
    own = own_parts(parts, ranks.rank, ranks.world_size)
    batches = ranks.run_on_all(
        lambda: TrainBatches(
            manifest,
            config.data,
            seed=config.run.seed,
            batch_size=config.train.batch_size,
            parts=parts,
            own=own,
            device=ranks.device,
            mixed=mix.mixes,
        )
    )
    torch.manual_seed(config.run.seed)
    module = models.build_for(config.model, shape=manifest.shape, classes=classes)
    if config.model.freeze:
        transfer.freeze_backbone(module)
    blueprint = blueprint_of(module)
    _check_limits(config, manifest, batches.steps_per_epoch)
    if config.train.sync_batchnorm:
        check_batch_norms(module, config.model.name)
    if config.train.sync_batchnorm and ranks.world_size > 1:
        synchronise_batch_norms(module)
    else:
        _check_normalizes(config, module, manifest.shape, len(batches.images), ranks.world_size)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    stages = transfer.stages(module)
    gradual = config.model.unfreeze > 0
    optimizer = build_optimizer(config.optim, module, [stage.parameters for stage in stages], gradual=gradual)
    modules = [stage.modules for stage in stages]
    prepared = _static(mix, config, manifest, batches, parts, ranks.device) if ranks.device.type != "cpu" else mix
    return TrainingSetup(
        config, manifest, normalize, prepared, own, batches, module, blueprint, parameters, modules, optimizer
    )


def _static(
    mix: Mix, config: Config, manifest: Manifest, batches: TrainBatches, parts: int, device: torch.device
) -> StaticMix:
    """Return the augmentation for micro-batches of the usual size, as one function that a GPU runs in few launches."""
    size = -(-batches.size(0) // parts) + mix.mixes
    static = StaticMix(mix, config.run.seed, manifest.shape, size, device)
    static.warm_up()
    return static


def check_evaluations(config: Config, manifest: Manifest) -> None:
    """Refuse splits that the run could not evaluate, before it has trained.

    Raises:
        UserError: ``val`` has no labels, or a shard is missing or has another size than the manifest says.
    """
    evaluated = {config.eval.split, *(["val"] if config.data.hold_out else [])}
    for split in [split for split in manifest.splits if split in evaluated]:
        ShardReader(manifest, split).close()
        if not manifest.is_labelled(split) and split == "val" and config.data.hold_out:
            raise UserError(
                f"{manifest.root}: val has no labels, and training selects the best checkpoint by them; add them, or "
                f"name its tars 'test' instead of 'val', then: {manifest.made_with}"
            )


def check_batch_size(config: Config, world_size: int) -> None:
    """Refuse more processes than fixed parts, and, on request, a global batch that does not split evenly.

    Raises:
        UserError: with numbers that work.
    """
    parts, size = config.train.parts_of_batch(world_size), config.train.batch_size
    if parts < world_size:
        raise UserError(f"train.parts {parts} are too few for {world_size} processes; use --train.parts {world_size}")
    if config.train.even_batches and size % parts:
        lower = max(parts, size // parts * parts)
        raise UserError(
            f"{_uneven(config, world_size)}, as train.even_batches requires; "
            f"use --train.batch_size {lower} or {lower + parts}"
        )


def padding_note(config: Config, world_size: int) -> str:
    """Say that every global batch is filled up with repeated samples; empty if it splits evenly."""
    padding = -config.train.batch_size % config.train.parts_of_batch(world_size)
    if not padding:
        return ""
    samples = "1 sample" if padding == 1 else f"{padding} samples"
    return f"{_uneven(config, world_size)}: {samples} of each batch are computed twice, and count once"


def average_note(setup: TrainingSetup) -> str:
    """Say that the average is never updated, or that much of it will be untrained weights; empty otherwise.

    No reason to refuse: a short trial of a long recipe is no mistake.
    """
    average = setup.config.average
    if isinstance(average, RunningAverageConfig):
        first = average.first_step(setup.steps_per_epoch) + average.every
        if first > setup.last_step:
            return (
                f"the average is first updated after step {first} (average.start {average.start:g}, average.every "
                f"{average.every}), and the run ends after step {setup.last_step}"
            )
    if not isinstance(average, EMAConfig) or average.start or setup.config.model.pretrained or setup.config.run.from_:
        return ""
    share = average.first_share(setup.last_step, steps_per_epoch=setup.steps_per_epoch, total=setup.last_step)
    if share < _MUCH:
        return ""
    updates = setup.last_step // average.every
    enough = math.floor(1000 * _LITTLE ** (1 / updates)) / 1000
    return (
        f"{percent(share, 0)} of the average will be the weights before the first step: average.decay "
        f"{average.decay:g} is too slow for {setup.last_step} steps; use --average.decay {enough:g} or less"
    )


def _uneven(config: Config, world_size: int) -> str:
    train = config.train
    return (
        f"train.batch_size {train.batch_size} is not divisible by {world_size} processes x {train.accumulate} "
        "accumulation steps"
    )


def _check_limits(config: Config, manifest: Manifest, steps_per_epoch: int) -> None:
    """Refuse a limit beyond the end of the run, and one on evaluations that do not take place."""
    train = config.train
    if train.patience and "val" not in manifest.splits:
        raise UserError(
            f"train.patience needs a validation split, which {config.data.path} lacks; "
            "pack it with --val-fraction 0.1, or drop --train.patience"
        )
    if train.patience and not config.data.hold_out:
        raise UserError("train.patience needs a validation split; drop it, or drop --data.hold_out false")
    steps = train.epochs * steps_per_epoch
    if train.profile > (most := train.last_step(steps_per_epoch)):
        raise UserError(f"train.profile {train.profile} is more than the {most} steps of the run; use at most {most}")
    if train.max_steps > steps:
        raise UserError(
            f"train.max_steps {train.max_steps} is more than the {steps} steps of train.epochs {train.epochs}; "
            f"drop it, or add --train.epochs {-(-train.max_steps // steps_per_epoch)}"
        )


def _check_normalizes(
    config: Config, module: nn.Module, shape: tuple[int, int, int], samples: int, world_size: int
) -> None:
    """Refuse a network with batch normalisation of single values where a step has one sample per micro-batch.

    Args:
        config: the run.
        module: the bare network, on the CPU; it is not changed.
        shape: (height, width, channels) of an image.
        samples: in an epoch.
        world_size: number of processes.

    Raises:
        UserError: with the nearest batch size that works.
    """
    size, parts = config.train.batch_size, config.train.parts_of_batch(world_size)
    if _smallest_micro_batch(samples, size, parts) > 1:
        return
    height, width, channels = shape
    trial = copy.deepcopy(module)
    transfer.set_mode(trial, [stage.modules for stage in transfer.stages(trial)], config.model, config.train.epochs)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(torch.zeros(1, channels, height, width))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        sizes = (one for distance in range(size + 2 * parts) for one in (size - distance, size + distance) if one > 0)
        works = (one for one in sizes if one % parts == 0 and _smallest_micro_batch(samples, one, parts) > 1)
        found = next(works, None)
        way = f"use --train.batch_size {found}" if found else "use more images"
        raise UserError(
            f"train.batch_size {size} leaves a step with one sample per process of the {samples:,} training samples, "
            f"too few for the batch normalisation of {config.model.name}; {way}"
        ) from None


def _smallest_micro_batch(samples: int, batch_size: int, parts: int) -> int:
    """Return the samples in the smallest micro-batch of an epoch."""
    batches = [min(samples, batch_size), samples % batch_size or batch_size]
    return -(-min(batches) // parts)
