"""What a run trains, built from its config and checked: data, network and optimizer, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cifar_dist import models
from cifar_dist.config import Config
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.mix import Mix
from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.data.order import own_parts
from cifar_dist.data.randomness import seed_generators
from cifar_dist.data.static_mix import StaticMix
from cifar_dist.distributed.compiled_code import keep_compiled_code
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.same_dataset import open_dataset
from cifar_dist.distributed.sync_batchnorm import synchronise_batch_norms
from cifar_dist.formatting import and_more
from cifar_dist.models import transfer
from cifar_dist.optim.learning_rate import learning_rate
from cifar_dist.optim.optimizers import build_optimizer
from cifar_dist.terminal.notice import notice
from cifar_dist.training.device_speed import blueprint_of
from cifar_dist.training.requirements import check_batch_size, check_graphs, check_normalizes, check_settings


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

    @property
    def validates(self) -> bool:
        """Whether the run is evaluated on a validation split while it trains."""
        return "val" in self.manifest.splits and self.config.data.hold_out

    def is_turn(self, step: int) -> bool:
        """Whether the run is evaluated after ``step`` also where that is not its end."""
        return step % (self.steps_per_epoch * self.config.eval.every) == 0

    def learning_rate(self, step: int) -> float:
        """The schedule's learning rate, given the optimizer steps done before."""
        config = self.config
        return learning_rate(
            config.schedule, config.optim.lr, step, steps_per_epoch=self.steps_per_epoch, epochs=config.train.epochs
        )


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
    seed_generators(config.run.seed, ranks.device)
    module = models.build_for(config.model, shape=manifest.shape, classes=classes)
    if config.model.freeze:
        transfer.freeze_backbone(module)
    blueprint = blueprint_of(module)
    check_graphs(config, ranks.world_size, ranks.device.type)
    check_settings(config, manifest, module, batches.steps_per_epoch)
    if config.train.sync_batchnorm and ranks.world_size > 1:
        synchronise_batch_norms(module)
    else:
        check_normalizes(config, module, manifest.shape, len(batches.images), ranks.world_size)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    stages = transfer.stages(module)
    gradual = config.model.unfreeze > 0
    optimizer = build_optimizer(config.optim, module, [stage.parameters for stage in stages], gradual=gradual)
    modules = [stage.modules for stage in stages]
    prepared = _static(mix, config, manifest, batches, parts, ranks) if ranks.device.type != "cpu" else mix
    return TrainingSetup(
        config, manifest, normalize, prepared, own, batches, module, blueprint, parameters, modules, optimizer
    )


def _static(mix: Mix, config: Config, manifest: Manifest, batches: TrainBatches, parts: int, ranks: Ranks) -> StaticMix:
    """Return the augmentation for micro-batches of the usual size, as one function that a GPU runs in few launches."""
    size = -(-batches.size(0) // parts) + mix.mixes
    static = StaticMix(mix, config.run.seed, manifest.shape, size, ranks.device)
    keep_compiled_code()
    static.warm_up()
    _report_uncompiled(static.failure, ranks)
    return static


def _report_uncompiled(failure: str, ranks: Ranks) -> None:
    """Say on rank 0 on which ranks the augmentation is not compiled: all wait for one in every step. Collective.

    Args:
        failure: why it is not on this rank; empty where it is.
        ranks: this process among all.
    """
    failures = {rank: reason for rank, reason in enumerate(ranks.gather_objects(failure)) if reason}
    if failures and ranks.is_main:
        first = next(iter(failures))
        some = len(failures) < ranks.world_size
        where = f" of rank {and_more([str(first)], len(failures))}" if some else ""
        notice(f"the augmentation{where} runs without being compiled, and slower ({failures[first]})")
