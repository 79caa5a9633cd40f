"""The list of runs: the right state of each, even if one folder is damaged."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support import small_checkpoint
from support.run_folders import cells, write_run
from support.running import TRAIN, finish, spawn, start, train, wait_for_records
from support.without_rights import public_folder, without_rights

from cifar_dist import cli
from cifar_dist.config import Config, EvalConfig, ModelConfig, TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.files.checksums import write_sums
from cifar_dist.report.run_page import write_report
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.runs.listing import describe, disk_bytes, find_runs, has_outdated_report, table
from cifar_dist.terminal import progress
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import MetricsLog
from cifar_dist.verbs import runs as verbs_of_runs

CONFIG = Config(model=ModelConfig("tiny-cnn"), train=TrainConfig(epochs=4))
HEAD = ["run", "state", "model", "epochs", "val %", "test %", "TTA", "parameters", "time", "on disk", "written (UTC)"]


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    capsys.readouterr()
    assert cli.run(["runs", *words]) == 0
    head, _, *lines = cells(capsys.readouterr().out)
    assert head == HEAD
    return lines


def test_a_run_is_training_then_killed_then_finished(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tiny.parent / "runs"
    words = [str(tiny), "--run.name", "it"]
    job = start([TRAIN, *words, "--train.epochs", "100000"])
    try:
        wait_for_records(runs / "it", 3, job)
        assert listed(capsys, "list", str(runs))[0][:3] == [str(runs / "it"), "training", "tiny-cnn"]
        assert cli.run(["runs", "clean", str(runs), "--yes"]) == 0, "and is left alone"
        assert "in use by process" in capsys.readouterr().err
    finally:
        job[0].send_signal(signal.SIGKILL)
        finish(job)
    assert listed(capsys, "list", str(runs))[0][1] == "killed"
    shutil.rmtree(runs)
    assert train(*words)[0].returncode == 0
    (line,) = listed(capsys, "list", str(runs))
    assert line[:4] == [str(runs / "it"), "finished", "tiny-cnn", "2 of 2"]
    assert line[6] == "0"
    assert listed(capsys, "list", str(runs / "it")) == [line], "a run alone"
    (runs / "it" / "metrics.jsonl").unlink()
    capsys.readouterr()
    cli.run(["runs", "list", str(runs)])
    out, err = capsys.readouterr()
    assert cells(out)[2][1] == "finished"
    assert "it/metrics.jsonl has lost records, so" in err


def test_the_data_has_a_column_where_runs_differ_in_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(here / "runs" / "a", CONFIG)
    write_run(here / "runs" / "b", CONFIG)
    cli.run(["runs"])
    assert "data" not in cells(capsys.readouterr().out)[0]
    write_run(here / "runs" / "c", CONFIG, dataset="letters")
    cli.run(["runs", "--sort", "name"])
    head, _, *lines = cells(capsys.readouterr().out)
    assert [line[head.index("data")] for line in lines] == ["digits", "digits", "letters"]


def test_data_of_one_name_and_other_content_is_named_by_its_fingerprint(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, fingerprint in (("a", "a" * 16), ("b", "b" * 16), ("c", "a" * 16)):
        small_checkpoint.save(
            write_run(here / "runs" / name, CONFIG, fingerprint=fingerprint) / "checkpoints", 4, best=True
        )
    (here / "runs" / "c" / "config.toml").write_text("junk")
    named = ["digits (aaaaaaaa)", "digits (bbbbbbbb)"]
    cli.run(["runs", "--sort", "name"])
    head, _, *lines = cells(capsys.readouterr().out)
    assert [line[head.index("data")] for line in lines] == [*named, ""]
    assert cli.run(["runs", "best"]) == 0
    with open("best-models/models.csv", newline="") as text:
        assert sorted(row["dataset"] for row in csv.DictReader(text)) == named
    assert cli.run(["runs", "list", "--csv", "out.csv"]) == 0
    with open("out.csv", newline="") as text:
        found = {row["run"]: (row["dataset"], row["fingerprint"]) for row in csv.DictReader(text)}
    assert found == {"runs/a": ("digits", "a" * 16), "runs/b": ("digits", "b" * 16), "runs/c": ("", "")}


def test_a_narrow_terminal_tells_the_runs_of_a_sweep_apart_without_their_origin(here: Path) -> None:
    names = [f"small-resnet-study.extra-conv-dropout-0.2.s{seed}" for seed in range(3)]
    for name in names:
        write_run(here / "runs" / name, CONFIG, val=0.9, test=0.9)
    event = timeline.Event(timeline.utc(), "extended", 4, 1, note="train.epochs 2 -> 4")
    timeline.append(here / "runs" / names[0] / "timeline.jsonl", event)
    text = table([describe(run) for run in find_runs(Path("runs"))], 80)
    head, _, *rows = cells(text[: text.index("\n\n")])
    assert "not shown, for lack of space: origin, on disk" in text
    assert "test %" in head
    assert len({row[0] for row in rows}) == 3


@pytest.mark.parametrize("end", [[], ["failed"], ["stalled"]])
def test_the_report_of_a_run_that_could_not_draw_it_is_drawn_where_it_can_be_and_is_not_named_in_the_csv(
    capfd: pytest.CaptureFixture[str], end: list[timeline.Kind]
) -> None:
    with public_folder() as runs:
        run = write_run(runs / "it", Config())
        for kind in ("started", *end):
            timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(), kind, 0, 1))
        with without_rights():
            cli.run(["runs", "list", str(run)])
        assert "report" not in "".join(capfd.readouterr())
        cli.run(["runs", "list", str(run), "--csv", "/dev/stdout"])
        out, err = capfd.readouterr()
        assert f"report: {run}/report.html" in err
        assert len(out.splitlines()) == 2


def test_the_page_is_written_before_the_reports_which_may_take_minutes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        run = write_run(here / "runs" / name, CONFIG, epochs=1)
        timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(), "failed", 1, 1))
    page, said = here / "runs" / "index.html", list[str]()

    def interrupted(run: RunFolder, said_on: object, which: str) -> None:
        assert page.is_file()
        said.append(which)
        if run.name == "b":
            raise KeyboardInterrupt

    monkeypatch.setattr("cifar_dist.verbs.runs.draw_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli.run(["runs", "--sort", "name"])
    assert said == ["of a (1 of 2)", "of b (2 of 2)"]
    assert "report.html" not in page.read_text()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert cli.run(["runs"]) == 0
    assert page.read_text().count("report.html") == 2


@pytest.mark.parametrize("words", [["list"], ["compare", "a", "b"], ["best"], ["clean"]])
def test_at_a_terminal_many_runs_are_counted_while_they_are_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    for name in "ab":
        write_sums(write_run(here / "runs" / name, CONFIG, val=0.5, test=0.5) / "final")
    assert cli.run(["runs", *words]) == 0
    assert "reading runs" not in capsys.readouterr().err
    monkeypatch.setattr(verbs_of_runs, "_MANY", 2)
    for module in (verbs_of_runs, progress):
        monkeypatch.setattr(module, "is_terminal", lambda stream: True)
    assert cli.run(["runs", *words]) == 0
    assert re.search(r"reading runs .* 2/2", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["metrics.jsonl", "timeline.jsonl"])
def test_a_report_is_outdated_once_whatever_the_clock_was(here: Path, name: str) -> None:
    run = RunFolder(write_run(here / "it", CONFIG, epochs=0))  # to draw less
    timeline.append(run.timeline, timeline.Event(timeline.utc(), "failed", 1, 1))
    file, hour = run.path / name, 3_600 * 10**9
    before = file.stat().st_mtime_ns
    for change in (hour, 0, None):
        if change is None:
            file.unlink()
        else:
            os.utime(file, ns=(0, before + change))
        assert has_outdated_report(run)
        write_report(run)
        os.utime(run.report, ns=(0, before + 2 * hour))
        assert not has_outdated_report(run)


def test_a_finished_run_that_has_lost_its_evaluation_is_incomplete(here: Path) -> None:
    run = write_run(here / "it", Config(), test=0.5)
    timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(), "finished", 4))
    (run / "manifest.json").write_text('{"splits": {"test": []}}')
    assert describe(RunFolder(run)).state == "finished"
    shutil.rmtree(run / "evaluations")
    assert describe(RunFolder(run)).state == "incomplete"


def test_a_finished_run_whose_copy_lacks_records_and_their_checksum_is_named(here: Path) -> None:
    run = RunFolder(write_run(here / "it", Config(), test=0.5))
    timeline.append(run.timeline, timeline.Event(timeline.utc(), "finished", 4))
    assert describe(run).problem == ""
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    for left, step in ((b"".join(lines[:-1]), 3), (b"".join(lines)[:-1], 3), (b"", 0)):
        run.metrics.write_bytes(left)
        lost = f"{run.metrics} has lost steps of a finished run after step {step}; restore it"
        assert (describe(run).state, describe(run).problem) == ("finished", lost)


@pytest.mark.parametrize("end", ["finished", "interrupted"])
def test_a_run_that_has_lost_its_last_records_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], end: timeline.Kind
) -> None:
    """Its figures are those of an earlier epoch."""
    run = write_run(here / "runs" / "it", CONFIG, val=0.5, test=0.5 if end == "finished" else None)
    timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(), end, 4))
    metrics = run / "metrics.jsonl"
    MetricsLog(metrics).close()
    assert describe(RunFolder(run)).problem == ""
    written = metrics.read_bytes()
    said = []
    for content in (b"".join(written.splitlines(keepends=True)[:4]), written.replace(b"0.5", b"0.6"), b""):
        metrics.write_bytes(content)
        said.append(describe(RunFolder(Path("runs/it"))).problem)
    again = "restore it, or write again what can be: cifar-dist resume runs/it"
    lost = f"runs/it/metrics.jsonl has lost records, so the results shown may be those of an earlier epoch; {again}"
    assert said == [lost, f"runs/it/metrics.jsonl is not what the run wrote; {again}", lost]
    cli.run(["runs"])
    assert f"warning: {lost}\n" in capsys.readouterr().err


def test_the_sorted_value_comes_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for age, (name, val, test) in enumerate([("b", 0.7, None), ("a", 0.9, 0.6), ("sweep/c", None, 0.8)]):
        run = write_run(here / "runs" / name, CONFIG, val=val, test=test)
        for file in run.iterdir():
            os.utime(file, (1e9 - age, 1e9 - age))
    (here / "runs" / "a" / "final" / "model.safetensors").write_bytes(bytes(5000))

    def order(*words: str) -> list[str]:
        return [line[0] for line in listed(capsys, *words)]

    assert order() == order("list") == order("list", "runs", "--sort", "date") == ["b", "a", "sweep/c"]
    assert order("--sort", "name") == order("list", "--sort", "name") == ["a", "b", "sweep/c"]
    assert order("list", "--sort", "val") == ["a", "b", "sweep/c"]
    assert order("list", "--sort", "test") == ["sweep/c", "a", "b"]
    assert order("list", "--sort", "size")[0] == "a"
    b, a, _ = listed(capsys)
    assert b[1:9] == ["not begun", "tiny-cnn", "4 of 4", "70.00", "", "", "12,345", "2.0 min"]
    assert a[1:7] == ["finished", "tiny-cnn", "4 of 4", "90.00", "60.00", "mirror"]
    assert a[10] == "2001-09-09 01:46"


def test_views_that_some_images_got_are_told_from_those_of_all(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(write_run(here / "runs" / "a", CONFIG, test=0.5))
    (evaluation,) = run.evaluation_folders()
    facts = json.loads(evaluation.summary.read_text())
    evaluation.summary.write_text(json.dumps(facts | {"tta_images": 3}))
    (line,) = listed(capsys, "list")
    assert line[6] == "mirror of 3 images"


def test_the_csv_has_the_exact_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(here / "runs" / "a", CONFIG, val=0.123456, test=0.5)
    assert cli.run(["runs", "list", "--csv", "out.csv"]) == 0
    with open("out.csv", newline="") as text:
        (line,) = csv.DictReader(text)
    assert (line["run"], line["val_accuracy"], line["test_accuracy"]) == ("runs/a", "0.123456", "0.5")
    assert (line["eval_split"], line["tta"]) == ("test", "mirror")
    assert (line["dataset"], line["epochs_asked"], line["bytes"]) == ("digits", "4", str(disk_bytes(run)))
    capsys.readouterr()
    for words in (["list", "--csv", "no/out"], ["compare", "runs/a", "--picture", "no/out"]):
        with pytest.raises(UserError, match=r"^no/out cannot be written: the folder no does not exist; use another --"):
            cli.run(["runs", *words])
        assert capsys.readouterr().out == "", "before the work"


def test_a_final_evaluation_on_another_split_is_not_said_to_be_on_test(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(here / "runs" / "a", replace(CONFIG, eval=EvalConfig(split="val")), test=0.5)
    write_sums(run / "final")
    assert listed(capsys, "list", "--csv", "out.csv")[0][5] == "50.00 (val)"
    assert ">50.00 (val)</td>" in (here / "runs" / "index.html").read_text()
    assert cli.run(["runs", "best"]) == 0
    assert cells(capsys.readouterr().out)[2][3] == "50.00 (val)"
    for file in ("out.csv", "best-models/models.csv"):
        with open(file, newline="") as text:
            (line,) = csv.DictReader(text)
        assert (line["test_accuracy"], line["eval_split"]) == ("0.5", "val")


def test_a_name_that_is_not_utf8_is_escaped(here: Path) -> None:
    run = write_run(here / "runs" / os.fsdecode(b"caf\xe9"), CONFIG, test=0.5)
    write_sums(run / "final")
    RunFolder(run).report.touch()
    assert cli.run(["runs", "list", "--csv", "out.csv"]) == cli.run(["runs", "best"]) == 0
    for file in ("out.csv", "best-models/models.csv"):
        assert "runs/caf\\udce9" in (here / file).read_text(encoding="utf-8")
    assert '<a href="caf%E9/report.html">caf\\udce9</a>' in (here / "runs" / "index.html").read_text(encoding="utf-8")


def test_a_damaged_run_is_named_and_hides_no_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(here / "runs" / "a", CONFIG)
    (write_run(here / "runs" / "b", CONFIG) / "config.toml").write_text("[optim]\nlr = 'fast'\n")
    (write_run(here / "runs" / "c", CONFIG) / "metrics.jsonl").write_text("{}\n{}\n")
    (write_run(here / "runs" / "d\nd", CONFIG) / "environment.json").write_text("[" * 100_000)
    (write_run(here / "runs" / "e", CONFIG) / "environment.json").write_text('{"run": {"\\ud800": 1}}')
    assert cli.run(["runs", "list", "--sort", "name"]) == 0
    out, err = capsys.readouterr()
    assert [line[1] for line in cells(out)[2:]] == ["not begun", "damaged", "damaged", "not begun", "not begun"]
    first, second = err.splitlines()
    assert "runs/b/config.toml: optim.lr" in first
    assert "runs/c/metrics.jsonl" in second


@pytest.mark.parametrize("name", ["metrics.jsonl", "timeline.jsonl", "config.toml"])
def test_a_run_that_cannot_be_read_hides_no_other(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write_run(here / "runs" / "a", CONFIG)
    run = write_run(here / "runs" / "b", CONFIG)
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    found = [describe(RunFolder(here / "runs" / run)) for run in "ab"]
    assert [entry.state for entry in found] == ["not begun", "damaged"]
    if name != "config.toml":  # without which it is no run
        assert cli.run(["runs", "list"]) == 0
        assert capsys.readouterr().err == f"warning: runs/b/{name} cannot be read: Is a directory\n"


def test_folders_that_may_not_be_read_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    denied = re.compile("permission denied for 2 folders: '[^']*/b', '[^']*/c/d'")
    with public_folder() as folder:
        write_run(folder / "a", CONFIG)
        for name in ("b", "c/d", "lost+found"):
            write_run(folder / name, CONFIG).chmod(0o700)
        with without_rights():
            assert [run.name for run in find_runs(folder)] == ["a"]
        assert denied.search(capsys.readouterr().err)
        shutil.rmtree(folder / "a")
        with without_rights(), pytest.raises(UserError, match=f"contains no run that can be read: {denied.pattern}"):
            find_runs(folder)


def test_a_folder_without_runs_is_one_line(here: Path) -> None:
    with pytest.raises(UserError, match="folder 'runs' does not exist; train first, or name another"):
        cli.run(["runs"])
    (here / "runs" / ".hidden").mkdir(parents=True)
    (here / "runs" / ".hidden" / "config.toml").touch()
    with pytest.raises(UserError, match="runs contains no run yet"):
        cli.run(["runs"])
    with pytest.raises(UserError, match=r"invalid choice: 'lst'.*; see: cifar-dist runs --help"):
        cli.run(["runs", "lst"])
    for folder in ("many/of them", "runs/list"):
        Path(folder).mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"^'many/of them' is a folder; list its runs: cifar-dist runs list 'many/of th"
    ):
        cli.run(["runs", "many/of them", "--sort", "name"])
    with pytest.raises(UserError, match="runs contains no run yet"):
        cli.run(["runs", "list"])


def test_a_name_in_the_list_is_accepted_by_other_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also that of a run outside of runs/ whose namesake is in it."""
    for path in ("runs/a", "runs/b/a", "elsewhere/a", "a", "c"):
        write_run(here / path, CONFIG)
    for folder, found in (
        ("runs", ["runs/a", "runs/b/a"]),
        ("runs/b", ["runs/b/a"]),
        ("elsewhere", ["elsewhere/a"]),
        (str(here / "elsewhere"), ["elsewhere/a"]),
        (".", ["a", "c", "elsewhere/a", "runs/a", "runs/b/a"]),
    ):
        names = [line[0] for line in listed(capsys, "list", folder, "--sort", "name")]
        assert [find_run(name).path.resolve() for name in names] == [here / path for path in found]
    assert [line[0] for line in listed(capsys, "list", "runs/b")] == ["b/a"]


