"""Read a sweep file into named runs, and validate the config of every run before the first one starts::

    recipe = "small-resnet/baseline"     # or recipes = [...]: one row for each
    seeds = 3                            # 0, 1, 2; or a list

    [settings]                           # applied to every run
    train.epochs = 34

    [grid]                               # one row for every combination
    optim.lr = [0.01, 0.001]

    [[rows]]                             # one more row for each of these
    name = "sgd"
    optim.name = "sgd"

A sweep compares rows; a row has one run per seed, named ``SWEEP.ROW.sSEED``. The name depends on the row alone, so
adding rows later renames nothing, and finished runs are recognised.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.keys import check_keys, is_part_of
from cifar_dist.config.layers import laid_over, without_lost
from cifar_dist.config.named_items import item_key
from cifar_dist.config.overrides import COMMAND_LINE, parse_overrides
from cifar_dist.config.section import expand_existing
from cifar_dist.config.toml_text import as_typed, read_toml, typed_value
from cifar_dist.config.tree import Tree, flatten, put
from cifar_dist.errors import UserError, nearest, quoted
from cifar_dist.sweeps.sweep import Row, Run, Sweep

SHIPPED = recipe.SHIPPED / "sweeps"

_KEYS = ("recipe", "recipes", "seeds", "settings", "grid", "rows")
_RESERVED = {
    "run.name": "; runs are named after the sweep and the row; remove it",
    "run.seed": "; use seeds = [...]",
    "run.fresh": ", which resumes its runs; remove it",
}
_MAX_RUNS = 10_000  # more is a typing mistake
_LONG_NAME = 100  # letters of a row's: with the sweep's name and the seed, a run's has at most 128

Settings = dict[str, Any]  # dotted key -> TOML value


def shipped() -> list[str]:
    """List the names of the shipped sweeps."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load(sweep: str, overrides: Sequence[str] = (), seeds: int | None = None) -> Sweep:
    """Read a sweep and build the config of every run.

    Args:
        sweep: a shipped name or a TOML path.
        overrides: ``--section.field VALUE`` words that apply to all runs.
        seeds: number of seeds, instead of the file's.

    Raises:
        UserError: the file is invalid, or gives a row an invalid config; the message names the row.
    """
    path = _find_file(sweep)
    where = str(path)
    tree = _read(path)
    sections = {section.name for section in fields(Config)}
    if not tree.keys() & set(_KEYS) and tree.keys() & {"base", *sections}:
        raise UserError(f"{where} is a recipe, not a sweep; train it: cifar-dist train {quoted(path)}")
    for key in tree:
        if key not in _KEYS:
            is_setting = key.partition(".")[0] in sections
            hint = "put settings for all runs into [settings]" if is_setting else nearest(key, _KEYS)
            raise UserError(f"{where}: a sweep has no key '{key}'; {hint}")
    given = parse_overrides(overrides)
    _refuse_reserved(given, COMMAND_LINE)
    settings = _flatten_settings(tree.get("settings", {}), f"{where} [settings]")
    found = list(_parse_rows(tree, where))
    run_seeds = range(seeds) if seeds else _parse_seeds(tree.get("seeds", 1), where)
    if len(found) * len(run_seeds) > _MAX_RUNS:
        raise UserError(f"{where} gives {len(found) * len(run_seeds):,} runs; the limit is {_MAX_RUNS:,}")
    rows, named = [], {row["name"] for row in tree.get("rows", [])}
    for name, base, own in found:
        if fixed := [key for key in given if any(is_part_of(key, one) or is_part_of(one, key) for one in own)]:
            raise UserError(f"{COMMAND_LINE}: --{fixed[0]} is varied by {where}; drop it, or change the file")
        row_where = f"{where} row '{name}'{' with the settings of the command line' if overrides else ''}"
        try:
            _refuse_place_of_file(base, path)
            inherited = _inherited(settings, base, {**own, **given})
        except UserError as error:
            raise UserError(f"{row_where}: {error}") from None
        of_file = sorted({**inherited, **own}.items(), key=lambda item: item[0].count("."))  # a list before its items
        words = [base, *itertools.starmap(_override_word, [*of_file, *given.items()])]
        rename = "rename the sweep's file"
        rename += " or the row" if name in named else ", or write the row in [[rows]] with a name"
        names = {seed: f"{path.stem}.{name}.s{seed}" for seed in run_seeds}
        rows.append(Row(name, tuple(_build_run(names[seed], seed, words, row_where, rename) for seed in run_seeds)))
    _refuse_duplicate_names(rows, where)
    return Sweep(path.stem, tuple(rows))


