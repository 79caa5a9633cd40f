"""``cifar-dist VERB``: parse the words, call the library, return an exit code."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence

from cifar_dist.cpu.load import watch_load
from cifar_dist.cpu.openmp import shorten_openmp_spin
from cifar_dist.errors import UserError, nearest, quoted
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.launch.launched import is_main_process
from cifar_dist.terminal.notice import notice
from cifar_dist.verbs.parser import build_parser
from cifar_dist.verbs.registry import VERBS

_SPOKEN = {"help": "--help", "version": "--version"}
_STARTING = ("launch", "submit", "sweep")  # verbs that start processes, and are never one of several


def run(words: Sequence[str]) -> int:
    """Run one verb; return the exit code.

    Raises:
        UserError: an unknown verb, or anything that the verb refuses.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working directory was deleted; change to one that exists") from None
    shorten_openmp_spin()
    watch_load()
    if words and words[0] in _SPOKEN:
        words = [*words[1:], _SPOKEN[words[0]]]
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise UserError(f"unknown command '{words[0]}'; {_meant(words[0])}")
    arguments = parse(words)
    verb = VERBS[words[0]]
    if verb.COLLECTIVE or is_main_process():
        return verb.run(arguments)
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if words[0] in _STARTING or "LOCAL_RANK" not in os.environ:
        what = f"cifar-dist {words[0]} starts processes itself" if words[0] in _STARTING else "LOCAL_RANK is not set"
        raise UserError(f"RANK is {rank} and WORLD_SIZE is {size}, but {what}; first: unset RANK WORLD_SIZE")
    notice(f"rank {rank} of {size} has nothing to do: rank 0 does the work of cifar-dist {words[0]} alone")
    return EXIT_DONE


def _meant(word: str) -> str:
    """Say what a first word that is not a verb means."""
    from cifar_dist import recipe

    if word in recipe.shipped() or word.endswith(".toml"):
        return f"train that recipe: cifar-dist train {quoted(word)}"
    return nearest(word, VERBS)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a verb.

    Raises:
        UserError: the verb does not accept a word.
    """
    parser, parsers = build_parser()
    arguments, rest = parser.parse_known_args(words)
    if rest:
        word, options = rest[0].partition("=")[0], sorted(parsers[words[0]].options())
        begun = [option for option in options if word.startswith("--") and option.startswith(word)]
        close = begun or difflib.get_close_matches(word, options, n=1)
        meant = f"did you mean {close[0]}?" if close else f"see: cifar-dist {words[0]} --help"
        raise UserError(f"unrecognized arguments: {' '.join(rest)}; {meant}")
    return arguments
