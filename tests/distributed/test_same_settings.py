"""Machines of one job that were given different commands do not train together."""

from __future__ import annotations

import re
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.running import TRAIN, finish, start

from cifar_dist.config import OptimConfig, SGDConfig
from cifar_dist.config.optim import MuonSGDConfig
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.same_settings import check_same_devices, check_same_launch
from cifar_dist.errors import MachineError, UserError

TWO_MACHINES = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # of both ranks
PLACED = """
import os, sys
os.chdir(sys.argv.pop())
from cifar_dist.cli import run
from cifar_dist.distributed import shared_path
shared_path.SEEN_SECONDS = 0.5
from cifar_dist.process_exit import exit_with
exit_with(lambda: run(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--optim.lr 0.2", "optim.lr is 0.1 on rank 0 and 0.2 on rank 1"),
        ("--run.seed 7", "run.seed is 0 on rank 0 and 7 on rank 1"),
        ("--run.name other", "run.name is demo on rank 0 and other on rank 1"),
        ("--train.max_steps 6", "train.max_steps is 2 on rank 0 and 6 on rank 1"),
        ("--augment.crop.pad 1", "augment.crop.pad is 3 on rank 0 and 1 on rank 1"),
        ("--run.stall_timeout 0", "run.stall_timeout is 300 on rank 0 and 0 on rank 1"),
        ("--optim.name adamw", "optim.name is sgd on rank 0 and adamw on rank 1"),
    ],
)
def test_other_settings_on_another_rank_are_refused(digits: Path, tmp_path: Path, words: str, says: str) -> None:
    common = [TRAIN, "demo", "--data.path", str(digits), "--run.dir", str(tmp_path), "--train.max_steps", "2"]
    done = finish(start(common, 2, of_rank=([], words.split())))
    assert [each.returncode for each in done] == [2, 2]
    assert done[0].stderr.endswith(f"{says}; give all machines the same command\n")
    assert not done[1].stderr


def test_what_belongs_to_a_machine_may_differ(digits: Path, tmp_path: Path) -> None:
    """The place of its copy of the data, the run folder, which is rank 0's, and its threads: one chooses them."""
    copy = shutil.copytree(digits, tmp_path / "copy")
    common = [TRAIN, "demo", "--train.max_steps", "2", "--eval.tta", "0", "--run.name", "run"]
    own = [
        ["--data.path", str(digits), "--run.dir", str(tmp_path / "runs"), "--train.threads", "1"],
        ["--data.path", str(copy), "--run.dir", str(tmp_path / "other")],
    ]
    assert [done.returncode for done in finish(start(common, 2, of_rank=own))] == [0, 0]
    assert (tmp_path / "runs" / "run" / "final").is_dir()
    assert not (tmp_path / "other").exists()


def test_a_run_folder_that_another_machine_does_not_see_is_reported(digits: Path, tmp_path: Path) -> None:
    """Relative paths lead to other places in other working folders, as on two machines."""
    words = ["-c", PLACED, "demo", "--data.path", str(digits), "--train.max_steps", "2", "--eval.tta", "0"]
    places = [str(tmp_path / name) for name in ("one", "two")]
    for place in places:
        Path(place).mkdir()
    done = finish(start(words, 2, TWO_MACHINES, of_rank=[[place] for place in places]))
    assert [each.returncode for each in done] == [0, 0], done[0].stderr
    assert f"warning: runs/demo is not seen on {socket.gethostname()}, which cannot continue this run; choose" in (
        done[0].stdout
    )
    words[words.index("2")] = "3"
    done = finish(start(words, 2, TWO_MACHINES, of_rank=[[place] for place in places]))
    assert [each.returncode for each in done] == [2, 2]
    assert "runs/demo/checkpoints/step-00000002, from which to continue, is not seen on" in done[0].stderr


@pytest.mark.parametrize(
    ("optimizer", "other", "refused"),
    [(MuonSGDConfig(), "A100 of 80 GB", False), (MuonSGDConfig(), "T4", True), (SGDConfig(), "T4", False)],
)
def test_muon_on_several_kinds_of_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, optimizer: OptimConfig, other: str, refused: bool
) -> None:
    """Those that differ in their memory alone are of one kind."""
    kinds = {"A100 of 80 GB": (8, 0, 108), "T4": (7, 5, 40)}
    a100 = SimpleNamespace(major=8, minor=0, multi_processor_count=108)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: a100)
    ranks = Ranks(0, 2, torch.device("cuda"), first_of_node=True)
    monkeypatch.setattr(ranks, "gather_objects", lambda own: [own, (kinds[other], other)])
    says = pytest.raises(UserError, match="its own weights on A100 of 40 GB and T4, which round differently; use")
    with says if refused else nullcontext():
        check_same_devices(optimizer, "A100 of 40 GB", ranks)


