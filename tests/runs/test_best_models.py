"""The best models of runs: intact, ranked by dataset, collected in a folder."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import small_checkpoint
from support.run_folders import cells, write_run
from support.without_rights import public_folder, without_rights

from cifar_dist import cli
from cifar_dist.config import Config, EvalConfig, ModelConfig, TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.files.checksums import write_sums
from cifar_dist.run_folder import EvaluationSummary, RunFolder
from cifar_dist.runs import best_models as best_models_module
from cifar_dist.runs.best_models import best_models, collect
from cifar_dist.runs.listing import describe, find_runs
from cifar_dist.tracking.metrics import MetricsLog

CONFIG = Config(model=ModelConfig("tiny-cnn"), train=TrainConfig(epochs=4))


def test_the_best_weights_of_all_runs_are_ranked_in_one_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, val, test in (
        ("a", 0.4, 0.9),
        ("sweep/a", 0.7, None),
        ("without-val", None, 0.6),
        ("nothing", 0.9, None),
    ):
        write_run(here / "runs" / name, CONFIG, val=val, test=test)
        if name.endswith("a"):
            small_checkpoint.save(here / "runs" / name / "checkpoints", 3, best=True)  # of validation accuracy 0.5
    assert cli.run(["runs", "best"]) == 0
    assert "weights of 3 runs: best-models" in capsys.readouterr().out
    with Path("best-models/models.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["runs/a", "runs/sweep/a", "runs/without-val"]
    assert [row["file"] for row in rows] == [
        "a_val_acc_0.5000_step-00000003.safetensors",
        "2_a_val_acc_0.5000_step-00000003.safetensors",
        "without-val_val_acc_unknown_final.safetensors",
    ]
    assert [row["test_accuracy"] for row in rows] == ["", "", "0.6"], "0.9 is that of the final weights of a"
    weights = load_file(Path("best-models") / rows[0]["file"])
    assert torch.equal(weights["conv.weight"], small_checkpoint.averaged(3).weights["conv.weight"])
    (final,) = Path("runs/a/evaluations").glob("*/summary.json")
    summary = json.loads(final.read_text())
    for name, about in (
        ("a_val_acc_0_20261128-100000_model_b", {"checkpoint": "step-00000003", "accuracy": 0.8}),
        ("a_val_acc_0_20261128-080000_model_d", {"checkpoint": "step-00000003", "accuracy": 0.6, "tta": "16"}),
        ("a_val_acc_0_20261128-090000_model_c", {"checkpoint": "step-00000003", "accuracy": 0.7, "split": "val"}),
    ):
        (final.parent.parent / name).mkdir()
        (final.parent.parent / name / "summary.json").write_text(json.dumps({**summary, **about}))
    (a,) = best_models([describe(RunFolder(Path("runs/a")))], print)
    assert a.test == 0.8
    final.write_text(json.dumps({**summary, "step": 3}))
    (a,) = best_models([describe(RunFolder(Path("runs/a")))], print)
    assert a.test == 0.9, "the final weights are those of this step"
    assert cli.run(["runs", "best", "--top", "1"]) == 0, "the folder is written anew"
    assert len(list(Path("best-models").iterdir())) == 3, "one with a validation accuracy, one without, and the table"
    with pytest.raises(UserError, match=r"runs exists and has no models\.csv; use another --out"):
        cli.run(["runs", "best", "--out", "runs"])


@pytest.mark.parametrize(
    ("settings", "final", "evaluations", "expected"),
    [
        # (views, threshold) of each evaluation; their accuracies are 0.0, 0.1, 0.2 and so on
        (("8", 1.0), None, [("8", 0.5), ("8", 1.0)], 0.1),
        (("8", 1.0), ("8", 0.5), [("8", 1.0), ("8", 0.5)], 0.1),
        (("8", 0.5), ("0", 1.0), [("8", 0.5), ("0", 0.5)], 0.1),  # without views there is no threshold
        (("8", 0.5), None, [("8", None), ("8", 0.5)], 0.0),  # by an earlier version
        (("8", 0.5), ("8", None), [("8", 1.0), ("8", 0.5)], 0.1),
        (("1", 1.0), None, [("8", 1.0), ("0", 1.0)], 0.1),  # no other view than the image
    ],
)
def test_the_accuracy_of_the_best_weights_has_the_views_of_the_final_evaluation(
    here: Path,
    settings: tuple[str, float],
    final: tuple[str, float | None] | None,
    evaluations: list[tuple[str, float | None]],
    expected: float,
) -> None:
    config = replace(CONFIG, eval=EvalConfig(tta=settings[0], tta_below=settings[1]))
    run = write_run(here / "a", config, val=0.4, test=0.9 if final else None)
    small_checkpoint.save(run / "checkpoints", 3, best=True)
    if final:
        (summary,) = run.glob("evaluations/*/summary.json")
        views = {"tta": final[0], "tta_below": final[1]}
        summary.write_text(json.dumps({**json.loads(summary.read_text()), **views}))
    for number, (tta, below) in enumerate(evaluations):
        folder = run / "evaluations" / f"a_val_acc_0_20261128-10000{number}_model_b"
        folder.mkdir(parents=True)
        one = EvaluationSummary("a", "step-00000003", 3, "test", tta=tta, tta_below=below, accuracy=number / 10)
        (folder / "summary.json").write_text(one.to_json())
    (model,) = best_models([describe(RunFolder(run))], print)
    assert model.test == expected


def test_manifests_are_read_only_where_an_evaluation_may_be_of_the_best_weights(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of CIFAR-10 takes 65 ms, two minutes for 2,000 runs."""
    read = list[str]()
    monkeypatch.setattr(best_models_module, "own_data_of", lambda run: read.append(run.name))
    for name, checkpoint in (("a", "final"), ("b", "step-00000003")):
        run = write_run(here / name, CONFIG, val=0.4, test=0.9)
        small_checkpoint.save(run / "checkpoints", 3, best=True)
        (summary,) = run.glob("evaluations/*/summary.json")
        summary.write_text(json.dumps({**json.loads(summary.read_text()), "checkpoint": checkpoint}))
    best_models([describe(RunFolder(here / name)) for name in "ab"], print)
    assert read == ["b"]


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


def test_a_validation_accuracy_is_unknown_where_the_last_records_are_lost(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of an earlier epoch is not one of the final weights."""
    run = write_run(here / "runs" / "a", CONFIG, val=0.25, test=0.5)
    write_sums(run / "final")
    MetricsLog(run / "metrics.jsonl").close()
    (run / "metrics.jsonl").write_bytes(b"".join((run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:4]))
    assert cli.run(["runs", "best"]) == 0
    out, err = capsys.readouterr()
    assert cells(out)[2] == ["runs/a", "final", "", "50.00"]
    assert err.startswith("warning: runs/a/metrics.jsonl has lost records")


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
