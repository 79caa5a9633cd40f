"""The settings of the run that words on a command line start, which the launcher of several machines asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cifar_dist import recipe
from cifar_dist.config import RunConfig
from cifar_dist.config.tree import to_toml
from cifar_dist.runs.resume import launched_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    config = recipe.load("demo", ["--run.dir", str(folder.parent), "--run.name", "first", "--run.join_timeout", "7"])
    (folder / "config.toml").write_text(to_toml(config))
    (folder / "metrics.jsonl").touch()
    return str(folder)


def test_settings_may_precede_what_is_trained(run: str) -> None:
    assert launched_run(["train", "demo", "--run.join_timeout", "9"]).join_timeout == 9
    assert launched_run(["train", "--run.join_timeout", "9", "demo"]).join_timeout == 9
    assert launched_run(["resume", run]).join_timeout == 7
    assert launched_run(["resume", "--run.join_timeout=9", run]).join_timeout == 9


@pytest.mark.parametrize(
    "words", ["train", "resume", "train --help", "train demo demo", "train demo --help", "doctor demo"]
)
def test_words_that_start_no_run_are_left_to_their_verb(words: str) -> None:
    assert launched_run(words.split()) == RunConfig()
