"""Shared fixtures: a packed dataset, and a recipe that is small enough to be trained many times."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from support import warm
from support.clock import Clock
from support.running import ROOT

from cifar_dist.cpu.openmp import shorten_openmp_spin
from cifar_dist.launch.gpu_devices import count_gpus

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# A machine may be slow; that is not a failure.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
os.environ.setdefault("OMP_NUM_THREADS", "1")
shorten_openmp_spin()

# Files that take the longest, first, so that all workers end together.
_LONGEST = [
    *("docs/test_commands.py", "slurm/test_train_sbatch.py", "launch", "test_shipped_recipes.py", "chaos", "slurm"),
    *("sweeps", "verbs", "training", "config/test_every_setting.py", "test_mistakes.py", "optim/test_optim_runs.py"),
    *("config", "runs/test_clean.py", "distributed", "cpu", "tracking"),
]

_DATA = [os.environ.get("CIFAR_DIST_TEST_DATA"), ROOT.parent / "shared" / "data"]


def pytest_configure(config: pytest.Config) -> None:
    """Hide a machine's GPUs, unless the tests that need one are chosen: all others test what a CPU computes."""
    if config.getoption("markexpr") != "gpu" and count_gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU; order the files that ``--dist loadfile`` deals to workers."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        return next((number for number, part in enumerate(_LONGEST) if path.startswith(part)), len(_LONGEST))

    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=rank)


@functools.cache
def has_gpu() -> bool:
    """Whether torch sees a CUDA device. Only tests that have imported torch need to know."""
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def all_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded digits as ``make demo`` packs them, but for the codec: their encoding as PNG takes a second."""
    from cifar_dist.data.pack import pack

    out = tmp_path_factory.mktemp("shards") / "digits"
    pack(str(ROOT / "shards" / "digits.toml"), out, codec="npy", samples_per_shard=200, show=False)
    return out


@pytest.fixture(scope="session")
def digits(all_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of the embedded digits, packed: 251 train, 35 val, 71 test. All of them would take half of a run."""
    from support.dataset_builders import write_npz

    from cifar_dist.data.manifest import Manifest
    from cifar_dist.data.pack import pack
    from cifar_dist.data.read import ShardReader

    folder, manifest = tmp_path_factory.mktemp("shards"), Manifest.load(all_digits)
    arrays: dict[str, ArrayLike] = {}
    for split in manifest.splits:
        images, labels = ShardReader(manifest, split).all().numpy(), manifest.labels(split)
        arrays[f"x_{split}"], arrays[f"y_{split}"] = (array[: len(labels) // 5] for array in (images, labels))
    pack(write_npz(folder / "digits.npz", arrays), folder / "digits", samples_per_shard=40, show=False)
    return folder / "digits"


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which programs started by name are forks of a warm interpreter and draw no reports."""
    folder = tmp_path_factory.mktemp("forked")
    return {**warm.programs(folder), "CIFAR_DIST_VENV": str(folder)}


@pytest.fixture(scope="session")
def cifar_files() -> Path:
    """Folder of the real CIFAR-10 files that tests may use."""
    for folder in _DATA:
        if folder and (Path(folder) / "cifar10-jpeg.tar.gz").is_file():
            return Path(folder)
    pytest.skip("no cifar10-jpeg.tar.gz in ../shared/data or $CIFAR_DIST_TEST_DATA")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What ``time.perf_counter`` says, until the end of the test."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture
def tiny(digits: Path, tmp_path: Path) -> Path:
    """A recipe that trains in a second: no batch statistics, fp32 and one thread, so that runs are equal to the bit."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
[run]
dir = "{tmp_path}/runs"
[data]
path = "{digits}"
[augment]
transforms = [{{ name = "crop", pad = 2 }}]
[model]
name = "tiny-cnn"
[optim]
lr = 0.1
[schedule]
name = "cosine"
[train]
epochs = 2
batch_size = 20
threads = 1
[checkpoint]
every_steps = 5
keep = 3
[tracking]
every = 1
[eval]
tta = "0"
"""
    )
    return path
