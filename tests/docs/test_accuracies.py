"""The training commands of the documents, with the recipes as they are shipped, end at an accuracy to show."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from support.documents import blocks, commands, pages
from support.running import train

from cifar_dist.verbs.arguments import split_settings

FOUND = {"optim": {"lr": 0.07}}  # what lr-find suggests for demo: tests/optim/test_lr_curve.py
LEAST = 0.9


def trainings() -> list[tuple[str, ...]]:
    """The distinct settings with which the documents train ``demo``, without the names of runs."""
    found = {()}  # make demo
    for page in pages():
        own = {"found.toml": {"base": "demo", **FOUND}}
        own |= {block.file: tomllib.loads(block.text) for block in blocks(page) if block.file.endswith(".toml")}
        for line in commands(page):
            words = line.partition(" #")[0].split()
            if not any(word in words for word in ("train.py", "launch")):
                continue
            settings, others = split_settings(words)
            recipe = next((word for word in others if word == "demo" or own.get(word, {}).get("base") == "demo"), "")
            if not recipe or own.get(recipe, {}).get("data"):  # a dataset of the page's own
                continue
            lr = own.get(recipe, {}).get("optim", {}).get("lr")
            if "--model.pretrained" in settings:  # needs the run of the command before it
                continue
            pairs = [(a, b) for a, b in zip(settings[::2], settings[1::2], strict=True) if a != "--run.name"]
            found.add(tuple(word for pair in pairs for word in pair) + (("--optim.lr", str(lr)) if lr else ()))
    return sorted(found)


@pytest.mark.parametrize("settings", trainings(), ids=" ".join)
def test_a_documented_training_ends_at_an_accuracy_to_show(
    digits: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    assert len(trainings()) >= 4
    (done,) = train("demo", "--data.path", str(digits), "--run.dir", str(tmp_path), *settings)
    assert done.returncode == 0, done.stderr
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.glob("demo/evaluations/*/summary.json"))
    assert summary["accuracy"] > LEAST