# ---- the file ---------------------------------------------------------------------------------------------------


def _find_file(sweep: str) -> Path:
    if sweep.endswith(".toml"):
        return expand_existing(sweep)
    if sweep in shipped():
        return SHIPPED / f"{sweep}.toml"
    if sweep in recipe.shipped():
        raise UserError(f"{sweep} is a recipe, not a sweep; train it: cifar-dist train {sweep}")
    raise UserError(f"no sweep is called '{sweep}'; {nearest(sweep, shipped())} (or give the path of a .toml)")


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except FileNotFoundError:
        raise UserError(
            f"the sweep file {path} does not exist; give the path of a .toml, or one of: {', '.join(shipped())}"
        ) from None


def _parse_rows(tree: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, Settings]]:
    """Yield (name, recipe, own settings) of each row: recipes x grid, then the named rows."""
    base, bases, named = tree.get("recipe", ""), tree.get("recipes", []), tree.get("rows", [])
    if not isinstance(base, str):
        raise UserError(f'{where}: recipe is {base!r}; use one name or path, or recipes = ["...", "..."]')
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases) or (base and bases):
        raise UserError(f'{where}: set either recipe = "..." or recipes = ["...", "..."], each a name or a path')
    if not isinstance(named, list) or not all(isinstance(row, dict) for row in named):
        raise UserError(f"{where}: rows is not a list of tables; write each row as [[rows]], with a name")
    grid = _parse_grid(tree, f"{where} [grid]")
    if bases or grid or not named:
        for one in bases or [_require_recipe(base, where)]:
            for values in itertools.product(*grid.values()):
                own = dict(zip(grid, values, strict=True))
                yield _row_name(one if bases or not grid else "", own), one, own
    for number, row in enumerate(named, 1):
        name = row.get("name")
        if not isinstance(name, str) or not name:
            raise UserError(f'{where}: row {number} of [[rows]] has no name; add name = "..."')
        own = _flatten_settings({k: v for k, v in row.items() if k not in ("name", "recipe")}, f"{where} row '{name}'")
        yield name, _require_recipe(row.get("recipe", base), f"{where} row '{name}'"), own


