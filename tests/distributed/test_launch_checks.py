"""The options of the launcher, seen from a real child process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.running import ROOT, TRAIN, environment, spawn

from cifar_dist.distributed.launch_checks import check_launch, requested_processes
from cifar_dist.errors import MachineError, UserError
from cifar_dist.launch.launched import is_main_process, launched_processes, local_processes

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
COMPLETE = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)


# Accelerate's command line and process tree without its imports: `accelerate launch` starts python, which asks.
LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", sys.argv.pop()]))
"""


def under_accelerate(tmp_path: Path, words: list[str], code: str) -> str:
    launcher = tmp_path / "accelerate"
    launcher.write_text(LAUNCHER)
    done = subprocess.run(
        [sys.executable, str(launcher), "launch", *words, code],
        env=environment({"HF_HOME": str(tmp_path / "home")}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("--cpu --num_processes 2 train.py demo", "2"),
        ("--num-processes=3 train.py demo --num_processes 9", "3"),
        ("--cpu train.py --num_processes 2", "None"),
        ("--cpu -m cifar_dist train demo --num_processes 2", "None"),
        ("--config_file four.yaml train.py demo", "4"),
        ("--config_file four.yaml --num_processes 2 -m cifar_dist train demo", "2"),
        ("--config_file nowhere.yaml train.py demo", "None"),
        ("--config_file list.yaml train.py demo", "None"),
        ("--config_file broken.yaml train.py demo", "None"),
        ("--num_processes many train.py demo", "None"),
        ("train.py demo --num_processes 2", "5"),
    ],
)
def test_the_number_of_processes_is_read_from_accelerates_options(tmp_path: Path, words: str, asked: str) -> None:
    four = "{distributed_type: MULTI_GPU, num_processes: 4}"
    for name, text in (("four", four), ("list", "[1, 2]"), ("broken", "a: [")):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "home" / "accelerate").mkdir(parents=True)
    default = tmp_path / "home" / "accelerate" / "default_config.yaml"  # of `accelerate config`
    default.write_text("{distributed_type: MULTI_GPU, num_processes: 5}")
    line = [str(tmp_path / word) if word.endswith(".yaml") else word for word in words.split()]
    code = "from cifar_dist.distributed.launch_checks import requested_processes; print(requested_processes())"
    assert under_accelerate(tmp_path, line, code) == asked


def test_gpus_are_refused_where_the_config_says_use_cpu(tmp_path: Path) -> None:
    """Accelerate tells it to the processes of a single-process launch only."""
    for name, use in (("cpu", "true"), ("gpu", "false")):
        (tmp_path / f"{name}.yaml").write_text(f"{{distributed_type: NO, use_cpu: {use}}}")
    (tmp_path / "other.yaml").write_text("[]")
    code = """
from cifar_dist.errors import UserError
from cifar_dist.distributed.launch_checks import check_cpu_is_used
try:
    check_cpu_is_used()
except UserError as error:
    print(error)
"""
    said = under_accelerate(tmp_path, ["--config_file", str(tmp_path / "cpu.yaml"), "train.py"], code)
    assert said.startswith(f"{tmp_path}/cpu.yaml says use_cpu")
    assert 'add gpu_ids: "-1,-2" to it, or use: cifar-dist launch' in said
    for name in ("gpu", "other"):
        assert not under_accelerate(tmp_path, ["--config_file", str(tmp_path / f"{name}.yaml"), "train.py"], code)


def test_a_launch_on_half_the_machine_is_refused(tmp_path: Path) -> None:
    """Accelerate's --cpu starts one process whatever --num_processes says, and exits 0."""
    code = """
from cifar_dist.errors import UserError
from cifar_dist.distributed.launch_checks import check_launch
try:
    check_launch(0)
except UserError as error:
    print(error)
"""
    said = under_accelerate(tmp_path, ["--cpu", "--num_processes", "2", "train.py"], code)
    assert said.startswith("accelerate launch was asked for 2 processes and started 1")
    assert "use: accelerate launch --config_file launch/cpu.yaml --num_processes 2 train.py" in said
    assert "\n" not in said
    assert under_accelerate(tmp_path, ["--cpu", "--num_processes", "1", "train.py"], code) == ""


def test_without_a_launcher_one_process_trains() -> None:
    assert requested_processes() is None
    assert launched_processes() == local_processes() == 1
    assert is_main_process()
    check_launch(0)
    check_launch(1)


def test_the_rank_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(PLACE, ("3", "8", "1", "2"), strict=True):
        monkeypatch.setenv(name, value)
    assert launched_processes() == 8
    assert local_processes() == 2
    assert is_main_process(), "no launcher says where the processes meet"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert not is_main_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")
    assert local_processes() == 8


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "2.0"])
def test_a_world_size_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(UserError, match="not a number of processes"):
        launched_processes()


