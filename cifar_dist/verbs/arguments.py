"""Types of arguments that several verbs take, with errors of one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cifar_dist.config.section import LARGEST, expand_path
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from cifar_dist.config import Config

TTA_BELOW = "give them only to images whose most probable class is below P (default: the run's)"
TTA = "views of each image: 0, mirror (2), translate (6) or a number of random views (default: the run's)"
RUN = "name of a run, or its folder"
RECIPE = "name of a shipped recipe, or path of a .toml"

_Parser = TypeVar("_Parser", bound=argparse.ArgumentParser)


@dataclass(frozen=True)
class Name:
    """A type of argument: the name of something that exists, or a path.

    Attributes:
        known: lists the names, for tab completion.
        suffix: that the path of a file ends with; empty where a path is not offered.
    """

    known: Callable[[], Iterable[str]]
    suffix: str = ""

    def __call__(self, text: str) -> str:
        return text


def _recipes() -> Iterable[str]:
    from cifar_dist.recipe import shipped

    return shipped()


def _runs() -> Iterable[str]:
    from cifar_dist.run_folder import RunFolder

    return [path.name for path in sorted(Path("runs").glob("*")) if RunFolder(path).exists()]


RECIPE_NAME = Name(_recipes, ".toml")
RUN_NAME = Name(_runs)
CHECKPOINT_NAME = Name(lambda: ("best", "latest"))
SPLIT_NAME = Name(lambda: ("train", "val", "test"))
TTA_NAME = Name(lambda: ("0", "mirror", "translate"))


def expanded_path(text: str) -> str:
    """Replace ``~``, also where the shell leaves it, ``--data=~/shards``, and variables; refuse an empty path."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder, or '.' for the working directory")
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def user_path(text: str) -> Path:
    """Parse a path as :func:`expanded_path` does."""
    return Path(expanded_path(text))


def picture_path(text: str) -> Path:
    """Parse the path of a picture, whose suffix decides its format."""
    from cifar_dist.report.style import FORMATS

    path = user_path(text)
    if path.suffix.lower() not in ("", *FORMATS):
        raise argparse.ArgumentTypeError(f"'{text}' is not a picture's name: it must end with {' or '.join(FORMATS)}")
    return path


def add_run(verb: argparse.ArgumentParser) -> None:
    """Add the argument that names a run."""
    verb.add_argument("run", type=RUN_NAME, metavar="RUN", help=RUN)


def add_recipe(verb: argparse.ArgumentParser) -> None:
    """Add the argument that names a recipe."""
    verb.add_argument("recipe", type=RECIPE_NAME, help=RECIPE)


def add_checkpoint(verb: argparse.ArgumentParser) -> None:
    """Add the option that names the weights of a run."""
    about = "best, latest, a step, or the path of any checkpoint or weights (default: best, or the newest without val)"
    verb.add_argument("--checkpoint", type=CHECKPOINT_NAME, default="best", help=about)


def add_action(
    actions: argparse._SubParsersAction[_Parser],  # argparse has no public name for this type
    name: str,
    help_text: str,
    more: str = "",
) -> _Parser:
    """Add a verb, or an action of one, which is described by its line in the list of all and ``more``."""
    about = f"{help_text[0].upper()}{help_text[1:]}.{more}"
    return actions.add_parser(name, help=help_text, description=about, allow_abbrev=False)


def at_least(least: int, *, most: int = LARGEST) -> Callable[[str], int]:
    """Return a parser of integers from ``least`` to ``most``."""

    def integer(text: str) -> int:
        # Python itself converts no more than a few thousand digits.
        value = -1 if not text.isdecimal() else int(text) if len(text) < 100 else most + 1
        if value < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not an integer of at least {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"'{text}' is more than {most}")
        return value

    return integer


def fraction(text: str) -> float:
    """Parse a number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a fraction from 0 to below 1")
    return value


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def rate(text: str) -> float:
    """Parse a learning rate; others than these have no place in a picture."""
    value = positive(text)
    if not 1e-12 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a learning rate from 1e-12 to 1e6")
    return value


def add_views(verb: argparse.ArgumentParser) -> None:
    """Add ``--tta`` and ``--tta-below``."""
    verb.add_argument("--tta", type=TTA_NAME, help=TTA)
    verb.add_argument("--tta-below", type=positive, metavar="P", help=TTA_BELOW)


def with_views(config: Config, arguments: argparse.Namespace) -> Config:
    """Return a config with the views that were asked for.

    Raises:
        UserError: no such views.
    """
    tta = arguments.tta or config.eval.tta
    below = arguments.tta_below or (1.0 if tta in ("0", "1") else config.eval.tta_below)
    try:
        return replace(config, eval=replace(config.eval, tta=tta, tta_below=below))
    except ValueError as error:
        raise UserError(f"--{error}".replace("--eval.", "--").replace("tta_below", "tta-below")) from None
