"""Exclusive access to a run folder, what a resume may change, and folders that cannot be opened."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.opened_folders import CONFIG, open_and_end, refusal
from support.running import ROOT, environment
from support.without_rights import public_folder, without_rights

from cifar_dist.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RunConfig,
    SGDConfig,
    TrainConfig,
    WandbConfig,
)
from cifar_dist.config.optim import AdamConfig
from cifar_dist.config.saved import read_config
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.launch.launched import RESTARTED
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.opening import open_folder, refuse_read_only

HOLD = """
import sys
from pathlib import Path
from cifar_dist.config.saved import read_config
from cifar_dist.data.manifest import Manifest
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.opening import open_folder
path = Path(sys.argv[1])
folder = RunFolder(path)
open_folder(folder, read_config(path / "config.toml"), Manifest.load(sys.argv[2]))
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("restarted", [RESTARTED, "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_second_job_is_refused_while_the_first_lives(
    tmp_path: Path,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    restarted: str,
) -> None:
    """An elastic job that continues waits, and one that was requeued: the first may be a machine that it has lost."""
    path = tmp_path / "it"
    open_and_end(path, CONFIG, manifest)
    job = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(manifest.root)],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "open\n"
        before = {file: file.read_bytes() for file in path.iterdir() if file.is_file()}
        message = refusal(path, replace(CONFIG, optim=SGDConfig(lr=9.0)), manifest)
        assert f"is in use by process {job.pid} on {os.uname().nodename}; wait until that has ended, or" in message
        assert {file: file.read_bytes() for file in path.iterdir() if file.is_file()} == before
        assert "only if" not in message, "this machine is not lost"
        monkeypatch.setenv(restarted, "1")
        threading.Timer(1.0, job.kill).start()
        open_and_end(path, CONFIG, manifest)
        assert f"s for {path}, which process {job.pid} on {os.uname().nodename} has locked" in capsys.readouterr().err
        monkeypatch.delenv(restarted)
    finally:
        job.kill()
        job.communicate()
    open_and_end(path, CONFIG, manifest)  # a killed job holds nothing


