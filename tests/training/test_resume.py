"""Runs that are resumed from their folder alone: what is missing or damaged there, and what cannot be resumed."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.continued_runs import STEPS, Place, tree

from cifar_dist import checkpoint
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics, timeline


def test_a_finished_run_with_damaged_results_is_repaired(place: Place) -> None:
    run = shutil.copytree(place.whole, place.runs / "damaged", symlinks=True)
    final = RunFolder(run).final
    final.write_bytes(final.read_bytes()[:-1])
    repaired = place.run("resume", str(run))
    assert repaired.code == 0, repaired.said
    assert f"{final.parent} is damaged (model.safetensors) and is written again" in repaired.said
    place.assert_is_whole(run)


def test_what_a_kill_left_of_the_last_results_is_deleted_and_they_are_written(place: Place) -> None:
    run = shutil.copytree(place.whole, place.runs / "left", symlinks=True)
    table = RunFolder(run).metrics_csv
    whole, left = table.read_bytes(), run / f".{table.name}.{2**22}.tmp"  # no process has that number
    table.write_bytes(whole[:-9])
    left.touch()
    assert place.run("resume", str(run)).code == 0
    assert not left.exists()
    found, wanted = ([row.split(b",")[:11] for row in rows.splitlines()] for rows in (table.read_bytes(), whole))
    assert found == wanted, "but for what the last epoch took"
    place.assert_is_whole(run)


@pytest.mark.parametrize("noted", [False, True], ids=["killed", "stopped when no rank was running"])
def test_a_run_killed_before_it_recorded_its_end_records_it(place: Place, noted: bool) -> None:
    run = RunFolder(shutil.copytree(place.runs / "stopped", place.runs / f"without-end-{noted}", symlinks=True))
    begun, _ = timeline.read(run.timeline)
    run.timeline.unlink()
    interrupted = timeline.Event(timeline.utc(), "interrupted", 5)
    for event in [begun, interrupted][: 1 + noted]:
        timeline.append(run.timeline, event)
    recorded, table = run.metrics.read_bytes(), run.metrics_csv.read_bytes()
    run.metrics_csv.write_bytes(table[:-9])
    ended = place.run("resume", str(run.path))
    assert ended.code == 0, ended.said
    assert run.metrics.read_bytes() == recorded
    assert run.metrics_csv.read_bytes() == table
    found = [(event.kind, event.note) for event in timeline.read(run.timeline)][1:]
    assert [kind for kind, _ in found] == ["interrupted" if noted else "killed", "resumed", "finished"]
    assert found[-1] == ("finished", "train.max_steps")
    again = tree(run.path)
    assert "is finished already" in place.run("resume", str(run.path)).said
    assert tree(run.path) == again


def test_a_finished_run_keeps_its_final_result_when_its_metrics_are_repaired(place: Place) -> None:
    run = shutil.copytree(place.whole, place.runs / "without-a-step", symlinks=True)
    file = RunFolder(run).metrics
    (result,) = [record for record in metrics.read(file) if record.split == "test"]
    assert (result.step, result.epoch) == (4 * STEPS, 3)
    assert result.usage
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4] + lines[5:]))
    repaired = place.run("resume", str(run))
    assert repaired.code == 0, repaired.said
    assert "has lost the record of step" in repaired.said
    assert [record for record in metrics.read(file) if record.split == "test"] == [result]


@pytest.mark.parametrize(
    ("epochs", "says"),
    [
        ([1], "the evaluation after epoch 2, not "),
        ([0, 2], "2 evaluations after epochs 1 to 3, "),
        ([3], "a record;"),
    ],
)
def test_lost_evaluations_are_reported(place: Place, epochs: list[int], says: str) -> None:
    run = shutil.copytree(place.whole, place.runs / f"unmeasured-{epochs[0]}", symlinks=True)
    file = RunFolder(run).metrics
    kept = [record for record in metrics.read(file) if record.split != "val" or record.epoch not in epochs]
    file.write_bytes(b"".join(record.to_line() for record in kept))
    resumed = place.run("resume", str(run))
    assert resumed.code == 0, resumed.said
    assert f"warning: {file} has lost {says}" in resumed.said
    evaluated = [record.epoch for record in metrics.evaluations(file)]
    assert evaluated == [epoch for epoch in range(4) if epoch not in epochs or epoch == 3], "the last is repeated"
    assert "has lost" not in place.run("resume", str(run)).said


def test_only_evaluations_that_were_due_are_lost(place: Place) -> None:
    run = place.runs / "every-second"
    done = place.train(run.name, "--eval.every", "2")
    assert (done.code, " lost" in done.said) == (0, False), "a new run has lost nothing"
    file = RunFolder(run).metrics
    kept = [record for record in metrics.read(file) if (record.split, record.epoch) != ("val", 1)]
    file.write_bytes(b"".join(record.to_line() for record in kept))
    assert "has lost the evaluation after epoch 2, not " in place.run("resume", str(run)).said


def test_a_finished_run_is_not_one_on_other_data_in_the_place_of_its_own(
    place: Place, digits: Path, all_digits: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    words = ["finished", "--data.path", str(data), "--train.max_steps", "2"]
    shutil.copytree(digits, data)
    assert [place.train(*words).code for _ in range(2)] == [0, 0]
    shutil.rmtree(data)
    shutil.copytree(all_digits, data)
    refused = place.train(*words)
    assert (refused.code, f"was started on other data than {data} now has" in refused.said) == (2, True), refused.said


@pytest.mark.parametrize(("name", "words"), [("emptied", []), ("emptied-branch", ["--run.from", "whole@8"])])
def test_a_run_killed_in_its_first_process_does_not_begin_anew_without_its_checkpoints(
    place: Place, name: str, words: list[str]
) -> None:
    assert place.train(name, *words, die_at=22).code == -9
    run = place.runs / name
    assert checkpoint.listing(run / "checkpoints")
    shutil.rmtree(run / "checkpoints")
    before = tree(run)
    for _ in range(2):
        refused = place.train(name, *words)
        assert (refused.code, refused.said.count("\n")) == (2, 1), refused.said
        assert f"(all were deleted); restore one, or start this run over: rm -r {run}\n" in refused.said
        assert tree(run) == before


@pytest.mark.parametrize(
    ("run", "words", "says"),
    [
        ("stopped", ["--train.max_steps", "4"], "after 5 steps, and train.max_steps 5 -> 4 asks for 4; ask for more"),
        ("stopped", ["--train.max_steps", "99"], "than the 9 steps of train.epochs 3; use --train.max_steps 0, or"),
        ("stopped", ["--run.name", "it"], "drop --run.name"),
        ("nowhere", [], "run 'nowhere' does not exist"),
    ],
)
def test_runs_that_cannot_be_continued_are_one_line(place: Place, run: str, words: list[str], says: str) -> None:
    before = tree(place.runs / "stopped")
    refused = place.run("resume", str(place.runs / run) if run == "stopped" else run, *words)
    assert (refused.code, refused.said.count("\n")) == (2, 1)
    assert says in refused.said
    assert tree(place.runs / "stopped") == before


def test_a_resume_says_that_the_precision_has_changed(place: Place) -> None:
    """Which ``auto`` may choose on another machine; here it is the record that is another machine's."""
    run = shutil.copytree(place.runs / "stopped", place.runs / "elsewhere", symlinks=True)
    record = RunFolder(run).timeline
    record.write_text(record.read_text().replace('"fp32"', '"bf16"'))
    longer = place.run("resume", str(run), "--train.epochs", "4", "--train.max_steps", "0")
    assert longer.code == 0, longer.said
    assert "the 5 steps done were computed in bf16; it continues in fp32" in longer.said
    assert "it continues in" not in place.run("resume", str(run)).said


