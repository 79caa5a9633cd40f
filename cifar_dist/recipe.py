"""A recipe TOML and ``--section.field VALUE`` overrides become one checked :class:`Config`, and the way back.

A recipe may name another one as its ``base`` and say only what differs from it.

File and command line take the same path through the same checks, so they get the same errors. An error names the
key, says what is wrong and, for an unknown key, the nearest right one.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from cifar_dist.config import Config
from cifar_dist.config.choice import UnknownSettingError, field_names, is_root, keys_of
from cifar_dist.config.layers import Tree, laid_over, without_lost
from cifar_dist.config.named_items import item_keys, item_root, merge_items, settings_of_items
from cifar_dist.config.section import Section
from cifar_dist.config.version1 import upgraded
from cifar_dist.errors import UserError, nearest
from cifar_dist.files import write_atomic

SHIPPED = Path(__file__).parent / "recipes"


def shipped() -> list[str]:
    """Names of the recipes that come with the package, for example ``demo``."""
    names = (path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.toml"))
    return sorted(name for name in names if not name.startswith("sweeps/"))


def recipe_path(recipe: str) -> Path:
    """The file of a shipped name or of a path.

    Raises:
        UserError: neither.
    """
    if recipe in shipped():
        return SHIPPED / f"{recipe}.toml"
    path = Path(recipe)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise UserError(f"there is no recipe file {recipe}")
    raise UserError(f"no recipe is called '{recipe}'; {nearest(recipe, shipped())} (or give the path of a .toml)")


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and lay overrides over it.

    Args:
        recipe: a shipped name or a TOML path.
        overrides: words of a command line: ``--section.field VALUE``, ``--section.field=VALUE``, and
            ``--section.field`` alone for true.

    Raises:
        UserError: unreadable file, unknown key, or a value that cannot be.
    """
    path = recipe_path(recipe)
    given = parse_overrides(overrides)
    asked: Tree = {}
    for key, value in given.items():
        put(asked, key, value)
    tree = without_lost(_read_tree(path), asked, Config)
    for key, value in given.items():
        put(tree, key, value)
    tree = merge_items(tree, Config, where="the command line", prefix="--")
    config = build(tree, where=str(path), given=list(given))
    if not config.run.name:
        named = dataclasses.replace(config.run, name=_run_name(path))
        config = dataclasses.replace(config, run=named)
    return config


def _run_name(path: Path) -> str:
    shipped_name = path.relative_to(SHIPPED) if path.is_relative_to(SHIPPED) else Path(path.name)
    return "-".join(shipped_name.with_suffix("").parts)


def _read_tree(path: Path, above: tuple[Path, ...] = ()) -> Tree:
    """The sections of a recipe file laid over those of its ``base``, and so on."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as TOML: {error}") from None
    base = tree.pop("base", None)
    tree = upgraded(tree, Config)
    check_keys(tree, where=str(path))
    if base is None:
        return merge_items(tree, Config, where=str(path))
    if not isinstance(base, str):
        raise UserError(f"{path}: base is {base!r} and must be a recipe's name, or a .toml beside this one")
    beside = path.parent / base
    try:
        below = beside if base.endswith(".toml") and beside.is_file() else recipe_path(base)
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    chain = (*above, path.resolve())
    if below.resolve() in chain:
        raise UserError(f"{path}: base {base} leads back to {below.name}; a recipe cannot be its own base")
    return merge_items(laid_over(_read_tree(below, chain), tree, Config), Config, where=str(path))


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``--section.field VALUE`` pairs by dotted key. A list or table is written as in TOML: ``[64, 128]``.

    Raises:
        UserError: a word that is no override, or a key that is no setting.
    """
    found: dict[str, Any] = {}
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
        nested: Any = text if equals else "true"
        if nested.startswith(("[", "{")):
            try:
                nested = tomllib.loads(f"value = {nested}")["value"]
            except tomllib.TOMLDecodeError:
                raise UserError(f'--{key}: {text!r} is not a TOML list; for example --{key} "[64, 128]"') from None
        elif parts[:2] == ["model", "options"]:
            nested = _scalar(nested)
        value = nested
        for part in reversed(parts):
            nested = {part: nested}
        check_keys(nested, where="the command line", prefix="--")
        found[".".join(parts)] = value
        position += 1
    return found


