"""The rate that ``lr-find`` writes into a recipe: its other text stays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cifar_dist import recipe
from cifar_dist.errors import UserError
from cifar_dist.verbs.recipe_lr import require_recipe, write_lr


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
@pytest.mark.parametrize("section", ["", "[optim]\nlr = 3.0\n"])
def test_a_rate_is_written_without_a_change_of_line_ends(tmp_path: Path, section: str, ends: str) -> None:
    path = tmp_path / "windows.toml"
    text = f"\ufeff{section}\n# mine\n[train]\nepochs = 3\n".replace("\n", ends)
    path.write_bytes(text.encode())
    write_lr(path, 0.25, base="demo")
    written = path.read_bytes().decode()
    expected = text.replace("3.0", "0.25") if section else f"{text}\n[optim]\nlr = 0.25\n".replace("\n", ends)
    assert written == expected.replace("\r\r", "\r")
    assert recipe.load(str(path)).optim.lr == 0.25


def test_a_recipe_that_is_written_keeps_one_setting_of_a_transform(tmp_path: Path) -> None:
    """``lr-find --write`` writes such a recipe: it includes the settings of the command line."""
    settings = ["--augment.crop.pad", "1", "--train.epochs", "3"]
    write_lr(tmp_path / "found.toml", 0.25, base="demo", settings=settings)
    found = recipe.load(str(tmp_path / "found.toml"))
    assert found.augment == recipe.load("demo", settings).augment
    assert (found.optim.lr, found.train.epochs) == (0.25, 3)


def test_a_rate_that_cannot_be_written_is_one_line_that_says_where(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("optim.lr = 0.1\n")
    with pytest.raises(UserError, match=r"cannot be set in .*mine.toml; move it into a section \[optim\]"):
        write_lr(path, 0.25, base="demo")


def test_a_rate_is_written_through_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "mine.toml", tmp_path / "link.toml"
    path.write_text('base = "demo"\n')
    link.symlink_to(path)
    write_lr(link, 0.25, base="demo")
    assert link.is_symlink()
    assert recipe.load(str(path)).optim.lr == 0.25


def test_a_recipe_in_a_folder_behind_a_link_has_the_base_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    (tmp_path / "mine.toml").write_text('base = "demo"\n')
    (tmp_path / "real" / "mine.toml").write_text('base = "resnet18"\n')
    write_lr(Path("link/found.toml"), 0.25, base="mine.toml")
    assert recipe.load("link/found.toml").model == recipe.load("demo").model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('recipe = "demo"\nseeds = 2\n', "is a sweep, not a recipe"),
        ('[project]\nname = "mine"\n', "unknown setting project.name"),
        ("[optim]\nlr = -1\n", "optim.lr"),
        ("[optim\n", "TOML"),
    ],
    ids=["sweep", "another program's", "invalid", "damaged"],
)
def test_only_a_recipe_receives_a_rate(tmp_path: Path, text: str, said: str) -> None:
    path, tested = tmp_path / "mine.toml", recipe.load("demo")
    require_recipe(path, tested)
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        require_recipe(path, tested)
    path.write_text('base = "demo"\n')
    require_recipe(path, tested)


@pytest.mark.parametrize(
    ("tested", "said"),
    [
        (["demo", "--optim.name", "adamw"], 'has optim.name = "sgd" and this test says "adamw"; '),
        (["custom-resnet"], "has augment.crop.pad = 3 and this test says 4; "),
        (["demo", "--optim.momentum", "0.5"], "has optim.momentum = 0.9 and this test says 0.5; name a new file, or"),
    ],
)
def test_a_recipe_of_other_settings_than_were_tested_does_not_receive_the_rate(
    tmp_path: Path, tested: list[str], said: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "demo"\n')
    with pytest.raises(UserError, match=re.escape(f"{path} {said}")):
        require_recipe(path, recipe.load(tested[0], tested[1:]))


def test_a_recipe_receives_the_rate_of_another_length_seed_schedule_and_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "demo"\n')
    words = "--run.name it --run.seed 7 --train.epochs 3 --optim.lr 1 --schedule.name cosine --data.path here"
    require_recipe(path, recipe.load("demo", words.split()))


def test_a_folder_that_cannot_be_written_is_refused_before_the_rate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode, **_: False)
    with pytest.raises(UserError, match="permission denied"):
        require_recipe(Path("mine.toml"), recipe.load("demo"))
