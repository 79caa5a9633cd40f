"""The verbs that use a trained run: evaluate, predict, report; on one process and on two."""

from __future__ import annotations

import csv
import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.dataset_builders import copy_relabelled
from support.run_folders import cells
from support.running import DRAWN, ROOT, TRAIN, environment, spawn

from cifar_dist import cli
from cifar_dist.config.saved import read_config
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.read import ShardReader
from cifar_dist.errors import OutOfMemoryError, UserError
from cifar_dist.evaluation.calibration import calibration
from cifar_dist.evaluation.speed import make_forms, time_forms
from cifar_dist.evaluation.trained import build_trained, open_trained
from cifar_dist.models import build
from cifar_dist.models.convolution import use_unfold_convolutions
from cifar_dist.report.results import is_on_other_data, own_data_of
from cifar_dist.run_folder import RunFolder, find_run, read_summary
from cifar_dist.run_folder.settings import write_settings

RECIPE = """
[run]
dir = "{folder}"
[data]
path = "{digits}"
[augment]
transforms = [{{ name = "crop", pad = 2 }}]
[model]
name = "tiny-cnn"
[train]
epochs = 2
batch_size = 20
threads = 1
[eval]
batch_size = 10
tta = "3"
"""


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "tiny.toml").write_text(RECIPE.format(folder=folder, digits=digits))
    (done,) = spawn([TRAIN, str(folder / "tiny.toml")])
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


def verb(*words: str, processes: int = 1, env: dict[str, str] | None = None) -> str:
    done = spawn(["-m", "cifar_dist", *words], processes, env)
    assert [d.returncode for d in done] == [0] * processes, done[0].stderr
    return done[0].stdout


