"""The project's pages, and the fenced blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.running import ROOT

NEEDS = {"cluster", "network", "gpu", "cifar10", "data", "minutes"}
"""What ``<!-- needs: ... -->`` before a block may name: then it is not run."""
AS_SHIPPED = [ROOT / "docs" / "resume.md", ROOT / "docs" / "transfer.md"]
"""Pages on which a training begins with the run of the command before it: ``demo`` is trained as it is."""
LEAST = 0.9
"""Every documented training ends above this accuracy."""

_BLOCK = re.compile(r"(?:^<!-- needs: (?P<needs>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: the word after the opening fence, or the empty string.
        text: its lines.
        needs: the requirements that its marker names, or the empty string.
    """

    language: str
    text: str
    needs: str

    @property
    def file(self) -> str:
        """The file that the comment in a block's first line names, or the empty string."""
        named = re.match(r"# ([\w./-]+\.(?:py|toml))\n", self.text)
        return named[1] if named and self.language in ("python", "toml") else ""


def pages() -> list[Path]:
    """Return every page that a user reads."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("[a-z]*/README.md")]
    return sorted([*found, *(ROOT / "docs").glob("*.md")])


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["language"], match["text"], match["needs"] or "") for match in found]


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def made(page: Path) -> set[str]:
    """Return the files that a page tells its reader to write."""
    return {block.file for block in blocks(page)} - {""}


def commands(page: Path) -> Iterator[str]:
    """Yield the lines of a page's bash blocks, with continuation lines joined."""
    for block in blocks(page):
        if block.language == "bash":
            yield from block.text.replace("\\\n", " ").splitlines()
