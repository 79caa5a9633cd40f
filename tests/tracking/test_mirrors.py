"""Trackers from outside: each follows the run folder, and none can stop or fail a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.recorded import FACTS, train, val
from support.running import PATIENCE, metrics, spawn, wait_until
from support.running import train as run_training

from cifar_dist.config import Config, TrackingConfig
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics as metrics_file
from cifar_dist.tracking import mirrors
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.mirror import Mirror
from cifar_dist.tracking.mirror_thread import MirrorThread
from cifar_dist.tracking.mirrors import wanted_mirrors
from cifar_dist.tracking.timeline import Status
from cifar_dist.tracking.tracker import Tracker

MIRROR = """
import json, os, threading

class Lines:
    '''Writes what it is given as lines of a file, and raises or hangs where the environment says so.'''

    def __init__(self, folder, config, facts):
        self.path = folder / "lines.jsonl"
        self.write("init", config.run.name, facts.parameters)

    def start(self, history):
        self.write("start", [record.step for record in history])

    def train_steps(self, records):
        self.write("train_steps", [record.step for record in records])

    def evaluation(self, record, best):
        self.write("evaluation", record.split, best)

    def close(self, status):
        self.write("close", status)

    def write(self, what, *values):
        with self.path.open("a") as file:
            file.write(json.dumps([what, *values]) + "\\n")
        if what == os.environ.get("MIRROR_HANGS"):
            threading.Event().wait()
        if what == os.environ.get("MIRROR_RAISES"):
            raise {"evaluation": SystemExit, "start": KeyboardInterrupt}.get(what, RuntimeError)("it\\nraises")


NOTHING_TO_CALL = 3

class ByFolder(Lines):
    def __init__(self, folder): ...

class WithoutBest(Lines):
    def evaluation(self, record): ...

class Unfinished:
    def __init__(self, folder, config, facts): ...
    def start(self, history): ...

class Forwards:
    def __init__(self, folder, config, facts, project="mine"): ...
    def __getattr__(self, name): ...

