"""Finding a run, and a checkpoint of it, by what a user types."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.without_rights import public_folder, without_rights

from cifar_dist.errors import UserError
from cifar_dist.run_folder import find_run, split_step


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("first", ("first", "")),
        ("first@120", ("first", "120")),
        ("first@", ("first", "")),
        ("/home/u@corp.com/runs/first", ("/home/u@corp.com/runs/first", "")),
        ("/home/u@corp.com/runs/first@best", ("/home/u@corp.com/runs/first", "best")),
    ],
)
def test_an_at_belongs_to_a_folder_or_precedes_a_checkpoint(text: str, parts: tuple[str, str]) -> None:
    assert split_step(text) == parts


def test_a_checkpoint_in_place_of_a_run_is_answered_with_both_names(tmp_path: Path) -> None:
    run = tmp_path / "u@corp.com" / "runs" / "first"
    run.mkdir(parents=True)
    (run / "config.toml").touch()
    (run / "metrics.jsonl").touch()
    assert find_run(str(run)).path == run
    with pytest.raises(UserError, match=f"'{run}@7' is not a run; name {run}, and its checkpoint with --checkpoint"):
        find_run(f"{run}@7", checkpoint="with --checkpoint")


def test_a_run_is_found_by_name_or_path_or_the_nearest_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-run").mkdir()
    (tmp_path / "my-run" / "config.toml").touch()
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert find_run("$SCRATCH/my-run").path == tmp_path / "my-run"
    assert find_run("my-run", tmp_path).path == find_run(str(tmp_path / "my-run"), tmp_path).path == tmp_path / "my-run"
    with pytest.raises(UserError, match="run 'my-rum' does not exist; did you mean 'my-run'"):
        find_run("my-rum", tmp_path)
    with pytest.raises(UserError, match="has no run yet; train one first"):
        find_run("my-run", tmp_path / "nowhere")
    for name in ("x" * 5000, "a\0b", ""):
        with pytest.raises(UserError, match="does not exist"):
            find_run(name, tmp_path)


def test_a_path_is_not_taken_for_the_name_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("first"), Path("runs/first")):
        folder.mkdir(parents=True)
        (folder / "config.toml").touch()
    assert find_run("./first").path == find_run("first/").path == Path("first")
    assert find_run("first").path == find_run("runs/first").path == Path("runs/first")


def test_a_run_of_another_user_is_not_said_to_be_missing() -> None:
    with public_folder() as folder:
        (folder / "private").mkdir(mode=0o700)
        (folder / "private" / "config.toml").touch()
        with (
            without_rights(),
            pytest.raises(UserError, match="/private cannot be read: permission denied"),
        ):
            find_run("private", folder)
