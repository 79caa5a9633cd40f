"""Exit codes and signals through launch/local.sh, with real launchers and ranks."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support.running import PATIENCE, ROOT, environment, wait_until

from launch import soak


@pytest.fixture
def recipe(digits: Path, tmp_path: Path) -> Path:
    return soak.write_recipe(tmp_path, digits)


def left_of(recipe: Path, program: str = "") -> list[str]:
    """Return the command lines of the processes that still work on the run."""
    found = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if str(recipe) in line and program in line]


def rank_of(recipe: Path, rank: int) -> psutil.Process:
    """Return the process that trains the run as this rank; others may end meanwhile."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(recipe) in process.cmdline() and process.environ().get("RANK") == str(rank):
                return process
    raise AssertionError(f"no process is rank {rank}")


@pytest.mark.parametrize("kind", ["stopped", "refused"])
def test_the_launcher_returns_the_exit_code_of_the_ranks(recipe: Path, forked: dict[str, str], kind: str) -> None:
    """soak.py repeats it many times; test_sharding.py covers runs that finish."""
    code, output = soak.launch(kind, recipe, kind, forked)
    assert code == soak.CODES[kind], output
    assert "Traceback" not in output
    assert not left_of(recipe)
    run = recipe.parent / "runs" / kind
    if kind == "stopped":
        saved = (run / "checkpoints" / "latest").resolve()
        assert saved.name == f"step-{soak.steps_done(run):08d}", "it saves the last step that it logged"
    if kind == "refused":
        assert output.startswith("cifar-dist: train.batch_size 101 is not divisible by 2 processes")
        assert output.count("\n") == 1, "one line, and not one for each rank"


def test_ctrl_c_in_a_terminal_saves_even_while_the_ranks_are_starting(recipe: Path, tmp_path: Path) -> None:
    """The terminal sends INT to every process in the foreground; the run must count it as one."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['cifar_dist.report.run_page'] = None\n")
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"  # no report is drawn: it takes longer than the run
    pid, terminal = pty.fork()
    if pid == 0:
        words = ["cpu", "--num_processes=2", str(recipe), "--run.name", "typed", "--train.epochs", "10000"]
        os.execve(soak.LOCAL, ["local.sh", *words], environment({"PYTHONPATH": path}))
    output = b""
    deadline = time.monotonic() + PATIENCE
    while not left_of(recipe, "-u -m cifar_dist train"):
        assert time.monotonic() < deadline, "no rank was started"
        time.sleep(0.05)
    os.write(terminal, b"\x03")
    try:
        while chunk := os.read(terminal, 4096):
            output += chunk
    except OSError:  # the other end is closed: it has ended
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75, output.decode()
    assert b"Ctrl-C: stopping; again ends it at once" in output
    assert b": Ctrl-C\r\n" in output, "the ranks know what stopped them"
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", output).decode()
    assert f"  {soak.LOCAL} cpu --num_processes=2 resume {recipe.parent}/runs/typed\r\n" in plain
    assert b"Traceback" not in output
    assert not left_of(recipe)
    assert (recipe.parent / "runs" / "typed" / "checkpoints" / "latest").is_dir()


def test_a_killed_rank_ends_the_job_whose_launcher_leaves_no_temporary_folder(
    recipe: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    job = soak.start(recipe, "killed", "--train.epochs", "10000", env={**forked, "TMPDIR": str(temporary)})
    run = recipe.parent / "runs" / "killed"
    wait_until(lambda: (run / "checkpoints" / "latest").exists(), [job])
    rank_of(recipe, 1).send_signal(signal.SIGKILL)
    code, output = soak.end(job)
    assert code == 128 + signal.SIGKILL, output
    assert "\ncifar-dist: rank 1 was killed by SIGKILL; if nobody did that, the memory of its machine" in output
    newest, command = re.findall(r"\n(step-\d{8}) is saved; resume with:\n  (.*)\n", output)[0]
    assert (run / "checkpoints" / newest).is_dir()
    assert command == f"{soak.LOCAL} cpu --num_processes=2 resume {run}"
    assert not left_of(recipe)
    assert not list(temporary.glob("torchelastic_*"))


@pytest.mark.parametrize("killed", ["launcher", "agent"])
def test_no_rank_survives_whichever_process_is_killed(recipe: Path, killed: str) -> None:
    """Killed as the first rank appears: nothing has found it yet, and it has not run any of our code."""
    job = soak.start(recipe, "orphans", "--train.epochs", "10000")
    agent = psutil.Process(job.pid)
    wait_until(lambda: bool(left_of(recipe, "-u -m cifar_dist train")), [job])
    (launcher,) = agent.children()
    ranks = launcher.children()
    {"launcher": launcher, "agent": agent}[killed].send_signal(signal.SIGKILL)
    code, output = soak.end(job)
    assert code == (128 + signal.SIGKILL if killed == "launcher" else -signal.SIGKILL), output
    _, alive = psutil.wait_procs([launcher, *ranks], timeout=PATIENCE if killed == "agent" else 0)
    for process in alive:
        process.kill()
    assert not alive


def test_local_sh_refuses_bad_input_before_it_starts_a_process() -> None:
    """What else is refused: test_launch_verb.py."""
    words = ["cpu", "--num_processes", "4", "demo"]
    done = subprocess.run([soak.LOCAL, *words], env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "write it as --num_processes=4" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wrong_environment_is_named() -> None:
    env = environment({"CIFAR_DIST_VENV": "/nowhere"})
    done = subprocess.run([soak.LOCAL, "cpu", "demo"], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr == "launch/local.sh: CIFAR_DIST_VENV is /nowhere, but /nowhere/bin/python does not exist\n"


def test_missing_gpus_are_reported_in_one_line(forked: dict[str, str]) -> None:
    env = environment({**forked, "CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(
        [soak.LOCAL, "ddp", "demo", "--train.epochs", "4"],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    command = f"{soak.LOCAL} cpu demo --train.epochs 4"
    assert done.stderr == f"cifar-dist: accelerate launch: Cuda is not available; without GPUs, use: {command}\n"
