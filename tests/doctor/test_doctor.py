"""``cifar-dist doctor``: a table of what was checked on real processes, which leave no files behind."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from support.running import PATIENCE, environment, finish, spawn, start, train
from torch import nn

from cifar_dist import recipe
from cifar_dist.config import Config, TrainConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.out_of_memory import ways_to_smaller_steps
from cifar_dist.distributed.start import start_engine
from cifar_dist.doctor.dataset import describe_batches, describe_network
from cifar_dist.doctor.finding import Finding, Verdict
from cifar_dist.doctor.grace import find_grace
from cifar_dist.doctor.shared_folder import trial_folder
from cifar_dist.doctor.trial import _memory, _speed, _time_steps
from cifar_dist.slurm.node import Node
from cifar_dist.training.learner import Learner
from cifar_dist.training.setup import build_setup
from cifar_dist.verbs.doctor import node_of_srun

MACHINE = ["machine", "processes", "ranks", "precision", "ports", "all-reduce", "clocks"]
LARGER = "use fewer processes or a larger batch"
RUN = ["files", "data", "batches", "network", "steps", "gradients", "save", "space"]


def doctor(*words: str, processes: int = 1, code: int = 0) -> str:
    return printed(spawn(["-m", "cifar_dist", "doctor", *words], processes), code)


def printed(done: Sequence[subprocess.CompletedProcess[str]], code: int) -> str:
    first, *others = done
    assert {process.returncode for process in done} == {code}, first.stdout + first.stderr
    assert all(not process.stdout for process in others), "one process speaks"
    assert "Traceback" not in first.stderr
    return first.stdout


def checks(table: str, result: str = "") -> list[str]:
    rows = [line.split() for line in table.splitlines()[2:-1] if not line.startswith(" ")]
    return [name for name, found, *_ in rows if found == result or not result]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        (1, ["one process", ": 0 (cpu)\n", "one process: nothing to sum", "20 = 1 rank x 20; 13 steps an epoch"]),
        (
            2,
            [
                *("2, DDP", ": 0 (cpu), 1 (cpu)\n", "rank 0 at 127.0.0.1:", "gloo: 4.1 kB in ", " MB/s)"),
                *("rank 1 on ", "2 ranks write, rename and see each other's files, and locks exclude"),
                *("20 = 2 ranks x 10; 13 steps an epoch, the last of 11, padded with 1 that do not", "of a step"),
            ],
        ),
    ],
)
def test_it_tries_the_first_steps_and_leaves_nothing(tiny: Path, processes: int, says: list[str]) -> None:
    before = files(tiny.parent)
    table = doctor(str(tiny), processes=processes)
    assert checks(table) == [*MACHINE, *RUN]
    assert [text for text in says if text not in table] == []
    assert "data        ok       digits: 251 train, 35 val, 71 test; 10 classes" in table
    assert re.search(r"steps +ok +[\d.e-]+ s each, [\d,]+ images/s: about .* for 2 epochs of 13, ", table)
    assert re.search(r"save +ok +.*; a stop takes up to [\d.]+ s of 120 s", table)
    assert files(tiny.parent) == before
    assert not (tiny.parent / "runs").exists()


class OwnBatchNorm(nn.BatchNorm2d):
    """As speed-net has one, which ``train.sync_batchnorm`` refuses."""


@pytest.mark.parametrize(
    ("norm", "train_config", "way"),
    [
        (nn.BatchNorm2d, TrainConfig(batch_size=32), f"{LARGER}, or --train.sync_batchnorm true"),
        (nn.BatchNorm2d, TrainConfig(batch_size=32, parts=8), LARGER),
        (nn.BatchNorm2d, TrainConfig(batch_size=32, sync_batchnorm=True), ""),
        (nn.BatchNorm2d, TrainConfig(batch_size=64), ""),
        (OwnBatchNorm, TrainConfig(batch_size=32), LARGER),
        (nn.LayerNorm, TrainConfig(batch_size=32), ""),
    ],
    ids=["own statistics", "of parts", "shared statistics", "more images", "not torch's", "no batch norm"],
)
def test_few_images_per_process_are_a_warning_if_they_are_normalised_by_their_own_statistics(
    norm: Callable[[int], nn.Module], train_config: TrainConfig, way: str
) -> None:
    found = describe_network(Config(train=train_config), nn.Sequential(norm(4)), world_size=8)
    assert found.verdict == (Verdict.WARNING if way else Verdict.OK)
    assert found.remedy.rpartition("; ")[2] == way


def test_an_existing_run_resumes_as_if_doctor_had_not_run(tiny: Path) -> None:
    words = [str(tiny), "--run.name", "it"]
    assert train(*words)[0].returncode == 0
    before = files(tiny.parent / "runs")
    table = doctor(*words, "--train.batch_size", "100")  # three steps an epoch: it goes through several
    assert ", of which 3 exist" in table
    assert files(tiny.parent / "runs") == before


def test_without_a_recipe_only_the_machine_is_checked() -> None:
    assert checks(doctor()) == MACHINE


def test_what_would_end_the_run_is_a_row_that_fails(tiny: Path) -> None:
    for words, processes, failed, says in (
        (["--data.path", "nowhere"], 1, ["run"], "no packed dataset at nowhere"),
        (["--optim.lr", "1e30"], 1, ["run"], "is not finite\n                     -> check optim.lr"),
        (
            ["--train.batch_size", "7", "--train.even_batches", "true", "--run.dir", f"{tiny}/below"],
            2,
            ["files", "run"],
            "7 is not divisible by 2 processes x 1 accumulation steps, as train.even_batches requires\n"
            "                     -> use --train.batch_size 6 or 8, or to resume --train.even_batches false\n",
        ),
    ):
        table = doctor(str(tiny), *words, processes=processes, code=2)
        assert checks(table, "FAILED") == failed, table
        assert says in table, table
    assert f"run.dir {tiny}/below cannot be written (Not a directory)\n" in table
    assert "10 checks: 2 failed (files, run)\n" in table


def test_a_folder_of_its_own_and_a_wrong_clock_of_one_rank_are_failed_rows(tiny: Path, tmp_path: Path) -> None:
    """Rank 1 has another working folder, hence another ``runs``, and its clock is a minute ahead."""
    program = (
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    os.mkdir('elsewhere'); os.chdir('elsewhere')\n"
        "    real = time.time; time.time = lambda: real() + 60\n"
        "from cifar_dist import cli\n"
        "sys.exit(cli.run(['doctor', *sys.argv[1:]]))\n"
    )
    running = start(["-c", program, str(tiny), "--run.dir", "shared", "--checkpoint.keep", str(10**9)], 2, cwd=tmp_path)
    table = printed(finish(running), 2)
    assert checks(table, "FAILED") == ["clocks", "files", "space"], table
    assert re.search(r"rank 1 on \S+ differs most from rank 0 on \S+, by 60 s", table)
    assert re.search(r"rank 1 on \S+ does not see the folder that rank 0 has created in it\n +-> choose a --run", table)
    assert "1000000002 checkpoints of " in table
    assert "15 checks: 3 failed (clocks, files, space)\n" in table
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("mount", "failed", "says"),
    [
        ("size=4M,ro", ["files", "run"], "cannot be written (Read-only file system)"),
        ("size=100k", ["space"], "free in "),
    ],
)
def test_a_disk_that_is_too_small_or_read_only_is_a_failed_row(
    tiny: Path, tmp_path: Path, forked: dict[str, str], mount: str, failed: list[str], says: str
) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a mount of its own takes root")
    (tmp_path / "disk").mkdir()
    script = f'mount -t tmpfs -o {mount} none "$0" && exec python -m cifar_dist doctor "$@" --run.dir "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "disk"), str(tiny)],
        env=environment(forked),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    table = printed([done], 2)
    assert checks(table, "FAILED") == failed, table
    assert says in table


def test_too_few_open_files_for_so_many_ranks_are_a_failed_row() -> None:
    program = (
        "import resource, torch\n"
        "from cifar_dist.distributed.ranks import Ranks\n"
        "from cifar_dist.doctor.network import check_ports\n"
        "ranks = Ranks(0, 1, torch.device('cpu'), first_of_node=True)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (150, 4096))\n"
        "print(check_ports(ranks).row())\n"
    )
    (done,) = spawn(["-c", program])
    assert done.stdout.split(maxsplit=2) == [
        "ports",
        "FAILED",
        "a process may have 150 open files and connections, and rank 0 needs 204\n"
        "                     -> ulimit -n 408\n",
    ], done.stderr


def test_a_rank_with_few_open_files_does_not_leave_the_others_waiting() -> None:
    program = (
        "import os, resource, sys\n"
        "from cifar_dist import cli\n"
        "if os.environ['RANK'] == '1':\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (205, 205))\n"  # rank 0 would need 208
        "sys.exit(cli.run(['doctor']))\n"
    )
    table = printed(spawn(["-c", program], 2), 0)
    assert checks(table) == MACHINE


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace Slurm's program by lines of a shell."""

    def replace(script: str) -> None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return replace


