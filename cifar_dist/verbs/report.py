"""``cifar-dist report``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_dist.errors import UserError, printable, quoted
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.terminal.notice import notice
from cifar_dist.verbs.arguments import RUN, RUN_NAME, user_path
from cifar_dist.verbs.loading import loading

if TYPE_CHECKING:
    from cifar_dist.runs.listing import Entry

HELP = "draw the figures and report.html of one or more runs"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", nargs="*", type=RUN_NAME, metavar="RUN", help=RUN)
    verb.add_argument(
        "--all", nargs="?", type=user_path, const=Path("runs"), metavar="FOLDER", help="all runs below FOLDER, or runs/"
    )


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.runs) == bool(arguments.all):
        raise UserError("name one or more runs: cifar-dist report RUN ..., or all: cifar-dist report --all [FOLDER]")
    with loading():
        from cifar_dist.report.run_page import write_report
        from cifar_dist.run_folder import find_run
        from cifar_dist.runs.listing import find_runs

    runs = [find_run(name) for name in arguments.runs] or find_runs(arguments.all)
    failed = 0
    for run in runs:
        try:
            with loading(f"drawing the report of {run.name}"):
                report = write_report(run)
            print(report, flush=True)
        except (UserError, OSError) as error:  # one damaged run keeps no other from its report
            if not arguments.all:
                raise
            print(f"warning: {printable(str(error))}", file=sys.stderr)
            failed += 1
    for folder in {run.parent for run in runs}:
        draw_index(folder, asked=False)
    if failed:
        raise UserError(f"{failed} of the runs below {arguments.all} cannot be drawn, see above")
    return EXIT_DONE


def draw(run_path: Path) -> None:
    """Draw the report of a run, and the page of the runs beside it; a drawing error must not fail the run."""
    draw_report(run_path)
    draw_index(run_path.parent, asked=False)


def draw_report(run_path: Path) -> None:
    """Draw the report of a run; a drawing error must not fail the run."""
    try:
        with loading("drawing the report"):
            from cifar_dist.report.run_page import write_report

            report = write_report(run_path)
    except Exception as error:
        notice(f"cannot draw the report ({error}); retry: cifar-dist report {quoted(run_path)}")
    else:
        with contextlib.suppress(OSError):  # of the console: a full disk, or a pipe that nobody reads any more
            print(f"report: {report}", flush=True)


def draw_if_outdated(run_path: Path) -> None:
    """Draw the report of a run, and the page, if something has happened in the run since it was drawn."""
    from cifar_dist.runs.listing import has_outdated_report

    if has_outdated_report(run_path):
        draw(run_path)


def draw_index(folder: Path, entries: Sequence[Entry] | None = None, *, asked: bool = True) -> None:
    """Write the page of all runs of a folder, where the folder can be written.

    Args:
        folder: the folder.
        entries: its runs; None reads them.
        asked: False writes it only where it belongs: beside a run may be all that somebody has.
    """
    try:
        from cifar_dist.runs.index import belongs_in, write_index

        if asked or belongs_in(folder):
            write_index(folder, entries)
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or error  # its text names the file again
        print(f"warning: {folder}/index.html was not written: {why}", file=sys.stderr)
