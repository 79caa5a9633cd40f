"""The processes of one node of a job, from the variables that Slurm sets on it."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest
from support.run_folders import write_run
from support.running import ROOT, spawn

from cifar_dist import recipe
from cifar_dist.errors import UserError
from cifar_dist.exit_codes import GRACE_SECONDS
from cifar_dist.launch.gpu_devices import count_gpus
from cifar_dist.launch.typed_command import VARIABLE
from cifar_dist.run_folder import RunFolder
from cifar_dist.slurm.job_output import describe_attempt
from cifar_dist.slurm.node import Node, first_host, run_node
from cifar_dist.slurm.preflight import check_job

SECOND_OF_TWO = {
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "24001",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURMD_NODENAME": "gpu08",
}


def test_a_node_of_several_finds_the_first() -> None:
    node = Node.from_environment(SECOND_OF_TWO)
    assert node == Node(index=1, nodes=2, processes=4, config="ddp", host="gpu07", port=20001, name="gpu08")
    assert node.options == [
        "--num_processes=8",
        "--num_machines=2",
        "--machine_rank=1",
        "--main_process_ip=gpu07",
        "--main_process_port=20001",
        "--deepspeed_multinode_launcher=standard",
    ]


@pytest.mark.parametrize(
    ("changes", "config", "processes"),
    [
        ({}, "ddp", 4),
        ({"SLURM_GPUS_ON_NODE": ""}, "cpu", 1),
        ({"SLURM_GPUS_ON_NODE": "", "CIFAR_DIST_PROCESSES_PER_NODE": "3"}, "cpu", 3),
        ({"CIFAR_DIST_PROCESSES_PER_NODE": "2"}, "ddp", 2),
        ({"CIFAR_DIST_PROCESSES_PER_NODE": "", "CIFAR_DIST_LAUNCH": ""}, "ddp", 4),
        ({"CIFAR_DIST_LAUNCH": "zero2"}, "zero2", 4),
        ({"CIFAR_DIST_LAUNCH": "site/mine.yaml"}, "site/mine.yaml", 4),
    ],
)
def test_gpus_and_the_settings_of_a_site_choose_config_and_processes(
    changes: dict[str, str], config: str, processes: int
) -> None:
    node = Node.from_environment({**SECOND_OF_TWO, **changes, "SLURM_NNODES": "1", "SLURM_NODEID": "0"})
    assert (node.config, node.processes) == (config, processes)
    assert node.options == [f"--num_processes={processes}"], "one node meets nobody"


def test_a_node_of_an_elastic_job_passes_on_the_minimum_number_of_nodes() -> None:
    node = Node.from_environment({**SECOND_OF_TWO, "CIFAR_DIST_MIN_NODES": "1"})
    assert node.options == [
        "--num_processes=4",
        "--nnodes=1:2",
        "--max_restarts=2",
        "--rdzv_endpoint=gpu07:20001",
        "--rdzv_conf=is_host=False,last_call_timeout=30",
        "--local_addr=gpu08",
    ]
    alone = {"CIFAR_DIST_MIN_NODES": "1", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    assert Node.from_environment({**SECOND_OF_TWO, **alone}).options == ["--num_processes=4"]


@pytest.mark.parametrize("name", ["CIFAR_DIST_PROCESSES_PER_NODE", "CIFAR_DIST_MIN_NODES"])
@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_variable_that_is_not_a_number_is_refused(name: str, number: str) -> None:
    with pytest.raises(UserError, match=f"{name} is '{number}'; set it to"):
        Node.from_environment({**SECOND_OF_TWO, name: number})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[1-2]", "node1"),
        ("node[001-010,20],gpu[1-3]", "node001"),
        ("node[3,7]", "node3"),
        ("a-b[09-11].site.org,z", "a-b09.site.org"),
        ("rack[2-3]node[1-4]", "rack2node1"),
        ("127.0.0.[11-12]", "127.0.0.11"),
    ],
)
def test_the_first_host_of_a_list(nodelist: str, host: str) -> None:
    """It is the first that ``scontrol show hostnames`` prints, which a container does not have."""
    assert first_host(nodelist) == host


@pytest.mark.parametrize(
    ("variables", "refused"),
    [({}, False), ({"SBATCH_SIGNAL": "USR1@120"}, True), ({"SBATCH_SIGNAL": "USR1@0"}, None)],
)
def test_a_job_is_refused_for_a_signal_that_the_command_line_cannot_have_changed(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    refused: bool | None,
) -> None:
    """Slurm shows no options of a job; it shows the script, which those on the command line of sbatch overrule."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho '#SBATCH --signal=USR1@120'\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "1060", **variables}
    short = r"the job's time limit \(60 s\) leaves less than a minute to train: "
    if refused:
        with pytest.raises(UserError, match=f"^{short}SBATCH_SIGNAL=USR1@120 stops"):
            check_job([str(tiny)], job)
    else:
        config, verb = check_job([str(tiny)], job)
        assert (config.run.name, verb) == ("tiny-7", "train")
    warned = capsys.readouterr().err
    warning = f"slurm/train.sbatch: unless sbatch was given another --signal, {short}--signal=USR1@120 stops"
    assert bool(re.match(warning, warned)) is (refused is False), warned


