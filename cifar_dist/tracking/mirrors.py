"""Mirrors, which copy ``metrics.jsonl`` elsewhere, such as to Weights & Biases. On rank 0 only.

The run folder is authoritative and is written first. A mirror that raises or hangs is dropped with one warning, so that
no mirror can stop or fail a run.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cifar_dist.config import Config, TrackingConfig, plugins
from cifar_dist.config.plugin_errors import other_arguments
from cifar_dist.errors import StorageError, UserError, quoted
from cifar_dist.formatting import counted
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.settings import read_settings
from cifar_dist.tracking import metrics
from cifar_dist.tracking.environment import read_facts
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.mirror import Mirror
from cifar_dist.tracking.mirror_thread import MOST_STEPS, MirrorThread, shortened
from cifar_dist.tracking.timeline import Status
from cifar_dist.tracking.wandb_mirror import WandbMirror, describe_incomplete, may_lack_rows, wandb_mode

_WANDB: Final = "W&B"
_PATIENCE: Final = 120.0  # seconds in which a method must return
_SILENCE: Final = 2.0  # seconds of waiting at the end of a run that need no message
_CLOSE_SECONDS: Final = 75.0  # at the end of a process; W&B itself gives up an upload after 60 s
_WRITE_SECONDS: Final = 900.0  # at the end of a run, whose last folder of W&B is written rather than uploaded

MakeMirror = Callable[[Path, Config, RunFacts], Mirror]
"""Creates the mirror of a run from its folder, its config and the facts of this process."""


def wanted_mirrors(tracking: TrackingConfig) -> dict[str, MakeMirror]:
    """Return a factory for each mirror that a run asks for, by the name that warnings use.

    Raises:
        UserError: an entry of ``tracking.mirrors`` cannot be imported, or cannot be called as mirrors are.
    """
    makers: dict[str, MakeMirror] = {_WANDB: WandbMirror} if wandb_mode(tracking) != "disabled" else {}
    for spec in tracking.mirrors:
        try:
            found = plugins.load(spec)
        except ValueError as error:
            raise UserError(f"tracking.mirrors: {str(error).removeprefix('name ')}") from None
        if not callable(found):
            raise UserError(f"tracking.mirrors: {spec!r} is not callable; name a class that implements Mirror")
        if wrong := _other_arguments(found, spec.rpartition(":")[2]):
            raise UserError(f"tracking.mirrors: {spec!r}: {wrong}")
        makers[spec] = found
    return makers


def _other_arguments(make: Callable[..., object], name: str) -> str:
    """Return what is called with other arguments than it takes: a factory, or a method of a class; empty for none."""
    with contextlib.suppress(ValueError):  # of what is not written in Python
        try:
            inspect.signature(make).bind(*(arguments := ("folder", "config", "facts")))
        except TypeError:
            return f"{name} is called with other arguments; write it as {name}({', '.join(arguments)})"
    return other_arguments(make, Mirror) if isinstance(make, type) else ""


class Mirrors:
    """The mirrors of a run, each in a thread.

    Args:
        makers: factory of each mirror, by the name that warnings use.
        folder: the run folder.
        config: the run's.
        facts: of this process.
        say: prints a line.
        say_command: prints a line, and below it a command or a URL that can be copied.
        warn: reports, in one line, that a mirror was dropped.
        otherwise: what is said with that of the run.
    """

    def __init__(
        self,
        makers: Mapping[str, MakeMirror],
        folder: Path,
        config: Config,
        facts: RunFacts,
        say: Callable[[str], None],
        say_command: Callable[[str, str], None],
        warn: Callable[[str], None],
        otherwise: str = "the run continues without it, metrics.jsonl is complete",
    ) -> None:
        self._say, self._say_command, self._warn, self._otherwise = say, say_command, warn, otherwise
        self._folder, self._is_offline = folder, wandb_mode(config.tracking) == "offline"
        self._running: dict[str, MirrorThread] = {}
        for name, make in makers.items():
            try:
                self._running[name] = MirrorThread(make(folder, config, facts))
            except (Exception, SystemExit) as error:
                self._report(name, f"start: {shortened(error)}")

    def start(self, history: Sequence[Record]) -> None:
        self._ask("start", lambda mirror: mirror.start(history))
        for first in range(0, len(history), MOST_STEPS):  # in calls that each return in time
            self._for_each(partial(_send_again, history[first : first + MOST_STEPS]))

    def train_steps(self, records: Sequence[Record]) -> None:
        self._for_each(lambda thread: thread.ask_to_record(records))

    def evaluation(self, record: Record, best: bool) -> None:
        self._ask("record an evaluation", lambda mirror: mirror.evaluation(record, best))

    def close(self, status: Status) -> None:
        """Wait a bounded time for what the mirrors have not recorded yet."""
        self._ask("finish", lambda mirror: mirror.close(status))
        begin = time.monotonic()
        for name, thread in self._running.items():
            is_written = name == _WANDB and self._is_offline
            seconds = _WRITE_SECONDS if is_written and status == "finished" else _CLOSE_SECONDS
            has_ended = thread.end(_SILENCE)
            if not has_ended and (left := begin + seconds - time.monotonic()) > 0:
                self._say(f"waiting for {name}, at most {left:.0f} s")
                has_ended = thread.end(left)
            address = _take_address(thread)
            if (failure := thread.failure(_PATIENCE)) or not has_ended:
                self._report(name, failure or f"finish within {seconds:.0f} s", has_command=address is not None)
            self._say_address(address)
        self._running.clear()

    def _ask(self, what: str, method: Callable[[Mirror], None]) -> None:
        self._for_each(lambda thread: thread.ask(what, method))

    def _for_each(self, ask: Callable[[MirrorThread], None]) -> None:
        for name, thread in list(self._running.items()):
            if failure := thread.failure(_PATIENCE):
                del self._running[name]
                self._report(name, failure)
            else:
                self._say_address(_take_address(thread))
                ask(thread)

    def _say_address(self, address: tuple[str, str] | None) -> None:
        if address is not None:
            self._say_command(*address)

    def _report(self, name: str, failure: str, *, has_command: bool = False) -> None:
        """Report a failure, with what sends W&B the rows that it lacks, unless the mirror itself has a command."""
        way = ""
        if name == _WANDB and not self._is_offline and not has_command:
            way = f"; to send W&B its rows once the run has ended: cifar-dist resume {quoted(self._folder)}"
        self._warn(f"{name} could not {failure}; {self._otherwise}{way}")
        if name == _WANDB and self._is_offline:
            self._warn(describe_incomplete(self._folder))


def complete_wandb(folder: RunFolder, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Send W&B all records of a finished run, with its settings, if it asks for W&B and that may lack some of them.

    Args:
        folder: the run.
        say: prints a line.
        warn: reports, in one line, why W&B does not have all records now.

    Raises:
        UserError: the settings or the metrics of the run are damaged, or another process has just locked it.
    """
    config, history = read_settings(folder), metrics.read(folder.metrics)
    if not may_lack_rows(folder, config.tracking, len(history)) or folder.in_use():  # by its process, which sends them
        return

    def say_command(text: str, command: str) -> None:
        say(f"{text}\n  {command}")

    say(f"W&B may lack metrics of this run: sending all {counted(len(history), 'record')}")
    try:
        with folder.locked():
            facts, otherwise = read_facts(folder.environment), "metrics.jsonl is complete"
            makers = {_WANDB: WandbMirror}
            mirrors = Mirrors(makers, folder.path, config, facts, say, say_command, warn, otherwise)
            mirrors.start(history)
            mirrors.close("finished")
    except OSError as error:  # of the lock, in a folder that cannot be written
        warn(f"W&B may lack metrics of this run: {StorageError.of(error, folder.path)}")


def _take_address(thread: MirrorThread) -> tuple[str, str] | None:
    return thread.mirror.take_address() if isinstance(thread.mirror, WandbMirror) else None


def _send_again(records: Sequence[Record], thread: MirrorThread) -> None:
    """Have W&B receive records of earlier processes, if it needs them; other mirrors have got them as they started."""
    if isinstance(mirror := thread.mirror, WandbMirror):
        thread.ask("record earlier steps", lambda _: mirror.send_again(records))