def rows(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


def test_the_run_folder_is_complete(run: Path, digits: Path) -> None:
    for name in (
        *("config.toml", "environment.json", "manifest.json", "metrics.jsonl", "metrics.csv", "training.log"),
        *("checkpoints/latest/weights.safetensors", "checkpoints/best/weights.safetensors", "final/model.safetensors"),
    ):
        assert (run / name).is_file(), name
    (folder,) = (run / "evaluations").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    manifest = Manifest.load(digits)
    assert summary["samples"] == manifest.samples("test")
    assert summary["tta"] == "3"
    assert summary["split"] == "test"
    assert folder.name.startswith(f"tiny_val_acc_{summary['val_accuracy']:.4f}_")
    assert folder.name.endswith(f"_model_{summary['checkpoint']}")
    submission = rows(folder / "submission.csv")
    assert submission[0] == ["ID", "Labels"]
    assert [int(number) for number, _ in submission[1:]] == [int(key) for key in manifest.keys("test")]
    arrays = np.load(folder / "probabilities.npz", allow_pickle=False)
    assert (arrays["probabilities"].argmax(1) == [int(label) for _, label in submission[1:]]).all()
    assert (arrays["probabilities"].argmax(1) == arrays["labels"]).mean() == summary["accuracy"]
    assert (folder / "model.safetensors").read_bytes() == (run / "final" / "model.safetensors").read_bytes()
    error = summary["calibration_error"]
    assert f"% without, calibration error {100 * error:.1f} %, " in (run / "training.log").read_text()
    assert calibration(arrays["probabilities"], arrays["labels"]).error == error, "which the report draws"


@pytest.mark.parametrize("tta", [("mirror", "--tta-below", "0.4"), ("4",)])
def test_evaluate_gives_the_same_on_one_process_and_two(run: Path, tta: tuple[str, ...]) -> None:
    before = set((run / "evaluations").iterdir())
    found = []
    for processes in (1, 2):
        words = ["--tta", *tta, "--split", "val", "--checkpoint", "latest"]
        verb("evaluate", str(run), *words, processes=processes)
        (new,) = set((run / "evaluations").iterdir()) - before
        before.add(new)
        found.append(new)
    one, two = found
    assert (one / "submission.csv").read_bytes() == (two / "submission.csv").read_bytes()
    one_p, two_p = (np.load(folder / "probabilities.npz")["probabilities"] for folder in found)
    np.testing.assert_array_equal(one_p, two_p)
    facts = [json.loads((folder / "summary.json").read_text()) for folder in found]
    assert [f["processes"] for f in facts] == [1, 2]
    assert [f["accuracy"] for f in facts] == [facts[0]["accuracy"]] * 2
    assert [f["tta_images"] for f in facts] == [facts[0]["tta_images"]] * 2
    assert (0 < facts[0]["tta_images"] < facts[0]["samples"]) == ("--tta-below" in tta)
    assert [f["tta_below"] for f in facts] == [0.4 if "--tta-below" in tta else 1.0] * 2


def test_the_report_of_a_run_whose_data_has_moved_has_its_images_again_after_the_command_that_it_names(
    run: Path, digits: Path, tmp_path: Path
) -> None:
    moved, data = RunFolder(shutil.copytree(run, tmp_path / "moved", symlinks=True)), tmp_path / "data"
    shutil.copytree(digits, data)
    config = read_config(moved.config)
    write_settings(moved, replace(config, data=replace(config.data, path=str(tmp_path / "gone"))))

    def drawn(*words: str) -> tuple[str, bool]:
        (done,) = spawn(["-m", "cifar_dist", *words], env=DRAWN)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr, "<figure" in moved.report.read_text()

    said, has_images = drawn("evaluate", str(moved.path), "--tta", "0", "--data", str(data))
    assert (has_images, "no images" in said) == (True, False), said
    said, has_images = drawn("report", str(moved.path))
    way = re.search(r"is not at \S+/gone; give its place: cifar-dist (.*) DIR$", said, re.M)
    assert way is not None, said
    assert not has_images
    said, has_images = drawn(*shlex.split(way[1]), str(data))
    assert (has_images, f"data.path is now {data}\nreport: " in said) == (True, True), said
    assert drawn("report", str(moved.path)) == (f"{moved.report}\n", True)

    shutil.rmtree(moved.final.parent)  # a resume would train the run
    write_settings(moved, replace(config, data=replace(config.data, path=str(tmp_path / "gone"))))
    said, _ = drawn("report", str(moved.path))
    assert f"gone; write its place into {moved.config}, and repeat: cifar-dist report {moved.path}\n" in said


def test_the_mean_of_checkpoints_is_evaluated(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    assert cli.run(["checkpoint", "average", str(run), "13", "26", "--out", str(out)]) == 0
    weights = build_trained(open_trained(RunFolder(run), str(out))).state_dict()
    saved = [load_file(run / "checkpoints" / f"step-000000{step}" / "weights.safetensors") for step in (13, 26)]
    for name, value in weights.items():
        assert torch.equal(value, torch.stack([one[name].double() for one in saved]).mean(dim=0).to(value.dtype)), name


def test_a_long_evaluation_shows_progress(run: Path) -> None:
    main, other = spawn(["-m", "cifar_dist", "evaluate", str(run), "--split", "val"], 2)
    assert (main.returncode, other.returncode) == (0, 0), main.stderr
    assert "evaluating val: 35 of 35 images" in main.stderr.splitlines()
    assert "evaluating" not in other.stderr


def test_to_read_a_folder_of_images_shows_progress(run: Path, digits: Path, tmp_path: Path) -> None:
    images = ShardReader(Manifest.load(digits), "test").all().numpy()[:8]
    (tmp_path / "hidden").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "hidden" / f"{number}.png")
    words = ["predict", str(run), str(tmp_path / "hidden"), "--out", str(tmp_path / "out.csv")]
    main, other = spawn(["-m", "cifar_dist", *words], 2)
    assert (main.returncode, other.returncode) == (0, 0), main.stderr
    assert "reading hidden: 8 of 8 images" in main.stderr
    assert "hidden" not in other.stderr


@pytest.mark.parametrize("form", ["pickle", "npz"])
def test_predict_writes_every_id_once_in_the_input_order(run: Path, digits: Path, tmp_path: Path, form: str) -> None:
    manifest = Manifest.load(digits)
    images = ShardReader(manifest, "test").all().numpy()[:61]
    ids = np.random.default_rng(0).permutation(10_000)[:61]
    source, out = tmp_path / f"unlabelled.{form}", tmp_path / "out.csv"
    if form == "pickle":
        source.write_bytes(pickle.dumps({b"data": images, b"ids": ids}))
    else:
        np.savez(source, data=images, ids=ids)
    said = verb("predict", str(run), str(source), "--tta", "0", "--out", str(out), processes=2)
    assert "61 predictions, TTA 0" in said
    found = rows(out)
    assert found[0] == ["ID", "Labels"]
    assert [int(row[0]) for row in found[1:]] == ids.tolist()
    right = np.mean([int(row[1]) for row in found[1:]] == manifest.labels("test")[:61])
    assert right > 0.3, "the model has learnt something, so rows and images belong together"


def test_predict_to_stdout_writes_rows_only(run: Path, digits: Path, tmp_path: Path) -> None:
    images = ShardReader(Manifest.load(digits), "test").all().numpy()[:3]
    np.savez(tmp_path / "a.npz", data=images, ids=np.arange(3))
    words = ["predict", str(run), str(tmp_path / "a.npz"), "--out", "/dev/stdout"]
    with (tmp_path / "out.csv").open("w") as out:
        command = [sys.executable, "-m", "cifar_dist", *words]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment(), check=True)
    assert [row[0] for row in rows(tmp_path / "out.csv")] == ["ID", "0", "1", "2"]
    assert "3 predictions, " in done.stderr


