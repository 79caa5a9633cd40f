"""What a job says that resumes a run otherwise than the job before it; whole runs: tests/training/test_resume.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.recorded import FACTS

from cifar_dist.config import Config, TrainConfig
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.tracking.change_of_job import change_of_numerics, rounding_notes
from cifar_dist.tracking.environment import describe_numerics, write_environment
from cifar_dist.tracking.jobs import job_of_step, jobs_of_steps
from cifar_dist.tracking.timeline import Event


def write_timeline(folder: RunFolder, *events: Event) -> None:
    folder.timeline.unlink(missing_ok=True)
    for event in events:
        timeline.append(folder.timeline, event)


def test_another_device_is_named_if_steps_were_done_on_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_environment(folder.environment, replace(FACTS, device="cuda (NVIDIA A100)"))
    assert change_of_numerics(job_of_step(folder, 0), "cuda (NVIDIA H200)", 0) == ""
    changed = change_of_numerics(job_of_step(folder, 5), "cuda (NVIDIA H200)", 5)
    assert changed == "changed since the 5 steps done: device cuda (NVIDIA A100) -> cuda (NVIDIA H200)"
    folder.environment.write_text("{ torn")
    assert change_of_numerics(job_of_step(folder, 5), "cpu", 5) == ""


@pytest.mark.parametrize(
    ("parts", "processes", "said"),
    [
        (0, 1, ["in bf16; it continues in fp32", "on 2, and it continues on 1 process, which rounds differently"]),
        (0, 2, ["in bf16; it continues in fp32", "with 3 threads in each process, and it continues with 1, which"]),
        (4, 1, ["in bf16; it continues in fp32", "with 3 threads in each process, and it continues with 1, which"]),
    ],
)
def test_what_rounds_differently_is_said_once(tmp_path: Path, parts: int, processes: int, said: list[str]) -> None:
    folder, config = RunFolder(tmp_path), Config(train=TrainConfig(parts=parts, batch_size=20))
    facts = replace(FACTS, processes=2, precision="bf16", threads=3)
    now = replace(FACTS, processes=processes, precision="fp32", threads=1)
    write_environment(folder.environment, facts)
    before = job_of_step(folder, 5)
    notes = rounding_notes(before, config, now, 5)
    assert len(notes) == len(said)
    assert all(note.startswith(f"the 5 steps done were computed {one}") for note, one in zip(notes, said, strict=True))
    assert rounding_notes(before, config, now, 1)[0].startswith("the 1 step done was computed in bf16")
    assert rounding_notes(None, config, now, 5) == rounding_notes(before, config, facts, 5) == []


def test_the_steps_of_a_run_are_those_of_the_jobs_that_saved_them(tmp_path: Path) -> None:
    """A job that was killed before it saved has trained none; a resume from before it has trained them again."""
    folder = RunFolder(tmp_path)
    assert job_of_step(folder, 1) is None
    first = Event(timeline.utc(), "started", 0, 2, "DDP, cpu", numerics={"torch": "1"}, threads=3, precision="bf16")
    idle = Event(timeline.utc(), "resumed", 9, 1, "one process, cpu", numerics={"torch": "2"}, threads=2)
    again = replace(first, kind="resumed", step=9, threads=4)
    killed = Event(timeline.utc(), "killed", 9)
    write_timeline(folder, first, idle)
    write_environment(folder.environment, replace(FACTS, processes=1, precision="fp32"))
    assert job_of_step(folder, 9) == first
    assert job_of_step(folder, 12) == replace(idle, precision="fp32"), "which environment.json knows of the newest"
    write_timeline(folder, first, idle, killed, again)
    assert jobs_of_steps(folder, 5, 12) == [first, again]
    assert (job_of_step(folder, 9), job_of_step(folder, 10), job_of_step(folder, 0)) == (first, again, None)
    write_timeline(folder, first, again, replace(idle, step=7))
    assert [job.step for job in jobs_of_steps(folder, 5, 12)] == [0, 7], "a damaged checkpoint had another one used"


def test_a_job_is_known_as_far_as_a_run_has_recorded_it(tmp_path: Path) -> None:
    """An older version wrote less into the timeline, and ``environment.json`` is of the newest job."""
    folder, older = RunFolder(tmp_path), Event(timeline.utc(), "started", 0, 2, "DDP, cpu")
    write_environment(folder.environment, replace(FACTS, threads=3))
    described = describe_numerics("cpu")
    known = replace(older, numerics=described, threads=3, precision="fp32")
    write_timeline(folder, older)
    assert job_of_step(folder, 9) == known
    folder.timeline.unlink()
    assert job_of_step(folder, 9) == replace(known, time="")
    write_timeline(folder, older, replace(older, kind="resumed", step=9))
    assert job_of_step(folder, 9) == older
    folder.environment.unlink()
    write_timeline(folder, older)
    assert job_of_step(folder, 9) == older


def test_the_steps_before_a_branch_are_of_a_job_of_its_origin(tmp_path: Path) -> None:
    folder, own = RunFolder(tmp_path), Event(timeline.utc(), "resumed", 9, 1, "one process, cpu")
    begun = Event(timeline.utc(), "branched", 9, 2, "DDP, cpu", note="runs/origin@9", threads=3)
    write_timeline(folder, begun, own)
    assert job_of_step(folder, 9) == replace(begun, step=0)
    assert job_of_step(folder, 10) == own
    write_timeline(folder, Event(timeline.utc(), "branched", 9, note="of an older version"), own)
    assert job_of_step(folder, 9) is None
