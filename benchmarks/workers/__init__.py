"""Processes that take one training step whenever they are asked: two kinds of them alternate, each with its own memory.

Between two requests a worker waits for its standard input, and takes no processor time from the other.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cifar_dist.launch.parent_death import signal_when_this_ends

ROOT = Path(__file__).parents[2]


class Requests:
    """A worker's side: it waits for a request, and answers with the seconds that its step took.

    The answer is sent when the worker waits again: what it does between two steps, such as an evaluation at the end of
    an epoch, is not counted, and must not take processor time from the other worker's step.
    """

    def __init__(self) -> None:
        self._taken: float | None = None  # seconds of a step, not sent yet
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> int:
        """Answer the last request, and wait for the next, a number."""
        if self._taken is not None:
            self.answer(self._taken)
            self._taken = None
        if not (line := sys.stdin.readline()):
            raise StopIteration
        return int(line)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take the seconds of the block as the answer, also where its caller leaves a loop in it."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._taken = time.perf_counter() - begin

    def answer(self, facts: object) -> None:
        """Answer with a JSON value."""
        print(json.dumps(facts), file=self._answers, flush=True)


class Workers:
    """The ranks of one job, asked together; a context, at whose end they end.

    Args:
        words: the script in this folder, and its arguments.
        processes: number of ranks, which find each other over gloo.
        alone: each is a job of its own instead.
    """

    def __init__(self, words: Sequence[str], processes: int = 1, *, alone: bool = False) -> None:
        self._script = words[0]
        command = [sys.executable, str(Path(__file__).with_name(self._script)), *words[1:]]
        search = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        port = _free_port()
        self._running = [
            subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": search, **({} if alone else _place(rank, processes, port))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=signal_when_this_ends(signal.SIGKILL),
            )
            for rank in range(processes)
        ]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._running:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._running:
            if exception[0] is not None:
                process.kill()
            process.wait()

    def ask(self, number: int = 0) -> list[object]:
        """Request one piece of work of each rank and return their answers.

        Args:
            number: of the request, whatever it means to the worker.

        Raises:
            SystemExit: a rank ended without an answer.
        """
        for process in self._running:
            assert process.stdin is not None
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        answers = []
        for process in self._running:
            assert process.stdout is not None
            if not (line := process.stdout.readline()):
                sys.exit(f"{self._script} ended with exit code {process.wait()} before it answered")
            answers.append(json.loads(line))
        return answers

    def step(self) -> float:
        """Seconds of one step of all ranks, which is that of the slowest."""
        return max(float(str(seconds)) for seconds in self.ask())


def _place(rank: int, processes: int, port: int) -> dict[str, str]:
    if processes == 1:
        return {}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {**{k: str(v) for k, v in place.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
