"""Mistakes of users: one clear line, exit code 2, no traceback, nothing damaged."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.run_folders import write_run
from support.running import ROOT, TRAIN, finish, spawn, start, train, wait_for_records

from cifar_dist import cli, recipe
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.launch.configs import find_config
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.sweeps import sweep_file
from cifar_dist.tracking import timeline


def refused(done: subprocess.CompletedProcess[str], *says: str, code: int = 2) -> None:
    """Assert that a command is refused with one line on stderr that has all these texts, and the exit code."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("cifar-dist: ")
    for text in says:
        assert text in lines[0]
    assert done.returncode == code


def verb(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return spawn(["-m", "cifar_dist", *words], cwd=cwd)[0]


def test_typo_in_a_recipe_key(tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("batch_size", "batchsize"))
    refused(train(str(tiny))[0], "tiny.toml", "train.batchsize", "did you mean 'train.batch_size'?")


def test_optim_iterations_without_muon() -> None:
    refused(train("demo", "--optim.iterations", "3")[0], "optim.iterations has no effect", "use --optim.name muon")


def test_missing_dataset(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = train(str(tiny), "--data.path", str(tmp_path / "nowhere"))[0]
    refused(done, "no packed dataset at", "the folder does not exist", "cifar-dist pack SOURCE")
    done = train(str(tiny), "--data.path", str(tmp_path / "digits"))[0]
    refused(done, f"create one with: cifar-dist pack digits {tmp_path / 'digits'}")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    done = train(str(tiny), "--data.path", str(tmp_path / "images"))[0]
    refused(done, f"is not a packed dataset; create one from it: cifar-dist pack {tmp_path / 'images'} shards/NAME")
    packed = Path(recipe.load(str(tiny)).data.path)
    with pytest.raises(UserError, match=f"is the manifest of a packed dataset; name its folder, {packed}$"):
        Manifest.load(packed / "manifest.json")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine").symlink_to(packed)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the folder does not exist; did you mean 'shards/mine'\?$"):
        Manifest.load("mine")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("processes", [2])
def test_batch_not_divisible_by_the_processes(tiny: Path, tmp_path: Path, processes: int) -> None:
    words = ["--train.batch_size", "19", "--train.even_batches", "true"]
    done = train(str(tiny), *words, processes=processes)
    refused(
        done[0],
        "train.batch_size 19 is not divisible by 2 processes",
        "use --train.batch_size 18 or 20, or to resume --train.even_batches false",
    )
    assert (done[1].returncode, done[1].stderr) == (2, ""), "one line for the job, not one for each process"
    assert not (tmp_path / "runs").exists()


def test_unwritable_run_folder(tiny: Path) -> None:
    refused(
        train(str(tiny), "--run.dir", "/proc/runs")[0], "the run folder /proc/runs/tiny cannot be written", "--run.dir"
    )


def test_resume_with_another_setting(tiny: Path, tmp_path: Path) -> None:
    assert train(str(tiny), "--train.epochs", "1")[0].returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    refused(
        train(str(tiny), "--train.epochs", "1", "--optim.lr", "0.2")[0],
        "was started with optim.lr = 0.1 and this command says 0.2",
        f"leave optim.lr as it was: cifar-dist resume {tmp_path}/runs/tiny, or start another run: cifar-dist train "
        f"{tmp_path}/runs/tiny/config.toml --run.name tiny-2 --optim.lr 0.2",
    )
    refused(train(str(tiny), "--train.epochs", "1", "--run.fresh")[0], "exists and run.fresh is set")
    after = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    before.pop(tmp_path / "runs/tiny/.lock"), after.pop(tmp_path / "runs/tiny/.lock")
    assert before == after


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_shard(tiny: Path, digits: Path, tmp_path: Path, damage: str) -> None:
    data = shutil.copytree(digits, tmp_path / "data")
    shard = data / "train-000001.tar"
    whole = shard.read_bytes()
    says = {"truncated": "bytes, the manifest says", "flipped": "sha256", "missing": "cannot be opened"}[damage]
    if damage == "missing":
        shard.unlink()
    else:
        cut = whole[:-1000] if damage == "truncated" else bytes([*whole[:5000], whole[5000] ^ 1, *whole[5001:]])
        shard.write_bytes(cut)
    done = train(str(tiny), "--data.path", str(data))[0]
    refused(done, "train-000001.tar", says, f"cifar-dist verify {data}")
    assert verb("verify", str(data)).returncode == 2


def test_unknown_words() -> None:
    refused(verb("trian"), "unknown command 'trian'", "did you mean 'train'?")
    refused(verb("demo", "--run.name", "mine"), "unknown command 'demo'; train that recipe: cifar-dist train demo")
    refused(verb("train"), "name a recipe: one that cifar-dist recipes lists")
    refused(verb("train", "demmo"), "did you mean 'demo'?")
    refused(verb("train", "--optim.lr", "1", "demo"), "the recipe must come first")
    refused(verb("pack"), "source", "see: cifar-dist pack --help")
    refused(verb("evaluate", "no-such-run"), "run 'no-such-run' does not exist")
    refused(verb("pack", "digits", "x", "--val-fraction", "2"), "'2' is not a fraction")
    refused(verb("pack", "digits", "x", "--val_fraction", "0"), "--val_fraction 0; did you mean --val-fraction?")
    refused(verb("preview", "demo", "nowhere/digits"), "unknown recipe 'nowhere/digits'; cifar-dist recipes lists all")
    refused(verb("train", "README.md"), "README.md is not a recipe; name one that cifar-dist recipes lists")
    assert verb("help", "pack").stdout == verb("pack", "--help").stdout


@pytest.mark.parametrize("read", [find_run, recipe.load, sweep_file.load, find_config])
def test_the_home_of_a_user_who_does_not_exist(read: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match=r"~nobody-here/mine\.toml"):
        read("~nobody-here/mine.toml")


def test_a_working_directory_that_was_deleted(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"rmdir {tmp_path}/gone; exec {sys.executable} -m cifar_dist train demo"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path / "gone", capture_output=True, text=True, check=False)
    refused(done, "the working directory was deleted; change to one that exists")


def test_what_cannot_be_trained(tiny: Path, tmp_path: Path) -> None:
    refused(train(str(tiny), "--model.name", "tiny-cn")[0], "unknown model 'tiny-cn'", "did you mean 'tiny-cnn'?")
    refused(train(str(tiny), "--model.options.width", "8")[0], "tiny-cnn has no option 'width'")
    refused(
        train(str(tiny), "--augment.crop.pad", "40")[0],
        "augment.crop.pad 40 is too large for images of 32x32",
    )
    assert not (tmp_path / "runs").exists(), (
        "a run that cannot start leaves nothing that its correction would contradict"
    )


def test_a_damaged_manifest(tiny: Path, digits: Path, tmp_path: Path) -> None:
    data = shutil.copytree(digits, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["train"][0]["name"] = "../x.tar"
    (data / "manifest.json").write_text(json.dumps(manifest))
    refused(
        train(str(tiny), "--data.path", str(data))[0], "is not a valid manifest", "'../x.tar' is not a plain file name"
    )


def test_a_loss_that_is_not_finite_stops_all_ranks_with_the_step_and_the_samples(tiny: Path, tmp_path: Path) -> None:
    done = train(str(tiny), "--optim.lr", "1e30", processes=2)
    assert [d.returncode for d in done] == [1, 1], done[0].stderr
    (line,) = [line for line in done[0].stderr.splitlines() if line.startswith("cifar-dist: ")]
    assert "the loss is not finite at step 2" in line
    assert "ids " in line
    assert "Traceback" not in done[0].stderr + done[1].stderr
    assert not list((tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*")), "no broken weights are kept"


@pytest.mark.parametrize(
    ("processes", "words"), [(2, []), (1, ["--data.hold_out", "false"]), (1, ["--checkpoint.every_steps", "1"])]
)
def test_weights_that_the_last_update_has_spoiled_are_never_kept(
    tiny: Path, tmp_path: Path, processes: int, words: list[str]
) -> None:
    """The loss of a step is that of the weights before it."""
    words = [str(tiny), "--optim.lr", "1e30", "--train.max_steps", "1", *words]
    done = train(*words, processes=processes)
    assert [d.returncode for d in done] == [1] * processes, done[0].stderr
    (line,) = [line for line in done[0].stderr.splitlines() if line.startswith("cifar-dist: ")]
    assert line.endswith(
        "is not finite after step 1; no checkpoint was saved before. Try a lower --optim.lr, or --optim.clip_norm 1"
    )
    run = tmp_path / "runs" / "tiny"
    assert not [*run.glob("checkpoints/step-*"), *run.glob("final"), *run.glob("evaluations/*")]


def test_predicting_a_pickle_that_tries_to_execute(tiny: Path, tmp_path: Path) -> None:
    import os
    import pickle

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/executed",)

    assert train(str(tiny), "--train.epochs", "1")[0].returncode == 0
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({b"data": Attack(), b"ids": [1]}))
    out = tmp_path / "out.csv"
    done = verb("predict", str(tmp_path / "runs" / "tiny"), str(tmp_path / "evil.pkl"), "--out", str(out))
    refused(done, "evil.pkl", "system")
    assert not (tmp_path / "executed").exists()
    assert not out.exists()


def test_two_jobs_on_one_run_folder(tiny: Path, tmp_path: Path) -> None:
    endless = ["--train.epochs", "100000"]
    running = start([TRAIN, str(tiny), *endless])
    try:
        wait_for_records(tmp_path / "runs" / "tiny", 5, running)
        refused(train(str(tiny), *endless)[0], "is in use by process", "use another --run.name", code=69)
    finally:
        running[0].terminate()
        assert finish(running)[0].returncode == 75


def test_an_engine_that_is_not_supported(tiny: Path, tmp_path: Path) -> None:
    variables = {"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "3", "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}
    done = spawn([TRAIN, str(tiny)], 2, env={f"ACCELERATE_{name}": value for name, value in variables.items()})
    (line,) = [line for line in done[0].stderr.splitlines() if line.startswith("cifar-dist: ")]
    assert "DeepSpeed cannot offload the optimizer to nvme here; use launch/zero2-offload.yaml" in line
    assert [d.returncode for d in done] == [2, 2]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("compiler", ["no-compiler", "fails"])
def test_compile_without_a_compiler_that_works(tiny: Path, tmp_path: Path, compiler: str) -> None:
    (tmp_path / "fails").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "fails").chmod(0o755)
    env = {"CXX": str(tmp_path / compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    (done,) = spawn([TRAIN, str(tiny), "--train.compile"], env=env, fresh=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # torch may warn before it
    assert last.startswith("cifar-dist: train.compile: torch.compile does not work here (")
    assert last.endswith("or use --train.compile no")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["verify", "my images"], "cifar-dist pack "),
        (["index", "my images"], "cifar-dist pack "),
        (["pack", "my data", "shards"], "cifar-dist verify "),
        (["train", "demo", "--data.path", "my digits", "--train.precision", "no"], "cifar-dist pack SOURCE "),
        (["resume", "my runs/lost"], "rm -r "),
    ],
)
def test_a_suggested_command_quotes_names_with_spaces(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my images/cat").mkdir(parents=True)
    shutil.copytree(digits, "my data")
    settings = ["--data.path", str(digits), "--run.dir", "my runs", "--run.name", "lost", "--train.precision", "no"]
    config = recipe.load("demo", settings)
    run = RunFolder(write_run(Path("my runs/lost"), config))
    shutil.copy(digits / "manifest.json", run.manifest)
    timeline.append(run.timeline, timeline.Event(timeline.utc(), "interrupted", 3))
    with pytest.raises(UserError) as refused:
        cli.run(words)
    suggested = shlex.split(str(refused.value).partition(command)[2].partition(";")[0])
    assert suggested[0].startswith("my "), refused.value
