"""The ID,Labels CSV."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cifar_dist.errors import UserError
from cifar_dist.evaluation.submission import write_submission


def test_one_row_per_id_in_the_order_given(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    write_submission(out, [17, 3, -5], [3, 0, 9])
    assert out.read_bytes() == b"ID,Labels\n17,3\n3,0\n-5,9\n"


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=50)
    | st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=50),
    st.randoms(),
)
@example(["a\rb.png", 'a"b.png', "a\nb.png", "a,b.png"], random.Random(0))
def test_what_a_reader_finds_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int] | list[str], draw: random.Random
) -> None:
    labels = [draw.randrange(100) for _ in ids]
    out = tmp_path_factory.getbasetemp() / "submission.csv"
    write_submission(out, ids, labels)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["ID"], int(row["Labels"])) for row in rows] == list(zip(map(str, ids), labels, strict=True))


def test_a_duplicate_id_is_refused_and_the_old_file_is_kept(tmp_path: Path) -> None:
    """Immediately, even among very many."""
    out = tmp_path / "out.csv"
    write_submission(out, [1], [2])
    ids = [*range(300_000), 299_998]
    with pytest.raises(UserError, match="the ID 299998 occurs more than once in the input"):
        write_submission(out, ids, [0] * len(ids))
    assert out.read_text() == "ID,Labels\n1,2\n"


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode("cat/caf\u00e9.png".encode("latin-1"))
    write_submission(tmp_path / "out.csv", [name, "caf\u00e9.png"], ["gr\u00fcn", name])
    written = (tmp_path / "out.csv").read_text(encoding="utf-8")
    assert written == "ID,Labels\ncat/caf\\udce9.png,gr\u00fcn\ncaf\u00e9.png,cat/caf\\udce9.png\n"


@pytest.mark.parametrize("place", ["nowhere/out.csv", "file/out.csv", "folder"])
def test_an_unwritable_path_is_reported(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write_submission(tmp_path / place, [1], [2])
    assert str(tmp_path / place) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
