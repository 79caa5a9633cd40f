"""The launchers' own commands, as documented, do what the documentation says, or report why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.running import PATIENCE, ROOT, environment

from launch import soak

CONFIGS = sorted((ROOT / "launch").glob("*.yaml"))


def run(forked: dict[str, str], launcher: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(forked["CIFAR_DIST_VENV"], "bin", launcher), *words]
    return subprocess.run(command, env=environment(forked), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize(
    "launcher",
    [
        ["torchrun", "--nproc-per-node", "2"],
        ["accelerate", "launch", "--config_file", "launch/cpu.yaml"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_two_processes_train_together(
    digits: Path, tmp_path: Path, forked: dict[str, str], launcher: list[str]
) -> None:
    done = run(forked, *launcher, "train.py", soak.write_recipe(tmp_path, digits))
    assert done.returncode == 0, done.stderr
    assert "2 processes, DDP, cpu" in done.stdout


def test_a_launch_that_would_silently_start_one_process_is_refused(tmp_path: Path) -> None:
    """A process reads what was requested from the command line of its parent, so none is a fork here."""
    program = tmp_path / "check.py"
    program.write_text("from cifar_dist.distributed.launch_checks import check_launch\ncheck_launch(0)\n")
    words = ["accelerate", "launch", "--cpu", "--num_processes", "2", str(program)]
    done = run({"CIFAR_DIST_VENV": sys.prefix}, *words)
    assert done.returncode != 0
    refused = "accelerate launch was asked for 2 processes and started 1"
    assert len([line for line in done.stderr.splitlines() if refused in line and "UserError: " in line]) == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_a_launch_file(path: Path) -> None:
    from accelerate.commands.config import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    assert config.mixed_precision == "no", "the recipe's train.precision decides"
    head = [line.startswith("#") for line in path.read_text().splitlines()[:3]]
    assert head == [True, True, False], "two lines that say what it is"


def test_the_launch_file_for_a_cpu_leaves_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate tells processes of ``use_cpu`` only where it starts one, and theirs would take the GPUs."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(ROOT / "launch" / "cpu.yaml"), "--num_processes=4", "train.py"]
    variables = prepare_multi_gpu_env(_validate_launch_command(launch_command_parser().parse_args(words))[0])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variables["CUDA_VISIBLE_DEVICES"])
    assert torch.cuda._parse_visible_devices() == []


def test_a_checkout_that_was_moved_is_set_up_again(tmp_path: Path) -> None:
    """The programs of an environment name their Python by its full path."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stamp = tmp_path / ".venv" / ".ready"
    stamp.parent.mkdir()

    def commands_of_setup(place: Path) -> str:
        stamp.write_text(f"{place}\n")
        return subprocess.run(["make", "-n", "setup"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "pip install" not in commands_of_setup(tmp_path)
    assert "creating .venv again" in commands_of_setup(tmp_path.parent / "before")
