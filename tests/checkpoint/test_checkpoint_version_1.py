"""Checkpoints in version 1 of the layout still resume, with the result that they would have had."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support.running import metrics, train
from support.small_checkpoint import averaged, names, optimizer, sign, weights
from support.small_model import same

from cifar_dist import checkpoint
from cifar_dist.checkpoint import CheckpointError, Tensors, TrainState

STATE = {
    "version": 1,
    "step": 7,
    "evaluated": 2,
    "val_accuracy": 0.25,
    "best": 0.5,
    "processes": 2,
    "engine": "ddp",
    "scaler": {"scale": 65536.0},
    "is_best": False,
}


def write_version_1(path: Path, tensors: Tensors, state: dict[str, object]) -> Path:
    """Write a checkpoint as version 1 of ``checkpoint.save`` did."""
    path.mkdir(parents=True)
    model, flat = dict(tensors.weights), dict(tensors.optimizer)
    if tensors.averaged is not None:
        model = dict(tensors.averaged.weights)
        flat |= {f"weights/{name}": value for name, value in tensors.weights.items()}
        flat |= {f"average/{name}": value for name, value in tensors.averaged.running().items()}
    save_file(model, path / "model.safetensors")
    save_file(flat, path / "optimizer.safetensors")
    (path / "state.json").write_text(json.dumps(state))
    sign(path, version=1)
    return path


def test_each_tensor_moves_to_its_new_file(tmp_path: Path) -> None:
    average = averaged(7)
    saved = Tensors(weights(7), average, optimizer(7))
    path = write_version_1(tmp_path / "checkpoints" / "step-00000007", saved, STATE)
    chosen, notes = checkpoint.choose(path.parent)
    assert (chosen, notes) == (path, [])
    loaded = checkpoint.load(path)
    assert same(loaded.tensors.weights, saved.weights)
    assert same(loaded.tensors.optimizer, saved.optimizer)
    assert loaded.tensors.averaged is not None
    assert same(loaded.tensors.averaged.weights, average.weights)
    assert same(loaded.tensors.averaged.running(), average.running())
    assert loaded.state == TrainState(7, 2, 0.25, 0.5, is_best=False, loss_scaler={"scale": 65536.0})
    assert checkpoint.evaluated_weights(path) == (path / "model.safetensors",)


def test_without_an_average_the_saved_model_is_the_trained_one(tmp_path: Path) -> None:
    path = write_version_1(tmp_path / "step-00000007", Tensors(weights(7), None, optimizer(7)), STATE)
    loaded = checkpoint.load(path)
    assert loaded.tensors.averaged is None
    assert same(loaded.tensors.weights, weights(7))


def test_a_damaged_one_is_not_copied(tmp_path: Path) -> None:
    path = write_version_1(tmp_path / "origin" / "step-00000007", Tensors(weights(7), None, optimizer(7)), STATE)
    model = path / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"model\.safetensors differs from what was saved"):
        checkpoint.copy_to(path, tmp_path / "branch", checkpoint.read_state(path), None)
    assert not (tmp_path / "branch").exists()


def test_an_accuracy_of_0_is_an_accuracy(tmp_path: Path) -> None:
    state = {**STATE, "val_accuracy": 0.0, "best": 0.0, "is_best": True}
    path = write_version_1(tmp_path / "step-00000007", Tensors(weights(7), None, optimizer(7)), state)
    assert checkpoint.best(path.parent) == path


def test_a_copy_has_the_newest_layout_and_its_own_state(tmp_path: Path) -> None:
    saved = Tensors(weights(7), averaged(7), optimizer(7))
    path = write_version_1(tmp_path / "origin" / "step-00000007", saved, STATE)
    state = dataclasses.replace(checkpoint.read_state(path), best_val_accuracy=None)
    checkpoint.copy_to(path, tmp_path / "branch", state, None)
    found, copy = checkpoint.load(path).tensors, checkpoint.load(tmp_path / "branch" / path.name)
    checkpoint.verify(copy.path)
    assert copy.state == state
    assert same(copy.tensors.weights, found.weights)
    assert same(copy.tensors.optimizer, found.optimizer)
    assert copy.tensors.averaged is not None
    assert found.averaged is not None
    assert same(copy.tensors.averaged.running(), found.averaged.running())
    checkpoint.replace_state(path, state)
    assert names(path) == names(copy.path)
    for name in names(path):
        assert (path / name).read_bytes() == (copy.path / name).read_bytes()


def test_a_best_of_minus_one_means_not_evaluated(tmp_path: Path) -> None:
    state = STATE | {"val_accuracy": None, "best": -1.0}
    path = write_version_1(tmp_path / "step-00000007", Tensors(weights(7), None, optimizer(7)), state)
    assert checkpoint.read_state(path).best_val_accuracy is None


@pytest.mark.parametrize("change", [{"step": "7"}, {"best": 2}, {"evaluated": None}, {"version": 2}, {"is_best": 1}])
def test_a_hostile_state_of_version_1_is_a_clean_error(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_version_1(tmp_path / "step-00000007", Tensors(weights(7), None, optimizer(7)), STATE | change)
    with pytest.raises(CheckpointError, match=r"state\.json cannot be used"):
        checkpoint.load(path)


@pytest.mark.parametrize("average", ["none", "ema"])
def test_a_resume_from_version_1_ends_with_the_same_result(tiny: Path, tmp_path: Path, average: str) -> None:
    words = [str(tiny), "--model.name", "tiny-resnet", "--checkpoint.every_steps", "10", "--checkpoint.keep", "9"]
    if average != "none":
        words += ["--average.name", average, "--average.decay", "0.8", "--average.recalibrate", "100"]
    (done,) = train(*words, "--run.name", "whole")
    assert done.returncode == 0, done.stderr
    whole, old = tmp_path / "runs" / "whole", tmp_path / "runs" / "old"
    shutil.copytree(whole, old, symlinks=True)
    shutil.rmtree(old / "final")
    shutil.rmtree(old / "evaluations")
    for path in (old / "checkpoints").iterdir():
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    middle = checkpoint.load(whole / "checkpoints" / "step-00000010")
    state = STATE | {"step": 10, "evaluated": 0, "val_accuracy": None, "best": -1.0, "scaler": {}}
    write_version_1(old / "checkpoints" / "step-00000010", middle.tensors, state)

    (done,) = train(*words, "--run.name", "old")
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stdout
    assert [r["loss"] for r in metrics(old)] == [r["loss"] for r in metrics(whole)]
    for file in ("final/model.safetensors", "checkpoints/latest/weights.safetensors"):
        assert (old / file).read_bytes() == (whole / file).read_bytes()
    assert ("averaged.safetensors" in names(old / "checkpoints" / "latest")) == (average != "none")
    # The weights that a checkpoint marks for evaluation are those that were evaluated: at the end, the final weights.
    (last,) = checkpoint.evaluated_weights(whole / "checkpoints" / "step-00000026")
    assert last.read_bytes() == (whole / "final" / "model.safetensors").read_bytes()
