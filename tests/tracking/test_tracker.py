from __future__ import annotations

import csv
import errno
import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support.recorded import FACTS, train, val
from support.running import ROOT, spawn

from cifar_dist.config import Config
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.table import EpochTable
from cifar_dist.tracking.timeline import Status
from cifar_dist.tracking.tracker import AnyTracker, SilentTracker, Tracker
from cifar_dist.tracking.usage import Usage


def start(folder: Path, step: int = 0, evaluated: int | None = None) -> Tracker:
    return Tracker(RunFolder(folder), Config(), facts=FACTS, resume_step=step, resume_epoch=evaluated)


def whole_run(tracker: AnyTracker, first: int = 1) -> None:
    for step in range(first, 7):
        tracker.train_steps([train(step)])
        if step % 3 == 0:
            tracker.evaluation(val(step // 3 - 1), best=step == 3)
    tracker.evaluation(Record(6, 1, "test", 0.4, 0.875, 16, 0.5), best=False)
    tracker.finish("finished")


def events(folder: Path) -> list[tuple[str, int]]:
    return [(event.kind, event.step) for event in timeline.read(folder / "timeline.jsonl")]


def steps(folder: Path, split: str = "train") -> list[int]:
    return [record.step for record in metrics.read(folder / "metrics.jsonl") if record.split == split]


def csv_agrees(folder: Path) -> bool:
    written = (folder / "metrics.csv").read_bytes()
    again = folder / "again.csv"
    EpochTable(metrics.read(folder / "metrics.jsonl")).write(again)
    same = again.read_bytes() == written
    again.unlink()
    return same


def test_a_run_records_its_complete_history(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = start(tmp_path)
    tracker.sync()
    tracker.checkpoint(3, tmp_path / "checkpoints" / "step-00000003")
    whole_run(tracker)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert (steps(tmp_path, "val"), steps(tmp_path, "test")) == ([3, 6], [6])
    assert csv_agrees(tmp_path)
    assert events(tmp_path) == [("started", 0), ("finished", 6)]
    assert timeline.read(tmp_path / "timeline.jsonl")[0].processes == 2
    assert json.loads((tmp_path / "environment.json").read_text())["run"]["model"] == "tiny-cnn"
    said = capfd.readouterr().out
    assert "1/2" in said
    assert said.rstrip().endswith("finished after step 6 of 6")
    log = (tmp_path / "training.log").read_text()
    assert "checkpoint of step 3" in log
    assert all(line in log for line in said.splitlines())
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.jsonl",
        ".metrics.jsonl.sha256",
        "metrics.csv",
        "training.log",
        "timeline.jsonl",
        "environment.json",
    }, "and nothing temporary"


def test_without_validation_the_last_epoch_precedes_the_result(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.train_steps([train(step) for step in range(1, 7)])
    with tracker.evaluating("test", 10):
        tracker.say("test: accuracy")
    tracker.evaluation(Record(6, 1, "test", 0.4, 0.875, 16, 0.5), best=False)
    tracker.finish("finished")
    log = (tmp_path / "training.log").read_text()
    assert 0 < log.index(" 1/2 ") < log.index(" 2/2 ") < log.index("test: accuracy"), log
    assert log.count(" 2/2 ") == 1


def test_the_time_of_a_run_has_evaluations_without_a_record(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = start(tmp_path)
    tracker.evaluation(replace(val(1), usage=Usage(2.0, {"forward": 1.0}, 10**9)), best=True)
    tracker.evaluation_without_record("val", Usage(8.0, {"evaluation": 1.0}, 2 * 10**9))
    tracker.finish("finished")
    assert "time: evaluation 80 %, forward 20 %; 2 GB of memory at most" in capfd.readouterr().out
    note = "time of the evaluation on val: evaluation 100 %; 2 GB of memory at most"
    assert note in (tmp_path / "training.log").read_text()
    assert len(metrics.read(tmp_path / "metrics.jsonl")) == 1


def test_the_csv_agrees_at_every_end_of_an_epoch(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.train_steps([train(1), train(2)])
    tracker.train_steps([train(3), train(4)])  # epoch 0 had no evaluation
    assert csv_agrees(tmp_path)
    tracker.train_steps([train(5), train(6)])
    tracker.evaluation(val(1), best=True)
    assert csv_agrees(tmp_path)
    tracker.finish("finished")
    assert csv_agrees(tmp_path)


def test_a_requested_stop_and_its_resume_are_recorded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = start(tmp_path)
    tracker.train_steps([train(1), train(2), train(3)])
    tracker.evaluation(val(0), best=True)
    tracker.train_steps([train(4)])
    tracker.finish("interrupted", "SIGUSR1")
    assert csv_agrees(tmp_path), "in the middle of an epoch too"
    assert "interrupted after step 4 of 6: SIGUSR1" in capfd.readouterr().out

    whole_run(start(tmp_path, 4, 1), first=5)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert events(tmp_path) == [("started", 0), ("interrupted", 4), ("resumed", 4), ("finished", 6)]
    assert [event.note for event in timeline.read(tmp_path / "timeline.jsonl")] == ["", "SIGUSR1", "", ""]
    assert "killed" not in (tmp_path / "training.log").read_text()


def test_a_killed_process_is_recorded_on_resume_and_its_steps_are_repeated(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        sys.path[:0] = sys.argv[2:]
        from test_tracker import start, train, val
        tracker = start(Path(sys.argv[1]))
        tracker.train_steps([train(1), train(2), train(3)])
        tracker.evaluation(val(0), best=True)
        tracker.train_steps([train(4), train(5)])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    (killed,) = spawn(["-c", code, str(tmp_path), str(ROOT / "tests"), str(ROOT / "tests" / "tracking")])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(train(6).to_line()[:20])

    tracker = start(tmp_path, 4, 1)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert csv_agrees(tmp_path), "repeated steps are removed from the CSV too"
    whole_run(tracker, first=5)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert csv_agrees(tmp_path)
    assert events(tmp_path) == [("started", 0), ("killed", 5), ("resumed", 4), ("finished", 6)]
    note, resumed = timeline.read(tmp_path / "timeline.jsonl")[1:3]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", note.time)
    assert resumed.note == "1 step is repeated"
    log = (tmp_path / "training.log").read_text()
    assert "the last process was killed after step 5, at about" in log
    assert "resumed before the end of the metrics: 1 step is repeated" in log


def test_an_evaluation_killed_before_its_checkpoint_is_recorded_once(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.train_steps([train(1), train(2), train(3)])
    tracker.evaluation(val(0), best=True)
    again = start(tmp_path, 3, evaluated=0)
    again.evaluation(val(0), best=True)
    again.finish("interrupted")
    assert steps(tmp_path, "val") == [3]
    assert csv_agrees(tmp_path)


def test_a_start_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.train_steps([train(1), train(2)])
    whole_run(start(tmp_path))
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert events(tmp_path) == [("started", 0), ("killed", 2), ("started", 0), ("finished", 6)]


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_an_end_before_the_first_step_is_recorded(tmp_path: Path, status: Status) -> None:
    start(tmp_path).finish(status, "a reason\nof \x1b[2J two lines")
    assert events(tmp_path) == [("started", 0), (status, 0)]
    log = (tmp_path / "training.log").read_text()
    assert f"{status} after step 0 of 6: a reason" in log
    assert "\x1b" not in log


def test_steps_that_do_not_follow_are_a_bug_of_the_caller(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.train_steps([])
    tracker.train_steps([train(1), train(2)])
    with pytest.raises(AssertionError, match="after 2 came"):
        tracker.train_steps([train(2)])
    with pytest.raises(AssertionError, match="after 2 came"):
        tracker.train_steps([train(4)])
    tracker.finish("failed")
    assert steps(tmp_path) == [1, 2], "nothing wrong was written"


def test_damaged_metrics_are_one_line_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(train(1).to_line() + b"\x00\n" + train(2).to_line())
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 2 is not a metrics record"):
        start(tmp_path, 2)
    assert path.read_bytes() == before


def test_a_damaged_csv_or_timeline_does_not_prevent_a_resume(tmp_path: Path) -> None:
    start(tmp_path).finish("interrupted")
    (tmp_path / "metrics.csv").write_text("garbage")
    with (tmp_path / "timeline.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"kind": "eaten", "step": 1, "time": ""}\n{"kind": "sta')
    whole_run(start(tmp_path))
    assert events(tmp_path) == [("started", 0), ("interrupted", 0), ("started", 0), ("finished", 6)]
    with (tmp_path / "metrics.csv").open(newline="") as rows:
        assert [row["step"] for row in csv.DictReader(rows)] == ["3", "6"]


def test_a_csv_that_takes_long_to_write_is_written_less_often_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_dist.tracking.tracker._SHORT", 0)
    monkeypatch.setattr("cifar_dist.tracking.tracker._REST", 1e9)
    tracker = start(tmp_path)
    tracker.train_steps([train(step) for step in (1, 2, 3)])
    tracker.evaluation(val(0), best=True)
    tracker.train_steps([train(step) for step in (4, 5, 6)])
    tracker.evaluation(val(1), best=False)
    assert not csv_agrees(tmp_path)
    tracker.finish("interrupted")
    assert csv_agrees(tmp_path)


def public(kind: type) -> set[str]:
    """Return what a class itself defines, without what it inherits."""
    return {name for name in vars(kind) if not name.startswith("_")}


def test_the_tracker_overrides_every_method_and_the_silent_one_none() -> None:
    assert public(Tracker) == public(AnyTracker)
    assert public(SilentTracker) == set()


def test_the_silent_tracker_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = SilentTracker()
    tracker.say("nothing")
    tracker.warn("nothing")
    tracker.sync()
    tracker.checkpoint(3, tmp_path / "c")
    whole_run(tracker)
    assert (capfd.readouterr(), list(tmp_path.iterdir())) == (("", ""), [])


# ---- files that cannot be written ---------------------------------------------------------------------------------


def break_files(folder: Path) -> None:
    """Simulate a failing disk: none of the files that a run writes at its end can be replaced or opened."""
    for name in ("metrics.csv", "timeline.jsonl"):
        (folder / name).unlink()
        (folder / name).mkdir()


def test_recording_a_failed_run_survives_the_same_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = start(tmp_path)
    tracker.train_steps([train(1)])
    break_files(tmp_path)
    tracker.finish("failed", "the disk is full")
    said = capfd.readouterr().out
    assert "failed after step 1 of 6: the disk is full" in said
    assert f"warning: {tmp_path}/metrics.csv: Is a directory" in said
    assert f"warning: {tmp_path}/timeline.jsonl: Is a directory" in said


@pytest.mark.parametrize("restarts", ["0", "3"])
@pytest.mark.parametrize("saved", ["step-00000004", ""])
def test_a_run_that_failed_says_what_is_saved_and_how_to_resume_unless_its_launcher_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, saved: str, restarts: str
) -> None:
    monkeypatch.setenv("CIFAR_DIST_COMMAND", "cifar-dist launch cpu")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    if saved:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "latest").symlink_to(saved)
    start(tmp_path).finish("failed", "a rank was lost", is_resumable=True)
    said = capfd.readouterr().out.partition(": a rank was lost\n")[2]
    if not saved:
        assert said == "no checkpoint was saved\n"
    elif restarts == "0":
        assert said == f"{saved} is saved; resume with:\n  cifar-dist launch cpu resume {tmp_path}\n"
    else:
        assert said == f"{saved} is saved\n"


def test_a_run_that_failed_does_not_say_that_nothing_is_saved_where_it_cannot_look(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    tracker = start(tmp_path)
    monkeypatch.setattr(Path, "is_symlink", fail)
    tracker.finish("failed", "the file server was lost", is_resumable=True)
    said = capfd.readouterr().out.partition(": the file server was lost\n")[2]
    assert said == f"whether a checkpoint was saved is unknown: {tmp_path}/checkpoints/latest: Stale file handle\n"


def test_a_run_that_cannot_record_its_end_has_not_ended_well(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.train_steps([train(1)])
    break_files(tmp_path)
    with pytest.raises(IsADirectoryError) as raised:
        tracker.finish("finished")
    assert raised.value.filename is not None
    assert steps(tmp_path) == [1], "what can be written is"


def test_a_folder_at_the_path_of_the_log_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "training.log").mkdir()
    with pytest.raises(IsADirectoryError, match=r"training\.log"):
        start(tmp_path)
