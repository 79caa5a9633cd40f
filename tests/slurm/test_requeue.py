"""Whether a job runs again: a table of every kind of ending, and the properties of all of them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.run_folders import write_run

from cifar_dist import recipe
from cifar_dist.exit_codes import EXIT_REQUEUE
from cifar_dist.slurm.__main__ import node, requeue
from cifar_dist.slurm.requeue import Attempt, Outcome, decide
from cifar_dist.tracking import timeline

STOPPED = Attempt(
    run="runs/it",
    number=2,
    job_state="RUNNING",
    requeued=False,
    exit_code=0,
    finished=False,
    began_at="step-1",
    stopped_at="step-2",
)
_BY_SLURM = "attempt 2 stopped at step-2; Slurm has requeued the job"
_RESUME = "to resume: cifar-dist submit resume runs/it [sbatch options]"

# Those that squeue can print of a job whose batch script still runs, and what it prints of one that it does not know.
_STATES = ["RUNNING", "COMPLETING", "CANCELLED", "TIMEOUT", "PREEMPTED", "SUSPENDED", "NODE_FAIL", "STOPPED", ""]
_CHECKPOINTS = ["", "step-00000001", "step-00000002"]
ATTEMPTS = st.builds(
    Attempt,
    run=st.just("runs/it"),
    number=st.integers(1, 1000),
    job_state=st.sampled_from(_STATES),
    requeued=st.booleans(),
    exit_code=st.sampled_from([0, 75, 124]) | st.integers(0, 255),
    finished=st.booleans(),
    began_at=st.sampled_from(_CHECKPOINTS),
    stopped_at=st.sampled_from(_CHECKPOINTS),
    may_requeue=st.booleans(),
)


@pytest.mark.parametrize(
    ("changes", "outcome", "exit_code", "line"),
    [
        ({}, "requeue", 75, "attempt 2 stopped at step-2; requeueing"),
        ({"began_at": ""}, "requeue", 75, "attempt 2 stopped at step-2; requeueing"),
        ({"exit_code": 75}, "requeue", 75, "attempt 2 stopped at step-2; requeueing"),
        ({"requeued": True, "job_state": "COMPLETING"}, "requeued", 75, _BY_SLURM),
        ({"requeued": True, "job_state": "COMPLETING", "exit_code": 137}, "requeued", 75, _BY_SLURM),
        (
            {"may_requeue": False},
            "stopped",
            75,
            f"attempt 2 stopped at step-2, and is not requeued because the job has --no-requeue; {_RESUME}",
        ),
        ({"exit_code": 124}, "requeue", 75, "attempt 2 stalled after step-2; requeueing"),
        (
            {"exit_code": 124, "stopped_at": "step-1"},
            "no-progress",
            124,
            f"attempt 2 made no progress since step-1, so it is not requeued; give it more time; {_RESUME}",
        ),
        ({"finished": True}, "done", 0, ""),
        ({"finished": True, "job_state": "COMPLETING"}, "done", 0, ""),
        ({"finished": True, "stopped_at": "step-1"}, "done", 0, ""),
        (
            {"job_state": "COMPLETING"},
            "taken-down",
            75,
            f"attempt 2 stopped at step-2, and is not requeued because the job is COMPLETING (its time limit, "
            f"scancel or a preemption); {_RESUME}",
        ),
        (
            {"job_state": "CANCELLED", "began_at": "", "stopped_at": ""},
            "taken-down",
            75,
            f"attempt 2 stopped at the start, and is not requeued because the job is CANCELLED; {_RESUME}",
        ),
        (
            {"job_state": ""},
            "taken-down",
            75,
            "attempt 2 stopped at step-2, and is not requeued because the job is in a state that Slurm does not "
            f"report; {_RESUME}",
        ),
        (
            {"stopped_at": "step-1"},
            "no-progress",
            1,
            f"attempt 2 made no progress since step-1, so it is not requeued; give it more time; {_RESUME}",
        ),
        (
            {"number": 1, "began_at": "", "stopped_at": ""},
            "no-progress",
            1,
            f"attempt 1 made no progress since the start, so it is not requeued; give it more time; {_RESUME}",
        ),
        (
            {"exit_code": 137},
            "failed",
            137,
            "attempt 2 failed with exit code 137, so it is not requeued; the error is above; "
            f"once its cause is removed, {_RESUME}",
        ),
        (
            {"exit_code": 1, "stopped_at": ""},
            "failed",
            1,
            "attempt 2 failed with exit code 1, so it is not requeued; the error is above",
        ),
        (
            {"exit_code": 2, "finished": True},
            "failed",
            2,
            "attempt 2 failed with exit code 2, so it is not requeued; the error is above",
        ),
    ],
)
def test_each_kind_of_ending_has_its_outcome_code_and_line(
    changes: dict[str, object], outcome: str, exit_code: int, line: str
) -> None:
    decision = decide(dataclasses.replace(STOPPED, **changes))  # type: ignore[arg-type]
    assert (decision.outcome, decision.exit_code, decision.line) == (outcome, exit_code, line)


@given(ATTEMPTS)
def test_only_a_running_job_that_stopped_or_stalled_with_progress_is_requeued(attempt: Attempt) -> None:
    ended = attempt.exit_code in (0, 75, 124) and not attempt.requeued
    stopped = ended and not attempt.finished
    progress = attempt.began_at != attempt.stopped_at
    outcome = decide(attempt).outcome
    may = attempt.job_state == "RUNNING" and attempt.may_requeue
    assert (outcome == Outcome.REQUEUE) == (stopped and progress and may)
    assert (outcome == Outcome.DONE) == (ended and attempt.finished)


@given(ATTEMPTS)
def test_the_exit_code_is_0_only_for_a_finished_run_and_others_are_explained(attempt: Attempt) -> None:
    decision = decide(attempt)
    assert (decision.exit_code == 0) == (decision.outcome == Outcome.DONE)
    assert (decision.line == "") == (decision.outcome == Outcome.DONE)
    if decision.outcome == Outcome.FAILED:
        assert decision.exit_code == attempt.exit_code
    assert "\n" not in decision.line


@given(ATTEMPTS, st.integers(1, 1000))
def test_the_number_of_attempts_does_not_decide(attempt: Attempt, number: int) -> None:
    """A run may need any number of attempts; only a lack of progress ends them."""
    again = decide(dataclasses.replace(attempt, number=number))
    assert (again.outcome, again.exit_code) == (decide(attempt).outcome, decide(attempt).exit_code)


def test_the_command_reads_the_run_folder(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = write_run(tiny.parent / "runs" / "it", recipe.load(str(tiny), []))

    def ask(
        exit_code: int, state: str, restarts: str = "1", may_requeue: str = "1", before: str = "0", left: str = "2"
    ) -> tuple[str, str]:
        """Return what the command of slurm/train.sbatch prints after an attempt that began without a checkpoint."""
        answer = io.StringIO()
        assert requeue([str(run), "", before, str(exit_code), state, restarts, may_requeue, left], answer) == 0
        return answer.getvalue(), capsys.readouterr().err.removeprefix("slurm/train.sbatch: ")

    out, err = ask(0, "RUNNING")
    assert out == "no-progress 1\n"
    assert err.startswith("attempt 2 made no progress since the start")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "latest").symlink_to("step-00000004")
    assert ask(0, "RUNNING") == ("requeue 75\n", "attempt 2 stopped at step-00000004; requeueing\n")
    assert ask(0, "RUNNING", may_requeue="0")[0] == "stopped 75\n"
    assert ask(137, "COMPLETING", restarts="2")[0] == "requeued 75\n", "a node was lost"
    timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(), "stalled", 4))
    assert ask(137, "RUNNING") == ("requeue 75\n", "attempt 2 stalled after step-00000004; requeueing\n")
    assert ask(137, "RUNNING", before="1")[0] == "failed 137\n", "an earlier attempt stalled"
    timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(), "interrupted", 4))
    assert ask(137, "RUNNING")[0] == "failed 137\n"
    monkeypatch.setenv("CIFAR_DIST_MIN_NODES", "1")
    assert ask(137, "RUNNING")[0] == "requeue 75\n", "a node was lost, the others saved"
    monkeypatch.setenv("CIFAR_DIST_MIN_NODES", "2")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    assert ask(1, "RUNNING", left="1")[0] == "requeue 75\n", "too few nodes are left"
    assert ask(1, "RUNNING", left="2")[0] == "failed 1\n"
    assert ask(2, "RUNNING", left="1")[0] == "failed 2\n"
    monkeypatch.delenv("CIFAR_DIST_MIN_NODES")
    run = write_run(run.with_name("done"), recipe.load(str(tiny), []), test=0.5)
    assert ask(0, "RUNNING", before="finished") == ("done 0\n", "")
    assert ask(0, "RUNNING")[0] == "no-progress 1\n", "it was stopped before it could extend the run"
    timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(), "finished", 8))
    assert ask(0, "RUNNING") == ("done 0\n", "")
    assert ask(0, "RUNNING", before="1")[0] == "no-progress 1\n"


@pytest.mark.parametrize(
    ("begins", "outcome"), [("", "requeue 75\n"), ("step-00000004", "no-progress 1\n")], ids=["saved", "not saved"]
)
def test_a_stop_between_the_loss_of_a_node_and_the_next_ranks_is_one_on_request(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, begins: str, outcome: str
) -> None:
    """Slurm reports the 137 of the lost node, and no rank is running that could write how the others ended."""
    run = write_run(tiny.parent / "runs" / "it", recipe.load(str(tiny), []))
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "latest").symlink_to("step-00000004")
    path = run / "timeline.jsonl"
    timeline.append(path, timeline.Event(timeline.utc(), "failed", 6, note="rank 0 has lost its connection"))
    monkeypatch.setattr("cifar_dist.slurm.node.run_node", lambda words, variables: EXIT_REQUEUE)
    monkeypatch.setenv("CIFAR_DIST_MIN_NODES", "1")
    for index in ("0", "1"):
        monkeypatch.setenv("SLURM_NODEID", index)
        assert node(["train", str(run), str(tiny)]) == 0
    assert [(event.kind, event.step) for event in timeline.read(path)] == [("failed", 6), ("interrupted", 4)]
    answer = io.StringIO()
    requeue([str(run), begins, "0", "137", "RUNNING", "0", "1", "1"], answer)
    assert answer.getvalue() == outcome


def test_a_stop_that_cannot_be_noted_is_no_failure(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, or the file server has left: the job runs again."""
    run = write_run(tiny.parent / "runs" / "it", recipe.load(str(tiny), []))
    (run / "timeline.jsonl").mkdir()
    monkeypatch.setattr("cifar_dist.slurm.node.run_node", lambda words, variables: EXIT_REQUEUE)
    monkeypatch.setenv("CIFAR_DIST_MIN_NODES", "1")
    monkeypatch.setenv("SLURM_NODEID", "0")
    assert node(["train", str(run), str(tiny)]) == 0
