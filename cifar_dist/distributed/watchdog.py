"""End a job in which nothing moves any more: a rank that is stopped or hangs, a network that lost a message.

The other ranks would wait for it until the process group's timeout, and then fail in a traceback that names no rank.
Each rank has a thread that compares the time since the last step with the usual one. When it is far too long, the ranks
write the stacks of their threads into the run folder, tell each other where they are over torch's store, name the rank
that is behind, and end with exit code 124. Until then a step costs a clock reading, and the ranks exchange nothing.
Where a rank on the same machine has ended, the job ends soon, with exit code 1: gloo does not always notice, and waits.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from cifar_dist.distributed import ranks as ranks_module
from cifar_dist.distributed.place import Place
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.exit_codes import EXIT_FAILED, EXIT_STALLED
from cifar_dist.launch.joining import open_store
from cifar_dist.step_folder import step_name

if TYPE_CHECKING:
    from torch.distributed import Store

_ANSWER_SECONDS = 10.0  # in which the other ranks must say where they are
_ENDED_SECONDS = 10.0  # without a step after which a rank that has ended ends the job; its launcher mostly does before
_TORCH = str(Path(torch.__file__).parent)
_WAITING_IN = (_TORCH, ranks_module.__file__)  # files in which the main thread waits for other ranks


@dataclass(frozen=True)
class Position:
    """Where a rank is.

    Attributes:
        step: optimizer steps done.
        where: the line of the main thread, outside torch.
        waiting: whether that thread is inside torch, where it waits for other ranks if it waits.
    """

    step: int
    where: str
    waiting: bool


class Watchdog:
    """Watches this process inside a ``with`` block. Construction is collective.

    Args:
        ranks: this process among all of the job.
        folder: for the stacks of each rank; created when they are written.
        timeout: least number of seconds without a beat that end the job; 0 for never.
        patience: the same for what takes long and comes seldom, see :meth:`be_patient`, unless a process of the job on
            this machine is stopped or has ended.
        factor: the multiple of the usual time between beats that ends it, if that is longer.
        steps_done: the optimizer steps done.
        record: called on one rank with what happened, one line, and the exit code, before the job ends.
    """

    def __init__(
        self,
        ranks: Ranks,
        folder: Path,
        *,
        timeout: float,
        patience: float,
        factor: float,
        steps_done: Callable[[], int],
        record: Callable[[str, int], None],
    ) -> None:
        self._ranks, self._folder, self._steps_done, self._record = ranks, folder, steps_done, record
        self._timeout, self._patience, self._factor = timeout, patience, factor
        self._places = ranks.gather_objects(Place.here())
        self._board = _Board(ranks.rank, ranks.world_size, self._places[0]) if timeout else None
        self._ended, self._ending = threading.Event(), threading.Event()
        self._beats = 0
        self.be_patient()

    def beat(self) -> None:
        """Note that this process moves: a step or a batch of an evaluation has ended."""
        self._last, self._is_patient = time.monotonic(), False
        self._beats += 1

    def be_patient(self) -> None:
        """Allow more time until the next beat: for a first step, which may compile, a checkpoint, or an upload."""
        self._last, self._is_patient = time.monotonic(), True

    def __enter__(self) -> Watchdog:
        if self._board is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop watching. If the job is being ended, this process waits for that: its own error is only an effect."""
        self._ended.set()
        if self._ending.is_set():
            threading.Event().wait()

    def _watch(self) -> None:
        assert self._board is not None
        interval = min(1.0, self._timeout / 8)
        usual, woke = 0.0, time.monotonic()
        beats, last = self._beats, self._last
        while not self._ended.wait(interval):
            now = time.monotonic()
            if now - woke > 4 * interval:  # this thread was stopped itself, with its process
                self._last = now
            if (count := self._beats - beats) > 0:
                seconds = (self._last - last) / count
                usual = max(seconds, 0.9 * usual + 0.1 * seconds)  # up at once, down slowly
                beats, last = self._beats, self._last
            limit = max(self._timeout, self._factor * usual, self._patience if self._is_patient else 0)
            silent = now - self._last
            what = f"no step has ended for {silent:.0f} s, usually {usual:.2g} s"
            if silent > min(self._timeout, _ENDED_SECONDS) and self._neighbours(Place.has_ended):
                self._end(what, EXIT_FAILED)
            if silent > limit or (silent > self._timeout and self._neighbours(Place.is_stopped)):
                self._end(what, EXIT_STALLED)
            if silent > self._timeout / 10 and (code := self._board.alarm()):
                self._end(what, code)
            woke = time.monotonic()

    def _neighbours(self, is_so: Callable[[Place], bool]) -> set[int]:
        """The ranks of which something is true that no patience helps with, as far as can be seen from here."""
        return {rank for rank, place in enumerate(self._places) if is_so(place)}

    def _end(self, what: str, code: int) -> None:
        """Write this rank's stacks, exchange positions, let one rank report, and end the process."""
        assert self._board is not None
        self._ending.set()
        step = self._steps_done()
        folder = self._folder / step_name(step)
        self._write_stacks(folder, what)
        mute = self._neighbours(Place.is_stopped) | self._neighbours(Place.has_ended)
        positions = self._board.exchange(_position(step), mute, code)
        missing = {rank: self._places[rank] for rank in range(self._ranks.world_size) if rank not in positions}
        if self._ranks.rank == min(positions):
            line = f"{what}: {name_behind(positions, missing)}; stacks: {folder}"
            _say(f"{line}; exit code {code}")
            try:
                self._record(line, code)
            except OSError as error:
                _say(str(error))
        for place in missing.values():
            place.kill()  # it may be stopped, and would otherwise outlive the job
        os._exit(code)

    def _write_stacks(self, folder: Path, what: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"rank-{self._ranks.rank}.txt").open("w", encoding="utf-8") as file:
                print(f"rank {self._ranks.rank}, {self._places[self._ranks.rank]}: {what}", file=file, flush=True)
                faulthandler.dump_traceback(file)
        except OSError as error:
            _say(f"{folder} cannot be written ({error.strerror}); the stacks are:")
            faulthandler.dump_traceback(sys.__stderr__ or 2)


