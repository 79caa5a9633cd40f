"""How a process on a CPU shares its cores: what is set before torch is imported, and what the user has set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.running import TRAIN, environment, spawn


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_waiting_threads_go_to_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path, given: dict[str, str], found: dict[str, str]
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT")  # which these tests have themselves
    assert "GOMP_SPINCOUNT" not in environment()
    (done,) = spawn([TRAIN, str(tiny), "--train.epochs", "1"], env=given, fresh=True)
    assert done.returncode == 0, done.stderr
    variables = json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["variables"]
    assert {name: variables[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in variables} == found


@pytest.mark.parametrize(("asked", "threads"), [("0", None), ("3", "3")])
def test_threads_are_those_asked_for_or_the_share_of_the_machine(
    tiny: Path, tmp_path: Path, asked: str, threads: str | None
) -> None:
    done = spawn([TRAIN, str(tiny), "--train.epochs", "1", "--train.threads", asked], 2, fresh=True)
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    variables = json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["variables"]
    assert variables["OMP_NUM_THREADS"] == (threads or str(max(1, len(os.sched_getaffinity(0)) // 2)))
