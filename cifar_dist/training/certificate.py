"""Certify a run: recompute random stretches of it, and compare every number and every weight with what it recorded."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch

import cifar_dist
from cifar_dist import checkpoint
from cifar_dist.checkpoint.marker import MARKER
from cifar_dist.config import Config
from cifar_dist.distributed.engine import Engine
from cifar_dist.errors import UserError
from cifar_dist.files import sha256, write_atomic
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking.environment import describe
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.timeline import utc
from cifar_dist.training.replay import Recomputation, check_data, recorded_steps, same_numbers, starting_points

_MOST_STEPS = 100  # of a stretch; a longer one ends before the next checkpoint


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps that were recomputed.

    Attributes:
        began, ended: the steps done before and after it.
        differs_at: the first step whose numbers differ from the recorded ones; None for none.
        weights_equal: whether the weights at its end are those of the checkpoint there; None without one.
    """

    began: int
    ended: int
    differs_at: int | None
    weights_equal: bool | None

    @property
    def equal(self) -> bool:
        return self.differs_at is None and self.weights_equal is not False


def certify(
    config: Config,
    engine: Engine,
    folder: RunFolder,
    *,
    count: int,
    seed: int,
    show: Callable[[int], None],
) -> list[Stretch]:
    """Recompute ``count`` random stretches between new weights, the checkpoints and the last step. Collective.

    A branched run has no new weights: the steps before its beginning are those of another run, and are skipped.

    Args:
        config: the run's.
        engine: this process in the job.
        folder: the run.
        count: of stretches; fewer where the run has fewer.
        seed: of the choice.
        show: called after each recomputed step with its number.

    Raises:
        UserError: the run has no step that can be recomputed, or not its data.
        StopRequested: a process was asked to stop.
    """

    def choose() -> tuple[dict[int, Record], dict[int, Path | None], list[tuple[int, int]]]:
        check_data(config, folder)
        records = recorded_steps(folder)
        known = starting_points(config, folder)
        stretches = [
            (began, min(ended, began + _MOST_STEPS))
            for began, ended in pairwise(sorted({*known, max(records)}))
            if all(step in records for step in (began + 1, ended))
        ]
        if not stretches:
            raise UserError(f"{folder.path} has no steps that can be recomputed: no checkpoint precedes its records")
        return records, known, random.Random(seed).sample(stretches, min(count, len(stretches)))

    records, known, chosen = engine.ranks.run_on_main(choose)
    return [_recompute(config, engine, records, known, stretch, show) for stretch in sorted(chosen)]


def _recompute(
    config: Config,
    engine: Engine,
    records: dict[int, Record],
    known: dict[int, Path | None],
    stretch: tuple[int, int],
    show: Callable[[int], None],
) -> Stretch:
    began, ended = stretch
    recomputation = Recomputation(config, engine, known.get(began))
    found, _ = recomputation.run(ended, show)
    differs_at = next((record.step for record in found if not same_numbers(record, records[record.step])), None)
    weights = recomputation.learner.model.state()
    end = known.get(ended)
    if end is None:
        return Stretch(began, ended, differs_at, None)
    saved = engine.ranks.run_on_all(lambda: checkpoint.load(end)).tensors.weights
    equal = weights.keys() == saved.keys() and all(torch.equal(weights[name], saved[name]) for name in saved)
    return Stretch(began, ended, differs_at, equal)


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
        "code": _code_checksum(),
        "environment": describe(),
    }
    certificate["certificate"] = _checksum(certificate)
    write_atomic(folder.certificate, json.dumps(certificate, indent=2) + "\n")
    return folder.certificate


def _checksum(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _code_checksum() -> str:
    """The sha256 of the names and contents of this package's Python files."""
    package = Path(cifar_dist.__file__).parent
    found = {str(path.relative_to(package)): sha256(path) for path in sorted(package.rglob("*.py"))}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
