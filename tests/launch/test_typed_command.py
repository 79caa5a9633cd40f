"""The commands that a job proposes: its launcher as it was typed, and what follows it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cifar_dist.launch import typed_command
from cifar_dist.launch.gpu_devices import count_gpus
from cifar_dist.launch.typed_command import (
    VARIABLE,
    command_for_recipes,
    command_for_verbs,
    command_with_cpu,
    command_with_ddp,
    launcher_command,
    resume_command,
)

RUN = Path("runs/two words")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("cifar-dist train demo --run.name first", "cifar-dist resume 'runs/two words'"),
        ("cifar-dist resume first --train.epochs 9", "cifar-dist resume 'runs/two words'"),
        ("a-python -m cifar_dist train demo", "a-python -m cifar_dist resume 'runs/two words'"),
        ("a-python train.py demo --optim.lr 0.1", "a-python train.py demo --optim.lr 0.1"),
        ("a-python train.py demo --run.fresh --optim.lr 0.1", "a-python train.py demo --optim.lr 0.1"),
        ("a-python train.py --run.fresh true demo", "a-python train.py demo"),
        ("a-python train.py demo --run.fresh=true", "a-python train.py demo"),
        ("a-python train.py demo --eval.split train", "a-python train.py demo --eval.split train"),
        ("a-python train.py demo --run.name resume", "a-python train.py demo --run.name resume"),
        ("/opt/train/cifar-dist train demo --eval.split train", "/opt/train/cifar-dist resume 'runs/two words'"),
        (
            "srun -J train a-python -m cifar_dist train demo",
            "srun -J train a-python -m cifar_dist resume 'runs/two words'",
        ),
    ],
)
def test_a_run_of_one_process_is_resumed_by_the_program_that_was_typed(
    typed: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", typed.split())
    assert resume_command(RUN) == command


@pytest.mark.parametrize(
    ("above", "command"),
    [
        (
            "torchrun --nproc_per_node 2 -m cifar_dist train demo --optim.lr 0.1",
            "torchrun --nproc_per_node 2 -m cifar_dist resume 'runs/two words'",
        ),
        (
            "torchrun --nproc_per_node 2 train.py demo --eval.split train",
            "torchrun --nproc_per_node 2 train.py demo --eval.split train",
        ),
        (
            "accelerate launch --machine_rank 0 --module cifar_dist train demo",
            "accelerate launch --machine_rank 0 --module cifar_dist resume 'runs/two words'",
        ),
    ],
)
def test_a_run_under_another_launcher_is_resumed_under_it(
    above: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typed_command, "parent_command", above.split)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resume_command(RUN) == command


@pytest.mark.parametrize(
    ("typed", "launcher"),
    [
        ("torchrun --nproc_per_node 2 train.py", "torchrun --nproc_per_node 2 -m cifar_dist"),
        ("torchrun --nproc_per_node 2 -m cifar_dist", "torchrun --nproc_per_node 2 -m cifar_dist"),
        ("accelerate launch --config_file my.yaml train.py", "accelerate launch --config_file my.yaml -m cifar_dist"),
        ("accelerate launch --module cifar_dist", "accelerate launch -m cifar_dist"),
        ("make", "cifar-dist"),
        ("", "cifar-dist"),
    ],
)
def test_other_verbs_run_in_as_many_processes(typed: str, launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a launcher that passes nothing on. ``train.py`` itself knows no verbs."""
    own = [*(["train"] if "cifar_dist" in typed else []), "demo", "--optim.lr", "0.1"]
    monkeypatch.setattr(typed_command, "parent_command", lambda: [*typed.split(), *own])
    monkeypatch.setattr(sys, "argv", ["script", *own])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command_for_verbs() == launcher
    assert command_for_recipes() == f"{launcher} train"


@pytest.mark.parametrize(
    ("passed", "launcher"),
    [
        (None, "cifar-dist launch cpu --num_processes=3"),
        ("launch/local.sh", "launch/local.sh cpu --num_processes=3"),
        ("", ""),
    ],
    ids=["typed", "by launch/local.sh", "by a program that says itself how to resume"],
)
def test_a_run_that_is_launched_is_resumed_with_its_launcher(
    passed: str | None, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["cifar-dist", "launch", "cpu", "--num_processes=3", "demo"])
    if passed is not None:
        monkeypatch.setenv(VARIABLE, passed)
    assert launcher_command("cpu", ["--num_processes=3"]) == launcher
    monkeypatch.setenv(VARIABLE, launcher)
    assert resume_command(RUN) == (f"{launcher} resume 'runs/two words'" if launcher else "")


@pytest.mark.parametrize(
    ("passed", "typed", "command"),
    [
        (
            "launch/local.sh fsdp --num_processes=3",
            "train demo --train.parts 4",
            "launch/local.sh DDP --num_processes=3",
        ),
        ("cifar-dist launch ./my.json --zero_stage=3", "train demo --train.parts 4", "cifar-dist launch DDP"),
        (None, "launch fsdp --fsdp_version=2 demo --train.parts 4", "cifar-dist launch DDP"),
        (None, "demo --train.parts 4", "cifar-dist launch DDP"),
    ],
)
def test_an_engine_is_replaced_by_ddp(
    passed: str | None, typed: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the options that another engine takes."""
    monkeypatch.setattr(sys, "argv", ["cifar-dist", *typed.split()])
    if passed is not None:
        monkeypatch.setenv(VARIABLE, passed)
    ddp = "ddp" if count_gpus() else "cpu"
    assert command_with_ddp() == f"use: {command.replace('DDP', ddp)} demo --train.parts 4"


def test_a_slurm_job_is_given_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_DIST_LAUNCH", "zero2")
    assert command_with_ddp() == "set CIFAR_DIST_LAUNCH=ddp, or CIFAR_DIST_LAUNCH=cpu without GPUs"
    monkeypatch.setenv(VARIABLE, "")
    assert command_with_cpu() == "set CIFAR_DIST_LAUNCH=cpu"
