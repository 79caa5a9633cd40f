"""How ``train.precision`` is resolved on this machine, and that all processes agree on it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from support import forked_ranks
from support.engines import engine
from support.running import train

from cifar_dist.config import Config, TrainConfig
from cifar_dist.cpu import instructions
from cifar_dist.distributed import precision
from cifar_dist.distributed.precision import Precision, is_bf16_fast
from cifar_dist.errors import UserError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tests the arithmetic of a CPU")


def cpu_says() -> bool:
    """Whether bf16 is fast by the flags that the kernel lists for this processor."""
    described = Path("/proc/cpuinfo").read_text()
    found = re.search(r"(?m)^(?:flags|Features)\s*:(.*)$", described)
    flags = set(found[1].split()) if found else set()
    hides_amx = "GenuineIntel" in described and "avx512_fp16" in flags and "amx_bf16" not in flags
    return not hides_amx and bool({"avx512_bf16", "amx_bf16", "bf16", "svebf16"} & flags)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no kernel that tells")
def test_a_cpu_computes_in_bf16_if_it_supports_it() -> None:
    assert is_bf16_fast(cpu=True) == cpu_says()


@pytest.mark.parametrize("can", [False, True])
@pytest.mark.parametrize("asked", ["no", "auto", "bf16"])
def test_auto_is_bf16_where_the_device_computes_it(monkeypatch: pytest.MonkeyPatch, asked: str, can: bool) -> None:
    monkeypatch.setattr(precision, "is_bf16_fast", lambda *, cpu: can)
    found = Precision.resolve(asked, cpu=True, scales_loss=True)
    assert found.name == ("bf16" if asked == "bf16" or (asked == "auto" and can) else "no")
    assert found.label == found.name.replace("no", "fp32")
    assert found.autocast == (torch.bfloat16 if found.name == "bf16" else None)
    assert ("--train.precision auto" in found.advice) == (asked == "bf16" and not can), "a slow machine gets a hint"


@pytest.mark.parametrize(
    ("bf16", "int8", "cpu", "label", "advised"),
    [
        (True, True, True, "bf16 + int8 convolutions", ""),
        (True, False, True, "bf16", "train.precision int8 is for CPUs with VNNI and without AMX: bf16 here"),
        (False, True, True, "fp32 + int8 convolutions", ""),
        (False, False, True, "fp32", "train.precision int8 is for CPUs with VNNI and without AMX: fp32 here"),
        (True, True, False, "bf16", "train.precision int8 is for CPUs with VNNI and without AMX: bf16 here"),
    ],
    ids=["fast", "no VNNI, or AMX", "slow bf16", "neither", "GPU"],
)
def test_int8_is_for_cpus_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, int8: bool, cpu: bool, label: str, advised: str
) -> None:
    monkeypatch.setattr(precision, "is_bf16_fast", lambda *, cpu: bf16)
    monkeypatch.setattr(instructions, "is_int8_fast", lambda: int8)
    found = Precision.resolve("int8", cpu=cpu, scales_loss=True)
    assert (found.label, found.advice, found.int8) == (label, advised, label.endswith("convolutions"))
    assert found.name == ("no" if label.startswith("fp32") else "bf16")


@no_gpu
@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_a_run_reports_its_precision(tiny: Path, tmp_path: Path, asked: str) -> None:
    (done,) = train(str(tiny), "--train.epochs", "1", "--train.precision", asked)
    assert done.returncode == 0, done.stderr
    expected = "bf16" if asked == "bf16" or cpu_says() else "fp32"
    assert json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["run"]["precision"] == expected
    assert ("bf16 is slower than fp32" in (tmp_path / "runs" / "tiny" / "training.log").read_text()) == (
        asked == "bf16" and not cpu_says()
    )


@no_gpu
def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"train\.precision fp16 requires a GPU"):
        engine(Config(train=TrainConfig(precision="fp16")))


@no_gpu
def test_processes_whose_devices_differ_are_refused(tmp_path: Path) -> None:
    def one_can() -> None:
        rank = os.environ["RANK"]
        precision.is_bf16_fast = lambda *, cpu: rank == "1"  # two machines of different ages
        try:
            engine(Config(train=TrainConfig(precision="auto")))
        except UserError as error:
            (tmp_path / rank).write_text(str(error))

    forked_ranks.run(2, one_can)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    assert "to bf16 and fp32; set it" in (tmp_path / "0").read_text()


def test_each_process_queries_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pretend GPUs of different generations: by default torch queries the current one, which is the first."""
    current = [0]

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: current[-1] == 1)
    found = []
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        found.append(is_bf16_fast(cpu=False))
    assert found == [False, True, False]
