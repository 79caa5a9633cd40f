"""``cifar-dist submit``: what would make the job fail is reported before it is submitted. Real jobs: tests/slurm."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support.run_folders import write_run
from support.running import ROOT, spawn

from cifar_dist import cli, recipe
from cifar_dist.config.plugin_copies import located
from cifar_dist.data.dataset_file import find_dataset_file
from cifar_dist.errors import UserError
from cifar_dist.files import checkout
from cifar_dist.launch.configs import find_config
from cifar_dist.launch.launched import RESTARTED
from cifar_dist.models import build
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.kept_plugins import keep_versions
from cifar_dist.runs.resume import resumed_config
from cifar_dist.slurm import sbatch
from cifar_dist.slurm.options import Options
from cifar_dist.slurm.preflight import config_in_job
from cifar_dist.slurm.submission import Submission


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "sbatch is not installed here; log in to the cluster, or use: cifar-dist launch ddp "),
        (["--gres=gpu:4", "--optim.lr", "fast"], "the command line: optim.lr"),
        (["--data.path", "nowhere"], "no packed dataset at nowhere: the folder does not exist"),
        (["--model.name", "tiny-cn"], "did you mean 'tiny-cnn'"),
        (["--train.max_steps", "100000"], "train.max_steps 100000 is more than the "),
        (["--model.pretrained", "a.pth"], "model.pretrained: a.pth does not exist; give a .safetensors or .pth file"),
        (["--model.pretrained", "published"], "model.pretrained: no weights are published for tiny-cnn; use --model."),
        (
            ["--run.name", "taken", "--optim.lr", "9"],
            "/runs/taken was started with optim.lr = 0.1 and this command says 9",
        ),
        (["--run.name", "taken"], "/runs/taken is finished already; another --run.name starts a new run"),
        (["--run.name", "taken", "--run.fresh"], "/runs/taken exists and run.fresh is set; use another --run.name"),
        (
            ["--nodes=3", "--train.even_batches", "true"],
            "20 is not divisible by 3 processes x 1 accumulation",
        ),
        (["--run.dir", "/proc/runs"], "run.dir /proc/runs cannot be written (No such file or directory); choose anoth"),
        (
            ["--checkpoint.keep", "1000000000"],
            "take 48.1 TB; free some, choose another --run.dir, or keep fewer",
        ),
        *(
            (words, "--array=0-3 would run several jobs of one run at once; add %1 for a chain of jobs")
            for words in (["--array=0-3"], ["--arr", "0-3"], ["-a0-3"], ["-a", "0-3"], ["-Ha0-3"])
        ),
        *(
            (
                words,
                "(60 s) leaves less than a minute to train: --signal=USR1@120 of the script stops the run 120 s before",
            )
            for words in (["--time=1"], ["-t", "00:00:30"], ["--tim=0-0:1"])
        ),
        (
            ["--time=60", "--signal=USR1@3600"],
            "--signal=USR1@3600 stops the run 3600 s before it; ask for more, such as --time=120",
        ),
        (
            ["--time=2", "--signal=USR1@9", "--run.max_time=auto"],
            "minute to train: run.max_time auto stops the run 120 s before",
        ),
        (
            ["-o", "no/a b/%j.out"],
            "--output=no/a b/%j.out: the folder no/a b does not exist, and Slurm would end the job without any",
        ),
        (["--error=no/%j.err"], "without any output; create it: mkdir -p no"),
        (
            ["-D", "/tmp"],
            "--chdir=/tmp: a run is found, and finds its data, from the folder of this command; drop it, or",
        ),
        (["-N2", "--ntasks=1"], "--ntasks=1 would take 1 of 2 nodes: each runs one task; drop it"),
        (["--wrap", "ls"], "--wrap=ls: the job has a script of its own; drop it"),
        (["--nodes=1", "2"], "unexpected '2'; sbatch options begin with -, settings are --section.field VALUE"),
    ],
)
def test_bad_input_is_one_line(tiny: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str) -> None:
    write_run(tiny.parent / "runs" / "taken", recipe.load(str(tiny), ["--run.name", "taken"]), test=0.5)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError) as caught:
        cli.run(["submit", str(tiny), *words])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_finished_run_whose_data_has_moved_needs_no_job(tiny: Path, tmp_path: Path) -> None:
    config = recipe.load(str(tiny), ["--run.name", "taken"])
    run = write_run(tiny.parent / "runs" / "taken", config, test=0.5)
    data = shutil.copytree(config.data.path, tmp_path / "data")
    for words in (["resume", str(run)], [str(tiny), "--run.name", "taken"]):
        with pytest.raises(UserError) as caught:
            cli.run(["submit", *words, "--data.path", str(data)])
        assert str(caught.value) == (
            f"{run} is finished already and needs no job to read its data elsewhere; "
            f"use: cifar-dist resume {run} --data.path {data}"
        )


def test_weights_of_another_network_do_not_enter_the_queue(tiny: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(build("tiny-resnet", classes=10, options={}).state_dict(), weights)
    says = re.escape(f"model.pretrained: {weights} does not fit tiny-cnn: missing: ")
    with pytest.raises(UserError, match=says):
        dry_run(str(tiny), "--model.pretrained", str(weights))
    assert "#SBATCH" in dry_run(str(tiny), "--model.pretrained", str(weights), "--model.name", "tiny-resnet")


@pytest.mark.parametrize(
    ("name", "value", "settings", "says"),
    [
        ("LAUNCH", "dpp", [], "launch/dpp.yaml does not exist; configs: cpu ddp "),
        ("PROCESSES_PER_NODE", "two", [], "CIFAR_DIST_PROCESSES_PER_NODE is 'two'; set it to an integer of at least 1"),
        ("MIN_NODES", "0", [], "CIFAR_DIST_MIN_NODES is '0'; set it to an integer of at least 1"),
        (
            "LAUNCH",
            "zero2",
            ["--train.parts", "4"],
            "train.parts = 4 needs one process or DDP, not DeepSpeed ZeRO-1 or",
        ),
        ("LAUNCH", "zero3", ["--train.parts", "4"], "train.parts = 4 needs one process or DDP, not DeepSpeed ZeRO-3"),
        (
            "LAUNCH",
            "fsdp",
            ["--train.compile", "default"],
            'train.compile = "default" needs one process, DDP or DeepSpeed',
        ),
        ("LAUNCH", "broken.yaml", [], "broken.yaml is not a config of accelerate launch: it has no distributed_type"),
    ],
)
def test_a_variable_of_the_site_is_checked(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, settings: list[str], says: str
) -> None:
    monkeypatch.chdir(tiny.parent)
    (tiny.parent / "broken.yaml").write_text("- a list")
    monkeypatch.setenv(f"CIFAR_DIST_{name}", value)
    with pytest.raises(UserError) as caught:
        dry_run(str(tiny), *settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        (["--time=1"], {}, "(60 s) leaves less than a minute to train"),
        (["--output=no/%A.out"], {}, "create it: mkdir -p no"),
        (["--array=3"], {}, "--array=3: a sweep numbers its tasks itself; drop it, or limit them: --jobs 8"),
        (["second.toml"], {}, "unexpected 'second.toml'; sbatch options begin with -, settings are --section.field"),
        ([], {"CIFAR_DIST_LAUNCH": "dpp"}, "row 'only': launch/dpp.yaml does not exist; configs: "),
    ],
)
def test_a_sweep_of_which_no_task_could_train_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tiny.parent / "sweep.toml").write_text(f'recipe = "{tiny}"\n[[rows]]\nname = "only"\n')
    with pytest.raises(UserError) as caught:
        cli.run(["sweep", "submit", str(tiny.parent / "sweep.toml"), *words])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        (
            "printf 'sbatch: error: no such\\nsbatch: error: failed\\n' >&2",
            "sbatch: error: no such; sbatch: error: failed",
        ),
        ("true", "sbatch failed with exit code 1, and says no more"),
    ],
)
def test_what_sbatch_says_becomes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, says: str
) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{fails}\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError) as caught:
        sbatch.submit(ROOT / "slurm" / "train.sbatch", [], Options.parse([]))
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("sbatch_fails", "says"),
    [
        (
            'echo "sbatch: error: Batch job submission failed: Invalid job array specification" >&2; exit 1',
            r"^sbatch: error: .* specification; one job may have fewer than 2 tasks "
            r"\(scontrol show config: MaxArraySize\); split the rows of the sweep into several files$",
        ),
        ("", r"^2 runs are too long for one command; split the rows of the sweep into several files$"),
    ],
    ids=["MaxArraySize", "ARG_MAX"],
)
def test_a_sweep_of_too_many_runs_for_one_job_is_to_be_split(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sbatch_fails: str, says: str
) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{sbatch_fails}\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    note = "x" * (1 if sbatch_fails else 3_000_000)
    rows = f"[[rows]]\nname = 'one'\ntracking = {{ wandb = 'offline', project = '{note}' }}\n[[rows]]\nname = 'two'\n"
    (tmp_path / "sweep.toml").write_text(f'recipe = "{tiny}"\n{rows}')
    with pytest.raises(UserError, match=says):
        cli.run(["sweep", "submit", str(tmp_path / "sweep.toml")])


def test_the_command_that_works_without_slurm_can_be_pasted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    recipe_with_space = tiny.rename(tiny.with_name("my tiny.toml"))
    with pytest.raises(UserError) as caught:
        cli.run(["submit", str(recipe_with_space), "--run.name", "it"])
    assert str(caught.value).endswith(f"use: cifar-dist launch ddp '{recipe_with_space}' --run.name it")


def test_a_submitted_job_has_each_variable_of_the_site(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set(re.findall(r"`(CIFAR_DIST_\w+|\w+_SOCKET_IFNAME)`", (ROOT / "slurm" / "README.md").read_text()))
    values = dict.fromkeys(names, "1") | {"CIFAR_DIST_HOME": str(ROOT), "CIFAR_DIST_LAUNCH": "cpu"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    exported = re.findall(r"^export (\w+)=(\S+)$", dry_run(str(tiny)), re.M)
    assert dict(exported) == values
    assert "CIFAR_DIST_MIN_NODES" in values


def dry_run(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert cli.run(["submit", *words, "--dry-run"]) == 0
    return shown.getvalue()


@pytest.mark.parametrize("way", ["in its root", "CIFAR_DIST_HOME", "neither"])
def test_an_installed_package_finds_the_repository(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """For its job, its launch configs and its datasets alike."""
    copy = tmp_path / "copy"
    for file in ("launch/ddp.yaml", "launch/cpu.yaml", "shards/digits.toml", "slurm/train.sbatch"):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, copy / file)
    monkeypatch.setattr(checkout, "CHECKOUT", tmp_path / "site-packages")
    monkeypatch.delenv("CIFAR_DIST_HOME", raising=False)
    monkeypatch.chdir(copy if way == "in its root" else tmp_path)
    if way == "CIFAR_DIST_HOME":
        monkeypatch.setenv(way, str(copy))
    if way == "neither":
        with pytest.raises(
            UserError, match=r"site-packages/slurm/train\.sbatch does not exist; submit from the root of "
        ):
            dry_run(str(tiny))
        return
    assert f"\nexport CIFAR_DIST_HOME={copy}\n" in dry_run(str(tiny))
    assert find_config("cpu") == copy / "launch" / "cpu.yaml"
    dataset = find_dataset_file("digits")
    assert dataset is not None
    assert dataset.resolve() == copy / "shards" / "digits.toml"


def test_a_dry_run_shows_script_and_config_and_writes_nothing(
    tiny: Path, all_digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.parent)
    monkeypatch.setenv("CIFAR_DIST_LAUNCH", "zero2")
    before = sorted(tiny.parent.rglob("*"))
    passed = ["-A", "vision", "--qos=long", "-p", "gpu", "--constraint=a100&nvlink", "--dependency", "afterok:7"]
    passed += ["--container=bundle", "--container-image=x.sqsh", "--container-mounts=/data", "--array=0-9%1"]
    settings = ["--optim.lr", "0.25", "--data.path", str(all_digits), "--train.batch_size", "100"]
    shown = dry_run(str(tiny), "--nodes=2", "--gres=gpu:a100:5", *passed, *settings)
    script, _, config = shown.partition(f"# ---- {tiny.parent}/runs/tiny/config.toml\n")
    lines = script.splitlines()
    assert lines[:2] == [f"# ---- {tiny.parent}/runs/tiny/job.sbatch", "#!/usr/bin/env bash"]
    for directive in (
        *("--requeue", "--signal=USR1@120", "--job-name=tiny", f"--chdir={tiny.parent}", "--nodes=2"),
        *("--gres=gpu:a100:5", "-A vision", "--qos=long", "-p gpu", "'--constraint=a100&nvlink'"),
        *("--dependency afterok:7", "--container=bundle", "--array=0-9%1", "--output=slurm-%A_%a.out"),
    ):
        assert f"#SBATCH {directive}" in lines
    assert "export CIFAR_DIST_LAUNCH=zero2" in lines
    assert "export CIFAR_DIST_SRUN_OPTIONS='--container-image=x.sqsh --container-mounts=/data'" in lines
    assert lines[-2] == f'exec bash "$CIFAR_DIST_HOME/slurm/train.sbatch" resume {tiny.parent}/runs/tiny'
    (tiny.parent / "shown.toml").write_text(config)
    frozen = recipe.load(str(tiny.parent / "shown.toml"), [])
    assert frozen == recipe.load(str(tiny), settings)
    (tiny.parent / "shown.toml").unlink()
    assert sorted(tiny.parent.rglob("*")) == before
    table = capsys.readouterr().err
    assert "batches     ok       100 = 10 ranks x 10; 13 steps an epoch, the last of 59" in table
    assert "5 checks: all ok" in table


def test_a_job_continues_a_run_by_name_and_a_new_one_has_a_free_name(tiny: Path, digits: Path) -> None:
    runs = tiny.parent / "runs"
    write_run(runs / "tiny", recipe.load(str(tiny), []))
    assert f'train.sbatch" resume {runs}/tiny-2\n' in dry_run(str(tiny))
    for words in (
        [str(tiny), "--run.name", "tiny", "--train.epochs", "3", "--tracking.every=7"],
        ["resume", str(runs / "tiny"), "--nodes", "2", "--train.epochs", "3", "--tracking.every=7"],
    ):
        shown = dry_run(*words)
        assert re.search(rf'train.sbatch" resume {runs}/tiny .*--tracking.every[= ]7', shown)
        assert "--train.epochs 3" in shown
        assert "\nepochs = 2\n" in shown, "the config as it is in the folder"
    branch = ["--run.name", "branch", "--run.from", "other@5"]
    write_run(runs / "branch", recipe.load(str(tiny), branch))
    assert f'train.sbatch" resume {runs}/branch\n' in dry_run(str(tiny), *branch), "it has begun already"
    nested = ["small-resnet/baseline", "--data.path", str(digits), "--run.dir", str(runs)]
    write_run(runs / "small-resnet-baseline", recipe.load(nested[0], nested[1:]))
    assert f'train.sbatch" resume {runs}/small-resnet-baseline-2\n' in dry_run(*nested)
    with pytest.raises(UserError, match="name the run: cifar-dist submit resume RUN"):
        dry_run("resume", "--nodes=2")


def test_a_job_of_a_run_receives_what_the_recipe_has_changed(tiny: Path) -> None:
    run = write_run(tiny.parent / "runs" / "tiny", recipe.load(str(tiny), ["--tracking.wandb", "offline"]))
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("keep = 3", "keep = 7"))  # an edit
    tiny.write_text(tiny.read_text().replace("every_steps = 5", "every_steps = 6"))
    words = [str(tiny), "--run.name", "tiny", "--run.max_time=1h30m", "--run.processes", "2", "--eval.tta", "mirror"]
    command = re.findall(r'train.sbatch" (resume .*)$', dry_run(*words), re.M)[-1]
    _, path, *settings = shlex.split(command)
    wanted, resumed = recipe.load(words[0], words[1:]), resumed_config(RunFolder(Path(path)), settings)
    assert resumed == wanted
    assert (wanted.checkpoint.every_steps, wanted.checkpoint.keep, resumed.tracking.wandb) == (6, 3, "disabled")


@pytest.mark.parametrize("words", [["--container-mounts=/a b"], ["--container-image", "a\nb"]])
def test_an_option_that_srun_would_get_in_parts_is_refused(tiny: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"^a space or line break in '.*' would split it for srun; use a path without$"):
        dry_run(str(tiny), *words)


def test_quotes_in_the_options_of_srun_are_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job splits them at spaces, and srun would take the second half of a path for the program."""
    monkeypatch.setenv("CIFAR_DIST_SRUN_OPTIONS", "--container-mounts='/my data:/data'")
    with pytest.raises(UserError, match=r"^CIFAR_DIST_SRUN_OPTIONS is split at spaces, also inside quotes: --cont"):
        dry_run(str(tiny))


