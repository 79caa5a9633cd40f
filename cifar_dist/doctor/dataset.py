"""The dataset, how it is dealt to the processes of a job, and the network that receives it."""

from __future__ import annotations

from torch import nn

from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.order import steps_per_epoch
from cifar_dist.distributed.sync_batchnorm import check_batch_norms
from cifar_dist.doctor.finding import Finding, Verdict
from cifar_dist.errors import UserError
from cifar_dist.formatting import counted
from cifar_dist.training.notes import batch_note, padding_note
from cifar_dist.training.requirements import check_batch_size

_FEW = 8  # images, whose statistics a batch normalisation would use


def describe_data(manifest: Manifest) -> Finding:
    counts = ", ".join(f"{manifest.samples(split):,} {split}" for split in manifest.splits)
    text = f"{manifest.name}: {counts}; {len(manifest.classes)} classes, fingerprint {manifest.fingerprint}"
    return Finding("data", text)


def describe_batches(config: Config, manifest: Manifest, world_size: int) -> Finding:
    """Say what each of ``world_size`` processes gets of an epoch and of its last batch.

    Raises:
        UserError: a global batch does not split as it must.
    """
    check_batch_size(config, world_size)
    trained = manifest.for_training(config.data.hold_out)
    samples, size, parts = trained.samples("train"), config.train.batch_size, config.train.parts_of_batch(world_size)
    steps, last, each = steps_per_epoch(samples, size), samples % size or size, -(-size // parts)
    per_rank = f"{parts // world_size} x {each}" if parts > world_size else f"{each}"
    padded = -(-last // parts) * parts - last
    text = f"{size} = {counted(world_size, 'rank')} x {per_rank}; {counted(steps, 'step')} an epoch, the last of {last}"
    text += f", padded with {padded} that do not count" if padded else ""
    return Finding.ok_or(
        Verdict.WARNING, "batches", text, padding_note(config, world_size) or batch_note(config, samples)
    )


def describe_network(config: Config, network: nn.Module, world_size: int | None) -> Finding:
    """Say how large a network is, and whether each of ``world_size`` processes normalises few images; None: unknown."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    remedy = ""
    if world_size is not None and world_size > 1 and _has_batch_norms(network) and not config.train.sync_batchnorm:
        each = -(-config.train.batch_size // config.train.parts_of_batch(world_size))
        statistics = f"batch normalisation uses the {each} images of a process at a time"
        other_way = ", or --train.sync_batchnorm true" * (not config.train.parts and _can_synchronise(network))
        remedy = f"{statistics}; use fewer processes or a larger batch{other_way}" if each < _FEW else ""
    return Finding.ok_or(Verdict.WARNING, "network", f"{config.model.name}, {parameters:,} parameters", remedy)


def _has_batch_norms(network: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _can_synchronise(network: nn.Module) -> bool:
    try:
        check_batch_norms(network, "")
    except UserError:
        return False
    return True
