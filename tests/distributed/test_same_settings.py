"""Machines of one job that were given different commands, or have different code, do not train together."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import socket
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.plug_in_package import NET as PACKAGED_NET
from support.plug_in_package import write_package
from support.running import TRAIN, finish, start

from cifar_dist.config import OptimConfig, SGDConfig
from cifar_dist.config.optim import MuonSGDConfig
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.same_settings import check_same_devices, check_same_launch
from cifar_dist.errors import MachineError, UserError

TWO_MACHINES = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # of both ranks
PLACED = """
import os, sys
from pathlib import Path
place = Path(sys.argv.pop())
os.chdir(place)
sys.path.insert(1, str(place / "installed"))
from cifar_dist.cli import run
from cifar_dist.distributed import same_settings, shared_path
shared_path.SEEN_SECONDS = 0.5
if (place / "commit").exists():
    same_settings.commit = (place / "commit").read_text
from cifar_dist.process_exit import exit_with
exit_with(lambda: run(["train", *sys.argv[1:]]))
"""
NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, classes, channels):
        super().__init__(nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.append(nn.Linear(8, classes))
"""
TRACKER = """
class Lines:
    def __init__(self, folder, config, facts): pass
    def start(self, history): pass
    def train_steps(self, records): pass
    def evaluation(self, record, best): pass
    def close(self, status): pass
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


@pytest.fixture
def machines(tmp_path: Path) -> list[Path]:
    """Return the working folders of two machines, with the same plug-in and other trackers."""
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
        (place / "net.py").write_text(NET)
        (place / "lines.py").write_text(f"{TRACKER}# of {place.name}\n")
    return places


def train_on(machines: list[Path], digits: Path, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """Train two steps of a plug-in's network, one process on each machine."""
    common = ["-c", PLACED, "demo", "--data.path", str(digits), "--run.dir", str(machines[0]), "--eval.tta", "0"]
    common += ["--train.max_steps", "2", "--model.name", "net.py:Net", *words]
    return finish(start(common, 2, TWO_MACHINES, of_rank=[[str(place)] for place in machines]))


def test_another_plug_in_file_on_another_machine_is_refused(digits: Path, machines: list[Path]) -> None:
    """They would train a mixture of two networks, of which the run folder has one."""
    (machines[1] / "net.py").write_text(NET.replace("ReLU", "Tanh"))
    done = train_on(machines, digits)
    assert [each.returncode for each in done] == [2, 2], done[0].stderr + done[1].stderr
    sums = [hashlib.sha256((place / "net.py").read_bytes()).hexdigest()[:12] for place in machines]
    assert done[0].stderr == (
        f"cifar-dist: the sha256 of net.py is {sums[0]} on rank 0 and {sums[1]} on rank 1; give all machines the same "
        "file\n"
    )
    assert not done[1].stderr
    assert not (machines[0] / "demo").exists()


def test_another_package_of_a_plug_in_on_another_machine_is_refused(digits: Path, machines: list[Path]) -> None:
    """Also where the module that is named is the same."""
    for place, activation in zip(machines, ("ReLU", "Sigmoid"), strict=True):
        write_package(place / "installed", activation=activation)
    done = train_on(machines, digits, "--model.name", PACKAGED_NET)
    assert [each.returncode for each in done] == [2, 2], done[0].stderr + done[1].stderr
    says = (
        r"cifar-dist: the sha256 of plugpkg is (\w{12}) on rank 0 and (?!\1)\w{12} on rank 1; install the same version "
    )
    assert re.fullmatch(says + "on all machines\n", done[0].stderr)
    assert not (machines[0] / "demo").exists()
    write_package(machines[1] / "installed", version="1.1")
    done = train_on(machines, digits, "--model.name", PACKAGED_NET)
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr


def test_another_version_on_another_machine_is_refused(digits: Path, machines: list[Path]) -> None:
    folder = machines[1] / "installed" / "cifar_dist-0.0.7.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: cifar-dist\nVersion: 0.0.7\n")
    done = train_on(machines, digits)
    assert [each.returncode for each in done] == [2, 2], done[0].stderr + done[1].stderr
    assert done[0].stderr == (
        f"cifar-dist: cifar-dist is {importlib.metadata.version('cifar-dist')} on rank 0 and 0.0.7 on rank 1; install "
        "the same version on all machines\n"
    )


def test_another_commit_is_a_warning_and_a_tracker_is_rank_0_s(digits: Path, machines: list[Path]) -> None:
    """Commits may differ in a page alone, and only rank 0 imports a tracker."""
    for digit, place in zip("12", machines, strict=True):
        (place / "commit").write_text(40 * digit)
    done = train_on(machines, digits, "--tracking.mirrors", '["lines.py:Lines"]')
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    assert (
        "cifar-dist: the commit of cifar-dist is 1111111111 on rank 0 and 2222222222 on rank 1: they may compute "
        "different things; use one on all machines\n"
    ) in done[0].stderr


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