def test_predict_takes_a_folder_of_images_by_their_numbers(run: Path, digits: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(digits)
    images = ShardReader(manifest, "test").all().numpy()[:30]
    ids = np.random.default_rng(0).permutation(10_000)[:30]
    (tmp_path / "hidden").mkdir()
    for number, image in zip(ids, images, strict=True):
        Image.fromarray(image).save(tmp_path / "hidden" / f"{number}.png")
    np.savez(tmp_path / "hidden.npz", data=images, ids=ids)
    for source in ("hidden", "hidden.npz"):
        words = ["predict", str(run), str(tmp_path / source), "--tta", "0", "--out"]
        for processes in (1, 2):
            verb(*words, str(tmp_path / f"{source}.{processes}.csv"), processes=processes)
        alone, together = (tmp_path / f"{source}.{processes}.csv" for processes in (1, 2))
        assert together.read_bytes() == alone.read_bytes()
    of_folder, of_npz = (rows(tmp_path / f"{source}.1.csv")[1:] for source in ("hidden", "hidden.npz"))
    assert [int(row[0]) for row in of_folder] == sorted(ids.tolist()), "2.png comes before 10.png"
    assert sorted(of_folder) == sorted(of_npz)


def test_a_report_can_be_drawn_later(run: Path) -> None:
    assert not (run / "report.html").exists()
    assert str(run / "report.html") in verb("report", str(run))
    assert (run / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predict", "RUN", "DATA", "--out", "TMP/no/a.csv"], "the folder TMP/no does not exist; use another --out"),
        (["predict", "RUN", "DATA", "--out", "TMP"], "TMP is a folder; name a file in it: --out TMP/NAME"),
        (["predict", "RUN", "DATA", "--out", "TMP/file/a.csv"], "TMP/file is not a folder; use another --out"),
        (["predict", "RUN", "DATA", "--out", "-"], "for standard output use --out /dev/stdout"),
        (
            ["predict", "RUN", "TMP/file", "--out", "TMP/a.csv"],
            "is not an unlabelled set; use a folder or archive",
        ),
        (
            ["predict", "RUN", "TMP/none", "--out", "TMP/a.csv"],
            "TMP/none does not exist; name a folder or archive",
        ),
        (["export", "RUN", "--out", "TMP/no/a.pt2"], "the folder TMP/no does not exist; use another --out"),
        (["model", "demo", "--size", "32", "--model.image_size", "64"], "--size and --model.image_size both give"),
        (
            ["replay", "RUN", "1", "--seed", "3"],
            "--seed has no effect with a step; it selects the stretches of --check",
        ),
        (
            ["replay", "RUN", "--check", "1", "--rank", "0"],
            "--rank has no effect with --check; it selects the samples of a step",
        ),
        (["evaluate", "RUN", "--split", "validation"], "has no split 'validation'; use --split train or val or test"),
        (["evaluate", "RUN", "--tta-below", "2"], "--tta-below 2.0 must be above 0 and at most 1"),
        (
            ["evaluate", "RUN", "--tta", "0", "--tta-below", "0.9"],
            '--tta-below 0.9 has no effect with tta = "0"; use --tta-below 1, or --tta translate',
        ),
        (
            ["evaluate", "RUN", "--data", "RUN"],
            "RUN is a run, not a packed dataset; that of the run is data.path in its",
        ),
        (["train", "demo", "--run.name", "n", "--data.path", "RUN"], "RUN is a run, not a packed dataset"),
        (["checkpoint", "ls", "RUN/final"], "is inside the run RUN; name the run\n"),
        (
            ["train", "demo", "--data.path", "DATA", "--run.name", "n", "--run.from", "RUN/final"],
            "name the run, and its checkpoint as ",
        ),
        (["evaluate", "RUN/final"], "is inside the run RUN; name the run, and its checkpoint with --checkpoint"),
        (["evaluate", "RUN@3"], "'RUN@3' is not a run; name RUN, and its checkpoint with --checkpoint\n"),
        (["checkpoint", "verify", "RUN@best"], "is not a run; name RUN, and its checkpoint after a space\n"),
        (["resume", "RUN@3"], "'RUN@3' is not a run; name RUN\n"),
        (["train", "demo", "--eval.split", "valid"], "eval.split 'valid' must be 'train', 'val' or 'test'"),
    ],
)
def test_impossible_requests_are_refused_before_the_work(
    run: Path, digits: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("")
    places = {"RUN": run, "DATA": digits, "TMP": tmp_path}

    def placed(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text

    (done,) = spawn(["-m", "cifar_dist", *map(placed, words)])
    assert done.returncode == 2
    assert placed(says) in done.stderr
    assert len(done.stderr.splitlines()) == 1, "nothing was predicted or exported before"


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["predict", "RUN", "TMP/a.npz", "--out", "TMP/a.npz"], "TMP/a.npz"),
        (["predict", "RUN", "TMP/images", "--out", "TMP/images/0.png"], "TMP/images"),
        (["predict", "RUN", "DATA", "--out", "RUN/config.toml"], "RUN/config.toml"),
        (["export", "RUN", "--out", "RUN/final/model.safetensors"], "RUN/final"),
        (["export", "RUN", "--checkpoint", "TMP/w.pth", "--out", "TMP/w.pth"], "TMP/w.pth"),
        (["checkpoint", "average", "RUN", "13", "26", "--out", "RUN/checkpoints/a.safetensors"], "RUN/checkpoints"),
        (["preview", "DATA", "demo", "--out", "DATA/test.png"], "DATA"),
        (["model", "TMP/r.toml", "--csv", "TMP/r.toml"], "TMP/r.toml"),
        (["sweep", "table", "TMP/r.toml", "--csv", "TMP/r.toml"], "TMP/r.toml"),
        (["runs", "list", "RUN", "--csv", "RUN/metrics.jsonl"], "RUN/metrics.jsonl"),
        (["runs", "compare", "RUN", "--picture", "RUN/final/a.svg"], "RUN/final"),
    ],
)
def test_no_verb_overwrites_what_it_reads(run: Path, digits: Path, tmp_path: Path, words: list[str], read: str) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.npz", "w.pth", "images/0.png"):
        (tmp_path / name).touch()
    (tmp_path / "r.toml").write_text(RECIPE.format(folder=tmp_path, digits=digits))

    def placed(text: str) -> str:
        return text.replace("RUN", str(run)).replace("DATA", str(digits)).replace("TMP", str(tmp_path))

    option, out = words[-2:]
    with pytest.raises(UserError) as error:
        cli.run([placed(word) for word in words])
    assert str(error.value) == placed(f"{option} {out} would change {read}, which is read; use another {option}")