def test_a_job_in_a_container_gets_its_options_as_typed_and_looks_for_python_there(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--container-image=nvcr.io#nvidia/pytorch:24.01-py3", "--container-mounts", "/data:/data"]
    script = dry_run(str(tiny), *words)
    assert f"export CIFAR_DIST_SRUN_OPTIONS='{' '.join(words)}'\n" in script
    assert "CIFAR_DIST_VENV" not in script, "that of this machine is not in the image"
    assert f"export CIFAR_DIST_VENV={sys.prefix}\n" in dry_run(str(tiny))
    monkeypatch.setenv("CIFAR_DIST_VENV", "/in/the/image")
    assert "export CIFAR_DIST_VENV=/in/the/image\n" in dry_run(str(tiny), *words)


def test_of_two_submissions_at_once_the_second_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found the name free; the second must not continue the run of the first, with the settings of that."""
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = (
        Submission.of_recipe(str(tiny), ["--optim.lr", rate, "--run.fresh"], Options.parse([])) for rate in ("1", "2")
    )
    assert first.submit().wait() == 0
    script = first.folder.job_script.read_text()
    with pytest.raises(UserError, match=r"another command has created .*/runs/tiny meanwhile; run this one again"):
        second.submit()
    assert first.folder.job_script.read_text() == script
    assert "lr = 1.0\n" in first.folder.config.read_text()
    assert "fresh = false\n" in first.folder.config.read_text()


NET = """
from torch import nn

def net(classes: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes))
"""


def test_a_job_begins_with_the_plug_ins_that_were_submitted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    net, run = tmp_path / "net.py", RunFolder(tmp_path / "runs" / "it")
    settings = ["--run.name", "it", "--model.name", f"{net}:net", "--train.max_steps", "2"]
    for version in (NET, f"{NET}# corrected, and submitted again\n"):
        net.write_text(version)
        assert Submission.of_recipe(str(tiny), settings, Options.parse([])).submit().wait() == 0
        net.write_text("half of what the next run")
    (job,) = spawn(["-m", "cifar_dist", "resume", str(run.path)])
    assert job.returncode == 0, job.stderr
    assert f"{net} has changed since {run.path} copied it; using {run.plugins}/net-2.py" in run.log.read_text()
    assert sorted(path.name for path in run.plugins.glob("*.py")) == ["net-2.py", "net.py"]
    (by_a_person,) = spawn(["-m", "cifar_dist", "resume", str(run.path), "--train.max_steps", "3"])
    assert (by_a_person.returncode, f"importing {net} raised" in by_a_person.stderr) == (2, True), by_a_person.stderr


@pytest.mark.parametrize(
    ("wrote", "variables", "keeps"),
    [
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, True),
        ({"SLURM_JOB_ID": "6"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, False),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}, False),
        (
            {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6"},
            {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "6"},
            True,
        ),
        ({}, {RESTARTED: "1"}, True),
        ({}, {"TORCHELASTIC_RESTART_COUNT": "1"}, False),
    ],
    ids=["requeued", "requeued before it began", "a person in its shell", "a chain", "elastic", "one machine's ranks"],
)
def test_a_job_continues_with_the_plug_ins_that_it_has_trained_with(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, wrote: dict[str, str], variables: dict[str, str], keeps: bool
) -> None:
    net = tiny.with_name("net.py")
    net.write_text("as it was trained")
    config = recipe.load(str(tiny), ["--model.name", f"{net}:net"])
    run = RunFolder(write_run(tiny.parent / "runs" / "tiny", config))
    keep_versions(run.plugins, config)
    run.environment.write_text(json.dumps({"variables": wrote}))
    net.write_text("as the next run needs it")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    resumed_config(run, [])
    assert located(net) == (run.plugins / net.name if keeps else net)


def test_a_resumed_run_keeps_the_options_of_its_last_job(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its GPUs, the job would train on a CPU."""
    monkeypatch.chdir(tiny.parent)
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CIFAR_DIST_SRUN_OPTIONS", "--cpu-bind=none")
    kept = ["--gres=gpu:4", "-c", "16", "--comment=two words", "--container-image=a#b"]
    assert cli.run(["submit", str(tiny), "--run.name", "it", *kept, "--dependency=afterok:6"]) == 0
    script = RunFolder(tiny.parent / "runs" / "it").job_script
    for _ in range(2):
        capsys.readouterr()
        assert cli.run(["submit", "resume", "it", "--train.epochs", "3"]) == 0
        says = "with the options of its last job: --gres=gpu:4 -c 16 '--comment=two words' '--container-image=a#b'\n"
        assert says in capsys.readouterr().err
        text = script.read_text()
        assert text.count("--gres=gpu:4") == text.count("-c 16") == text.count("#SBATCH '--comment=two words'") == 1
        assert "export CIFAR_DIST_SRUN_OPTIONS='--cpu-bind=none --container-image=a#b'\n" in text
        assert "--dependency" not in text
        assert text.endswith("resume runs/it --train.epochs 3\n")
    assert cli.run(["submit", "resume", "it", "--gres=gpu:2"]) == 0
    assert "-c 16" not in script.read_text()
    assert "--gres=gpu:2" in script.read_text()
    script.unlink()
    assert "--gres" not in dry_run("resume", "it"), "a run that was not submitted"