@pytest.mark.parametrize(("started", "expected"), [("1", 2), ("4", 2), ("2", 1)])
def test_another_number_of_processes_than_the_recipe_asks_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, started: str, expected: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", started)
    with pytest.raises(UserError) as error:
        check_launch(expected)
    message = str(error.value)
    assert message.startswith(f"run.processes is {expected} and the launcher started {started}; use: ")
    assert message.endswith(f" --num_processes={expected} RECIPE, or --run.processes {started}")
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    check_launch(int(started))


def test_a_rank_that_another_job_left_silences_nothing(tmp_path: Path) -> None:
    done = spawn(["-m", "cifar_dist", "verify", str(tmp_path / "none")], env={"RANK": "1"})[0]
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"no packed dataset at {tmp_path / 'none'}" in done.stderr
    for words, left in (
        ([TRAIN, "nosuch"], {}),
        (["-m", "cifar_dist", "runs", "compare", "nosuch"], {"WORLD_SIZE": "2"}),
    ):
        done = spawn(words, env={"RANK": "1", **left})[0]
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("verb", ["launch", "submit", "sweep"])
def test_what_starts_processes_is_no_rank_of_another_job(verb: str) -> None:
    left = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = spawn(["-m", "cifar_dist", verb, "run" if verb == "sweep" else "cpu", "demo"], env=left)[0]
    assert done.returncode == 2
    assert "first: unset RANK WORLD_SIZE" in done.stderr


def test_a_verb_of_one_process_is_not_silently_left_to_a_rank_of_another_job(tmp_path: Path) -> None:
    left = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    words = ["-m", "cifar_dist", "pack", "digits", str(tmp_path / "out")]
    (done,) = spawn(words, env=left)
    assert done.returncode == 2
    assert done.stderr == (
        "cifar-dist: RANK is 1 and WORLD_SIZE is 2, but LOCAL_RANK is not set; first: unset RANK WORLD_SIZE\n"
    )
    (done,) = spawn(words, env={**left, "LOCAL_RANK": "1"})
    assert done.returncode == 0
    assert done.stderr == ("cifar-dist: rank 1 of 2 has nothing to do: rank 0 does the work of cifar-dist pack alone\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"MASTER_ADDR": None}, "WORLD_SIZE is 4, but MASTER_ADDR is not set; start with cifar-dist launch, "),
        ({"MASTER_PORT": None}, "WORLD_SIZE is 4, but MASTER_PORT is not set; "),
        ({"MASTER_PORT": "abc"}, "WORLD_SIZE is 4, but MASTER_PORT is 'abc'; "),
        ({"RANK": None}, "WORLD_SIZE is 4, but RANK is not set; "),
        ({"RANK": "4"}, "WORLD_SIZE is 4, but RANK is '4'; "),
        ({"LOCAL_RANK": "x"}, "WORLD_SIZE is 4, but LOCAL_RANK is 'x'; "),
        ({**dict.fromkeys(COMPLETE), "LOCAL_RANK": "1"}, "LOCAL_RANK is 1, but WORLD_SIZE is not set; "),
        ({**dict.fromkeys(COMPLETE), "PMI_SIZE": "2"}, "PMI_SIZE is 2, but WORLD_SIZE is not set; "),
        (
            {**dict.fromkeys(COMPLETE), "OMPI_COMM_WORLD_SIZE": "2"},
            "OMPI_COMM_WORLD_SIZE is 2, but WORLD_SIZE is not set; ",
        ),
    ],
)
def test_an_incomplete_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], says: str
) -> None:
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)
    check_launch(0)
    for name, changed in change.items():
        monkeypatch.delenv(name, raising=False) if changed is None else monkeypatch.setenv(name, changed)
    with pytest.raises(MachineError) as error:
        check_launch(0)
    assert str(error.value).startswith(says)
    assert ", for one process, first: unset " in str(error.value)
    assert says.split()[0] in str(error.value).partition("first: unset ")[2]


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "cifar-dist: WORLD_SIZE is 2, but RANK is 'x'; "),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "cifar-dist: DeepSpeed was asked for and there is no process group; start with launch/zero2.yaml",
        ),
    ],
)
def test_a_process_that_cannot_join_says_so_in_one_line(tiny: Path, env: dict[str, str], says: str) -> None:
    (done,) = spawn([TRAIN, str(tiny)], env=env)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cifar-dist: ")]
    assert line.startswith(says)
    assert "Traceback" not in done.stderr
