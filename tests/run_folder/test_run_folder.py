"""What the folder of a run holds: its settings and data, results that are whole or deleted, requests to stop."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.crashing import every_death
from support.opened_folders import CONFIG, open_and_end, refusal

from cifar_dist.config import Config
from cifar_dist.config.saved import read_config
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import TrainingFailedError, UserError
from cifar_dist.files.checksums import changed_files, write_sums
from cifar_dist.launch.launched import RESTARTED
from cifar_dist.run_folder import EvaluationSummary, RunFolder
from cifar_dist.run_folder.opening import open_folder
from cifar_dist.run_folder.settings import write_settings


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
    assert folder.final_summary() == EvaluationSummary(checkpoint="final")


@pytest.mark.parametrize(
    ("name", "summary"),
    [
        ("it_val_acc_0.9_model_step-00000001", '{"checkpoint": "step-00000001"}'),
        ("it_model_final_val_acc_0.9_model_step-00000001", '{"checkpoint": "step-00000001"}'),
        ("it_val_acc_0.9_model_final", ""),
        ("it_val_acc_0.9_model_final", '{"checkpoint": "fin'),
        ("it_val_acc_0.9_model_final", "[]"),
        ("it_val_acc_0.9_model_final", '{"checkpoint": "final", "classes": [0, 1]}'),
        (".it_val_acc_0.9_model_final.999999999.tmp", '{"checkpoint": "final"}'),
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
    assert folder.final_summary() is None


def test_evaluations_are_listed_by_their_times_whatever_the_run_was_called(tmp_path: Path) -> None:
    names = [
        "z_val_acc_0.1000_20260101-000000_model_final",
        "a_val_acc_0.9000_20260102-000000_model_final",
        "a_val_acc_0.2000_20260103-000000_model_step-00000001",
        "a_val_acc_0.1000_20260103-000000_model_final",
    ]
    for name in names:
        (tmp_path / "evaluations" / name).mkdir(parents=True)
    assert [one.path.name for one in RunFolder(tmp_path).evaluation_folders()] == names


def test_the_remains_of_a_kill_are_removed_at_the_next_start(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path, CONFIG, manifest)
    left = [
        *(
            ".final.999999999.tmp/model.safetensors",
            ".config.toml.999999999.tmp",
            "evaluations/.it_model_final.999999999.tmp/summary.json",
        ),
        *("figures/.loss.png.999999999.tmp", "plugins/.plugins.json.999999999.tmp"),
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


def open_again(path: Path, manifest: Manifest, *, epochs: int) -> RunFolder:
    """Open a run as a resume does, which extends it if it has another length."""
    folder = RunFolder(path)

    def change_length(_: Config) -> list[str]:
        notes = folder.discard_damaged_results()
        folder.supersede_final()
        return notes

    train = replace(CONFIG.train, epochs=epochs)
    assert open_folder(folder, replace(CONFIG, train=train), manifest, change_length) == []
    return folder


def test_earlier_results_are_superseded_whenever_that_is_killed(tmp_path: Path, manifest: Manifest) -> None:
    """Killed at every write, with a loss of power; the extension is then repeated, or given up."""
    before, run, copy = tmp_path / "before", tmp_path / "run", tmp_path / "copy"
    open_and_end(before, CONFIG, manifest)
    names = ["it_1_model_step-00000007", "it_2_model_step-00000007", "it_model_step-00000003"]
    finals = [before / "evaluations" / f"it_{number}_model_final" for number in (1, 2)]
    write_results(before / "final", before / "evaluations" / names[2], *finals, of_final=finals[0])
    for place in finals:
        (place / "summary.json").write_text('{"checkpoint": "final", "step": 7, "of a newer version": 1}')
        write_sums(place)

    def prepare() -> Path:
        shutil.rmtree(run, ignore_errors=True)
        return Path(shutil.copytree(before, run))

    were_finished = set()
    for died in every_death(prepare, lambda path: RunFolder(path).supersede_final(), power_loss=True):
        was_finished = RunFolder(died).is_finished()
        were_finished.add(was_finished)
        for epochs in (CONFIG.train.epochs, CONFIG.train.epochs + 1):
            shutil.rmtree(copy, ignore_errors=True)
            folder = open_again(Path(shutil.copytree(died, copy)), manifest, epochs=epochs)
            assert not [*copy.rglob(".*.tmp*")]
            if was_finished and epochs == CONFIG.train.epochs:
                assert folder.is_finished()
                continue
            (weights,), evaluations = copy.glob("final*"), sorted(folder.evaluations.iterdir())
            assert weights.name == "final-step-00000007"
            assert [path.name for path in evaluations] == names
            for path in (weights, *evaluations):
                assert (path / "SHA256SUMS").is_file()
                assert changed_files(path) == []
            for path in evaluations[:2]:
                summary = json.loads((path / "summary.json").read_text())
                assert summary == {"checkpoint": "step-00000007", "step": 7, "of a newer version": 1}
    assert were_finished == {True, False}


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
    config = replace(CONFIG, data=replace(CONFIG.data, path=str(manifest.root)))
    write_settings(RunFolder(tmp_path / "it"), config)
    with pytest.raises(UserError) as caught:
        RunFolder(tmp_path / "it").read_manifest()
    again = str(caught.value)
    assert again.endswith(f": cp {manifest.root}/manifest.json {tmp_path}/it/manifest.json")
    assert "pack the dataset" not in message + again, "which would be another dataset"


def test_a_run_without_a_manifest_is_read_as_such_where_its_dataset_cannot_be_reached(
    tmp_path: Path, manifest: Manifest
) -> None:
    unreachable = replace(CONFIG, data=replace(CONFIG.data, path="x" * 300))  # a name that no file system takes
    open_and_end(tmp_path / "it", unreachable, manifest)
    RunFolder(tmp_path / "it").manifest.unlink()
    with pytest.raises(UserError, match=f"copy the manifest.json of the run's dataset to {tmp_path}/it$"):
        RunFolder(tmp_path / "it").read_manifest()


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


def test_the_newest_checkpoint_is_found_without_links(tmp_path: Path) -> None:
    """A file system may have none, and a copy that followed them has folders."""
    folder = RunFolder(tmp_path)
    for name in ("step-99999999", "step-100000000", "step-200000000.damaged", ".step-300000000.7.tmp", "latest"):
        (folder.checkpoints / name).mkdir(parents=True)
    assert folder.newest_checkpoint() == "step-100000000"


def test_a_run_that_is_renamed_again_continues_through_its_link(tmp_path: Path, manifest: Manifest) -> None:
    folder = RunFolder(tmp_path / "runs" / "it")
    open_folder(folder, CONFIG, manifest)
    before = folder.path
    for name in ("runs/second", "archive/third"):
        after = tmp_path / name
        after.parent.mkdir(exist_ok=True)
        before = before.rename(after)
        assert folder.follow().startswith(f"{folder.path} was renamed to {after}, where this run continues through")
        assert folder.path.readlink() == after
        assert folder.follow() == ""
    (tmp_path / "another").mkdir()
    before.rename(tmp_path / "last")
    folder.path.unlink()
    folder.path.symlink_to(tmp_path / "another")
    with pytest.raises(TrainingFailedError, match=f"to {tmp_path}/last while .* its old name is taken; resume it with"):
        folder.follow()


@pytest.mark.parametrize(("seconds", "remains"), [(-9, False), (0.9, False), (1.1, True), (9e6, False)])
def test_a_request_to_stop_is_removed_unless_it_is_later_than_the_start(
    tmp_path: Path, manifest: Manifest, seconds: float, remains: bool
) -> None:
    """Processes start at a time that the system rounds by up to a second; a clock may have been ahead."""
    file = RunFolder(tmp_path).stop_file
    open_and_end(tmp_path, CONFIG, manifest)
    file.touch()
    os.utime(file, (psutil.Process().create_time() + seconds,) * 2)
    notes = open_folder(RunFolder(tmp_path), CONFIG, manifest)
    assert (file.exists(), notes) == (
        remains,
        [] if remains else [f"removed {file}, which asked an earlier process to stop"],
    )


@pytest.mark.parametrize("restarted", [RESTARTED, "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_request_to_stop_holds_for_processes_that_the_same_job_starts_again(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, restarted: str
) -> None:
    """It is made while a requeued job waits in the queue, or while an elastic job has no ranks."""
    file = RunFolder(tmp_path).stop_file
    open_and_end(tmp_path, CONFIG, manifest)
    file.touch()
    os.utime(file, (psutil.Process().create_time() - 9,) * 2)
    with monkeypatch.context() as variables:
        variables.setenv(restarted, "1")
        assert open_folder(RunFolder(tmp_path), CONFIG, manifest) == []
        assert file.exists()
    open_and_end(tmp_path, CONFIG, manifest)
    assert not file.exists(), "a command that a person types removes it"


def test_a_folder_named_stop_requests_nothing(tmp_path: Path, manifest: Manifest) -> None:
    open_and_end(tmp_path, CONFIG, manifest)
    RunFolder(tmp_path).stop_file.mkdir()
    os.utime(RunFolder(tmp_path).stop_file, (0, 0))
    assert open_folder(RunFolder(tmp_path), CONFIG, manifest) == []
