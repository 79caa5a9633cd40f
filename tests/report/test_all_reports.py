"""The reports of several runs, drawn by one command."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from support.reported_run import make_run
from support.tags import Tags

from cifar_dist import cli
from cifar_dist.errors import UserError
from cifar_dist.report import run_page
from cifar_dist.report.run_page import write_report
from cifar_dist.run_folder import RunFolder
from cifar_dist.terminal import progress


def test_all_reports_are_drawn_whatever_is_wrong_with_one(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, digits)
    shutil.rmtree(run / "evaluations")  # to draw less
    for name in ("a", "sweep/b", "damaged", "unreadable"):
        shutil.copytree(run, tmp_path / "all" / name)
    (tmp_path / "all" / "damaged" / "config.toml").write_text("{ torn")
    (tmp_path / "all" / "unreadable" / "metrics.jsonl").unlink()
    (tmp_path / "all" / "unreadable" / "metrics.jsonl").mkdir()
    shutil.copy(write_report(RunFolder(run)), tmp_path / "all" / "unreadable")
    (tmp_path / "all" / "unreadable" / "evaluations").touch()
    with pytest.raises(UserError, match="2 of the runs below"):
        cli.run(["report", "--all", str(tmp_path / "all")])
    drawn = [tmp_path / "all" / name / "report.html" for name in ("a", "sweep/b")]
    assert capsys.readouterr().out.split() == [str(path) for path in drawn]
    assert all(path.is_file() for path in drawn)
    with pytest.raises(UserError, match="or all: cifar-dist report --all"):
        cli.run(["report"])
    with pytest.raises(UserError, match="or all: cifar-dist report --all"):
        cli.run(["report", str(run), "--all"])


def test_all_leaves_reports_alone_that_are_up_to_date(
    digits: Path, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = make_run(tmp_path, digits), tmp_path / "all"
    for name in "abc":
        shutil.copytree(run, folder / name)
    assert cli.run(["report", str(folder / "a"), str(folder / "b")]) == 0
    times = [(folder / name / "report.html").stat().st_mtime_ns for name in "ab"]
    capsys.readouterr()
    assert cli.run(["report", "--all", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{folder}/c/report.html\n"
    assert "note: 2 reports are up to date; draw one again: cifar-dist report RUN" in said.err
    assert times == [(folder / name / "report.html").stat().st_mtime_ns for name in "ab"]
    (evaluation,) = (folder / "a" / "evaluations").iterdir()
    shutil.copytree(evaluation, evaluation.with_name(evaluation.name + "-again"))  # killed before it drew the report
    assert cli.run(["report", "--all", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}/a/report.html\n"
    assert cli.run(["report", str(folder / "b")]) == 0
    assert capsys.readouterr().out == f"{folder}/b/report.html\n", "a run that is named is drawn in any case"


def test_reports_that_were_drawn_before_an_interruption_are_on_the_page_of_runs(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    run, folder = make_run(tmp_path, digits), tmp_path / "all"
    for name in "ab":
        shutil.copytree(run, folder / name)

    def write_one(run: RunFolder) -> Path:
        if run.name == "b":
            raise KeyboardInterrupt
        return write_report(run)

    monkeypatch.setattr(run_page, "write_report", write_one)
    with pytest.raises(KeyboardInterrupt):
        cli.run(["report", "--all", str(folder)])
    assert Tags((folder / "index.html").read_text()).links == ["a/report.html"]


def test_at_a_terminal_the_reports_are_counted(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "is_terminal", lambda stream: True)
    run = make_run(tmp_path, digits)
    for name in "ab":
        shutil.copytree(run, tmp_path / "all" / name)
    assert cli.run(["report", "--all", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().err
    assert re.findall(r"drawing the report of (.*?) \.\.\.", said) == ["a (1 of 2)", "b (2 of 2)"]
    assert cli.run(["report", str(run)]) == 0
    assert "drawing the report of some-run ..." in capsys.readouterr().err
