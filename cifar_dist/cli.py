"""``cifar-dist VERB``: words in, one call of the library, an exit code out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from cifar_dist import __version__
from cifar_dist.cpu.openmp import shorten_openmp_spin
from cifar_dist.distributed.launch_checks import is_main_process
from cifar_dist.errors import EXIT_DONE, UserError, nearest
from cifar_dist.verbs import (
    doctor,
    evaluate,
    export,
    index,
    lr_find,
    model,
    pack,
    predict,
    preview,
    report,
    runs,
    submit,
    sweep,
    train,
    verify,
)

VERBS = {
    "pack": pack,
    "index": index,
    "verify": verify,
    "preview": preview,
    "model": model,
    "lr-find": lr_find,
    "doctor": doctor,
    "sweep": sweep,
    "submit": submit,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "report": report,
    "runs": runs,
}


# The work of all processes of a launch; of any other verb the first process does it.
_TOGETHER = ("doctor", "lr-find", "evaluate", "predict")


class _Parser(argparse.ArgumentParser):
    """argparse, with an error of one line that says what to type instead."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see: {self.prog} --help")


def run(words: Sequence[str]) -> int:
    """Run one verb; returns the exit code.

    Raises:
        UserError: words that are no command, or anything that the verb refuses.
    """
    shorten_openmp_spin()
    if words and words[0] == "train":  # its settings are the config's, not argparse's
        return train.run(words[1:])
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise UserError(f"no command is called '{words[0]}'; {nearest(words[0], [*VERBS, 'train'])}")
    arguments = parse(words)
    if words[0] not in _TOGETHER and not is_main_process():
        return EXIT_DONE
    work: Callable[[argparse.Namespace], int] = arguments.work
    return work(arguments)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The words of any verb but train.

    A verb that has a default for ``settings`` takes ``--section.field VALUE`` too: they are there, unread.

    Raises:
        UserError: words that its verb does not know.
    """
    arguments, rest = _parser().parse_known_args(words)
    if rest and "settings" not in arguments:
        raise UserError(f"unrecognized arguments: {' '.join(rest)}; see: cifar-dist {words[0]} --help")
    if rest:
        arguments.settings = rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cifar-dist",
        description="Distributed training of small-image classifiers: exact, elastic, hard to kill.",
        epilog="train, doctor, lr-find, evaluate, predict on many processes: accelerate launch -m cifar_dist VERB ...",
    )
    parser.add_argument("--version", action="version", version=f"cifar-dist {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="VERB", required=True, parser_class=_Parser)
    for name, verb in VERBS.items():
        words = verbs.add_parser(
            name, help=verb.HELP, description=verb.HELP[0].upper() + verb.HELP[1:] + ".", allow_abbrev=False
        )
        verb.add_arguments(words)
        words.set_defaults(work=verb.run)
    verbs.add_parser("train", help=train.HELP)
    return parser
