"""``train.parts``: the same run to the last bit on any number of processes, even if the number changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import parts_on_ranks
from support.running import TRAIN, spawn, without_times

from launch import soak


@pytest.fixture(scope="module", params=["no", "int8"])
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The run folders of parts_on_ranks.py."""
    folder = tmp_path_factory.mktemp("parts")
    words = [parts_on_ranks.__file__, str(soak.write_recipe(folder, digits)), str(folder / "runs"), request.param]
    (done,) = spawn(words, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


def results(run: Path) -> dict[str, object]:
    """Return weights and predictions as bytes, and the metrics without durations."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (predictions,) = run.glob("evaluations/*/probabilities.npz")
    return {
        "weights": (run / "final" / "model.safetensors").read_bytes(),
        "predictions": predictions.read_bytes(),
        "metrics": [without_times(line) for line in lines],
    }


@pytest.mark.parametrize("name", [*(f"on-{n}" for n in parts_on_ranks.PROCESSES[1:]), "resumed"])
def test_the_number_of_processes_changes_no_bit(runs: Path, name: str) -> None:
    one, other = results(runs / "on-1"), results(runs / name)
    assert [key for key in one if one[key] != other[key]] == []


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        (
            ["--train.parts", "1"],
            {},
            "train.parts 1 are too few for 2 processes; use at most 1, or for a new run --train.parts 2",
        ),
        (
            ["--train.parts", "4"],
            {"ACCELERATE_USE_FSDP": "true"},
            "train.parts = 4 needs one process or DDP, not FSDP; use: cifar-dist launch ",
        ),
        (["--train.parts", "3"], {}, "batch_size 20 is not divisible by parts 3"),
        (["--train.parts", "4", "--train.accumulate", "5"], {}, "; use --train.accumulate 1, or --train.parts 0"),
    ],
)
def test_impossible_settings_are_refused(tiny: Path, words: list[str], env: dict[str, str], says: str) -> None:
    done = spawn([TRAIN, str(tiny), *words], processes=2, env=env)
    assert {process.returncode for process in done} == {2}
    assert says in done[0].stderr
    assert not (tiny.parent / "runs").exists()
