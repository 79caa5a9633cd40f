"""The parser of the command line, from what the verbs declare."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from cifar_dist import __version__
from cifar_dist.config.overrides import split_settings
from cifar_dist.errors import UserError, quoted
from cifar_dist.verbs.arguments import add_action
from cifar_dist.verbs.registry import VERBS


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that say what to type instead."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see: {self.prog} --help")

    def options(self) -> set[str]:
        """Return the options of this parser and of those below it."""
        found = {option for action in self._actions for option in action.option_strings}
        return found.union(*(parser.options() for parser in self._below().values()))

    def _below(self) -> dict[str, Parser]:
        """Return the parsers of its actions, by their names."""
        below = (action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return {name: parser for parsers in below for name, parser in parsers.items()}

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Leave all words unparsed for a verb with ``words``, and settings for one with ``settings``.

        argparse would take the value of an option that it does not know for a positional argument. A verb whose first
        word is an option has the action that it ``implies``.
        """
        implied = self.get_default("implies")
        if implied and args and args[0] not in self._below() and os.path.isdir(args[0]):
            raise UserError(f"'{args[0]}' is a folder; list its runs: {self.prog} {implied} {quoted(args[0])}")
        if implied and args is not None and (not args or args[0].startswith("-")) and not {"-h", "--help"} & set(args):
            args = [implied, *args]
        if self.get_default("words") is not None:
            return argparse.Namespace(words=list(args or [])), []
        if self.get_default("settings") is None:
            return super().parse_known_args(args, namespace)
        settings, others = split_settings(args or [])
        parsed, unknown = super().parse_known_args(others, namespace)
        parsed.settings = [*settings, *unknown]
        return parsed, []


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of ``cifar-dist``, and that of each verb by its name."""
    collective = ", ".join(name for name, verb in VERBS.items() if verb.COLLECTIVE)
    parser = Parser(
        prog="cifar-dist",
        description="Train small-image classifiers on one CPU, one GPU or a cluster.",
        epilog=f"On many processes, with cifar-dist launch CONFIG VERB: {collective}. Tab completion: see cifar-dist "
        "completion --help.",
    )
    parser.add_argument("--version", action="version", version=f"cifar-dist {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="VERB", required=True, parser_class=Parser)
    parsers = {}
    for name, verb in VERBS.items():
        parsers[name] = add_action(verbs, name, verb.HELP)
        verb.add_arguments(parsers[name])
        if parsers[name].get_default("settings") is not None:
            parsers[name].epilog = "Settings are those of training: cifar-dist train RECIPE --help"
    return parser, parsers
