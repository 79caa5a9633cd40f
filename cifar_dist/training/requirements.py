"""What a run requires of its data, its processes and its length; what lacks it is refused before it trains."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cifar_dist.config import Config, RunningAverageConfig, StagedOptimConfig, plugins
from cifar_dist.data.augment import Augment
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.data.order import steps_per_epoch
from cifar_dist.data.read import ShardReader
from cifar_dist.distributed.sync_batchnorm import check_batch_norms
from cifar_dist.errors import UserError
from cifar_dist.formatting import counted
from cifar_dist.models import transfer
from cifar_dist.optim.averaging import average_weight, has_batch_statistics
from cifar_dist.optim.learning_rate import learning_rate
from cifar_dist.optim.optimizers import build_optimizer
from cifar_dist.training.device_speed import blueprint_of


def check_before_start(config: Config, manifest: Manifest, network: nn.Module) -> None:
    """Refuse, before a job or a sweep begins, what the settings, the data and the network tell without any image.

    Not ``run.from``: the run that it names may train before this one.

    Args:
        config: the run.
        manifest: the packed dataset.
        network: bare; it may be on the meta device. ``model.freeze`` freezes it in place.

    Raises:
        UserError: the first setting that does not fit the others, the data or the network.
    """
    mean, std = normalization_statistics(config.augment, manifest)
    normalize = Normalize(mean, std, torch.device("cpu"), config.train.channels_last)
    Augment(config.augment, config.run.seed, mean, normalize).check(manifest.shape)
    samples = manifest.for_training(config.data.hold_out).samples("train")
    if config.model.freeze:
        transfer.freeze_backbone(network)
    check_settings(config, manifest, network, steps_per_epoch(samples, config.train.batch_size))
    if not plugins.is_spec(config.optim.name):  # whose code may read weights, which the meta device does not have
        stages = [stage.parameters for stage in transfer.stages(network)]
        build_optimizer(config.optim, network, stages, gradual=config.model.unfreeze > 0)


def check_settings(config: Config, manifest: Manifest, module: nn.Module, steps_per_epoch: int) -> None:
    """Refuse settings that do not fit each other, the data, the bare network ``module`` or the length of an epoch.

    Raises:
        UserError: the first of them, with what works.
    """
    check_repeatable(config)
    check_limits(config, manifest, steps_per_epoch)
    check_rates(config, steps_per_epoch)
    check_average(config, module, steps_per_epoch)
    check_learns(config, module, manifest.shape)
    check_stages(config, len(transfer.stages(module)))
    if config.train.sync_batchnorm:
        check_batch_norms(module, config.model.name)


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
        raise UserError(
            f"train.parts {parts} are too few for {world_size} processes; use at most {parts}, or for a new run "
            f"--train.parts {world_size}"
        )
    if config.train.even_batches and size % parts:
        lower = max(parts, size // parts * parts)
        raise UserError(
            f"{uneven_batch(config, world_size)}, as train.even_batches requires; "
            f"use --train.batch_size {lower} or {lower + parts}, or to resume --train.even_batches false"
        )


def uneven_batch(config: Config, world_size: int) -> str:
    """Say that a global batch does not split evenly."""
    train = config.train
    return (
        f"train.batch_size {train.batch_size} is not divisible by {world_size} processes x {train.accumulate} "
        "accumulation steps"
    )


def check_repeatable(config: Config) -> None:
    """Refuse to take the fastest kernels of the moment in a run that promises the same bits each time.

    Finished runs that did so can still be read.

    Raises:
        UserError: ``deterministic`` or ``parts`` beside a setting that times kernels.
    """
    train = config.train
    for promise in [name for name in ("deterministic", "parts") if getattr(train, name)]:
        same = f"and train.{promise} needs the same ones each time"
        if train.cudnn_benchmark:
            algorithms = "train.cudnn_benchmark takes the algorithms that are fastest now"
            raise UserError(f"{algorithms}, {same}; use --train.cudnn_benchmark false")
        if train.compile == "max-autotune":
            kernels = "train.compile max-autotune takes the kernels that are fastest now"
            raise UserError(f"{kernels}, {same}; use --train.compile reduce-overhead")


def check_graphs(config: Config, world_size: int, device: str) -> None:
    """Refuse CUDA graphs that would record the exchanges of batch norms.

    NCCL ends a process's part in the group only once such graphs are gone, and the compiler keeps them.

    Args:
        config: the run.
        world_size: processes of the job.
        device: type of the device that they compute on.

    Raises:
        UserError: ``sync_batchnorm`` beside a mode of ``compile`` that records CUDA graphs.
    """
    train = config.train
    has_graphs = train.compile in ("reduce-overhead", "max-autotune") and device == "cuda"
    if has_graphs and train.sync_batchnorm and world_size > 1:
        raise UserError(
            f"train.compile {train.compile} would record the exchanges of train.sync_batchnorm in CUDA graphs, and the "
            "job might not end; use --train.compile default"
        )


def check_limits(config: Config, manifest: Manifest, steps_per_epoch: int) -> None:
    """Refuse a limit beyond the end of the run, and one on evaluations that do not take place.

    Raises:
        UserError: with what works.
    """
    train = config.train
    if train.patience and "val" not in manifest.splits:
        raise UserError(
            f"train.patience needs a validation split, which {config.data.path} lacks; "
            "pack it with --val-fraction 0.1, or use --train.patience 0"
        )
    if train.patience and not config.data.hold_out:
        raise UserError("train.patience needs a validation split; use --data.hold_out true, or --train.patience 0")
    steps = train.epochs * steps_per_epoch
    if train.profile > (most := train.last_step(steps_per_epoch)):
        raise UserError(
            f"train.profile {train.profile} is more than the {counted(most, 'step')} of the run; use at most {most}"
        )
    if train.max_steps > steps:
        raise UserError(
            f"train.max_steps {train.max_steps} is more than the {counted(steps, 'step')} of train.epochs "
            f"{train.epochs}; use --train.max_steps 0, or --train.epochs {-(-train.max_steps // steps_per_epoch)}"
        )


def check_rates(config: Config, steps_per_epoch: int) -> None:
    """Refuse a plug-in's schedule that fails at any step of the run, before the first.

    Raises:
        UserError: what it returns is not a rate; an error that it raises passes through.
    """
    if plugins.is_spec(config.schedule.name):
        length = {"steps_per_epoch": steps_per_epoch, "epochs": config.train.epochs}
        for step in range(config.train.last_step(steps_per_epoch)):
            learning_rate(config.schedule, config.optim.lr, step, **length)


def check_learns(config: Config, module: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse a network whose loss would have no gradient, as far as the shapes of a training pass show it.

    Args:
        config: the run.
        module: the bare network, frozen as the run freezes it; it is not changed.
        shape: (height, width, channels) of an image.

    Raises:
        UserError: with what to change.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(
            f"model.freeze freezes {config.model.name} entirely: its last layer has requires_grad False itself; "
            "use --model.freeze false"
        )
    if not plugins.is_spec(config.model.name):
        return
    height, width, channels = shape
    try:
        with torch.random.fork_rng(devices=[]):
            logits = blueprint_of(module).train()(torch.empty(2, channels, height, width, device="meta"))
    except Exception:  # whatever the code of a network raises where it finds no values
        return
    require_gradient(config, logits)


def require_gradient(config: Config, computed: Tensor) -> None:
    """Refuse what a network has ``computed`` in training, logits or their loss, if no parameter has a gradient of it.

    Raises:
        UserError: with what to change.
    """
    if not computed.requires_grad:
        freeze = ", or use --model.freeze false" if config.model.freeze else ""
        raise UserError(
            f"model.name: no parameter of {config.model.name} can learn: its logits have no gradient, as under "
            f"torch.no_grad() or after .detach(); remove that from its forward{freeze}"
        )


def check_stages(config: Config, count: int) -> None:
    """Refuse settings of the backbone for a network that is its head alone, and those of its stages where it is one.

    Raises:
        UserError: with the value that switches the setting off.
    """
    model, optim = config.model, config.optim
    of_stages = {"model.freeze false": model.freeze, "model.unfreeze 0": model.unfreeze > 0}
    if isinstance(optim, StagedOptimConfig):
        of_stages["optim.backbone_lr 1"] = optim.backbone_lr != 1
        of_stages["optim.layer_decay 1"] = optim.layer_decay != 1
    off = next((off for off, is_set in of_stages.items() if is_set), "")
    if off and count == 1:
        raise UserError(
            f"{off.split()[0]} has no effect: {model.name} has no linear layer or convolution before its last; "
            f"use --{off}"
        )
    if count == 2 and of_stages.get("optim.layer_decay 1"):
        raise UserError(
            f"optim.layer_decay has no effect: {model.name} has one stage before its last layer; "
            "use --optim.layer_decay 1, and --optim.backbone_lr for that stage"
        )


def check_average(config: Config, module: nn.Module, steps_per_epoch: int) -> None:
    """Refuse batch statistics of one image or that ``module`` lacks, and a plug-in's average that fails at any step.

    Raises:
        UserError: also, a plug-in's weight is not in [0, 1]; an error that it raises passes through.
    """
    average = config.average
    if not isinstance(average, RunningAverageConfig):
        return
    if average.recalibrate == 1:
        raise UserError("average.recalibrate 1: one image has no batch statistics; use --average.recalibrate 2 or more")
    if average.recalibrate and not has_batch_statistics(module):
        raise UserError(
            f"average.recalibrate has no effect: {config.model.name} has no batch normalisation with running "
            "statistics; use --average.recalibrate 0"
        )
    if plugins.is_spec(average.name):
        start, total = average.first_step(steps_per_epoch), steps_per_epoch * config.train.epochs
        for step in average.updates(config.train.last_step(steps_per_epoch), steps_per_epoch):
            average_weight(average, step, start=start, total=total)


def check_normalizes(
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
        fewer = range(world_size - 1, 0, -1)
        most = next(
            (n for n in fewer if _smallest_micro_batch(samples, size, config.train.parts_of_batch(n)) > 1), None
        )
        ways = ["one process" if most == 1 else f"at most {most} processes"] if most else []
        ways += [f"{'for a new run ' if most else ''}--train.batch_size {found}"] if found else []
        way = f"use {', or '.join(ways) or 'more images'}"
        raise UserError(
            f"train.batch_size {size} leaves a step with one sample per process of the {samples:,} training samples, "
            f"too few for the batch normalisation of {config.model.name}; {way}"
        ) from None


def _smallest_micro_batch(samples: int, batch_size: int, parts: int) -> int:
    """Return the samples in the smallest micro-batch of an epoch."""
    batches = [min(samples, batch_size), samples % batch_size or batch_size]
    return -(-min(batches) // parts)
