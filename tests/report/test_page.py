"""What a page of HTML looks like where a browser shows or prints it."""

from __future__ import annotations

import re
from pathlib import Path

from support.browser import browse, needs_browser

from cifar_dist.report.page import page


@needs_browser
def test_paper_has_what_is_folded_and_what_a_screen_scrolls_to(tmp_path: Path) -> None:
    """Each fills pages: the rows three, the line six."""
    rows = "<tr><td>1</td></tr>" * 120
    text = f"<details><summary>all</summary><table>{rows}</table></details><pre>{'letters ' * 4000}</pre>"
    (tmp_path / "page.html").write_text(page("", text))
    browse(tmp_path / "page.html", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    pages = re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())
    assert len(pages) >= 9
