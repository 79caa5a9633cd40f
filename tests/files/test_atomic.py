"""Nothing half-written: a name refers to the old content or the new, whatever happens in between."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import save_file
from support.crashing import every_death
from support.file_limit import error_of

from cifar_dist.files.atomic import copy_atomic, folder_atomic, fsync, naming, write_atomic, write_numbered
from cifar_dist.files.links import link_atomic


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def replace_folder(target: Path) -> None:
    with folder_atomic(target, replace=True) as folder:
        (folder / "a").write_text("new a")
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text("new b")


NEW = {"a": "new a", "deep/b": "new b"}


@pytest.mark.parametrize("power_loss", [False, True])
def test_a_file_is_old_or_new_at_every_death(tmp_path: Path, power_loss: bool) -> None:
    def prepare() -> Path:
        folder = Path(mkdtemp(dir=tmp_path))
        (folder / "config.toml").write_text("old")
        return folder

    seen = [
        (folder / "config.toml").read_text()
        for folder in every_death(prepare, lambda f: write_atomic(f / "config.toml", "new"), power_loss=power_loss)
    ]
    assert seen == sorted(seen, reverse=True), "old, then new"
    assert set(seen) == {"old", "new"}


@pytest.mark.parametrize("power_loss", [False, True])
def test_a_new_folder_is_absent_or_complete_at_every_death(tmp_path: Path, power_loss: bool) -> None:
    states = []
    for folder in every_death(
        lambda: Path(mkdtemp(dir=tmp_path)), lambda f: replace_folder(f / "it"), power_loss=power_loss
    ):
        states.append((folder / "it").exists())
        assert not states[-1] or content(folder / "it") == NEW
    assert set(states) == {False, True}


@pytest.mark.parametrize("power_loss", [False, True])
def test_a_replaced_folder_is_never_lost(tmp_path: Path, power_loss: bool) -> None:
    """Two renames are not atomic: between them the old and the new folder both exist, complete, under other names."""

    def prepare() -> Path:
        folder = Path(mkdtemp(dir=tmp_path))
        (folder / "it").mkdir()
        (folder / "it" / "a").write_text("old a")
        return folder

    for folder in every_death(prepare, lambda f: replace_folder(f / "it"), power_loss=power_loss):
        if (folder / "it").exists():
            assert content(folder / "it") in ({"a": "old a"}, NEW)
        else:
            assert sorted(map(content, folder.iterdir()), key=len) == [{"a": "old a"}, NEW]


def test_a_completed_write_leaves_no_temporary_files(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "one")
    write_atomic(tmp_path / "file", "two, in Ünicode")
    link_atomic(tmp_path / "link", "file")
    link_atomic(tmp_path / "link", "file")
    for _ in range(2):
        replace_folder(tmp_path / "parent" / "it")
    assert content(tmp_path) == {
        "file": "two, in Ünicode",
        "link": "two, in Ünicode",
        "parent/it/a": "new a",
        "parent/it/deep/b": "new b",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "parent"]
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["it"]


def test_a_folder_behind_a_link_is_replaced_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    replace_folder(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == NEW
    monkeypatch.chdir(tmp_path / "real")
    replace_folder(Path())
    assert content(tmp_path / "real") == NEW
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def fail_in_the_block(target: Path) -> None:
    with folder_atomic(target, replace=True) as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt


def fail_at_the_last_rename(target: Path) -> None:
    rename, calls = Path.rename, count()

    def second_fails(path: Path, to: Path) -> Path:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return rename(path, to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", second_fails)
        replace_folder(target)


@pytest.mark.parametrize("fail", [fail_in_the_block, fail_at_the_last_rename])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path, fail: Callable[[Path], None]) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "a").write_text("old a")
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "it")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert content(tmp_path / "it") == {"a": "old a"}


def test_a_folder_in_the_way_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    replace_folder(tmp_path / "it")
    with pytest.raises(OSError, match="not empty"), folder_atomic(tmp_path / "it") as folder:
        (folder / "other").write_text("")
    assert content(tmp_path) == {f"it/{name}": text for name, text in NEW.items()}


def test_processes_of_one_number_do_not_write_into_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers that share a file system number their processes alike."""
    program = """
import os, sys
from pathlib import Path
from cifar_dist.files.atomic import folder_atomic

os.getpid = lambda: 7
with folder_atomic(Path(sys.argv[1]), replace=True) as folder:
    (folder / "c").write_text("of the other")
"""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with folder_atomic(tmp_path / "it", replace=True) as folder:
        (folder / "a").write_text("new a")
        subprocess.run([sys.executable, "-c", program, tmp_path / "it"], check=True)
        assert content(tmp_path / "it") == {"c": "of the other"}
        (folder / "b").write_text("new b")
    assert content(tmp_path) == {"it/a": "new a", "it/b": "new b"}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "file", "half \ud800")
    assert content(tmp_path) == {"file": "old"}
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "file", "")


