"""``cifar-dist runs [list|compare|rename|best|clean]``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_dist.errors import InUseError, UserError, in_one_line, quoted
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.runs.reports import draw, draw_index, draw_report
from cifar_dist.terminal.notice import print_notes, warn
from cifar_dist.terminal.progress import progress
from cifar_dist.terminal.screen import is_terminal, table_width
from cifar_dist.verbs.arguments import RUN, RUN_NAME, add_action, add_run, at_least, picture_path, user_path
from cifar_dist.verbs.loading import loading
from cifar_dist.verbs.output import check_writable, stream_for_people, writing

if TYPE_CHECKING:
    from cifar_dist.run_folder import RunFolder
    from cifar_dist.runs.listing import ListedRun

HELP = "list runs, compare or rename them, collect their best weights, or delete what is no longer needed"
COLLECTIVE = False

_FOLDER = Path("runs")
_MANY = 100  # runs: fewer are read within a second
_WITHOUT_REPORT = ("killed", "failed", "stalled")  # states of runs that could not draw it when they ended
# Sort keys that put the newest, best or largest first.
_ORDERS: dict[str, Callable[[ListedRun], float | str]] = {
    "date": lambda entry: -entry.written,
    "name": lambda entry: str(entry.run.path),
    "val": lambda entry: 1.0 if entry.val is None else -entry.val,
    "test": lambda entry: 1.0 if entry.test is None else -entry.test,
    "size": lambda entry: -entry.bytes,
}


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s [list | compare | rename | best | clean] [options]"
    actions = verb.add_subparsers(
        title="actions",
        metavar="list|compare|rename|best|clean",
        dest="action",
        prog=verb.prog,
        parser_class=type(verb),
    )
    add = partial(add_action, actions)
    verb.set_defaults(implies="list")
    listing = add("list", "print a table of all runs (what `cifar-dist runs` does)")
    listing.add_argument(
        "folder", nargs="?", type=user_path, default=_FOLDER, help="folder of the runs (default: runs)"
    )
    listing.add_argument(
        "--sort", choices=_ORDERS, default="date", help="newest (default), best or largest first; names alphabetically"
    )
    listing.add_argument("--csv", type=user_path, metavar="OUT", help="also write the table to this file")
    compare = add("compare", "print the settings in which runs differ, and their results")
    compare.add_argument("runs", nargs="+", type=RUN_NAME, metavar="RUN", help=RUN)
    compare.add_argument(
        "--picture", type=picture_path, metavar="OUT.png", help="also draw their curves: .png, .svg or .pdf"
    )
    rename = add("rename", "give a run another name")
    add_run(rename)
    rename.add_argument("name", metavar="NAME", help="its new name, in the same folder")
    best = add("best", "copy the best weights of each run into one folder, with a table that ranks them")
    best.add_argument("folder", nargs="?", type=user_path, default=_FOLDER, help="folder of the runs (default: runs)")
    best.add_argument(
        "--out", type=user_path, default=Path("best-models"), metavar="DIR", help="folder (default: best-models)"
    )
    best.add_argument(
        "--top", type=at_least(1), metavar="N", help="only the N best runs of each dataset and split (default: all)"
    )
    clean = add("clean", "list, or delete, incomplete files, damaged checkpoints, and older ones of finished runs")
    clean.add_argument(
        "folder", nargs="?", type=user_path, default=_FOLDER, help="folder of the runs, or one run (default: runs)"
    )
    clean.add_argument("--yes", action="store_true", help="delete them; without it, only list them")


def run(arguments: argparse.Namespace) -> int:
    actions = {"compare": _compare, "rename": _rename, "best": _collect_best, "clean": _clean}
    return actions.get(arguments.action, _list)(arguments)


def _list(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.files.folders import is_writable
        from cifar_dist.files.outputs import write_output
        from cifar_dist.runs.listing import describe, find_runs, has_outdated_report, table, to_csv

    runs = find_runs(arguments.folder)
    if out := arguments.csv:
        check_writable(out, "--csv", *(path for run in runs for path in run.essential))
    with _one_by_one(runs) as shown_runs:
        entries = sorted(map(describe, shown_runs), key=_ORDERS[arguments.sort])
    shown = stream_for_people(out)
    print(table(entries, table_width(shown)), end="", file=shown)
    for entry in entries:
        if entry.problem:
            warn(entry.problem)
    if out:
        with writing(out):
            write_output(out, to_csv(entries))
    is_run = arguments.folder in [run.path for run in runs]
    has_page = arguments.folder.is_dir() and not is_run
    if has_page:  # before the reports: of many runs, they take minutes
        draw_index(arguments.folder, entries)
    ended = [entry.run for entry in entries if entry.state in _WITHOUT_REPORT]
    # In a folder of somebody else that is left to them.
    outdated = [run for run in ended if is_writable(run.path) and has_outdated_report(run)]
    for number, run in enumerate(outdated, 1):
        draw_report(run, shown, f"of {run.name} ({number:,} of {len(outdated):,})")
    if has_page and outdated:  # which then links to them
        draw_index(arguments.folder, entries)
    return EXIT_DONE


@contextlib.contextmanager
def _one_by_one(runs: Sequence[RunFolder]) -> Iterator[Iterator[RunFolder]]:
    """Yield an iterator over runs that shows at a terminal how many of them have been read, if they are many."""
    show = len(runs) >= _MANY and is_terminal(sys.stderr)
    with progress("reading runs", len(runs), "runs", show=show) as advance:

        def next_ones() -> Iterator[RunFolder]:
            for run in runs:
                yield run
                advance(1)

        yield next_ones()


def _compare(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.report.overlay import SIGNS
        from cifar_dist.run_folder import find_run
        from cifar_dist.runs.comparison import Comparison

    runs = [find_run(run) for run in arguments.runs]
    if arguments.picture:
        check_writable(arguments.picture, "--picture", *(path for run in runs for path in run.essential))
    with _one_by_one(runs) as shown_runs:
        comparison = Comparison(shown_runs)
    print(comparison.markdown(table_width(sys.stdout)), end="")
    for problem in comparison.problems:
        warn(problem)
    if arguments.picture:
        with writing(arguments.picture):
            comparison.draw(arguments.picture)
        if (count := len(comparison.runs)) > SIGNS:
            alike = f"has {SIGNS} colours and markers for {count:,} runs, so some look alike"
            print_notes([f"{arguments.picture} {alike}; name at most {SIGNS}"])
    return EXIT_DONE


def _rename(arguments: argparse.Namespace) -> int:
    from cifar_dist.run_folder import find_run
    from cifar_dist.runs.rename import rename

    renamed = rename(find_run(arguments.run), arguments.name)
    print(f"{arguments.run} is now {renamed.path}")
    draw(renamed)  # the report shows the name
    return EXIT_DONE


def _collect_best(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.formatting import counted, percent_cell
        from cifar_dist.report.results import with_split
        from cifar_dist.runs.best_models import best_models, collect
        from cifar_dist.runs.listing import describe, find_runs
        from cifar_dist.tables import markdown

    with _one_by_one(find_runs(arguments.folder)) as shown_runs:
        models = best_models(map(describe, shown_runs), warn, arguments.top)
    with loading(f"copying the weights of {counted(len(models), 'run')}"):
        table = collect(models, arguments.out)
    cells = [
        {
            **({"data": model.data} if len({model.data for model in models}) > 1 else {}),
            "run": str(model.entry.run.path),
            "checkpoint": model.name,
            "val %": percent_cell(model.val),
            "test %": with_split(percent_cell(model.test), model.split),
        }
        for model in models
    ]
    print(markdown([*cells[0]], [[*of_model.values()] for of_model in cells], ["val %", "test %"]), end="")
    print(f"weights of {counted(len(models), 'run')}: {table.parent}, listed in {table}")
    return EXIT_DONE


def _clean(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.formatting import size
        from cifar_dist.runs.clean import clean, removable
        from cifar_dist.runs.listing import find_runs
        from cifar_dist.tables import markdown

    items, failed = [], 0
    with _one_by_one(find_runs(arguments.folder)) as shown_runs:
        for run in shown_runs:
            try:
                items += clean(run) if arguments.yes else removable(run)
            except (UserError, OSError) as error:
                warn(f"{run.path} was skipped: {in_one_line(error)}")
                failed += not isinstance(error, InUseError)  # which is for a later time
    total = size(sum(item.bytes for item in items))
    if items:
        rows = [(str(item.path), item.why, size(item.bytes)) for item in items]
        print(markdown(["what", "why", "size"], rows, ["size"]))
        print(
            f"freed {total}"
            if arguments.yes
            else f"would free {total}; delete with: cifar-dist runs clean {quoted(arguments.folder)} --yes"
        )
    if failed:
        raise UserError(f"{failed} of the runs below {arguments.folder} cannot be cleaned, see above")
    if not items:
        print("nothing to delete")
    return EXIT_DONE
