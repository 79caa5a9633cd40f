"""A recipe whose runs are stopped, killed, resumed, extended and branched, each command in a process of its own."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cifar_dist import cli
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.training.trainer import Trainer  # noqa: F401 - imported once, not in each fork
from support import forked_ranks
from support.running import story

STEPS = 3
"""Steps in an epoch of the runs here."""


RECIPE = """
[run]
dir = "{runs}"
[data]
path = "{digits}"
[augment]
transforms = [{{ name = "crop", pad = 2 }}]
[model]
name = "tiny-cnn"
[optim]
lr = 0.1
[schedule]
name = "wsd"
decay = 1
[average]
name = "ema"
decay = 0.5
[train]
epochs = 4
batch_size = 84
threads = 1
[checkpoint]
every_steps = 2
keep = 20
[tracking]
every = 1
[eval]
tta = "0"
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code and its output or error."""

    code: int
    said: str


@dataclass(frozen=True)
class Place:
    """A recipe and its runs; ``whole`` is an uninterrupted one."""

    recipe: str
    runs: Path

    @property
    def whole(self) -> Path:
        return self.runs / "whole"

    def run(self, *words: str, die_at: int | str = 0, env: Mapping[str, str] | None = None) -> Done:
        """Run a command in its own process, and have that killed.

        Args:
            words: of the command.
            die_at: before which rename of a file or folder, by its number from 1; or by the name of a file before it
                gets that, and of a folder before anything is written into it; 0 for none.
            env: variables of its environment.
        """
        end = self.runs.parent / "end.json"
        end.unlink(missing_ok=True)
        with contextlib.suppress(AssertionError):  # the exit code of a killed process
            forked_ranks.run(1, lambda: _run(words, end, die_at, env or {}))
        return Done(**json.loads(end.read_text())) if end.exists() else Done(-9, "killed")

    def train(self, name: str, *words: str, die_at: int | str = 0) -> Done:
        return self.run("train", self.recipe, "--run.name", name, *words, die_at=die_at)

    def assert_is_whole(self, run: Path) -> None:
        """Assert that the run has the records, the final weights and the state of the uninterrupted one."""
        assert story(run) == story(self.whole)
        assert RunFolder(run).final.read_bytes() == RunFolder(self.whole).final.read_bytes()
        assert RunFolder(run).is_finished()


def _run(words: tuple[str, ...], end: Path, die_at: int | str, env: Mapping[str, str]) -> None:
    os.environ.update(env)
    sys.orig_argv = ["cifar-dist", *words]
    sys.modules["cifar_dist.report.run_page"] = None  # type: ignore[assignment]  # a report takes longer than the run
    count = itertools.count(1)

    def die(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and die_at in (next(count), os.path.basename(str(arguments[1]))):
            os._exit(9)
        if event == "os.mkdir" and os.path.basename(str(arguments[0])).startswith(f".{die_at}."):  # a temporary folder
            os._exit(9)

    sys.addaudithook(die)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = cli.run(words)
        except UserError as error:
            code = 2
            print(error)
    end.write_text(json.dumps({"code": code, "said": output.getvalue()}))


def begin(folder: Path, digits: Path) -> Place:
    """Train the run that nothing interrupts, and one that stops after five steps."""
    (folder / "small.toml").write_text(RECIPE.format(runs=folder / "runs", digits=digits))
    made = Place(str(folder / "small.toml"), folder / "runs")
    assert made.train("whole").code == 0
    assert made.train("stopped", "--train.epochs", "3", "--train.max_steps", "5").code == 0
    return made


def tree(run: Path) -> dict[Path, bytes]:
    """The bytes of all files of a run that are not hidden."""
    return {path: path.read_bytes() for path in run.rglob("[!.]*") if path.is_file()}


def events(run: Path) -> list[tuple[str, int, str]]:
    """The timeline of a run: kind, step and note."""
    return [(event.kind, event.step, event.note) for event in timeline.read(RunFolder(run).timeline)]
