"""What a job says that resumes a run otherwise than the job before it; whole runs: tests/training/test_resume.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.recorded import FACTS

from cifar_dist.config import Config, TrainConfig
from cifar_dist.tracking.change_of_job import change_of_numerics, rounding_notes
from cifar_dist.tracking.environment import write_environment


def test_another_device_is_named_if_steps_were_done_on_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    write_environment(path, replace(FACTS, device="cuda (NVIDIA A100)"))
    assert change_of_numerics(path, "cuda (NVIDIA H200)", 0) == ""
    changed = change_of_numerics(path, "cuda (NVIDIA H200)", 5)
    assert changed == "changed since the 5 steps done: device cuda (NVIDIA A100) -> cuda (NVIDIA H200)"
    path.write_text("{ torn")
    assert change_of_numerics(path, "cpu", 5) == ""


@pytest.mark.parametrize(
    ("parts", "processes", "said"),
    [
        (0, 1, ["in bf16; it continues in fp32", "on 2, and it continues on 1 process, which rounds differently"]),
        (0, 2, ["in bf16; it continues in fp32", "with 3 threads in each process, and it continues with 1, which"]),
        (4, 1, ["in bf16; it continues in fp32", "with 3 threads in each process, and it continues with 1, which"]),
    ],
)
def test_what_rounds_differently_is_said_once(tmp_path: Path, parts: int, processes: int, said: list[str]) -> None:
    path, config = tmp_path / "environment.json", Config(train=TrainConfig(parts=parts, batch_size=20))
    before = replace(FACTS, processes=2, precision="bf16", threads=3)
    now = replace(FACTS, processes=processes, precision="fp32", threads=1)
    write_environment(path, before)
    notes = rounding_notes(path, config, now, 5)
    assert len(notes) == len(said)
    assert all(note.startswith(f"the 5 steps done were computed {one}") for note, one in zip(notes, said, strict=True))
    assert rounding_notes(path, config, now, 1)[0].startswith("the 1 step done was computed in bf16")
    assert rounding_notes(path, config, now, 0) == rounding_notes(path, config, before, 5) == []
    path.write_text("{ torn")
    assert rounding_notes(path, config, now, 5) == []