def test_a_job_is_refused_that_run_max_time_stops_at_its_start(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "1060"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^the job's time limit .* leaves .*: run\.max_time auto stops the run 120 s"):
        check_job([str(tiny), "--run.max_time=auto"], {**job, "SBATCH_SIGNAL": "USR1@20"})


def test_a_job_without_a_recipe_is_refused() -> None:
    with pytest.raises(UserError, match=r"^name a recipe: one that cifar-dist recipes lists, or the path of a \.toml$"):
        check_job([], {"SLURM_JOB_ID": "7"})


def test_a_later_attempt_resumes_what_the_first_one_began(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe is edited for the next job, while this one waits to be requeued."""
    words = [str(tiny), "--run.fresh", "--run.name=it", "--train.epochs", "4"]
    first = {"SLURM_JOB_ID": "7"}
    later = {**first, "SLURM_RESTART_COUNT": "1"}
    assert check_job(words, later)[1] == "train", "it was lost before it began"
    write_run(tiny.parent / "runs" / "it", recipe.load(words[0], words[1:]))
    config, verb = check_job(words, later)
    assert (RunFolder.of(config).path, verb, capsys.readouterr().err) == (tiny.parent / "runs" / "it", "resume", "")
    tiny.write_text(tiny.read_text().replace("lr = 0.1", "lr = 9.0"))
    assert check_job(words, later)[1] == "resume"
    assert capsys.readouterr().err == (
        f"slurm/train.sbatch: {RunFolder.of(config).path} was started with optim.lr = 0.1 and {tiny} now says 9.0; "
        "it continues as it was started\n"
    )


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("--nodes=2 tiny.toml", "--nodes=2"),
        ("-N 2 tiny.toml", "-N 2"),
        ("--exclusive tiny.toml --optim.lr 1", "--exclusive"),
        ("--exclusive resume runs/it", "--exclusive"),
        ("tiny.toml -N 2", "-N 2"),
        ("tiny.toml --time 1:00:00 --run.name it", "--time 1:00:00"),
        ("tiny.toml --exclusive --gres=gpu:4", "--exclusive"),
        ("tiny.toml --gres=gpu:4", "--gres=gpu:4"),
    ],
)
def test_options_on_the_wrong_side_of_the_script_are_named_with_their_values(words: str, option: str) -> None:
    with pytest.raises(UserError, match=rf"^{option.split()[0]} is no.*: sbatch {option} slurm/train\.sbatch RECIPE$"):
        check_job(words.split(), {"SLURM_JOB_ID": "7"})


def test_values_that_begin_like_options_are_none(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean '--optim\.lr'"):
        check_job([str(tiny), "--run.seed", "-1", "--lr", "0.1"], {"SLURM_JOB_ID": "7"})


def test_a_job_does_not_continue_another_run_that_has_the_name_of_its_own(tiny: Path) -> None:
    """``submit`` numbers its runs, and the numbers of a young cluster's jobs are as small."""
    run = write_run(tiny.parent / "runs" / "tiny-7", recipe.load(str(tiny)))
    with pytest.raises(UserError) as refused:
        check_job([str(tiny)], {"SLURM_JOB_ID": "7"})
    assert str(refused.value) == (
        f"{run} exists, and this job begins a new run; give that another --run.name, or continue this one: "
        f"sbatch slurm/train.sbatch resume {run}"
    )
    assert check_job([str(tiny), "--run.name", "tiny-7"], {"SLURM_JOB_ID": "7"})[0].run.name == "tiny-7"
    assert check_job([str(tiny)], {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})[1] == "resume"


@pytest.mark.parametrize("content", ["[optim", None], ids=["half-written", "deleted"])
def test_a_later_attempt_needs_no_recipe(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [tiny.name, "--run.dir", "here"]
    run = write_run(Path("here") / "tiny-7", recipe.load(words[0], words[1:]))
    tiny.unlink()
    if content is not None:
        tiny.write_text(content)
    later = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    with pytest.raises(UserError, match=r"tiny\.toml"):
        check_job(words, later)  # the folder of that name may be of another job
    (run / "environment.json").write_text(json.dumps({"variables": {"SLURM_JOB_ID": "7"}}))
    config, verb = check_job(words, later)
    assert (RunFolder.of(config).path, verb) == (run, "resume")
    assert capsys.readouterr().err.endswith(f"; {run} continues as it was started\n")


@pytest.mark.parametrize("name", ["next", None], ids=["edited", "deleted"])
def test_a_later_attempt_continues_the_run_that_the_first_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str | None
) -> None:
    """A recipe that names its run and folder is edited to train the next run, and this job is requeued."""
    monkeypatch.chdir(tmp_path)
    text = tiny.read_text().replace(f"{tmp_path}/runs", "two words")
    tiny.write_text(text.replace("[run]", "[run]\nname = 'one'"))
    run = write_run(Path("two words") / "one", recipe.load(tiny.name))
    tiny.unlink()
    if name is not None:
        tiny.write_text(text.replace("[run]", f"[run]\nname = '{name}'"))
    later = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    for job, number in (("7", 1), ("7", 2), ("8", 1)):
        folder = run if job == "7" else tmp_path / "other"
        print(f"slurm/train.sbatch: {describe_attempt(job, number, 'n[1-2]', RunFolder(folder))}", file=sys.stderr)
    config, verb = check_job([tiny.name], later)
    assert (RunFolder.of(config).path, verb) == (run, "resume")
    assert capfd.readouterr().err.splitlines()[-1].endswith("continues as it was started")
    assert name is None or check_job([tiny.name], {**later, "SLURM_JOB_ID": "9"})[0].run.name == "next"


@pytest.mark.parametrize("script", ["train.sbatch", "sweep.sbatch"])
def test_the_scripts_ask_for_the_grace_that_the_package_counts_on(script: str) -> None:
    asked = re.findall(r"^#SBATCH --signal=USR1@(\d+)$", (ROOT / "slurm" / script).read_text(), re.M)
    assert asked == [str(GRACE_SECONDS)]


def test_what_a_plug_in_prints_is_no_part_of_the_answer_for_the_script(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\nfrom cifar_dist.distributed.data_parallel import DataParallel as Mine\n"
        "print('loaded')\nos.system('echo loaded')\n"
    )
    words = [str(tiny), "--train.engine", f"{tmp_path}/mine.py:Mine"]
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}
    (done,) = spawn(["-m", "cifar_dist.slurm", "preflight", *words], env=job)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/runs/tiny-7\n\ntrain\n0\n"
    assert done.stderr.count("loaded\n") == 2


@pytest.mark.parametrize(
    ("gpus", "variables", "said"),
    [
        (2, {}, "has 2 GPUs that the job did not ask for, so it trains on the CPU; use sbatch --gres=gpu:2, or, where"),
        (1, {"SLURM_GPUS_ON_NODE": ""}, "has a GPU that the job did not ask for"),
        (2, {"SLURM_GPUS_ON_NODE": "1"}, ""),
        (2, {"CIFAR_DIST_LAUNCH": "cpu"}, ""),
        (0, {}, ""),
    ],
)
def test_a_node_with_gpus_that_the_job_did_not_ask_for_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: int,
    variables: dict[str, str],
    said: str,
) -> None:
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{index}" for index in range(gpus))):
        (tmp_path / name).touch()
    monkeypatch.setattr("cifar_dist.slurm.node.count_gpus", partial(count_gpus, tmp_path))
    monkeypatch.setattr("cifar_dist.slurm.node.run_launcher", lambda config, options, job: 0)
    monkeypatch.setenv(VARIABLE, "")  # run_node sets it
    own = {name: value for name, value in SECOND_OF_TWO.items() if name != "SLURM_GPUS_ON_NODE"}
    assert run_node(["train", "demo"], {**own, **variables}) == 0
    warned = capsys.readouterr().err
    assert said in warned
    assert warned.count("\n") == (1 if said else 0)
