"""Requests to stop: a file in the run folder, and a limit on wall time."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import forked_ranks
from support.continued_runs import Place, events
from support.running import TRAIN, finish, start, wait_for_records

from cifar_dist import recipe
from cifar_dist.config.saved import read_config
from cifar_dist.distributed import stop_requests
from cifar_dist.distributed.start import start_engine
from cifar_dist.distributed.stop_requests import SHORT_TIME_LIMIT, STOP_FILE, TIME_LIMIT, StopRequests, cause_of
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.distributed.time_limit import JobTime, deadline, job_time
from cifar_dist.errors import UserError
from cifar_dist.exit_codes import GRACE_SECONDS
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.training.trainer import Trainer


def test_a_stop_file_and_a_time_limit_stop_a_run_and_say_so(place: Place, tmp_path: Path) -> None:
    run = shutil.copytree(place.runs / "stopped", tmp_path / "elsewhere" / "renamed", symlinks=True)
    words = ["resume", str(run), "--train.epochs", "4", "--train.max_steps", "0"]
    file = RunFolder(run).stop_file
    file.touch()
    stopped = place.run(*words, env={"SLURM_RESTART_COUNT": "1"})  # requested while the job waited in the queue
    assert stopped.code == 75, stopped.said
    assert f": the STOP file\nresume with:\n  cifar-dist resume {run}\n" in stopped.said
    os.utime(file, (0, 0))
    ended = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "0", "SLURM_JOB_END_TIME": str(int(time.time()))}
    late = place.run("resume", str(run), "--run.max_time", "auto", env=ended)
    assert (late.code, f"removed {file}" in late.said) == (75, True)
    assert [note for kind, _, note in events(run) if kind == "interrupted"] == [
        "the STOP file",
        SHORT_TIME_LIMIT,
    ]
    assert place.run("resume", str(run), "--run.max_time", "").code == 0
    place.assert_is_whole(run)
    assert read_config(RunFolder(run).config).run.name == "renamed"


def test_a_stop_whose_checkpoint_cannot_be_written_is_recorded_as_a_failure(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    words = ["--train.epochs", "100000", "--eval.every", "100000", "--checkpoint.every", "100000"]
    running = start([TRAIN, str(tiny), *words, "--checkpoint.every_steps", "0"])
    wait_for_records(run, 3, running)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").touch()
    running[0].terminate()
    (done,) = finish(running)
    assert (done.returncode, done.stderr.count("Traceback")) == (1, 0), done.stderr
    last = timeline.read(run / "timeline.jsonl")[-1]
    assert (last.kind, f"{run}/checkpoints" in last.note) == ("failed", True)


def test_the_file_is_checked_at_most_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, now = tmp_path / "STOP", [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    requests = StopRequests(StopSignals(), file=file)
    assert cause_of(requests.code()) == ""
    file.touch()
    now[0] += 4.9
    assert cause_of(requests.code()) == "", "the file system is not asked at every step"
    now[0] += 0.1
    assert cause_of(requests.code()) == STOP_FILE
    file.unlink()
    assert cause_of(requests.code()) == STOP_FILE, "a request stands"
    file.mkdir()
    assert cause_of(StopRequests(StopSignals(), file=file).code()) == "", "a folder is not a request"


def test_a_file_server_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stale(type(tmp_path)):  # type: ignore[misc]
        answers = iter([OSError(errno.ESTALE, "Stale file handle"), True])

        def is_file(self) -> bool:
            if isinstance(answer := next(self.answers), OSError):
                raise answer
            return bool(answer)

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    requests = StopRequests(StopSignals(), file=Stale(tmp_path))
    assert cause_of(requests.code()) == ""
    now[0] += 5
    assert cause_of(requests.code()) == STOP_FILE


def test_a_time_limit_says_that_it_is_too_short_and_counts_seconds_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 5e8)
    short, requests = (StopRequests(StopSignals(), deadline=5e8 + seconds) for seconds in (0, 60))
    assert cause_of(short.code()) == SHORT_TIME_LIMIT
    monkeypatch.setattr(time, "time", lambda: 9e8)
    for _ in range(9):
        assert cause_of(requests.code()) == "", "the clock was set forward"
    now[0] += 60
    assert cause_of(requests.code()) == TIME_LIMIT


def test_a_time_limit_is_read_from_the_clock_of_rank_0(tiny: Path) -> None:
    """That of another machine may be wrong."""
    config = recipe.load(str(tiny), ["--train.max_steps", "5", "--run.max_time", "1h"])

    def work() -> None:
        with start_engine(config) as engine:
            ahead = 0 if engine.ranks.is_main else 3600
            clock = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + ahead)
            stop_requests.time = clock  # type: ignore[attr-defined,assignment]
            assert Trainer(config, engine).run() == 0

    forked_ranks.run(2, work)


@pytest.mark.parametrize(("limit", "ahead"), [("10m", 30), ("1h30m", GRACE_SECONDS), ("1d", GRACE_SECONDS)])
def test_a_time_limit_leaves_time_to_save(limit: str, ahead: float) -> None:
    from cifar_dist.config.run import seconds_of

    (longer, shorter) = (deadline(text) for text in (limit, "1000s"))
    assert longer is not None
    assert shorter is not None
    assert longer - shorter == pytest.approx(seconds_of(limit) - ahead - (1000 - 50))


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("echo JobId=7 StartTime=2026-01-01T00:00:00 EndTime=2026-01-02T03:04:05 Partition=x", (2026, 1, 2, 3, 4, 5)),
        ("echo JobId=7 StartTime=2026-01-01T00:00:00 EndTime=Unknown", None),
        (
            "for n in 8 7 9; do echo JobId=$n StartTime=2026-01-0${n}T00:00:00 EndTime=2026-01-0${n}T01:00:00; done",
            (2026, 1, 7, 1, 0, 0),
        ),
        (
            "[ $SLURM_TIME_FORMAT = standard ] && "
            "echo JobId=7 StartTime=2026-01-01T00:00:00 EndTime=2026-01-01T01:00:00",
            (2026, 1, 1, 1, 0, 0),
        ),
        ("echo slurm_load_jobs error >&2; exit 1", UserError),
    ],
)
def test_the_end_of_a_job_that_slurm_does_not_export_is_queried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, end: object
) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000")  # alone it is of no use
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    ask: Callable[[], JobTime | None] = lambda: job_time(os.environ)  # noqa: E731
    if end is UserError:
        with pytest.raises(UserError, match="scontrol does not say when job 7 ends"):
            ask()
    else:
        found = ask()
        assert (time.localtime(found.end)[:6] if found else None) == end
        assert deadline("auto") == (found.end - GRACE_SECONDS if found else None)
    with pytest.raises(UserError, match="this is not a Slurm job; give a time"):
        job_time({})


@pytest.mark.parametrize(("seconds", "ahead"), [(GRACE_SECONDS, None), (GRACE_SECONDS + 60, 60)])
def test_a_job_that_ends_before_a_run_could_save_is_refused(
    monkeypatch: pytest.MonkeyPatch, seconds: int, ahead: float | None
) -> None:
    for name, value in {"ID": "7", "START_TIME": "1000", "END_TIME": str(1000 + seconds)}.items():
        monkeypatch.setenv(f"SLURM_JOB_{name}", value)
    if ahead is None:
        with pytest.raises(
            UserError, match=r"^the job's time limit \(120 s\) leaves less than a minute to train: run.max_time"
        ):
            deadline("auto")
    else:
        assert deadline("auto") == 1000 + ahead
