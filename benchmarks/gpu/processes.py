"""One command of an item: its output goes to a log, a limit ends it, and while it runs its last line is shown."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.launch.parent_death import signal_when_this_ends

GRACE = 10.0
"""Seconds that a process at its limit has to save, after SIGTERM and before SIGKILL."""
_SHOW_EVERY = 15.0  # seconds between lines of progress


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        output: what it printed.
        limited: whether it reached its limit.
    """

    code: int
    output: str
    limited: bool

    @property
    def last_line(self) -> str:
        """The last line that is not empty."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "no output")


def run(
    words: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    seconds: float,
    halt: threading.Event,
    until: Callable[[str], bool] | None = None,
) -> Ended:
    """Run a command to its end, to its limit or until something has happened; no process of its group survives.

    Args:
        words: the command.
        cwd, env: its working folder and its environment.
        log: its output is appended to this file.
        seconds: after them it gets SIGTERM, and SIGKILL :data:`GRACE` later.
        halt: once it is set, the process gets SIGKILL.
        until: called with its output so far, many times a second; once it is true, the process gets SIGKILL.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(words)}\n")
        file.flush()
        begin, limited = file.tell(), False
        job = subprocess.Popen(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=signal_when_this_ends(signal.SIGKILL),
        )
        try:
            deadline = time.monotonic() + seconds
            shown = time.monotonic()
            while job.poll() is None and not halt.is_set():
                if until is not None and until(_read(log, begin)):
                    break
                now = time.monotonic()
                if now >= deadline + GRACE:
                    break
                if now >= deadline and not limited:
                    limited = True
                    os.killpg(job.pid, signal.SIGTERM)
                if now >= shown + _SHOW_EVERY:
                    shown = now
                    print(f"   {log.stem}: {Ended(0, _read(log, begin), False).last_line[:110]}", flush=True)
                time.sleep(0.005 if until else 0.05)
        finally:
            _kill_group(job)
    return Ended(job.returncode, _read(log, begin), limited)


def _kill_group(job: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    job.wait()


def _read(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace").replace("\r", "\n")
