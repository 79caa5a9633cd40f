"""Ours and a peer, measured in turns, printed as a ratio and recorded in ``benchmarks/results/``.

Each benchmark calls :func:`take_turns`, so that a machine that slows down does so for both, and :func:`record`, from
whose files ``docs/make_performance.py`` writes docs/performance.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(os.environ.get("CIFAR_DIST_BENCHMARKS", Path(__file__).with_name("results")))


@dataclass(frozen=True)
class Comparison:
    """One quantity of ours and of a peer.

    Attributes:
        what: was measured, for example ``a training step of resnet18``.
        peer: what it is compared with.
        unit: ``s`` for the time that it takes, ``images/s`` for a rate.
        ours, theirs: one value for each turn.
    """

    what: str
    peer: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the peer ours is, in each turn."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours / theirs if self.unit.endswith("/s") else theirs / ours for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """The median of :attr:`ratios`."""
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        low, high = min(self.ratios), max(self.ratios)
        medians = (f"{statistics.median(values):,.4g}" for values in (self.ours, self.theirs))
        ours, theirs = medians
        return (
            f"{self.what}: {ours} {self.unit}; {self.peer}: {theirs} {self.unit}; "
            f"{self.ratio:.2f} times as fast ({low:.2f} to {high:.2f} in {len(self.ratios)} turns)"
        )


def take_turns(
    what: str, peer: str, unit: str, ours: Callable[[], float], theirs: Callable[[], float], turns: int
) -> Comparison:
    """Measure both ``turns`` times, the one that begins changing each time, after one turn that is not counted."""
    measured: dict[Callable[[], float], list[float]] = {ours: [], theirs: []}
    for turn in range(1 + turns):
        for one in (ours, theirs) if turn % 2 else (theirs, ours):
            value = one()
            if turn:
                measured[one].append(value)
    return Comparison(what, peer, unit, measured[ours], measured[theirs])


def commit_of_code(recorded: str, folder: Path = Path(__file__).parent) -> str:
    """Return the commit without ``-dirty`` if only results differ: `make bench` writes one after the other.

    Args:
        recorded: as ``git describe --dirty`` says it.
        folder: in the checkout.
    """
    files = (":(top)", ":(top,exclude)benchmarks/results")
    words = ["git", "-C", str(folder), "diff", "--quiet", "HEAD", "--", *files]
    if recorded.endswith("-dirty") and subprocess.run(words, check=False).returncode == 0:
        return recorded.removesuffix("-dirty")
    return recorded


def _without_folder(word: str) -> str:
    """Shorten an absolute path to its name: where it is on this machine means nothing to a reader."""
    return Path(word).name if Path(word).is_absolute() else word


def record(script: str, comparisons: Sequence[Comparison], note: str = "", name: str = "") -> None:
    """Print the comparisons, and write them to ``RESULTS/NAME.json`` with the machine and the command.

    Args:
        script: ``__file__`` of the benchmark.
        comparisons: what it measured.
        note: what a reader must know, for example the data.
        name: of the file; that of the script by default.
    """
    import torch

    from cifar_dist.tracking.environment import describe

    for comparison in comparisons:
        print(comparison, flush=True)
    facts, path = describe(), Path(script)
    gpus = facts["gpus"]
    device = (
        f"{len(gpus)} x {gpus[0]}" if isinstance(gpus, list) and gpus else f"{facts['cores']} cores, {facts['cpu']}"
    )
    content = {
        "command": " ".join(["python", f"benchmarks/{path.name}", *map(_without_folder, sys.argv[1:])]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit_of_code(str(facts["commit"])),
        "machine": f"{device}, torch {torch.__version__}",
        "note": note,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    out = RESULTS / f"{name or path.stem}.json"
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
