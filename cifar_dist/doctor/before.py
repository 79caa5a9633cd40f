"""What one process can check before its job is submitted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.doctor.dataset import describe_batches, describe_data, describe_network
from cifar_dist.doctor.finding import Finding, until_error
from cifar_dist.doctor.shared_folder import check_shared_folder
from cifar_dist.doctor.space import room_for_checkpoints
from cifar_dist.models import try_build
from cifar_dist.models.pretrained import check_pretrained
from cifar_dist.run_folder import RunFolder
from cifar_dist.training.requirements import check_before_start

_STATE_PER_WEIGHT = 3  # the weight itself, and what most optimizers keep of it


def examine_before(config: Config, world_size: int | None) -> Iterator[Finding]:
    """Check a run that is going to be a job; yields one row after the other.

    Args:
        config: the run.
        world_size: of the job; None if it is not known yet.
    """
    yield check_shared_folder(Path(config.run.dir), Ranks(0, 1, torch.device("cpu"), first_of_node=True))
    yield from until_error(_examine_settings(config, world_size))


def _examine_settings(config: Config, world_size: int | None) -> Iterator[Finding]:
    manifest = Manifest.load(config.data.path)
    yield describe_data(manifest)
    if world_size is not None:
        yield describe_batches(config, manifest, world_size)
    network = try_build(config.model, shape=manifest.shape, classes=len(manifest.classes))
    if not RunFolder.of(config).newest_checkpoint():  # from which it would continue
        check_pretrained(network, config.model.pretrained, config.model.name)
    yield describe_network(config, network, world_size)
    check_before_start(config, manifest, network)
    size_bytes = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    yield room_for_checkpoints(config, _STATE_PER_WEIGHT * size_bytes)
