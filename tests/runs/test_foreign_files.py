"""Files of the user beside and inside runs, which no verb deletes or replaces."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.run_folders import write_run

from cifar_dist import cli
from cifar_dist.config import Config, RunConfig
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder

CONFIG = Config(run=RunConfig(name="a"))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run that has begun and one that has not; the working folder is its parent."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a", CONFIG)
    write_run(tmp_path / "runs" / "unborn", CONFIG, epochs=0)
    return tmp_path / "runs"


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != "index.html"}


def test_clean_deletes_no_folder_that_is_not_a_run(runs: Path, tmp_path: Path) -> None:
    for folder in (runs, tmp_path, tmp_path / "blog"):  # config.toml is a recipe, which people copy
        folder.mkdir(exist_ok=True)
        shutil.copy(runs / "a" / "config.toml", folder)
    (tmp_path / "blog" / "config.toml").write_text('title = "blog"')
    (runs / "unborn" / "notes.txt").write_text("of the user")
    before = files(tmp_path)
    for name in (".", "runs", str(tmp_path), "blog", "runs/unborn"):
        assert cli.run(["runs", "clean", name, "--yes"]) == 0
    assert files(tmp_path) == before
    (runs / "unborn" / "notes.txt").unlink()
    assert cli.run(["runs", "clean", "--yes"]) == 0
    assert files(tmp_path) == {path for path in before if not path.is_relative_to(runs / "unborn")}


def test_what_wandb_leaves_in_a_run_that_never_began_is_not_of_the_user(runs: Path) -> None:
    folder = RunFolder(runs / "unborn")
    folder.wandb.mkdir()
    folder.wandb_identity.write_text("{}")
    assert not folder.has_foreign_files()
    assert cli.run(["runs", "clean", "--yes"]) == 0
    assert not folder.path.exists()


def test_a_run_that_waits_for_its_job_is_not_deleted(runs: Path) -> None:
    RunFolder(runs / "unborn").job_script.touch()
    assert cli.run(["runs", "clean", "--yes"]) == 0
    assert (runs / "unborn").is_dir()


def test_clean_deletes_the_working_folder_if_it_is_a_run_that_never_began(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs / "unborn")
    assert cli.run(["runs", "clean", ".", "--yes"]) == 0
    monkeypatch.chdir(runs)
    assert not (runs / "unborn").exists()


def test_a_recipe_among_the_runs_hides_none_of_them(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(runs / "a" / "config.toml", runs)
    assert cli.run(["runs", "list"]) == 0
    listed = capsys.readouterr().out
    assert "| a " in listed
    assert "| unborn " in listed


def test_the_best_models_replace_only_what_they_wrote(runs: Path, tmp_path: Path) -> None:
    finished = write_run(runs / "b", CONFIG, test=0.5)
    (finished / "final" / "model.safetensors").write_bytes(b"weights")
    out = tmp_path / "best-models"
    for _ in range(2):
        assert cli.run(["runs", "best"]) == 0
    (out / "notes.txt").write_text("of the user")
    with pytest.raises(UserError, match=r"has notes\.txt, which models\.csv does not list; move it, or"):
        cli.run(["runs", "best"])
    assert (out / "notes.txt").exists()


def test_the_best_models_keep_the_files_that_a_table_of_the_user_lists(runs: Path, tmp_path: Path) -> None:
    write_run(runs / "b", CONFIG, test=0.5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "models.csv").write_text("file,price\ncar.txt,3\n")
    (tmp_path / "mine" / "car.txt").touch()
    with pytest.raises(UserError, match=r"has a models\.csv that runs best has not written; use another --out"):
        cli.run(["runs", "best", "--out", "mine"])
    assert (tmp_path / "mine" / "car.txt").exists()


def test_the_best_models_go_through_a_link_and_not_into_the_working_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(runs / "b", CONFIG, test=0.5)
    (tmp_path / "link").symlink_to("disk/best")
    for _ in range(2):
        assert cli.run(["runs", "best", "--out", "link"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["best"]
    monkeypatch.chdir(tmp_path / "disk" / "best")
    for out in (".", str(tmp_path / "link")):
        with pytest.raises(UserError, match="is the working directory, which would be replaced; use another --out"):
            cli.run(["runs", "best", str(runs), "--out", out])


def test_a_page_of_the_user_is_not_replaced(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = runs / "index.html"
    assert cli.run(["runs", "list"]) == 0
    assert cli.run(["runs", "list"]) == 0
    assert not capsys.readouterr().err, "it replaces its own"
    for title in ("Home", "Runs", "Runs in the park"):
        page.write_text(f"<title>{title}</title>")
        assert cli.run(["runs", "list"]) == 0
        assert page.read_text() == f"<title>{title}</title>"
        assert "runs/index.html was not written: runs/index.html exists and is not a page of runs" in (
            capsys.readouterr().err
        )
    assert cli.run(["runs", "list", "runs/a"]) == 0
    assert not (runs / "a" / "index.html").exists(), "a run has its report"


@pytest.mark.parametrize(
    "words",
    [
        ["runs", "list", "--csv", "shards/manifest.json"],
        ["runs", "compare", "a", "--picture", "runs/b/final/x.png"],
        ["model", "demo", "--csv", "runs/b/config.toml"],
        ["model", "demo", "--csv", "runs/b/checkpoints/x.csv"],
        ["model", "demo", "--csv", "runs/b/evaluations/b_val_acc_0_model_final/submission.csv"],
        ["model", "demo", "--csv", "mine.toml"],
        ["lr-find", "demo", "--write", "runs/b/config.toml"],
    ],
    ids=" ".join,
)
def test_no_output_replaces_another_run_a_recipe_or_a_dataset(
    runs: Path, digits: Path, tmp_path: Path, words: list[str]
) -> None:
    write_run(runs / "b", CONFIG, test=0.5)
    (runs / "b" / "checkpoints").mkdir()
    shutil.copytree(digits, tmp_path / "shards")
    (tmp_path / "mine.toml").write_text('base = "demo"\n')
    with pytest.raises(UserError, match=r"would (change the (run|dataset)|replace a recipe)"):
        cli.run(words)
