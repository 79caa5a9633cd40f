"""``cifar-dist index``."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.errors import UserError, printable
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import user_path
from cifar_dist.verbs.loading import loading

HELP = "write a manifest for existing WebDataset tars"
COLLECTIVE = False
_NUMBERED = (
    re.compile(r"(?P<number>\d{1,9})(\s*[,;:\t]\s*|\s+)(?P<name>\S.*)"),
    re.compile(r"(?P<name>.*\S)\s*[,;:\t]\s*(?P<number>\d{1,9})"),
)
"""A line with a number before what may be the name of a class, and one with the number behind it."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "folder", type=user_path, help="folder of the tars; train, val or test in a name selects the split"
    )
    verb.add_argument(
        "--classes", type=user_path, metavar="FILE", help="file of class names, one per line, in label order"
    )


def run(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.data.index import index

    manifest = index(arguments.folder, classes=_read_class_names(arguments.classes) if arguments.classes else ())
    print(printable(f"indexed {manifest.name}: {manifest.shown}"))
    return EXIT_DONE


def _read_class_names(path: Path) -> list[str]:
    """Read the non-empty lines of a file; raise UserError if they are not one class name each."""
    remedy = "give a text file with one class name per line, in label order, without numbers and without a header"
    if path.suffix.lower() in (".csv", ".tsv", ".json"):
        raise UserError(f"{path} is named as a {path.suffix.lower()[1:]} file; {remedy}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows programs write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        what = (isinstance(error, OSError) and error.strerror) or "not UTF-8"
        raise UserError(f"{path} cannot be read ({what}); {remedy}") from None
    names = [unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path} names no class; {remedy}")
    for pattern in _NUMBERED:
        numbered = [found for line in names if (found := pattern.fullmatch(line))]
        has_header = len(numbered) == len(names) - 1 and re.search(r"[,;:\t]", names[0])
        if numbered and (len(numbered) == len(names) or has_header) and _are_numbered(numbered):
            raise UserError(f"{path} has numbers beside the names, as in '{numbered[0][0]}'; {remedy}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"{path} names the class '{twice[0]}' twice; give each class its own name")
    return names


def _are_numbered(lines: Sequence[re.Match[str]]) -> bool:
    """Whether the numbers in lines are those of classes, from 0 or 1, and not parts of names such as ``5 cent``."""
    numbers, names = sorted(int(line["number"]) for line in lines), {line["name"] for line in lines}
    # The numbers 1 to 5 of "1 star", "2 stars" to "5 stars" are parts of names, which are equal without them.
    return len(names) == len(lines) and numbers in ([*range(len(lines))], [*range(1, len(lines) + 1)])
