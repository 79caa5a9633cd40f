"""``cifar-dist report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_dist.errors import UserError, in_one_line
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.runs.reports import draw_index
from cifar_dist.terminal.notice import warn
from cifar_dist.verbs.arguments import RUN, RUN_NAME, user_path
from cifar_dist.verbs.loading import loading

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
        from cifar_dist.run_folder.opening import refuse_read_only
        from cifar_dist.runs.listing import find_runs

    runs = [find_run(name) for name in arguments.runs] or find_runs(arguments.all)
    failed = 0
    for number, run in enumerate(runs, 1):
        try:
            for place in (run.path, run.figures):
                refuse_read_only(run, place, "the report")
            among = f" ({number:,} of {len(runs):,})" if len(runs) > 1 else ""
            with loading(f"drawing the report of {run.name}{among}"):
                report = write_report(run)
            print(report, flush=True)
        except (UserError, OSError) as error:  # one damaged run keeps no other from its report
            if not arguments.all:
                raise
            warn(in_one_line(error))
            failed += 1
    for folder in {run.path.parent for run in runs}:
        draw_index(folder, asked=False)
    if failed:
        raise UserError(f"{failed} of the runs below {arguments.all} cannot be drawn, see above")
    return EXIT_DONE
