"""``cifar-dist export RUN``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import add_checkpoint, add_run, user_path
from cifar_dist.verbs.loading import loading
from cifar_dist.verbs.output import check_writable, stream_for_people

HELP = "export a run's network as one file that works without this project"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_run(verb)
    add_checkpoint(verb)
    verb.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="FILE.pt2 (torch.export) or FILE.pt (TorchScript); default: RUN.pt2",
    )


def run(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.evaluation.trained import open_trained
        from cifar_dist.export import export
        from cifar_dist.run_folder import find_run

    run = find_run(arguments.run, checkpoint="with --checkpoint")
    out = arguments.out or Path(f"{run.name}.pt2")
    check_writable(out, "--out", arguments.checkpoint, *run.essential)
    with loading(f"exporting {run.name}"):
        shown = export(open_trained(run, arguments.checkpoint), out)
    print(f"{out}: {shown}", file=stream_for_people(out))
    return EXIT_DONE
