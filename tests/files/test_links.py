"""A symbolic link: of the old content or the new, and of file systems that have none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import mkdtemp

import pytest
from support.crashing import every_death

from cifar_dist.files.links import has_links, link_atomic


def test_a_link_points_to_the_old_or_the_new_at_every_death(tmp_path: Path) -> None:
    def prepare() -> Path:
        folder = Path(mkdtemp(dir=tmp_path))
        (folder / "latest").symlink_to("old")
        return folder

    seen = [
        os.readlink(folder / "latest")
        for folder in every_death(prepare, lambda f: link_atomic(f / "latest", "new"), power_loss=False)
    ]
    assert set(seen) <= {"old", "new"}


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
