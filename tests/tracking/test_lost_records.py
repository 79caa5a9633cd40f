"""A resume finds each step before its checkpoint once in metrics.jsonl, or reports what is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.recorded import STEPS_PER_EPOCH, train, val, write_metrics

from cifar_dist.errors import UserError
from cifar_dist.tracking.lost_records import restore_lost
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


def test_duplicate_steps_and_the_file_of_another_run_are_refused(path: Path) -> None:
    with pytest.raises(UserError, match="has step 2 twice"):
        restored(path, [*WHOLE, train(2)])
    with pytest.raises(UserError, match=r"its last validation accuracy is 0.5, the checkpoint says 0.75; restore it"):
        restored(path, [*WHOLE[:3], val(0, accuracy=0.5), *WHOLE[4:]])
    assert [entry.name for entry in path.parent.glob("[!.]*")] == ["metrics.jsonl"]
