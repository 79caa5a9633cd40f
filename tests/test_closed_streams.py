"""A process whose standard streams were closed at the start, as daemons and cron jobs start one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.running import environment

PROGRAM = "from cifar_dist.process_exit import exit_with; import os, sys; exit_with(lambda: {work})"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("work", "code"),
    [("print('said') or 0", 0), ("print('said', file=sys.stderr) or 75", 75), ("int('no number')", 1)],
)
def test_the_exit_code_is_that_of_the_work(closed: str, work: str, code: int) -> None:
    command = f'exec "$0" -c "$1" {closed}'
    words = ["bash", "-c", command, sys.executable, PROGRAM.format(work=work)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == code
    assert "AttributeError" not in done.stderr


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    path = tmp_path / "file"
    work = f"(file := open({str(path)!r}, 'w')) and (os.write(1, b'output') and file.write('content') and 0)"
    words = ["bash", "-c", 'exec "$0" -c "$1" >&-', sys.executable, PROGRAM.format(work=f"{work} or file.close() or 0")]
    assert subprocess.run(words, env=environment(), capture_output=True, timeout=300).returncode == 0
    assert path.read_text() == "content"