def _scalar(text: str) -> Any:
    """A value whose type no field declares (a model's own option): as TOML would read it, else a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def put(tree: Tree, key: str, value: Any) -> None:
    """Set ``value`` at a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def check_keys(tree: Tree, *, where: str, prefix: str = "", owner: type = Config, path: str = "") -> None:
    """Refuse a key that no section knows, naming the nearest right one.

    The keys of a choice depend on what it picks, from outside the package too: :func:`build` checks them.

    Raises:
        UserError: with the file or command line it stands in.
    """
    known = {field.name: field for field in fields(owner)}
    hints = get_type_hints(owner)
    for key, value in tree.items():
        dotted = f"{path}{key}"
        if key not in known:
            _check_item(key, value, where=where, path=f"{prefix}{path}", owner=owner)
            continue
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                example = fields(hints[key])[0].name
                raise UserError(f"{where}: {prefix}{dotted} is a section; set one of its keys, as {dotted}.{example}")
            if not is_root(hints[key]):
                check_keys(value, where=where, prefix=prefix, owner=hints[key], path=f"{dotted}.")
        elif isinstance(value, dict) and get_origin(hints[key]) is not dict:
            raise UserError(f"{where}: {prefix}{dotted} has no settings of its own; set all of it, as {prefix}{dotted}")


def _check_item(key: str, value: Any, *, where: str, path: str, owner: type) -> None:
    """Refuse a key of a section that is none of its fields, unless it may be an item of its list.

    Whether the list has such an item is not known before all layers are merged: see :func:`merge_items`.
    """
    items = item_root(owner).variants if issubclass(owner, Section) and owner.named_items else {}
    if items and isinstance(value, dict):
        return
    if key not in items:
        raise UserError(f"{where}: {_unknown(path, key, [*field_names(owner), *items])}")
    first = next((name for name in field_names(items[key]) if name != "name"), "name")
    raise UserError(f"{where}: {path}{key} has settings of its own; set one of them, as {path}{key}.{first}")


def _unknown(path: str, key: str, known: Sequence[str]) -> str:
    """That no setting is called ``path`` + ``key``, and the right word: the same key elsewhere, else the nearest."""
    prefix = "--" if path.startswith("--") else ""
    hints = get_type_hints(Config)
    found = [section.name for section in fields(Config) if key in keys_of(hints[section.name])]
    found += [
        f"{section.name}.{name}"
        for section in fields(Config)
        if hints[section.name].named_items
        for name, item in item_root(hints[section.name]).variants.items()
        if key in field_names(item)
    ]
    right = f"did you mean '{prefix}{found[0]}.{key}'?" if found else ""
    right = right or nearest(f"{path}{key}", [f"{path}{name}" for name in known])
    return f"no setting is called {path}{key}; {right}"


def build(tree: Tree, *, where: str, given: Sequence[str] = (), import_plugins: bool = True) -> Config:
    """The checked config of a nested dictionary.

    Args:
        tree: sections of fields.
        where: the file it was read from, for the error.
        given: dotted keys that the command line set, for the error.
        import_plugins: whether code that ``name`` points to may run. Without, its settings are as they were written.

    Raises:
        UserError: the first value that is not of its type or in its range, or that has no effect.
    """
    try:
        return TypeAdapter(Config).validate_python(tree, context={"import_plugins": import_plugins})
    except ValidationError as error:
        first = error.errors()[0]
    key, section = _key(first["loc"], tree)
    # A check of a whole section names the section; any of its keys may be the one to blame.
    blames_command_line = any(
        not key or name in (section, key) or name.startswith((f"{section}.", f"{key}.")) for name in given
    )
    where = "the command line" if blames_command_line else where
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UnknownSettingError):
        prefix = "--" if f"{key}.{cause.field}" in given else ""
        raise UserError(f"{where}: {_unknown(f'{prefix}{key}.', cause.field, cause.known)}")
    if isinstance(cause, ValueError):  # the section's own words, which begin with the field
        raise UserError(f"{where}: {key}{'.' if key else ''}{cause}")
    what, value = first["msg"].replace("valid tuple", "list"), first.get("input")
    shown = "" if isinstance(value, dict) else f", not {value!r}"
    raise UserError(f"{where}: {key}: {what[:1].lower()}{what[1:]}{shown}")