def test_a_linked_run_is_listed_once_and_not_renamed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(here / "runs" / "a", CONFIG)
    write_run(here / "elsewhere" / "b", CONFIG)
    (here / "runs" / "newest").symlink_to("a")
    (here / "runs" / "link").symlink_to(here / "elsewhere" / "b")
    a, b = listed(capsys, "list", "--sort", "name")
    assert (a[0], b[0]) == ("a", "link")
    assert a[9] == b[9] != "0 B", "on disk"
    with pytest.raises(UserError, match=r"^runs/link is a link; rename the run that it leads to: .*/elsewhere/b$"):
        cli.run(["runs", "rename", "link", "new"])
    assert (here / "elsewhere" / "b").is_dir()


def test_a_run_is_named_by_its_name_or_by_a_dot(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(here / "runs" / "a", CONFIG)
    assert listed(capsys, "list", "a")[0][0] == "a"
    monkeypatch.chdir(here / "runs" / "a")
    assert cli.run(["runs", "rename", ".", "b"]) == 0
    assert f". is now {here}/runs/b" in capsys.readouterr().out
    monkeypatch.chdir(here / "runs" / "b" / "figures")
    assert find_run("..").path == here / "runs" / "b"


def test_only_one_of_many_processes_prints(here: Path) -> None:
    write_run(here / "runs" / "a", CONFIG)
    first, second = spawn(["-m", "cifar_dist", "runs"], processes=2, cwd=here)
    assert (first.returncode, second.returncode) == (0, 0)
    assert cells(first.stdout)[2][0] == "a"
    assert second.stdout == ""
