"""A run keeps the plug-in files that it used, and reports when one of them has changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import pytest
from support.plug_in_package import NET as PACKAGED_NET
from support.plug_in_package import write_package
from support.running import environment, spawn, train
from support.small_checkpoint import names

from cifar_dist.config import Config, ModelConfig, TrackingConfig, plugins
from cifar_dist.config.plugin_code import folder_checksum
from cifar_dist.config.plugin_copies import checksum_of, located, notes_on, use_copies
from cifar_dist.errors import UserError
from cifar_dist.files.checksums import sha256
from cifar_dist.run_folder.kept_plugins import keep_versions

NET = """
from torch import nn

def net(classes: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes))
"""

MIRROR = """
class Silent:
    def __init__(self, folder, config, facts): pass
    def start(self, history): pass
    def train_steps(self, records): pass
    def evaluation(self, record, best): pass
    def close(self, status): pass
"""

NOT_COPIED = "using it as it is now, because packages are not copied"

OPTIMIZER = """
from dataclasses import dataclass
from cifar_dist.config import OptimConfig
from torch.optim import SGD

@dataclass(frozen=True)
class Plain(OptimConfig):
    def build(self, groups): return SGD(groups, lr=self.lr)
"""


def config(*files: Path) -> Config:
    return Config(tracking=TrackingConfig(mirrors=tuple(f"{file}:Silent" for file in files)))


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_plug_ins_are_found_in_every_part_of_a_config() -> None:
    mirrors = ("a/mine.py:A", "a/mine.py:B", "package.module:C", "package:D", "b/mine.py:D", "timm:resnet18")
    config = Config(tracking=TrackingConfig(mirrors=mirrors))
    assert plugins.code_of(config) == ["a/mine.py", "package", "b/mine.py"]
    assert plugins.code_of(Config()) == []


def test_without_plugins_no_folder_is_created(tmp_path: Path) -> None:
    assert keep_versions(tmp_path / "plugins", Config()) == []
    assert not (tmp_path / "plugins").exists()


def test_each_version_is_kept_once_and_a_change_is_reported_once(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a" / "mine.py", "1"), write(tmp_path / "b" / "mine.py", "2")
    folder = tmp_path / "plugins"
    assert keep_versions(folder, config(one, other)) == []
    assert names(folder) == ["mine-2.py", "mine.py", "plugins.json"]
    assert keep_versions(folder, config(one, other)) == []
    write(one, "3")
    (note,) = keep_versions(folder, config(one, other))
    assert note == (
        f"the plug-in {one} has changed since the last start of this run: diff {folder}/mine.py {folder}/mine-3.py"
    )
    assert keep_versions(folder, config(one, other)) == []
    assert [(folder / name).read_text() for name in ("mine.py", "mine-2.py", "mine-3.py")] == ["1", "2", "3"]
    entries = json.loads((folder / "plugins.json").read_text())["files"]
    assert [entry["file"] for entry in entries] == [str(one), str(other), str(one)]
    assert all(sha256(folder / entry["copy"]) == entry["sha256"] for entry in entries)


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": [{"file": 1}]}', "[" * 100_000])
def test_a_damaged_index_is_created_again(tmp_path: Path, text: str) -> None:
    one, folder = write(tmp_path / "a" / "mine.py", "1"), tmp_path / "plugins"
    keep_versions(folder, config(one))
    (folder / "plugins.json").write_text(text)
    assert keep_versions(folder, config(one)) == []
    assert names(folder) == ["mine.py", "plugins.json"]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the plug-in .*nowhere\.py cannot be read \(No such file or directory\)"):
        keep_versions(tmp_path / "plugins", config(tmp_path / "nowhere.py"))


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


def test_a_run_is_used_with_the_plug_in_that_trained_it(tiny: Path, digits: Path, tmp_path: Path) -> None:
    """By what reads its weights, and by a branch, where the file is another one or does not exist."""
    net = write(tmp_path / "net.py", NET)
    words = [str(tiny), "--model.name", f"{net}:net", "--run.name", "a", "--train.max_steps", "5"]
    assert train(*words)[0].returncode == 0
    run = tmp_path / "runs" / "a"
    copy = run / "plugins" / "net.py"
    (wanted,) = (json.loads(path.read_text())["accuracy"] for path in run.glob("evaluations/*/summary.json"))
    write(net, NET.replace("nn.Linear(16 * channels, classes)", "nn.Linear(16 * channels, classes), nn.Softmin(1)"))
    evaluate = ["-m", "cifar_dist", "evaluate", str(run), "--checkpoint", str(run / "final" / "model.safetensors")]
    evaluate += ["--tta", "0"]
    for said in ("has changed since {run} copied it; using {copy}", "does not exist here; using its copy {copy}"):
        first, second = spawn(evaluate, processes=2)
        assert first.returncode == 0, first.stderr
        assert first.stderr.count(f"cifar-dist: {net} {said.format(run=run, copy=copy)}\n") == 1
        assert "using" not in second.stderr
        assert f"accuracy {100 * wanted:.2f} %" in first.stdout
        net.unlink(missing_ok=True)
    predict = ["predict", str(run), str(digits), "--out", str(tmp_path / "out.csv")]
    for verb in (predict, ["export", str(run), "--out", str(tmp_path / "it.pt")]):
        (done,) = spawn(["-m", "cifar_dist", *verb])
        assert done.returncode == 0, done.stderr
        assert f"cifar-dist: {net} does not exist here; using its copy {copy}" in done.stderr
    (branch,) = train(str(run / "config.toml"), "--run.name", "b", "--run.from", f"{run}@5", "--train.max_steps", "6")
    assert branch.returncode == 0, branch.stderr
    assert f"{net} does not exist here; using its copy {copy}" in branch.stdout + branch.stderr
    assert (tmp_path / "runs" / "b" / "plugins" / "net.py").read_text() == NET


def test_a_run_with_the_settings_of_another_reports_that_its_plug_in_has_changed(tiny: Path, tmp_path: Path) -> None:
    mirror = write(tmp_path / "mine.py", MIRROR)
    (first,) = train(str(tiny), "--run.name", "a", "--tracking.mirrors", f"{mirror}:Silent", "--train.max_steps", "2")
    assert first.returncode == 0, first.stderr
    a = tmp_path / "runs" / "a"
    changed = f"{mirror} has changed since {a} was trained; using it as it is now, not its copy {a}/plugins/mine.py"
    for expected in (0, 1):
        (again,) = train(str(a / "config.toml"), "--run.name", f"b{expected}")
        assert again.returncode == 0, again.stderr
        assert (tmp_path / "runs" / f"b{expected}" / "training.log").read_text().count(changed) == expected
        write(mirror, MIRROR + "# changed\n")
    train(str(a / "config.toml"), "--train.max_steps", "3")
    log = (a / "training.log").read_text()
    assert ("since the last start of this run" in log, changed in log) == (True, False), "it is said once"


def test_predictions_need_no_code_that_only_training_computes_with(tiny: Path, digits: Path, tmp_path: Path) -> None:
    code = write(tmp_path / "mine.py", MIRROR + OPTIMIZER)
    words = ["--optim.name", f"{code}:Plain", "--tracking.mirrors", f"{code}:Silent", "--train.max_steps", "5"]
    (done,) = train(str(tiny), *words, "--run.name", "a")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "a"
    code.unlink()
    (run / "plugins" / code.name).unlink()
    for words in (["evaluate", str(run)], ["predict", str(run), str(digits), "--out", str(tmp_path / "out.csv")]):
        (done,) = spawn(["-m", "cifar_dist", *words])
        assert (done.returncode, "mine.py" in done.stderr) == (0, False), done.stderr
    (done,) = spawn(["-m", "cifar_dist", "resume", str(run), "--train.max_steps", "6"])
    assert (done.returncode, f"file {code} does not exist" in done.stderr) == (2, True), done.stderr


def test_a_damaged_copy_is_not_used(tmp_path: Path) -> None:
    one, folder = write(tmp_path / "a" / "mine.py", "1"), tmp_path / "run" / "plugins"
    folder.parent.mkdir()
    keep_versions(folder, config(one))
    write(folder / "mine.py", "2")
    use_copies(folder, also_changed=True)
    assert (located(one), notes_on(plugins.code_of(config(one)))) == (one, []), "it is what the run was trained with"
    write(one, "3")
    use_copies(folder, also_changed=True)
    assert located(one) == one
    assert notes_on(plugins.code_of(config(one))) == [
        f"{one} has changed since {folder.parent} was trained, and its copy {folder}/mine.py is damaged"
    ]
    one.unlink()
    use_copies(folder)
    assert located(one) == one
    write(folder / "mine.py", "1")
    use_copies(folder)
    assert located(one) == folder / "mine.py"
    write(one, "4")
    use_copies(folder)
    assert located(one) == one, "a resume uses what is there"


def test_the_copy_of_a_file_in_a_home_folder_is_found_under_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine, or for another person."""
    folder, written = tmp_path / "run" / "plugins", Path("~/net.py")
    mine, other = write(tmp_path / "mine" / "net.py", "value = 1"), tmp_path / "other" / "net.py"
    folder.parent.mkdir()
    monkeypatch.setenv("HOME", str(mine.parent))
    keep_versions(folder, config(written))
    monkeypatch.setenv("HOME", str(other.parent))
    use_copies(folder)
    assert notes_on([str(written)]) == [f"{other} does not exist here; using its copy {folder}/net.py"]
    assert plugins.load(f"{written}:value") == 1
    write(other, "value = 2")
    use_copies(folder, also_changed=True)
    assert located(written) == folder / "net.py", "not the file of the other home folder"
    assert notes_on([str(other)]) == [f"{other} has changed since {folder.parent} copied it; using {folder}/net.py"]


