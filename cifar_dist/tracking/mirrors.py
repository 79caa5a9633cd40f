"""Mirrors, which copy ``metrics.jsonl`` elsewhere, such as to Weights & Biases. On rank 0 only.

The run folder is authoritative and is written first. A mirror that raises is dropped with one warning, so that no
mirror can stop or fail a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cifar_dist.config import Config, TrackingConfig, plugins
from cifar_dist.errors import UserError
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.timeline import Status
from cifar_dist.tracking.wandb_mirror import WandbMirror, wandb_mode

_REASON_LENGTH = 300


class Mirror(Protocol):
    """A destination of one run's metrics. The methods are called in this order, from one thread."""

    def start(self, history: Sequence[Record]) -> None:
        """Start, also after each resume.

        Args:
            history: the records of the run so far, oldest first. An earlier process that was killed may have sent
                later steps; these are repeated.
        """

    def train_steps(self, records: Sequence[Record]) -> None:
        """Receive the training steps since the last call, oldest first."""

    def evaluation(self, record: Record, best: bool) -> None:
        """Receive a pass over another split; ``best``: whether it has the highest validation accuracy so far."""

    def close(self, status: Status | None) -> None:
        """Finish when the process stops training; None: the mirror raised and is dropped, and the run continues."""


MakeMirror = Callable[[Path, Config, RunFacts], Mirror]
"""Creates the mirror of a run from its folder, its config and the facts of this process."""


def wanted_mirrors(tracking: TrackingConfig) -> dict[str, MakeMirror]:
    """Return a factory for each mirror that a run asks for, by the name that warnings use.

    Raises:
        UserError: an entry of ``tracking.mirrors`` cannot be imported.
    """
    makers: dict[str, MakeMirror] = {"W&B": WandbMirror} if wandb_mode(tracking) != "disabled" else {}
    for spec in tracking.mirrors:
        try:
            found = plugins.load(spec)
        except ValueError as error:
            raise UserError(f"tracking.mirrors: {str(error).removeprefix('name ')}") from None
        if not callable(found):
            raise UserError(f"tracking.mirrors: {spec!r} is not callable; name a class that implements Mirror")
        makers[spec] = found
    return makers


class Mirrors:
    """The mirrors of a run behind one guard.

    Args:
        makers: factory of each mirror, by the name that warnings use.
        folder: the run folder.
        config: the run's.
        facts: of this process.
        warn: reports, in one line, that a mirror was dropped.
    """

    def __init__(
        self,
        makers: Mapping[str, MakeMirror],
        folder: Path,
        config: Config,
        facts: RunFacts,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._running: dict[str, Mirror] = {}
        for name, make in makers.items():
            try:
                self._running[name] = make(folder, config, facts)
            except (Exception, SystemExit) as error:
                self._report(name, "start", error)

    def start(self, history: Sequence[Record]) -> None:
        self._each("start", lambda mirror: mirror.start(history))

    def train_steps(self, records: Sequence[Record]) -> None:
        self._each("record training steps", lambda mirror: mirror.train_steps(records))

    def evaluation(self, record: Record, best: bool) -> None:
        self._each("record an evaluation", lambda mirror: mirror.evaluation(record, best))

    def close(self, status: Status) -> None:
        self._each("finish", lambda mirror: mirror.close(status))
        self._running.clear()

    def _each(self, what: str, call: Callable[[Mirror], None]) -> None:
        for name, mirror in list(self._running.items()):
            try:
                call(mirror)
            except (Exception, SystemExit) as error:
                del self._running[name]
                self._report(name, what, error)
                try:
                    mirror.close(None)
                except (Exception, SystemExit):
                    pass  # the first error has been reported

    def _report(self, name: str, what: str, error: BaseException) -> None:
        reason = " ".join(str(error).split())[:_REASON_LENGTH] or type(error).__name__
        self._warn(f"{name} could not {what}: {reason}; the run continues without it, metrics.jsonl is complete")