def _key(place: Sequence[str | int], tree: Tree) -> tuple[str, str]:
    """The dotted key of a place in ``tree``, and the setting that it is (in): an item of a list goes by its name."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    item = next((depth for depth, part in enumerate(place) if isinstance(part, int)), len(place))
    setting = "".join(parts[:item])[1:]
    if item == 2 < len(place):  # section, list, place in the list
        section, field, number = str(place[0]), str(place[1]), int(place[2])
        parts[1:3] = [f".{item_keys(tree[section][field], field)[number]}"]
    return "".join(parts)[1:], setting


def to_tree(config: Config) -> Tree:
    """The config as nested dictionaries of plain TOML values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    tree: Tree = plain(dataclasses.asdict(config))
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables, as :func:`parse_overrides` names them."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key, those of the named items of a list too: ``augment.crop.pad``."""
    found: dict[str, Any] = {}
    tree = to_tree(config)
    for section in fields(config):
        table, listed = tree[section.name], getattr(config, section.name).named_items
        if listed:
            items = settings_of_items(table.pop(listed), listed)
            found |= {f"{section.name}.{key}": value for key, value in items}
        found |= flatten(table, f"{section.name}.")
    return found


def to_toml(config: Config) -> str:
    """The config as a recipe file: loading it gives the same config."""
    return tomli_w.dumps(to_tree(config))


def read(path: Path) -> Config:
    """The config that a run folder holds. Runs no code that it names: see ``import_plugins`` of :func:`build`.

    Raises:
        UserError: it is missing or no longer valid.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no run at {path.parent}: it has no {path.name}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as TOML: {error}") from None
    tree = upgraded(tree, Config)
    check_keys(tree, where=str(path))
    return build(tree, where=str(path), import_plugins=False)


# ---- writing one value ------------------------------------------------------------------------------------------


def check_writable(path: Path) -> None:
    """Refuse a file that :func:`write_lr` could not write, before the work that it is to hold is done.

    Raises:
        UserError: it is no .toml, lies in no folder, or is there and is not a recipe.
    """
    if path.suffix != ".toml" or not path.parent.is_dir():
        raise UserError(f"{path} cannot hold a recipe: it must be a .toml in a folder that is there")
    if path.exists():
        _with_lr(path, 1.0)


def write_lr(path: Path, lr: float, *, base: str, settings: Sequence[str] = ()) -> None:
    """Set ``optim.lr`` in a recipe file, leaving the rest of it as it is written.

    Args:
        path: the file. Where there is none, it becomes a recipe on ``base`` with ``settings`` and the rate.
        base, settings: as for :func:`load`.

    Raises:
        UserError: as :func:`check_writable`.
    """
    if path.exists():
        write_atomic(path, _with_lr(path, lr))
        return
    whole = to_tree(load(base, settings))
    tree: Tree = {}
    for key in parse_overrides(settings):
        section, field, *deeper = key.split(".")
        if field not in whole[section]:  # a setting of one item of a list
            field, deeper = getattr(Config(), section).named_items, []
        value: Any = whole[section][field]
        for part in deeper:
            value = value[part]
        put(tree, ".".join((section, field, *deeper)), value)
    put(tree, "optim.lr", lr)
    below = os.path.relpath(base, path.parent) if base.endswith(".toml") else base
    write_atomic(path, tomli_w.dumps({"base": below, **tree}))


def _with_lr(path: Path, lr: float) -> str:
    """The text of a recipe file with another ``optim.lr``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        wanted = tomllib.loads(text)
        put(wanted, "optim.lr", lr)
        section = re.search(r"(?m)^\[optim\][^\n]*\n", text)
        if section is None:
            text = f"{text.rstrip()}\n\n[optim]\nlr = {lr!r}\n"
        else:
            rest = text[section.end() :]
            own, others = re.split(r"(?m)^(?=\[)", rest, maxsplit=1) if re.search(r"(?m)^\[", rest) else (rest, "")
            edited, count = re.subn(r"(?m)^lr\s*=\s*[^\s#]+", f"lr = {lr!r}", own)
            text = text[: section.end()] + (edited if count else f"lr = {lr!r}\n{own}") + others
        if tomllib.loads(text) == wanted:
            return text
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, AttributeError):
        pass
    raise UserError(f"{path} is not a recipe whose optim.lr can be set; take a new file, or set it by hand")
