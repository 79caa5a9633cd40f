"""Setting the learning rate that a range test found in a recipe file, whose other text stays as its author wrote it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from cifar_dist.config import Config
from cifar_dist.config.changes import NOT_RANGE_TESTED, contradiction
from cifar_dist.config.overrides import parse_overrides
from cifar_dist.config.settings import settings_of
from cifar_dist.config.toml_text import parse_toml
from cifar_dist.config.tree import Tree, put, to_tree
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.folders import is_writable
from cifar_dist.recipe import load

_MARK = "\ufeff"  # byte order mark, which editors of Windows write first


def require_recipe(path: Path, tested: Config) -> None:
    """Refuse a file that :func:`write_lr` could not write, before the time is spent on finding the rate.

    Args:
        path: the file.
        tested: the recipe whose rate is to be found.

    Raises:
        UserError: not a .toml, its folder does not exist or cannot be written, or it exists and is not a valid recipe,
            or one with other settings than ``tested``, for which the rate may be wrong.
    """
    if path.suffix != ".toml" or not path.parent.is_dir():
        raise UserError(f"{path} cannot be written as a recipe; name a .toml file in an existing folder")
    if not is_writable(path.parent):
        raise UserError(f"{path} cannot be written: permission denied in {path.parent}; name a file in another folder")
    if path.exists():
        found = load(str(path))  # refuses other TOML, such as a sweep, which a section [optim] would spoil
        besides = (*NOT_RANGE_TESTED, "run")
        if other := contradiction(settings_of(found), settings_of(tested), besides, "this test"):
            raise UserError(f"{path} has {other[1]}; name a new file, or change that setting there first")
        _with_lr(path, 1.0)


def write_lr(path: Path, lr: float, *, base: str, settings: Sequence[str] = ()) -> None:
    """Set ``optim.lr`` in a recipe file and leave its other text unchanged.

    Args:
        path: the file. If it does not exist, create a recipe on ``base`` with ``settings`` and the rate.
        base, settings: as for :func:`load`.

    Raises:
        UserError: as :func:`require_recipe`.
    """
    if path.exists():
        write_atomic(path.resolve(), _with_lr(path, lr))  # through a link
        return
    complete = to_tree(load(base, settings))
    tree: Tree = {}
    for key in parse_overrides(settings):
        section, field, *deeper = key.split(".")
        if field not in complete[section]:  # a setting of one item of a list
            field, deeper = getattr(Config(), section).named_items, []
        value = complete[section][field]
        for part in deeper:
            value = value[part]
        put(tree, ".".join((section, field, *deeper)), value)
    put(tree, "optim.lr", lr)
    if base.endswith(".toml"):
        file, folder = Path(base), path.parent.resolve()  # ".." leads out of the folder itself, not of a link to it
        base = os.path.relpath(file.parent.resolve() / file.name, folder)
    write_atomic(path, tomli_w.dumps({"base": base, **tree}))


def _with_lr(path: Path, lr: float) -> str:
    """Return the text of a recipe file with ``optim.lr`` set to ``lr``."""
    try:
        content = path.read_bytes().decode()  # as it is, with the byte order mark and the line ends of Windows
        text = content.removeprefix(_MARK)
        mark = content[: len(content) - len(text)]
        wanted = parse_toml(text)
        put(wanted, "optim.lr", lr)
        section = re.search(r"(?m)^\[optim\][^\n]*\n", text)
        end = "\r\n" if "\r\n" in text else "\n"
        if section is None:
            text = f"{text.rstrip()}{end}{end}[optim]{end}lr = {lr!r}{end}"
        else:
            rest = text[section.end() :]
            own, others = re.split(r"(?m)^(?=\[)", rest, maxsplit=1) if re.search(r"(?m)^\[", rest) else (rest, "")
            edited, count = re.subn(r"(?m)^lr\s*=\s*[^\s#]+", f"lr = {lr!r}", own)
            text = text[: section.end()] + (edited if count else f"lr = {lr!r}{end}{own}") + others
        if parse_toml(text) == wanted:
            return mark + text
    except (ValueError, OSError, AttributeError):
        pass
    raise UserError(f"optim.lr cannot be set in {path}; move it into a section [optim] as lr = ..., or use a new file")
