"""Charts: ticks, legends, colours, bars and texts are what they stand for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from support.contrast import LEAST, contrast

from cifar_dist.checkpoint.tensor_files import WeightsCopy
from cifar_dist.evaluation.folder import write_evaluation
from cifar_dist.evaluation.predict import Predictions
from cifar_dist.optim.lr_curve import Curve
from cifar_dist.report import curves, overlay, sweep_rows
from cifar_dist.report.evaluation import draw_evaluation
from cifar_dist.report.evaluation_files import read_evaluation
from cifar_dist.report.lr_curve import draw_lr_curve
from cifar_dist.report.sheet import sheet
from cifar_dist.report.style import short_names
from cifar_dist.report.usage import draw_usage
from cifar_dist.run_folder import EvaluationSummary
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.usage import Usage


def test_the_last_bar_of_the_time_is_of_fewer_epochs_and_as_high(tmp_path: Path) -> None:
    used = Usage(10.0, {"forward": 1.0})
    records = [Record(epoch + 1, epoch, "train", 1.0, 0.5, 10, 10.0, usage=used) for epoch in range(61)]  # 2 to a bar
    draw_usage(records, tmp_path / "time.png")
    pixels = np.asarray(Image.open(tmp_path / "time.png").convert("RGB")).astype(int)
    blue = np.all(np.abs(pixels - (0x7F, 0xA9, 0xCF)) < 8, axis=2)
    heights = blue.sum(axis=0)
    stands = blue[np.flatnonzero(blue.any(axis=1)).max() - 2]  # on the axis, as the legend does not
    assert stands.sum() > 200
    assert np.ptp(heights[stands]) <= 2


@pytest.mark.parametrize(("classes", "samples"), [(100, 2000), (30_000, 50)])
def test_many_classes_can_be_drawn(tmp_path: Path, classes: int, samples: int) -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, classes, samples))
    logits = torch.from_numpy(rng.normal(size=(samples, classes)).astype(np.float32))
    predictions = Predictions(logits, labels, logits)
    weights = tmp_path / "w"
    weights.write_bytes(b"")
    names = tuple(f"class-{i}" for i in range(classes))
    summary = EvaluationSummary("r", "final", 1, "test", "d", samples, names, "0", 0.01, 4.0, None, 1.0, 1, 0.01, 0)
    predicted = predictions.classes.tolist()
    folder = write_evaluation(
        tmp_path / "evaluations", summary, predictions, range(samples), WeightsCopy([weights]), predicted
    )
    confusion, *others = draw_evaluation(read_evaluation(folder))
    assert len(others) == 2
    wrong = int((predictions.classes != labels).sum())
    most_often = r"most often class-\d+ predicted as class-\d+ \(\d\)"
    assert re.fullmatch(f"Confusion matrix: {wrong:,} mistakes in {samples:,} images, {most_often}", confusion.text)


def test_shortened_names_of_classes_remain_different() -> None:
    names = ["Black_throated_Sparrow", "Black_throated_Blue_Warbler", "Laysan_Albatross", "cat"]
    assert short_names(names, 14) == ["Black_t…parrow", "Black_t…arbler", "Laysan_Albatr…", "cat"]
    alike = [f"A_long_beginning_{one}_a_long_ending" for one in "bcd"]
    assert short_names([*alike, alike[0][:14]], 14) == ["A_long_…0", "A_long_…1", "A_long_…2", alike[0][:14]]
    wide = ["\u732b" * 7, "\u732b" * 8, "\u72ac" * 9 + "1", "\u72ac" * 9 + "2"]  # two columns a letter
    assert short_names(wide, 14) == [
        *(wide[0], "\u732b" * 6 + "…"),
        *("\u72ac\u72ac\u72ac…\u72ac\u72ac1", "\u72ac\u72ac\u72ac…\u72ac\u72ac2"),
    ]
    assert short_names(["\U0001f469\u200d\U0001f52c"], 14) == ["\U0001f469\U0001f52c"]


def test_a_caption_is_not_wider_than_its_cell(tmp_path: Path) -> None:
    with sheet(tmp_path / "s.png", 3, 1) as drawing:
        drawing.text(1.5, 0.5, "W" * 14 + " 100 %", 8, align="center", room=1)
    dark = np.asarray(Image.open(tmp_path / "s.png").convert("L")).min(axis=0) < 128
    assert 120 < np.ptp(np.flatnonzero(dark)) <= 150  # 150 pixels are an inch; at its full size it would take 295


@pytest.mark.parametrize("accuracy", [0.49, 0.9873, 1.0])
def test_ticks_of_an_accuracy_are_what_they_stand_for(tmp_path: Path, drawn: list[Figure], accuracy: float) -> None:
    records = [Record(step, 0, "train", 1.0, accuracy + 0.002 * step, 10, 0.1, 0.1) for step in range(1, 4)]
    curves.draw_curves(records, [], tmp_path, 3)
    overlay.draw_overlay([overlay.Overlaid("a", records, 3, None, "")], tmp_path / "overlay.png")
    for axes, unit in ((drawn[1].axes[0], 1), (drawn[-1].axes[1], 100)):
        labels = [label.get_text().removesuffix(" %") for label in axes.get_yticklabels()]
        assert [float(label) for label in labels] == pytest.approx(unit * axes.get_yticks())


@pytest.mark.parametrize(("last", "tops"), [(0.5, (2, 4)), (40.0, (40, 50))])
def test_an_early_outlier_flattens_no_curve_and_is_named_and_a_loss_that_rose_is_shown(
    tmp_path: Path, drawn: list[Figure], last: float, tops: tuple[float, float]
) -> None:
    losses = [30.0, 1.0, last]
    records = [Record(step, step - 1, "train", 2.3 / step, 0.5, 10, 0.1, lr=0.1) for step in (1, 2, 3)]
    records += [Record(step, step - 1, "val", loss, 0.5, 10, 0.1) for step, loss in enumerate(losses, 1)]
    curves.draw_curves(records, [], tmp_path, 1)
    overlay.draw_overlay([overlay.Overlaid("a", records, 1, None, "")], tmp_path / "overlay.png")
    assert tops[0] < drawn[-1].axes[0].get_ylim()[1] < tops[1]
    for one in drawn[:-1]:
        for axes in one.axes:
            if axes.get_title() in ("Loss", "Validation"):
                assert tops[0] < axes.get_ylim()[1] < tops[1]
                assert [text.get_text().strip() for text in axes.texts] == ([] if last > 30 else ["30"])


def test_every_text_beside_curves_and_rows_can_be_read(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [Record(step, step - 1, "train", 2.3 / step, 0.5, 10, 0.1, lr=0.1) for step in (1, 2, 3)]
    records += [Record(step, step - 1, "val", 30.0 / step**4, 0.5, 10, 0.1) for step in (1, 2, 3)]
    curves.draw_curves(records, [], tmp_path, 1)
    sweep_rows.draw_comparison("A sweep", [sweep_rows.Compared("a", [0.5], [], "1 run")], tmp_path / "sweep.png")
    texts = [text for one in drawn for text in one.findobj(Text) if isinstance(text, Text) and text.get_text()]
    assert {"30", "loss", "Validation", "1 run"} <= {text.get_text().strip() for text in texts}
    for text in texts:
        assert contrast(np.array(to_rgb(text.get_color())), np.ones(3)) >= LEAST, text.get_text()


def test_a_run_that_has_diverged_flattens_no_other(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = []
    for name, last in (("a", 0.5), ("b", 0.7), ("diverged", 9000.0)):
        records = [Record(step, step - 1, "train", 2.3 / step, 0.5, 10, 0.1, lr=0.1) for step in (1, 2, 3)]
        records += [Record(step, step - 1, "val", loss, 0.5, 10, 0.1) for step, loss in enumerate((2.0, 1.0, last), 1)]
        runs.append(overlay.Overlaid(name, records, 1, None, ""))
    overlay.draw_overlay(runs, tmp_path / "overlay.png")
    assert 2 < drawn[0].axes[0].get_ylim()[1] < 6
    overlay.draw_overlay(runs[2:], tmp_path / "overlay.png")
    assert drawn[1].axes[0].get_ylim()[1] > 9000


def test_the_legend_names_the_splits_of_the_final_evaluations(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [Record(1, 0, "train", 1.0, 0.5, 10, 0.1)]
    for splits, said in (
        ([""], "test"),
        (["test"], "test"),
        (["val", ""], "final (val)"),
        (["val", "train"], "final (train, val)"),
    ):
        runs = [overlay.Overlaid(split, records, 1, 0.5 if split else None, split) for split in splits]
        overlay.draw_overlay(runs, tmp_path / "overlay.png")
        legend = drawn[-1].axes[1].get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["train", "val", said]


def test_the_legend_covers_no_curve_that_rises_or_falls(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [Record(step, step - 1, "train", 0.1 * step, 1 - 0.01 * step, 10, 0.1, 0.1) for step in range(1, 31)]
    curves.draw_curves(records, [], tmp_path, 1)
    for axes in (drawn[0].axes[0], drawn[1].axes[0]):
        legend = axes.get_legend()
        assert legend is not None
        points = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.get_lines()])
        assert not any(legend.get_window_extent().contains(*point) for point in points), axes.get_title()


@pytest.mark.parametrize("least", [0.5, 2.3, 5.1])
def test_the_loss_of_guessing_is_in_the_picture_of_a_range_test_whether_it_learns_or_not(
    tmp_path: Path, drawn: list[Figure], least: float
) -> None:
    losses = [*np.linspace(6.0, least, 20), least + 1, least + 9]
    draw_lr_curve(Curve([1e-4 * 1.3**step for step in range(22)], losses, guessing=2.3), tmp_path / "lr_curve.png")
    low, high = drawn[0].axes[0].get_ylim()
    assert low < min(2.3, least)
    assert high >= 6.0


def test_no_two_of_many_runs_look_alike(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [Record(1, 0, "train", 1.0, 0.5, 10, 0.1), Record(1, 0, "val", 1.0, 0.5, 10, 0.1)]
    runs = [overlay.Overlaid(f"_{number}", records, 1, None, "") for number in range(overlay.SIGNS - 2)]
    runs += [overlay.Overlaid(f"{'a-long-name-' * 3}of-seed-{seed}", records, 1, None, "") for seed in (1, 2)]
    overlay.draw_overlay(runs, tmp_path / "overlay.png")
    handles = drawn[0].legends[0].get_lines()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == short_names([run.name for run in runs], 36)
    shown = {(handle.get_color(), handle.get_marker()) for handle in handles}
    assert len(shown) == overlay.SIGNS == 35
    assert shown <= {(line.get_color(), line.get_marker()) for line in drawn[0].axes[1].get_lines()}


def test_a_bar_has_the_number_of_its_epoch(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [Record(1, 0, "train", 1.0, 0.5, 10, 10.0, usage=Usage(10.0, {"forward": 1.0}))]
    draw_usage(records, tmp_path / "time.png")
    axes = drawn[0].axes[0]
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [1]
