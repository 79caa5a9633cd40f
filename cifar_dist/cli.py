"""``cifar-dist VERB``: parse the words, call the library, return an exit code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from cifar_dist import __version__
from cifar_dist.cpu.openmp import shorten_openmp_spin
from cifar_dist.distributed.launch_checks import is_main_process
from cifar_dist.errors import UserError, nearest
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import split_settings
from cifar_dist.verbs.registry import VERBS


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors that say what to type instead."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see: {self.prog} --help")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Leave all words unparsed for a verb with ``words``, and settings for one with ``settings``.

        argparse would take the value of an option that it does not know for a positional argument.
        """
        if self.get_default("words") is not None:
            return argparse.Namespace(words=list(args or [])), []
        if self.get_default("settings") is None:
            return super().parse_known_args(args, namespace)
        settings, others = split_settings(args or [])
        parsed, unknown = super().parse_known_args(others, namespace)
        parsed.settings = [*settings, *unknown]
        return parsed, []


def run(words: Sequence[str]) -> int:
    """Run one verb; return the exit code.

    Raises:
        UserError: an unknown verb, or anything that the verb refuses.
    """
    shorten_openmp_spin()
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise UserError(f"unknown command '{words[0]}'; {nearest(words[0], VERBS)}")
    arguments = parse(words)
    verb = VERBS[words[0]]
    return verb.run(arguments) if verb.COLLECTIVE or is_main_process() else EXIT_DONE


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a verb.

    Raises:
        UserError: the verb does not accept a word.
    """
    arguments, rest = _parser().parse_known_args(words)
    if rest:
        raise UserError(f"unrecognized arguments: {' '.join(rest)}; see: cifar-dist {words[0]} --help")
    return arguments


def _parser() -> argparse.ArgumentParser:
    collective = ", ".join(name for name, verb in VERBS.items() if verb.COLLECTIVE)
    parser = _Parser(
        prog="cifar-dist",
        description="Distributed training of small-image classifiers: exact, elastic, hard to kill.",
        epilog=f"{collective} run on many processes: cifar-dist launch CONFIG VERB ...",
    )
    parser.add_argument("--version", action="version", version=f"cifar-dist {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="VERB", required=True, parser_class=_Parser)
    for name, verb in VERBS.items():
        description = f"{verb.HELP[0].upper()}{verb.HELP[1:]}."
        verb.add_arguments(verbs.add_parser(name, help=verb.HELP, description=description, allow_abbrev=False))
        if verbs.choices[name].get_default("settings") is not None:
            verbs.choices[name].epilog = "Settings are those of training: cifar-dist train RECIPE --help"
    return parser
