"""DeepSpeed ZeRO and FSDP over gloo: really used, stopped and resumed, and exchangeable in the middle of a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import soak
import torch
from safetensors.torch import load_file
from support import resume_on_ranks
from support.running import metrics, pausing, resume, spawn, wait_for_pause

STEPS = 13


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders of resume_on_ranks.py."""
    folder = tmp_path_factory.mktemp("engines")
    words = [resume_on_ranks.__file__, str(soak.write_recipe(folder, digits)), str(folder / "runs")]
    (done,) = spawn(words, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


WRAPPERS = {
    "ddp": "DDP",
    "fsdp": "FSDP",
    "zero1": "DeepSpeed ZeRO-1",
    "zero2": "DeepSpeed ZeRO-2, optimizer on the CPU",
    "zero3": "DeepSpeed ZeRO-3",
}


def wrapper_of(run: Path) -> str:
    """Return the wrapper of the run's last processes, which counted the parameters of the network."""
    facts = json.loads((run / "environment.json").read_text())["run"]
    assert facts["parameters"] == 4010
    return str(facts["wrapper"])


@pytest.mark.parametrize("optimizer", resume_on_ranks.OPTIMIZERS)
@pytest.mark.parametrize(("first", "second"), resume_on_ranks.CONTINUED)
def test_a_run_can_resume_with_another_engine(runs: Path, optimizer: str, first: str, second: str) -> None:
    """Weights, momentum and step counts of both parameter groups carry over: it ends like an uninterrupted run."""
    whole, broken = runs / f"{optimizer}-{first}", runs / f"{optimizer}-{first}-{second}"
    assert (wrapper_of(whole), wrapper_of(broken)) == (WRAPPERS[first], WRAPPERS[second])
    assert [record["step"] for record in metrics(broken)] == list(range(1, STEPS + 1))
    weights = [load_file(run / "final" / "model.safetensors") for run in (whole, broken)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", resume_on_ranks.OPTIMIZERS)
def test_each_engine_takes_the_steps_of_ddp(runs: Path, optimizer: str) -> None:
    """AdamW's to the bit: its sums are of two ranks' gradients, and it updates each weight alone.

    Where gradients are accumulated, DDP adds up a rank's micro-batches first and the others add up the ranks; and the
    norm that clips is added up in another order. SGD keeps such a difference in the last digit. AdamW, which divides
    each gradient by its size, would let the loss drift by 1e-3 in these steps.
    """
    exact = optimizer == "adamw"
    ddp, *others = ([r["loss"] for r in metrics(runs / f"{optimizer}-{engine}")] for engine in resume_on_ranks.ENGINES)
    for losses in others:
        assert losses == (ddp if exact else pytest.approx(ddp, rel=1e-5))


def test_its_launch_file_stops_and_resumes(digits: Path, tmp_path: Path, forked: dict[str, str]) -> None:
    """Of DeepSpeed, whose processes Accelerate starts in its own way; resume_on_ranks.py reads the other files."""
    config, wrapper = "zero3", WRAPPERS["zero3"]
    recipe = soak.write_recipe(tmp_path, digits)
    run, words = tmp_path / "runs" / config, ["--train.epochs", "2"]
    job = soak.start(recipe, config, *words, config=config, env={**forked, **pausing(2, tmp_path / "paused")})
    paused = wait_for_pause(tmp_path / "paused", [job])
    job.send_signal(signal.SIGUSR1)
    resume(paused)
    code, output = soak.end(job)
    assert code == 75, output
    assert f"2 processes, {wrapper}" in output
    stopped = soak.steps_done(run)
    code, output = soak.end(soak.start(recipe, config, *words, config=config, env=forked))
    assert code == 0, output
    assert f"resumed after step {stopped}" in output
    assert [record["step"] for record in metrics(run)] == list(range(1, 2 * STEPS + 1))
    assert wrapper_of(run) == wrapper
