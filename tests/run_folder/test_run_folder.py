"""Exclusive access to a run folder, and the settings that a resume may change."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.running import ROOT, environment

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
from cifar_dist.files import write_sums
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.run_folder.opening import open_folder

CONFIG = Config(run=RunConfig(name="it"), model=ModelConfig("tiny-cnn", {"dropout": 0.1}))


@pytest.fixture(scope="module")
def manifest(digits: Path) -> Manifest:
    return Manifest.load(digits)


def open_and_end(path: Path, config: Config, manifest: Manifest) -> None:
    """Open a run and end: the lock is released with the object."""
    open_folder(RunFolder(path), config, manifest)


def refusal(path: Path, config: Config, manifest: Manifest) -> str:
    with pytest.raises(UserError) as caught:
        open_and_end(path, config, manifest)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_folder_records_config_and_data(tmp_path: Path, manifest: Manifest) -> None:
    folder = RunFolder(tmp_path / "runs" / "it")
    open_folder(folder, CONFIG, manifest)
    assert folder.name == "it"
    assert read_config(folder.config) == CONFIG
    assert Manifest.read(folder.path).fingerprint == manifest.fingerprint
    assert folder.checkpoints.is_dir()
    assert not folder.is_finished()


def test_finished_is_final_weights_and_their_evaluation(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path, CONFIG, manifest)
    folder = RunFolder(tmp_path)
    final = folder.evaluations / "it_val_acc_0.9_model_final"
    final.mkdir(parents=True)
    (final / "summary.json").write_text('{"checkpoint": "final"}')
    assert not folder.is_finished(), "there are no final weights"
    folder.final.parent.mkdir()
    folder.final.touch()
    assert folder.is_finished()
    assert folder.final_summary() == {"checkpoint": "final"}


@pytest.mark.parametrize(
    ("name", "summary"),
    [
        ("it_val_acc_0.9_model_step-00000001", '{"checkpoint": "step-00000001"}'),
        ("it_model_final_val_acc_0.9_model_step-00000001", '{"checkpoint": "step-00000001"}'),
        ("it_val_acc_0.9_model_final", ""),
        ("it_val_acc_0.9_model_final", '{"checkpoint": "fin'),
        ("it_val_acc_0.9_model_final", "[]"),
        (".it_val_acc_0.9_model_final.77.tmp", '{"checkpoint": "final"}'),
    ],
)
def test_an_earlier_or_incomplete_evaluation_does_not_finish_a_run(
    tmp_path: Path, manifest: Manifest, name: str, summary: str
) -> None:
    open_and_end(tmp_path, CONFIG, manifest)
    folder = RunFolder(tmp_path)
    folder.final.parent.mkdir()
    folder.final.touch()
    (folder.evaluations / name).mkdir(parents=True)
    (folder.evaluations / name / "summary.json").write_text(summary)
    assert not folder.is_finished()


def test_the_remains_of_a_kill_are_removed_at_the_next_start(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path, CONFIG, manifest)
    left = [
        *(".final.7.tmp/model.safetensors", ".config.toml.7.tmp", "evaluations/.it_model_final.7.tmp/summary.json"),
        *("figures/.loss.png.7.tmp", "plugins/.plugins.json.7.tmp"),
    ]
    for name in (*left, "evaluations/it_model_best/summary.json", "evaluations/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    folder = RunFolder(tmp_path)
    assert len(folder.leftovers()) == len(left)
    open_and_end(tmp_path, CONFIG, manifest)
    assert not folder.leftovers()
    assert [evaluation.path.name for evaluation in folder.evaluation_folders()] == ["it_model_best"]


def write_results(*folders: Path, of_final: Path) -> None:
    """Write weights, a summary and checksums into each folder; one is the evaluation of the final weights."""
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("weights")
        (folder / "summary.json").write_text('{"checkpoint": "final"}' if folder == of_final else "{}")
        write_sums(folder)


def test_results_that_have_changed_are_deleted_to_be_written_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    evaluation = folder.evaluations / "it_model_final"
    other = folder.evaluations / "it_model_best"
    write_results(folder.final.parent, evaluation, other, of_final=evaluation)
    assert folder.discard_damaged_results() == []
    for place in (folder.final.parent, evaluation, other):
        (place / "model.safetensors").write_text("weighty")
    assert folder.discard_damaged_results() == [
        f"{place} is damaged (model.safetensors) and is written again" for place in (folder.final.parent, evaluation)
    ]
    assert not folder.final.exists()
    assert [one.path for one in folder.evaluation_folders()] == [other]
    other.joinpath("SHA256SUMS").unlink()
    assert folder.discard_damaged_results() == [], "an earlier version wrote no list"


@pytest.mark.parametrize("summary", [None, '{"checkpoint": "fin', '{"checkpoint": "sinal"}'])
def test_a_final_evaluation_is_damaged_if_its_summary_is(tmp_path: Path, summary: str | None) -> None:
    folder = RunFolder(tmp_path)
    final = folder.evaluations / "it_val_acc_0.9_model_final-2"
    other = folder.evaluations / "it_model_final_val_acc_0.9_model_step-00000001"
    write_results(folder.final.parent, final, other, of_final=final)
    for place in (final, other):
        place.joinpath("summary.json").unlink()
        if summary is not None:
            place.joinpath("summary.json").write_text(summary)
    assert folder.damaged_results() == {final: ["summary.json"]}
    folder.final.parent.rename(tmp_path / "final-step-00000007")
    assert folder.damaged_results() == {}, "of weights before an extension, whose evaluation is not written again"


def test_a_saved_run_has_no_foreign_files(tmp_path: Path) -> None:
    from support.small_checkpoint import save

    save(RunFolder(tmp_path).checkpoints, 1)
    assert not RunFolder(tmp_path).has_foreign_files()


@pytest.mark.parametrize("content", [None, "", "{", "[" * 100_000])
def test_a_damaged_manifest_of_a_run_names_the_run(tmp_path: Path, manifest: Manifest, content: str | None) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    RunFolder(tmp_path / "it").manifest.unlink()
    if content is not None:
        RunFolder(tmp_path / "it").manifest.write_text(content)
    message = refusal(tmp_path / "it", CONFIG, manifest)
    assert message.startswith(f"{tmp_path}/it/manifest.json is ")
    assert message.endswith(f"; copy the manifest.json of the run's dataset to {tmp_path}/it")
    assert "pack" not in message


def test_final_weights_finish_a_run_without_a_split_to_evaluate(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path, CONFIG, manifest)
    folder = RunFolder(tmp_path)
    folder.final.parent.mkdir()
    folder.final.touch()
    assert not folder.is_finished(), "its test split is asked for"
    recorded = json.loads(folder.manifest.read_text())
    del recorded["splits"]["test"]
    folder.manifest.write_text(json.dumps(recorded))
    assert folder.is_finished()


def test_the_newest_checkpoint_is_the_one_that_latest_points_at(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.newest_checkpoint() == ""
    folder.checkpoints.mkdir()
    (folder.checkpoints / "latest").symlink_to("step-00000007")
    assert folder.newest_checkpoint() == "step-00000007"


@pytest.mark.parametrize(("seconds", "remains"), [(-9, False), (0.9, False), (1.1, True)])
def test_a_request_to_stop_is_removed_unless_it_is_later_than_the_start(
    tmp_path: Path, manifest: Manifest, seconds: float, remains: bool
) -> None:
    """Processes start at a time that the system rounds by up to a second."""
    file = RunFolder(tmp_path).stop_file
    open_and_end(tmp_path, CONFIG, manifest)
    file.touch()
    os.utime(file, (psutil.Process().create_time() + seconds,) * 2)
    notes = open_folder(RunFolder(tmp_path), CONFIG, manifest)
    assert (file.exists(), notes) == (
        remains,
        [] if remains else [f"removed {file}, which asked an earlier process to stop"],
    )


def test_a_folder_named_stop_requests_nothing(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path, CONFIG, manifest)
    RunFolder(tmp_path).stop_file.mkdir()
    os.utime(RunFolder(tmp_path).stop_file, (0, 0))
    assert open_folder(RunFolder(tmp_path), CONFIG, manifest) == []


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


def test_a_second_job_is_refused_while_the_first_lives(tmp_path: Path, manifest: Manifest) -> None:
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
    finally:
        job.kill()
        job.communicate()
    open_and_end(path, CONFIG, manifest)  # a killed job holds nothing


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
    ("change", "key"),
    [
        ({"optim": SGDConfig(lr=0.2)}, "optim.lr = 0.1 and this command says 0.2"),
        ({"run": RunConfig(name="it", seed=1)}, "run.seed = 0 and this command says 1"),
        ({"train": TrainConfig(batch_size=256)}, "train.batch_size = 512 and this command says 256"),
        ({"data": DataConfig(shuffle_block=1)}, "data.shuffle_block = 64 and this command says 1"),
        ({"model": ModelConfig("tiny-cnn")}, "model.options.dropout = 0.1 and this command says nothing"),
        (
            {"model": ModelConfig("tiny-cnn", {"dropout": 0.1, "widths": [8, 16]})},
            "model.options.widths = nothing and this command says [8, 16]",
        ),
        ({"optim": AdamConfig()}, 'optim.name = "sgd" and this command says "adam"'),
    ],
)
def test_a_resume_that_contradicts_is_refused_by_key(
    tmp_path: Path, manifest: Manifest, change: dict[str, object], key: str
) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    message = refusal(tmp_path / "it", replace(CONFIG, **change), manifest)
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
    assert manifest.fingerprint in message
    assert other.fingerprint in message


def test_renamed_classes_are_the_same_data_and_one_class_more_is_not(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    names = tuple(f"new {name}" for name in manifest.classes)
    open_and_end(tmp_path / "it", CONFIG, replace(manifest, classes=names))
    count = len(names)
    message = refusal(tmp_path / "it", CONFIG, replace(manifest, classes=(*names, "other")))
    assert f"now has ({count} classes, now {count + 1}); use another --run.name" in message


def test_another_normalisation_is_other_data(tmp_path: Path, manifest: Manifest) -> None:
    """As of a manifest that was edited."""
    open_and_end(tmp_path / "it", CONFIG, manifest)
    message = refusal(tmp_path / "it", CONFIG, replace(manifest, mean=(0.25,) * len(manifest.mean)))
    assert "now mean (0.25, " in message


def test_fresh_refuses_an_existing_folder(tmp_path: Path, manifest: Manifest) -> None:
    fresh = replace(CONFIG, run=RunConfig(name="it", fresh=True))
    open_and_end(tmp_path / "it", fresh, manifest)
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
    (tmp_path / "it" / "config.toml").rename(tmp_path / "it" / ".config.toml.77.tmp")
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_reported_at_the_start(tmp_path: Path, manifest: Manifest) -> None:
    tmp_path.chmod(0o555)
    assert "Permission denied" in refusal(tmp_path / "it", CONFIG, manifest)


def test_a_config_edited_into_nonsense_is_reported(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path / "it", CONFIG, manifest)
    (tmp_path / "it" / "config.toml").write_text("[optim]\nlr = 'fast'\n")
    assert "config.toml: optim.lr" in refusal(tmp_path / "it", CONFIG, manifest)


def test_a_run_is_found_by_name_or_path_or_the_nearest_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "my-run").mkdir()
    (tmp_path / "my-run" / "config.toml").touch()
    assert find_run("my-run", tmp_path) == find_run(str(tmp_path / "my-run"), tmp_path) == tmp_path / "my-run"
    with pytest.raises(UserError, match="run 'my-rum' does not exist; did you mean 'my-run'"):
        find_run("my-rum", tmp_path)
    with pytest.raises(UserError, match="has no run yet; train one first"):
        find_run("my-run", tmp_path / "nowhere")
    for name in ("x" * 5000, "a\0b", ""):
        with pytest.raises(UserError, match="does not exist"):
            find_run(name, tmp_path)


@pytest.mark.parametrize("place", ["evaluations", "replays"])
def test_a_run_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, place: str) -> None:
    """Root may write anywhere, except without the capability that lets it."""
    (tmp_path / "replays").mkdir(mode=0o555)
    tmp_path.chmod(0o555)
    ask = "import sys; from pathlib import Path; from cifar_dist.run_folder.opening import *; "
    ask += "run = RunFolder(Path(sys.argv[1])); refuse_read_only(run, run.path / sys.argv[2], 'it')"
    drop = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    words = [*drop, sys.executable, "-c", ask, str(tmp_path), place]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    tmp_path.chmod(0o755)
    where = tmp_path / place if place == "replays" else tmp_path
    assert done.stderr.strip().endswith(
        f"{where} cannot be written, where it goes; copy the run to where you may write"
    )
