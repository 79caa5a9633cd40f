"""The processes of a benchmark end with it, however it ends: those that went on would spoil the next timing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.running import PATIENCE, ROOT, environment, wait_until

TERM, KILL = signal.SIGTERM, signal.SIGKILL
RUN_ITEM = """
import os, sys, threading, pathlib
from gpu import processes
words = [sys.executable, "-Sc", "import time; time.sleep(1000)", "item"]
out = pathlib.Path(sys.argv[1])
processes.run(words, cwd=out, env=os.environ, log=out / "log", seconds=900, halt=threading.Event())
"""
TRAIN = """
import sys, peers
peers.train_ours(["demo"], 0, "shards/digits", sys.argv[1], peers.Way("fp32", compiled=False, threads=1))
"""


@pytest.mark.parametrize(
    ("words", "child", "count", "how"),
    [
        (("benchmarks/two_processes.py", "--recipe", "demo"), "demo", 3, TERM),
        (("benchmarks/two_processes.py", "--recipe", "demo"), "demo", 3, KILL),
        (("benchmarks/memory.py",), "peer", 1, TERM),
        (("benchmarks/neighbour.py",), "peer", 1, TERM),
        (("-c", RUN_ITEM), "item", 1, KILL),
        (("-c", TRAIN), "launch", 1, TERM),
    ],
    ids=["workers-TERM", "workers-KILL", "memory", "neighbour", "gpu", "trainings"],
)
def test_no_process_of_a_benchmark_outlives_it(
    tmp_path: Path, words: tuple[str, ...], child: str, count: int, how: signal.Signals
) -> None:
    """The processes are stopped before it ends, so that none ends because its work or its input does."""
    path = os.pathsep.join([f"{ROOT}/benchmarks", environment()["PYTHONPATH"]])
    command = [sys.executable, *words, str(tmp_path)] if words[0] == "-c" else [sys.executable, *words]
    env = environment({"PYTHONPATH": path})
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as benchmark:
        parent = psutil.Process(benchmark.pid)
        children: list[psutil.Process] = []

        def have_started() -> bool:
            own = parent.cmdline()  # also of a child that has not begun its program, nor asked for the signal
            children.clear()
            for one in parent.children():
                with contextlib.suppress(psutil.Error):  # of one that has ended
                    if child in (command := one.cmdline()) and command != own:
                        children.append(one)
            return len(children) == count

        wait_until(have_started, [benchmark])
        for one in children:
            one.suspend()
        benchmark.send_signal(how)
        benchmark.wait()
        _, left = psutil.wait_procs(children, timeout=PATIENCE)
        for one in left:
            one.kill()
    assert not left
