"""Ctrl-Z in a command that starts others, and `fg` or `bg` after it."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from support.running import finish, metrics, start, wait_for_records, wait_until

SWEEP = """
recipe = "{recipe}"
[[rows]]
name = "long"
train.epochs = 2000
"""


def below(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


@pytest.mark.parametrize("command", ["launch", "sweep"])
def test_ctrl_z_stops_the_whole_job_and_fg_continues_it(tiny: Path, tmp_path: Path, command: str) -> None:
    sweep = tmp_path / "one.toml"
    sweep.write_text(SWEEP.format(recipe=tiny))
    words, run = {
        "launch": (["launch", "cpu", "--num_processes=2", str(tiny), "--train.epochs", "2000"], "tiny"),
        "sweep": (["sweep", "run", str(sweep)], "one.long.s0"),
    }[command]
    folder = tmp_path / "runs" / run
    running = start(["-m", "cifar_dist", *words])
    try:
        wait_for_records(folder, 5, running)
        job = [psutil.Process(running[0].pid), *below(running[0].pid)]
        assert len(job) > 1
        running[0].send_signal(signal.SIGTSTP)
        wait_until(lambda: all(process.status() == psutil.STATUS_STOPPED for process in job), running)
        assert {process.pid for process in below(running[0].pid)} == {process.pid for process in job[1:]}
        seen = len(metrics(folder))
        running[0].send_signal(signal.SIGCONT)
        wait_for_records(folder, seen + 5, running)
        running[0].send_signal(signal.SIGTERM)
    finally:
        done = finish(running)
    assert done[0].returncode == 75, done[0].stderr
