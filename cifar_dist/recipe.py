"""Recipe files: which there are, what their heads say, and reading one into a validated :class:`Config`.

A recipe may name another one as its ``base`` and contain only the differences. ``--section.field VALUE`` overrides it.

The file and the command line pass through the same checks, so they produce the same errors. An error names the key and
what is wrong with it and, for an unknown key, suggests the nearest known one.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.config import Config
from cifar_dist.config.build import build_config
from cifar_dist.config.choice import field_names
from cifar_dist.config.keys import check_keys
from cifar_dist.config.layers import laid_over, without_lost
from cifar_dist.config.named_items import merge_items
from cifar_dist.config.overrides import COMMAND_LINE, parse_overrides
from cifar_dist.config.plugin_copies import FOLDER_NAME, use_copies
from cifar_dist.config.saved import CONFIG_NAME, STARTED_NAME, refuse_incomplete, way_to_repair
from cifar_dist.config.section import expand_existing
from cifar_dist.config.toml_text import TomlError, read_toml
from cifar_dist.config.tree import Tree, put
from cifar_dist.config.version_1 import upgraded
from cifar_dist.errors import UserError, nearest, quoted
from cifar_dist.launch.typed_command import command_for_verbs

SHIPPED = Path(__file__).parent / "recipes"
_SWEEP_KEYS = frozenset(("recipe", "recipes", "grid", "rows"))


@functools.cache
def shipped() -> tuple[str, ...]:
    """List the names of the recipes in the package, for example ``demo``."""
    names = (path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.toml"))
    return tuple(sorted(name for name in names if not name.startswith("sweeps/")))


def recipe_path(recipe: str) -> Path:
    """Return the file of a recipe, given by a shipped name or a path.

    Raises:
        UserError: no such recipe or file.
    """
    if recipe in shipped():
        return SHIPPED / f"{recipe}.toml"
    if not recipe:
        raise UserError("the recipe's name is empty; name one that cifar-dist recipes lists, or the path of a .toml")
    path = expand_existing(recipe)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise UserError(f"recipe file {recipe} {'is a folder' if path.is_dir() else 'does not exist'}")
    if (path / CONFIG_NAME).is_file():
        resume = f"{command_for_verbs()} resume {quoted(recipe)}"
        raise UserError(f"{recipe} is a run, not a recipe; continue it: {resume}, or name its {path / CONFIG_NAME}")
    if path.exists():
        raise UserError(f"{recipe} is not a recipe; name one that cifar-dist recipes lists, or the path of a .toml")
    meant = nearest(recipe, shipped(), "cifar-dist recipes lists all")
    raise UserError(f"unknown recipe '{recipe}'; {meant} (or give the path of a .toml)")


@dataclass(frozen=True)
class Head:
    """The comment that a recipe begins with.

    Attributes:
        what: what it trains.
        source: where it comes from, and the figure reached there; empty if unknown.
        ours: the figure reached here, or ``not measured yet``.
    """

    what: str
    source: str
    ours: str


def read_head(name: str) -> Head:
    """Read the head of a shipped recipe.

    Raises:
        ValueError: it lacks a part.
    """
    comment = re.match(r"(?:# .*\n)+", recipe_path(name).read_text(encoding="utf-8"))
    what, _, rest = comment[0].partition("\n") if comment else ("", "", "")
    figures = re.fullmatch(r"(.*)Ours: (.+?)\.(?: .*)?", " ".join(re.findall(r"# (.*)", rest)))
    if figures is None:
        raise ValueError(f"{name}: a recipe begins with a line that says what it is, and '# Source: ... Ours: ...'")
    source = figures[1].strip().removeprefix("Source: ").rstrip(".")
    return Head(what.removeprefix("# ").rstrip("."), source, figures[2])


def load(recipe: str, overrides: Sequence[str] = (), *, with_copies: bool = False) -> Config:
    """Read a recipe and apply overrides to it. A run that none of them names gets the name of the recipe.

    Args:
        recipe: a shipped name or a TOML path.
        overrides: command-line arguments: ``--section.field VALUE``, ``--section.field=VALUE``, and
            ``--section.field`` alone for true.
        with_copies: whether a run's ``config.toml`` takes its plug-ins from the copies beside it also where the files
            have changed, and not only where they do not exist.

    Raises:
        UserError: unreadable file, unknown key, or invalid value.
    """
    return load_named(recipe, overrides, lambda config: config.run.name, with_copies=with_copies)


def load_named(
    recipe: str, overrides: Sequence[str], unnamed: Callable[[Config], str], *, with_copies: bool = False
) -> Config:
    """Read a recipe as :func:`load` does; rename a run that has its name only from the recipe.

    Args:
        recipe: as for :func:`load`.
        overrides: as for :func:`load`.
        unnamed: returns the name for such a run.
        with_copies: as for :func:`load`.

    Raises:
        UserError: as :func:`load`.
    """
    path = recipe_path(recipe)
    config = _load(path, overrides, with_copies=with_copies)
    if config.run.name:
        return config
    try:
        config = config.with_run(name=run_name(path))
    except ValueError as error:
        raise UserError(f"{path} names the run, but {error}; use --run.name NAME, or rename the file") from None
    return config.with_run(name=unnamed(config))


def read_tree(recipe: str) -> Tree:
    """Return the settings in a recipe and its bases, by section, without defaults and checks of their values.

    Raises:
        UserError: unreadable file, or unknown key.
    """
    return _read_tree(recipe_path(recipe))


def _load(path: Path, overrides: Sequence[str], *, with_copies: bool) -> Config:
    given = parse_overrides(overrides)
    own = _read_tree(path, with_copies=with_copies)
    if not given:
        return build_config(own, where=str(path))
    overriding: Tree = {}
    for key, value in given.items():
        put(overriding, key, value)
    tree = copy.deepcopy(without_lost(own, overriding, Config))
    for key, value in given.items():
        put(tree, key, value)
    tree = merge_items(tree, Config, where=COMMAND_LINE, prefix="--")
    try:
        return build_config(tree, where=COMMAND_LINE, prefix="--")
    except UserError as error:
        raise _blamed(error, own, str(path)) from None


def _blamed(error: UserError, own: Tree, where: str) -> UserError:
    """Return an error of a recipe under a command line as that of the recipe, if the recipe alone has it too."""
    try:
        build_config(own, where=where)
    except UserError as of_recipe:
        alone, under = str(of_recipe).removeprefix(where), str(error).removeprefix(COMMAND_LINE)
        if alone.replace("--", "") == under.replace("--", ""):
            return of_recipe
    return error


def run_name(path: Path) -> str:
    """Return the name of the run of a recipe that gives none: ``small-resnet-baseline``."""
    shipped_name = path.relative_to(SHIPPED) if path.is_relative_to(SHIPPED) else Path(path.name)
    return "-".join(shipped_name.with_suffix("").parts)


def _read_tree(path: Path, above: tuple[Path, ...] = (), *, with_copies: bool = False) -> Tree:
    """Read a recipe file, merged over its ``base``, which may have a base itself.

    The plug-ins of a run's ``config.toml`` are imported from the copies beside it where they do not exist, and
    ``with_copies`` also where they have changed.
    """
    of_run = path.name == CONFIG_NAME and path.with_name(STARTED_NAME).is_file()
    try:
        tree = read_toml(path)
    except FileNotFoundError:
        raise UserError(f"recipe file {path} does not exist") from None
    except TomlError as error:
        raise UserError(f"{error}{way_to_repair(path) if of_run else ''}") from None
    if of_run:
        refuse_incomplete(tree, path)
    if path.name == CONFIG_NAME:
        use_copies(path.with_name(FOLDER_NAME), also_changed=with_copies)
    if tree.keys() & _SWEEP_KEYS and not tree.keys() & set(field_names(Config)):
        run_it = f"cifar-dist sweep run {quoted(path)}"
        raise UserError(f"{path} is a sweep, not a recipe; train its runs: {run_it}")
    base = tree.pop("base", None)
    tree = upgraded(tree, Config)
    check_keys(tree, where=str(path))
    if base is None:
        return merge_items(tree, Config, where=str(path))
    if not isinstance(base, str):
        raise UserError(f"{path}: base is {base!r} and must be a recipe's name, or a .toml beside this one")
    beside = path.parent / expand_existing(base)
    try:
        below = beside if base.endswith(".toml") and beside.is_file() else recipe_path(base)
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    chain = (*above, path.resolve())
    if below.resolve() in chain:
        raise UserError(f"{path}: base {base} leads back to {below.name}; a recipe cannot be its own base")
    return merge_items(laid_over(_read_tree(below, chain), tree, Config), Config, where=str(path))
