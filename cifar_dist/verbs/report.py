"""``cifar-dist report``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import RUN

HELP = "draw the figures and report.html of one or more runs"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", nargs="+", metavar="RUN", help=RUN)


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist.report.html import write_report
    from cifar_dist.run_folder import find_run

    for run in [find_run(name) for name in arguments.runs]:
        print(write_report(run), flush=True)
    return EXIT_DONE


def draw(run_path: Path) -> None:
    """Draw the report of a run; a drawing error must not fail the run."""
    try:
        from cifar_dist.report.html import write_report

        print(f"report: {write_report(run_path)}")
    except Exception as error:
        print(f"cifar-dist: cannot draw the report ({error}); retry: cifar-dist report {run_path}", file=sys.stderr)
