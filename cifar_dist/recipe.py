"""Read a recipe TOML and ``--section.field VALUE`` overrides into a validated :class:`Config`, and write recipes.

A recipe may name another one as its ``base`` and contain only the differences.

The file and the command line pass through the same checks, so they produce the same errors. An error names the key and
what is wrong with it and, for an unknown key, suggests the nearest known one.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tomli_w
from pydantic import ValidationError

from cifar_dist.config import Config
from cifar_dist.config.choice import UnknownSettingError, field_names, is_root, leaves, validate
from cifar_dist.config.keys import all_keys, check_keys, unknown_setting
from cifar_dist.config.layers import Tree, flatten, laid_over, without_lost
from cifar_dist.config.named_items import item_keys, item_root, merge_items, settings_of_items
from cifar_dist.config.section import BooleanMeans, key_of
from cifar_dist.config.version1 import upgraded
from cifar_dist.errors import UserError, nearest, quoted
from cifar_dist.files import parse_toml, write_atomic

_MARK = "\ufeff"  # byte order mark, which editors of Windows write first
SHIPPED = Path(__file__).parent / "recipes"
_SWEEP_KEYS = frozenset(("recipe", "recipes", "grid", "rows"))
_OPTIONS = "model.options."


def shipped() -> list[str]:
    """List the names of the recipes in the package, for example ``demo``."""
    names = (path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.toml"))
    return sorted(name for name in names if not name.startswith("sweeps/"))


def recipe_path(recipe: str) -> Path:
    """Return the file of a recipe, given by a shipped name or a path.

    Raises:
        UserError: no such recipe or file.
    """
    if recipe in shipped():
        return SHIPPED / f"{recipe}.toml"
    if not recipe:
        raise UserError("the recipe's name is empty; name one that cifar-dist recipes lists, or the path of a .toml")
    path = Path(recipe).expanduser()
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise UserError(f"recipe file {recipe} {'is a folder' if path.is_dir() else 'does not exist'}")
    if (path / "config.toml").is_file():
        resume = f"cifar-dist resume {quoted(recipe)}"
        raise UserError(f"{recipe} is a run, not a recipe; continue it: {resume}, or name its {path / 'config.toml'}")
    if path.exists():
        raise UserError(f"{recipe} is not a recipe; name one that cifar-dist recipes lists, or the path of a .toml")
    meant = nearest(recipe, shipped(), "cifar-dist recipes lists all")
    raise UserError(f"unknown recipe '{recipe}'; {meant} (or give the path of a .toml)")


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply overrides to it.

    Args:
        recipe: a shipped name or a TOML path.
        overrides: command-line arguments: ``--section.field VALUE``, ``--section.field=VALUE``, and
            ``--section.field`` alone for true.

    Raises:
        UserError: unreadable file, unknown key, or invalid value.
    """
    path = recipe_path(recipe)
    given = parse_overrides(overrides)
    overriding: Tree = {}
    for key, value in given.items():
        put(overriding, key, value)
    tree = without_lost(_read_tree(path), overriding, Config)
    for key, value in given.items():
        put(tree, key, value)
    tree = merge_items(tree, Config, where="the command line", prefix="--")
    config = build(tree, where=str(path), given=list(given))
    if not config.run.name:
        try:
            named = dataclasses.replace(config.run, name=run_name(path))
        except ValueError as error:
            raise UserError(f"{path} names the run, but {error}; use --run.name NAME, or rename the file") from None
        config = dataclasses.replace(config, run=named)
    return config


def load_named(recipe: str, settings: Sequence[str], unnamed: Callable[[Config], str]) -> Config:
    """Read a recipe as :func:`load` does; a run that neither it nor ``settings`` name gets the name from ``unnamed``.

    Raises:
        UserError: as :func:`load`.
    """
    config = load(recipe, settings)
    if config.run.name != run_name(recipe_path(recipe)) or "run.name" in parse_overrides(settings):
        return config
    return load(recipe, [*settings, "--run.name", unnamed(config)])


def run_name(path: Path) -> str:
    """Return the name of the run of a recipe that gives none: ``small-resnet-baseline``."""
    shipped_name = path.relative_to(SHIPPED) if path.is_relative_to(SHIPPED) else Path(path.name)
    return "-".join(shipped_name.with_suffix("").parts)


def _read_tree(path: Path, above: tuple[Path, ...] = ()) -> Tree:
    """Read a recipe file, merged over its ``base``, which may have a base itself."""
    try:
        tree = parse_toml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text; save it again as UTF-8") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from None
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
    beside = path.parent / Path(base).expanduser()
    try:
        below = beside if base.endswith(".toml") and beside.is_file() else recipe_path(base)
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    chain = (*above, path.resolve())
    if below.resolve() in chain:
        raise UserError(f"{path}: base {base} leads back to {below.name}; a recipe cannot be its own base")
    return merge_items(laid_over(_read_tree(below, chain), tree, Config), Config, where=str(path))


