"""A run in figures, from its folder alone: what tables of runs are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.files import read_json
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics
from cifar_dist.tracking.table import EpochTable


@dataclass(frozen=True)
class Final:
    """The evaluation that ended a run.

    Attributes:
        accuracy: fraction of ``samples``; None without labels.
        samples: images.
        split, data, tta: of which split of which dataset, with how many looks at each image.
    """

    accuracy: float | None
    samples: int
    split: str
    data: str
    tta: str


@dataclass(frozen=True)
class Result:
    """A run as far as it has come; None where nothing was measured yet.

    Attributes:
        config: its settings.
        epochs: that were begun.
        seconds: of training, over all its starts; without evaluation.
        train_accuracy, val_accuracy: fractions, of the last epoch that has one.
        final: the evaluation of the final weights.
        environment: ``environment.json``; empty where there is none.
    """

    config: Config
    epochs: int
    seconds: float
    train_accuracy: float | None
    val_accuracy: float | None
    final: Final | None
    environment: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What the started trainer knew, see :func:`facts`."""
        return facts(self.environment)

    @property
    def test_accuracy(self) -> float | None:
        """Fraction, of the evaluation that ended the run."""
        return self.final.accuracy if self.final else None

    @property
    def tta(self) -> str:
        """The views of that evaluation; empty where there is none."""
        return self.final.tta if self.final else ""

    @property
    def progress(self) -> str:
        """``8 of 8``, ``3 of 24`` epochs that were begun."""
        return f"{self.epochs} of {self.config.train.epochs}"

    @property
    def parameters(self) -> int | None:
        """Trainable or not."""
        return count(self.facts, "parameters")


def read_result(run: Path) -> Result:
    """Read a run folder; only ``config.toml`` has to be there.

    Raises:
        UserError: it is not a run folder, or its config or metrics are damaged.
    """
    folder = RunFolder(run)
    config = recipe.read(folder.config)
    rows = EpochTable(metrics.read(folder.metrics)).rows()
    summary = folder.final_summary()
    return Result(
        config=config,
        epochs=len(rows),
        seconds=sum(row.seconds for row in rows),
        train_accuracy=_last([row.train_accuracy for row in rows]),
        val_accuracy=_last([row.val_accuracy for row in rows]),
        final=_final(summary) if summary else None,
        environment=read_json(folder.environment),
    )


def facts(environment: dict[str, Any]) -> dict[str, Any]:
    """Of ``environment.json``: see :class:`~cifar_dist.tracking.facts.RunFacts`; empty where it does not tell."""
    told = environment.get("run")
    return told if isinstance(told, dict) else {}


def count(facts: dict[str, Any], name: str) -> int | None:
    """A whole number above 0; None where it is not told."""
    value = facts.get(name)
    return value if type(value) is int and value > 0 else None


def _final(summary: dict[str, Any]) -> Final | None:
    accuracy, samples = summary.get("accuracy"), summary.get("samples")
    if not isinstance(samples, int) or not isinstance(accuracy, float | int | None):
        return None
    split, data, tta = (str(summary.get(key, "")) for key in ("split", "data", "tta"))
    return Final(accuracy, samples, split, data, tta)


def _last(values: list[float]) -> float | None:
    """The last that is not nan."""
    return next((value for value in reversed(values) if value == value), None)
