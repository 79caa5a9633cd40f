"""The shape of the code: few files at the root, no function of the loop that does not fit a screen, no data in git."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

from support.running import ROOT

PACKAGE = ROOT / "cifar_dist"
LONGEST = 60  # lines
LOOP = ("training", "distributed", "checkpoint", "optim")


def test_the_root_has_at_most_a_dozen_files() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12, "give a new module a room: docs/architecture.md"


def test_the_package_declares_its_types() -> None:
    """Without the file, mypy does not check a plug-in against the classes that it derives from."""
    assert (PACKAGE / "py.typed").is_file()


def test_no_function_of_the_loop_is_longer_than_a_screen() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for room in LOOP
        for path in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    }
    assert len(lengths) > 300
    assert {name: lines for name, lines in lengths.items() if lines >= LONGEST} == {}


def test_git_ignores_data_and_runs_also_where_they_are_links_to_another_disk(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / "shards").mkdir()
    for name in ("README.md", "mine.toml"):
        (tmp_path / "shards" / name).touch()
    (tmp_path / "scratch").mkdir()
    for name in ("runs", "wandb", ".venv", "shards/cifar10", "shards/.cifar10.locks"):
        (tmp_path / name).symlink_to(tmp_path / "scratch")
    listed = subprocess.run(
        [*git, "ls-files", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == [".gitignore", "shards/README.md", "shards/mine.toml"]
