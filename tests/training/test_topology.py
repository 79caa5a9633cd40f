"""On one process or two, or on one and then the other: the same run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.running import interrupt, metrics, train

# Without batch statistics only the order of float32 additions differs: the last digits, growing with the steps.
TOLERANCE = 2e-4


@pytest.mark.parametrize("accumulate", ["1", "5"])
def test_one_process_and_two_take_the_same_steps(tiny: Path, tmp_path: Path, accumulate: str) -> None:
    words = [str(tiny), "--train.accumulate", accumulate]
    assert train(*words, "--run.name", "one")[0].returncode == 0
    assert [done.returncode for done in train(*words, "--run.name", "two", processes=2)] == [0, 0]
    one, two = (metrics(tmp_path / "runs" / name) for name in ("one", "two"))
    assert [r["samples"] for r in one] == [r["samples"] for r in two], "251 divide neither into 20s nor by two"
    assert sum(r["samples"] for r in one) == 2 * 251
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=TOLERANCE)
    weights = [load_file(tmp_path / "runs" / name / "final" / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-2, atol=5e-4)


def test_a_run_resumes_on_another_number_of_processes(tiny: Path, tmp_path: Path) -> None:
    """Elastic and exact: no sample is repeated or skipped, and the losses are those of one process throughout.

    Three processes do not share 20 samples evenly.
    """
    words = [str(tiny), "--train.epochs", "6"]
    assert train(*words, "--run.name", "one")[0].returncode == 0
    run = tmp_path / "runs" / "elastic"
    assert interrupt([*words, "--run.name", "elastic"], run, 30, 1, signal.SIGTERM) == [75]
    begun = len(metrics(run))
    done = train(*words, "--run.name", "elastic", processes=3)
    assert [one.returncode for one in done] == [0, 0, 0]
    assert "train.batch_size 20 is not divisible by 3 processes" in done[0].stdout + done[0].stderr
    one, elastic = metrics(tmp_path / "runs" / "one"), metrics(run)
    assert [r["step"] for r in elastic] == list(range(1, 6 * 13 + 1))
    near = slice(0, begun + 30)  # afterwards the last digits have grown into the first ones
    assert [r["loss"] for r in elastic[near]] == pytest.approx([r["loss"] for r in one[near]], rel=10 * TOLERANCE)
