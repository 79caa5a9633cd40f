"""Types of arguments that several verbs take, with errors of one line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cifar_dist.config.section import expand_path
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from cifar_dist.config import Config

TTA_BELOW = "give them only to images whose most probable class is below P (default: the recipe's)"
TTA = "views of each image: 0, mirror (2), translate (6) or a number of random views (default: the recipe's)"
RUN = "name of a run, or its folder"


def user_path(text: str) -> Path:
    """Parse a path; ``~`` is the home folder, also where the shell leaves it: ``--data=~/shards``. So are variables."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder, or '.' for the working directory")
    try:
        return Path(expand_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def picture_path(text: str) -> Path:
    """Parse the path of a picture, whose suffix decides its format."""
    from cifar_dist.report.style import FORMATS

    path = user_path(text)
    if path.suffix.lower() not in ("", *FORMATS):
        raise argparse.ArgumentTypeError(f"'{text}' is not a picture's name: it must end with {' or '.join(FORMATS)}")
    return path


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


def _runs(parent: Path = Path("runs")) -> Iterable[str]:
    from cifar_dist.run_folder import RunFolder

    return [path.name for path in sorted(parent.glob("*")) if RunFolder(path).exists()]


RECIPE_NAME = Name(_recipes, ".toml")
RUN_NAME = Name(_runs)
CHECKPOINT_NAME = Name(lambda: ("best", "latest"))


_Parser = TypeVar("_Parser", bound=argparse.ArgumentParser)


def add_checkpoint(verb: argparse.ArgumentParser) -> None:
    """Add the option that names the weights of a run."""
    about = "best, latest, a step, or the path of any checkpoint or weights (default: best)"
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


SPLIT_NAME = Name(lambda: ("train", "val", "test"))
TTA_NAME = Name(lambda: ("0", "mirror", "translate"))


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into settings, which have a dot in their names, with their values, and all others."""
    settings: list[str] = []
    others: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if not (word.startswith("--") and "." in name):
            others.append(word)
            continue
        settings.append(word)
        if left and not equals and not left[0].startswith("--"):
            settings.append(left.pop(0))
    return settings, others


def at_least(least: int) -> Callable[[str], int]:
    """Return a parser of integers of at least ``least``."""

    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not an integer of at least {least}")
        return int(text)

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
        raise UserError(f"--{error}".replace("tta_below", "tta-below")) from None


def check_writable(path: Path, option: str, *inputs: str | Path) -> None:
    """Refuse a file that cannot be written, or must not be, before the work whose result it receives.

    Args:
        path: the file; a pipe or a device is accepted.
        option: the option that names it.
        inputs: files and folders that the verb reads. A text may also be a name, and counts only if it is a file.

    Raises:
        UserError: it is a folder, an input or in one, its folder does not exist, or permissions forbid it.
    """
    if str(path) == "-":
        raise UserError(f"{option} requires a file; for standard output use {option} /dev/stdout")
    target = path.resolve()  # a link is written through
    folder = target.parent
    if target.is_dir():
        raise UserError(f"{path} is a folder; name a file in it: {option} {path / 'NAME'}")
    for given in inputs:
        source = Path(given)
        if (source.is_file() if isinstance(given, str) else source.exists()) and _is_in(target, source.resolve()):
            raise UserError(f"{option} {path} would change {source}, which is read; use another {option}")
    refuse_lasting(path, option)
    if target.suffix == ".toml" and target.is_file():
        raise UserError(f"{option} {path} would replace a recipe; use another {option}")
    if not folder.exists():
        raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist; use another {option}")
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: {path.parent} is not a folder; use another {option}")
    if not os.access(target if target.exists() and not target.is_file() else folder, os.W_OK):
        raise UserError(f"{path} cannot be written: permission denied; use another {option}")


def refuse_lasting(path: Path, option: str) -> None:
    """Refuse a file whose replacement would damage a run or a packed dataset, whether the verb reads it or not.

    Raises:
        UserError: the file is what a run cannot be used without, or a part of a dataset.
    """
    from cifar_dist.data.manifest import FILE_NAME, is_dataset
    from cifar_dist.run_folder import RunFolder

    target = path.resolve()
    for parent in [*target.parents][:3]:  # the deepest are runs/NAME/checkpoints/step-00000001/FILE
        run = RunFolder(parent)
        lasting = [path for path in run.essential if path.exists()]
        if run.exists() and run.is_of_this_program() and any(_is_in(target, path) for path in lasting):
            raise UserError(f"{option} {path} would change the run {parent}; use another {option}")
    if (target.name == FILE_NAME or target.suffix == ".tar") and is_dataset(target.parent):
        raise UserError(f"{option} {path} would change the dataset {target.parent}; use another {option}")


def _is_in(target: Path, source: Path) -> bool:
    """Whether a path is that of ``source``, another name of it, or inside it."""
    return target.is_relative_to(source) or (target.exists() and target.samefile(source))


def written(path: Path, write: Callable[[], object]) -> None:
    """Call ``write``, which writes to ``path``.

    Raises:
        UserError: ``path`` cannot be written.
    """
    try:
        write()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