@pytest.mark.parametrize(
    ("mode", "seconds"),
    [("REQUEUE", 40), ("GANG,REQUEUE", 40), ("GANG,CANCEL", 40), ("OFF", 90), ("GANG,SUSPEND", 90)],
)
def test_a_partition_that_preempts_jobs_gives_them_its_grace(
    scontrol: Callable[[str], None], mode: str, seconds: float
) -> None:
    scontrol(f'case $2 in partition) echo "GraceTime=40 PreemptMode={mode} State=UP" ;; esac')
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_PARTITION": "main", "SBATCH_SIGNAL": "USR1@90"}
    assert find_grace("", job).seconds == seconds


@pytest.mark.parametrize(
    ("variables", "script", "seconds", "source"),
    [
        ({"SBATCH_SIGNAL": "USR1@600"}, "#SBATCH --signal=USR1@120", 600, "SBATCH_SIGNAL=USR1@600"),
        ({}, "#SBATCH --signal=USR1@120", 120, "--signal=USR1@120"),
        ({}, "#SBATCH --signal=USR1", 60, "--signal=USR1"),  # Slurm's default
        ({}, "true", 30, "KillWait, as the job has no --signal"),
    ],
)
def test_the_signal_of_a_job_is_that_of_the_variable_or_of_the_script(
    scontrol: Callable[[str], None], variables: dict[str, str], script: str, seconds: float, source: str
) -> None:
    scontrol(f'case $2 in batch_script) echo "{script}" ;; esac')
    grace = find_grace("", {"SLURM_JOB_ID": "7", **variables})
    assert (grace.seconds, grace.source) == (seconds, source)
    assert grace.remedy.endswith("before you submit: export SBATCH_SIGNAL=USR1@{seconds}")


