"""What is discarded is gone, what is not has a hidden name, and free names count up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from support.without_rights import public_folder, without_rights

from cifar_dist.files.folders import discard, free_name


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


def test_free_name_counts_up(tmp_path: Path) -> None:
    def names() -> Iterator[str]:
        for _ in range(3):
            path = free_name(tmp_path / "it.damaged")
            path.symlink_to("nowhere")  # a name is taken even where it leads nowhere
            yield path.name

    assert list(names()) == ["it.damaged", "it.damaged-2", "it.damaged-3"]
