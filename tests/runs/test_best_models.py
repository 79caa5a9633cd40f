"""The best models of runs: intact, ranked by dataset, collected in a folder."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from support import small_checkpoint
from support.run_folders import cells, write_run
from support.without_rights import public_folder, without_rights

from cifar_dist import cli
from cifar_dist.config import Config, ModelConfig, TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.files.checksums import write_sums
from cifar_dist.run_folder import RunFolder
from cifar_dist.runs.best_models import best_models, collect
from cifar_dist.runs.listing import describe, find_runs

CONFIG = Config(model=ModelConfig("tiny-cnn"), train=TrainConfig(epochs=4))


def test_the_best_models_of_an_earlier_version_are_replaced(here: Path) -> None:
    """Its table had no column for the split."""
    write_sums(write_run(here / "runs" / "a", CONFIG, test=0.5) / "final")
    assert cli.run(["runs", "best"]) == 0
    models = here / "best-models" / "models.csv"
    written = models.read_text()
    models.write_text("".join(line.rpartition(",")[0] + "\n" for line in written.splitlines()))
    assert cli.run(["runs", "best"]) == 0
    assert models.read_text() == written


def test_the_best_models_name_what_is_damaged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        run = write_run(here / "runs" / name, CONFIG, val=0.5, test=0.5)
        write_sums(run / "final")
    (here / "runs" / "b" / "final" / "model.safetensors").write_bytes(b"other")
    (here / "runs" / "c" / "config.toml").write_text("junk")
    assert cli.run(["runs", "best"]) == 0
    out, err = capsys.readouterr()
    assert [line[0] for line in cells(out)[2:3]] == ["runs/a"]
    assert "weights of 1 run:" in out
    b, c = err.splitlines()
    assert b.startswith("warning: runs/b is left out: runs/b/final/model.safetensors is damaged; cifar-dist checkpoint")
    assert c.startswith("warning: runs/c is left out: runs/c/config.toml")


def test_the_best_models_of_each_dataset_are_ranked_on_their_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, dataset, test in [("a", "digits", 0.9), ("b", "cifar10", 0.7), ("c", "cifar10", 0.8)]:
        write_sums(write_run(here / "runs" / name, CONFIG, dataset=dataset, test=test) / "final")
    assert cli.run(["runs", "best", "--top", "1"]) == 0
    head, _, *rows = cells(capsys.readouterr().out)
    assert head == ["data", "run", "checkpoint", "val %", "test %"]
    best = [["cifar10", "runs/c"], ["digits", "runs/a"]]
    assert [row[:2] for row in rows[:2]] == best
    with (here / "best-models" / "models.csv").open(newline="") as table:
        assert [[row["dataset"], row["run"]] for row in csv.DictReader(table)] == best


def test_the_best_models_by_validation_and_by_test_are_ranked_on_their_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test accuracy of a run without a validation split is not higher than the validation accuracy of another."""
    for name, val, test in [("a", 0.5, 0.6), ("b", 0.7, 0.6), ("c", None, 0.9), ("d", None, 0.8)]:
        write_sums(write_run(here / "runs" / name, CONFIG, val=val, test=test) / "final")
    for top, names in (([], "bacd"), (["--top", "1"], "bc")):
        assert cli.run(["runs", "best", *top]) == 0
        rows = cells(capsys.readouterr().out)[2 : 2 + len(names)]
        assert [row[0] for row in rows] == [f"runs/{name}" for name in names]


def test_a_run_without_any_intact_weights_is_left_out_of_the_best_models(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(here / "runs" / "a", CONFIG)
    saved = small_checkpoint.save(run / "checkpoints", 4, best=True)
    assert cli.run(["runs", "best"]) == 0
    assert [line[:2] for line in cells(capsys.readouterr().out)[2:3]] == [["runs/a", "step-00000004"]]
    (saved / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"^no run has weights that can be used; repair one of those above"):
        cli.run(["runs", "best"])
    said = capsys.readouterr().err
    assert said.startswith("warning: runs/a is left out: runs/a/checkpoints/step-00000004: weights.safetensors has ")
    assert said.endswith(" bytes; cifar-dist checkpoint verify runs/a\n"), "and no step that this command could take"


def test_a_run_that_cannot_be_read_is_left_out_of_the_best_models() -> None:
    with public_folder() as runs:
        for name in "ab":
            small_checkpoint.save(write_run(runs / name, CONFIG) / "checkpoints", 4, best=True)
        entries, warnings = [describe(run) for run in find_runs(runs)], list[str]()
        (runs / "b" / "checkpoints").chmod(0o700)
        with without_rights():
            assert [model.entry.run.name for model in best_models(entries, warnings.append)] == ["a"]
        assert warnings == [f"{runs}/b is left out: {runs}/b/checkpoints: Permission denied"]


def test_weights_that_a_run_has_deleted_since_are_not_a_fault_of_the_folder_of_the_best_models(here: Path) -> None:
    run = write_run(here / "a", CONFIG)
    saved = small_checkpoint.save(run / "checkpoints", 4, best=True)
    models = best_models([describe(RunFolder(run))], print)
    shutil.rmtree(saved)
    with pytest.raises(UserError, match=r"/averaged\.safetensors: No such .*; if the run deleted it just now, run the"):
        collect(models, here / "best-models")
    assert not (here / "best-models").exists()
