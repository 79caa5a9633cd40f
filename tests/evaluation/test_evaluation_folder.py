"""The evaluation folder: complete, with a unique name, readable without this project."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.file_limit import error_of

from cifar_dist.checkpoint.tensor_files import WeightsCopy
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.evaluation.folder import write_evaluation
from cifar_dist.evaluation.labels_csv import sample_ids
from cifar_dist.evaluation.predict import Predictions
from cifar_dist.run_folder import EvaluationSummary, read_summary

LOGITS = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 5.0], [1.0, 1.5, 1.0]])
PREDICTED = [1, 0, 2, 1]
SUMMARY = EvaluationSummary(
    run="my-run",
    checkpoint="step-00000345",
    step=345,
    split="test",
    data="digits",
    samples=4,
    classes=("a", "b", "c"),
    tta="mirror",
    accuracy=0.75,
    loss=0.5,
    val_accuracy=0.98765,
    seconds=1.5,
    processes=2,
    plain_accuracy=0.875,
    tta_images=4,
    calibration_error=0.125,
)


@pytest.fixture
def weights(tmp_path: Path) -> WeightsCopy:
    return copy_of(tmp_path / "model.safetensors")


def copy_of(path: Path) -> WeightsCopy:
    path.write_bytes(b"weights")
    return WeightsCopy([path])


def test_predictions_have_classes_probabilities_accuracy_and_loss() -> None:
    predictions = Predictions(LOGITS, torch.tensor([1, 0, 2, 0]), LOGITS.flip(1))
    assert predictions.classes.tolist() == PREDICTED
    assert predictions.accuracy == 0.75
    assert predictions.plain_accuracy == 0.25
    torch.testing.assert_close(predictions.probabilities, LOGITS.exp() / LOGITS.exp().sum(1, keepdim=True))
    of_labels = torch.stack([predictions.probabilities[i, label] for i, label in enumerate([1, 0, 2, 0])])
    assert predictions.loss == pytest.approx(-of_labels.log().mean().item())


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy_over_ten_bins() -> None:
    confidences = torch.tensor([0.81, 0.89, 0.85, 0.97, 1.0])
    logits = torch.stack([confidences, 1 - confidences], dim=1).log()
    predictions = Predictions(logits, torch.tensor([0, 0, 1, 0, 0]), logits)
    assert predictions.calibration_error == pytest.approx((3 * abs(0.85 - 2 / 3) + 2 * abs(0.985 - 1)) / 5)
    assert math.isnan(Predictions(logits * math.nan, torch.tensor([0, 0, 1, 0, 0]), logits).calibration_error)


def test_a_summary_has_the_plain_accuracy_and_names_an_augmentation_that_lowers_it() -> None:
    assert SUMMARY.result() == "accuracy 75.00 % with TTA mirror, 87.50 % without, calibration error 12.5 %"
    assert SUMMARY.warning() == "", "one image of eight, which chance does"
    assert dataclasses.replace(SUMMARY, samples=40).warning() == (
        "TTA mirror lowers the accuracy from 87.50 to 75.00 %; evaluate with --tta 0, or train with --eval.tta 0"
    )
    better = dataclasses.replace(SUMMARY, accuracy=0.875, calibration_error=None)  # as of an earlier version
    assert (better.result(), better.warning()) == ("accuracy 87.50 % with TTA mirror, 87.50 % without", "")
    plain = dataclasses.replace(better, tta="0")
    assert (plain.result(), plain.warning()) == ("accuracy 87.50 % without TTA", "")
    some = dataclasses.replace(better, tta_images=3)
    assert some.result() == "accuracy 87.50 % with TTA mirror of 3 images, 87.50 % without"
    none = dataclasses.replace(better, tta_images=0)
    assert none.result() == "accuracy 87.50 % with TTA mirror of 0 images, 87.50 % without"
    unknown = dataclasses.replace(SUMMARY, accuracy=None, plain_accuracy=None, calibration_error=None)
    assert (unknown.result(), unknown.warning()) == ("no labels, TTA mirror", "")


def test_the_folder_contains_what_the_docs_promise(tmp_path: Path, weights: WeightsCopy) -> None:
    labels = torch.tensor([1, 0, 2, 0])
    predictions = Predictions(LOGITS, labels, LOGITS)
    folder = write_evaluation(
        tmp_path / "evaluations", SUMMARY, predictions, [40, 30, 20, 10], weights, ["b", "a", "c", "b"]
    )
    assert re.fullmatch(r"my-run_val_acc_0\.9877_\d{8}-\d{6}_model_step-00000345", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "model.safetensors",
        "probabilities.npz",
        "submission.csv",
        "summary.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    with (folder / "submission.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["ID", "Labels"], ["40", "b"], ["30", "a"], ["20", "c"], ["10", "b"]]
    arrays = np.load(folder / "probabilities.npz", allow_pickle=False)
    assert arrays["ids"].tolist() == [40, 30, 20, 10]
    assert arrays["labels"].tolist() == labels.tolist()
    assert arrays["probabilities"].dtype == np.float32
    assert np.allclose(arrays["probabilities"].sum(axis=1), 1)
    other = copy_of(tmp_path / "model.pth")
    folder_of_other = write_evaluation(tmp_path / "other", SUMMARY, predictions, [4, 3, 2, 1], other, PREDICTED)
    assert (folder_of_other / "model.pth").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == {**dataclasses.asdict(SUMMARY), "classes": ["a", "b", "c"]}
    assert summary.keys() >= {"accuracy", "samples", "tta", "checkpoint", "split"}


def test_without_labels_accuracy_is_none(tmp_path: Path, weights: WeightsCopy) -> None:
    summary = dataclasses.replace(SUMMARY, accuracy=None, loss=None, val_accuracy=None)
    folder = write_evaluation(tmp_path, summary, Predictions(LOGITS, None, LOGITS), range(4), weights, PREDICTED)
    assert "_val_acc_unknown_" in folder.name
    assert sorted(np.load(folder / "probabilities.npz").files) == ["ids", "probabilities"]
    assert json.loads((folder / "summary.json").read_text())["accuracy"] is None


def test_a_loss_that_is_not_finite_is_null_in_the_file(tmp_path: Path, weights: WeightsCopy) -> None:
    summary = dataclasses.replace(SUMMARY, loss=math.nan, calibration_error=math.nan)
    folder = write_evaluation(tmp_path, summary, Predictions(LOGITS, None, LOGITS), range(4), weights, PREDICTED)
    written = json.loads((folder / "summary.json").read_text())
    assert (written["loss"], written["calibration_error"]) == (None, None)
    again = read_summary(folder / "summary.json")
    assert again is not None
    assert "training has diverged" in again.warning()


@pytest.mark.parametrize(
    ("run", "weights_name", "name"),
    [
        ("r" * 128, "step-00000345", "r" * 128 + "_val_acc_0.9877_*_model_step-00000345"),
        (
            "it",
            "w" * 240 + "-7.safetensors",
            "it_val_acc_0.9877_*_model_" + "w" * 88 + "..." + "w" * 74 + "-7.safetensors",
        ),
        ("r" * 128, "w" * 242 + ".safetensors", "r" * 128 + "_val_acc_0.9877_*_model_" + "w" * 25 + "...*.safetensors"),
        ("é" * 120, "ü" * 120 + ".pth", "é*...*é_val_acc_0.9877_*_model_ü*...*ü.pth"),
    ],
)
def test_a_long_name_of_run_or_weights_is_shortened(
    tmp_path: Path, weights: WeightsCopy, run: str, weights_name: str, name: str
) -> None:
    """A file system allows 255 bytes, and temporary names need some."""
    summary = dataclasses.replace(SUMMARY, run=run, checkpoint=weights_name)
    folder = write_evaluation(tmp_path, summary, Predictions(LOGITS, None, LOGITS), range(4), weights, PREDICTED)
    assert fnmatch.fnmatchcase(folder.name, name)
    assert json.loads((folder / "summary.json").read_text())["checkpoint"] == weights_name


def test_two_evaluations_in_one_second_have_two_folders(tmp_path: Path, weights: WeightsCopy) -> None:
    folders = {
        write_evaluation(tmp_path / "e", SUMMARY, Predictions(LOGITS, None, LOGITS), range(4), weights, PREDICTED)
        for _ in range(5)
    }
    assert len(folders) == 5
    assert set((tmp_path / "e").iterdir()) == folders


def test_an_evaluation_that_fails_leaves_nothing(tmp_path: Path, weights: WeightsCopy) -> None:
    with pytest.raises(UserError, match="the ID 7 occurs more than once"):
        write_evaluation(tmp_path / "e", SUMMARY, Predictions(LOGITS, None, LOGITS), [7, 8, 9, 7], weights, PREDICTED)
    assert list((tmp_path / "e").iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        (["00000007", "00000003"], [7, 3]),
        (["7", "007"], ["7", "007"]),
        (["cat", "dog"], ["cat", "dog"]),
        (["-1", "2"], ["-1", "2"]),
        (["9" * 18, "1"], [10**18 - 1, 1]),
        (["9" * 20, "1"], ["9" * 20, "1"]),
        (["9" * 5000, "1"], ["9" * 5000, "1"]),
    ],
)
def test_ids_are_the_keys_where_all_are_different_numbers(
    digits: Path, keys: list[str], ids: list[int] | list[str]
) -> None:
    manifest = Manifest.load(digits)
    shard = dataclasses.replace(manifest.splits["test"][0], keys=tuple(keys))
    found = sample_ids(dataclasses.replace(manifest, splits={"test": (shard,)}), "test")
    assert found == ids


def test_a_full_disk_names_the_evaluation_and_leaves_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    copy, predictions = WeightsCopy([weights]), Predictions(LOGITS, None, LOGITS)

    def write() -> None:
        write_evaluation(tmp_path / "evaluations", SUMMARY, predictions, range(4), copy, PREDICTED)

    said = error_of(write, limit=10)
    assert re.search(r"evaluations/my-run_val_acc_0.9877_\d+-\d+_model_step-00000345'$", said), said
    assert list((tmp_path / "evaluations").iterdir()) == []
