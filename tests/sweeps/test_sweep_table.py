"""The table of a sweep: results of run folders, their mean and spread, and missing runs."""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.plug_in_package import NET as PACKAGED_NET
from support.plug_in_package import write_package
from support.run_folders import cells, write_run

from cifar_dist import cli
from cifar_dist.config.tree import to_toml
from cifar_dist.data.pack import pack
from cifar_dist.errors import UserError
from cifar_dist.report.sweep_rows import Compared, draw_comparison
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.kept_plugins import keep_versions
from cifar_dist.sweeps.sweep import Run
from cifar_dist.sweeps.sweep_file import load
from cifar_dist.sweeps.table import Spread, Table
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import MetricsLog
from cifar_dist.tracking.timeline import Event
from cifar_dist.verbs import sweep

SEEDS = 3


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text('model.name = "tiny-cnn"\ntrain = { epochs = 4, batch_size = 10 }')
    Path("lr.toml").write_text(f'recipe = "base.toml"\nseeds = {SEEDS}\ngrid.optim.lr = [0.1, 0.2, 0.3]')
    return "lr.toml"


def write(run: Run, *, epochs: int = 4, val: float | None = None, test: float | None = None) -> Path:
    return write_run(run.folder.path, run.config, epochs=epochs, val=val, test=test)


def test_rows_show_mean_and_sample_deviation_of_what_is_finished(file: str) -> None:
    low, high, unknown = load(file).rows
    for run, val, test in zip(low.runs, (0.80, 0.81, 0.85), (0.90, 0.91, 0.92), strict=True):
        write(run, val=val, test=test)
    write(high.runs[0], val=0.9, test=0.7)
    write(high.runs[1], epochs=2, val=0.1)
    head, _, *lines = cells(Table(load(file)).markdown())
    assert head == ["row", "lr", "parameters", "train %", "val %", "test %", "time", "runs"]
    assert lines[0] == ["lr=0.1", "0.1", "12,345", "50.00 ± 0.00", "82.00 ± 2.65", "91.00 ± 1.00", "2.0 min", "3 of 3"]
    best = ["lr=0.2", "0.2", "12,345", "50.00", "90.00", "70.00", "2.0 min", "1 of 3, epoch 2 of 4"]
    assert lines[1] == [f"**{cell}**" for cell in best], "the best by validation, not by test"
    assert lines[2] == ["lr=0.3", "0.3", "", "", "", "", "", "not run yet"]
    assert unknown.name == "lr=0.3"


def test_an_unfinished_run_that_does_not_train_says_how_it_ended(file: str) -> None:
    run = load(file, seeds=1).rows[0].runs[0]
    write(run, epochs=2, val=0.5)
    shown = []
    for kind in ("started", "interrupted", "failed"):
        timeline.append(run.folder.timeline, Event(timeline.utc(), kind, 0, processes=1))
        shown.append(Table(load(file, seeds=1)).lines[0].runs.removeprefix("0 of 1, "))
    training = RunFolder(run.folder.path)
    training.lock()
    timeline.append(run.folder.timeline, Event(timeline.utc(), "resumed", 0, processes=1))
    shown.append(Table(load(file, seeds=1)).lines[0].runs.removeprefix("0 of 1, "))
    ended = [f"{how} at epoch 2 of 4" for how in ("killed", "stopped", "failed")]
    assert shown == [*ended, "epoch 2 of 4"]


def test_a_run_that_was_started_with_other_settings_is_not_of_its_row(file: str) -> None:
    """As after an edit of a named row."""
    Path(file).write_text('recipe = "base.toml"\nrows = [{ name = "low", optim.lr = 0.1 }]')
    write(load(file).rows[0].runs[0], val=0.8, test=0.9)
    Path(file).write_text('recipe = "base.toml"\nrows = [{ name = "low", optim.lr = 0.3 }]')
    _, _, line = cells(Table(load(file)).markdown())
    assert line[-1] == "0 of 1, 1 with another optim.lr"
    assert not any("80" in cell or "90" in cell for cell in line)