def test_an_index_that_has_the_path_of_the_home_folder_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions wrote it instead of ``~``."""
    folder, mine = tmp_path / "plugins", write(tmp_path / "mine" / "net.py", "1")
    monkeypatch.setenv("HOME", str(mine.parent))
    keep_versions(folder, config(mine))
    assert keep_versions(folder, config(Path("~/net.py"))) == []
    assert names(folder) == ["net.py", "plugins.json"]
    mine.unlink()
    use_copies(folder)
    assert located(Path("~/net.py")) == folder / "net.py"


def test_a_run_reports_that_the_package_of_a_plug_in_is_another_one(tiny: Path, tmp_path: Path) -> None:
    """Also where only a module that the plug-in imports has changed."""
    site, run = write_package(tmp_path / "site"), tmp_path / "runs" / "a"
    env = {"PYTHONPATH": f"{environment()['PYTHONPATH']}{os.pathsep}{site}"}

    def said(*words: str) -> str:
        (done,) = spawn(["-m", "cifar_dist", *words], env=env)
        assert done.returncode == (3 if "replay" in words else 0), done.stderr
        return done.stdout + done.stderr

    train_it = ["train", str(tiny), "--model.name", PACKAGED_NET, "--run.name", "a"]
    assert "plugpkg has changed" not in said(*train_it, "--train.max_steps", "5")
    (entry,) = json.loads((run / "plugins" / "plugins.json").read_text())["files"]
    assert (entry["file"], entry["copy"], entry["version"]) == ("plugpkg", "", "1.0")
    assert names(run / "plugins") == ["plugins.json"]
    write_package(site, version="1.1", activation="Sigmoid")
    changed = "the plug-in plugpkg has changed, from version 1.0 to 1.1, since"
    no_copy = f"cifar-dist: {changed} {run} used it; {NOT_COPIED}\n"
    for words in (
        ["evaluate", str(run)],
        ["export", str(run), "--out", str(tmp_path / "it.pt")],
        ["replay", str(run), "3"],
    ):
        assert said(*words).count(no_copy) == 1
    again = said("resume", str(run), "--train.max_steps", "6")
    assert again.count(f"warning: {changed} the last start of this run\n") == 1, again
    assert NOT_COPIED not in again
    assert "plugpkg has changed" not in said("resume", str(run), "--train.max_steps", "7")
    assert "plugpkg has changed" not in said("evaluate", str(run))


def test_every_python_file_of_a_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, folder = write_package(tmp_path / "site"), tmp_path / "run" / "plugins"
    (site / "namespace").mkdir()
    for path in (site / "namespace" / "nets.py", site / "single.py"):
        path.write_text("1")
    folder.parent.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    files = {"plugpkg.nets:net": "plugpkg/deep/new.py", "namespace.nets:net": "namespace/nets.py"}
    for name, file in (files | {"single:net": "single.py"}).items():
        of_it, code = replace(Config(), model=ModelConfig(name)), re.split("[.:]", name)[0]
        assert keep_versions(folder, of_it) == keep_versions(folder, of_it) == []
        (site / file).write_text("2")
        (site / "plugpkg" / "data.txt").write_text("no code")
        use_copies(folder)
        note = f"the plug-in {code} has changed since"
        assert notes_on([code]) == [f"{note} {folder.parent} used it; {NOT_COPIED}"]
        assert keep_versions(folder, of_it) == [f"{note} the last start of this run"]
        use_copies(folder)
        assert keep_versions(folder, of_it) == []
    shutil.rmtree(site)
    use_copies(folder)
    assert notes_on(["plugpkg", "namespace", "single"]) == [], "its import says so"


@pytest.mark.parametrize("name", ["plugpkg.nets:net", "plugpkg.deep:net", "mine:net"])
@pytest.mark.parametrize("verb", [["-m", "cifar_dist"], ["{here}/again.py"]])
def test_a_module_that_only_this_command_finds_is_refused(
    tiny: Path, tmp_path: Path, name: str, verb: list[str]
) -> None:
    """Python has the working folder, or the script's, on its path: no other command could use the run."""
    here = write_package(tmp_path / "here")
    (here / "mine.py").write_text(NET)
    (here / "again.py").write_text("import runpy\nrunpy.run_module('cifar_dist', run_name='__main__')\n")
    words = [*(word.format(here=here) for word in verb), "train", str(tiny), "--model.name", name]
    words += ["--train.max_steps", "1"]
    file = {"plugpkg.nets": "plugpkg/nets.py", "plugpkg.deep": "plugpkg/deep/__init__.py", "mine": "mine.py"}
    module = name.partition(":")[0]
    is_script = verb[0] != "-m"
    folder = tmp_path if is_script else here
    for env in ({}, {} if is_script else {"PYTHONSAFEPATH": "1"}):
        (done,) = spawn(words, env=env, cwd=folder)
        way = f"{(here / file[module]).relative_to(folder)}:net, or add its folder: export PYTHONPATH={here}"
        says = f"model.name {name!r}: module {module} is not installed; name its file, {way}\n"
        assert (done.returncode, done.stderr.endswith(says)) == (2, True), done.stderr
    if name != "plugpkg.deep:net":
        env = {"PYTHONPATH": f"{environment()['PYTHONPATH']}{os.pathsep}{here}"}
        (done,) = spawn(words, env=env, cwd=folder)
        assert done.returncode == 0, done.stderr


def test_a_package_that_is_installed_from_the_working_folder_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `pip install --editable` does, with an import hook or a folder on the path."""

    class Hook:
        @staticmethod
        def find_spec(name: str, path: object, target: object = None) -> ModuleSpec | None:
            return PathFinder.find_spec(name, [str(tmp_path)]) if name == "editable" else None

    (tmp_path / "editable").mkdir()
    (tmp_path / "editable" / "__init__.py").touch()
    (tmp_path / "editable" / "nets.py").write_text("net = 3")
    before = sys.path
    monkeypatch.setattr(sys, "path", [str(tmp_path), *before])
    with pytest.raises(ValueError, match=r"module editable\.nets is not installed; name its file"):
        plugins.load("editable.nets:net")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *before, str(tmp_path)])
    assert plugins.load("editable.nets:net") == 3
    monkeypatch.setattr(sys, "path", [str(tmp_path), *before])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Hook])
    assert plugins.load("editable.nets:net") == 3
    assert checksum_of("editable") == folder_checksum(tmp_path / "editable")
