"""Runs side by side: their differences, their results, and their curves in one picture."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from support.plug_in_package import NET as PACKAGED_NET
from support.plug_in_package import write_package
from support.run_folders import cells, write_run

from cifar_dist import cli
from cifar_dist.config import Config, EvalConfig, ModelConfig, RunConfig, SGDConfig, TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.files.checksums import sha256
from cifar_dist.run_folder.kept_plugins import keep_versions
from cifar_dist.tracking.metrics import MetricsLog

CONFIG = Config(model=ModelConfig("tiny-cnn", {"dropout": 0.1}), train=TrainConfig(epochs=4))


def test_settings_that_differ_then_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(CONFIG, optim=SGDConfig(lr=0.5), model=ModelConfig("tiny-cnn"), run=RunConfig(name="b", seed=7))
    write_run(here / "runs" / "a", CONFIG, val=0.7, test=0.9)
    write_run(here / "elsewhere" / "b", other, epochs=2, val=0.8)
    assert cli.run(["runs", "compare", "a", "elsewhere/b", "--picture", "out.png"]) == 0
    head, _, *lines = cells(capsys.readouterr().out)
    assert head == ["", "a", "b"]
    assert lines == [
        ["`seed`", "0", "7"],
        ["`dropout`", "0.1", ""],
        ["`lr`", "0.1", "0.5"],
        ["data", "digits", "digits"],
        ["parameters", "12,345", "12,345"],
        ["epochs", "4 of 4", "2 of 4"],
        ["train %", "50.00", "50.00"],
        ["val %", "70.00", "**80.00**"],
        ["test %", "**90.00**", ""],
        ["TTA", "mirror", ""],
        ["time", "2.0 min", "1.0 min"],
    ]
    picture = np.asarray(Image.open("out.png").convert("RGB")).astype(int)
    for colour in ((68, 119, 170), (238, 119, 51)):
        assert (np.abs(picture - colour) < 30).all(axis=2).sum() > 100, "a line of each run"


def test_versions_of_a_plug_in_that_differ(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, model=ModelConfig("net.py:net"))
    for name, net in (("a", "one"), ("b", "one"), ("c", "other")):
        Path("net.py").write_text(net)
        keep_versions(write_run(here / "runs" / name, config) / "plugins", config)
    versions = [sha256(here / "runs" / run / "plugins" / "net.py")[:8] for run in "abc"]
    assert len(set(versions)) == 2
    assert cli.run(["runs", "compare", "a", "b", "c"]) == 0
    assert cells(capsys.readouterr().out)[2] == ["`net.py`", *versions]
    assert cli.run(["runs", "compare", "a", "b"]) == 0
    assert "net.py" not in capsys.readouterr().out


def test_versions_of_a_package_of_plug_ins_that_differ(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(here / "site")])
    versions = []
    for name, activation in (("a", "ReLU"), ("b", "Sigmoid")):
        write_package(here / "site", activation=activation)
        config = replace(CONFIG, model=ModelConfig(PACKAGED_NET))
        plugins = write_run(here / "runs" / name, config) / "plugins"
        keep_versions(plugins, config)
        versions.append(json.loads((plugins / "plugins.json").read_text())["files"][0]["sha256"][:8])
    assert cli.run(["runs", "compare", "a", "b"]) == 0
    assert cells(capsys.readouterr().out)[2] == ["`plugpkg`", *versions]


def test_no_accuracy_is_the_best_among_those_on_other_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(here / "runs" / "a", CONFIG, val=0.7)
    write_run(here / "runs" / "b", CONFIG, val=0.8, dataset="letters")
    assert cli.run(["runs", "compare", "a", "b"]) == 0
    lines = cells(capsys.readouterr().out)
    assert ["val %", "70.00", "80.00"] in lines
    assert ["data", "digits", "letters"] in lines


def test_no_accuracy_is_the_best_among_those_on_other_splits(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None is presented as one on test images, either."""
    on_val, on_train = (
        replace(CONFIG, eval=evaluation) for evaluation in (EvalConfig(split="val"), EvalConfig(split="train"))
    )
    for name, config, test in (("a", on_val, 0.9), ("b", on_train, 0.8), ("c", on_val, 0.8), ("d", CONFIG, 0.8)):
        write_run(here / "runs" / name, config, val=0.7, test=test)
    write_run(here / "runs" / "e", CONFIG, val=0.7)

    def compared(*names: str) -> list[str]:
        assert cli.run(["runs", "compare", *names]) == 0
        return next(line[1:] for line in cells(capsys.readouterr().out) if line[0] == "test %")

    assert compared("a", "b") == ["90.00 (val)", "80.00 (train)"]
    assert compared("a", "c", "e") == ["**90.00 (val)**", "80.00 (val)", ""]
    assert compared("c", "d") == ["80.00 (val)", "80.00"]


