"""A run that is interrupted at any moment and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from support.running import TRAIN, finish, interrupt, metrics, start, story, train, wait_for_records, wait_until

ENDLESS = ["--train.epochs", "100000", "--checkpoint.every", "100000"]


@pytest.mark.parametrize(
    ("processes", "words", "steps"),
    [
        (2, ["--model.name", "tiny-cnn", "--train.epochs", "6", "--checkpoint.every", "3"], 78),
        (1, ["--model.name", "tiny-resnet", "--train.epochs", "1", "--train.batch_size", "150"], 9),
    ],
    ids=["two-processes", "batch-norm"],
)
def test_kill_9_at_a_random_step_changes_nothing(
    tiny: Path, tmp_path: Path, processes: int, words: list[str], steps: int
) -> None:
    (whole, *_) = train(str(tiny), *words, "--run.name", "whole", processes=processes)
    assert whole.returncode == 0, whole.stderr

    seed = int.from_bytes(os.urandom(4), "big")
    after = random.Random(seed).randint(1, steps - 3)
    print(f"killed after {after} records")  # shown when the test fails
    killed = tmp_path / "runs" / "killed"
    again_words = [str(tiny), *words, "--run.name", "killed"]
    assert interrupt(again_words, killed, after, processes, signal.SIGKILL) == [-signal.SIGKILL] * processes
    assert not (killed / "final").exists(), "it ended before it could be killed"
    (again, *_) = train(*again_words, processes=processes)
    assert again.returncode == 0, again.stderr

    weights = [(tmp_path / "runs" / name / "final" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert [record["step"] for record in metrics(killed)] == list(range(1, steps + 1))
    assert story(killed) == story(tmp_path / "runs" / "whole")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_request_to_stop_saves_and_asks_to_be_run_again(tiny: Path, tmp_path: Path, how: signal.Signals) -> None:
    run = tmp_path / "runs" / "tiny"
    assert interrupt([str(tiny), *ENDLESS], run, 20, 1, how) == [75]
    newest = (run / "checkpoints" / "latest").resolve()
    steps = [record["step"] for record in metrics(run)]
    assert newest.name == f"step-{steps[-1]:08d}", "it stopped after a step and saved that one"
    assert steps == list(range(1, len(steps) + 1))
    assert not (run / "final").exists()


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    running = start([TRAIN, str(tiny), *ENDLESS], 2)
    wait_for_records(run, 20, running)
    running[1].send_signal(signal.SIGUSR1)
    assert [done.returncode for done in finish(running)] == [75, 75]
    assert (run / "checkpoints" / "latest").resolve().name == f"step-{len(metrics(run)):08d}"


def test_a_rank_that_dies_ends_the_job_and_loses_nothing(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    running = start([TRAIN, str(tiny), *ENDLESS], 2)
    wait_for_records(run, 20, running)
    running[1].kill()
    codes = [done.returncode for done in finish(running)]
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, 75)
    assert any((run / "checkpoints").glob("step-*/COMPLETE.json"))


def test_a_half_written_checkpoint_is_set_aside_and_the_previous_one_is_used(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    assert interrupt([str(tiny), *ENDLESS], run, 40, 1, signal.SIGKILL) == [-signal.SIGKILL]
    newest = max((run / "checkpoints").glob("step-*"))
    weights, aside = newest / "weights.safetensors", newest.with_name(f"{newest.name}.damaged")
    weights.write_bytes(weights.read_bytes()[:-7])
    running = start([TRAIN, str(tiny), *ENDLESS])
    wait_until(aside.exists, running)
    running[0].send_signal(signal.SIGTERM)
    (done,) = finish(running)
    assert done.returncode == 75, done.stderr
    said = done.stdout + done.stderr
    assert f"checkpoint {newest.name} was set aside as {newest.name}.damaged: weights.safetensors has" in said
    assert (aside / "COMPLETE.json").is_file(), "it can still be inspected"
    assert [record["step"] for record in metrics(run)] == list(range(1, len(metrics(run)) + 1))