def test_runs_that_do_not_count_for_different_reasons_are_counted_by_reason(file: str) -> None:
    words = ["--eval.tta", "0"]
    runs = load(file, words).rows[0].runs
    for run, now in zip(runs, load(file, [*words, "--train.epochs", "5"]).rows[0].runs, strict=True):
        write(now if run is runs[1] else run, test=0.9)
    assert Table(load(file)).lines[0].runs == "0 of 3, 2 with another eval.tta, 1 with another train.epochs"


def test_a_run_on_other_data_is_not_of_its_row(file: str, digits: Path, tmp_path: Path) -> None:
    words = ["--data.path", str(digits)]
    here, there = load(file, words, 2).rows[0].runs
    write(here, val=0.8, test=0.7)
    write(there, val=0.9, test=0.9)
    shutil.copy(digits / "manifest.json", here.folder.manifest)
    pack("digits", tmp_path / "other", seed=5, codec="npy", show=False)
    shutil.copy(tmp_path / "other" / "manifest.json", there.folder.manifest)
    _, _, line, *_ = cells(Table(load(file, words, 2)).markdown())
    assert line[-1].strip("*") == "1 of 2, 1 with other data"
    assert "**80.00**" in line


def test_a_run_with_another_version_of_a_plug_in_is_not_of_its_row(file: str) -> None:
    Path("net.py").write_text("one")
    Path("mirror.py").write_text("one")
    words = ["--model.name", "./net.py:net", "--tracking.mirrors", '["mirror.py:Mirror"]']
    before, resumed, _ = load(file, words).rows[0].runs
    for run in (before, resumed):
        write(run, val=0.8, test=0.7)
        keep_versions(run.folder.plugins, run.config)

    def progress() -> str:
        return Table(load(file, words)).lines[0].runs

    Path("mirror.py").write_text("other")
    assert progress() == "2 of 3", "no result depends on a mirror"
    Path("net.py").write_text("other")
    assert progress() == "0 of 3, 2 with another net.py"
    keep_versions(resumed.folder.plugins, resumed.config)
    assert progress() == "1 of 3, 1 with another net.py"
    Path("net.py").unlink()
    assert progress() == "2 of 3", "which version the row has is unknown"


