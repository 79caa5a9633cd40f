"""The verbs of the command line, one a file; :mod:`cifar_dist.verbs.registry` lists them.

A verb imports what it needs when it runs, so that ``--help`` answers at once and a typo is found before torch is
loaded.
"""

from __future__ import annotations

import argparse
from typing import Protocol


class Verb(Protocol):
    """What the module of a verb offers.

    Attributes:
        HELP: what the verb does; a clause that begins in lower case.
        COLLECTIVE: whether all processes of a launch do the work together. Otherwise rank 0 does it alone.
    """

    HELP: str
    COLLECTIVE: bool

    def add_arguments(self, verb: argparse.ArgumentParser) -> None:
        """Declare the arguments.

        ``verb.set_defaults(settings=[])`` accepts a recipe's ``--section.field VALUE`` too: words that argparse does
        not know are then in ``arguments.settings``, for :func:`cifar_dist.recipe.load`.
        ``verb.set_defaults(words=[])`` leaves all words unparsed, ``--help`` included, in ``arguments.words``.
        """

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work; returns the exit code."""
