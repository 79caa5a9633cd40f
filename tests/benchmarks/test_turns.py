"""Benchmarks measure ours and the peer in turns, and docs/performance.md is written from their records."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from comparison import Comparison, commit_of_code, take_turns
from support.running import PATIENCE, ROOT, environment


def test_the_two_take_turns_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []

    def measure(name: str, value: float) -> float:
        calls.append(name)
        return value

    found = take_turns("w", "p", "s", lambda: measure("ours", 2.0), lambda: measure("peer", 3.0), turns=3)
    assert calls == ["peer", "ours", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert (found.ours, found.theirs) == ([2.0] * 3, [3.0] * 3)


@pytest.mark.parametrize(("unit", "ratio"), [("s", 0.5), ("images/s", 2.0)])
def test_a_ratio_above_one_is_in_our_favour_for_times_and_for_rates(unit: str, ratio: float) -> None:
    assert Comparison("w", "p", unit, [4.0, 40.0, 2.0], [2.0, 20.0, 100.0]).ratio == ratio


@pytest.mark.parametrize(
    "words",
    [("step.py", "demo", "--turns", "1"), ("views.py", "tiny-cnn", "--images", "8", "--turns", "1")],
    ids=["step", "views"],
)
def test_a_benchmark_prints_and_records_its_ratio(
    words: tuple[str, ...], digits: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    script, *options = words
    data = ["--data", str(digits)] if script == "step.py" else []
    env = environment({**forked, "CIFAR_DIST_BENCHMARKS": str(tmp_path)})
    command = [f"{forked['CIFAR_DIST_VENV']}/bin/python", str(ROOT / "benchmarks" / script), *options, *data]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "times as fast" in done.stdout
    recorded = json.loads((tmp_path / f"{Path(script).stem}.json").read_text())
    assert recorded["command"].startswith(f"python benchmarks/{script} ")
    assert all(Comparison(**one).ratio > 0 for one in recorded["comparisons"])


def test_results_written_before_do_not_make_the_code_another(tmp_path: Path) -> None:
    code, result = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "step.json"
    result.parent.mkdir(parents=True)
    for path in (code, result):
        path.write_text("1")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message", "1")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    result.write_text("2")
    assert commit_of_code("abc-dirty", tmp_path) == "abc"
    code.write_text("2")
    assert commit_of_code("abc-dirty", tmp_path) == "abc-dirty"
