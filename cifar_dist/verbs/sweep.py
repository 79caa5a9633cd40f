"""``cifar-dist sweep run|submit|table FILE``."""

from __future__ import annotations

import argparse

from cifar_dist.config.overrides import split_settings
from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE, EXIT_REQUEUE
from cifar_dist.runs.reports import draw_if_outdated
from cifar_dist.terminal.screen import table_width
from cifar_dist.verbs.arguments import Name, add_action, at_least, picture_path, user_path
from cifar_dist.verbs.loading import loading
from cifar_dist.verbs.output import check_writable, stream_for_people, writing

HELP = "train many runs from one file, here or on a cluster, and compare their results in a table"
COLLECTIVE = False

_FILE = "name of a shipped sweep, or path of a .toml"
_SETTINGS = "Override a setting of all runs with --section.field VALUE."


def add_arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(
        title="actions", metavar="run|submit|table", dest="action", required=True, parser_class=type(verb)
    )
    run = _add(actions, "run", "train the unfinished runs on this machine")
    run.add_argument("--launch", metavar="CONFIG", help="launch each run with this config of launch/, for example ddp")
    run.add_argument("--jobs", type=at_least(1), default=1, metavar="N", help="runs at a time (default: 1)")
    submit = _add(actions, "submit", "train the unfinished runs on a Slurm cluster; accepts sbatch options")
    submit.add_argument("--jobs", type=at_least(1), metavar="N", help="runs at a time (default: no limit)")
    table = _add(actions, "table", "print the results as a Markdown table")
    table.add_argument("--csv", type=user_path, metavar="OUT", help="also write the results to this file")
    table.add_argument(
        "--picture", type=picture_path, metavar="OUT.png", help="also draw the results: .png, .svg or .pdf"
    )


def run(arguments: argparse.Namespace) -> int:
    actions = {"run": _run, "submit": _submit, "table": _table}
    return actions[arguments.action](arguments)


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],  # argparse has no public name for this type
    name: str,
    help_text: str,
) -> argparse.ArgumentParser:
    action = add_action(actions, name, help_text, more=f" {_SETTINGS}")
    action.add_argument("file", type=Name(_shipped, ".toml"), help=_FILE)
    action.set_defaults(settings=[])
    action.add_argument("--seeds", type=at_least(1), metavar="N", help="seeds per row (default: the file's)")
    return action


def _shipped() -> list[str]:
    from cifar_dist.sweeps.sweep_file import shipped

    return shipped()


def _run(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.launch.launched import launched_processes
        from cifar_dist.sweeps.runner import check, run_all
        from cifar_dist.sweeps.sweep_file import load

    if launched_processes() > 1:
        raise UserError(
            "run a sweep as one process, and launch each run on many with --launch, for example --launch ddp"
        )
    sweep = load(arguments.file, arguments.settings, arguments.seeds)
    check(sweep)
    code = run_all(sweep, launch=arguments.launch, jobs=arguments.jobs)
    for run in sweep.runs if code != EXIT_REQUEUE else ():
        if run.is_finished():
            draw_if_outdated(run.folder)  # as after a kill between the last result and the report
    return code


def _submit(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.slurm.options import Options
        from cifar_dist.slurm.sweep_array import submit
        from cifar_dist.sweeps.runner import check, report_other_runs
        from cifar_dist.sweeps.sweep_file import load

    settings, words = split_settings(arguments.settings)
    options = Options.parse(words)
    sweep = load(arguments.file, settings, arguments.seeds)
    check(sweep)
    report_other_runs(sweep)
    return submit(sweep, options, arguments.jobs)


def _table(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.files.outputs import write_output
        from cifar_dist.sweeps.sweep_file import load
        from cifar_dist.sweeps.table import Table

    for path, option in ((arguments.csv, "--csv"), (arguments.picture, "--picture")):
        if path:
            check_writable(path, option, arguments.file)
    sweep = load(arguments.file, arguments.settings, arguments.seeds)
    table = Table(sweep)
    shown = stream_for_people(arguments.csv)
    print(table.markdown(table_width(shown)), end="", file=shown)
    if arguments.csv:
        with writing(arguments.csv):
            write_output(arguments.csv, table.csv())
    if arguments.picture:
        with writing(arguments.picture):
            table.draw(sweep.name, arguments.picture)
    return EXIT_DONE
