"""What can happen to jobs on a real cluster: each run ends as the undisturbed one does, with every step once.

The jobs run side by side. Each run stops itself (SIGSTOP) in its first attempt after a number of records, so that the
event meets it at a known step; a signal is pending before the run continues. Slurm may take half a minute to act: all
events happen before the first test waits for the end of its story.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from support.running import PATIENCE, metrics, pausing, resume, story, wait_for_pause, wait_for_signal
from support.slurm_cluster import PAUSE, SCRIPT, STEPS, Cluster, Job, until, write_python, write_recipe

from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline

pytestmark = pytest.mark.slurm


@dataclass(frozen=True)
class Story:
    """A job whose run stops itself.

    Attributes:
        job: the job.
        run: the folder of its run.
        note: file in which the run names the process that has stopped; none stops again while it exists.
    """

    job: Job
    run: Path
    note: Path

    def pause(self) -> psutil.Process:
        """Wait until the run has stopped itself."""
        until(lambda: self.note.exists() or self.job.has_ended(), self.job.output)
        assert self.note.exists(), self.job.output()
        return wait_for_pause(self.note, [])

    def events(self) -> list[timeline.Event]:
        return timeline.read(self.run / "timeline.jsonl")

    def assert_is_whole(self, whole: Path, *, restarts: int) -> None:
        """Assert that the job succeeds, with the records and the weights of the undisturbed run."""
        assert self.job.wait() == "COMPLETED", self.job.output()
        assert self.job.facts()["Restarts"] == str(restarts), self.job.output()
        assert [record["step"] for record in metrics(self.run)] == list(range(1, STEPS + 1)), "each step once"
        assert story(self.run) == story(whole)
        assert RunFolder(self.run).final.read_bytes() == RunFolder(whole).final.read_bytes()


@dataclass(frozen=True)
class Teller:
    """Submits the jobs of the stories."""

    cluster: Cluster
    recipe: Path
    env: dict[str, str]

    def begin(
        self,
        name: str,
        *settings: str,
        nodes: str = "node[1-2]",
        options: Sequence[str] = (),
        script: Path = SCRIPT,
        env: Mapping[str, str] | None = None,
    ) -> Story:
        folder = self.recipe.parent
        note = folder / f"{name}.paused"
        words = [str(self.recipe), "--run.name", name, *settings]
        own = {**self.env, **pausing(PAUSE, note), **(env or {})}
        job = self.cluster.submit(folder, *words, nodes=nodes, options=options, script=script, env=own)
        return Story(job, folder / "runs" / name, note)


@pytest.fixture(scope="module")
def recipe(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories")
    return write_recipe(folder, digits, runs=f"{folder}/runs")


@pytest.fixture(scope="module")
def teller(cluster: Cluster, recipe: Path, forked: dict[str, str]) -> Teller:
    return Teller(cluster, recipe, forked)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, recipe: Path) -> Job:
    """Return an undisturbed job of real interpreters; Slurm believes that each of its nodes has a GPU."""
    return cluster.submit(recipe.parent, str(recipe), "--run.name", "undisturbed", env={"SBATCH_GRES": "gpu:1"})


# What the job inherits if it is submitted in a step of a requeued task of an array that has GPUs.
_OF_ANOTHER_JOB = {
    "SLURM_ARRAY_JOB_ID": "1",
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_RESTART_COUNT": "3",
    "SLURM_GPUS_PER_NODE": "2",
    "SLURM_MEM_PER_NODE": "1000",
    "SLURM_CPUS_PER_GPU": "2",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_CPU_BIND_LIST": "0x1",
    "SLURM_CPU_BIND_TYPE": "mask_cpu:",
}


GIVES_UP_SOON = """
import runpy
from datetime import timedelta
from cifar_dist.launch.elastic import ElasticAgent

meet = ElasticAgent._rendezvous

def meet_and_lose_patience(agent, group):
    meet(agent, group)
    group.spec.rdzv_handler.settings.timeout._join = timedelta(seconds=15)

