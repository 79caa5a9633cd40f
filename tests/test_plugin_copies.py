"""A run keeps the plug-in files that it used, and reports when one of them has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.running import train
from support.small_checkpoint import names

from cifar_dist.config import Config, TrackingConfig
from cifar_dist.errors import UserError
from cifar_dist.files import sha256
from cifar_dist.plugin_copies import keep_copies, plugin_files

MIRROR = """
class Silent:
    def __init__(self, folder, config, facts): pass
    def start(self, history): pass
    def train_steps(self, records): pass
    def evaluation(self, record, best): pass
    def close(self, status): pass
"""


def config(*files: Path) -> Config:
    return Config(tracking=TrackingConfig(mirrors=tuple(f"{file}:Silent" for file in files)))


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_plug_in_files_are_found_in_every_part_of_a_config() -> None:
    mirrors = ("a/mine.py:A", "a/mine.py:B", "package.module:C", "b/mine.py:D")
    assert plugin_files(Config(tracking=TrackingConfig(mirrors=mirrors))) == [Path("a/mine.py"), Path("b/mine.py")]
    assert plugin_files(Config()) == []


def test_without_plugins_no_folder_is_created(tmp_path: Path) -> None:
    assert keep_copies(tmp_path / "plugins", Config()) == []
    assert not (tmp_path / "plugins").exists()


def test_each_version_is_kept_once_and_a_change_is_reported_once(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a" / "mine.py", "1"), write(tmp_path / "b" / "mine.py", "2")
    folder = tmp_path / "plugins"
    assert keep_copies(folder, config(one, other)) == []
    assert names(folder) == ["mine-2.py", "mine.py", "plugins.json"]
    assert keep_copies(folder, config(one, other)) == []
    write(one, "3")
    (note,) = keep_copies(folder, config(one, other))
    assert note == (
        f"the plug-in {one} has changed since the last start of this run: diff {folder}/mine.py {folder}/mine-3.py"
    )
    assert keep_copies(folder, config(one, other)) == []
    assert [(folder / name).read_text() for name in ("mine.py", "mine-2.py", "mine-3.py")] == ["1", "2", "3"]
    entries = json.loads((folder / "plugins.json").read_text())["files"]
    assert [entry["file"] for entry in entries] == [str(one), str(other), str(one)]
    assert all(sha256(folder / entry["copy"]) == entry["sha256"] for entry in entries)


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": [{"file": 1}]}', "[" * 100_000])
def test_a_damaged_index_is_created_again(tmp_path: Path, text: str) -> None:
    one, folder = write(tmp_path / "a" / "mine.py", "1"), tmp_path / "plugins"
    keep_copies(folder, config(one))
    (folder / "plugins.json").write_text(text)
    assert keep_copies(folder, config(one)) == []
    assert names(folder) == ["mine.py", "plugins.json"]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the plug-in .*nowhere\.py cannot be read \(No such file or directory\)"):
        keep_copies(tmp_path / "plugins", config(tmp_path / "nowhere.py"))


def test_a_resume_with_a_changed_file_reports_it(tiny: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.py", MIRROR)
    words = [str(tiny), "--train.epochs", "1", "--tracking.mirrors", json.dumps([f"{mine}:Silent"])]
    run = tmp_path / "runs" / "tiny"
    assert train(*words, "--train.max_steps", "5")[0].returncode == 0
    assert (run / "plugins" / "mine.py").read_text() == MIRROR
    write(mine, MIRROR + "# changed\n")
    (again,) = train(*words)
    assert again.returncode == 0, again.stderr
    assert (
        f"warning: the plug-in {mine} has changed since the last start of this run"
        in (run / "training.log").read_text()
    )
    assert (run / "plugins" / "mine-2.py").read_text() == MIRROR + "# changed\n"