def test_evaluate_names_a_missing_dataset_and_one_that_has_changed(run: Path, digits: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = moved / "config.toml"
    trained = read_config(config)
    config.write_text(config.read_text().replace(str(digits), "not/here"))
    (done,) = spawn(["-m", "cifar_dist", "evaluate", str(moved)])
    assert done.returncode == 2
    missing = f"not/here, the dataset of {moved}, does not exist in {ROOT}"
    assert done.stderr == f"cifar-dist: {missing}; name it with --data DIR\n"
    data, evaluation = replace(trained.data, hold_out=False), replace(trained.eval, split="val")
    write_settings(RunFolder(moved), replace(trained, data=data, eval=evaluation))
    said = verb("evaluate", str(moved), "--data", str(digits), "--tta", "0")
    assert "\nval: accuracy " in f"\n{said}", "as the run itself was evaluated"
    assert "another dataset" not in said
    assert "the run was trained on the split val\n" in said


def test_an_evaluation_on_other_labels_of_the_same_shards_is_not_the_run_s_own(
    run: Path, digits: Path, tmp_path: Path
) -> None:
    """It is not one on another dataset, either: the shards are those that the run was trained on."""
    relabelled = copy_relabelled(digits, tmp_path / "relabelled", "test")
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)
    final = RunFolder(copy).final_summary()
    assert final is not None
    own, path = own_data_of(RunFolder(copy)), copy / "config.toml"
    assert not is_on_other_data(final, own)
    assert not is_on_other_data(replace(final, split_fingerprint=""), own), "of an earlier version"
    path.write_text(path.read_text().replace(str(digits), str(relabelled)))
    before = set((copy / "evaluations").iterdir())
    said = verb("evaluate", str(copy), "--tta", "0")
    assert f"{relabelled} differs from what the run was trained on (labels of sample 0 of test-000000.tar: " in said
    (folder,) = set((copy / "evaluations").iterdir()) - before
    summary = read_summary(folder / "summary.json")
    assert summary is not None
    assert is_on_other_data(summary, own)
    said = verb("evaluate", str(copy), "--tta", "0", "--split", "val")
    assert "test-000000.tar" in said
    found = [read_summary(path) for path in copy.glob("evaluations/*/summary.json")]
    assert {is_on_other_data(one, own) for one in found if one and one.split == "val"} == {False}, "val is unchanged"