ONE_ON_A_GPU = """
import os, sys
from functools import partial
from pathlib import Path
import torch
from cifar_dist.cli import run
from cifar_dist.distributed import same_settings, start
from cifar_dist.process_exit import exit_with
devices = Path(sys.argv.pop())
if os.environ["RANK"] == "0":  # a machine with a GPU, as far as it matters before the ranks join
    torch.cuda.is_available = lambda: True
    start.check_gpus = start.check_own_gpu = lambda *_: None
else:
    start.describe_unused_gpu = partial(start.describe_unused_gpu, devices)
    same_settings.why_on_cpu = partial(same_settings.why_on_cpu, devices)
exit_with(lambda: run(["train", *sys.argv[1:]]))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that torch can use")
def test_machines_on_gpus_and_on_cpus_do_not_join(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would wait for gloo. The machine without says by itself why."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia0").touch()
    done = finish(start(["-c", ONE_ON_A_GPU, str(tiny), str(tmp_path)], 2, TWO_MACHINES))
    assert [each.returncode for each in done] == [2, 2], done[0].stderr + done[1].stderr
    name = socket.gethostname()
    assert done[0].stderr.startswith(f"cifar-dist: rank 1 of {name} computes on the CPU (torch cannot use its GPU: ")
    assert f"), and rank 0 of {name} on GPUs; start without the former, or on all machines use: " in done[0].stderr
    assert done[0].stderr.count("\n") == 1
    unused, refused = done[1].stderr.splitlines()
    assert unused.startswith("cifar-dist: this machine has a GPU that torch ")
    assert f"{refused}\n" == done[0].stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (["a\nDDP\n", "a\nDDP\n", "b\nDDP\n"], ""),
        (["a\nDDP\nno GPU", "b\nDDP\n-1"], ""),
        (
            ["a\nDDP\n", "a\nDDP\n", "b\nDDP\nno GPU"],
            "b computes on the CPU (no GPU), and a on GPUs; start ",
        ),
        (
            ["a\nDDP\nold", "b\nDDP\n-1", "c\nDDP\n", "d\nDDP\n"],
            "a and 1 more compute on the CPU (old), and c and 1 ",
        ),
        (["a\nDDP\n", "a\nDDP\nhidden"], "rank 1 of a computes on the CPU (hidden), and rank 0 of a on GPUs; "),
        (
            ["a\nDDP\n", "b\nFSDP\n", "b\nFSDP\n"],
            "the launch config is for DDP on a and FSDP on b; give all ",
        ),
        (["a\nDDP\n", "a\nFSDP\n"], "the launch config is for DDP on rank 0 of a and FSDP on rank 1 of a; "),
    ],
)
def test_machines_that_were_launched_differently_are_named(found: list[str], says: str) -> None:
    with pytest.raises(MachineError, match=f"^{re.escape(says)}") if says else nullcontext():
        check_same_launch(found)


FSDP = {"ACCELERATE_USE_FSDP": "true"}
ZERO_2, ZERO_3 = (
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in ("2", "3")
)


@pytest.mark.parametrize(
    ("first", "second", "engines"),
    [
        ({}, FSDP, ("DDP", "FSDP")),
        (ZERO_2, {}, ("DeepSpeed ZeRO-2", "DDP")),
        (ZERO_2, ZERO_3, ("DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3")),
    ],
)
def test_machines_with_different_launch_configs_do_not_join(
    tiny: Path, tmp_path: Path, first: dict[str, str], second: dict[str, str], engines: tuple[str, str]
) -> None:
    """Their engines would exchange different things, and fail or wait for each other."""
    done = finish(start([TRAIN, str(tiny)], 2, TWO_MACHINES, env_of_rank=(first, second)))
    assert [each.returncode for each in done] == [2, 2], done[0].stderr + done[1].stderr
    name = socket.gethostname()
    places = " and ".join(f"{engine} on rank {rank} of {name}" for rank, engine in enumerate(engines))
    problem = f"cifar-dist: the launch config is for {places}; give all machines the same command\n"
    assert [each.stderr for each in done] == [problem] * 2
    assert not (tmp_path / "runs").exists()


def test_an_optimizer_on_the_cpu_of_one_machine_is_refused(tiny: Path) -> None:
    offload = {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}
    done = finish(start([TRAIN, str(tiny)], 2, TWO_MACHINES | ZERO_2, env_of_rank=({}, offload)))
    assert [each.returncode for each in done] == [2, 2], done[0].stderr + done[1].stderr
    assert "engine is DeepSpeed ZeRO-2 on rank 0 and DeepSpeed ZeRO-2, optimizer on the CPU on rank 1; give" in (
        done[0].stderr
    )
