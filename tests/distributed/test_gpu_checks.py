"""The GPUs that a process may use, and what it says where it has none; of pretend GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cifar_dist.distributed.gpu_checks import check_gpus, check_own_gpu, describe_unused_gpu, why_on_cpu
from cifar_dist.errors import GpuError, UserError


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_gpu_that_torch_cannot_compute_on_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*_: object, device: str) -> None:
        assert device == "cuda:1"
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nFor debugging, pass")

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Tesla {number}")
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(GpuError) as error:
        check_own_gpu()
    assert "cannot compute on GPU 1 of" in str(error.value)
    assert "Tesla 1 (CUDA error: no kernel image is available for execution on the device); choose" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that torch can use")
def test_a_gpu_that_torch_cannot_use_is_named_unless_it_is_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert describe_unused_gpu(tmp_path) == "", "there is none"
    assert why_on_cpu(tmp_path) == "it has no GPU"
    (tmp_path / "nvidia0").touch()
    said = describe_unused_gpu(tmp_path)
    assert said.startswith("this machine has a GPU that torch ")
    assert said.endswith("; the run takes the CPU")
    assert why_on_cpu(tmp_path).removeprefix("torch cannot use its GPU: ") in said
    assert "\n" not in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert describe_unused_gpu(tmp_path) == said
    excluding = [("CUDA_VISIBLE_DEVICES", value) for value in ("", "-1", "NoDevFiles")]
    for name, value in (*excluding, ("ACCELERATE_USE_CPU", "true")):
        with monkeypatch.context() as excluded:
            excluded.setenv(name, value)
            assert describe_unused_gpu(tmp_path) == ""
            assert why_on_cpu(tmp_path) == ("its launch config is for CPUs" if "CPU" in name else f"{name}={value}")


def test_more_processes_than_gpus_are_refused_where_they_would_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    check_gpus(1)  # srun may show each process a GPU of its own
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    check_gpus(3)
    with pytest.raises(UserError, match=r"has 2 GPUs, and the launcher starts 3 .* use --num_processes=2"):
        check_gpus(2)
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    check_gpus(1)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # it chooses the GPU by the local rank
    with pytest.raises(UserError, match=r"has 1 GPU, and the launcher starts 3"):
        check_gpus(1)
    monkeypatch.setenv("CIFAR_DIST_COMMAND", "")  # of a Slurm job, which may have several parts of a GPU, and see one
    with pytest.raises(UserError, match="set CIFAR_DIST_PROCESSES_PER_NODE=1, or CIFAR_DIST_LAUNCH=cpu for any number"):
        check_gpus(1)


def test_a_gpu_that_deepspeed_would_take_and_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes that of the local rank's number, also where srun shows each process a GPU of its own."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    check_gpus(1)  # of another machine than rank 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_gpus(2)
    with pytest.raises(GpuError, match=r"DeepSpeed takes GPU 1 of \S+ for rank 1, which sees 1 GPU; show each process"):
        check_gpus(1)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    check_gpus(1)