def parse_overrides(words: Sequence[str]) -> Tree:
    """Parse ``--section.field VALUE`` pairs into values by dotted key. Lists and tables use TOML syntax: ``[64, 128]``.

    Raises:
        UserError: an argument is not an override, or a key is not a setting.
    """
    found: Tree = {}
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--"):
            raise UserError(f"unexpected '{word}'; settings are written --section.field VALUE")
        key, equals, text = word[2:].partition("=")
        if not equals and position + 1 < len(words) and not words[position + 1].startswith("--"):
            position += 1
            text, equals = words[position], "="
        parts = key.replace("-", "_").split(".")
        if "" in parts:
            raise UserError(f"--{key} has a dot too many; settings are written --section.field VALUE")
        if len(parts) == 1 and key in field_names(Config) and text.startswith("{"):
            raise UserError(f"--{key} is a section and not replaced as a whole; set its keys, as --{key}.KEY VALUE")
        right = ".".join((parts[0], *parts[2:]))
        if len(parts) == 4 and parts[1] == _named_items(parts[0]) and right in all_keys():
            raise UserError(f"the command line: unknown setting --{key}; did you mean '--{right}'?")
        types = _types_of(parts)
        if not equals and types and not any(map(_takes_true, types)):
            raise UserError(f"--{key} requires a value: --{key} VALUE")
        nested: Any = text if equals else "true"
        if nested.startswith(("[", "{")):
            try:
                nested = parse_toml(f"value = {nested}")["value"]
            except ValueError:
                raise UserError(f'--{key}: {text!r} is not a TOML list; for example --{key} "[64, 128]"') from None
        elif parts[:2] == ["model", "options"]:
            nested = _scalar(nested)
        elif types and all(get_origin(kind) is tuple for kind in types):
            nested = [item.strip() for item in nested.split(",") if item.strip()]
        value = nested
        for part in reversed(parts):
            nested = {part: nested}
        check_keys(nested, where="the command line", prefix="--")
        found[".".join(parts)] = value
        position += 1
    return found


def _types_of(parts: Sequence[str]) -> list[Any]:
    """Return the types of a setting, one for each variant that has it; empty if no type is declared."""
    section = get_type_hints(Config).get(parts[0])
    if section is None or len(parts) < 2:
        return []
    owners: list[type] = [section, *(leaf for _, leaf in leaves(section))] if is_root(section) else [section]
    if len(parts) == 3 and section.named_items:
        owners = [item_root(section).variants[parts[1]]] if parts[1] in item_root(section).variants else []
    elif len(parts) == 3 or parts[1] == section.named_items:
        return []
    hints = [get_type_hints(owner, include_extras=True) for owner in owners if parts[-1] in field_names(owner)]
    return [hint for found in hints for name, hint in found.items() if key_of(name) == parts[-1]]


def _named_items(section: str) -> str:
    """Return the key of a section's list of named items; empty if it has none."""
    found: str = getattr(get_type_hints(Config).get(section), "named_items", "")
    return found


def _takes_true(kind: Any) -> bool:
    """Whether true is a value of a type, so that ``--section.field`` alone means something."""
    return any(one is bool or isinstance(one, BooleanMeans) for one in (kind, *get_args(kind)))


