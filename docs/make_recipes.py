"""Write the tables of docs/recipes.md from the heads of the shipped recipes: python docs/make_recipes.py"""

from __future__ import annotations

from pathlib import Path

from cifar_dist import recipe

DOCUMENT = Path(__file__).with_name("recipes.md")
BEGIN = "<!-- written by docs/make_recipes.py: everything from here to the end of the file -->\n"


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
        said = recipe.read_head(name)
        cells = (f"`{name}`", said.what, said.source, said.ours)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(up_to_date(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
