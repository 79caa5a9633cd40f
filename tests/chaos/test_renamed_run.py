"""A run folder that is renamed or deleted while its run is training."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.running import TRAIN, finish, metrics, pausing, spawn, start, story, wait_for_pause

from cifar_dist.tracking import timeline

SAVED = Path("checkpoints") / "step-00000010"


def change_while_training(
    tiny: Path, tmp_path: Path, processes: int, change: Callable[[Path], object], *words: str
) -> tuple[int, str]:
    """Train 12 of 26 steps, call ``change`` with the run folder, and train on; return exit code and output."""
    run = tmp_path / "runs" / "tiny"
    saved = None if "--checkpoint.every_steps" in words else run / SAVED
    running = start([TRAIN, str(tiny), *words], processes, pausing(12, tmp_path / "paused", saved))
    try:
        paused = wait_for_pause(tmp_path / "paused", running)
        change(run)
        paused.send_signal(signal.SIGCONT)
    finally:
        done = finish(running)
    output = done[0].stdout + done[0].stderr
    assert "Traceback" not in output
    assert [one.returncode for one in done[1:]] == [done[0].returncode] * (processes - 1), output
    return done[0].returncode, output


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("processes", "target", "words"),
    [
        (1, "runs/other", []),
        (2, "runs/other", ["--checkpoint.sharded", "yes", "--checkpoint.background", "false"]),
        (1, "archive/tiny", ["--checkpoint.every_steps", "0"]),  # the first save is that of the epoch
    ],
)
def test_a_run_continues_in_its_renamed_folder(
    tiny: Path, tmp_path: Path, processes: int, target: str, words: list[str]
) -> None:
    moved = tmp_path / target
    moved.parent.mkdir(exist_ok=True)
    code, output = change_while_training(tiny, tmp_path, processes, lambda run: run.rename(moved), *words)
    assert code == 0, output
    run = tmp_path / "runs" / "tiny"
    assert f"warning: {run} was renamed to {moved}, where this run continues through a link" in output
    assert output.count("was renamed") == 1
    assert run.readlink() == moved
    assert [record["step"] for record in metrics(moved)] == list(range(1, 27))
    assert {path.name for path in (moved / "checkpoints").iterdir()} >= {"step-00000026", "latest"}
    assert (moved / "final" / "model.safetensors").is_file()


def test_a_renamed_run_does_not_write_to_another_one_that_has_its_name(tiny: Path, tmp_path: Path) -> None:
    moved = tmp_path / "runs" / "first"
    second: dict[str, bytes] = {}

    def rename_and_train_another(run: Path) -> None:
        run.rename(moved)
        another = spawn([TRAIN, str(tiny), "--run.seed", "1"])[0]
        assert another.returncode == 0, another.stderr
        second.update(all_files(run))

    code, output = change_while_training(tiny, tmp_path, 2, rename_and_train_another)
    run = tmp_path / "runs" / "tiny"
    assert code == 1
    assert (
        f"{run} was renamed to {moved} while the run was training, and its old name is taken; resume it with" in output
    )
    assert all_files(run) == second
    (resumed,) = spawn(["-m", "cifar_dist", "resume", str(moved)])
    assert resumed.returncode == 0, resumed.stderr
    assert [record["step"] for record in metrics(moved)] == list(range(1, 27))
    assert all_files(run) == second


def test_a_deleted_run_ends(tiny: Path, tmp_path: Path) -> None:
    code, output = change_while_training(tiny, tmp_path, 2, shutil.rmtree)
    run = tmp_path / "runs" / "tiny"
    assert code == 1
    assert f"{run} was deleted while the run was training" in output
    assert not run.exists()


def test_a_run_whose_lock_is_deleted_continues(tiny: Path, tmp_path: Path) -> None:
    code, output = change_while_training(tiny, tmp_path, 1, lambda run: (run / ".lock").unlink())
    assert code == 0, output
    run = tmp_path / "runs" / "tiny"
    assert story(run)[-1]["step"] == 26
    assert [event.kind for event in timeline.read(run / "timeline.jsonl")] == ["started", "finished"]
