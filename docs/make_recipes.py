"""Write the tables of docs/recipes.md from the heads of the shipped recipes: python docs/make_recipes.py"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cifar_dist import recipe

DOCUMENT = Path(__file__).with_name("recipes.md")
BEGIN = "<!-- written by docs/make_recipes.py: everything from here to the end of the file -->\n"


@dataclass(frozen=True)
class Head:
    """The comment that a recipe begins with.

    Attributes:
        what: what it trains.
        source: where it comes from, and the figure reached there; empty where there is none.
        ours: the figure reached here, or ``not measured yet``.
    """

    what: str
    source: str
    ours: str


def head(name: str) -> Head:
    """The head of a shipped recipe.

    Raises:
        ValueError: it does not say all that a head has to say.
    """
    comment = re.match(r"(?:# .*\n)+", recipe.recipe_path(name).read_text(encoding="utf-8"))
    what, _, rest = comment[0].partition("\n") if comment else ("", "", "")
    figures = re.fullmatch(r"(.*)Ours: (.+?)\.(?: .*)?", " ".join(re.findall(r"# (.*)", rest)))
    if figures is None:
        raise ValueError(f"{name}: a recipe begins with a line that says what it is, and '# Source: ... Ours: ...'")
    source = figures[1].strip().removeprefix("Source: ").rstrip(".")
    return Head(what.removeprefix("# ").rstrip("."), source, figures[2])


def tables() -> str:
    """A table of the recipes, and one of those that stand in a folder."""
    names = recipe.shipped()
    parts = [_table([name for name in names if "/" not in name])]
    for folder in sorted({name.partition("/")[0] for name in names if "/" in name}):
        parts.append(f"## {folder}/\n\n" + _table([name for name in names if name.startswith(f"{folder}/")]))
    return "\n".join(parts)


def up_to_date(document: str) -> str:
    """``document``, the text of docs/recipes.md, with its tables made anew."""
    start, begin, _ = document.partition(BEGIN)
    if not begin:
        raise ValueError(f"{DOCUMENT.name} has lost its line {BEGIN.strip()}; put it before the first table")
    return f"{start}{BEGIN}\n{tables()}"


def _table(names: list[str]) -> str:
    lines = ["| recipe | what it is | source | ours |", "| --- | --- | --- | --- |"]
    for name in names:
        said = head(name)
        cells = (f"`{name}`", said.what, said.source, said.ours)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(up_to_date(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
