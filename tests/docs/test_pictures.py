"""The pictures of the pages: each is shown, small, and drawn by the script that the comment above it names."""

from __future__ import annotations

import re

import pytest
from support.documents import pages
from support.running import ROOT

IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 300_000

_SHOWN = re.compile(
    r"<!-- drawn by (?P<script>docs/make_\w+\.py) -->\n!\[[^\]\n]+\]\((?:docs/)?images/(?P<name>[^)]+)\)"
)


def scripts() -> dict[str, str]:
    """The script that a page names for each picture."""
    return {
        match["name"]: match["script"]
        for page in pages()
        for match in _SHOWN.finditer(page.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize("name", sorted(path.name for path in IMAGES.iterdir()))
def test_a_picture_is_shown_and_drawn_by_the_script_that_its_page_names(name: str) -> None:
    assert name in scripts(), f"no page shows docs/images/{name} below <!-- drawn by docs/make_NAME.py -->"
    assert f'"{name}"' in (ROOT / scripts()[name]).read_text(encoding="utf-8")
    assert (IMAGES / name).stat().st_size <= MAX_BYTES


def test_a_picture_that_a_page_shows_exists_and_names_its_script() -> None:
    shown = {match for page in pages() for match in re.findall(r"\]\([\w/]*images/([^)]+)\)", page.read_text("utf-8"))}
    assert shown == set(scripts())