def test_a_lock_of_another_machine_can_be_removed(tmp_path: Path, manifest: Manifest) -> None:
    """A file server may keep it for ever if that machine is lost."""
    path = tmp_path / "it"
    open_and_end(path, CONFIG, manifest)
    (path / ".lock").write_text("process 7 on node9")
    with (path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refusal(path, CONFIG, manifest)
        assert message.endswith(f"; only if node9 is lost: rm {path}/.lock")
        (path / ".lock").write_text("")  # as by a process that has just locked it, here or elsewhere
        assert "only if" not in refusal(path, CONFIG, manifest)
        (path / ".lock").unlink()
        open_and_end(path, CONFIG, manifest)


def test_checking_whether_a_run_is_in_use_does_not_lock_it(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it"
    folder = RunFolder(path)
    assert not folder.in_use(), "it does not exist yet"
    open_folder(folder, CONFIG, manifest)
    assert RunFolder(path).in_use()
    del folder
    assert not RunFolder(path).in_use()
    with (path / ".lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(look, fcntl.LOCK_UN))  # gone when it is waited for
        open_and_end(path, CONFIG, manifest)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        (replace(CONFIG, optim=SGDConfig(lr=0.2)), "optim.lr = 0.1 and this command says 0.2"),
        (replace(CONFIG, run=RunConfig(name="it", seed=1)), "run.seed = 0 and this command says 1"),
        (replace(CONFIG, train=TrainConfig(batch_size=256)), "train.batch_size = 512 and this command says 256"),
        (replace(CONFIG, data=DataConfig(shuffle_block=1)), "data.shuffle_block = 64 and this command says 1"),
        (replace(CONFIG, model=ModelConfig("tiny-cnn")), "model.options.dropout = 0.1 and this command says nothing"),
        (
            replace(CONFIG, model=ModelConfig("tiny-cnn", {"dropout": 0.1, "widths": [8, 16]})),
            "model.options.widths = nothing and this command says [8, 16]",
        ),
        (replace(CONFIG, optim=AdamConfig()), 'optim.name = "sgd" and this command says "adam"'),
    ],
)
def test_a_resume_that_contradicts_is_refused_by_key(
    tmp_path: Path, manifest: Manifest, changed: Config, key: str
) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    message = refusal(tmp_path / "it", changed, manifest)
    assert f"it was started with {key}; leave {key.split()[0]} as it was: cifar-dist resume " in message
    assert read_config(tmp_path / "it" / "config.toml") == CONFIG, "the run keeps its config"


def test_settings_that_change_no_result_may_change(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    later = Config(
        run=RunConfig(name="renamed", dir="elsewhere", processes=2),
        data=DataConfig(path="moved", resident_mb=0, read_ahead=9),
        model=CONFIG.model,
        train=TrainConfig(threads=3, compile="default"),
        eval=EvalConfig(every=3, tta="16"),
        checkpoint=dataclasses.replace(CONFIG.checkpoint, keep=9),
        tracking=WandbConfig("offline"),
    )
    (tmp_path / "it").rename(tmp_path / "renamed")
    open_and_end(tmp_path / "renamed", later, manifest)
    assert read_config(tmp_path / "renamed" / "config.toml") == later


def test_other_data_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    other = replace(manifest, splits={"train": manifest.splits["test"]})
    message = refusal(tmp_path / "it", CONFIG, other)
    assert "was started on other data than" in message
    assert "; name those with --data.path, or use another --run.name" in message
    assert manifest.fingerprint in message
    assert other.fingerprint in message


def test_renamed_classes_are_the_same_data_and_one_class_more_is_not(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    names = tuple(f"new {name}" for name in manifest.classes)
    open_and_end(tmp_path / "it", CONFIG, replace(manifest, classes=names))
    count = len(names)
    message = refusal(tmp_path / "it", CONFIG, replace(manifest, classes=(*names, "other")))
    assert f"now has ({count} classes, now {count + 1}); name those with --data.path, or" in message


def test_another_normalisation_is_other_data(tmp_path: Path, manifest: Manifest) -> None:
    """As of a manifest that was edited."""
    open_and_end(tmp_path / "it", CONFIG, manifest)
    message = refusal(tmp_path / "it", CONFIG, replace(manifest, mean=(0.25,) * len(manifest.mean)))
    assert "now mean (0.25, " in message


@pytest.mark.parametrize("column", ["labels", "image_offset", "image_size"])
def test_a_changed_column_of_the_manifest_is_other_data(tmp_path: Path, manifest: Manifest, column: str) -> None:
    """The shards' checksums do not cover it."""
    open_and_end(tmp_path / "it", CONFIG, manifest)
    first, *others = manifest.splits["train"]
    values = getattr(first, column).copy()
    before, values[2] = values[2], 0 if values[2] else 1
    changed = replace(first, **{column: values})
    message = refusal(
        tmp_path / "it", CONFIG, replace(manifest, splits=manifest.splits | {"train": (changed, *others)})
    )
    assert f"now has ({column} of sample 2 of {first.name}: {before}, now {values[2]}); name those" in message


def test_fresh_refuses_an_existing_folder(tmp_path: Path, manifest: Manifest) -> None:
    fresh = replace(CONFIG, run=RunConfig(name="it", fresh=True))
    open_and_end(tmp_path / "it", fresh, manifest)
    assert "exists and run.fresh is set" in refusal(tmp_path / "it", fresh, manifest)


def test_fresh_refuses_a_folder_that_is_not_a_run(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "it" / "checkpoints" / "step-00000001").mkdir(parents=True)
    fresh = replace(CONFIG, run=RunConfig(name="it", fresh=True))
    assert "exists and is not a run (no config.toml)" in refusal(tmp_path / "it", fresh, manifest)


def test_fresh_ranks_that_torchrun_starts_again_continue_only_the_run_that_they_began(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get the same words, also when they were refused a run that exists."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    fresh = replace(CONFIG, run=RunConfig(name="it", fresh=True))
    open_and_end(tmp_path / "it", fresh, manifest)
    open_and_end(tmp_path / "it", fresh, manifest)
    os.utime(tmp_path / "it" / "manifest.json", (0, 0))
    assert "exists and run.fresh is set" in refusal(tmp_path / "it", fresh, manifest)


@pytest.mark.parametrize("name", ["thesis.tex", "checkpoints/step-00000001", "data/"])
def test_a_folder_that_is_not_a_run_is_not_touched(tmp_path: Path, manifest: Manifest, name: str) -> None:
    path = tmp_path / "it" / name
    if "." in name:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    else:
        path.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert "exists and is not a run (no config.toml)" in refusal(tmp_path / "it", CONFIG, manifest)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_may_become_a_run(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path, CONFIG, manifest)


def test_a_run_killed_before_it_wrote_the_config_can_be_started_again(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    (tmp_path / "it" / "config.toml").rename(tmp_path / "it" / ".config.toml.999999999.tmp")
    (tmp_path / "it" / "manifest.json").write_text("half of i")
    open_and_end(tmp_path / "it", CONFIG, manifest)
    assert Manifest.read(tmp_path / "it").fingerprint == manifest.fingerprint


def test_a_run_that_cannot_be_written_any_more_is_to_be_copied(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    (tmp_path / "it" / "checkpoints").rmdir()
    (tmp_path / "it" / "checkpoints").write_text("")
    assert refusal(tmp_path / "it", CONFIG, manifest).endswith("; copy the run to where you may write")


def cannot_be_written(tmp_path: Path) -> list[Path]:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere/deep")
    return [
        tmp_path / "file",
        tmp_path / "file" / "it",
        tmp_path / "dangling",
        tmp_path / ("x" * 300),
        Path("/proc/it"),
    ]


@pytest.mark.parametrize("case", range(5), ids=["file", "below a file", "dangling link", "long name", "proc"])
def test_an_unwritable_folder_is_reported_at_the_start(tmp_path: Path, manifest: Manifest, case: int) -> None:
    path = cannot_be_written(tmp_path)[case]
    message = refusal(path, CONFIG, manifest)
    assert message.startswith(f"the run folder {path} cannot be written (")
    assert message.endswith("); choose another with --run.dir")


def test_a_read_only_folder_is_reported_at_the_start(manifest: Manifest) -> None:
    with public_folder() as path:
        path.chmod(0o555)
        with without_rights():
            assert "Permission denied" in refusal(path / "it", CONFIG, manifest)


def test_a_config_edited_into_nonsense_is_reported(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    (tmp_path / "it" / "config.toml").write_text("[optim]\nlr = 'fast'\n")
    assert "config.toml: optim.lr" in refusal(tmp_path / "it", CONFIG, manifest)


@pytest.mark.parametrize("place", ["evaluations", "replays"])
def test_a_run_that_cannot_be_written_is_refused_before_the_work(place: str) -> None:
    with public_folder() as path:
        (path / "replays").mkdir(mode=0o755)
        where = path / place if place == "replays" else path
        remedy = f"^{where} cannot be written, where it goes; copy the run to where you may write$"
        with without_rights(), pytest.raises(UserError, match=remedy):
            refuse_read_only(RunFolder(path), path / place, "it")
        refuse_read_only(RunFolder(path), path / place, "it")
