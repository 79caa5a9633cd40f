"""Begin a run with a checkpoint of another one, and with the metrics up to it.

A branch takes its origin's checkpoint as long as it has none of its own, so that one that is killed can be repeated.
Its folder receives only evaluations that count in it: nothing that reads it later has to know which those are.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cifar_dist import checkpoint
from cifar_dist.config.settings import settings_of
from cifar_dist.data.order import epoch_order
from cifar_dist.files.atomic import copy_atomic
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.tracking.jobs import job_of_step
from cifar_dist.tracking.metrics import MetricsLog
from cifar_dist.tracking.timeline import Event
from cifar_dist.training.origin import Origin, epochs_counted, or_else, val_of
from cifar_dist.training.setup import TrainingSetup


def begin_branch(folder: RunFolder, origin: Origin, setup: TrainingSetup) -> list[str]:
    """Begin ``folder`` with a checkpoint of another run and the metrics up to it; return lines to report."""
    state, source = origin.state_in(setup), origin.folder
    where = f"{source.path}@{state.step}"
    if source.metrics.is_file():
        copy_atomic(source.metrics, folder.metrics)
        log = MetricsLog(folder.metrics)
        log.cut(state.step, epochs_counted(state))
        log.close()
    if not any(event.kind == "branched" and event.note == where for event in timeline.read(folder.timeline)):
        # With its origin's job, as which the branch rounds, or says that it does not.
        job = job_of_step(source, state.step) or Event("", "branched", 0)
        event = replace(job, time=timeline.utc(), kind="branched", step=state.step, note=where)
        timeline.append(folder.timeline, event)
    best = origin.best_in(setup)
    if best is None:
        state = replace(state, best_val_accuracy=None, is_best=False)
    checkpoint.copy_to(origin.path, folder.checkpoints, state, best)
    return [f"branched from {where}", *filter(None, (_validation_note(origin, setup), _order_note(origin, setup)))]


def _validation_note(origin: Origin, setup: TrainingSetup) -> str:
    """Say that those before the branch do not count, or that those after it are on learnt images; empty otherwise."""
    source, val = origin.folder, val_of(setup.manifest, setup.config.data.hold_out)
    if val and origin.config.trains_on("val") and val == val_of(origin.manifest, hold_out=True):
        return f"{source.path} was trained on val, so the validation accuracy here is not that of new images"
    if origin.state.val_accuracy is None or origin.counts_evaluations(setup):
        return ""
    why = f"{source.path} has another val" if val else "this run is not evaluated on val"
    return f"{why}, so the validation accuracies up to step {origin.state.step} do not count"


def _order_note(origin: Origin, setup: TrainingSetup) -> str:
    """Say that the epoch under way is completed in another order than it was begun in; empty otherwise."""
    epoch, position = divmod(origin.state.step, setup.steps_per_epoch)
    runs = ((origin.manifest, origin.config), (setup.manifest, setup.config))
    begun, asked = (
        epoch_order(
            [shard.samples for shard in manifest.for_training(config.data.hold_out).shards("train")],
            config.run.seed,
            epoch,
            config.data.shuffle_block,
        )[: position * config.train.batch_size]
        for manifest, config in runs
    )
    if torch.equal(begun, asked):
        return ""
    before, now = (settings_of(config) for _, config in runs)
    keys = ("run.seed", "data.shuffle_block", "train.batch_size", "data.hold_out")
    differing = [key for key in keys if before.get(key) != now.get(key)] or ["data"]
    ends = origin.earlier_steps(setup.last_step, multiples_of=setup.steps_per_epoch)
    begin = f"begin with the end of an epoch: {', '.join(ends)}" if ends else ""
    return (
        f"epoch {epoch + 1} is completed in another order than {origin.folder.path} has begun it: some of its images "
        f"come twice, others not at all; use the same {' and '.join(differing)}{or_else(begin)}"
    )