def test_a_file_system_that_cannot_flush_folders_does_not_fail_a_save() -> None:
    """/proc is one, as are the shared folders of VirtualBox and some of FUSE."""
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(os.open("/proc/self", os.O_RDONLY))
    fsync(Path("/proc/self"))
    with pytest.raises(OSError, match="Invalid argument"):
        fsync(Path("/dev/null"))  # the contents of a file are flushed, or it is an error


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_fails_to_be_flushed_fails_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        write_atomic(tmp_path / "a", "new")
    with pytest.raises(OSError, match=os.strerror(code)):
        replace_folder(tmp_path / "it")


@pytest.mark.parametrize("write", [write_atomic, copy_atomic])
def test_a_full_disk_names_the_file_that_was_written(tmp_path: Path, write: Callable[..., None]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(100))
    said = error_of(lambda: write(*((target, bytes(100)) if write is write_atomic else (source, target))), limit=50)
    assert said.endswith(f"'{target}'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_an_error_names_what_was_asked_for_and_not_its_unfinished_file(tmp_path: Path) -> None:
    unfinished, of_others = tmp_path / ".it.7.tmp" / "a", tmp_path / ".it.old" / "a"
    for failed, named in ((unfinished, tmp_path / "it"), (of_others, of_others)):
        with pytest.raises(FileNotFoundError) as raised, naming(tmp_path / "it"):
            failed.read_bytes()
        assert raised.value.filename == str(named)


def test_a_folder_whose_name_is_taken_while_it_is_written_gets_the_next(tmp_path: Path) -> None:
    """Two evaluations of one run may end in the same second."""
    target = tmp_path / "it"

    def write(folder: Path) -> None:
        (folder / "own").touch()
        if not target.exists():
            target.mkdir()
            (target / "of another process").touch()

    assert write_numbered(target, write) == tmp_path / "it-2"
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        *("it", "it-2", "it-2/own", "it/of another process")
    ]
    with pytest.raises(FileNotFoundError):
        write_numbered(target, lambda folder: (folder / "no" / "folder").touch())


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_that_the_umask_gives_whatever_wrote_them(tmp_path: Path, umask: int) -> None:
    """Including files that a library creates with its own mode, as safetensors does with 0600."""
    before = os.umask(umask)
    try:
        with folder_atomic(tmp_path / "it") as folder:
            (folder / "plain").write_text("")
            (folder / "deep").mkdir()
            save_file({"a": torch.zeros(1)}, folder / "deep" / "weights.safetensors")
            os.close(os.open(folder / "open", os.O_CREAT | os.O_WRONLY, 0o606))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "it").rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(("plain", "weights.safetensors", "open"), 0o666 & ~umask)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2770])
@pytest.mark.parametrize("files", [[], ["a"]])
def test_a_folder_keeps_its_permissions_when_it_is_replaced(tmp_path: Path, mode: int, files: list[str]) -> None:
    (tmp_path / "it").mkdir()
    for name in files:
        (tmp_path / "it" / name).write_text("old")
    group = 12345 if os.geteuid() == 0 else os.getegid()
    os.chown(tmp_path / "it", -1, group)
    (tmp_path / "it").chmod(mode)
    replace_folder(tmp_path / "it")
    after = (tmp_path / "it").stat()
    assert (stat.S_IMODE(after.st_mode), after.st_gid) == (mode, group)
    file = (tmp_path / "it" / "a").stat()
    assert stat.S_IMODE(file.st_mode) == mode & 0o666
    assert file.st_gid == (group if mode & stat.S_ISGID else os.getegid())
