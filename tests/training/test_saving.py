"""Checkpoints written by a background thread: what is visible when, and what a kill at any moment leaves."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import TypeVar

import pytest
import torch
from support.continued_runs import Place
from support.crashing import every_death
from support.failing_network import write_network
from support.many_ranks import run_on_ranks
from support.running import PATIENCE, wait_until
from support.small_checkpoint import dealt, holds, names, state, tensors, weights
from torch import Tensor

from cifar_dist import checkpoint
from cifar_dist.checkpoint import Tensors
from cifar_dist.config import CheckpointConfig
from cifar_dist.distributed.host_copies import Deal
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import StorageError
from cifar_dist.run_folder import RunFolder
from cifar_dist.step_folder import step_name
from cifar_dist.tracking import metrics
from cifar_dist.tracking.metrics import MetricsLog, Record
from cifar_dist.tracking.tracker import SilentTracker
from cifar_dist.training.checkpoint_writers import CheckpointWriter, GatheringWriter, ShardingWriter
from cifar_dist.training.saving import CheckpointSaver

NUMBERS = count()
T = TypeVar("T")


class Metrics(SilentTracker):
    """A tracker that keeps its metrics and the messages about checkpoints."""

    def __init__(self, path: Path) -> None:
        self.log = MetricsLog(path)
        self.saved: list[int] = []
        self.warnings: list[str] = []

    def sync(self) -> None:
        self.log.sync()

    def checkpoint(self, step: int, path: Path) -> None:
        self.saved.append(step)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class OpeningRanks(Ranks):
    """One process, which opens a gate when it begins to wait for its write."""

    def __init__(self, gate: Event) -> None:
        super().__init__(0, 1, torch.device("cpu"), first_of_node=True)
        self.gate = gate

    def run_on_main(self, work: Callable[[], T]) -> T:
        self.gate.set()
        return super().run_on_main(work)


class Announcing(Mapping[str, Tensor]):
    """Tensors that call ``before`` as soon as they are read."""

    def __init__(self, before: Callable[[], object], values: Mapping[str, Tensor]) -> None:
        self._before, self._values = before, values

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        self._before()
        return iter(self._values)


def saver_in(
    run: Path,
    gate: Event | None = None,
    ranks: Ranks | None = None,
    writer: type[CheckpointWriter] = GatheringWriter,
    retry: int = 2,
) -> tuple[CheckpointSaver, Metrics]:
    tracker, config = Metrics(run / "metrics.jsonl"), CheckpointConfig(keep=1)
    saver = CheckpointSaver(
        run / "checkpoints",
        config,
        ranks or OpeningRanks(gate or Event()),
        tracker,
        checkpoint.NEW_RUN,
        writer=writer,
        retry=retry,
        longest_retry=8,
        last_step=32,
    )
    return saver, tracker


def record(step: int) -> Record:
    return Record(step, 0, "train", loss=1.0, accuracy=0.5, samples=10, seconds=0.1, lr=0.1)


def contents(step: int) -> Tensors:
    """A checkpoint without averages, which has half as many files, and moments at which to die."""
    return replace(tensors(step), averaged=None)


def train(run: Path, first: int, last: int, ranks: Ranks | None = None) -> None:
    """Save every second step, in parts if there are several ranks, of which the first has the metrics."""
    saver, tracker = saver_in(run, ranks=ranks, writer=ShardingWriter if ranks else GatheringWriter)
    for step in range(first, last + 1):
        if ranks is None or ranks.is_main:
            tracker.log.append([record(step)])
        if step % 2 == 0:
            saver.save(lambda deal: dealt(contents(step), deal), state(step, best=step == 4), must=False)  # noqa: B023
    saver.wait(last)


def train_on_two(run: Path, first: int, last: int) -> None:
    run_on_ranks(2, lambda ranks: train(run, first, last, ranks))


@pytest.mark.parametrize("train", [train, train_on_two], ids=["by one process", "in parts"])
def test_a_death_at_any_write_leaves_the_old_checkpoint_or_the_new_with_its_metrics(
    tmp_path: Path, train: Callable[[Path, int, int], None]
) -> None:
    """The training thread writes the metrics of the next step meanwhile. The kill includes a loss of power."""
    before = tmp_path / "before"
    before.mkdir()

    train(before, 1, 3)

    def prepare() -> Path:
        return Path(shutil.copytree(before, tmp_path / f"case-{next(NUMBERS)}", symlinks=True))

    seen = set()
    for run in every_death(prepare, lambda run: train(run, 4, 5), power_loss=True):
        chosen, notes = checkpoint.choose(run / "checkpoints")
        assert chosen is not None
        assert not notes, "nothing half-written ever has a checkpoint's name"
        step = checkpoint.read_state(chosen).step
        assert holds(chosen, step, contents(step))
        assert [found.step for found in metrics.read(run / "metrics.jsonl")][:step] == list(range(1, step + 1))
        seen.add(step)
        shutil.rmtree(run)
    assert seen == {2, 4}


def test_training_continues_during_a_write_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    gate = Event()
    saver, tracker = saver_in(tmp_path, gate)
    first = replace(tensors(2), weights=Announcing(gate.wait, tensors(2).weights))
    saver.save(lambda _: first, state(2), must=False)
    assert not (tmp_path / "checkpoints" / "step-00000002").exists(), "the call returned before the write"
    assert tracker.saved == []

    def copy(_deal: Deal) -> Tensors:
        assert holds(tmp_path / "checkpoints" / "step-00000002", 2), "so two copies never exist at once"
        assert tracker.saved == [2]
        return tensors(4)

    saver.save(copy, state(4, best=True), must=True)
    assert tracker.saved == [2, 4]
    assert names(tmp_path / "checkpoints") == ["best", "latest", "step-00000004"]
    saver.save(lambda _: pytest.fail("it is saved already"), state(4), must=True)


def test_a_write_is_reported_once_it_has_ended_and_no_step_waits_for_it(tmp_path: Path) -> None:
    gate = Event()
    saver, tracker = saver_in(tmp_path, ranks=Ranks(0, 1, torch.device("cpu"), first_of_node=True))
    slow = replace(tensors(2), weights=Announcing(lambda: gate.wait(PATIENCE), tensors(2).weights))
    saver.save(lambda _: slow, state(2), must=False)
    saver.poll(3)
    assert tracker.saved == []
    gate.set()

    def is_reported() -> bool:
        saver.poll(4)
        return tracker.saved == [2]

    wait_until(is_reported, [])


LATE = """
import os, threading
from torch import nn

