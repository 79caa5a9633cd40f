"""What a launcher of several machines asks of the run that words on a command line start."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.plug_in_package import NET as PACKAGED_NET
from support.plug_in_package import write_package
from support.recorded import FACTS
from support.run_folders import write_run
from support.running import ROOT

from cifar_dist import recipe
from cifar_dist.config import RunConfig
from cifar_dist.data.dataset_folder import FILE_NAME
from cifar_dist.errors import UserError
from cifar_dist.launch.options import read_request
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.kept_plugins import keep_versions
from cifar_dist.runs.launched_run import LaunchedRun
from cifar_dist.tracking import timeline
from cifar_dist.tracking.environment import write_environment
from cifar_dist.tracking.timeline import Event

ASKED = read_request(ROOT / "launch" / "ddp.yaml", ["--nnodes=1:2", "--rdzv_endpoint=node1:29400"])


@pytest.fixture
def run(tmp_path: Path) -> str:
    words = ["--run.dir", str(tmp_path / "runs"), "--run.name", "first", "--run.join_timeout", "7"]
    return str(write_run(tmp_path / "runs" / "first", recipe.load("demo", words)))


def test_settings_may_precede_what_is_trained(run: str) -> None:
    assert LaunchedRun(["train", "demo", "--run.join_timeout", "9"]).join_timeout == 9
    assert LaunchedRun(["train", "--run.join_timeout", "9", "demo"]).join_timeout == 9
    assert LaunchedRun(["resume", run]).join_timeout == 7
    assert LaunchedRun(["resume", "--run.join_timeout=9", run]).join_timeout == 9


@pytest.mark.parametrize(
    "words", ["train", "resume", "train --help", "train demo demo", "train demo --help", "doctor demo"]
)
def test_words_that_start_no_run_are_left_to_their_verb(words: str) -> None:
    launched = LaunchedRun(words.split())
    assert launched.join_timeout == RunConfig().join_timeout
    assert launched.words_to_continue() == words.split()
    assert not launched.is_finished()
    launched.check_elastic(ASKED, [1, 2])


def test_a_run_continues_with_its_own_settings(run: str, tmp_path: Path) -> None:
    """Its recipe, and that it had to be a new one, count when it begins only."""
    place = ["--run.dir", str(tmp_path / "runs"), "--run.fresh", "--run.name", "first"]
    again = LaunchedRun(["train", "demo", *place, "--optim.lr", "0.2"])
    assert again.words_to_continue() == ["resume", run, "--optim.lr", "0.2"]
    before = ["train", "demo", *place[:-1], "second"]
    assert LaunchedRun(before).words_to_continue() == before


def test_a_run_that_is_to_be_extended_is_not_finished(tiny: Path) -> None:
    """Or a machine that has waited in vain for the others would call it done."""
    run = write_run(tiny.parent / "runs" / "tiny", recipe.load(str(tiny)), test=0.5)
    assert LaunchedRun(["resume", str(run)]).is_finished()
    assert LaunchedRun(["train", str(tiny), "--run.name", "tiny", "--run.fresh"]).is_finished()
    assert not LaunchedRun(["resume", str(run), "--train.epochs", "4"]).is_finished()
    assert not LaunchedRun(["doctor"]).is_finished()


@pytest.mark.parametrize(
    ("where", "kind", "has_gpus", "problem"),
    [
        ("DDP, cuda (NVIDIA A100)", "MULTI_GPU", True, ""),
        ("one process, cpu", "MULTI_GPU", False, ""),
        ("FSDP, cpu", "FSDP", False, ""),
        ("DeepSpeed ZeRO-2, optimizer on the CPU, cuda (NVIDIA A100)", "DEEPSPEED", True, ""),
        ("DDP, cuda (NVIDIA A100)", "FSDP", True, "has DDP, and {config} asks for FSDP; give all machines the same"),
        ("DeepSpeed ZeRO-2, cpu", "MULTI_GPU", False, "has DeepSpeed, and {config} asks for DDP; give all machines"),
        ("DDP, cuda (NVIDIA A100)", "MULTI_GPU", False, "computes on GPUs, and this machine would on its CPU; make"),
        ("one process, cpu", "MULTI_GPU", True, "computes on CPUs, and this machine would on GPUs; use: cifar-dist"),
    ],
)
def test_a_machine_with_other_devices_or_another_engine_does_not_join_a_run_that_trains(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, where: str, kind: str, has_gpus: bool, problem: str
) -> None:
    """Its ranks and those of the others would refuse each other, which ends the job on all machines."""
    folder = RunFolder(write_run(tiny.parent / "runs" / "tiny", recipe.load(str(tiny))))
    shutil.copy(Path(recipe.load(str(tiny)).data.path) / FILE_NAME, folder.manifest)
    timeline.append(folder.timeline, Event(timeline.utc(), "started", 0, processes=1, where=where))
    timeline.append(folder.timeline, Event(timeline.utc(), "extended", 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpus)
    launched = LaunchedRun(["train", str(tiny), "--run.name", "tiny"])
    asked = replace(ASKED, kind=kind)
    with folder.locked():
        if problem:
            with pytest.raises(UserError) as error:
                launched.check_elastic(asked, [])
            expected = f"the job that trains {folder.path} now {problem.format(config=asked.config)}"
            assert str(error.value).startswith(expected)
        else:
            launched.check_elastic(asked, [])
    launched.check_elastic(asked, [])


def test_a_machine_is_compared_with_a_job_between_two_starts_of_its_ranks(tiny: Path) -> None:
    """When no process trains the run; a job that has not begun may change its settings."""
    folder = RunFolder(write_run(tiny.parent / "runs" / "tiny", recipe.load(str(tiny))))
    shutil.copy(Path(recipe.load(str(tiny)).data.path) / FILE_NAME, folder.manifest)
    longer = LaunchedRun(["train", str(tiny), "--run.name", "tiny", "--train.epochs", "4"])
    longer.check_elastic(ASKED, [])
    with pytest.raises(UserError, match=r"train\.epochs is 2 in the job that trains \S+ now, and 4 here"):
        longer.check_elastic(ASKED, [], has_begun=True)
    assert not longer.is_training()
    with folder.locked():
        assert longer.is_training()
    timeline.append(folder.timeline, Event(timeline.utc(), "resumed", 0, processes=2))
    timeline.append(folder.timeline, Event(timeline.utc(), "interrupted", 0))
    assert longer.starts() == 1
    doctor = LaunchedRun(["doctor"])
    assert (doctor.starts(), doctor.is_training()) == (None, False)


@pytest.mark.parametrize("package", ["cifar-dist", "torch"])
def test_a_machine_with_another_version_does_not_join_a_run_that_trains(tiny: Path, package: str) -> None:
    """Its ranks would refuse those of the others, which ends the job on all machines."""
    folder = RunFolder(write_run(tiny.parent / "runs" / "tiny", recipe.load(str(tiny))))
    shutil.copy(Path(recipe.load(str(tiny)).data.path) / FILE_NAME, folder.manifest)
    write_environment(folder.environment, FACTS)
    launched = LaunchedRun(["train", str(tiny), "--run.name", "tiny"])
    with folder.locked():
        launched.check_elastic(ASKED, [])
        described = json.loads(folder.environment.read_text())
        described["versions"][package] = "0.0.7"
        folder.environment.write_text(json.dumps(described))
        here = importlib.metadata.version(package)
        says = f"{package} is 0.0.7 in the job that trains {folder.path} now, and {here} here; install the same version"
        with pytest.raises(UserError, match=re.escape(says)):
            launched.check_elastic(ASKED, [])


def test_a_machine_with_another_package_of_a_plug_in_does_not_join_a_run_that_trains(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = write_package(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    settings = ["--model.name", PACKAGED_NET, "--run.name", "tiny"]
    config = recipe.load(str(tiny), settings)
    folder = RunFolder(write_run(tiny.parent / "runs" / "tiny", config))
    shutil.copy(Path(config.data.path) / FILE_NAME, folder.manifest)
    keep_versions(folder.plugins, config)
    launched = LaunchedRun(["train", str(tiny), *settings])
    with folder.locked():
        launched.check_elastic(ASKED, [])
        write_package(site, activation="Sigmoid")
        says = rf"the sha256 of plugpkg is (\w+) in the job that trains {folder.path} now, and (?!\1)\w+ here; install"
        with pytest.raises(UserError, match=says):
            launched.check_elastic(ASKED, [])