def test_weights_from_any_file_are_evaluated(run: Path, tmp_path: Path) -> None:
    final = load_file(run / "final" / "model.safetensors")
    foreign = tmp_path / "their best (1).pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in final.items()}}, foreign)
    by_path = open_trained(RunFolder(run), str(run / "checkpoints" / "latest"))
    assert by_path.weights == open_trained(RunFolder(run), "latest").weights
    shutil.copytree(run / "checkpoints", tmp_path / "other run" / "checkpoints", symlinks=True)
    of_other = open_trained(RunFolder(run), str(tmp_path / "other run" / "checkpoints" / "latest"))
    assert of_other.weights.name == f"other-run-{by_path.weights.name}", "this run may have a step of that name too"
    trained = open_trained(RunFolder(run), str(foreign))
    assert trained.weights.name == "their-best--1-.pth"
    loaded = build_trained(trained).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in final.items())
    said = verb("evaluate", str(run), "--checkpoint", str(foreign), "--tta", "0")
    assert re.search(r"without TTA, calibration error .* %, 71 images, their-best--1-\.pth", said)
    (folder,) = run.glob("evaluations/*their-best*")
    assert (folder / "model.pth").read_bytes() == foreign.read_bytes()
    (final_folder,) = run.glob("evaluations/*_model_final")
    assert RunFolder(run).final_summary() == read_summary(final_folder / "summary.json")


@pytest.mark.parametrize("name", ["best", "latest", "26", "step-00000026"])
def test_a_checkpoint_s_name_is_not_a_file_of_the_working_directory(
    run: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert open_trained(RunFolder(run), name).weights.name.startswith("step-000000")
    assert open_trained(RunFolder(run), f"./{name}").weights.files == (Path(name),)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("nowhere.pth", "nowhere.pth does not exist"),
        ("no/such/checkpoint", "no/such/checkpoint does not exist"),
        ("README.md", "README.md cannot be read: it is not a file of torch.save; save one with"),
        (
            "RUN/final",
            "RUN/final: it has no COMPLETE.json, so it was never finished; its weights are RUN/final/model.saf",
        ),
        ("cifar_dist/checkpoint", "give a complete checkpoint or a file of weights"),
    ],
)
def test_a_file_without_weights_is_one_line(
    run: Path, weights: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    weights, says = (text.replace("RUN", str(run)) for text in (weights, says))
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        build_trained(open_trained(RunFolder(run), weights))
    assert "\n" not in str(caught.value)


def test_resume_from_another_folder_names_the_dataset_that_is_missing_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(re.sub(r'(?m)^path = ".*"', 'path = "shards/mine"', config))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"shards/mine, the dataset of \S+, does not exist in {tmp_path}; name it with --data\.path"
    ):
        cli.run(["resume", "copy", "--train.epochs", "50"])


