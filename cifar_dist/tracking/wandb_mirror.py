"""Weights & Biases as a mirror of ``metrics.jsonl``. Whatever it does, the run goes on: errors become one warning.

* One W&B id per run, kept in ``wandb.json``, so that every resume continues the same W&B run.
* Its own x-axis, ``step``: after a resume steps come again, and W&B's internal step would drop them.
* Offline, each start writes a new segment, and syncing a segment replaces what the server has of the id. So a
  segment begins with the whole history so far, and the newest one alone is the run.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from cifar_dist.config import Config, WandbConfig
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.files import write_atomic
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record

_INIT_SECONDS = 30
_FINISH_SECONDS = 60
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Run(Protocol):
    """What is used of ``wandb.Run``."""

    def define_metric(self, name: str, *, step_metric: str | None = None, summary: str | None = None) -> object: ...
    def log(self, data: Mapping[str, float]) -> None: ...
    def mark_preempting(self) -> None: ...
    def finish(self, exit_code: int) -> None: ...


class WandbMirror:
    """Mirror of one run, on rank 0.

    Args:
        folder: the run folder; W&B's own files go to ``folder/wandb``.
        config: the run's; ``tracking.wandb`` decides the mode.
        facts: join the config in W&B's run table.
        history: the records that the run has already.
        warn: is told, in one line, when the mirror stops working.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        facts: RunFacts,
        history: Sequence[Record],
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._run: _Run | None = None
        tracking = config.tracking
        if not isinstance(tracking, WandbConfig):
            return
        with self._never_fatal("start"):
            run_id, last_mode = _identity(folder / "wandb.json")
            self._run = _start(folder, config, tracking, facts, run_id)
            text = json.dumps({"id": run_id, "mode": tracking.wandb, "project": tracking.project})
            write_atomic(folder / "wandb.json", text + "\n")
            if tracking.wandb == "offline" or last_mode != "online":
                self.log(history)

    def log(self, records: Sequence[Record]) -> None:
        with self._never_fatal("log"):
            for record in records:
                if self._run:
                    self._run.log(_row(record))

    def finish(self, exit_code: int, *, preempted: bool = False) -> None:
        """Wait a bounded time for uploads; what did not get through stays in ``folder/wandb`` for ``wandb sync``."""
        with self._never_fatal("finish"):
            if self._run:
                if preempted:
                    self._run.mark_preempting()
                self._run.finish(exit_code=exit_code)
        self._run = None

    @contextmanager
    def _never_fatal(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            run, self._run = self._run, None  # stops the mirror: one warning, not one a step
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self._warn(f"W&B could not {what}: {reason}; the run goes on, metrics.jsonl has everything")
            if run and what != "finish":
                try:
                    run.finish(exit_code=EXIT_DONE)
                except Exception:
                    pass  # it has been reported as broken


def _identity(path: Path) -> tuple[str, str]:
    """(W&B id of this run, mode of its last start); a new id and no mode when there is none to trust."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        run_id, mode = str(raw["id"]), str(raw["mode"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        run_id, mode = "", ""
    return (run_id, mode) if _ID.fullmatch(run_id) else (secrets.token_hex(4), "")


def _start(folder: Path, config: Config, tracking: WandbConfig, facts: RunFacts, run_id: str) -> _Run:
    import wandb

    # Silent before init, because a wandb that may speak asks for an API key at a terminal, and all ranks would wait.
    wandb.setup(settings=wandb.Settings(silent=True))
    run: _Run = wandb.init(
        project=tracking.project,
        entity=tracking.entity or None,
        name=folder.name,
        id=run_id,
        dir=folder,
        mode=tracking.wandb,
        resume="allow" if tracking.wandb == "online" else None,
        config={**asdict(config), "facts": asdict(facts)},
        settings=wandb.Settings(
            silent=True,
            console="off",  # leaves stdout alone: training.log has what was said
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    run.define_metric("val/accuracy", step_metric="step", summary="max")
    return run


def _row(record: Record) -> dict[str, float]:
    row = {"step": record.step, "epoch": record.epoch}
    values = {"loss": record.loss, "accuracy": record.accuracy, "seconds": record.seconds, "lr": record.lr}
    return row | {f"{record.split}/{name}": value for name, value in values.items() if value is not None}
