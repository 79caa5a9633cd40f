from __future__ import annotations

import csv
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recorded import final, train, val, write_metrics

from cifar_dist.tracking.metrics import Record, read
from cifar_dist.tracking.table import EpochTable
from cifar_dist.tracking.usage import Usage

COLUMNS = (
    "epoch,step,train_loss,train_accuracy,val_loss,val_accuracy,lr,seconds,images_per_second,test_loss,test_accuracy,"
    "wall_seconds,peak_bytes,utilisation,data_share,copy_share,augmentation_share,forward_share,backward_share,"
    "communication_share,optimizer_share,evaluation_share,checkpoint_share,rest_share"
)
fractions = st.floats(0, 1)


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@st.composite
def runs(draw: st.DrawFn) -> list[Record]:
    """Draw records of some epochs with some evaluations; only the first epoch always has records."""
    records: list[Record] = []
    step = 0
    for epoch in range(draw(st.integers(0, 4))):
        for _ in range(draw(st.integers(0, 4))):
            step += 1
            loss, accuracy, seconds = draw(st.floats(0, 100)), draw(fractions), draw(st.floats(0.001, 100))
            records.append(
                Record(step, epoch, "train", loss, accuracy, draw(st.integers(1, 99)), seconds, draw(fractions))
            )
        for split in draw(st.lists(st.sampled_from(["val", "test"]), max_size=2)):
            records.append(Record(step, epoch, split, draw(st.floats(0, 9)), draw(fractions), 12, 0.5))
    return records


@settings(deadline=None, max_examples=25)
@given(runs(), st.integers(0, 20))
def test_the_csv_agrees_with_the_jsonl(records: list[Record], split_at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        jsonl, path = Path(folder) / "metrics.jsonl", Path(folder) / "metrics.csv"
        write_metrics(jsonl, records)
        table = EpochTable(records[:split_at])
        table.add(records[split_at:])
        table.write(path)
        written = path.read_bytes()
        EpochTable(read(jsonl)).write(path)
        assert path.read_bytes() == written, "kept up to date or read again: the same bytes"

        rows = cells(path)
        assert [int(row["epoch"]) for row in rows] == sorted({r.epoch for r in records})
        for row in rows:
            of_epoch = [r for r in records if r.epoch == int(row["epoch"])]
            steps = [r for r in of_epoch if r.split == "train"]
            evaluations = [r for r in of_epoch if r.split == "val"]
            assert int(row["step"]) == of_epoch[-1].step
            if steps:
                samples = sum(r.samples for r in steps)
                assert float(row["train_loss"]) == pytest.approx(sum(r.loss * r.samples for r in steps) / samples)
                right = sum(r.accuracy * r.samples for r in steps)
                assert float(row["train_accuracy"]) == pytest.approx(right / samples)
                assert float(row["lr"]) == steps[-1].lr
                assert float(row["seconds"]) == pytest.approx(sum(r.seconds for r in steps))
                assert float(row["images_per_second"]) == pytest.approx(samples / float(row["seconds"]))
            else:
                assert row["train_loss"] == row["train_accuracy"] == row["lr"] == row["images_per_second"] == ""
            if evaluations:
                assert float(row["val_loss"]) == evaluations[-1].loss
                assert float(row["val_accuracy"]) == evaluations[-1].accuracy
            else:
                assert row["val_loss"] == row["val_accuracy"] == ""
            finals = [r for r in of_epoch if r.split == "test"]
            assert row["test_accuracy"] == (str(finals[-1].accuracy) if finals else "")


def test_the_exact_bytes_of_a_small_csv(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    evaluated = replace(val(0), usage=Usage(2.0, {"forward": 0.5, "backward": 0.5}, 7, 0.25))
    at_end = replace(final(1), usage=Usage(1.0, {"evaluation": 1.0}, 9))
    EpochTable([train(1), train(2, loss=2.5), train(3), evaluated, train(4, samples=5), at_end]).write(path)
    assert path.read_text() == (
        f"{COLUMNS}\n"
        f"0,3,{5.5 / 3},0.5,0.5,0.75,0.1,0.75,40.0,,,2.0,7,0.25,0.0,0.0,0.0,0.5,0.5,0.0,0.0,0.0,0.0,0.0\n"
        "1,6,1.5,0.5,,,0.1,0.25,20.0,0.25,0.875,1.0,9,,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0\n"
    )  # fmt: skip


def test_averages_are_weighted_by_batch_size() -> None:
    table = EpochTable([train(1, loss=1.0, samples=30), train(2, loss=5.0, samples=10)])
    assert table.row(0).train_loss == 2.0


def test_a_loss_that_is_not_finite_is_an_empty_cell_and_hides_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    EpochTable([train(1, loss=math.nan), train(2), train(4)]).write(path)
    first, second = cells(path)
    assert (first["train_loss"], first["train_accuracy"], second["train_loss"]) == ("", "0.5", "1.5")


def test_a_run_without_records_has_a_header(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    EpochTable().write(path)
    assert path.read_text() == COLUMNS + "\n"


def test_an_epoch_without_records_has_no_row() -> None:
    with pytest.raises(KeyError):
        EpochTable([train(1)]).row(1)


def test_a_lost_step_takes_nothing_from_the_figures_of_its_epoch() -> None:
    lost = Record(2, 0, "train", math.nan, math.nan, 0, 0.0)
    (row,) = EpochTable([train(1), lost]).rows()
    (without,) = EpochTable([train(1)]).rows()
    assert row == replace(without, step=2)
