"""slurm/train.sbatch on two real nodes: trains one run, survives a requeue bit for bit, and knows when to give up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.running import PATIENCE, ROOT, environment, metrics, pausing, resume, wait_for_pause
from support.two_nodes import STEPS, Cluster, Job, until, write_recipe

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def recipe(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    return write_recipe(folder, digits, runs=f"{folder}/runs", eval_every=2)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, recipe: Path) -> Job:
    """A job that nothing happens to; its nodes have a GPU each, as far as Slurm can tell."""
    job = cluster.submit(recipe.parent, str(recipe), "--run.name", "undisturbed", env={"SBATCH_GRES": "gpu:1"})
    assert job.wait() == "COMPLETED", job.output()
    return job


def steps_logged(run: Path) -> list[int]:
    return [record["step"] for record in metrics(run)]


def test_two_nodes_train_one_run(undisturbed: Job) -> None:
    run = undisturbed.folder / "runs" / "undisturbed"
    for rank, node in enumerate(["node1", "node2"]):
        assert f"machine {rank} of 2 is {node}, processes on it: 1, launch/ddp.yaml" in undisturbed.output()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["run"]["processes"] == 2
    assert environment["host"] == environment["variables"]["MASTER_ADDR"] == "node1"
    assert environment["variables"]["MASTER_PORT"] == str(20000 + int(undisturbed.id) % 12000)
    assert steps_logged(run) == list(range(1, STEPS + 1))
    assert undisturbed.facts()["Restarts"] == "0"


def test_a_requeued_job_ends_with_the_same_weights(
    cluster: Cluster, recipe: Path, tmp_path: Path, undisturbed: Job, forked: dict[str, str]
) -> None:
    env = {**forked, **pausing(5, tmp_path / "paused")}
    job = cluster.submit(recipe.parent, str(recipe), "--run.fresh", env=env)
    run = recipe.parent / "runs" / f"small-{job.id}"
    paused = wait_for_pause(tmp_path / "paused", [])
    job.call("scancel", "--signal=USR1", job.id)
    resume(paused)
    assert job.wait() == "COMPLETED", job.output()
    assert job.facts()["Restarts"] == "1", job.output()
    assert f"job {job.id}, attempt 2, on node[1-2]: {run} from step-" in job.output(), "the output is appended to"
    assert "USR1" in job.output()
    assert steps_logged(run) == list(range(1, STEPS + 1)), "each step once"
    whole = load_file(recipe.parent / "runs" / "undisturbed" / "final" / "model.safetensors")
    broken = load_file(run / "final" / "model.safetensors")
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_slurm_requeues_a_job_that_loses_a_node_and_none_that_is_cancelled(
    cluster: Cluster, recipe: Path, forked: dict[str, str]
) -> None:
    """Submitted by the command for it, which knows where the run will lie."""
    words = ["-m", "cifar_dist", "submit", str(recipe), "--nodes=2", "-J", "it", "--train.epochs", "2600"]
    done = subprocess.run(
        [sys.executable, *words],
        env={**cluster.env, **forked},
        cwd=recipe.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    said = re.fullmatch(r"job (\d+): (.*)\nwatch it: tail -F slurm-\1\.out; cifar-dist runs list .*\n", done.stdout)
    assert said, done.stdout + done.stderr
    job, run = Job(said[1], recipe.parent, dict(cluster.env)), Path(said[2])
    assert run == recipe.parent / "runs" / "small"
    assert job.facts()["JobName"] == "it"
    until(lambda: (run / "metrics.jsonl").exists() and len(steps_logged(run)) >= 5, job.output)
    job.call("scontrol", "update", "nodename=node2", "state=down", "reason=a test")
    until(lambda: f"attempt 2, on node[1-2]: {run} from" in job.output(), job.output)
    assert "; Slurm has requeued the job\n" in job.output()
    assert "not requeued" not in job.output()
    before = steps_logged(run)[-1]
    until(lambda: steps_logged(run)[-1] >= before + 5, job.output)
    job.call("scancel", job.id)
    assert job.wait() == "CANCELLED"
    until(lambda: "is not requeued because the job is" in job.output(), job.output)
    stopped = steps_logged(run)[-1]
    resumed = cluster.submit(recipe.parent, "resume", str(run), "--train.max_steps", str(stopped + 1))
    assert resumed.wait() == "COMPLETED", resumed.output()
    assert steps_logged(run) == list(range(1, stopped + 2))
    assert (run / "checkpoints" / "latest").resolve().name == f"step-{steps_logged(run)[-1]:08d}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smal.toml"], "cifar-dist: recipe file smal.toml does not exist\n"),
        (["demo", "--data.path", "nowhere"], "cifar-dist: no packed dataset at nowhere: the folder does not exist"),
        (["demo", "--optim.lr", "fast"], "cifar-dist: the command line: optim.lr"),
        ([], "cifar-dist: name a recipe: "),
    ],
)
def test_bad_input_ends_the_job_before_any_node_trains(
    cluster: Cluster, tmp_path: Path, forked: dict[str, str], words: list[str], said: str
) -> None:
    job = cluster.submit(tmp_path, *words, env=forked)
    assert job.wait() == "FAILED"
    assert (job.facts()["ExitCode"], job.facts()["Restarts"]) == ("2:0", "0")
    assert job.output().startswith(said)
    assert job.output().count("\n") == 1


def test_a_node_without_the_environment_is_named_before_any_trains(
    cluster: Cluster, digits: Path, tmp_path: Path
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" = node2 ] && exit 127\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = cluster.submit(tmp_path, "demo", "--data.path", str(digits), env={"CIFAR_DIST_VENV": str(tmp_path)})
    assert job.wait() == "FAILED"
    assert job.facts()["ExitCode"] == "2:0", job.output()
    assert f"no Python on node2 that can run the project; looked in {python.parent}, then on the PATH" in job.output()
    assert "on node1 that" not in job.output()
    assert "machine 0 of 2" not in job.output()


def test_an_attempt_without_progress_is_the_last(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    """The real scripts, launchers and cluster, with ranks that report "stopped on request" without any progress.

    On the second node they take seconds longer to say so, in which Slurm must not end them.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, time\nif 'LOCAL_RANK' in os.environ:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "    time.sleep(5 * int(os.environ['SLURM_NODEID']))\n    os._exit(75)\n"
    )
    for name in ("slurm", "cifar_dist", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    job = cluster.submit(tmp_path, "demo", "--data.path", str(digits), env={"CIFAR_DIST_HOME": str(tmp_path)})
    assert job.wait() == "FAILED"
    assert (job.facts()["ExitCode"], job.facts()["Restarts"]) == ("1:0", "0")
    assert "attempt 1 made no progress since the start, so it is not requeued" in job.output()


def test_running_the_script_without_sbatch_is_refused() -> None:
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "train.sbatch", "demo"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "slurm/train.sbatch: this runs inside a job; submit it: sbatch [slurm options] slurm/train.sbatch demo\n"
    )


def test_where_python_is_only_inside_srun_a_job_is_requeued_and_cancelled_too(
    cluster: Cluster, recipe: Path, forked: dict[str, str]
) -> None:
    """As with a container: every command of ours goes through srun, which refuses once Slurm takes the job down."""
    env = {**forked, "CIFAR_DIST_SRUN_OPTIONS": "--cpu-bind=none"}
    job = cluster.submit(recipe.parent, str(recipe), "--train.epochs", "2600", nodes=1, env=env)
    run = recipe.parent / "runs" / f"small-{job.id}"
    until(lambda: (run / "metrics.jsonl").exists() and len(steps_logged(run)) >= 5, job.output)
    job.call("scancel", "--signal=USR1", job.id)
    until(lambda: f"attempt 2, on node1: {run} from step-" in job.output(), job.output)
    before = len(steps_logged(run))
    until(lambda: len(steps_logged(run)) >= before + 5, job.output)
    job.call("scancel", job.id)
    assert job.wait() == "CANCELLED"
    until(lambda: f"to resume, submit the same words with --run.name {run.name}" in job.output(), job.output)
    assert "not requeued: the job is " in job.output()
