"""Runs that end when an evaluation no longer gets better."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.continued_runs import STEPS, Place, events
from support.running import metrics, story

from cifar_dist.config import TrainConfig
from cifar_dist.run_folder import RunFolder
from cifar_dist.step_folder import step_name
from cifar_dist.tracking.metrics import Record
from cifar_dist.training.early_stopping import EarlyStopping

EARLY = ["--train.epochs", "40", "--schedule.name", "constant", "--train.patience", "2", "--train.min_delta", "0.3"]


def test_early_stopping_survives_a_kill_and_can_be_undone(place: Place) -> None:
    assert place.train("early", *EARLY).code == 0
    early = place.runs / "early"
    kind, step, note = events(early)[-1]
    assert (kind, step < 40 * STEPS) == ("finished", True)
    assert note.startswith("early stopping: no val_accuracy better by more than 0.3 in 2 evaluations since 0.")
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


def test_a_run_that_ends_early_is_saved_there_and_does_not_continue(place: Place) -> None:
    """Where it is resumed for its final weights alone."""
    words = ["--train.epochs", "40", "--schedule.name", "constant", "--optim.lr", "0.5", "--train.patience", "1"]
    assert place.train("saved", *words, "--checkpoint.every", "100", "--checkpoint.every_steps", "0").code == 0
    run = RunFolder(place.runs / "saved")
    _, step, _ = events(run.path)[-1]
    assert step < 40 * STEPS
    *before, last = (record["accuracy"] for record in metrics(run.path, "val"))
    assert last < max(before), "or it would be saved as the best"
    assert run.newest_checkpoint() == step_name(step)
    whole = run.final.read_bytes()
    run.final.write_bytes(whole[:-1])
    assert place.run("resume", str(run.path)).code == 0
    assert len(metrics(run.path)) == step
    assert run.final.read_bytes() == whole


def test_a_patience_that_has_ended_before_is_refused(place: Place) -> None:
    words = ["--train.epochs", "40", "--schedule.name", "constant", "--train.patience", "9", "--train.min_delta", "0.9"]
    assert place.train("passed", *words, "--checkpoint.every_steps", "1", die_at=60).code == -9
    refused = place.run("resume", str(place.runs / "passed"), "--train.patience", "1")
    assert (refused.code, "would have ended before, by early stopping" in refused.said) == (2, True), refused.said


def test_a_patience_that_has_ended_before_is_refused_though_a_later_evaluation_was_better(place: Place) -> None:
    """A branch is not refused for it, nor its extension: it cannot have ended before it began."""
    words = ["--schedule.name", "constant", "--optim.lr", "0.02"]
    assert place.train("uneven", *words, "--train.epochs", "3").code == 0
    first, second, third = (record["accuracy"] for record in metrics(place.runs / "uneven", "val"))
    assert first <= second < third, "or the test would show nothing"
    early = ["--train.min_delta", f"{(second + third) / 2 - first}", "--train.patience"]
    refused = place.run("resume", str(place.runs / "uneven"), "--train.epochs", "4", *early, "1")
    assert refused.code == 2, refused.said
    assert "would have ended before, by early stopping: no val_accuracy better by more than 0." in refused.said
    assert "; add --train.patience 2 or more, or leave its length" in refused.said
    branch = [*words, *early, "1", "--run.from", "uneven", "--train.epochs", "5"]
    begun = place.train("even", *branch, "--train.max_steps", str(3 * STEPS + 1))
    assert begun.code == 0, begun.said
    longer = place.run("resume", str(place.runs / "even"), "--train.max_steps", str(3 * STEPS + 2))
    assert longer.code == 0, longer.said


NAN = float("nan")


@pytest.mark.parametrize(
    ("monitor", "min_delta", "values", "exhausted"),
    [
        ("val_accuracy", 0.0, [0.5, 0.5, 0.6, 0.6, 0.5], [False, False, False, False, True]),
        ("val_accuracy", 0.1, [0.5, 0.55, 0.65, 0.7, 0.74], [False, False, False, False, True]),
        ("val_loss", 0.0, [1.0, 1.0, 0.9, 0.9, 0.95], [False, False, False, False, True]),
        ("val_loss", 0.1, [1.0, 0.95, 0.89, 0.85, 0.8], [False, False, False, False, True]),
        ("val_loss", 0.0, [NAN, 1.0, NAN, 2.0], [False, False, False, True]),
        ("val_loss", 0.0, [NAN, NAN], [False, True]),
    ],
)
def test_a_run_ends_when_its_patience_has_passed_without_an_improvement(
    monitor: str, min_delta: float, values: list[float], exhausted: list[bool]
) -> None:
    """By more than ``train.min_delta`` over the best before, not over the last."""
    stopping, seen = EarlyStopping(TrainConfig(patience=2, monitor=monitor, min_delta=min_delta)), []  # type: ignore[arg-type]
    for epoch, value in enumerate(values):
        loss, accuracy = (value, epoch / 10) if monitor == "val_loss" else (-epoch, value)
        stopping.add(Record(epoch + 1, epoch, "val", loss, accuracy, 10, 1.0))
        stopping.add(Record(epoch + 1, epoch, "test", -9.0, 9.0, 10, 1.0))
        seen.append(stopping.is_exhausted())
    assert seen == exhausted


def test_the_best_evaluation_is_named_with_its_epoch() -> None:
    records = [Record(n + 1, n, "val", 1.0, accuracy, 10, 0.1) for n, accuracy in enumerate((0.5, 0.75, 0.7, 0.6))]
    stopping = EarlyStopping(TrainConfig(patience=2), records)
    assert str(stopping) == "early stopping: no better val_accuracy in 2 evaluations, best 0.7500 in epoch 2"


@pytest.mark.parametrize(
    ("min_delta", "losses", "says"),
    [
        (0.0, [0.5, 0.25, 0.3], "no better val_loss in 1 evaluation, best 0.2500 in epoch 2"),
        (0.1, [0.5, 0.45], "no val_loss better by more than 0.1 in 1 evaluation since 0.5000 in epoch 1"),
        (0.1, [float("nan")], "no better val_loss in 1 evaluation, never"),
    ],
)
def test_an_evaluation_that_is_better_by_little_is_not_denied(min_delta: float, losses: list[float], says: str) -> None:
    """The last that counted as an improvement need not be the best."""
    records = [Record(n + 1, n, "val", loss, 0.5, 10, 0.1) for n, loss in enumerate(losses)]
    config = TrainConfig(patience=1, monitor="val_loss", min_delta=min_delta)
    assert str(EarlyStopping(config, records)) == f"early stopping: {says}"


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
