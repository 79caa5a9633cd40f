"""``cifar-dist report``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import RUN, RUN_NAME
from cifar_dist.verbs.loading import loading

HELP = "draw the figures and report.html of one or more runs"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", nargs="+", type=RUN_NAME, metavar="RUN", help=RUN)


def run(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.evaluation.trained import find_run
        from cifar_dist.report.html import write_report

    for run in [find_run(name) for name in arguments.runs]:
        with loading(f"drawing the report of {run.name}"):
            report = write_report(run)
        print(report, flush=True)
    return EXIT_DONE


def draw(run_path: Path) -> None:
    """Draw the report of a run; a drawing error must not fail the run."""
    try:
        with loading("drawing the report"):
            from cifar_dist.report.html import write_report

            report = write_report(run_path)
        print(f"report: {report}")
    except Exception as error:
        print(f"cifar-dist: cannot draw the report ({error}); retry: cifar-dist report {run_path}", file=sys.stderr)
