"""``cifar-dist recipes``."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

from cifar_dist import recipe
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.terminal.screen import table_width
from cifar_dist.verbs.loading import loading

HELP = "list the shipped recipes: dataset, accuracy here and at their source, what they train"
COLLECTIVE = False

_WIDEST = 500  # in a pipe, a line is as long as necessary
_LEAST = 30  # characters for what a recipe trains; with fewer, it has a line of its own


def add_arguments(verb: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    rows = [("RECIPE", "DATASET", "OURS", "SOURCE", "")]
    with loading("reading the recipes"):
        for name in recipe.shipped():
            head = recipe.read_head(name)
            dataset = Path(recipe.load(name).data.path).name
            rows.append((name, dataset, _figure(head.ours), _figure(head.source), head.what))
    name_width, dataset_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    width = table_width(sys.stdout) or _WIDEST
    for name, dataset, ours, source, what in rows:
        columns = f"  {dataset:<{dataset_width}}  {ours:>7}  {source:>7}  "
        room = width - name_width - len(columns)
        if room >= _LEAST:
            print(f"{name:<{name_width}}{columns}{_shorten(what, room)}".rstrip())
            continue
        beside = width - len(columns.rstrip())
        if len(name) > beside:
            print(name)
            name = ""
        print(f"{name:<{beside}}{columns}".rstrip())
        if what:
            print(f"  {_shorten(what, width - 2)}")
    print("\nAccuracies differ in their data: docs/recipes.md.\nSettings: cifar-dist train RECIPE --help")
    return EXIT_DONE


def _shorten(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...", break_on_hyphens=False)


def _figure(text: str) -> str:
    """Return the first percentage in ``text``, or the first range of two; a dash if it names no figure."""
    found = re.search(r"(?:\d+(?:\.\d+)? to )?\d+(?:\.\d+)? %", text)
    return found[0].replace(" to ", "-") if found and not text.startswith("no figure") else "-"
