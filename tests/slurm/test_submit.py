"""``cifar-dist submit``: what would make the job fail is reported before it is submitted. Real jobs: tests/slurm."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from support.run_folders import write_run

from cifar_dist import cli, recipe
from cifar_dist.errors import UserError
from cifar_dist.slurm.preflight import config_in_job
from cifar_dist.slurm.submission import Options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "sbatch is not installed here; log in to the cluster, or use: cifar-dist launch ddp "),
        (["--gres=gpu:4", "--optim.lr", "fast"], "the command line: optim.lr"),
        (["--data.path", "nowhere"], "no packed dataset at nowhere: the folder does not exist"),
        (["--model.name", "tiny-cn"], "did you mean 'tiny-cnn'"),
        (
            ["--run.name", "taken", "--optim.lr", "9"],
            "/runs/taken was started with optim.lr = 0.1 and this command says 9",
        ),
        (["--run.name", "taken"], "/runs/taken is finished already; another --run.name starts a new run"),
        (["--run.name", "taken", "--run.fresh"], "/runs/taken exists and run.fresh is set; use another --run.name"),
        (
            ["--nodes=3", "--train.even_batches", "true"],
            "100 is not divisible by 3 processes x 1 accumulation",
        ),
        (["--run.dir", "/proc/runs"], "run.dir /proc/runs cannot be written (No such file or directory); choose anoth"),
        (
            ["--checkpoint.keep", "1000000000000"],
            "take 4.81e+04 TB; free some, choose another --run.dir, or keep fewer",
        ),
        (["--array=0-3"], "--array=0-3 would run several jobs of one run at once; add %1 for a chain of jobs"),
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


def dry_run(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert cli.run(["submit", *words, "--dry-run"]) == 0
    return shown.getvalue()


def test_a_dry_run_shows_script_and_config_and_writes_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.parent)
    monkeypatch.setenv("CIFAR_DIST_LAUNCH", "zero2")
    before = sorted(tiny.parent.rglob("*"))
    passed = ["-A", "vision", "--qos=long", "-p", "gpu", "--constraint=a100&nvlink", "--dependency", "afterok:7"]
    passed += ["--container=bundle", "--container-image=x.sqsh", "--container-mounts=/data", "--array=0-9%1"]
    shown = dry_run(str(tiny), "--nodes=2", "--gres=gpu:a100:5", *passed, "--optim.lr", "0.25")
    script, _, config = shown.partition(f"# ---- {tiny.parent}/runs/tiny/config.toml\n")
    lines = script.splitlines()
    assert lines[:2] == [f"# ---- {tiny.parent}/runs/tiny/job.sbatch", "#!/usr/bin/env bash"]
    for directive in (
        *("--requeue", "--signal=USR1@120", "--job-name=tiny", f"--chdir={tiny.parent}", "--nodes=2"),
        *("--gres=gpu:a100:5", "-A vision", "--qos=long", "-p gpu", "'--constraint=a100&nvlink'"),
        *("--dependency afterok:7", "--container=bundle", "--array=0-9%1"),
    ):
        assert f"#SBATCH {directive}" in lines
    assert "export CIFAR_DIST_LAUNCH=zero2" in lines
    assert "export CIFAR_DIST_SRUN_OPTIONS='--container-image=x.sqsh --container-mounts=/data'" in lines
    assert lines[-2] == f'exec bash "$CIFAR_DIST_HOME/slurm/train.sbatch" resume {tiny.parent}/runs/tiny'
    (tiny.parent / "shown.toml").write_text(config)
    frozen = recipe.load(str(tiny.parent / "shown.toml"), [])
    assert frozen == recipe.load(str(tiny), ["--optim.lr", "0.25"])
    (tiny.parent / "shown.toml").unlink()
    assert sorted(tiny.parent.rglob("*")) == before
    table = capsys.readouterr().err
    assert "batches     ok       100 = 10 ranks x 10; 13 steps an epoch, the last of 59" in table
    assert "5 checks: all ok" in table


def test_a_job_continues_a_run_by_name_and_a_new_one_has_a_free_name(tiny: Path) -> None:
    runs = tiny.parent / "runs"
    write_run(runs / "tiny", recipe.load(str(tiny), []))
    assert f'train.sbatch" resume {runs}/tiny-2\n' in dry_run(str(tiny))
    for words in (
        [str(tiny), "--run.name", "tiny", "--train.epochs", "3", "--tracking.every=7"],
        ["resume", str(runs / "tiny"), "--nodes", "2", "--train.epochs", "3", "--tracking.every=7"],
    ):
        shown = dry_run(*words)
        assert f'train.sbatch" resume {runs}/tiny --train.epochs 3 --tracking.every=7' in shown
        assert "\nepochs = 2\n" in shown, "the config as it is in the folder"
    with pytest.raises(UserError, match="name the run: cifar-dist submit resume RUN"):
        dry_run("resume", "--nodes=2")


@pytest.mark.parametrize(
    ("options", "variables", "processes"),
    [
        ([], {}, 1),
        (["-N", "2"], {}, 2),
        (["--nodes=2", "--gres=gpu:4"], {}, 8),
        (["--gres=tmpdisk:5,gpu"], {}, 1),
        (["--nodes=4", "--gpus-per-node=a100:8"], {}, 32),
        (["--nodes=4"], {"SBATCH_GRES": "gpu:2"}, 8),
        (["--nodes=4"], {"CIFAR_DIST_PROCESSES_PER_NODE": "3"}, 12),
        (["--nodes=2-4"], {}, None),
        (["--gpus=8"], {}, None),
    ],
)
def test_the_options_say_how_many_processes_the_job_has(
    options: list[str], variables: dict[str, str], processes: int | None
) -> None:
    assert Options.parse(options).processes(variables) == processes


def test_a_run_without_a_name_is_called_after_its_job(tiny: Path) -> None:
    assert config_in_job(str(tiny), [], "7").run.name == "tiny-7"
    assert config_in_job(str(tiny), ["--run.name", "tiny"], "7").run.name == "tiny"
    tiny.write_text(tiny.read_text().replace("[run]\n", '[run]\nname = "own"\n'))
    assert config_in_job(str(tiny), [], "7").run.name == "own"
