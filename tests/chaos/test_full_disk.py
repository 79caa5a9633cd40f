"""A disk that fills up during a run: a limit on the size of its files, which the kernel enforces at every write."""

from __future__ import annotations

import re
import resource
import signal
from pathlib import Path

import psutil
import pytest
from support.running import TRAIN, finish, metrics, pausing, start, wait_for_pause, wait_until

ENDLESS = ["--train.epochs", "100000", "--checkpoint.every", "100000"]
SAVED = Path("checkpoints") / "step-00000010"  # the last checkpoint before the disk is full
FULL = 4000  # bytes: more than two dozen records, and less than the weights


def fill(process: psutil.Process) -> None:
    process.rlimit(resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))


def empty(process: psutil.Process) -> None:
    process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize("processes", [1, 2])
def test_training_continues_on_a_full_disk_and_saves_when_there_is_room(
    tiny: Path, tmp_path: Path, processes: int
) -> None:
    run = tmp_path / "runs" / "tiny"
    log = run / "training.log"
    running = start([TRAIN, str(tiny), *ENDLESS], processes, pausing(12, tmp_path / "paused", run / SAVED))
    try:
        paused = wait_for_pause(tmp_path / "paused", running)
        fill(paused)
        paused.send_signal(signal.SIGCONT)
        wait_until(lambda: "the checkpoint of step 13 could not be saved" in log.read_text(), running)
        wait_until(lambda: (run / "metrics.jsonl").stat().st_size > FULL - 200, running)
        empty(paused)
        wait_until(lambda: (run / "checkpoints" / "latest").resolve().name > SAVED.name, running)
        for process in running:
            process.send_signal(signal.SIGTERM)
    finally:
        done = finish(running)
    assert [one.returncode for one in done] == [75] * processes, done[0].stderr
    assert "could not be saved: " in done[0].stdout
    assert "File too large; training continues, and saves again after step 1" in done[0].stdout
    assert "Traceback" not in done[0].stdout + done[0].stderr
    steps = [record["step"] for record in metrics(run)]
    assert steps == list(range(1, len(steps) + 1)), "those that could not be written are not lost"
    assert (run / "checkpoints" / "latest").resolve().name == f"step-{steps[-1]:08d}"
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--checkpoint.on_error", "stop"], "checkpoints/step-00000013"),
        (["--train.epochs", "2", "--checkpoint.every_steps", "0"], "checkpoints/step-00000026"),
    ],
    ids=["policy", "the last save"],
)
def test_a_full_disk_that_ends_a_run_is_one_line_for_all_ranks(
    tiny: Path, tmp_path: Path, words: list[str], what: str
) -> None:
    run = tmp_path / "runs" / "tiny"
    saved = run / SAVED if "--checkpoint.every_steps" not in words else None
    running = start([TRAIN, str(tiny), *words], 2, pausing(14, tmp_path / "paused", saved))
    try:
        paused = wait_for_pause(tmp_path / "paused", running)
        fill(paused)
        paused.send_signal(signal.SIGCONT)
    finally:
        done = finish(running)
    assert [one.returncode for one in done] == [1, 1]
    at = rf"{run}/({what}|metrics.jsonl)"  # whichever is written first
    assert re.fullmatch(rf"cifar-dist: {at}: File too large\n", done[0].stderr), done[0].stderr
    assert done[1].stderr == ""
    end = r"step-00000010 is saved; resume with:\n  \S.*\n" if saved else r"no checkpoint was saved\n"
    assert re.search(rf"failed after step \d+ of 26: {at}: File too large\n(warning: .*\n)*{end}$", done[0].stdout)