@pytest.mark.parametrize("words", [["--comment=a\ntouch x"], ["--comment", "a\nb"]])
def test_an_option_with_a_line_break_is_refused(tiny: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"has a line break, which .*job\.sbatch cannot hold; remove it"):
        dry_run(str(tiny), *words)


def test_a_path_with_a_line_break_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny.parent / "a\nb").mkdir()
    monkeypatch.chdir(tiny.parent / "a\nb")
    with pytest.raises(UserError, match=r"has a line break, which .*job\.sbatch cannot hold; remove it"):
        dry_run(str(tiny))


@pytest.mark.parametrize(
    ("options", "signal"),
    [(["--signal=USR1@600"], "USR1@600"), (["-N1", "--signal", "USR1@9", "--requeue"], "USR1@9"), ([], "USR1@77")],
)
def test_a_job_knows_the_signal_that_its_command_line_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], signal: str
) -> None:
    """Slurm passes the environment of sbatch on, and shows its options to nobody."""
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\necho "$SBATCH_SIGNAL" > {tmp_path}/signal; echo 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_SIGNAL", "USR1@77")
    assert sbatch.submit(tmp_path / "sbatch", [], Options.parse(options)).wait() == 0
    assert (tmp_path / "signal").read_text().strip() == signal


def test_ctrl_c_says_that_the_job_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 7; sleep 0.3; kill -INT $PPID; exec sleep 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # torch leaves its own behind, for other tests
    try:
        job = sbatch.submit(tmp_path / "sbatch", [], Options.parse(["--wait"]))
        with pytest.raises(KeyboardInterrupt):
            job.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "cifar-dist: job 7 continues; to cancel it: scancel 7\n"


def test_a_run_without_a_name_is_called_after_its_job(tiny: Path) -> None:
    assert config_in_job(str(tiny), [], "7").run.name == "tiny-7"
    assert config_in_job(str(tiny), ["--run.name", "tiny"], "7").run.name == "tiny"
    assert config_in_job("small-resnet/baseline", [], "7").run.name == "small-resnet-baseline-7"
    tiny.write_text(tiny.read_text().replace("[run]\n", '[run]\nname = "own"\n'))
    assert config_in_job(str(tiny), [], "7").run.name == "own"
