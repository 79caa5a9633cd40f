"""What a launcher of several machines asks of the run that words on a command line start."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.run_folders import write_run

from cifar_dist import recipe
from cifar_dist.config import RunConfig
from cifar_dist.runs.launched_run import LaunchedRun


@pytest.fixture
def run(tmp_path: Path) -> str:
    words = ["--run.dir", str(tmp_path / "runs"), "--run.name", "first", "--run.join_timeout", "7"]
    return str(write_run(tmp_path / "runs" / "first", recipe.load("demo", words)))


def test_settings_may_precede_what_is_trained(run: str) -> None:
    assert LaunchedRun(["train", "demo", "--run.join_timeout", "9"]).join_timeout == 9
    assert LaunchedRun(["train", "--run.join_timeout", "9", "demo"]).join_timeout == 9
    assert LaunchedRun(["resume", run]).join_timeout == 7
    assert LaunchedRun(["resume", "--run.join_timeout=9", run]).join_timeout == 9


@pytest.mark.parametrize(
    "words", ["train", "resume", "train --help", "train demo demo", "train demo --help", "doctor demo"]
)
def test_words_that_start_no_run_are_left_to_their_verb(words: str) -> None:
    launched = LaunchedRun(words.split())
    assert launched.join_timeout == RunConfig().join_timeout
    assert launched.words_to_continue() == words.split()
    assert not launched.is_finished()
    launched.check_elastic([1, 2])


def test_a_run_continues_with_its_own_settings(run: str, tmp_path: Path) -> None:
    """Its recipe, and that it had to be a new one, count when it begins only."""
    place = ["--run.dir", str(tmp_path / "runs"), "--run.fresh", "--run.name", "first"]
    again = LaunchedRun(["train", "demo", *place, "--optim.lr", "0.2"])
    assert again.words_to_continue() == ["resume", run, "--optim.lr", "0.2"]
    before = ["train", "demo", *place[:-1], "second"]
    assert LaunchedRun(before).words_to_continue() == before


def test_a_run_that_is_to_be_extended_is_not_finished(tiny: Path) -> None:
    """Or a machine that has waited in vain for the others would call it done."""
    run = write_run(tiny.parent / "runs" / "tiny", recipe.load(str(tiny)), test=0.5)
    assert LaunchedRun(["resume", str(run)]).is_finished()
    assert LaunchedRun(["train", str(tiny), "--run.name", "tiny", "--run.fresh"]).is_finished()
    assert not LaunchedRun(["resume", str(run), "--train.epochs", "4"]).is_finished()
    assert not LaunchedRun(["doctor"]).is_finished()
