"""A resume finds each step before its checkpoint once in metrics.jsonl, or reports what is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.recorded import STEPS_PER_EPOCH, train, val, write_metrics

from cifar_dist.errors import UserError
from cifar_dist.tracking.lost_records import describe_lost_evaluations, restore_lost
from cifar_dist.tracking.metrics import Record, read

WHOLE = [*map(train, (1, 2, 3)), val(0), *map(train, (4, 5))]


def restored(path: Path, records: list[Record], step: int = 5) -> str:
    path.unlink(missing_ok=True)
    write_metrics(path, records)
    note = restore_lost(path, step, STEPS_PER_EPOCH, 0.75)
    assert [(one.step, one.epoch) for one in read(path) if one.split == "train"] == [
        (one, (one - 1) // STEPS_PER_EPOCH) for one in range(1, step + 1)
    ]
    return note


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_complete_metrics_stay_as_they_are(path: Path) -> None:
    assert restored(path, WHOLE) == ""
    assert read(path) == WHOLE
    assert restored(path, [], 0) == ""
    assert [entry.name for entry in path.parent.glob("[!.]*")] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ([], "has lost the records of steps 1 to 5; empty ones are in their place"),
        (WHOLE[:2], "has lost the records of steps 3 to 5"),
        (WHOLE[2:], "has lost the records of steps 1 to 2"),
        ([*WHOLE[:2], *WHOLE[3:]], "has lost the record of step 3"),
        ([WHOLE[1], *WHOLE[3:]], "has lost 2 records of steps 1 to 3"),
    ],
)
def test_lost_steps_are_reported_and_get_an_empty_record(path: Path, left: list[Record], says: str) -> None:
    note = restored(path, left)
    assert says in note
    assert [one for one in read(path) if one.samples] == left, "what was left is kept, in order"
    lost = [one for one in read(path) if not one.samples]
    assert all(math.isnan(one.loss) and math.isnan(one.accuracy) and one.seconds == 0 for one in lost)
    assert all(json.loads(line)["loss"] is None for line in path.read_text().splitlines() if '"samples":0' in line)
    aside = path.with_name("metrics.jsonl.damaged")
    assert aside.exists() == bool(left)
    if left:
        assert str(aside) in note
        assert read(aside) == left


def test_the_evaluation_before_a_checkpoint_is_reported_if_it_is_lost(path: Path) -> None:
    steps = [*map(train, range(1, 7))]
    note = restored(path, [*steps[:3], val(0, accuracy=0.5), *steps[3:]], 6)
    assert note == f"{path} has lost the last validation accuracy, 0.75; restore the file if you can"


def test_what_else_is_lost_is_only_what_was_there(path: Path) -> None:
    write_metrics(path, WHOLE)
    assert describe_lost_evaluations(path, 5, [0, 1]) == "", "epoch 1 was not evaluated"
    lines = path.read_bytes().splitlines(keepends=True)
    for kept, says in (
        ([*lines[:3], *lines[4:]], " has lost the evaluation after epoch 1, not counted by train.patience"),
        (lines[1:], ""),  # a step, which is restored
        ([*lines[:5], lines[5][:-9]], ""),
        ([], " has lost the evaluation after epoch 1, "),
    ):
        path.write_bytes(b"".join(kept))
        note = describe_lost_evaluations(path, 5, [0])
        assert (says in note) if says else (note == "")
    for due, says in (([0, 1], "the evaluations after epochs 1 to 2"), ([0, 4], "2 evaluations after epochs 1 to 5")):
        assert f" has lost {says}, not" in describe_lost_evaluations(path, 5, due)
    path.write_bytes(b"x\n" * len(lines))
    assert describe_lost_evaluations(path, 5, [0]) == "", "cutting the file refuses it"


def test_duplicate_steps_and_the_file_of_another_run_are_refused(path: Path) -> None:
    with pytest.raises(UserError, match="has step 2 twice"):
        restored(path, [*WHOLE, train(2)])
    with pytest.raises(UserError, match=r"its last validation accuracy is 0.5, the checkpoint says 0.75; restore it"):
        restored(path, [*WHOLE[:3], val(0, accuracy=0.5), *WHOLE[4:]])
    assert [entry.name for entry in path.parent.glob("[!.]*")] == ["metrics.jsonl"]
