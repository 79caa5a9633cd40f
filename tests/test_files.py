"""Nothing half-written: a name refers to the old content or the new, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.crashing import every_death
from support.file_limit import error_of
from support.without_rights import public_folder, without_rights

from cifar_dist.files import (
    copy_atomic,
    discard,
    folder_atomic,
    free_name,
    has_links,
    link_atomic,
    naming,
    sha256,
    write_atomic,
    write_numbered,
    write_output,
)

NUMBERS = count()


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def fresh(tmp_path: Path) -> Path:
    folder = tmp_path / f"case-{next(NUMBERS)}"
    folder.mkdir()
    return folder


def replace_folder(target: Path) -> None:
    with folder_atomic(target, replace=True) as folder:
        (folder / "a").write_text("new a")
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text("new b")


NEW = {"a": "new a", "deep/b": "new b"}


@pytest.mark.parametrize("power_loss", [False, True])
def test_a_file_is_old_or_new_at_every_death(tmp_path: Path, power_loss: bool) -> None:
    def prepare() -> Path:
        folder = fresh(tmp_path)
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
    for folder in every_death(lambda: fresh(tmp_path), lambda f: replace_folder(f / "it"), power_loss=power_loss):
        states.append((folder / "it").exists())
        assert not states[-1] or content(folder / "it") == NEW
    assert set(states) == {False, True}


@pytest.mark.parametrize("power_loss", [False, True])
def test_a_replaced_folder_is_never_lost(tmp_path: Path, power_loss: bool) -> None:
    """Two renames are not atomic: between them the old and the new folder both exist, complete, under other names."""

    def prepare() -> Path:
        folder = fresh(tmp_path)
        (folder / "it").mkdir()
        (folder / "it" / "a").write_text("old a")
        return folder

    for folder in every_death(prepare, lambda f: replace_folder(f / "it"), power_loss=power_loss):
        if (folder / "it").exists():
            assert content(folder / "it") in ({"a": "old a"}, NEW)
        else:
            assert sorted(map(content, folder.iterdir()), key=len) == [{"a": "old a"}, NEW]


def test_a_link_points_to_the_old_or_the_new_at_every_death(tmp_path: Path) -> None:
    def prepare() -> Path:
        folder = fresh(tmp_path)
        (folder / "latest").symlink_to("old")
        return folder

    seen = [
        os.readlink(folder / "latest")
        for folder in every_death(prepare, lambda f: link_atomic(f / "latest", "new"), power_loss=False)
    ]
    assert set(seen) <= {"old", "new"}


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
from cifar_dist.files import folder_atomic

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


@pytest.mark.parametrize("write", [write_atomic, copy_atomic])
def test_a_full_disk_names_the_file_that_was_written(tmp_path: Path, write: Callable[..., None]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(100))
    said = error_of(lambda: write(*((target, bytes(100)) if write is write_atomic else (source, target))), limit=50)
    assert said.endswith(f"'{target}'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_link_takes_the_place_of_a_copy_that_followed_links(tmp_path: Path) -> None:
    """`scp -r` and `cp -rL` copy the targets of a run's links."""
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "weights").write_text("a copy")
    link_atomic(tmp_path / "latest", "step-1")
    assert os.readlink(tmp_path / "latest") == "step-1"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSPC])
def test_a_file_system_without_links_is_no_error_and_a_full_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A copy that followed links would be an old one under the name of the link."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    assert has_links(tmp_path)
    (tmp_path / "latest").mkdir()
    monkeypatch.setattr(os, "symlink", fail)
    if number == errno.ENOSPC:
        with pytest.raises(OSError, match="No space left"):
            has_links(tmp_path)
        with pytest.raises(OSError, match="No space left"):
            link_atomic(tmp_path / "latest", "step-1")
    else:
        assert not has_links(tmp_path)
        link_atomic(tmp_path / "latest", "step-1")
    assert (tmp_path / "latest").exists() == (number == errno.ENOSPC)


def test_what_is_discarded_is_gone_and_what_a_link_leads_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("a")
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("../kept")
    for name in ("link", "file", "folder", "nothing"):
        assert discard(tmp_path / name) is None
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "a"]


def test_a_folder_that_cannot_be_discarded_whole_names_what_is_left_and_is_hidden() -> None:
    with public_folder() as parent:
        parent.chmod(0o777)
        (parent / "it").mkdir()
        (parent / "it" / "a").write_text("")
        (parent / "it").chmod(0o555)
        with without_rights():
            error = discard(parent / "it")
        assert isinstance(error, PermissionError)
        assert error.filename == str(parent / ".it.tmp" / "a")
        assert [path.name for path in parent.iterdir()] == [".it.tmp"]


def test_an_error_names_what_was_asked_for_and_not_its_unfinished_file(tmp_path: Path) -> None:
    unfinished, of_others = tmp_path / ".it.7.tmp" / "a", tmp_path / ".it.old" / "a"
    for failed, named in ((unfinished, tmp_path / "it"), (of_others, of_others)):
        with pytest.raises(FileNotFoundError) as raised, naming(tmp_path / "it"):
            failed.read_bytes()
        assert raised.value.filename == str(named)


def test_free_name_counts_up(tmp_path: Path) -> None:
    def names() -> Iterator[str]:
        for _ in range(3):
            path = free_name(tmp_path / "it.damaged")
            path.symlink_to("nowhere")  # a name is taken even where it leads nowhere
            yield path.name

    assert list(names()) == ["it.damaged", "it.damaged-2", "it.damaged-3"]


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


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_checksum_is_of_all_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


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


def test_an_output_goes_through_links_and_into_pipes_and_devices(tmp_path: Path) -> None:
    """As root, a renamed file would replace even /dev/null."""
    (tmp_path / "link.csv").symlink_to("real.csv")
    write_output(tmp_path / "link.csv", "a\n")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "a\n"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_output(tmp_path / "pipe", b"b\n")
    assert os.read(reader, 100) == b"b\n"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    write_output(Path(os.devnull), "c\n")
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "mine"])
def test_an_output_to_stdout_keeps_what_its_file_has(tmp_path: Path, name: str) -> None:
    """A job's log, or a file that ``>>`` appends to."""
    (tmp_path / "mine").symlink_to("/dev/stdout")
    code = "import sys; from pathlib import Path; from cifar_dist.files import write_output; print('before')"
    code += "; write_output(Path(sys.argv[1]), 'output\\n'); print('after')"
    (tmp_path / "log").write_text("earlier\n")
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", code, tmp_path / name], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "earlier\nbefore\noutput\nafter\n"
