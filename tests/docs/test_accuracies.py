"""The training commands in the documentation, with the shipped recipes, reach the expected accuracy.

``pytest -s`` lists the commands with their accuracies.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from support.documents import LEAST, blocks, commands, pages
from support.running import ROOT, spawn, train

from cifar_dist.config.overrides import split_settings

CONTINUED = [ROOT / "docs" / "resume.md", ROOT / "docs" / "transfer.md"]
"""Pages on which a training begins with the run of the command before it."""


def trainings() -> list[tuple[str, ...]]:
    """Return the distinct settings with which the other pages train ``demo``, without the names of runs.

    The rate that ``lr-find`` suggests, 0.07, is omitted because it lies between two of them.
    """
    found = set()
    for page in pages():
        if page in CONTINUED:
            continue
        own = {block.file: tomllib.loads(block.text) for block in blocks(page) if block.file.endswith(".toml")}
        for line in commands(page):
            words = line.partition(" #")[0].split()
            if not any(word in words for word in ("train.py", "launch")):
                continue
            settings, others = split_settings(words)
            recipe = next((word for word in others if word == "demo" or own.get(word, {}).get("base") == "demo"), "")
            if not recipe or own.get(recipe, {}).get("data"):  # a dataset of the page's own
                continue
            lr = own.get(recipe, {}).get("optim", {}).get("lr")
            pairs = [(a, b) for a, b in zip(settings[::2], settings[1::2], strict=True) if a != "--run.name"]
            found.add(tuple(word for pair in pairs for word in pair) + (("--optim.lr", str(lr)) if lr else ()))
    return sorted(found - {()})  # ``demo`` as it is: docs/transfer.md trains it


def accuracy_of(run: Path) -> float:
    """Return the newest final accuracy of a run."""
    newest = max(run.glob("evaluations/*_model_final/summary.json"), key=lambda path: path.stat().st_mtime)
    return float(json.loads(newest.read_text())["accuracy"])


@pytest.mark.parametrize("settings", trainings(), ids=" ".join)
def test_a_documented_training_reaches_the_expected_accuracy(
    digits: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    assert len(trainings()) >= 2
    (done,) = train("demo", "--data.path", str(digits), "--run.dir", str(tmp_path), *settings)
    assert done.returncode == 0, done.stderr
    accuracy = accuracy_of(tmp_path / "demo")
    print(f"demo {' '.join(settings)}: {accuracy:.2%}")
    assert accuracy > LEAST


@pytest.mark.parametrize("page", CONTINUED, ids=lambda page: page.name)
def test_each_training_of_the_resume_page_reaches_the_expected_accuracy(
    digits: Path, tmp_path: Path, page: Path
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "digits").symlink_to(digits)
    for block in blocks(page):
        if block.language != "bash" or block.needs:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].replace("python train.py", "cifar-dist train").split()
            if words[:2] not in (["cifar-dist", "train"], ["cifar-dist", "resume"]):
                continue
            (done,) = spawn(["-m", "cifar_dist", *words[1:]], cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            accuracy = accuracy_of(max(tmp_path.glob("runs/*/"), key=lambda run: run.stat().st_mtime))
            print(f"{' '.join(words)}: {accuracy:.2%}")
            assert accuracy > LEAST, line
