"""How a process ends, and in which state of its standard streams it begins."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import PATIENCE, ROOT, TRAIN, environment, metrics, pausing, wait_for_pause


def test_a_run_that_begins_with_closed_streams_trains(tiny: Path, tmp_path: Path) -> None:
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, TRAIN, str(tiny), "--train.epochs", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path / "runs" / "tiny")


def test_a_mistake_without_a_place_to_report_it_keeps_its_exit_code() -> None:
    command = ["bash", "-c", 'exec "$@" 2>&-', "-", sys.executable, TRAIN, "nowhere"]
    assert subprocess.run(command, env=environment(), timeout=PATIENCE).returncode == 2


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_closed_terminal_is_no_failure(tiny: Path, tmp_path: Path, when: str) -> None:
    """Under nohup, say: without a signal, and with an error for each line that is written."""
    ours, terminal = pty.openpty()
    command = [TRAIN, str(tiny), "--train.epochs", "1"] if when == "while" else ["-m", "cifar_dist", "recipes"]
    words = ["sh", "-c", 'trap "" HUP; exec "$@"', "-", sys.executable, *command]
    note = tmp_path / "paused"
    env = environment(pausing(1, note) if when == "while" else {})
    process = subprocess.Popen(words, env=env, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    paused = wait_for_pause(note, [process]) if when == "while" else None
    os.close(ours)
    if paused is not None:
        paused.send_signal(signal.SIGCONT)
    assert process.wait(PATIENCE) == 0
    assert when == "before" or (tmp_path / "runs" / "tiny" / "report.html").is_file()
