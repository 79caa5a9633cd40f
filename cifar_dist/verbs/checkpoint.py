"""``cifar-dist checkpoint ls | verify | diff | average``."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from cifar_dist.errors import UserError, printable, quoted
from cifar_dist.exit_codes import EXIT_DONE, EXIT_FAILED
from cifar_dist.formatting import counted
from cifar_dist.terminal.screen import table_width
from cifar_dist.verbs.arguments import CHECKPOINT_NAME, RUN_NAME, add_action, add_run, user_path
from cifar_dist.verbs.loading import loading
from cifar_dist.verbs.output import check_writable, writing

HELP = "list, verify, compare or average the checkpoints of a run"
COLLECTIVE = False

_STEP = "best, latest or a step"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s ls | verify | diff | average ..."
    actions = verb.add_subparsers(
        title="actions",
        metavar="ls|verify|diff|average",
        dest="action",
        required=True,
        prog=verb.prog,
        parser_class=type(verb),
    )

    add = partial(add_action, actions)
    ls = add("ls", "list the checkpoints of a run: which are the newest, the best, or damaged")
    add_run(ls)
    verify = add(
        "verify",
        "check a run's checkpoints, final weights and evaluation by their checksums; exit code 1 if one is damaged",
    )
    add_run(verify)
    verify.add_argument("step", nargs="?", type=CHECKPOINT_NAME, metavar="STEP", help=f"{_STEP} (default: all)")
    diff = add("diff", "compare two checkpoints: the largest difference of each tensor")
    diff.add_argument("first", type=RUN_NAME, metavar="RUN@STEP", help=f"a run, @, and {_STEP}; a run alone: latest")
    diff.add_argument("second", type=RUN_NAME, metavar="RUN@STEP", help="the same")
    average = add("average", "write the mean of the weights of several checkpoints, for evaluate --checkpoint")
    add_run(average)
    average.add_argument("steps", nargs="+", type=CHECKPOINT_NAME, metavar="STEP", help=_STEP)
    average.add_argument("--out", type=user_path, required=True, metavar="FILE.safetensors", help="file to write")


def run(arguments: argparse.Namespace) -> int:
    actions = {"ls": _list, "verify": _verify, "diff": _diff, "average": _average}
    return actions[arguments.action](arguments)


def _list(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.checkpoint import absence
        from cifar_dist.checkpoint.inventory import inventory
        from cifar_dist.formatting import duration, percent_cell, size
        from cifar_dist.run_folder import find_run
        from cifar_dist.tables import markdown
        from cifar_dist.tracking.metrics import val_accuracies, val_accuracy_of

    run = find_run(arguments.run)
    entries = inventory(run.checkpoints)
    if not entries:
        raise absence(run.checkpoints)
    rows, now, measured = [], time.time(), val_accuracies(run)
    for entry in entries:
        state = entry.state
        epoch = str(state.epochs_evaluated) if state else ""
        accuracy = percent_cell(val_accuracy_of(state, measured)) if state else ""
        age = duration(max(0.0, now - entry.written))  # the clock of a file server may be ahead
        rows.append([str(entry.step), epoch, accuracy, size(entry.bytes), age, entry.what])
    head = ["step", "epochs", "val %", "size", "age", "what"]
    print(markdown(head, rows, head[:-1], width=table_width(sys.stdout)), end="")
    return EXIT_DONE


def _verify(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist import checkpoint
        from cifar_dist.checkpoint.inventory import inspect
        from cifar_dist.files.folders import exists
        from cifar_dist.run_folder import find_run

    run = find_run(arguments.run, checkpoint="after a space")
    folder, step = run.checkpoints, arguments.step
    inspected: dict[Path, list[str]] = {}
    while not inspected:  # a run that is training may delete all that were found, after it has saved another one
        paths = [checkpoint.find_named(folder, step)] if step else checkpoint.listing(folder)
        if not paths:
            raise checkpoint.absence(folder)
        found = ((path, inspect(path)[1]) for path in paths)
        inspected = {path: problems for path, problems in found if not problems or exists(path)}
    for path, problems in inspected.items():
        for problem in problems:
            print(printable(f"{path.name} {problem}"))
    results = {} if step else run.damaged_results()
    for result, changed in results.items():
        print(
            printable(
                f"{result} is damaged ({', '.join(changed)}); cifar-dist resume {quoted(arguments.run)} writes it again"
            )
        )
    intact = [path for path, problems in inspected.items() if not problems]
    print(f"{len(intact)} of {counted(len(inspected), 'checkpoint')} intact")
    return EXIT_DONE if len(intact) == len(inspected) and not results else EXIT_FAILED


def _diff(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.checkpoint import load
        from cifar_dist.checkpoint.difference import compare
        from cifar_dist.tables import markdown

    first, second = _named(arguments.first), _named(arguments.second)
    differences = compare(load(first).tensors, load(second).tensors)
    different = [one for one in differences if not one.is_equal]
    count = f"{len(differences):,} tensors"
    if not different:
        print(f"{arguments.first} and {arguments.second} are equal: {count}, every bit")
        return EXIT_DONE
    rows = []
    for one in different:
        only = "only in the first" if not one.second else "only in the second" if not one.first else ""
        kind = one.first or one.second
        if not only and one.first != one.second:
            kind, only = f"{one.first} and {one.second}", "not comparable"
        rows.append([one.name, kind, only or f"{one.largest:.3g}"])
    head = ["tensor", "type and shape", "largest difference"]
    print(markdown(head, rows, head[-1:], width=table_width(sys.stdout)), end="")
    print(f"{len(different):,} of {count} differ")
    return EXIT_DONE


def _average(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist import checkpoint
        from cifar_dist.checkpoint.mean import mean_weights
        from cifar_dist.checkpoint.tensor_files import write_weights

    out: Path = arguments.out
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} must end in .safetensors, as evaluate --checkpoint takes it")
    folder = _folder(arguments.run, "after a space")
    check_writable(out, "--out", folder)
    paths = [checkpoint.named(folder, step) for step in arguments.steps]
    if len(set(paths)) != len(paths) or len(paths) < 2:
        steps = checkpoint.list_steps(checkpoint.listing(folder))
        raise UserError(f"name at least two different steps, each once; steps here: {steps}")
    weights = mean_weights(paths)
    with writing(out):
        write_weights(weights, out)
    print(
        f"{out}: the mean of the weights and batch statistics of {len(paths)} checkpoints; evaluate it: "
        f"cifar-dist evaluate {quoted(arguments.run)} --checkpoint {quoted(out)}"
    )
    return EXIT_DONE


def _folder(run: str, checkpoint: str) -> Path:
    from cifar_dist.run_folder import find_run

    return find_run(run, checkpoint=checkpoint).checkpoints


def _named(text: str) -> Path:
    """Return the checkpoint ``RUN@STEP``, verified."""
    from cifar_dist import checkpoint
    from cifar_dist.run_folder import split_step

    run, which = split_step(text)
    return checkpoint.named(_folder(run, "as RUN@STEP"), which or "latest")
