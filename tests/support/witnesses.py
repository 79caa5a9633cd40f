"""A witness for each setting: a value other than the default, and what is observed to change with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cifar_dist.config import Config
from support.observations import (
    averages,
    branch,
    compilations,
    die,
    flags,
    hang,
    joined,
    longest_wait,
    mirror,
    network,
    normalization,
    pixels,
    rates,
    read_ahead,
    refused_on_three_processes,
    run,
    run_again,
    stops_early,
    threads,
    trained_weights,
    unwritable,
)


@dataclass(frozen=True)
class Witness:
    """How a test observes that a key has an effect.

    Attributes:
        value: other than the default.
        observe: what is compared between a run with the value and one without it.
        given: other settings, by dotted key, that both runs have; those that a choice does not have are left out.
    """

    value: object
    observe: Callable[[Config], object]
    given: Mapping[str, object]


def witness(value: object, observe: Callable[[Config], object], **given: object) -> Witness:
    """``given``: section__key = value."""
    return Witness(value, observe, {key.replace("__", "."): setting for key, setting in given.items()})


WITNESSES: dict[str, Witness] = {
    "run.name": witness("other", run),
    "run.dir": witness("elsewhere", run),
    "run.seed": witness(1, run),
    "run.fresh": witness(True, run_again),
    "run.processes": witness(2, run),
    "run.max_time": witness("auto", run),
    "run.from": witness("nowhere", run),
    "run.from_other_data": witness(True, branch, run__from="origin"),
    "run.join_timeout": witness(1, joined),
    "run.collective_timeout": witness(7, longest_wait),
    "run.stall_timeout": witness(1, hang),
    "run.stall_factor": witness(1e9, hang, run__stall_timeout=1),
    "data.path": witness("nowhere", run),
    "data.hold_out": witness(False, run),
    "data.shuffle_block": witness(1, run),
    "data.resident_mb": witness(0, read_ahead),
    "data.read_ahead": witness(2, read_ahead, data__resident_mb=0),
    # Each setting of each transform has its witness in test_augment_settings.py.
    "augment.transforms": witness([{"name": "flip"}, {"name": "crop"}], pixels),
    "augment.mean": witness([0.1] * 3, normalization, augment__mean=[0.5] * 3, augment__std=[0.5] * 3),
    "augment.std": witness([0.1] * 3, normalization, augment__mean=[0.5] * 3, augment__std=[0.5] * 3),
    "model.name": witness("tiny-resnet", network),
    "model.options": witness({"channels_last": 1}, run),
    "model.conv": witness("handmade", network),
    "model.image_size": witness(32, network),
    "model.pretrained": witness("nowhere.pth", run),
    "model.freeze": witness(True, network),
    "model.unfreeze": witness(1.0, network),
    "optim.lr": witness(0.02, trained_weights),
    "optim.weight_decay": witness(0.3, trained_weights),
    "optim.decay_norms": witness(True, trained_weights, optim__weight_decay=0.3),
    "optim.clip_norm": witness(1e-3, run),
    "optim.sam_rho": witness(0.5, run),
    "optim.backbone_lr": witness(0.5, trained_weights),
    "optim.layer_decay": witness(0.5, trained_weights),
    "optim.momentum": witness(0.5, trained_weights),
    "optim.nesterov": witness(False, trained_weights),
    "optim.betas": witness([0.5, 0.6], trained_weights),
    "optim.eps": witness(0.1, trained_weights),
    "optim.normalize": witness(True, trained_weights),
    "optim.iterations": witness(2, trained_weights),
    "optim.rest_lr": witness(0.5, trained_weights),
    "optim.rest_momentum": witness(0.5, trained_weights),
    "schedule.warmup": witness(1.0, rates),
    "schedule.start": witness(0.5, rates, schedule__warmup=1.0),
    "schedule.final": witness(0.5, rates, schedule__decay=1.0),
    "schedule.shape": witness("cosine", rates, schedule__decay=1.0),
    "schedule.three_phase": witness(True, rates, schedule__warmup=0.6),
    "schedule.milestones": witness([1.0], rates),
    "schedule.gamma": witness(0.5, rates, schedule__milestones=[1.0]),
    "schedule.power": witness(2.0, rates),
    "schedule.cycle": witness(0.6, rates),
    "schedule.growth": witness(2.0, rates, schedule__cycle=0.4),
    "schedule.decay": witness(1.0, rates),
    "average.start": witness(0.5, averages),
    "average.every": witness(3, averages),
    "average.decay": witness(0.4, averages),
    "average.ramp": witness(1.0, averages),
    "average.recalibrate": witness(20, run, model__name="tiny-resnet"),
    "train.epochs": witness(3, run),
    "train.max_steps": witness(4, run),
    "train.patience": witness(1, stops_early),
    "train.monitor": witness("val_loss", stops_early, train__patience=1),
    "train.min_delta": witness(0.1, stops_early, train__patience=1),
    "train.batch_size": witness(15, run),
    "train.accumulate": witness(2, run),
    "train.even_batches": witness(True, refused_on_three_processes),
    "train.parts": witness(2, run),
    "train.precision": witness("bf16", run),
    "train.label_smoothing": witness(0.5, run),
    "train.channels_last": witness(True, run),
    "train.compile": witness(True, compilations),
    "train.compress_gradients": witness("bf16", run, train__parts=2),  # refused; test_engine.py shows what DDP sends
    "train.sync_batchnorm": witness(True, run),  # refused without batch norms; test_engine.py shows what it computes
    "train.tf32": witness(True, flags),
    "train.cudnn_benchmark": witness(True, flags),
    "train.deterministic": witness(True, flags),
    "train.profile": witness(1, run),
    "train.threads": witness(2, threads),
    "train.engine": witness("nowhere.py:Engine", run),
    "eval.every": witness(2, run),
    "eval.batch_size": witness(3, run),
    "eval.tta": witness("0", run),
    "eval.tta_below": witness(1e-3, run),
    "eval.split": witness("val", run),
    "checkpoint.every": witness(2, run, eval__every=9),  # the best one is saved whenever it comes
    "checkpoint.every_steps": witness(1, run),
    "checkpoint.keep": witness(1, run, eval__every=9),
    "checkpoint.sharded": witness(True, run),  # files by the number of the process that wrote them
    "checkpoint.on_error": witness("stop", unwritable),
    "checkpoint.background": witness(False, unwritable, checkpoint__on_error="stop"),
    "tracking.every": witness(1, die),
    "tracking.mirrors": witness(["nowhere.py:Mirror"], run),
    "tracking.project": witness("mine", mirror),
    "tracking.entity": witness("us", mirror),
}