def test_a_run_with_another_version_of_a_package_is_not_of_its_row(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = write_package(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    words = ["--model.name", PACKAGED_NET]
    run, *_ = load(file, words).rows[0].runs
    write(run, val=0.8, test=0.7)
    keep_versions(run.folder.plugins, run.config)
    assert Table(load(file, words)).lines[0].runs == "1 of 3"
    write_package(site, activation="Sigmoid")
    assert Table(load(file, words)).lines[0].runs == "0 of 3, 1 with another plugpkg"


def test_a_run_whose_views_went_to_other_images_is_not_of_its_row(file: str) -> None:
    (run,) = load(file, [], 1).rows[0].runs
    write(run, val=0.8, test=0.9)
    evaluation = run.folder.final_evaluation()
    assert evaluation is not None
    words = ["--eval.tta_below", "0.5"]
    assert Table(load(file, words, 1)).lines[0].runs == "1 of 1", "earlier versions did not record it"
    of_all = evaluation.summary.read_text().replace("{", '{"tta_below": 1.0, ', 1)
    evaluation.summary.write_text(of_all)
    assert Table(load(file, words, 1)).lines[0].runs == "0 of 1, 1 with another eval.tta_below"
    evaluation.summary.write_text(of_all.replace("mirror", "0"))
    words += ["--augment.transforms", "[]", "--eval.tta", "8"]
    run.folder.config.write_text(to_toml(load(file, words, 1).rows[0].runs[0].config))
    assert Table(load(file, words, 1)).lines[0].runs == "1 of 1", "all images have one view"


@pytest.mark.parametrize(("transforms", "recorded"), [("[]", "0"), ('[{ name = "flip" }]', "mirror")])
def test_a_run_whose_views_would_repeat_is_of_its_row(file: str, transforms: str, recorded: str) -> None:
    """Its summary has the level with the distinct views."""
    words = ["--augment.transforms", transforms, "--eval.tta", "8"]
    (run,) = load(file, words, 1).rows[0].runs
    write(run, val=0.8, test=0.9)
    evaluation = run.folder.final_evaluation()
    assert evaluation is not None
    evaluation.summary.write_text(evaluation.summary.read_text().replace('"tta": "8"', f'"tta": "{recorded}"'))
    _, _, line, *_ = cells(Table(load(file, words, 1)).markdown())
    assert line[-1].strip("*") == "1 of 1"


def test_without_validation_the_best_is_by_test(file: str) -> None:
    low, high, _ = load(file, seeds=1).rows
    write(low.runs[0], test=0.6)
    write(high.runs[0], test=0.7)
    _, _, first, second, _ = cells(Table(load(file, seeds=1)).markdown())
    assert first[4:6] == ["", "60.00"]
    assert second[4:6] == ["", "**70.00**"]


def best(file: str) -> list[str]:
    return [line.name for line in Table(load(file, seeds=1)).best]


def test_no_validation_accuracy_is_compared_with_a_test_accuracy(file: str) -> None:
    Path(file).write_text('recipe = "base.toml"\ngrid.data.hold_out = [true, false]')
    held_out, all_data = (row.runs[0] for row in load(file).rows)
    folder = write(held_out, val=0.99, test=0.6)
    write(all_data, test=0.7)
    assert best(file) == ["hold_out=false"], "by test"
    shutil.rmtree(folder)
    write(held_out, val=0.6, test=0.8)
    assert best(file) == ["hold_out=true"], "by test"


def test_no_row_is_the_best_on_several_splits(file: str) -> None:
    Path(file).write_text('recipe = "base.toml"\ngrid.eval.split = ["val", "test"]')
    val, test = (row.runs[0] for row in load(file).rows)
    write(val, test=0.9)
    write(test, test=0.8)
    assert best(file) == []
    table = Table(load(file))
    head, _, *lines = cells(table.markdown())
    assert [line[head.index("test %")] for line in lines] == ["90.00 (val)", "80.00"]
    assert [row["eval_split"] for row in csv.DictReader(table.csv().splitlines())] == ["val", "test"]


@pytest.mark.parametrize(("second", "winners"), [(("a", "1"), ["lr=0.2"]), (("b", "1"), []), (("a", "2"), [])])
def test_no_row_is_the_best_on_several_datasets(file: str, second: tuple[str, str], winners: list[str]) -> None:
    low, high, unknown = (row.runs[0] for row in load(file, seeds=1).rows)
    for run, (dataset, fingerprint), val in ((low, ("a", "1"), 0.8), (high, second, 0.9)):
        write_run(run.folder.path, run.config, val=val, test=val, dataset=dataset, fingerprint=fingerprint)
    write_run(unknown.folder.path, unknown.config, epochs=1, dataset="unfinished")
    assert best(file) == winners
    assert ("**" in Table(load(file, seeds=1)).markdown()) == bool(winners)


def test_the_csv_has_the_exact_numbers(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tests = (0.90, 0.91, 0.925)
    for run, test in zip(load(file).rows[0].runs, tests, strict=True):
        write(run, val=0.5, test=test)
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    assert sweep.run(parser.parse_args(["table", file, "--csv", "out.csv"])) == 0
    assert capsys.readouterr().out == Table(load(file)).markdown()
    with open("out.csv", newline="") as text:
        first, *_, last = csv.DictReader(text)
    assert float(first["test_accuracy"]) == statistics.fmean(tests)
    assert float(first["test_accuracy_sd"]) == statistics.stdev(tests)
    assert (first["optim.lr"], first["test_accuracy_n"], first["seconds"]) == ("0.1", "3", "120.0")
    assert (last["test_accuracy"], last["test_accuracy_n"], last["runs"]) == ("", "0", "not run yet")


def test_the_picture_has_a_dot_for_each_run_at_its_accuracy(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sweep", "table", file, "--picture", "none.png"]) == 0, "a sweep that has not begun"
    low, high, _ = load(file).rows
    for run, test in zip(low.runs, (0.40, 0.60, 0.80), strict=True):
        write(run, val=0.5, test=test)
    write(high.runs[0], val=0.9, test=0.7)
    assert cli.run(["sweep", "table", file, "--picture", "some.png"]) == 0
    none, some = (np.asarray(Image.open(name).convert("RGB")) for name in ("none.png", "some.png"))
    orange, blue = (238, 119, 51), (68, 119, 170)

    def places(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.intp]:
        return np.argwhere((np.abs(picture.astype(int) - colour) < 40).all(axis=2))

    assert not len(places(none, orange)) + len(places(none, blue))
    marks = places(some, orange)
    first_row = marks[np.abs(marks[:, 0] - np.median(marks[:, 0])) < 4]
    assert np.ptp(first_row[:, 1]) > 100, "the runs of one row are far apart, and so are their dots"
    capsys.readouterr()
    Path("no").write_text("a file")
    for option in ("--picture", "--csv"):
        with pytest.raises(UserError, match=f"^no/where cannot be written: no is not a folder; use another {option}"):
            cli.run(["sweep", "table", file, option, "no/where"])
        assert capsys.readouterr().out == "", "before the work"


def test_a_picture_of_too_many_rows_is_refused_in_one_line(tmp_path: Path) -> None:
    rows = [Compared(str(number), (), ()) for number in range(1_100)]
    with pytest.raises(UserError, match=r"x\.svg has room for 1,037 rows, and the table has 1,100; use --csv instead"):
        draw_comparison("t", rows, tmp_path / "x.svg")


def test_damaged_folders_give_the_remaining_results_or_one_line(file: str) -> None:
    first, second, third = load(file, seeds=1).rows
    folder = write(first.runs[0], val=0.5, test=0.5)
    (folder / "environment.json").write_text("[" * 100_000)
    next(folder.glob("evaluations/*/summary.json")).write_text(
        '{"checkpoint": "final", "accuracy": "high", "samples": {}}'
    )
    write(second.runs[0], epochs=0)
    _, _, *lines = cells(Table(load(file, seeds=1)).markdown())
    assert lines[0][-1] == "0 of 1, epoch 4 of 4", "it is not evaluated, as far as that can be read"
    assert lines[1][-1] == "0 of 1, epoch 0 of 4"
    (write(third.runs[0]) / "config.toml").write_text("[optim]\nlr = 'fast'\n")
    with pytest.raises(UserError, match=r"lr=0\.3\.s0/config\.toml: optim\.lr"):
        Table(load(file, seeds=1))


def test_a_run_without_its_metrics_or_settings_does_not_count(file: str) -> None:
    first, second, third = load(file, seeds=2).rows
    write(first.runs[0], test=0.5)
    (write(first.runs[1], test=0.5) / "metrics.jsonl").write_text("junk\n")
    (write(second.runs[0]) / "config.toml").unlink()
    torn = write(third.runs[0], val=0.5, test=0.5) / "metrics.jsonl"
    MetricsLog(torn).close()
    torn.write_bytes(b"".join(torn.read_bytes().splitlines(keepends=True)[:4]))
    _, _, *lines = cells(Table(load(file, seeds=2)).markdown())
    assert lines[2][-1] == "0 of 2, 1 with lost metrics"
    assert [line[-1] for line in lines[:2]] == ["**1 of 2, 1 with lost metrics**", "0 of 2, 1 with lost settings"]


@given(st.lists(st.floats(0, 1) | st.none(), max_size=6))
def test_a_spread_covers_the_known_values(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    spread = Spread.of(values)
    if not known:
        assert spread is None
        return
    assert spread is not None
    assert (spread.n, spread.mean) == (len(known), statistics.fmean(known))
    assert spread.deviation == (statistics.stdev(known) if len(known) > 1 else None)
