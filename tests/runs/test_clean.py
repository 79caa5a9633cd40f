"""Cleaning: superfluous files are removed, and a run resumes, is evaluated and finishes as before."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.run_folders import write_run
from support.running import spawn, train
from support.small_checkpoint import holds, names, save
from support.without_rights import public_folder, without_rights

from cifar_dist import checkpoint, cli
from cifar_dist.checkpoint.marker import STATE, WEIGHTS
from cifar_dist.config import Config, ModelConfig, TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.runs.clean import clean, removable
from cifar_dist.step_folder import step_name
from cifar_dist.tracking import timeline
from cifar_dist.tracking.timeline import Event
from cifar_dist.training.continuation import discard_unbegun

CONFIG = Config(model=ModelConfig("tiny-cnn"), train=TrainConfig(epochs=4))


def run_with(path: Path, *steps: int, best: int, test: float | None = None) -> Path:
    write_run(path, CONFIG, test=test)
    for step in steps:
        save(path / "checkpoints", step, best=step == best)
    return path


def test_a_finished_run_keeps_its_newest_and_its_best(tmp_path: Path) -> None:
    run = run_with(tmp_path / "it", 1, 2, 3, 4, best=2, test=0.5)
    plan = removable(RunFolder(run))
    assert [item.path.name for item in plan] == ["step-00000003", "step-00000001"]
    assert all(item.bytes > 500 for item in plan)
    assert clean(RunFolder(run)) == plan
    folder = run / "checkpoints"
    assert names(folder) == ["best", "latest", "step-00000002", "step-00000004"]
    assert holds(checkpoint.named(folder, "best"), 2)
    assert holds(checkpoint.named(folder, "latest"), 4)
    assert clean(RunFolder(run)) == []


@pytest.mark.parametrize(("step", "part"), [(4, WEIGHTS), (2, WEIGHTS), (2, STATE)])
def test_nothing_is_deleted_while_the_newest_or_the_best_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int, part: str
) -> None:
    run = run_with(tmp_path / "it", 1, 2, 3, 4, best=2, test=0.5)
    damaged = run / "checkpoints" / step_name(step)
    data = (damaged / part).read_bytes()
    (damaged / part).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = sorted(run.rglob("*"))
    for words in ([], ["--yes"]):
        with pytest.raises(UserError, match=f"^1 of the runs below {run} cannot be cleaned, see above$"):
            cli.run(["runs", "clean", str(run), *words])
        out, said = capsys.readouterr()
        assert out == ""
        assert f"{run} was skipped: {damaged.name} damaged: {part} differs from what was saved" in said
        assert said.endswith(f"unless you delete it first: rm -r {damaged}\n")
        assert sorted(run.rglob("*")) == before
    shutil.rmtree(damaged)
    assert clean(RunFolder(run)), "the command that it names helps"


def test_an_unfinished_run_keeps_all_that_it_may_need(tmp_path: Path) -> None:
    run = run_with(tmp_path / "it", 1, 2, 3, best=1)
    folder = run / "checkpoints"
    (folder / "step-00000003").rename(folder / ".step-00000003.old.tmp")  # whole: the next start gives it its name
    (folder / ".step-00000004.999999999.tmp").mkdir()
    (folder / ".step-00000004.999999999.tmp" / "weights.safetensors").write_bytes(b"half of it")
    (folder / "step-00000009.damaged-2").mkdir()
    (run / ".final.999999999.tmp").mkdir()
    (run / ".metrics.csv.999999999.tmp").touch()
    assert {(item.path.name, item.why) for item in clean(RunFolder(run))} == {
        (".step-00000004.999999999.tmp", "left by a kill"),
        ("step-00000009.damaged-2", "damaged"),
        (".final.999999999.tmp", "left by a kill"),
        (".metrics.csv.999999999.tmp", "left by a kill"),
    }
    path, notes = checkpoint.choose(folder)
    assert not notes
    assert path is not None
    assert holds(path, 3)


def test_what_another_process_is_writing_is_kept(tmp_path: Path) -> None:
    run = run_with(tmp_path / "it", 1, best=1)
    with subprocess.Popen(["sleep", "600"]) as other:
        live = [run / "evaluations" / f".it_model_best.{other.pid}.tmp", run / f".report.html.{other.pid}.tmp"]
        for path in live:
            path.mkdir(parents=True)
        removed = clean(RunFolder(run))
        other.kill()
    assert removed == []
    assert [item.path for item in clean(RunFolder(run))] == live[::-1]


def test_a_run_without_a_finished_step_is_removed_entirely(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "it", CONFIG, epochs=0)
    (run / "lr_curve.json").write_text("{}")
    assert clean(RunFolder(run)) == [], "a range test was made in it"
    (run / "lr_curve.json").unlink()
    assert [item.path for item in clean(RunFolder(run))] == [run]
    assert names(run.parent) == []


@pytest.mark.parametrize("remove", [clean, discard_unbegun])
def test_the_lock_of_a_run_is_closed_before_its_folder_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remove: Callable[[RunFolder], object]
) -> None:
    """NFS keeps what is deleted while it is open, and then the folder is not empty."""
    run = RunFolder(write_run(tmp_path / "runs" / "it", CONFIG, epochs=0))
    rmtree = shutil.rmtree
    deleted: list[Path] = []

    def look_and_delete(path: Path, **_: object) -> None:
        deleted.append(path)
        assert not [file.path for file in psutil.Process().open_files() if file.path.startswith(str(path))]
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", look_and_delete)
    if remove is discard_unbegun:
        run.lock()
    remove(run)
    assert deleted == [run.path.with_name(".it.tmp")]
    assert names(run.path.parent) == []


@pytest.mark.parametrize("left", [".checkpoints.saved", "evaluations/it_model_best/summary.json", "timeline.jsonl"])
def test_a_run_that_has_lost_its_metrics_and_checkpoints_is_kept_for_what_is_left(tmp_path: Path, left: str) -> None:
    run = write_run(tmp_path / "it", CONFIG, epochs=0)
    (run / left).parent.mkdir(parents=True, exist_ok=True)
    (run / left).touch()
    if left == "timeline.jsonl":
        timeline.append(run / left, Event(timeline.utc(), "started", 0, 1))
        assert removable(RunFolder(run)), "it never finished a step"
        timeline.append(run / left, Event(timeline.utc(), "finished", 4))
    assert clean(RunFolder(run)) == []
    assert (run / left).exists()


def test_only_a_run_that_no_process_has_begun_is_discarded(tmp_path: Path) -> None:
    trained = run_with(tmp_path / "trained", 1, best=1)  # and its timeline is lost
    discard_unbegun(RunFolder(trained))
    assert trained.exists()
    branch = run_with(tmp_path / "branch", 1, best=1)
    timeline.append(branch / "timeline.jsonl", Event(timeline.utc(), "branched", 1, note="trained@1"))
    discard_unbegun(RunFolder(branch))
    assert not branch.exists()


def test_only_the_curve_of_a_range_test_is_left_of_a_run_that_no_process_has_begun(tmp_path: Path) -> None:
    for path in (write_run(tmp_path / "new", CONFIG, epochs=0), run_with(tmp_path / "branch", 1, best=1)):
        run = RunFolder(path)
        if path.name == "branch":
            timeline.append(run.timeline, Event(timeline.utc(), "branched", 1, note="trained@1"))
        run.lr_curve.write_text("{}")
        run.figures.mkdir()
        run.lr_curve_picture.touch()
        run.lock()
        discard_unbegun(run)
        assert run.has_range_test_only()
        assert run.lr_curve_picture.exists()
    trained = RunFolder(run_with(tmp_path / "trained", 1, best=1))
    trained.lr_curve.write_text("{}")
    discard_unbegun(trained)
    assert trained.newest_checkpoint() == step_name(1)


def test_a_run_in_use_is_skipped_and_one_that_cannot_be_written_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with public_folder() as runs:
        run = run_with(runs / "it", 1, 2, best=2, test=0.5)
        trained = RunFolder(run)
        trained.lock()
        assert cli.run(["runs", "clean", str(runs), "--yes"]) == 0
        out, said = capsys.readouterr()
        assert out == "nothing to delete\n"
        assert f"{run} was skipped: {run} is in use" in said
        del trained
        with without_rights(), pytest.raises(UserError, match=f"^1 of the runs below {runs} cannot be cleaned"):
            cli.run(["runs", "clean", str(runs), "--yes"])
        out, said = capsys.readouterr()
        assert out == ""
        assert said == f"warning: {run} was skipped: {run}/.lock: Permission denied\n"


def test_the_file_that_keeps_a_run_from_being_cleaned_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path / "it", 1, 2, best=2, test=0.5)
    shutil.rmtree(run / "evaluations")
    (run / "evaluations").touch()
    with pytest.raises(UserError, match="1 of the runs below"):
        cli.run(["runs", "clean", str(tmp_path)])
    assert capsys.readouterr().err == f"warning: {run} was skipped: {run}/evaluations: Not a directory\n"


def test_nothing_is_deleted_before_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_with(tmp_path / "my runs" / "it", 1, 2, best=2, test=0.5)
    assert cli.run(["runs", "clean", "my runs"]) == 0
    out = capsys.readouterr().out
    assert "| my runs/it/checkpoints/step-00000001 | neither newest nor best |" in out
    assert out.endswith("delete with: cifar-dist runs clean 'my runs' --yes\n")
    assert (run / "checkpoints" / "step-00000001").is_dir()
    assert cli.run(["runs", "clean", "my runs", "--yes"]) == 0
    assert "\nfreed " in capsys.readouterr().out
    assert not (run / "checkpoints" / "step-00000001").exists()
    assert cli.run(["runs", "clean", "my runs"]) == 0
    assert capsys.readouterr().out == "nothing to delete\n"


def test_a_cleaned_run_is_still_finished_and_evaluated(tiny: Path) -> None:
    words = [str(tiny), "--run.name", "it"]
    assert train(*words)[0].returncode == 0
    run = tiny.parent / "runs" / "it"
    kept = {path: path.read_bytes() for path in (run / "metrics.jsonl", run / "final" / "model.safetensors")}
    assert clean(RunFolder(run))
    for which in ("best", "latest"):
        (done,) = spawn(["-m", "cifar_dist", "evaluate", str(run), "--checkpoint", which])
        assert done.returncode == 0, done.stderr
    (done,) = train(*words)
    assert (done.returncode, "is finished already" in done.stdout) == (0, True)
    assert {path: path.read_bytes() for path in kept} == kept


def test_what_cannot_be_deleted_is_named_and_not_counted_as_freed() -> None:
    with public_folder() as folder:
        run = run_with(folder / "it", 1, 2, 3, 4, best=2, test=0.5)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777)
        (run / "checkpoints" / "step-00000001").chmod(0o555)
        with without_rights(), pytest.raises(UserError) as error:
            clean(RunFolder(run))
    told = str(error.value)
    assert told.startswith(f"1 of 2 removed, but {run}/checkpoints/.step-00000001.tmp/")
    assert told.endswith(" cannot be deleted: Permission denied")
