"""The settings in the ``config.toml`` of a run folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cifar_dist import recipe
from cifar_dist.config import Config, OptimConfig, RunningAverageConfig
from cifar_dist.config.changes import contradiction
from cifar_dist.config.saved import read_config
from cifar_dist.config.settings import settings_of
from cifar_dist.config.tree import to_toml, to_tree
from cifar_dist.errors import UserError


def test_a_run_folder_is_read_without_the_code_that_it_names(tmp_path: Path) -> None:
    """The settings of plug-ins are read as they were written, and written the same way."""
    code = tmp_path / "code.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from cifar_dist.config import OptimConfig, ScheduleConfig\n"
        "@dataclass(frozen=True)\n"
        "class Lion(OptimConfig):\n"
        "    betas: tuple[float, float] = (0.9, 0.99)\n"
        "    lambda_: float = 0.7\n"
        "    def build(self, groups): ...\n"
        "@dataclass(frozen=True)\n"
        "class Sawtooth(ScheduleConfig):\n"
        "    teeth: int = 3\n"
        "    def falling(self, at): ...\n"
    )
    words = ["--optim.name", f"{code}:Lion", "--schedule.name", f"{code}:Sawtooth", "--schedule.teeth", "5"]
    loaded = recipe.load("demo", words)
    assert type(loaded.optim).__name__ == "Lion"
    config_file = tmp_path / "config.toml"
    config_file.write_text(to_toml(loaded))
    code.write_text("raise SystemExit('this code must not run')")
    found = read_config(config_file)
    assert to_tree(found) == to_tree(loaded)
    assert isinstance(found.optim, OptimConfig)
    assert (found.optim.lr, found.schedule.name) == (0.1, f"{code}:Sawtooth")


def test_a_setting_that_is_none_is_left_out_of_the_file_and_read_again(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from cifar_dist.config import ScheduleConfig\n"
        "from cifar_dist.data.transforms import Transform\n"
        "@dataclass(frozen=True)\n"
        "class Shape(ScheduleConfig):\n"
        "    floor: float | None = None\n"
        "    def falling(self, at): ...\n"
        "@dataclass(frozen=True)\n"
        "class Sizes(Transform):\n"
        "    sizes: tuple[int, ...] = None\n"
        "    def __call__(self, images, samples): ...\n"
    )
    words = ["--schedule.name", f"{code}:Shape", "--augment.transforms", f'[{{ name = "{code}:Sizes" }}]']
    (tmp_path / "config.toml").write_text(to_toml(unset := recipe.load("demo", words)))
    assert recipe.load(str(tmp_path / "config.toml")) == unset
    changes = ["--schedule.floor", "0.5", "--augment.Sizes.sizes", "[3]"]
    changed = recipe.load(str(tmp_path / "config.toml"), changes)
    (tmp_path / "config.toml").write_text(to_toml(changed))
    assert recipe.load(str(tmp_path / "config.toml")) == changed
    found = contradiction(settings_of(unset), settings_of(changed))
    assert found == ("augment.Sizes.sizes", "augment.Sizes.sizes = nothing and this command says [3]")


@pytest.mark.parametrize(
    ("default", "shown"), [("Path('x')", "PosixPath('x')"), ("(None, 1)", "[None, 1]"), ("1j", "1j")]
)
def test_a_setting_that_no_file_can_contain_is_refused(tmp_path: Path, default: str, shown: str) -> None:
    code = tmp_path / "code.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "from typing import Any\n"
        "from cifar_dist.config import ScheduleConfig\n"
        "@dataclass(frozen=True)\n"
        "class Shape(ScheduleConfig):\n"
        f"    other: Any = {default}\n"
        "    def falling(self, at): ...\n"
    )
    with pytest.raises(UserError, match=rf"schedule.other is {re.escape(shown)}, which a recipe cannot contain; make "):
        recipe.load("demo", ["--schedule.name", f"{code}:Shape"])
    recipe.load("demo", ["--schedule.name", f"{code}:Shape", "--schedule.other", "3"])


def test_what_was_read_without_code_cannot_compute(tmp_path: Path) -> None:
    words = ["--optim.name", "sgd", "--schedule.name", "linear", "--average.name", "ema"]
    text = to_toml(recipe.load("demo", words))
    for name in ("sgd", "linear", "ema"):
        text = text.replace(f'name = "{name}"', f'name = "gone.py:{name}"')
    (tmp_path / "config.toml").write_text(text)
    found = read_config(tmp_path / "config.toml")
    average = found.average
    assert isinstance(average, RunningAverageConfig), "the run has an average"
    for compute, name in (
        (lambda: found.optim.build([]), "sgd"),
        (lambda: found.schedule.fraction(3, steps_per_epoch=10, epochs=2), "linear"),
        (lambda: average.weight(3, start=0, total=9), "ema"),
    ):
        with pytest.raises(RuntimeError, match=f"gone.py:{name} was read without its code, so it cannot compute"):
            compute()
    with pytest.raises(UserError, match=r"name 'gone\.py:sgd': file gone\.py does not exist"):
        read_config(tmp_path / "config.toml", import_plugins=True)


LATER = "[tracking]"


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (0, "is incomplete: it has no section [run]"),
        (LATER, "is incomplete: it has no section [tracking]"),
        (f"{LATER}\npro", "cannot be read as TOML: "),
    ],
)
@pytest.mark.parametrize("damaged", ["config.toml", ".started.toml"])
def test_a_truncated_config_of_a_run_is_refused_with_the_command_that_repairs_it(
    tmp_path: Path, kept: str | int, says: str, damaged: str
) -> None:
    text = to_toml(Config())
    for name in ("config.toml", ".started.toml"):
        (tmp_path / name).write_text(text)
    intact = ({"config.toml", ".started.toml"} - {damaged}).pop()
    cut = text.index(LATER) + len(str(kept)) - len(LATER) if kept else 0
    (tmp_path / damaged).write_text(text[:cut])
    with pytest.raises(UserError) as refused:
        read_config(tmp_path / damaged)
    assert str(refused.value).startswith(f"{tmp_path / damaged} {says}")
    assert str(refused.value).endswith(f"; restore it: cp {tmp_path / intact} {tmp_path / damaged}")
    (tmp_path / intact).write_text("")
    with pytest.raises(UserError) as refused:
        read_config(tmp_path / damaged)
    assert "cp " not in str(refused.value), "that would not help"


def test_a_command_that_repairs_nothing_is_not_suggested(tmp_path: Path) -> None:
    text = to_toml(Config()).replace('name = "sgd"', 'name = "gone.py:sgd"')
    for name in ("config.toml", ".started.toml"):
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"file gone\.py does not exist$"):
        read_config(tmp_path / "config.toml", import_plugins=True)


def test_a_damaged_config_of_a_run_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / ".started.toml").write_text(to_toml(Config()))
    for text, says in (("", "is incomplete"), ("[ru", "cannot be read as TOML")):
        (tmp_path / "config.toml").write_text(text)
        with pytest.raises(UserError, match=rf"config.toml {says}.*; restore it: cp .*/.started.toml .*/config.toml$"):
            recipe.load(str(tmp_path / "config.toml"), ["--run.name", "b"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").write_text("")
    assert recipe.load(str(tmp_path / "mine" / "config.toml")).run.name == "config", "a recipe of the user's own"
