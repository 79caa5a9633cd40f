"""A process that runs out of memory reports it in one line, and the setting that it suggests works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.running import metrics, train

from cifar_dist.config import TrainConfig
from cifar_dist.distributed.out_of_memory import describe_training, explained
from cifar_dist.errors import OutOfMemoryError

NETWORK = """
import torch
from torch import nn

class Hungry(nn.Sequential):
    def __init__(self, classes, channels, *, train=9999, evaluate=9999):
        super().__init__(nn.Flatten(), nn.LazyLinear(classes))
        self.at_once = {True: train, False: evaluate}

    def forward(self, images):
        if len(images) > self.at_once[torch.is_grad_enabled()]:
            torch.empty(2**50)
        return super().forward(images)
"""


@pytest.fixture
def hungry(tiny: Path, tmp_path: Path) -> Path:
    """Return a recipe whose network fails to allocate memory above a number of images."""
    (tmp_path / "hungry.py").write_text(NETWORK)
    tiny.write_text(tiny.read_text().replace('"tiny-cnn"', f'"{tmp_path}/hungry.py:Hungry"'))
    return tiny


def said(error: str) -> str:
    """Return the only line that all ranks together wrote."""
    (line,) = [line for line in error.splitlines() if line.startswith("cifar-dist: ") and "plug-ins" not in line]
    assert "Traceback" not in error
    return line


@pytest.mark.parametrize(("processes", "at_once", "engine"), [(1, 20, "one process"), (2, 10, "DDP")])
def test_a_training_step_names_batch_and_engine(
    hungry: Path, tmp_path: Path, processes: int, at_once: int, engine: str
) -> None:
    words = [str(hungry), "--model.options.train", str(at_once // 2), "--train.epochs", "1"]
    done = train(*words, processes=processes)
    line = said("".join(one.stderr for one in done))
    assert {one.returncode for one in done} == {1}
    assert "ran out of memory (it asked for 4503599627370496 bytes) in a training step of 20 images" in line
    assert f"{at_once} at once, with {engine}; use --train.accumulate 2 with another --run.name" in line
    events = (tmp_path / "runs" / "tiny" / "timeline.jsonl").read_text()
    assert "ran out of memory" in events
    done = train(*words, "--train.accumulate", "2", "--run.name", "other", processes=processes)
    assert {one.returncode for one in done} == {0}, done[0].stderr


def test_an_evaluation_names_its_batch_and_what_it_says_to_use_works(hungry: Path, tmp_path: Path) -> None:
    words = [str(hungry), "--model.options.evaluate", "30", "--eval.batch_size", "40", "--train.epochs", "1"]
    (done,) = train(*words)
    line = said(done.stderr)
    assert done.returncode == 1
    assert "in an evaluation, of 40 images at once; use eval.batch_size 20" in line
    (done,) = train(*words, "--eval.batch_size", "20")
    assert done.returncode == 0, done.stderr
    assert len(metrics(tmp_path / "runs" / "tiny")) == 13


@pytest.mark.parametrize(
    ("config", "engine", "processes", "ways"),
    [
        (
            TrainConfig(batch_size=96, accumulate=2),
            "FSDP",
            2,
            "24 at once ... use --train.accumulate 3 with another --run.name",
        ),
        (
            TrainConfig(batch_size=96, parts=4),
            "4 fixed parts",
            2,
            "24 at once ... use --train.parts 6 with another --run.name",
        ),
        (
            TrainConfig(batch_size=2),
            "DDP",
            2,
            "1 at once ... use launch/zero3.yaml, which shards weights and optimizer state",
        ),
        (TrainConfig(batch_size=1), "one process", 1, "1 at once ... use a smaller network"),
    ],
)
def test_it_suggests_settings_that_require_less_memory(
    config: TrainConfig, engine: str, processes: int, ways: str
) -> None:
    text = describe_training(config, engine, processes)
    at_once, way = ways.split(" ... ")
    assert at_once in text
    assert text.endswith(way)


def test_only_errors_about_memory_are_explained() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), explained(lambda: "in a test"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(OutOfMemoryError, match="rank 0 ran out of memory in a test"), explained(lambda: "in a test"):
        bytearray(2**60)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # cuDNN 9
    ],
)
def test_what_libraries_of_a_gpu_say_is_recognised(message: str) -> None:
    with pytest.raises(OutOfMemoryError, match="rank 0 ran out of memory in a test"), explained(lambda: "in a test"):
        raise RuntimeError(message)


@pytest.mark.gpu
def test_a_gpu_without_memory_is_recognised() -> None:
    with pytest.raises(OutOfMemoryError, match=r"asked for 900\.00 GiB"), explained(lambda: "in a test"):
        torch.empty(900 * 2**30, dtype=torch.uint8, device="cuda")
