"""The checkpoint of another run that a branch begins with, and whether it can.

What a branch takes over has the meaning that it had there: the same steps, the same network, and only evaluations on
the images that the branch is evaluated on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from cifar_dist import checkpoint
from cifar_dist.checkpoint import TrainState
from cifar_dist.config import Config, RunningAverageConfig
from cifar_dist.config.changes import KEPT_BY_A_BRANCH, in_words
from cifar_dist.config.settings import settings_of
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.order import steps_per_epoch
from cifar_dist.errors import UserError, quoted
from cifar_dist.formatting import counted
from cifar_dist.run_folder import RunFolder, find_run, split_step
from cifar_dist.run_folder.settings import read_started_settings
from cifar_dist.step_folder import step_of
from cifar_dist.tracking import metrics, timeline
from cifar_dist.training.early_stopping import EarlyStopping
from cifar_dist.training.extension import best_before, is_evaluated_here, without_last_evaluation
from cifar_dist.training.setup import TrainingSetup


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another run.

    Attributes:
        folder: that run's.
        path: the checkpoint.
        state: saved in it.
        config: that run was started with.
        manifest: of that run's data.
    """

    folder: RunFolder
    path: Path
    state: TrainState
    config: Config
    manifest: Manifest

    def state_in(self, setup: TrainingSetup) -> TrainState:
        """Return the state that a branch has here, without evaluations that do not count in it.

        Those on other images do not, nor does one that was made here only because the origin ended here. Its best
        accuracy counts if :meth:`best_in` finds the checkpoint of it.
        """
        state = self.state
        if self._is_evaluated_as_an_end(setup):
            state = without_last_evaluation(self.folder, state, setup)
        return state if self.counts_evaluations(setup) else replace(state, val_accuracy=None)

    def best_in(self, setup: TrainingSetup) -> Path | None:
        """Return the best checkpoint so far in a branch; None if its evaluation does not count there, or it is lost."""
        if not self.counts_evaluations(setup):
            return None
        if self._is_evaluated_as_an_end(setup):
            best = best_before(self.folder, self.state.step)
        else:
            best = checkpoint.best(self.folder.checkpoints, until=self.state.step)
        return best if best is not None and checkpoint.is_intact(best) else None

    def counts_evaluations(self, setup: TrainingSetup) -> bool:
        """Whether the evaluations here are on the images that a branch is evaluated on."""
        val = val_of(setup.manifest, setup.config.data.hold_out)
        return bool(val) and val == val_of(self.manifest, self.config.data.hold_out)

    def earlier_steps(self, end: int, *, multiples_of: int = 1) -> list[str]:
        """Return the settings with which a branch begins at a checkpoint before step ``end``."""
        steps = [step_of(path) or 0 for path in checkpoint.listing(self.folder.checkpoints)]
        chosen = [step for step in steps if step < end and step % multiples_of == 0]
        return [f"--run.from {quoted(self.folder.path)}@{step}" for step in chosen]

    def _is_evaluated_as_an_end(self, setup: TrainingSetup) -> bool:
        """Whether the origin was evaluated here because it ended here, for now or for good, and not in its turn."""
        step, events = self.state.step, timeline.read(self.folder.timeline)
        ends = {event.step for event in events if event.kind == "extended"}
        ends.add(self.config.train.last_step(setup.steps_per_epoch))
        is_turn = step % (setup.steps_per_epoch * self.config.eval.every) == 0
        return step in ends and not is_turn and is_evaluated_here(self.state, setup)


def val_of(manifest: Manifest, hold_out: bool) -> list[tuple[str, list[int]]]:
    """Return what a run is evaluated on while it trains, as checksum and labels of each shard; nothing if it is not."""
    shards = manifest.for_training(hold_out).splits.get("val", ())
    return [(shard.sha256, shard.labels.tolist()) for shard in shards]


def epochs_counted(state: TrainState) -> int:
    """Return the number of epochs at the beginning of a branch whose evaluations count in it."""
    return 0 if state.val_accuracy is None else state.epochs_evaluated


def or_else(way: str) -> str:
    """Return another way out, for the end of a message."""
    return f", or {way}" if way else ""


def find_origin(folder: RunFolder, setup: TrainingSetup) -> Origin:
    """Find the checkpoint that ``run.from`` names and check that the run in ``folder`` can begin with it.

    Raises:
        UserError: it does not exist, or this run cannot begin with it.
    """
    config = setup.config
    run, which = split_step(config.run.from_)
    source = find_run(run, Path(config.run.dir), checkpoint="as RUN@STEP")
    if source.path.resolve() == folder.path.resolve():
        raise UserError(f"run.from {run} is this run itself; give the new run another --run.name")
    found = checkpoint.named(source.checkpoints, which or "latest", option="--model.pretrained")
    state, started = checkpoint.read_state(found), read_started_settings(source)
    origin = Origin(source, found, state, started, source.read_manifest())
    _check_same_data(origin, setup)
    _check_same_parts(origin, setup)
    _check_same_average(origin, setup)
    _check_not_complete(origin, setup)
    _check_same_shapes(origin, setup)
    return origin