ElasticAgent._rendezvous = meet_and_lose_patience
runpy.run_path({pausing!r})
"""
"""Waits as long as it says for the nodes of the first start, which a busy machine may start late, and then for 15 s."""


@pytest.fixture(scope="module")
def stories(teller: Teller, cluster: Cluster, undisturbed: Job) -> dict[str, Story]:
    """Start all stories together, and let their first events happen."""
    folder = teller.recipe.parent
    eager = folder / "eager.sbatch"  # to see whether a lost node has returned
    eager.write_text(SCRIPT.read_text().replace("read -rt 30", "read -rt 1"))

    def begin_elastic(name: str, *, least: int, path: str = "") -> Story:
        env = {"CIFAR_DIST_MIN_NODES": str(least), **({"PYTHONPATH": path} if path else {})}
        return teller.begin(name, nodes="node[7-8]", options=["--no-kill"], script=eager, env=env)

    impatient, paths = folder / "impatient", pausing(PAUSE, folder)["PYTHONPATH"].split(os.pathsep, 1)
    impatient.mkdir()
    (impatient / "sitecustomize.py").write_text(GIVES_UP_SOON.format(pausing=f"{paths[0]}/sitecustomize.py"))
    hanging = write_python(folder / "hanging", teller.env, "exec env --default-signal sleep 1000", only="slurm node")
    missing = write_python(folder / "missing", teller.env, "exit 127")
    told = {
        "signal": teller.begin("signal", env=_OF_ANOTHER_JOB),
        "time-limit": teller.begin("time-limit", options=["--time=60"]),
        "preempted": teller.begin("preempted", nodes="node[3-4]"),
        "node-down": teller.begin("node-down", nodes="node[5-6]"),
        "elastic": begin_elastic("elastic", least=1),
        "few": begin_elastic("few", least=2, path=f"{impatient}{os.pathsep}{paths[1]}"),
        "stalled": teller.begin("stalled", "--run.stall_timeout", "20"),
        "named": teller.begin("named"),
        "inside": teller.begin("inside", nodes="node1", env={"CIFAR_DIST_SRUN_OPTIONS": "--cpu-bind=none"}),
        "silent": teller.begin("silent", "--run.join_timeout", "3", env={"CIFAR_DIST_VENV": str(hanging)}),
        "missing": teller.begin("missing", env={"CIFAR_DIST_VENV": str(missing)}),
    }
    for name in ("signal", "preempted", "node-down", "elastic", "named", "inside", "time-limit"):
        paused, job = told[name].pause(), told[name].job
        match name:
            case "signal":
                job.call("scancel", "--signal=USR1", job.id)
            case "time-limit":
                hours, minutes, _ = map(int, job.facts()["RunTime"].split(":"))
                job.call("scontrol", "update", f"jobid={job.id}", f"timelimit={60 * hours + minutes + 2}")
            case "preempted":
                urgent = ["--partition=high", "--nodelist=node3", "--exclusive", "--output=/dev/null", "--wrap=true"]
                job.call("sbatch", *urgent)
            case "node-down":
                cluster.set_node("node6", "down")
                paused.resume()
            case "elastic":
                too_few = told["few"].pause()
                cluster.set_node("node8", "drain")  # or it would return by itself
                cluster.set_node("node8", "down")
                told[name].note.unlink()  # it pauses again
                paused.resume()
                too_few.resume()
            case "named":
                told["second of that name"] = teller.begin(name)
            case "inside":
                job.call("scancel", "--batch", "--signal=USR1", job.id)
    return told


@pytest.fixture(scope="module")
def whole(undisturbed: Job) -> Path:
    """Return the undisturbed run."""
    assert undisturbed.wait() == "COMPLETED", undisturbed.output()
    return undisturbed.folder / "runs" / "undisturbed"


@pytest.fixture(scope="module")
def near_limit(stories: dict[str, Story]) -> Story:
    """Return the job to which Slurm has sent the signal that the script asks for, two minutes before the time limit."""
    told = stories["time-limit"]
    wait_for_signal(told.pause())
    # Each attempt of a job has as much time. And a busy machine may need more than two minutes for what comes next.
    told.job.call("scontrol", "update", f"jobid={told.job.id}", "timelimit=60")
    return told


def test_a_job_at_its_time_limit_is_requeued_and_ends_like_the_whole_run(near_limit: Story, whole: Path) -> None:
    told = near_limit
    resume(told.pause())
    told.assert_is_whole(whole, restarts=1)
    assert "USR1" in told.job.output()


def test_two_nodes_train_one_run(undisturbed: Job, stories: dict[str, Story], whole: Path) -> None:
    for rank, node in enumerate(["node1", "node2"]):
        assert f"machine {rank} of 2 is {node}, processes on it: 1, " in undisturbed.output()
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["run"]["processes"] == 2
    assert environment["host"] == environment["variables"]["MASTER_ADDR"] == "node1"
    assert environment["variables"]["MASTER_PORT"] == str(20000 + int(undisturbed.id) % 12000)
    assert [record["step"] for record in metrics(whole)] == list(range(1, STEPS + 1))
    assert (undisturbed.facts()["ExitCode"], undisturbed.facts()["Restarts"]) == ("0:0", "0")


def test_a_signalled_job_is_requeued_and_ends_like_the_whole_run(stories: dict[str, Story], whole: Path) -> None:
    told = stories["signal"]
    resume(told.pause())
    told.assert_is_whole(whole, restarts=1)
    assert f"job {told.job.id}, attempt 2, on node[1-2]: {told.run} from step-" in told.job.output(), "appended to"
    assert "USR1" in told.job.output()


def test_a_preempted_job_is_requeued_and_ends_like_the_whole_run(stories: dict[str, Story], whole: Path) -> None:
    told = stories["preempted"]
    resume(told.pause())
    told.assert_is_whole(whole, restarts=1)
    assert "Slurm has requeued the job" in told.job.output() or "; requeueing" in told.job.output()


def test_a_job_that_loses_a_node_ends_like_the_whole_run(stories: dict[str, Story], whole: Path) -> None:
    told = stories["node-down"]
    told.assert_is_whole(whole, restarts=1)
    assert "; Slurm has requeued the job\n" in told.job.output()
    assert "not requeued" not in told.job.output()


def test_a_job_continues_without_a_lost_node_until_it_returns(
    stories: dict[str, Story], cluster: Cluster, whole: Path
) -> None:
    told = stories["elastic"]
    paused = told.pause()
    # A busy machine may start its second node too late for the first start.
    assert [event.processes for event in told.events() if event.processes][-2:] == [2, 1]
    assert told.job.facts()["JobState"] == "RUNNING"
    cluster.set_node("node8", "resume")
    resume(paused)
    told.assert_is_whole(whole, restarts=1)
    assert "of the lost nodes (node8) one is idle again; the job stops, to be requeued" in told.job.output()
    assert [event.processes for event in told.events() if event.processes][-3:] == [2, 1, 2]


def test_a_job_whose_nodes_are_too_few_is_requeued_until_the_lost_one_returns(
    stories: dict[str, Story], cluster: Cluster, whole: Path
) -> None:
    told = stories["few"]
    until(lambda: "; requeueing" in told.job.output(), told.job.output)
    # Torch forgets the lost machine after 15 s.
    missing = "(not all machines of this job still answer|1 of at least 2 machines has met)"
    assert re.search(rf"gave up after 600 s \(run.join_timeout\): {missing}", told.job.output()), told.job.output()
    with contextlib.suppress(subprocess.CalledProcessError):  # the test above has done it
        cluster.set_node("node8", "resume")
    told.assert_is_whole(whole, restarts=1)


def test_a_job_with_a_stopped_rank_ends_like_the_whole_run(stories: dict[str, Story], whole: Path) -> None:
    """Nothing continues it: the watchdog of the other rank ends the job."""
    told = stories["stalled"]
    told.assert_is_whole(whole, restarts=1)
    named = rf"rank 0 \(process {told.note.read_text()} on .*\) does not answer.*; stacks: {told.run}/stalls/step-"
    assert re.search(named, told.job.output()), told.job.output()
    assert "attempt 1 stalled after step-" in told.job.output()
    assert [event.kind for event in told.events()] == ["started", "stalled", "resumed", "finished"]


def test_two_jobs_with_one_name_do_not_train_one_run_at_once(stories: dict[str, Story], whole: Path) -> None:
    told, second = stories["named"], stories["second of that name"].job
    paused = told.pause()
    assert second.wait() == "FAILED"
    assert (second.facts()["ExitCode"], second.facts()["Restarts"]) == ("69:0", "0")
    assert (
        f"{told.run} is in use by process {paused.pid} on node1; wait until that has ended, or use" in second.output()
    )
    paused.resume()
    told.assert_is_whole(whole, restarts=0)


def test_a_node_that_never_answers_is_named(stories: dict[str, Story], teller: Teller, whole: Path) -> None:
    """Its Python hangs, as on an unreachable file system. Slurm ends it once the other node has given up."""
    told = stories["silent"]
    told.note.touch()
    assert told.job.wait() == "FAILED"
    assert (told.job.facts()["ExitCode"], told.job.facts()["Restarts"]) == ("143:0", "0"), "128 + TERM"
    assert "gave up after 3 s (run.join_timeout): 1 of 2 has not joined: machine 1" in told.job.output()
    teller.begin("silent").assert_is_whole(whole, restarts=0)


def test_a_node_without_the_environment_is_named_before_any_trains(stories: dict[str, Story]) -> None:
    told = stories["missing"]
    assert told.job.wait() == "FAILED"
    assert told.job.facts()["ExitCode"] == "2:0", told.job.output()
    assert (
        f"no Python on node2 that can run the project; looked in {told.run.parents[1]}/missing/bin, then"
        in told.job.output()
    )
    assert "on node1 that" not in told.job.output()
    assert "machine 0 of 2" not in told.job.output()
    assert not told.run.exists()


def test_a_cancelled_job_saves_and_is_not_requeued(teller: Teller, whole: Path) -> None:
    """Submitted with ``cifar-dist submit``, which knows the future run folder; resumed from that folder."""
    note = teller.recipe.parent / "cancelled.paused"
    python = f"{teller.env['CIFAR_DIST_VENV']}/bin/python"
    words = ["-m", "cifar_dist", "submit", str(teller.recipe), "--nodes=2", "--nodelist=node[1-2]", "-J", "it"]
    env = {**teller.cluster.env, **teller.env, **pausing(PAUSE, note)}
    done = subprocess.run(
        [python, *words], env=env, cwd=teller.recipe.parent, capture_output=True, text=True, timeout=PATIENCE
    )
    said = re.fullmatch(r"job (\d+): (.*)\nwatch it: tail -F slurm-\1\.out; cifar-dist runs list .*\n", done.stdout)
    assert said, done.stdout + done.stderr
    told = Story(Job(said[1], teller.recipe.parent, env), Path(said[2]), note)
    assert told.run == teller.recipe.parent / "runs" / "small"
    assert told.job.facts()["JobName"] == "it"
    paused = told.pause()
    told.job.call("scancel", told.job.id)
    resume(paused)
    assert told.job.wait() == "CANCELLED"
    until(lambda: "is not requeued because the job is" in told.job.output(), told.job.output)
    assert [event.kind for event in told.events()] == ["started", "interrupted"]
    resumed = teller.cluster.submit(teller.recipe.parent, "resume", str(told.run), env=env)
    Story(resumed, told.run, note).assert_is_whole(whole, restarts=0)


def test_a_job_that_is_cancelled_while_it_decides_is_not_requeued(teller: Teller, tmp_path: Path) -> None:
    cancelling = write_python(tmp_path, teller.env, "scancel $SLURM_JOB_ID", only="slurm requeue", node="node1")
    told = teller.begin("late", nodes="node1", env={"CIFAR_DIST_VENV": str(cancelling)})
    paused = told.pause()
    told.job.call("scancel", "--signal=USR1", told.job.id)
    resume(paused)
    until(lambda: "not requeued" in told.job.output(), told.job.output)
    assert told.job.wait() == "CANCELLED"
    assert told.job.facts()["Restarts"] == "0"


def test_where_python_is_only_inside_srun_a_job_is_requeued_and_cancelled_too(stories: dict[str, Story]) -> None:
    """As in a container: every command of ours goes through srun, which refuses once Slurm terminates the job."""
    told = stories["inside"]
    paused = told.pause()
    told.note.unlink()
    resume(paused)
    paused = told.pause()
    assert f"attempt 2, on node1: {told.run} from step-" in told.job.output(), (
        "a signal to the batch script is passed on"
    )
    told.job.call("scancel", told.job.id)
    resume(paused)
    assert told.job.wait() == "CANCELLED"
    until(
        lambda: f"to resume: cifar-dist submit resume {told.run} " in told.job.output(),
        told.job.output,
    )
    assert "not requeued: the job is " in told.job.output()
