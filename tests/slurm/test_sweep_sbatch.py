"""A sweep as a real Slurm array: a task for each run, and a task that is stopped is requeued alone."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.running import PATIENCE, ROOT, environment, metrics, pausing, resume, story, train, wait_for_pause
from support.slurm_cluster import STEPS, Cluster, Job, until, write_recipe

from cifar_dist import cli
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder

pytestmark = pytest.mark.slurm


@pytest.fixture
def file(
    digits: Path, tmp_path: Path, cluster: Cluster, forked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Write a sweep of two runs, of which only the second is long enough to stop itself, outside the repository."""
    write_recipe(tmp_path, digits, runs="runs")
    (tmp_path / "sizes.toml").write_text(
        """
        recipe = "small.toml"
        [[rows]]
        name = "short"
        train.epochs = 1
        [[rows]]
        name = "long"
        """
    )
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(cluster.env):
        monkeypatch.delenv(name)
    pauses = pausing(20, tmp_path / "paused")
    for name, value in {**cluster.env, **forked, **pauses}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "sizes.toml"


def submit(*words: str) -> None:
    assert cli.run(["sweep", "submit", *words]) == 0


def test_each_task_trains_one_run_and_a_stopped_one_is_requeued_alone(
    file: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(str(file), "--time", "0:10:00", "--nodes=1", "--optim.lr", "0.05")
    said = capsys.readouterr().out
    found = re.fullmatch(r"sizes: job (\d+), 2 of 2 runs.*\n", said)
    assert found, said
    file.write_text("recipe = 7")  # the job has what it needs
    array = found[1]
    short, long = (RunFolder(file.parent / "runs" / f"sizes.{name}.s0") for name in ("short", "long"))
    tasks = [Job(f"{array}_{index}", file.parent, dict(cluster.env)) for index in range(2)]
    assert tasks[0].facts()["TimeLimit"] == "00:10:00"

    until((file.parent / "paused").exists, tasks[1].output)
    paused = wait_for_pause(file.parent / "paused", [])
    tasks[1].call("scancel", "--signal=USR1", tasks[1].id)
    resume(paused)
    assert [task.wait() for task in tasks] == ["COMPLETED", "COMPLETED"], "".join(task.output() for task in tasks)
    assert [task.facts()["Restarts"] for task in tasks] == ["0", "1"], tasks[1].output()
    assert short.is_finished()
    assert long.is_finished()
    assert [record["step"] for record in metrics(long.path)] == list(range(1, STEPS + 1)), "each step once"
    undisturbed = train_alone(file.parent, "--optim.lr", "0.05")
    assert story(long.path) == story(undisturbed.path)
    assert long.final.read_bytes() == undisturbed.final.read_bytes()
    assert "--optim.lr 0.05" not in (long.path / "config.toml").read_text()
    assert "\nlr = 0.05\n" in (long.path / "config.toml").read_text()


def train_alone(folder: Path, *settings: str) -> RunFolder:
    """Train the recipe of the sweep without Slurm and without an interruption."""
    run = ["--run.dir", str(folder / "runs"), "--run.name", "undisturbed"]
    (done,) = train(str(folder / "small.toml"), *run, *settings)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "runs" / "undisturbed")


def test_a_sweep_that_is_waited_for_ends_with_the_exit_code_of_its_jobs(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They know the variables of the site, although they inherit no environment."""
    (file.parent / "setup.sh").write_text("exit 7\n")
    monkeypatch.setenv("CIFAR_DIST_SETUP", str(file.parent / "setup.sh"))
    assert cli.run(["sweep", "submit", str(file), "--wait", "--export=NONE"]) == 7
    assert re.fullmatch(r"sizes: job \d+, 2 of 2 runs\n", capsys.readouterr().out)


def test_what_sbatch_refuses_is_one_line(file: Path) -> None:
    with pytest.raises(UserError, match=r"^sbatch: .*[Ii]nvalid") as error:
        submit(str(file), "--time=yesterday")
    assert "\n" not in str(error.value)


def test_starting_a_task_by_hand_is_refused() -> None:
    command = ["bash", str(ROOT / "slurm" / "sweep.sbatch"), "demo"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr == (
        "slurm/sweep.sbatch: this runs in a job array; submit it: cifar-dist sweep submit FILE [slurm options]\n"
    )