@pytest.mark.parametrize(("max_time", "seconds"), [("", 120), ("auto", 120), ("10m", 30), ("2h", 120)])
def test_without_slurm_the_grace_is_that_of_the_wall_time_limit(max_time: str, seconds: float) -> None:
    assert find_grace(max_time, {}).seconds == seconds


def test_a_row_continues_in_its_column_and_its_remedy_can_be_copied() -> None:
    text, remedy = "25 GB free in runs, and 31 GB are needed", "cifar-dist runs clean --delete"
    assert Finding.ok_or(Verdict.FAILED, "space", text, remedy).row(50).splitlines() == [
        "space       FAILED   25 GB free in runs, and 31 GB",
        "                     are needed",
        "                     -> cifar-dist runs clean --delete",
    ]


def test_a_row_without_a_remedy_is_ok() -> None:
    assert Finding.ok_or(Verdict.FAILED, "space", "25 GB free", "") == Finding("space", "25 GB free", Verdict.OK)


def test_a_row_shows_no_control_characters() -> None:
    assert Finding("data", "a\x1b[2J").row() == f"{'data':<10}  ok       a\\x1b[2J"


def test_the_duration_is_that_of_the_steps_that_the_run_will_do() -> None:
    said = {
        max_steps: _speed(TrainConfig(epochs=10, max_steps=max_steps), 100, 1.0, 512.0).text
        for max_steps in (0, 50, 5000)
    }
    assert said[0] == said[5000]
    assert "images/s: about 16.7 min for 10 epochs of 100, " in said[0]
    assert "images/s: about 50 s for 50 steps of 10 epochs of 100, " in said[50]


def test_one_step_and_one_epoch_are_singular(tiny: Path) -> None:
    config = recipe.load(str(tiny), ["--train.batch_size", "4000", "--train.epochs", "1"])
    text = _speed(config.train, 1, 1.0, 251.0).text
    assert text == "1 s each, 251 images/s: about 1.0 s for 1 epoch of 1, without evaluation"
    text = describe_batches(config, Manifest.load(config.data.path), world_size=1).text
    assert text == "4000 = 1 rank x 4000; 1 step an epoch, the last of 251"


def test_the_images_a_second_are_those_that_the_steps_had(tiny: Path) -> None:
    """An epoch of fewer images than a batch is one step."""
    config = recipe.load(str(tiny), ["--train.batch_size", "4000"])
    with start_engine(config) as engine:
        setup = build_setup(config, engine.ranks)
        median, images_per_second = _time_steps(setup, Learner(setup, engine), engine)
    assert 0 < median * images_per_second <= 2.001 * 251, "whatever each took: no median is above twice the mean"


def test_the_remedy_for_a_full_gpu_is_one_that_the_run_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 95)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (0, 100))
    ways = ways_to_smaller_steps(TrainConfig(batch_size=96, accumulate=2, precision="bf16"), "one process", 1)
    assert _memory(torch.device("cuda"), ways).remedy == "hardly any is left; use --train.accumulate 3"


def test_the_trials_of_two_jobs_do_not_touch_each_other(tmp_path: Path) -> None:
    """Processes of two nodes, or of two containers, can have one process id."""
    with trial_folder(tmp_path / "new" / "runs") as first:
        with trial_folder(tmp_path / "new" / "runs") as second:
            assert second != first
        assert first.is_dir()
        assert not second.exists()
    assert not (tmp_path / "new").exists()


IN_STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "2",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_GPUS_ON_NODE": "4",
}


@pytest.mark.parametrize(
    ("changes", "machines", "processes"),
    [
        ({}, 1, 4),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, 2, 4),
        ({"SLURM_GPUS_ON_NODE": "", "CIFAR_DIST_PROCESSES_PER_NODE": "3"}, 1, 3),
        ({"SLURM_GPUS_ON_NODE": "1"}, 0, 0),
        ({"RANK": "0"}, 0, 0),
        ({"SLURM_STEP_NUM_TASKS": None}, 0, 0),
    ],
    ids=["one node", "two nodes", "no GPUs", "one process", "a rank already", "in a batch script"],
)
def test_a_task_of_srun_starts_the_ranks_of_its_node(
    changes: dict[str, str | None], machines: int, processes: int
) -> None:
    variables = {name: value for name, value in {**IN_STEP, **changes}.items() if value is not None}
    started = node_of_srun(variables)
    node = Node.from_environment(started) if started else None
    assert (node.nodes if node else 0, node.processes if node else 0) == (machines, processes)
