"""``cifar-dist index``."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections import Counter
from pathlib import Path

from cifar_dist.errors import UserError, printable
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import user_path
from cifar_dist.verbs.loading import loading

HELP = "write a manifest for existing WebDataset tars"
COLLECTIVE = False
_NUMBERED = re.compile(r"\d+(\s*[,;:\t]\s*|\s+)\S.*|.*\S\s*[,;:\t]\s*\d+")
"""A line with a class number beside the name, or the name beside it."""


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
    numbered = [line for line in names if _NUMBERED.fullmatch(line)]
    has_header = len(numbered) == len(names) - 1 and re.search(r"[,;:\t]", names[0])
    if numbered and (len(numbered) == len(names) or has_header):
        raise UserError(f"{path} has numbers beside the names, as in '{numbered[0]}'; {remedy}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"{path} names the class '{twice[0]}' twice; give each class its own name")
    return names
