"""slurm/train.sbatch on two real nodes: what it refuses, and when it gives up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.running import PATIENCE, ROOT, environment
from support.slurm_cluster import Cluster, write_python

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["smal.toml"], {}, "cifar-dist: recipe file smal.toml does not exist\n"),
        (
            ["demo", "--train.parts", "4"],
            {"CIFAR_DIST_LAUNCH": "zero2"},
            "cifar-dist: train.parts = 4 needs one process or DDP, not DeepSpeed ZeRO-1 or ZeRO-2; set CIFAR_DIST",
        ),
    ],
)
def test_bad_input_ends_the_job_before_any_node_trains(
    cluster: Cluster,
    digits: Path,
    tmp_path: Path,
    forked: dict[str, str],
    words: list[str],
    variables: dict[str, str],
    said: str,
) -> None:
    """What else is refused, and without a cluster: test_node.py and test_submit.py."""
    data = ["--data.path", str(digits)] if variables else []
    job = cluster.submit(tmp_path, *words, *data, env=forked | variables)
    assert job.wait() == "FAILED"
    assert (job.facts()["ExitCode"], job.facts()["Restarts"]) == ("2:0", "0")
    assert job.output().startswith(said)
    assert job.output().count("\n") == 1


def test_wrong_options_of_srun_are_named(cluster: Cluster, tmp_path: Path, forked: dict[str, str]) -> None:
    job = cluster.submit(tmp_path, "demo", env={**forked, "CIFAR_DIST_SRUN_OPTIONS": "--nosuch=1 --cpu-bind=none"})
    assert job.wait() == "FAILED"
    assert job.facts()["ExitCode"] == "2:0"
    assert "srun: unrecognized option '--nosuch=1'" in job.output()
    *_, last = job.output().splitlines()
    assert last.startswith(
        "slurm/train.sbatch: srun starts nothing with CIFAR_DIST_SRUN_OPTIONS='--nosuch=1 --cpu-bind=none'; correct"
    )


def test_an_error_of_the_checks_is_not_taken_for_a_missing_python(
    cluster: Cluster, digits: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    (tmp_path / "mine.py").write_text("import os\nos._exit(5)\n")
    words = ["demo", "--data.path", str(digits), "--train.engine", "mine.py:Engine"]
    job = cluster.submit(tmp_path, *words, env=forked)
    assert job.wait() == "FAILED"
    assert (job.facts()["ExitCode"], job.output()) == ("5:0", "")


def test_a_time_limit_that_leaves_no_time_to_train_is_refused(
    cluster: Cluster, digits: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    """Each attempt would train a step or two, save and be requeued."""
    env = {**forked, "SBATCH_SIGNAL": "USR1@90"}
    job = cluster.submit(tmp_path, "demo", "--data.path", str(digits), options=["--time=1"], env=env)
    assert job.wait() == "FAILED"
    assert (job.facts()["ExitCode"], job.facts()["Restarts"]) == ("2:0", "0")
    assert job.output() == (
        "cifar-dist: the job's time limit (60 s) leaves less than a minute to train: SBATCH_SIGNAL=USR1@90 stops the "
        "run 90 s before it; ask for more, such as --time=10\n"
    )


@pytest.mark.parametrize(
    ("options", "inherited", "said"),
    [
        (["--ntasks-per-node=2", "--gpus-per-task=1"], {}, "GPUs: 2\n"),
        (["--mem=3000"], {"SLURM_MEM_PER_CPU": "100"}, ",mem=3000M,"),
        (["--cpus-per-task=3"], {"SLURM_CPUS_PER_GPU": "2"}, "TRES=cpu=3,"),
        (["--cpus-per-task=3"], {"SLURM_THREADS_PER_CORE": "2", "SLURM_HET_SIZE": "2"}, "TRES=cpu=3,"),
        ([], {"SRUN_CPUS_PER_TASK": "9"}, "TRES=cpu=1,"),
    ],
    ids=["GPUs of each task", "memory", "CPUs", "threads", "one CPU"],
)
def test_the_one_task_of_a_node_gets_what_the_job_has_there(
    cluster: Cluster,
    digits: Path,
    tmp_path: Path,
    forked: dict[str, str],
    options: list[str],
    inherited: dict[str, str],
    said: str,
) -> None:
    """The job may have several tasks there, or be submitted inside a job that has other resources."""
    instead = 'echo "GPUs: $SLURM_GPUS_ON_NODE"; scontrol show step "$SLURM_JOB_ID.$SLURM_STEP_ID"; exit 7'
    python = write_python(tmp_path, forked, instead, only="slurm node", node="node1")
    env = {**forked, **inherited, "CIFAR_DIST_VENV": str(python)}
    job = cluster.submit(tmp_path, "demo", "--data.path", str(digits), nodes="node1", options=options, env=env)
    assert job.wait() == "FAILED"
    assert said in job.output()


def test_an_attempt_without_progress_is_the_last(
    cluster: Cluster, digits: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    """All ranks stop on request at once, those of the second node later; Slurm must not end them before that."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, time\nif 'LOCAL_RANK' in os.environ:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "    time.sleep(2 * int(os.environ['SLURM_NODEID']))\n    os._exit(75)\n"
    )
    for name in ("slurm", "cifar_dist", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {**forked, "CIFAR_DIST_HOME": str(tmp_path), "CIFAR_DIST_TEST_PAUSE_AFTER": "0"}  # forks import the file
    job = cluster.submit(tmp_path, "demo", "--data.path", str(digits), env=env)
    assert job.wait() == "FAILED"
    assert (job.facts()["ExitCode"], job.facts()["Restarts"]) == ("1:0", "0")
    assert "attempt 1 made no progress since the start, so it is not requeued" in job.output()


def test_a_job_that_must_not_be_requeued_says_how_to_resume(
    cluster: Cluster, digits: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    saves = "mkdir -p runs/it/checkpoints; ln -s step-00000005 runs/it/checkpoints/latest; exit 0"
    env = {**forked, "CIFAR_DIST_VENV": str(write_python(tmp_path, forked, saves, only="slurm node", node="node1"))}
    words = ["demo", "--data.path", str(digits), "--run.name", "it"]
    job = cluster.submit(tmp_path, *words, nodes="node1", options=["--no-requeue"], env=env)
    assert job.wait() == "FAILED"
    assert job.facts()["ExitCode"] == "75:0"
    assert job.output().splitlines()[-1] == (
        "slurm/train.sbatch: attempt 1 stopped at step-00000005, and is not requeued because the job has --no-requeue; "
        "to resume: cifar-dist submit resume runs/it [sbatch options]"
    )


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
