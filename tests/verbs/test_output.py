"""Files that a verb may write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.run_folders import write_run

from cifar_dist import cli
from cifar_dist.config import Config
from cifar_dist.errors import UserError
from cifar_dist.verbs.output import check_writable


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input file, with a link and a second name, and an input folder."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for name in ("a.npz", "images/0.png"):
        Path(name).touch()
    Path("link.npz").symlink_to("a.npz")
    os.link("a.npz", "second.npz")


@pytest.mark.parametrize(
    ("out", "read"),
    [
        ("a.npz", "a.npz"),
        ("link.npz", "a.npz"),
        ("a.npz", "link.npz"),
        ("second.npz", "a.npz"),
        ("images/0.png", "images"),
        ("images/new.csv", "images"),
        ("images/../images/new/new.csv", "images"),
    ],
)
def test_an_input_or_what_is_in_one_is_not_overwritten(out: str, read: str) -> None:
    with pytest.raises(UserError) as error:
        check_writable(Path(out), "--out", Path("elsewhere"), Path(read))
    assert str(error.value) == f"--out {Path(out)} would change {read}, which is read; use another --out"


@pytest.mark.parametrize("out", ["b.npz", "images.csv", "/dev/stdout"])
def test_anything_else_may_be_written(out: str) -> None:
    check_writable(Path(out), "--out", Path("a.npz"), Path("images"))


def test_an_open_file_may_be_written_in_a_folder_that_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's standard output is such a file where its log is in a folder of somebody else."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with Path("log.txt").open("w") as file:
        check_writable(Path(f"/dev/fd/{file.fileno()}"), "--csv")
    with pytest.raises(UserError, match="permission denied"):
        check_writable(Path("log.txt"), "--csv")


def test_a_text_counts_only_if_it_is_a_file() -> None:
    """It may be the name of a recipe, and a folder of that name is no input."""
    check_writable(Path("images/new.csv"), "--out", "images")
    with pytest.raises(UserError, match=r"would change a\.npz"):
        check_writable(Path("a.npz"), "--out", "a.npz")


@pytest.mark.parametrize("words", ["runs list", "sweep table lr-weight-decay", "model tiny-cnn"])
def test_a_csv_in_standard_output_is_not_mixed_with_the_table(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    write_run(Path("runs/a"), Config())
    assert cli.run([*words.split(), "--csv", "out.csv"]) == 0
    table = capfd.readouterr().out
    assert cli.run([*words.split(), "--csv", "/dev/stdout"]) == 0
    out, err = capfd.readouterr()
    assert out.encode() == Path("out.csv").read_bytes()
    assert table in err


@pytest.mark.parametrize(
    "name",
    ["environment.json", "timeline.jsonl", "training.log", ".lock", ".started.toml", "plugins/a.py", "job.sbatch"],
)
def test_no_record_of_a_run_is_overwritten(name: str) -> None:
    record = write_run(Path("runs/a"), Config()) / name
    record.parent.mkdir(exist_ok=True)
    record.write_text("kept")
    with pytest.raises(UserError, match=f"--csv {record} would change the run .*runs/a; use"):
        check_writable(record, "--csv")
    check_writable(Path("runs/a/layers.csv"), "--csv")
