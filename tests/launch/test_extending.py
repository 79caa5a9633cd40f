"""A plug-in of each kind, as docs/extending.md shows it, from a folder outside the repository, on two processes."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.documents import blocks
from support.run_folders import cut
from support.running import PATIENCE, ROOT, environment, metrics

MIDDLE = 6
SETTINGS = ["--train.epochs", "2", "--checkpoint.every_steps", str(MIDDLE), "--checkpoint.keep", "9"]


Call = Callable[..., str]


@pytest.fixture(scope="module")
def call(forked: dict[str, str]) -> Call:
    """``cifar-dist`` in a folder."""
    return functools.partial(run, forked)


def run(forked: dict[str, str], folder: Path, *words: str) -> str:
    done = subprocess.run(
        [f"{forked['CIFAR_DIST_VENV']}/bin/cifar-dist", *words],
        cwd=folder,
        env=environment(forked),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, call: Call) -> Path:
    """Write the files of the page, and train their run to its end."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for block in blocks(ROOT / "docs" / "extending.md"):
        if block.file:
            (folder / block.file).write_text(block.text)
    call(folder, "pack", "bars.py:read", "shards/bars")
    call(folder, "launch", "cpu", "mine.toml", *SETTINGS)
    return folder


def test_each_kind_takes_part(folder: Path) -> None:
    run = folder / "runs" / "mine"
    assert len(metrics(run)) == 2 * 7
    assert len((run / "evaluations.txt").read_text().splitlines()) == 3
    kept = {entry["file"] for entry in json.loads((run / "plugins" / "plugins.json").read_text())["files"]}
    assert kept == {"net.py", "lion.py", "shapes.py", "invert.py", "tracker.py", "half_gradients.py"}
    assert json.loads((folder / "shards" / "bars" / "manifest.json").read_text())["name"] == "bars"


def test_a_resume_ends_on_the_same_weights_and_says_which_file_changed(folder: Path, call: Call) -> None:
    complete, resumed = folder / "runs" / "mine", folder / "runs" / "resumed"
    cut(complete, resumed, MIDDLE)
    (folder / "tracker.py").write_text((folder / "tracker.py").read_text() + "# changed\n")
    said = call(folder, "launch", "cpu", "mine.toml", *SETTINGS, "--run.name", "resumed")
    assert f"resumed after step {MIDDLE}" in said
    assert "tracker.py has changed" in said
    final = Path("final") / "model.safetensors"
    assert (resumed / final).read_bytes() == (complete / final).read_bytes()


def test_a_run_folder_is_read_without_its_code(folder: Path, forked: dict[str, str]) -> None:
    moved = folder / "moved"
    shutil.copytree(folder / "runs" / "mine", moved / "mine", symlinks=True)
    assert "finished" in run(forked, moved, "runs", "list", ".")
    run(forked, moved, "report", "mine")
