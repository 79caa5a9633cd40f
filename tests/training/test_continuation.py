"""Runs that are resumed from their folder, extended, branched, limited, and killed at the start of each."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import forked_ranks
from support.running import metrics, story

from cifar_dist import cli, recipe
from cifar_dist.config import ScheduleConfig, TrainConfig
from cifar_dist.config.schedule import ConstantConfig, RestartsConfig, StepConfig, TriangularConfig, WSDConfig
from cifar_dist.distributed.stop_requests import STOP_FILE, TIME_LIMIT, StopRequests, cause_of
from cifar_dist.distributed.stop_signals import GRACE_SECONDS, StopSignals
from cifar_dist.distributed.time_limit import deadline, job_end
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.runs.listing import describe, table
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import Record
from cifar_dist.training.early_stopping import EarlyStopping
from cifar_dist.training.trainer import Trainer  # noqa: F401 - imported once, not in each fork

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
batch_size = 420
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

    def run(self, *words: str, die_at: int = 0, **variables: str) -> Done:
        """Run a command in its own process, which is killed before the ``die_at``-th time it renames a file."""
        end = self.runs.parent / "end.json"
        end.unlink(missing_ok=True)
        with contextlib.suppress(AssertionError):  # the exit code of a killed process
            forked_ranks.run(1, lambda: _run(words, end, die_at, variables))
        return Done(**json.loads(end.read_text())) if end.exists() else Done(-9, "killed")

    def train(self, name: str, *words: str, die_at: int = 0, **variables: str) -> Done:
        return self.run("train", self.recipe, "--run.name", name, *words, die_at=die_at, **variables)

    def assert_is_whole(self, run: Path) -> None:
        """Assert that the run has the records, the final weights and the state of the uninterrupted one."""
        assert story(run) == story(self.whole)
        assert RunFolder(run).final.read_bytes() == RunFolder(self.whole).final.read_bytes()
        assert RunFolder(run).is_finished()


def _run(words: tuple[str, ...], end: Path, die_at: int, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    sys.orig_argv = ["cifar-dist", *words]
    sys.modules["cifar_dist.report.html"] = None  # type: ignore[assignment]  # a report takes longer than the run
    count = itertools.count(1)
    if die_at:
        sys.addaudithook(lambda event, _: os._exit(9) if event == "os.rename" and next(count) == die_at else None)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = cli.run(words)
        except UserError as error:
            code = 2
            print(error)
    end.write_text(json.dumps({"code": code, "said": output.getvalue()}))


@pytest.fixture(scope="module")
def place(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("continuation")
    (folder / "small.toml").write_text(RECIPE.format(runs=folder / "runs", digits=digits))
    made = Place(str(folder / "small.toml"), folder / "runs")
    assert made.train("whole").code == 0
    assert made.train("stopped", "--train.epochs", "3", "--train.max_steps", "5").code == 0
    return made


def tree(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("[!.]*") if path.is_file()}


def events(run: Path) -> list[tuple[str, int, str]]:
    return [(event.kind, event.step, event.note) for event in timeline.read(RunFolder(run).timeline)]


# ---- extend -----------------------------------------------------------------------------------------------------


def test_max_steps_are_the_first_steps_of_the_longer_run(place: Place) -> None:
    stopped = place.runs / "stopped"
    assert story(stopped)[:5] == story(place.whole)[:5]
    assert [record["step"] for record in metrics(stopped)] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in metrics(stopped, "val")] == [3, 5], "it is evaluated where it ends"
    assert events(stopped)[-1] == ("finished", 5, "train.max_steps")


def test_a_finished_run_is_extended_as_if_it_had_had_the_length_from_the_start(place: Place) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / "extended", symlinks=True)
    before, old = tree(run), RunFolder(run).final.read_bytes()
    again = place.run("resume", str(run))
    assert (again.code, "is finished already" in again.said) == (0, True)
    assert tree(run) == before

    longer = place.run("resume", str(run), "--train.epochs", "4", "--train.max_steps", "0")
    assert longer.code == 0, longer.said
    place.assert_is_whole(run)
    assert (run / "final-step-00000005" / "model.safetensors").read_bytes() == old
    summaries = [json.loads(folder.summary.read_text()) for folder in RunFolder(run).evaluation_folders()]
    assert sorted(summary["checkpoint"] for summary in summaries) == ["final", "step-00000005"]
    assert ("extended", 5, "train.epochs 3 -> 4, train.max_steps 5 -> 0") in events(run)
    listed = table([describe(run), describe(place.whole)], place.runs)
    assert "| extended after step 5: train.epochs 3 -> 4, train.max_steps 5 -> 0 |" in listed
    assert "origin" not in table([describe(place.whole)], place.runs)


def test_a_finished_run_with_damaged_results_is_repaired(place: Place) -> None:
    run = shutil.copytree(place.whole, place.runs / "damaged", symlinks=True)
    final = RunFolder(run).final
    final.write_bytes(final.read_bytes()[:-1])
    repaired = place.run("resume", str(run))
    assert repaired.code == 0, repaired.said
    assert f"{final.parent} is damaged (model.safetensors) and is written again" in repaired.said
    place.assert_is_whole(run)


@pytest.mark.parametrize("die_at", [2, 3], ids=["before the final weights are renamed", "before the config is written"])
def test_an_extension_that_is_killed_can_be_repeated(place: Place, die_at: int) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / f"killed-{die_at}", symlinks=True)
    words = ["resume", str(run), "--train.epochs", "4", "--train.max_steps", "0"]
    assert place.run(*words, die_at=die_at).code == -9
    again = place.run(*words)
    assert again.code == 0, again.said
    place.assert_is_whole(run)


@pytest.mark.parametrize(
    ("schedule", "steps", "kept"),
    [
        (ConstantConfig(warmup=1), 99, True),
        (StepConfig(milestones=(1, 2)), 99, True),
        (RestartsConfig(cycle=1), 99, True),
        (RestartsConfig(), 2, False),
        (TriangularConfig(cycle=2, warmup=1), 99, True),
        (WSDConfig(decay=1, warmup=1), 3 * STEPS + 1, True),
        (WSDConfig(decay=1, warmup=1), 3 * STEPS + 2, False),
        *((ScheduleConfig.variants[name](), 2, False) for name in ("onecycle", "cosine", "linear", "polynomial")),
    ],
)
def test_which_schedules_can_be_extended(schedule: ScheduleConfig, steps: int, kept: bool) -> None:
    assert schedule.keeps_rates(steps, steps_per_epoch=STEPS, before=4, after=9) is kept


def test_a_length_that_changes_past_steps_is_refused_with_commands_that_work(place: Place) -> None:
    before = tree(place.whole)
    refused = place.run("resume", str(place.whole), "--train.epochs", "6")
    assert refused.code == 2
    assert (
        'train.epochs 4 -> 6 would change the learning rates of schedule.name = "wsd" in the 12 steps' in refused.said
    )
    assert tree(place.whole) == before
    resume, branch = re.findall(r"cifar-dist (.*?)(?:, or branch it: |\n)", refused.said)
    assert place.run(*shlex.split(resume)).code == 0
    branched = place.run(*shlex.split(branch))
    assert branched.code == 0, branched.said
    assert [record["step"] for record in metrics(place.runs / "whole-2")] == list(range(1, 6 * STEPS + 1))


@pytest.mark.parametrize(
    ("run", "words", "says"),
    [
        ("stopped", ["--train.max_steps", "4"], "after 5 steps, and train.max_steps 5 -> 4 asks for 4; ask for more"),
        ("stopped", ["--train.max_steps", "99"], "is more than the 9 steps of train.epochs 3; drop it, or add"),
        ("stopped", ["--run.name", "it"], "drop --run.name"),
        ("nowhere", [], "run 'nowhere' does not exist"),
    ],
)
def test_runs_that_cannot_be_continued_are_one_line(place: Place, run: str, words: list[str], says: str) -> None:
    before = tree(place.runs / "stopped")
    refused = place.run("resume", str(place.runs / run) if run == "stopped" else run, *words)
    assert (refused.code, refused.said.count("\n")) == (2, 1)
    assert says in refused.said
    assert tree(place.runs / "stopped") == before


# ---- branch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("die_at", [3, 5], ids=["before the metrics are copied", "before the checkpoints are"])
def test_a_branch_without_changes_ends_as_the_original_though_it_is_killed(place: Place, die_at: int) -> None:
    name, words = f"branch-{die_at}", ["--run.from", "whole@8"]
    assert place.train(name, *words, die_at=die_at).code == -9
    done = place.train(name, *words)
    assert done.code == 0, done.said
    place.assert_is_whole(place.runs / name)
    assert [event for event in events(place.runs / name) if event[0] == "branched"] == [
        ("branched", 8, f"{place.whole}@8")
    ]
    assert describe(place.runs / name).result.origin == f"branch of {place.whole}@8"  # type: ignore[union-attr]
    assert not list((place.runs / name).glob(".checkpoints.*")), "a kill leaves nothing"


def test_a_branch_with_changes_starts_from_its_origin_and_no_longer_needs_it(place: Place) -> None:
    origin = shutil.copytree(place.whole, place.runs / "origin", symlinks=True)
    words = ["--run.from", str(origin), "--train.epochs", "5", "--optim.lr", "0.01"]
    assert place.train("changed", *words, "--train.max_steps", "13").code == 0
    shutil.rmtree(origin)
    run = place.runs / "changed"
    assert place.run("resume", str(run), "--train.max_steps", "0").code == 0
    assert story(run)[:12] == story(place.whole)[:12]
    assert [record["lr"] for record in metrics(run)][12:] == [
        0.01,
        pytest.approx(0.01 * 2 / 3),
        pytest.approx(0.01 / 3),
    ]
    certified = place.run("replay", str(run), "--check", "9")
    assert certified.code == 0, certified.said
    assert "steps 13 to 13: numbers equal, weights equal" in certified.said, "the first step after the branch"
    assert not re.search(r"^steps [1-9] to", certified.said, re.M), "the steps before are those of another run"
    refused = place.run("replay", str(run), "12")
    assert (refused.code, refused.said.count("\n")) == (2, 1)
    assert f"{run} is a branch of {origin}@12 and has no checkpoint of its own before step 12; name" in refused.said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["whole@7"], r"has no checkpoint of step 7; steps here: 12, 10, 9, 8"),
        (["whole"], r"step 12 is the end of this run or beyond; give it more --train\.epochs"),
        (
            ["whole@3", "--train.batch_size", "100"],
            r"has 3 steps and one of this run 13; use --train\.batch_size 420, or",
        ),
    ],
)
def test_an_origin_that_cannot_be_used_is_one_line_and_leaves_no_folder(
    place: Place, words: list[str], says: str
) -> None:
    refused = place.train("never", "--run.from", *words)
    assert (refused.code, refused.said.count("\n")) == (2, 1)
    assert re.search(says, refused.said), refused.said
    assert not (place.runs / "never").exists()


# ---- limits -----------------------------------------------------------------------------------------------------

EARLY = ["--train.epochs", "40", "--schedule.name", "constant", "--train.patience", "2", "--train.min_delta", "0.3"]


def test_early_stopping_survives_a_kill_and_can_be_undone(place: Place) -> None:
    assert place.train("early", *EARLY).code == 0
    early = place.runs / "early"
    kind, step, note = events(early)[-1]
    assert (kind, step < 40 * STEPS) == ("finished", True)
    assert note.startswith("early stopping: no better val_accuracy in 2 evaluations, best 0.")
    assert place.train("early-killed", *EARLY, die_at=22).code == -9
    killed = place.runs / "early-killed"
    assert 0 < len(metrics(killed)) < step
    assert place.run("resume", str(killed)).code == 0
    assert story(killed) == story(early)
    assert RunFolder(killed).final.read_bytes() == RunFolder(early).final.read_bytes()
    refused = place.run("resume", str(early), "--train.epochs", "50")
    assert (refused.code, "add --train.patience 3 or more" in refused.said) == (2, True)
    words = ["--train.patience", "0", "--train.min_delta", "0", "--train.max_steps", str(step + 1)]
    assert place.run("resume", str(early), *words).code == 0
    assert len(metrics(early)) == step + 1


@given(
    st.lists(st.tuples(st.floats(0, 9) | st.just(float("nan")), st.floats(0, 1)), max_size=9),
    st.sampled_from(["val_loss", "val_accuracy"]),
    st.floats(0, 0.2),
    st.integers(0, 9),
)
def test_early_stopping_resumes_from_its_records(
    values: list[tuple[float, float]], monitor: str, min_delta: float, cut: int
) -> None:
    config = TrainConfig(patience=2, monitor=monitor, min_delta=min_delta)  # type: ignore[arg-type]
    records = [Record(n + 1, n, "val", loss, accuracy, 10, 0.1) for n, (loss, accuracy) in enumerate(values)]
    whole = EarlyStopping(config, records)
    resumed = EarlyStopping(config, [Record.from_line(record.to_line()) for record in records[:cut]])
    for record in records[cut:]:
        resumed.add(record)
    assert (str(resumed), resumed.is_exhausted()) == (str(whole), whole.is_exhausted())


def test_a_stop_file_and_a_time_limit_stop_a_run_and_say_so(place: Place, tmp_path: Path) -> None:
    run = shutil.copytree(place.runs / "stopped", tmp_path / "elsewhere" / "renamed", symlinks=True)
    words = ["resume", str(run), "--train.epochs", "4", "--train.max_steps", "0"]
    file = RunFolder(run).stop_file
    file.touch()
    os.utime(file, (time.time() + 1e6,) * 2)  # later than the start of the process that reads it
    stopped = place.run(*words)
    assert stopped.code == 75, stopped.said
    assert f": the STOP file\nresume with:\n  cifar-dist resume {run}\n" in stopped.said
    os.utime(file, (0, 0))
    ended = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()))}
    late = place.run("resume", str(run), "--run.max_time", "auto", **ended)
    assert (late.code, f"removed {file}" in late.said) == (75, True)
    assert [note for kind, _, note in events(run) if kind == "interrupted"] == [
        "the STOP file",
        "run.max_time",
    ]
    assert place.run("resume", str(run), "--run.max_time", "").code == 0
    place.assert_is_whole(run)
    assert recipe.read(RunFolder(run).config).run.name == "renamed"


def test_the_file_is_checked_at_most_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, now = tmp_path / "STOP", [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    requests = StopRequests(StopSignals(), file=file)
    assert cause_of(requests.code()) == ""
    file.touch()
    now[0] += 4.9
    assert cause_of(requests.code()) == "", "the file system is not asked at every step"
    now[0] += 0.1
    assert cause_of(requests.code()) == STOP_FILE
    file.unlink()
    assert cause_of(requests.code()) == STOP_FILE, "a request stands"
    assert cause_of(StopRequests(StopSignals(), deadline=time.time()).code()) == TIME_LIMIT


@pytest.mark.parametrize(("limit", "ahead"), [("10m", 30), ("1h30m", GRACE_SECONDS), ("1d", GRACE_SECONDS)])
def test_a_time_limit_leaves_time_to_save(limit: str, ahead: float) -> None:
    from cifar_dist.config.run import seconds_of

    (longer, shorter) = (deadline(text) for text in (limit, "1000s"))
    assert longer is not None
    assert shorter is not None
    assert longer - shorter == pytest.approx(seconds_of(limit) - ahead - (1000 - 50))


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("echo JobId=7 StartTime=2026-01-01T00:00:00 EndTime=2026-01-02T03:04:05 Partition=x", (2026, 1, 2, 3, 4, 5)),
        ("echo JobId=7 EndTime=Unknown", None),
        ("echo slurm_load_jobs error >&2; exit 1", UserError),
    ],
)
def test_the_end_of_a_job_that_slurm_does_not_export_is_queried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, end: object
) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ask: Callable[[], float | None] = lambda: job_end({"SLURM_JOB_ID": "7"})  # noqa: E731
    if end is UserError:
        with pytest.raises(UserError, match="scontrol does not say when job 7 ends"):
            ask()
    else:
        found = ask()
        assert (time.localtime(found)[:6] if found else None) == end
    with pytest.raises(UserError, match="this is not a Slurm job; give a time"):
        job_end({})


# ---- resume -----------------------------------------------------------------------------------------------------


def test_a_deleted_plug_in_is_imported_from_the_run_folder(place: Place, tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def net(classes: int, channels: int):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes))\n"
    )
    assert place.train("plugged", "--model.name", f"{net}:net", "--train.max_steps", "2").code == 0
    net.unlink()
    run = place.runs / "plugged"
    resumed = place.run("resume", str(run), "--train.max_steps", "4")
    assert resumed.code == 0, resumed.said
    assert f"{net} does not exist here; using its copy {run}/plugins/net.py" in resumed.said
    shutil.rmtree(run / "plugins")
    refused = place.run("resume", str(run), "--train.max_steps", "0")
    assert (refused.code, f"file {net} does not exist" in refused.said) == (2, True)
