"""The report: complete or partial runs, hostile names, pictures that are not blank."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from support.reported_run import CONTROL, HOSTILE, make_run
from support.running import PATIENCE, environment
from support.tags import Tags
from support.without_rights import public_folder, without_rights

from cifar_dist import cli
from cifar_dist.config.saved import read_config
from cifar_dist.config.tree import to_toml
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.optim.lr_curve import Curve
from cifar_dist.report import run_page
from cifar_dist.report.evaluation import confusion_matrix, draw_evaluation
from cifar_dist.report.evaluation_files import read_evaluation
from cifar_dist.report.run_page import write_report
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import Record


def test_the_page_is_self_contained_escapes_everything_and_no_picture_is_blank(digits: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, digits, classes=(HOSTILE, *"abcdefghi"))
    page = Tags(write_report(RunFolder(run)).read_text())
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith(("data:image/png;base64,", "#confusions-1-")) for link in page.links)
    assert page.tags.count("img") == 5 + 4 + page.tags.count("figure")
    assert "123 MB" in page.text
    assert "31 %" in page.text
    assert HOSTILE in page.text, "it is shown, as text"
    assert not set(CONTROL[:1] + CONTROL[4:]) & set(page.text)
    assert r"\x1b[2J\x07\u202e\x85" in page.text
    assert "85.70" in page.text
    assert re.search(r"killed\s*step 12", page.text)

    pictures = sorted(run.rglob("*.png"))
    assert {path.stem for path in pictures} == {
        *("loss", "accuracy", "lr", "validation", "time", "overview"),
        *("samples", "mistakes", "confusion", "per_class", "calibration"),
    }
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 5, f"{path.name} is blank"


def test_who_cannot_see_a_picture_gets_its_main_numbers(digits: Path, tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path, digits))
    rates = np.geomspace(0.001, 1.0, 40)
    Curve(rates.tolist(), np.linspace(2.3, 1.0, 40).tolist(), 2.3).save(run.lr_curve, {}, "")
    texts = [html.unescape(text) for text in re.findall('<img alt="([^\u2068"]*)"', write_report(run).read_text())]
    shares = "backward 55 %, forward 27 %, evaluation 18 %"
    classes = "8: 62.5 %, 3: 66.7 %, 0: 71.4 %, 2: 75.0 %, 5: 85.7 %, 1: 90.0 %, 4: 100.0 %, 6: 100.0 %, 7: 100.0 %"
    assert texts == [
        "Loss of 3 epochs, at last 0.0794 in training and 0.1000 in validation",
        "Accuracy of 3 epochs, at last 96.03 % in training and 93.33 % in validation",
        "Learning rate of each step, at most 0.1, at last 0.003333",
        "Validation after 3 epochs: accuracy at most 93.33 %, loss at least 0.1000",
        f"Time of each epoch, in all: {shares}",
        "Learning-rate range test, rates from 0.001 to 1: valley 0.0412, steepest 0.0412",
        "A random sample of the images, each with its most probable classes",
        "The mistakes of the highest confidence, each with what it was taken for and what it is",
        f"Accuracy per class, and of all images: 84.5 %; {classes}, 9: 100.0 %",
        "Calibration: the expected calibration error is 15.5 %, the mean confidence is 69.1 %",
    ]


def test_missing_parts_are_omitted(digits: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, digits)
    (run / "environment.json").write_text("{ torn")
    (run / "timeline.jsonl").unlink()
    for path in (run / "evaluations").glob("*/probabilities.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert Tags(write_report(RunFolder(run)).read_text()).tags.count("img") == 5
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "evaluations")
    assert "not evaluated yet" in write_report(RunFolder(run)).read_text()
    (run / "config.toml").unlink()
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.toml"):
        write_report(RunFolder(run))


def test_without_the_dataset_the_sheets_remain_and_it_is_named(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, digits)
    for path in (RunFolder(run).metrics, RunFolder(run).metrics_sum):
        path.unlink()  # to draw less
    page = write_report(RunFolder(run)).read_text()
    assert capsys.readouterr().err == ""
    config = read_config(run / "config.toml")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, path="not/here"))
    (run / "config.toml").write_text(to_toml(moved))
    sheets = re.findall(r'alt="(A random sample|The mistakes) ', page)
    assert len(sheets) == 2
    assert re.findall(r'alt="(A random sample|The mistakes) ', write_report(RunFolder(run)).read_text()) == sheets
    (note,) = capsys.readouterr().err.splitlines()
    assert "the dataset of " in note
    assert "is not at not/here" in note


def test_a_damaged_manifest_is_not_said_to_be_a_lost_dataset(
    digits: Path, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(digits / "manifest.json", data)
    run = RunFolder(make_run(tmp_path, digits))
    run.config.write_text(run.config.read_text().replace(str(digits), str(data)))

    def said(damage: Callable[[], object]) -> str:
        damage()
        write_report(run)
        (note,) = capsys.readouterr().err.splitlines()
        return note.partition(" no images of confusions: ")[2]

    way = f"; if {data} has not changed since: cp {data}/manifest.json {run.manifest}"
    assert said(run.manifest.unlink) == f"{run.manifest} is missing{way}"
    torn = said(lambda: run.manifest.write_text("{ torn"))
    assert torn.startswith(f"{run.manifest} is not a valid manifest: ")
    assert torn.endswith(way)
    shutil.copy(data / "manifest.json", run.manifest)
    half = run.manifest.read_text()[:1000]
    assert said(lambda: (data / "manifest.json").write_text(half)).startswith(f"{data}/manifest.json is not a valid")


def evaluate_again(run: Path, time: str, **about: object) -> Path:
    """Copy the evaluation of a run as if it was written later, and is of something else."""
    (final, *_) = sorted((run / "evaluations").iterdir())
    copy = run / "evaluations" / re.sub(r"_\d{8}-\d{6}_", f"_{time}_", final.name.replace("0.9000", "0.1000"))
    shutil.copytree(final, copy)
    summary = json.loads((final / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, **about}))
    return copy


def titles(run: Path) -> list[str]:
    """Draw the report; return the titles of its evaluations."""
    page = re.sub("</?bdi>", "", write_report(RunFolder(run)).read_text())
    return [title for title in re.findall(r"<h2>(.*?)</h2>", page) if " on test" in title]


def test_the_evaluation_that_ended_the_run_is_first_then_the_newest(
    digits: Path, tmp_path: Path, undrawn: None
) -> None:
    run = make_run(tmp_path, digits)
    (run / "metrics.jsonl").unlink()  # to draw less
    for day, accuracy in (("02", 0.2), ("03", 0.3), ("04", 0.4)):
        evaluate_again(run, f"209901{day}-000000", checkpoint="step-00000020", accuracy=accuracy)
    shown = ["Final on test: 85.70 %", "step-00000020 on test: 40.00 %", "step-00000020 on test: 30.00 %"]
    assert titles(run) == shown
    page = Tags((run / "report.html").read_text())
    assert "Older evaluations" in page.text
    assert "step-00000020 on test: 20.00 %" in page.text
    assert page.tags.count("table") == page.tags.count("thead") == 2, "of older evaluations, of what happened"
    (final,) = [path for path in (run / "evaluations").iterdir() if "_0.9000_" in path.name]
    shutil.rmtree(final)
    assert titles(run)[0] == shown[1]
    assert "accuracy of step-00000020 on " in Tags((run / "report.html").read_text()).text


def test_an_evaluation_on_other_data_is_marked_and_is_no_headline(digits: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, digits)
    (run / "metrics.jsonl").unlink()  # to draw less
    (final,) = (run / "evaluations").iterdir()
    summary = json.loads((final / "summary.json").read_text())
    with_images = Tags(write_report(RunFolder(run)).read_text()).tags.count("figure")
    assert with_images
    (final / "summary.json").write_text(json.dumps({**summary, "fingerprint": "0123456789abcdef"}))
    shutil.rmtree(final / "figures")
    assert titles(run) == [f"Final on test of {summary['data']} (0123456789abcdef): 85.70 %"]
    page = Tags((run / "report.html").read_text())
    assert "not evaluated yet" in page.text
    assert "figure" not in page.tags, "the images of the run's data are not what was evaluated"
    (final / "summary.json").write_text(json.dumps({**summary, "data": "cifar10.1", "fingerprint": ""}))
    assert titles(run) == ["Final on test of cifar10.1: 85.70 %"]
    about = {"fingerprint": Manifest.load(digits).fingerprint, "split_fingerprint": "0123456789abcdef"}
    (final / "summary.json").write_text(json.dumps({**summary, **about}))
    assert titles(run) == [f"Final on test of {summary['data']} with a changed manifest: 85.70 %"]
    page = Tags((run / "report.html").read_text())
    assert "not evaluated yet" in page.text


def test_images_are_not_those_of_another_dataset_of_the_same_name_and_size(digits: Path, tmp_path: Path) -> None:
    """An evaluation of an earlier version says nothing else of its data, but has their labels."""
    run = make_run(tmp_path, digits)
    (final,) = (run / "evaluations").iterdir()
    evaluation, here = read_evaluation(final), Manifest.load(digits)
    assert run_page._images(here, evaluation) is not None
    assert evaluation.labels is not None
    other = dataclasses.replace(evaluation, labels=evaluation.labels[::-1])
    assert run_page._images(here, other) is None


def test_data_that_has_taken_the_place_of_that_of_the_run_is_not_shown(digits: Path, tmp_path: Path) -> None:
    own, run = Manifest.load(digits), RunFolder(tmp_path / "it")
    assert run_page._find_data(run, [digits], own).fingerprint == own.fingerprint
    dataclasses.replace(own, splits={"train": own.splits["train"]}).save(tmp_path)
    with pytest.raises(UserError, match=f"^the dataset of {run.path} is not at {tmp_path}; write its place into "):
        run_page._find_data(run, [tmp_path], own)
    assert run_page._find_data(run, [tmp_path, digits], own).root == digits


def test_views_of_some_images_only_are_said(digits: Path, tmp_path: Path, undrawn: None) -> None:
    run = make_run(tmp_path, digits)
    (run / "metrics.jsonl").unlink()  # to draw less
    (final,) = (run / "evaluations").iterdir()
    summary = json.loads((final / "summary.json").read_text())
    (final / "summary.json").write_text(json.dumps({**summary, "tta": "8", "tta_images": 12}))
    text = Tags(write_report(RunFolder(run)).read_text()).text
    assert "test-time augmentation 8 of 12 images" in text
    assert "TTA 8 of 12 images (85.70 % without)" in text


def test_the_command_below_the_page_names_the_run(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    run = make_run(tmp_path / "runs", digits)
    shutil.rmtree(run / "evaluations")  # to draw less
    (run / "metrics.jsonl").unlink()
    assert f"<code>cifar-dist report {run}</code>" in write_report(RunFolder(run)).read_text()
    monkeypatch.chdir(tmp_path)
    assert "<code>cifar-dist report some-run</code>" in write_report(RunFolder(Path("runs/some-run"))).read_text()


def test_epochs_that_lost_their_metrics_have_no_speed(digits: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, digits)
    shutil.rmtree(run / "evaluations")  # to draw less
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(
        "".join(line for line in lines if '"train"' not in line or '"epoch":2' not in line)
    )
    page = write_report(RunFolder(run)).read_text()
    assert "<dt>images per second</dt><dd>1,000</dd>" in page
    assert ">nan<" not in page


@pytest.mark.parametrize("part", [slice(0), slice(100), slice(-60)])
def test_damaged_probabilities_are_one_line(tmp_path: Path, part: slice) -> None:
    np.savez(tmp_path / "whole.npz", probabilities=np.eye(3))
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "probabilities.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[part])
    with pytest.raises(UserError, match="is not a complete evaluation"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("classes", [-1, {"a": 1}])
def test_a_damaged_evaluation_is_omitted_and_named(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: object
) -> None:
    run = make_run(tmp_path, digits)
    (summary,) = run.glob("evaluations/*/summary.json")
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "classes": classes}))
    (run / "metrics.jsonl").unlink()  # to draw less
    assert "some-run" in write_report(RunFolder(run)).read_text()
    omitted = f"cifar-dist: {summary.parent} is not an evaluation; run cifar-dist evaluate again: the report omits it\n"
    assert omitted in capsys.readouterr().err
    with pytest.raises(UserError, match="is not an evaluation; run cifar-dist evaluate again"):
        read_evaluation(summary.parent)


def test_without_labels_only_the_sample_is_drawn(digits: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, digits)
    (folder,) = (run / "evaluations").iterdir()
    evaluation = dataclasses.replace(read_evaluation(folder), labels=None)
    (only,) = draw_evaluation(evaluation, lambda sample: np.full((8, 8, 1), sample % 256, dtype=np.uint8))
    assert only.path.name == "samples.png"
    assert draw_evaluation(evaluation) == []


def last_in_legend(figure: Figure) -> str:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return legend.get_texts()[-1].get_text()


def test_curves_and_headline_say_how_a_process_ended(digits: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    run = make_run(tmp_path, digits)
    shutil.rmtree(run / "evaluations")  # to draw less
    write_report(RunFolder(run))
    assert last_in_legend(drawn[0]) == "killed"
    timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(0), "failed", 1234))
    assert "<br>failed after step 1,234" in write_report(RunFolder(run)).read_text()
    assert last_in_legend(drawn[-2]) == "killed, failed"


def test_the_headline_says_that_a_run_was_killed_or_is_finished(digits: Path, tmp_path: Path, undrawn: None) -> None:
    run = make_run(tmp_path, digits)
    shutil.rmtree(run / "evaluations")
    timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(0), "resumed", 20))
    page = write_report(RunFolder(run)).read_text()
    assert "best validation accuracy so far<br>killed after step 30" in page, "which the next start will record"
    (run / "final").mkdir()
    (run / "final" / "model.safetensors").touch()
    (run / "manifest.json").write_text('{"splits": {"train": [], "val": []}}')
    page = write_report(RunFolder(run)).read_text()
    assert "killed after" not in page
    assert "best validation accuracy<" in page, "it is finished: its data has no split to evaluate at the end"


def test_a_report_says_that_the_last_records_are_lost(
    digits: Path, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = make_run(tmp_path, digits) / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:1000])
    page = write_report(RunFolder(metrics.parent)).read_text()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"cifar-dist: {metrics} has lost records")
    assert f"{metrics} has lost records" in page


def test_an_evaluation_of_an_unfinished_run_is_beside_the_headline(digits: Path, tmp_path: Path, undrawn: None) -> None:
    run = make_run(tmp_path, digits)
    evaluate_again(run, "20990102-000000", checkpoint="step-00000020", accuracy=0.2)
    page = write_report(RunFolder(run)).read_text()
    assert '"figure">85.70<' in page
    (final,) = [path for path in (run / "evaluations").iterdir() if "_0.9000_" in path.name]
    shutil.rmtree(final)
    page = write_report(RunFolder(run)).read_text()
    assert (
        '"figure">93.33<small>&thinsp;%</small></span><span class="beside">best validation accuracy so far<br>' in page
    )
    assert "<br>20.00 % accuracy of <bdi>step-00000020</bdi> on " in page


def test_a_run_that_cannot_be_written_is_refused_with_a_remedy(digits: Path) -> None:
    with public_folder() as runs:
        run = make_run(runs, digits)
        remedy = f"^{run} cannot be written, where the report goes; copy the run to where you may write$"
        for figures in (False, True):
            if figures:
                (run / "figures").mkdir()
                (run / "figures").chmod(0o777)
            with without_rights(), pytest.raises(UserError, match=remedy):
                cli.run(["report", str(run)])
        assert not any((run / "figures").iterdir()), "it is refused before the work"
        assert not (run / "report.html").exists()


def test_the_last_of_equal_epochs_is_the_best(digits: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, digits)
    shutil.rmtree(run / "evaluations")  # to draw less
    records = [Record(step, step - 1, "val", 1.0, 0.5, 10, 0.1) for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_bytes(b"".join(record.to_line() for record in records))
    assert re.findall(r'<tr class="best"><td>(\d)', write_report(RunFolder(run)).read_text()) == ["3"]


def test_the_confusion_matrix_counts_rows_as_true() -> None:
    matrix = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_reading_run_folders_does_not_import_torch(tmp_path: Path, digits: Path) -> None:
    """The report with its galleries, the list, and the comparison with its picture."""
    run = str(make_run(tmp_path, digits))
    lines = [["runs", "list", str(tmp_path)], ["runs", "compare", run, run, "--picture", str(tmp_path / "both.png")]]
    lines.append(["report", run])
    code = f"import sys; from cifar_dist.cli import run; print([*map(run, {lines})], 'torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.endswith("[0, 0, 0] False\n"), done.stdout + done.stderr
    assert list(tmp_path.glob("some-run/evaluations/*/figures/samples.png"))