def test_data_of_one_name_is_the_same_only_with_the_same_content(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an earlier version did not record is not known to be other data."""
    for name, val, fingerprint in (("a", 0.7, "a" * 16), ("b", 0.8, "b" * 16), ("c", 0.6, "b" * 16), ("d", 0.9, "")):
        write_run(here / "runs" / name, CONFIG, val=val, fingerprint=fingerprint)

    def compared(*names: str) -> list[list[str]]:
        assert cli.run(["runs", "compare", *names]) == 0
        return [line for line in cells(capsys.readouterr().out) if line[0] in ("data", "val %")]

    assert compared("b", "c", "d") == [["data", *["digits"] * 3], ["val %", "80.00", "60.00", "**90.00**"]]
    named = ["digits (aaaaaaaa)", "digits (bbbbbbbb)", "digits (bbbbbbbb)", "digits"]
    assert compared("a", "b", "c", "d") == [["data", *named], ["val %", "70.00", "80.00", "60.00", "90.00"]]


def test_runs_of_one_name_are_distinguished_by_their_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for parent in ("x", "y"):
        write_run(here / parent / "a", CONFIG)
    assert cli.run(["runs", "compare", "x/a", "y/a"]) == 0
    assert cells(capsys.readouterr().out)[0] == ["", "x/a", "y/a"]


def test_a_run_that_has_lost_its_last_records_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        MetricsLog(write_run(here / "runs" / name, CONFIG, val=0.5, test=0.5) / "metrics.jsonl").close()
    (here / "runs" / "b" / "metrics.jsonl").write_bytes(b"")
    assert cli.run(["runs", "compare", "a", "b"]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: runs/b/metrics.jsonl has lost records")


def test_a_run_that_has_not_begun_has_no_curve_and_breaks_no_picture(here: Path) -> None:
    write_run(here / "runs" / "a", CONFIG, epochs=0)
    assert cli.run(["runs", "compare", "a", "--picture", "out.png"]) == 0
    assert Image.open("out.png").width > 1000


def test_the_names_of_the_runs_in_a_picture_can_be_searched(here: Path) -> None:
    """Its letters are lines."""
    names = ["a<b&", "c\u202ed"]
    for name in names:
        write_run(here / "runs" / name, CONFIG, epochs=0)
    said = "Loss and accuracy of a<b&, c\\u202ed"
    assert cli.run(["runs", "compare", *names, "--picture", "out.svg"]) == 0
    root = ElementTree.parse("out.svg").getroot()
    assert root.findtext("{http://www.w3.org/2000/svg}title") == said
    assert cli.run(["runs", "compare", *names, "--picture", "out.png"]) == 0
    assert Image.open("out.png").info["Title"] == said


def test_a_picture_of_more_runs_than_it_has_signs_for_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"r{number}" for number in range(36)]
    for name in names:
        write_run(here / "runs" / name, CONFIG, epochs=0)
    for count, said in ((35, ""), (36, "note: out.png has 35 colours and markers for 36 runs, so some look alike; ")):
        assert cli.run(["runs", "compare", *names[:count], "--picture", "out.png"]) == 0
        assert capsys.readouterr().err == (said and f"{said}name at most 35\n")


def test_the_suffix_of_a_picture_decides_its_format(here: Path) -> None:
    write_run(here / "runs" / "a", CONFIG)
    for name, begins in (("out.svg", b"<?xml"), ("out.PDF", b"%PDF"), ("out", b"\x89PNG")):
        contents = []
        for _ in range(2):
            assert cli.run(["runs", "compare", "a", "--picture", name]) == 0
            contents.append(Path(name).read_bytes())
        assert contents[0].startswith(begins)
        assert contents[0] == contents[1], "the same picture has the same bytes"
    with pytest.raises(
        UserError, match=r"'out\.jpg' is not a picture's name: it must end with \.png or \.svg or \.pdf"
    ):
        cli.run(["runs", "compare", "a", "--picture", "out.jpg"])


def test_a_damaged_run_is_left_out_and_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abcd":
        write_run(here / "runs" / name, CONFIG, val=0.5)
    (here / "runs" / "b" / "config.toml").write_text("junk")
    (here / "runs" / "c" / "metrics.jsonl").unlink()
    (here / "runs" / "c" / "metrics.jsonl").mkdir()
    assert cli.run(["runs", "compare", *"abcd", "--picture", "out.png"]) == 0
    out, err = capsys.readouterr()
    assert cells(out)[0] == ["", "a", "d"]
    b, c = err.splitlines()
    assert b.startswith("warning: runs/b is left out: runs/b/config.toml cannot be read as TOML: ")
    assert c.startswith("warning: runs/c is left out: runs/c/metrics.jsonl: Is a directory")
    with pytest.raises(UserError, match=r"^runs/b/config\.toml"):
        cli.run(["runs", "compare", "b", "c"])


def test_runs_that_cannot_be_compared_are_one_line(here: Path) -> None:
    (write_run(here / "runs" / "damaged", CONFIG) / "metrics.jsonl").write_text("{}\n{}\n")
    for words, says in (
        (["nothing"], r"run 'nothing' does not exist; did you mean|known: damaged"),
        (["damaged"], r"runs/damaged/metrics\.jsonl"),
        ([], "the following arguments are required: RUN"),
    ):
        with pytest.raises(UserError, match=says):
            cli.run(["runs", "compare", *words])
