"""Recompute a step of a run from the nearest checkpoint before it: its loss, its images and its gradients.

A step is a function of (config, seed, step) and the weights before it, so nothing has to be recorded for it while the
run trains. On the run's processes, device and threads, the recomputed loss equals the recorded one to the last bit.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cifar_dist.config import Config
from cifar_dist.data.normalize import normalization_statistics
from cifar_dist.distributed.engine import Engine
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.terminal.progress import Show
from cifar_dist.tracking.metrics import Record
from cifar_dist.training.measurements import StepMeasurements
from cifar_dist.training.recomputation import (
    Recomputation,
    beginning_of_branch,
    check_data,
    recorded_steps,
    same_numbers,
    starting_points,
)
from cifar_dist.training.setup import TrainingSetup


@dataclass(frozen=True)
class ReplayedSamples:
    """The samples of a step, of all processes in the order of their ranks, without padding.

    Attributes:
        ids, ranks, labels, predicted: int64 [n].
        partners: int64 [n], the label of the sample that each was mixed with; its own where it was not mixed.
        shares: float32 [n], of its own label in what it was trained towards, before label smoothing.
        losses: float32 [n], in nats.
        images: float32 [n, c, h, w], as the network received them: augmented, mixed and normalised.
    """

    ids: Tensor
    ranks: Tensor
    labels: Tensor
    partners: Tensor
    shares: Tensor
    predicted: Tensor
    losses: Tensor
    images: Tensor

    @property
    def right(self) -> Tensor:
        """Whether the class of the larger share was predicted: bool [n]."""
        return self.predicted == torch.where(self.shares < 0.5, self.partners, self.labels)


@dataclass(frozen=True)
class Replay:
    """A step, recomputed.

    Attributes:
        record: what was recomputed.
        recorded: what the run recorded.
        began: the step of the checkpoint that the recomputation began from; 0 for new weights.
        samples: all samples of the step.
        gradient_norms: L2 norm by parameter, before clipping; empty where the engine has freed the gradients.
        mean, std: with which images were normalised, per channel.
        classes: their names.
    """

    record: Record
    recorded: Record
    began: int
    samples: ReplayedSamples
    gradient_norms: dict[str, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether the run recorded exactly this."""
        return same_numbers(self.record, self.recorded)

    def pixels(self) -> Tensor:
        """The images as a viewer shows them: float32 [n, h, w, c] in [0, 1]."""
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return (self.samples.images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)

    def save(self, folder: Path) -> None:
        """Write ``replay.json``, ``samples.csv`` (highest loss first), ``gradients.csv`` and ``images.npz``."""
        samples = self.samples
        summary = {
            "equal": self.equal,
            "began_from_step": self.began,
            "replayed": json.loads(self.record.to_line()),
            "recorded": json.loads(self.recorded.to_line()),
        }
        (folder / "replay.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            columns = {
                "id": samples.ids,
                "rank": samples.ranks,
                "label": samples.labels,
                "share": samples.shares,
                "partner": samples.partners,
                "predicted": samples.predicted,
                "loss": samples.losses,
            }
            rows.writerow(columns)
            order = samples.losses.argsort(descending=True)
            rows.writerows(zip(*(column[order].tolist() for column in columns.values()), strict=True))
        with (folder / "gradients.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["parameter", "norm"])
            rows.writerows(self.gradient_norms.items())
        arrays = {name: value.numpy() for name, value in vars(samples).items()}
        np.savez_compressed(folder / "images.npz", allow_pickle=False, **arrays)


def replay_step(config: Config, engine: Engine, folder: RunFolder, step: int, show: Show) -> Replay:
    """Recompute step number ``step``, counted from 1. Collective.

    Args:
        config: the run's.
        engine: this process in the job.
        folder: the run.
        step: one that the run recorded.
        show: shows the progress, in steps.

    Raises:
        UserError: the run has no such step, or not its data.
        StopRequested: a process was asked to stop.
    """
    ranks = engine.ranks
    recorded, start = ranks.run_on_main(lambda: _find_start(config, folder, step))
    recomputation = Recomputation(config, engine, start)
    model, norms = recomputation.learner.model, dict[str, float]()
    updates = count(recomputation.first + 1)

    def keep_norms() -> None:
        if next(updates) == step:
            norms.update(model.gradient_norms())

    model.before_update = keep_norms
    with show(step - recomputation.first) as advance:
        records, measured = recomputation.run(step, advance)
    setup = recomputation.setup
    mean, std = normalization_statistics(config.augment, setup.manifest)
    samples = _samples(setup, measured, engine)
    return Replay(
        records[-1], recorded, recomputation.first, samples, norms, mean, std, tuple(map(str, setup.manifest.classes))
    )


def _find_start(config: Config, folder: RunFolder, step: int) -> tuple[Record, Path | None]:
    """Return what a run recorded of a step, and the checkpoint to recompute it from; None for new weights."""
    check_data(config, folder)
    records = recorded_steps(folder)
    if step not in records:
        raise UserError(f"{folder.path} has no step {step}; its steps are {min(records)} to {max(records)}")
    points = starting_points(config, folder)
    before = [point for point in points if point < step]
    if not before:
        raise UserError(
            f"{folder.path} is a branch of {beginning_of_branch(folder).note} and has no checkpoint of its own before "
            f"step {step}; name a later step, or replay that run"
        )
    return records[step], points[before[-1]]


def _samples(setup: TrainingSetup, measured: StepMeasurements, engine: Engine) -> ReplayedSamples:
    """The samples of a step, of all processes. Their images are computed once more: they depend on nothing else."""
    epoch, position = divmod(measured.step - 1, setup.steps_per_epoch)
    batches = next(setup.batches.epoch(epoch, first_step=position))
    mixed = [setup.mix(batch, epoch) for batch in batches]
    images, targets = (torch.cat(parts) for parts in zip(*mixed, strict=True))
    counts = torch.cat([batch.weight for batch in batches]) > 0
    ranks = torch.full_like(measured.ids, engine.ranks.rank)
    labels = torch.cat([batch.labels for batch in batches])
    partners, shares = _of_targets(targets, labels)
    given = (measured.ids, ranks, labels, partners, shares)
    columns = (*given, measured.predicted, measured.losses, images.contiguous())
    return ReplayedSamples(*(engine.ranks.gather(column[counts]).cpu() for column in columns))


def _of_targets(targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the label that each sample was mixed with, int64 [n], and the share of its own, float32 [n].

    Args:
        targets: of :class:`~cifar_dist.data.mix.Mix`.
        labels: int64 [n].
    """
    if not targets.is_floating_point():
        return labels, torch.ones_like(labels, dtype=torch.float32)
    shares = targets.gather(1, labels[:, None])
    others = targets.scatter(1, labels[:, None], 0)
    partners = torch.where(others.amax(dim=1) > 0, others.argmax(dim=1), labels)
    return partners, shares[:, 0]
