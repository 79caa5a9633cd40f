"""Machines of one job that hold different data neither train nor predict together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.running import TRAIN, finish, start

from cifar_dist.data.pack import pack

TWO_MACHINES = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # of both ranks


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in another order."""
    folder = tmp_path_factory.mktemp("other") / "digits"
    pack("digits", folder, seed=5, codec="npy", show=False)
    return folder


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    words = ["demo", "--train.max_steps", "2", "--eval.tta", "0", "--run.dir", str(folder), "--run.name", "it"]
    assert [done.returncode for done in finish(start([TRAIN, *words, "--data.path", str(digits)]))] == [0]
    return folder / "it"


def npz(path: Path, seed: int) -> Path:
    data = np.random.default_rng(seed).integers(0, 256, (6, 32, 32, 3), np.uint8)
    np.savez(path, data=data, ids=np.arange(6))
    return path


def test_another_dataset_is_not_trained_on(digits: Path, other: Path, tmp_path: Path) -> None:
    common = [TRAIN, "demo", "--train.max_steps", "2", "--run.dir", str(tmp_path / "runs")]
    done = finish(start(common, 2, TWO_MACHINES, of_rank=(["--data.path", str(digits)], ["--data.path", str(other)])))
    assert [each.returncode for each in done] == [2, 2]
    assert f"{other} on " in done[0].stderr
    assert "is not the dataset of rank 0" in done[0].stderr


def test_another_dataset_is_not_evaluated(digits: Path, other: Path, run: Path) -> None:
    """Half of the images would be compared with the labels of others."""
    before = sorted((run / "evaluations").iterdir())
    common = ["-m", "cifar_dist", "evaluate", str(run), "--split", "train"]
    done = finish(start(common, 2, TWO_MACHINES, of_rank=(["--data", str(digits)], ["--data", str(other)])))
    assert [each.returncode for each in done] == [2, 2]
    assert f"{other} on " in done[0].stderr
    assert sorted((run / "evaluations").iterdir()) == before


@pytest.mark.parametrize("kind", ["npz", "packed"])
def test_other_images_are_not_predicted(kind: str, digits: Path, other: Path, run: Path, tmp_path: Path) -> None:
    sources = [npz(tmp_path / "a.npz", 1), npz(tmp_path / "b.npz", 2)] if kind == "npz" else [digits, other]
    out = tmp_path / "out.csv"
    common = ["-m", "cifar_dist", "predict", str(run), "--out", str(out)]
    done = finish(start(common, 2, TWO_MACHINES, of_rank=[[str(source)] for source in sources]))
    assert [each.returncode for each in done] == [2, 2]
    says = f"the ranks have read different images from {sources[0]}; copy that of rank 0 to every machine"
    assert says in done[0].stderr
    assert not out.exists()
    done = finish(start([*common, str(sources[0])], 2, TWO_MACHINES))
    assert [each.returncode for each in done] == [0, 0]
    assert len(out.read_text().splitlines()) > 6
