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
from cifar_dist.distributed import precision
from cifar_dist.distributed.precision import Precision, computes_bf16
from cifar_dist.errors import UserError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tests the arithmetic of a CPU")


def cpu_says() -> bool:
    """Return the flags that the kernel lists for this processor."""
    flags = re.search(r"(?m)^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text())
    return flags is not None and bool({"avx512_bf16", "amx_bf16", "bf16", "svebf16"} & set(flags[1].split()))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no kernel that tells")
def test_a_cpu_computes_in_bf16_if_it_supports_it() -> None:
    assert computes_bf16(cpu=True) == cpu_says()


@pytest.mark.parametrize("can", [False, True])
@pytest.mark.parametrize("asked", ["no", "auto", "bf16"])
def test_auto_is_bf16_where_the_device_computes_it(monkeypatch: pytest.MonkeyPatch, asked: str, can: bool) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda *, cpu: can)
    found = Precision.resolve(asked, cpu=True, scales_loss=True)
    assert found.name == ("bf16" if asked == "bf16" or (asked == "auto" and can) else "no")
    assert found.label == found.name.replace("no", "fp32")
    assert found.autocast == (torch.bfloat16 if found.name == "bf16" else None)
    assert ("--train.precision auto" in found.advice) == (asked == "bf16" and not can), "a slow machine gets a hint"


@no_gpu
@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_a_run_reports_its_precision(tiny: Path, tmp_path: Path, asked: str) -> None:
    (done,) = train(str(tiny), "--train.epochs", "1", "--train.precision", asked)
    assert done.returncode == 0, done.stderr
    expected = "bf16" if asked == "bf16" or cpu_says() else "fp32"
    assert json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["run"]["precision"] == expected
    assert ("emulates it" in (tmp_path / "runs" / "tiny" / "training.log").read_text()) == (
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
        precision.computes_bf16 = lambda *, cpu: rank == "1"  # two machines of different ages
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
        found.append(computes_bf16(cpu=False))
    assert found == [False, True, False]
