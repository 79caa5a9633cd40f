"""Complete runs with Muon, SAM and averages: an interrupted run ends with the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.running import interrupt, metrics, train

RUNS = {
    "muon and an EMA": "--optim.name muon --optim.lr 0.05 --optim.rest-lr 2 --optim.normalize True --average.name ema "
    "--average.start 0.5 --average.decay 0.8 --average.recalibrate 200 --model.name tiny-resnet --train.epochs 1",
    "SAM and lookahead": "--optim.sam-rho 0.05 --average.name lookahead --average.every 5 --average.decay 0.5 "
    "--train.accumulate 2",
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS.keys())
def test_an_interrupted_run_ends_with_the_same_bits(tiny: Path, tmp_path: Path, words: str) -> None:
    command = [str(tiny), "--train.threads", "1", *words.split()]
    (whole,) = train(*command, "--run.name", "whole")
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "runs" / "broken"
    assert interrupt([*command, "--run.name", "broken"], run, 8, 1, signal.SIGTERM) == [75]
    assert train(*command, "--run.name", "broken")[0].returncode == 0
    one, two = (tmp_path / "runs" / name for name in ("whole", "broken"))
    assert [r["loss"] for r in metrics(one)] == [r["loss"] for r in metrics(two)]
    assert [r["accuracy"] for r in metrics(one, "val")] == [r["accuracy"] for r in metrics(two, "val")]
    saved = sorted(path.relative_to(one) for path in (one / "checkpoints" / "latest").glob("*.safetensors"))
    assert len(saved) >= 2
    for file in (Path("final/model.safetensors"), *saved):
        tensors = [load_file(folder / file) for folder in (one, two)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_the_average_of_a_run_is_the_mean_of_its_weights_and_is_what_is_evaluated(tiny: Path, tmp_path: Path) -> None:
    """From the step on that the settings name, here the seventh of thirteen, and at every third."""
    words = ["--average.name", "swa", "--average.start", "0.5", "--average.every", "3", "--train.epochs", "1"]
    (done,) = train(
        str(tiny), *words, "--checkpoint.every_steps", "1", "--checkpoint.keep", "99", "--eval.split", "val"
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    saved = [load_file(run / "checkpoints" / f"step-{step:08d}" / "weights.safetensors") for step in (7, 10, 13)]
    final = load_file(run / "final" / "model.safetensors")
    for name, value in final.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.stack([weights[name] for weights in saved]).mean(dim=0))
    (recorded,) = metrics(run, "val")
    (summary,) = (json.loads(path.read_text()) for path in run.glob("evaluations/*/summary.json"))
    assert (recorded["loss"], recorded["accuracy"]) == (summary["loss"], summary["accuracy"])
