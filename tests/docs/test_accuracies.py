"""The training commands of pages whose ``demo`` test_commands.py makes cheap reach the expected accuracy as shipped.

``pytest -s`` lists the commands with their accuracies.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from support.documents import AS_SHIPPED, LEAST, blocks, commands, pages
from support.running import train

from cifar_dist.config.overrides import split_settings


def trainings() -> list[tuple[str, ...]]:
    """Return the distinct settings with which pages train ``demo``, without those that change no weight.

    Pages on which it is trained as shipped have their accuracies tested with their commands. The rate that ``lr-find``
    suggests, 0.07, is omitted because it lies between two of them.
    """
    found = set()
    for page in pages():
        if page in AS_SHIPPED:
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
            pairs = [
                (a, b)
                for a, b in zip(settings[::2], settings[1::2], strict=True)
                if not a.startswith(("--run.", "--checkpoint."))
            ]
            found.add(tuple(word for pair in pairs for word in pair) + (("--optim.lr", str(lr)) if lr else ()))
    return sorted(found - {()})  # ``demo`` as it is: docs/transfer.md trains it


@pytest.mark.parametrize("settings", trainings(), ids=" ".join)
def test_a_documented_training_reaches_the_expected_accuracy(
    all_digits: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    assert len(trainings()) >= 2
    (done,) = train("demo", "--data.path", str(all_digits), "--run.dir", str(tmp_path), *settings)
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob("demo/evaluations/*_model_final/summary.json")
    accuracy = json.loads(summary.read_text())["accuracy"]
    print(f"demo {' '.join(settings)}: {accuracy:.2%}")
    assert accuracy > LEAST
