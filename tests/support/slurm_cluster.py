"""A real Slurm cluster on this machine, for the duration of its tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.running import PATIENCE, ROOT, environment, free_port

HERE = ROOT / "tests" / "slurm"
SCRIPT = ROOT / "slurm" / "train.sbatch"
NODES = 8
STEPS = 26  # of the recipe below
PAUSE = 11
"""Records after which a run of it stops itself: after its first checkpoint is complete."""
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def write_recipe(folder: Path, digits: Path, *, runs: str) -> Path:
    """Write ``small.toml``: a run with the same bits on any number of nodes, which saves every fifth step."""
    path = folder / "small.toml"
    path.write_text(
        f"""
        run.dir = "{runs}"
        data.path = "{digits}"
        augment.transforms = [{{ name = "crop" }}]
        model.name = "tiny-cnn"
        schedule.name = "cosine"
        train = {{ epochs = 2, batch_size = 20, threads = 1, parts = 2 }}
        checkpoint.every_steps = 5
        tracking.every = 1
        eval = {{ every = 2, tta = "0" }}
        """
    )
    return path


def write_python(folder: Path, env: dict[str, str], instead: str, only: str = "", node: str = "node2") -> Path:
    """Write a ``bin/python`` that behaves differently on a node, ``only`` for commands with these words."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\ncase "$SLURMD_NODENAME $*" in ({node}*"{only}"*) {instead};; esac\n'
        f'exec {env["CIFAR_DIST_VENV"]}/bin/python "$@"\n'
    )
    python.chmod(0o755)
    return folder


def until(happened: Callable[[], bool], what: Callable[[], str], timeout: float = PATIENCE) -> None:
    """Wait for a condition; if it does not become true, the test fails with ``what()``."""
    deadline = time.monotonic() + timeout
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"it took more than {timeout:.0f} s: {what()}")
        time.sleep(0.2)


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        id: Slurm's number.
        folder: where it was submitted and its output goes.
        env: the environment of the cluster's commands.
    """

    id: str
    folder: Path
    env: dict[str, str]

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def facts(self) -> dict[str, str]:
        """Return what ``scontrol show job`` prints: JobState, ExitCode, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", self.id)))

    def output(self) -> str:
        path = self.folder / f"slurm-{self.id}.out"
        return path.read_text() if path.exists() else ""

    def has_ended(self) -> bool:
        """Whether the job has ended for good."""
        return self.facts()["JobState"] in _ENDED

    def wait(self) -> str:
        """Wait until the job has ended for good; return its state."""
        until(self.has_ended, lambda: f"{self.facts()['JobState']}\n{self.output()}")
        return self.facts()["JobState"]


@dataclass(frozen=True)
class Cluster:
    """Submits to the nodes ``node1`` to ``node8``, and changes them."""

    env: dict[str, str]

    def submit(
        self,
        folder: Path,
        *words: str,
        nodes: str = "node[1-2]",
        options: Sequence[str] = (),
        script: Path = SCRIPT,
        env: Mapping[str, str],
    ) -> Job:
        """Run ``sbatch *options script *words`` from ``folder``, which is not the repository."""
        own = {**self.env, "CIFAR_DIST_HOME": str(ROOT), "CIFAR_DIST_VENV": sys.prefix, **env}
        count = 2 if "[" in nodes else 1
        command = ["sbatch", "--parsable", f"--nodes={count}", f"--nodelist={nodes}", *options, str(script), *words]
        done = subprocess.run(command, env=own, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return Job(done.stdout.strip(), folder, own)

    def set_node(self, node: str, state: str) -> None:
        """Set the state of a node: ``down`` is as if it failed."""
        command = ["scontrol", "update", f"nodename={node}", f"state={state}", "reason=a test"]
        subprocess.run(command, env=self.env, check=True, timeout=PATIENCE)


def lacking(path: str) -> str:
    """Return why this machine cannot run such a cluster; empty if it can."""
    missing = [tool for tool in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(tool, path=path)]
    if missing:
        return f"no {', '.join(missing)}; on Debian: apt-get install --no-install-recommends slurm-wlm munge"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "a node with its own hostname takes root, and namespaces"
    return ""


@contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Start the cluster, and stop it whatever happens. Skips the test on a machine that cannot run one."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if reason := lacking(path):
        pytest.skip(reason)
    # Its own folder, ports, bridge, subnet and job numbers, from which the ports of a job follow: another cluster of
    # this kind may run beside it.
    port = free_port()
    number = port // 10 - 1000  # 0 to 999
    lab = {
        "SLURM_LAB_DIR": f"/tmp/cifar-dist-slurm-{number}",
        "SLURM_LAB_PORT": str(port),
        "SLURM_LAB_BRIDGE": f"cdist{number}",
        "SLURM_LAB_SUBNET": f"10.{214 + number // 250}.{number % 250 + 1}",
        "SLURM_LAB_EXTRA": f"FirstJobId={12 * number + 1}",
        "SLURM_LAB_TIMEOUT": str(PATIENCE),
        # However slow this machine is, what a job does after a signal must be done before Slurm kills it.
        "SLURM_LAB_KILLWAIT": "60",
        "SLURM_LAB_GRACE": "120",
    }
    env = environment(lab)
    try:
        _script("slurm_down.sh", "--purge", env=env)  # one that a killed test left
        _script("slurm_up.sh", str(NODES), env=env)
        yield Cluster({**env, "SLURM_CONF": f"{lab['SLURM_LAB_DIR']}/slurm.conf", "PATH": path})
    finally:
        _script("slurm_down.sh", "--purge", env=env)


def _script(name: str, word: str, env: dict[str, str]) -> None:
    done = subprocess.run(["bash", HERE / name, word], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
