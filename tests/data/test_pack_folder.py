"""The folder that pack writes: complete or as it was, and nothing in it is deleted that pack did not write."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import dataset_builders as build
from support.running import spawn

from cifar_dist.data.index import index
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.errors import UserError

pack_quietly = functools.partial(pack, show=False)


def test_a_packed_dataset_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    source, out = build.labelled_npz(tmp_path / "a.npz", 30), tmp_path / "out"
    out.mkdir()  # an empty folder is fine
    pack_quietly(source, out, samples_per_shard=5)
    pack_quietly(source, out, samples_per_shard=100)
    assert sorted(build.read_folder(out)) == ["manifest.json", "train-000000.tar", "val-000000.tar"]

    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains 'notes.txt', which pack did not write"):
        pack_quietly(source, out)
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match="is neither empty nor a packed dataset"):
        pack_quietly(source, out)
    with pytest.raises(UserError, match="is a file"):
        pack_quietly(source, source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "out"]
    assert (out / "notes.txt").read_text() == "mine"


def foreign(out: Path) -> str:
    """Give a folder a manifest.json of another program."""
    build.write_folder(out, {"manifest.json": b'{"name": "my web app"}', "train-1.tar": b"mine"})
    return "is neither empty nor a packed dataset; name a new folder"


def indexed(out: Path) -> str:
    pack_quietly("digits", out, codec="npy")
    (out / "manifest.json").unlink()
    index(out, show=False)
    return "contains 'test-000000.tar', which pack did not write and will not delete; move it away, or name a new fold"


def with_another_tar(out: Path) -> str:
    pack_quietly("digits", out, codec="npy")
    shutil.copy(out / "test-000000.tar", out / "train-000009.tar")
    return "contains 'train-000009.tar', which pack did not write and will not delete"


def with_a_folder_in_place_of_a_tar(out: Path) -> str:
    pack_quietly("digits", out, codec="npy")
    (out / "test-000000.tar").rename(out.with_name("moved"))
    build.write_folder(out / "test-000000.tar", {"notes.txt": b"mine"})
    return "contains 'test-000000.tar', which pack did not write and will not delete"


def damaged(out: Path) -> str:
    manifest = pack_quietly("digits", out, codec="npy").root / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-100])
    return "is not a valid manifest: .* so pack cannot tell its files from yours; name a new folder"


@pytest.mark.parametrize("fill", [foreign, indexed, with_another_tar, with_a_folder_in_place_of_a_tar, damaged])
def test_files_that_pack_did_not_write_are_not_deleted(tmp_path: Path, fill: Callable[[Path], str]) -> None:
    out = tmp_path / "out"
    complaint = fill(out)
    before = build.read_folder(tmp_path)
    with pytest.raises(UserError, match=complaint):
        pack_quietly("digits", out, codec="npy")
    assert build.read_folder(tmp_path) == before


@pytest.mark.parametrize("name", [".", "../out"])
def test_the_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The shell would remain in the old folder, which is deleted."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(UserError, match="is the working directory, which pack would replace; name a folder in it"):
        pack_quietly("digits", name)


@pytest.mark.parametrize("name", ["/", "link"])
def test_a_mount_point_is_refused_before_the_source_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(UserError, match=f"{name} is a mount point, which pack cannot replace; name a folder in it"):
        pack_quietly(tmp_path / "not-opened.npz", tmp_path / name)


def test_a_folder_mounted_from_the_same_disk_is_a_mount_point(tmp_path: Path) -> None:
    """As in a container: ``docker run -v``. The device number of such a folder is that of its parent."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a mount of its own takes root")
    source, out = tmp_path / "not-opened.npz", tmp_path / "my out"
    for folder in (tmp_path / "disk", out):
        folder.mkdir()
    script = 'mount --bind "$1" "$3" && exec "$0" -m cifar_dist pack "$2" "$3"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, *map(str, (tmp_path / "disk", source, out))],
        capture_output=True,
        text=True,
    )
    assert "my out is a mount point, which pack cannot replace; name a folder in it" in done.stderr
    assert done.returncode == 2


def test_a_link_to_a_folder_remains_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    pack_quietly(build.labelled_npz(tmp_path / "a.npz", 5), tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "scratch" / "manifest.json").is_file()


def test_an_interrupt_leaves_nothing_behind_and_the_old_dataset_intact(tmp_path: Path) -> None:
    old = pack_quietly(build.labelled_npz(tmp_path / "a.npz", 6), tmp_path / "out")
    source = build.labelled_npz(tmp_path / "b.npz", 60, side=4)

    # A process that presses Ctrl-C on itself when it opens the second shard: never before, and never too late.
    program = f"""
import os, signal, sys
from cifar_dist.data.pack import pack

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

def audit(event, args):
    if event == "open" and str(args[0]).endswith("train-000001.tar"):
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(audit)
pack({str(source)!r}, {str(tmp_path / "out")!r}, samples_per_shard=10)
"""
    (done,) = spawn(["-c", program], fresh=True)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz", "out"]
    assert Manifest.load(tmp_path / "out").to_json() == old.to_json()


def test_what_a_killed_pack_left_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    of_this_number = f".out.{os.getpid()}-0123abcd.tmp"  # of an earlier container, whose processes are numbered alike
    left = (f".out.{ended.pid}.tmp", of_this_number)
    for name in (*left, f".out.{os.getppid()}.tmp", f".other.{ended.pid}.tmp", ".other.old.tmp"):
        build.write_folder(tmp_path / name, {"train-000000.tar": bytes(1234)})
    pack(build.labelled_npz(tmp_path / "a.npz", 6), tmp_path / "out")
    notes = [line for line in capsys.readouterr().err.splitlines() if ".tmp" in line]
    assert len(notes) == len(left)
    for name, note in zip(sorted(left), notes, strict=True):
        assert note.startswith(f"note: {name} (1.23 kB) was left by a pack that was killed, ")
        assert note.endswith(f"; delete it: rm -r {tmp_path}/{name}")


def test_the_dataset_that_a_killed_pack_was_replacing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two renames it is the only old one; while it is deleted, what is left of it takes space."""
    source, out = build.labelled_npz(tmp_path / "a.npz", 6), tmp_path / "out"
    old = build.write_folder(tmp_path / ".out.old.tmp", {"train-000000.tar": bytes(1234)})
    for says in (
        f"is the dataset that {out} was before a pack was killed while it replaced it; to keep it: mv {old} {out}-old",
        "is a dataset that was replaced by a pack that was killed, unless one on another machine deletes it; delete "
        f"it: rm -r {old}",
    ):
        pack(source, out)
        (note,) = (line for line in capsys.readouterr().err.splitlines() if ".tmp" in line)
        assert note == f"note: .out.old.tmp (1.23 kB) {says}"
        assert old.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=f"cannot be created: {tmp_path}/file is not a folder; name another"):
        pack_quietly(tmp_path / "not-opened.npz", tmp_path / "file" / "out")


def test_a_dataset_is_not_packed_into_its_source(tmp_path: Path) -> None:
    source = build.write_folder(tmp_path / "in", build.class_folder({"cat": 2, "dog": 2}))
    with pytest.raises(UserError, match=r"is inside the source .*; name a folder outside it"):
        pack_quietly(source, source / "packed" / "again")
    (tmp_path / "mine.toml").write_text('name = "a"\narchive = "in"\n')
    with pytest.raises(UserError, match=r"is inside the source .*/in; name a folder outside it"):
        pack_quietly(tmp_path / "mine.toml", source / "packed")
    assert not (source / "packed").exists()
