"""The help of settings: complete, short, and accepted as it is printed."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
from support.running import PATIENCE, environment
from support.transform_settings import NEEDED, toml

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.choice import Choice, field_names, is_root, leaves
from cifar_dist.config.help import WIDTH, describe, overview
from cifar_dist.config.named_items import item_root
from cifar_dist.errors import UserError


def shown(text: str) -> list[list[str]]:
    """Return the arguments that each setting in a help text shows, as a shell would split them."""
    return [shlex.split(line.partition("  [")[0]) for line in text.splitlines() if re.match(r"  --\w+\.", line)]


def variants() -> list[tuple[str, ...]]:
    """Arguments that select each built-in variant of each section, and a list of all transforms."""
    found: list[tuple[str, ...]] = [()]
    for section in fields(Config):
        root = next((base for base in type(getattr(Config(), section.name)).__mro__ if is_root(base)), None)
        if root is not None and issubclass(root, Choice):
            found += [
                tuple(word for key, name in picks.items() for word in (f"--{section.name}.{key}", name))
                for picks, _ in leaves(root)
            ]
    plain = [name for name, item in item_root(type(Config().augment)).variants.items() if not item.mixes]  # type: ignore[attr-defined]
    tables = ", ".join(toml(name, NEEDED.get(name, {})) for name in [*plain, "mixup"])
    found[found.index(("--schedule.name", "wsd"))] += ("--schedule.decay", "1")  # else its shape has no effect
    return [*found, ("--augment.transforms", f"[{tables}]")]


@pytest.mark.parametrize("given", variants(), ids=lambda given: " ".join(given)[:40] or "as the recipe has it")
def test_every_setting_is_accepted_as_it_is_shown(given: tuple[str, ...]) -> None:
    """All sections of the unchanged recipe, and for each variant its own section."""
    config = recipe.load("demo", given)
    counted = 0
    for section in fields(Config):
        if given and not given[0].startswith(f"--{section.name}."):
            continue
        words = shown(describe(config, section.name))
        keys = {name.removeprefix(f"--{section.name}.") for name, *_ in words}
        assert keys >= set(field_names(type(getattr(config, section.name)))), "every setting is shown"
        for setting in words:
            assert len(setting) == 2, f"a setting and its value: {setting}"
            assert recipe.load("demo", [*given, *setting]) == config, f"{setting} is the value that it has already"
            counted += 1
    assert counted > (0 if given else 50)


def test_every_common_setting_is_accepted_as_it_is_shown() -> None:
    for name in ("demo", "speedrun-94", "se-resnet"):
        config = recipe.load(name)
        common = overview(config).partition("Common settings")[2]
        found = [setting[:2] for setting in shown(common)]
        assert len(found) > 10
        for setting in found:
            assert recipe.load(name, setting) == config, f"{setting} is the value that it has already"


@pytest.mark.parametrize("name", ["demo", "speedrun-94", "small-resnet/baseline"])
def test_the_overview_fits_a_screen(name: str) -> None:
    lines = overview(recipe.load(name)).splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("section", [(), ("optim",)], ids=["overview", "section"])
def test_the_help_is_complete_where_python_removes_docstrings(section: tuple[str, ...]) -> None:
    command = [sys.executable, "-OO", "-m", "cifar_dist", "train", "demo", "--help", *section]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    config = recipe.load("demo")
    assert (describe(config, *section) if section else overview(config)) in done.stdout, done.stderr


def test_help_may_ask_for_one_setting_or_one_transform() -> None:
    config = recipe.load("demo")
    assert shown(describe(config, "optim.lr")) == [["--optim.lr", "0.1"]]
    assert [name for name, _ in shown(describe(config, "augment.crop"))] == [
        "--augment.crop.pad",
        "--augment.crop.fill",
    ]
    with pytest.raises(UserError, match="did you mean 'optim'"):
        describe(config, "optimizer")
    with pytest.raises(UserError, match=r"did you mean 'optim\.lr'"):
        describe(config, "optim.rl")


def test_a_plug_in_is_described_by_its_own_dataclass(tmp_path: Path) -> None:
    code = tmp_path / "lion.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from cifar_dist.config import OptimConfig\n"
        "@dataclass(frozen=True)\n"
        "class Lion(OptimConfig):\n"
        '    """Sign momentum."""\n'
        "    betas: tuple[float, float] = (0.9, 0.99)\n"
        '    """Two decay rates."""\n'
        "    def build(self, groups): ...\n"
    )
    text = describe(recipe.load("demo", ["--optim.name", f"{code}:Lion"]), "optim")
    assert text.startswith("Sign momentum.")
    assert "Two decay rates." in text
    assert ["--optim.betas", "[0.9, 0.99]"] in shown(text)


def test_a_setting_that_is_none_is_shown_without_a_value(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from typing import Optional\n"
        "from cifar_dist.config import OptimConfig\n"
        "@dataclass(frozen=True)\n"
        "class Mine(OptimConfig):\n"
        "    damping: float | None = None\n"
        '    """Damping."""\n'
        "    power: Optional[int] = None\n"
        '    """Power."""\n'
        "    gammas: None | list[float] = None\n"
        '    """Gammas."""\n'
        "    every: int | str = 3\n"
        '    """Every."""\n'
        "    def build(self, groups): ...\n"
    )
    text = describe(recipe.load("demo", ["--optim.name", f"{code}:Mine"]), "optim")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for shown in ("damping [number]", "power [integer]", "gammas [list of numbers]", "every 3 [integer | text]"):
        assert f"--optim.{shown}" in lines
    assert lines[0].startswith("--optim.name "), "no description"


def test_every_setting_is_documented() -> None:
    """`--help` prints the text below each field, so a field without one would be missing there."""
    found = []
    for file in sorted(Path(inspect.getfile(Config)).parent.glob("*.py")):
        sections = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
        for section in sections:
            if not section.name.endswith("Config") or section.name == "Config":
                continue
            found.append(section.name)
            for field, text in pairwise([*section.body, ast.Pass()]):
                if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).startswith("ClassVar"):
                    name = ast.unparse(field.target)
                    documented = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                    picks = name in ("name", "rest", "wandb")  # documented where the choice is
                    assert documented or picks, f"{section.name}.{name} has no text under it"
    assert len(found) > 30
