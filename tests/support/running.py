"""Start real processes: the ranks of a job, and commands."""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from support import warm

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "train.py")
PATIENCE = 300
"""Seconds after which a process counts as hung. No test waits for this long, however busy the machine is."""
DRAWN = {"CIFAR_DIST_TEST_DRAWN": "1"}
"""Environment of a command that draws the report of its run.

Any other fork of the warm interpreter, but for the verb ``report``, cannot import what draws: it says so and does
everything else, in a quarter of the time.
"""


def free_port() -> int:
    """Return a port that is free, as are the nine after it, and that no other process takes before it is used.

    It is below the range of outgoing connections, and in a range of this process alone.
    """
    ports = _own_ports()
    return next(port for port, _ in zip(ports, range(20), strict=False) if all(map(_is_free, range(port, port + 10))))


@functools.cache
def _own_ports() -> Iterator[int]:
    """Yield every tenth of the 200 ports of this process, cyclically."""
    for first in range(10_000, 20_000, 200):
        try:
            lock = os.open(f"{tempfile.gettempdir()}/cifar-dist-test-ports-{first}", os.O_WRONLY | os.O_CREAT)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process and its forks have ended
        except OSError:  # another process has it, or another user
            continue
        return itertools.cycle(range(first, first + 200, 10))
    raise RuntimeError("fifty test processes have all ports from 10000 to 19999")


def _is_free(port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that were closed do not count
        try:
            server.bind(("", port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether a process of this machine accepts connections on a port."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without the variables of launchers and clusters."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "SLURM_", "TORCHELASTIC_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        own.pop(name, None)
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [own.get("PYTHONPATH")])])
    # Without it a message in one rank's output could come from another test's warning filters.
    return {**own, "PYTHONUNBUFFERED": "1", **(extra or {})}


def start(
    args: Sequence[str],
    processes: int = 1,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    *,
    fresh: bool = False,
    of_rank: Sequence[Sequence[str]] = (),
    env_of_rank: Sequence[Mapping[str, str]] = (),
) -> list[subprocess.Popen[str]]:
    """Start ``python *args`` once per rank; the processes find each other over gloo on a free port.

    The words in ``of_rank`` are appended to those of one rank each, and the variables in ``env_of_rank`` are set there.

    They are forks of a warm interpreter, see :mod:`support.warm`, unless they are to be ``fresh``.
    """
    port = str(free_port())
    popen = subprocess.Popen if fresh else warm.Popen
    running = []
    for rank in range(processes):
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        own = env_of_rank[rank] if env_of_rank else {}
        running.append(
            popen(
                [sys.executable, *args, *(of_rank[rank] if of_rank else ())],
                env=environment({**(place if processes > 1 else {}), **(env or {}), **own}),
                cwd=cwd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def finish(
    running: Sequence[subprocess.Popen[str]], timeout: float = PATIENCE
) -> list[subprocess.CompletedProcess[str]]:
    """Wait for all processes; a job that hangs is killed and fails the test with its output."""
    done = []
    try:
        for process in running:
            out, err = process.communicate(timeout=timeout)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                out, err = process.communicate()
                print(f"killed after {timeout} s; it said:\n{out}\n{err}")
    return done


def spawn(
    args: Sequence[str],
    processes: int = 1,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
    cwd: Path = ROOT,
    *,
    fresh: bool = False,
) -> list[subprocess.CompletedProcess[str]]:
    """:func:`start` and :func:`finish`."""
    return finish(start(args, processes, env, cwd, fresh=fresh), timeout)


def train(*words: str, processes: int = 1, timeout: float = PATIENCE) -> list[subprocess.CompletedProcess[str]]:
    """Run ``train.py *words`` on some processes."""
    return spawn([TRAIN, *words], processes, timeout=timeout)


def metrics(run: Path, split: str = "train") -> list[dict[str, Any]]:
    """Return the records of a split in a run's metrics.jsonl, without a line that is incomplete."""
    *lines, _ = (run / "metrics.jsonl").read_text().split("\n")
    return [record for record in map(json.loads, lines) if record["split"] == split]


def story(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run without their durations."""
    return [without_times(record) for record in (*metrics(run), *metrics(run, "val"))]


def without_times(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of metrics.jsonl without the fields that depend on machine and time."""
    return {key: value for key, value in record.items() if key not in ("seconds", "usage")}


def wait_until(happened: Callable[[], bool], running: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until a condition is true of a run that is training."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "the run does not get on"
        assert all(process.poll() is None for process in running), "it ended before it could be interrupted"
        time.sleep(0.005)


def wait_for_records(run: Path, count: int, running: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until a new run has written ``count`` metrics."""
    path = run / "metrics.jsonl"
    wait_until(lambda: path.is_file() and path.read_bytes().count(b"\n") >= count, running)


def pausing(records: int, note: Path, saved: Path | None = None) -> dict[str, str]:
    """Return the environment of a command whose run stops itself (SIGSTOP) once it has written so many records.

    A signal then meets it exactly there, however fast the run and however late the signal. ``note`` receives its
    process id; :func:`wait_for_pause` returns the process, and :func:`resume` continues it. While the note exists no
    run pauses, such as the continuation of this one in the same job. Before it pauses, a run lets its background write
    of the checkpoint ``saved`` end.
    """
    path = os.pathsep.join([str(Path(__file__).parent / "pausing"), environment()["PYTHONPATH"]])
    return {
        "PYTHONPATH": path,
        "CIFAR_DIST_TEST_PAUSE_AFTER": str(records),
        "CIFAR_DIST_TEST_PAUSED": str(note),
        "CIFAR_DIST_TEST_PAUSE_ONCE_SAVED": str(saved or os.devnull),
    }


def wait_for_pause(note: Path, running: Sequence[subprocess.Popen[Any]]) -> psutil.Process:
    """Wait until the run of :func:`pausing` has stopped itself."""
    wait_until(lambda: note.is_file() and note.read_text().isdigit(), running)
    paused = psutil.Process(int(note.read_text()))
    wait_until(lambda: paused.status() == psutil.STATUS_STOPPED, running)
    return paused


def resume(paused: psutil.Process) -> None:
    """Continue a process of :func:`wait_for_pause` once the signal that others forward to it is pending."""
    wait_for_signal(paused)
    paused.send_signal(signal.SIGCONT)


def wait_for_signal(paused: psutil.Process) -> None:
    """Wait until the signal that others forward to a process of :func:`wait_for_pause` is pending."""
    status = Path("/proc", str(paused.pid), "status")
    wait_until(lambda: set(status.read_text().split("ShdPnd:\t")[1].split("\n")[0]) != {"0"}, [])


def interrupt(
    words: Sequence[str], run: Path, after: int, processes: int, how: signal.Signals, *, drawn: bool = False
) -> list[int]:
    """Train, signal every process when exactly ``after`` records are written, and return their exit codes.

    The report of the interrupted run is :data:`DRAWN` if it is to be ``drawn``.
    """
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, run.name)
        running = start([TRAIN, *words], processes, pausing(after, note) | (DRAWN if drawn else {}))
        try:
            paused = wait_for_pause(note, running)
            for process in running:
                process.send_signal(how)
            paused.send_signal(signal.SIGCONT)
        finally:
            done = finish(running)
    return [process.returncode for process in done]
