"""OpenMP on a CPU: what is set before torch is imported, and what the user has set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import PATIENCE, TRAIN, environment, spawn


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
    (done,) = spawn([TRAIN, str(tiny), "--train.max_steps", "1"], env={**given})
    assert done.returncode == 0, done.stderr
    variables = json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["variables"]
    assert {name: variables[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in variables} == found


def test_it_is_set_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's OpenMP reads it when it is loaded."""
    monkeypatch.delenv("GOMP_SPINCOUNT")
    code = """
import os, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print("GOMP_SPINCOUNT is", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder)
from cifar_dist.cli import run
run(["train", "demo"])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "GOMP_SPINCOUNT is 1000\n", done.stderr


def test_threads_are_those_asked_for(tiny: Path, tmp_path: Path) -> None:
    done = spawn([TRAIN, str(tiny), "--train.max_steps", "1", "--train.threads", "3"], 2)
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert "2 processes, DDP, cpu with 3 threads each, fp32" in done[0].stdout
    environment = json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())
    assert environment["variables"]["OMP_NUM_THREADS"] == "3"
    assert environment["run"]["threads"] == 3