class _Board:
    """Torch's store, where ranks raise an alarm and say where they are. A store that does not answer is given up.

    Args:
        rank: this process.
        world_size: number of processes.
        first: the place of rank 0, which tells these ranks from those before a restart.
    """

    def __init__(self, rank: int, world_size: int, first: Place) -> None:
        self._rank, self._world_size = rank, world_size
        self._store: Store | None = None
        if world_size > 1:
            # A connection of its own: that of the process group may be waiting for a key.
            purpose = f"watchdog/{first.machine}/{first.process}"
            self._store = open_store(purpose, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))

    def alarm(self) -> int:
        """Return the exit code of another rank that has called :meth:`exchange`; 0 if none has."""
        found: list[int] = []
        self._ask(lambda store: found.extend([int(store.get("alarm"))] if store.check(["alarm"]) else []), seconds=3)
        return max(found, default=0)

    def exchange(self, own: Position, mute: Set[int], code: int) -> dict[int, Position]:
        """Give the other ranks this one's position and exit code; return the positions that arrive in time, by rank.

        The ranks in ``mute`` cannot answer, and are not waited for.
        """
        positions = {self._rank: own}
        expected = set(range(self._world_size)) - mute - {self._rank}
        if not expected:
            return positions

        def ask(store: Store) -> None:
            store.set(str(self._rank), json.dumps(asdict(own)))
            store.set("alarm", str(code))
            deadline = time.monotonic() + _ANSWER_SECONDS
            while expected - positions.keys() and time.monotonic() < deadline:
                for rank in expected - positions.keys():
                    if store.check([str(rank)]):
                        positions[rank] = Position(**json.loads(store.get(str(rank))))
                time.sleep(0.1)

        self._ask(ask, seconds=2 * _ANSWER_SECONDS)
        return positions

    def _ask(self, question: Callable[[Store], None], seconds: float) -> None:
        """Ask in a thread that may wait forever: rank 0, which may host the store, may be the one that is stopped."""
        store = self._store
        if store is None:
            return

        def ask() -> None:
            try:
                question(store)
            except RuntimeError:  # the connection broke
                self._store = None

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self._store = None


def name_behind(positions: Mapping[int, Position], missing: Mapping[int, Place]) -> str:
    """Name the ranks that the others wait for.

    Args:
        positions: of the ranks that answered, by rank.
        missing: the places of the others.
    """
    if missing:
        return ", ".join(
            ", ".join(filter(None, [f"rank {rank} ({place}) does not answer", place.describe_status()]))
            for rank, place in missing.items()
        )
    first = min(position.step for position in positions.values())
    behind = {rank: position for rank, position in positions.items() if position.step == first}
    if len(behind) == len(positions):
        behind = {rank: position for rank, position in positions.items() if not position.waiting}
    if not behind or (len(behind) == len(positions) > 1):
        places = ", ".join(f"rank {rank} at {position.where}" for rank, position in positions.items())
        return f"no rank is behind: {places}"
    return ", ".join(
        f"rank {rank} is behind, after step {position.step} at {position.where}" for rank, position in behind.items()
    )


def _say(line: str) -> None:
    """Print a line past all buffers and locks, which the main thread may hold; without a reader, the job ends too."""
    with contextlib.suppress(OSError):
        os.write(2, f"cifar-dist: {line}\n".encode())


def _position(step: int) -> Position:
    main = threading.main_thread().ident
    frame = innermost = sys._current_frames()[main] if main is not None else sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_TORCH):
        frame = frame.f_back
    return Position(step, _describe(frame), innermost.f_code.co_filename.startswith(_WAITING_IN))


def _describe(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
