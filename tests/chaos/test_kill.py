"""A run that is interrupted at any moment and started again ends as if it had never been interrupted."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
from pathlib import Path

import pytest
from support.crashing import dying
from support.running import (
    DRAWN,
    TRAIN,
    finish,
    interrupt,
    metrics,
    spawn,
    start,
    story,
    train,
    wait_for_records,
    wait_until,
)

ENDLESS = ["--train.epochs", "100000", "--checkpoint.every", "100000"]


def test_kill_9_at_a_random_step_and_in_a_background_write_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    """With batch statistics; the drill kills runs without them, on one and two processes."""
    words, steps = ["--model.name", "tiny-resnet", "--train.epochs", "1", "--train.batch_size", "30"], 9
    words += ["--checkpoint.every_steps", "2"]
    (whole,) = train(str(tiny), *words, "--run.name", "whole")
    assert whole.returncode == 0, whole.stderr

    seed = int.from_bytes(os.urandom(4), "big")
    draw = random.Random(seed)
    after, moment = draw.randint(1, steps - 3), draw.randint(1, 25)
    print(f"killed after {after} records, then in write {moment}")  # shown when the test fails
    killed = tmp_path / "runs" / "killed"
    again_words = [str(tiny), *words, "--run.name", "killed"]
    assert interrupt(again_words, killed, after, 1, signal.SIGKILL) == [-signal.SIGKILL]
    writing = dying({0: moment}, tmp_path / "writes", thread="checkpoint")
    assert [done.returncode for done in spawn([TRAIN, *again_words], 1, writing)] == [-signal.SIGKILL]
    assert not (killed / "final").exists(), "it ended before it could be killed"
    (again,) = train(*again_words)
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
    words = [str(tiny), *ENDLESS, "--checkpoint.background", "false"]  # or a newer one, still without its name, is used
    assert interrupt(words, run, 40, 1, signal.SIGKILL) == [-signal.SIGKILL]
    newest = max((run / "checkpoints").glob("step-*"))
    weights, aside = newest / "weights.safetensors", newest.with_name(f"{newest.name}.damaged")
    weights.write_bytes(weights.read_bytes()[:-7])
    running = start([TRAIN, *words])
    wait_until(aside.exists, running)
    running[0].send_signal(signal.SIGTERM)
    (done,) = finish(running)
    assert done.returncode == 75, done.stderr
    said = done.stdout + done.stderr
    assert f"checkpoint {newest.name} was set aside as {newest.name}.damaged: weights.safetensors has" in said
    assert (aside / "COMPLETE.json").is_file(), "it can still be inspected"
    assert [record["step"] for record in metrics(run)] == list(range(1, len(metrics(run)) + 1))


def test_a_finished_run_has_its_result_everywhere_and_stays_as_it_is(tiny: Path, tmp_path: Path) -> None:
    words = [TRAIN, str(tiny), "--train.epochs", "1"]
    (done,) = spawn(words, env=DRAWN)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    before = content(run)
    assert {"report.html", "figures/loss.png", "figures/accuracy.png", "figures/lr.png"} <= before.keys()
    (summary,) = (json.loads(path.read_text()) for path in run.glob("evaluations/*/summary.json"))
    (record,) = metrics(run, "test")
    assert (record["accuracy"], record["samples"]) == (summary["accuracy"], summary["samples"])
    with (run / "metrics.csv").open(newline="") as rows:
        assert [float(row["test_accuracy"]) for row in csv.DictReader(rows)] == [summary["accuracy"]]
    index = (run.parent / "index.html").read_text()
    assert f"<td>{100 * summary['accuracy']:.2f}</td>" in index
    assert 'href="tiny/report.html"' in index

    again = spawn(words, 2)
    assert [(d.returncode, "is finished already; another --run.name starts" in d.stdout) for d in again] == [
        (0, True),
        (0, False),
    ]
    assert content(run) == before
    (other,) = spawn([*words, "--optim.lr", "0.5"])
    assert other.returncode == 2
    assert "was started with optim.lr = 0.1" in other.stderr
    assert content(run) == before


def test_an_interrupted_run_has_a_report_and_a_killed_one_gets_it_from_runs(tiny: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    stopped, killed = runs / "stopped", runs / "killed"
    words = [str(tiny), *ENDLESS, "--run.name"]
    assert interrupt([*words, "stopped"], stopped, 20, 1, signal.SIGTERM, drawn=True) == [75]
    assert "interrupted" in (stopped / "report.html").read_text()
    assert 'href="stopped/report.html"' in (runs / "index.html").read_text()
    assert interrupt([*words, "killed"], killed, 20, 1, signal.SIGKILL) == [-signal.SIGKILL]
    assert not (killed / "report.html").exists()
    (listed,) = spawn(["-m", "cifar_dist", "runs", "list", str(runs)], env=DRAWN)
    assert listed.returncode == 0, listed.stderr
    assert (killed / "report.html").is_file()
    assert 'href="killed/report.html"' in (runs / "index.html").read_text()
    report = (killed / "report.html").stat().st_mtime_ns
    spawn(["-m", "cifar_dist", "runs", "list", str(runs)], env=DRAWN)
    assert (killed / "report.html").stat().st_mtime_ns == report, "nothing has happened since"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