def test_a_run_without_its_config_is_named_with_the_command_that_repairs_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    config, started = copy / "config.toml", copy / ".started.toml"
    for left in (None, "", started.read_text()[:-5]):
        config.unlink(missing_ok=True)
        if left is not None:
            config.write_text(left)
        for words in (["resume", str(copy)], ["evaluate", str(copy)], ["runs", "compare", str(copy)]):
            with pytest.raises(UserError, match=f"restore it: cp {started} {config}$"):
                cli.run(words)
    capsys.readouterr()
    assert cli.run(["runs", "compare", str(run), str(copy)]) == 0, "the others are compared"
    assert f"warning: {copy} is left out: " in (said := capsys.readouterr().err)
    assert said.endswith(f"restore it: cp {started} {config}\n")
    shutil.copy(started, config)
    assert find_run(str(copy)).path == copy


def test_a_run_is_timed_as_it_is_traced_and_scripted(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch begins
    assert cli.run(["speed", str(run), "--batch", "2", "--passes", "3"]) == 0
    assert not torch.backends.cudnn.allow_tf32, "the network computes as the run did"
    about, _, table = capsys.readouterr().out.partition("\n\n")
    assert "batches of 2, images of 32x32x" in about
    assert ", float32, 3 passes" in about
    head, _, *lines = cells(table)
    assert head == ["form", "mean ms", "p50 ms", "p95 ms", "times as fast", "difference"]
    assert [line[0] for line in lines] == ["base", "traced", "scripted"]
    assert all(float(line[2]) <= float(line[3]) and float(line[5]) < 1e-4 for line in lines)


def test_a_network_that_cannot_be_scripted_is_timed_without() -> None:
    class Untyped(torch.nn.Module):
        def forward(self, images, **others):  # type: ignore[no-untyped-def]
            return images.mean((1, 2, 3)) if others == {} else images

    images = torch.randn(2, 3, 4, 4)
    forms, failures = make_forms(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(Untyped())), images)
    assert list(forms) == ["base", "traced"]
    assert list(failures) == ["scripted"]
    assert failures["scripted"].startswith("TorchScript cannot compile its 1.0 (Untyped): Compiled functions can't")
    assert "line" not in failures["scripted"], "the reason, and not its place"
    assert make_forms(Untyped(), images)[1]["scripted"].startswith("TorchScript cannot compile Untyped: Compiled")
    timings = time_forms({"slow": lambda x: forms["base"](x) + 1, **forms}, images, passes=2)
    assert timings["base"].difference == pytest.approx(1.0)


def test_a_network_with_handmade_convolutions_is_timed_unscripted() -> None:
    network = use_unfold_convolutions(build("tiny-cnn", classes=10, options={})).eval()
    forms, failures = make_forms(network, torch.randn(2, 3, 8, 8))
    assert list(forms) == ["base", "traced"]
    said = "TorchScript cannot compile its features.0 (UnfoldConv2d): keyword-arg expansion is not supported"
    assert failures["scripted"] == said


def test_a_network_that_changes_its_images_is_timed_on_the_same_ones() -> None:
    class Halving(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            images *= 0.5
            return images.mean((1, 2, 3))

    images = torch.randn(2, 3, 4, 4)
    forms, failures = make_forms(Halving(), images)
    assert not failures
    given = images.clone()
    assert all(timing.difference < 1e-6 for timing in time_forms(forms, images, passes=2).values())
    assert torch.equal(images, given)


def test_a_batch_that_exceeds_memory_is_one_line(run: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"ran out of memory.* with --batch 2000000000; use a smaller one"):
        cli.run(["speed", str(run), "--batch", "2000000000"])


def test_a_run_whose_checkpoints_or_records_are_lost_names_what_is_left(run: Path, tmp_path: Path) -> None:
    lost = shutil.copytree(run, tmp_path / "lost", symlinks=True)
    (lost / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"lost/metrics\.jsonl has lost the records of all steps; restore it"):
        cli.run(["replay", str(lost), "1"])
    shutil.rmtree(lost / "checkpoints")
    with pytest.raises(UserError, match=r"use its final weights: --checkpoint .*lost/final/model\.safetensors$"):
        cli.run(["evaluate", str(lost)])
