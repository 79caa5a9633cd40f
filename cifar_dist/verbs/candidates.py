"""What may be typed next, from the definitions that parsing and help use. Imports nothing slow."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.choice import field_names
from cifar_dist.config.keys import all_keys, values_of
from cifar_dist.config.plugins import is_spec
from cifar_dist.config.section import expand_existing
from cifar_dist.config.settings import settings_of
from cifar_dist.errors import UserError
from cifar_dist.models.registry import names
from cifar_dist.verbs.arguments import RUN_NAME, Name
from cifar_dist.verbs.parser import build_parser

_HELP = ("-h", "--help")


def words_of_line(line: str) -> list[str]:
    """Split a command line up to the cursor as a shell would; the last word, which may be empty, is being typed."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = []
    try:
        words = list(lexer)
    except ValueError:  # a quote that is still open
        words = line.split()
    return [*words, ""] if not words or line[-1:].isspace() else words


def candidates(words: Sequence[str]) -> list[str]:
    """Return what the last of ``words`` may become; empty where any file may be named.

    Args:
        words: of a command line: ``cifar-dist``, ``python train.py`` or a launcher with it, and what follows.
    """
    *before, current = words
    typed = _Typed(_without_program(before))
    return sorted({one for one in typed.candidates(current) if one.startswith(current)})


def _without_program(words: Sequence[str]) -> list[str]:
    """Drop what stands before a verb; ``train.py`` and ``launch/local.sh`` are verbs of their own."""
    for place, word in enumerate(words):
        verb = {"train.py": ["train"], "local.sh": ["launch"], "cifar_dist": []}.get(Path(word).name)
        if verb is not None:
            return [*verb, *words[place + 1 :]]
    return list(words[1:])


class _Typed:
    """The words before the one that is being typed, and what they leave open."""

    def __init__(self, words: Sequence[str]) -> None:
        self._parser: argparse.ArgumentParser
        self._positionals: list[argparse.Action] = []
        parser, self._verbs = build_parser()
        self._enter(parser)
        self._option: argparse.Action | None = None  # that awaits its value
        self._setting = ""  # that awaits its value
        self._help = False  # awaits a section
        self._recipe = ""
        self._settings: list[str] = []
        for word in words:
            self._take(word)

    def candidates(self, current: str) -> Iterable[str]:
        """Return everything that may stand here."""
        name, equals, _ = current.partition("=")
        if equals and name.startswith("--"):
            option = self._parser._option_string_actions.get(name)
            values = _values(option, current) if option else _setting_values(name[2:])
            return [f"{name}={value}" for value in values]
        if self._setting:
            return _setting_values(self._setting)
        if self._option:
            return _values(self._option, current)
        if current.startswith("-"):
            return [*self._parser._option_string_actions, *self._setting_names(current)]
        if self._help and self._takes_settings:
            return field_names(Config)
        return _values(self._positionals[0], current) if self._positionals else []

    @property
    def _takes_settings(self) -> bool:
        return self._parser.get_default("settings") is not None

    def _take(self, word: str) -> None:
        """Read one word as the parser would."""
        if self._setting:
            self._settings[-1] += f"={word}"
            self._setting = ""
        elif self._option:
            self._option = None
        elif word in _HELP:
            self._help = True
        elif word.startswith("--") and "." in word.partition("=")[0]:
            self._settings.append(word)
            self._setting = "" if "=" in word else word[2:]
        elif word.startswith("-"):
            option = self._parser._option_string_actions.get(word)
            self._option = option if option is not None and option.nargs != 0 else None
        elif self._positionals:
            self._take_positional(self._positionals[0], word)

    def _take_positional(self, action: argparse.Action, word: str) -> None:
        if action.nargs not in ("+", "*"):
            self._positionals = self._positionals[1:]
        if isinstance(action, argparse._SubParsersAction):
            self._enter(action.choices.get(word, self._parser))
        elif action.dest == "job" and word in self._verbs:
            self._enter(self._verbs[word])
        elif action.dest in ("recipe", "job"):
            self._recipe = word
            if word in self._verbs and isinstance(action.type, Name) and word in action.type.known():
                self._positionals = _positionals(self._verbs[word])  # submit resume RUN

    def _enter(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._positionals = _positionals(parser)

    def _setting_names(self, current: str) -> list[str]:
        """Return the sections, or the settings of one: those of the recipe as it would be with the words before."""
        if not self._takes_settings:
            return []
        if "." not in current:
            return [f"--{section}." for section in field_names(Config)]
        keys: Iterable[str] = all_keys()
        names_code = any(is_spec(setting.partition("=")[2]) for setting in self._settings)
        # Another recipe may name code too, which completing must not run.
        if self._recipe in recipe.shipped() and not names_code:
            try:
                keys = settings_of(recipe.load(self._recipe, self._settings))
            except UserError:
                pass
        return [f"--{key}" for key in keys]


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]


def _values(action: argparse.Action, current: str) -> list[str]:
    """Return the values of an argument that are known; empty where it takes any text or file."""
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if not isinstance(action.type, Name):
        return []
    found = list(action.type.known())
    if action.type.suffix:
        place = Path(current) if current.endswith("/") else Path(current).parent
        files = [path for path in expand_existing(place).glob("*") if not path.name.startswith(".")]
        found += [f"{path}/" for path in files if path.is_dir() and current.startswith((f"{place}/", "./", "~"))]
        found += [str(path) for path in files if path.suffix == action.type.suffix]
    return found


def _setting_values(key: str) -> list[str]:
    """Return the values of a setting that has few."""
    key = key.replace("-", "_")
    if key == "model.name":
        return names()
    if key == "run.from":
        return list(RUN_NAME.known())
    return values_of(key)
