"""The parts of a run, where one of them cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.many_ranks import run_on_ranks
from support.running import train
from support.small_checkpoint import save

from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.training.continuation import discard_unbegun
from cifar_dist.training.setup import _report_uncompiled


def test_weights_that_do_not_fit_leave_no_run_behind(tiny: Path, tmp_path: Path) -> None:
    """Or the corrected command would contradict the settings of the run."""
    (failed,) = train(str(tiny), "--model.pretrained", str(tmp_path / "typo.safetensors"))
    assert failed.returncode == 2
    assert "typo.safetensors" in failed.stderr
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.parametrize("kept", ["notes.txt", "job.sbatch"])
def test_a_run_that_has_not_begun_is_kept_with_a_file_of_the_user_and_as_a_job(tmp_path: Path, kept: str) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for file in (run.config, run.path / kept):
        file.touch()
    discard_unbegun(run)
    assert sorted(path.name for path in run.path.iterdir()) == sorted([run.config.name, kept])
    (run.path / kept).unlink()
    discard_unbegun(run)
    assert not run.path.exists()


def test_a_branch_that_has_not_begun_leaves_nothing_of_the_checkpoint_that_it_copied(tmp_path: Path) -> None:
    for step in (3, 0):
        run = RunFolder(tmp_path / "branch")
        save(run.checkpoints, 3)
        run.config.touch()
        timeline.append(run.timeline, timeline.Event(timeline.utc(), "branched", step))
        discard_unbegun(run)
        assert run.path.exists() == (step == 0), "a checkpoint of another step is its own"


@pytest.mark.parametrize(
    ("failures", "says"),
    [
        (["", ""], ""),
        (["", "disk full"], "the augmentation of rank 1 runs without being compiled, and slower (disk full)"),
        (
            ["", "first", "second"],
            "the augmentation of rank 1 and 1 more runs without being compiled, and slower (first)",
        ),
        (["no compiler"] * 2, "the augmentation runs without being compiled, and slower (no compiler)"),
    ],
    ids=["none", "one", "some", "all"],
)
def test_a_rank_whose_augmentation_is_not_compiled_is_named_once(
    capsys: pytest.CaptureFixture[str], failures: list[str], says: str
) -> None:
    """Every rank waits for it in each step."""

    run_on_ranks(len(failures), lambda ranks: _report_uncompiled(failures[ranks.rank], ranks))
    assert capsys.readouterr().err == (f"cifar-dist: {says}\n" if says else "")