def of_folder(folder): ...
"""


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MIRROR)
    return f"{tmp_path / 'mine.py'}:Lines"


def whole_run(folder: Path, mirror: str) -> list[list[object]]:
    """Run two attempts of four steps; return what the mirror received."""
    config = Config(tracking=TrackingConfig(mirrors=(mirror,)))
    attempts: list[tuple[int, Status]] = [(1, "interrupted"), (4, "finished")]
    for first, status in attempts:
        step, makers = first - 1, wanted_mirrors(config.tracking)
        tracker = Tracker(RunFolder(folder), config, facts=FACTS, resume_step=step, mirrors=makers)
        tracker.train_steps([train(step) for step in range(first, 4)] or [train(4)])
        if first == 1:
            tracker.evaluation(val(0), best=True)
        tracker.finish(status)
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_a_mirror_follows_the_run(tmp_path: Path, mirror: str) -> None:
    (tmp_path / "run").mkdir()
    assert whole_run(tmp_path / "run", mirror) == [
        ["init", "", 1234],
        ["start", []],
        ["train_steps", [1, 2, 3]],
        ["evaluation", "val", True],
        ["close", "interrupted"],
        ["init", "", 1234],
        ["start", [1, 2, 3, 3]],
        ["train_steps", [4]],
        ["close", "finished"],
    ]
    assert "warning" not in (tmp_path / "run" / "training.log").read_text()


@pytest.mark.parametrize("method", ["init", "start", "train_steps", "evaluation", "close"])
def test_a_mirror_that_raises_is_dropped_with_one_warning(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("MIRROR_RAISES", method)
    (tmp_path / "run").mkdir()
    given = whole_run(tmp_path / "run", mirror)
    # After the method that raised, only close(None) is called, once.
    wanted = {
        "init": ["init"] * 2,
        "start": ["init", "start", "close"] * 2,
        "train_steps": ["init", "start", "train_steps", "close"] * 2,
        "evaluation": ["init", "start", "train_steps", "evaluation", "close", "init", "start", "train_steps", "close"],
        "close": [
            *("init", "start", "train_steps", "evaluation", "close", "close"),
            *("init", "start", "train_steps", "close", "close"),
        ],
    }
    assert [what for what, *_ in given] == wanted[method]
    log = " ".join((tmp_path / "run" / "training.log").read_text().split())
    line = 1 + MIRROR[: MIRROR.index("raise {")].count("\n")
    kind = {"evaluation": "SystemExit", "start": "KeyboardInterrupt"}.get(method, "RuntimeError")
    said = f"mine.py, line {line}, raised {kind}: it; the run continues without it, metrics.jsonl is complete"
    assert log.count(said) == (1 if method == "evaluation" else 2), log
    assert [record.step for record in metrics_file.read(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 3, 4]


@pytest.mark.parametrize("method", ["start", "train_steps", "close"])
def test_a_mirror_that_hangs_holds_up_nothing_and_is_given_up(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(mirrors, "_SILENCE", 0.05)
    monkeypatch.setattr(mirrors, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(mirrors, "time", SimpleNamespace(monotonic=lambda: 0.0))  # time is left, however late it is
    monkeypatch.setenv("MIRROR_HANGS", method)
    ask, lines = MirrorThread.ask, tmp_path / "run" / "lines.jsonl"

    def hangs() -> bool:
        called = lines.read_text()
        return called.count(f'["{method}"') == called.count('["init"')

    def ask_and_wait(thread: MirrorThread, what: str, call: Callable[[Mirror], None]) -> None:
        ask(thread, what, call)
        if what == "finish":
            wait_until(hangs, [])

    monkeypatch.setattr(MirrorThread, "ask", ask_and_wait)
    lines.parent.mkdir()
    given = whole_run(tmp_path / "run", mirror)
    assert [what for what, *_ in given].count(method) == 2, "once in each attempt"
    log = (tmp_path / "run" / "training.log").read_text()
    assert log.count("Lines, at most 0 s") == 2
    assert log.count("Lines could not finish within 0 s; the run continues without it") == 2
    assert [record.step for record in metrics_file.read(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 3, 4]


def test_a_mirror_that_hangs_during_training_is_dropped_with_one_warning(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_PATIENCE", 0.0)
    monkeypatch.setenv("MIRROR_HANGS", "start")
    config = Config(tracking=TrackingConfig(mirrors=(mirror,)))
    makers = wanted_mirrors(config.tracking)
    tracker = Tracker(RunFolder(tmp_path), config, facts=FACTS, resume_step=0, mirrors=makers)
    wait_until(lambda: "start" in (tmp_path / "lines.jsonl").read_text(), [])
    for step in (1, 2, 3):
        tracker.train_steps([train(step)])
    tracker.finish("finished")
    log = (tmp_path / "training.log").read_text()
    assert log.count("Lines could not start: no answer for 0 s; the run continues without it") == 1
    assert "waiting for" not in log


class Busy:
    """A mirror that is busy with its start until it is ``free``, and keeps the steps of its calls."""

    def __init__(self) -> None:
        self.free, self.calls = threading.Event(), list[list[int] | str]()

    def start(self, history: Sequence[Record]) -> None:
        self.free.wait()

    def train_steps(self, records: Sequence[Record]) -> None:
        self.calls.append([record.step for record in records])

    def evaluation(self, record: Record, best: bool) -> None:
        self.calls.append(record.split)

    def close(self, status: Status | None) -> None:
        self.calls.append(str(status))


def test_a_mirror_receives_what_gathered_while_it_was_busy_in_few_calls() -> None:
    busy = Busy()
    thread = MirrorThread(busy)
    thread.ask("start", lambda mirror: mirror.start([]))
    for step in range(1, 701):
        thread.ask_to_record([train(step)])
        if step == 300:
            thread.ask("record an evaluation", lambda mirror: mirror.evaluation(val(0), True))
    thread.ask("finish", lambda mirror: mirror.close("finished"))
    busy.free.set()
    assert thread.end(PATIENCE)
    given = [[*range(1, 257)], [*range(257, 301)], "val", [*range(301, 557)], [*range(557, 701)], "finished"]
    assert busy.calls == given


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("{folder}/mine.py:Nothing", "has no 'Nothing'"),
        ("{folder}/mine.py:NOTHING_TO_CALL", "is not callable; name a class that implements Mirror"),
        ("{folder}/mine.py:ByFolder", r"ByFolder is .* arguments; write it as ByFolder\(folder, config, facts\)$"),
        ("{folder}/mine.py:of_folder", r"; write it as of_folder\(folder, config, facts\)$"),
        (
            "{folder}/mine.py:WithoutBest",
            r"WithoutBest.evaluation\(self, record\) is .* arguments; write evaluation\(self, record, best\)$",
        ),
        ("{folder}/mine.py:Unfinished", r"Unfinished does not define train_steps\(self, records\)$"),
        ("{folder}/yours.py:Lines", "yours.py does not exist"),
        ("no_such_package.module:Lines", "module no_such_package.module is not installed"),
        ("wandb", "must be path/to/file.py:Attribute or package.module:Attribute"),
    ],
)
def test_a_mirror_that_cannot_be_imported_is_one_line(tmp_path: Path, mirror: str, spec: str, says: str) -> None:
    spec = spec.format(folder=tmp_path)
    with pytest.raises(UserError, match=f"^tracking.mirrors: .*{says}") as caught:
        wanted_mirrors(TrackingConfig(mirrors=(spec,)))
    assert "\n" not in str(caught.value)


def test_a_mirror_may_forward_its_methods(tmp_path: Path, mirror: str) -> None:
    spec = mirror.replace("Lines", "Forwards")
    assert spec in wanted_mirrors(TrackingConfig(mirrors=(spec,)))


def test_on_two_processes_only_rank_0_has_the_mirror(tiny: Path, tmp_path: Path, mirror: str) -> None:
    words = [str(tiny), "--train.epochs", "1", "--tracking.mirrors", json.dumps([mirror])]
    done = run_training(*words, processes=2)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    run = tmp_path / "runs" / "tiny"
    given = [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]
    assert [what for what, *_ in given].count("init") == 1
    assert [step for what, *values in given if what == "train_steps" for step in values[0]] == [
        record["step"] for record in metrics(run)
    ]
    assert given[-1] == ["close", "finished"]


def test_a_wrong_mirror_ends_all_processes_before_a_run_is_created(tiny: Path, tmp_path: Path) -> None:
    words = ["train.py", str(tiny), "--tracking.mirrors", json.dumps([f"{tmp_path}/nowhere.py:Lines"])]
    done = spawn(words, processes=2)
    assert [process.returncode for process in done] == [2, 2], done[0].stderr
    assert "tracking.mirrors: " in done[0].stderr
    assert not (tmp_path / "runs").exists()
