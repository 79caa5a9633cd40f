"""``cifar-dist verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_dist.data.source_suffixes import ARRAY_SUFFIXES
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.terminal.notice import print_notes
from cifar_dist.verbs.arguments import user_path
from cifar_dist.verbs.loading import loading

HELP = "verify every byte of a packed dataset, or check that predict can read an unlabelled set"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    unlabelled = f"an unlabelled set: {', '.join(ARRAY_SUFFIXES)}, or a folder or archive of images"
    verb.add_argument("path", type=user_path, help=f"a packed dataset, or {unlabelled}")


def run(arguments: argparse.Namespace) -> int:
    path: Path = arguments.path
    with loading():
        from cifar_dist.data.unlabelled import read_unlabelled

    if path.is_file() and path.suffix.lower() in ARRAY_SUFFIXES:
        unlabelled = read_unlabelled(path)
        print_notes(unlabelled.notes)
        print(f"{path}: {unlabelled.shown}")
        return EXIT_DONE
    with loading():
        from cifar_dist.data.verify import verify
        from cifar_dist.evaluation.unlabelled_images import check_images, list_unlabelled

    members = list_unlabelled(path)
    if members is None:
        print(verify(path))
    else:
        shown, notes = check_images(path, members)
        print_notes(notes)
        print(f"{path}: {shown}")
    return EXIT_DONE
