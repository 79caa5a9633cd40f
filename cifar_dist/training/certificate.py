"""Certify a run: recompute random stretches of it, and compare the result with what it recorded and saved.

Compared are the numbers of every step and, at the end of a stretch, all tensors of the checkpoint and the evaluations
there. The accuracies and losses of evaluations elsewhere, ``final/`` and evaluation folders are not.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import cifar_dist
from cifar_dist import checkpoint
from cifar_dist.checkpoint.difference import compare
from cifar_dist.checkpoint.marker import MARKER
from cifar_dist.config import Config
from cifar_dist.config.plugin_code import folder_checksum
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.host_copies import Deal
from cifar_dist.errors import UserError
from cifar_dist.evaluation.split import Split
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.checksums import sha256
from cifar_dist.run_folder import RunFolder
from cifar_dist.terminal.progress import Advance, Show
from cifar_dist.tracking.environment import describe
from cifar_dist.tracking.metrics import Record, read
from cifar_dist.tracking.timeline import utc
from cifar_dist.training.recomputation import Recomputation, check_data, recorded_steps, same_numbers, starting_points

_MOST_STEPS = 100  # of a stretch; a longer one ends before the next checkpoint


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps that were recomputed.

    Attributes:
        began, ended: the steps done before and after it.
        differs_at: the first step whose numbers differ from the recorded ones; None for none.
        different_tensors: which files of the checkpoint at its end differ in a tensor: ``weights``, ``averaged``,
            ``averaged_statistics`` or ``optimizer``; None without a checkpoint there.
        different_evaluations: the splits whose evaluation at its end differs; None without one there.
    """

    began: int
    ended: int
    differs_at: int | None
    different_tensors: tuple[str, ...] | None
    different_evaluations: tuple[str, ...] | None

    @property
    def equal(self) -> bool:
        return self.differs_at is None and not self.different_tensors and not self.different_evaluations


@dataclass(frozen=True)
class _Recorded:
    """What a run has recorded.

    Attributes:
        steps: the records of its steps, by number.
        records: all of its metrics.
        points: the checkpoints to recompute from, by step; None for new weights.
    """

    steps: dict[int, Record]
    records: list[Record]
    points: dict[int, Path | None]


def certify(
    config: Config,
    engine: Engine,
    folder: RunFolder,
    *,
    count: int,
    seed: int,
    show: Show,
) -> list[Stretch]:
    """Recompute ``count`` random stretches between new weights, the checkpoints and the last step. Collective.

    A branched run has no new weights: the steps before its beginning are those of another run, and are skipped.

    Args:
        config: the run's.
        engine: this process in the job.
        folder: the run.
        count: of stretches; fewer where the run has fewer.
        seed: of the choice.
        show: shows the progress, in steps.

    Raises:
        UserError: the run has no step that can be recomputed, or not its data.
        StopRequested: a process was asked to stop.
    """

    def choose() -> tuple[_Recorded, list[tuple[int, int]]]:
        check_data(config, folder)
        recorded = _Recorded(recorded_steps(folder), read(folder.metrics), starting_points(config, folder))
        stretches = [
            (began, min(ended, began + _MOST_STEPS))
            for began, ended in pairwise(sorted({*recorded.points, max(recorded.steps)}))
            if all(step in recorded.steps for step in (began + 1, ended))
        ]
        if not stretches:
            raise UserError(f"{folder.path} has no steps that can be recomputed: no checkpoint precedes its records")
        return recorded, sorted(random.Random(seed).sample(stretches, min(count, len(stretches))))

    recorded, chosen = engine.ranks.run_on_main(choose)
    with show(sum(ended - began for began, ended in chosen)) as advance:
        return [_recompute(config, engine, recorded, stretch, advance) for stretch in chosen]


def _recompute(
    config: Config, engine: Engine, recorded: _Recorded, stretch: tuple[int, int], advance: Advance
) -> Stretch:
    began, ended = stretch
    recomputation = Recomputation(config, engine, recorded.points[began])
    found, _ = recomputation.run(ended, advance)
    differs_at = next((step.step for step in found if not same_numbers(step, recorded.steps[step.step])), None)
    evaluations = [record for record in recorded.records if record.step == ended and record.split != "train"]
    different = tuple(record.split for record in evaluations if not _is_repeatable(record, recomputation, engine))
    tensors = _different_tensors(recomputation, engine, end) if (end := recorded.points.get(ended)) else None
    return Stretch(began, ended, differs_at, tensors, different if evaluations else None)


def _is_repeatable(record: Record, recomputation: Recomputation, engine: Engine) -> bool:
    """Whether an evaluation now gives what the run recorded. Collective."""
    setup, learner, ranks = recomputation.setup, recomputation.learner, engine.ranks
    split = ranks.run_on_all(
        lambda: Split(ranks.device, setup.config, setup.manifest, record.split, trained_on=setup.manifest)
    )
    with learner.averaged():
        tta = "0" if record.split == "val" else setup.config.distinct_tta  # as the trainer evaluates
        found = split.predict(learner.model, tta, poll=engine.poll)
    now = replace(record, loss=found.loss, accuracy=found.accuracy, samples=len(found.logits))
    return same_numbers(now, record)


def _different_tensors(recomputation: Recomputation, engine: Engine, end: Path) -> tuple[str, ...]:
    """Return which files of the checkpoint ``end`` have other tensors than those recomputed. Collective."""
    tensors = recomputation.learner.state(Deal(engine.ranks.rank, writers=1))  # in the memory of rank 0 alone

    def compare_with_saved() -> tuple[str, ...]:
        different = [one for one in compare(tensors, checkpoint.load(end).tensors) if not one.is_equal]
        places = [(one.name.partition("/")[0], one.first) for one in different]
        # Version 1 of the layout has weights among the statistics.
        return tuple(sorted({file for file, found in places if found or file != "averaged_statistics"}))

    return engine.ranks.run_on_main(compare_with_saved)


def write_certificate(folder: RunFolder, stretches: list[Stretch], differences: list[str], seed: int) -> Path:
    """Write ``certificate.json``: the stretches, this job, and checksums of what was compared and of the code.

    Its last field is the sha256 of all others as compact JSON with sorted keys, so a later change shows.
    """
    files = [folder.config, folder.manifest, folder.metrics, folder.final]
    files += sorted(path / MARKER for path in checkpoint.listing(folder.checkpoints))
    certificate: dict[str, object] = {
        "run": folder.name,
        "written": utc(),
        "equal": bool(stretches) and all(stretch.equal for stretch in stretches),
        "seed": seed,
        "stretches": [asdict(stretch) for stretch in stretches],
        "differences_from_the_run": differences,
        "sha256": {str(path.relative_to(folder.path)): sha256(path) for path in files if path.is_file()},
        "code": folder_checksum(Path(cifar_dist.__file__).parent),
        "environment": describe(),
    }
    certificate["certificate"] = _checksum(certificate)
    write_atomic(folder.certificate, json.dumps(certificate, indent=2) + "\n")
    return folder.certificate


def _checksum(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
