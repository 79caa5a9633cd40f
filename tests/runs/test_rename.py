"""``runs rename`` gives a run another name and changes nothing else."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from support.run_folders import write_run
from support.small_checkpoint import holds, save
from support.without_rights import public_folder, without_rights

from cifar_dist import checkpoint, cli
from cifar_dist.config import Config, ModelConfig, RunConfig, TrainConfig
from cifar_dist.config.saved import read_config
from cifar_dist.config.tree import to_toml
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import write_atomic
from cifar_dist.run_folder import RunFolder
from cifar_dist.runs.rename import rename
from cifar_dist.runs.resume import resumed_config
from cifar_dist.slurm.options import Options
from cifar_dist.slurm.submission import Submission

CONFIG = Config(run=RunConfig("old"), model=ModelConfig("tiny-cnn"), train=TrainConfig(epochs=4))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def test_a_renamed_run_is_the_same_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(runs / "old", CONFIG, val=0.5)
    save(run / "checkpoints", 4, best=True)
    assert cli.run(["runs", "rename", "old", "new"]) == 0
    assert capsys.readouterr().out.startswith("old is now runs/new\n")
    new = RunFolder(runs / "new")
    assert not run.exists()
    assert read_config(new.config).run.name == "new"
    assert read_config(new.config).model == CONFIG.model
    assert holds(checkpoint.named(new.checkpoints, "best"), 4)
    assert ">new</h1>" in new.report.read_text()


def test_a_run_that_cannot_be_written_keeps_its_name() -> None:
    with public_folder() as folder:
        run = write_run(folder / "old", CONFIG)
        for path in (folder, *run.iterdir()):
            path.chmod(0o777)  # others may rename the run and lock it, and replace no file in it
        with without_rights(), pytest.raises(UserError, match="old cannot be renamed: Permission denied"):
            rename(RunFolder(run), "new")
        assert read_config(RunFolder(run).config).run.name == "old"
        assert not (folder / "new").exists()


@pytest.mark.parametrize("parent", ["runs", "my runs"])
def test_the_job_script_of_a_renamed_run_continues_it(
    runs: Path, digits: Path, capsys: pytest.CaptureFixture[str], parent: str
) -> None:
    """Whatever else the script names stays, even what begins with the old name."""
    words = ["--run.dir", parent, "--data.path", str(digits)]
    folder = Path(parent)
    old, new = (
        Submission.of_recipe("demo", ["--run.name", name, *words], Options.parse(["--comment=old"]))
        for name in ("old", "new")
    )
    settings = ["--model.pretrained", f"{folder}/old-2/w"]
    write_run(folder / "old", old.config)
    (folder / "old" / "job.sbatch").write_text(replace(old, settings=settings).script())
    assert cli.run(["runs", "rename", str(folder / "old"), "new"]) == 0
    assert (folder / "new" / "job.sbatch").read_text() == replace(new, settings=settings).script()
    command = f"sbatch {shlex.quote(str(folder / 'new' / 'job.sbatch'))}\n"
    assert capsys.readouterr().err.startswith(
        f"note: a job that waits in the queue has the old name; cancel it, and submit it again: {command}"
    )


@pytest.mark.parametrize("name", ["my run", "-x"])
def test_a_folder_without_the_name_of_a_run_is_continued_after_a_command_that_renames_it(
    runs: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_run(runs / name, CONFIG, val=0.5)
    with pytest.raises(UserError, match=f"a run cannot have the name '{name}'; rename it") as refused:
        resumed_config(RunFolder(runs / name), [])
    assert cli.run(shlex.split(str(refused.value).partition("rename it: cifar-dist ")[2])) == 0
    (renamed,) = runs.glob("[!i]*")
    assert resumed_config(RunFolder(renamed), []).run.name == renamed.name


@pytest.mark.parametrize(
    ("name", "says"),
    [("taken", "taken exists"), ("a/b", "must be 1 to 128"), (".x", "must be 1 to 128"), ("", "the new name is empty")],
)
def test_an_invalid_name_is_refused(runs: Path, name: str, says: str) -> None:
    run = write_run(runs / "old", CONFIG)
    (runs / "taken").mkdir()
    with pytest.raises(UserError, match=says):
        cli.run(["runs", "rename", "old", name])
    assert run.is_dir()


def test_a_run_in_training_is_not_renamed(runs: Path) -> None:
    run = write_run(runs / "old", CONFIG)
    holder = RunFolder(run)
    holder.lock()
    with pytest.raises(UserError, match="in use by process"):
        cli.run(["runs", "rename", "old", "new"])
    assert run.is_dir()


def test_settings_that_a_job_changes_as_it_ends_are_kept(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(runs / "old", CONFIG)
    lock = RunFolder.lock

    def wait_for_job(folder: RunFolder) -> None:
        lock(folder)
        write_atomic(run / "config.toml", to_toml(replace(CONFIG, train=TrainConfig(epochs=8))))

    monkeypatch.setattr(RunFolder, "lock", wait_for_job)
    assert read_config(rename(RunFolder(run), "new").config).train.epochs == 8