def _scalar(text: str) -> object:
    """Parse a value whose type no field declares (a model's option) as TOML, or else as a string."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def put(tree: Tree, key: str, value: object) -> None:
    """Set ``value`` at a dotted key.

    Raises:
        UserError: a part of the key before its last has a value of its own.
    """
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, 1):
        below: object = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise UserError(f"unknown setting --{key}; did you mean '--{'.'.join(parents[:depth])}'?")
        tree = below
    tree[last] = value


def build(tree: Tree, *, where: str, given: Sequence[str] = (), import_plugins: bool = True) -> Config:
    """Validate a nested dictionary and build the config.

    Args:
        tree: sections of fields.
        where: the file that it was read from, for errors.
        given: dotted keys that the command line set, for errors.
        import_plugins: whether code that a ``name`` locates may run; if false, its settings are not validated.

    Raises:
        UserError: a value has the wrong type, is out of range or has no effect; the message names the first.
    """
    try:
        config = validate(Config, tree, {"import_plugins": import_plugins})
        assert isinstance(config, Config)
        return config
    except ValidationError as error:
        first = error.errors()[0]
    key, section = _key(first["loc"], tree)
    owner = section.partition(".")[0]
    of_item = section == f"{owner}.{_named_items(owner)}"  # which a name on the command line may have replaced
    # An error of a section as a whole names the section; any of its keys may be the cause.
    blames_command_line = any(
        not key
        or name in (section, key)
        or name.startswith((f"{section}.", f"{key}."))
        or (of_item and name.startswith(f"{owner}.") and name.endswith(".name"))
        for name in given
    )
    where = "the command line" if blames_command_line else where
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UnknownSettingError):
        prefix = "--" if f"{key}.{cause.field}" in given else ""
        raise UserError(f"{where}: {unknown_setting(f'{prefix}{key}.', cause.field, cause.known)}")
    if isinstance(cause, ValueError):  # the section's own message, which begins with the field
        raise UserError(f"{where}: {key}{'.' if key else ''}{cause}")
    if section.startswith(_OPTIONS):
        raise UserError(f"{where}: {key} must be true or false, a number, a text, or a list of one of these")
    what, value = first["msg"].partition(", unable to")[0].replace("valid tuple", "list"), first.get("input")
    if not what.startswith("Input should"):
        raise UserError(f"{where}: {key}: {what[:1].lower()}{what[1:]}")
    shown = "" if isinstance(value, dict) else f" {value!r}"
    raise UserError(f"{where}: {key}{shown} {what.replace('Input should', 'must', 1)}")


def _key(place: Sequence[str | int], tree: Tree) -> tuple[str, str]:
    """Return the dotted key of a place in ``tree``, list items by name, and the key of the setting that contains it."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    item = next((depth for depth, part in enumerate(place) if isinstance(part, int)), len(place))
    setting = "".join(parts[:item])[1:]
    if setting.startswith(_OPTIONS):  # an option, and the type that its value was last compared with
        option = "".join(parts[:3])[1:]
        return option, option
    if item == 2 < len(place) and place[1] == _named_items(str(place[0])):
        section, field, number = str(place[0]), str(place[1]), int(place[2])
        parts[1:3] = [f".{item_keys(tree[section][field], field)[number]}"]
    return "".join(parts)[1:], setting


def to_tree(config: Config) -> Tree:
    """Convert a config to nested dictionaries of plain TOML values."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    def by_key(items: list[tuple[str, Any]]) -> Tree:
        return {key_of(name): value for name, value in items}

    return {key: plain(value) for key, value in dataclasses.asdict(config, dict_factory=by_key).items()}


def settings_of(config: Config) -> Tree:
    """Return every setting by its dotted key, including those of named list items: ``augment.crop.pad``."""
    found: Tree = {}
    tree = to_tree(config)
    for section in fields(config):
        table, listed = tree[section.name], getattr(config, section.name).named_items
        if listed:
            items = settings_of_items(table.pop(listed), listed)
            found |= {f"{section.name}.{key}": value for key, value in items}
        found |= flatten(table, f"{section.name}.")
    return found


def to_toml(config: Config) -> str:
    """Format a config as a recipe file; loading that file returns the same config."""
    return tomli_w.dumps(to_tree(config))


def read(path: Path) -> Config:
    """Read the config of a run folder without running the plug-ins that it names, see :func:`build`.

    Raises:
        UserError: the file is missing or invalid.
    """
    try:
        tree = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from None
    tree = upgraded(tree, Config)
    check_keys(tree, where=str(path))
    return build(tree, where=str(path), import_plugins=False)


# ---- writing one value ------------------------------------------------------------------------------------------


def check_writable(path: Path) -> None:
    """Refuse a file that :func:`write_lr` could not write, before the time is spent on finding the rate.

    Raises:
        UserError: not a .toml, its folder does not exist, or it exists and is not a recipe.
    """
    if path.suffix != ".toml" or not path.parent.is_dir():
        raise UserError(f"{path} cannot be written as a recipe; name a .toml file in an existing folder")
    if path.exists():
        _with_lr(path, 1.0)


def write_lr(path: Path, lr: float, *, base: str, settings: Sequence[str] = ()) -> None:
    """Set ``optim.lr`` in a recipe file and leave its other text unchanged.

    Args:
        path: the file. If it does not exist, create a recipe on ``base`` with ``settings`` and the rate.
        base, settings: as for :func:`load`.

    Raises:
        UserError: as :func:`check_writable`.
    """
    if path.exists():
        write_atomic(path, _with_lr(path, lr))
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
    below = os.path.relpath(base, path.parent) if base.endswith(".toml") else base
    write_atomic(path, tomli_w.dumps({"base": below, **tree}))


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
    raise UserError(f"optim.lr cannot be set in {path}, which is not a recipe; use a new file, or edit it by hand")
