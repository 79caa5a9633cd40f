"""The launchers' own commands, as documented, do what the documentation says, or report why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.running import PATIENCE, ROOT, environment, free_port, spawn

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


@pytest.mark.parametrize(
    ("config", "options", "visible"),
    [
        ("ddp", ["--gpu_ids=4,5"], "4,5"),
        ("ddp", ["--gpu-ids=4,5", "--nnodes=1:2", "--rdzv_endpoint=127.0.0.1:{port}"], "4,5"),
        ("ddp", ["--gpu_ids=all"], "0,1,2"),
        ("ddp", [], "0,1,2"),
        ("cpu", [], "-1"),
    ],
)
def test_the_launcher_counts_the_gpus_that_its_ranks_see(config: str, options: list[str], visible: str) -> None:
    """It refuses a machine with too few of them before it joins others, whose job its ranks would end."""
    words = [option.format(port=free_port()) for option in options]
    code = f"""if True:
        import os
        from pathlib import Path
        import accelerate.commands.launch as accelerate
        from cifar_dist.launch import elastic
        from cifar_dist.launch.launcher import launch_ranks
        from cifar_dist.launch.options import read_request
        from cifar_dist.runs.launched_run import LaunchedRun
        elastic.prepare = lambda *_: print(os.environ["CUDA_VISIBLE_DEVICES"])
        accelerate.launch_command = elastic.prepare if {not any("nnodes" in word for word in words)} else lambda _: None
        asked = read_request(Path("launch/{config}.yaml"), {words})
        launch_ranks([*{words}, "-m", "cifar_dist", "doctor"], asked, LaunchedRun(["doctor"]), [])
    """
    (done,) = spawn(["-c", code], env={"CUDA_VISIBLE_DEVICES": "0,1,2"})
    assert done.stdout == f"{visible}\n", done.stderr


def checkout(folder: Path) -> Path:
    """Write what ``make setup`` reads, and an environment that is up to date; return its stamp."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    stamp = folder / ".venv" / ".ready"
    stamp.parent.mkdir()
    stamp.write_text(f"{folder}\n")
    return stamp


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def setup(folder: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Call ``make setup`` without what the ``make test`` around this test was given."""
    variables = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES")}
    variables["PATH"] = f"{path}:{variables['PATH']}" if path else variables["PATH"]
    command = ["make", "setup", *words]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_a_checkout_that_was_moved_is_set_up_again(tmp_path: Path) -> None:
    """The programs of an environment name their Python by its full path."""
    stamp = checkout(tmp_path)
    assert "pip install" not in setup(tmp_path, "-n").stdout
    stamp.write_text(f"{tmp_path.parent / 'before'}\n")
    assert "the checkout was moved: creating .venv again" in setup(tmp_path, "-n").stdout


def test_the_environment_is_created_again_for_another_python(tmp_path: Path) -> None:
    checkout(tmp_path)
    for path, version in ((".venv/bin/python", "3.12.1"), ("same", "3.12.1"), ("other", "3.13.0")):
        program(tmp_path / path, f"echo 'Python {version} (main) [GCC]'")
    for words in ((), ("PYTHON=./same",)):
        assert "pip install" not in setup(tmp_path, "-n", *words).stdout
    again = setup(tmp_path, "-n", "PYTHON=./other").stdout
    assert ".venv has another Python than './other': creating .venv again" in again
    program(tmp_path / "other", "echo 'Python 3.9.2'; exit 1")
    refused = setup(tmp_path, "PYTHON=./other")
    assert "cifar-dist needs Python 3.11 or newer and './other' is not; name one: make setup PYTHON=" in refused.stderr
    assert (tmp_path / ".venv" / "bin" / "python").exists(), "it is removed only for one that can replace it"


def test_an_environment_is_updated_with_its_own_python(tmp_path: Path) -> None:
    stamp = checkout(tmp_path)
    for name in ("python", "uv"):
        program(tmp_path / ".venv" / "bin" / name, "exit 0")
    program(tmp_path / "too old" / "python3", "exit 1")
    os.utime(stamp, (10**9, 10**9))  # before the list of packages was changed
    done = setup(tmp_path, path=str(tmp_path / "too old"))
    assert done.returncode == 0, done.stderr
    assert "pip install" in done.stdout
    assert stamp.read_text() == f"{tmp_path}\n"
    assert stamp.stat().st_mtime > 10**9