def test_a_resume_keeps_in_what_the_steps_before_it_were_computed(place: Place) -> None:
    """The record of another machine and of other code, which the resume replaces."""
    run = shutil.copytree(place.runs / "stopped", place.runs / "other-code", symlinks=True)
    record = RunFolder(run).timeline
    begun, ended = timeline.read(record)
    here = begun.numerics["torch"]
    there = begun.numerics | {"torch": "1.0.0", "commit": "1111111111-dirty", "cpu": "Intel 8088"}
    record.unlink()
    for event in (replace(begun, numerics=there), ended):
        timeline.append(record, event)
    longer = place.run("resume", str(run), "--train.epochs", "4", "--train.max_steps", "0")
    assert longer.code == 0, longer.said
    (line,) = [line for line in longer.said.splitlines() if "changed since" in line]
    assert line.startswith(f"changed since the 5 steps done: torch 1.0.0 -> {here}, ")
    assert "cpu Intel 8088 -> " in line
    assert line in RunFolder(run).log.read_text()
    assert [event.numerics["torch"] for event in timeline.starts(timeline.read(record))] == ["1.0.0", here]
    assert "changed since" not in place.run("resume", str(run)).said


def test_a_process_that_is_killed_before_it_saves_computed_none_of_the_steps_done(place: Place) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / "by-mistake", symlinks=True)
    assert place.run("resume", str(run), "--train.max_steps", "0", die_at="step-00000006").code == -9
    assert checkpoint.listing(run / "checkpoints")[0].name == "step-00000005", "from which it began"
    for record in (RunFolder(run).timeline, RunFolder(run).environment):  # as on another machine
        head, mark, last = record.read_text().rpartition('"resumed"')
        other = last.replace('"processes": 1', '"processes": 2').replace('"threads": 1', '"threads": 3')
        record.write_text(head + mark + other.replace('"fp32"', '"bf16"').replace('"torch": "', '"torch": "1'))
    resumed = place.run("resume", str(run), "--train.max_steps", "0", "--train.threads", "0")
    assert resumed.code == 0, resumed.said
    assert "cpu with 1 thread, " in resumed.said
    assert "steps done" not in resumed.said
    assert [start.processes for start in timeline.starts(timeline.read(RunFolder(run).timeline))] == [1, 2, 1]