def _check_same_data(origin: Origin, setup: TrainingSetup) -> None:
    """Refuse a branch on other images or classes, or one in which a step would be another place in the data."""
    config, source, before = setup.config, origin.folder, origin.config
    instead = _from_weights_instead(origin, setup)
    if (difference := setup.manifest.difference(origin.manifest)) and not config.run.from_other_data:
        raise UserError(
            f"run.from: {source.path} was trained on other data than {setup.manifest.root} has {difference}; "
            "if that is meant, add --run.from_other_data"
        )
    if origin.manifest.classes != setup.manifest.classes:
        way = instead or "use a dataset with the same ones"
        raise UserError(f"run.from: {source.path} has other classes than {setup.manifest.root}; {way}")
    trained = origin.manifest.for_training(before.data.hold_out)
    steps = steps_per_epoch(trained.samples("train"), before.train.batch_size)
    if steps != setup.steps_per_epoch:
        samples = len(setup.batches.images)
        sizes = (before.train.batch_size, -(-samples // steps))
        size = next((one for one in sizes if steps_per_epoch(samples, one) == steps), None)
        ways = [f"use --train.batch_size {size}" if size else f"no train.batch_size gives {samples} samples as many"]
        raise UserError(
            f"run.from: an epoch of {source.path} has {counted(steps, 'step')} and one of this run "
            f"{setup.steps_per_epoch}; {', or '.join([*ways, *filter(None, [instead])])}"
        )


def _check_same_parts(origin: Origin, setup: TrainingSetup) -> None:
    """Refuse a branch with another network, optimizer or average, which cannot take over the state of a checkpoint."""
    before, now = settings_of(origin.config), settings_of(setup.config)
    for key in KEPT_BY_A_BRANCH:
        if before.get(key) != now.get(key):
            raise UserError(
                f"run.from: {origin.folder.path} has {key} = {in_words(before.get(key))} and this run "
                f"{in_words(now.get(key))}; use the same{or_else(_from_weights_instead(origin, setup))}"
            )


def _check_same_average(origin: Origin, setup: TrainingSetup) -> None:
    """Refuse a branch whose average would have begun or been updated at other steps than it was."""
    before, now = origin.config.average, setup.config.average
    if not (isinstance(before, RunningAverageConfig) and isinstance(now, RunningAverageConfig)):
        return
    was = replace(now, start=before.start, every=before.every)  # as ``before``, whose code was not imported
    starts = [one.first_step(setup.steps_per_epoch) for one in (was, now)]
    if starts[0] != starts[1]:
        key, first, both = "start", min(starts), "both"
    elif was.every != now.every and _counts_updates(was, now, setup):
        key, first, both = "every", starts[0] + min(was.every, now.every), "the first update of both"
    else:
        return
    if (step := origin.state.step) >= first:
        there, here = (f"{getattr(one, key):g}" for one in (was, now))
        raise UserError(
            f"run.from: {origin.folder.path} has average.{key} = {there} and this run {here}, and step {step} is not "
            f"before {both}; use --average.{key} {there}, or begin with an earlier step: "
            f"{', '.join(origin.earlier_steps(first)) or 'none is kept'}"
        )


def _counts_updates(was: RunningAverageConfig, now: RunningAverageConfig, setup: TrainingSetup) -> bool:
    """Whether a weight depends on the number of updates before it, and so on ``every``: that of a mean does."""
    start, total = now.first_step(setup.steps_per_epoch), setup.steps_per_epoch * setup.config.train.epochs
    common = start + math.lcm(was.every, now.every)
    return was.weight(common, start=start, total=total) != now.weight(common, start=start, total=total)


def _check_not_complete(origin: Origin, setup: TrainingSetup) -> None:
    """Refuse a branch that would end where it begins."""
    state = origin.state_in(setup)
    if state.step >= setup.last_step:
        length = "max_steps" if setup.config.train.max_steps == setup.last_step else "epochs"
        raise UserError(
            f"run.from: step {state.step} is the end of this run or beyond; give it more --train.{length}, or begin "
            f"with an earlier step: {', '.join(origin.earlier_steps(setup.last_step)) or 'none is kept'}"
        )
    found = metrics.evaluations(origin.folder.metrics)
    counting = [one for one in found if one.epoch < epochs_counted(state)]
    stopping = EarlyStopping(setup.config.train, counting)
    if stopping.is_exhausted():
        raise UserError(
            f"run.from: at step {state.step} this run is complete by {stopping}; "
            f"use --train.patience {stopping.waited + 1} or more, or an earlier step"
        )


def _check_same_shapes(origin: Origin, setup: TrainingSetup) -> None:
    """Refuse a branch with a network of the same name, of which an option or its code gives weights another shape."""
    shapes = [
        {name: "x".join(map(str, tensor.shape)) for name, tensor in tensors.items() if tensor.ndim}
        for tensors in (checkpoint.load(origin.path).tensors.weights, setup.module.state_dict())
    ]
    names = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if not names:
        return
    name = next((name for name in names if name in shapes[0] and name in shapes[1]), names[0])
    settings = [settings_of(config) for config in (origin.config, setup.config)]
    keys = sorted(key for key in settings[0].keys() | settings[1].keys() if key.startswith("model."))
    changed = [key for key in keys if settings[0].get(key) != settings[1].get(key)]
    before, now = origin.manifest.shape, setup.manifest.shape
    if before != now:
        way = f"use images of {before} instead of {now} (height, width, channels)"
    else:
        way = (
            f"use the same {' and '.join(changed)}" if changed else f"the code of {setup.config.model.name} has changed"
        )
    there, here = (shape.get(name, "missing") for shape in shapes)
    raise UserError(f"run.from: {name} is {there} in {origin.folder.path} and {here} in this run; {way}")


def _from_weights_instead(origin: Origin, setup: TrainingSetup) -> str:
    """Return how to start from the weights alone; empty if they are another network's, or in several files."""
    final = origin.folder.final
    files = (final,) if final.is_file() else checkpoint.evaluated_weights(origin.path)
    if len(files) > 1 or origin.config.model.name != setup.config.model.name:
        return ""
    return f"start from its weights instead, with --model.pretrained {quoted(files[0])} and without --run.from"