def _parse_grid(tree: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    grid = _flatten_settings(tree.get("grid", {}), where)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: {key} is {values!r}; use a list of values, or move it to [settings]")
    if math.prod(len(values) for values in grid.values()) > _MAX_RUNS:
        raise UserError(f"{where} gives more than {_MAX_RUNS:,} rows, which is the limit; use fewer values")
    return grid


def _require_recipe(base: object, where: str) -> str:
    if not isinstance(base, str) or not base:
        raise UserError(f'{where} has no recipe; add recipe = "NAME", a shipped name or the path of a .toml')
    return base


def _refuse_place_of_file(base: str, path: Path) -> None:
    """Refuse a recipe that the working folder does not have, and the folder of the sweep at ``path`` has."""
    beside = path.parent / base
    if base.endswith(".toml") and not expand_existing(base).is_file() and beside.is_file():
        raise UserError(f"recipe file {base} does not exist in the working folder; did you mean '{beside}'?")


def _flatten_settings(tree: object, where: str) -> Settings:
    """Flatten settings to dotted keys: ``optim.lr``, ``"optim.lr"`` and a table ``optim`` are equivalent."""
    if not isinstance(tree, dict):
        raise UserError(f"{where} is {tree!r}; use a table of settings: optim.lr = ...")
    try:
        flat = dict(flatten(tree))
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; write settings as section.field = ...") from None
    for key in _empty_tables(tree):
        defaults = "; for the defaults of the model, vary it in [grid]: [{}, ...]" if key == "model.options" else ""
        raise UserError(f"{where}: {key} = {{}} changes nothing, so remove it{defaults}")
    for key in flat:
        check_keys(_as_tree({key: None}), where=where)
    _refuse_reserved(flat, where)
    return flat


def _empty_tables(tree: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the tables in a section that have no keys; a section without any is not one."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _empty_tables(value, f"{prefix}{key}.")
        elif value == {} and prefix:
            yield f"{prefix}{key}"


def _parse_seeds(value: object, where: str) -> Sequence[int]:
    if type(value) is int and 1 <= value <= _MAX_RUNS:
        return range(value)
    if isinstance(value, list) and value and all(type(seed) is int for seed in value) and len(set(value)) == len(value):
        return value
    raise UserError(f"{where}: seeds is {value!r}; use a count, or a list of distinct seeds such as [0, 1, 2]")


def _refuse_reserved(settings: Settings, where: str) -> None:
    for key, instead in _RESERVED.items():
        if key in settings:
            raise UserError(f"{where}: {key} cannot be set in a sweep{instead}")


# ---- the runs ---------------------------------------------------------------------------------------------------


def _row_name(base: str, own: Settings) -> str:
    """Name a row ``RECIPE+lr=0.01+widths=64_128``, with the last part of each key if that is unambiguous.

    In a long name, items of a list lose their settings: ``transforms=crop_flip``.
    """
    name = _name_after(base, own)
    if len(name) <= _LONG_NAME:
        return name
    return _name_after(base, {key: _without_settings(value) for key, value in own.items()})


def _name_after(base: str, own: Settings) -> str:
    short = [key.rpartition(".")[2] for key in own]
    keys = short if len(set(short)) == len(short) else list(own)
    parts = [f"{key}={_folder_safe(value)}" for key, value in zip(keys, own.values(), strict=True)]
    return "+".join([*([Path(base.removesuffix(".toml")).name] if base else []), *parts])


def _folder_safe(value: object) -> str:
    """Format a value for use in a folder name."""
    text = "_".join(map(_folder_safe, value)) if isinstance(value, list) else as_typed(value)
    return re.sub(r"[^A-Za-z0-9_.+=-]+", "-", text)


def _without_settings(value: object) -> object:
    """Return a list with named items replaced by their names; any other value as it is."""
    if not isinstance(value, list):
        return value
    return [item_key(str(item["name"])) if isinstance(item, dict) and "name" in item else item for item in value]


def _inherited(settings: Settings, base: str, above: Settings) -> Settings:
    """Return the settings of all runs that a row inherits.

    It does not inherit parts of a list or table that ``above`` replaces. If it makes another choice than ``settings``,
    or has another model than its recipe, it inherits as a recipe does from its base.

    Args:
        settings: of all runs.
        base: the recipe.
        above: what the row and the command line set.
    """
    own = _as_tree(above)
    model = recipe.read_tree(base).get("model", {}) if settings else {}
    below = laid_over({**own, "model": model}, _as_tree(settings), Config)  # a choice that settings leave open is own
    kept = dict(flatten(without_lost(below, own, Config)))
    replaced = {key for key in settings if any(is_part_of(key, whole) for whole in above)}
    return {key: value for key, value in settings.items() if key in kept and key not in replaced}


def _as_tree(settings: Settings) -> Tree:
    tree: Tree = {}
    for key, value in settings.items():
        put(tree, key, value)
    return tree


def _override_word(key: str, value: object) -> str:
    """Format ``--key=VALUE`` so that :func:`parse_overrides` returns the same value."""
    return f"--{key}={typed_value(key, value)}"


def _build_run(name: str, seed: int, words: Sequence[str], where: str, rename: str) -> Run:
    base, *settings = words
    settings += [f"--run.name={name}", f"--run.seed={seed}", "--run.fresh=false"]  # the recipe may have run.fresh
    try:
        config = recipe.load(base, settings)
    except UserError as error:
        what = str(error).removeprefix(f"{COMMAND_LINE}: ")
        raise UserError(f"{where}: {what}{f'; {rename}' if what.startswith('run.name ') else ''}") from None
    return Run(name, (base, *settings), config)


def _refuse_duplicate_names(rows: Sequence[Row], where: str) -> None:
    """Refuse two rows with the same folder, also where the file system ignores case."""
    seen: set[str] = set()
    for row in rows:
        if row.name.casefold() in seen:
            raise UserError(f"{where}: two rows are named '{row.name}'; give each its own name in [[rows]]")
        seen.add(row.name.casefold())