def test_a_deleted_plug_in_is_imported_from_the_run_folder(place: Place, tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def net(classes: int, channels: int):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes))\n"
    )
    assert place.train("plugged", "--model.name", f"{net}:net", "--train.max_steps", "2").code == 0
    net.unlink()
    run = place.runs / "plugged"
    resumed = place.run("resume", str(run), "--train.max_steps", "4")
    assert resumed.code == 0, resumed.said
    assert f"{net} does not exist here; using its copy {run}/plugins/net.py" in resumed.said
    shutil.rmtree(run / "plugins")
    refused = place.run("resume", str(run), "--train.max_steps", "0")
    assert (refused.code, f"file {net} does not exist" in refused.said) == (2, True)


def test_a_run_on_a_file_system_without_links_is_resumed_and_branched(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "symlink", fail)
    run, branch = place.runs / "linkless", place.runs / "linkless-branch"
    for done in (
        place.train("linkless", "--train.max_steps", "5"),
        place.run("resume", str(run), "--train.max_steps", "0"),
        place.train(branch.name, "--run.from", "linkless@8"),
    ):
        assert (done.code, done.said.count("has no links best and latest")) == (0, 1), done.said
        assert "could not be saved" not in done.said
    for whole in (run, branch):
        place.assert_is_whole(whole)
        assert not any(path.is_symlink() for path in whole.rglob("*"))
    assert place.run("evaluate", str(run), "--checkpoint", "latest").code == 0


def test_a_run_that_cannot_read_its_data_any_more_says_how_to_resume(place: Place, tmp_path: Path) -> None:
    """The reader has its own message for a shard; the fault of the file server behind it may pass."""
    net = tmp_path / "net.py"
    net.write_text(
        "import errno, itertools, os\n"
        "from torch import nn\n"
        "read, calls = os.pread, itertools.count(1)\n"
        "def pread(*arguments):\n"
        "    if next(calls) > 300:\n"
        "        raise OSError(errno.ESTALE, 'Stale file handle')\n"
        "    return read(*arguments)\n"
        "os.pread = pread\n"
        "def net(classes: int, channels: int):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes))\n"
    )
    failed = place.train("unreadable", "--model.name", f"{net}:net", "--data.resident_mb", "0")
    assert "Stale file handle" in failed.said
    assert f" is saved; resume with:\n  cifar-dist resume {place.runs}/unreadable\n" in failed.said