fsync, evaluated_again = os.fsync, threading.Event()


def late(file):
    if threading.current_thread() is not threading.main_thread():
        evaluated_again.wait(300)
    fsync(file)


os.fsync = late


class Net(nn.Linear):
    evaluations = 0

    def __init__(self, classes, channels):
        super().__init__(32 * 32 * channels, classes)

    def forward(self, images):
        logits = super().forward(images.flatten(1))
        if self.training:
            return logits
        self.evaluations += 1
        if self.evaluations == 1:
            return logits
        evaluated_again.set()
        return -logits
"""


def test_an_accuracy_is_compared_with_that_of_the_checkpoint_under_way(place: Place, tmp_path: Path) -> None:
    """The first checkpoint is not complete before the network, worse by then, is evaluated again."""
    (tmp_path / "late.py").write_text(LATE)
    words = ["--model.name", f"{tmp_path}/late.py:Net", "--train.epochs", "2", "--checkpoint.every_steps", "0"]
    done = place.train("late", *words)
    assert done.code == 0, done.said
    run = RunFolder(place.runs / "late")
    first, second = metrics.evaluations(run.metrics)
    assert first.accuracy > second.accuracy
    best = checkpoint.best(run.checkpoints)
    assert best is not None
    assert best.name == step_name(first.step)


def test_a_checkpoint_within_an_epoch_has_the_records_of_its_steps(place: Place, tmp_path: Path) -> None:
    """Which are written more seldom than checkpoints here."""
    network = write_network(tmp_path / "net.py", "os._exit(9)", step=5, inputs="32 * 32 * channels")
    words = ["--tracking.every", "100", "--checkpoint.background", "false", "--model.name", network]
    assert place.train("seldom", *words).code == -9
    run = RunFolder(place.runs / "seldom")
    assert run.newest_checkpoint() == step_name(4)
    assert [found.step for found in metrics.read(run.metrics) if found.split == "train"] == [1, 2, 3, 4]


@pytest.mark.parametrize(("writer", "slow"), [(GatheringWriter, 0), (ShardingWriter, 1)])
def test_ranks_that_ask_whether_a_write_has_ended_do_not_wait_for_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: type[CheckpointWriter], slow: int
) -> None:
    """On GPUs they would wait for all work that these have been given."""
    gate = Event()

    def save(ranks: Ranks) -> list[int]:
        saver, tracker = saver_in(tmp_path, ranks=ranks, writer=writer)
        mine = dealt(tensors(2), Deal(ranks.rank, 2 if writer is ShardingWriter else 1))
        if ranks.rank == slow:
            mine = replace(mine, weights=Announcing(gate.wait, mine.weights))
        saver.save(lambda _: mine, state(2), must=False)
        with monkeypatch.context() as patch:
            for name in ("run_on_main", "gather_objects"):
                patch.setattr(ranks, name, lambda *_: pytest.fail("the answer is waited for"))
            for _ in range(3):
                saver.poll(3)
        assert tracker.saved == []
        if ranks.rank == slow:
            gate.set()
        wait_until(lambda: not saver._writer.is_writing(), [])
        ranks.gather_objects(None)
        saver.poll(4)
        assert tracker.saved == [], "each call acts on the answers to the one before"
        saver.poll(5)
        return tracker.saved

    saved, _ = run_on_ranks(2, save)
    assert saved == {0: [2], 1: [2]}


def test_an_old_checkpoint_that_cannot_be_deleted_is_reported_and_the_new_one_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, keep: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "step-00000001"))

    monkeypatch.setattr(checkpoint, "prune", fail)
    saver, tracker = saver_in(tmp_path)
    saver.save(lambda _: tensors(2), state(2), must=True)
    assert tracker.saved == [2]
    old = tmp_path / "checkpoints" / "step-00000001"
    assert tracker.warnings == [f"an old checkpoint cannot be deleted: {old}: Permission denied"]


def test_a_failed_write_is_reported_at_the_next_save_and_retried(tmp_path: Path) -> None:
    saver, tracker = saver_in(tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    saver.save(lambda _: tensors(2), state(2, best=True), must=False)
    saver.wait(7)
    without = saver.best
    assert without is None, "an accuracy without a checkpoint"
    (warning,) = tracker.warnings
    assert "the checkpoint of step 2 could not be saved: " in warning
    assert "training continues, and saves again after step 8 or at its end, at the latest" in warning
    assert [saver.is_due(step) for step in (7, 8)] == [False, True]
    (tmp_path / "checkpoints").unlink()
    saver.save(lambda _: tensors(8), state(8, best=True), must=False)
    saver.wait(9)
    assert saver.best == 0.5
    assert not saver.is_due(10)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("in the way again")
    saver.save(lambda _: tensors(20), state(20), must=False)
    saver.wait(20)
    assert [saver.is_due(step) for step in (21, 22)] == [False, True], "the disk was not full in between"


def test_each_further_attempt_comes_after_twice_the_steps_and_the_last_one_must_succeed(tmp_path: Path) -> None:
    saver, tracker = saver_in(tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    for step, again in ((10, 12), (12, 16), (16, 24), (24, 32)):
        saver.save(lambda _: tensors(step), state(step), must=False)  # noqa: B023 - it is called here
        saver.wait(step)
        assert [due for due in range(step, again + 1) if saver.is_due(due)] == [again]
    assert tracker.warnings[-1].endswith("; training continues, and saves again at its end")
    saver.save(lambda _: tensors(24), state(24), must=False)
    saver.wait(25, then="training ends here")
    assert tracker.warnings[-1].endswith("; training ends here")
    saver.save(lambda _: tensors(32), state(32), must=False)
    saver.wait(32)
    assert tracker.warnings[-1].endswith("; one more attempt follows")
    with pytest.raises(StorageError, match="checkpoints"):
        saver.save(lambda _: tensors(32), state(32), must=True)


def test_the_first_further_attempt_comes_within_the_longest_wait(tmp_path: Path) -> None:
    """An epoch may have fewer steps than ``tracking.every``."""
    saver, _ = saver_in(tmp_path, retry=50)
    (tmp_path / "checkpoints").write_text("in the way")
    saver.save(lambda _: tensors(2), state(2), must=False)
    saver.wait(2)
    assert [saver.is_due(step) for step in (9, 10)] == [False, True]


@pytest.mark.parametrize("writer", [GatheringWriter, ShardingWriter])
def test_a_job_that_fails_completes_the_write_under_way(tmp_path: Path, writer: type[CheckpointWriter]) -> None:
    saver, tracker = saver_in(tmp_path, ranks=Ranks(0, 1, torch.device("cpu"), first_of_node=True), writer=writer)
    saver.save(lambda _: tensors(2), state(2), must=False)
    saver.close()
    assert tracker.saved == [2]
    assert holds(tmp_path / "checkpoints" / "step-00000002", 2)


def test_a_part_that_cannot_be_written_fails_on_all_ranks_and_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def obstruct() -> None:
        """Put a folder where the file would be."""
        (unfinished,) = folder.glob(".step-*.tmp")
        (unfinished / "weights-2-of-2.safetensors").mkdir()

    def save(ranks: Ranks) -> list[str]:
        saver, tracker = saver_in(tmp_path, ranks=ranks, writer=ShardingWriter)
        mine = tensors(2) if ranks.is_main else replace(tensors(2), weights=Announcing(obstruct, weights(2)))
        saver.save(lambda _: mine, state(2), must=False)
        saver.wait(7)
        assert [saver.is_due(step) for step in (7, 8)] == [False, True]
        assert not ranks.run_on_main(lambda: names(folder)), "nothing half-written remains"
        saver.save(lambda deal: dealt(tensors(8), deal), state(8), must=True)
        return tracker.warnings

    warnings, _ = run_on_ranks(2, save)
    assert all("the checkpoint of step 2 could not be saved: " in warning for (warning,) in warnings.values())
    assert all("weights-2-of-2.safetensors: Is a directory; training" in warning for (warning,) in warnings.values())
    assert holds(folder / "step-00000008", 8)


def test_a_job_that_fails_while_parts_are_written_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """The failed rank 0 cannot ask the others any more."""
    closed = Event()

    def save(ranks: Ranks) -> list[str]:
        saver, tracker = saver_in(tmp_path, ranks=ranks, writer=ShardingWriter)
        saver.save(lambda deal: dealt(tensors(2), deal), state(2), must=True)
        mine = dealt(tensors(4), Deal(ranks.rank, 2))
        if not ranks.is_main:
            mine = replace(mine, weights=Announcing(closed.wait, mine.weights))
        saver.save(lambda _: mine, state(4), must=False)
        saver.close()
        if ranks.is_main:
            closed.set()
        return tracker.warnings

    warnings, _ = run_on_ranks(2, save)
    assert warnings == {
        0: ["the checkpoint of step 4 could not be saved: other processes had not reported their parts yet"],
        1: [],
    }
    assert names(tmp_path / "checkpoints") == ["latest", "step-00000002"]
