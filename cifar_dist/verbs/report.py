"""``cifar-dist report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_dist.errors import UserError, in_one_line
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.formatting import counted
from cifar_dist.runs.reports import draw_index
from cifar_dist.terminal.notice import print_notes, warn
from cifar_dist.verbs.arguments import RUN, RUN_NAME, user_path
from cifar_dist.verbs.loading import loading

if TYPE_CHECKING:
    from cifar_dist.run_folder import RunFolder

HELP = "draw the figures and report.html of one or more runs"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", nargs="*", type=RUN_NAME, metavar="RUN", help=RUN)
    verb.add_argument(
        "--all",
        nargs="?",
        type=user_path,
        const=Path("runs"),
        metavar="FOLDER",
        help="all runs below FOLDER, or runs/, whose report is not up to date",
    )


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.runs) == bool(arguments.all):
        raise UserError("name one or more runs: cifar-dist report RUN ..., or all: cifar-dist report --all [FOLDER]")
    with loading():
        from cifar_dist.run_folder import find_run
        from cifar_dist.runs.listing import find_runs, has_outdated_report

    runs = [find_run(name) for name in arguments.runs] or find_runs(arguments.all)
    outdated = [run for run in runs if arguments.runs or not run.report.is_file() or has_outdated_report(run)]
    if current := len(runs) - len(outdated):
        verb = "is" if current == 1 else "are"
        print_notes([f"{counted(current, 'report')} {verb} up to date; draw one again: cifar-dist report RUN"])
    try:
        failed = _draw(outdated, skips_damaged=bool(arguments.all))
    finally:  # interrupted, too: the page then links to the reports that were drawn
        for folder in {run.path.parent for run in runs}:
            draw_index(folder, asked=False)
    if failed:
        raise UserError(f"{failed} of the runs below {arguments.all} cannot be drawn, see above")
    return EXIT_DONE


def _draw(runs: Sequence[RunFolder], *, skips_damaged: bool) -> int:
    """Draw the reports of runs; return how many were skipped because they cannot be drawn."""
    with loading():
        from cifar_dist.report.run_page import write_report
        from cifar_dist.run_folder.opening import refuse_read_only

    failed = 0
    for number, run in enumerate(runs, 1):
        try:
            for place in (run.path, run.figures):
                refuse_read_only(run, place, "the report")
            among = f" ({number:,} of {len(runs):,})" if len(runs) > 1 else ""
            with loading(f"drawing the report of {run.name}{among}"):
                report = write_report(run)
            print(report, flush=True)
        except (UserError, OSError) as error:
            if not skips_damaged:
                raise
            warn(in_one_line(error))
            failed += 1
    return failed
